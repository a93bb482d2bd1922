"""Sizes of integers on the wire."""


def int_bytelen(number: int) -> int:
    """How many bytes a non-negative integer needs; zero needs none, as in the original."""
    return (number.bit_length() + 7) // 8
