"""Sequences are stored once, whatever files have in common and however many are converted at the same time."""

import dataclasses
import errno
import itertools
import multiprocessing
from multiprocessing.context import ForkContext

import h5py
import numpy as np
import pytest

from tests.records import synthetic_record
from torch_impl.data import convert as module
from torch_impl.data import sharing
from torch_impl.data.convert import convert_tfrecord_to_hdf5, verify_hdf5
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import DataError
from torch_impl.data.store import OTHER_LETTERS, PARTIAL, SEQUENCES, Store, parts, read_all
from torch_impl.data.tfrecord import content_hash, write_records

CONFIG = ExampleConfig.tiny(num_motifs=8)
OVERLAPPING = {"a": (0, 1, 2), "b": (5, 1, 3, 1), "sub/c": (3, 2, 7), "sub/d": (7, 5, 0, 8), "sub/e": (5, 1)}
UNIQUE = len(set(itertools.chain(*OVERLAPPING.values())))


def record_of(name: str, number: int, sequence: int):
    record = synthetic_record(CONFIG, 100 * (1 + sorted(OVERLAPPING).index(name)) + number, sequence_seed=sequence)
    if sequence % 2:
        return record
    return dataclasses.replace(record, sequence=record.letters.upper().replace(b"N", b"A"))


@pytest.fixture
def source(tmp_path):
    for name, sequences in OVERLAPPING.items():
        path = tmp_path / "source" / f"{name}.tfr"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_records(path, [record_of(name, number, each) for number, each in enumerate(sequences)])
    return tmp_path / "source"


_original = module._convert_file


def _unaware(*arguments, **options):
    """Converts without seeing anything of others, as when all began at the same time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "places", lambda folder: {})
        return _original(*arguments, **options)


@pytest.fixture
def at_the_same_time(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: ForkContext())
    monkeypatch.setattr(module, "_convert_file", _unaware)


def stored(folder) -> list[str]:
    return [key for _, part in parts(folder) for key in part.sequences]


def test_files_that_are_converted_at_the_same_time_share_whatever_they_have_in_common(
    tmp_path, source, at_the_same_time
):
    convert_tfrecord_to_hdf5(source, tmp_path / "one")
    convert_tfrecord_to_hdf5(source, tmp_path / "several", workers=5)
    assert len(stored(tmp_path / "several")) == len(set(stored(tmp_path / "several"))) == UNIQUE
    assert verify_hdf5(source, tmp_path / "several").records == sum(map(len, OVERLAPPING.values()))
    one, several = Store(tmp_path / "one"), Store(tmp_path / "several")
    for index in range(len(one)):
        first, second = (store.for_training(index).sequence for store in (one, several))
        assert type(first) is type(second)
        np.testing.assert_array_equal(first, second)
    # What is left of each is stored as it was, and its rows are all that there are.
    for path, part in parts(tmp_path / "several"):
        with h5py.File(path) as file:
            assert len(file[SEQUENCES]) == len(part.sequences) == file[SEQUENCES].id.get_num_chunks()
            assert file[SEQUENCES].attrs["bases"] == "ACGT"
            for table in (SEQUENCES, OTHER_LETTERS):
                assert (file[table].compression, file[table].chunks[0]) == ("gzip", 1)
    assert not list((tmp_path / "several").rglob(f"{PARTIAL}*"))


def test_what_is_shared_no_longer_takes_place(tmp_path, source, at_the_same_time):
    for name in ("b", "c"):
        (source / f"{name}.tfr").write_bytes((source / "a.tfr").read_bytes())
    convert_tfrecord_to_hdf5(source / "[abc].tfr", tmp_path / "target", workers=3)
    found = [(len(part.sequences), path.stat().st_size) for path, part in parts(tmp_path / "target")]
    (none, small), (none_again, small_again), (three, large) = sorted(found)
    assert (none, none_again, three) == (0, 0, 3)
    assert max(small, small_again) < large - 3 * CONFIG.input_length // 4


def test_a_disk_that_is_full_by_then_is_named_and_the_next_call_goes_on(
    tmp_path, source, at_the_same_time, monkeypatch
):
    class Full(sharing.Sink):
        def check(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharing, "Sink", Full)
    target = tmp_path / "target"
    with pytest.raises(DataError, match=r"\.h5: cannot be written: No space left on device"):
        convert_tfrecord_to_hdf5(source, target, workers=5)
    assert not list(target.rglob(f"{PARTIAL}*.json"))
    whole = list(parts(target))
    assert len(whole) < len(OVERLAPPING)
    assert len(Store(target)) == sum(part.records for _, part in whole)
    assert all(map(content_hash, read_all(Store(target))))
    monkeypatch.undo()
    convert_tfrecord_to_hdf5(source, target)
    assert verify_hdf5(source, target).records == sum(map(len, OVERLAPPING.values()))
    assert len(stored(target)) == UNIQUE
    assert not list(target.rglob(f"{PARTIAL}*"))
