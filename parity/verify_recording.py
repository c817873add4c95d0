"""A port against a recording of its reference: the same comparisons as beside a living one, with TensorFlow absent."""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from parity.arrangements import Arrangement
from parity.environment import RECORDED_WITH, describe_environment
from parity.inference.infer import infer
from parity.inference.weight_map import WeightMap
from parity.ladder import FORWARD_GATES, GATE_OF_READING, compare_live, find_culprits, judge
from parity.layer_map import LayerMap
from parity.operations import name_operations
from parity.recorded_training import TensorRow, compare_training
from parity.recording import RecordedReference, Recording
from parity.records import Comparison, NotCompared, Reading, Result, WeightRow
from parity.tolerances import table
from parity.torch_side import TorchSide
from parity.verify import (
    MODES,
    as_layer_map,
    check_names,
    compare_dropout,
    compare_outputs_of_copy,
    compare_weights,
    ignored_layers,
    left_out_buffers,
    unasked,
    unmapped_modules,
)

TRAINING_GATES = ("gradients", "trajectory")
GATES = (*FORWARD_GATES, *TRAINING_GATES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """A port and a recording, bound to each other.

    Attributes:
        name: Of the pair.
        side: The port with its layers watched.
        layer_map: Which layer answers to which.
        tensors: Which tensor of the port answers to which variable.
        comparisons: Of weights and constants.
        unavailable: Gates that cannot be climbed, with the reason.
        not_compared: What is left out.
        lent: While entered, the port computes with the recorded constants.
        renumbered: Layers that the port calls in another order than the reference, as for ``Recording.trace``.
        more: Further fields of the result.
    """

    name: str
    side: TorchSide
    layer_map: LayerMap
    tensors: Mapping[str, TensorRow]
    comparisons: Sequence[Comparison]
    unavailable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    not_compared: Sequence[NotCompared] = ()
    lent: contextlib.AbstractContextManager[None] | None = None
    renumbered: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def verify_recording(
    recording: Recording,
    port: nn.Module,
    gates: Sequence[str],
    *,
    layer_map: LayerMap | Mapping[str, str] | None = None,
    weight_map: WeightMap | None = None,
    modes: Sequence[str] = MODES,
    precisions: Sequence[str] | None = None,
    case: str = "",
) -> Result:
    """Compares a port with a recording; see ``parity.verify``.

    Raises:
        ValueError: Unknown gates or modes, precisions that were not recorded, or a weight map for a pair that the
            harness knows.
    """
    from parity.pairs import find_binder

    check_names("gates", gates, GATES)
    check_names("modes", modes, MODES)
    if precisions is not None:
        check_names("precisions", precisions, recording.precisions)
    wanted = GATES[: max(GATES.index(gate) for gate in gates) + 1]
    started = time.perf_counter()
    bind = find_binder(recording, port)
    if bind is not None:
        if weight_map is not None:
            raise ValueError("the weight map of this pair is known: leave weight_map= out")
        bound = bind(recording, port, as_layer_map(layer_map), case)
    else:
        bound = _bind(recording, port, as_layer_map(layer_map), weight_map, case)
    mapped = bound.layer_map
    reference = RecordedReference(recording, mapped, precisions, renumbered=bound.renumbered)
    prepared_at = time.perf_counter()
    rows = [row for row in bound.comparisons if row.gate in wanted]
    readings = [gate for gate in wanted if gate in GATE_OF_READING.values()]
    unavailable = dict(bound.unavailable)
    left_out = [*bound.not_compared, *recording.not_compared(), *unasked(modes, (), ())]
    left_out += [
        NotCompared(side="recording", name=f"precision {name}", reason="not asked for")
        for name in recording.precisions
        if name not in reference.precisions
    ]
    with contextlib.nullcontext() if bound.lent is None else bound.lent:
        if readings:
            recorded_modes = [mode for mode in modes if not _lacks_mode(reference, mode)]
            if not recorded_modes:
                raise ValueError(f"none of the modes {', '.join(modes)} was recorded")
            rows += compare_dropout(recording.rates(), bound.side.module, mapped, case=case)
            rows += _compare_copy(recording, reference, case)
            rows += compare_live(bound.side, reference, mapped, gates=readings, modes=recorded_modes, case=case)
            left_out += _lacking(reference, recorded_modes, readings, mapped)
        trained = recording.training is not None and not set(TRAINING_GATES) & set(unavailable)
        if trained and set(TRAINING_GATES) & set(wanted):
            found, more = compare_training(recording, bound.side, bound.tensors, mapped, case=case)
            rows += found
            left_out += more
            if not found:
                unavailable |= dict.fromkeys(TRAINING_GATES, more[0].reason)
    if recording.training is None:
        unavailable |= dict.fromkeys(TRAINING_GATES, "neither gradients nor steps were recorded")
    else:
        left_out.append(
            NotCompared(
                side="recording",
                name="loss and optimizer of the user's own",
                reason="recorded are gradients, and gradient descent, of the outputs weighted by drawn numbers",
            )
        )
    rows = [row for row in rows if row.gate in wanted]
    environment = describe_environment()
    return Result(
        pair=bound.name,
        reference=recording.described,
        requested=tuple(gates),
        gates=judge(rows, requested=gates, unavailable=unavailable, ladder=GATES),
        culprit_rows=find_culprits(rows, mapped, model_name=type(port).__name__),
        not_compared=(*dict.fromkeys(left_out), *ignored_layers(mapped)),
        tolerances=table(),
        environment={
            **environment,
            "content": {"recording": recording.sha256},
            RECORDED_WITH: dict(recording.environment),
        },
        seconds={"preparation": prepared_at - started, "comparison": time.perf_counter() - prepared_at},
        **bound.more,
    )


def _bind(
    recording: Recording, port: nn.Module, mapped: LayerMap | None, weight_map: WeightMap | None, case: str
) -> Bound:
    """A pair of the user's own."""
    inferred = None
    if mapped is None:
        inferred = infer(recording, port, weights=weight_map)
        mapped, weight_map = inferred.layer_map, inferred.weight_map
    modules = dict(port.named_modules())
    watched = port if all(pair.port in modules for pair in mapped) else name_operations(port).module
    unavailable = {"constants": "this pair names no constants"}
    if weight_map is None:
        unavailable["weights"] = "no weight_map was given: weights are proven only by what the layers compute"
        unavailable |= dict.fromkeys(TRAINING_GATES, "no weight_map was given: no gradient has a counterpart")
    if not any(pair.block for pair in mapped):
        unavailable["blocks"] = "the layer map marks no blocks"
    left_out = [*unmapped_modules(watched, mapped, type(port).__name__), *left_out_buffers(port)]
    if inferred is not None:
        left_out += inferred.not_compared()
    constants = [
        NotCompared(side="recording", name=f"constant {name}", reason="the harness does not know it in this pair")
        for name in recording.constants
    ]
    return Bound(
        name=f"{recording.name} and {type(port).__name__}",
        side=TorchSide(watched, mapped, original=port),
        layer_map=mapped,
        tensors={} if weight_map is None else TensorRow.of_weight_map(weight_map),
        comparisons=[] if weight_map is None else compare_weights(recording, port, weight_map, case),
        unavailable=unavailable,
        not_compared=[*left_out, *constants],
        more={"weights": () if weight_map is None else _rows_of_weights(recording, weight_map)},
    )


def _rows_of_weights(recording: Recording, weight_map: WeightMap) -> tuple[WeightRow, ...]:
    """The weight map with the hash of every variable, for the report and for what changed between two of them."""
    hashes = recording.weight_hashes
    return tuple(
        WeightRow(
            key=key,
            name=name,
            shape=tuple(recording.variables[key].shape),
            layout=axes.name
            if isinstance(axes, Arrangement)
            else "as it is"
            if axes is None
            else f"axes {tuple(axes)}",
            sha256=hashes[key],
        )
        for name, (key, axes) in weight_map.items()
        if key in hashes
    )


def _compare_copy(recording: Recording, reference: RecordedReference, case: str) -> list[Comparison]:
    precision, given = recording.given
    if precision not in reference.precisions:
        return []
    copied = reference.trace(precision, training=False, reading=Reading.ACCUMULATED).calls["", 0].outputs
    return compare_outputs_of_copy(given, copied, precision, case=case)


def _lacks_mode(reference: RecordedReference, mode: str) -> str:
    return reference.lacks(reference.precisions[0], training=mode == "training", reading=Reading.ACCUMULATED)


def _lacking(
    reference: RecordedReference, modes: Sequence[str], gates: Sequence[str], layer_map: LayerMap
) -> list[NotCompared]:
    """Readings that the recording cannot give, by name."""
    rows: list[tuple[str, str]] = []
    for mode in modes:
        for precision in reference.precisions:
            for reading, gate in GATE_OF_READING.items():
                why = reference.lacks(precision, training=mode == "training", reading=reading)
                if why and gate in gates and (reading is not Reading.BLOCK or any(pair.block for pair in layer_map)):
                    rows.append((f"{precision} {mode} {reading} readings", why))
    others = reference.on_other_inputs()
    why = others.lacks(others.precisions[0], training=modes[0] == "training", reading=Reading.ACCUMULATED)
    if why:
        rows.append((f"{modes[0]} on the recording's second inputs", why))
    return [NotCompared(side="recording", name=name, reason=why) for name, why in rows]
