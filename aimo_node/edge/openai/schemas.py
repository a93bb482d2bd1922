"""What a Chat Completions request may hold. Unknown fields pass; known ones have to fit.

The provider allow-lists and clamps parameters again: this is for the consumer's sake, who gets an
error that names the field before anything travels.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct

CHOICES_MAX: Final = 8  # each is a whole generation

ShortText = Annotated[str, Meta(max_length=256)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
FunctionName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]


class TextPart(Struct, tag_field="type", tag="text"):
    """Text."""

    text: str


class RefusalPart(Struct, tag_field="type", tag="refusal"):
    """An earlier refusal of the model's."""

    refusal: str


class Media(Struct):
    """Where an image, a video or a sound is; the provider decides which addresses it follows."""

    url: str


class ImagePart(Struct, tag_field="type", tag="image_url"):
    """An image."""

    image_url: Media


class VideoPart(Struct, tag_field="type", tag="video_url"):
    """A video, as vLLM takes it."""

    video_url: Media


class AudioLinkPart(Struct, tag_field="type", tag="audio_url"):
    """A sound, as vLLM takes it."""

    audio_url: Media


class AudioPart(Struct, tag_field="type", tag="input_audio"):
    """A sound in base64."""

    input_audio: dict[str, Any]


class FilePart(Struct, tag_field="type", tag="file"):
    """A file in base64 or by id."""

    file: dict[str, Any]


Part: TypeAlias = (
    TextPart | RefusalPart | ImagePart | VideoPart | AudioLinkPart | AudioPart | FilePart
)
Content: TypeAlias = str | list[Part]


class CalledFunction(Struct):
    """A function with the arguments the model chose, JSON in a string."""

    name: str
    arguments: str


class FunctionCall(Struct, tag_field="type", tag="function"):
    """A call the model made."""

    id: str
    function: CalledFunction


class CustomCall(Struct, tag_field="type", tag="custom"):
    """A call of a custom tool."""

    id: str
    custom: dict[str, Any]


class SystemMessage(Struct, tag_field="role", tag="system"):
    """Instructions."""

    content: Content
    name: ShortText | None = None


class DeveloperMessage(Struct, tag_field="role", tag="developer"):
    """Instructions, by their newer name."""

    content: Content
    name: ShortText | None = None


class UserMessage(Struct, tag_field="role", tag="user"):
    """What the user said."""

    content: Content
    name: ShortText | None = None


class AssistantMessage(Struct, tag_field="role", tag="assistant"):
    """What the model said or called."""

    content: Content | None = None
    name: ShortText | None = None
    tool_calls: list[FunctionCall | CustomCall] | None = None
    function_call: CalledFunction | None = None


class ToolMessage(Struct, tag_field="role", tag="tool"):
    """What a called tool returned."""

    content: Content
    tool_call_id: str


class FunctionMessage(Struct, tag_field="role", tag="function"):
    """What a called function returned, by its older name."""

    content: str | None
    name: ShortText


Message: TypeAlias = (
    SystemMessage
    | DeveloperMessage
    | UserMessage
    | AssistantMessage
    | ToolMessage
    | FunctionMessage
)


class Function(Struct):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Struct, tag_field="type", tag="function"):
    """A function as a tool."""

    function: Function


class CustomTool(Struct, tag_field="type", tag="custom"):
    """A tool with free text as its argument."""

    custom: dict[str, Any]


class StreamOptions(Struct):
    """How to stream."""

    include_usage: bool | None = None


class ChatRequest(Struct):
    """The body of ``POST /v1/chat/completions``."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Meta(ge=1, le=CHOICES_MAX)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    tools: Annotated[list[FunctionTool | CustomTool], Meta(max_length=1024)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    user: ShortText | None = None
