"""The port's half of the fine-tuning model's convergence rung, on two short epochs, and what its margin comes from."""

import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest

from parity.convergence import Run, Side, equivalence_power
from parity.pairs import epibert_convergence, rampage_convergence
from parity.pairs.epibert_convergence import PAIRS, margins, measured
from parity.pairs.epibert_faults import trained
from parity.pairs.rampage_convergence import QUANTITIES, finetuning, score, score_heads, train_port
from tests.assertions import assert_same
from tests.unit.parity.short_runs import Start, fresh_start, short_epochs
from torch_impl import EpiBERTRampage
from torch_impl.rampage_lightning import EpiBERTRampageLightning


@pytest.fixture
def _short(monkeypatch):
    yield from short_epochs(monkeypatch)


@pytest.fixture(scope="module")
def start() -> Start:
    return fresh_start(EpiBERTRampage)


@pytest.mark.usefixtures("_short")
def test_a_run_is_fed_scored_repeated_and_reached_by_its_hooks(start):
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def watch(module: EpiBERTRampageLightning) -> None:
        step = module.training_step

        def watched(batch, batch_idx):
            seen.append((batch[4].numpy().copy(), batch[6].numpy().copy()))
            return step(batch, batch_idx)

        module.training_step = watched

    right: Run = train_port(3, *start, port_training=watch)
    assert (right.side, right.seed, right.error) == (Side.PORT, 3, "")
    assert [len(right.values(name)) for name in QUANTITIES] == [3] * 4
    assert right.values("ATAC losses") != right.losses
    training = epibert_convergence.examples()[0]
    order = [indices for epoch in (0, 1) for indices in epibert_convergence.order(3, epoch)]
    assert len(seen) == len(order) == 4
    for (target, rna), indices in zip(seen, order, strict=True):
        assert np.array_equal(target, training.target[indices])
        assert np.array_equal(rna, training.rna[indices])
    assert train_port(3, *start) == right
    fault: Any = trained.decay_without_learning_rate  # of any module with such an optimizer
    wrong = train_port(3, *start, port_training=fault)
    assert wrong.losses[0] == right.losses[0]
    assert wrong.losses != right.losses


def test_scores_are_those_of_rna_on_all_bins():
    y = epibert_convergence.examples()[1].rna.astype(np.float64)
    loss, pearson = score(2 * y + 1)
    expected = np.mean(2 * y + 1 - y * np.log(2 * y + 1 + 1e-7))
    assert_same(np.array([pearson, loss]), np.array([1.0, expected]), "float32_only")
    assert np.isnan(score(np.ones_like(y))[1])


def test_both_heads_are_scored_and_accessibility_as_in_pretraining():
    validation = epibert_convergence.examples()[1]
    atac, rna = 2 * validation.target + 1, 2 * validation.rna + 1
    found = dict(zip(QUANTITIES, score_heads(atac, rna), strict=True))
    assert (found["losses"], found["pearsons"]) == score(rna)
    assert (found["ATAC losses"], found["ATAC pearsons"]) == epibert_convergence.score(atac)
    wrong = dict(zip(QUANTITIES, score_heads(np.where(validation.mask == 1, 1, atac), rna), strict=True))
    assert {name for name in QUANTITIES if wrong[name] != found[name]} == {"ATAC losses", "ATAC pearsons"}


def test_what_was_measured_belongs_to_the_present_task_and_plans_enough_pairs(monkeypatch):
    declared = margins(experiment=finetuning())
    assert tuple(margin.quantity for margin in declared) == QUANTITIES
    assert len(measured(finetuning())["runs"]) >= 30
    for margin in declared:
        assert equivalence_power(PAIRS, margin.margin, margin.paired_deviation) > 0.99
    # It is another experiment than that of pre-training.
    assert measured(finetuning())["conditions"] != measured()["conditions"]
    monkeypatch.setattr(epibert_convergence, "RECIPE", epibert_convergence.Recipe(epochs=99))
    with pytest.raises(ValueError, match=r"rampage_convergence\.json was measured under other conditions"):
        measured(finetuning())


def test_what_was_measured_of_one_head_alone_is_measured_again(tmp_path):
    found = measured(finetuning())
    for pair in found["runs"]:
        for run in pair:
            del run["ATAC losses"]
    (tmp_path / "short.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"short\.json was measured under other conditions"):
        margins(experiment=dataclasses.replace(finetuning(), measured=tmp_path / "short.json"))


def test_the_experiment_is_found_by_name_in_another_process():
    experiment = finetuning()
    assert pickle.loads(pickle.dumps((experiment.stack, experiment.train_port))) == (  # noqa: S301  our own
        rampage_convergence.FinetuningStack,
        rampage_convergence.train_port,
    )
