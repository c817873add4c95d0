"""TFRecord files: what TensorFlow writes is read, what is written TensorFlow reads, and every damage is named."""

import dataclasses
import hashlib
import os
import struct
import zlib

import numpy as np
import pytest

from tests.records import serialized_example, synthetic_record, synthetic_records
from torch_impl.data import tfrecord
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import ARRAYS, DataError, Record
from torch_impl.data.tfrecord import (
    _Example,
    _TensorProto,
    content_hash,
    decode,
    encode,
    feature_bytes,
    feature_hashes,
    find_compression,
    first_letters,
    frame,
    read_frames,
    read_records,
    write_records,
)

CONFIG = ExampleConfig.tiny(num_motifs=8, finetuning=True)
FILES = ("pretrain_tr", "pretrain_val", "finetune_tr", "finetune_val")


@pytest.fixture
def records() -> list[Record]:
    return list(synthetic_records(CONFIG, 3))


def same(one: Record, other: Record) -> bool:
    """Every feature, type and shape."""
    return feature_bytes(one) == feature_bytes(other)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["ZLIB", "GZIP", "NONE"])
def test_what_is_written_is_read_whatever_the_compression(tmp_path, records, compression):
    path = tmp_path / "some.tfr"
    assert write_records(path, records, compression) == 3
    assert find_compression(path.read_bytes()[:12]) == compression
    found = list(read_records(path))
    assert all(same(one, other) for one, other in zip(records, found, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_the_original_files_are_read_as_tensorflow_reads_them(tensorflow, goldens, name):
    import tensorflow as tf

    path = goldens / "data" / f"{name}.tfr"
    raw = [item.numpy() for item in tf.data.TFRecordDataset(str(path), compression_type="ZLIB")]
    found = list(read_records(path))
    for serialized, record in zip(raw, found, strict=True):
        features = tf.train.Example.FromString(serialized).features.feature
        assert feature_bytes(record) == {key: value.bytes_list.value[0] for key, value in features.items()}
        for feature in ARRAYS:
            array = getattr(record, feature)
            if array is not None:
                parsed = tf.io.parse_tensor(features[feature].bytes_list.value[0], array.dtype).numpy()
                assert parsed.shape == array.shape
                assert parsed.tobytes() == array.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_tensorflow_reads_what_is_written(tensorflow, goldens, tmp_path, name):
    import tensorflow as tf

    source, path = goldens / "data" / f"{name}.tfr", tmp_path / "again.tfr"
    write_records(path, read_records(source))
    both = (tf.data.TFRecordDataset(str(each), compression_type="ZLIB") for each in (source, path))
    for one, other in zip(*both, strict=True):
        assert tf.train.Example.FromString(one.numpy()) == tf.train.Example.FromString(other.numpy())


def test_an_empty_file_and_a_file_of_something_else_are_named(tmp_path):
    path = tmp_path / "some.tfr"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"some\.tfr: the file is empty"):
        list(read_records(path))
    path.write_bytes(b"neither frames nor compressed")
    with pytest.raises(DataError, match="not a TFRecord file"):
        list(read_records(path))
    with pytest.raises(DataError, match=r"absent\.tfr: cannot be read: No such file"):
        list(read_records(tmp_path / "absent.tfr"))


@pytest.mark.parametrize("compression", ["ZLIB", "GZIP", "NONE"])
def test_a_file_cut_anywhere_is_truncated_or_ends_between_two_frames(tmp_path, records, compression):
    whole, cut = tmp_path / "whole.tfr", tmp_path / "cut.tfr"
    write_records(whole, records, compression)
    data = whole.read_bytes()
    ends = {0}
    for record in records:
        ends.add(max(ends) + len(frame(encode(record))))
    generator = np.random.default_rng(0)
    for length in {1, 7, 11, 12, 13, len(data) - 1, *generator.integers(1, len(data), 20).tolist()}:
        cut.write_bytes(data[:length])
        if compression == "NONE" and length in ends:
            continue
        with pytest.raises(DataError, match=r"truncated|not a TFRecord file"):
            list(read_records(cut))


def fields(record: Record) -> dict[str, int]:
    """Where each part of the first frame begins."""
    length = len(encode(record))
    return {"length": 0, "checksum of the length": 8, "data": 12, "checksum of the data": 12 + length}


@pytest.mark.parametrize("part", ["length", "checksum of the length", "data", "checksum of the data"])
def test_a_flipped_bit_in_any_byte_of_a_frame_is_found(tmp_path, records, part):
    path = tmp_path / "flipped.tfr"
    write_records(path, records, "NONE")
    data = bytearray(path.read_bytes())
    start = fields(records[0])[part]
    width = {"length": 8, "data": len(encode(records[0]))}.get(part, 4)
    offsets = range(width) if width < 10 else np.random.default_rng(0).integers(width, size=40).tolist()
    for offset in offsets:
        damaged = bytearray(data)
        damaged[start + offset] ^= 1 << (offset % 8)
        path.write_bytes(damaged)
        # Told that it is not compressed; by itself a damaged first length looks like another kind of file.
        frames = list(read_frames(path, "NONE"))
        assert frames[0].payload is None
        assert "checksum of the length" in frames[0].error if "length" in part else "of the data" in frames[0].error
        # What follows damaged data can be read, what follows a damaged length cannot.
        assert len(frames) == (1 if "length" in part else 3)
        assert frames[-1].last == ("length" in part)


def test_a_flipped_bit_anywhere_in_a_compressed_file_is_found(tmp_path, records):
    path = tmp_path / "flipped.tfr"
    write_records(path, records)
    data = path.read_bytes()
    expected = [content_hash(record) for record in records]
    for position in np.random.default_rng(1).integers(len(data), size=60).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            found = [content_hash(record) for record in read_records(path)]
        except DataError:
            continue
        # A bit of the header of the compression that says how, not what.
        assert found == expected


def test_a_frame_and_its_error_say_where_it_begins(tmp_path, records):
    path = tmp_path / "some.tfr"
    write_records(path, records)
    lengths = [len(frame(encode(record))) for record in records]
    assert [found.offset for found in read_frames(path)] == [0, lengths[0], lengths[0] + lengths[1]]
    data = bytearray(zlib.decompress(path.read_bytes()))
    data[lengths[0] + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"record 1: .* begins at byte {lengths[0]} of"):
        list(read_records(path))


def test_bytes_after_the_end_of_a_compressed_file_are_found(tmp_path, records):
    path = tmp_path / "longer.tfr"
    write_records(path, records)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match="record 3: bytes follow the end"):
        list(read_records(path))


