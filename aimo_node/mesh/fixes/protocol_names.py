"""Fault: libp2p reads a protocol's name of whatever length a stranger claims, as fast as it comes.

What is no text comes out as an error that nobody expects, and leaves a traceback in the log.
"""

from __future__ import annotations

from typing import Final

from aimo_node.mesh.fixes.library import (
    BaseLibp2pError,
    MultiselectCommunicator,
    MultiselectCommunicatorError,
    read_varint_prefixed_bytes_limited,
)

_NAME_BYTES_MAX: Final = 1024
"""Protocols have names of some forty characters."""


class NameReader(MultiselectCommunicator):  # type: ignore[misc]
    """Says and hears protocol names on a stream."""

    async def read(self) -> str:
        """The next name.

        Raises:
            MultiselectCommunicatorError: there is none, or it is none.
        """
        try:
            data = await read_varint_prefixed_bytes_limited(self.read_writer, _NAME_BYTES_MAX)
            name: str = data.decode()
        except (BaseLibp2pError, UnicodeDecodeError) as error:
            raise MultiselectCommunicatorError("no name of a protocol") from error
        if not name.endswith("\n"):
            raise MultiselectCommunicatorError("the name of a protocol has no end")
        return name[:-1]
