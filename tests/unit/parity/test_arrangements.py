"""Where Keras' variables go in PyTorch; that the layers then compute the same is shown on whole pairs."""

import numpy as np
import pytest

from parity import arrangements
from parity.arrangements import einsum_kernel


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float64).reshape(shape)


def test_square_kernels_are_arranged_by_type():
    square = numbered(3, 3)
    assert np.array_equal(arrangements.DENSE(square), square.T)
    assert np.array_equal(arrangements.LSTM_KERNEL(square), square.T)
    assert np.array_equal(arrangements.AS_IT_IS(square), square)
    cube = numbered(3, 3, 3)
    assert arrangements.CONVOLUTION[1](cube)[0, 1, 2] == cube[2, 1, 0]
    assert arrangements.TRANSPOSED_CONVOLUTION[1](cube)[0, 1, 2] == cube[2, 1, 0]
    tesseract = numbered(3, 3, 3, 3)
    assert arrangements.CONVOLUTION[2](tesseract)[0, 1, 2, 0] == tesseract[2, 0, 1, 0]
    assert arrangements.TRANSPOSED_CONVOLUTION[2](tesseract)[0, 1, 2, 0] == tesseract[2, 0, 1, 0]


def test_a_depthwise_kernel_becomes_one_filter_for_each_channel_and_multiplier():
    kernel = numbered(5, 3, 2)
    found = arrangements.DEPTHWISE[1](kernel)
    assert found.shape == (6, 1, 5)
    assert np.array_equal(found[2 * 2 + 1, 0], kernel[:, 2, 1])
    plane = numbered(5, 4, 3, 2)
    assert np.array_equal(arrangements.DEPTHWISE[2](plane)[2 * 2 + 1, 0], plane[:, :, 2, 1])


def test_the_gates_of_a_gru_are_put_into_the_order_of_pytorch():
    update, reset, new = numbered(2, 3), numbered(2, 3) + 10, numbered(2, 3) + 20
    kernel = np.concatenate([update, reset, new], axis=1)
    assert np.array_equal(arrangements.GRU_KERNEL(kernel), np.concatenate([reset, update, new], axis=1).T)
    bias = np.stack([kernel[0], kernel[1]])
    assert np.array_equal(arrangements.GRU_INPUT_BIAS(bias), np.concatenate([reset[0], update[0], new[0]]))
    assert np.array_equal(arrangements.GRU_RECURRENT_BIAS(bias), np.concatenate([reset[1], update[1], new[1]]))


def test_the_second_bias_of_an_lstm_is_zero():
    assert np.array_equal(arrangements.NO_SECOND_BIAS(np.ones(4)), np.zeros(4))


@pytest.mark.parametrize(
    ("equation", "given", "kernel"),
    [
        ("abc,cde->abde", (2, 5, 3), (3, 4, 6)),
        ("abde,dec->abc", (2, 5, 4, 6), (4, 6, 3)),
        ("abde,edc->abc", (2, 5, 4, 6), (6, 4, 3)),
        ("ab,bc->ac", (2, 3), (3, 4)),
    ],
)
def test_an_einsum_is_a_linear_layer_over_merged_axes(equation, given, kernel):
    x, weights = numbered(*given), numbered(*kernel)
    matrix = einsum_kernel(equation)(weights)
    expected = np.einsum(equation, x, weights)
    rows = x.reshape(-1, matrix.shape[1])
    assert np.array_equal((rows @ matrix.T).reshape(expected.shape), expected)


@pytest.mark.parametrize("equation", ["ab,ab->ab", "ab,bcd->ac"])
def test_an_einsum_that_is_no_linear_layer_is_refused(equation):
    with pytest.raises(ValueError, match="no such axis"):
        einsum_kernel(equation)
