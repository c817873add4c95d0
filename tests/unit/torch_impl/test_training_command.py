"""``epibert train`` as a user meets it: configurations, every subcommand, and one clear line for whatever is wrong."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import lightning
import pytest
import torch
import yaml

from parity import command
from tests.unit.sources import ROOT
from tests.unit.torch_impl.surroundings import environment_kept
from tests.unit.torch_impl.training import load, losses, quiet, steps_of, write_config
from torch_impl import training_command
from torch_impl.checkpointing import TrainingError
from torch_impl.config import EpiBERTConfig
from torch_impl.data.examples import ExampleConfig
from torch_impl.early_stopping import EpiBERTEarlyStopping
from torch_impl.epibert_lightning import EpiBERTLightning

pytestmark = [quiet, pytest.mark.usefixtures("environment")]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def train(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        command.main(["train", *map(str, arguments)])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def printed(capsys, *arguments: Any) -> dict[str, Any]:
    assert train(*arguments, "--print_config") == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory) -> Path:
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    with environment_kept():
        assert train("fit", "--config", write_config(folder, records)) == 0
    return folder


# --- configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_is_complete_and_its_parts_fit(capsys, name):
    found = printed(capsys, "fit", "--config", ROOT / "configs" / name)
    model, data = found["model"]["init_args"], found["data"]["init_args"]
    config, examples = EpiBERTConfig(**model["config"]), ExampleConfig(**data["config"])
    assert (config.sequence_length, config.atac_length) == (examples.input_length, examples.output_length_ATAC)
    assert (config.output_length, config.crop) == (examples.output_length, examples.crop_size)
    assert config.num_motifs == examples.num_motifs
    assert any("CSVLogger" in logger["class_path"] for logger in found["trainer"]["logger"])
    (checkpoint, *_) = [each for each in found["trainer"]["callbacks"] if "ModelCheckpoint" in each["class_path"]]
    assert checkpoint["init_args"]["save_last"] is True
    assert not any("Averaging" in each["class_path"] for each in found["trainer"]["callbacks"])


def test_there_are_configurations():
    assert {"pretrain.yaml", "tiny.yaml", "planted.yaml"} <= set(CONFIGS)
    assert (ROOT / "torch_impl" / "configs" / "pretrain.yaml").read_bytes() == (
        ROOT / "configs" / "pretrain.yaml"
    ).read_bytes()


def test_pretraining_is_the_published_one(capsys):
    """Values of the original's constructor and script (spec, sections 1.1 and 3.6)."""
    found = printed(capsys, "fit", "--config", ROOT / "configs" / "pretrain.yaml")
    model, data = found["model"]["init_args"], found["data"]["init_args"]
    assert EpiBERTConfig(**model.pop("config")) == EpiBERTConfig.pretrain()
    assert ExampleConfig(**data["config"]) == ExampleConfig.pretraining()
    assert model == {
        "loss_type": "poisson",
        "total_weight": 0.15,
        "unmask_loss": False,
        "peak": 1e-4,
        "warmup": 5000,
        "decay": 500_000,
        "floor": 0.1,
        "constant_rate": False,
        "epsilon": 1e-8,
        "weight_decay": 0.0,
        "global_clipnorm": 1.0,
        "faithful_bf16": False,
        "checkpoint_blocks": False,
        "checkpoint_keeps_products": False,
        "float64_metrics": False,
        "tf32": False,
    }
    stopping = next(each for each in found["trainer"]["callbacks"] if "EarlyStopping" in each["class_path"])
    assert stopping["init_args"]["patience"] == 50
    assert str(stopping["init_args"]["min_delta"]) == "5e-07"
    assert (found["trainer"]["max_epochs"], data["batch_size"], data["seed"]) == (100, 1, 94)
    assert data["validation_seed"] == 21
    last, best = (
        each["init_args"] for each in found["trainer"]["callbacks"] if "ModelCheckpoint" in each["class_path"]
    )
    assert (last["every_n_train_steps"], last["save_last"], last["monitor"]) == (1000, True, None)
    assert (best["monitor"], best["mode"], best["save_top_k"], best["save_last"]) == ("val_loss", "min", 1, None)


