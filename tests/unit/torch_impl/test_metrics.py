"""The metrics of the port: against recorded numbers, against textbook formulas, and where they have no answer."""

import ast
import pickle

import h5py
import numpy as np
import pytest
import torch

from tests.assertions import Disagreement, assert_same
from tests.unit.sources import ROOT
from torch_impl.metrics import R2, GeneCellCorrelation, Mean, PearsonR

METRICS = {"PearsonR": PearsonR, "R2": R2}
BEFORE_UPDATE = "ignore:The ``compute`` method of metric:UserWarning"


def batches(number: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Predictions and targets, the number of bins different in each."""
    generator = np.random.default_rng(7)
    found = []
    for index in range(number):
        target = generator.gamma(0.5, 4.0, (2, 9 + index, 1))
        found.append((torch.from_numpy(target * 0.5 + generator.random(target.shape)), torch.from_numpy(target)))
    return found


def test_a_batch_that_is_left_out_shows_in_a_correlation_and_the_order_of_batches_does_not():
    """As what differs between processes is compared: as a difference, whatever the size."""

    def correlation(chosen: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        metric = PearsonR(state_dtype=torch.float64)
        for batch in chosen:
            metric.update(*batch)
        return metric.compute()

    seen = batches()
    assert_same(correlation(seen[::-1]), correlation(seen), "correlation")
    with pytest.raises(Disagreement):
        assert_same(correlation(seen[:-1]), correlation(seen), "correlation")


@pytest.mark.parametrize("name", ["case0_PearsonR", "case1_R2", "case2_PearsonR", "case3_R2"])
def test_after_every_batch_and_the_sums_at_the_end(name):
    with h5py.File(ROOT / "goldens" / "functions.h5") as file:
        recorded = file["metrics"][name]
        axes, state = ast.literal_eval(recorded.attrs["reduce_axis"]), recorded["state"]
        metric = METRICS[name.partition("_")[2]](axes, shape=state["count"].shape)
        for index in range(4):
            batch = recorded[f"batch{index}"]
            metric.update(*(torch.from_numpy(batch[key][()]) for key in ("y_pred", "y_true")))
            result = metric.compute()
            assert result.dtype == torch.float32
            assert_same(result.reshape(metric.count.shape), batch["result_so_far"][()], "float32_metric")
        assert len(state) == 6
        for key, expected in state.items():
            assert_same(getattr(metric, key), expected[()], "float32_only", what=key)


@pytest.mark.parametrize("kind", METRICS.values(), ids=METRICS)
def test_float64_sums_give_the_textbook_value(kind):
    metric = kind(state_dtype=torch.float64)
    for pred, target in batches():
        metric.update(pred, target)
    pred, target = (np.concatenate([pair[side].numpy().ravel() for pair in batches()]) for side in (0, 1))
    if kind is PearsonR:
        expected = np.corrcoef(pred, target)[0, 1]
    else:
        expected = 1 - np.sum((target - pred) ** 2) / np.sum((target - target.mean()) ** 2)
    assert metric.compute().dtype == torch.float64
    assert_same(metric.compute(), np.array(expected))


@pytest.mark.parametrize("kind", METRICS.values(), ids=METRICS)
def test_sums_stay_in_their_dtype_whatever_the_model_is_cast_to(kind):
    metric = kind()
    torch.nn.ModuleList([metric]).double().bfloat16()
    metric.update(*batches()[0])
    assert metric.compute().dtype == metric.count.dtype == torch.float32


@pytest.mark.filterwarnings(BEFORE_UPDATE)
@pytest.mark.parametrize("kind", METRICS.values(), ids=METRICS)
def test_without_data_the_result_is_nan(kind):
    metric = kind()
    assert metric.compute().isnan().all()
    metric.update(*batches()[0])
    assert metric.compute().isfinite().all()
    metric.reset()
    assert metric.compute().isnan().all()
    assert metric.compute().shape == ()


def test_constant_values_have_no_correlation():
    ones, rising = torch.ones(1, 8, 1), torch.arange(8.0).reshape(1, 8, 1)
    for pred, target in ((ones, rising), (rising, ones), (ones, ones)):
        metric = PearsonR()
        metric.update(pred, target)
        assert metric.compute().isnan().all()
    metric = R2()
    metric.update(rising, ones)
    assert metric.compute().isneginf().all()


def test_a_batch_of_another_shape_is_refused():
    pred = torch.rand(2, 5, 3)
    with pytest.raises(ValueError, match=r"shape \(2, 5, 3\) has shape \(3,\), the state \(1,\)"):
        PearsonR().update(pred, pred)
    metric = PearsonR(shape=(3,))
    metric.update(pred, pred)
    assert_same(metric.compute(), torch.ones(3), "float32_metric")


@pytest.mark.parametrize("kind", METRICS.values(), ids=METRICS)
def test_a_metric_is_saved_and_goes_on(kind):
    first, *rest = batches()
    metric = kind()
    metric.update(*first)
    copy = pickle.loads(pickle.dumps(metric))  # noqa: S301  made in the line above
    for each in (metric, copy):
        for pair in rest:
            each.update(*pair)
    assert_same(copy.compute(), metric.compute(), "exact")


def test_a_mean_counts_batches_and_goes_on_after_inference_mode():
    metric = Mean()
    with torch.inference_mode():
        metric.update(torch.tensor(5.0))
        metric.reset()
    for value in (1.0, 2.0, 6.0):
        metric.update(torch.tensor(value, dtype=torch.float64))
    assert_same(metric.compute(), torch.tensor(3.0), "exact")


# --- across genes and cell types


def expression(examples: int = 24) -> tuple[torch.Tensor, ...]:
    """Predictions, targets and start sites in bins; five genes in three cell types, some seen more than once."""
    generator = np.random.default_rng(5)
    shape = (examples, 7, 1)
    target = generator.gamma(0.7, 6.0, shape)
    pred = 0.6 * target + generator.gamma(1.0, 2.0, shape)
    tokens = (generator.random(shape) < 0.4).astype(np.float64)
    gene, cell = np.arange(examples) % 5, np.arange(examples) // 5 % 3
    return tuple(map(torch.from_numpy, (pred, target, tokens, gene, cell)))


def test_correlations_across_genes_and_cell_types_are_those_of_a_table():
    pred, target, tokens, gene, cell = (array.numpy() for array in expression())
    table = np.zeros((2, 3, 5))
    for index in range(len(gene)):
        for side, bins in enumerate((pred, target)):
            table[side, cell[index], gene[index]] += (bins[index] * tokens[index]).sum()
    assert table.all()  # there is no hole in it
    levels = np.log2(1 + table)
    z = (levels - levels.mean(axis=2, keepdims=True)) / levels.std(axis=2, keepdims=True)
    metric = GeneCellCorrelation()
    for part in (slice(0, 10), slice(10, 11), slice(11, None)):
        metric.update(*(values[part] for values in expression()))
    found = metric.compute()
    assert_same(found["cell_pearson"], np.mean([np.corrcoef(*z[:, c])[0, 1] for c in range(3)]))
    assert_same(found["gene_pearson"], np.mean([np.corrcoef(*z[:, :, g])[0, 1] for g in range(5)]))
    assert (int(found["cells"]), int(found["genes"])) == (3, 5)


def test_what_has_no_correlation_counts_in_neither_mean():
    pred, target, tokens, gene, cell = expression()
    metric = GeneCellCorrelation()
    metric.update(pred, target, tokens, gene, cell)
    before = metric.compute()
    # A cell type with one gene, and one in which nothing is expressed.
    metric.update(pred[:1], target[:1], tokens[:1], torch.tensor([0]), torch.tensor([7]))
    metric.update(pred[:4], target[:4], torch.zeros_like(tokens[:4]), torch.tensor([0, 1, 2, 3]), torch.full((4,), 8))
    after = metric.compute()
    assert_same(after["cell_pearson"], before["cell_pearson"])
    assert (int(after["cells"]), int(after["genes"])) == (3, 1)  # gene 4 alone is nowhere undefined


@pytest.mark.filterwarnings(BEFORE_UPDATE)
def test_without_examples_both_correlations_are_nan():
    metric = GeneCellCorrelation()
    found = metric.compute()
    assert found["cell_pearson"].isnan()
    assert (int(found["cells"]), int(found["genes"])) == (0, 0)
    nothing = torch.zeros(0, 7, 1)
    metric.update(nothing, nothing, nothing, torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
    assert metric.compute()["gene_pearson"].isnan()
    metric.reset()
    metric.update(*expression())
    assert metric.compute()["gene_pearson"].isfinite()
