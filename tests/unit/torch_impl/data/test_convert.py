"""Conversion: nothing lost, nothing changed, whatever happens on the way."""

import dataclasses
import inspect
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.records import serialized_example, synthetic_record, synthetic_records
from torch_impl.data import convert as module
from torch_impl.data import sharing, store, tfrecord
from torch_impl.data.convert import (
    Progress,
    convert_tfrecord_to_hdf5,
    export_hdf5_to_tfrecord,
    find_sources,
    verify_hdf5,
)
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import DataError, DifferenceError
from torch_impl.data.store import MANIFEST, PARTIAL, Store, parts, read_all
from torch_impl.data.tfrecord import content_hash, encode, feature_bytes, frame, write_records

CONFIG = ExampleConfig.tiny(num_motifs=8)
FILES = ("train/a", "train/b", "train/c", "valid/d")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for number, name in enumerate(FILES):
        path = folder / f"{name}.tfr"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_records(path, synthetic_records(CONFIG, 3, seed=10 * number))
    return folder


def hashes(folder) -> list[bytes]:
    return [content_hash(record) for record in read_all(Store(folder))]


def leftovers(folder) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(PARTIAL)]


# --- what it does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_every_record_is_converted_and_equal_to_its_source(tmp_path, source, workers):
    said: list[Progress] = []
    found = convert_tfrecord_to_hdf5(source, tmp_path / "target", workers=workers, progress=said.append)
    assert (found.files, found.records, found.skipped) == (4, 12, ())
    assert [state.files for state in said] == [1, 2, 3, 4]
    assert said[-1].source_bytes == said[-1].of_bytes == sum(path.stat().st_size for path in source.rglob("*.tfr"))
    compared: list[Progress] = []
    assert verify_hdf5(source, tmp_path / "target", progress=compared.append).records == 12
    assert [state.files for state in compared] == [1, 2, 3, 4]
    assert compared[-1] == said[-1]
    assert leftovers(tmp_path / "target") == []
    manifest = json.loads((tmp_path / "target" / MANIFEST).read_text())
    assert manifest["records"] == 12
    assert [entry["name"] for entry in manifest["files"]] == list(FILES)


@pytest.mark.parametrize("task", ["convert", "two processes", "verify"])
def test_progress_moves_within_files_and_never_backwards(tmp_path, monkeypatch, task):
    (tmp_path / "source").mkdir()
    for name in ("a", "b"):
        write_records(tmp_path / "source" / f"{name}.tfr", synthetic_records(CONFIG, 60, seed=ord(name)))
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: _Context())
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(tfrecord, "_BLOCK", 4096)
    target, said = tmp_path / "target", []
    if task == "verify":
        convert_tfrecord_to_hdf5(tmp_path / "source", target)
        verify_hdf5(tmp_path / "source", target, progress=said.append)
    else:
        # What an earlier conversion left does not count.
        target.mkdir()
        (target / f"{PARTIAL}b-{'0' * 32}.progress").write_text("1000000 1000000")
        workers = 2 if task == "two processes" else 1
        convert_tfrecord_to_hdf5(tmp_path / "source", target, workers=workers, progress=said.append)
    within = [state for state in said if state.files == 0]
    assert any(0 < state.source_bytes < state.of_bytes for state in within)
    assert any(0 < state.records < 120 for state in within)
    for one, other in itertools.pairwise(said):
        assert one.source_bytes <= other.source_bytes
        assert one.files <= other.files
    assert (said[-1].files, said[-1].source_bytes, said[-1].records) == (2, said[-1].of_bytes, 120)
    assert leftovers(target) == []


def test_progress_is_told_when_there_is_some(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    said: list[Progress] = []
    tally = module._Tally({"a": tmp_path / "a"}, said.append)
    for found in ({"a": (10, 1)}, {"a": (10, 1)}, {"other": (50, 5)}, {"a": (60, 2)}, {}):
        tally.within(found)
    assert [(state.source_bytes, state.records) for state in said] == [(10, 1), (60, 2)]


def test_converting_again_does_nothing_again(tmp_path, source):
    convert_tfrecord_to_hdf5(source, tmp_path / "target")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*.h5")}
    convert_tfrecord_to_hdf5(source, tmp_path / "target")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "target").rglob("*.h5")} == before


