"""What a result says, in words and in few numbers: the one reading that terminal, JUnit and page share."""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from parity.ladder import CONVERGENCE, TRAINING_GATES
from parity.records import Comparison, Culprit, Gate, GateStatus, NotCompared, Reading, Result, Status
from parity.training import LOSS, METRIC, OPTIMIZER, SCHEDULE

PRECISIONS = ("exact", "float64", "float32", "bfloat16")
"""Known precisions in the order in which they are shown; others follow by name."""

COPIED = ("weights", "constants")
"""Gates that compare copied values: a failure there explains failures everywhere behind it."""

PARTS = (LOSS, METRIC, OPTIMIZER, SCHEDULE)
"""What answers for a failure in training that is no layer's."""


def printable(text: str, *, multiline: bool = False) -> str:
    r"""The text with control, surrogate and other invisible characters written out as ``\x1b`` or ``\u202e``.

    Names come from models and files, so they may hold anything; what is left is safe in a terminal, in XML and in
    UTF-8.

    Args:
        text: Any text.
        multiline: Keep line breaks.

    Returns:
        The text without any character of Unicode's categories C (other), Zl and Zp (line separators).
    """

    def shown(character: str) -> str:
        category = unicodedata.category(character)
        if (multiline and character == "\n") or not (category.startswith("C") or category in ("Zl", "Zp")):
            return character
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return text if text.isascii() and text.isprintable() else "".join(map(shown, text))


def number(value: float | None) -> str:
    """A relative error in two digits: ``3.1e-15``, ``0`` when exact, ``-`` when there is none."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    text = f"{value:.1e}"
    return text.replace(".0e", "e")


def share(part: float) -> str:
    """A fraction of a limit: ``12 %``, or ``3e+08 x`` when far above."""
    if not math.isfinite(part):
        return "over"
    if part == 0:
        return "0 %"
    return f"{100 * part:.2g} %" if part < 1 else f"{part:.3g} x"


def plural(count: int, noun: str) -> str:
    """``1 comparison``, ``2,345 comparisons``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def layer(path: str) -> str:
    """A layer's path; the model itself has the empty path."""
    return printable(path) or "(model)"


def place(row: Comparison, side: str) -> str:
    """Where a comparison was made on one side, ``port`` or ``reference``: a path, or what stands for one."""
    path, other = (row.port, row.reference) if side == "port" else (row.reference, row.port)
    if path or row.gate not in (*TRAINING_GATES, CONVERGENCE) or row.quantity.startswith("gradient"):
        return layer(path)
    if row.gate == CONVERGENCE:
        return "-" if other else "(all runs)"
    return printable(row.layer) if row.layer in PARTS else "(training run)"


def subject(row: Comparison) -> str:
    """What a comparison is about; a training run with whose it is."""
    if row.gate == CONVERGENCE and (row.port or row.reference):
        return f"port, {printable(row.port)}" if row.port else f"reference, {printable(row.reference)}"
    return place(row, "port")


def aspect(row: Comparison) -> str:
    """What was compared of the subject, with a space before it; nothing where the subject says it already."""
    return "" if row.quantity == subject(row) else f" {printable(row.quantity)}"


def owner(row: Comparison) -> str:
    """What answers for a failure: a layer, a part of training, or the whole."""
    if row.layer or row.gate not in (*TRAINING_GATES, CONVERGENCE):
        return layer(row.layer)
    return "(all runs)" if row.gate == CONVERGENCE else "(training run)"


def beginning(row: Comparison) -> tuple[str, str, str]:
    """Where to begin with a failure: (what answers for it, where it was seen if elsewhere, the reference's name).

    Empty where there is no more to say. Whole training runs answer for themselves, so their quantity or seed is named.
    """
    if not row.layer and row.gate in (*TRAINING_GATES, CONVERGENCE):
        named = row.gate == CONVERGENCE and bool(row.port or row.reference)
        where = "" if named or not row.port else printable(row.port)
        return subject(row) if named else printable(row.quantity), where, "" if named else printable(row.reference)
    what, where, reference = owner(row), subject(row), place(row, "reference")
    return what, "" if where == what else where, "" if reference == what and row.layer in PARTS else reference


