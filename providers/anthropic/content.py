"""Translates the content of one canonical message into blocks of the Messages API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from aimo_node.errors import InvalidRequest
from providers.anthropic.dialect import IMAGE_TYPES, PDF_TYPE
from providers.anthropic.fields import cache_control_of, mapping_at, objects_at, text_at

Block: TypeAlias = dict[str, Any]

_DATA_URL: Final = re.compile(r"data:([\w.+/-]+)(?:;[\w=.+-]+)*;base64,", re.ASCII)


def blocks_of(path: str, content: object, left_out: set[str]) -> list[Block]:
    """The blocks of a message's ``content``: a string, a list of parts or null.

    Text of nothing but white space is passed over: the API refuses it.

    Args:
        path: of the content, such as ``messages[0].content``.
        left_out: gets the names of what cannot be carried.

    Raises:
        InvalidRequest: a part is malformed or of a kind the API does not have.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return _text(content, {})
    blocks: list[Block] = []
    for where, part in objects_at(path, content):
        blocks += _part(where, part, left_out)
    return blocks


def text_blocks_of(path: str, content: object, left_out: set[str]) -> list[Block]:
    """The same where only text may stand.

    Raises:
        InvalidRequest: there is something else.
    """
    blocks = blocks_of(path, content, left_out)
    if any(block["type"] != "text" for block in blocks):
        raise InvalidRequest(f"{path} may hold text only", param=path)
    return blocks


def _part(path: str, part: Mapping[str, Any], left_out: set[str]) -> list[Block]:
    control = cache_control_of(path, part)
    match part.get("type"):
        case "text" | "refusal" as kind:
            text = part.get(kind)
            if not isinstance(text, str):
                raise InvalidRequest(f"{path}.{kind} must be a string", param=f"{path}.{kind}")
            return _text(text, control)
        case "image_url":
            return [_image(f"{path}.image_url", part.get("image_url"), left_out) | control]
        case "file":
            return [_document(f"{path}.file", part.get("file")) | control]
        case kind:
            raise InvalidRequest(
                f"{path}.type {kind!r:.40} is nothing this model takes", param=f"{path}.type"
            )


def _text(text: str, control: Mapping[str, Any]) -> list[Block]:
    return [{"type": "text", "text": text, **control}] if text.strip() else []


def _image(path: str, value: object, left_out: set[str]) -> Block:
    """A link stays a link: whether remote media is allowed was decided before."""
    image = {"url": value} if isinstance(value, str) else mapping_at(path, value)
    if image.get("detail") not in {None, "auto"}:
        left_out.add("image_url.detail")
    where = f"{path}.url"
    url = text_at(where, image.get("url"))
    if url.startswith(("http://", "https://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    media_type, data = _split_data_url(where, url)
    known = IMAGE_TYPES.get(media_type)
    if known is None:
        raise InvalidRequest(
            f"{where} is of type {media_type:.40}; this model takes JPEG, PNG, GIF and WebP",
            param=where,
        )
    return {"type": "image", "source": {"type": "base64", "media_type": known, "data": data}}


def _document(path: str, value: object) -> Block:
    file = mapping_at(path, value)
    where = f"{path}.file_data"
    if not isinstance(file.get("file_data"), str):
        raise InvalidRequest(f"{where} must hold the file as a data: URL", param=where)
    media_type, data = _split_data_url(where, file["file_data"])
    if media_type != PDF_TYPE:
        raise InvalidRequest(f"{where} must be of type {PDF_TYPE}", param=where)
    source = {"type": "base64", "media_type": PDF_TYPE, "data": data}
    title = file.get("filename")
    named = {"title": title} if isinstance(title, str) and title else {}
    return {"type": "document", "source": source, **named}


def _split_data_url(path: str, url: str) -> tuple[str, str]:
    """Media type and base64 text; the data may be megabytes and is not looked at."""
    found = _DATA_URL.match(url)
    if found is None or len(url) == found.end():
        raise InvalidRequest(f"{path} must be a data: URL in base64", param=path)
    return found[1].lower(), url[found.end() :]
