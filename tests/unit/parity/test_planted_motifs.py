"""The task of the convergence rung: what it promises about its examples, and what its runs share."""

import numpy as np
import pytest

from parity.convergence import FEWEST_PAIRS
from parity.pairs import epibert_convergence, planted_motifs
from parity.pairs.planted_motifs import MOTIFS

SHAPE = {"bins": 32, "crop": 2, "bin_length": 8, "values_per_bin": 8}


def test_examples_have_the_shapes_of_the_pipeline():
    drawn = planted_motifs.draw(0, 5, **SHAPE)
    shapes = [array.shape for array in drawn.arrays]
    assert shapes == [(5, 256, 4), (5, 256, 1), (5, 28, 1), (5, 28, 1), (5, 28, 1), (5, 1, len(MOTIFS))]
    assert {array.dtype for array in drawn.arrays} == {np.dtype(np.float32)}
    assert np.all(drawn.sequence.sum(axis=-1) == 1)
    assert np.all(drawn.mask + drawn.unmask == 1)


def test_a_seed_gives_the_same_examples_again_and_another_gives_others():
    first, again, other = (planted_motifs.draw(seed, 4, **SHAPE) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first.arrays, again.arrays, strict=True))
    assert not np.array_equal(first.target, other.target)


def test_masked_bins_are_zero_in_the_input_and_the_others_hold_their_counts():
    drawn = planted_motifs.draw(0, 50, **SHAPE)
    bins = drawn.atac.reshape(50, 32, 8).sum(axis=-1)[:, 2:-2]
    masked = drawn.mask[..., 0] == 1
    assert np.all(bins[masked] == 0)
    assert np.array_equal(bins[~masked], drawn.target[..., 0][~masked])
    assert 0.1 < masked.mean() < 0.4
    assert masked.any(axis=1).all()
    # A mean of means of examples is another loss than the mean of all bins only where examples mask differently.
    assert len(set(masked.sum(axis=1))) > 3


@pytest.mark.parametrize(("index", "activates"), [(0, True), (1, True), (2, False)])
def test_motifs_decide_the_counts(index, activates):
    drawn = planted_motifs.draw(0, 1500, **SHAPE)
    letters = np.array(list("ACGT"))[drawn.sequence.argmax(axis=-1)].reshape(1500, 32, 8)[:, 2:-2]
    holds = np.array([[MOTIFS[index] in "".join(bin_) for bin_ in example] for example in letters])
    active = np.repeat(drawn.motif_activity[:, :, index] > 0.8, 28, axis=1)
    target = drawn.target[..., 0]
    ratio = target[holds & active].mean() / target.mean()
    assert ratio > 2 if activates else ratio < 0.6


def test_an_epoch_takes_every_example_once_in_an_order_of_its_own():
    orders = {
        (seed, epoch): np.concatenate(epibert_convergence.order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)
    }
    for indices in orders.values():
        assert sorted(indices) == list(range(epibert_convergence.TRAINING_EXAMPLES))
    assert len({tuple(indices) for indices in orders.values()}) == len(orders)


def test_the_streams_of_a_seed_and_of_neighbouring_seeds_differ():
    streams = {epibert_convergence.stream(seed, purpose) for seed in range(200) for purpose in range(5)}
    assert len(streams) == 1000


def test_scores_are_those_of_the_formulas():
    validation = epibert_convergence.examples()[1]
    loss, pearson = epibert_convergence.score(2 * validation.target + 1)
    y = validation.target[validation.mask == 1].astype(np.float64)
    assert pearson == pytest.approx(1)
    assert loss == pytest.approx(np.mean(2 * y + 1 - y * np.log(2 * y + 1 + 1e-7)))


def test_predictions_that_are_all_alike_have_no_correlation():
    assert np.isnan(epibert_convergence.score(np.ones_like(epibert_convergence.examples()[1].target))[1])


def test_what_was_measured_belongs_to_the_present_task_and_plans_enough_pairs():
    """Power well above what is promised, so that no right port fails by bad luck on another machine."""
    from parity.convergence import equivalence_power

    declared = epibert_convergence.margins()
    assert [margin.quantity for margin in declared] == ["losses", "pearsons"]
    assert len(epibert_convergence.measured()["runs"]) >= 30
    for margin in declared:
        power = equivalence_power(epibert_convergence.PAIRS, margin.margin, margin.paired_deviation)
        assert power > 0.99
    assert epibert_convergence.PAIRS > FEWEST_PAIRS


def test_a_measurement_of_another_task_is_refused(monkeypatch):
    monkeypatch.setattr(epibert_convergence, "RECIPE", epibert_convergence.Recipe(epochs=99))
    with pytest.raises(ValueError, match="measured under other conditions"):
        epibert_convergence.measured()


def test_the_seeds_of_the_measurement_judge_no_pair():
    last = epibert_convergence.FIRST_SEED + 1000 * epibert_convergence.PAIRS
    assert last < epibert_convergence.MEASURED_FROM
