"""Connections without a link are given some time, and then no more."""

from aimo_node.mesh.unlinked import UnlinkedConnections


def test_a_connection_is_overdue_only_after_its_time():
    unlinked = UnlinkedConnections(10.0)
    assert unlinked.overdue(["a"], now=100.0) == []
    assert unlinked.overdue(["a", "b"], now=109.9) == []
    assert unlinked.overdue(["a", "b"], now=110.0) == ["a"]


def test_a_link_in_between_starts_the_time_anew():
    unlinked = UnlinkedConnections(10.0)
    unlinked.overdue(["a"], now=0.0)
    unlinked.overdue([], now=5.0)
    assert unlinked.overdue(["a"], now=11.0) == []
    assert unlinked.overdue(["a"], now=21.0) == ["a"]
