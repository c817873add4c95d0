"""Resuming to the bit, NaN, and how fast it goes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tests.unit.torch_impl.surroundings import environment_kept
from tests.unit.torch_impl.training import (
    as_folder,
    load,
    losses,
    model_config,
    quiet,
    steps_of,
    tensors,
    write_config,
)
from torch_impl.callbacks import FiniteTraining, NonFiniteError, ResumableTraining, ThroughputMonitor
from torch_impl.checkpointing import OPTIMIZER_PARAMETERS, TrainingError
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.training_command import main

pytestmark = [quiet, pytest.mark.usefixtures("environment")]
STEPS = 8


def fit(config: Path, *options: Any) -> int:
    return main(["fit", "--config", str(config), *map(str, options)])


@pytest.fixture(scope="module")
def whole(records, tmp_path_factory) -> Path:
    """A run of two epochs of four steps that nothing has interrupted, dropout on, saved after every step."""
    folder = tmp_path_factory.mktemp("whole")
    with environment_kept():
        assert fit(write_config(folder, records)) == 0
    assert sorted(steps_of(folder)) == list(range(1, STEPS + 1))
    return folder


def assert_goes_on(whole: Path, resumed: Path, step: int) -> None:
    """Every loss, validation and number of the resumed run is that of the whole one, to the bit."""
    expected, found = losses(whole), losses(resumed)
    assert found.keys() == {at for at in expected if abs(at) >= step}
    assert found == {at: expected[at] for at in found}
    one, other = tensors(load(steps_of(whole)[STEPS])), tensors(load(steps_of(resumed)[STEPS]))
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_run_resumes_from_the_folder_of_a_sharded_model(whole, records, tmp_path):
    folder = as_folder(load(steps_of(whole)[6]), tmp_path / "folder.ckpt")
    assert fit(write_config(tmp_path, records), "--ckpt_path", folder) == 0
    assert_goes_on(whole, tmp_path, 6)


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_run_resumes_to_the_bit(whole, records, tmp_path, step):
    """In the middle of an epoch, and at its end: weights, moments, statistics, losses, order, draws and dropout."""
    assert fit(write_config(tmp_path, records), "--ckpt_path", steps_of(whole)[step]) == 0
    assert_goes_on(whole, tmp_path, step)


def test_the_comparison_of_runs_sees_another_dropout(whole, records, tmp_path, monkeypatch):
    monkeypatch.setattr(ResumableTraining, "load_state_dict", lambda self, state: None)
    assert fit(write_config(tmp_path, records), "--ckpt_path", steps_of(whole)[6], "--seed_everything", 4) == 0
    with pytest.raises(AssertionError):
        assert_goes_on(whole, tmp_path, 6)


def test_a_resumed_run_keeps_the_seed_it_began_with(whole, records, tmp_path):
    assert fit(write_config(tmp_path, records), "--ckpt_path", steps_of(whole)[6], "--seed_everything", 4) == 0
    assert_goes_on(whole, tmp_path, 6)


def test_checkpoints_name_the_parameters_of_the_optimizers(whole):
    content = load(steps_of(whole)[1])
    (names,) = content[OPTIMIZER_PARAMETERS]
    states = content["optimizer_states"][0]["state"]
    assert len(names) == len(states)
    for number, name in enumerate(names):
        assert states[number]["exp_avg"].shape == content["state_dict"][f"model.{name}"].shape


def test_a_run_that_is_asked_to_end_saves_where_it_was(whole, records, tmp_path, monkeypatch):
    """What Lightning raises between two steps when the signal has come; the signal itself has a test of its own."""

    def end(self: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            self.trainer._signal_connector.received_sigterm = True

    monkeypatch.setattr(EpiBERTLightning, "on_train_batch_start", end)
    config = write_config(tmp_path, records, checkpoint={"every_n_train_steps": 100})
    assert fit(config) == 143
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    monkeypatch.undo()
    resumed = tmp_path / "resumed"
    assert fit(write_config(resumed, records), "--ckpt_path", saved) == 0
    assert load(saved)["global_step"] == 4
    assert_goes_on(whole, resumed, 4)


@pytest.mark.parametrize("kept", [-1, 0], ids=["all", "the last alone"])
def test_only_a_request_to_end_saves(whole, records, tmp_path, monkeypatch, kept):
    def fail(self: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(EpiBERTLightning, "on_train_batch_start", fail)
    assert fit(write_config(tmp_path, records, checkpoint={"every_n_train_steps": 2, "save_top_k": kept})) == 130
    assert set(steps_of(tmp_path)) == ({2} if kept else set())
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert issubclass(SIGTERMException, SystemExit)


@pytest.mark.parametrize("when", ["before a validation", "within it", "within the first", "after it"])
def test_a_request_to_end_saves_but_within_a_validation(tmp_path, monkeypatch, when):
    if when != "within the first":
        (tmp_path / "last.ckpt").touch()
    saved: list[Path] = []
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[ModelCheckpoint(dirpath=tmp_path, save_last=True)],
    )  # fmt: skip
    monkeypatch.setattr(trainer, "save_checkpoint", saved.append)
    callback, module = ResumableTraining(), EpiBERTLightning(model_config())
    if when != "before a validation":
        callback.on_validation_batch_start(trainer, module, [], 0)
    if when == "after it":
        callback.on_validation_end(trainer, module)
    callback.on_exception(trainer, module, SIGTERMException())
    assert saved == ([] if when == "within it" else [tmp_path / "last.ckpt"])


def test_a_run_that_is_asked_to_end_within_a_validation_makes_it_again(whole, records, tmp_path, monkeypatch):
    def end(self: Any, batch: Any, batch_idx: int) -> None:
        self.trainer._signal_connector.received_sigterm = self.global_step == 4

    monkeypatch.setattr(EpiBERTLightning, "on_validation_batch_start", end, raising=False)
    assert fit(write_config(tmp_path, records)) == 143
    monkeypatch.undo()
    saved = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = load(saved)["global_step"]
    assert step <= 4
    resumed = tmp_path / "resumed"
    assert fit(write_config(resumed, records), "--ckpt_path", saved) == 0
    assert_goes_on(whole, resumed, step)


def test_a_run_that_begins_clears_away_what_was_left_half_written(tmp_path):
    """In the folder of its checkpoints, and in that of the one it goes on from."""
    folders = [tmp_path / "now", tmp_path / "before"]
    for folder in folders:
        folder.mkdir()
        (folder / ".last.ckpt-abcdefgh").touch()
    callback = ModelCheckpoint(dirpath=folders[0], save_last=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    trainer.ckpt_path = folders[1] / "last.ckpt"
    ResumableTraining().on_fit_start(trainer, EpiBERTLightning(model_config()))
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


@pytest.mark.parametrize(
    ("kind", "option"), [(ResumableTraining, {"seed": -1}), (ThroughputMonitor, {"window_size": 1})]
)
def test_options_out_of_range_are_named(kind, option):
    with pytest.raises(TrainingError, match=f"{next(iter(option))} must be at least"):
        kind(**option)


# --- NaN -------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_ends_the_run_and_leaves_the_last_good_checkpoint(records, tmp_path, monkeypatch, capsys):
    real = EpiBERTLightning.training_step

    def poisoned(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        return real(self, batch, batch_idx) * (torch.nan if self.global_step == 2 else 1)

    def logged(self: Any, name: str, value: torch.Tensor, **options: Any) -> None:
        if name == "train_loss" and self.global_step == 2:
            value = value * torch.nan
        LightningModule.log(self, name, value, **options)

    monkeypatch.setattr(EpiBERTLightning, "training_step", poisoned)
    monkeypatch.setattr(EpiBERTLightning, "log", logged)
    assert fit(write_config(tmp_path, records)) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("epibert train: error: the training loss is nan at step 3")
    assert sorted(steps_of(tmp_path)) == [1, 2]
    last = load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in tensors(last).values())


def test_a_batch_without_a_masked_bin_is_no_reason_to_end(records, tmp_path, monkeypatch):
    """Its loss is NaN, as the original's, and its gradient zero."""
    real = EpiBERTLightning.training_step

    def unmasked(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        sequence, atac, mask, *others = batch
        return real(self, [sequence, atac, mask * (self.global_step != 2), *others], batch_idx)

    monkeypatch.setattr(EpiBERTLightning, "training_step", unmasked)
    with pytest.warns(UserWarning, match="no bin was masked"):
        assert fit(write_config(tmp_path, records, trainer={"max_epochs": 1})) == 0
    assert losses(tmp_path)[2] == "nan"
    assert losses(tmp_path)[3] != "nan"


def test_weights_that_are_not_finite_are_not_saved():
    """Also where the loss has said nothing: a loss looks at some of the weights, and before they are updated."""
    module = EpiBERTLightning(model_config())
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    FiniteTraining().on_save_checkpoint(trainer, module, {})
    with torch.no_grad():
        dict(module.named_parameters())["model.stem_conv.bias"][0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"not finite at step 0.* 1 tensors.*stem_conv\.bias"):
        FiniteTraining().on_save_checkpoint(trainer, module, {})
    module = EpiBERTLightning(model_config())
    dict(module.named_buffers())["model.conv_tower.0.block.norm.running_var"][0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"1 tensors.*running_var"):
        FiniteTraining().on_save_checkpoint(trainer, module, {})


def test_a_loss_that_nobody_logs_is_no_loss_that_is_finite():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(TrainingError, match="no 'another' is logged"):
        FiniteTraining("another").on_train_batch_end(trainer, EpiBERTLightning(model_config()), None, None, 0)


# --- throughput ------------------------------------------------------------------------------------------------------


def test_throughput_counts_examples_and_base_pairs():
    monitor = ThroughputMonitor(window_size=2)
    batch = [torch.zeros(3, 512, 4)]
    assert monitor.length_fn is not None
    assert (monitor.batch_size_fn(batch), monitor.length_fn(batch)) == (3, 1536)


def test_lightnings_own_callbacks_run_beside_ours(records, tmp_path):
    """Throughput, rates, statistics of the device, averaged weights; with blocks that are computed again."""
    own = "lightning.pytorch.callbacks"
    callbacks = [
        {"class_path": "torch_impl.callbacks.ThroughputMonitor", "init_args": {"window_size": 2}},
        {"class_path": f"{own}.LearningRateMonitor"},
        {"class_path": f"{own}.DeviceStatsMonitor", "init_args": {"cpu_stats": True}},
        {"class_path": f"{own}.EMAWeightAveraging", "init_args": {"decay": 0.5}},
        {"class_path": f"{own}.RichProgressBar"},
        {"class_path": "torch_impl.early_stopping.EpiBERTEarlyStopping", "init_args": {"patience": 1}},
        {"class_path": f"{own}.ModelCheckpoint", "init_args": {"monitor": "val_loss", "filename": "best"}},
    ]
    trainer = {"callbacks": callbacks, "enable_progress_bar": True}
    config = write_config(tmp_path, records, trainer=trainer, module={"checkpoint_blocks": True})
    assert fit(config) == 0
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    assert "lr-KerasAdam" in names
    assert any(name.endswith("items_per_sec") for name in names)
    assert any(name.endswith("samples_per_sec") for name in names)
    assert any(name.startswith("DeviceStatsMonitor") for name in names)
    # The original's counting: the very first validation brings the counter to one, and a patience of one ends the run.
    assert sum(1 for at in losses(tmp_path) if at < 0) == 1
    (best,) = tmp_path.glob("run/**/best.ckpt")
    content = load(best)
    current = content["current_model_state"]
    assert any(not torch.equal(current[name], content["state_dict"][name]) for name in current if "weight" in name)
