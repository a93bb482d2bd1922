"""Quart's own limits, made to agree with the server's."""

from __future__ import annotations

from quart import Quart

from aimo_node.edge.serving.limits import HttpLimits


def adapt_quart(app: Quart, limits: HttpLimits) -> None:
    """Switches off the limits of Quart that the server keeps better, and equals the others.

    RESPONSE_TIMEOUT (60 s) would cut every stream of tokens without a word; a consumer that does
    not read is the server's business. BODY_TIMEOUT would answer a slow body beside the server.
    """
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = None
    app.config["MAX_CONTENT_LENGTH"] = limits.body_bytes_max
