"""Starts training from somewhere: a checkpoint of the original, a transplanted folder, or another Lightning run.

A Lightning callback, named by its class path in a configuration or made by `epibert train --init_from`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.tensor import DTensor

from torch_impl import EpiBERTRampage
from torch_impl.model import Trunk
from weights.constants import Choice
from weights.errors import CheckpointError, MappingError, listing
from weights.lightning_checkpoint import is_lightning_checkpoint, load_lightning, load_optimizer_state
from weights.model_directory import is_model_directory, load_saved_training_state, load_transplanted
from weights.transfer import FUNCTION, Transfer, is_fine_tuned, transfer
from weights.transplant import transplant


def fill(path: str | os.PathLike[str], model: Trunk, *, constants: Choice = "auto") -> Mapping[str, np.ndarray]:
    """Fills a model from whatever holds one of the same kind and configuration: all of it, or nothing.

    Args:
        path: TensorFlow checkpoint, SavedModel, Keras .h5 file, folder of `epibert weights transplant`, or Lightning
            checkpoint.
        model: changed in place; its mode, device and dtypes stay.
        constants: as for `transplant`, where the source holds none.

    Returns:
        slots and counters by the port's names, read on access; may be empty.

    Raises:
        CheckpointError: the source cannot be read or is not that of such a model.
    """
    if is_lightning_checkpoint(path):
        source, training_state = load_lightning(path)
    elif is_model_directory(path):
        source, training_state = load_transplanted(path), load_saved_training_state(path)
    else:
        return transplant(path, model, constants=constants).training_state
    found = [
        f"{name}: {getattr(source.config, name)}, to be filled is {getattr(model.config, name)}"
        for name in FUNCTION
        if getattr(source.config, name) != getattr(model.config, name)
    ]
    if found:
        raise MappingError(listing(f"{path} is of a model that computes something else", found))
    _copy(path, source, model)
    return training_state


def _copy(path: str | os.PathLike[str], source: Trunk, model: Trunk) -> None:
    """Everything of one model into another, into whose dtypes it must go without rounding."""
    state, target = source.state_dict(), model.state_dict()
    wrong = [f"{name} is missing" for name in target if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in target]
    for name in state.keys() & target.keys():
        if not hasattr(state[name], "shape") or not hasattr(target[name], "shape"):
            continue
        if state[name].shape != target[name].shape:
            wrong.append(f"{name}: {tuple(state[name].shape)} into {tuple(target[name].shape)}")
        elif not np.can_cast(_numpy_name(state[name]), _numpy_name(target[name])):
            wrong.append(f"{name}: {state[name].dtype} would be rounded to {target[name].dtype}")
    if wrong:
        raise MappingError(listing(f"{path} and the model do not match", sorted(wrong)))
    model.load_state_dict(state, strict=True)


def _numpy_name(tensor: object) -> str:
    name = str(getattr(tensor, "dtype", "")).removeprefix("torch.")
    return "float16" if name == "bfloat16" else name


class InitializeFrom(Callback):
    """Fills the module's model when a run begins, and its optimizers if asked to.

    A run that resumes (`ckpt_path`) has its own weights, so the callback then does nothing: the same command line
    starts a run and goes on with it.

    Args:
        path: see `fill`; where a model is fine-tuned also a pretrained one, which gives it trunk and ATAC head.
        training_state: also take the optimizers' moments and the number of steps, and go on at that step.
        constants: as for `transplant`.
        allow: of a pretrained model, as for `transfer`.

    Attributes:
        fills_model: tells the training command that the model does not stay as it was drawn.
        record: of the transfer, once there was one; also written to `transfer.json` in the folder of the logs.
    """

    fills_model = True

    def __init__(
        self, path: str, training_state: bool = False, constants: Choice = "auto", allow: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.training_state = training_state
        self.constants: Choice = constants
        self.allow = tuple(allow)
        self._fitted = False
        self.record: Transfer | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fills the model, and the optimizers if asked to; by now they have their final dtype and place.

        Raises:
            CheckpointError: see `fill`; or the source has no training state, or one that does not fit.
        """
        self._fitted = True
        if trainer.ckpt_path is not None:
            trainer.print(f"{trainer.ckpt_path} is resumed, so nothing is taken from {self.path}")
            return
        model = _model(pl_module)
        found = self.fill(model)
        if self.record is not None:
            self._report(trainer, self.record)
            return
        trainer.print(f"the model is that of {self.path}")
        if not self.training_state:
            return
        if not len(found):
            raise CheckpointError(f"{self.path} has no state of an optimizer")
        step = load_optimizer_state(trainer.optimizers, model, found)
        continue_at(trainer, step)
        trainer.print(f"training goes on from {self.path} at step {step}")

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fills the model where validating is all there is to do."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin(trainer, pl_module)

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fills the model."""
        self._begin(trainer, pl_module)

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fills the model."""
        self._begin(trainer, pl_module)

    def _begin(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Fills a model that has been neither trained nor taken from a checkpoint of the Trainer's."""
        if trainer.ckpt_path is not None:
            trainer.print(f"the model is that of {trainer.ckpt_path}; nothing is taken from {self.path}")
        elif not self._fitted:
            self.fill(_model(module))

    def fill(self, model: Trunk) -> Mapping[str, np.ndarray]:
        """Fills a model for fine-tuning from a pretrained one by `transfer`, and every other from one of its kind.

        Raises:
            CheckpointError: see `fill` and `transfer`; or the training state of a pretrained model is asked for; or
                there is something to allow and nothing is transferred.
        """
        if not isinstance(model, EpiBERTRampage) or is_fine_tuned(self.path):
            if self.allow:
                raise CheckpointError(
                    f"{self.path} fills a model of its own kind, so there is nothing to allow: {', '.join(self.allow)}"
                )
            return fill(self.path, model, constants=self.constants)
        if self.training_state:
            raise CheckpointError(f"{self.path} is pretrained: its optimizer has no state for those of fine-tuning")
        self.record = transfer(self.path, model, allow=self.allow, constants=self.constants)
        return {}

    def _report(self, trainer: lightning.Trainer, record: Transfer) -> None:
        count = f"{len(record.moved)} tensors moved, {len(record.fresh)} fresh, {len(record.dropped)} dropped"
        folder = trainer.log_dir  # asks all processes
        if folder is None or not trainer.is_global_zero:
            trainer.print(f"from the pretrained {self.path}: {count}")
            return
        path = Path(folder) / "transfer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.to_json() + "\n", encoding="utf-8")
        trainer.print(f"from the pretrained {self.path}: {count}, listed in {path}")


def continue_at(trainer: lightning.Trainer, step: int) -> None:
    """Sets the number of steps that were made: for limits, logs, and every schedule of the learning rate."""
    loop = trainer.fit_loop.epoch_loop
    automatic = loop.automatic_optimization.optim_progress.optimizer.step.total
    for progress in (automatic, loop.manual_optimization.optim_step_progress.total):
        progress.ready = progress.completed = step
    loop._batches_that_stepped = step
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": step, "_step_count": step + 1})
        rates = scheduler.get_lr()
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = list(rates)


def _model(module: lightning.LightningModule) -> Trunk:
    model = getattr(module, "model", None)
    if not isinstance(model, Trunk):
        raise CheckpointError(f"{type(module).__name__} has no model of ours to fill")
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise CheckpointError("a model that is sharded over devices cannot be filled: begin with DDP, or resume a run")
    return model