def excess(row: Comparison) -> float:
    """Error over limit: how much of what is allowed was used. Infinite where that cannot be told."""
    if row.error is None or not math.isfinite(row.error):
        return 0.0 if row.status is Status.PASS else math.inf
    if row.error == 0:
        return 0.0
    if row.limit is None:
        return 0.0 if row.status is Status.PASS else math.inf
    return row.error / row.limit if row.limit > 0 else math.inf


def setting(row: Comparison) -> str:
    """How it was measured: ``P1 live, isolated, float64, evaluation``."""
    return ", ".join(printable(part) for part in (row.case, row.reading.value, row.precision, row.mode) if part)


def got(row: Comparison) -> str:
    """What was found, against what."""
    if row.status is Status.MISSING:
        return "missing: there is nothing to compare"
    if row.status is Status.NOT_RUN:
        return "not run"
    if row.status is Status.NON_FINITE:
        return "NaN or infinite"
    if row.error is None:
        return "nothing that could be measured"
    if row.tolerance == "convergence":
        return f"an interval that reaches {row.error:.2g} of the reference's spread"
    if row.tolerance == "convergence_power":
        return f"a power of {1 - row.error:.3g}"
    if row.tolerance == "convergence_learned":
        return f"{100 * row.error:.2g} % less change than the reference's runs"
    if row.tolerance == "zero_gradient":
        return f"{number(row.error)} of the root mean square of all gradients"
    name = "envelope" if row.gate == "trajectory" else "reference's own"
    own = "" if row.reference_error is None else f", the {name} is {number(row.reference_error)}"
    return f"relative error {number(row.error)}{own}"


