"""One call: does this port compute what this reference computes, and if not, which layer does not?"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from parity.compare import compare
from parity.environment import describe_environment, version
from parity.inference.infer import infer
from parity.inference.reference_side import input_arrays, reference_variables
from parity.inference.weight_map import WeightMap, arranged, helper_buffers, tensors_by_name
from parity.keras_side import POLICIES, KerasSide, layers_by_path, lift
from parity.ladder import FORWARD_GATES, compare_live, find_culprits, judge
from parity.layer_map import LayerMap
from parity.operations import name_operations
from parity.recording import Recording
from parity.records import Comparison, NotCompared, Reading, Result
from parity.reference import LiveReference
from parity.stream import Outline
from parity.tolerances import table
from parity.torch_side import TorchSide

MODES = ("evaluation", "training")
FOREIGN_PRECISIONS = ("float64", "float32")


def verify(
    reference: Any,
    port: nn.Module,
    inputs: Any = None,
    gates: Sequence[str] = ("layers", "model"),
    *,
    layer_map: LayerMap | Mapping[str, str] | None = None,
    weight_map: WeightMap | None = None,
    modes: Sequence[str] = MODES,
    precisions: Sequence[str] | None = None,
    case: str = "",
    streamed: bool = False,
) -> Result:
    """Compares a port with a reference, living or recorded, layer by layer, in several precisions.

    The rungs before those asked for are climbed as well, since a later one proves nothing without them. Both models are
    left as they were found; dropout is off in training mode.

    Args:
        reference: Built tf_keras model. It is copied into float64 (and float32, bfloat16) where it can be; one that
            cannot is compared in its own precision, with limits that say so. Or a ``parity.Recording`` of a model that
            lives in another Python; TensorFlow is not needed then.
        port: PyTorch module that takes the same inputs, as separate arguments.
        inputs: The models' arguments: an array or a tuple of arrays, batch first. A recording holds its own.
        gates: Rungs to prove, of ``weights``, ``constants``, ``layers``, ``blocks``, ``model``; against a recording
            also ``gradients`` and ``trajectory``.
        layer_map: Which layer answers to which: a ``LayerMap``, or {port path: reference path}. Known for EpiBERT, for
            other pairs inferred where it is not given (``parity.infer``), and with it the weight map.
        weight_map: {port tensor: (reference variable, axes)}: the port's tensor is the variable with its axes permuted
            so, None meaning as it is. Variables are named by layer path and own name: ``conv/kernel``. Known for
            EpiBERT. In place of axes a row may have a named ``Arrangement``. Where the layer map is inferred, these
            rows win over what is inferred.
        modes: ``evaluation``, ``training`` or both.
        precisions: ``float64``, ``float32``, ``bfloat16``; by default all three for EpiBERT and the first two for
            others.
        case: A name for the comparisons, where several results are put together.
        streamed: Compare while both models run, for models and inputs of which not all activations fit into memory:
            what is held grows with the largest layer, not with their sum. The comparisons are the same; each takes
            passes of its own of the reference.

    Returns:
        The result. ``result.passed`` is True only if every gate asked for passed.

    Raises:
        ValueError: Unknown gates, modes or precisions, or a weight map for a pair that the harness knows.
    """
    from parity.pairs import find_pair

    arrays = input_arrays(reference, inputs)
    if isinstance(reference, Recording):
        from parity.verify_recording import verify_recording

        return verify_recording(
            reference,
            port,
            gates,
            layer_map=layer_map,
            weight_map=weight_map,
            modes=modes,
            precisions=precisions,
            case=case,
        )
    check_names("gates", gates, FORWARD_GATES)
    check_names("modes", modes, MODES)
    pair = find_pair(reference, port)
    wanted = FORWARD_GATES[: max(FORWARD_GATES.index(gate) for gate in gates) + 1]
    started = time.perf_counter()
    if pair is not None:
        if weight_map is not None:
            raise ValueError(f"the weight map of {pair.NAME} is known: leave weight_map= out")
        mapped = as_layer_map(layer_map) or pair.layer_map(port.config)
        prepared = pair.prepare(reference, port, precisions, case=case)
        models, comparisons, left_out = prepared.models, prepared.comparisons, prepared.not_compared
        unavailable: dict[str, str] = {}
        name, configuration, weights = pair.NAME, prepared.configuration, prepared.weights
        side, lent, watched = TorchSide(port, mapped, pair.set_precision), prepared.lent, port
    else:
        mapped, inferred = as_layer_map(layer_map), None
        if mapped is None:
            inferred = infer(reference, port, arrays, weights=weight_map)
            mapped, weight_map = inferred.layer_map, inferred.weight_map
        modules = dict(port.named_modules())
        # A map may name operations that are no modules of the port.
        watched = port if all(pair.port in modules for pair in mapped) else name_operations(port).module
        models, left_out = lift(reference, precisions or FOREIGN_PRECISIONS)
        comparisons = [] if weight_map is None else compare_weights(reference, port, weight_map, case)
        unavailable = {"constants": "this pair names no constants"}
        if weight_map is None:
            unavailable["weights"] = "no weight_map was given: weights are proven only by what the layers compute"
        if not any(pair.block for pair in mapped):
            unavailable["blocks"] = "the layer map marks no blocks"
        left_out = (*left_out, *unmapped_modules(watched, mapped, type(port).__name__), *left_out_buffers(port))
        left_out = left_out if inferred is None else (*left_out, *inferred.not_compared())
        name, configuration, weights = f"{type(reference).__name__} and {type(port).__name__}", {}, ()
        side, lent = TorchSide(watched, mapped, original=port), None
    described = f"living model, TensorFlow {version('tensorflow')}, tf_keras {version('tf_keras')}"
    live = LiveReference(models, arrays, mapped, described, streamed=streamed)
    prepared_at = time.perf_counter()
    rows = [row for row in comparisons if row.gate in wanted]
    readings = [gate for gate in wanted if gate in ("layers", "blocks", "model")]
    if readings:
        rows += compare_dropout(dropout_rates(reference), watched, mapped, case=case)
        rows += _compare_copy(reference, live, case=case)
        with contextlib.nullcontext() if lent is None else lent:
            rows += compare_live(side, live, mapped, gates=readings, modes=modes, case=case)
            if pair is not None and live.precisions[0] == "float64":
                label = f"{case}, drawn weights" if case else "drawn weights"
                with pair.drawn_weights(port, models["float64"]):
                    drawn = LiveReference({"float64": models["float64"]}, arrays, mapped, described, streamed=streamed)
                    rows += compare_live(side, drawn, mapped, gates=["layers"], modes=["evaluation"], case=label)
    usual = tuple(POLICIES) if pair is not None else FOREIGN_PRECISIONS
    left_out = (*left_out, *unasked(modes, usual if precisions is None else precisions, usual))
    rows = [row for row in rows if row.gate in wanted]
    return Result(
        pair=name,
        reference=described,
        requested=tuple(gates),
        gates=judge(rows, requested=gates, unavailable=unavailable, ladder=FORWARD_GATES),
        culprit_rows=find_culprits(rows, mapped, model_name=type(port).__name__),
        not_compared=(*left_out, *ignored_layers(mapped)),
        weights=weights,
        tolerances=table(),
        configuration=configuration,
        environment=describe_environment(),
        seconds={"preparation": prepared_at - started, "comparison": time.perf_counter() - prepared_at},
    )


def dropout_rates(reference: Any) -> dict[str, float]:
    """{path: rate} of every dropout of a living model."""
    import tf_keras

    layers = layers_by_path(reference)
    return {path: float(layer.rate) for path, layer in layers.items() if isinstance(layer, tf_keras.layers.Dropout)}


def compare_dropout(
    rates: Mapping[str, float], port: nn.Module, layer_map: LayerMap, *, case: str = ""
) -> list[Comparison]:
    """Kind and rate of every dropout; the masks themselves are random and switched off while layers are compared."""
    modules, comparisons = dict(port.named_modules()), []
    for pair in layer_map:
        module, rate = modules.get(pair.port), rates.get(pair.reference)
        if pair.alias or (rate is None and not isinstance(module, nn.modules.dropout._DropoutNd)):
            continue
        found = float(module.p) if isinstance(module, nn.Dropout) else None
        detail = "" if found is not None else f"a {type(module).__name__} is no element-wise dropout"
        comparisons.append(
            compare(
                None if found is None else np.asarray([found]),
                None if rate is None else np.asarray([rate]),
                gate="layers",
                reading=Reading.VALUE,
                precision="exact",
                tolerance="exact",
                reference_path=pair.reference,
                port_path=pair.port,
                layer=pair.port,
                quantity="dropout rate",
                case=case,
                detail=detail,
            )
        )
    return comparisons


def _compare_copy(reference: Any, live: LiveReference, *, case: str) -> list[Comparison]:
    """The reference as it was given against the copy that is compared, which has no patches of an instance."""
    own = "bfloat16" if reference.compute_dtype == "bfloat16" else reference.compute_dtype
    if own not in live.sides or live.sides[own].model is reference:
        return []
    given = KerasSide(reference).trace(live.inputs, training=False, recorder=Outline()).calls["", 0].outputs
    copied = live.outline(own, training=False).calls["", 0].outputs
    return compare_outputs_of_copy(given, copied, own, case=case)


def compare_outputs_of_copy(
    given: Sequence[Any], copied: Sequence[Any], precision: str, *, case: str
) -> list[Comparison]:
    """What the reference returns as it was given, against what its copy in the same precision returns."""
    return [
        compare(
            np.asarray(found),
            np.asarray(expected),
            gate="layers",
            reading=Reading.VALUE,
            precision=precision,
            tolerance=f"copy_{precision}",
            reference_path="",
            port_path="(the reference as it was given)",
            layer="",
            quantity="output of the reference",
            case=case,
            mode="evaluation",
        )
        for found, expected in zip(given, copied, strict=True)
    ]


def unasked(modes: Sequence[str], precisions: Sequence[str], usual: Sequence[str]) -> tuple[NotCompared, ...]:
    """Modes and precisions that are compared unless somebody asks for fewer."""
    rows = [f"mode {name}" for name in MODES if name not in modes]
    rows += [f"precision {name}" for name in usual if name not in precisions]
    return tuple(NotCompared(side="both", name=name, reason="not asked for") for name in rows)


def ignored_layers(layer_map: LayerMap) -> tuple[NotCompared, ...]:
    """Layers of the reference that a map leaves out, by name."""
    return tuple(NotCompared(side="reference", name=path, reason=why) for path, why in layer_map.ignored.items())


def unmapped_modules(port: nn.Module, layer_map: LayerMap, model: str) -> tuple[NotCompared, ...]:
    """Modules of the port without a row of their own, by name."""
    names = {pair.port for pair in layer_map}
    return tuple(
        NotCompared(
            side="port",
            name=name,
            reason=f"at most compared as a part of {layer_map.owner(name) or model}",
        )
        for name, _ in port.named_modules()
        if name not in names
    )


def left_out_buffers(port: nn.Module) -> tuple[NotCompared, ...]:
    """Buffers of the port that cannot have come from a Keras model, by name."""
    return tuple(NotCompared(side="port", name=name, reason=why) for name, why in helper_buffers(port).items())


def check_names(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError for names that are not known, and for none."""
    if isinstance(given, str) or not given:
        raise ValueError(f"{what} must be a sequence of names out of {', '.join(known)}")
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"unknown {what} {unknown}; there are {', '.join(known)}")


