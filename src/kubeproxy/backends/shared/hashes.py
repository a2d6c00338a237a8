"""Hashes in names: base32 over the first bytes of SHA-256, as the reference has them."""

from hashlib import sha256
from typing import Final

_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS: Final = tuple([a + b for a in _ALPHABET for b in _ALPHABET])


def hash16(text: str) -> str:
    """16 characters."""
    bits = int.from_bytes(sha256(text.encode()).digest()[:10])
    pairs = _PAIRS
    return (
        f"{pairs[bits >> 70]}{pairs[bits >> 60 & 1023]}{pairs[bits >> 50 & 1023]}{pairs[bits >> 40 & 1023]}"
        f"{pairs[bits >> 30 & 1023]}{pairs[bits >> 20 & 1023]}{pairs[bits >> 10 & 1023]}{pairs[bits & 1023]}"
    )


def hash8(text: str) -> str:
    """8 characters."""
    bits = int.from_bytes(sha256(text.encode()).digest()[:5])
    pairs = _PAIRS
    return f"{pairs[bits >> 30]}{pairs[bits >> 20 & 1023]}{pairs[bits >> 10 & 1023]}{pairs[bits & 1023]}"
