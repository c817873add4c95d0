"""Assertions for numbers: every comparison of the tests goes through the comparator and the table of tolerances."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.compare import compare
from parity.pairs.twins import as_array
from parity.records import Reading, Status
from parity.tolerances import TABLE, UNIT_ROUNDOFF


class Disagreement(AssertionError):
    """The port's numbers are not the reference's."""


def assert_same(port: Any, reference: Any, tolerance: str = "float64", *, what: str = "output") -> None:
    """The port computed what the reference did, within one row of the table of tolerances.

    Args:
        port: What the port computed.
        reference: What it should be.
        tolerance: Name of the row. Rows that are factors on the reference's own error cannot be used here.
        what: Name of the array, for the message.

    Raises:
        Disagreement: Shapes differ, something is not finite, nothing is there to compare, or the distance is too large.
            The message says what was got and expected, and where.
    """
    assert tolerance not in UNIT_ROUNDOFF or tolerance == "float64", f"{tolerance} is a ratio, not a distance"
    port, reference = as_array(port), as_array(reference)
    record = compare(
        port,
        reference,
        gate="test",
        reading=Reading.ISOLATED,
        precision=str(reference.dtype),
        tolerance=tolerance,
        reference_path=what,
        port_path=what,
        layer=what,
    )
    if record.status is Status.PASS:
        return
    lines = [f"{what}: {record.status}: {record.detail}"]
    if record.error is not None:
        row = TABLE[tolerance]
        lines.append(f"relative L2 error {record.error:.3g}, limit {record.limit:.3g} (row {tolerance!r})")
        lines.append(f"largest difference / largest value {record.peak:.3g}, limit {row.largest_peak:.3g}")
    lines += [f"expected {_glance(reference)}", f"got      {_glance(port)}"]
    raise Disagreement("\n".join(lines))


def _glance(array: np.ndarray) -> str:
    numbers = np.array2string(array.reshape(-1), threshold=8, edgeitems=4, precision=17)
    return f"{array.dtype} of shape {array.shape}: {' '.join(numbers.split())}"


def assert_all_same(
    port: Mapping[str, Any], reference: Mapping[str, Any], tolerance: str = "float64", *, negligible: float = 1e-5
) -> None:
    """Two sides have the same arrays by the same names.

    An array that is zero in theory, or what is left of much larger terms, has no size of its own to be related to: it
    is related to the largest of all.

    Args:
        port: What the port computed.
        reference: What it should be.
        tolerance: As for ``assert_same``.
        negligible: Arrays whose largest value is below this share of the largest of all have no size of their own.

    Raises:
        Disagreement: An array is not the same.
    """
    assert port.keys() == reference.keys(), sorted(port.keys() ^ reference.keys())
    arrays = {name: as_array(values).astype(np.float64) for name, values in reference.items()}
    largest = max(float(np.abs(array).max()) for array in arrays.values())
    for name, array in arrays.items():
        found = as_array(port[name]).astype(np.float64)
        if np.abs(array).max() < negligible * largest:
            found, array = found / largest + 1, array / largest + 1
        assert_same(found, array, tolerance, what=name)
