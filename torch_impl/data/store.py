"""Converted records in HDF5: one file for each source file, one read for each example.

A folder of converted records::

    manifest.json             what was converted, and with what (written last)
    train/NAME.h5             the records of train/NAME.tfr
    train/NAME.json           what is in it; a file without one is not finished and does not count

Every array of a file has one row for each record and one chunk for each row, compressed, so reading an example takes as
long in a large file as in a small one. Sequences lie in a table of their own; records name a file and a row of it, so
records of several cell types share theirs.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from torch_impl.data.records import ARRAYS, DataError, Record
from torch_impl.data.tfrecord import content_hash

SCHEMA = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial-"
"""Begins the name of what is being written; a conversion that is killed leaves such files."""
SEQUENCES, SEQUENCE_FILE, SEQUENCE_ROW = "sequences", "sequence_file", "sequence_row"
FILES, HASHES, OTHERS = "files", "sha256", "others"
_COMPRESSED = {**hdf5plugin.Zstd(clevel=1), "fletcher32": True}
"""Faster than gzip both ways, and smaller; a checksum for each chunk, which gzip would have had. Other programs read it
with the plugins of the same library."""
_OPEN_FILES = 64
"""Files that one process keeps open; the systems' limit is often 256 and a dataset may have more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What is known of one converted file.

    Attributes:
        name: Path of the converted file within the folder, without suffix.
        source: Name of the source file.
        source_bytes: Its size.
        source_sha256: Of its bytes on disk.
        compression: Of the source.
        records: Number of records that were converted.
        skipped: For each that was not, its number in the source and why.
        hashes: sha256 of the content of every record, in order.
        sequences: sha256 of every sequence that this file stores, in order.
        versions: Of what converted it.
    """

    name: str
    source: str
    source_bytes: int
    source_sha256: str
    compression: str
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
            if found.pop("schema") != SCHEMA:
                raise DataError(f"{path}: of another version of this format")
            found["skipped"] = tuple((int(number), str(reason)) for number, reason in found["skipped"])
            found["hashes"], found["sequences"] = tuple(found["hashes"]), tuple(found["sequences"])
            return cls(**found)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: damaged: {error}") from None


def parts(folder: Path) -> list[tuple[Path, Part]]:
    """All finished files of a folder and its subfolders, by name: (path of the HDF5 file, what is in it)."""
    found = folder.rglob("*.json")
    described = sorted(path for path in found if path.name != MANIFEST and not path.name.startswith(PARTIAL))
    return [(path.with_suffix(".h5"), Part.read(path)) for path in described]


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
        found = parts(self.folder) if self.folder.is_dir() else []
        if not found:
            raise DataError(f"{folder}: holds no converted records")
        for path, _ in found:
            if not path.is_file():
                raise DataError(f"{path}: is missing, although it was converted")
        self.parts = tuple(part for _, part in found)
        self._paths = tuple(path for path, _ in found)
        self.shard_sizes = tuple(part.records for part in self.parts)
        self._ends = np.cumsum(self.shard_sizes)
        self._open: dict[Path, _Opened] = {}
        self._process = os.getpid()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        """One record.

        Raises:
            DataError: It cannot be read.
        """
        path, row = self.locate(index)
        try:
            return self._read(path, row)
        except (OSError, KeyError, RuntimeError) as error:
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
            self._open[path] = _Opened(path)
        return self._open[path]

    def _read(self, path: Path, row: int) -> Record:
        found = self._file(path)
        number, place = int(found.tables[SEQUENCE_FILE][row]), int(found.tables[SEQUENCE_ROW][row])
        arrays: dict[str, Any] = {name: found.tables[name][row] for name in ARRAYS if name in found.tables}
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        others = {name: table[row].tobytes() for name, table in found.others.items()}
        owner = found if not number else self._file((path.parent / found.files[number]).resolve())
        return Record(sequence=owner.tables[SEQUENCES][place].tobytes(), others=others, **arrays)


class _Opened:
    """An open file and its tables, looked up once."""

    def __init__(self, path: Path) -> None:
        self.file: Any = h5py.File(path, "r")
        self.tables = {name: table for name, table in self.file.items() if name != OTHERS}
        self.others = dict(self.file[OTHERS].items())
        self.files = [str(name) for name in self.file.attrs[FILES]]


class Writer:
    """Writes the HDF5 file of one source; in it records are appended one by one.

    Args:
        path: File to write.
        known: Where sequences lie already: sha256 to (file, row).
    """

    def __init__(self, path: Path, known: Mapping[bytes, tuple[Path, int]]) -> None:
        self._folder = path.parent
        self._known = known
        self._own: dict[bytes, int] = {}
        self._files: list[str] = [""]
        self._sink = _Sink(path)
        self._file: Any = h5py.File(self._sink, "w", libver="latest")
        self._file.create_group(OTHERS)
        self._tables: dict[str, Any] = {}
        self.hashes: list[str] = []
        self._first: Record | None = None

    @property
    def sequences(self) -> tuple[str, ...]:
        """sha256 of every sequence that this file stores."""
        return tuple(key.hex() for key in self._own)

    def append(self, record: Record) -> None:
        """One more record.

        Raises:
            DataError: Its features are not those of the first one, or differ from them in shape or type.
        OSError: The file cannot be written any further.
        """
        if self._first is None:
            self._first = record
            self._create(record)
        self._check(record)
        file, row = self._sequence(record.sequence)
        number = len(self.hashes)
        digest = content_hash(record)
        values: dict[str, Any] = {name: getattr(record, name) for name in ARRAYS if getattr(record, name) is not None}
        values |= {SEQUENCE_FILE: file, SEQUENCE_ROW: row, HASHES: np.frombuffer(digest, dtype=np.uint8)}
        values |= {f"{OTHERS}/{name}": np.frombuffer(data, np.uint8) for name, data in record.others.items()}
        for name, value in values.items():
            table = self._tables[name]
            table.resize(number + 1, axis=0)
            table[number] = value
        self._sink.check()
        self.hashes.append(digest.hex())

    def close(self) -> None:
        """Writes what is left to write, down to the disk.

        Raises:
            OSError: It cannot be written.
        """
        self._file.attrs[FILES] = self._files
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
        self._table(SEQUENCES, (len(record.sequence),), np.dtype(np.uint8), rows=0)
        for name in ARRAYS:
            array = getattr(record, name)
            if array is not None:
                self._table(name, array.shape, array.dtype)
        self._table(SEQUENCE_FILE, (), np.dtype(np.int32))
        self._table(SEQUENCE_ROW, (), np.dtype(np.int64))
        self._table(HASHES, (32,), np.dtype(np.uint8))
        for name in record.others:
            self._tables[f"{OTHERS}/{name}"] = self._file.create_dataset(
                f"{OTHERS}/{name}", shape=(0,), maxshape=(None,), chunks=(256,), dtype=h5py.vlen_dtype(np.uint8)
            )

    def _table(self, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: int = 0) -> None:
        small = int(np.prod(shape)) * dtype.itemsize < 256
        chunks = (256 if small else 1, *shape)
        options = {} if small else _COMPRESSED
        self._tables[name] = self._file.create_dataset(
            name, shape=(rows, *shape), maxshape=(None, *shape), chunks=chunks, dtype=dtype, **options
        )

    def _check(self, record: Record) -> None:
        first = self._first
        assert first is not None
        if len(record.sequence) != len(first.sequence):
            raise DataError(f"a sequence of {len(record.sequence)} letters, in the first record {len(first.sequence)}")
        for name in ARRAYS:
            one, other = (_kind(getattr(each, name)) for each in (record, first))
            if one != other:
                raise DataError(f"{name} is {one}, in the first record {other}")
        if record.others.keys() != first.others.keys():
            raise DataError(f"has features {sorted(record.others)}, the first record {sorted(first.others)}")

    def _sequence(self, sequence: bytes) -> tuple[int, int]:
        """Number of the file, and row, of a sequence, which is stored unless it lies somewhere already."""
        key = hashlib.sha256(sequence).digest()
        if key in self._known:
            path, row = self._known[key]
            name = os.path.relpath(path, self._folder)
            if name not in self._files:
                self._files.append(name)
            return self._files.index(name), row
        if key not in self._own:
            table = self._tables[SEQUENCES]
            self._own[key] = len(self._own)
            table.resize(len(self._own), axis=0)
            table[self._own[key]] = np.frombuffer(sequence, dtype=np.uint8)
        return 0, self._own[key]


class _Sink(io.RawIOBase):
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


def read_all(store: Store) -> Iterator[Record]:
    """Every record of a store, in order."""
    for index in range(len(store)):
        yield store[index]
