"""Stand-in for the part of fastecdsa that libp2p 0.8.1 imports: P-256 keys for its SecIO transport.

The original needs a C compiler and libgmp on most machines. This one leaves the
arithmetic to `cryptography`, and offers nothing beyond what libp2p calls:
`curve.P256`, `point.Point`, `keys`, `encoding.sec1.SEC1Encoder`, `encoding.util.int_bytelen`.
"""