def as_layer_map(layer_map: LayerMap | Mapping[str, str] | None) -> LayerMap | None:
    """A layer map, made of {port path: reference path} where that is given."""
    return LayerMap.from_names(layer_map) if isinstance(layer_map, Mapping) else layer_map


def compare_weights(reference: Any, port: nn.Module, weight_map: WeightMap, case: str) -> list[Comparison]:
    """Every parameter and buffer of the port and every variable of the reference, bit for bit, none left over."""
    variables, tensors = reference_variables(reference), tensors_by_name(port)
    rows = [(name, key, axes) for name, (key, axes) in weight_map.items()]
    rows += [(name, "", None) for name in tensors if name not in weight_map]
    used = {key for key, _ in weight_map.values()}
    rows += [("", key, None) for key in variables if key not in used]
    comparisons = []
    for order, (name, key, axes) in enumerate(rows):
        expected = variables.get(key)
        if expected is not None:
            expected = arranged(expected, axes)
        found = tensors.get(name)
        detail = ""
        if name not in weight_map:
            detail = "the weight map does not mention it"
        comparisons.append(
            compare(
                None if found is None else found.detach().cpu().double().numpy(),
                expected,
                gate="weights",
                reading=Reading.VALUE,
                precision="exact",
                tolerance="exact",
                reference_path=key,
                port_path=name,
                layer=name.rpartition(".")[0],
                quantity="weight",
                case=case,
                order=order,
                detail=detail,
            )
        )
    return comparisons
