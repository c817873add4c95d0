"""The equivalence test of the convergence rung: against published numbers, and against every way of being wrong."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from parity import Comparison, Reading, Status
from parity.convergence import (
    FEWEST_PAIRS,
    Equivalence,
    Margin,
    Run,
    Side,
    compare_pairs,
    equivalence_power,
    find_equivalences,
    judge_convergence,
    pairs_needed,
)
from parity.tolerances import TABLE

SPREAD = 0.05
MARGINS = (
    Margin(quantity="losses", spread=SPREAD, change=-2.0, paired_deviation=0.05),
    Margin(quantity="pearsons", spread=0.02, change=0.7, paired_deviation=0.02),
)
SEEDS = range(1, 25)


def trained(*, loss: float = 0.0, pearson: float = 0.0, deviation: float = 1.0) -> list[Run]:
    """Both sides of every pair; the port's final values are shifted, and noisy by this share of the spread."""
    generator = np.random.default_rng(0)
    runs = []
    for seed in SEEDS:
        level, noise = generator.normal(0, SPREAD), deviation * generator.normal(0, [SPREAD, 0.02])
        runs.append(Run(side=Side.REFERENCE, seed=seed, losses=(1.5, 0.1, level - 0.5), pearsons=(0.0, 0.5, 0.7)))
        port = Run(
            side=Side.PORT,
            seed=seed,
            losses=(1.5, 0.2, level - 0.5 + loss + float(noise[0])),
            pearsons=(0.0, 0.4, 0.7 + pearson + float(noise[1])),
        )
        runs.append(port)
    return runs


def replace(runs: list[Run], side: Side, chosen: int, **changes: Any) -> list[Run]:
    return [dataclasses.replace(run, **changes) if (run.side, run.seed) == (side, chosen) else run for run in runs]


def judged(runs: list[Run], margins: tuple[Margin, ...] = MARGINS) -> list[Comparison]:
    return judge_convergence(runs, margins, seeds=SEEDS, case="task")


def failures(rows: list[Comparison]) -> dict[tuple[str, str], Status]:
    """{(seed, quantity): status} of what does not pass; the port's where both sides fail alike."""
    return {(row.reference or row.port, row.quantity): row.status for row in rows if row.status is not Status.PASS}


# --- numbers from elsewhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variation", "subjects", "published"),
    [(0.25, 24, 0.7391155), (0.20, 20, 0.834680), (0.25, 28, 0.807439), (0.30, 40, 0.815845)],
)
def test_the_power_is_that_of_published_bioequivalence_trials(variation, subjects, published):
    """PowerTOST (Labes, Schütz, Lang): limits 0.80 to 1.25 on the logarithmic scale, true ratio 0.95.

    A crossover of two periods has a mean with standard error σ·√(2 / n) and n - 2 degrees of freedom. As many
    degrees have n - 1 pairs; their standard deviation is chosen so that the standard errors agree.
    """
    sigma = math.sqrt(math.log(1 + variation**2))
    pairs = subjects - 1
    deviation = sigma * math.sqrt(2 * pairs / subjects)
    power = equivalence_power(pairs, math.log(1.25), deviation, difference=math.log(0.95))
    assert power == pytest.approx(published, abs=1e-6)


def test_the_power_is_how_often_right_pairs_pass():
    generator = np.random.default_rng(1)
    draws = generator.normal(0, 1, (20_000, 12))
    passed = [
        abs(row.mean()) + 1.795885 * row.std(ddof=1) / math.sqrt(12) < 0.8  # t of 11 degrees of freedom at 0.95
        for row in draws
    ]
    assert equivalence_power(12, 0.8, 1.0) == pytest.approx(np.mean(passed), abs=0.012)


def test_at_the_margin_the_power_is_the_significance():
    """A difference as large as the margin is found equivalent in one trial of twenty: the risk that was declared."""
    assert equivalence_power(200, 1.0, 0.3, difference=1.0) == pytest.approx(0.05, abs=1e-6)


