"""TFRecord files of training examples, read and written without TensorFlow.

A file is a sequence of frames, each a length, its checksum, the data and their checksum, often compressed as a whole.
The data are a ``tf.train.Example``, in which every feature is one byte string: the letters of the sequence, or a
``TensorProto``. Field numbers are those of tensorflow/core/{example,framework}/*.proto; the descriptors lie in a pool
of their own, because TensorFlow may register the same names in the same process.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from isal import isal_zlib

from torch_impl.data.records import ARRAYS, REQUIRED, DataError, Record

Compression = Literal["ZLIB", "GZIP", "NONE"]

_BLOCK = 1 << 20
"""Bytes that are read at once."""
_COMPRESSED, _PIECE = 1 << 17, 1 << 18
"""Bytes that are given to be inflated, and that come of it, at once; what is left of the former is copied each time."""
_SEQUENCE, _LETTERS = b"\n\x08sequence", 1024
"""How the feature begins that holds a sequence, and bytes of it that tell sequences apart."""
_SOME, _FAR = 1 << 12, 1 << 21
"""Bytes that are looked through for it at once, and at most."""
_LARGEST = 1 << 31
"""No message of protocol buffers is longer."""
_WINDOW = {"ZLIB": zlib.MAX_WBITS, "GZIP": 16 + zlib.MAX_WBITS}

DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 9: np.int64, 19: np.float16}
"""TensorFlow's numbers of the types that are known here."""
_FLOATS, _INTEGERS = ("float16", "float32"), ("int32",)
ALLOWED = {
    "atac": _FLOATS,
    "motif_activity": _FLOATS,
    "rna": _FLOATS,
    "peaks_center": _INTEGERS,
    "tss_tokens": _INTEGERS,
    "processed_gene_token": _INTEGERS,
    "cell_encoding": _INTEGERS,
    "interval": _INTEGERS,
}
# Found once: NumPy takes a while to say what a type is called.
_DTYPES = {code: np.dtype(kind) for code, kind in DTYPES.items()}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_ALLOWED = {name: {np.dtype(kind) for kind in kinds} for name, kinds in ALLOWED.items()}
RANKS = {"atac": 2, "rna": 2, "peaks_center": 1, "motif_activity": 1, "tss_tokens": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of a file.

    Attributes:
        number: Counted from 0.
        offset: Bytes before it, after decompression.
        payload: Its data; None when they are damaged.
        error: What is wrong with it; empty when nothing is.
        last: Nothing can be read after it, although the file has not come to its end.
    """

    number: int
    offset: int
    payload: bytes | None = None
    error: str = ""
    last: bool = False

    def describe(self, error: object) -> str:
        """Which frame it is, where it lies, and what is wrong with it."""
        return f"record {self.number}: {error} (its frame begins at byte {self.offset} of the decompressed data)"


def read_records(path: str | Path, compression: Compression | None = None) -> Iterator[Record]:
    """All records of a file, one at a time.

    Args:
        path: A ``*.tfr`` file.
        compression: Of the whole file; found out when None.

    Raises:
        DataError: Something in the file is damaged or missing; the message names file and record.
    """
    for frame in read_frames(path, compression):
        if frame.payload is None:
            raise DataError(f"{path}: {frame.describe(frame.error)}")
        try:
            record = decode(frame.payload)
        except DataError as error:
            raise DataError(f"{path}: {frame.describe(error)}") from None
        yield record


def read_frames(
    path: str | Path, compression: Compression | None = None, *, seen: Callable[[bytes], Any] = len
) -> Iterator[Frame]:
    """All frames of a file, damaged ones too; memory holds two frames and two megabytes.

    Args:
        path: A ``*.tfr`` file.
        compression: Of the whole file; found out when None.
        seen: Told every block of the file as it lies on disk, in a thread of its own.

    Raises:
        DataError: The file cannot be read, is empty, or is no TFRecord file.
    """
    try:
        with Path(path).open("rb") as file:
            yield from _ahead(_frames(_stream(file, path, compression, seen)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def first_letters(path: str | Path, compression: Compression | None = None) -> bytes | None:
    """How the first sequence of a file begins, without reading, or checking, more of the file than that.

    Args:
        path: A ``*.tfr`` file.
        compression: Of the whole file; found out when None.

    Returns:
        About a thousand letters after their length; None where there is no sequence, or nothing like it at once.

    Raises:
        DataError: The file cannot be read, or is damaged before.
    """
    found = bytearray()
    try:
        with Path(path).open("rb") as file:
            stream = _stream(file, path, compression, len)
            while len(found) < _FAR and (more := stream.read(_SOME)):
                found += more
                start = found.find(_SEQUENCE)
                if 0 <= start <= len(found) - _LETTERS:
                    return bytes(found[start : start + _LETTERS])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return None


def _stream(file: Any, path: str | Path, compression: Compression | None, seen: Callable[[bytes], Any]) -> "_Stream":
    head = file.read(12)
    seen(head)
    if not head:
        raise DataError(f"{path}: the file is empty")
    found = find_compression(head) if compression is None else compression
    if found is None:
        raise DataError(f"{path}: not a TFRecord file: neither a frame nor compressed by ZLIB or GZIP")
    return _Stream(itertools.chain([memoryview(head)], _blocks(file, seen)), found)


def compression_of(path: str | Path) -> str:
    """How a file is compressed; ``NONE`` as well when it is no TFRecord file."""
    with Path(path).open("rb") as file:
        return find_compression(file.read(12)) or "NONE"


def find_compression(head: bytes) -> Compression | None:
    """How a file is compressed, from its first twelve bytes; None when it is no TFRecord file."""
    if len(head) == 12 and struct.unpack("<I", head[8:])[0] == _masked_checksum(head[:8]):
        return "NONE"
    if head[:2] == b"\x1f\x8b":
        return "GZIP"
    if len(head) >= 2 and head[0] & 0x0F == 8 and (head[0] * 256 + head[1]) % 31 == 0:
        return "ZLIB"
    return None


def _blocks(file: Any, seen: Callable[[bytes], Any]) -> Iterator[memoryview]:
    """The rest of a file, shown as it is read."""
    while block := file.read(_BLOCK):
        seen(block)
        for start in range(0, len(block), _COMPRESSED):
            yield memoryview(block)[start : start + _COMPRESSED]


def _ahead(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The same frames, each read, decompressed and checked in a thread while the one before it is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, frames, None)
        while (frame := coming.result()) is not None:
            coming = reader.submit(next, frames, None)
            yield frame


class _Stream:
    """Decompressed bytes of a file, up to the place where it is damaged."""

    def __init__(self, blocks: Iterator[memoryview], compression: str) -> None:
        self._blocks = blocks
        self._inflate = None if compression == "NONE" else isal_zlib.decompressobj(_WINDOW[compression])
        self._pieces: deque[memoryview] = deque()
        self._ready = 0
        self._pending = memoryview(b"")
        self._ended = False
        self._error = ""

    def read(self, count: int) -> bytes:
        """So many bytes, or what is left.

        Raises:
            DataError: The compression is damaged or ends before them.
        """
        while self._ready < count and not self._ended:
            self._fill()
        if self._ready < count and self._error:
            raise DataError(self._error)
        taken = []
        left = min(count, self._ready)
        self._ready -= left
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                self._pieces.appendleft(piece[left:])
            taken.append(piece[:left])
            left -= len(taken[-1])
        return b"".join(taken)

    def _fill(self) -> None:
        """Some more bytes, or the end."""
        if not self._pending:
            self._pending = next(self._blocks, memoryview(b""))
        block, self._pending = self._pending, memoryview(b"")
        if self._inflate is None:
            self._add(block)
            self._ended = not block
        elif not block:
            self._end("" if self._inflate.eof else "the compressed data end early: the file is truncated")
        elif self._inflate.eof:
            self._end("bytes follow the end of the compressed data")
        else:
            self._expand(self._inflate, block)

    def _expand(self, inflate: Any, block: memoryview) -> None:
        try:
            # A little at a time, so that what lies before the damage is not lost with it.
            self._add(inflate.decompress(block, _PIECE))
        except isal_zlib.error as error:  # pyright: ignore[reportGeneralTypeIssues]  stubs say instance, not class
            self._end(f"the compressed data are damaged: {error}")
        else:
            self._pending = memoryview(inflate.unconsumed_tail or inflate.unused_data)

    def _add(self, piece: bytes | memoryview) -> None:
        self._pieces.append(memoryview(piece))
        self._ready += len(piece)

    def _end(self, error: str) -> None:
        self._ended, self._error = True, error


def _frames(stream: _Stream) -> Iterator[Frame]:
    number, offset = 0, 0
    while True:
        try:
            head = stream.read(12)
            if not head:
                return
            if len(head) < 12:
                raise DataError("the file ends within the length of a frame: it is truncated")
            (length,) = struct.unpack("<Q", head[:8])
            if struct.unpack("<I", head[8:])[0] != _masked_checksum(head[:8]):
                raise DataError("the checksum of the length does not match: nothing after it can be read")
            if length >= _LARGEST:
                raise DataError(f"a length of {length} bytes is impossible")
            payload, checksum = stream.read(length), stream.read(4)
            if len(payload) < length or len(checksum) < 4:
                raise DataError("the file ends within the data of a frame: it is truncated")
        except DataError as error:
            yield Frame(number=number, offset=offset, error=str(error), last=True)
            return
        if struct.unpack("<I", checksum)[0] != _masked_checksum(payload):
            yield Frame(number=number, offset=offset, error="the checksum of the data does not match")
        else:
            yield Frame(number=number, offset=offset, payload=payload)
        number, offset = number + 1, offset + len(head) + len(payload) + len(checksum)


def write_records(path: str | Path, records: Iterable[Record], compression: Compression = "ZLIB") -> int:
    """Writes records as a file that TensorFlow reads.

    Returns:
        Number of records.
    """
    deflate = None if compression == "NONE" else zlib.compressobj(wbits=_WINDOW[compression])
    count = 0
    with Path(path).open("wb") as file:
        for record in records:
            framed = frame(encode(record))
            file.write(framed if deflate is None else deflate.compress(framed))
            count += 1
        if deflate is not None:
            file.write(deflate.flush())
    return count


def frame(payload: bytes) -> bytes:
    """Data with their length and both checksums."""
    length = struct.pack("<Q", len(payload))
    return b"".join(
        (
            length,
            struct.pack("<I", _masked_checksum(length)),
            payload,
            struct.pack("<I", _masked_checksum(payload)),
        )
    )


def _masked_checksum(data: bytes) -> int:
    """CRC32C, rotated and shifted, because checksums of data that hold checksums are poor ones."""
    checksum = google_crc32c.value(data)
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- one record ------------------------------------------------------------------------------------------------------


def decode(payload: bytes) -> Record:
    """A record from a serialised ``tf.train.Example``.

    Raises:
        DataError: A feature is missing, damaged, or of another type or shape than it should be.
    """
    try:
        example = _Example.FromString(payload)
    except DecodeError:
        raise DataError("not a tf.train.Example") from None
    features: dict[str, bytes] = {}
    for entry in example.features.feature:
        values = entry.value.bytes_list.value
        if entry.key in features:
            raise DataError(f"{entry.key} occurs twice")
        if len(values) != 1:
            raise DataError(f"{entry.key} holds {len(values)} byte strings, not 1")
        features[entry.key] = values[0]
    missing = [name for name in REQUIRED if name not in features]
    if missing:
        raise DataError(f"has no {', '.join(missing)}")
    sequence = features.pop("sequence")
    arrays: dict[str, Any] = {name: _array(features.pop(name), name) for name in ARRAYS if name in features}
    return Record(sequence=sequence, others=features, **arrays)


def encode(record: Record) -> bytes:
    """Inverse of ``decode``: every feature has the same bytes again."""
    example = _Example()
    for name, value in feature_bytes(record).items():
        entry = example.features.feature.add(key=name)
        entry.value.bytes_list.value.append(value)
    return example.SerializeToString()


def feature_bytes(record: Record) -> dict[str, bytes]:
    """The byte string of every feature, known ones first."""
    found = {"sequence": record.letters}
    for name in ARRAYS:
        array = getattr(record, name)
        if array is not None:
            found[name] = _tensor(array)
    return found | dict(record.others)


def content_hash(record: Record) -> bytes:
    """sha256 of all features with their names, whatever order they came in."""
    return joint_hash(feature_hashes(record))


def feature_hashes(record: Record) -> dict[str, bytes]:
    """sha256 of the byte string of every feature, of arrays without making it."""
    hashes = {"sequence": hashlib.sha256(record.letters)}
    for name in ARRAYS:
        array = getattr(record, name)
        if array is not None:
            hashes[name] = hashlib.sha256(_before_content(array.dtype, array.shape))
            hashes[name].update(np.ascontiguousarray(array).data)
    hashes |= {name: hashlib.sha256(value) for name, value in record.others.items()}
    return {name: found.digest() for name, found in hashes.items()}


@functools.lru_cache(maxsize=64)
def _before_content(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """How the byte string of a tensor begins: its content is the last field."""
    blank = np.zeros(shape, dtype)
    return _tensor(blank).removesuffix(blank.tobytes())


def joint_hash(hashes: Mapping[str, bytes]) -> bytes:
    """What ``content_hash`` says of a record, from the hashes of its features."""
    digest = hashlib.sha256()
    for name, value in sorted(hashes.items()):
        encoded = name.encode()
        digest.update(struct.pack("<Q", len(encoded)) + encoded + value)
    return digest.digest()


def interval_number(others: Mapping[str, bytes]) -> int:
    """Number of the interval that a record is of: its line in the sorted file of intervals, counted from 0.

    Args:
        others: What the record has beside its arrays.

    Raises:
        DataError: The record does not say.
    """
    if "interval" not in others:
        raise DataError("the record has no interval")
    return int(_array(others["interval"], "interval").reshape(()))


def _tensor(array: np.ndarray) -> bytes:
    message = _TensorProto(dtype=_CODES[array.dtype], tensor_content=np.ascontiguousarray(array).tobytes())
    message.tensor_shape.SetInParent()
    for size in array.shape:
        message.tensor_shape.dim.add(size=size)
    return message.SerializeToString()


def _array(serialized: bytes, name: str) -> np.ndarray:
    try:
        message = _TensorProto.FromString(serialized)
    except DecodeError:
        raise DataError(f"{name} is not a tensor") from None
    dtype = _DTYPES.get(message.dtype)
    if dtype is None or dtype not in _ALLOWED[name]:
        found = f"TensorFlow's type {message.dtype}" if dtype is None else dtype.name
        raise DataError(f"{name} is of {found}, not {' or '.join(ALLOWED[name])}")
    shape = tuple(dimension.size for dimension in message.tensor_shape.dim)
    if message.tensor_shape.unknown_rank or min(shape, default=1) < 0 or len(shape) != RANKS.get(name, 0):
        raise DataError(f"{name} has shape {shape}, not {RANKS.get(name, 0)} dimensions")
    if len(shape) == 2 and shape[1] != 1:
        raise DataError(f"{name} has shape {shape}, not (n, 1)")
    count = math.prod(shape)
    if count * dtype.itemsize >= _LARGEST:
        raise DataError(f"{name} has shape {shape}, more than a message can hold")
    content = message.tensor_content  # a copy each time that it is asked for
    if content:
        if len(content) != count * dtype.itemsize:
            raise DataError(
                f"{name} of shape {shape} and {dtype.name} has {len(content)} bytes, not {count * dtype.itemsize}"
            )
        return np.frombuffer(content, dtype=dtype).reshape(shape)
    return _listed(message, dtype, count, name).reshape(shape)


def _listed(message: Any, dtype: np.dtype, count: int, name: str) -> np.ndarray:
    """Values in a list of their own type; what is not listed repeats the last, and nothing listed is zero."""
    if dtype == np.float16:
        wrong = [value for value in message.half_val if not 0 <= value <= np.iinfo(np.uint16).max]
        if wrong:
            raise DataError(f"{name} lists {wrong[0]}, which are no 16 bits of a number")
        values = np.array(message.half_val, dtype=np.uint16).view(np.float16)
    else:
        values = np.array(message.float_val if dtype == np.float32 else message.int_val, dtype=dtype)
    if len(values) > count:
        raise DataError(f"{name} lists {len(values)} values for {count}")
    last = values[-1:] if len(values) else np.zeros(1, dtype)
    return np.concatenate([values, np.repeat(last, count - len(values))])


# --- messages --------------------------------------------------------------------------------------------------------

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "float": _Field.TYPE_FLOAT,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
}
# message -> field -> (number, type); a type in brackets is repeated. The map of features is the list of its entries,
# which is how it is stored, so that a feature that occurs twice is seen.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "BytesList": {"value": (1, "[bytes]")},
    "Feature": {"bytes_list": (1, "BytesList")},
    "Entry": {"key": (1, "string"), "value": (2, "Feature")},
    "Features": {"feature": (1, "[Entry]")},
    "Example": {"features": (1, "Features")},
    "Dimension": {"size": (1, "int64")},
    "TensorShape": {"dim": (2, "[Dimension]"), "unknown_rank": (3, "bool")},
    "TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShape"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "[float]"),
        "int_val": (7, "[int32]"),
        "half_val": (13, "[int32]"),
    },
}


def _build(package: str) -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, declared) in fields.items():
            kind = declared.strip("[]")
            field = message.field.add(name=field_name, number=number)
            field.label = _Field.LABEL_REPEATED if kind != declared else _Field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindFileByName(file.name).message_types_by_name
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


_CLASSES = _build("epibert.data")
_Example = _CLASSES["Example"]
_TensorProto = _CLASSES["TensorProto"]
