"""One attempt to pair the layers and weights of two models, from their passes to the maps."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.arrangements import Arrangement
from parity.compare import distance
from parity.inference.records import Evidence, Inference, Proposal
from parity.inference.reference_side import Living, Recorded
from parity.inference.units import (
    CHANNELS_FIRST,
    Unit,
    by_equal_weights,
    by_names,
    by_shapes,
    listed,
    possible_layouts,
    shape_of,
)
from parity.inference.weight_map import WeightMap, arranged
from parity.keras_kinds import RECURRENT, KerasKind, keras_kind
from parity.keras_side import activation_path
from parity.ladder import tolerance_of
from parity.layer_map import LayerMap, LayerPair, layout
from parity.operations import name_operations
from parity.records import Reading
from parity.tolerances import TABLE
from parity.torch_kinds import torch_kind
from parity.torch_side import TorchSide, cast_module
from parity.trace import Call, Trace

_MANY = 99
_SHAPE_ONLY = "it only changes shapes; the next layer's input shows its result"


class Search:
    """One attempt, from traces to maps."""

    def __init__(
        self,
        source: Living | Recorded,
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
    def _units(trace: Trace, describe: Callable[[Call], Unit]) -> dict[str, Unit]:
        return {call.path: describe(call) for call in trace.calls.values() if call.index == 0 and call.path}

    def _reference_unit(self, call: Call) -> Unit:
        kind = self.kinds.get(call.path)
        if kind is None:
            return Unit(path=call.path, kind="activation", call=call)
        values = {name: arrange(self.variables[key]) for name, (key, arrange) in kind.tensors.items()}
        return Unit(path=call.path, kind=kind.name, call=call, tensors=values)

    def _port_unit(self, call: Call) -> Unit:
        module = self.modules[call.path]
        own = {**module._parameters, **module._buffers}
        tensors = {
            name: tensor.detach().cpu().double().numpy()
            for name, tensor in own.items()
            if tensor is not None and name != "num_batches_tracked"
        }
        return Unit(path=call.path, kind=torch_kind(module), call=call, tensors=tensors)

    def _unreached(self, trace: Trace) -> dict[str, Unit]:
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
        for key in (by_shapes, lambda unit: (unit.kind, len(unit.shape)), lambda unit: unit.kind):
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

    def _open(self, wanted: Callable[[Unit], bool]) -> tuple[list[Unit], list[Unit]]:
        """Layers of both sides that have no partner yet, in the order of execution."""
        taken = {path for path, _ in self.matched.values()}
        ours = [unit for unit in self.port_units.values() if unit.path not in self.matched and wanted(unit)]
        theirs = [unit for unit in self.reference_units.values() if unit.path not in taken and wanted(unit)]
        return theirs, ours

    def _match(self, key: Callable[[Unit], Any], wanted: Callable[[Unit], bool]) -> None:
        """Pairs layers that agree in the key."""
        theirs, ours = self._open(wanted)
        for group in dict.fromkeys(key(unit) for unit in theirs):
            left = [unit for unit in theirs if key(unit) == group]
            right = [unit for unit in ours if key(unit) == group]
            by_weights = by_equal_weights(left, right)
            if len(left) != len(right):
                # Weights that are there already tell which; the others stay open for the next, looser key.
                self._accept(by_weights, "weights")
                rest = [unit for unit in left if unit.path not in by_weights.values()]
                for unit in rest if right else []:
                    self.ambiguous[unit.path] = (
                        f"one of {len(left)} layers of the reference ({listed(left)}) alike in type and shape, "
                        f"of which the port has {len(right)} ({listed(right)}): name the pair in a table"
                    )
                continue
            for unit in left:
                self.ambiguous.pop(unit.path, None)
            proposal, evidence = by_names(left, right)
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

        def is_operation(unit: Unit) -> bool:
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
        return any(
            self._close(layout(name)[0](found), expected) for name in possible_layouts(found.shape, expected.shape, "")
        )

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
                if possible_layouts(ours.shape, theirs.shape, ""):
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
        outputs = possible_layouts(ours.shape, theirs.shape, kind.name)
        inputs = possible_layouts(shape_of(ours.call.inputs), shape_of(theirs.call.inputs), kind.name)
        default = "channels_first" if kind.name in CHANNELS_FIRST and len(theirs.shape) > 2 else "same"
        chosen = outputs[0] if outputs else default
        given = chosen if chosen in inputs or not inputs else inputs[0]
        return dataclasses.replace(pair, layout=chosen, input_layout=None if given == chosen else given)

    @staticmethod
    def _inputs(ours: Unit, theirs: Unit) -> int:
        found, expected = ours.call.inputs or (), theirs.call.inputs or ()
        if theirs.kind == "merge":
            return min(len(found), len(expected))
        if not found or not expected or not possible_layouts(found[0].shape, expected[0].shape, ""):
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
                    for chosen in possible_layouts(ours.shape, theirs.shape, theirs.kind)
                    for given in possible_layouts(shape_of(ours.call.inputs), shape_of(theirs.call.inputs), theirs.kind)
                    or ["same"]
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
