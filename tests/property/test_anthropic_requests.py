"""Whatever conversation is translated: the API takes it, and no text or tool result is lost."""

import json

from hypothesis import given
from hypothesis import strategies as st

from aimo_node.errors import InvalidRequest
from aimo_node.testing.anthropic_rules import objection
from providers.anthropic.catalogue import ModelFacts
from providers.anthropic.request import Rules, translate

words = st.text(max_size=12)
said = st.text(min_size=1, max_size=12).filter(str.strip)
flags = st.none() | st.booleans()
facts = st.builds(
    ModelFacts,
    st.just("claude-x"),
    output_tokens_max=st.sampled_from([0, 2_000, 64_000]),
    adaptive=flags,
    budgeted=flags,
    thinking_off=flags,
    schemas=flags,
    efforts=st.none() | st.frozensets(st.sampled_from(["low", "medium", "high", "xhigh", "max"])),
)
rules = st.builds(
    Rules, tokens_default=st.sampled_from([0, 1, 5_000]), system_in_place=st.booleans()
)
TOOL = {"type": "function", "function": {"name": "get"}}


def part(text):
    return {"type": "text", "text": text}


def content(text):
    return st.just(text) | st.just([part(text)]) | st.just([part(" "), part(text), part("")])


@st.composite
def rounds(draw, number):
    """A user's word, the assistant's, with calls or not, and results with text around them."""
    user = draw(words)
    messages = [{"role": "user", "content": draw(content(user))}]
    if draw(st.booleans()):
        role = draw(st.sampled_from(["system", "developer"]))
        messages.append({"role": role, "content": draw(content(draw(words)))})
    calls = draw(st.integers(0, 3))
    spoken = draw(words)
    assistant = {"role": "assistant", "content": draw(content(spoken) | st.none())}
    thoughts = draw(
        st.lists(
            st.fixed_dictionaries(
                {"type": st.just("thinking"), "thinking": words, "signature": said},
                optional={"after_text": st.integers(0, 20), "after_calls": st.integers(0, 4)},
            ),
            max_size=3,
        )
    )
    if thoughts:
        assistant["aimo"] = {"thinking_blocks": thoughts}
    if calls:
        assistant["tool_calls"] = [
            {
                "id": f"call.{number}:{index}",
                "type": "function",
                "function": {
                    "name": "get",
                    "arguments": draw(st.sampled_from(["", "{}", '{"a":1}'])),
                },
            }
            for index in range(calls)
        ]
    messages.append(assistant)
    for index in draw(st.permutations(range(calls))):
        text = draw(words)
        messages.append(
            {
                "role": "tool",
                "tool_call_id": f"call.{number}:{index}",
                "content": draw(content(text)),
            }
        )
        if draw(st.booleans()):
            messages.append({"role": "user", "content": draw(words)})
    return messages


@st.composite
def conversations(draw):
    count = draw(st.integers(1, 3))
    found = [message for number in range(count) for message in draw(rounds(number))]
    return [*found, {"role": "user", "content": draw(said)}]


options = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 100_000),
        "max_completion_tokens": st.integers(1, 100_000),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(-1, 100),
        "seed": st.integers(),
        "stop": said | st.lists(said, max_size=3),
        "tool_choice": st.sampled_from(
            ["auto", "none", "required", {"type": "function", "function": {"name": "get"}}]
        ),
        "parallel_tool_calls": st.booleans(),
        "reasoning_effort": st.sampled_from(
            ["none", "minimal", "low", "medium", "high", "xhigh", "max"]
        ),
        "user": said,
    },
)


@given(messages=conversations(), options=options, facts=facts, rules=rules)
def test_what_is_translated_is_taken_and_whole(messages, options, facts, rules):
    body = translate({"messages": messages, "tools": [TOOL], **options}, facts, rules).body
    assert objection(body) == ""
    # Text is neither lost nor doubled, and stays in order within its role.
    for role in ("user", "assistant"):
        assert texts_to(body, role) == texts_from(messages, role)
    given_results = {
        message["tool_call_id"]: plain(message["content"])
        for message in messages
        if message["role"] == "tool"
    }
    assert sorted(results_to(body)) == sorted(
        (name.replace(".", "_2e_").replace(":", "_3a_"), text)
        for name, text in given_results.items()
    )
    placed = squeezed(block["text"] for block in body.get("system", []))
    instructions = texts_from(messages, "system", "developer")
    assert sorted(placed + texts_to(body, "system")) == sorted(instructions)
    assert rules.system_in_place or placed == instructions
    signed = [block for block in blocks(body, "assistant") if block["type"] == "thinking"]
    thought = [
        entry["signature"]
        for message in messages
        for entry in message.get("aimo", {}).get("thinking_blocks", ())
    ]
    assert sorted(block["signature"] for block in signed) == sorted(thought)


def blocks(body, role):
    return [
        block
        for message in body["messages"]
        if message["role"] == role
        for block in message["content"]
    ]


def texts_to(body, role):
    return squeezed(block["text"] for block in blocks(body, role) if block["type"] == "text")


def texts_from(messages, *roles):
    return squeezed(plain(message["content"]) for message in messages if message["role"] in roles)


def squeezed(pieces):
    """Without white space: where a thought cuts a text, a piece of nothing else is passed over."""
    return "".join("".join(piece.split()) for piece in pieces)


def results_to(body):
    for block in blocks(body, "user"):
        if block["type"] == "tool_result":
            pieces = block.get("content", [])
            yield block["tool_use_id"], "".join(piece["text"] for piece in pieces)


def plain(content):
    """The text of a message; parts of white space are passed over."""
    pieces = [content or ""] if isinstance(content, str | None) else [p["text"] for p in content]
    return "".join(piece for piece in pieces if piece.strip())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
roles = st.sampled_from(["user", "assistant", "tool", "system", "function"])
fields = {
    "role": roles | json_values,
    "content": json_values
    | st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "image_url", "file", "refusal"]) | json_values},
            optional={"text": json_values, "image_url": json_values, "aimo": json_values},
        ),
        max_size=2,
    ),
    "tool_calls": json_values
    | st.lists(
        st.fixed_dictionaries(
            {"id": json_values},
            optional={
                "type": json_values,
                "function": json_values
                | st.fixed_dictionaries({"name": json_values, "arguments": json_values}),
            },
        ),
        max_size=2,
    ),
    "tool_call_id": json_values,
    "aimo": json_values
    | st.fixed_dictionaries(
        {},
        optional={
            "cache_control": json_values,
            "is_error": json_values,
            "thinking_blocks": json_values
            | st.lists(st.fixed_dictionaries({"type": json_values}), max_size=2),
        },
    ),
    "name": json_values,
    "refusal": json_values,
}


@given(
    messages=st.lists(st.fixed_dictionaries({}, optional=fields), max_size=4),
    more=st.fixed_dictionaries(
        {},
        optional={
            "tools": st.lists(st.dictionaries(words, json_values, max_size=3), max_size=2),
            "tool_choice": words | st.dictionaries(words, json_values, max_size=2),
            "response_format": st.dictionaries(words, json_values, max_size=2),
            "reasoning_effort": words,
            "aimo": st.fixed_dictionaries({}, optional={"thinking": json_values}),
        },
    ),
)
def test_any_request_is_translated_or_refused_by_name(messages, more):
    try:
        found = translate({"messages": messages, **more}, ModelFacts("m"), Rules())
    except InvalidRequest as error:
        refused = error.param
    else:
        refused = json.dumps(found.body)
    assert refused