def test_the_tiny_configuration_is_the_preset(capsys):
    found = printed(capsys, "fit", "--config", ROOT / "configs" / "tiny.yaml")
    assert EpiBERTConfig(**found["model"]["init_args"]["config"]) == EpiBERTConfig.tiny()


def test_values_are_overridden_on_the_command_line(capsys, records, tmp_path):
    config = write_config(tmp_path, records)
    found = printed(capsys, "fit", "--config", config, "--model.init_args.peak", 0.5, "--trainer.max_epochs", 7)
    assert (found["model"]["init_args"]["peak"], found["trainer"]["max_epochs"]) == (0.5, 7)


# --- what it does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "meant"), [("1", 1), ("1.0", 1.0)], ids=["one", "all"])
def test_a_number_of_batches_is_no_share_of_them(capsys, monkeypatch, given, meant):
    """Also after a package that asks ``typing`` for float or int first, as rich does."""
    annotations = inspect.unwrap(lightning.Trainer.__init__).__annotations__
    monkeypatch.setitem(annotations, "limit_train_batches", float | int | None)
    path = ROOT / "configs" / "tiny.yaml"
    found = printed(capsys, "fit", "--config", path, "--trainer.limit_train_batches", given)
    assert repr(found["trainer"]["limit_train_batches"]) == repr(meant)


def test_fitting_leaves_losses_checkpoints_and_the_configuration(trained):
    assert len(losses(trained)) == 8 + 2 - 1 + 1
    content = load(trained / "run" / "checkpoints" / "last.ckpt")
    assert content["global_step"] == 8
    assert content["hyper_parameters"]["config"]["filter_list_seq"] == (6, 6, 8, 10)
    saved = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    assert saved["model"]["init_args"]["warmup"] == 3


def test_a_checkpoint_is_loaded_by_lightnings_own_means(trained):
    path = trained / "run" / "checkpoints" / "last.ckpt"
    module = EpiBERTLightning.load_from_checkpoint(path, weights_only=True)
    content = load(path)
    assert module.hparams["peak"] == 1e-2
    assert dataclasses.asdict(module.model.config) == content["hyper_parameters"]["config"]
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, content["state_dict"][name].to(value.dtype)), name


@pytest.mark.parametrize("monitor", ["step", "epoch"])
def test_a_checkpoint_may_be_chosen_by_what_lightning_counts(records, tmp_path, monitor):
    chosen = {"monitor": monitor, "mode": "max", "save_top_k": 1}
    assert train("fit", "--config", write_config(tmp_path, records, checkpoint=chosen)) == 0
    assert len(steps_of(tmp_path)) == 1


def test_validate_and_test_report_what_fitting_did(trained, records, tmp_path, capsys):
    config = write_config(tmp_path, records)
    last = trained / "run" / "checkpoints" / "last.ckpt"
    assert train("validate", "--config", config, "--ckpt_path", last) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    found = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    assert " ".join(found[name] for name in ("val_loss", "val_pearson", "val_r2")) == losses(trained)[-7]
    assert train("test", "--config", config, "--ckpt_path", last) == 0
    assert "test_pearson" in capsys.readouterr().out


def test_predict_writes_profiles(trained, records, tmp_path):
    config, out = write_config(tmp_path, records), tmp_path / "out" / "predicted.h5"
    last = trained / "run" / "checkpoints" / "last.ckpt"
    writer = {"class_path": "torch_impl.predictions.PredictionWriter", "init_args": {"output": str(out)}}
    options = ("--trainer.callbacks", json.dumps([writer]), "--return_predictions", "false")
    assert train("predict", "--config", config, "--ckpt_path", last, *options) == 0
    with h5py.File(out) as file:
        assert file["atac"].shape == file["target"].shape == file["mask"].shape == (3, 12)
        assert file["record"][:].tolist() == [0, 1, 2]
    assert [path.name for path in out.parent.iterdir()] == ["predicted.h5"]


