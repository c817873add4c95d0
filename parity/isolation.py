"""One layer taken out of its models: called alone, with what it was given there, on fewer examples and positions."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.keras_side import KerasSide
from parity.ladder import compare_pass
from parity.layer_map import LayerMap, LayerPair
from parity.records import Comparison, Reading, Status
from parity.reference import LiveReference
from parity.torch_side import TorchSide
from parity.trace import attempt, flatten, replace

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
"""Numbers of positions that are tried."""
WINDOWS = 4
"""Windows of each size, spread over the length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a layer was called with.

    Attributes:
        structure: Positional and keyword arguments, tensors included.
        is_tensor: What counts as a tensor there.
    """

    structure: Any
    is_tensor: Any

    @property
    def tensors(self) -> list[Any]:
        """The tensors, in order."""
        return flatten(self.structure, self.is_tensor)

    def cut(self, part: "Part") -> "Arguments":
        """The same for a part of the input."""
        found = [part.of(tensor) for tensor in self.tensors]
        return dataclasses.replace(self, structure=replace(self.structure, self.is_tensor, found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some examples and a window of positions.

    Attributes:
        batch: Examples that there are.
        length: Positions that there are.
        examples: First example, and the one behind the last.
        positions: First position, and the one behind the last.
    """

    batch: int
    length: int
    examples: tuple[int, int]
    positions: tuple[int, int]

    def of(self, tensor: Any) -> Any:
        """The part of an activation (B, L, ...); what has other sizes or fewer axes is no activation and stays."""
        if len(tensor.shape) > 2 and tensor.shape[1] == self.length:
            tensor = tensor[:, slice(*self.positions)]
        if len(tensor.shape) > 1 and tensor.shape[0] == self.batch:
            tensor = tensor[slice(*self.examples)]
        return tensor


class IsolatedLayer:
    """A layer of both sides with the arguments of one of its calls.

    Args:
        port: The whole port.
        live: The whole reference.
        pair: Row of the layer in the map.
        layer_map: The whole map.
        precision: Precision to compare in.
        mode: ``evaluation`` or ``training``.
        call: Which of the layer's calls.

    Raises:
        LookupError: One of the sides has no such layer, or does not reach that call of it.
    """

    def __init__(
        self,
        port: TorchSide,
        live: LiveReference,
        pair: LayerPair,
        layer_map: LayerMap,
        *,
        precision: str,
        mode: str,
        call: int = 0,
    ) -> None:
        self.pair, self.precision, self.mode = pair, precision, mode
        self.whole, self.live = port, live
        self.layer_map = _below(pair, layer_map)
        if pair.port not in port.modules:
            raise LookupError(f"the port has no module {pair.port}")
        self.module = port.modules[pair.port]
        first = live.precisions[0]
        training = mode == "training"
        with _seen_reference(live.sides[first].layers[pair.reference], call) as reference_call:
            live.sides[first].trace(live.inputs, training=training)
        if not reference_call:
            raise LookupError(f"the reference does not call {pair.reference} a number {call + 1} of times")
        truth = live.trace(first, training=training, reading=Reading.ACCUMULATED)
        with _seen_port(self.module, call) as port_call:
            port.trace(live.inputs, precision=precision, training=training, truth=truth)
        if not port_call:
            raise LookupError(f"the port does not call {pair.port} a number {call + 1} of times")
        self._port_call, self._reference_call = port_call[0], reference_call[0]
        # The model itself has no inputs in its row: all its arguments are such.
        self.mapped = pair.inputs if pair.port else len(reference_call[0].tensors)
        largest = self._reference_call.tensors[0].shape
        batch, length = (*largest[:2], 1)[:2]
        self.everything = Part(batch=batch, length=length, examples=(0, batch), positions=(0, length))

    def compare(self, part: Part) -> list[Comparison]:
        """The isolated reading on a part of the input; paths are relative to the layer.

        Raises:
            Exception: Whatever the reference raises on such an input.
        """
        port, live = self.sides(part)
        rows = compare_pass(
            port,
            live,
            self.layer_map,
            precision=self.precision,
            mode=self.mode,
            reading=Reading.ISOLATED,
            case="",
        )
        return [row for row in rows if row.layer == ""]

    def sides(self, part: Part) -> tuple["PortLayer", LiveReference]:
        """Both sides, ready to be run on a part of the input."""
        given, expected = self._port_call.cut(part), self._reference_call.cut(part)
        live = copy.copy(self.live)
        names = dict.fromkeys((self.live.precisions[0], self.precision))
        sides: dict[str, KerasSide] = {
            name: _ReferenceLayer(self.live.sides[name], self.pair.reference, expected, self.mapped) for name in names
        }
        live.sides = sides
        live.inputs = tuple(np.asarray(tensor, dtype=np.float64) for tensor in expected.tensors[: self.mapped])
        live.blocks = frozenset()
        live._forget()
        return PortLayer(self.whole, self.pair, self.layer_map, given, self.mapped), live

    def shrink(self) -> tuple[Part, list[Comparison]]:
        """The fewest examples, then the fewest positions, on which the layer still fails in the same way.

        Raises:
            LookupError: It does not fail on all of them.
        """
        part, rows = self.everything, self.compare(self.everything)
        kinds = _kinds(rows)
        if not kinds:
            raise LookupError("called alone, the layer computes what it should")
        for candidate in self._candidates():
            # An input that the reference refuses shows nothing.
            found, _ = attempt(functools.partial(self.compare, candidate))
            if found is not None and _kinds(found) & kinds:
                return candidate, found
        return part, rows

    def _candidates(self) -> Iterator[Part]:
        whole = self.everything
        few = [(index, index + 1) for index in range(min(whole.batch, WINDOWS))] if whole.batch > 1 else []
        sizes = [size for size in SIZES if size < whole.length]
        for examples in [*few, (0, whole.batch)]:
            for size in [*sizes, whole.length]:
                starts = np.linspace(0, whole.length - size, WINDOWS if size < whole.length else 1).astype(int)
                for start in dict.fromkeys(starts.tolist()):
                    yield dataclasses.replace(whole, examples=examples, positions=(start, start + size))