def test_exported_records_are_those_of_the_source_in_their_order(tmp_path, source):
    convert_tfrecord_to_hdf5(source, tmp_path / "target")
    assert export_hdf5_to_tfrecord(tmp_path / "target", tmp_path / "again").records == 12
    convert_tfrecord_to_hdf5(tmp_path / "again", tmp_path / "twice")
    assert hashes(tmp_path / "twice") == hashes(tmp_path / "target")
    verify_hdf5(tmp_path / "again", tmp_path / "target")


def test_the_original_files_survive_the_way_there_and_back(tensorflow, tmp_path, goldens):
    import tensorflow as tf

    convert_tfrecord_to_hdf5(goldens / "data", tmp_path / "target")
    export_hdf5_to_tfrecord(tmp_path / "target", tmp_path / "again")
    for path in sorted((goldens / "data").glob("*.tfr")):
        files = (path, tmp_path / "again" / path.name)
        both = (tf.data.TFRecordDataset(str(each), compression_type="ZLIB") for each in files)
        for one, other in zip(*both, strict=True):
            assert tf.train.Example.FromString(one.numpy()) == tf.train.Example.FromString(other.numpy())


def test_sources_that_do_not_exist_or_hold_nothing_are_named(tmp_path):
    with pytest.raises(DataError, match="absent: does not exist"):
        find_sources(tmp_path / "absent")
    with pytest.raises(DataError, match=r"holds no \.tfr files"):
        find_sources(tmp_path)


def test_sources_may_be_named_by_a_pattern(tmp_path, source):
    assert list(find_sources(source / "train" / "[ab].tfr")) == ["a", "b"]
    assert list(find_sources(source / "*" / "[cd].tfr")) == ["train/c", "valid/d"]
    assert list(find_sources(source / "**" / "*.tfr")) == list(FILES)
    with pytest.raises(DataError, match="holds no"):
        find_sources(source / "test" / "*.tfr")
    (source / "valid" / "d.gz").write_bytes(b"")
    with pytest.raises(DataError, match="differ in their suffix alone"):
        find_sources(source / "valid" / "d.*")


def test_a_folder_that_is_named_like_a_file_is_none(tmp_path, source):
    (source / "train" / "folder.tfr").mkdir()
    assert list(find_sources(source)) == list(FILES)


@pytest.mark.parametrize("name", ["manifest", f"{PARTIAL}a"])
def test_a_source_that_would_not_be_seen_again_is_not_converted(tmp_path, source, name):
    (source / "valid" / "d.tfr").rename(source / "valid" / f"{name}.tfr")
    with pytest.raises(DataError, match=rf"{name}\.tfr: would become .* rename it"):
        convert_tfrecord_to_hdf5(source, tmp_path / "target")


@pytest.mark.parametrize("compression", ["ZLIB", "GZIP", "NONE"])
def test_the_manifest_says_what_was_converted_and_with_what(tmp_path, compression):
    write_records(tmp_path / "some.tfr", synthetic_records(CONFIG, 2), compression)
    convert_tfrecord_to_hdf5(tmp_path / "some.tfr", tmp_path / "target")
    (entry,) = json.loads((tmp_path / "target" / MANIFEST).read_text())["files"]
    assert entry["compression"] == compression
    assert entry["source_sha256"] == module.hash_file(tmp_path / "some.tfr")
    assert entry["features"] == {
        "sequence": "8208 letters",
        "atac": "float16 (2048, 1)",
        "peaks_center": "int32 (64,)",
        "motif_activity": "float16 (8,)",
    }
    assert entry["versions"].keys() == set(module.PACKAGES)


@pytest.mark.parametrize(("option", "value"), [("workers", 0), ("on_error", "ignore")])
def test_an_option_out_of_range_is_named(tmp_path, source, option, value):
    with pytest.raises(ValueError, match=option):
        # Without the type checker of the tests, which would not let it in.
        inspect.unwrap(convert_tfrecord_to_hdf5)(source, tmp_path / "target", **{option: value})


def stored_sequences(folder) -> dict[str, int]:
    return {part.name: len(part.sequences) for _, part in parts(folder)}


