"""Converted records in HDF5: one file for each source file, one read for each example.

A folder of converted records::

    manifest.json             what was converted, and with what (written last)
    train/NAME.h5             the records of train/NAME.tfr
    train/NAME.json           what is in it; a file without one is not finished and does not count

Every array of a file has one row for each record and one chunk for each row, compressed, so reading an example takes as
long in a large file as in a small one. Compression is HDF5's own gzip, so every program that reads HDF5 reads the
files; here ISA-L packs and unpacks the chunks, several times as fast as HDF5, and the checksum of each finds damage.
What a record has beside its arrays differs in length and is stored as it is; its checksums are a table of their own.

Sequences lie in a table of their own, at two bits a base as ``letters`` says. Records name a file and a row of it, so
records of several cell types share theirs. A file whose sequences others share is known to them by what it stores, so
that they do not read another's sequences when it is not what it was. In the same way a file is known to the description
beside it by the records that it holds.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from isal import isal_zlib

from torch_impl.data.letters import BASES, pack, packed_length, unpack, unpack_indices
from torch_impl.data.records import ARRAYS, DataError, Record
from torch_impl.data.tfrecord import feature_hashes, joint_hash

Found = TypeVar("Found")

SCHEMA = 3
MANIFEST = "manifest.json"
PARTIAL = ".partial-"
"""Begins the name of what is being written; a conversion that is killed leaves such files."""
SEQUENCES, SEQUENCE_FILE, SEQUENCE_ROW = "sequences", "sequence_file", "sequence_row"
OTHER_LETTERS, HAS_OTHER_LETTERS = "sequences_other_letters", "sequences_has_other_letters"
FILES, FILE_CONTENTS, CONTENTS = "files", "files_sequences_sha256", "sequences_sha256"
HASHES, OTHERS, NAME = "sha256", "others", "name"
RECORDS = "records_sha256"
OTHERS_CHECKSUM = "others_crc32"
_LEVEL = 1
"""Of ISA-L's levels the smallest result, at half the time that Zstandard's fastest takes for a little less."""
_STRIDE = 256
"""Rows that tables grow by, and rows in a chunk where they are small."""
_OPEN_FILES = 64
"""Files that one process keeps open; the systems' limit is often 256 and a dataset may have more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What is known of one converted file.

    Attributes:
        name: Path of the converted file within the folder, without suffix.
        source: Name of the source file.
        source_bytes: Its size.
        source_changed: When it was last changed, in nanoseconds, as its file system says.
        source_sha256: Of its bytes on disk.
        compression: Of the source; ``NONE`` when it was not.
        features: Type and shape of every array, which is that of all its records, and the length of the sequences.
        records: Number of records that were converted.
        skipped: For each that was not, its number in the source and why.
        hashes: sha256 of the content of every record, in order.
        sequences: sha256 of every sequence that this file stores, in order.
        versions: Of what converted it.
    """

    name: str
    source: str
    source_bytes: int
    source_changed: int
    source_sha256: str
    compression: str
    features: Mapping[str, str]
    records: int
    skipped: tuple[tuple[int, str], ...]
    hashes: tuple[str, ...]
    sequences: tuple[str, ...]
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """As text."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: Path) -> "Part":
        """From the file beside the converted one.

        Raises:
            DataError: It is damaged, or of another version of this format.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            schema = found.pop("schema")
            if schema != SCHEMA:
                raise DataError(
                    f"{path}: of another version of this format, {schema} and not {SCHEMA}; convert into another folder"
                )
            found["skipped"] = tuple((int(number), str(reason)) for number, reason in found["skipped"])
            found["hashes"], found["sequences"] = tuple(found["hashes"]), tuple(found["sequences"])
            return cls(**found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: damaged: {error}") from None


def parts(folder: Path) -> Iterator[tuple[Path, Part]]:
    """All finished files of a folder and its subfolders, by name: (path of the HDF5 file, what is in it)."""
    for path in descriptions(folder):
        yield path.with_suffix(".h5"), Part.read(path)


def descriptions(folder: Path) -> list[Path]:
    """Descriptions of all finished files of a folder and its subfolders, by name."""
    return sorted(path for path in folder.rglob("*.json") if not reserved(path.name))


def reserved(name: str) -> bool:
    """Whether a file of this name is none of the converted ones."""
    return name == MANIFEST or name.startswith(PARTIAL)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a sequence lies already.

    Attributes:
        path: HDF5 file.
        row: Of its table of sequences.
        contents: What that table holds, as ``sequences_hash`` says.
    """

    path: Path
    row: int
    contents: str