def test_a_length_that_is_impossible_is_found(tmp_path):
    length = struct.pack("<Q", 1 << 40)
    path = tmp_path / "huge.tfr"
    path.write_bytes(length + frame(b"")[8:12] + b"\0" * 10)
    data = bytearray(frame(b""))
    masked = frame(length)[-4:]
    path.write_bytes(length + masked + bytes(data))
    with pytest.raises(DataError, match="a length of 1099511627776 bytes is impossible"):
        list(read_records(path))


def test_memory_holds_one_record_at_a_time(tmp_path):
    path = tmp_path / "many.tfr"
    write_records(path, synthetic_records(CONFIG, 3), "NONE")
    blocks: list[int] = []
    frames = read_frames(path, seen=lambda block: blocks.append(len(block)))
    next(frames)
    assert max(blocks) <= 1 << 20


# --- one record ------------------------------------------------------------------------------------------------------


def test_a_missing_feature_is_named(records):
    for name in ("sequence", "atac", "peaks_center", "motif_activity"):
        features = feature_bytes(records[0])
        del features[name]
        with pytest.raises(DataError, match=f"has no {name}"):
            decode(serialized_example(**features))


def test_a_feature_of_another_type_is_named(records):
    wrong = {"atac": np.int32, "motif_activity": np.float64, "rna": np.int32, "peaks_center": np.float32}
    wrong |= {"tss_tokens": np.int64, "processed_gene_token": np.float32, "cell_encoding": np.uint8}
    for name, dtype in wrong.items():
        changed = dataclasses.replace(records[0], **{name: getattr(records[0], name).astype(dtype)})
        with pytest.raises(DataError, match=f"{name} is of {np.dtype(dtype).name}, not "):
            decode(encode(changed))


def test_a_feature_of_another_shape_is_named(records):
    for name in ("atac", "peaks_center", "motif_activity", "rna"):
        changed = dataclasses.replace(records[0], **{name: getattr(records[0], name)[None]})
        with pytest.raises(DataError, match=f"{name} has shape"):
            decode(encode(changed))
    wide = dataclasses.replace(records[0], atac=records[0].atac.reshape(-1, 2))
    with pytest.raises(DataError, match=r"atac has shape \(1024, 2\), not \(n, 1\)"):
        decode(encode(wide))


def test_a_tensor_with_too_few_or_too_many_bytes_is_named(records):
    for change in (b"", b"\0" * 4):
        message = _TensorProto.FromString(feature_bytes(records[0])["atac"])
        message.tensor_content = message.tensor_content[: -4 if not change else None] + change
        features = feature_bytes(records[0]) | {"atac": message.SerializeToString()}
        with pytest.raises(DataError, match=r"atac of shape .* bytes, not"):
            decode(serialized_example(**features))


@pytest.mark.parametrize("size", [1 << 30, 1 << 44, 1 << 62])
def test_a_shape_larger_than_any_message_is_named_before_memory_is_asked_for(records, size):
    message = _TensorProto(dtype=19)
    message.tensor_shape.dim.add(size=size)
    with pytest.raises(DataError, match=rf"motif_activity has shape \({size},\), more than a message can hold"):
        decode(serialized_example(**(feature_bytes(records[0]) | {"motif_activity": message.SerializeToString()})))


@pytest.mark.parametrize("value", [-1, 1 << 16])
def test_a_listed_half_that_is_no_16_bits_is_named_and_not_cut_to_them(records, value):
    message = _TensorProto(dtype=19, half_val=[0x3C00, value])
    message.tensor_shape.dim.add(size=2)
    with pytest.raises(DataError, match=f"motif_activity lists {value}, which are no 16 bits"):
        decode(serialized_example(**(feature_bytes(records[0]) | {"motif_activity": message.SerializeToString()})))