class PortLayer(TorchSide):
    """A module of the port, called alone; precision and mode are those of the whole."""

    def __init__(
        self, whole: TorchSide, pair: LayerPair, layer_map: LayerMap, arguments: Arguments, mapped: int
    ) -> None:
        super().__init__(whole.module, layer_map, whole.set_precision)
        start = f"{pair.port}." if pair.port else ""
        self.modules = {
            name.removeprefix(start): part for name, part in whole.modules.items() if name.startswith(start)
        }
        self.modules[""] = whole.modules[pair.port]
        self.arguments, self.mapped, self.pair = arguments, mapped, pair

    def structure(self, tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with other tensors for those that mean the same on both sides."""
        rest = self.arguments.tensors[self.mapped :]
        return replace(self.arguments.structure, torch.is_tensor, [*tensors, *rest])

    def _call(self, module: nn.Module, tensors: list[torch.Tensor]) -> Any:
        args, kwargs = self.structure(tensors)
        return self.modules[""](*args, **kwargs)


class _ReferenceLayer(KerasSide):
    """A layer of the reference, called alone."""

    def __init__(self, whole: KerasSide, path: str, arguments: Arguments, mapped: int) -> None:
        super().__init__(whole.layers[path])
        # A Sequential has a policy of its own, under which it computes nothing.
        self.dtype = whole.dtype
        self.arguments, self.mapped = arguments, mapped

    def _call(self, tensors: list[Any], training: bool) -> Any:
        import tensorflow as tf

        rest = [tf.constant(array) for array in self.arguments.tensors[self.mapped :]]
        rest = [tf.cast(tensor, self.dtype) if tensor.dtype.is_floating else tensor for tensor in rest]
        args, kwargs = replace(self.arguments.structure, self.arguments.is_tensor, [*tensors, *rest])
        return self.model(*args, **{**kwargs, "training": training})


def _below(pair: LayerPair, layer_map: LayerMap) -> LayerMap:
    """The map of a layer's own parts, with paths relative to it."""
    if not pair.port:
        return layer_map
    rows = [dataclasses.replace(pair, port="", reference="")]
    for row in layer_map:
        if row.port.startswith(f"{pair.port}.") and row.reference.startswith(f"{pair.reference}/"):
            port, reference = row.port[len(pair.port) + 1 :], row.reference[len(pair.reference) + 1 :]
            rows.append(dataclasses.replace(row, port=port, reference=reference))
    return LayerMap(pairs=tuple(rows))


def _kinds(rows: Sequence[Comparison]) -> set[tuple[str, str, Status]]:
    """What fails, and how."""
    failed = (row for row in rows if row.status is not Status.PASS)
    # Where the reference leaves nothing over, there is nothing to show.
    return {(row.port, row.quantity, row.status) for row in failed if row.shape is None or 0 not in row.shape}


@contextlib.contextmanager
def _seen_port(module: nn.Module, call: int) -> Iterator[list[Arguments]]:
    """Fills a list with the arguments of one call of a module, as it is fed."""
    seen: list[Arguments] = []
    calls = 0

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal calls
        if calls == call:
            tensors = [tensor.detach().clone() for tensor in flatten((args, kwargs), torch.is_tensor)]
            structure = replace((args, kwargs), torch.is_tensor, tensors)
            seen.append(Arguments(structure=structure, is_tensor=torch.is_tensor))
        calls += 1

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextlib.contextmanager
def _seen_reference(layer: Any, call: int) -> Iterator[list[Arguments]]:
    """Fills a list with the arguments of one call of a layer; its tensors as arrays."""
    import tensorflow as tf

    seen: list[Arguments] = []
    own, plain = vars(layer).get("call"), layer.call
    calls = 0

    def look(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if calls == call:
            arrays = [tensor.numpy() for tensor in flatten((args, kwargs), tf.is_tensor)]
            structure = replace((args, kwargs), tf.is_tensor, arrays)
            seen.append(Arguments(structure=structure, is_tensor=_is_array))
        calls += 1
        return plain(*args, **kwargs)

    # As in keras_side: Keras looks ``call`` up on the instance.
    vars(layer)["call"] = look
    try:
        yield seen
    finally:
        if own is None:
            del vars(layer)["call"]
        else:
            vars(layer)["call"] = own


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
