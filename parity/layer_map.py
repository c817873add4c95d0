"""Which layer of the port answers to which layer of the reference."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

LAYOUTS = {
    "same": (lambda array: array, lambda array: array),
    "channels_first": (lambda array: np.moveaxis(array, 1, -1), lambda array: np.moveaxis(array, -1, 1)),
}
"""Activation layouts of the port: (to the reference's layout, back)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerPair:
    """One row of the map.

    Attributes:
        port: Path of the module in the port (``named_modules``); empty for the model itself.
        reference: Path of the layer in the reference; empty for the model itself.
        outputs: Names of the returned tensors, in the order in which both sides return them.
        inputs: How many leading tensor arguments mean the same on both sides; these are compared and, in isolated
            readings, fed from the reference. Further arguments (constants) stay the port's own.
        layout: Layout of the port's activations, a key of ``LAYOUTS``.
        state: (buffer of the port, variable of the reference) that a training pass changes.
        block: Also read as a block: own inputs from the reference, children from the port.
        alias: Only the output is compared, of a port module that another row already describes.
    """

    port: str
    reference: str
    outputs: tuple[str, ...] = ("output",)
    inputs: int = 1
    layout: str = "same"
    state: tuple[tuple[str, str], ...] = ()
    block: bool = False
    alias: bool = False

    def to_reference(self, array: np.ndarray) -> np.ndarray:
        """An activation of the port in the reference's layout."""
        return LAYOUTS[self.layout][0](array)

    def to_port(self, array: np.ndarray) -> np.ndarray:
        """An activation of the reference in the port's layout."""
        return LAYOUTS[self.layout][1](array)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerMap:
    """The whole map.

    Attributes:
        pairs: Rows, in the order of execution as far as it is known.
        ignored: Layers of the reference that have no counterpart: {path: reason}.

    Raises:
        ValueError: A path occurs twice, or a layout is unknown.
    """

    pairs: tuple[LayerPair, ...]
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        references = [pair.reference for pair in self.pairs]
        ports = [pair.port for pair in self.pairs if not pair.alias]
        for side, names in (("reference", references), ("port", ports)):
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"the layer map names a {side} layer twice: {doubled}")
        unknown = sorted({pair.layout for pair in self.pairs} - set(LAYOUTS))
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
