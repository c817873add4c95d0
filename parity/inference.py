"""Which layer of a port answers to which layer of a Keras model, and which tensor to which variable, found out.

Order of execution, type and shapes propose; values confirm. The port gets the reference's weights for a moment, as the
proposal has them, and every layer is fed with what the reference's layer was fed with: a pair is confirmed when the two
return the same. What stays unconfirmed is in the map all the same, where ``verify`` will find what is wrong with it.
What could be paired in several ways is named and not paired, so that ``verify`` fails on it by name: a line in a table
of the user's own decides.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from parity.arrangements import Arrangement
from parity.compare import distance
from parity.keras_kinds import RECURRENT, KerasKind, keras_kind
from parity.keras_side import KerasSide, activation_path, layers_by_path, lift, variables_by_path
from parity.ladder import tolerance_of
from parity.layer_map import HEADS, LayerMap, LayerPair, layout
from parity.operations import name_operations
from parity.recorder import describe_layer
from parity.recording import Recording
from parity.records import NotCompared, Reading
from parity.tolerances import TABLE
from parity.torch_kinds import torch_kind
from parity.torch_side import TorchSide, cast_module
from parity.trace import Call, Trace

WeightMap = Mapping[str, tuple[str, Sequence[int] | Arrangement | None]]
Evidence = Literal["table", "type and shape", "name", "order", "weights", "values", "parts"]

_MANY = 99
_SHAPE_ONLY = "it only changes shapes; the next layer's input shows its result"
_CHANNELS_FIRST = ("convolution", "transposed", "batch norm", "pool", "upsample", "pad")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """One pair as it was found.

    Attributes:
        pair: Row of the layer map.
        kind: Type of layer on both sides.
        evidence: What proposed it.
        confirmed: With the reference's weights and fed with the reference's inputs, the port's layer returns what the
            reference's does.
        detail: Why it is not confirmed, or what else spoke against it.
    """

    pair: LayerPair
    kind: str
    evidence: Evidence
    confirmed: bool = False
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """Both maps, and how they were found.

    Attributes:
        layer_map: Which layer answers to which.
        weight_map: Which tensor is which variable.
        proposals: Every pair with its evidence, in the order of execution.
        ambiguous: {layer of the reference: what it could be}, left unpaired.
        untraced: {module of the port: why its functional operations have no names}.
    """

    layer_map: LayerMap
    weight_map: WeightMap
    proposals: tuple[Proposal, ...]
    ambiguous: Mapping[str, str]
    untraced: Mapping[str, str]

    @property
    def unconfirmed(self) -> tuple[Proposal, ...]:
        """Pairs that no value confirms."""
        return tuple(row for row in self.proposals if not row.confirmed)

    def __str__(self) -> str:
        rows = [
            f"{'confirmed  ' if row.confirmed else 'UNCONFIRMED'} {row.pair.port or '(the port)'} = "
            f"{row.pair.reference or '(the reference)'}: {row.kind}, by {row.evidence}{_layout_of(row.pair)}"
            f"{f', {row.detail}' if row.detail else ''}"
            for row in self.proposals
        ]
        rows += [f"AMBIGUOUS   {path}: {reason}" for path, reason in self.ambiguous.items()]
        rows += [f"left out    {path}: {reason}" for path, reason in self.layer_map.ignored.items()]
        rows += [f"no names    {path or '(the port)'}: {reason}" for path, reason in self.untraced.items()]
        return "\n".join(rows)

    def not_compared(self) -> tuple[NotCompared, ...]:
        """What a verdict on these maps has to say about them."""
        rows = [
            NotCompared(side="pairing", name=row.pair.port or "model", reason=f"unconfirmed: {row.detail}")
            for row in self.unconfirmed
        ]
        rows += [NotCompared(side="pairing", name=path, reason=why) for path, why in self.ambiguous.items()]
        rows += [
            NotCompared(side="port", name=f"operations in {path or 'the model itself'}", reason=why)
            for path, why in self.untraced.items()
        ]
        return tuple(rows)


def infer(
    reference: Any,
    port: nn.Module,
    inputs: Any = None,
    *,
    layers: Mapping[str, str] | None = None,
    weights: WeightMap | None = None,
    ignored: Mapping[str, str] | None = None,
) -> Inference:
    """Finds out which layers and which weights of two models answer to each other.

    The port needs no weights yet: ``load_weights`` moves them by the map that is found. It is left as it was.

    Args:
        reference: Built tf_keras model, or a recording of a model of any Keras.
        port: PyTorch module that takes the same inputs.
        inputs: The models' arguments, as for ``verify``; a recording has its own.
        layers: Pairs that are known, {port path: reference path}; they win over whatever would be inferred.
        weights: Rows of the weight map that are known.
        ignored: Layers of the reference that the port has none for, {path: reason}; the results name them.

    Returns:
        The maps with their evidence; print it.

    Raises:
        ValueError: The table names what does not exist.
    """
    arrays = input_arrays(reference, inputs)
    source = _Recorded(reference) if isinstance(reference, Recording) else _Living(reference)
    table = dict(layers or {})
    candidates = []
    # Where the port holds the reference's weights already, but in layers that other evidence would pair with others,
    # the order of execution may be another one, or the weights may have been swapped: what then computes the same
    # tells. An even result is one for the order.
    for by_weights in (False, True):
        search = _Search(source, port, arrays, table, weights or {}, ignored or {}, by_weights=by_weights)
        candidates.append(search.run())
        if not search.disputed:
            return candidates[0]
    order, values = candidates
    chosen = min(candidates, key=lambda found: len(found.unconfirmed) + len(found.ambiguous))
    other = values if chosen is order else order
    partner = {row.pair.port: row.pair.reference for row in other.proposals}
    proposals = tuple(
        row
        if partner.get(row.pair.port, row.pair.reference) == row.pair.reference
        else dataclasses.replace(
            row, detail=f"{row.detail}; " * bool(row.detail) + f"its weights are those of {partner[row.pair.port]}"
        )
        for row in chosen.proposals
    )
    return chosen if chosen is values else dataclasses.replace(chosen, proposals=proposals)


def input_arrays(reference: Any, inputs: Any) -> tuple[np.ndarray, ...]:
    """The models' arguments: those that are given, or those of a recording.

    Raises:
        ValueError: Both are there, or neither.
    """
    if isinstance(reference, Recording):
        if inputs is not None:
            raise ValueError("a recording holds the inputs that it was made with: leave inputs out")
        return reference.inputs
    if inputs is None:
        raise ValueError("a living reference needs inputs")
    parts = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return tuple(np.asarray(part) for part in parts)


def reference_variables(reference: Any) -> Mapping[str, np.ndarray]:
    """Every variable of a living or a recorded model by layer path and own name, in float64."""
    return reference.variables if isinstance(reference, Recording) else variables_by_path(reference)


def load_weights(port: nn.Module, reference: Any, weight_map: WeightMap) -> None:
    """Fills a port with the weights of a reference, all of them or none.

    Args:
        port: The module.
        reference: Built tf_keras model, or a recording of a model.
        weight_map: As ``infer`` finds it.

    Raises:
        ValueError: A tensor of the port or a variable of the reference is not in the map, or shapes differ.
    """
    variables, tensors = reference_variables(reference), tensors_by_name(port)
    used = {key for key, _ in weight_map.values()}
    faults = [f"{name}: the weight map does not mention it" for name in tensors if name not in weight_map]
    faults += [f"{key}: the weight map does not mention this variable" for key in variables if key not in used]
    values = {}
    for name, (key, axes) in weight_map.items():
        if name not in tensors or key not in variables:
            faults.append(f"{name} = {key}: there is no such {'variable' if name in tensors else 'tensor'}")
            continue
        values[name] = arranged(variables[key], axes)
        if values[name].shape != tuple(tensors[name].shape):
            faults.append(f"{name}: shape {tuple(tensors[name].shape)}, but {key} gives {values[name].shape}")
    if faults:
        raise ValueError("the weights were not moved: " + "; ".join(faults))
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))


def arranged(variable: np.ndarray, axes: Sequence[int] | Arrangement | None) -> np.ndarray:
    """A variable as the port has it."""
    if axes is None:
        return variable
    return axes(variable) if isinstance(axes, Arrangement) else np.transpose(variable, tuple(axes))


def tensors_by_name(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, and the buffers but for ``helper_buffers``."""
    tensors: dict[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    helpers = helper_buffers(module)
    return {name: tensor for name, tensor in tensors.items() if name not in helpers}


def helper_buffers(module: nn.Module) -> dict[str, str]:
    """Buffers that cannot have come from a Keras model, with the reason."""
    kept, found = module.state_dict(keep_vars=True), {}
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2] == "num_batches_tracked":
            found[name] = "PyTorch counts batches here; Keras has no such variable"
        elif name not in kept and not buffer.is_floating_point():
            found[name] = "integers that the port makes itself and never saves: positions, masks"
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Unit:
    """A layer that was called."""

    path: str
    kind: str
    call: Call
    tensors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return _shape(self.call.outputs)


