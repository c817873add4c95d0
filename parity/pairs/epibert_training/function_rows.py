"""One loss or metric of the port on given numbers, and the row of the rung losses that judges what it returned."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from parity.compare import compare
from parity.records import Comparison, Reading
from parity.trace import attempt
from parity.training import LOSS


def value_and_gradient(
    loss: Callable[[torch.Tensor], torch.Tensor], predicted: torch.Tensor
) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """A loss of the port, its gradient by the prediction, and what it raised instead."""
    watched = predicted.detach().clone().requires_grad_()

    def both() -> tuple[np.ndarray, np.ndarray | None]:
        value = loss(watched)
        value.backward()
        return value.detach().double().numpy(), None if watched.grad is None else watched.grad.double().numpy()

    found, error = attempt(both)
    return (None, None, error) if found is None else (*found, "")


def with_arguments(function: Callable[..., Any], **arguments: Any) -> Callable[..., Any]:
    """A loss of truth and prediction, its other arguments given."""
    return lambda true, predicted: function(true, predicted, **arguments)


def loss_row(
    found: Any,
    expected: Any,
    quantity: str,
    case: str,
    *,
    tolerance: str = "float64",
    layer: str = LOSS,
    detail: str = "",
) -> Comparison:
    """A number or an array that the port computed, held against the expected one."""
    return compare(
        None if found is None else np.atleast_1d(np.asarray(found, dtype=np.float64)),
        np.atleast_1d(np.asarray(expected, dtype=np.float64)),
        gate="losses",
        case=case,
        reading=Reading.ISOLATED,
        precision="float32" if tolerance.startswith("float32") else "float64",
        mode="training",
        tolerance=tolerance,
        reference_path="",
        port_path="",
        layer=layer,
        quantity=quantity,
        detail=detail,
    )


def streamed(make: Callable[[], Any], batches: Sequence[Sequence[torch.Tensor]]) -> list[tuple[np.ndarray | None, str]]:
    """What a metric of the port says after every batch (prediction, truth), or what it raised."""
    made, error = attempt(make)
    metric: Any = made
    results: list[tuple[np.ndarray | None, str]] = []
    for batch in batches:
        if not error:
            _, error = attempt(lambda batch=batch: metric.update(*batch))
        value, raised = (None, error) if error else attempt(lambda: metric.compute().numpy())
        results.append((value, raised))
    return results