@pytest.fixture
def cell_types(tmp_path):
    """Three cell types at the same intervals, and one file that begins elsewhere and then shares an interval."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number, name in enumerate("abc"):
        records = [synthetic_record(CONFIG, 100 * number + i, sequence_seed=i) for i in range(3)]
        write_records(folder / f"{name}.tfr", records)
    write_records(folder / "d.tfr", [synthetic_record(CONFIG, 500 + i, sequence_seed=i) for i in (7, 1)])
    return folder


def test_files_that_begin_with_the_same_sequence_follow_the_first_of_them(tmp_path, cell_types):
    (cell_types / "broken.tfr").write_bytes(frame(b"no example"))
    (cell_types / "empty.tfr").write_bytes(b"")
    jobs = find_sources(cell_types)
    assert module._followers(jobs, None) == {"a": ["b", "c"], "broken": [], "d": [], "empty": []}


def test_large_files_come_first_and_those_that_begin_like_another_last(tmp_path, cell_types):
    (cell_types / "empty.tfr").write_bytes(b"")
    (cell_types / "broken.tfr").write_bytes(frame(b"no example"))
    for name, size in {"d": 90_000, "b": 80_000, "a": 70_000, "c": 60_000, "broken": 500, "empty": 0}.items():
        os.truncate(cell_types / f"{name}.tfr", size)
    jobs = find_sources(cell_types)
    assert list(module._Queue(jobs, tmp_path, None)) == ["d", "b", "broken", "empty", "a", "c"]
    # Nobody needs to wait for what is finished.
    (tmp_path / "c.json").touch()
    assert list(module._Queue(jobs, tmp_path, None)) == ["d", "b", "c", "broken", "empty", "a"]
    queue = module._Queue(jobs, tmp_path, None)
    assert [next(queue), next(queue), next(queue)] == ["d", "b", "c"]
    queue.clear()
    assert list(queue) == []


def test_several_workers_store_the_sequences_of_cell_types_once(tmp_path, cell_types):
    convert_tfrecord_to_hdf5(cell_types, tmp_path / "target", workers=3)
    assert sum(stored_sequences(tmp_path / "target").values()) == 4
    assert verify_hdf5(cell_types, tmp_path / "target").records == 11


def test_one_worker_stores_every_sequence_once(tmp_path, cell_types):
    convert_tfrecord_to_hdf5(cell_types, tmp_path / "target")
    assert stored_sequences(tmp_path / "target") == {"a": 3, "b": 0, "c": 0, "d": 1}


# --- bad records -----------------------------------------------------------------------------------------------------


def damaged(path, kind: str) -> None:
    """Makes the second of three records of a file unusable."""
    records = list(synthetic_records(CONFIG, 3))
    middle = feature_bytes(records[1])
    if kind == "NaN":
        records[1].atac[5] = np.nan
    elif kind == "infinite motif":
        records[1].motif_activity[2] = np.inf
    elif kind == "constant motifs":
        records[1].motif_activity[:] = 1
    elif kind == "another geometry":
        records[1] = synthetic_record(ExampleConfig.tiny(num_motifs=9), 1)
    elif kind == "another type":
        records[1] = dataclasses.replace(records[1], atac=records[1].atac.astype(np.float64))
    elif kind == "short sequence":
        records[1] = dataclasses.replace(records[1], sequence=records[1].letters[:-1])
    elif kind == "no letters":
        records[1] = dataclasses.replace(records[1], sequence=records[1].letters[:-1] + b"-")
    payloads = [encode(record) for record in records]
    if kind == "missing feature":
        payloads[1] = serialized_example(**{name: value for name, value in middle.items() if name != "peaks_center"})
    elif kind == "no tensor":
        payloads[1] = serialized_example(**(middle | {"atac": b"\xff\xff"}))
    elif kind == "no example":
        payloads[1] = b"\xff\xff\xff"
    data = bytearray(b"".join(map(frame, payloads)))
    start, end = len(frame(payloads[0])), len(frame(payloads[0])) + len(frame(payloads[1]))
    flipped = {
        "length": start + 3,
        "checksum of length": start + 9,
        "data": (start + end) // 2,
        "checksum of data": end - 2,
    }
    what = kind.removeprefix("flipped ")
    if what in flipped:
        data[flipped[what]] ^= 1
    if kind == "truncated":
        del data[end - 100 :]
    path.write_bytes(data)


BAD = {
    "NaN": "atac has 1 values that are not finite",
    "infinite motif": "motif_activity has 1 values that are not finite",
    "constant motifs": "motif_activity is 1 throughout",
    "another geometry": r"motif_activity is float16 \(9,\)",
    "another type": "atac is of float64, not float16 or float32",
    "short sequence": "a sequence of 8207 letters, in the first record 8208",
    "no letters": "the sequence is not made of letters",
    "missing feature": "has no peaks_center",
    "no tensor": "atac is not a tensor",
    "no example": r"not a tf\.train\.Example",
    "flipped data": "the checksum of the data",
    "flipped checksum of data": "the checksum of the data",
    "flipped length": "the checksum of the length",
    "flipped checksum of length": "the checksum of the length",
    "truncated": "the file ends within the data of a frame: it is truncated",
}
NOTHING_AFTER = ("flipped length", "flipped checksum of length", "truncated")


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_ends_the_conversion_with_file_and_record(tmp_path, kind):
    path = tmp_path / "bad.tfr"
    damaged(path, kind)
    with pytest.raises(DataError, match=f"bad.tfr: record 1: {BAD[kind]}"):
        convert_tfrecord_to_hdf5(path, tmp_path / "target")
    assert list((tmp_path / "target").rglob("*.h5")) == []
    assert leftovers(tmp_path / "target") == []


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_skipped_and_reported_when_asked(tmp_path, kind):
    path = tmp_path / "bad.tfr"
    damaged(path, kind)
    found = convert_tfrecord_to_hdf5(path, tmp_path / "target", on_error="skip")
    kept = 1 if kind in NOTHING_AFTER else 2
    assert found.records == kept
    ((name, number, reason),) = found.skipped
    assert (name, number) == ("bad", 1)
    assert re.match(BAD[kind], reason)
    assert ("and all that follow" in reason) == (kind in NOTHING_AFTER)
    manifest = json.loads((tmp_path / "target" / MANIFEST).read_text())
    assert manifest["files"][0]["skipped"] == [[number, reason]]
    assert verify_hdf5(path, tmp_path / "target").records == kept
    sound = [content_hash(record) for record in synthetic_records(CONFIG, 3)]
    assert hashes(tmp_path / "target") == [sound[0], sound[2]][:kept]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_an_empty_file_among_others_is_named(tmp_path, source, on_error):
    (source / "train" / "b.tfr").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/b\.tfr: the file is empty"):
        convert_tfrecord_to_hdf5(source, tmp_path / "target", on_error=on_error)
    write_records(source / "train" / "b.tfr", synthetic_records(CONFIG, 3, seed=10))
    convert_tfrecord_to_hdf5(source, tmp_path / "target")
    assert verify_hdf5(source, tmp_path / "target").records == 12


def test_a_file_without_any_usable_record_is_an_error_even_then(tmp_path):
    path = tmp_path / "bad.tfr"
    path.write_bytes(frame(b"no example"))
    with pytest.raises(DataError, match="holds no record that can be used"):
        convert_tfrecord_to_hdf5(path, tmp_path / "target", on_error="skip")


# --- verification ----------------------------------------------------------------------------------------------------


def test_verification_finds_a_changed_a_missing_and_an_additional_record(tmp_path, source):
    target = tmp_path / "target"
    convert_tfrecord_to_hdf5(source, target)
    path = source / "train" / "b.tfr"
    records = list(synthetic_records(CONFIG, 3, seed=10))
    records[2].atac[7] += 1
    write_records(path, records)
    with pytest.raises(DataError, match=r"b\.tfr: record 2: differs"):
        verify_hdf5(source, target)
    write_records(path, synthetic_records(CONFIG, 4, seed=10))
    with pytest.raises(DataError, match=r"b\.tfr: record 3: was not converted"):
        verify_hdf5(source, target)
    write_records(path, synthetic_records(CONFIG, 2, seed=10))
    with pytest.raises(DataError, match=r"3 records were converted, the source has 2"):
        verify_hdf5(source, target)
    path.unlink()
    with pytest.raises(DataError, match="train/b has no source"):
        verify_hdf5(source, target)
    write_records(source / "train" / "new.tfr", synthetic_records(CONFIG, 1))
    with pytest.raises(DataError, match="train/new was not converted"):
        verify_hdf5(source, target)


def test_verification_does_not_believe_that_a_sound_record_was_left_out(tmp_path, source):
    target = tmp_path / "target"
    convert_tfrecord_to_hdf5(source, target)
    path = target / "train" / "a.json"
    described = json.loads(path.read_text())
    described["skipped"] = [[1, "said so"]]
    path.write_text(json.dumps(described))
    with pytest.raises(DifferenceError, match=r"record 1.*: was left out, although it can be used"):
        verify_hdf5(source, target)


def test_verification_does_not_believe_that_a_record_was_left_out_that_never_was(tmp_path, source):
    target = tmp_path / "target"
    convert_tfrecord_to_hdf5(source, target)
    path = target / "train" / "a.json"
    described = json.loads(path.read_text())
    described["skipped"] = [[99, "said so"]]
    path.write_text(json.dumps(described))
    with pytest.raises(DifferenceError, match=r"a\.tfr: record 99 was left out, but the last is 2"):
        verify_hdf5(source, target)


def test_verification_reads_the_converted_numbers_and_not_only_their_hashes(tmp_path, source):
    import h5py

    target = tmp_path / "target"
    convert_tfrecord_to_hdf5(source, target)
    with h5py.File(target / "train" / "a.h5", "r+") as file:
        file["atac"][1, 3] = 5
    with pytest.raises(DataError, match=r"a\.tfr: record 1: differs"):
        verify_hdf5(source, target)


def test_a_source_that_changed_since_is_not_converted_over_the_old_one(tmp_path, source):
    convert_tfrecord_to_hdf5(source, tmp_path / "target")
    write_records(source / "train" / "a.tfr", synthetic_records(CONFIG, 3, seed=77))
    with pytest.raises(DataError, match=r"a\.tfr: has changed since it was converted"):
        convert_tfrecord_to_hdf5(source, tmp_path / "target")


def test_what_is_left_of_a_source_that_was_removed_is_named(tmp_path, source):
    convert_tfrecord_to_hdf5(source, tmp_path / "target")
    for name in ("train/b", "valid/d"):
        (source / f"{name}.tfr").unlink()
    with pytest.raises(DataError, match=r"that are not in .*source: train/b, valid/d; put them back"):
        convert_tfrecord_to_hdf5(source, tmp_path / "target")
    # A file or a pattern is not said to be all.
    assert convert_tfrecord_to_hdf5(source / "train" / "*.tfr", tmp_path / "one").files == 2
    assert convert_tfrecord_to_hdf5(source / "train" / "a.tfr", tmp_path / "one").files == 1


def test_a_finished_source_is_read_again_only_if_it_was_written_to(tmp_path, source, monkeypatch):
    target, path = tmp_path / "target", source / "train" / "a.tfr"
    convert_tfrecord_to_hdf5(source, target)
    read: list[Path] = []
    hash_file = module.hash_file
    monkeypatch.setattr(module, "hash_file", lambda path: read.append(path) or hash_file(path))
    convert_tfrecord_to_hdf5(source, target)
    assert read == []
    path.touch()
    convert_tfrecord_to_hdf5(source, target)
    assert read == [path]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tfr: has changed since it was converted"):
        convert_tfrecord_to_hdf5(source, target)


def test_verification_names_a_record_that_can_no_longer_be_decoded(tmp_path, source):
    convert_tfrecord_to_hdf5(source / "train", tmp_path / "target")
    (source / "train" / "a.tfr").write_bytes(frame(b"no example"))
    with pytest.raises(DataError, match=r"a\.tfr: record 0: (not a tf|has no )"):
        verify_hdf5(source / "train", tmp_path / "target")


# --- what happens to processes and disks -----------------------------------------------------------------------------


def convert_until(limit: int, source, target, steps) -> None:
    """Converts, but ends the process at one of the points at which something is about to be written.

    Files do not know of the sequences of others while they are converted, as when all are at the same time.
    """
    convert = module._convert_file

    def unaware(*arguments, **options):
        known, module.places = module.places, lambda folder: {}
        try:
            return convert(*arguments, **options)
        finally:
            module.places = known

    module._convert_file = unaware

    def counted(function):
        def call(*arguments, **options):
            steps.value += 1
            if steps.value == limit:
                os._exit(9)
            return function(*arguments, **options)

        return call

    for owner, name in (
        (store.Writer, "append"),
        (store.Writer, "close"),
        (module, "_write_whole"),
        (sharing, "_copy_rows"),
        (Path, "replace"),
        (os, "fsync"),
    ):
        setattr(owner, name, counted(getattr(owner, name)))
    convert_tfrecord_to_hdf5(source, target)


def run_until(limit: int, source, target) -> tuple[int, int]:
    """In a process of its own: (its exit status, how many points it came to)."""
    context = multiprocessing.get_context("fork")
    steps = context.Value("i", 0)
    process = context.Process(target=convert_until, args=(limit, source, target, steps))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode, steps.value


def test_a_conversion_killed_at_twenty_points_goes_on_to_the_same_result(tmp_path, source):
    write_records(source / "train" / "c.tfr", synthetic_records(CONFIG, 3, seed=11))  # one sequence is another file's
    whole = tmp_path / "whole"
    status, steps = run_until(0, source, whole)
    assert status == 0
    points = np.random.default_rng(0).choice(np.arange(1, steps + 1), size=20, replace=False)
    for point in points.tolist():
        folder = tmp_path / "target" / str(point)
        assert run_until(point, source, folder) == (9, point)
        # What has a description is whole; what has none does not count.
        for path, part in parts(folder) if folder.is_dir() else []:
            assert path.is_file()
            assert part.records == 3
        convert_tfrecord_to_hdf5(source, folder)
        assert hashes(folder) == hashes(whole)
        assert sum(stored_sequences(folder).values()) == sum(stored_sequences(whole).values()) == 7
        verify_hdf5(source, folder)
        assert leftovers(folder) == []


def test_what_other_workers_finished_counts_when_one_fails(tmp_path, source, monkeypatch):
    target, path = tmp_path / "target", source / "train" / "a.tfr"
    sound = path.read_bytes()
    path.write_bytes(frame(b"no example"))
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: _Context())
    with pytest.raises(DataError, match=r"a\.tfr: record 0"):
        convert_tfrecord_to_hdf5(source, target, workers=4)
    assert [part.name for _, part in parts(target)] == ["train/b", "train/c", "valid/d"]
    assert leftovers(target) == []
    path.write_bytes(sound)
    convert_tfrecord_to_hdf5(source, target, workers=4)
    assert verify_hdf5(source, target).records == 12


def test_a_killed_worker_is_named_and_the_next_call_goes_on(tmp_path, source, monkeypatch):
    target = tmp_path / "target"
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: _Context())
    monkeypatch.setattr(module, "_convert_file", _dying)
    monkeypatch.setattr(module._Queue, "clear", _clear_and_say_so)
    _cleared.clear()
    with pytest.raises(DataError, match=r"a process that converted was killed; not finished: .*; call again to go on"):
        convert_tfrecord_to_hdf5(source, target, workers=2)
    monkeypatch.undo()
    # The other process finished what it had begun, and began nothing more.
    (finished,) = (part.name for _, part in parts(target))
    assert finished != (target / "died").read_text()
    convert_tfrecord_to_hdf5(source, target, workers=1)
    assert verify_hdf5(source, target).records == 12


_original, _clear = module._convert_file, module._Queue.clear
_cleared = threading.Event()


def _clear_and_say_so(queue) -> None:
    _clear(queue)
    _cleared.set()


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = textwrap.dedent(
        """
        import multiprocessing, os, time
        from concurrent.futures import ProcessPoolExecutor
        from torch_impl.data import convert

        if __name__ == "__main__":
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            pool.submit(convert._start).result()
            pool.submit(time.sleep, 60)
            os.kill(os.getpid(), 9)
        """
    )
    (tmp_path / "script.py").write_text(script)
    # The other process holds its ends of both pipes, which are read to their end, for as long as it lives.
    command = [sys.executable, tmp_path / "script.py"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert found.returncode == -signal.SIGKILL, found.stderr


def test_processes_do_not_run_the_script_that_converts(tmp_path, source):
    (tmp_path / "script.py").write_text(
        "import sys; from torch_impl.data.convert import *\n"
        "print('begun', convert_tfrecord_to_hdf5(*sys.argv[1:], workers=2).files, sys.modules['__main__'].__file__)"
    )
    command = [sys.executable, tmp_path / "script.py", source, tmp_path / "target"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"begun 4 {tmp_path / 'script.py'}\n"


def _dying(source, name, **options):
    """Converts, but dies in a process that was started; the other one ends when that is known."""
    if multiprocessing.parent_process() is not None:
        (options["target"] / "died").write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)
    assert _cleared.wait(timeout=10)
    return _original(source, name, **options)


class _Context:
    """Forks, so that the patched function is there."""

    def __new__(cls):
        from multiprocessing.context import ForkContext

        return ForkContext()


def as_a_worker_leaves_it(source, target, name) -> Path:
    """Converts a file as a worker of a cluster does; then the call that would have put it in its place ends."""
    path = source / f"{name}.tfr"
    _, scratch = module._convert_file(path, name, target=target, on_error="raise", compression=None)
    assert scratch is not None
    assert list(parts(target)) == []
    return scratch


def converted_by(source, target, monkeypatch) -> list[str]:
    """Names of the files that a call reads."""
    names, write = [], module._write
    with monkeypatch.context() as patched:
        patched.setattr(
            module, "_write", lambda source, name, *arguments: names.append(name) or write(source, name, *arguments)
        )
        convert_tfrecord_to_hdf5(source, target)
    assert verify_hdf5(source, target).records == 12
    assert leftovers(target) == []
    return names


def test_what_was_finished_before_a_call_failed_is_taken_as_it_is(tmp_path, source, monkeypatch):
    write_records(source / "train" / "c.tfr", synthetic_records(CONFIG, 3, seed=11))  # one sequence is b's too
    target = tmp_path / "target"
    for name in ("train/b", "train/c"):
        as_a_worker_leaves_it(source, target, name)
    (source / "train" / "b.tfr").touch()
    assert converted_by(source, target, monkeypatch) == ["train/a", "valid/d"]
    assert sum(stored_sequences(target).values()) == 7
    assert converted_by(source, target, monkeypatch) == []


@pytest.mark.parametrize(
    "damage", ["missing", "cut", "of other records", "without its sequences", "undescribed", "of another source"]
)
def test_what_was_finished_before_is_converted_again_if_it_is_not_whole(tmp_path, source, monkeypatch, damage):
    target = tmp_path / "target"
    scratch = as_a_worker_leaves_it(source, target, "train/b")
    if damage == "missing":
        scratch.unlink()
    elif damage == "cut":
        os.truncate(scratch, scratch.stat().st_size - 1000)
    elif damage == "of other records":
        shutil.copy(as_a_worker_leaves_it(source, target, "train/a"), scratch)
    elif damage == "without its sequences":
        part = store.Part.read(scratch.with_suffix(".converted"))
        elsewhere = {bytes.fromhex(part.sequences[0]): store.Place(path=target / "x.h5", row=0, contents="")}
        sharing.share_sequences(scratch, target / "x.h5", part, elsewhere)
        (target / "x.h5").replace(scratch)
    elif damage == "undescribed":
        os.truncate(scratch.with_suffix(".converted"), 1000)
    else:
        write_records(source / "train" / "b.tfr", synthetic_records(CONFIG, 3, seed=70))
    assert "train/b" in converted_by(source, target, monkeypatch)


def test_a_cluster_is_given_whole_paths_because_its_workers_run_elsewhere(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given: list[Path] = []

    def by_cluster(address, convert, jobs, followers, finished):
        assert list(followers) == list(jobs)
        for name, path in jobs.items():
            given.extend((path, convert.keywords["target"]))
            finished(name, convert(path, name))

    monkeypatch.setattr(module, "_by_cluster", by_cluster)
    assert convert_tfrecord_to_hdf5("source", "target", scheduler="tcp://host:8786").records == 12
    assert all(path.is_absolute() for path in given)


def test_a_full_disk_is_named_and_leaves_nothing_that_looks_whole(tmp_path, source):
    target = tmp_path / "target"
    script = textwrap.dedent(
        """
        import sys
        from torch_impl.data.convert import convert_tfrecord_to_hdf5
        from torch_impl.data.records import DataError
        try:
            convert_tfrecord_to_hdf5(sys.argv[1], sys.argv[2])
        except DataError as error:
            print(error)
            sys.exit(3)
        """
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    found = subprocess.run(
        [sys.executable, "-c", script, str(source), str(target)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert found.returncode == 3, found.stderr
    assert "cannot be written" in found.stdout
    assert len(found.stdout.splitlines()) == 1
    assert list(target.rglob("*.h5")) == []
    assert list(parts(target)) == []
    convert_tfrecord_to_hdf5(source, target)
    assert verify_hdf5(source, target).records == 12


FULL = textwrap.dedent(
    """
    import subprocess, sys
    from pathlib import Path

    from torch_impl.data.convert import convert_tfrecord_to_hdf5, verify_hdf5
    from torch_impl.data.records import DataError
    from torch_impl.data.store import PARTIAL, parts

    source, target = map(Path, sys.argv[1:])
    for workers in (1, 2):
        try:
            convert_tfrecord_to_hdf5(source, target, workers=workers)
        except DataError as error:
            print(error)
        print([part.name for _, part in parts(target)], [path.name for path in target.rglob(f"{PARTIAL}*.h5")])
    subprocess.run(["mount", "-o", "remount,size=50m", str(target)], check=True)
    convert_tfrecord_to_hdf5(source, target)
    print(verify_hdf5(source, target).records)
    """
)


@pytest.mark.slow
def test_a_small_file_system_that_is_full_is_named_and_a_larger_one_goes_on(tmp_path, source):
    """Mounted in a namespace of its own; a system that does not let users have one fails here."""
    target = tmp_path / "target"
    target.mkdir()
    mount = 'mount -t tmpfs -o size=80k tmpfs "$3" && exec "$0" -c "$1" "$2" "$3"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, sys.executable, FULL, source, target]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    first, left, second, left_again, records = found.stdout.splitlines()
    for line in (first, second):
        assert re.search(r"\.h5: cannot be written: No space left on device", line)
    assert left == left_again == "['train/a'] []"
    assert records == "12"


@pytest.mark.slow
def test_a_converter_killed_at_twenty_random_times_loses_and_changes_nothing(tmp_path):
    """With all of its processes, whatever they are doing."""
    source, target = tmp_path / "source", tmp_path / "target"
    for number in range(60):
        path = source / f"{number % 2}" / f"{number:02d}.tfr"
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [synthetic_record(CONFIG, 100 * number + i, sequence_seed=(number + i) % 70) for i in range(12)]
        write_records(path, records)
    whole = tmp_path / "whole"
    convert_tfrecord_to_hdf5(source, whole)
    expected = {part.name: part.hashes for _, part in parts(whole)}
    call = "import sys; from torch_impl.data.convert import *; convert_tfrecord_to_hdf5(*sys.argv[1:3], workers=2)"
    generator = np.random.default_rng(0)
    finished, killed = [], 0
    while killed < 20:
        process = subprocess.Popen([sys.executable, "-c", call, source, target], start_new_session=True)
        try:
            process.wait(timeout=generator.uniform(0.3, 1.5))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        finally:
            process.wait()
        found = {part.name: part.hashes for _, part in parts(target)} if target.is_dir() else {}
        finished.append(len(found))
        assert found.items() <= expected.items()
        if found:
            assert [each.hex() for each in hashes(target)] == [each for name in sorted(found) for each in found[name]]
        if len(found) == len(expected):
            shutil.rmtree(target)
    assert any(0 < count < len(expected) for count in finished)
    convert_tfrecord_to_hdf5(source, target, workers=2)
    assert verify_hdf5(source, target).records == 720
    assert sum(stored_sequences(target).values()) == 70
    assert leftovers(target) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, source):
    (tmp_path / "target").write_text("a file")
    with pytest.raises(DataError, match="target: cannot be written"):
        convert_tfrecord_to_hdf5(source, tmp_path / "target")
