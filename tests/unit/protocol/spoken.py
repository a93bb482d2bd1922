"""Frames as a peer would send them, for request number 1 unless said otherwise."""

from __future__ import annotations

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.protocol.frames import Accepted, Request, Response, StreamChunk, UsageCount
from tests.unit.protocol.two_ends import request_id

FINISH = Finish(FinishReason.STOP, Usage(3, 2, 1))


def request(number: int = 1, **changes: object) -> Request:
    fields: dict[str, object] = {
        "request_id": request_id(number),
        "provider_id": "",
        "endpoint": 1,
        "request_type": 1,
        "content_type": 1,
        "payload": b"{}",
        "body_bytes": 0,
        "stream": True,
        "headers": {},
        "deadline_ms": 1_000,
        "public_id": "",
    }
    return Request(**(fields | changes))  # type: ignore[arg-type]


def chunk(index: int, payload: bytes = b"x", **changes: object) -> StreamChunk:
    fields = {"request_id": request_id(1), "chunk_index": index, "content_type": 0}
    return StreamChunk(**(fields | {"payload": payload} | changes))  # type: ignore[arg-type]


def final(index: int, **changes: object) -> StreamChunk:
    fields: dict[str, object] = {"payload": b"", "is_final": True, "finish_reason": 1}
    return chunk(index, **(fields | changes))  # type: ignore[arg-type]


def response(payload: bytes = b"[]", **changes: object) -> Response:
    fields: dict[str, object] = {
        "request_id": request_id(1),
        "status_code": 200,
        "content_type": 1,
        "payload": payload,
        "headers": {},
        "finish_reason": 1,
        "usage": UsageCount(3, 2, 1),
    }
    return Response(**(fields | changes))  # type: ignore[arg-type]


ACCEPTED = Accepted(request_id(1))
