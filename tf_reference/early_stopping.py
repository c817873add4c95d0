"""When the original stops training (spec, section 3.5)."""

from collections.abc import Sequence

import numpy as np


def early_stopping(
    losses: Sequence[float], counter: int, best_epoch: int | None, *, patience: int, min_delta: float
) -> tuple[bool, int, int | None]:
    """What the original decides after a validation.

    Args:
        losses: Validation losses so far, the current one last.
        counter: Validations since the last improvement, before this one.
        best_epoch: 0-based epoch of the last improvement, before this one.
        patience: Stop at this count.
        min_delta: An improvement falls below the best of all earlier losses by more than this; the first loss is
            compared with itself, so it never is one.

    Returns:
        Whether to stop, the counter, and the best epoch.
    """
    current = losses[-1]
    best = min(losses[:-1]) if len(losses) > 1 else current
    if current >= best - min_delta:
        return counter + 1 >= patience, counter + 1, best_epoch
    return False, 0, int(np.argmin(losses))
