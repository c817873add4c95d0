"""Files that are whole or not there, reading that runs no code, and blocks that are computed again."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.assertions import assert_same
from tests.unit.torch_impl.training import model_config
from torch_impl import EpiBERT
from torch_impl.checkpointing import (
    SafeCheckpointIO,
    TrainingError,
    checkpoint_activations,
    differences,
    read_checkpoint_file,
    remove_unfinished,
)
from torch_impl.model import BatchNorm


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_a_checkpoint_is_written_and_read(tmp_path):
    content = {"state_dict": {"weight": torch.arange(3.0)}, "epoch": 2, "list": [(1, "a")]}
    path = tmp_path / "new" / "a.ckpt"
    SafeCheckpointIO().save_checkpoint(content, path)
    found = SafeCheckpointIO().load_checkpoint(path)
    assert torch.equal(found["state_dict"]["weight"], content["state_dict"]["weight"])
    assert {key: found[key] for key in ("epoch", "list")} == {"epoch": 2, "list": [(1, "a")]}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.ckpt"]
    reference = tmp_path / "reference"
    reference.touch()
    assert path.stat().st_mode == reference.stat().st_mode


def test_a_new_file_takes_the_place_of_the_earlier_one_at_once(tmp_path):
    """Whoever has the earlier one open reads all of it: nothing is ever written into it."""
    path = tmp_path / "a.ckpt"
    SafeCheckpointIO().save_checkpoint({"state_dict": {}, "epoch": 1}, path)
    before = path.read_bytes()
    with path.open("rb") as earlier:
        SafeCheckpointIO().save_checkpoint({"state_dict": {}, "epoch": 2}, path)
        assert earlier.read() == before
    assert SafeCheckpointIO().load_checkpoint(path)["epoch"] == 2


def test_writing_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    SafeCheckpointIO().save_checkpoint({"state_dict": {}, "epoch": 1}, path)
    before = path.read_bytes()

    def half(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        SafeCheckpointIO().save_checkpoint({"state_dict": {}, "epoch": 2}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    """Not what is still being written, and not what others named."""
    left, written = tmp_path / ".last.ckpt-0a_b2c3d", tmp_path / ".step=3.ckpt-abcdefgh"
    others = [tmp_path / name for name in ("last.ckpt", ".last.ckpt-notes", ".h5-abcdefgh", ".a.ckpt-abcdefghi")]
    for path in (left, written, *others):
        path.touch()
    (tmp_path / ".b.ckpt-folder00").mkdir()
    with written.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_unfinished(tmp_path)
        kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {written.name, ".b.ckpt-folder00", *(path.name for path in others)}
    remove_unfinished(tmp_path)
    assert not written.exists()
    remove_unfinished(tmp_path / "absent")


def test_what_is_being_written_is_not_removed(tmp_path, monkeypatch):
    real = torch.save

    def save(content: Any, file: Any) -> None:
        remove_unfinished(tmp_path)
        real(content, file)

    monkeypatch.setattr(torch, "save", save)
    SafeCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "a.ckpt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_reading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "code": Code()}, "bad.ckpt")
    with pytest.raises(TrainingError, match="holds more than tensors and plain values"):
        SafeCheckpointIO().load_checkpoint("bad.ckpt", weights_only=False)
    assert not Path("executed").exists()
    # What would have happened otherwise.
    Code().__reduce__()[0](*Code().__reduce__()[1])
    assert Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*: No such file"),
        (b"", "damaged or no checkpoint|holds more than"),
        (b"not a checkpoint", "holds more than|damaged or no checkpoint"),
        ({"weights": 1}, "is no Lightning checkpoint"),
        ([1, 2], "is no Lightning checkpoint"),
    ],
    ids=str,
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, message):
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(TrainingError, match=message) as caught:
        read_checkpoint_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(TrainingError, match="damaged or no checkpoint"):
        read_checkpoint_file(path)


def test_differences_name_every_field_and_forgive_the_kind_of_sequence():
    assert differences({"a": 1, "b": (1, 2)}, {"a": 1, "b": [1, 2]}) == []
    assert differences({"a": 1, "b": (1, 2), "c": 0}, {"a": 2, "b": [1, 2], "d": 3}) == [
        "a: the checkpoint has 2, the configuration 1",
        "c: the checkpoint has None, the configuration 0",
        "d: the checkpoint has 3, the configuration None",
    ]


def run(model: EpiBERT, *, steps: int = 2) -> dict[str, torch.Tensor]:
    """Outputs, gradients and statistics of a few passes, dropout on."""
    config, found = model.config, {}
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        torch.manual_seed(step)
        letters = torch.randint(4, (2, config.sequence_length), generator=generator)
        inputs = torch.rand(2, config.atac_length, 1, generator=generator, dtype=torch.float64)
        motifs = torch.rand(2, 1, config.num_motifs, generator=generator, dtype=torch.float64)
        output = model(torch.nn.functional.one_hot(letters, 4).double(), inputs, motifs)
        model.zero_grad()
        output.square().sum().backward()
        found[f"output {step}"] = output.detach()
        found |= {f"gradient {step} {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


@pytest.fixture
def twins() -> tuple[EpiBERT, EpiBERT]:
    plain, checkpointed = (EpiBERT(model_config()).double() for _ in range(2))
    checkpointed.load_state_dict(plain.state_dict())
    return plain, checkpointed


@pytest.mark.parametrize("keep_products", [False, True])
def test_blocks_that_are_computed_again_give_the_same(twins, keep_products):
    plain, checkpointed = twins
    checkpoint_activations(checkpointed, keep_products=keep_products)
    assert checkpointed.state_dict().keys() == plain.state_dict().keys()
    expected, found = run(plain), run(checkpointed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_same(found[name], value, "exact", what=name)


def test_statistics_would_count_twice_if_they_were_not_kept(twins, monkeypatch):
    plain, checkpointed = twins
    monkeypatch.setattr(
        "torch_impl.checkpointing._statistics_kept", lambda norms: __import__("contextlib").nullcontext()
    )
    checkpoint_activations(checkpointed)
    expected, found = run(plain), run(checkpointed)
    assert any(not torch.equal(found[name], expected[name]) for name in expected if "running_mean" in name)


def test_blocks_keep_their_inputs_alone(twins):
    plain, checkpointed = twins
    checkpoint_activations(checkpointed)

    def saved_bytes(model: EpiBERT) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        config = model.config
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(
                torch.zeros(1, config.sequence_length, 4).double(),
                torch.zeros(1, config.atac_length, 1).double(),
                torch.zeros(1, 1, config.num_motifs).double(),
            )
        return sum(sizes)

    assert saved_bytes(checkpointed) < saved_bytes(plain) / 2


def test_products_that_are_kept_are_not_computed_again(twins):
    counts = []
    for keep in (None, True, False):
        model = EpiBERT(twins[0].config).double()
        if keep is not None:
            checkpoint_activations(model, keep_products=keep)
        with FlopCounterMode(display=False) as counter:
            run(model)
        counts.append(counter.get_total_flops())
    plain, kept, again = counts
    assert plain < kept < again


def test_norms_update_again_afterwards(twins):
    _, checkpointed = twins
    rates = [module.update_rate for module in checkpointed.modules() if isinstance(module, BatchNorm)]
    checkpoint_activations(checkpointed)
    run(checkpointed)
    assert [module.update_rate for module in checkpointed.modules() if isinstance(module, BatchNorm)] == rates
    assert all(rates)


def test_a_place_that_is_no_folder_is_refused():
    with pytest.raises(TrainingError, match=r"memory://bucket/last\.ckpt: checkpoints are written to folders"):
        SafeCheckpointIO().save_checkpoint({"state_dict": {}}, "memory://bucket/last.ckpt")
