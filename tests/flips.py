"""Damage to files: single bits."""

from __future__ import annotations


def flip(whole: bytes, bit: int) -> bytes:
    """The same bytes with one bit changed."""
    place, number = divmod(bit, 8)
    return whole[:place] + bytes([whole[place] ^ (1 << number)]) + whole[place + 1 :]
