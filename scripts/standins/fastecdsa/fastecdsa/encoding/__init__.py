"""Encodings of public keys and integers."""
