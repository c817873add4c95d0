"""The ladder: comparisons in, gates and culprits out."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from parity.compare import compare, compare_array, values_of
from parity.layer_map import LayerMap, LayerPair
from parity.records import Comparison, Culprit, Gate, GateStatus, NotCompared, Reading, Status
from parity.reference import Goldens, Reference, StreamedReference
from parity.second_look import look_again
from parity.stream import Handing, Stream
from parity.torch_side import TorchSide
from parity.trace import Call, Key, Readable, Recorder, Sample, Trace

FORWARD_GATES = ("weights", "constants", "layers", "blocks", "model")
TRAINING_GATES = ("losses", "gradients", "optimizer", "state", "trajectory")
DATA = "data"
CONVERGENCE = "convergence"
GATES = (*FORWARD_GATES, DATA, *TRAINING_GATES, CONVERGENCE)
"""Rungs in the order in which each stands on the ones before."""

GATE_OF_READING = {Reading.ISOLATED: "layers", Reading.BLOCK: "blocks", Reading.ACCUMULATED: "model"}
OWN_READINGS = (Reading.VALUE, Reading.ISOLATED, Reading.STATE)
"""Readings that blame a layer for nothing but its own computation."""


def compare_live(
    port: TorchSide,
    reference: Reference,
    layer_map: LayerMap,
    *,
    gates: Sequence[str] = ("layers", "blocks", "model"),
    modes: Sequence[str] = ("evaluation", "training"),
    precisions: Sequence[str] | None = None,
    case: str = "",
) -> Iterator[Comparison]:
    """Every layer of a port against a reference that can be read in isolation, in every precision of the reference.

    Isolated and block readings are fed from the reference's first precision, which should be float64. In that precision
    both are also run once on other inputs, because a port that remembers its first results would agree with itself. In
    the others, where errors are random, what fails is measured on more inputs (``parity.second_look``), unless the port
    is wrong in the first precision already.

    Args:
        port: The port.
        reference: The reference.
        layer_map: Which layer is which.
        gates: Which of ``layers``, ``blocks`` and ``model`` to compare.
        modes: Which of ``evaluation`` and ``training``.
        precisions: Some of the reference's, where the others are compared by somebody else; all by default.
        case: Name of the case.

    What the reference ``lacks``, as a recording may, is left out: the caller names it as not compared.

    Yields:
        The comparisons of the gates asked for.
    """
    first = reference.precisions[0]
    wanted = reference.precisions if precisions is None else precisions
    for mode in modes:
        training = mode == "training"
        if "layers" in gates and first in wanted:
            truth = reference.outline(first, training=training)
            yield from _unmapped(truth, layer_map, case=case, mode=mode)
            if training:
                before = reference.outline(first, training=False)
                yield from _unmapped_state(before, truth, layer_map, case=case)
        right = True
        for precision in (name for name in reference.precisions if name in wanted):
            for reading, gate in GATE_OF_READING.items():
                if gate not in gates or reference.lacks(precision, training=training, reading=reading):
                    continue
                how = {"precision": precision, "mode": mode, "reading": reading, "case": case}
                rows = tuple(compare_pass(port, reference, layer_map, **how))
                if precision == first:
                    right = right and all(row.status is Status.PASS for row in rows)
                elif right:
                    rows = look_again(rows, functools.partial(_compare_shuffled, port, reference, layer_map, **how))
                yield from rows
        if "model" in gates and first in wanted:
            yield from _unwatched(port, reference, layer_map, precision=first, mode=mode, case=case)
    if first not in wanted:
        return
    others = reference.on_other_inputs()
    label = f"{case}, other inputs" if case else "other inputs"
    for reading, gate in GATE_OF_READING.items():
        if others.lacks(first, training=modes[0] == "training", reading=reading):
            continue
        if gate in gates and reading is not Reading.BLOCK:
            yield from compare_pass(
                port, others, layer_map, precision=first, mode=modes[0], reading=reading, case=label
            )


def _compare_shuffled(
    port: TorchSide, reference: Reference, layer_map: LayerMap, draw: int, **how: Any
) -> Iterator[Comparison]:
    """One pass on inputs in another order."""
    return compare_pass(port, reference.on_shuffled_inputs(draw), layer_map, **how)


def compare_pass(
    port: TorchSide,
    reference: Reference,
    layer_map: LayerMap,
    *,
    precision: str,
    mode: str,
    reading: Reading,
    case: str,
) -> Iterator[Comparison]:
    """One pass of the port in one reading, and of the reference where it has to show its own error."""
    first = reference.precisions[0]
    training = mode == "training"
    pairs = [pair for pair in layer_map if reading is not Reading.BLOCK or pair.block]
    graph = None
    if precision != first and reading is Reading.ACCUMULATED:
        graph = reference.graph_output(precision, training=training)
    comparer = _Comparer(
        gate=GATE_OF_READING[reading],
        case=case,
        reading=reading,
        precision=precision,
        mode=mode,
        tolerance=tolerance_of(precision, first, reading),
        layer_map=layer_map,
        graph=graph,
        modules=port.modules,
    )
    fed = frozenset(pair.port for pair in pairs) if reading is Reading.BLOCK else None
    run = {"precision": precision, "training": training}
    if reference.streamed:
        passes = _run_streamed(port, cast(StreamedReference, reference), comparer, pairs, fed=fed, **run)
    else:
        truth = reference.trace(first, training=training, reading=Reading.ACCUMULATED)
        feed = None if reading is Reading.ACCUMULATED else truth
        observed = port.trace(reference.inputs, truth=feed, fed=fed, **run)
        own = None if precision == first else reference.trace(precision, training=training, reading=reading)
        passes = _Passes(observed=observed, truth=truth, own=own)
    for pair in pairs:
        yield from comparer.calls(pair, passes)
        yield from comparer.state(pair, passes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Passes:
    """What is compared.

    Attributes:
        observed: The port's pass.
        truth: The reference's, in its most precise form.
        own: The reference's in the port's precision, where that is another one.
        judged: Calls that were compared while the passes ran, by the reference's path and number: of those only the
            comparisons are left.
    """

    observed: Trace
    truth: Trace
    own: Trace | None
    judged: Mapping[Key, tuple[Comparison, ...]] = dataclasses.field(default_factory=dict)


def _run_streamed(
    port: TorchSide,
    reference: StreamedReference,
    comparer: "_Comparer",
    pairs: Sequence[LayerPair],
    *,
    fed: frozenset[str] | None,
    precision: str,
    training: bool,
) -> _Passes:
    """Runs all passes at once and compares every call as soon as it ends."""
    first, reading = reference.precisions[0], comparer.common["reading"]
    isolated = reading is not Reading.ACCUMULATED
    compared = {pair.reference for pair in pairs if pair.port in port.modules}
    feeding = {pair.reference for pair in pairs if not pair.alias} & compared if isolated else set()
    by_port: dict[str, list[LayerPair]] = {}
    for pair in pairs:
        by_port.setdefault(pair.port, []).append(pair)
    judged: dict[Key, tuple[Comparison, ...]] = {}
    broken: list[Exception] = []

    def judge_call(call: Call) -> None:
        for pair in by_port.get(call.path, ()):
            key = (pair.reference, call.index)
            expected, same = reader.left(key), None if own is None else own.readers[0].left(key)
            if expected is None or (own is not None and same is None):
                continue  # not called so often, which is found when all calls are counted
            judged[key] = tuple(comparer.call(pair, call.index, expected, call, same))
            reader.release(key)
            if own is not None:
                own.readers[0].release(key)

    def on_call(call: Call) -> None:
        # It runs inside the port, and what goes wrong in here is not the port's doing.
        try:
            judge_call(call)
        except Exception as exception:  # noqa: BLE001  raised again below
            broken.append(exception)

    run = functools.partial(reference.run, training=training, reading=reading)
    with contextlib.ExitStack() as stack:
        needed = frozenset() if precision == first else reference.fed_paths(reading)
        make = functools.partial(_run_for, run, first, None)
        truth = stack.enter_context(Stream(make, (needed, feeding, compared)))
        for_own, feed, reader = truth.readers
        own = None
        if precision != first:
            make = functools.partial(_run_for, run, precision, for_own if isolated else None)
            own = stack.enter_context(Stream(make, (compared,)))
        observed = port.trace(
            reference.inputs,
            precision=precision,
            training=training,
            truth=feed if isolated else None,
            fed=fed,
            recorder=Handing(on_call),
        )
        for unread in (feed, reader, *(() if own is None else own.readers)):
            unread.close()
        own_trace = None if own is None else own.finish()
        for_own.close()
        passes = _Passes(observed=observed, truth=truth.finish(), own=own_trace, judged=judged)
    if broken:
        raise broken[0]
    return passes


def _run_for(run: Callable[..., Trace], precision: str, truth: Readable | None, recorder: Recorder) -> Trace:
    return run(precision, truth=truth, recorder=recorder)


def _unwatched(
    port: TorchSide, reference: Reference, layer_map: LayerMap, *, precision: str, mode: str, case: str
) -> Iterator[Comparison]:
    """The final outputs of a port that nobody watches: being watched must not change what it computes."""
    training = mode == "training"
    truth = reference.outline(precision, training=training).calls["", 0]
    outputs, error = port.outputs(reference.inputs, precision=precision, training=training)
    names = next((pair.outputs for pair in layer_map if pair.port == ""), ("output",))
    for index in range(max(len(outputs), len(truth.outputs), len(names))):
        yield compare(
            outputs[index] if index < len(outputs) else None,
            values_of(truth.outputs[index]) if index < len(truth.outputs) else None,
            gate="model",
            reading=Reading.ACCUMULATED,
            precision=precision,
            tolerance=tolerance_of(precision, reference.precisions[0], Reading.ACCUMULATED),
            reference_path="",
            port_path="",
            layer="",
            quantity=f"{names[index] if index < len(names) else f'output_{index}'}, unwatched",
            case=case,
            mode=mode,
            order=truth.order,
            detail=error,
        )


def compare_recorded(
    port: TorchSide,
    recording: Goldens,
    layer_map: LayerMap,
    inputs: tuple[np.ndarray, ...],
    state: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
    *,
    absent: Collection[str] = (),
    case: str = "",
) -> Iterator[Comparison]:
    """Every recorded array against a port that runs end to end.

    A recording holds samples of most activations, so no layer can be fed from it and every reading is accumulated:
    single layers make up the rung ``layers``, those that contain others ``blocks``, the final output and the statistics
    ``model``.

    Args:
        port: The port, with the constants of the recording.
        recording: The recorded numbers.
        layer_map: Which layer answers to which.
        inputs: The recorded inputs.
        state: {precision: {reference path: {variable: value}}} after one training pass.
        absent: Reference paths that the recorded model does not have; every other layer of the map must be there.
        case: Name of the case.
    """
    position = {pair.reference: index for index, pair in enumerate(layer_map)}

    def with_outputs(trace: Trace, finals: tuple[np.ndarray, ...], **more: Any) -> Trace:
        whole = Call(path="", index=0, order=0, inputs=None, outputs=finals)
        calls = {key: dataclasses.replace(call, order=position.get(key[0], 0)) for key, call in trace.calls.items()}
        return Trace(calls={("", 0): whole, **calls}, **more)

    truth = with_outputs(recording.traces["float64"], recording.finals["float64", "eager"])
    trained = with_outputs(Trace(calls={}), recording.finals["float64", "training"], state=state["float64"])
    yield from _unmapped(truth, layer_map, case=case, mode="evaluation")
    ports = [pair.port for pair in layer_map]
    for precision in recording.traces:
        exact = precision == "float64"
        observed = port.trace(inputs, precision=precision, training=False)
        own = None if exact else with_outputs(recording.traces[precision], recording.finals[precision, "eager"])
        for pair in layer_map:
            if pair.reference in absent:
                continue
            contains_others = any(name.startswith(f"{pair.port}.") for name in ports)
            gate = "model" if pair.port == "" else "blocks" if contains_others else "layers"
            yield from _Comparer(
                gate=gate,
                case=case,
                reading=Reading.ACCUMULATED,
                precision=precision,
                mode="evaluation",
                tolerance=precision,
                layer_map=layer_map,
                modules=port.modules,
                graph=None if exact else recording.finals[precision, "graph"],
            ).calls(pair, _Passes(observed=observed, truth=truth, own=own))
        training = _Comparer(
            gate="model",
            case=case,
            reading=Reading.ACCUMULATED,
            precision=precision,
            mode="training",
            tolerance=precision,
            layer_map=layer_map,
            modules=port.modules,
        )
        passes = _Passes(
            observed=port.trace(inputs, precision=precision, training=True),
            truth=trained,
            own=None
            if exact
            else with_outputs(Trace(calls={}), recording.finals[precision, "training"], state=state[precision]),
        )
        for pair in layer_map:
            if pair.port == "":
                yield from training.calls(pair, passes)
            yield from training.state(pair, passes)


def unrecorded(absent: Iterable[str], *, case: str = "") -> tuple[NotCompared, ...]:
    """What a recording cannot say, by name; ``absent`` as in ``compare_recorded``."""
    rows = [
        NotCompared(
            side=case or "recording",
            name="isolated and block readings",
            reason="the recording keeps samples of most activations, from which no layer can be fed; the living "
            "reference is read in isolation",
        ),
        NotCompared(
            side=case or "recording",
            name="summaries of sampled activations in float32 and bfloat16",
            reason="the rounding error of one mean is a single random draw; a ratio of two such draws decides nothing",
        ),
        NotCompared(
            side=case or "recording",
            name="activations in training mode",
            reason="the recording keeps the final output and the statistics of a training pass",
        ),
    ]
    rows += [
        NotCompared(side=case or "recording", name=path, reason="the original has no such layer to record")
        for path in absent
    ]
    return tuple(rows)


def tolerance_of(precision: str, first: str, reading: Reading) -> str:
    """Row of the table for a precision, given the most precise one that the reference has."""
    if precision == first and first != "float64":
        return "float32_only" if reading is not Reading.ACCUMULATED else "float32_only_accumulated"
    return precision


def _unmapped(truth: Trace, layer_map: LayerMap, *, case: str, mode: str) -> Iterator[Comparison]:
    """Layers that the reference ran and that no row of the map mentions: never silently left out."""
    mapped = {pair.reference for pair in layer_map}
    for path in dict.fromkeys(path for path, _ in truth.calls):
        if path not in mapped:
            yield compare(
                None,
                None,
                gate="layers",
                reading=Reading.ISOLATED,
                precision="float64",
                tolerance="float64",
                reference_path=path,
                port_path="",
                layer="",
                case=case,
                mode=mode,
                detail="the layer map names no counterpart for this layer of the reference",
            )


def _unmapped_state(before: Trace, after: Trace, layer_map: LayerMap, *, case: str) -> Iterator[Comparison]:
    """Statistics that a training pass of the reference changes and that no row of the map mentions."""
    mapped = {(pair.reference, name) for pair in layer_map for _, name in pair.state}
    port_of = {pair.reference: pair.port for pair in layer_map}
    for path, variables in after.state.items():
        for name, value in variables.items():
            named = (path, name) in mapped or f"{path}/{name}" in layer_map.ignored
            if named or np.array_equal(value, before.state[path][name]):
                continue
            yield compare(
                None,
                value,
                gate="layers",
                reading=Reading.STATE,
                precision="float64",
                tolerance="float64",
                reference_path=path,
                port_path=port_of.get(path, ""),
                layer=port_of.get(path, ""),
                quantity=name,
                case=case,
                mode="training",
                detail="a training pass changes this statistic, and the layer map names no counterpart for it",
            )


class _Comparer:
    """One pass of the port held against one of the reference."""

    def __init__(
        self,
        *,
        gate: str,
        case: str,
        reading: Reading,
        precision: str,
        mode: str,
        tolerance: str,
        layer_map: LayerMap,
        modules: Collection[str],
        graph: Sequence[np.ndarray | Sample] | None = None,
    ) -> None:
        self.common: dict[str, Any] = {
            "gate": gate,
            "case": case,
            "reading": reading,
            "precision": precision,
            "mode": mode,
            "tolerance": tolerance,
        }
        self.layer_map = layer_map
        self.graph = graph
        self.modules = modules

    def calls(self, pair: LayerPair, passes: _Passes) -> Iterator[Comparison]:
        """Every call of a layer: how many there are, what went in, what came out."""
        expected, found = passes.truth.count(pair.reference), passes.observed.count(pair.port)
        for index in range(max(expected, found, 1)):
            if (pair.reference, index) in passes.judged:
                yield from passes.judged[pair.reference, index]
                continue
            truth = passes.truth.calls.get((pair.reference, index))
            observed = passes.observed.calls.get((pair.port, index))
            if truth is not None and observed is not None:
                own = None if passes.own is None else passes.own.calls[pair.reference, index]
                yield from self.call(pair, index, truth, observed, own)
                continue
            error = passes.observed.error
            detail = f"called {found} times in the port and {expected} times in the reference"
            if error:
                detail = f"{detail}; the pass ended with {error}"
            order = truth.order if truth else 0
            if pair.port not in self.modules:
                # What is not there answers for itself; whoever should have called it is judged by its own output.
                detail, owner = f"the port has no module of this name; {detail}", pair.port
            else:
                # Of a pass that ended early, what was not reached is nobody's fault but that of the model itself.
                owner = "" if error else self.layer_map.owner(pair.port)
            blamed = _where(pair, index) | {"layer": owner if observed is None else pair.port}
            yield compare(None, None, order=order, detail=detail, **blamed, **self.common)

    def call(self, pair: LayerPair, index: int, truth: Call, observed: Call, own: Call | None) -> Iterator[Comparison]:
        """One call of a layer: what went in, what came out."""
        if self.common["reading"] is Reading.ISOLATED and not pair.alias:
            yield from self._inputs(pair, _where(pair, index), truth, observed, own)
        yield from self._outputs(pair, _where(pair, index), truth, observed, own)

    def _inputs(
        self, pair: LayerPair, where: Mapping[str, str], truth: Call, observed: Call, own: Call | None
    ) -> Iterator[Comparison]:
        """What the surrounding module handed in, from children that returned the reference's values."""
        if truth.inputs is None:
            return
        blamed = {**where, "layer": self.layer_map.owner(pair.port)}
        for index in range(pair.inputs):
            yield compare(
                observed.inputs[index] if observed.inputs and index < len(observed.inputs) else None,
                truth.inputs[index] if index < len(truth.inputs) else None,
                reference_same_precision=None if own is None or own.inputs is None else own.inputs[index],
                quantity=f"input_{index}" if index else "input",
                order=truth.order,
                **blamed,
                **self.common,
            )

    def _outputs(
        self, pair: LayerPair, where: Mapping[str, str], truth: Call, observed: Call, own: Call | None
    ) -> Iterator[Comparison]:
        # A recording names only what it recorded; a living reference returns all that there is.
        extra = len(observed.outputs) if truth.inputs is not None else 0
        for index in range(max(len(truth.outputs), len(pair.outputs), extra)):
            quantity = pair.outputs[index] if index < len(pair.outputs) else f"output_{index}"
            expected = truth.outputs[index] if index < len(truth.outputs) else None
            found = observed.outputs[index] if index < len(observed.outputs) else None
            same = own.outputs[index] if own is not None and index < len(own.outputs) else None
            if pair.reference == "" and self.graph is not None and same is not None and expected is not None:
                same = _farther(same, self.graph[index], expected)
            yield from compare_array(
                found,
                expected,
                same,
                quantity=quantity,
                order=truth.order,
                detail=observed.error,
                **where,
                **self.common,
            )

    def state(self, pair: LayerPair, passes: _Passes) -> Iterator[Comparison]:
        """Statistics after a training pass."""
        if self.common["mode"] != "training" or self.common["reading"] is Reading.BLOCK:
            return
        for port_name, reference_name in pair.state:
            common = dict(self.common)
            if common["tolerance"] == "float64" and pair.state_tolerance:
                common["tolerance"] = pair.state_tolerance
            if common["gate"] == "layers":
                common["reading"] = Reading.STATE
            yield compare(
                passes.observed.state.get(pair.port, {}).get(port_name),
                passes.truth.state.get(pair.reference, {}).get(reference_name),
                reference_same_precision=None
                if passes.own is None
                else passes.own.state[pair.reference][reference_name],
                reference_path=pair.reference,
                port_path=pair.port,
                layer="" if passes.observed.error else pair.port,
                quantity=port_name,
                order=next((c.order for c in passes.truth.calls.values() if c.path == pair.reference), 0),
                **common,
            )


