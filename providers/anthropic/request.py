"""Translates a canonical chat request into one of the Messages API: a pure function of values.

What shapes the answer and cannot be carried is refused, naming the field; what only steers chances
is left out and reported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aimo_node.errors import InvalidRequest
from providers.anthropic.catalogue import ModelFacts
from providers.anthropic.conversation import Conversation
from providers.anthropic.dialect import NEUTRAL, SHAPES, STEERING, TOOL_CHOICES
from providers.anthropic.fields import cache_control_of, mapping_at, objects_at, text_at
from providers.anthropic.thinking import answer_tokens, sampling_fields, thinking_fields, thinks

_WORD: Final = re.compile(r"\S")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the owner says about translating.

    Attributes:
        tokens_default: ``max_tokens`` of requests that name none; 0 leaves it to the model.
        system_in_place: system messages in mid-conversation stay there; not every model takes it.
        sampling: whether temperature, top_p and top_k are sent; None decides by the model.
    """

    tokens_default: int = 0
    system_in_place: bool = False
    sampling: bool | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """A Messages request.

    Attributes:
        body: without ``stream``.
        left_out: names of what the API has no place for, in alphabetical order.
    """

    body: dict[str, Any]
    left_out: tuple[str, ...]


def translate(body: Mapping[str, Any], facts: ModelFacts, rules: Rules) -> Translation:
    """The Messages request for a canonical chat request.

    Args:
        body: with parameters already checked and clamped, see `aimo_node.dispatch.parameters`.
        facts: of the model that is asked; its name is sent.

    Raises:
        InvalidRequest: something cannot be translated; `param` is its path.
    """
    left_out: set[str] = set()
    _check_shape(body)
    conversation = Conversation(left_out, system_in_place=rules.system_in_place)
    for path, message in objects_at("messages", body.get("messages")):
        conversation.add(path, message)
    turns = conversation.turns()
    if not turns:
        raise InvalidRequest("messages hold nothing but instructions or nothing", param="messages")
    fields: dict[str, Any] = {
        "model": facts.name,
        "max_tokens": answer_tokens(body, facts, rules.tokens_default),
        **cache_control_of("", body),
        **({"system": conversation.system} if conversation.system else {}),
        "messages": turns,
        **_stop_sequences(body),
        **_tools(body, facts, left_out),
        **_metadata(body),
    }
    output = _output_format(body, facts)
    fields.update(thinking_fields(body, facts, fields, left_out))
    if effort := fields.pop("effort", None):
        output["effort"] = effort
    if output:
        fields["output_config"] = output
    allowed = facts.takes_sampling if rules.sampling is None else rules.sampling
    fields.update(sampling_fields(body, allowed=allowed, thinks=thinks(fields), left_out=left_out))
    left_out.update(name for name, idle in NEUTRAL.items() if body.get(name) not in (None, *idle))
    return Translation(fields, tuple(sorted(left_out)))


def counted(body: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a Messages request that token counting takes."""
    return {name: value for name, value in body.items() if name not in STEERING}


def _check_shape(body: Mapping[str, Any]) -> None:
    for name, harmless in SHAPES.items():
        if body.get(name) not in (None, *harmless):
            raise InvalidRequest(f"{name} is not supported by this model", param=name)


def _stop_sequences(body: Mapping[str, Any]) -> dict[str, Any]:
    stops = body.get("stop") or []
    for index, stop in enumerate([stops] if isinstance(stops, str) else stops):
        if not _WORD.search(stop):
            raise InvalidRequest(
                f"stop[{index}] is nothing but white space, which this model does not stop at",
                param=f"stop[{index}]",
            )
    if not stops:
        return {}
    return {"stop_sequences": [stops] if isinstance(stops, str) else list(stops)}


def _tools(body: Mapping[str, Any], facts: ModelFacts, left_out: set[str]) -> dict[str, Any]:
    tools = [
        _tool(path, tool, facts, left_out) for path, tool in objects_at("tools", body.get("tools"))
    ]
    choice = _tool_choice(body.get("tool_choice"))
    if not tools:
        if choice.get("type") in {"any", "tool"}:
            raise InvalidRequest("tool_choice asks for a tool, but there is none", param="tools")
        return {}
    if body.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto"} | choice | {"disable_parallel_tool_use": True}
    return {"tools": tools} | ({"tool_choice": choice} if choice else {})


def _tool(
    path: str, tool: Mapping[str, Any], facts: ModelFacts, left_out: set[str]
) -> dict[str, Any]:
    if tool.get("type") != "function":
        where = f"{path}.type"
        raise InvalidRequest(f"{where} must be function: there are no others here", param=where)
    function = mapping_at(f"{path}.function", tool.get("function"))
    schema = function.get("parameters")
    where = f"{path}.function.parameters"
    schema = {"properties": {}} if schema is None else mapping_at(where, schema)
    translated: dict[str, Any] = {
        "name": text_at(f"{path}.function.name", function.get("name")),
        "input_schema": {"type": "object", **schema},
    }
    if isinstance(function.get("description"), str) and function["description"]:
        translated["description"] = function["description"]
    if function.get("strict") is True:
        if facts.schemas is False:
            left_out.add("tools[].function.strict")
        else:
            translated["strict"] = True
    return translated | cache_control_of(path, tool)


def _tool_choice(choice: object) -> dict[str, Any]:
    match choice:
        case None:
            return {}
        case str() if choice in TOOL_CHOICES:
            return {"type": TOOL_CHOICES[choice]}
        case {"type": "function", "function": {"name": str(name)}} if name:
            return {"type": "tool", "name": name}
    raise InvalidRequest(
        f"tool_choice must be one of {', '.join(TOOL_CHOICES)}, or name one function",
        param="tool_choice",
    )


def _output_format(body: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    wanted = body.get("response_format")
    if wanted is None:
        return {}
    kind = mapping_at("response_format", wanted).get("type")
    if kind == "text":
        return {}
    if kind != "json_schema":
        raise InvalidRequest(
            "response_format must be text or json_schema: this model has no JSON mode without one",
            param="response_format.type",
        )
    if facts.schemas is False:
        raise InvalidRequest("this model takes no JSON schema", param="response_format.type")
    where = "response_format.json_schema"
    schema = mapping_at(
        f"{where}.schema", mapping_at(where, wanted.get("json_schema")).get("schema")
    )
    return {"format": {"type": "json_schema", "schema": schema}}


def _metadata(body: Mapping[str, Any]) -> dict[str, Any]:
    """Who asks, opaque to the API, which looks for abuse by it; never the consumer's salt."""
    metadata = body.get("metadata")
    inner = metadata.get("user_id") if isinstance(metadata, dict) else None
    user = body.get("user") or inner
    return {"metadata": {"user_id": user}} if isinstance(user, str) and user else {}
