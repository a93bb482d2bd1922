"""Descriptors from the mesh, believed only if their provider signed them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from aimo_node.domain.models import Descriptor
from aimo_node.errors import InvalidMessageFormat, RemoteProtocolError
from aimo_node.mesh.identity import public_key_from_peer_id
from aimo_node.protocol import frames
from aimo_node.protocol.descriptors import read_descriptor
from aimo_node.protocol.signing import descriptor_bytes_to_sign

REMEMBERED_MAX: Final = 4_096
"""Checked descriptors kept: relays repeat them, and a check costs 100 µs."""


class DescriptorChecker:
    """Checks signatures and remembers the outcome."""

    def __init__(self) -> None:
        self._known: OrderedDict[frames.Descriptor, Descriptor] = OrderedDict()

    def knows(self, frame: frames.Descriptor) -> bool:
        """Whether `check` costs nothing."""
        return frame in self._known

    def check(self, frame: frames.Descriptor) -> Descriptor:
        """What the provider said.

        Raises:
            RemoteProtocolError: malformed, or not signed by the peer it describes.
        """
        known = self._known.get(frame)
        if known is not None:
            self._known.move_to_end(frame)
            return known
        descriptor = read_descriptor(frame)
        try:
            verify = public_key_from_peer_id(descriptor.peer)
        except InvalidMessageFormat as error:
            raise RemoteProtocolError(f"descriptor: {error.message}") from error
        if not verify(descriptor_bytes_to_sign(frame.body), frame.signature):
            raise RemoteProtocolError("a descriptor is not signed by its provider")
        self._known[frame] = descriptor
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
        return descriptor
