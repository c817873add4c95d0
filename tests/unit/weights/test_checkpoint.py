from pathlib import Path

import numpy as np
import pytest

from tests.unit.weights.samples import CHECKPOINTS, GOLDENS, copied, prefix
from weights import CheckpointError, read_checkpoint
from weights.errors import MissingShardError, NotACheckpointError
from weights.object_graph import GRAPH_KEY
from weights.tensor_bundle import index_path, shard_path
from weights.tensor_bundle_writer import write_bundle


def write(folder: Path, name: str, value: float) -> None:
    folder.mkdir(exist_ok=True)
    write_bundle(folder / name, [("a", np.array(value))])


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_checkpoint_is_found_by_prefix_directory_and_index(checkpoint):
    by_prefix = read_checkpoint(prefix(checkpoint))
    for path in (str(prefix(checkpoint)), prefix(checkpoint).parent, index_path(prefix(checkpoint))):
        other = read_checkpoint(path)
        assert list(other) == list(by_prefix)
        assert all(other[key].tobytes() == by_prefix[key].tobytes() for key in other if key != GRAPH_KEY)


def test_a_directory_of_several_gives_the_one_that_its_state_names(tmp_path):
    write(tmp_path, "ckpt-9", 9)
    write(tmp_path, "ckpt-10", 10)
    state = (
        'model_checkpoint_path: "ckpt-9"\nall_model_checkpoint_paths: "ckpt-10"\nall_model_checkpoint_paths: "ckpt-9"'
    )
    (tmp_path / "checkpoint").write_text(state)
    assert read_checkpoint(tmp_path)["a"] == 9


def test_a_directory_without_state_gives_its_only_checkpoint_and_else_asks(tmp_path):
    write(tmp_path, "step.100", 1)
    assert read_checkpoint(tmp_path)["a"] == 1
    write(tmp_path, "step.200", 2)
    with pytest.raises(NotACheckpointError, match=r"step\.100, step\.200"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path / "step.200")["a"] == 2


def test_a_directory_that_was_moved_is_read_where_it_lies(tmp_path):
    write(tmp_path, "ckpt-1", 1)
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/long/gone/ckpt-1"')
    assert read_checkpoint(tmp_path)["a"] == 1


@pytest.mark.parametrize("state", ["", "model_checkpoint_path: 3", "\0\1\2", 'model_checkpoint_path: "ckpt-7"'])
def test_a_state_file_that_leads_nowhere_is_refused(tmp_path, state):
    write(tmp_path, "ckpt-1", 1)
    (tmp_path / "checkpoint").write_text(state)
    with pytest.raises(NotACheckpointError):
        read_checkpoint(tmp_path)


def test_what_is_no_checkpoint_gets_one_clear_error(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "fake.h5").write_text("text")
    for name in ("folder", "text.txt", "fake.h5", "absent", "absent/ckpt-1", "absent.index", "absent.h5"):
        with pytest.raises(NotACheckpointError, match=name.partition("/")[0]):
            read_checkpoint(tmp_path / name)


def test_an_index_that_is_a_directory_is_refused(tmp_path):
    (tmp_path / "ckpt-1.index").mkdir()
    with pytest.raises(CheckpointError, match="ckpt-1"):
        read_checkpoint(tmp_path / "ckpt-1")


def test_a_lone_shard_or_a_lone_index_is_refused(tmp_path):
    path = copied("P1/ckpt_before", tmp_path)
    shard = shard_path(path, 0, 1)
    with pytest.raises(NotACheckpointError, match="is no checkpoint"):
        read_checkpoint(shard)
    shard.unlink()
    with pytest.raises(MissingShardError):
        read_checkpoint(path)


def test_reading_holds_no_tensor_and_follows_no_rename(tmp_path):
    checkpoint = read_checkpoint(copied("P1/ckpt_before", tmp_path))
    before = {key: checkpoint[key] for key in checkpoint}
    (tmp_path / "copy").rename(tmp_path / "elsewhere")
    assert all(np.array_equal(checkpoint[key], before[key]) for key in before)
    assert checkpoint["batch_num/.ATTRIBUTES/VARIABLE_VALUE"] is not checkpoint["batch_num/.ATTRIBUTES/VARIABLE_VALUE"]


def test_a_mapping_behaves_as_one():
    checkpoint = read_checkpoint(GOLDENS / "P1" / "ckpt_before")
    assert len(checkpoint) == len(list(checkpoint)) == 118
    assert "nothing" not in checkpoint
    assert checkpoint.get("nothing") is None
    with pytest.raises(KeyError):
        checkpoint["nothing"]