def test_what_is_no_example_and_no_tensor_is_named(records):
    with pytest.raises(DataError, match=r"not a tf\.train\.Example"):
        decode(b"\xff\xff\xff")
    with pytest.raises(DataError, match="rna is not a tensor"):
        decode(serialized_example(**(feature_bytes(records[0]) | {"rna": b"\xff\xff"})))


def test_a_feature_that_occurs_twice_or_holds_several_strings_is_named(records):
    features = feature_bytes(records[0])
    with pytest.raises(DataError, match="sequence holds 2 byte strings, not 1"):
        decode(serialized_example(**(features | {"sequence": [b"A", b"C"]})))
    twice = _Example.FromString(serialized_example(**features))
    twice.features.feature.add().CopyFrom(twice.features.feature[1])
    with pytest.raises(DataError, match="atac occurs twice"):
        decode(twice.SerializeToString())


@pytest.mark.parametrize(
    ("dtype", "code", "field"), [("float32", 1, "float_val"), ("float16", 19, "half_val"), ("int32", 3, "int_val")]
)
def test_values_listed_by_type_are_read_and_the_last_repeats(records, dtype, code, field):
    name = "peaks_center" if dtype == "int32" else "motif_activity"
    numbers = np.array([1, 2], dtype=dtype)
    listed = numbers.view(np.uint16).tolist() if dtype == "float16" else numbers.tolist()
    message = _TensorProto(dtype=code, **{field: listed})
    message.tensor_shape.dim.add(size=4)
    found = decode(serialized_example(**(feature_bytes(records[0]) | {name: message.SerializeToString()})))
    array = getattr(found, name)
    assert array.dtype == dtype
    assert array.tolist() == [1, 2, 2, 2]
    message.tensor_shape.dim[0].size = 1
    with pytest.raises(DataError, match="lists 2 values for 1"):
        decode(serialized_example(**(feature_bytes(records[0]) | {name: message.SerializeToString()})))


def test_features_are_hashed_as_they_are_serialised(records):
    record = records[0]
    extremes = {"motif_activity": np.zeros(0, np.float16), "peaks_center": np.arange(8, dtype=np.int32)[::2]}
    for each in (*records, dataclasses.replace(record, **extremes), synthetic_record(ExampleConfig.tiny(), 0)):
        expected = {name: hashlib.sha256(value).digest() for name, value in feature_bytes(each).items()}
        assert feature_hashes(each) == expected
        assert list(feature_hashes(each)) == list(expected)


def test_the_content_hash_depends_on_every_feature_and_not_on_their_order(records):
    record = records[0]
    shuffled = serialized_example(**dict(reversed(feature_bytes(record).items())))
    assert content_hash(decode(shuffled)) == content_hash(record)
    hashes = {content_hash(record)}
    for name, value in feature_bytes(record).items():
        changed = feature_bytes(record) | {name: value[:-1] + bytes([value[-1] ^ 1])}
        hashes.add(content_hash(decode(serialized_example(**changed))))
    assert len(hashes) == 1 + len(feature_bytes(record))


def test_records_of_pretraining_have_float16_and_keep_it(tmp_path):
    record = synthetic_record(ExampleConfig.tiny(num_motifs=8), 0)
    path = tmp_path / "some.tfr"
    write_records(path, [record])
    (found,) = read_records(path)
    assert found.atac.dtype == np.float16
    assert same(found, record)
    assert zlib.decompress(path.read_bytes())[12:].startswith(encode(record)[:64])


@pytest.mark.parametrize("compression", ["ZLIB", "GZIP", "NONE"])
def test_how_a_file_begins_is_told_by_its_first_sequence(tmp_path, compression, monkeypatch):
    monkeypatch.setattr(tfrecord, "_SOME", 500)
    begins = []
    for seed, sequence in ((0, 5), (1, 5), (2, 6)):
        path = tmp_path / f"{seed}.tfr"
        write_records(path, [synthetic_record(CONFIG, seed, sequence_seed=sequence)], compression)
        os.truncate(path, path.stat().st_size // 2)  # no more is read than that
        begins.append(first_letters(path))
    assert begins[0] == begins[1] != begins[2]
    assert all(letters is not None and len(letters) == 1024 for letters in begins)


def test_a_file_without_sequence_begins_like_no_other(tmp_path, monkeypatch):
    (tmp_path / "some.tfr").write_bytes(frame(b"no example"))
    assert first_letters(tmp_path / "some.tfr") is None
    write_records(tmp_path / "some.tfr", [synthetic_record(CONFIG, 0)])
    monkeypatch.setattr(tfrecord, "_FAR", 0)
    assert first_letters(tmp_path / "some.tfr") is None
    (tmp_path / "some.tfr").write_bytes(b"")
    with pytest.raises(DataError, match=r"some\.tfr: the file is empty"):
        first_letters(tmp_path / "some.tfr")
    with pytest.raises(DataError, match=r"other\.tfr: cannot be read: No such file"):
        first_letters(tmp_path / "other.tfr")