class _Living:
    """What the search reads of a model that is here, in float64 where it can be had."""

    def __init__(self, reference: Any) -> None:
        models, _ = lift(reference, ("float64",))
        self.precision, self._model = next(iter(models.items()))
        self.layers = {path: describe_layer(path, layer) for path, layer in layers_by_path(self._model).items()}
        self.variables = variables_by_path(self._model)

    def trace(self, inputs: tuple[np.ndarray, ...], ignored: Mapping[str, str], split: frozenset[str]) -> Trace:
        """One pass in evaluation mode."""
        return KerasSide(self._model, ignored, split).trace(inputs, training=False)


class _Recorded:
    """The same of a model that was recorded."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.precision = recording.precisions[0]
        self.layers, self.variables = recording.layers, recording.variables

    def trace(self, inputs: tuple[np.ndarray, ...], ignored: Mapping[str, str], split: frozenset[str]) -> Trace:
        """The recorded pass."""
        return self._recording.trace(precision=self.precision, training=False, ignored=ignored, split=split)


class _Search:
    """One attempt, from traces to maps."""

    def __init__(
        self,
        source: _Living | _Recorded,
        port: nn.Module,
        inputs: tuple[np.ndarray, ...],
        table: Mapping[str, str],
        weights: WeightMap,
        ignored: Mapping[str, str],
        *,
        by_weights: bool,
    ) -> None:
        self.inputs, self.by_weights = inputs, by_weights
        self.disputed = False
        self.ambiguous: dict[str, str] = {}
        self.precision = source.precision
        self.limit = TABLE[tolerance_of(self.precision, self.precision, Reading.ISOLATED)].limit
        found = source.layers
        self.kinds: dict[str, KerasKind] = {
            path: keras_kind(layer, has_parts=any(other.startswith(f"{path}/") for other in found))
            for path, layer in found.items()
            if path
        }
        self.inner = {
            path: f"a part of {owner}, which is read as one layer"
            for owner, kind in self.kinds.items()
            for path in found
            if kind.name in RECURRENT and path.startswith(f"{owner}/")
        }
        self.split = frozenset(path for path, kind in self.kinds.items() if kind.split)
        known = {*found, *map(activation_path, self.split)}
        unknown = [path for path in ignored if path not in known or not path]
        if unknown:
            raise ValueError(f"layers to be ignored that are not there: {unknown}")
        self.inner |= ignored
        self.truth = source.trace(inputs, self.inner, self.split)
        self.variables = source.variables
        self.weights: dict[str, tuple[str, Sequence[int] | Arrangement | None]] = dict(weights)
        named = name_operations(port)
        self.untraced = dict(named.untraced)
        self.module = self._twin_or_port(named.module, port)
        self.modules = dict(self.module.named_modules())
        free = self._trace(self._probe(path) for path in self.modules)
        self.reference_units = self._units(self.truth, self._reference_unit)
        self.port_units = self._units(free, self._port_unit) | self._unreached(free)
        # What the port returns is the user's: of another layout it is a finding, unless a map of theirs says otherwise.
        self.whole = LayerPair(port="", reference="", inputs=0)
        missing = [name for name in table if name and name not in self.port_units]
        missing += [path for path in table.values() if path and path not in self.reference_units]
        if missing:
            raise ValueError(f"the table of layers names what is not there or not called: {missing}")
        self.matched: dict[str, tuple[str, Evidence]] = {
            port_path: (path, "table") for port_path, path in table.items() if port_path
        }
        self.pairs: dict[str, LayerPair] = {}

    def _twin_or_port(self, twin: nn.Module, port: nn.Module) -> nn.Module:
        """The twin with names for operations, if it computes what the port does to the last bit."""
        results = []
        for module in (port, twin):
            side = TorchSide(module, LayerMap(pairs=(LayerPair(port="", reference=""),)))
            results.append(side.outputs(self.inputs, precision=self.precision, training=False))
        (expected, error), (found, _) = results
        same = len(found) == len(expected) and all(
            np.array_equal(array, other) for array, other in zip(found, expected, strict=True)
        )
        if same or error:
            return twin
        self.untraced[""] = "torch.fx: the graphs compute something else than the port"
        return port

    @staticmethod
    def _probe(path: str) -> LayerPair:
        return LayerPair(port=path, reference=f"?{path}", inputs=_MANY)

    @staticmethod
    def _units(trace: Trace, describe: Callable[[Call], _Unit]) -> dict[str, _Unit]:
        return {call.path: describe(call) for call in trace.calls.values() if call.index == 0 and call.path}

    def _reference_unit(self, call: Call) -> _Unit:
        kind = self.kinds.get(call.path)
        if kind is None:
            return _Unit(path=call.path, kind="activation", call=call)
        values = {name: arrange(self.variables[key]) for name, (key, arrange) in kind.tensors.items()}
        return _Unit(path=call.path, kind=kind.name, call=call, tensors=values)

    def _port_unit(self, call: Call) -> _Unit:
        module = self.modules[call.path]
        own = {**module._parameters, **module._buffers}
        tensors = {
            name: tensor.detach().cpu().double().numpy()
            for name, tensor in own.items()
            if tensor is not None and name != "num_batches_tracked"
        }
        return _Unit(path=call.path, kind=torch_kind(module), call=call, tensors=tensors)

    def _unreached(self, trace: Trace) -> dict[str, _Unit]:
        """Layers with weights that a pass which broke off did not come to, in the order in which the port has them."""
        if not trace.error:
            return {}
        calls = [
            Call(path=path, index=0, order=len(trace.calls) + order, inputs=None, outputs=())
            for order, path in enumerate(self.modules)
            if path and (path, 0) not in trace.calls
        ]
        units = [self._port_unit(call) for call in calls]
        return {unit.path: unit for unit in units if unit.tensors}

    def run(self) -> Inference:
        """The maps."""
        # From the strictest agreement to the loosest: a layer of another shape is a finding, not another layer.
        for key in (_by_shapes, lambda unit: (unit.kind, len(unit.shape)), lambda unit: unit.kind):
            self._match(key, lambda unit: bool(unit.tensors) and unit.kind not in ("custom", "container"))
        self._rows_of_weights()
        for port_path, (path, _) in self.matched.items():
            self.pairs[port_path] = self._pair(port_path, path)
        self._match_operations()
        self._match_containers()
        self._choose_layouts()
        proposals = self._confirm()
        taken = {path for path, _ in self.matched.values()}
        self.ambiguous |= {path: kind.detail for path, kind in self.kinds.items() if kind.detail}
        self.ambiguous = {
            path: reason
            for path, reason in self.ambiguous.items()
            if path in self.reference_units and path not in taken
        }
        ordered = sorted(
            proposals, key=lambda row: self.reference_units[row.pair.reference].call.order if row.pair.reference else -1
        )
        return Inference(
            layer_map=LayerMap(pairs=tuple(row.pair for row in ordered), ignored=self._ignored(), split=self.split),
            weight_map=self.weights,
            proposals=tuple(ordered),
            ambiguous=self.ambiguous,
            untraced=self.untraced,
        )

    # --- layers with weights ------------------------------------------------------------------------------------------

    def _open(self, wanted: Callable[[_Unit], bool]) -> tuple[list[_Unit], list[_Unit]]:
        """Layers of both sides that have no partner yet, in the order of execution."""
        taken = {path for path, _ in self.matched.values()}
        ours = [unit for unit in self.port_units.values() if unit.path not in self.matched and wanted(unit)]
        theirs = [unit for unit in self.reference_units.values() if unit.path not in taken and wanted(unit)]
        return theirs, ours

    def _match(self, key: Callable[[_Unit], Any], wanted: Callable[[_Unit], bool]) -> None:
        """Pairs layers that agree in the key."""
        theirs, ours = self._open(wanted)
        for group in dict.fromkeys(key(unit) for unit in theirs):
            left = [unit for unit in theirs if key(unit) == group]
            right = [unit for unit in ours if key(unit) == group]
            by_weights = _by_weights(left, right)
            if len(left) != len(right):
                # Weights that are there already tell which; the others stay open for the next, looser key.
                self._accept(by_weights, "weights")
                rest = [unit for unit in left if unit.path not in by_weights.values()]
                for unit in rest if right else []:
                    self.ambiguous[unit.path] = (
                        f"one of {len(left)} layers of the reference ({_names(left)}) alike in type and shape, "
                        f"of which the port has {len(right)} ({_names(right)}): name the pair in a table"
                    )
                continue
            for unit in left:
                self.ambiguous.pop(unit.path, None)
            proposal, evidence = _by_names(left, right)
            if len(by_weights) == len(left) and by_weights != proposal:
                self.disputed = True
                if self.by_weights:
                    proposal, evidence = by_weights, "weights"
            self._accept(proposal, evidence)

    def _accept(self, pairs: Mapping[str, str], evidence: Evidence) -> None:
        self.matched |= {ours: (theirs, evidence) for ours, theirs in pairs.items()}

    def _rows_of_weights(self) -> None:
        """Rows of the weight map for all layers that are paired, by the type of the layer."""
        for port_path, (path, _) in self.matched.items():
            kind = self.kinds.get(path)
            for name, row in kind.tensors.items() if kind else ():
                if name in self.port_units[port_path].tensors:
                    self.weights.setdefault(f"{port_path}.{name}", row)

    @contextlib.contextmanager
    def _filled(self, module: nn.Module, precision: str) -> Iterator[None]:
        """The port in a precision, with the weights of the reference that fit; ``TorchSide`` undoes both."""
        with cast_module(module, precision):
            for name, (key, axes) in self.weights.items():
                path, _, own = name.rpartition(".")
                owner = module.get_submodule(path) if path in self.modules else module
                tensor = owner._parameters.get(own, owner._buffers.get(own))
                value = arranged(self.variables[key], axes) if key in self.variables else None
                if tensor is None or value is None or value.shape != tuple(tensor.shape):
                    continue
                filled = torch.from_numpy(np.array(value)).to(tensor)
                if isinstance(tensor, nn.Parameter):
                    tensor.data = filled
                else:
                    owner._buffers[own] = filled
            yield

    def _trace(self, pairs: Iterable[LayerPair], *, truth: Trace | None = None) -> Trace:
        """One pass of the port, without a truth free and with its own weights, else fed and with the reference's."""
        side = TorchSide(self.module, LayerMap(pairs=tuple(pairs)), None if truth is None else self._filled)
        return side.trace(self.inputs, precision=self.precision, training=False, truth=truth)

    # --- operations without weights -----------------------------------------------------------------------------------

    def _match_operations(self) -> None:
        """Pairs layers without weights by what goes in, while those with weights return the reference's values.

        So no layer's error reaches the next ones, and a wrong activation is still paired with the right one.
        """
        known = [self.pairs[path] for path in self.pairs]
        probes = [self._probe(path) for path in self.modules if path not in self.pairs]
        anchored = self._trace([*known, *probes], truth=self.truth)
        self.port_units |= self._units(anchored, self._port_unit)

        def is_operation(unit: _Unit) -> bool:
            return not unit.tensors and unit.kind not in ("container", "shape", "custom")

        theirs, _ = self._open(is_operation)
        _, ours = self._open(lambda unit: is_operation(unit) or (unit.kind == "custom" and not unit.tensors))
        seen = {unit.path: anchored.calls.get((unit.path, 0), unit.call) for unit in ours}
        for unit in theirs:
            free = [other for other in ours if other.path not in self.matched]
            same = [other for other in free if self._same(seen[other.path].inputs, unit.call.inputs)]
            both = [other for other in same if self._same(seen[other.path].outputs, unit.call.outputs)]
            # A module of the port's own may be anything: only what it returns tells.
            same, both = (
                [other for other in found if other.kind in kinds]
                for found, kinds in ((same, (unit.kind,)), (both, (unit.kind, "custom")))
            )
            both.sort(key=lambda other: other.kind == "custom")
            if both or same:
                self.matched[(both or same)[0].path] = (unit.path, "values")
        for key in (lambda unit: (unit.kind, *sorted(unit.shape)), lambda unit: unit.kind):
            self._match(key, is_operation)
        for path in self.matched:
            if path not in self.pairs:
                self.pairs[path] = self._pair(path, self.matched[path][0])

    def _same(self, found: Sequence[Any] | None, expected: Sequence[Any] | None) -> bool:
        """Whether the leading tensors are those of the reference, in whatever layout, in whatever order."""
        if not found or not expected:
            return False
        return all(any(self._agree(array, other) for array in found) for other in expected)

    def _agree(self, found: np.ndarray, expected: np.ndarray) -> bool:
        return any(self._close(layout(name)[0](found), expected) for name in _layouts(found.shape, expected.shape, ""))

    def _close(self, found: np.ndarray, expected: np.ndarray) -> bool:
        if found.shape != expected.shape or not (np.all(np.isfinite(found)) and np.all(np.isfinite(expected))):
            return False
        return max(distance(found, expected)) <= self.limit

    # --- containers ---------------------------------------------------------------------------------------------------

    def _match_containers(self) -> None:
        """Pairs what holds the same layers with weights on both sides."""
        leaves = {path: theirs for path, (theirs, _) in self.matched.items() if self.port_units[path].tensors}
        holders, held = self._open(lambda unit: unit.kind == "container")
        inside: dict[str, dict[frozenset[str], list[str]]] = {"reference": {}, "port": {}}
        for unit in holders:
            content = frozenset(path for path in leaves.values() if path.startswith(f"{unit.path}/"))
            inside["reference"].setdefault(content, []).append(unit.path)
        for unit in held:
            content = frozenset(path for name, path in leaves.items() if name.startswith(f"{unit.path}."))
            inside["port"].setdefault(content, []).append(unit.path)
        everything = frozenset(leaves.values())
        for content, paths in inside["reference"].items():
            names = inside["port"].get(content, [])
            if not content or content == everything or len(names) != len(paths):
                continue
            for name, path in zip(names, paths, strict=True):
                ours, theirs = self.port_units[name], self.reference_units[path]
                if _layouts(ours.shape, theirs.shape, ""):
                    surplus = len(ours.call.outputs) > len(theirs.call.outputs)
                    self.matched[name] = path, "parts"
                    self.pairs[name] = dataclasses.replace(
                        self._pair(name, path),
                        block=True,
                        returned=tuple(range(len(theirs.call.outputs))) if surplus else None,
                    )

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _pair(self, port_path: str, path: str) -> LayerPair:
        """A row of the layer map; the layouts are the likeliest that the shapes allow."""
        ours, theirs = self.port_units.get(port_path), self.reference_units[path]
        kind = self.kinds[path] if path in self.kinds else KerasKind(name="activation")
        if ours is None:
            return LayerPair(port=port_path, reference=path)
        own = {name for name in ours.tensors if name in dict(kind.state)}
        tolerance = "rounded_update_rate" if kind.name == "batch norm" else ""
        pair = LayerPair(
            port=port_path,
            reference=path,
            state=tuple(row for row in kind.state if row[0] in own),
            state_tolerance=tolerance,
            inputs=self._inputs(ours, theirs),
        )
        if kind.name in RECURRENT:
            time_first = not getattr(self.modules[port_path], "batch_first", True)
            sequence = "time_first" if time_first else "same"
            if len(theirs.shape) == 2:
                return dataclasses.replace(pair, input_layout=sequence, layout="last_state", returned=(1,))
            return dataclasses.replace(pair, layout=sequence, returned=(0,))
        outputs = _layouts(ours.shape, theirs.shape, kind.name)
        inputs = _layouts(_shape(ours.call.inputs), _shape(theirs.call.inputs), kind.name)
        default = "channels_first" if kind.name in _CHANNELS_FIRST and len(theirs.shape) > 2 else "same"
        chosen = outputs[0] if outputs else default
        given = chosen if chosen in inputs or not inputs else inputs[0]
        return dataclasses.replace(pair, layout=chosen, input_layout=None if given == chosen else given)

    @staticmethod
    def _inputs(ours: _Unit, theirs: _Unit) -> int:
        found, expected = ours.call.inputs or (), theirs.call.inputs or ()
        if theirs.kind == "merge":
            return min(len(found), len(expected))
        if not found or not expected or not _layouts(found[0].shape, expected[0].shape, ""):
            return int(theirs.kind not in ("container", "custom"))
        return 1

    def _choose_layouts(self) -> None:
        """Where shapes allow several layouts, that in which the port returns what the reference does."""
        for _ in range(2):
            alternatives = {}
            for path, observed in self._isolated().items():
                pair = self.pairs.get(path)
                if pair is None or pair.returned is not None:
                    continue
                ours, theirs = self.port_units[path], self.reference_units[pair.reference]
                if self._agrees(observed, theirs.call) and self._fed_alike(pair, observed, theirs.call):
                    continue
                options = [
                    (given, chosen)
                    for chosen in _layouts(ours.shape, theirs.shape, theirs.kind)
                    for given in _layouts(_shape(ours.call.inputs), _shape(theirs.call.inputs), theirs.kind) or ["same"]
                ]
                alternatives[path] = (pair, options)
            if not alternatives:
                return
            self._try(alternatives)

    def _try(self, alternatives: Mapping[str, tuple[LayerPair, list[tuple[str, str]]]]) -> None:
        settled: set[str] = set()
        for attempt in range(max(len(options) for _, options in alternatives.values())):
            for path, (pair, options) in alternatives.items():
                if path not in settled and attempt < len(options):
                    given, chosen = options[attempt]
                    self.pairs[path] = dataclasses.replace(pair, layout=chosen, input_layout=given)
            observed = self._isolated()
            for path, (pair, _) in alternatives.items():
                found, expected = observed.get(path), self.truth.calls[pair.reference, 0]
                if found is not None and self._agrees(found, expected) and self._fed_alike(pair, found, expected):
                    settled.add(path)
        for path, (pair, _) in alternatives.items():
            if path not in settled:
                self.pairs[path] = pair

    def _isolated(self) -> dict[str, Call]:
        trace = self._trace([self.whole, *self.pairs.values()], truth=self.truth)
        return {path: call for (path, index), call in trace.calls.items() if index == 0}

    def _agrees(self, found: Call, expected: Call) -> bool:
        if found.error or len(found.outputs) < len(expected.outputs):
            return False
        return all(
            self._close(np.asarray(array), np.asarray(other))
            for array, other in zip(found.outputs[: len(expected.outputs)], expected.outputs, strict=True)
        )

    def _confirm(self) -> list[Proposal]:
        """Holds every pair's values together, and those of the model's own code, which joins them."""
        observed = self._isolated()
        proposals = []
        for pair in (self.whole, *self.pairs.values()):
            found, expected = observed.get(pair.port), self.truth.calls[pair.reference, 0]
            theirs, evidence = self.matched.get(pair.port, ("", "parts"))
            detail = ""
            if found is None:
                detail = "the port does not call it"
            elif found.error:
                detail = found.error
            elif not self._agrees(found, expected):
                detail = (
                    f"with the same weights and inputs it returns other values than {pair.reference or 'the reference'}"
                )
            elif not self._fed_alike(pair, found, expected):
                detail = "the port feeds it with other values"
            kind = self.reference_units[theirs].kind if theirs else "the model itself"
            proposals.append(Proposal(pair=pair, kind=kind, evidence=evidence, confirmed=not detail, detail=detail))
        return proposals

    def _fed_alike(self, pair: LayerPair, found: Call, expected: Call) -> bool:
        given, wanted = found.inputs or (), expected.inputs or ()
        count = min(pair.inputs, len(given), len(wanted))
        return all(self._close(given[index], wanted[index]) for index in range(count))

    def _ignored(self) -> dict[str, str]:
        taken = {path for path, _ in self.matched.values()}
        ignored = dict(self.inner)
        kinds_of_port = {unit.kind for unit in self.port_units.values()}
        for path, unit in self.reference_units.items():
            if path in taken or path in self.ambiguous:
                continue
            if unit.kind == "shape":
                ignored[path] = _SHAPE_ONLY
            elif unit.kind == "container" and not any(key.rpartition("/")[0] == path for key in self.variables):
                ignored[path] = "no module of the port holds the same layers; those are compared one by one"
            elif not unit.tensors and unit.kind not in ("dropout", "custom", "container", *kinds_of_port):
                ignored[path] = "the port has no such layer to watch; the next layer's input shows its result"
        return ignored