def expected(row: Comparison) -> str:
    """What would have passed."""
    name = f" ({printable(row.tolerance)})" if row.tolerance else ""
    if row.limit is None:
        return f"a finite value within tolerance{name}"
    if row.tolerance == "convergence":
        return f"at most {row.limit:g}{name}"
    if row.tolerance == "convergence_power":
        return f"at least {1 - row.limit:g}{name}"
    if row.tolerance == "convergence_learned":
        return f"at most {100 * row.limit:g} %{name}"
    return f"bit for bit the same{name}" if row.limit == 0 else f"at most {number(row.limit)}{name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """One gate as it is shown.

    Attributes:
        name: Of the gate.
        status: As recorded, but failed where the record contradicts itself.
        reason: Why it did not pass, never empty then.
        requested: Whether it was asked for.
        compared: Number of comparisons.
        failed: Number of those that did not pass.
        worst: By precision, the comparison that used most of its limit.
    """

    name: str
    status: GateStatus
    reason: str
    requested: bool
    compared: int
    failed: int
    worst: Mapping[str, Comparison]

    @property
    def label(self) -> str:
        """The status in words."""
        return "not run" if self.status is GateStatus.NOT_RUN else self.status.value


def ordered_precisions(names: Iterable[str]) -> list[str]:
    """Known precisions first and in their order, then the others by name."""
    found = set(names)
    return [name for name in PRECISIONS if name in found] + sorted(found - set(PRECISIONS))


def _rung(name: str, gate: Gate | None, requested: bool) -> Rung:
    if gate is None:
        return Rung(
            name=name,
            status=GateStatus.NOT_RUN,
            reason="asked for, but there is no such gate in the result",
            requested=requested,
            compared=0,
            failed=0,
            worst={},
        )
    status, reason, failed = gate.status, gate.reason, len(gate.failures)
    # A record can be put together by hand or by a bug; whatever it claims, nothing compared is nothing proven.
    if status is GateStatus.PASSED and not gate.comparisons:
        status, reason = GateStatus.FAILED, "marked as passed, but nothing was compared"
    elif status is GateStatus.PASSED and failed:
        status, reason = GateStatus.FAILED, f"marked as passed, but {plural(failed, 'comparison')} did not pass"
    if status is not GateStatus.PASSED and not reason:
        if status is GateStatus.FAILED:
            total = plural(len(gate.comparisons), "comparison")
            reason = f"{failed:,} of {total} did not pass" if gate.comparisons else "nothing was compared"
        else:
            reason = "an earlier gate did not pass" if status is GateStatus.BLOCKED else "not run"
    worst: dict[str, Comparison] = {}
    for row in gate.comparisons:
        if row.precision not in worst or _weight(row) > _weight(worst[row.precision]):
            worst[row.precision] = row
    return Rung(
        name=name,
        status=status,
        reason=reason,
        requested=requested,
        compared=len(gate.comparisons),
        failed=failed,
        worst={key: worst[key] for key in ordered_precisions(worst)},
    )


def _weight(row: Comparison) -> tuple[bool, bool, float]:
    """Failures first; then what the rule of the precision judged, before what has a wider rule of its own."""
    own_rule = row.precision in ("exact", row.tolerance[: len(row.precision)]) or row.tolerance == row.gate
    return row.status is not Status.PASS, own_rule, excess(row)


def ladder(result: Result) -> tuple[Rung, ...]:
    """Every gate of the result in ladder order, then those that were asked for and are not there."""
    absent = [name for name in dict.fromkeys(result.requested) if name not in result.gates]
    return tuple(_rung(name, gate, name in result.requested) for name, gate in result.gates.items()) + tuple(
        _rung(name, None, True) for name in absent
    )


def failures(result: Result) -> tuple[Comparison, ...]:
    """Everything that did not pass, in ladder order and in the order of execution."""
    return tuple(row for gate in result.gates.values() for row in gate.failures)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What one row of the table of tolerances judged.

    Attributes:
        name: Of the row.
        allowed: Its limit in short.
        compared: Number of comparisons.
        worst: The one farthest off: by error, or by its ratio to the reference's own error.
        ratio: That ratio; None where the rule is no factor on the reference's own error.
        by_floor: Number of comparisons that only the rule's floor lets pass.
    """

    name: str
    allowed: str
    compared: int
    worst: Comparison
    ratio: float | None
    by_floor: int


def ratio(row: Comparison) -> float:
    """Error over the reference's own error: 1 where the port rounds as much as the reference does."""
    if row.error is None or not math.isfinite(row.error) or row.reference_error is None:
        return math.inf
    if row.error == 0:
        return 0.0
    return row.error / row.reference_error if row.reference_error > 0 else math.inf


def rules(result: Result) -> tuple[Rule, ...]:
    """Every row of the table of tolerances that judged something, in the order of the table."""
    judged: dict[str, list[Comparison]] = {name: [] for name in result.tolerances}
    for row in result.comparisons:
        judged.setdefault(row.tolerance, []).append(row)
    found = []
    for name, rows in judged.items():
        if not name or not rows:
            continue
        rule = result.tolerances.get(name, {})
        factor = rule.get("limit") if rule.get("floor") else None
        failures = [row for row in rows if row.status is not Status.PASS]
        # Below the floor the reference's own error is too small to relate to, so those are only counted.
        related = [row for row in rows if factor is None or row.status is not Status.PASS or ratio(row) <= factor]
        worst = max(failures or related or rows, key=_error if factor is None else ratio)
        found.append(
            Rule(
                name=name,
                allowed=rule_text(rule) if factor is None else f"{factor:g} x",
                compared=len(rows),
                worst=worst,
                ratio=None if factor is None else ratio(worst),
                by_floor=len(rows) - len(related),
            )
        )
    return tuple(found)


def _error(row: Comparison) -> float:
    return math.inf if row.error is None else row.error


