"""The wire, version 1, sans-I/O. Nothing here reads a clock, a socket or chance.

Start with `frames` (what is said), `codec` (how), `session` (one link's state machine). The
specification for other implementations is `docs/protocol/v1.md`.
"""