def _layout_of(pair: LayerPair) -> str:
    """The layouts that the port was found to have, in words; nothing where they are the reference's."""
    given = pair.layout if pair.input_layout is None else pair.input_layout
    if given == pair.layout:
        return "" if given == "same" else f", layout {given}"
    return f", layout {given} in and {pair.layout} out"


def _by_shapes(unit: _Unit) -> Any:
    return unit.kind, frozenset((name, array.shape) for name, array in unit.tensors.items())


def _by_weights(left: Sequence[_Unit], right: Sequence[_Unit]) -> dict[str, str]:
    """{port path: reference path} of layers that hold the same numbers, and no third does."""
    found = {}
    for ours in right:
        equal = [
            theirs.path
            for theirs in left
            if theirs.tensors
            and ours.tensors
            and all(
                name in theirs.tensors and _equal(array, theirs.tensors[name]) for name, array in ours.tensors.items()
            )
        ]
        if len(equal) == 1:
            found[ours.path] = equal[0]
    return found if len(set(found.values())) == len(found) else {}


def _equal(found: np.ndarray, expected: np.ndarray) -> bool:
    # A port in float32 holds a float64 reference's weights rounded.
    return found.shape == expected.shape and np.array_equal(found.astype(np.float32), expected.astype(np.float32))


