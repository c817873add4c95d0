"""A ratio that failed by chance, or one that fails again: measured on more inputs before it is judged.

Whether a port rounds as little as the reference is asked by a ratio of two errors. What it estimates is the ratio of
the expected errors; what one input gives is a draw of it. Where many roundings add up the two are the same. End to end
they are not: a single early rounding, shared by all that comes after it, may decide both errors, and then a sound port
is off by as much as luck has it, whatever the number of elements.

So a ratio that exceeds its limit on its own input is measured on others, and the same limit is held against the norms
over all of them, the first included. A port that rounds worse does so on every input, and the more of them there are,
the surer it fails; chance does not come back. And an input on which a port is off by more than a few times the limit
fails them all by its weight. Nothing that passed is looked at again, no limit moves, and both results stand in the
record.

Gradients have a second way to be off by luck. Where a function has a kink, as the attention's ReLU, its derivative
jumps: of an argument that is zero to rounding, port and reference may land on either side, and then every gradient
before it differs by the jump, which is no matter of rounding. It happens on few inputs, by a thousand times the
limit. There the reference is moved, several times, by one unit in the last place of its weights, so that it lands on
either side too: the port must be as close to the nearest of these as to the reference itself on other inputs. Where
no moved reference jumps, or jumps elsewhere, none is close.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from parity.compare import pool, undecided
from parity.records import Comparison, Status
from parity.tolerances import TABLE
from parity.trace import describe

SURE = 6
"""What failed on so many other inputs as well, on each of them, is not measured on more: luck as bad as that, where one
rounding decides all, comes in three of a thousand cases (0.37 to the power of 6)."""

RARE = 4
"""On at most so many of the inputs, and not on all, may a jump excuse a failure. Of 40 small models that were trained
to find false alarms, with tens of thousands of arguments of ReLU each, one met a jump in one batch."""


def look_again(
    rows: Sequence[Comparison],
    measure: Callable[[int], Iterable[Comparison]],
    moved: Callable[[int], Iterable[Iterable[Comparison]]] | None = None,
) -> tuple[Comparison, ...]:
    """Judges the ratios that failed by more inputs.

    Args:
        rows: What was found on the first input.
        measure: Finds the same on another one, of the number given, counted from 1.
        moved: Holds the port, on the input of a number, 0 for the first, against several passes of a reference whose
            weights are moved by one unit in the last place: each in the place of the truth. None for what has no jumps.

    Returns:
        The rows, those that were looked at again as ``compare.pool`` makes them. Where the reference refuses another
        input they stay as they are, and say so.

    Raises:
        ValueError: Two rows are of one place, so that nobody could tell which of them was found again.
    """
    counts = Counter(map(place, rows))
    if twice := [where for where, count in counts.items() if count > 1]:
        raise ValueError(f"{len(twice)} places have several comparisons, such as {twice[0]}")
    waiting = {place(row): [row] for row in rows if undecided(row)}
    for number in range(1, 1 + max((TABLE[looks[0].tolerance].looks for looks in waiting.values()), default=0)):
        if number > SURE and all(look.status is not Status.PASS for looks in waiting.values() for look in looks):
            break
        try:
            found = {place(row): row for row in measure(number)}
        except Exception as exception:  # noqa: BLE001  whatever a reference raises on inputs that nobody chose
            note = f"; not measured on other inputs: {describe(exception)}"
            rows = [dataclasses.replace(r, detail=r.detail + note) if place(r) in waiting else r for r in rows]
            return tuple(rows)
        for where, looks in waiting.items():
            lost = dataclasses.replace(looks[0], status=Status.MISSING, error=None, detail="not there on this input")
            looks.append(found.get(where, lost))
    judged = {where: pool(looks) for where, looks in waiting.items()}
    if moved is not None:
        judged |= _beside_jumps(judged, waiting, moved)
    return tuple(judged.get(place(row), row) for row in rows)


def _beside_jumps(
    judged: Mapping[tuple[str, ...], Comparison],
    measured: Mapping[tuple[str, ...], Sequence[Comparison]],
    moved: Callable[[int], Iterable[Iterable[Comparison]]],
) -> dict[tuple[str, ...], Comparison]:
    """What failed on few inputs only, judged by the nearest of the moved references on these, by the same limits."""
    few: dict[tuple[str, ...], list[int]] = {}
    for where, row in judged.items():
        numbers = [number for number, look in enumerate(measured[where]) if look.status is Status.FAIL]
        # Without looks it could not be measured on one of the inputs.
        if undecided(row) and row.looks and len(numbers) <= min(RARE, len(measured[where]) - 1):
            few[where] = numbers
    looks, said = {where: list(measured[where]) for where in few}, dict.fromkeys(few, "")
    for number in sorted({number for numbers in few.values() for number in numbers}):
        concerned = [where for where, numbers in few.items() if number in numbers]
        try:
            passes = [{place(row): row for row in rows} for rows in moved(number)]
        except Exception as exception:  # noqa: BLE001  as on other inputs
            for where in concerned:
                said[where] += f"; on input {number} no reference was moved: {describe(exception)}"
            continue
        for where in concerned:
            beside = [rows[where] for rows in passes if where in rows and rows[where].error is not None]
            if not beside:
                said[where] += f"; on input {number} no moved reference could be measured"
                continue
            nearest = min(beside, key=lambda row: row.error or 0.0)
            said[where] += f"; on input {number} it is {nearest.error:.2g} from a reference moved by one unit in the "
            said[where] += "last place"
            if _within(nearest, judged[where]):
                looks[where][number] = dataclasses.replace(
                    measured[where][number], error=nearest.error, peak=nearest.peak
                )
    return {
        where: dataclasses.replace(pool(these), looks=judged[where].looks, detail=judged[where].detail + said[where])
        for where, these in looks.items()
    }


def _within(nearest: Comparison, row: Comparison) -> bool:
    """Whether the one is as near as passes by the limits of the other."""
    pairs = ((nearest.error, row.limit), (nearest.peak, row.peak_limit))
    return all(found is not None and limit is not None and found <= limit for found, limit in pairs)


def place(row: Comparison) -> tuple[str, ...]:
    """What tells a comparison from every other of its pass."""
    return row.port, row.reference, row.quantity, row.reading, row.layer