def test_an_interval_worked_out_by_hand():
    """Differences 1, 2, 3, 4, 5: mean 3, deviation √2.5, t of 4 degrees 2.131847, half width 2.131847·√0.5."""
    decision = compare_pairs("losses", [1, 2, 3, 4, 5], [0, 0, 0, 0, 0], margin=4.6)
    half = 2.131847 * math.sqrt(0.5)
    assert decision.differences == (1, 2, 3, 4, 5)
    assert (decision.mean, decision.standard_deviation) == (3, pytest.approx(math.sqrt(2.5)))
    assert (decision.low, decision.high) == (pytest.approx(3 - half, abs=1e-6), pytest.approx(3 + half, abs=1e-6))
    assert decision.passed
    # (4.6 - 3) / √0.5 = 2.262742, beyond which t of 4 degrees has 0.0432.
    assert decision.p_value == pytest.approx(0.0432, abs=2e-4)
    assert not compare_pairs("losses", [1, 2, 3, 4, 5], [0, 0, 0, 0, 0], margin=4.5).passed


@pytest.mark.parametrize("margin", [0.3, 0.45, 0.5, 0.9])
def test_interval_and_p_value_decide_alike(margin):
    generator = np.random.default_rng(2)
    for _ in range(50):
        decision = compare_pairs("losses", generator.normal(0.1, 0.5, 10).tolist(), [0.0] * 10, margin=margin)
        assert decision.passed == (decision.p_value < 0.05)


def test_the_number_of_pairs_is_the_smallest_that_suffices():
    pairs = pairs_needed(1.0, 1.0, 0.9)
    assert equivalence_power(pairs, 1.0, 1.0) >= 0.9 > equivalence_power(pairs - 1, 1.0, 1.0)
    with pytest.raises(ValueError, match="50 pairs do not reach"):
        pairs_needed(0.1, 1.0, 0.9, largest=50)


@pytest.mark.parametrize(
    ("pairs", "margin", "deviation", "expected"),
    [(1, 1.0, 1.0, 0.0), (9, 0.0, 1.0, 0.0), (9, 1.0, 0.0, 1.0), (4, 1e-9, 1.0, 0.0)],
)
def test_power_where_there_is_nothing_to_integrate(pairs, margin, deviation, expected):
    assert equivalence_power(pairs, margin, deviation) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("numbers", [(math.nan, 1.0), (1.0, math.inf), (1.0, -1.0)])
def test_power_of_impossible_numbers_raises(numbers):
    with pytest.raises(ValueError, match="no power"):
        equivalence_power(10, *numbers)


# --- right -----------------------------------------------------------------------------------------------------------


def test_two_stacks_that_do_not_differ_pass_and_every_run_has_its_rows():
    rows = judged(trained())
    assert failures(rows) == {}
    assert len(rows) == 2 * 2 + 2 * 2 * len(SEEDS)
    assert {(row.gate, row.reading, row.case) for row in rows} == {("convergence", Reading.RUN, "task")}
    assert len({row.order for row in rows}) == len(rows)


def test_the_row_of_a_decision_is_in_units_of_the_spread():
    row = judged(trained(loss=0.4 * SPREAD, deviation=0.01))[0]
    assert (row.quantity, row.tolerance, row.limit) == ("final losses", "convergence", TABLE["convergence"].limit)
    assert row.error == pytest.approx(0.4, abs=0.02)
    assert row.shape == (len(SEEDS),)
    assert "24 pairs" in row.detail


def test_the_margin_is_a_share_of_the_spread():
    assert MARGINS[0].margin == TABLE["convergence"].limit * SPREAD


def test_a_decision_has_no_truth_value():
    with pytest.raises(TypeError, match="no truth value"):
        bool(find_equivalences(trained(), MARGINS, seeds=SEEDS)["losses"])


