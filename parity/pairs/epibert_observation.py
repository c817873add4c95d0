"""Both sides of EpiBERT in one run, for the decision rules of others: everything that any of them looks at."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from parity.attack.observation import PRECISIONS, Computed, Observation, Pass
from parity.layer_map import LayerMap
from parity.pairs import epibert
from parity.pairs.epibert_training.live_pair import GRADIENT_RECIPE, LivePair
from parity.records import Reading
from parity.reference import LiveReference
from parity.torch_side import TorchSide
from parity.trace import Trace
from parity.training import Snapshot, TensorPair
from torch_impl.model import Trunk

STEPS = 10
"""As many as the longest comparison of others takes."""

T = TypeVar("T")


class Observer:
    """Runs ports beside one reference; what the reference computes is remembered, with the time that it took.

    The port takes training steps in float32 only: no rule asks for others.

    Gradients that are zero in exact arithmetic, and the weights that they move, are left out: there is only noise on
    both sides, of which no rule could be right.

    Args:
        live: The reference in float64 and float32, in evaluation.
        training: The reference in training, dropout on.
    """

    def __init__(self, live: LiveReference, training: LivePair) -> None:
        self.live = live
        self.training = training
        self._remembered: dict[tuple[str, str, Pass], tuple[Any, float]] = {}

    def observe(self, port: Trunk, trained: LivePair, *, sound: bool = False) -> Observation:
        """One run.

        Args:
            port: The port, to be watched in evaluation.
            trained: The port of the configuration that is trained, and what trains it: ``training.of(...)``.
            sound: Nothing is wrong with the port in evaluation: its passes are those of the last one of which this was
                said.
        """
        layer_map, side = epibert.layer_map_of(port), epibert.watch(port)
        pairs = {p: self._computed(side, trained, layer_map, p, sound=sound) for p in PRECISIONS}
        return Observation(
            reference={precision: reference for precision, (reference, _) in pairs.items()},
            port={precision: found for precision, (_, found) in pairs.items()},
            blocks=tuple(pair.port for pair in layer_map if pair.block),
        )

    def _computed(
        self, side: TorchSide, trained: LivePair, layer_map: LayerMap, precision: str, *, sound: bool
    ) -> tuple[Computed, Computed]:
        """What the reference and the port compute in a precision."""
        dtype = np.dtype(precision)
        inputs, live = self.live.inputs, self.live
        truth = live.trace("float64", training=False, reading=Reading.ACCUMULATED)
        spent: dict[str, dict[Pass, float]] = {"reference": {}, "port": {}}

        def remembered(who: str, kind: Pass, make: Callable[[], T]) -> T:
            key = (who, precision, kind)
            if key not in self._remembered:
                self._remembered[key] = _timed(make)
            made, spent[who][kind] = self._remembered[key]
            return made

        def reference(kind: Pass, make: Callable[[], T]) -> T:
            return remembered("reference", kind, make)

        def port(kind: Pass, make: Callable[[], T]) -> T:
            if sound and kind in (Pass.FORWARD, Pass.ISOLATED):
                return remembered("port", kind, make)
            made, spent["port"][kind] = _timed(make)
            return made

        def traces(kind: Pass, reading: Reading) -> tuple[Trace, Trace]:
            # The most precise reference that is fed with itself gives itself; a pass of its own is what it would take.
            mine = reference(kind, lambda: live.sides[precision].trace(inputs, training=False, truth=fed(reading)))
            return mine, port(kind, lambda: side.trace(inputs, precision=precision, training=False, truth=fed(reading)))

        def fed(reading: Reading) -> Trace | None:
            return truth if reading is Reading.ISOLATED else None

        free = traces(Pass.FORWARD, Reading.ACCUMULATED)
        alone = traces(Pass.ISOLATED, Reading.ISOLATED)
        batch, tensors = trained.batch(0), _with_gradient(trained.tensors)
        own = self.training.reference(precision, **GRADIENT_RECIPE)
        backward = (
            reference(Pass.BACKWARD, lambda: own.gradients(*batch)),
            port(Pass.BACKWARD, lambda: trained.side(**GRADIENT_RECIPE).gradients(*batch, precision=precision)),
        )
        trainer = self.training.reference(precision)
        run: list[Snapshot] = []
        if precision != "float64":
            run = port(
                Pass.STEPS, lambda: trained.side().run(trained.batch, STEPS, trained.tensors, precision=precision)
            )
        runs = (reference(Pass.STEPS, lambda: trainer.run(trained.batch, STEPS, trained.tensors)), run)
        gradients = (
            {pair.port: pair.to_port(backward[0].parameters[pair.reference]) for pair in tensors},
            {pair.port: backward[1].parameters[pair.port] for pair in tensors if pair.port in backward[1].parameters},
        )
        names = [pair.port for pair in (*tensors, *(t for t in trained.tensors if not t.trainable))]
        errors = ("", next(filter(None, (free[1].error, alone[1].error, backward[1].error, _error(runs[1]))), ""))
        both = [
            Computed(
                outputs=_cast(_outputs(free[index], layer_map), dtype),
                layers=_cast(_layers(free[index], layer_map, own=bool(index)), dtype),
                isolated=_cast(_layers(alone[index], layer_map, own=bool(index)), dtype),
                loss=backward[index].loss,
                gradients=_cast(gradients[index], dtype),
                losses=tuple(snapshot.loss for snapshot in runs[index] if not snapshot.error),
                weights=_cast(_weights(runs[index], names), dtype),
                seconds=spent[who],
                error=errors[index],
            )
            for index, who in enumerate(("reference", "port"))
        ]
        return both[0], both[1]


def _timed(make: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    made = make()
    return made, time.perf_counter() - started


def _with_gradient(tensors: Sequence[TensorPair]) -> list[TensorPair]:
    return [pair for pair in tensors if pair.trainable and not pair.zero_gradient]


def _outputs(trace: Trace, layer_map: LayerMap) -> dict[str, np.ndarray]:
    """Final outputs by name; none where the pass did not reach its end."""
    call = trace.calls.get(("", 0))
    names = next(pair.outputs for pair in layer_map if pair.port == "")
    found = () if call is None else call.outputs
    return {names[index] if index < len(names) else f"output_{index}": _whole(a) for index, a in enumerate(found)}


def _layers(trace: Trace, layer_map: LayerMap, *, own: bool) -> dict[str, np.ndarray]:
    """Every output of every layer below the model, in order of execution, under the port's names.

    Args:
        trace: Of either side.
        layer_map: Which layer is which.
        own: The trace is the port's.
    """
    pairs = {pair.port if own else pair.reference: pair for pair in layer_map if not pair.alias}
    aliases = {pair.reference for pair in layer_map if pair.alias}
    found = {}
    for (path, index), call in trace.calls.items():
        if path == "" or (path in aliases and not own):
            continue  # the model itself; a second name for a layer that has its row
        name = pairs[path].port if path in pairs else path
        names = pairs[path].outputs if path in pairs else ()
        for position, array in enumerate(call.outputs):
            quantity = names[position] if position < len(names) else f"output_{position}"
            suffix = f"@{index}" if index else ""
            found[f"{name}{suffix}:{quantity}" if len(call.outputs) > 1 else name + suffix] = _whole(array)
    return found


def _weights(run: Sequence[Snapshot], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Parameters and statistics after the last step that was taken."""
    if not run:
        return {}
    tensors = {**run[-1].weights, **run[-1].statistics}
    return {name: tensors[name] for name in names if name in tensors}


def _error(run: Sequence[Snapshot]) -> str:
    return next((snapshot.error for snapshot in run if snapshot.error), "")


def _whole(array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise TypeError("a sample is no output to be judged")
    return array


def _cast(arrays: Mapping[str, np.ndarray], dtype: np.dtype) -> dict[str, np.ndarray]:
    """In the precision that they were computed in, which traces widen."""
    return {name: np.asarray(array, dtype=dtype) for name, array in arrays.items()}
