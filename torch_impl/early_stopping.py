"""When the original stops training.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3.5.
"""

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from torch import Tensor

from torch_impl.checkpointing import TrainingError


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

    def update(self, loss: float) -> bool:
        """Take in the loss of one validation.

        Args:
            loss: The validation loss. NaN is no improvement and never the best.

        Returns:
            Whether to stop.
        """
        best = self.best if self.epochs else loss
        improved = loss < best - self.min_delta
        if improved:
            self.counter = 0
            self.best_epoch = self.epochs
        else:
            self.counter += 1
        self.best = min(self.best, loss) if loss == loss else self.best
        self.epochs += 1
        return not improved and self.counter >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What it takes to go on later; not the arguments."""
        return {name: getattr(self, name) for name in ("counter", "best", "best_epoch", "epochs")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self.counter, self.best = state["counter"], state["best"]
        self.best_epoch, self.epochs = state["best_epoch"], state["epochs"]


class EpiBERTEarlyStopping(EarlyStopping):
    """Lightning's callback with the counting of the original.

    Where it looks, what it does about values that are not finite, and how it stops all processes are Lightning's.

    Args:
        monitor: Name of the logged validation loss.
        patience: As for ``EarlyStoppingCounter``; the original's 50 counts validations.
        min_delta: As for ``EarlyStoppingCounter``.
        check_finite: Stop at once when the loss is NaN or infinite. The original goes on.
        verbose: Log why.

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
    ) -> None:
        super().__init__(monitor, min_delta, patience, verbose, check_finite=check_finite)
        self.counting = EarlyStoppingCounter(patience, min_delta)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        if self.check_finite and not torch.isfinite(current):
            return super()._evaluate_stopping_criteria(current)
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
