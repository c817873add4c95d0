"""What the figures of the page are drawn from: which comparison stands where, as plain data."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from parity.ladder import CONVERGENCE, TRAINING_GATES
from parity.records import Comparison, Gate, GateStatus, Reading, Result, Status
from parity.report.summary import decision, excess, ordered_precisions, printable

QUANTITIES = {"losses": "Validation loss", "pearsons": "Validation Pearson correlation"}
"""Fields of a training run that are drawn, with their names."""

_STEP = re.compile(r" (?:after|at) (step|batch) (\d+)")
_READINGS = (Reading.ISOLATED.value, Reading.ACCUMULATED.value)


def figures(result: Result) -> dict[str, Any]:
    """All figures that there is something to draw for."""
    made = {
        "gradients": gradients(result),
        "trajectory": trajectory(result),
        CONVERGENCE: convergence(result),
    }
    return {name: figure for name, figure in made.items() if figure}


def _rows(result: Result, gate: str) -> Iterator[tuple[int, Comparison]]:
    """The comparisons of a gate, each with its position among all comparisons of the result."""
    return ((index, row) for index, row in enumerate(result.comparisons) if row.gate == gate)


def gradients(result: Result) -> dict[str, Any]:
    """Gradients by parameters and by activations, in the order of the model.

    Returns:
        ``series``: names such as ``isolated float64``; ``cases``: {case: {"parameters" or "activations": entries}}. An
        entry has the comparison of each series, and for a gradient that is zero in theory also that of the
        reference's own noise under the name of the series and ``, reference``. Empty without such comparisons.
    """
    entries: dict[tuple[str, str], dict[tuple[Any, ...], dict[str, int]]] = {}
    order: dict[tuple[Any, ...], int] = {}
    series: set[tuple[str, str]] = set()
    for index, row in _rows(result, "gradients"):
        noise = re.fullmatch(r"gradient of the (port|reference), zero in theory", row.quantity)
        if row.quantity == "gradient" or noise:
            view, quantity = "parameters", "gradient"
        elif row.quantity == "gradients" or row.quantity.startswith("gradient by "):
            view, quantity = "activations", row.quantity
        else:
            continue  # the loss, norms, and summaries of what is drawn
        name = f"{row.reading.value} {row.precision}"
        series.add((row.reading.value, row.precision))
        suffix = ", reference" if noise and noise[1] == "reference" else ""
        found, call = entries.setdefault((row.case, view), {}), 0
        while name + suffix in found.get((row.port, row.reference, quantity, call), {}):
            call += 1  # a second array of one name belongs to the second call
        key = row.port, row.reference, quantity, call
        found.setdefault(key, {})[name + suffix] = index
        order.setdefault((row.case, view, *key), row.order)
    cases: dict[str, dict[str, list[dict[str, int]]]] = {}
    for (case, view), found in entries.items():
        ranked = sorted(found, key=lambda key: order[case, view, *key])
        cases.setdefault(case, {})[view] = [found[key] for key in ranked]
    names = [f"{reading} {precision}" for reading, precision in _ranked(series)]
    return {"series": names, "cases": cases} if cases else {}


def _ranked(series: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    series = list(series)
    precisions = ordered_precisions(precision for _, precision in series)
    readings = [*_READINGS, *sorted({reading for reading, _ in series} - set(_READINGS))]
    return sorted(series, key=lambda pair: (precisions.index(pair[1]), readings.index(pair[0])))


def trajectory(result: Result) -> dict[str, Any]:
    """Whole training runs, step by step.

    Returns:
        ``precisions`` and ``quantities`` in the order in which they are offered; ``cases``: {case: {precision:
        {quantity: comparisons by step}}}. Empty without such comparisons.
    """
    cases: dict[str, dict[str, dict[str, list[tuple[int, int]]]]] = {}
    for index, row in _rows(result, "trajectory"):
        quantity = _STEP.sub("", row.quantity)
        by_precision = cases.setdefault(row.case, {})
        by_precision.setdefault(row.precision, {}).setdefault(quantity, []).append((row.order, index))
    if not cases:
        return {}
    known = ("weights", "loss", "statistics", "exp_avg", "exp_avg_sq")
    quantities = list(dict.fromkeys(q for case in cases.values() for found in case.values() for q in found))
    return {
        "precisions": ordered_precisions(name for case in cases.values() for name in case),
        "quantities": sorted(quantities, key=lambda name: known.index(name) if name in known else len(known)),
        "cases": {
            case: {
                precision: {quantity: [index for _, index in sorted(steps)] for quantity, steps in found.items()}
                for precision, found in by_precision.items()
            }
            for case, by_precision in cases.items()
        },
    }


def convergence(result: Result) -> dict[str, Any]:
    """Training runs of both sides, and what the equivalence test made of their last values.

    Returns:
        ``seeds``; ``panels``: one for each quantity with its ``pairs`` (seed, reference, port, difference; numbers that
        are not there are None), the ``decision`` in words, and whether it ``passed`` (None without a decision);
        ``broken``: runs that did not finish. Empty without runs and without a decision.
    """
    if not result.runs and not result.equivalences:
        return {}
    seeds = sorted({run.seed for run in result.runs})
    decisions = {found.quantity: found for found in result.equivalences}
    names = list(dict.fromkeys([*(name for name in QUANTITIES if result.runs), *decisions]))
    panels = []
    for name in names:
        pairs = []
        for seed in seeds:
            ours, theirs = (_last(result.runs, side, seed, name) for side in ("port", "reference"))
            difference = None if ours is None or theirs is None else ours - theirs
            pairs.append({"seed": seed, "reference": theirs, "port": ours, "difference": difference})
        found = decisions.get(name)
        # The test's own numbers, where it is clear which is whose.
        if found is not None and len(found.differences) == len(pairs):
            for pair, difference in zip(pairs, found.differences, strict=True):
                pair["difference"] = difference if math.isfinite(difference) else None
        panels.append(
            {
                "quantity": name,
                "label": QUANTITIES.get(name, printable(name)),
                "pairs": pairs,
                "decision": "No decision on it was recorded." if found is None else decision(found),
                "passed": None if found is None else found.passed,
            }
        )
    broken = [{"side": str(run.side), "seed": run.seed, "error": run.error} for run in result.runs if run.error]
    return {"seeds": seeds, "panels": panels, "broken": broken}


def _last(runs: Sequence[Any], side: str, seed: int, quantity: str) -> float | None:
    """Last value of the only finished run of a side and seed."""
    found = [run for run in runs if run.side == side and run.seed == seed and not run.error]
    values = found[0].values(quantity) if len(found) == 1 else ()
    return values[-1] if values and math.isfinite(values[-1]) else None


def absent(result: Result, drawn: Collection[str]) -> list[tuple[str, str]]:
    """Gates of training that have a figure and nothing to draw, or that prove nothing, each with a sentence.

    Args:
        result: What a verification found.
        drawn: Names of the figures that are drawn.
    """
    lines = []
    for name in ("gradients", "trajectory", CONVERGENCE):
        gate = result.gates.get(name)
        if gate is None or (name in drawn and gate.status in (GateStatus.PASSED, GateStatus.FAILED)):
            continue
        lines.append((name, _absence(gate, name in drawn)))
    return lines


def _absence(gate: Gate, drawn: bool) -> str:
    reason = f": {gate.reason}" if gate.reason else ""
    if gate.status is GateStatus.BLOCKED:
        return f"blocked{reason}. {'What is shown of it proves nothing.' if drawn else 'Nothing was measured.'}"
    if gate.status is GateStatus.NOT_RUN:
        return f"not run{reason}."
    return f"{gate.status.value}{reason}; nothing was recorded that could be drawn."


def by_case(result: Result) -> list[dict[str, Any]]:
    """The comparisons of the training gates, summed up: thousands of rows, a few dozen lines.

    Returns:
        One entry for each gate and case: ``gate``, ``case``, ``count``, ``failed``, ``worst`` (the comparison that used
        most of its limit), and ``kinds``: the same for each quantity, steps taken together.
    """
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for name in TRAINING_GATES:
        gate = result.gates.get(name)
        for row in () if gate is None else gate.comparisons:
            groups.setdefault((name, row.case), []).append(row)
    found = []
    for (gate, case), rows in groups.items():
        kinds: dict[tuple[str, str], list[Comparison]] = {}
        for row in rows:
            kinds.setdefault((_STEP.sub("", row.quantity), setting_of(row)), []).append(row)
        lines = [
            {"quantity": quantity, "setting": setting, "steps": _steps(members), **_sum(members)}
            for (quantity, setting), members in kinds.items()
        ]
        found.append({"gate": gate, "case": case, "kinds": lines, **_sum(rows)})
    return found


def setting_of(row: Comparison) -> str:
    """Reading and precision: what the lines of one case differ in."""
    return f"{row.reading.value}, {printable(row.precision)}"


def _sum(rows: Sequence[Comparison]) -> Mapping[str, Any]:
    return {
        "count": len(rows),
        "failed": sum(row.status is not Status.PASS for row in rows),
        "worst": max(rows, key=lambda row: (row.status is not Status.PASS, excess(row))),
    }


def _steps(rows: Iterable[Comparison]) -> str:
    """``steps 1, 5``, ``steps 1 to 50``; empty where no quantity names one."""
    matches = [match for row in rows if (match := _STEP.search(row.quantity))]
    numbers = sorted({int(match[2]) for match in matches})
    if not numbers:
        return ""
    noun = {"step": "step", "batch": "batch"}[matches[0][1]]
    if len(numbers) == 1:
        return f"{noun} {numbers[0]}"
    noun = "batches" if noun == "batch" else "steps"
    whole = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{noun} {numbers[0]} to {numbers[-1]}" if whole else f"{noun} {', '.join(map(str, numbers))}"
