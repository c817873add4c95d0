"""How a Keras variable lies in PyTorch, as named operations for the layers that both frameworks have.

Which operation a tensor needs follows from the type of its layer and from nothing else: the shape of a square kernel
would allow a transposition that is wrong.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One operation from the layout of Keras to that of PyTorch.

    Attributes:
        name: As it appears in reports.
        apply: The operation.
    """

    name: str
    apply: Callable[[np.ndarray], np.ndarray]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The array as PyTorch has it."""
        return self.apply(array)


def _permuted(name: str, *axes: int) -> Arrangement:
    return Arrangement(name=name, apply=lambda array: np.transpose(array, axes))


AS_IT_IS = Arrangement(name="as it is", apply=lambda array: array)
DENSE = _permuted("dense: I O to O I", 1, 0)
CONVOLUTION = {
    1: _permuted("convolution: K I O to O I K", 2, 1, 0),
    2: _permuted("convolution: H W I O to O I H W", 3, 2, 0, 1),
    3: _permuted("convolution: D H W I O to O I D H W", 4, 3, 0, 1, 2),
}
"""By the number of spatial axes."""

# Keras keeps a transposed convolution's kernel with the outputs before the inputs, PyTorch the other way round.
TRANSPOSED_CONVOLUTION = {
    1: _permuted("transposed convolution: K O I to I O K", 2, 1, 0),
    2: _permuted("transposed convolution: H W O I to I O H W", 3, 2, 0, 1),
}

# One filter per input channel and multiplier: PyTorch has them as outputs of a grouped convolution, the channel first.
DEPTHWISE = {
    1: Arrangement(
        name="depthwise convolution: K I M to IM 1 K",
        apply=lambda array: array.transpose(1, 2, 0).reshape(-1, 1, array.shape[0]),
    ),
    2: Arrangement(
        name="depthwise convolution: H W I M to IM 1 H W",
        apply=lambda array: array.transpose(2, 3, 0, 1).reshape(-1, 1, *array.shape[:2]),
    ),
}

# Both frameworks order an LSTM's gates input, forget, cell, output. Keras has one bias, PyTorch two that it adds.
LSTM_KERNEL = _permuted("LSTM: I 4H to 4H I", 1, 0)
NO_SECOND_BIAS = Arrangement(name="zeros: Keras has one bias", apply=np.zeros_like)


def _gru_gates(array: np.ndarray) -> np.ndarray:
    """Keras orders a GRU's gates update, reset, new along the last axis; PyTorch reset, update, new."""
    update, reset, new = np.split(array, 3, axis=-1)
    return np.concatenate([reset, update, new], axis=-1)


GRU_KERNEL = Arrangement(name="GRU: I zrh to rzn I", apply=lambda array: _gru_gates(array).T)
GRU_INPUT_BIAS = Arrangement(name="GRU: first row, zrh to rzn", apply=lambda array: _gru_gates(array[0]))
GRU_RECURRENT_BIAS = Arrangement(name="GRU: second row, zrh to rzn", apply=lambda array: _gru_gates(array[1]))
FLATTENED = Arrangement(name="one axis", apply=lambda array: array.reshape(-1))


def einsum_kernel(equation: str) -> Arrangement:
    """Kernel of an ``EinsumDense`` as the matrix of a linear layer.

    Axes of the output come first, then those summed over, each group in the order that it has in the activations.

    Raises:
        ValueError: An axis of the kernel is neither summed over nor in the output, or the other way round both.
    """
    operands, _, output = equation.replace(" ", "").partition("->")
    given, _, kernel = operands.partition(",")
    summed = [letter for letter in given if letter in kernel and letter not in output]
    kept = [letter for letter in output if letter in kernel and letter not in given]
    if len(summed) + len(kept) != len(kernel):
        raise ValueError(f"{equation}: a linear layer has no such axis")
    axes = tuple(kernel.index(letter) for letter in (*kept, *summed))
    rows = len(kept)

    def apply(array: np.ndarray) -> np.ndarray:
        ordered = array.transpose(axes)
        return ordered.reshape(math.prod(ordered.shape[:rows]), math.prod(ordered.shape[rows:]))

    return Arrangement(name=f"einsum {equation}: {''.join(kept)} {''.join(summed)}", apply=apply)
