"""The older command line: ``python -m torch_impl.train_lightning --data_dir D --batch_size 4 --gpus 2 ...``.

It is ``epibert train fit`` with the published configuration, and says so: everything else is in ``epibert train``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_parser

from torch_impl.training_command import WRONG_USE, main

PROGRAM = "python -m torch_impl.train_lightning"
CONFIGS = Path(__file__).resolve().parent / "configs"


def train(
    data_dir: str,
    batch_size: int = 1,
    gpus: int = 0,
    max_epochs: int = 100,
    learning_rate: float | None = None,
    num_workers: int | None = None,
    resume: str | None = None,
    output_dir: str = "out/train",
    config: Literal["pretrain", "tiny"] = "pretrain",
) -> int:
    """Pre-train EpiBERT on converted records.

    Args:
        data_dir: Folder that `epibert data convert` wrote, with train/ and valid/.
        batch_size: Examples in a step of each process.
        gpus: Number of GPUs; 0 trains on the CPU. Where the machine has fewer, it trains on what there is, and says so.
        max_epochs: Passes over the training records.
        learning_rate: Highest learning rate; that of the configuration when left out.
        num_workers: Processes that load, for each that trains; that of the configuration when left out.
        resume: Checkpoint of a run to go on with.
        output_dir: Folder for logs and checkpoints.
        config: The published model, or a tiny one to try the command out.
    """
    if gpus < 0:
        print(f"{PROGRAM}: error: --gpus must be 0 or more, not {gpus}", file=sys.stderr)
        return WRONG_USE
    changes: dict[str, Any] = {
        "trainer.max_epochs": max_epochs,
        "trainer.logger.init_args.save_dir": output_dir,
        "data.init_args.folder": data_dir,
        "data.init_args.batch_size": batch_size,
        **_devices(gpus),
    }
    optional = {
        "model.init_args.peak": learning_rate,
        "data.init_args.workers": num_workers,
        "ckpt_path": resume,
    }
    changes |= {name: value for name, value in optional.items() if value is not None}
    file = CONFIGS / f"{config}.yaml"
    arguments = ["fit", "--config", str(file), *(f"--{name}={value}" for name, value in changes.items())]
    print(f"{PROGRAM}: this is: epibert train {' '.join(arguments)}", file=sys.stderr)
    return main(arguments, program=PROGRAM)


def _devices(gpus: int) -> dict[str, Any]:
    """Arguments of the Trainer for a number of GPUs, or for the CPU where there are none."""
    present = torch.cuda.device_count()
    used = min(gpus, present)
    if used < gpus:
        instead = f"{used} of them" if used else "the CPU"
        print(f"{PROGRAM}: {gpus} GPUs asked for, {present} here: training on {instead}", file=sys.stderr)
    if not used:
        return {"trainer.accelerator": "cpu", "trainer.devices": 1}
    # More than one process trains by DDP, which is Lightning's own choice.
    return {"trainer.accelerator": "gpu", "trainer.devices": used}


def run(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and trains.

    Args:
        arguments: Of the command line; those of the process when None.

    Returns:
        The exit status, as of ``epibert train``.
    """
    parser = auto_parser(train, as_positional=False, prog=PROGRAM)
    given = parser.parse_args(None if arguments is None else list(arguments))
    return train(**{name: given[name] for name in train.__annotations__ if name in given})


if __name__ == "__main__":
    sys.exit(run())