def rule_text(rule: Mapping[str, object]) -> str:
    """The limit of a row of the table in words; ``-`` when there is none."""
    limit, floor = rule.get("limit"), rule.get("floor")
    if not isinstance(limit, float | int):
        return "-" if limit is None else str(limit)
    if isinstance(floor, float | int) and floor:  # a row with a floor is a factor on the reference's own error
        return f"{limit:g} x the reference's own, at least {number(floor)}"
    return "bit for bit" if limit == 0 else number(limit)


def by_reason(rows: Sequence[NotCompared]) -> dict[str, list[NotCompared]]:
    """What was left out, grouped by its reason, the largest group first."""
    groups: dict[str, list[NotCompared]] = {}
    for row in rows:
        groups.setdefault(row.reason, []).append(row)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def decision(found: Any) -> str:
    """What an equivalence test found, in words.

    Args:
        found: A ``parity.convergence.Equivalence``.
    """
    count = len(found.differences)
    measured = count > 0 and math.isfinite(found.mean)
    numbers = (
        f"mean difference (port - reference) {found.mean:+.3g}, 90 % interval [{found.low:+.3g}, {found.high:+.3g}], "
        f"margin ±{found.margin:.3g} declared beforehand; p {found.p_value:.2g}, power {_power(found.power)}, "
        f"n = {plural(count, 'pair')}"
    )
    if found.passed:
        return f"Equivalent: the interval lies inside the margin. {_sentence(numbers)}"
    if not measured:
        reason = printable(found.reason) or "nothing was measured"
        return f"No decision, which counts as not equivalent: {reason}. Margin ±{found.margin:.3g} declared beforehand."
    if found.low >= found.margin or found.high <= -found.margin:
        return f"Different: the whole interval lies outside the margin. {_sentence(numbers)}"
    return f"Not shown to be equivalent: the interval is not inside the margin. {_sentence(numbers)}"


def _power(value: float) -> str:
    return "above 0.999" if 0.999 < value < math.inf else f"{value:.3g}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer.

    Attributes:
        proven: Every gate that was asked for passed, on at least one comparison each.
        headline: Two or three words.
        sentence: What was found.
        next_step: What to do now.
        start: The comparison to look at first, None when nothing failed.
    """

    proven: bool
    headline: str
    sentence: str
    next_step: str
    start: Comparison | None = None


def _culprit_step(result: Result, culprit: Culprit) -> str:
    """What the pattern of one layer's failures says about the cause."""
    own = [row for row in result.comparisons if culprit.port in (row.layer, row.port)]
    own = own or [culprit.worst]
    failed = [row for row in own if row.status is not Status.PASS] or [culprit.worst]
    statuses = {row.status for row in failed}
    if culprit.port in PARTS and {row.gate for row in failed} <= set(TRAINING_GATES):
        return _part_step(culprit.port, own, failed)
    if not culprit.certain and culprit.worst.gate == "state":
        return (
            "After the first step the state agrees, later it does not: compare what one step hands to the next, such "
            "as learning rate, dropout masks, counters and the order of batches."
        )
    if not culprit.certain and culprit.worst.gate == "gradients":
        agreeing = {row.reading for row in own if row.gate == "gradients" and row.status is Status.PASS}
        if "float64" not in {row.precision for row in failed} and Reading.ACCUMULATED in agreeing:
            names = " and ".join(ordered_precisions({row.precision for row in failed}))
            return (
                f"In float64 it agrees, so the backward pass is right; in {names} more is lost on the way to it than "
                "in the reference: check casts and the order of summation behind it. The error of a tensor of a few "
                "numbers is a single draw, and so is the reference's that it is held against."
            )
        if Reading.ISOLATED in agreeing:
            return (
                "Given the reference's own gradient it agrees, so what differs is handed to it: look at how gradients "
                "are put together behind it, such as residual connections, scales, and what is detached."
            )
        return (
            "Only end-to-end gradients exist, and this is the first in model order that differs, which need not be "
            "where it goes wrong: a live reference reads each layer's by itself."
        )
    if not culprit.certain:
        return (
            "Only end-to-end readings exist, and this is where they first part. Look at this layer and at what runs "
            "between it and the last layer before it that agrees; a live reference would tell which."
        )
    if statuses == {Status.MISSING}:
        return "One side never produced this value: check the layer map and that the layer is called."
    if Status.NON_FINITE in statuses:
        return "It turns finite inputs into NaN or infinity: check divisions, logarithms, exponentials, epsilons."
    if all(row.reading is Reading.STATE for row in failed):
        return "Its outputs agree, its state after a training pass does not: check momentum and the variance estimate."
    if all(row.gate == "gradients" for row in failed):
        return (
            "Forward it agrees, backward it does not, given the reference's own values and gradient: check detached "
            "tensors, in-place changes, a backward pass written by hand, and dropout's mask and scale."
        )
    modes = {row.mode for row in own}
    if modes > {row.mode for row in failed} == {"training"}:
        return "It agrees in evaluation mode and differs in training mode: check how batch statistics are used."
    if "float64" not in {row.precision for row in failed} and "float64" in {row.precision for row in own}:
        names = " and ".join(ordered_precisions({row.precision for row in failed}))
        return (
            f"It agrees in float64, so its formula is right; in {names} it rounds worse: check casts "
            "and the order of summation."
        )
    return (
        "It was given the reference's own inputs, so the fault is in this layer: compare formula, epsilons, constants, "
        "padding and axis order with the reference."
    )


