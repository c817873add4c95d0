"""From TFRecords to HDF5 and back, and the proof that nothing changed on the way.

Files are converted independently of each other, each by one call that can be made again: what is finished is known by
the description beside it, which is put there last. So a conversion that was killed goes on where it was, in whatever
way it is run, and a file that looks whole is whole.

Both are written under other names first. They come to their places one file after the other, because that is when
sequences that were stored by several files at the same time are taken out of all but one.
"""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import sys
import threading
import time
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch_impl.data.records import DataError, DifferenceError, Record, check_record
from torch_impl.data.sharing import share_sequences
from torch_impl.data.store import (
    MANIFEST,
    PARTIAL,
    SCHEMA,
    Part,
    Place,
    Store,
    Writer,
    check_alike,
    check_whole,
    descriptions,
    parts,
    places,
    reserved,
)
from torch_impl.data.tfrecord import (
    Compression,
    Frame,
    compression_of,
    content_hash,
    decode,
    first_letters,
    read_frames,
    write_records,
)

OnError = Literal["raise", "skip"]
SUFFIX = ".tfr"
ANSWER_SECONDS = 10
"""How long a scheduler is waited for."""
PROGRESS_SECONDS = 1.0
"""How often is told how far a file is."""
PROGRESS_SUFFIX = ".progress"
"""Of the file beside an unfinished one that says so: it reaches whoever converts, on this machine or another."""
CONVERTED_SUFFIX = ".converted"
"""Of the description of a file that is finished but for coming to its place."""
PACKAGES = ("h5py", "numpy", "protobuf", "google-crc32c", "isal")
IN_MANIFEST = (
    "name",
    "source",
    "source_bytes",
    "source_sha256",
    "compression",
    "features",
    "records",
    "skipped",
    "versions",
)
"""What the manifest repeats of each file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a conversion is.

    Attributes:
        files: Files that are finished.
        of_files: Files that there are.
        source_bytes: Bytes of the finished sources, and of what was read of the others.
        of_bytes: Bytes of all sources.
        records: Records that were done, also those in files that are not finished.
    """

    files: int
    of_files: int
    source_bytes: int
    of_bytes: int
    records: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion, or a comparison with its source, came to.

    Attributes:
        files: Number of files.
        records: Records in them.
        skipped: File, record number and reason of each that was left out.
        seconds: How long it took.
    """

    files: int
    records: int
    skipped: tuple[tuple[str, int, str], ...]
    seconds: float


def convert_tfrecord_to_hdf5(
    source: str | Path,
    target: str | Path,
    *,
    workers: int = 1,
    on_error: OnError = "raise",
    compression: Compression | None = None,
    scheduler: str | None = None,
    progress: Callable[[Progress], None] = lambda state: None,
) -> Conversion:
    """Converts files of training records; what is finished already is not done again.

    A source that has another size than when it was converted, or another time of change and other content, is an error.
    So is, when a folder is converted, a converted file that is of none of its files: it would be trained on as well.

    Args:
        source: A ``*.tfr`` file, a folder, of which all such files are taken and subfolders are kept, or a pattern of
            such files with wildcards.
        target: Folder to write.
        workers: Processes on this machine, this one among them; each converts a file at a time. However many there
            are, sequences that files have in common are stored once.
        on_error: ``raise`` ends with the first record that cannot be used. ``skip`` leaves it out and says so in the
            manifest; what follows a frame whose length is damaged cannot be read and is left out as well.
        compression: Of the sources; found out when None.
        scheduler: Address of a Dask scheduler whose workers convert instead; they must see both folders.
        progress: Told after every file, and now and then within files, from whichever thread.

    Raises:
        DataError: A record cannot be used, a source changed since it was converted or is no longer in its folder, or a
            file cannot be written.
        ValueError: An argument is out of range.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
    started = time.perf_counter()
    target = Path(target)
    jobs = find_sources(source)
    with _writing(target):
        target.mkdir(parents=True, exist_ok=True)
    if Path(source).is_dir():
        _check_none_left(Path(source), target, jobs)
    tally = _Tally(jobs, progress)
    convert = functools.partial(_convert_file, target=target, on_error=on_error, compression=compression)
    describe = functools.partial(_describe, target)
    done: dict[str, Part] = {}

    def finished(name: str, part: Part) -> None:
        # Hashes of millions of records would fill memory, and they are on disk.
        done[name] = dataclasses.replace(part, hashes=(), sequences=())
        tally.add(name, part)

    with _watching(target, tally):
        if scheduler is not None:
            # Workers may run in another folder.
            jobs = {name: path.resolve() for name, path in jobs.items()}
            convert = functools.partial(convert, target=target.resolve())
            followers = _followers(jobs, compression)
            _by_cluster(
                scheduler, convert, jobs, followers, lambda name, converted: finished(name, describe(converted))
            )
        elif workers == 1 or len(jobs) == 1:
            for name, path in jobs.items():
                finished(name, describe(convert(path, name)))
        else:
            queue = _Queue(jobs, target, compression)
            _by_processes(min(workers, len(jobs)), convert, describe, jobs, queue, finished)
    found = [done[name] for name in jobs]
    _write_manifest(target)
    return Conversion(
        files=len(found),
        records=sum(part.records for part in found),
        skipped=_skipped(found),
        seconds=time.perf_counter() - started,
    )