def places(folder: Path) -> Mapping[bytes, Place]:
    """Where all sequences of the finished files of a folder lie, by their sha256; a later call adds to the same."""
    return _index(folder).now()


class _Index:
    """What each process knows of the sequences of a folder.

    Every description is read once, or every file would take longer than the one before it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._read: dict[Path, int] = {}
        self._places: dict[bytes, Place] = {}

    def now(self) -> Mapping[bytes, Place]:
        """With the files that were finished since."""
        with self._lock:
            found = {path: path.stat().st_mtime_ns for path in descriptions(self._folder)}
            if not self._read.items() <= found.items():  # some were removed, or converted again
                self._read, self._places = {}, {}
            for path in [path for path in found if path not in self._read]:
                keys = tuple(bytes.fromhex(key) for key in Part.read(path).sequences)
                file, contents = path.with_suffix(".h5"), sequences_hash(keys)
                self._places |= {key: Place(path=file, row=row, contents=contents) for row, key in enumerate(keys)}
                self._read[path] = found[path]
            return self._places


@functools.lru_cache(maxsize=8)
def _index(folder: Path) -> _Index:
    return _Index(folder)


def sequences_hash(keys: Iterable[bytes]) -> str:
    """One hash of the sequences, or of the records, of a file, in order, from those of each."""
    return hashlib.sha256(b"".join(keys)).hexdigest()


class Store:
    """The records of a folder of converted files, by number; safe to fork and to spawn.

    Args:
        folder: What was converted, or a subfolder of it.

    Attributes:
        shard_sizes: Number of records in each file.

    Raises:
        DataError: The folder holds no finished files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        # Paths and numbers alone: all that is known of millions of records would fill memory and go to every worker.
        described = parts(self.folder) if self.folder.is_dir() else ()
        found = [(path, part.records, sequences_hash(map(bytes.fromhex, part.hashes))) for path, part in described]
        if not found:
            raise DataError(f"{folder}: holds no converted records")
        for path, _, _ in found:
            if not path.is_file():
                raise DataError(f"{path}: is missing, although it was converted")
        self._paths = tuple(path for path, _, _ in found)
        self.shard_sizes = tuple(records for _, records, _ in found)
        self._described = {path: (records, contents) for path, records, contents in found}
        self._ends = np.cumsum(self.shard_sizes)
        self._open: dict[Path, _Opened] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        """One record, as it was in its source.

        Raises:
            DataError: It cannot be read.
        """
        return self._found(index, lambda path, row: self._read(path, row, for_training=False))

    def for_training(self, index: int) -> Record:
        """One record as ``make_example`` needs it, in less time.

        It is without the features that nothing reads, and its sequence is base indices if all of it is A, C, G and T.

        Raises:
            DataError: It cannot be read.
        """
        return self._found(index, lambda path, row: self._read(path, row, for_training=True))

    def others(self, index: int) -> dict[str, bytes]:
        """What a record has beside its sequence and arrays, by name, without reading those.

        Raises:
            DataError: It cannot be read.
        """
        return self._found(index, lambda path, row: _others(self._file(path), row))

    def _found(self, index: int, read: Callable[[Path, int], Found]) -> Found:
        path, row = self.locate(index)
        try:
            return read(path, row)
        except DataError:
            raise
        except (OSError, KeyError, IndexError, RuntimeError, ValueError, isal_zlib.error) as error:  # pyright: ignore[reportGeneralTypeIssues]  stubs say instance, not class
            raise DataError(f"{path}: record {row}: cannot be read: {error}") from None

    def locate(self, index: int) -> tuple[Path, int]:
        """File and row of a record.

        Raises:
            IndexError: There is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._paths[number], index - int(self._ends[number]) + self.shard_sizes[number]

    def __getstate__(self) -> dict[str, Any]:
        # HDF5 files must not travel to another process.
        return self.__dict__ | {"_open": {}}

    def close(self) -> None:
        """Closes all files; they are opened again when they are needed."""
        for opened in self._open.values():
            opened.file.close()
        self._open.clear()

    def _file(self, path: Path) -> "_Opened":
        if self._process != os.getpid():
            # After a fork the parent's files are left alone: closing them here would disturb it.
            self._open, self._process = {}, os.getpid()
        if path not in self._open:
            while len(self._open) >= _OPEN_FILES:
                self._open.pop(next(iter(self._open))).file.close()
            self._open[path] = _Opened(path, self._described.get(path))
        return self._open[path]

    def _read(self, path: Path, row: int, *, for_training: bool) -> Record:
        found = self._file(path)
        number, place = (int(found.small[name][row]) for name in (SEQUENCE_FILE, SEQUENCE_ROW))
        arrays: dict[str, Any] = {name: found.row(name, row) for name in ARRAYS if name in found}
        others = {} if for_training else _others(found, row)
        owner = found if not number else self._owner(found, number)
        return Record(sequence=owner.sequence(place, letters=not for_training), others=others, **arrays)

    def _owner(self, found: "_Opened", number: int) -> "_Opened":
        """The file in which sequences of another one lie."""
        path, contents = found.files[number]
        owner = self._file(path)
        if owner.contents != contents:
            raise DataError(
                f"{found.path}: shares sequences of {path}, which was converted again since and stores others; remove "
                f"{found.path.with_suffix('.json')} and convert again"
            )
        return owner


def check_whole(path: Path, part: Part) -> None:
    """Insists that a converted file is the one that a description says.

    Raises:
        DataError: It is damaged, or another one.
    """
    opened = _Opened(path, (part.records, sequences_hash(map(bytes.fromhex, part.hashes))))
    opened.file.close()
    if opened.contents != sequences_hash(map(bytes.fromhex, part.sequences)):
        raise DataError(f"{path}: stores other sequences than its description says")


class _Opened:
    """An open file and its tables, looked up once.

    Args:
        path: The file.
        described: Number and hash of the records that are to be in it; None where only its sequences are read.

    Raises:
        DataError: It is damaged, or not the file that was described.
    """

    def __init__(self, path: Path, described: tuple[int, str] | None) -> None:
        self.path = path
        self.file: Any = None
        try:
            self.file = h5py.File(path, "r")
            _keep_places(self.file)
            self._look_up()
            if described is not None:
                self._check(*described)
        except (OSError, LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            # What h5py raises depends on where the damage lies.
            if self.file is not None:
                self.file.close()
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: cannot be read: {error}") from None

    def _look_up(self) -> None:
        tables = {name: table for name, table in self.file.items() if name not in (OTHERS, HASHES)}
        # Whole, a few bytes a record: to read one number of them takes longer than to read peaks.
        self.small = {name: table[:] for name, table in tables.items() if _is_small(table.shape[1:], table.dtype)}
        self.rows = {name: _Rows(table) for name, table in tables.items() if name not in self.small}
        if OTHERS_CHECKSUM not in self.small:
            raise DataError(
                f"{self.path}: was converted by an unfinished version, without {OTHERS_CHECKSUM}; convert again"
            )
        self.others = {json.loads(table.attrs[NAME]): table for table in self.file[OTHERS].values()}
        self.contents = str(self.file.attrs[CONTENTS])
        names, contents = self.file.attrs[FILES], self.file.attrs[FILE_CONTENTS]
        self.files = [
            ((self.path.parent / str(name)).resolve(), str(each)) for name, each in zip(names, contents, strict=True)
        ]

    def _check(self, records: int, contents: str) -> None:
        """Insists that the file is the one whose description lies beside it."""
        of_sequences = (SEQUENCES, OTHER_LETTERS, HAS_OTHER_LETTERS)
        lengths = {name: len(table) for name, table in self.file.items() if name not in (OTHERS, *of_sequences)}
        lengths |= {f"{OTHERS}/{name}": len(table) for name, table in self.others.items()}
        wrong = [f"{name} has {length} rows" for name, length in lengths.items() if length != records]
        if wrong or str(self.file.attrs[RECORDS]) != contents:
            raise DataError(
                f"{self.path}: is not the file of {records} records that {self.path.with_suffix('.json').name} "
                f"describes: {', '.join(wrong) or 'the records are others'}"
            )

    def __contains__(self, name: str) -> bool:
        return name in self.small or name in self.rows

    def row(self, name: str, row: int) -> np.ndarray:
        """One row of a table."""
        return np.asarray(self.small[name][row]) if name in self.small else self.rows[name][row]

    def sequence(self, row: int, *, letters: bool) -> bytes | np.ndarray:
        """A sequence that this file stores: its letters, or its base indices if those are wanted and say everything."""
        packed, (length,) = self.rows[SEQUENCES][row], self.rows[OTHER_LETTERS].shape
        if self.small[HAS_OTHER_LETTERS][row]:
            return unpack(packed, length, self.rows[OTHER_LETTERS][row])
        return unpack(packed, length) if letters else unpack_indices(packed, length)


def _keep_places(file: Any) -> None:
    """Lets HDF5 keep the places of all chunks from the beginning.

    It would begin with two megabytes and take more after tens of thousands of reads, and read those of a file of a
    hundred thousand records again and again until then. What is not needed is not taken.
    """
    settings = file.id.get_mdc_config()
    settings.set_initial_size, settings.initial_size = True, settings.max_size
    file.id.set_mdc_config(settings)


class _Rows:
    """A table of which every row is one compressed chunk, read past HDF5's filters and caches."""

    def __init__(self, table: Any) -> None:
        self._table = table.id
        self.shape, self._dtype = table.shape[1:], table.dtype
        self._place = (0,) * len(self.shape)
        self._bytes = int(np.prod(self.shape)) * self._dtype.itemsize

    def __getitem__(self, row: int) -> np.ndarray:
        unfiltered, data = self._table.read_direct_chunk((row, *self._place))
        if not unfiltered:
            data = isal_zlib.decompress(data, zlib.MAX_WBITS, self._bytes)
        return np.frombuffer(data, self._dtype).reshape(self.shape)