def _part_step(part: str, own: Sequence[Comparison], failed: Sequence[Comparison]) -> str:
    """What to look at in a part of training that is no layer."""
    if part == LOSS:
        if all("gradient" in row.quantity for row in failed) and len(own) > len(failed):
            return (
                "Its value agrees and its gradient does not: check clamps, detached tensors and what is reduced when."
            )
        return (
            "Compare the loss with the reference's: sum or mean and over which axes, epsilons, total_weight, "
            "rescaling, and which positions the mask selects."
        )
    if part == METRIC:
        return (
            "Compare the metric with the reference's: which sums it keeps and in which precision, which axes are "
            "reduced, what is prediction and what is target, and what a batch adds."
        )
    if part == SCHEDULE:
        return (
            "The optimizer is given another learning rate: check whether steps count from 0 or 1, the length of "
            "warm-up and decay, and the fraction that is left at the end."
        )
    cases = list(dict.fromkeys(row.case for row in failed))
    agreeing = [case for case in dict.fromkeys(row.case for row in own) if case not in cases]
    where = ""
    if agreeing:
        names = ", ".join(printable(case) or "unnamed" for case in cases[:3]) + (", ..." if len(cases) > 3 else "")
        where = f" It fails in {names} and agrees in {plural(len(agreeing), 'other case')}: what do they differ in?"
    if any(row.quantity.startswith("step counter") for row in failed):
        return f"Its step counter differs: check when it is raised, and from where it starts.{where}"
    if any(row.quantity.startswith("exp_avg") for row in failed):
        return (
            f"Its moments differ, so the update is not the first thing: check clipping, betas and their order.{where}"
        )
    numbers = {int(match[1]) for row in failed if (match := re.search(r"step (\d+)", row.quantity))}
    if numbers and 1 not in numbers and any("step 1" in row.quantity for row in own):
        return f"The first step agrees and later ones do not: check counters and bias correction.{where}"
    return (
        "Its moments agree and the weights that it leaves do not: check where epsilon is added, bias correction, "
        f"weight decay, and which weights are excluded from it.{where}"
    )


