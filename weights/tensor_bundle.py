"""TensorFlow's tensor bundle (checkpoint format 2) read without TensorFlow.

A bundle is `prefix.index`, a sorted table of one header and one entry per tensor, and `prefix.data-NNNNN-of-MMMMM`, the
shards with the tensors' bytes. Every entry holds a masked CRC-32C of its bytes. `tensor_bundle_writer` is the inverse.

Nothing is unpickled and nothing is mapped into memory: a tensor is read by positioned reads in pieces that fit into the
processor's cache, and every read verifies the checksum.
"""

import os
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
from google.protobuf.message import DecodeError

from weights import messages, sorted_table
from weights.errors import (
    CorruptCheckpointError,
    MissingShardError,
    NotACheckpointError,
    UnsupportedCheckpointError,
    listing,
)
from weights.sorted_table import decode_varint, mask_checksum

PIECE_BYTES = 1 << 18
"""How much is read at once: small enough for checksum, hash and copy to work on cached bytes."""

THREADS = max(1, min(4, os.cpu_count() or 1))
STRING = 7
DTYPES: dict[int, np.dtype] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    STRING: np.dtype(object),
    8: np.dtype(np.complex64),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool_),
    14: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(np.uint16),
    18: np.dtype(np.complex128),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
}
"""TensorFlow's DataType numbers and what they are in NumPy; a string tensor is an object array of bytes."""

Visitor = Callable[[np.ndarray], None]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What the index says about one tensor. `size` is in bytes, `checksum` the masked CRC-32C of those bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


def shard_path(prefix: Path, shard: int, shards: int) -> Path:
    """The file of one shard: `prefix.data-00000-of-00001`."""
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def index_path(prefix: Path) -> Path:
    """The file of the index: `prefix.index`."""
    return prefix.with_name(f"{prefix.name}.index")


