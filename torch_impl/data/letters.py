"""Sequences at two bits a base: how they lie in converted files.

A byte holds four bases, the first one in its lowest bits: A 0, C 1, G 2, T 3. Any other letter has the bits of one of
the four too, and beside the bits lies what to exclude-or the letters of those four with, so that every byte comes back.
"""

import functools

import numpy as np

BASES = b"ACGT"
_GROUP = 8
"""Bases that are looked up at once; sequences are padded to a multiple of them."""


def packed_length(letters: int) -> int:
    """Bytes that the codes of a sequence fill."""
    return -(-letters // _GROUP) * _GROUP // 4


def pack(sequence: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes of a sequence, and what they do not say.

    Args:
        sequence: Any bytes.

    Returns:
        uint8 array of ``packed_length`` codes. uint8 array, one byte for each letter, that turns the letters of the
        codes into those of the sequence by exclusive or; None where they are the same.
    """
    padded = np.frombuffer(sequence.ljust(4 * packed_length(len(sequence)), b"A"), "<u4")
    # In each byte of a word: bits 1 and 2 of A, C, G, T are 0, 1, 3, 2.
    codes = padded >> 1
    codes &= np.uint32(0x03030303)
    codes ^= codes >> 1 & np.uint32(0x01010101)
    codes |= codes >> 6
    codes |= codes >> 12
    packed = codes.astype(np.uint8)
    letters = unpack(packed, len(sequence))
    if letters == sequence:
        return packed, None
    return packed, np.frombuffer(letters, np.uint8) ^ np.frombuffer(sequence, np.uint8)


def unpack(packed: np.ndarray, length: int, others: np.ndarray | None = None) -> bytes:
    """Inverse of ``pack``.

    Args:
        packed: Codes.
        length: Number of letters.
        others: What the codes do not say.
    """
    letters = _looked_up(packed, BASES)[:length]
    return (letters if others is None else letters ^ others).tobytes()


def unpack_indices(packed: np.ndarray, length: int) -> np.ndarray:
    """(length,) uint8 base indices of a sequence of which the codes say everything."""
    return _looked_up(packed, bytes(range(4)))[:length]


def _looked_up(packed: np.ndarray, alphabet: bytes) -> np.ndarray:
    """One byte for each base."""
    # Every number of 16 bits is in the table; without a check of the bounds NumPy is faster.
    return np.take(_table(alphabet), packed.view("<u2"), mode="wrap").view(np.uint8)


@functools.cache
def _table(alphabet: bytes) -> np.ndarray:
    """For each two bytes of codes the eight bytes that they stand for."""
    codes = np.arange(1 << 16)[:, None] >> np.arange(0, 2 * _GROUP, 2) & 3
    return np.frombuffer(alphabet, np.uint8)[codes].reshape(-1).view("<u8")
