"""Every kind of damage gives one CheckpointError that names what is damaged, and nothing changes or is written."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.unit.weights.samples import GOLDENS, build, copied, fingerprint, prefix
from weights import CheckpointError, read_checkpoint, transplant
from weights.checkpoint import open_checkpoint
from weights.command import transplant_command
from weights.errors import CorruptCheckpointError, MissingShardError, NotACheckpointError
from weights.object_graph import GRAPH_KEY, SUFFIX
from weights.tensor_bundle import TensorBundle, index_path, shard_path
from weights.tensor_bundle_writer import write_bundle

CHECKPOINT = "P1/ckpt_after_poisson"
QUERY = f"model/performer/layers/1/self_attention/query_dense_layer/kernel{SUFFIX}"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copied(CHECKPOINT, tmp_path)


def flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def assert_refused(path: Path, tmp_path: Path, kind: type[CheckpointError], *named: str) -> None:
    """Reading, transplanting and the command all refuse; the model is as before and no output appears."""
    model = build(CHECKPOINT)
    before = fingerprint(model)
    for action in (read_checkpoint, lambda source: transplant(source, model, constants="philox")):
        with pytest.raises(kind) as caught:
            action(path)
        assert all(name in str(caught.value) for name in named), str(caught.value)
        assert fingerprint(model) == before
    out = tmp_path / "out"
    with pytest.raises(kind):
        transplant_command(str(path), str(out), constants="philox", seed=21)
    assert not out.exists()
    assert not list(tmp_path.glob(".incomplete*"))


def tensor_at(copy: Path, key: str) -> tuple[Path, int, int]:
    info = TensorBundle(copy).info(key)
    return shard_path(copy, 0, 1), info.offset, info.size


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "key",
    [
        QUERY,
        f"model/stem_conv/bias{SUFFIX}",
        f"optimizer/_variables/17{SUFFIX}",
        f"best_val_loss{SUFFIX}",
        GRAPH_KEY,
    ],
)
def test_a_flipped_bit_in_a_shard_names_the_tensor(copy, tmp_path, key, where):
    shard, offset, size = tensor_at(copy, key)
    flip(shard, offset + round(where * (size - 1)), 0x10)
    assert_refused(copy, tmp_path, CorruptCheckpointError, key)


def test_several_damaged_tensors_are_all_named(copy, tmp_path):
    keys = [QUERY, f"model/stem_conv/bias{SUFFIX}"]
    for key in keys:
        shard, offset, _ = tensor_at(copy, key)
        flip(shard, offset)
    assert_refused(copy, tmp_path, CorruptCheckpointError, *keys)


def test_a_truncated_shard_names_what_is_lost(copy, tmp_path):
    shard, offset, size = tensor_at(copy, f"step_to_start{SUFFIX}")
    shard.write_bytes(shard.read_bytes()[: offset + size - 1])
    assert_refused(copy, tmp_path, CorruptCheckpointError, "truncated", "step_to_start")


def test_an_empty_shard_lists_every_tensor(copy, tmp_path):
    shard_path(copy, 0, 1).write_bytes(b"")
    assert_refused(copy, tmp_path, CorruptCheckpointError, "(294)", QUERY)


def test_bytes_behind_the_last_tensor_are_refused(copy, tmp_path):
    with shard_path(copy, 0, 1).open("ab") as file:
        file.write(b"\0")
    assert_refused(copy, tmp_path, CorruptCheckpointError, "1 bytes that belong to no tensor")


def test_a_missing_shard_is_named(copy, tmp_path):
    shard_path(copy, 0, 1).unlink()
    assert_refused(copy, tmp_path, MissingShardError, "missing shard", "data-00000-of-00001")


def test_a_missing_one_of_several_shards_is_named(tmp_path):
    split = tmp_path / "split"
    write_bundle(split, read_checkpoint(prefix(CHECKPOINT)).items(), tensors_per_shard=100)
    read_checkpoint(split)
    shard_path(split, 1, 3).unlink()
    assert_refused(split, tmp_path, MissingShardError, "data-00001-of-00003")


def test_swapped_shards_are_found(tmp_path):
    split = tmp_path / "split"
    write_bundle(split, [("a", np.zeros(4)), ("b", np.ones(4))], tensors_per_shard=1)
    first, second = shard_path(split, 0, 2), shard_path(split, 1, 2)
    first.rename(tmp_path / "other")
    second.rename(first)
    (tmp_path / "other").rename(second)
    with pytest.raises(CorruptCheckpointError, match=r"(?s)a: .*b: "):
        read_checkpoint(split)


@pytest.mark.parametrize("position", [*range(0, 17_879, 1789), 17_878, 17_870, 17_850, 17_835])
def test_a_flipped_bit_anywhere_in_the_index_is_found(copy, position):
    flip(index_path(copy), position, 0x04)
    with pytest.raises(CheckpointError, match="index"):
        read_checkpoint(copy)


@pytest.mark.parametrize("length", [0, 1, 47, 48, 5_000, 17_878])
def test_a_truncated_index_is_found(copy, tmp_path, length):
    index = index_path(copy)
    index.write_bytes(index.read_bytes()[:length])
    assert_refused(copy, tmp_path, NotACheckpointError, "truncated", index.name)


def test_another_files_magic_is_no_checkpoint(copy, tmp_path):
    index = index_path(copy)
    index.write_bytes(b"PK\3\4" + bytes(5000))
    assert_refused(copy, tmp_path, NotACheckpointError, "another kind of file")


def test_a_pickle_is_refused_and_not_run(tmp_path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for name in ("model.pt", "model.h5", "ckpt.index"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload()))
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_index_and_shard_of_different_checkpoints_do_not_mix(copy, tmp_path):
    other = shard_path(prefix("P1/ckpt_after_poisson_multinomial"), 0, 1)
    shutil.copy(other, shard_path(copy, 0, 1))
    assert_refused(copy, tmp_path, CorruptCheckpointError, QUERY)


def test_a_tensor_that_is_damaged_later_is_found_on_access(copy):
    checkpoint = read_checkpoint(copy)
    shard, offset, size = tensor_at(copy, QUERY)
    with shard.open("r+b") as file:
        file.seek(offset + size - 1)
        file.write(b"\x99")
    with pytest.raises(CorruptCheckpointError, match="query_dense_layer"):
        checkpoint[QUERY]
    with pytest.raises(CorruptCheckpointError, match="query_dense_layer"):
        transplant(open_checkpoint(copy), build(CHECKPOINT), constants="philox")


def test_the_recorded_checkpoints_themselves_are_sound():
    assert sorted(GOLDENS.glob("P*/ckpt_*/ckpt-1.index"))
    for index in GOLDENS.glob("P*/ckpt_*/ckpt-1.index"):
        read_checkpoint(index)