class TensorBundle(Mapping[str, np.ndarray]):
    """The tensors of a bundle by key, in the index's (sorted) order; each access reads from disk.

    Opening reads and verifies the whole index, and that every shard is there and exactly as long as the index says.
    The shards' bytes are verified when they are read: all at once by `verify`, or one tensor on each access.

    Args:
        prefix: path of the bundle without `.index`.

    Raises:
        NotACheckpointError: no index there, or it is another kind of file, or not readable.
        CorruptCheckpointError: the index fails a check, or a shard has the wrong length.
        MissingShardError: a shard that the index names is not there.
        UnsupportedCheckpointError: compression, partitioned variables or a dtype without NumPy equivalent.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = Path(prefix)
        index = index_path(self.prefix)
        try:
            table = sorted_table.read_table(_read_file(index))
            self._header = _parse(messages.BundleHeader, table.pop(b"", b""), "the header")
            slices = [key for key in table if key.startswith(b"\0")]
            self._entries = {
                _text(key): _read_entry(_text(key), value) for key, value in table.items() if key not in slices
            }
            if slices:
                raise UnsupportedCheckpointError("it holds slices of partitioned variables")
        except (CorruptCheckpointError, NotACheckpointError, UnsupportedCheckpointError) as error:
            raise type(error)(f"index {index}: {error}") from None
        if self._header.num_shards < 1 or self._header.endianness not in (0, 1):
            raise CorruptCheckpointError(f"index {index}: the header is missing or makes no sense")
        if self._header.version.min_consumer > 1:
            raise UnsupportedCheckpointError(f"index {index}: written for a later version of the format")
        self.byte_order = "<" if self._header.endianness == 0 else ">"
        self.paths = tuple(
            shard_path(self.prefix, shard, self._header.num_shards) for shard in range(self._header.num_shards)
        )
        self._descriptors: list[int] = []
        weakref.finalize(self, _close, self._descriptors)
        self._check_shards()

    def _check_shards(self) -> None:
        """Open every shard and compare its length and layout with the index."""
        by_shard: dict[int, list[str]] = {shard: [] for shard in range(len(self.paths))}
        for key, info in self._entries.items():
            if info.shard not in by_shard:
                raise CorruptCheckpointError(f"{key}: its shard {info.shard} does not exist (of {len(self.paths)})")
            by_shard[info.shard].append(key)
        for shard, path in enumerate(self.paths):
            keys = sorted(by_shard[shard], key=lambda key: (self._entries[key].offset, self._entries[key].size))
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY))
            except FileNotFoundError:
                named = f", which holds {keys[0]} and {len(keys) - 1} more" if keys else ""
                raise MissingShardError(f"missing shard {path}{named}") from None
            except OSError as error:
                raise NotACheckpointError(f"cannot read shard {path}: {error.strerror}") from None
            length, end = os.fstat(self._descriptors[-1]).st_size, 0
            for key in keys:
                info = self._entries[key]
                if info.offset < end:
                    raise CorruptCheckpointError(f"{key}: its bytes overlap with another tensor's in {path}")
                end = info.offset + info.size
                if end > length:
                    cut = [other for other in keys if self._entries[other].offset + self._entries[other].size > length]
                    raise CorruptCheckpointError(
                        f"shard {path} is truncated to {length} bytes; "
                        + listing("tensors that it no longer holds whole", cut)
                    )
            if length != end:
                raise CorruptCheckpointError(f"shard {path} has {length - end} bytes that belong to no tensor")

    def __getitem__(self, key: str) -> np.ndarray:
        return self.read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries  # Mapping's own would read the tensor.

    def info(self, key: str) -> TensorInfo:
        """What the index says about a tensor, without reading it."""
        return self._entries[key]

    def visit(self, key: str, *visitors: Visitor) -> None:
        """Read a tensor's stored bytes in pieces and hand each piece to every visitor, then verify the checksum.

        Args:
            key: the tensor.
            visitors: called with pieces (uint8, at most `PIECE_BYTES`) in order; a piece is overwritten afterwards.

        Raises:
            CorruptCheckpointError: the checksum is wrong or the shard has shrunk; visitors have seen wrong bytes.
        """
        info = self._entries[key]
        buffer = np.empty(min(info.size, PIECE_BYTES), np.uint8)
        checksum = 0
        if self._is_string(info):
            checksum = self._string_checksum(key, info)
        for start in range(0, info.size, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, info.size - start)]
            self._fill(key, info, start, piece)
            if not self._is_string(info):
                checksum = google_crc32c.extend(checksum, piece)
            for visitor in visitors:
                visitor(piece)
        self._compare(key, info, checksum)

    def read(self, key: str, *visitors: Visitor) -> np.ndarray:
        """Read one tensor and verify its checksum, in native byte order.

        Args:
            key: the tensor.
            visitors: called with the stored bytes piece by piece, as in `visit`.

        Returns:
            a new array; string tensors are object arrays of bytes.
        """
        info = self._entries[key]
        if self._is_string(info):
            for visitor in visitors:
                self.visit(key, visitor)
            return self._read_strings(key, info)
        raw = np.empty(info.size, np.uint8)
        checksum = 0
        for start in range(0, info.size, PIECE_BYTES):
            piece = raw[start : start + PIECE_BYTES]
            self._fill(key, info, start, piece)
            checksum = google_crc32c.extend(checksum, piece)
            for visitor in visitors:
                visitor(piece)
        self._compare(key, info, checksum)
        array = raw.view(info.dtype).reshape(info.shape)
        native = "<" if np.little_endian else ">"
        return array if self.byte_order == native else array.byteswap()

    def verify(self) -> None:
        """Stream every tensor once, in several threads and bounded memory, and verify its checksum.

        Raises:
            CorruptCheckpointError: names every tensor whose bytes are wrong.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(self._complaint, self._entries)
            complaints = [complaint for complaint in found if complaint]
        if complaints:
            raise CorruptCheckpointError(listing("damaged tensors", complaints))

    def _complaint(self, key: str) -> str:
        try:
            self.visit(key)
        except CorruptCheckpointError as error:
            return str(error)
        return ""

    @staticmethod
    def _is_string(info: TensorInfo) -> bool:
        return info.dtype.kind == "O"

    def _fill(self, key: str, info: TensorInfo, start: int, piece: np.ndarray) -> None:
        """Fill `piece` with stored bytes from `start` of the tensor on."""
        done = 0
        while done < piece.nbytes:
            count = os.preadv(self._descriptors[info.shard], [piece[done:].data], info.offset + start + done)
            if count == 0:
                raise CorruptCheckpointError(f"{key}: shard {self.paths[info.shard]} has become shorter")
            done += count

    def _compare(self, key: str, info: TensorInfo, checksum: int) -> None:
        if mask_checksum(checksum) != info.checksum:
            raise CorruptCheckpointError(
                f"{key}: the checksum of its {info.size} bytes in {self.paths[info.shard]} is wrong"
            )

    def _string_parts(self, key: str, info: TensorInfo) -> tuple[list[int], bytes, bytes]:
        """The lengths, the stored checksum of the lengths, and the text of a string tensor.

        Stored are one varint length per element, a masked CRC-32C of the lengths, and the elements one after another.
        """
        raw = np.empty(info.size, np.uint8)
        self._fill(key, info, 0, raw)
        data, position, lengths = raw.tobytes(), 0, []
        try:
            for _ in range(int(np.prod(info.shape, dtype=np.int64))):
                length, position = decode_varint(data, position)
                lengths.append(length)
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(f"{key}: the lengths of its strings are damaged: {error}") from None
        if position + 4 + sum(lengths) != len(data):
            raise CorruptCheckpointError(f"{key}: its strings do not have the stored lengths")
        return lengths, data[position : position + 4], data[position + 4 :]

    def _string_checksum(self, key: str, info: TensorInfo) -> int:
        lengths, stored, text = self._string_parts(key, info)
        return string_checksum(lengths, stored, text, self.byte_order)

    def _read_strings(self, key: str, info: TensorInfo) -> np.ndarray:
        lengths, stored, text = self._string_parts(key, info)
        self._compare(key, info, string_checksum(lengths, stored, text, self.byte_order))
        array = np.empty(len(lengths), object)
        position = 0
        for element, length in enumerate(lengths):
            array[element] = text[position : position + length]
            position += length
        return array.reshape(info.shape)


