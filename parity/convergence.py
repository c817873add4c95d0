"""Convergence: do two training stacks arrive at the same place? An equivalence test on paired runs.

A difference test that finds nothing proves nothing: with few runs it finds nothing whatever the port does. So the
burden is turned round. The two one-sided tests (TOST; Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987) take *different
by at least the margin* as the null hypothesis, and the port passes only when both sides of it are rejected: when the
90 % confidence interval of the mean paired difference lies inside the margin. The margin is declared beforehand, as a
share of the spread that the reference itself shows from seed to seed; the probability that a right port passes, the
power, is stated with it.

Nothing here knows a model or a framework: runs are numbers.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import integrate, special, stats

from parity.records import Comparison, Reading, Status, _NoTruthValue
from parity.tolerances import TABLE

GATE = "convergence"
SIGNIFICANCE = 0.05
"""Of each one-sided test; their interval has a confidence of one minus twice this."""

FEWEST_PAIRS = 3
"""Below this a standard deviation is a guess, whatever the formulas return."""


class Side(enum.StrEnum):
    """Whose stack trained a run."""

    REFERENCE = "reference"
    PORT = "port"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        side: Whose stack trained it.
        seed: What it shares with the other side's run of the same seed.
        losses: Validation loss before training and after each epoch.
        pearsons: Validation Pearson correlation at the same times.
        error: Why it did not finish; empty when it did.
        others: What else was measured at the same times, by its name.
    """

    side: Side
    seed: int
    losses: tuple[float, ...] = ()
    pearsons: tuple[float, ...] = ()
    error: str = ""
    others: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

    def values(self, quantity: str) -> tuple[float, ...]:
        """One quantity, ``losses`` and ``pearsons`` among them, before training and after each epoch.

        Returns:
            Its values; none of a quantity that was not measured.
        """
        return {"losses": self.losses, "pearsons": self.pearsons, **self.others}.get(quantity, ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Margin:
    """What was declared for one quantity before any pair was compared; all of it measured on the reference alone.

    Attributes:
        quantity: ``losses``, ``pearsons`` or another that runs have: its last value is compared.
        spread: Standard deviation of the reference's own final values from seed to seed.
        change: Mean difference of its final value to that before training, with its sign.
        paired_deviation: Standard deviation of paired differences that the number of pairs was planned with: of two
            runs of the reference that share what a pair shares.
    """

    quantity: str
    spread: float
    change: float
    paired_deviation: float

    @property
    def margin(self) -> float:
        """Largest mean difference that still counts as the same, in the quantity's own unit."""
        return TABLE["convergence"].limit * self.spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Equivalence(_NoTruthValue):
    """Decision of the equivalence test on one quantity.

    Attributes:
        quantity: What was compared.
        margin: Declared beforehand, in the quantity's unit.
        differences: Port minus reference, one for each pair, in the order of the seeds.
        mean: Of the differences.
        standard_deviation: Of the differences.
        low: Lower end of their 90 % confidence interval.
        high: Upper end.
        p_value: The larger of those of the two one-sided tests.
        power: Probability that two equivalent stacks pass with this number of pairs and this margin, at the larger of
            the planned and the observed standard deviation.
        passed: Whether the two are equivalent.
        reason: Why not; empty when passed.
    """

    quantity: str
    margin: float
    differences: tuple[float, ...]
    mean: float = math.nan
    standard_deviation: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    power: float = math.nan
    passed: bool
    reason: str


def equivalence_power(
    pairs: int,
    margin: float,
    standard_deviation: float,
    *,
    difference: float = 0.0,
    significance: float = SIGNIFICANCE,
) -> float:
    """Probability that two one-sided t tests on paired differences find equivalence.

    Exact: given the sample's standard deviation s the mean must fall into an interval of known width, and s follows a
    chi distribution; the product is integrated (Phillips, J. Pharmacokinet. Biopharm. 18, 1990, where it is written as
    a difference of two of Owen's functions).

    Args:
        pairs: Number of pairs, at least 2.
        margin: Equivalence means a true mean difference inside ±margin.
        standard_deviation: True standard deviation of the paired differences.
        difference: True mean difference.
        significance: Of each one-sided test.

    Returns:
        A probability; 0 without a margin, and with fewer than two pairs.

    Raises:
        ValueError: A number is not finite, or the standard deviation is negative.
    """
    if not all(map(math.isfinite, (margin, standard_deviation, difference))) or standard_deviation < 0:
        raise ValueError(f"no power for margin {margin}, deviation {standard_deviation}, difference {difference}")
    if pairs < 2 or margin <= 0:
        return 0.0
    if standard_deviation == 0:
        return float(abs(difference) < margin)
    freedom = pairs - 1
    error = standard_deviation / math.sqrt(pairs)
    quantile = stats.t.ppf(1 - significance, freedom)

    # Logarithm of what does not depend on s in the density of a chi variable over the root of its degrees of freedom.
    constant = math.log(2) + 0.5 * freedom * math.log(0.5 * freedom) - math.lgamma(0.5 * freedom)

    def density(ratio: float) -> float:
        """Of the sample's standard deviation over the true one, times the probability that the mean fits then."""
        room = margin - quantile * ratio * error
        fits = special.ndtr((room - difference) / error) - special.ndtr((-room - difference) / error)
        return float(fits) * math.exp(constant + (freedom - 1) * math.log(ratio) - 0.5 * freedom * ratio**2)

    # Beyond these quantiles the chi distribution holds nothing that counts, and its peak cannot be missed between them.
    least, largest = (float(stats.chi.ppf(q, freedom)) / math.sqrt(freedom) for q in (1e-13, 1 - 1e-13))
    largest = min(largest, margin / (quantile * error))
    if largest <= least:
        return 0.0
    return min(1.0, float(integrate.quad(density, least, largest, epsabs=1e-12, limit=200)[0]))


def pairs_needed(margin: float, standard_deviation: float, power: float, *, largest: int = 1000) -> int:
    """Smallest number of pairs with at least this power for two stacks that do not differ.

    Raises:
        ValueError: Even the largest number does not reach it.
    """
    for pairs in range(FEWEST_PAIRS, largest + 1):
        if equivalence_power(pairs, margin, standard_deviation) >= power:
            return pairs
    raise ValueError(f"{largest} pairs do not reach a power of {power} (margin {margin}, {standard_deviation})")


def compare_pairs(
    quantity: str,
    port: Sequence[float],
    reference: Sequence[float],
    *,
    margin: float,
    planned_deviation: float = 0.0,
) -> Equivalence:
    """Two one-sided paired t tests.

    Args:
        quantity: What the numbers are.
        port: Final values of the port's runs.
        reference: Those of the reference's, in the same order of seeds.
        margin: Declared beforehand.
        planned_deviation: Standard deviation of the differences that the number of pairs was planned with.

    Returns:
        The decision; not passed, with the reason, wherever the test cannot be carried out.

    Raises:
        ValueError: The two differ in number.
    """
    differences = tuple(float(p) - float(r) for p, r in zip(port, reference, strict=True))
    refused = Equivalence(quantity=quantity, margin=margin, differences=differences, passed=False, reason="")
    if not math.isfinite(margin) or margin <= 0:
        return dataclasses.replace(refused, reason=f"a margin of {margin} leaves nothing that could be equivalent")
    if not np.all(np.isfinite(differences)):
        return dataclasses.replace(refused, reason="a difference is not finite")
    if len(differences) < FEWEST_PAIRS:
        return dataclasses.replace(refused, reason=f"{len(differences)} pairs, at least {FEWEST_PAIRS} are needed")
    if not np.any(differences):
        # Two stacks that drop out by themselves never agree in every bit: this is one training, counted twice.
        return dataclasses.replace(refused, reason="the runs of both sides are the same numbers: not two trainings")
    count, mean, deviation = len(differences), float(np.mean(differences)), float(np.std(differences, ddof=1))
    error = deviation / math.sqrt(count)
    reach = float(stats.t.ppf(1 - SIGNIFICANCE, count - 1)) * error
    if error > 0:
        p_value = max(float(stats.t.sf((margin + sign * mean) / error, count - 1)) for sign in (1, -1))
    else:
        p_value = 0.0 if abs(mean) < margin else 1.0
    low, high = mean - reach, mean + reach
    passed = -margin < low and high < margin
    return Equivalence(
        quantity=quantity,
        margin=margin,
        differences=differences,
        mean=mean,
        standard_deviation=deviation,
        low=low,
        high=high,
        p_value=p_value,
        power=equivalence_power(count, margin, max(deviation, planned_deviation)),
        passed=passed,
        reason="" if passed else f"the 90 % interval [{low:.3g}, {high:.3g}] is not inside ±{margin:.3g}",
    )


def find_equivalences(
    runs: Iterable[Run], margins: Sequence[Margin], *, seeds: Sequence[int]
) -> dict[str, Equivalence]:
    """The decision on every quantity, of complete sets of runs only.

    Args:
        runs: Every run of both sides.
        margins: What was declared, one for each quantity.
        seeds: Seeds that both sides were to train; a pair that is not complete is never dropped from the test.

    Returns:
        {quantity: decision}; not passed, with the reason, when a run is missing.
    """
    by_key = _by_key(runs)
    decisions: dict[str, Equivalence] = {}
    for declared in margins:
        values = {side: [_final(by_key.get((side, seed), ()), declared.quantity) for seed in seeds] for side in Side}
        absent = [
            f"{side} {seed}" for side in Side for seed, value in zip(seeds, values[side], strict=True) if value is None
        ]
        if absent:
            decisions[declared.quantity] = Equivalence(
                quantity=declared.quantity,
                margin=declared.margin,
                differences=(),
                passed=False,
                reason=f"{len(absent)} of {2 * len(seeds)} runs are missing or unusable: {', '.join(absent[:6])}",
            )
            continue
        port, reference = (
            [value for value in values[side] if value is not None] for side in (Side.PORT, Side.REFERENCE)
        )
        decisions[declared.quantity] = compare_pairs(
            declared.quantity,
            port,
            reference,
            margin=declared.margin,
            planned_deviation=declared.paired_deviation,
        )
    return decisions


def judge_convergence(
    runs: Iterable[Run], margins: Sequence[Margin], *, seeds: Sequence[int], case: str = ""
) -> list[Comparison]:
    """Every comparison of the convergence rung.

    Args:
        runs: Every run of both sides; one that crashed carries its error.
        margins: What was declared, one for each quantity.
        seeds: Seeds that both sides were to train.
        case: Name of the case.

    Returns:
        For each quantity one row for the decision and one for the power, then one for every run: it is there, finite,
        and it has learned. A run of a seed that nobody asked for is a failure too.
    """
    runs = tuple(runs)
    rows = _Rows(case)
    if not margins:
        rows.add("nothing", Status.FAIL, tolerance="convergence", detail="no margin was declared")
    if len(set(seeds)) != len(seeds):
        rows.add("seeds", Status.FAIL, tolerance="convergence", detail=f"a seed is named twice in {tuple(seeds)}")
    for quantity, decision in find_equivalences(runs, margins, seeds=seeds).items():
        declared = next(margin for margin in margins if margin.quantity == quantity)
        rows.decision(decision, declared)
        rows.power(decision)
    by_key = _by_key(runs)
    # Every run lasts as long as the reference's longest: one that was cut short has fewer values.
    epochs = max((len(run.losses) for run in runs if run.side is Side.REFERENCE), default=0)
    for side in Side:
        for seed in seeds:
            for declared in margins:
                rows.run(by_key.get((side, seed), ()), side, seed, declared, epochs)
    for (side, seed), found in by_key.items():
        if seed not in seeds:
            detail = f"{len(found)} runs of a seed that was not planned"
            rows.add("run", Status.FAIL, side=side, seed=seed, tolerance="convergence", detail=detail)
    return rows.rows


def _by_key(runs: Iterable[Run]) -> Mapping[tuple[Side, int], tuple[Run, ...]]:
    found: dict[tuple[Side, int], tuple[Run, ...]] = {}
    for run in runs:
        key = (Side(run.side), run.seed)
        found[key] = (*found.get(key, ()), run)
    return found


def _final(found: Sequence[Run], quantity: str) -> float | None:
    """Last value of the only run of a key; None when there is none, or more than one, or it is of no use."""
    if len(found) != 1 or found[0].error:
        return None
    values = found[0].values(quantity)
    return float(values[-1]) if values and np.all(np.isfinite(values)) else None


class _Rows:
    """Comparisons in the making: what all rows of the rung have in common."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.rows: list[Comparison] = []

    def add(
        self,
        quantity: str,
        status: Status,
        *,
        side: Side | None = None,
        seed: int | None = None,
        **others: Any,
    ) -> None:
        name = "" if seed is None else f"seed {seed}"
        self.rows.append(
            Comparison(
                gate=GATE,
                case=self.case,
                reading=Reading.RUN,
                precision="float32",
                mode="training",
                order=len(self.rows),
                reference="" if side is Side.PORT else name,
                port="" if side is Side.REFERENCE else name,
                quantity=quantity,
                layer="",
                status=status,
                **others,
            )
        )

    def decision(self, decision: Equivalence, declared: Margin) -> None:
        """The farthest end of the interval, in units of the reference's spread."""
        measured = bool(decision.differences) and math.isfinite(decision.mean)
        farthest = max(abs(decision.low), abs(decision.high)) if measured else math.nan
        text = (
            f"mean difference {decision.mean:.3g}, 90 % interval [{decision.low:.3g}, {decision.high:.3g}], margin "
            f"±{decision.margin:.3g}, p {decision.p_value:.2g}, {len(decision.differences)} pairs"
        )
        self.add(
            f"final {declared.quantity}",
            Status.PASS if decision.passed else Status.FAIL if decision.differences else Status.MISSING,
            shape=(len(decision.differences),),
            error=farthest / declared.spread if measured and declared.spread > 0 else None,
            limit=TABLE["convergence"].limit,
            tolerance="convergence",
            detail=f"{decision.reason}; {text}" if decision.reason and measured else decision.reason or text,
        )

    def power(self, decision: Equivalence) -> None:
        """Probability that a right port would have failed."""
        limit = TABLE["convergence_power"].limit
        known = math.isfinite(decision.power)
        enough = known and 1 - decision.power <= limit
        pairs = len(decision.differences)
        self.add(
            f"final {decision.quantity}.power",
            Status.PASS if enough else Status.FAIL if known else Status.MISSING,
            shape=(pairs,),
            error=1 - decision.power if known else None,
            limit=limit,
            tolerance="convergence_power",
            detail=f"power {decision.power:.4f} of {pairs} pairs" if known else decision.reason,
        )

    def run(self, found: Sequence[Run], side: Side, seed: int, declared: Margin, epochs: int) -> None:
        """One run by itself: there, finite, and changed by training as the reference's runs were."""
        row: dict[str, Any] = {"side": side, "seed": seed, "tolerance": "convergence_learned"}
        if len(found) != 1:
            detail = f"{len(found)} runs of the {side} have this seed" if found else f"the {side} has no such run"
            self.add(declared.quantity, Status.FAIL if found else Status.MISSING, detail=detail, **row)
            return
        values = found[0].values(declared.quantity)
        if found[0].error or len(values) < max(2, epochs) or len(values) > epochs:
            detail = found[0].error or f"{len(values)} values, expected {epochs}: one before training, one an epoch"
            self.add(declared.quantity, Status.MISSING, detail=detail, **row)
            return
        if not np.all(np.isfinite(values)):
            index = int(np.argmin(np.isfinite(values)))
            detail = f"the {side} has {values[index]} after epoch {index}"
            self.add(declared.quantity, Status.NON_FINITE, detail=detail, **row)
            return
        # Signed: a loss that rises has not learned, however far it went.
        share = (values[-1] - values[0]) / declared.change if declared.change else 0.0
        limit = TABLE["convergence_learned"].limit
        lacking = max(0.0, 1 - share)
        learned = lacking <= limit
        detail = f"from {values[0]:.4g} to {values[-1]:.4g}"
        self.add(
            declared.quantity,
            Status.PASS if learned else Status.FAIL,
            shape=(len(values),),
            error=lacking,
            limit=limit,
            detail=detail
            if learned
            else f"not learned: {detail}, the reference's runs change by {declared.change:.3g}",
            **row,
        )