def verify_hdf5(
    source: str | Path, target: str | Path, *, progress: Callable[[Progress], None] = lambda state: None
) -> Conversion:
    """Reads the sources again and compares every record with its converted form, byte by byte.

    Args:
        source: As it was given to ``convert_tfrecord_to_hdf5``.
        target: Folder that was written.
        progress: Told after every file, and now and then within files, then from another thread.

    Raises:
        DifferenceError: Something is missing, left over or different; the message names the first such file and record.
        DataError: One of the two cannot be read.
    """
    started = time.perf_counter()
    target = Path(target)
    jobs = find_sources(source)
    described = {part.name for _, part in parts(target)}
    missing, left = sorted(jobs.keys() - described), sorted(described - jobs.keys())
    if missing or left:
        what = f"{missing[0]} was not converted" if missing else f"{left[0]} has no source"
        raise DifferenceError(f"{target}: {what}, and {len(missing) + len(left) - 1} more differ")
    store, tally = Store(target), _Tally(jobs, progress)
    first, skipped = 0, []
    for _, part in parts(target):
        _verify_file(jobs[part.name], part, store, first, tally)
        first += part.records
        skipped += _skipped([part])
        tally.add(part.name, part)
    return Conversion(
        files=len(jobs),
        records=len(store),
        skipped=tuple(skipped),
        seconds=time.perf_counter() - started,
    )


def export_hdf5_to_tfrecord(target: str | Path, destination: str | Path) -> Conversion:
    """Writes converted records as TFRecords again: the same records in the same order, every feature with its bytes.

    The files differ from the sources in the order of features, which TensorFlow does not fix, and in compression.

    Raises:
        DataError: A record cannot be read, or a file cannot be written.
    """
    started = time.perf_counter()
    store = Store(target)
    first, files = 0, 0
    for _, part in parts(Path(target)):
        path = Path(destination) / f"{part.name}{SUFFIX}"
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = _scratch(path)
            try:
                write_records(scratch, (store[index] for index in range(first, first + part.records)))
                scratch.replace(path)
            finally:
                scratch.unlink(missing_ok=True)
        first, files = first + part.records, files + 1
    return Conversion(files=files, records=len(store), skipped=(), seconds=time.perf_counter() - started)


def find_sources(source: str | Path) -> dict[str, Path]:
    """Files to convert by the name of what they become, in order.

    Args:
        source: A file; a folder; or a pattern, whose files keep the subfolders below its part without wildcards.

    Raises:
        DataError: There are none, or what one becomes would have a name that means something else.
    """
    source = Path(source)
    if source.is_file():
        folder, found = source.parent, [source]
    elif source.is_dir():
        folder, found = source, sorted(source.rglob(f"*{SUFFIX}"))
    elif glob.has_magic(str(source)):
        folder = next(path for path in source.parents if not glob.has_magic(str(path)))
        found = sorted(folder.glob(str(source.relative_to(folder))))
    else:
        raise DataError(f"{source}: does not exist")
    found = [path for path in found if path.is_file()]
    if not found:
        raise DataError(f"{source}: holds no {SUFFIX} files")
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    for name, path in names.items():
        if reserved(f"{Path(name).name}.json"):
            raise DataError(f"{path}: would become a file of a name that means something else; rename it")
    if len(names) < len(found):
        raise DataError(f"{source}: holds two files that differ in their suffix alone")
    return names


