"""What training needs beside Lightning's own callbacks.

Clipping has none: each optimizer clips its own gradients, as the original's do (``optim``). Early stopping with the
original's counting stands in ``early_stopping``.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.callbacks import ThroughputMonitor as LightningThroughputMonitor
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from torch_impl.checkpointing import OPTIMIZER_PARAMETERS, TrainingError, parameter_names, remove_unfinished

DEFAULT_SEED = 0


class NonFiniteError(RuntimeError):
    """Training has gone to NaN or infinity."""


class ResumableTraining(Callback):
    """Makes a run that resumes compute what it would have computed, and its checkpoints complete.

    Random numbers of a step, those of dropout, depend on seed, step and process alone, as what is drawn for an example
    depends on seed, epoch and record alone. So nothing has to be restored, and whatever draws in between, such as a
    validation, has no influence.

    Args:
        seed: Of all steps; that of ``seed_everything`` when None. A run that resumes keeps the seed it began with.

    Raises:
        TrainingError: The seed is negative.
    """

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise TrainingError(f"seed must be at least 0, not {seed}")
        self.seed = seed
        self._validating = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Gives the module its final dtype: Lightning fills it from a checkpoint first, and would round to float32."""
        trainer.precision_plugin.convert_module(pl_module)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Settles the seed, and clears away what an earlier process of the run left half written."""
        if self.seed is None:
            self.seed = int(os.environ.get("PL_GLOBAL_SEED", DEFAULT_SEED))
        if trainer.is_global_zero:
            folders = {c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)}
            if trainer.ckpt_path is not None:
                folders.add(Path(trainer.ckpt_path).parent)
            for folder in sorted({Path(folder) for folder in folders if folder is not None}):
                remove_unfinished(folder)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds the step."""
        assert self.seed is not None
        step = trainer.fit_loop.total_batch_idx
        entropy = np.random.SeedSequence((self.seed, step, trainer.global_rank))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)

    def on_validation_batch_start(self, *_: Any) -> None:
        """From here on a checkpoint would leave out the rest of the validation."""
        self._validating = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """And from here on it has all of it."""
        self._validating = False

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds which parameter each number in the optimizers' states stands for; weights travel by it to TensorFlow."""
        model = getattr(pl_module, "model", pl_module)
        checkpoint[OPTIMIZER_PARAMETERS] = parameter_names(model, trainer.optimizers)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Saves ``last.ckpt`` when the run is asked to end (SIGTERM), which Lightning heeds between two steps.

        Not after anything else: within a step there is nothing to resume from, and the last checkpoint is better. Nor
        within a validation where there is one already: a run that resumes from it would leave out the rest.
        """
        if not isinstance(exception, SIGTERMException):
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_last and callback.dirpath is not None:
                path = Path(callback.dirpath) / (callback.CHECKPOINT_NAME_LAST + callback.FILE_EXTENSION)
                if not (self._validating and path.exists()):
                    trainer.save_checkpoint(path)

    def state_dict(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the seed that the run began with."""
        self.seed = state_dict["seed"]


class FiniteTraining(Callback):
    """Ends a run whose weights have become NaN or infinite, before a checkpoint of them is written.

    A loss may be NaN without harm: where no bin of a batch is masked, as in the original, its gradient is zero. So a
    loss that is not finite makes the weights be looked at, and they decide.

    Args:
        monitor: Name of the logged training loss.

    Raises:
        TrainingError: While training: nothing of this name is logged.
    """

    def __init__(self, monitor: str = "train_loss") -> None:
        self.monitor = monitor

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Looks at the loss, which is that of all processes, so that all come to the same conclusion."""
        loss = trainer.callback_metrics.get(self.monitor)
        if loss is None:
            raise TrainingError(f"no {self.monitor!r} is logged, whose value would tell whether training has diverged")
        if bool(torch.isfinite(loss)):
            return
        self._check(pl_module, f"the training loss is {float(loss)} at step {trainer.global_step}")
        if trainer.is_global_zero:
            warnings.warn(
                f"the training loss is {float(loss)} at step {trainer.global_step}: no bin was masked", stacklevel=2
            )

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuses to save weights that are not finite."""
        self._check(pl_module, f"the weights are not finite at step {trainer.global_step}")

    @staticmethod
    def _check(module: lightning.LightningModule, what: str) -> None:
        tensors = (*module.named_parameters(), *module.named_buffers())
        wrong = [name for name, value in tensors if not bool(torch.isfinite(value).all())]
        if wrong:
            raise NonFiniteError(
                f"{what}, and so are {len(wrong)} tensors of the model, {wrong[0]} first; the checkpoints are those "
                "from before"
            )


class ThroughputMonitor(LightningThroughputMonitor):
    """Lightning's monitor, told what a batch is: examples as samples, base pairs as items.

    Logs ``train|device/samples_per_sec`` and ``train|device/items_per_sec`` (base pairs a second) among others, for
    each process, and without ``device/`` for all.

    Args:
        window_size: Steps that a rate is the mean of, at least 2.

    Raises:
        TrainingError: They are fewer.
    """

    def __init__(self, window_size: int = 20) -> None:
        if window_size < 2:
            raise TrainingError(f"window_size must be at least 2, not {window_size}")
        super().__init__(batch_size_fn=_examples, length_fn=_base_pairs, window_size=window_size)
        # The number of operations of a step is not known to the module, and that is no reason for a warning.
        self._module_has_flops = False


def _examples(batch: list[Tensor]) -> int:
    return batch[0].shape[0]


def _base_pairs(batch: list[Tensor]) -> int:
    return batch[0].shape[0] * batch[0].shape[1]
