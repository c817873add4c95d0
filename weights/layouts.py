"""How a tensor lies in a Keras checkpoint and how in PyTorch: a few named operations, each with its inverse.

Letters: K kernel positions, I channels in, O channels out, C hidden channels, H heads, D head size. Every operation is
a reshape and a permutation of axes, so its results are views; none looks at the numbers, and none guesses from shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weights.errors import MappingError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One operation between the stored and the port's layout.

    Attributes:
        name: as it appears in the table and in `transplant.json`.
        stored: letters of the axes in the checkpoint.
        port: letters of the axes in PyTorch; two letters in one are a merged axis.

    Both are empty for the identity, which takes any number of axes.
    """

    name: str
    stored: str
    port: str
    _forward: Callable[[np.ndarray], np.ndarray]
    _inverse: Callable[[np.ndarray, Shape], np.ndarray]
    _stored_shape: Callable[[Shape, int], Shape]

    def to_port(self, array: np.ndarray) -> np.ndarray:
        """Rearrange a stored array for PyTorch.

        Raises:
            MappingError: the array has another number of axes than the layout.
        """
        if self.stored and array.ndim != len(self.stored.split()):
            raise MappingError(f"layout {self.name} takes {self.stored!r}, not shape {array.shape}")
        return self._forward(array)

    def to_stored(self, array: np.ndarray, stored_shape: Shape) -> np.ndarray:
        """Rearrange a PyTorch array for the checkpoint; the inverse of `to_port`.

        Args:
            array: in PyTorch's layout.
            stored_shape: the shape that must come out; for heads it also says how to split.

        Raises:
            MappingError: the array cannot have come from a stored array of that shape.
        """
        fits = len(stored_shape) == len(self.stored.split()) if self.stored else True
        if not fits or self._forward(np.empty(stored_shape, np.bool_)).shape != array.shape:
            raise MappingError(f"layout {self.name} does not make shape {stored_shape} from {array.shape}")
        return self._inverse(array, stored_shape)

    def stored_shape(self, port_shape: Shape, heads: int) -> Shape:
        """The shape in the checkpoint of a tensor that has `port_shape` in PyTorch, in a model with so many heads.

        Raises:
            MappingError: the layout never makes that number of axes.
        """
        if self.port and len(port_shape) != len(self.port.split()):
            raise MappingError(f"layout {self.name} makes {self.port!r}, not shape {port_shape}")
        return self._stored_shape(port_shape, heads)


IDENTITY = Layout(
    name="identity",
    stored="",
    port="",
    _forward=lambda array: array,
    _inverse=lambda array, shape: array,
    _stored_shape=lambda shape, heads: shape,
)
DENSE = Layout(
    name="dense",
    stored="I O",
    port="O I",
    _forward=lambda array: array.transpose(1, 0),
    _inverse=lambda array, shape: array.transpose(1, 0),
    _stored_shape=lambda shape, heads: (shape[1], shape[0]),
)
CONV1D = Layout(
    name="conv1d",
    stored="K I O",
    port="O I K",
    _forward=lambda array: array.transpose(2, 1, 0),
    _inverse=lambda array, shape: array.transpose(2, 1, 0),
    _stored_shape=lambda shape, heads: (shape[2], shape[1], shape[0]),
)
HEADS_IN = Layout(
    name="heads_in",
    stored="C H D",
    port="HD C",
    _forward=lambda array: array.reshape(array.shape[0], array.shape[1] * array.shape[2]).transpose(1, 0),
    _inverse=lambda array, shape: array.transpose(1, 0).reshape(shape),
    _stored_shape=lambda shape, heads: (shape[1], heads, shape[0] // heads),
)
HEADS_OUT = Layout(
    name="heads_out",
    stored="H D C",
    port="C HD",
    _forward=lambda array: array.reshape(array.shape[0] * array.shape[1], array.shape[2]).transpose(1, 0),
    _inverse=lambda array, shape: array.transpose(1, 0).reshape(shape),
    _stored_shape=lambda shape, heads: (heads, shape[1] // heads, shape[0]),
)
LAYOUTS = {layout.name: layout for layout in (IDENTITY, DENSE, CONV1D, HEADS_IN, HEADS_OUT)}
"""All layouts by name."""
