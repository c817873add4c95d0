import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.unit.weights.samples import CHECKPOINTS, prefix
from weights import messages
from weights.errors import UnsupportedCheckpointError
from weights.sorted_table import read_table, write_table
from weights.tensor_bundle import DTYPES, PIECE_BYTES, TensorBundle, index_path, shard_path
from weights.tensor_bundle_writer import write_bundle


def assert_same(ours: np.ndarray, theirs: object) -> None:
    if isinstance(theirs, bytes):
        assert ours.shape == ()
        assert ours.item() == theirs
        return
    assert isinstance(theirs, np.ndarray | np.generic)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tolist() == theirs.tolist() if ours.dtype == object else ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_value_is_the_one_that_tensorflow_reads(tensorflow, checkpoint):
    theirs = tensorflow.train.load_checkpoint(str(prefix(checkpoint)))
    ours = TensorBundle(prefix(checkpoint))
    ours.verify()
    assert set(ours) == set(theirs.get_variable_to_shape_map())
    for key in ours:
        assert_same(ours[key], theirs.get_tensor(key))


def everything() -> dict[str, np.ndarray]:
    """A tensor of every dtype, and awkward shapes: scalar, empty, longer than one piece."""
    generator = np.random.default_rng(1)
    found: dict[str, np.ndarray] = {}
    for dtype in DTYPES.values():
        if dtype.kind == "O":
            continue
        bits = generator.integers(0, 2, (3, 5)) if dtype.kind == "b" else generator.integers(-9, 99, (3, 5))
        found[f"tensor/{dtype.name}"] = bits.astype(dtype)
    found["scalar"] = np.array(2.5, np.float32)
    found["empty"] = np.zeros((0, 4), np.float32)
    found["long"] = generator.random(PIECE_BYTES // 4 + 3).astype(np.float32)
    found["strings"] = np.array([[b"", b"a"], ["é".encode(), b"x" * 300]], object)
    found["text"] = np.array(b"one \0 text", object)
    return found


def test_every_data_type_that_tensorflow_writes_is_read(tensorflow, tmp_path):
    expected = everything()
    with tensorflow.device("CPU:0"):
        tensorflow.raw_ops.SaveV2(
            prefix=str(tmp_path / "all"),
            tensor_names=list(expected),
            shape_and_slices=[""] * len(expected),
            tensors=[tensorflow.constant(array) for array in expected.values()],
        )
    bundle = TensorBundle(tmp_path / "all")
    bundle.verify()
    assert set(bundle) == set(expected)
    for key, array in expected.items():
        assert_same(bundle[key], array)


@pytest.mark.parametrize("tensors_per_shard", [None, 1, 7])
def test_tensorflow_reads_every_data_type_that_we_write(tensorflow, tmp_path, tensors_per_shard):
    expected = everything()
    write_bundle(tmp_path / "all", expected.items(), tensors_per_shard=tensors_per_shard, entries_per_block=5)
    theirs = tensorflow.train.load_checkpoint(str(tmp_path / "all"))
    ours = TensorBundle(tmp_path / "all")
    ours.verify()
    assert len(ours.paths) == (1 if tensors_per_shard is None else -(-len(expected) // tensors_per_shard))
    assert set(theirs.get_variable_to_shape_map()) == set(ours) == set(expected)
    for key, array in expected.items():
        assert_same(ours[key], array)
        if array.dtype == ml_dtypes.bfloat16:  # its reader hands out another class of the same name
            assert theirs.get_tensor(key).tobytes() == array.tobytes()
        else:
            assert_same(np.asarray(theirs.get_tensor(key)) if array.shape else array, array)


def test_shards_merged_by_tensorflow_are_read(tensorflow, tmp_path):
    parts = [{"a": np.arange(5.0), "c": np.ones((2, 3), np.int32)}, {"b": np.float32(1).reshape(())}]
    for number, part in enumerate(parts):
        tensorflow.raw_ops.SaveV2(
            prefix=str(tmp_path / f"part-{number}"),
            tensor_names=list(part),
            shape_and_slices=[""] * len(part),
            tensors=[tensorflow.constant(array) for array in part.values()],
        )
    tensorflow.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(tmp_path / "part-0"), str(tmp_path / "part-1")],
        destination_prefix=str(tmp_path / "merged"),
    )
    bundle = TensorBundle(tmp_path / "merged")
    bundle.verify()
    assert len(bundle.paths) == 2
    for part in parts:
        for key, array in part.items():
            assert_same(bundle[key], array)


def test_a_partitioned_variable_is_refused_by_name(tensorflow, tmp_path):
    tensorflow.raw_ops.SaveV2(
        prefix=str(tmp_path / "sliced"),
        tensor_names=["whole/part"],
        shape_and_slices=["4 2 0,2:0,2"],
        tensors=[tensorflow.ones((2, 2))],
    )
    with pytest.raises(UnsupportedCheckpointError, match=r"whole/part is a partitioned variable"):
        TensorBundle(tmp_path / "sliced")


def test_a_big_endian_bundle_is_read_in_native_order(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / "big"
    # The bytes of a big-endian machine: the numbers swapped, the header saying so.
    write_bundle(path, [("a", array.byteswap())])
    table = read_table(index_path(path).read_bytes())
    header = messages.BundleHeader.FromString(table[b""])
    header.endianness = 1
    index_path(path).write_bytes(write_table({**table, b"": header.SerializeToString()}.items()))
    assert_same(TensorBundle(path)["a"], array)


def test_an_unknown_data_type_is_refused_by_name(tmp_path):
    write_bundle(tmp_path / "odd", [("some/variant", np.zeros(2, np.float32))])
    table = read_table(index_path(tmp_path / "odd").read_bytes())
    entry = messages.BundleEntry.FromString(table[b"some/variant"])
    entry.dtype = 21
    index_path(tmp_path / "odd").write_bytes(write_table({**table, b"some/variant": entry.SerializeToString()}.items()))
    with pytest.raises(UnsupportedCheckpointError, match="some/variant"):
        TensorBundle(tmp_path / "odd")


@given(
    array=arrays.arrays(
        dtype=st.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
        shape=arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    transposed=st.booleans(),
)
def test_any_array_reads_back(tmp_path_factory, array, transposed):
    path = tmp_path_factory.mktemp("bundle") / "one"
    array = array.T if transposed else array
    write_bundle(path, [("a", array)])
    assert_same(TensorBundle(path)["a"], np.asarray(array, order="C"))


def test_a_failed_write_closes_its_file_and_a_bad_dtype_is_refused(tmp_path):
    with pytest.raises(TypeError, match="datetime64"):
        write_bundle(tmp_path / "bad", [("a", np.zeros(1, "datetime64[s]"))])
    with pytest.raises(ValueError, match="twice"):
        write_bundle(tmp_path / "twice", [("a", np.zeros(1)), ("a", np.zeros(1))])


def test_visitors_see_exactly_the_stored_bytes_in_order():
    bundle = TensorBundle(prefix("P1/ckpt_before"))
    whole = shard_path(prefix("P1/ckpt_before"), 0, 1).read_bytes()
    for key in bundle:
        info, seen = bundle.info(key), []
        bundle.visit(key, lambda piece, seen=seen: seen.append(piece.tobytes()))
        assert b"".join(seen) == whole[info.offset : info.offset + info.size]