def _trajectory_verdict(rows: Sequence[Comparison]) -> tuple[str, str, Comparison]:
    """(what was found, what to do, where to look) for a training run that leaves the envelope."""
    # All that a step computes is there before it: the first step counts, and in it what is farthest off.
    step, precision = min((row.order, row.precision != "float64") for row in rows)
    worst = max((row for row in rows if (row.order, row.precision != "float64") == (step, precision)), key=excess)
    quantity = printable(worst.quantity)
    if worst.status is not Status.FAIL:
        return (
            f"the training run in {printable(worst.precision)} ends early ({quantity}: {got(worst)})",
            "Every part passes by itself, so look at what only a run has: the first step that cannot be compared, and "
            "the error that ended it.",
            worst,
        )
    times = f", {excess(worst):.3g} times its limit" if math.isfinite(excess(worst)) else ""
    found = f"training in {printable(worst.precision)} leaves the reference's envelope with {quantity}{times}"
    if step <= 1:
        action = "It parts at the first step, so put together what one step does: batch, masks, clipping, rate, update."
    else:
        action = (
            f"Every part passes by itself and {plural(step - 1, 'step')} agree, so compare what changes with the step: "
            "learning rate, dropout masks and noise, the order of batches, statistics, counters."
        )
    return found, action, worst


def _convergence_verdict(result: Result, rows: Sequence[Comparison]) -> tuple[str, str, Comparison]:
    """(what was found, what to do, where to look) for training runs that are not equivalent."""
    runs = [row for row in rows if row.port or row.reference]
    if runs:
        broken, count = runs[0], len({subject(row) for row in runs})
        whom = "port" if broken.port else "reference"
        if broken.tolerance != "convergence_learned":
            action = "Train each planned seed once on each side, and no other."
        elif broken.status is Status.FAIL:
            action = (
                f"Begin with this run of the {whom}: it trains and does not learn. Look at its loss over the epochs."
            )
        elif broken.status is Status.NON_FINITE:
            action = f"Begin with this run of the {whom}: find the first step with NaN or infinity and what feeds it."
        else:
            action = f"Begin with this run of the {whom}: train its seed alone and read what ended it."
        found = f"{plural(count, 'training run')} cannot be used, first {subject(broken)}"
        return f"{found} ({printable(broken.detail) or got(broken)})", action, broken
    decided = [row for row in rows if row.tolerance == "convergence"]
    start = decided[0] if decided else rows[0]
    name = start.quantity.removeprefix("final ").removesuffix(".power")
    words = {"losses": "validation loss", "pearsons": "validation Pearson"}.get(name, printable(name))
    found = next((item for item in result.equivalences if item.quantity == name), None)
    if not decided:
        return (
            f"the test on the {words} could not have told ({got(start)})",
            "The runs scatter more than was planned for: train more pairs, and see what made them scatter.",
            start,
        )
    reason = printable(start.detail if found is None else found.reason) or got(start)
    apart = found is not None and (found.low >= found.margin or found.high <= -found.margin)
    sentence = f"the final {words} {'differs' if apart else 'is not shown to be equivalent'} ({reason})"
    if found is None or not math.isfinite(found.mean):
        return sentence, "The test could not be carried out: mend what it names, then train again.", start
    if found.low <= 0 <= found.high:
        action = (
            "No difference is visible either: the interval holds zero and is too wide. Train more pairs before you "
            "look for a fault, without touching the margin."
        )
    else:
        better = "lower" if found.mean < 0 else "higher"
        action = (
            f"The port ends {better} throughout while every part passes by itself, so look at what only whole runs "
            "have: its own dropout, the order and number of steps, the switch between training and evaluation, decay."
        )
    return sentence, action, start


