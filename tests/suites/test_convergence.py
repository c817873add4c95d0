"""Rung of convergence: both stacks, trained on planted motifs, arrive at the same place; a fault of training does not.

Minutes of training, so these run apart from the others, marked ``convergence``. Without a ladder that is proven for the
present content they fail as blocked.
"""

import pytest

from parity import Comparison, Status
from parity.convergence import FEWEST_PAIRS, Run, Side, find_equivalences
from parity.pairs import epibert_convergence
from parity.pairs.epibert_convergence import FIRST_SEED, PAIRS, margins, run_convergence
from parity.pairs.epibert_faults import trained
from parity.tolerances import TABLE

pytestmark = [pytest.mark.convergence, pytest.mark.usefixtures("proven_ladder")]

Outcome = tuple[tuple[Run, ...], list[Comparison]]


@pytest.fixture(scope="module")
def outcome(tensorflow) -> Outcome:
    """The rung as it is committed."""
    return run_convergence()


def not_passed(rows: list[Comparison]) -> list[str]:
    return [
        f"{row.reference}{row.port} {row.quantity}: {row.status}, {row.detail}"
        for row in rows
        if row.status is not Status.PASS
    ]


def test_the_rung_passes(outcome):
    _, rows = outcome
    assert not not_passed(rows)


def test_every_planned_run_was_trained_and_judged(outcome):
    runs, rows = outcome
    assert {(run.side, run.seed) for run in runs} == {
        (side, seed) for side in Side for seed in range(FIRST_SEED, FIRST_SEED + PAIRS)
    }
    assert len(rows) == 2 * 2 + 2 * 2 * PAIRS


def test_correlation_rises_from_nothing_to_where_a_model_is_useful(outcome):
    for run in outcome[0]:
        assert abs(run.pearsons[0]) < 0.4
        assert run.pearsons[-1] > 0.6


def test_the_two_sides_start_alike_and_go_their_own_ways(outcome):
    runs = {(run.side, run.seed): run for run in outcome[0]}
    for seed in range(FIRST_SEED, FIRST_SEED + PAIRS):
        reference, port = runs[Side.REFERENCE, seed], runs[Side.PORT, seed]
        start, first = (abs(port.losses[epoch] / reference.losses[epoch] - 1) for epoch in (0, 1))
        assert start <= TABLE["float32_only_accumulated"].limit < first


def test_a_fault_of_training_is_rejected_by_this_rung_alone(outcome):
    """No forward pass shows it, and no other rung is asked."""
    reference_runs = [run for run in outcome[0] if run.side is Side.REFERENCE]
    runs, rows = run_convergence(port_training=trained.decay_without_learning_rate, reference_runs=reference_runs)
    decision = find_equivalences(runs, margins(), seeds=range(FIRST_SEED, FIRST_SEED + PAIRS))["losses"]
    assert decision.low > decision.margin, decision
    assert [row.status for row in rows if row.quantity == "final losses"] == [Status.FAIL]


def test_a_process_that_dies_fails_the_rung_and_takes_no_pair_with_it(outcome):
    reference_runs = [run for run in outcome[0] if run.side is Side.REFERENCE]
    pairs = FEWEST_PAIRS
    runs, rows = run_convergence(pairs=pairs, prepare_port=trained.die, reference_runs=reference_runs[:pairs])
    crashed = [run for run in runs if run.side is Side.PORT]
    assert len(crashed) == pairs
    assert all("BrokenProcessPool" in run.error for run in crashed)
    assert [row.status for row in rows if row.quantity == "final losses"] == [Status.MISSING]


def test_the_margin_was_measured_under_the_present_conditions():
    assert epibert_convergence.measured()["conditions"] == epibert_convergence.conditions()
