"""What the core needs from outside, as `typing.Protocol`: engines and the peer network.

Implementations live in `providers` and `mesh`; fakes that pass the same contract suites ship
in `aimo_node.testing`.
"""
