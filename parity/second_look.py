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
limit. There the reference is asked how far it leaves itself when its weights are moved by one unit in the last place:
the farthest of its passes stands for its error, as in trajectories. A reference that has no kink there does not jump,
and a jump on one input excuses nothing on another.
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
        moved: Finds the same on the input of a number, 0 for the first, several times, the reference's own errors being
            those of passes with weights moved by one unit in the last place. None for what has no jumps.

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
    """What failed on few inputs only, judged by how far the reference leaves itself on these.

    An input where it goes as far excuses nothing on others: what is left without such inputs must pass by itself.
    """
    few: dict[tuple[str, ...], list[int]] = {}
    for where, row in judged.items():
        numbers = [number for number, look in enumerate(measured[where]) if look.status is Status.FAIL]
        # Without looks it could not be measured on one of the inputs.
        if undecided(row) and row.looks and len(numbers) <= min(RARE, len(measured[where]) - 1):
            few[where] = numbers
    excused: dict[tuple[str, ...], dict[int, Comparison]] = {where: {} for where in few}
    said = dict.fromkeys(few, "")
    for number in sorted({number for numbers in few.values() for number in numbers}):
        concerned = [where for where, numbers in few.items() if number in numbers]
        try:
            passes = [{place(row): row for row in rows} for rows in moved(number)]
        except Exception as exception:  # noqa: BLE001  as on other inputs
            for where in concerned:
                said[where] += f"; on input {number} no reference was moved: {describe(exception)}"
            continue
        for where in concerned:
            look = measured[where][number]
            others = [rows[where] for rows in passes if where in rows and rows[where].reference_error is not None]
            if not others:
                said[where] += f"; on input {number} no moved reference could be measured"
                continue
            farthest = max(others, key=lambda row: row.reference_error or 0.0)
            said[where] += f"; on input {number} a reference moved by one unit in the last place is off by "
            said[where] += f"{farthest.reference_error:.2g}"
            if _within(look, farthest):
                excused[where][number] = dataclasses.replace(
                    look, reference_error=farthest.reference_error, peak_limit=farthest.peak_limit
                )
    return {where: _without(judged[where], measured[where], excused[where], said[where]) for where in few}


def _within(look: Comparison, other: Comparison) -> bool:
    """Whether a look passes by the limits of another one."""
    pairs = ((look.error, other.limit), (look.peak, other.peak_limit))
    return all(found is not None and limit is not None and found <= limit for found, limit in pairs)


def _without(row: Comparison, looks: Sequence[Comparison], excused: Mapping[int, Comparison], said: str) -> Comparison:
    """A row as it is judged when some of its looks are excused."""
    rest = pool([look for number, look in enumerate(looks) if number not in excused])
    if rest.status is Status.PASS:
        row = dataclasses.replace(pool([excused.get(n, look) for n, look in enumerate(looks)]), detail=row.detail)
    elif excused:
        said += f"; on the other inputs the port is off by {rest.error:.2g}, where {rest.limit:.2g} passes"
    return dataclasses.replace(row, detail=row.detail + said)


def place(row: Comparison) -> tuple[str, ...]:
    """What tells a comparison from every other of its pass."""
    return row.port, row.reference, row.quantity, row.reading, row.layer
