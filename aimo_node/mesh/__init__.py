"""The mesh over py-libp2p, which nothing else imports.

Start with `network` (links to peers), then `link` (one session on one stream), `host` (libp2p
itself) and `fixes` (what libp2p gets wrong, one file per fault).
"""