def string_checksum(lengths: list[int], stored: bytes, text: bytes, byte_order: str) -> int:
    """CRC-32C of a string tensor: over the lengths as fixed-width integers, their stored checksum, and the text."""
    fixed = b"".join(struct.pack(f"{byte_order}{'I' if length < 1 << 32 else 'Q'}", length) for length in lengths)
    return google_crc32c.extend(google_crc32c.extend(google_crc32c.value(fixed), stored), text)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotACheckpointError(f"cannot be read: {error.strerror}") from None


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise CorruptCheckpointError(f"the key {key!r} is no text") from None


def _parse(message_class: Any, data: bytes, what: str) -> Any:
    """Parse a protocol buffer message; damage raises CorruptCheckpointError."""
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise CorruptCheckpointError(f"{what} cannot be parsed") from None


def _read_entry(key: str, value: bytes) -> TensorInfo:
    """Turn one index entry into a TensorInfo."""
    entry = _parse(messages.BundleEntry, value, f"the entry of {key}")
    if entry.slices:
        raise UnsupportedCheckpointError(f"{key} is a partitioned variable ({len(entry.slices)} slices)")
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise UnsupportedCheckpointError(f"{key} has TensorFlow's data type {entry.dtype}, which is no array")
    shape = tuple(dimension.size for dimension in entry.shape.dim)
    if entry.shape.unknown_rank or any(size < 0 for size in shape) or entry.offset < 0 or entry.size < 0:
        raise CorruptCheckpointError(f"the entry of {key} makes no sense")
    if dtype.kind != "O" and entry.size != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise CorruptCheckpointError(f"{key}: {entry.size} bytes do not fit shape {shape} of {dtype}")
    return TensorInfo(
        dtype=dtype, shape=shape, shard=entry.shard_id, offset=entry.offset, size=entry.size, checksum=entry.crc32c
    )
