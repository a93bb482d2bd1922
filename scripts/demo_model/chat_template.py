"""The chat template (ChatML with one line of tools), and the same line for training text."""

from collections.abc import Sequence

from scripts.demo_model.turns import Tool

TEMPLATE = """\
{% if tools %}<|im_start|>system
tools:{% for t in tools %} {{ t.function.name }}(\
{% if t.function.parameters and t.function.parameters.properties %}\
{% for p in t.function.parameters.properties %}\
{{ p }}{% if not loop.last %}, {% endif %}{% endfor %}\
{% endif %}){% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.content %}{{ m.content }}{% endif %}{% if m.tool_calls %}\
{% for c in m.tool_calls %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": \
{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def render_head(tools: Sequence[Tool]) -> str:
    """The tools line, as the chat template writes it."""
    if not tools:
        return ""
    listed = "".join(f" {tool.name}({tool.parameter})" for tool in tools)
    return f"<|im_start|>system\ntools:{listed}<|im_end|>\n"
