"""A link observer that ignores everything; the parts of the mesh override what they care for."""

from __future__ import annotations

from aimo_node.errors import CloseCode
from aimo_node.mesh.link import Link
from aimo_node.protocol.session import Announcement


class IdleObserver:
    """Hears nothing."""

    def link_opened(self, link: Link) -> None:
        """The peer's Hello was accepted."""

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """The link has ended."""

    def link_changed(self, link: Link) -> None:
        """The peer became suspect, recovered, or drains."""

    def announced(self, link: Link, frame: Announcement) -> None:
        """A frame that stands alone arrived."""
