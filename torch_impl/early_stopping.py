"""When the original stops training.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3.5.
"""

import math
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from torch_impl.checkpointing import TrainingError

_STATE = ("counter", "best", "best_epoch", "epochs", "improved", "last")


class EarlyStoppingCounter:
    """Counts validations that did not improve on the best loss of all earlier ones.

    Two things differ from what is usual. The first loss is compared with itself, so it counts as no improvement. And
    the best is the lowest of all earlier losses, also of those that were better by less than ``min_delta``.

    Args:
        patience: Stop when this many validations in a row brought no improvement.
        min_delta: By how much a loss must fall below the best to count; more than this.

    Attributes:
        counter: Validations since the last improvement.
        best: Lowest loss so far; infinity before the first.
        best_epoch: 0-based number of the validation that brought the last improvement; None before it.
        epochs: Number of validations so far.
        improved: Whether the last one was an improvement.
        last: Its loss.

    Raises:
        TrainingError: ``patience`` is not positive, or ``min_delta`` negative or no number.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise TrainingError(f"patience must be at least 1, not {patience}")
        if not 0 <= min_delta < math.inf:
            raise TrainingError(f"min_delta must be a number from 0 up, not {min_delta}")
        self.patience = patience
        self.min_delta = min_delta
        self.counter = 0
        self.best = math.inf
        self.best_epoch: int | None = None
        self.epochs = 0
        self.improved = False
        self.last = math.nan

    def update(self, loss: float) -> bool:
        """Take in the loss of one validation.

        Args:
            loss: The validation loss. NaN is no improvement and never the best.

        Returns:
            Whether to stop.
        """
        best = self.best if self.epochs else loss
        self.improved = loss < best - self.min_delta
        if self.improved:
            self.best_epoch = self.epochs
        self.best = min(self.best, loss) if loss == loss else self.best
        self.epochs += 1
        self.last = loss
        return self.repeat()

    def repeat(self) -> bool:
        """Count the last validation once more, as the original does in an epoch without one.

        It compares the same loss with the same earlier ones: an improvement stays one, anything else counts again.

        Returns:
            Whether to stop.
        """
        self.counter = 0 if self.improved else self.counter + 1
        return not self.improved and self.counter >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on later; not the arguments."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        # The last two are younger than some states, and needed in epochs without a validation alone.
        for name in _STATE[:4]:
            setattr(self, name, state[name])
        self.improved, self.last = state.get("improved", False), state.get("last", math.nan)


class EpiBERTEarlyStopping(EarlyStopping):
    """Lightning's callback with the counting of the original.

    Where it looks, what it does about values that are not finite, and how it stops all processes are Lightning's.

    Args:
        monitor: Name of the logged validation loss.
        patience: As for ``EarlyStoppingCounter``; the original's 50 counts validations.
        min_delta: As for ``EarlyStoppingCounter``.
        check_finite: Stop at once when the loss is NaN or infinite. The original goes on.
        verbose: Log why.
        every: The monitored loss is new in every so many epochs, the first among them. In the others the last one
            counts again, as in the original's fine-tuning, which validates in every second epoch and counts in all.

    Attributes:
        counting: The counter.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 50,
        min_delta: float = 5e-7,
        *,
        check_finite: bool = True,
        verbose: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__(monitor, min_delta, patience, verbose, check_finite=check_finite)
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.every = every
        self.counting = EarlyStoppingCounter(patience, min_delta)
        self._new = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Counts this epoch."""
        self._new = trainer.current_epoch % self.every == 0
        if not self._new and self.counting.epochs:
            # Lightning forgets it when a run is resumed.
            trainer.callback_metrics.setdefault(self.monitor, torch.tensor(self.counting.last))
        super().on_validation_end(trainer, pl_module)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        if not self._new:
            stop = self.counting.repeat()
        elif self.check_finite and not torch.isfinite(current):
            return super()._evaluate_stopping_criteria(current)
        else:
            stop = self.counting.update(float(current))
        self._mirror()
        if not stop:
            return False, None
        self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
        return True, (
            f"{self.monitor} has not improved in {self.counting.counter} validations; the best was {self.counting.best}"
        )

    def _mirror(self) -> None:
        """Lightning's own fields, which its state and its messages use."""
        self.wait_count = self.counting.counter
        self.best_score = torch.tensor(self.counting.best)

    def state_dict(self) -> dict[str, Any]:
        """Lightning's state, and the counter's."""
        return {**super().state_dict(), "counting": self.counting.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        super().load_state_dict(state_dict)
        self.counting.load_state_dict(state_dict["counting"])
        # Lightning restores its patience, and it is the counter that counts.
        self.counting.patience = self.patience
        self._mirror()
