"""Which layer of the port answers to which layer of the reference."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

LAYOUTS = {
    "same": (lambda array: array, lambda array: array),
    "channels_first": (lambda array: np.moveaxis(array, 1, -1), lambda array: np.moveaxis(array, -1, 1)),
    "time_first": (lambda array: np.swapaxes(array, 0, 1), lambda array: np.swapaxes(array, 0, 1)),
    # What a recurrent layer of PyTorch returns as its last state has an axis of layers.
    "last_state": (lambda array: np.squeeze(array, 0), lambda array: array[None]),
}
"""Activation layouts of the port: (to the reference's layout, back)."""

HEADS = "heads:"
"""``heads:4x8``: the port's last axis of 32 is two of the reference, 4 heads of 8."""


def layout(name: str) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """The two directions of a layout.

    Raises:
        KeyError: There is none of that name.
    """
    if not name.startswith(HEADS):
        return LAYOUTS[name]
    heads = tuple(int(size) for size in name.removeprefix(HEADS).split("x"))
    return (
        lambda array: array.reshape(*array.shape[:-1], *heads),
        lambda array: array.reshape(*array.shape[: -len(heads)], -1),
    )


def _is_layout(name: str) -> bool:
    sizes = name.removeprefix(HEADS).split("x")
    return name in LAYOUTS or (name.startswith(HEADS) and all(size.isdigit() for size in sizes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerPair:
    """One row of the map.

    Attributes:
        port: Path of the module in the port (``named_modules``); empty for the model itself.
        reference: Path of the layer in the reference; empty for the model itself.
        outputs: Names of the returned tensors, in the order in which both sides return them.
        inputs: How many leading tensor arguments mean the same on both sides; these are compared and, in isolated
            readings, fed from the reference. Further arguments (constants) stay the port's own.
        layout: Layout of the port's activations, a key of ``LAYOUTS`` or ``heads:...``.
        input_layout: That of its inputs, where it is another one.
        state: (buffer of the port, variable of the reference) that a training pass changes.
        block: Also read as a block: own inputs from the reference, children from the port.
        alias: Only the output is compared, of a port module that another row already describes.
        state_tolerance: Row of the table of tolerances for the statistics in float64, where it is not ``float64``.
        returned: Which of the tensors that the port's module returns answer to the reference's outputs; all when None.
    """

    port: str
    reference: str
    outputs: tuple[str, ...] = ("output",)
    inputs: int = 1
    layout: str = "same"
    state: tuple[tuple[str, str], ...] = ()
    block: bool = False
    alias: bool = False
    input_layout: str | None = None
    state_tolerance: str = ""
    returned: tuple[int, ...] | None = None

    def to_reference(self, array: np.ndarray, *, is_input: bool = False) -> np.ndarray:
        """An activation of the port in the reference's layout; one that it cannot have stays as it is."""
        try:
            return layout(self._layout(is_input))[0](array)
        except ValueError:  # the shapes will be found to differ
            return array

    def to_port(self, array: np.ndarray, *, is_input: bool = False) -> np.ndarray:
        """An activation of the reference in the port's layout."""
        return layout(self._layout(is_input))[1](array)

    def _layout(self, is_input: bool) -> str:
        return self.input_layout if is_input and self.input_layout is not None else self.layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerMap:
    """The whole map.

    Attributes:
        pairs: Rows, in the order of execution as far as it is known.
        ignored: Layers of the reference that have no counterpart: {path: reason}.
        split: Layers of the reference whose own activation is a layer beside them, ``PATH/activation``.

    Raises:
        ValueError: A path occurs twice, or a layout is unknown.
    """

    pairs: tuple[LayerPair, ...]
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        references = [pair.reference for pair in self.pairs]
        ports = [pair.port for pair in self.pairs if not pair.alias]
        for side, names in (("reference", references), ("port", ports)):
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"the layer map names a {side} layer twice: {doubled}")
        layouts = {pair.layout for pair in self.pairs} | {pair.input_layout or "same" for pair in self.pairs}
        unknown = sorted(name for name in layouts if not _is_layout(name))
        if unknown:
            raise ValueError(f"unknown activation layouts {unknown}; there are {sorted(LAYOUTS)}")
        both = sorted(set(references) & set(self.ignored))
        if both:
            raise ValueError(f"mapped and ignored at once: {both}")

    def __iter__(self) -> Iterator[LayerPair]:
        return iter(self.pairs)

    @classmethod
    def from_names(cls, names: Mapping[str, str], ignored: Mapping[str, str] | None = None) -> "LayerMap":
        """A map from {port path: reference path}; the models themselves are added if absent."""
        pairs = [LayerPair(port=port, reference=reference) for port, reference in names.items()]
        if "" not in names:
            pairs.insert(0, LayerPair(port="", reference="", inputs=0))
        return cls(pairs=tuple(pairs), ignored=ignored or {})

    def owner(self, port_path: str) -> str:
        """The nearest mapped module that contains a port path: whose own code computed that module's inputs."""
        mapped = {pair.port for pair in self.pairs}
        while port_path:
            port_path = port_path.rpartition(".")[0]
            if port_path in mapped:
                return port_path
        return ""
