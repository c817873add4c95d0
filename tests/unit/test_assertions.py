"""The tests' own assertion sees every way of being wrong, and says where."""

import numpy as np
import pytest
import torch

from tests.assertions import Disagreement, as_array, assert_same

REFERENCE = np.arange(1.0, 7.0).reshape(2, 3)


def test_equal_numbers_are_the_same():
    assert_same(REFERENCE, REFERENCE, "exact")
    assert_same(torch.from_numpy(REFERENCE), REFERENCE, "exact")


@pytest.mark.parametrize(
    "port",
    [
        REFERENCE[:, :2],
        REFERENCE.reshape(3, 2),
        REFERENCE[None],
        REFERENCE + np.array([[0, 0, 0], [0, 0, 1e-9]]),
        np.where(REFERENCE == 2, np.nan, REFERENCE),
        np.where(REFERENCE == 2, np.inf, REFERENCE),
        -REFERENCE,
        np.zeros_like(REFERENCE),
    ],
    ids=["cut", "reshaped", "axis", "one number", "nan", "infinite", "sign", "zero"],
)
def test_a_difference_is_seen(port):
    with pytest.raises(Disagreement):
        assert_same(port, REFERENCE)


def test_nothing_is_not_the_same_as_nothing():
    with pytest.raises(Disagreement, match="empty"):
        assert_same(np.zeros((2, 0)), np.zeros((2, 0)))


def test_nan_is_not_the_same_as_nan():
    with pytest.raises(Disagreement, match="nan"):
        assert_same(np.full(3, np.nan), np.full(3, np.nan))


def test_the_message_says_what_where_got_and_expected():
    port = REFERENCE.copy()
    port[1, 2] = 7.0
    with pytest.raises(Disagreement, match=r"(?s)k_prime.*\(1, 2\).*expected.*6\.0.*got.*7\.0.*limit 1e-12"):
        assert_same(port, REFERENCE, what="k_prime")


def test_a_row_that_is_a_ratio_is_refused():
    with pytest.raises(AssertionError, match="ratio"):
        assert_same(REFERENCE, REFERENCE, "float32")


def test_bfloat16_becomes_an_array():
    assert as_array(torch.tensor([1.5], dtype=torch.bfloat16)).tolist() == [1.5]
