"""Assertions for numbers: every comparison of the tests goes through the comparator and the table of tolerances."""

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
