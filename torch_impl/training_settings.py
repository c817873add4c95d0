"""What LightningModules of ours have in common: ranges of options, float32 on a GPU, examples that count only once."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torch_impl.checkpointing import TrainingError
from torch_impl.config import ROOM, has_room
from torch_impl.losses import LOSS_TYPES
from torch_impl.memory import keep_freed_memory

Accepts = Callable[[Any], bool]


def _number(accepts: Accepts) -> Accepts:
    """A finite number that something else holds of as well."""
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and accepts(value)
    )


def _whole(smallest: int) -> Accepts:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= smallest


_NOT_NEGATIVE = (_number(lambda value: value >= 0), "a number from 0 up")
_SWITCH = (lambda value: isinstance(value, bool), "true or false")

RANGES: Mapping[str, tuple[Accepts, str]] = {
    "loss_type": (lambda value: value in LOSS_TYPES, " or ".join(LOSS_TYPES)),
    "total_weight": _NOT_NEGATIVE,
    "atac_scale": _NOT_NEGATIVE,
    "unmask_loss": _SWITCH,
    "peak": _NOT_NEGATIVE,
    "peak_rna": _NOT_NEGATIVE,
    "warmup": (_whole(0), "a whole number from 0 up"),
    "decay": (_whole(1), "a whole number from 1 up"),
    "floor": (_number(lambda value: 0 <= value <= 1), "a number from 0 to 1"),
    "constant_rate": _SWITCH,
    # With an epsilon of 0 a weight whose gradient has always been 0 becomes 0 / 0.
    "epsilon": (_number(lambda value: value > 0), "a number above 0"),
    "weight_decay": _NOT_NEGATIVE,
    "global_clipnorm": (
        lambda value: value is None or _number(lambda norm: norm > 0)(value),
        "a number above 0, or null for no clipping",
    ),
    "faithful_bf16": _SWITCH,
    "checkpoint_blocks": _SWITCH,
    "checkpoint_keeps_products": _SWITCH,
    "float64_metrics": _SWITCH,
    "tf32": _SWITCH,
}
"""Option -> what it may be, as a test and in words."""

LARGEST_RATE = 1000
"""Adam moves a weight by about the learning rate in every step, and weights are around 1."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Insists that the options of a module are in range.

    Args:
        settings: Its hyperparameters. ``config`` checks itself; what a module derived from ours adds is not known here.

    Raises:
        TrainingError: They are not; the message names each that is not.
    """
    wrong = []
    for name, (accepts, what) in RANGES.items():
        if name not in settings:
            continue
        value = settings[name]
        if not accepts(value):
            wrong.append(f"{name} must be {what}, not {value!r}")
        elif name in ("peak", "peak_rna") and value > LARGEST_RATE:
            wrong.append(f"{name} must be at most {LARGEST_RATE}, not {value!r}")
        elif isinstance(value, int | float) and not has_room(value):
            wrong.append(f"{name} must be {'0 or ' * accepts(0)}{ROOM}, not {value!r}")
    if wrong:
        raise TrainingError("; ".join(wrong))


def check_rounding(faithful_bf16: bool, precision: str) -> None:
    """Insists that no two round the same numbers.

    Args:
        faithful_bf16: Whether the model rounds where the original does.
        precision: The Trainer's.

    Raises:
        TrainingError: Both do.
    """
    if faithful_bf16 and precision != "32-true":
        raise TrainingError(f"faithful_bf16 rounds by itself: the Trainer's precision must be 32, not {precision}")


def choose_tf32(allowed: bool) -> None:
    """Says for this process whether a GPU may round the factors of float32 products and convolutions to 11 bits.

    PyTorch's own default is no for products and yes for convolutions, which makes a float32 model a thousand times less
    accurate than its name says.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def save_memory(trainer: Any) -> None:
    """On a processor, lets the process keep what a pass frees, for the next.

    Args:
        trainer: A Trainer about to do anything.
    """
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()


def free_gradients(module: Any) -> None:
    """Drops the gradients of the last step before the forward pass of the next; Lightning does after it.

    Args:
        module: A LightningModule in training. Gradients that add up over several batches stay.
    """
    if module.trainer.accumulate_grad_batches == 1:
        for parameter in module.parameters():
            parameter.grad = None


def repeated_examples(loader: Any, batch_idx: int) -> int:
    """How many examples at the end of a batch are there only to make all processes' steps even.

    Args:
        loader: That gave the batch out; one that is none of ours repeats nothing that is known.
        batch_idx: Number of the batch.
    """
    repeated = getattr(getattr(loader, "sampler", None), "repeated", 0)
    return repeated if repeated and batch_idx == len(loader) - 1 else 0


def check_counted_once(loaders: Any) -> None:
    """Insists that a module which counts all that it is given is given each example once.

    Args:
        loaders: One, or a list of them.

    Raises:
        TrainingError: Some come twice, to make the steps of processes even that share one sharded model.
    """
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        repeated = getattr(getattr(loader, "sampler", None), "repeated", 0)
        if repeated:
            raise TrainingError(
                f"{repeated} examples would be counted twice: this module is not evaluated with a sharded model, "
                "unless the examples divide among the processes"
            )