def test_training_starts_from_another_run(trained, records, tmp_path):
    last = trained / "run" / "checkpoints" / "last.ckpt"
    config = write_config(tmp_path, records)
    assert train("validate", "--config", config, "--init_from", last) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    found = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    assert found["val_loss"] == losses(trained)[-7].split()[0]


def test_what_may_be_left_out_goes_to_the_initializer(records, tmp_path):
    class Seen(Exception):
        pass

    def initializer(*given: Any, **options: Any) -> Any:
        raise Seen(given, options)

    config = write_config(tmp_path, records)
    given = ["fit", "--config", str(config), "--init_from", "a", "--init_allow", "layers, heads"]
    with pytest.raises(Seen) as caught:
        training_command.main(given, initializer=initializer)
    assert caught.value.args == (("a", False), {"allow": ["layers", "heads"]})


# --- what is wrong ---------------------------------------------------------------------------------------------------


def failing(capsys, *arguments: Any, status: int = 2) -> str:
    """The message of a command that must fail: the last line that is no log."""
    assert train(*arguments) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (message,) = [line for line in error.splitlines() if "error:" in line]
    return message


def test_wrong_options_exit_with_2(capsys, records, tmp_path):
    config = write_config(tmp_path, records)
    assert train("fit", "--config", config, "--model.init_args.nothing", 1) == 2
    assert "nothing" in capsys.readouterr().err
    assert "absent.yaml" in failing(capsys, "fit", "--config", tmp_path / "absent.yaml")
    assert train() == 2
    assert train("fit", "--config", config, "--model.init_args.config.num_heads", 3) == 2
    assert "num_heads=3 does not divide" in capsys.readouterr().err


