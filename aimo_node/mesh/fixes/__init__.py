"""What libp2p 0.8.1 gets wrong and how this node gets round it: one file per fault.

Each file's first line names its fault. Nothing is patched except one logger: libp2p's parts are
replaced through the places where it takes them from outside (transport, upgrader, muxer, host,
auto-connector, stream handler). Start with `library`, the only door to libp2p, and `limits`.

A new version of libp2p means reading these files against its sources, then `version`. Which test
fails without which fix is told in `docs/explanation/libp2p-fixes.md`.
"""
