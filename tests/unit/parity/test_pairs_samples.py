"""The tests' own samples are what they say: the same numbers on both sides, in the layout and of the kind drawn."""

import numpy as np
import pytest
import torch

from parity.pairs.samples import Kind, Memory, laid_out, model_inputs, numbers, sample


@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 1, 1), (3, 5, 2, 4)])
@pytest.mark.parametrize("memory", Memory)
def test_both_sides_get_the_same_numbers(memory, shape):
    drawn = sample(*shape, memory=memory)
    assert drawn.numbers.shape == shape
    assert drawn.numbers.flags.c_contiguous
    assert np.array_equal(drawn.numbers, drawn.tensor.numpy())


@pytest.mark.parametrize("memory", [Memory.TRANSPOSED, Memory.STRIDED, Memory.EXPANDED])
def test_tensors_are_not_contiguous(memory):
    assert not sample(2, 4, 3, memory=memory).tensor.is_contiguous()


def test_memory_layouts_are_what_they_are_called():
    array = np.random.default_rng(0).standard_normal((2, 4, 3))
    assert laid_out(array, Memory.TRANSPOSED).mT.is_contiguous()
    assert laid_out(array, Memory.EXPANDED).stride(0) == 0
    assert laid_out(array, Memory.OFFSET).storage_offset() > 0
    assert all(stride % 2 == 0 for stride in laid_out(array, Memory.STRIDED).stride())


def test_kinds_are_what_they_are_called():
    drawn = {kind: numbers(kind, (2, 50, 4), seed=1) for kind in Kind}
    magnitudes = {kind: np.abs(array) for kind, array in drawn.items()}
    smallest_normal = np.finfo(np.float64).smallest_normal
    assert all(np.isfinite(array).all() and array.dtype == np.float64 for array in drawn.values())
    assert not drawn[Kind.ZEROS].any()
    assert len(np.unique(drawn[Kind.CONSTANT])) == 1
    assert (drawn[Kind.CONSTANT_ROWS] == drawn[Kind.CONSTANT_ROWS][..., :1]).all()
    assert (drawn[Kind.REPEATED_ROWS] == drawn[Kind.REPEATED_ROWS][:, :1]).all()
    assert 0 < np.count_nonzero(drawn[Kind.SPARSE]) < drawn[Kind.SPARSE].size / 2
    assert magnitudes[Kind.MIXED].max() > 1e6 > 1e-6 > magnitudes[Kind.MIXED].min()
    assert magnitudes[Kind.HUGE].max() > 1e99
    assert smallest_normal < magnitudes[Kind.TINY].max() < 1e-99
    assert 0 < magnitudes[Kind.SUBNORMAL].max() < smallest_normal


def test_the_repr_is_the_recipe():
    drawn = sample(2, 3, 1, kind=Kind.HUGE, memory=Memory.STRIDED, seed=5, huge=1e30)
    again = eval(repr(drawn), {"sample": sample, "Kind": Kind, "Memory": Memory})  # noqa: S307  our own text
    assert torch.equal(again.tensor, drawn.tensor)
    inputs = model_inputs(2, 8, 4, 3, seed=5)
    again = eval(repr(inputs), {"model_inputs": model_inputs, "Memory": Memory})  # noqa: S307  our own text
    assert np.array_equal(again.sequence.numbers, inputs.sequence.numbers)


def test_sequences_are_one_hot_or_unknown():
    sequence = model_inputs(2, 64, 32, 3, seed=5, known=0.5).sequence.numbers
    assert set(np.unique(sequence)) == {0.0, 1.0}
    assert set(np.unique(sequence.sum(axis=-1))) == {0.0, 1.0}