class _Tally:
    """Adds up what is done and tells of it, from whatever thread."""

    def __init__(self, jobs: Mapping[str, Path], progress: Callable[[Progress], None]) -> None:
        self._left = {name: path.stat().st_size for name, path in jobs.items()}
        self._within: dict[str, tuple[int, int]] = {}
        self._tell = progress
        self._lock = threading.Lock()
        self._state = Progress(
            files=0, of_files=len(jobs), source_bytes=0, of_bytes=sum(self._left.values()), records=0
        )
        self._told = 0

    def add(self, name: str, part: Part) -> None:
        """One more file."""
        with self._lock:
            self._within.pop(name, None)
            state = self._state
            self._state = dataclasses.replace(
                state,
                files=state.files + 1,
                source_bytes=state.source_bytes + self._left.pop(name),
                records=state.records + part.records,
            )
            self._say()

    def within(self, found: Mapping[str, tuple[int, int]]) -> None:
        """How far files are: the bytes that were read and the records that are done, by name."""
        with self._lock:
            self._within |= {name: each for name, each in found.items() if name in self._left}
            if self._sum().source_bytes > self._told:
                self._say()

    def _sum(self) -> Progress:
        read, done = (sum(each) for each in zip((0, 0), *self._within.values(), strict=True))
        state = self._state
        return dataclasses.replace(state, source_bytes=state.source_bytes + read, records=state.records + done)

    def _say(self) -> None:
        found = self._sum()
        self._told = found.source_bytes
        self._tell(found)


@contextlib.contextmanager
def _watching(target: Path, tally: _Tally) -> Iterator[None]:
    """Tells how far files are that are being converted, as those who convert them leave it in the target."""
    pattern, ended = f"{PARTIAL}*{PROGRESS_SUFFIX}", threading.Event()
    left = _files_like(target, pattern)  # by a conversion that was killed

    def watch() -> None:
        while not ended.wait(PROGRESS_SECONDS):
            found = {}
            for path in _files_like(target, pattern) - left:
                stem = path.name.removeprefix(PARTIAL).rpartition("-")[0]
                with contextlib.suppress(OSError, ValueError):  # it is finished, or being written
                    read, done = map(int, path.read_text().split())
                    found[(path.parent / stem).relative_to(target).as_posix()] = (read, done)
            tally.within(found)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _files_like(folder: Path, pattern: str) -> set[Path]:
    """Files of a name in a folder and its subfolders; none where those cannot be listed, as whoever writes will say."""
    try:
        return set(folder.rglob(pattern))
    except OSError:
        return set()


class _Pace:
    """Counts what was read of a file, and says so about every second.

    Args:
        say: Told the bytes that were read.
    """

    def __init__(self, say: Callable[[int], Any]) -> None:
        self._say = say
        self._read = 0
        self._next = time.monotonic() + PROGRESS_SECONDS

    def seen(self, block: bytes) -> None:
        """Some more bytes."""
        self._read += len(block)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            self._say(self._read)


# --- one file --------------------------------------------------------------------------------------------------------


class _Converted(NamedTuple):
    """A file that was converted; it does not count before it and its description are in their places.

    Attributes:
        part: What is in it.
        scratch: Where it lies until then, and its description beside it; None if it was described before.
    """

    part: Part
    scratch: Path | None


def _convert_file(
    source: Path, name: str, *, target: Path, on_error: OnError, compression: Compression | None
) -> _Converted:
    """Converts one file, unless that is done already."""
    path = target / f"{name}.h5"
    described = path.with_suffix(".json")
    if described.is_file():
        return _Converted(_finished_before(source, path, Part.read(described)), None)
    known = places(target)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        converted = _converted_before(source, name, path)
        _remove_leftovers(path, but=None if converted is None else converted.scratch)
        if converted is not None:
            return converted
        scratch = _scratch(path)
        try:
            with _removing_unless_done(scratch):
                part = _write(source, name, scratch, known, on_error, compression)
                _write_whole(scratch.with_suffix(CONVERTED_SUFFIX), part.to_json(), _scratch(described))
        finally:
            scratch.with_suffix(PROGRESS_SUFFIX).unlink(missing_ok=True)
    return _Converted(part, scratch)


def _converted_before(source: Path, name: str, path: Path) -> _Converted | None:
    """What an earlier call converted of a source, if it ended before that came to its place."""
    for left in _leftovers(path):
        if left.suffix == CONVERTED_SUFFIX:
            # What does not fit is converted again, and removed.
            with contextlib.suppress(DataError):
                part, scratch = Part.read(left), left.with_suffix(path.suffix)
                check_whole(scratch, part)
                if part.name == name and _is_of(part, source):
                    return _Converted(part, scratch)
    return None


