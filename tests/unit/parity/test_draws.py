"""Shared random numbers: the same for whoever asks, another for every other question."""

import numpy as np
import pytest

from parity.draws import Draws


def test_the_same_question_has_the_same_answer_in_any_order():
    first, second = Draws(1), Draws(1)
    first.keep("other", 0, (100,), 0.5)
    assert np.array_equal(first.keep("a", 0, (100,), 0.5), second.keep("a", 0, (100,), 0.5))


@pytest.mark.parametrize(
    ("seed", "step", "path", "call"), [(2, 0, "a", 0), (1, 1, "a", 0), (1, 0, "b", 0), (1, 0, "a", 1)]
)
def test_another_question_has_another_answer(seed, step, path, call):
    draws = Draws(seed)
    draws.step = step
    assert not np.array_equal(draws.keep(path, call, (100,), 0.5), Draws(1).keep("a", 0, (100,), 0.5))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.9, 1.0])
def test_the_share_that_is_kept(rate):
    kept = Draws(1).keep("a", 0, (200, 50), rate)
    assert kept.dtype == bool
    assert kept.shape == (200, 50)
    # Five standard deviations of a binomial share of 10,000.
    assert abs(kept.mean() - (1 - rate)) <= 5 * (rate * (1 - rate) / kept.size) ** 0.5