def _by_names(left: Sequence[_Unit], right: Sequence[_Unit]) -> tuple[dict[str, str], Evidence]:
    """By what both sides call them where that is one to one, else by order; ``{port path: reference path}``."""
    theirs, ours = [_name(unit.path) for unit in left], [_name(unit.path) for unit in right]
    if len(left) == 1:
        return {right[0].path: left[0].path}, "type and shape"
    if sorted(theirs) == sorted(ours) and len(set(theirs)) == len(theirs):
        return {unit.path: left[theirs.index(name)].path for unit, name in zip(right, ours, strict=True)}, "name"
    return {own.path: their.path for own, their in zip(right, left, strict=True)}, "order"


def _name(path: str) -> tuple[str, ...]:
    """Numbers on the way and the last word: ``encoder.layer.0.query`` and ``bert/encoder/layer/0/query`` alike."""
    words = path.replace("/", ".").split(".")
    return (*(word for word in words[:-1] if word.isdigit()), words[-1].lower())


def _names(units: Iterable[_Unit]) -> str:
    return ", ".join(unit.path for unit in units)


def _shape(arrays: Sequence[Any] | None) -> tuple[int, ...]:
    return tuple(arrays[0].shape) if arrays else ()


def _layouts(found: tuple[int, ...], expected: tuple[int, ...], kind: str) -> list[str]:
    """Layouts that make one shape of the other, the likeliest for this kind of layer first."""
    names = ["same"] if found == expected else []
    if len(found) == len(expected) >= 3 and (found[0], *found[2:], found[1]) == expected:
        names.insert(0 if kind in _CHANNELS_FIRST else len(names), "channels_first")
    if len(expected) == len(found) + 1 and found[:-1] == expected[:-2] and found[-1] == expected[-1] * expected[-2]:
        names.append(f"{HEADS}{expected[-2]}x{expected[-1]}")
    return names
