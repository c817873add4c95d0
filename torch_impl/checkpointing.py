"""Checkpoints that survive a kill and run no code when they are read, and memory for long windows.

What resuming exactly takes beside this stands elsewhere: the loader's place in the epoch in ``data_module``, random
numbers in ``callbacks``.
"""

import contextlib
import fcntl
import os
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from torch_impl.model import BatchNorm, Trunk

KEPT_PRODUCTS = (torch.ops.aten.convolution.default, torch.ops.aten.addmm.default)
"""Convolutions and products with a bias, most of a forward pass; attention changes in place what it multiplies."""

OPTIMIZER_PARAMETERS = "optimizer_parameters"
"""Entry of a Lightning checkpoint: for each optimizer the names of its parameters, in the order of its state."""


_SCRATCH = re.compile(r"\..+\.ckpt-[a-z0-9_]{8}")
"""Names of checkpoints that are being written: what ``mkstemp`` makes of that of the checkpoint."""


class TrainingError(ValueError):
    """A request or an input of training that cannot be honoured. The message says what and where, in one line."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes all of a checkpoint or nothing, and reads nothing but tensors and plain values.

    Lightning's own writing may leave half a file in place of a good one where the folder for temporary files is on
    another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):
            raise TrainingError(f"{path}: checkpoints are written to folders, not to other places")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
                # Readable like any other new file: mkstemp's is private.
                mask = os.umask(0)
                os.umask(mask)
                Path(scratch).chmod(0o666 & ~mask)
                Path(scratch).replace(target)
        finally:
            Path(scratch).unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint_file(path, map_location)


def remove_unfinished(folder: Path) -> None:
    """Removes what ``SafeCheckpointIO`` began to write into a folder before its process was killed.

    A file that is being written is locked, and a process that ends gives up its locks.
    """
    for path in folder.glob(".*-*"):
        if _SCRATCH.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def read_checkpoint_file(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a Lightning checkpoint, read without running any code that it may hold.

    Args:
        path: Of a file, or of the folder that a sharded model is written to, which is read as if it were one.
        map_location: Device of a file's tensors; a folder's are on the CPU.

    Raises:
        TrainingError: There is none, or it is damaged, or holds more than tensors and plain values.
    """
    if Path(path).is_dir():
        from torch_impl.sharded_checkpoint import read_sharded_checkpoint

        return read_sharded_checkpoint(path)
    try:
        found = torch.load(path, map_location=map_location, weights_only=True)
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise TrainingError(f"{path} holds more than tensors and plain values, or is no checkpoint: not read") from None
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise TrainingError(
            f"{path} is damaged or no checkpoint: {type(error).__name__} {str(error).partition(chr(10))[0]}"
        ) from None
    if not isinstance(found, dict) or "state_dict" not in found:
        raise TrainingError(f"{path} is no Lightning checkpoint: it has no state_dict")
    return found


def parameter_names(model: nn.Module, optimizers: list[Any]) -> list[list[str]]:
    """For each optimizer the names of its parameters, in the order in which its state numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        for optimizer in optimizers
    ]


def differences(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """What two configurations do not have in common, one line a field; sequences are alike whatever their type."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple | list) else value

    return [
        f"{name}: the checkpoint has {plain(saved.get(name))}, the configuration {plain(mine.get(name))}"
        for name in sorted({*mine, *saved})
        if plain(mine.get(name)) != plain(saved.get(name))
    ]


def checkpoint_activations(model: Trunk, *, keep_products: bool = False) -> None:
    """Makes the blocks of a model keep their inputs alone for the backward pass, and compute the rest again then.

    Takes a third more time and, for windows of full length, a fraction of the memory. Dropout draws the same masks
    again, and BatchNorm does not count a batch twice.

    Args:
        model: Changed in place; its state keeps its names.
        keep_products: Keep the results of convolutions and of products with a bias as well, so that little but what
            lies between them is computed again: less time for more memory. On a processor it saves little, since
            training keeps little else without checkpointing either.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    for block in blocks(model):
        block.forward = partial(_checkpointed, block.forward, norms, keep_products)


def blocks(model: Trunk) -> list[nn.Module]:
    """The large parts of a model, one after the other: what is computed again, or sharded, as a whole."""
    return [
        model.stem_res_conv,
        *model.conv_tower,
        model.stem_res_conv_atac,
        *model.conv_tower_atac,
        *model.performer.layers,
    ]


def _checkpointed(forward: Any, norms: list[BatchNorm], keep_products: bool, *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = partial(_contexts, norms, keep_products)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, determinism_check="default")


def _contexts(
    norms: list[BatchNorm], keep_products: bool
) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    if not keep_products:
        return contextlib.nullcontext(), _statistics_kept(norms)
    first, again = create_selective_checkpoint_contexts(_kept)
    return first, _both(again, norms)


def _kept(_: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT_PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


@contextlib.contextmanager
def _both(again: contextlib.AbstractContextManager, norms: list[BatchNorm]) -> Iterator[None]:
    with _statistics_kept(norms), again:
        yield


@contextlib.contextmanager
def _statistics_kept(norms: list[BatchNorm]) -> Iterator[None]:
    """No update of running statistics."""
    rates = [norm.update_rate for norm in norms]
    for norm in norms:
        norm.update_rate = 0.0
    try:
        yield
    finally:
        for norm, rate in zip(norms, rates, strict=True):
            norm.update_rate = rate
