"""Circuits: links through a relay, from both sides, and which way to a peer is best."""