# --- wrong -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("quantity", "index"), [("loss", 0), ("pearson", 1)])
def test_a_shift_of_twice_the_margin_fails_in_either_direction(quantity, index, sign):
    """Also where the port seems the better one: a lower loss is a difference like any other."""
    shift = sign * 2 * MARGINS[index].margin
    rows = judged(trained(**{quantity: shift}))
    assert failures(rows) == {("", f"final {MARGINS[index].quantity}"): Status.FAIL}


def test_a_shift_of_the_margin_itself_fails():
    rows = judged(trained(loss=MARGINS[0].margin))
    assert ("", "final losses") in failures(rows)


def test_noise_that_hides_any_difference_fails():
    """No difference is found, and none could have been: that is no proof, and the power says so."""
    found = failures(judged(trained(deviation=8.0)))
    assert found[("", "final losses")] is Status.FAIL
    assert found[("", "final losses.power")] is Status.FAIL


@pytest.mark.parametrize("side", list(Side))
def test_a_missing_run_is_missing_and_never_a_smaller_number_of_pairs(side):
    runs = [run for run in trained() if (run.side, run.seed) != (side, 7)]
    found = failures(judged(runs))
    assert found[("seed 7", "losses")] is Status.MISSING
    assert found[("", "final losses")] is Status.MISSING
    assert found[("", "final pearsons.power")] is Status.MISSING
    assert find_equivalences(runs, MARGINS, seeds=SEEDS)["losses"].differences == ()


def test_a_seed_that_neither_side_ran_is_missed():
    found = failures(judged([run for run in trained() if run.seed != 7]))
    assert found[("", "final losses")] is Status.MISSING


def test_a_crashed_run_fails_with_its_reason():
    runs = replace(trained(), Side.PORT, 3, losses=(), pearsons=(), error="BrokenProcessPool: it died")
    rows = judged(runs)
    row = next(row for row in rows if (row.port, row.quantity) == ("seed 3", "losses"))
    assert (row.status, row.detail) == (Status.MISSING, "BrokenProcessPool: it died")
    assert "port 3" in rows[0].detail


def test_a_crashed_run_counts_for_nothing_even_with_numbers():
    runs = replace(trained(), Side.PORT, 3, error="RuntimeError: late")
    assert failures(judged(runs))[("", "final losses")] is Status.MISSING


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_value_that_is_not_finite_never_passes_wherever_it_stands(value, position):
    losses = [1.5, 0.1, -0.5]
    losses[position] = value
    runs = replace(trained(), Side.PORT, 5, losses=tuple(losses))
    found = failures(judged(runs))
    assert found[("seed 5", "losses")] is Status.NON_FINITE
    assert found[("", "final losses")] is Status.MISSING
    assert ("", "final pearsons") not in found


def test_unpaired_seeds_fail_on_both_sides():
    runs = replace(trained(), Side.PORT, 5, seed=500)
    found = failures(judged(runs))
    assert found[("seed 5", "losses")] is Status.MISSING
    assert found[("seed 500", "run")] is Status.FAIL


def test_a_run_that_comes_twice_fails():
    runs = trained()
    found = failures(judged([*runs, runs[0]]))
    assert found[("seed 1", "losses")] is Status.FAIL
    assert found[("", "final losses")] is Status.MISSING


def test_a_seed_that_is_named_twice_fails():
    rows = judge_convergence(trained(), MARGINS, seeds=[*SEEDS, 1])
    assert failures(rows)[("", "seeds")] is Status.FAIL


@pytest.mark.parametrize("count", [0, 1, FEWEST_PAIRS - 1])
def test_too_few_pairs_are_no_test(count):
    decision = compare_pairs("losses", [0.1] * count, [0.0] * count, margin=1.0)
    assert not decision.passed
    assert f"{count} pairs" in decision.reason