def test_help_names_the_subcommands(capsys):
    assert train("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("fit", "validate", "test", "predict"))
    assert train("fit", "--help") == 0
    assert "--init_from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.init_args.folder", "absent"), "absent"),
        (("--data.init_args.config.num_motifs", 4), "num_motifs is 4, the model needs 3"),
        (("--model.init_args.config.output_length", 8, "--model.init_args.config.final_output_length", 4),
         "input_length is 512, the model needs 256"),
        (("--ckpt_path", "absent.ckpt"), "cannot read absent.ckpt"),
        (("--init_from", "absent"), "absent"),
        (("--init_training_state", "true"), "says nothing without --init_from"),
        (("--init_allow", "layers"), "--init_allow says nothing without --init_from"),
        (("--trainer.strategy", "nothing"), "nothing"),
        (("--trainer.precision", "17"), "trainer.precision"),
        (("--trainer.logger", "NoLogger"), "NoLogger"),
        (("--trainer.accelerator", "gpu", "--trainer.devices", "99"), "gpu"),
        (("--trainer.gradient_clip_val", "1"), "the optimizer clips by itself"),
        (("--trainer.accumulate_grad_batches", "0"), "accumulate_grad_batches must be at least 1, not 0"),
        (("--trainer.accumulate_grad_batches", str(2**70)), "accumulate_grad_batches must be below 2^31, not 1180"),
        (("--trainer.check_val_every_n_epoch", "0"), "check_val_every_n_epoch must be at least 1, not 0"),
        (("--trainer.val_check_interval", "0"), "val_check_interval must be above 0"),
        (("--trainer.val_check_interval", "1000"), "`val_check_interval` (1000) must be less than"),
        (("--seed_everything", "-1"), "-1 is not in bounds"),
        (("--model.init_args.global_clipnorm", "-1"), "global_clipnorm must be a number above 0"),
        (("--model.init_args.decay", "0"), "decay must be a whole number from 1 up, not 0"),
        (("--model.init_args.peak", ".nan"), "peak must be a number from 0 up, not nan"),
        (("--model.init_args.peak", "1e38"), "peak must be at most 1000, not 1e+38"),
        (("--model.init_args.peak", "fast"), "Got value: fast"),
        (("--model.init_args.faithful_bf16", "true"), "the Trainer's precision must be 32, not 64-true"),
        (("--model.init_args.config.layer_norm_epsilon", ".nan"), "layer_norm_epsilon must be a number from 0 up"),
        (("--data.init_args.batch_size", "100", "--data.init_args.drop_last", "true"), "drop_last leaves no batch"),
        (("--trainer.callbacks+=torch_impl.early_stopping.EpiBERTEarlyStopping", "--trainer.callbacks.monitor=val_los"),
         "EpiBERTEarlyStopping watches 'val_los'; what is logged is train_loss, val_loss, val_pearson, val_r2"),
        (("--trainer.callbacks+=torch_impl.early_stopping.EpiBERTEarlyStopping", "--trainer.callbacks.monitor=step"),
         "EpiBERTEarlyStopping watches 'step'; what is logged is"),
        (("--trainer.callbacks+=torch_impl.early_stopping.EpiBERTEarlyStopping", "--trainer.callbacks.patience=0"),
         "patience must be at least 1, not 0"),
        (("--trainer.callbacks+=torch_impl.callbacks.ThroughputMonitor", "--trainer.callbacks.window_size=1"),
         "window_size must be at least 2, not 1"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_wrong_input_exits_with_2_and_one_line(capsys, records, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in failing(capsys, "fit", "--config", write_config(tmp_path / "run", records), *options)
    assert not (tmp_path / "run" / "run" / "checkpoints").exists()


def test_a_checkpoint_of_another_configuration_is_refused_and_named(capsys, trained, records, tmp_path):
    last = trained / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    other = write_config(tmp_path, records, model={"num_transformer_layers": 2, "seed": 20})
    message = failing(capsys, "fit", "--config", other, "--ckpt_path", last)
    assert "num_transformer_layers: the checkpoint has 1, the configuration 2" in message
    assert "seed: the checkpoint has 19.0, the configuration 20.0" in message
    assert last.read_bytes() == before


def test_a_run_goes_on_with_the_settings_that_it_began_with_or_not_at_all(capsys, trained, records, tmp_path):
    config = write_config(tmp_path, records, module={"peak": 2e-2, "warmup": 9})
    said = failing(capsys, "fit", "--config", config, "--ckpt_path", steps_of(trained)[7])
    assert "goes on with the settings that it began with: peak: the checkpoint has" in said
    assert "warmup: the checkpoint has" in said
    assert train("validate", "--config", config, "--ckpt_path", steps_of(trained)[7]) == 0


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("module", {"loss_type": "possion"}, "loss_type"),
        ("loader", {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ("loader", {"workers": -1}, "workers must be at least 0, not -1"),
        ("loader", {"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_a_setting_out_of_range_is_named(capsys, records, tmp_path, part, changes, message):
    config = write_config(tmp_path, records, **{part: changes})
    assert message in failing(capsys, "fit", "--config", config)


def test_a_validation_loss_that_is_nan_is_told_and_no_success(capsys, records, tmp_path, monkeypatch):
    monkeypatch.setattr(EpiBERTLightning, "loss", lambda self, prediction, batch: prediction.sum() * torch.nan)

    def step(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self(*batch[:2], batch[5]).sum()
        self.log("train_loss", loss)
        return loss

    monkeypatch.setattr(EpiBERTLightning, "training_step", step)
    stopping = "--trainer.callbacks+=torch_impl.early_stopping.EpiBERTEarlyStopping"
    assert train("fit", "--config", write_config(tmp_path, records), stopping) == 1
    assert "val_loss" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_nothing_is_evaluated_with_the_weights_that_were_drawn(capsys, records, tmp_path, command):
    said = failing(capsys, command, "--config", write_config(tmp_path, records))
    assert f"{command} needs weights: give --ckpt_path or --init_from" in said


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_last_checkpoint_that_does_not_exist_fills_no_model(capsys, records, tmp_path, command):
    config, out = write_config(tmp_path, records), tmp_path / "predicted.h5"
    writer = {"class_path": "torch_impl.predictions.PredictionWriter", "init_args": {"output": str(out)}}
    options = ("--trainer.callbacks+", json.dumps([writer])) if command == "predict" else ()
    said = failing(capsys, command, "--config", config, "--ckpt_path", "last", *options)
    assert "--ckpt_path last: there is no such checkpoint to take the weights from" in said
    assert not out.exists()


def test_a_last_checkpoint_is_found_and_a_run_without_one_begins(capsys, trained, records, tmp_path):
    config = write_config(tmp_path, records)
    assert train("fit", "--config", config, "--ckpt_path", "last", "--trainer.limit_train_batches", 1) == 0
    assert "--ckpt_path last: there is no such checkpoint, so the run begins anew" in capsys.readouterr().out
    assert train("validate", "--config", config, "--ckpt_path", "last") == 0
    assert "no such checkpoint" not in capsys.readouterr().out


def test_a_strategy_that_the_module_is_not_made_for_is_refused_in_one_line(capsys, records, tmp_path):
    strategy = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}
    config = write_config(tmp_path, records, trainer={"strategy": strategy, "precision": "32-true"})
    try:
        assert "required to override the `configure_model()` hook" in failing(capsys, "fit", "--config", config)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_nothing_is_predicted_for_nobody(capsys, trained, records, tmp_path):
    last = trained / "run" / "checkpoints" / "last.ckpt"
    said = failing(capsys, "predict", "--config", write_config(tmp_path, records), "--ckpt_path", last)
    assert "nothing writes the predictions" in said


@pytest.mark.parametrize(
    ("monitor", "every", "valid_every", "fits"),
    [("val_loss", 2, 2, True), ("val_loss", 1, 2, False), ("val_loss", 2, 1, False), ("val_loss_ho", 1, 2, True)],
)
def test_stopping_counts_the_epochs_that_are_validated(monitor, every, valid_every, fits):
    stopping = EpiBERTEarlyStopping(monitor, every=every)
    trainer = SimpleNamespace(callbacks=[stopping], gradient_clip_val=None, accumulate_grad_batches=1)
    command: Any = SimpleNamespace(model=None, datamodule=SimpleNamespace(valid_every=valid_every), trainer=trainer)
    if fits:
        assert training_command.Command.before_fit(command) is None
        return
    with pytest.raises(TrainingError, match=f"every {every} epochs .*in every {valid_every} "):
        training_command.Command.before_fit(command)


def test_a_mistake_of_ours_keeps_its_traceback(records, tmp_path, monkeypatch):
    def mistaken(self: Any, batch: Any, batch_idx: int) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(EpiBERTLightning, "training_step", mistaken)
    with pytest.raises(ValueError, match="ours"):
        command.main(["train", "fit", "--config", str(write_config(tmp_path, records))])


def test_empty_folders_are_named(capsys, records, tmp_path):
    shutil.copytree(records, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "valid")
    config = write_config(tmp_path, tmp_path / "data")
    assert "valid: holds no converted records" in failing(capsys, "fit", "--config", config)
    (tmp_path / "data" / "valid").mkdir()
    assert "valid: holds no converted records" in failing(capsys, "fit", "--config", config)


def test_two_places_to_start_from_are_one_too_many(capsys, trained, records, tmp_path):
    path = steps_of(trained)[7]
    again = ("--trainer.callbacks+=weights.initialize.InitializeFrom", f"--trainer.callbacks.path={path}")
    said = failing(capsys, "fit", "--config", write_config(tmp_path, records), "--init_from", path, *again)
    assert "--init_from and a callback InitializeFrom: one of them is too many" in said


def test_an_interrupted_run_says_so(records, tmp_path, monkeypatch):
    def interrupt(self: Any, batch: Any, batch_idx: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EpiBERTLightning, "training_step", interrupt)
    assert train("fit", "--config", write_config(tmp_path, records)) == 130


def test_a_checkpoint_with_code_is_refused(capsys, records, tmp_path):
    bad = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {}, "path": Path("x")}, bad)
    config = write_config(tmp_path, records)
    for option in ("--ckpt_path", "--init_from"):
        assert "holds more than tensors and plain values" in failing(capsys, "fit", "--config", config, option, bad)
