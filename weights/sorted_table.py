"""The sorted string table (LevelDB's file format) that a checkpoint's `.index` file is.

Layout: data blocks, a meta-index block, an index block, a 48-byte footer. A block holds prefix-compressed entries and
an array of restart offsets; behind each block stand one byte for the compression and a masked CRC-32C of both.
The reader accepts a file only when blocks and footer cover it without gap and every checksum holds, so that no flipped
bit anywhere goes unseen.
"""

import struct
from collections.abc import Iterable, Iterator

import google_crc32c

from weights.errors import CorruptCheckpointError, NotACheckpointError, UnsupportedCheckpointError

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
TRAILER_BYTES = 5
RESTART_INTERVAL = 16
_MASK_DELTA = 0xA282EAD8


def mask_checksum(checksum: int) -> int:
    """Rotate and shift a CRC-32C the way LevelDB and TensorFlow store it."""
    return (((checksum >> 15) | (checksum << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def encode_varint(number: int) -> bytes:
    """Encode a non-negative integer, seven bits to a byte, lowest first."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def decode_varint(data: bytes, position: int) -> tuple[int, int]:
    """Decode the integer at `position`; returns it and the position behind it.

    Raises:
        CorruptCheckpointError: the data ends inside the number, or it is longer than it needs to be or than 64 bits.
    """
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise CorruptCheckpointError("a number is cut off")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 64 or (shift and not byte):
                break
            return number, position
    raise CorruptCheckpointError("a number is not encoded as it should be")


def _parse_block(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of one block, whose checksum has been verified."""
    if len(block) < 4:
        raise CorruptCheckpointError("a block is too short")
    restarts = struct.unpack_from("<I", block, len(block) - 4)[0]
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise CorruptCheckpointError("a block has more restart points than bytes")
    position, key = 0, b""
    while position < end:
        shared, position = decode_varint(block, position)
        unshared, position = decode_varint(block, position)
        length, position = decode_varint(block, position)
        if shared > len(key) or position + unshared + length > end:
            raise CorruptCheckpointError("an entry does not fit into its block")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


class _Blocks:
    """Cuts blocks out of the file, checks each, and remembers which bytes they cover."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._covered: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        end = offset + size + TRAILER_BYTES
        if end > len(self._data) - FOOTER_BYTES:
            raise CorruptCheckpointError(f"the block at byte {offset} reaches beyond the end of the file")
        block, kind = self._data[offset : offset + size], self._data[offset + size]
        stored = struct.unpack_from("<I", self._data, offset + size + 1)[0]
        if mask_checksum(google_crc32c.value(self._data[offset : offset + size + 1])) != stored:
            raise CorruptCheckpointError(f"the checksum of the block at byte {offset} is wrong")
        if kind == 1:
            raise UnsupportedCheckpointError("the index is compressed with snappy; TensorFlow writes it uncompressed")
        if kind != 0:
            raise UnsupportedCheckpointError(f"a block of the index has the unknown compression {kind}")
        self._covered.append((offset, end))
        return block

    def require_complete(self) -> None:
        """Every byte in front of the footer belongs to exactly one block."""
        position = 0
        for start, end in sorted(self._covered):
            if start != position:
                raise CorruptCheckpointError(f"bytes {position} to {start} belong to no block, or to two")
            position = end
        if position != len(self._data) - FOOTER_BYTES:
            raise CorruptCheckpointError(f"bytes {position} to {len(self._data) - FOOTER_BYTES} belong to no block")


def read_table(data: bytes) -> dict[bytes, bytes]:
    """Parse a whole table, in key order.

    Args:
        data: the bytes of the file.

    Raises:
        NotACheckpointError: the file does not end with the table format's magic number.
        CorruptCheckpointError: truncated, a checksum is wrong, or the structure is.
        UnsupportedCheckpointError: a compressed block.
    """
    if len(data) < FOOTER_BYTES or struct.unpack_from("<Q", data, len(data) - 8)[0] != MAGIC:
        raise NotACheckpointError("it does not end like a checkpoint index: truncated, or another kind of file")
    footer = data[-FOOTER_BYTES:-8]
    position, handle = 0, []
    for _ in range(4):
        number, position = decode_varint(footer, position)
        handle.append(number)
    if any(footer[position:]):
        raise CorruptCheckpointError("the padding of the footer is not zero")
    blocks = _Blocks(data)
    if any(True for _ in _parse_block(blocks.read(handle[0], handle[1]))):
        raise UnsupportedCheckpointError("the index has a meta-index, which checkpoints do not use")
    entries: dict[bytes, bytes] = {}
    last = None
    for _, location in _parse_block(blocks.read(handle[2], handle[3])):
        offset, position = decode_varint(location, 0)
        size, position = decode_varint(location, position)
        for key, value in _parse_block(blocks.read(offset, size)):
            if last is not None and key <= last:
                raise CorruptCheckpointError(f"the key {key!r} is out of order")
            entries[key] = value
            last = key
    blocks.require_complete()
    return entries


def _build_block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode sorted entries as one block, without its trailer."""
    block, restarts, previous = bytearray(), [], b""
    for count, (key, value) in enumerate(entries):
        shared = 0
        if count % RESTART_INTERVAL == 0:
            restarts.append(len(block))
        else:
            while shared < min(len(previous), len(key)) and previous[shared] == key[shared]:
                shared += 1
        block += encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value))
        block += key[shared:] + value
        previous = key
    restarts = restarts or [0]
    return bytes(block) + struct.pack(f"<{len(restarts)}I", *restarts) + struct.pack("<I", len(restarts))


def write_table(entries: Iterable[tuple[bytes, bytes]], *, entries_per_block: int = 1024) -> bytes:
    """Encode entries, sorted here by key, as an uncompressed table.

    Args:
        entries: keys and values; keys are unique.
        entries_per_block: how many entries share one data block.

    Returns:
        the bytes of the file.
    """
    ordered = sorted(entries)
    data, handles = bytearray(), []

    def append(block: bytes) -> bytes:
        handle = encode_varint(len(data)) + encode_varint(len(block))
        framed = block + b"\0"
        data.extend(framed + struct.pack("<I", mask_checksum(google_crc32c.value(framed))))
        return handle

    for start in range(0, len(ordered), entries_per_block):
        part = ordered[start : start + entries_per_block]
        handles.append((part[-1][0], append(_build_block(part))))
    footer = append(_build_block([])) + append(_build_block(handles))
    return bytes(data) + footer.ljust(FOOTER_BYTES - 8, b"\0") + struct.pack("<Q", MAGIC)