def verdict(result: Result) -> Verdict:
    """The verdict, why, and what to do next."""
    rungs = ladder(result)
    asked = [rung for rung in rungs if rung.requested]
    red = [rung for rung in asked if rung.status is not GateStatus.PASSED]
    compared = sum(rung.compared for rung in rungs)
    if result.passed and not red:
        return _proven(rungs, asked)
    if not asked:
        return Verdict(
            proven=False,
            headline="Not proven",
            sentence="No gate was asked for, so nothing is proven.",
            next_step="Ask for at least one gate.",
        )
    if not compared:
        return Verdict(
            proven=False,
            headline="Not proven",
            sentence="Nothing was compared, so nothing is proven.",
            next_step=f"{red[0].name}: {printable(red[0].reason)}." if red else "Ask for at least one gate.",
        )
    counts = f"{len(red)} of {plural(len(asked), 'gate')} did not pass"
    # Blocked gates only repeat what an earlier one found, which may be one that nobody asked for.
    first = next((rung for rung in rungs if rung.failed or rung.status is GateStatus.FAILED), red[0])
    rows = result.gates[first.name].failures if first.name in result.gates else ()
    start = rows[0] if rows else None
    if first.name in COPIED and start is not None:
        values = f"{first.failed:,} of {plural(first.compared, 'value')}"
        found = f"{values} in gate {first.name} {'differs' if first.failed == 1 else 'differ'} from the reference's"
        where = "where each side takes its constants from"
        if first.name == "weights":
            where = "key, layout and source in the weight map"
        step = f"Mend this first, everything computed with it differs too: compare {where}."
    elif first.name == "trajectory" and rows:
        found, step, start = _trajectory_verdict(rows)
    elif first.name == CONVERGENCE and rows:
        found, step, start = _convergence_verdict(result, rows)
    elif result.culprit_rows:
        culprit = result.culprit_rows[0]
        others = len(result.culprit_rows) - 1
        noun = "part" if any(row.port in PARTS for row in result.culprit_rows) else "layer"
        more = "" if not others else f" and {plural(others, f'other {noun}')}"
        name = f"the {culprit.port}" if culprit.port in PARTS else layer(culprit.port)
        if culprit.certain:
            found = f"{name}{more} {'compute' if others else 'computes'} something else than the reference"
        elif culprit.worst.gate == "state" and not culprit.worst.layer:
            found = "the state of the two parts after the first training step"
        elif culprit.worst.gate == "gradients" and culprit.port not in PARTS:
            found = f"the gradient at {name} differs end to end"
        else:
            found = f"{name} is where the two first part"
        step, start = _culprit_step(result, culprit), culprit.worst
    elif start is not None:
        found = f"no single layer is at fault, but {subject(start)} is the first that does not pass"
        step = "Look at this comparison first."
        if start.reading in (Reading.BLOCK, Reading.ACCUMULATED):
            step = (
                "No layer fails by itself, so look at how they are put together: order of calls, residual connections, "
                "arguments."
            )
    else:
        found = f"gate {first.name} is {first.label}: {first.reason}"
        step = "Run the gates before it until they pass."
        if first.name == CONVERGENCE:
            step = "Training runs prove something only on top of every earlier gate: run and mend those first."
    return Verdict(proven=False, headline="Not proven", sentence=f"{counts}: {found}.", next_step=step, start=start)


def _proven(rungs: Sequence[Rung], asked: Sequence[Rung]) -> Verdict:
    compared = plural(sum(rung.compared for rung in asked), "comparison")
    rest = [rung.name for rung in rungs if not rung.requested and rung.status is not GateStatus.PASSED]
    if rest:
        names = ", ".join(rung.name for rung in asked)
        return Verdict(
            proven=True,
            headline="Proven in part",
            sentence=f"What was asked for passes ({names}): {compared}, each within its limit.",
            next_step=f"Nothing is said about {', '.join(map(printable, rest))}: ask for all gates to prove the whole.",
        )
    gates = "The one gate passes" if len(asked) == 1 else f"All {len(asked)} gates pass"
    return Verdict(
        proven=True,
        headline="Proven",
        sentence=f"{gates}: {compared}, each within its limit. {_claim({rung.name for rung in asked})}",
        next_step="Nothing to mend. What was left out, and which differences are known, is listed with the result.",
    )


def _claim(names: Collection[str]) -> str:
    """What may be said when these gates and all before them pass."""
    if CONVERGENCE in names:
        return "The port computes what the reference computes, and trained by itself it arrives at the same place."
    if "trajectory" in names:
        return "The port computes what the reference computes and trains as it trains, step by step."
    return "The port computes what the reference computes."
