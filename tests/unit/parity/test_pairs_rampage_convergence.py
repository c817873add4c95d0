"""The port's half of the fine-tuning model's convergence rung, on two short epochs, and what its margin comes from."""

from typing import Any

import numpy as np
import pytest
import torch

from parity.convergence import Run, Side, equivalence_power
from parity.pairs import epibert_convergence, rampage_convergence
from parity.pairs.epibert_convergence import ARGUMENTS, PAIRS, Constants, Weights, margins, measured
from parity.pairs.epibert_faults import trained
from parity.pairs.rampage_convergence import finetuning, score, train_port
from tests.assertions import assert_same
from torch_impl import EpiBERTConfig, EpiBERTRampage
from torch_impl.rampage_lightning import EpiBERTRampageLightning
from weights.table import RAMPAGE_TABLE, rows

CONFIG = EpiBERTConfig(**ARGUMENTS)
Start = tuple[Weights, Constants]


@pytest.fixture
def _short(monkeypatch):
    monkeypatch.setattr(epibert_convergence, "RECIPE", epibert_convergence.Recipe(epochs=2, warmup=1))
    monkeypatch.setattr(epibert_convergence, "TRAINING_EXAMPLES", 32)
    monkeypatch.setattr(epibert_convergence, "VALIDATION_EXAMPLES", 8)
    epibert_convergence.examples.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    epibert_convergence.examples.cache_clear()


@pytest.fixture(scope="module")
def start() -> Start:
    """Weights and constants of a fresh model, as the reference's process would send them."""
    torch.manual_seed(0)
    model = EpiBERTRampage(CONFIG)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stored = {
        row.path: row.layout.to_stored(
            state[row.name], row.layout.stored_shape(state[row.name].shape, CONFIG.num_heads)
        ).copy()
        for row in rows(CONFIG, RAMPAGE_TABLE)
    }
    table = model.performer.rotary_table
    assert table is not None
    return stored, (model.performer.projection_matrix.numpy().copy(), table.table.numpy().copy())


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
    assert (right.side, right.seed, len(right.losses), len(right.pearsons), right.error) == (Side.PORT, 3, 3, 3, "")
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


def test_what_was_measured_belongs_to_the_present_task_and_plans_enough_pairs(monkeypatch):
    declared = margins(experiment=finetuning())
    assert len(measured(finetuning())["runs"]) >= 30
    for margin in declared:
        assert equivalence_power(PAIRS, margin.margin, margin.paired_deviation) > 0.99
    # It is another experiment than that of pre-training.
    assert measured(finetuning())["conditions"] != measured()["conditions"]
    monkeypatch.setattr(epibert_convergence, "RECIPE", epibert_convergence.Recipe(epochs=99))
    with pytest.raises(ValueError, match=r"rampage_convergence\.json was measured under other conditions"):
        measured(finetuning())


def test_the_experiment_is_found_by_name_in_another_process():
    for name in ("initial_weights", "constants", "train_reference", "train_port"):
        assert getattr(finetuning(), name) is getattr(rampage_convergence, name)
