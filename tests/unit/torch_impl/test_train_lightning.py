"""The older command line: what it stands for, and that it runs."""

import pytest
import torch

from tests.unit.sources import ROOT
from tests.unit.torch_impl.training import load, quiet
from torch_impl import train_lightning

OLD = "--batch_size 4 --gpus 2 --max_epochs 100 --learning_rate 1e-4"


@pytest.fixture
def given(monkeypatch) -> list[str]:
    seen: list[str] = []

    def main(arguments: list[str], program: str) -> int:
        seen.extend(arguments)
        return 0

    monkeypatch.setattr(train_lightning, "main", main)
    return seen


@pytest.mark.parametrize(("present", "accelerator", "devices"), [(0, "cpu", 1), (1, "gpu", 1), (4, "gpu", 2)])
def test_the_older_line_is_the_published_configuration(given, monkeypatch, capsys, present, accelerator, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: present)
    assert train_lightning.run(["--data_dir", "D", *OLD.split()]) == 0
    assert given[:2] == ["fit", "--config"]
    assert (ROOT / "configs" / "pretrain.yaml").samefile(given[2])
    assert sorted(given[3:]) == sorted(
        [
            "--data.init_args.folder=D",
            "--data.init_args.batch_size=4",
            "--trainer.max_epochs=100",
            "--model.init_args.peak=0.0001",
            f"--trainer.accelerator={accelerator}",
            f"--trainer.devices={devices}",
            "--trainer.logger.init_args.save_dir=out/train",
        ]
    )
    said = capsys.readouterr().err
    assert ("2 GPUs asked for" in said) == (present < 2)


def test_no_gpu_asked_for_is_no_news(given, capsys):
    assert train_lightning.run(["--data_dir", "D", "--gpus", "0"]) == 0
    assert "asked for" not in capsys.readouterr().err
    assert "--trainer.accelerator=cpu" in given


def test_wrong_options_exit_with_2(given, capsys):
    assert train_lightning.run(["--data_dir", "D", "--gpus", "-1"]) == 2
    assert "--gpus must be 0 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        train_lightning.run(["--nothing", "D"])
    assert exit_.value.code == 2
    assert given == []


@quiet
@pytest.mark.usefixtures("environment")
def test_the_older_line_trains(tiny_records, tmp_path, monkeypatch, capsys):
    """All of it but the size of the model and the number of epochs."""
    monkeypatch.chdir(tmp_path)
    old = ["--data_dir", str(tiny_records), *OLD.replace("100", "1").split()]
    assert train_lightning.run([*old, "--config", "tiny", "--output_dir", "here"]) == 0
    (last,) = tmp_path.glob("here/**/last.ckpt")
    content = load(last)
    assert content["hyper_parameters"]["peak"] == float(OLD.rpartition(" ")[2])
    assert content["global_step"] == 1
