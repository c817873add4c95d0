"""Writes TensorFlow's tensor bundles (checkpoint format 2) without TensorFlow; the inverse of `tensor_bundle`."""

import os
import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np

from weights import messages, sorted_table
from weights.sorted_table import encode_varint, mask_checksum
from weights.tensor_bundle import DTYPES, STRING, index_path, shard_path, string_checksum

_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def _encode(array: np.ndarray) -> tuple[int, list[memoryview | bytes], int]:
    """The data type number, the pieces to write and their checksum, unmasked."""
    if array.dtype == object:
        elements = [bytes(element) for element in array.ravel()]
        lengths, text = [len(element) for element in elements], b"".join(elements)
        fixed = b"".join(struct.pack(f"<{'I' if length < 1 << 32 else 'Q'}", length) for length in lengths)
        stored = struct.pack("<I", mask_checksum(google_crc32c.value(fixed)))
        pieces: list[memoryview | bytes] = [b"".join(encode_varint(length) for length in lengths), stored, text]
        return STRING, pieces, string_checksum(lengths, stored, text, "<")
    number = _NUMBERS.get(array.dtype.newbyteorder("="))
    if number is None:
        raise TypeError(f"{array.dtype} has no TensorFlow data type")
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    raw = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    return number, [raw.data], google_crc32c.value(raw)


def write_bundle(
    prefix: str | os.PathLike[str],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    tensors_per_shard: int | None = None,
    entries_per_block: int = 1024,
) -> None:
    """Write a bundle. One tensor is held in memory at a time; the caller provides atomicity (see `output`).

    Args:
        prefix: path without `.index`; its directory exists.
        tensors: keys and arrays, in the order in which their bytes are laid out; object arrays hold bytes.
        tensors_per_shard: start a new shard after so many; one shard when None.
        entries_per_block: index entries in one block of the table.

    Raises:
        TypeError: an array's dtype has no TensorFlow equivalent.
        OSError: a file cannot be written.
    """
    prefix = Path(prefix)
    entries: dict[str, bytes] = {}
    unnamed: list[Path] = []
    file = None
    try:
        for count, (key, array) in enumerate(tensors):
            if file is None or (tensors_per_shard and count % tensors_per_shard == 0):
                if file is not None:
                    file.close()
                unnamed.append(prefix.with_name(f"{prefix.name}.shard-{len(unnamed)}"))
                file = unnamed[-1].open("wb")
            number, pieces, checksum = _encode(np.asarray(array))
            offset = file.tell()
            for piece in pieces:
                file.write(piece)
            entry = messages.BundleEntry(
                dtype=number,
                shard_id=len(unnamed) - 1,
                offset=offset,
                size=file.tell() - offset,
                crc32c=mask_checksum(checksum),
            )
            entry.shape.SetInParent()
            for size in np.shape(array):
                entry.shape.dim.add(size=size)
            if key in entries:
                raise ValueError(f"the key {key} occurs twice")
            entries[key] = entry.SerializeToString()
    finally:
        if file is not None:
            file.close()
    if not unnamed:
        raise ValueError("a bundle needs at least one tensor")
    for shard, path in enumerate(unnamed):
        path.replace(shard_path(prefix, shard, len(unnamed)))
    header = messages.BundleHeader(num_shards=len(unnamed))
    header.version.producer = 1
    table = [(b"", header.SerializeToString()), *((key.encode(), value) for key, value in entries.items())]
    index_path(prefix).write_bytes(sorted_table.write_table(table, entries_per_block=entries_per_block))