def _where(pair: LayerPair, index: int) -> dict[str, str]:
    suffix = f"@{index}" if index else ""
    return {"reference_path": pair.reference + suffix, "port_path": pair.port + suffix, "layer": pair.port}


def _farther(
    first: np.ndarray | Sample, second: np.ndarray | Sample, truth: np.ndarray | Sample
) -> np.ndarray | Sample:
    """Whichever of two runs of the reference is farther from the truth: its own spread counts as its own error."""
    if isinstance(first, Sample) or isinstance(second, Sample) or isinstance(truth, Sample):
        return first
    if not np.all(np.isfinite(second)):
        return second
    return max(first, second, key=lambda array: float(np.linalg.norm(array - truth)))


def judge(
    comparisons: Iterable[Comparison],
    *,
    requested: Sequence[str],
    unavailable: Mapping[str, str] | None = None,
    ladder: Sequence[str] = GATES,
) -> dict[str, Gate]:
    """Turns comparisons into gates.

    Args:
        comparisons: Everything that was compared.
        requested: Gates that were asked for; earlier ones that were run count as well.
        unavailable: Gates that cannot run for this pair, with the reason; these do not block.
        ladder: All gates that there are for this pair, in their order.

    Returns:
        All gates in ladder order. A gate passes when it has comparisons and all pass; one that follows a gate that did
        not pass is blocked, whatever its own comparisons say.
    """
    unavailable = unavailable or {}
    by_gate: dict[str, list[Comparison]] = {name: [] for name in ladder}
    for row in comparisons:
        by_gate[row.gate].append(row)
    gates: dict[str, Gate] = {}
    broken = ""
    last = max((ladder.index(name) for name in requested), default=-1)
    for position, name in enumerate(ladder):
        rows = tuple(by_gate[name])
        failures = sum(1 for row in rows if row.status is not Status.PASS)
        if name in unavailable:
            gates[name] = Gate(name=name, status=GateStatus.NOT_RUN, reason=unavailable[name], comparisons=rows)
            continue
        if not rows and position > last:
            gates[name] = Gate(name=name, status=GateStatus.NOT_RUN, reason="not asked for")
            continue
        if broken:
            status, reason = GateStatus.BLOCKED, f"the gate {broken!r} did not pass"
        elif not rows:
            status, reason = GateStatus.FAILED, "nothing was compared"
        elif failures:
            status, reason = GateStatus.FAILED, f"{failures} of {len(rows)} comparisons do not pass"
        else:
            status, reason = GateStatus.PASSED, ""
        gates[name] = Gate(name=name, status=status, reason=reason, comparisons=rows)
        if status is not GateStatus.PASSED:
            broken = broken or name
    return gates