def _others(opened: _Opened, row: int) -> dict[str, bytes]:
    found = {name: table[row].tobytes() for name, table in opened.others.items()}
    if _others_checksum(found) != opened.small[OTHERS_CHECKSUM][row]:
        raise ValueError(f"features beside its arrays do not have their checksum: {', '.join(sorted(found))}")
    return found


def _others_checksum(others: Mapping[str, bytes]) -> int:
    """CRC-32 of features with their names: HDF5 has no checksum for tables whose rows differ in length."""
    checksum = 0
    for name, data in sorted(others.items()):
        encoded = name.encode()
        checksum = zlib.crc32(data, zlib.crc32(struct.pack("<QQ", len(encoded), len(data)) + encoded, checksum))
    return checksum


class Writer:
    """Writes the HDF5 file of one source; in it records are appended one by one.

    Args:
        path: File to write.
        known: Where sequences lie already, by their sha256.
    """

    def __init__(self, path: Path, known: Mapping[bytes, Place]) -> None:
        self._folder = path.parent
        self._known = known
        self._own: dict[bytes, int] = {}
        # Name and contents of the files whose sequences are shared; the first is this one.
        self._files: list[tuple[str, str]] = [("", "")]
        self._sink = Sink(path)
        self._file: Any = h5py.File(self._sink, "w", libver="latest")
        self._file.create_group(OTHERS)
        self._tables: dict[str, Any] = {}
        # Rows of the tables that hold a few bytes a record, written when all are known: each call of HDF5 costs more.
        self._small: dict[str, list[Any]] = {}
        # Their chunks, and where in its row one begins, looked up once.
        self._chunks: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self._others: dict[str, Any] = {}
        self.hashes: list[str] = []
        self._first: Record | None = None

    @property
    def sequences(self) -> tuple[str, ...]:
        """sha256 of every sequence that this file stores."""
        return tuple(key.hex() for key in self._own)

    @property
    def features(self) -> dict[str, str]:
        """Type and shape of every array that records have, and the length of their sequence."""
        if self._first is None:
            return {}
        kinds = {name: _kind(getattr(self._first, name)) for name in ARRAYS if getattr(self._first, name) is not None}
        return {"sequence": f"{len(self._first.sequence)} letters", **kinds}

    def append(self, record: Record) -> None:
        """One more record.

        Raises:
            DataError: Its features are not those of the first one, or differ from them in shape or type.
            OSError: The file cannot be written any further.
        """
        if self._first is None:
            self._first = record
            self._create(record)
        check_alike(record, self._first)
        found = feature_hashes(record)
        digest = joint_hash(found)
        file, row = self._sequence(record.letters, found["sequence"])
        number = len(self.hashes)
        values: dict[str, Any] = {name: getattr(record, name) for name in ARRAYS if getattr(record, name) is not None}
        values |= {SEQUENCE_FILE: file, SEQUENCE_ROW: row, HASHES: np.frombuffer(digest, dtype=np.uint8)}
        values[OTHERS_CHECKSUM] = _others_checksum(record.others)
        for name, value in values.items():
            if name in self._small:
                self._small[name].append(value)
            else:
                self._write_row(name, number, isal_zlib.compress(np.ascontiguousarray(value).data, _LEVEL))
        for name, data in record.others.items():
            _grow(self._others[name], number)
            self._others[name][number] = np.frombuffer(data, np.uint8)
        self._sink.check()
        self.hashes.append(digest.hex())

    def close(self) -> None:
        """Writes what is left to write, down to the disk.

        Raises:
            OSError: It cannot be written.
        """
        for name, table in self._tables.items():
            of_sequences = name in (SEQUENCES, OTHER_LETTERS, HAS_OTHER_LETTERS)
            table.resize(len(self._own) if of_sequences else len(self.hashes), axis=0)
        for table in self._others.values():
            table.resize(len(self.hashes), axis=0)
        for name, column in self._small.items():
            self._tables[name][:] = np.reshape(column, self._tables[name].shape)
        self._file.attrs[CONTENTS] = sequences_hash(self._own)
        self._file.attrs[RECORDS] = sequences_hash(map(bytes.fromhex, self.hashes))
        self._file.attrs[FILES] = [name for name, _ in self._files]
        self._file.attrs[FILE_CONTENTS] = [contents for _, contents in self._files]
        self._file.close()
        self._sink.check()
        self._sink.close()

    def abandon(self) -> None:
        """Closes the file without caring for what is in it."""
        self._sink.discard = True
        self._file.close()
        with contextlib.suppress(OSError):
            self._sink.close()

    def _create(self, record: Record) -> None:
        self._table(SEQUENCES, (packed_length(len(record.sequence)),), np.dtype(np.uint8))
        self._tables[SEQUENCES].attrs["bases"] = BASES.decode()
        self._table(OTHER_LETTERS, (len(record.sequence),), np.dtype(np.uint8))
        self._table(HAS_OTHER_LETTERS, (), np.dtype(np.uint8))
        for name in ARRAYS:
            array = getattr(record, name)
            if array is not None:
                self._table(name, array.shape, array.dtype)
        self._table(SEQUENCE_FILE, (), np.dtype(np.int32))
        self._table(SEQUENCE_ROW, (), np.dtype(np.int64))
        self._table(HASHES, (32,), np.dtype(np.uint8))
        self._table(OTHERS_CHECKSUM, (), np.dtype(np.uint32))
        for number, name in enumerate(record.others):
            # Numbered, because HDF5 takes a name apart at every slash and TensorFlow does not.
            self._others[name] = self._file.create_dataset(
                f"{OTHERS}/{number}", shape=(0,), maxshape=(None,), chunks=(_STRIDE,), dtype=h5py.vlen_dtype(np.uint8)
            )
            self._others[name].attrs[NAME] = json.dumps(name)

    def _table(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        small = _is_small(shape, dtype)
        if small:
            self._small[name] = []
        chunks = (_STRIDE if small else 1, *shape)
        # A checksum for small ones too: a damaged row number would give a record the sequence of another.
        options = {"fletcher32": True} if small else {"compression": "gzip", "compression_opts": _LEVEL}
        table = self._file.create_dataset(
            name, shape=(0, *shape), maxshape=(None, *shape), chunks=chunks, dtype=dtype, **options
        )
        self._tables[name], self._chunks[name] = table, (table.id, (0,) * len(shape))

    def _write_row(self, name: str, number: int, compressed: bytes) -> None:
        _grow(self._tables[name], number)
        chunks, place = self._chunks[name]
        chunks.write_direct_chunk((number, *place), compressed)

    def _sequence(self, sequence: bytes, key: bytes) -> tuple[int, int]:
        """Number of the file, and row, of a sequence, which is stored unless it lies somewhere already.

        Args:
            sequence: Letters.
            key: Their sha256.
        """
        if key in self._known:
            place = self._known[key]
            shared = (os.path.relpath(place.path, self._folder), place.contents)
            if shared not in self._files:
                self._files.append(shared)
            return self._files.index(shared), place.row
        if key not in self._own:
            row = self._own[key] = len(self._own)
            packed, others = pack(sequence)
            # There is hardly anything left to compress; this adds the checksum.
            self._write_row(SEQUENCES, row, zlib.compress(packed.data, 0))
            self._small[HAS_OTHER_LETTERS].append(others is not None)
            _grow(self._tables[OTHER_LETTERS], row)  # rows that nobody writes take no place
            if others is not None:
                self._write_row(OTHER_LETTERS, row, isal_zlib.compress(others.data, _LEVEL))
        return 0, self._own[key]


def _is_small(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether many rows of a table lie in one chunk, and all of them are kept in memory."""
    return int(np.prod(shape)) * dtype.itemsize <= 32


def _grow(table: Any, number: int) -> None:
    """Makes room for a row of a table, which grows by many rows at once and is cut when the file is closed."""
    if number % _STRIDE == 0:
        table.resize(number + _STRIDE, axis=0)


class Sink(io.RawIOBase):
    """The file under an HDF5 file that is written.

    HDF5 tries again and again to write what a full disk refuses, to the end of the process. So after the first error
    everything is taken and thrown away, and the error is told by ``check``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("w+b", buffering=0)
        self._error: OSError | None = None
        self.discard = False

    def check(self) -> None:
        """Raises the first error, if there was one."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """All of the data, or none from the first error on."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view) and not self.discard:
            try:
                written += self._file.write(view[written:]) or 0
            except OSError as error:
                self._error, self.discard = error, True
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Reads, as HDF5 does now and then."""
        return self._file.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where it is."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """Cuts or extends the file."""
        if self.discard:
            return size or 0
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error, self.discard = error, True
            return size or 0

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Down to the disk."""
        if not self._file.closed:
            try:
                if not self.discard:
                    os.fsync(self._file.fileno())
            finally:
                self._file.close()
        super().close()


def _kind(array: np.ndarray | None) -> str:
    return "absent" if array is None else f"{array.dtype.name} {array.shape}"


def _form(array: np.ndarray | None) -> tuple[np.dtype, tuple[int, ...]] | None:
    return None if array is None else (array.dtype, array.shape)


def check_alike(record: Record, first: Record) -> None:
    """Insists that a record can lie in one file with another.

    Raises:
        DataError: Its features are not those of the other, or differ in shape or type.
    """
    if len(record.sequence) != len(first.sequence):
        raise DataError(f"a sequence of {len(record.sequence)} letters, in the first record {len(first.sequence)}")
    for name in ARRAYS:
        one, other = getattr(record, name), getattr(first, name)
        if _form(one) != _form(other):
            raise DataError(f"{name} is {_kind(one)}, in the first record {_kind(other)}")
    if record.others.keys() != first.others.keys():
        raise DataError(f"has features {sorted(record.others)}, the first record {sorted(first.others)}")


def read_all(store: Store) -> Iterator[Record]:
    """Every record of a store, in order."""
    for index in range(len(store)):
        yield store[index]