def test_few_pairs_lack_power_even_where_they_agree():
    runs = [run for run in trained(deviation=0.01) if run.seed <= 4]
    rows = judge_convergence(runs, MARGINS, seeds=range(1, 5))
    assert failures(rows) == {("", f"final {quantity}.power"): Status.FAIL for quantity in ("losses", "pearsons")}


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_without_a_margin_nothing_is_equivalent(margin):
    decision = compare_pairs("losses", [1.0, 1.1, 0.9], [1.0, 1.0, 1.0], margin=margin)
    assert not decision.passed
    assert "margin" in decision.reason


def test_without_a_spread_nothing_is_equivalent():
    margins = (dataclasses.replace(MARGINS[0], spread=0.0), MARGINS[1])
    found = failures(judged(trained(), margins))
    assert found[("", "final losses")] is Status.FAIL


def test_without_a_declared_quantity_the_rung_fails():
    assert failures(judged(trained(), ()))[("", "nothing")] is Status.FAIL


@pytest.mark.parametrize("side", list(Side))
def test_a_run_that_has_not_learned_fails(side):
    runs = replace(trained(), side, 4, pearsons=(0.0, 0.2, 0.3))
    row = next(row for row in judged(runs) if (row.reference or row.port, row.quantity) == ("seed 4", "pearsons")
               and (row.reference == "") == (side is Side.PORT))  # fmt: skip
    assert row.status is Status.FAIL
    assert row.error == pytest.approx(1 - 0.3 / 0.7)
    assert "not learned" in row.detail


def test_two_sides_that_have_not_learned_are_equivalent_and_fail():
    still = [dataclasses.replace(run, pearsons=(0.0, 0.0, run.pearsons[-1] - 0.7)) for run in trained()]
    assert find_equivalences(still, MARGINS, seeds=SEEDS)["pearsons"].passed
    rows = [row for row in judged(still) if row.status is not Status.PASS]
    assert len(rows) == 2 * len(SEEDS)
    assert {row.tolerance for row in rows} == {"convergence_learned"}


def test_a_loss_that_rises_has_not_learned_however_far_it_goes():
    runs = replace(trained(), Side.PORT, 4, losses=(1.5, 3.0, 5.0))
    assert failures(judged(runs))[("seed 4", "losses")] is Status.FAIL


def test_a_run_that_was_cut_short_is_missing():
    runs = replace(trained(), Side.PORT, 4, losses=(1.5, -0.5), pearsons=(0.0, 0.7))
    assert failures(judged(runs))[("seed 4", "losses")] is Status.MISSING


def test_a_port_that_is_the_reference_itself_fails():
    """Two trainings that drop out by themselves never agree in every bit, so one of them was counted twice."""
    runs = [run for run in trained() if run.side is Side.REFERENCE]
    runs += [dataclasses.replace(run, side=Side.PORT) for run in runs]
    assert failures(judged(runs))[("", "final losses")] is Status.FAIL
    assert "same numbers" in find_equivalences(runs, MARGINS, seeds=SEEDS)["losses"].reason


def test_differences_that_are_all_alike_pass_only_inside_the_margin():
    assert compare_pairs("losses", [0.1] * 5, [0.0] * 5, margin=0.2).passed
    assert not compare_pairs("losses", [0.3] * 5, [0.0] * 5, margin=0.2).passed


def test_sides_of_different_length_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        compare_pairs("losses", [0.1, 0.2, 0.3], [0.0, 0.0], margin=1.0)


def test_the_decision_does_not_depend_on_the_order_of_the_runs():
    runs = trained(loss=0.3 * SPREAD)
    first, second = (find_equivalences(order, MARGINS, seeds=SEEDS)["losses"] for order in (runs, runs[::-1]))
    assert dataclasses.asdict(first) == dataclasses.asdict(second)


def test_the_stated_power_is_that_of_the_larger_deviation():
    planned: Equivalence = compare_pairs(
        "losses", [0.01, -0.01, 0.02, 0.0], [0.0] * 4, margin=1.0, planned_deviation=1.0
    )
    assert planned.power == equivalence_power(4, 1.0, 1.0)