def _describe(target: Path, converted: _Converted) -> Part:
    """Puts a converted file in its place and its description beside it, for one file at a time.

    Sequences that files which were converted at the same time have in common are taken out of those that come later.
    """
    part, scratch = converted
    if scratch is None:
        return part
    path = target / f"{part.name}.h5"
    known = places(target)
    with _writing(path):
        if not known.keys().isdisjoint(map(bytes.fromhex, part.sequences)):
            whole, scratch = scratch, _scratch(path)
            with _removing_unless_done(scratch):
                part = share_sequences(whole, scratch, part, known)
                _write_whole(scratch.with_suffix(CONVERTED_SUFFIX), part.to_json(), _scratch(path.with_suffix(".json")))
            whole.with_suffix(CONVERTED_SUFFIX).unlink()
            whole.unlink()
        scratch.replace(path)
        scratch.with_suffix(CONVERTED_SUFFIX).replace(path.with_suffix(".json"))
    return part


@contextlib.contextmanager
def _removing_unless_done(path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        yield
        stack.pop_all()


def _write(
    source: Path,
    name: str,
    scratch: Path,
    known: Mapping[bytes, Place],
    on_error: OnError,
    compression: Compression | None,
) -> Part:
    digest, skipped = hashlib.sha256(), []
    found = source.stat()
    writer = Writer(scratch, known)

    def say(read: int) -> None:
        with contextlib.suppress(OSError):  # a full disk is told by whoever writes the records
            scratch.with_suffix(PROGRESS_SUFFIX).write_text(f"{read} {len(writer.hashes)}")

    pace = _Pace(say)

    def seen(block: bytes) -> None:
        digest.update(block)
        pace.seen(block)

    try:
        for frame in read_frames(source, compression, seen=seen):
            try:
                if frame.payload is None:
                    raise DataError(frame.error)
                record = decode(frame.payload)
                check_record(record)
                writer.append(record)
            except DataError as error:
                if on_error == "raise":
                    raise DataError(f"{source}: {frame.describe(error)}") from None
                lost = " and all that follow" if frame.last else ""
                skipped.append((frame.number, f"{error}{lost}"))
        if not writer.hashes:
            raise DataError(f"{source}: holds no record that can be used")
        writer.close()
    finally:
        writer.abandon()  # of no effect on a file that is closed
    return Part(
        name=name,
        source=source.name,
        source_bytes=found.st_size,
        source_changed=found.st_mtime_ns,
        # What follows a damaged length was not read.
        source_sha256=digest.hexdigest() if not skipped else hash_file(source),
        compression=compression or compression_of(source),
        features=writer.features,
        records=len(writer.hashes),
        skipped=tuple(skipped),
        hashes=tuple(writer.hashes),
        sequences=writer.sequences,
        versions={package: importlib.metadata.version(package) for package in PACKAGES},
    )


def _finished_before(source: Path, path: Path, part: Part) -> Part:
    """What an earlier call converted, if it is of this source."""
    if not path.is_file():
        raise DataError(f"{path}: is missing, although it was converted; remove {path.with_suffix('.json').name} too")
    if not _is_of(part, source):
        raise DataError(f"{source}: has changed since it was converted; convert into another folder")
    return part


def _is_of(part: Part, source: Path) -> bool:
    """Whether something was made of a source as it is now."""
    found = source.stat()
    same = found.st_size == part.source_bytes
    # Terabytes are not read again for as long as nobody has written to them.
    return same and (found.st_mtime_ns == part.source_changed or hash_file(source) == part.source_sha256)


def _check_none_left(source: Path, target: Path, jobs: Mapping[str, Path]) -> None:
    """Insists that all that was converted before is of the sources that there are."""
    described = {path.relative_to(target).with_suffix("").as_posix() for path in descriptions(target)}
    left = sorted(described - jobs.keys())
    if left:
        raise DataError(
            f"{target}: holds what was converted of files that are not in {source}: {', '.join(left)}; put them back, "
            "or convert into another folder"
        )


def _verify_file(source: Path, part: Part, store: Store, first: int, tally: _Tally) -> None:
    skipped = dict(part.skipped)
    row, number = 0, -1
    pace = _Pace(lambda read: tally.within({part.name: (read, row)}))
    for frame in read_frames(source, seen=pace.seen):
        number = frame.number
        if number in skipped:
            _verify_skipped(source, frame, store[first])
            continue
        if frame.payload is None:
            raise DataError(f"{source}: {frame.describe(frame.error)}")
        if row == part.records:
            raise DifferenceError(f"{source}: {frame.describe('was not converted')}")
        try:
            expected = content_hash(decode(frame.payload))
        except DataError as error:
            raise DataError(f"{source}: {frame.describe(error)}") from None
        if content_hash(store[first + row]) != expected or part.hashes[row] != expected.hex():
            raise DifferenceError(f"{source}: {frame.describe('differs from what was converted')}")
        row += 1
    if max(skipped, default=0) > number:
        raise DifferenceError(f"{source}: record {max(skipped)} was left out, but the last is {number}")
    if row != part.records:
        raise DifferenceError(f"{source}: {part.records} records were converted, the source has {row}")


def _verify_skipped(source: Path, frame: Frame, first: Record) -> None:
    """Insists that a record that was left out cannot be used."""
    if frame.payload is None:
        return
    try:
        record = decode(frame.payload)
        check_record(record)
        check_alike(record, first)
    except DataError:
        return
    raise DifferenceError(f"{source}: {frame.describe('was left out, although it can be used')}")


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says in one line what keeps a file from being written."""
    try:
        yield
    except DataError:
        raise
    except (OSError, RuntimeError) as error:
        # HDF5 hides the system's number in its text.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be written: {reason}") from None


def _leftovers(path: Path) -> list[Path]:
    """What a conversion that was killed was about to make of a file and of its description."""
    prefix = f"{PARTIAL}{path.stem}-"
    found = [left for left in path.parent.iterdir() if left.name.startswith(prefix)]
    return [left for left in found if len(left.name.removeprefix(prefix).partition(".")[0]) == len(uuid.uuid4().hex)]


def _remove_leftovers(path: Path, *, but: Path | None = None) -> None:
    """Removes them, but for one file and its description."""
    for left in _leftovers(path):
        if but is None or left.stem != but.stem:
            left.unlink(missing_ok=True)


def _scratch(path: Path) -> Path:
    """A name beside a file, for what is to become it."""
    return path.with_name(f"{PARTIAL}{path.stem}-{uuid.uuid4().hex}{path.suffix}")


def _write_whole(path: Path, text: str, scratch: Path) -> None:
    """A small file that is there with all of its text or not at all.

    Args:
        path: The file.
        text: What is in it.
        scratch: Where it lies until then.
    """
    try:
        with scratch.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _write_manifest(target: Path) -> None:
    files: list[dict[str, Any]] = []
    sequences = 0
    for _, part in parts(target):
        # The hashes of all records lie beside their files; those of millions would fill memory here.
        files.append({name: getattr(part, name) for name in IN_MANIFEST})
        sequences += len(part.sequences)
    content = {
        "schema": SCHEMA,
        "files": files,
        "records": sum(file["records"] for file in files),
        "skipped": sum(len(file["skipped"]) for file in files),
        "sequences": sequences,
    }
    with _writing(target / MANIFEST):
        _remove_leftovers(target / MANIFEST)
        _write_whole(target / MANIFEST, json.dumps(content, indent=1), _scratch(target / MANIFEST))


def _skipped(found: Sequence[Part]) -> tuple[tuple[str, int, str], ...]:
    return tuple((part.name, number, reason) for part in found for number, reason in part.skipped)


# --- several files at once -------------------------------------------------------------------------------------------


def _followers(jobs: Mapping[str, Path], compression: Compression | None) -> dict[str, list[str]]:
    """For the first of all files that begin with the same sequence, the others.

    They are files of several cell types at the same intervals. The others are converted when the first one is finished,
    so that they find its sequences and do not write them first.
    """
    groups: dict[bytes, list[str]] = {}
    for name, path in jobs.items():
        groups.setdefault(_beginning(path, compression) or name.encode(), []).append(name)
    return {first: others for first, *others in groups.values()}


def _beginning(path: Path, compression: Compression | None) -> bytes | None:
    """sha256 of how the first sequence begins; None where that cannot be read, which is told when it is converted."""
    with contextlib.suppress(DataError):
        letters = first_letters(path, compression)
        return None if letters is None else hashlib.sha256(letters).digest()
    return None


class _Queue:
    """Gives whoever has nothing to do the next file: the largest first, so that all end at about the same time.

    Files that begin with the same sequence as one that was given out come after all others. They are files of several
    cell types at the same intervals, which need not write the sequences that they find when that one is finished.
    Nobody waits for that: what is stored twice is taken out.
    """

    def __init__(self, jobs: Mapping[str, Path], target: Path, compression: Compression | None) -> None:
        self._jobs, self._target = jobs, target
        self._compression: Compression | None = compression
        self._lock = threading.Lock()
        self._begun: set[bytes] = set()
        self._ahead = deque(sorted(jobs, key=lambda name: jobs[name].stat().st_size, reverse=True))
        self._later: deque[str] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._lock:
            while self._ahead:
                name = self._ahead.popleft()
                if not self._follows(name):
                    return name
                self._later.append(name)
            if not self._later:
                raise StopIteration
            return self._later.popleft()

    def clear(self) -> None:
        """Nothing more."""
        with self._lock:
            self._ahead.clear()
            self._later.clear()

    def _follows(self, name: str) -> bool:
        if (self._target / f"{name}.json").is_file():
            return False
        first = _beginning(self._jobs[name], self._compression)
        known = first in self._begun
        if first is not None:
            self._begun.add(first)
        return known


def _by_processes(
    workers: int,
    convert: Callable[[Path, str], _Converted],
    describe: Callable[[_Converted], Part],
    jobs: Mapping[str, Path],
    queue: _Queue,
    finished: Callable[[str, Part], None],
) -> None:
    """Each process converts a file at a time; this one is among them, as it has nothing to start or to import."""
    done: set[str] = set()
    describing = threading.Lock()

    def work(call: Callable[..., Any]) -> None:
        try:
            for name in queue:
                converted = call(convert, jobs[name], name)
                with describing:
                    part = call(describe, converted)
                finished(name, part)
                done.add(name)
        finally:
            queue.clear()  # after an error nobody begins another file

    context = multiprocessing.get_context("spawn")
    try:
        with contextlib.ExitStack() as stack:
            others = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(workers - 1)]
            with _main_hidden():
                for other in others:
                    other.submit(_start)
            threads = stack.enter_context(ThreadPoolExecutor(len(others)))
            working = [threads.submit(work, functools.partial(_call_there, other)) for other in others]
            work(_call_here)
            for each in working:
                each.result()
    except BrokenProcessPool:
        names = ", ".join(sorted(jobs.keys() - done))
        raise DataError(f"a process that converted was killed; not finished: {names}; call again to go on") from None


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Processes that begin meanwhile do not run the main module again: they need nothing of it.

    The command line imports PyTorch, which takes several times as long as all that converts, and a script need not
    keep what it does from running again.
    """
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start() -> None:
    """Begins a process, which imports this module to find this function, and ends with the one that began it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()  # one that was killed told nobody
    os._exit(1)


def _call_here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _call_there(process: ProcessPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Any:
    return process.submit(function, *arguments).result()


def _by_cluster(
    address: str,
    convert: Callable[[Path, str], _Converted],
    jobs: dict[str, Path],
    followers: Mapping[str, list[str]],
    finished: Callable[[str, _Converted], None],
) -> None:
    """The same work on a Dask cluster, which gives the files of a lost worker to another."""
    try:
        from concurrent.futures import CancelledError

        from distributed import Client, KilledWorker, as_completed
        from distributed.comm.core import CommClosedError
    except ImportError:
        raise DataError("a scheduler needs Dask: install the extra 'cluster'") from None
    try:
        client = Client(address, timeout=ANSWER_SECONDS)
    except OSError as error:
        raise DataError(f"{address}: no scheduler answers: {error}") from None
    with client:
        futures = {}

        def submit(name: str) -> Any:
            # A key of its own: of two calls with one key the second is given the first one's result, of another folder.
            key = f"convert-{name}-{uuid.uuid4().hex}"
            future = client.submit(convert, jobs[name], name, pure=False, key=key)
            futures[future] = name
            return future

        completed = as_completed([submit(name) for name in followers])
        for future in completed:
            try:
                converted = future.result()
            except KilledWorker:
                raise DataError(
                    f"{jobs[futures[future]]}: every worker that converted it was killed; call again to go on"
                ) from None
            except (CancelledError, CommClosedError):
                raise DataError(f"{address}: the scheduler was lost; call again to go on") from None
            finished(futures[future], converted)
            completed.update([submit(name) for name in followers.get(futures[future], ())])
