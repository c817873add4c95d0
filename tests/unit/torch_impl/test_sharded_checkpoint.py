"""Folders of a sharded model: read as one file is, or refused, and never by running what they hold.

``test_several_processes`` reads one that two processes have written.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import load

from tests.unit.torch_impl.training import Evil, write_folder
from torch_impl.checkpointing import TrainingError, read_checkpoint_file
from torch_impl.sharded_checkpoint import check_sharded_checkpoint, read_sharded_checkpoint

NAMES = ["model.b", "model.a"]
STATE = {"model.a": torch.arange(4.0), "model.b": torch.ones(2, 3, dtype=torch.float64), "model.n": torch.tensor(3)}
SLOTS = {name: {"step": torch.tensor(2.0), "exp_avg": STATE[name] / 3} for name in NAMES}
OTHERS = {"epoch": 3, "hyper_parameters": {"config": {"num_heads": 4}}}


def write(folder: Path, *, others: Any = OTHERS, **changes: Any) -> Path:
    """As Lightning's strategy writes it, by one process."""
    groups = [{"lr": 0.1, "betas": (0.9, 0.99), "params": NAMES[:1]}, {"lr": 0.2, "decay": None, "params": NAMES[1:]}]
    parts = {"state_dict": STATE, "optimizer_0": {"state": SLOTS, "param_groups": groups}, **changes}
    return write_folder(folder, parts, others)


def test_a_folder_is_read_as_the_file_of_the_same_run_would_be(tmp_path):
    folder = write(tmp_path / "last.ckpt")
    check_sharded_checkpoint(folder)
    found = read_checkpoint_file(folder)
    assert found.keys() == {"epoch", "hyper_parameters", "state_dict", "optimizer_states"}
    assert {name: found[name] for name in OTHERS} == OTHERS
    assert found["state_dict"].keys() == STATE.keys()
    assert all(torch.equal(found["state_dict"][name], value) for name, value in STATE.items())
    assert found["state_dict"]["model.b"].dtype == torch.float64
    (optimizer,) = found["optimizer_states"]
    assert optimizer["param_groups"] == [
        {"lr": 0.1, "betas": (0.9, 0.99), "params": [0]},
        {"lr": 0.2, "decay": None, "params": [1]},
    ]
    assert optimizer["state"].keys() == {0, 1}
    for number, name in enumerate(NAMES):
        assert all(torch.equal(optimizer["state"][number][slot], value) for slot, value in SLOTS[name].items())


def test_a_run_without_optimizers_and_an_optimizer_without_steps(tmp_path):
    bare = write(tmp_path / "bare", optimizer_0={"param_groups": [{"lr": 0.1, "params": NAMES}]})
    assert read_sharded_checkpoint(bare)["optimizer_states"] == [
        {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    ]
    with pytest.raises(TrainingError, match="no sharded checkpoint of a Lightning module"):
        read_sharded_checkpoint(write(tmp_path / "other", optimizer_2={"param_groups": []}))


@pytest.mark.parametrize("where", ["metadata", "others", "value"])
@pytest.mark.parametrize("read", [check_sharded_checkpoint, read_checkpoint_file])
def test_nothing_that_a_folder_holds_is_run(tmp_path, where, read):
    evil = Evil(tmp_path / "sign")
    changes: dict[str, Any] = {}
    if where == "value":
        changes["optimizer_0"] = {"state": SLOTS, "param_groups": [{"lr": evil, "params": NAMES}]}
    folder = write(tmp_path / "a.ckpt", others={"epoch": evil} if where == "others" else OTHERS, **changes)
    if where == "metadata":
        (folder / ".metadata").write_bytes(pickle.dumps(evil))
    with pytest.raises(TrainingError, match="holds more than tensors and plain values"):
        read(folder)
    assert not (tmp_path / "sign").exists()
    if where == "value":  # which PyTorch's own reader would run
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load({"optimizer_0": {"param_groups": [{"lr": None}]}}, checkpoint_id=folder, no_dist=True)
        assert (tmp_path / "sign").exists()


def rewrite(folder: Path, change: Any) -> None:
    """Changes the metadata of a folder."""
    found = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301  the test wrote it
    change(found)
    (folder / ".metadata").write_bytes(pickle.dumps(found))


def outside(metadata: Any) -> None:
    for place in metadata.storage_data.values():
        place.relative_path = f"../{place.relative_path}"


def short(metadata: Any) -> None:
    metadata.state_dict_metadata["state_dict.model.b"].chunks.clear()


DAMAGES: dict[str, tuple[Any, str]] = {
    "no metadata": (lambda folder: (folder / ".metadata").unlink(), "it has no .metadata"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "it has no meta.pt and no .metadata"),
    "a shard is missing": (lambda folder: (folder / "__0_0.distcp").unlink(), "No such file"),
    "a shard is cut": (lambda folder: (folder / "__0_0.distcp").write_bytes(b""), "damaged"),
    "metadata are cut": (lambda folder: (folder / ".metadata").write_bytes(b"\x80\x04"), "damaged"),
    "metadata are something else": (lambda folder: (folder / ".metadata").write_bytes(pickle.dumps(3)), "damaged"),
    "others are no mapping": (lambda folder: torch.save([3], folder / "meta.pt"), "damaged"),
    "a shard lies elsewhere": (lambda folder: rewrite(folder, outside), "is not a file of this folder"),
    "a part is missing": (lambda folder: rewrite(folder, short), "model.b has 6 numbers, of which 0 are here"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_ends_in_one_line(tmp_path, damage):
    folder = write(tmp_path / "a.ckpt")
    apply, message = DAMAGES[damage]
    apply(folder)
    with pytest.raises(TrainingError, match=message) as raised:
        read_sharded_checkpoint(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)
