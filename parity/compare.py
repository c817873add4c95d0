"""Holding two arrays against each other. The only place that turns numbers into a status."""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from parity.records import Comparison, Look, Reading, Status
from parity.tolerances import TABLE
from parity.trace import Sample

PIECE = 1 << 16
"""Numbers that are held against each other at a time: with their differences they stay in the processor's cache."""

SMALLEST_SQUARES = 1e-280
"""Sums of squares below this may have lost some to underflow."""


def distance(port: np.ndarray, reference: np.ndarray, scale: float | None = None) -> tuple[float, float]:
    """Relative L2 distance and relative peak of the difference of two finite arrays of one shape, in float64.

    Args:
        port: The array under test.
        reference: What it should be.
        scale: Root mean square to relate to, where the reference's own would mislead (means that cancel).

    Returns:
        (L2 norm of the difference / L2 norm of the reference, largest difference / largest reference value). Both are 0
        for equal arrays and infinite for a non-zero difference from a reference that is zero throughout.
    """
    if reference.size > PIECE:
        return _distance_of_pieces(port, reference, scale)
    port, reference = np.asarray(port, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    # Scaling by the largest value first keeps squares of huge and tiny numbers in range.
    unit = float(np.max(np.abs(reference), initial=0.0)) if scale is None else scale
    # A difference of huge numbers may overflow; infinite is the right answer then.
    with np.errstate(over="ignore"):
        difference = port - reference
        peak = float(np.max(np.abs(difference), initial=0.0))
    if peak == 0.0:
        return 0.0, 0.0
    if unit == 0.0 or not math.isfinite(peak):
        return math.inf, math.inf
    norm = math.sqrt(reference.size) if scale is not None else _norm(reference / unit)
    with np.errstate(over="ignore"):
        return _norm(difference / unit) / norm, peak / unit


def _distance_of_pieces(port: np.ndarray, reference: np.ndarray, scale: float | None) -> tuple[float, float]:
    """As ``distance``, holding no other array of that size."""
    largest, peak, squares, differences = _measure(port, reference)
    unit = largest if scale is None else scale
    if peak == 0.0:
        return 0.0, 0.0
    if unit == 0.0 or not math.isfinite(peak):
        return math.inf, math.inf
    if not all(SMALLEST_SQUARES < total < math.inf for total in (squares, differences)):
        # Squares of huge and of tiny numbers are out of range; those of numbers scaled by the largest are not.
        squares, differences = _measure(port, reference, unit)[2:]
        unit_of_squares = 1.0
    else:
        unit_of_squares = unit
    norm = math.sqrt(reference.size) if scale is not None else math.sqrt(squares) / unit_of_squares
    return math.sqrt(differences) / unit_of_squares / norm, peak / unit


def _measure(port: np.ndarray, reference: np.ndarray, unit: float = 1.0) -> tuple[float, float, float, float]:
    """One look at two large arrays, by as many threads as there are processors.

    Returns:
        (largest absolute value of the reference, that of the difference, sum of the squares of the reference over
        ``unit``, of the difference over ``unit``). NaN and infinities come through.
    """

    def piece(parts: list[np.ndarray]) -> tuple[float, float, float, float]:
        with np.errstate(over="ignore", invalid="ignore"):
            difference, theirs = (part.astype(np.float64, order="C").ravel() for part in parts)
            difference -= theirs
            largest, peak = _largest(theirs), _largest(difference)
            if unit != 1.0:
                difference /= unit
                theirs /= unit
            # Not a BLAS dot product, see _norm.
            squares, differences = (float(np.einsum("i,i", array, array)) for array in (theirs, difference))
            return largest, peak, squares, differences

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        largest, peak, squares, differences = zip(*pool.map(piece, _pieces(port, reference)), strict=True)
    # NumPy's maximum lets NaN through, Python's need not.
    return float(np.max(largest)), float(np.max(peak)), math.fsum(squares), math.fsum(differences)


def _largest(array: np.ndarray) -> float:
    return float(np.maximum(np.max(array), -np.min(array)))


def _pieces(*arrays: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Arrays of one shape, cut alike along their longest axis."""
    shape = arrays[0].shape
    axis = int(np.argmax(shape))
    step = max(1, PIECE * shape[axis] // arrays[0].size)
    for start in range(0, shape[axis], step):
        part = (slice(None),) * axis + (slice(start, start + step),)
        yield [array[part] for array in arrays]


def _first_non_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """Where an array has its first NaN or infinity, if it has one."""
    pieces = ([array],) if array.size <= PIECE else _pieces(array)
    if all(np.all(np.isfinite(piece)) for (piece,) in pieces):
        return None
    return tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])


def _norm(array: np.ndarray) -> float:
    # Not np.linalg.norm: that is a BLAS dot product, and thousands of small ones wait for its threads.
    return math.sqrt(float(np.sum(np.square(array))))


def compare(
    port: np.ndarray | None,
    reference: np.ndarray | None,
    *,
    gate: str,
    reading: Reading,
    precision: str,
    tolerance: str,
    reference_path: str,
    port_path: str,
    layer: str,
    quantity: str = "output",
    case: str = "",
    mode: str = "",
    order: int = 0,
    reference_same_precision: np.ndarray | None = None,
    scale: float | None = None,
    detail: str = "",
) -> Comparison:
    """Compares one array of the port with one of the reference.

    Args:
        port: The port's array; None when the port did not produce it.
        reference: The reference's array, in float64 where the precision is judged by distance; None when it has none.
        gate: Rung.
        reading: What the layer was fed with.
        precision: Precision of the port's computation.
        tolerance: Row of the table of tolerances.
        reference_path: Path on the reference's side.
        port_path: Path on the port's side.
        layer: Port layer that answers for a failure.
        quantity: Which array of the layer.
        case: Which model and inputs.
        mode: ``evaluation`` or ``training``.
        order: Position in the reference's order of execution.
        reference_same_precision: The reference's array in the port's precision; makes the row a ratio.
        scale: See ``distance``; that of the row of the table when None, which most have not.
        detail: What is known already, such as the exception of the port.

    Returns:
        The record; MISSING, NON_FINITE and shape mismatches never pass.
    """
    row = TABLE[tolerance]
    scale = row.scale if scale is None else scale

    def record(status: Status, detail: str = detail, **numbers: Any) -> Comparison:
        return Comparison(
            gate=gate,
            case=case,
            reading=reading,
            precision=precision,
            mode=mode,
            order=order,
            reference=reference_path,
            port=port_path,
            quantity=quantity,
            layer=layer,
            shape=None if reference is None else tuple(reference.shape),
            status=status,
            tolerance=tolerance,
            detail=detail,
            **numbers,
        )

    if port is None or reference is None:
        side = "port" if port is None else "reference"
        return record(Status.MISSING, detail or f"the {side} produced no such array")
    if port.shape != reference.shape:
        return record(Status.FAIL, f"shape: expected {tuple(reference.shape)}, got {tuple(port.shape)}")
    if reference.size == 0:
        return record(Status.FAIL, "nothing to compare: the arrays are empty")
    for side, array in (("port", port), ("reference", reference), ("reference", reference_same_precision)):
        index = None if array is None else _first_non_finite(array)
        if array is not None and index is not None:
            return record(Status.NON_FINITE, f"the {side} has {float(array[index])} at {index}")
    if row.ratio and reference_same_precision is None:
        return record(Status.MISSING, f"the reference has no such array in {precision} to measure its own error by")
    error, peak = distance(port, reference, scale)
    own, largest_peak = None, row.largest_peak
    if reference_same_precision is not None:
        if reference_same_precision.shape != reference.shape:
            return record(
                Status.FAIL, f"the reference changes its shape to {reference_same_precision.shape} in {precision}"
            )
        own, own_peak = distance(reference_same_precision, reference, scale)
        if not own <= row.largest_own:
            return record(Status.FAIL, f"the reference's own error in {precision} is {own:.2g}: too large to decide by")
        # Norms are stable numbers, single worst elements are not: their bound only has to find an element gone astray.
        largest_peak = row.peak_ratio * max(own_peak, row.floor)
    limit = row.bound(own, reference.size)
    passed = error <= limit and peak <= largest_peak
    differs = None
    if limit == 0.0:
        # A quotient may underflow, and -0.0 equals 0.0, but neither is the same bits.
        differs = (port != reference) | (np.signbit(port) != np.signbit(reference))
        passed = not np.any(differs)
    if not passed and not detail:
        with np.errstate(over="ignore"):
            apart = np.abs(port - reference) if differs is None else differs
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(apart)), reference.shape))
        detail = f"largest difference at {index}: expected {float(reference[index])!r}, got {float(port[index])!r}"
    return record(
        Status.PASS if passed else Status.FAIL,
        detail,
        error=error,
        peak=peak,
        reference_error=own,
        limit=limit,
        peak_limit=largest_peak,
    )


def undecided(row: Comparison) -> bool:
    """Whether more inputs could tell more: a ratio of two measured errors that is beyond its limit."""
    measured = row.error is not None and row.reference_error is not None and row.limit is not None
    return measured and row.status is Status.FAIL and TABLE[row.tolerance].looks > 0


def pool(rows: Sequence[Comparison]) -> Comparison:
    """One ratio over several inputs: the port's error over all of them against the reference's over all of them.

    Each input counts by its relative errors, so none outweighs another, and the first is one of them.

    Args:
        rows: The same comparison on each input, that which failed first.

    Returns:
        The first, with the status and the numbers of all together, and with each look; what fails on every input fails.
        A comparison that could not be measured on one of the inputs has that one's status.
    """
    first, row = rows[0], TABLE[rows[0].tolerance]
    for number, other in enumerate(rows):
        if other.error is None or other.reference_error is None or other.peak is None or other.peak_limit is None:
            return dataclasses.replace(first, status=other.status, detail=f"on input {number}: {other.detail}")
    looks = tuple(Look(error=r.error, reference_error=r.reference_error, peak=r.peak) for r in rows)  # type: ignore[arg-type]
    error, own = (
        math.sqrt(sum(size**2 for size in sizes) / len(looks))
        for sizes in ([look.error for look in looks], [look.reference_error for look in looks])
    )
    peak, largest_peak = max(look.peak for look in looks), max(r.peak_limit or 0.0 for r in rows)
    limit = row.bound(own, math.prod(first.shape or ()) * len(looks))
    passed = error <= limit and peak <= largest_peak and any(r.status is Status.PASS for r in rows)
    return dataclasses.replace(
        first,
        status=Status.PASS if passed else Status.FAIL,
        error=error,
        peak=peak,
        reference_error=own,
        limit=limit,
        peak_limit=largest_peak,
        looks=looks,
        detail=f"measured on {len(looks)} inputs; on the first alone {first.error:.2g}, where {first.limit:.2g} "
        f"passes, the reference's own {first.reference_error:.2g}; {first.detail}",
    )


def take(array: np.ndarray, sample: Sample) -> np.ndarray | None:
    """The part of a whole array that a sample kept; None when the shape is not the sample's."""
    if tuple(array.shape) != sample.full_shape:
        return None
    return np.take(array, sample.positions, axis=sample.axis)


def summaries(array: np.ndarray, axis: int) -> dict[str, np.ndarray]:
    """Statistics of a whole array under the names that recordings use."""
    return {
        "mean": np.asarray(array.mean()),
        "std": np.asarray(array.std()),
        "min": np.asarray(array.min()),
        "max": np.asarray(array.max()),
        "axis_mean": array.mean(axis=axis),
    }


def compare_array(
    found: np.ndarray | Sample | None,
    expected: np.ndarray | Sample | None,
    same: np.ndarray | Sample | None,
    **where: Any,
) -> Iterator[Comparison]:
    """Compares whole arrays, or a whole array with a sample: its kept part and, in float64, its summaries."""
    if isinstance(found, Sample):
        raise TypeError("the port's arrays are always whole")
    if not isinstance(expected, Sample):
        yield compare(found, expected, reference_same_precision=values_of(same), **where)
        return
    kept = None if found is None else take(found, expected)
    if found is not None and kept is None:
        where = where | {"detail": f"shape: expected {expected.full_shape}, got {tuple(found.shape)}"}
    yield compare(kept, expected.values, reference_same_precision=values_of(same), **where)
    if where["precision"] != "float64" or found is None or kept is None:
        return
    scale = float(np.hypot(expected.summaries["mean"], expected.summaries["std"]))
    of_port = summaries(found, expected.axis)
    for name, value in expected.summaries.items():
        summary: dict[str, Any] = {**where, "quantity": f"{where['quantity']}.{name}"}
        # Means cancel, so they are related to the array's own size; extremes are elements like any other.
        related = scale if name in ("mean", "std", "axis_mean") else None
        yield compare(of_port[name], value, scale=related, **summary)


def values_of(array: np.ndarray | Sample | None) -> np.ndarray | None:
    """A whole array as it is, of a sample what was kept."""
    return array.values if isinstance(array, Sample) else array
