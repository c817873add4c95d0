"""Converted records: one read for each, alike in every process, whatever the size of the file."""

import dataclasses
import multiprocessing
import pickle

import h5py
import numpy as np
import pytest

from tests.records import synthetic_record, synthetic_records
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.examples import ExampleConfig, base_indices
from torch_impl.data.records import ARRAYS, DataError
from torch_impl.data.store import (
    HAS_OTHER_LETTERS,
    HASHES,
    MANIFEST,
    OTHER_LETTERS,
    OTHERS_CHECKSUM,
    SEQUENCE_FILE,
    SEQUENCE_ROW,
    SEQUENCES,
    Part,
    Store,
    Writer,
    parts,
    places,
    read_all,
)
from torch_impl.data.tfrecord import _tensor, content_hash, interval_number, write_records

CONFIG = ExampleConfig.tiny(num_motifs=8)


@pytest.fixture
def folder(tmp_path):
    """Two files in two subfolders; the second repeats the sequences of the first."""
    source = tmp_path / "source"
    for name, seed in (("train/a", 0), ("train/b", 100), ("valid/c", 200)):
        path = source / f"{name}.tfr"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_records(path, [synthetic_record(CONFIG, seed + i, sequence_seed=i // 2) for i in range(4)])
    convert_tfrecord_to_hdf5(source, tmp_path / "target")
    return tmp_path / "target"


def hashes(store: Store) -> list[bytes]:
    return [content_hash(record) for record in read_all(store)]


def test_records_come_in_the_order_of_files_and_within_them(folder):
    store = Store(folder / "train")
    assert store.shard_sizes == (4, 4)
    assert [record.others["interval"] for record in read_all(store)] == [
        f"chr{seed}".encode() for seed in (0, 1, 2, 3, 100, 101, 102, 103)
    ]
    assert len(Store(folder)) == 12
    assert [Store(folder).locate(index)[1] for index in (0, 3, 4, 11)] == [0, 3, 0, 3]


def test_no_table_is_longer_than_there_are_records(folder):
    for path, part in parts(folder):
        with h5py.File(path) as file:
            lengths = {name: len(table) for name, table in file.items() if isinstance(table, h5py.Dataset)}
            lengths |= {name: len(table) for name, table in file["others"].items()}
        for name in (SEQUENCES, OTHER_LETTERS, HAS_OTHER_LETTERS):
            assert lengths.pop(name) == len(part.sequences)
        assert len(lengths) > 5
        assert set(lengths.values()) == {part.records}


def test_a_sequence_is_stored_once_for_all_files(folder):
    stored = {}
    for path, part in parts(folder):
        with h5py.File(path) as file:
            stored[part.name] = file[SEQUENCES].shape[0]
    assert stored == {"train/a": 2, "train/b": 0, "valid/c": 0}


@pytest.mark.parametrize("sequence", [b"ACGT" * 2500, b"acgtnRYKMN" * 1000, b"ACGTN" * 2000, b"ACGTa" * 1641])
def test_sequences_lie_at_two_bits_a_base_and_come_back_as_letters(tmp_path, sequence):
    record = dataclasses.replace(synthetic_record(CONFIG, 0), sequence=sequence)
    write_records(tmp_path / "a.tfr", [record])
    convert_tfrecord_to_hdf5(tmp_path / "a.tfr", tmp_path / "target")
    store = Store(tmp_path / "target")
    assert store[0].sequence == sequence
    trained = store.for_training(0).sequence
    if set(sequence) <= set(b"ACGT"):
        np.testing.assert_array_equal(trained, base_indices(sequence))
    else:
        assert trained == sequence
    # As a program reads it that knows HDF5 and the attribute.
    with h5py.File(tmp_path / "target" / "a.h5") as file:
        bases = np.frombuffer(file[SEQUENCES].attrs["bases"].encode(), np.uint8)
        codes = file[SEQUENCES][0][:, None] >> np.arange(0, 8, 2) & 3
        assert (bases[codes].ravel()[: len(sequence)] ^ file[OTHER_LETTERS][0]).tobytes() == sequence
        assert file[OTHER_LETTERS].id.get_num_chunks() == (not set(sequence) <= set(b"ACGT"))


def test_records_for_training_are_the_records_without_what_nothing_reads(folder):
    store = Store(folder)
    for index in range(len(store)):
        whole, found = store[index], store.for_training(index)
        assert whole.others
        assert found.others == {}
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
            assert getattr(found, name) is None or getattr(found, name).dtype == getattr(whole, name).dtype


def test_a_record_for_training_has_no_letters_to_write(tmp_path):
    record = dataclasses.replace(synthetic_record(CONFIG, 0), sequence=b"ACGT" * 2052)
    write_records(tmp_path / "a.tfr", [record])
    convert_tfrecord_to_hdf5(tmp_path / "a.tfr", tmp_path / "target")
    with pytest.raises(ValueError, match="read for training, without the letters"):
        content_hash(Store(tmp_path / "target").for_training(0))


@pytest.mark.parametrize("table", ["atac", "peaks_center", "motif_activity", SEQUENCES, OTHER_LETTERS])
def test_a_flipped_bit_in_any_chunk_is_found_or_does_no_harm(tmp_path, table):
    """Harmless are the bits that say how hard was compressed, and those between the data and their checksum."""
    config = ExampleConfig.tiny()
    write_records(tmp_path / "a.tfr", [synthetic_record(config, 0)])
    convert_tfrecord_to_hdf5(tmp_path / "a.tfr", tmp_path / "target")
    path = tmp_path / "target" / "a.h5"
    with h5py.File(path) as file:
        place = file[table].id.get_chunk_info(0)
    sound, expected = path.read_bytes(), hashes(Store(tmp_path / "target"))
    harmless, said = 0, []
    for offset in {0, 1, place.size - 5, *np.random.default_rng(0).integers(place.size, size=60).tolist()}:
        data = bytearray(sound)
        data[place.byte_offset + offset] ^= 1 << offset % 8
        path.write_bytes(data)
        try:
            assert hashes(Store(tmp_path / "target")) == expected
            harmless += 1
        except DataError as error:
            said.append(str(error))
    assert all("a.h5: record 0: cannot be read" in text for text in said)
    assert harmless <= 4


def test_sequences_take_a_quarter_of_a_byte_for_each_base(tmp_path):
    letters = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 100_000).tobytes()
    record = dataclasses.replace(synthetic_record(CONFIG, 0), sequence=letters)
    write_records(tmp_path / "a.tfr", [record])
    convert_tfrecord_to_hdf5(tmp_path / "a.tfr", tmp_path / "target")
    with h5py.File(tmp_path / "target" / "a.h5") as file:
        assert file[SEQUENCES].id.get_storage_size() < 100_000 / 4 * 1.05


def test_one_example_is_one_chunk_of_each_array(folder):
    with h5py.File(folder / "train" / "a.h5") as file:
        for name in ("atac", "sequences"):
            assert file[name].chunks == (1, *file[name].shape[1:])
            assert file[name].compression == "gzip"  # any program that reads HDF5 reads it


def test_places_of_chunks_are_kept_from_the_beginning(folder):
    store = Store(folder)
    path, _ = store.locate(0)
    most, _, kept, _ = store._file(path).file.id.get_mdc_size()
    # As much as a file of 100,000 records has, of which HDF5 keeps two megabytes at first.
    assert most == store._file(path).file.id.get_mdc_config().max_size >= 16 * 2**20
    assert kept < 2**20


def test_a_record_that_is_not_there_is_an_error(folder):
    store = Store(folder)
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"record {index} of 12"):
            store[index]


def test_a_store_travels_to_other_processes(folder):
    store = Store(folder)
    expected = hashes(store)
    assert hashes(pickle.loads(pickle.dumps(store))) == expected  # noqa: S301  our own object
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(_hash, [(store, index) for index in range(12)]) == expected
    assert hashes(store) == expected


def _hash(job):
    store, index = job
    return content_hash(store[index])


def test_more_files_than_may_be_open_are_read(folder, monkeypatch):
    monkeypatch.setattr("torch_impl.data.store._OPEN_FILES", 1)
    assert hashes(Store(folder)) == hashes(Store(folder))
    store = Store(folder)
    assert [content_hash(store[index]) for index in (11, 0, 7)] == [hashes(store)[index] for index in (11, 0, 7)]


def test_what_travels_to_another_process_does_not_grow_with_the_records(tmp_path):
    sizes = []
    for count in (4, 64):
        write_records(tmp_path / f"{count:02d}.tfr", synthetic_records(CONFIG, count))
        convert_tfrecord_to_hdf5(tmp_path / f"{count:02d}.tfr", tmp_path / f"{count:02d}")
        sizes.append(len(pickle.dumps(Store(tmp_path / f"{count:02d}"))))
    assert sizes[0] == sizes[1]


def test_features_that_are_not_read_are_kept_whatever_their_names(tmp_path):
    others = {name: name.encode() for name in ("", ".", "image/encoded", "/", "a\0b", "Länge", "interval")}
    records = [dataclasses.replace(synthetic_record(CONFIG, seed), others=others) for seed in range(2)]
    write_records(tmp_path / "some.tfr", records)
    convert_tfrecord_to_hdf5(tmp_path / "some.tfr", tmp_path / "target")
    store = Store(tmp_path / "target")
    assert [store[index].others for index in range(2)] == [others, others]
    assert hashes(store) == [content_hash(record) for record in records]


def test_shared_sequences_are_never_read_from_a_file_that_is_not_what_it_was(tmp_path):
    """Two files converted at the same time both store what they share; a third refers to it; the first is redone."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name, seeds in {"a": (1, 2), "b": (1,), "c": (2,)}.items():
        write_records(source / f"{name}.tfr", [synthetic_record(CONFIG, seed, sequence_seed=seed) for seed in seeds])
    for name in ("a", "b"):
        convert_tfrecord_to_hdf5(source / f"{name}.tfr", tmp_path / name)
        for path in (tmp_path / name).glob(f"{name}.*"):
            target.mkdir(exist_ok=True)
            path.replace(target / path.name)
    convert_tfrecord_to_hdf5(source / "c.tfr", target)
    before = hashes(Store(target))
    for path in target.glob("a.*"):
        path.unlink()
    convert_tfrecord_to_hdf5(source / "a.tfr", target)
    store = Store(target)
    assert [content_hash(store[index]) for index in range(3)] == before[:3]
    with pytest.raises(DataError, match=r"c\.h5: shares sequences of .*a\.h5, which was converted again since"):
        store[3]
    # The way out that the message names.
    (target / "c.json").unlink()
    convert_tfrecord_to_hdf5(source, target)
    assert hashes(Store(target)) == before


def test_descriptions_are_read_once_however_many_files_follow(folder, monkeypatch):
    expected = places(folder)
    assert len(expected) == 2

    def forbidden(path):
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(Part, "read", forbidden)
    assert places(folder) == expected


def test_places_of_sequences_follow_what_is_finished_removed_and_converted_again(folder):
    before = dict(places(folder))
    source = folder.parent / "source"
    write_records(source / "new.tfr", [synthetic_record(CONFIG, 7)])
    convert_tfrecord_to_hdf5(source, folder)
    (new,) = places(folder).keys() - before.keys()
    assert places(folder)[new].path == folder / "new.h5"
    (folder / "new.json").unlink()
    assert places(folder) == before
    write_records(source / "new.tfr", [synthetic_record(CONFIG, 8)])
    convert_tfrecord_to_hdf5(source, folder)
    assert len(places(folder).keys() - before.keys()) == 1
    assert new not in places(folder)


def test_a_file_without_description_does_not_count(folder):
    (folder / "train" / "b.json").unlink()
    assert Store(folder / "train").shard_sizes == (4,)


def test_a_folder_without_records_a_missing_file_and_a_damaged_description_are_named(folder, tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        (path / "empty").mkdir(parents=True, exist_ok=True)
        with pytest.raises(DataError, match="holds no converted records"):
            Store(path / "empty")
    (folder / "train" / "b.h5").unlink()
    with pytest.raises(DataError, match=r"b\.h5: is missing"):
        Store(folder)
    other = "of another version of this format, .* and not 3; convert into another folder"
    texts = {
        "{": "damaged",
        "[]": "damaged",
        '{"schema": 3}': "damaged",
        '{"schema": 99}': other,
        '{"schema": 2}': other,
    }
    for text, message in texts.items():
        (folder / "train" / "b.json").write_text(text)
        with pytest.raises(DataError, match=rf"b\.json: {message}"):
            Store(folder)


def test_a_damaged_file_is_named_with_the_record(folder):
    path = folder / "train" / "a.h5"
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        place = file["atac"].id.get_chunk_info(2)
    data[place.byte_offset + 10 : place.byte_offset + 40] = b"\xff" * 30
    path.write_bytes(data)
    store = Store(folder)
    store[1]
    with pytest.raises(DataError, match=r"a\.h5: record 2: cannot be read"):
        store[2]


@pytest.mark.parametrize("name", [SEQUENCE_FILE, SEQUENCE_ROW, "motif_activity", HASHES])
def test_a_flipped_bit_in_a_small_table_does_not_give_a_record_another_sequence(folder, name):
    path = folder / "train" / "a.h5"
    with h5py.File(path) as file:
        place = file[name].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[place.byte_offset] ^= 1
    path.write_bytes(data)
    if name == HASHES:
        # Nothing reads them back: what a record is held against lies in the description.
        assert Store(folder)[0].sequence
        with h5py.File(path) as file, pytest.raises(OSError, match="filter returned failure"):
            file[name][0]
    else:
        with pytest.raises(DataError, match=r"a\.h5: cannot be read"):
            Store(folder)[0]


def test_a_file_is_that_of_its_description(folder):
    one, other, away = (folder / "train" / name for name in ("a.h5", "b.h5", "away"))
    for path, target in ((one, away), (other, one), (away, other)):
        path.rename(target)
    for index in (0, 4):
        with pytest.raises(DataError, match=r"is not the file of 4 records .*json describes: the records are others"):
            Store(folder / "train").for_training(index)
    for path, target in ((one, away), (other, one), (away, other)):
        path.rename(target)
    assert len(hashes(Store(folder))) == 12
    with h5py.File(one, "r+") as file:
        file["peaks_center"].resize(3, axis=0)
    with pytest.raises(DataError, match=r"a\.h5: is not the file of 4 records .*: peaks_center has 3 rows"):
        Store(folder / "train").for_training(0)


@pytest.mark.parametrize("damage", ["truncated", "no table", "no group", "no attribute", "group", "name"])
def test_a_file_that_cannot_be_opened_is_named(folder, damage):
    path = folder / "train" / "a.h5"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        with h5py.File(path, "r+") as file:
            if damage == "no table":
                del file[SEQUENCE_ROW]
            elif damage == "no group":
                del file["others"]
            elif damage == "no attribute":
                del file.attrs["files"]
            elif damage == "group":
                file.create_group("strange")
            else:
                file["others/0"].attrs["name"] = 3
    with pytest.raises(DataError, match=r"a\.h5: .*cannot be read"):
        Store(folder)[0]


def test_a_flipped_bit_beside_the_arrays_does_not_put_a_record_elsewhere(tmp_path):
    others = {"interval": _tensor(np.array(1000, np.int32)), "cell_type": b"somewhere"}
    write_records(tmp_path / "a.tfr", [dataclasses.replace(synthetic_record(CONFIG, 0), others=others)])
    convert_tfrecord_to_hdf5(tmp_path / "a.tfr", tmp_path / "target")
    path = tmp_path / "target" / "a.h5"
    store = Store(tmp_path / "target")
    assert interval_number(store.others(0)) == 1000
    store.close()
    data = bytearray(path.read_bytes())
    number = np.int32(1000).tobytes()
    place = data.index(others["interval"]) + others["interval"].index(number)
    data[place] ^= 1
    path.write_bytes(data)
    store = Store(tmp_path / "target")
    for read in (store.others, store.__getitem__):
        with pytest.raises(DataError, match=r"a\.h5: record 0: cannot be read: .* checksum: cell_type, interval"):
            read(0)
    store.close()
    data[place] ^= 1
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        del file[OTHERS_CHECKSUM]
    with pytest.raises(DataError, match=r"a\.h5: was converted by an unfinished version"):
        Store(tmp_path / "target").for_training(0)


def test_records_of_one_file_have_the_same_features_shapes_and_types(tmp_path):
    writer = Writer(tmp_path / "some.h5", {})
    writer.append(synthetic_record(CONFIG, 0))
    longer = ExampleConfig.tiny(num_motifs=9)
    for other, message in (
        (synthetic_record(longer, 1), r"motif_activity is float16 \(9,\), in the first record float16 \(8,\)"),
        (synthetic_record(ExampleConfig.tiny(num_motifs=8, finetuning=True), 1), "atac is float32"),
    ):
        with pytest.raises(DataError, match=message):
            writer.append(other)
    writer.close()


def test_a_description_is_read_as_it_was_written(folder):
    path = folder / "train" / "a.json"
    assert Part.read(path).to_json() + "\n" == path.read_text()
    assert (folder / MANIFEST).is_file()


def test_reading_costs_the_same_in_a_long_file(tmp_path):
    """Chunks that are touched for one record, not seconds: those of a file of 4 and of one of 64."""
    touched = []
    for count in (4, 64):
        write_records(tmp_path / f"{count}.tfr", synthetic_records(CONFIG, count))
        convert_tfrecord_to_hdf5(tmp_path / f"{count}.tfr", tmp_path / str(count))
        with h5py.File(tmp_path / str(count) / f"{count}.h5") as file:
            touched.append({name: np.prod(file[name].chunks) for name in ("atac", "sequences", "peaks_center")})
            assert file["atac"].id.get_num_chunks() == count
    assert touched[0] == touched[1]
