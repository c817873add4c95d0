"""A model, records and a configuration small enough to train in a second, for the tests of training."""

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch.distributed.checkpoint.state_dict_saver import save

from tests.records import synthetic_records
from tests.unit.sources import ROOT
from tests.unit.torch_impl.surroundings import QUIET
from torch_impl.config import EpiBERTConfig
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.tfrecord import write_records
from torch_impl.distributed import ShardedEpiBERTLightning
from torch_impl.epibert_lightning import EpiBERTLightning

MODEL: dict[str, Any] = {
    "filter_list_seq": [6, 6, 8, 10],
    "filter_list_atac": [5],
    "num_heads": 5,
    "num_transformer_layers": 1,
    "num_motifs": 3,
    "motif_units_fc": 8,
    "output_length": 16,
    "final_output_length": 12,
    "max_seq_length": 16,
}
DATA: dict[str, Any] = {
    "input_length": 512,
    "output_length_ATAC": 128,
    "output_length": 16,
    "output_res": 32,
    "mask_size": 64,
    "num_motifs": 3,
}
WITHOUT_DROPOUT = {"dropout_rate": 0.0, "pointwise_dropout_rate": 0.0, "motif_dropout_rate": 0.0}
RECORDS = {"train": (5, 3), "valid": (3,), "test": (3,)}
quiet = pytest.mark.filterwarnings(*QUIET, "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")


def model_config(**changes: Any) -> EpiBERTConfig:
    return EpiBERTConfig(**{**MODEL, **changes})


def example_config(**changes: Any) -> ExampleConfig:
    return ExampleConfig(**{**DATA, **changes})


def write_data(folder: Path) -> Path:
    """Converted records below a folder."""
    for subset, sizes in RECORDS.items():
        (folder / "source" / subset).mkdir(parents=True)
        for number, size in enumerate(sizes):
            records = synthetic_records(example_config(), size, seed=100 * number + len(subset))
            write_records(folder / "source" / subset / f"{number}.tfr", records)
    convert_tfrecord_to_hdf5(folder / "source", folder / "converted")
    return folder / "converted"


def write_config(
    folder: Path,
    data: Path,
    *,
    model: dict[str, Any] | None = None,
    module: dict[str, Any] | None = None,
    loader: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    class_path: str = "torch_impl.epibert_lightning.EpiBERTLightning",
) -> Path:
    """A configuration whose runs write to ``folder / "run"``: losses of every step, and checkpoints.

    Args:
        folder: For the file and the run.
        data: Folder of converted records.
        model: Changes of the model's configuration.
        module: Changes of the module's arguments.
        loader: Changes of the data module's arguments.
        trainer: Changes of the trainer's arguments.
        checkpoint: Arguments of the checkpoint callback.
        class_path: Of the module.
    """
    content = {
        "seed_everything": 3,
        "model": {
            "class_path": class_path,
            "init_args": {
                "config": {**MODEL, **(model or {})},
                "peak": 1e-2,
                "warmup": 3,
                "decay": 20,
                "float64_metrics": True,
                **(module or {}),
            },
        },
        "data": {
            "class_path": "torch_impl.data_module.EpiBERTDataModule",
            "init_args": {"folder": str(data), "config": DATA, "batch_size": 2, **(loader or {})},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "precision": "64-true",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {
                    "save_dir": str(folder / "run"),
                    "name": "",
                    "version": "",
                    "flush_logs_every_n_steps": 1,
                },
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "dirpath": str(folder / "run" / "checkpoints"),
                        "filename": "{step}",
                        "every_n_train_steps": 1,
                        "save_top_k": -1,
                        "save_last": True,
                        **(checkpoint or {}),
                    },
                }
            ],
            **(trainer or {}),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def steps_of(folder: Path) -> dict[int, Path]:
    """Number of steps -> checkpoint, of a run."""
    found = {}
    for path in (folder / "run" / "checkpoints").glob("step=*.ckpt"):
        match = re.fullmatch(r"step=(\d+)", path.stem)
        assert match, path
        found[int(match[1])] = path
    return found


def losses(folder: Path) -> dict[int, str]:
    """Step -> training loss as text, of a run; validation's under negative numbers."""
    found: dict[int, str] = {}
    lines = (folder / "run" / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    for line in lines[1:]:
        row = dict(zip(names, line.split(","), strict=True))
        if row["train_loss"]:
            found[int(row["step"])] = row["train_loss"]
        if row.get("val_loss"):
            found[-int(row["step"])] = " ".join(row[name] for name in ("val_loss", "val_pearson", "val_r2"))
    return found


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def tensors(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights, statistics, moments and step counters of a checkpoint, by name."""
    found = {name: value for name, value in content["state_dict"].items() if isinstance(value, torch.Tensor)}
    for number, optimizer in enumerate(content["optimizer_states"]):
        for index, slots in optimizer["state"].items():
            found |= {f"{number} {index} {name}": value for name, value in slots.items()}
    return found


def as_folder(content: dict[str, Any], folder: Path) -> Path:
    """Writes what a checkpoint file holds as Lightning's strategy writes it of a sharded model."""
    others = dict(content)
    parts = {"state_dict": others.pop("state_dict")}
    states = others.pop("optimizer_states")
    for number, (optimizer, own) in enumerate(zip(states, content["optimizer_parameters"], strict=True)):
        names = [f"model.{name}" for name in own]
        parts[f"optimizer_{number}"] = {
            "state": {names[place]: slots for place, slots in optimizer["state"].items()},
            "param_groups": [
                {**group, "params": [names[place] for place in group["params"]]} for group in optimizer["param_groups"]
            ],
        }
    return write_folder(folder, parts, others)


def write_folder(folder: Path, parts: dict[str, Any], others: Any) -> Path:
    """The folder of a sharded checkpoint, by one process: what is spread over processes, and the rest."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save(parts, checkpoint_id=folder, no_dist=True)
    torch.save(others, folder / "meta.pt")
    return folder


class Evil:
    """Leaves a sign where it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return (Path.touch, (self.sign,))


def start(*arguments: Any) -> subprocess.Popen[str]:
    """``epibert train`` in processes of its own, which share a group."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name in ("PL_GLOBAL_SEED", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    return subprocess.Popen(
        [sys.executable, "-m", "parity.command", "train", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and what was said."""
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


class ShardedDouble(ShardedEpiBERTLightning):
    """In float64 by itself: Lightning's strategy for sharded models refuses the Trainer's ``64-true``."""

    def __init__(self, config: EpiBERTConfig | dict[str, Any], **options: Any) -> None:
        super().__init__(config, **options)
        self.double()


class MeanOfHalves(EpiBERTLightning):
    """One process that computes what two do with half of its batch each: the mean of their losses."""

    def loss(self, prediction: torch.Tensor, batch: Any) -> torch.Tensor:
        if len(prediction) % 2:
            return super().loss(prediction, batch)
        half = len(prediction) // 2
        parts = (slice(half), slice(half, None))
        return torch.stack([super(MeanOfHalves, self).loss(prediction[p], [v[p] for v in batch]) for p in parts]).mean()


class WaitsInValidation(Callback):
    """Leaves a sign at the first batch of the first validation, and waits there for a signal."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            (self.folder / "validating").touch()
            deadline = time.monotonic() + 60
            while not trainer._signal_connector.received_sigterm and time.monotonic() < deadline:
                time.sleep(0.01)
