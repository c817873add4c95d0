"""The loggers beside CSV, neither of which needs an account or a network."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.torch_impl.training import finish, start, write_config

pytestmark = pytest.mark.slow


def logger(class_path: str, **arguments: Any) -> dict[str, Any]:
    return {"logger": {"class_path": f"lightning.pytorch.loggers.{class_path}", "init_args": arguments}}


def run(folder: Path, records: Path, trainer: dict[str, Any]) -> None:
    status, said = finish(start("fit", "--config", write_config(folder, records, trainer=trainer)))
    assert status == 0, said


def test_tensorboard(records, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, records, logger("TensorBoardLogger", save_dir=str(tmp_path), name="", version="tb"))
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert len(events.Scalars("train_loss")) == 8
    assert {"val_loss", "val_pearson", "val_r2"} <= set(events.Tags()["scalars"])


def test_wandb_offline(records, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "WANDB_MODE", "offline")
    monkeypatch.setitem(os.environ, "WANDB_SILENT", "true")
    run(tmp_path, records, logger("WandbLogger", save_dir=str(tmp_path), offline=True, project="test"))
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert written.stat().st_size > 1000
