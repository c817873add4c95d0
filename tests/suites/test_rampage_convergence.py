"""Rung of convergence of the fine-tuning model: both stacks arrive at the same place; a fault of training does not.

It stands on the ladder of that model, which is climbed first where it is not proven for the present content.
"""

from typing import Any

import pytest

from parity import Comparison, Status
from parity.convergence import Run, Side, find_equivalences
from parity.ladder import CONVERGENCE, GATES
from parity.ledger import Ledger, NotProven
from parity.pairs.epibert_convergence import FIRST_SEED, PAIRS, margins, run_convergence
from parity.pairs.epibert_faults import trained
from parity.pairs.epibert_run import FINETUNING
from parity.pairs.rampage_convergence import QUANTITIES, finetuning
from parity.tolerances import TABLE
from torch_impl.rampage_lightning import EpiBERTRampageLightning

pytestmark = pytest.mark.slow

SEEDS = range(FIRST_SEED, FIRST_SEED + PAIRS)
Outcome = tuple[tuple[Run, ...], list[Comparison]]


@pytest.fixture(scope="module")
def outcome(tensorflow, request: Any) -> Outcome:
    """The rung as it is committed, on rungs that are proven."""
    before = GATES[: GATES.index(CONVERGENCE)]
    try:
        Ledger(subject=FINETUNING).require(before)
    except NotProven:
        request.getfixturevalue("rampage_ladder")
        Ledger(subject=FINETUNING).require(before)
    return run_convergence(experiment=finetuning())


def test_the_rung_passes(outcome):
    failures = [f"{row.quantity}: {row.status}, {row.detail}" for row in outcome[1] if row.status is not Status.PASS]
    assert not failures


def test_every_planned_run_was_trained_and_judged(outcome):
    runs, rows = outcome
    assert {(run.side, run.seed) for run in runs} == {(side, seed) for side in Side for seed in SEEDS}
    # A decision and its power for each quantity of each head, and every run by itself.
    assert len(rows) == len(QUANTITIES) * (2 + 2 * PAIRS)
    for quantity in QUANTITIES:
        assert [row.status for row in rows if row.quantity == f"final {quantity}"] == [Status.PASS]


def test_correlation_rises_from_nothing_to_where_a_model_is_useful(outcome):
    for run in outcome[0]:
        # The recorded 60 runs end at 0.82 to 0.87 for RNA, and at 0.60 to 0.77 for the small share of ATAC in the loss.
        for quantity, reached in (("pearsons", 0.6), ("ATAC pearsons", 0.5)):
            assert abs(run.values(quantity)[0]) < 0.4
            assert run.values(quantity)[-1] > reached


def test_the_two_sides_start_alike_and_go_their_own_ways(outcome):
    runs = {(run.side, run.seed): run for run in outcome[0]}
    for seed in SEEDS:
        reference, port = runs[Side.REFERENCE, seed], runs[Side.PORT, seed]
        start, first = (abs(port.losses[epoch] / reference.losses[epoch] - 1) for epoch in (0, 1))
        assert start <= TABLE["float32_only_accumulated"].limit < first


def atac_head_not_trained(module: EpiBERTRampageLightning) -> None:
    """The ATAC loss has no weight: RNA learns as before, and the head that nobody looks at does not."""
    module.atac_scale = 0.0


def test_a_fault_of_the_other_head_is_rejected_by_its_own_scores(outcome):
    reference_runs = [run for run in outcome[0] if run.side is Side.REFERENCE]
    _, rows = run_convergence(
        port_training=atac_head_not_trained, reference_runs=reference_runs, experiment=finetuning()
    )
    failing = {row.quantity for row in rows if row.status is not Status.PASS and row.quantity.startswith("final ")}
    assert {"final ATAC losses", "final ATAC pearsons"} <= failing


def test_a_fault_of_training_is_rejected(outcome):
    reference_runs = [run for run in outcome[0] if run.side is Side.REFERENCE]
    runs, rows = run_convergence(
        port_training=trained.decay_without_learning_rate,
        reference_runs=reference_runs,
        experiment=finetuning(),
    )
    decision = find_equivalences(runs, margins(experiment=finetuning()), seeds=SEEDS)["losses"]
    assert decision.low > decision.margin, decision
    assert [row.status for row in rows if row.quantity == "final losses"] == [Status.FAIL]