def find_culprits(comparisons: Iterable[Comparison], layer_map: LayerMap, *, model_name: str) -> tuple[Culprit, ...]:
    """The layers whose own computation differs, in model order.

    Readings that feed the layer from the reference decide. Where only end-to-end readings exist (a recording), the
    first failing layer in the order of execution is named, as uncertain: what follows it may only pass its error on.
    """
    failures = [row for row in comparisons if row.status is not Status.PASS]
    own = [row for row in failures if row.reading in OWN_READINGS]
    certain = bool(own)
    own = own or [row for row in failures if row.reading is Reading.BLOCK]
    if not own:
        accumulated = sorted(
            (row for row in failures if row.reading is Reading.ACCUMULATED), key=_finish_order(layer_map)
        )
        own = accumulated[:1]
    position = {pair.port: index for index, pair in enumerate(layer_map) if not pair.alias}
    reference_of = {pair.port: pair.reference for pair in layer_map if not pair.alias}
    by_layer: dict[str, list[Comparison]] = {}
    for row in own:
        by_layer.setdefault(row.layer, []).append(row)
    culprits = [
        Culprit(
            port=layer or model_name,
            reference=reference_of.get(layer, rows[0].reference) or model_name,
            gates=tuple(dict.fromkeys(row.gate for row in rows)),
            worst=max(rows, key=_excess),
            certain=certain,
        )
        for layer, rows in sorted(by_layer.items(), key=lambda item: position.get(item[0], len(layer_map.pairs)))
    ]
    return tuple(culprits)


def _finish_order(layer_map: LayerMap) -> Callable[[Comparison], tuple[int, int]]:
    """Layers finish after what they contain: children before parents, else in order of execution."""
    position = {pair.port: index for index, pair in enumerate(layer_map) if not pair.alias}

    def key(row: Comparison) -> tuple[int, int]:
        if row.layer == "":
            return len(layer_map.pairs), 0
        last_child = max((index for port, index in position.items() if port.startswith(f"{row.layer}.")), default=-1)
        return max(last_child, position.get(row.layer, 0)), -row.layer.count(".")

    return key


def _excess(row: Comparison) -> float:
    if row.error is None or row.limit is None:
        return float("inf")
    return row.error / row.limit if row.limit else float("inf")
