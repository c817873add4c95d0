"""How much a fault changes: a sound port held against the broken one, without the reference and without the ladder."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.attack.fault import Fault, injected
from parity.compare import distance
from parity.pairs import epibert, epibert_data
from parity.pairs.epibert_faults.bench import OPTIMIZER_RUNS, STEPS, Bench
from parity.pairs.epibert_faults.subject import Subject
from parity.pairs.epibert_run import GOLDENS
from parity.pairs.epibert_training.live_functions import loss_samples
from parity.pairs.epibert_training.live_pair import GRADIENT_RECIPE
from parity.pairs.epibert_training.parts import PortTraining
from parity.pairs.epibert_training.recipes import SCHEDULE_ARGUMENTS
from parity.tolerances import TABLE, UNIT_ROUNDOFF
from parity.trace import attempt
from parity.training import GROUPS

Arrays = Mapping[str, np.ndarray]
PRECISIONS = ("float64", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effect:
    """The largest relative change, and of what.

    Attributes:
        size: Relative L2 distance in float64; infinite where a shape changes, a number is not finite or nothing comes
            out.
        of: What changes by that much, and what changes in other precisions where nothing does in float64.
    """

    size: float
    of: str


class Effects:
    """Measures the effects of faults on one case; what the sound port computes is remembered.

    Args:
        bench: The case.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._sound: dict[tuple[str, str], Arrays] = {}

    def measure(self, fault: Fault) -> Effect:
        """The largest change of the first kind of result that changes by more than rounding.

        What a user sees first is asked first: outputs, then what training leaves behind, all in float64. Where nothing
        of it changes, the other precisions are asked, and the answer is told in words.
        """
        with injected(fault, self.bench.subject()) as subject:
            touched = subject.touched
        if touched == {"data"}:
            return self._largest(fault, "float64", ("data", _examples, False))
        kinds = [("outputs", _outputs, False)] if "port" in touched else []
        kinds += [("losses", _losses, True)] if "training" in touched else []
        kinds += [("gradients", _gradients, True), ("updates", _updates, True), ("run", _run, True)]
        found: list[Effect] = []
        for kind in kinds:
            found.append(self._largest(fault, "float64", kind))
            if not _within_rounding(found):
                return found[-1]
        largest = max(found, key=lambda effect: effect.size)
        # The original's gradients in bfloat16 are no measure, and nothing trains in it.
        others = ((kind, p) for p in PRECISIONS[1:] for kind in kinds if kind[0] == "outputs" or p == "float32")
        for kind, precision in others:
            narrow = self._largest(fault, precision, kind)
            if narrow.size > UNIT_ROUNDOFF[precision]:
                return Effect(size=largest.size, of=f"{largest.of}, {narrow.of} by {narrow.size:.1g}")
        return largest

    def _largest(self, fault: Fault, precision: str, kind: tuple[str, Callable[..., Arrays], bool]) -> Effect:
        name, compute, training = kind

        def arrays(fault: Fault | None) -> Arrays:
            with injected(fault, self.bench.subject(training=training)) as subject:
                return compute(self.bench, subject, precision)

        if (name, precision) not in self._sound:
            self._sound[name, precision] = arrays(None)
        sound, broken = self._sound[name, precision], arrays(fault)
        suffix = "" if precision == "float64" else f" in {precision}"
        changes = [Effect(size=_change(broken.get(key), sound[key]), of=key + suffix) for key in sound]
        return max(changes, key=lambda effect: effect.size)


def _within_rounding(found: Sequence[Effect]) -> bool:
    return all(effect.size <= TABLE["fault_effect"].limit for effect in found)


def _change(broken: np.ndarray | None, sound: np.ndarray) -> float:
    if broken is None or broken.shape != sound.shape:
        return math.inf
    same = (broken == sound) | (np.isnan(broken) & np.isnan(sound))
    if np.all(same):
        return 0.0
    if not (np.all(np.isfinite(broken)) and np.all(np.isfinite(sound))):
        return math.inf
    return distance(broken, sound)[0]


def _outputs(bench: Bench, subject: Subject, precision: str) -> Arrays:
    side, found = epibert.watch(subject.port), {}
    for mode in ("evaluation", "training"):
        outputs, error = side.outputs(bench.inputs, precision=precision, training=mode == "training")
        found |= {} if error else {f"output {index} in {mode}": array for index, array in enumerate(outputs)}
    trained = side.trace(bench.inputs, precision=precision, training=True)
    statistics = [np.ravel(value) for state in trained.state.values() for value in state.values()]
    return found | {"statistics after a pass": np.concatenate(statistics)}


def _losses(bench: Bench, subject: Subject, precision: str) -> Arrays:
    """Losses, metrics and learning rates, which need no model."""
    training, found, dtype = subject.training, {}, getattr(torch, precision)
    for name, make in _loss_values(training, dtype):
        value, _ = attempt(make)
        found |= {} if value is None else {name: np.atleast_1d(np.asarray(value, dtype=np.float64))}
    rates, _ = attempt(lambda: [training.schedule(step, **SCHEDULE_ARGUMENTS) for step in range(100)])
    return found | ({} if rates is None else {"learning rates": np.asarray(rates)})


def _loss_values(training: PortTraining, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Any]]]:
    samples = [
        [
            *(torch.from_numpy(array).to(dtype) for array in (sample.true, sample.predicted)),
            *map(torch.from_numpy, sample.masks),
        ]
        for sample in loss_samples()
    ]

    def values(loss: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: [float(loss(*sample)) for sample in samples]

    yield "poisson", values(lambda true, predicted, *_: training.poisson(true, predicted))
    for weight in (0.15, 1.0):
        yield (
            f"multinomial of weight {weight:g}",
            values(lambda true, predicted, *_, w=weight: training.poisson_multinomial(true, predicted, total_weight=w)),
        )
        for kind in ("poisson", "poisson_multinomial"):
            yield (
                f"masked {kind} of weight {weight:g}",
                values(
                    lambda true, predicted, mask, unmask, k=kind, w=weight: training.masked_loss(
                        true, predicted, mask, unmask=unmask, loss_type=k, total_weight=w
                    )
                ),
            )
    yield (
        "loss of two heads",
        values(
            lambda true, predicted, mask, _: (
                training.finetuning_loss(
                    true, predicted, true.flip(1), predicted.flip(1), mask, loss_type="poisson", atac_scale=0.1
                ).total
            )
        ),
    )
    for name, make in training.metrics.items():

        def streamed(make: Callable[..., Any] = make) -> list[float]:
            metric, found = make(state_dtype=dtype), []
            for true, predicted, *_ in samples:
                metric.update(predicted[:, :2], true[:, :2])
                found.append(float(metric.compute()))
            return found

        yield name, streamed

    def genes() -> list[float]:
        metric, generator = training.gene_metric(), np.random.default_rng(0)
        true, predicted = (torch.from_numpy(generator.gamma(0.5, 8.0, size=(40, 6, 1))).to(dtype) for _ in range(2))
        gene, cell = (torch.from_numpy(generator.integers(0, count, size=40)) for count in (6, 3))
        metric.update(predicted, true, torch.ones_like(true), gene, cell)
        return [float(value) for value in metric.compute().values()]

    yield "correlation across genes", genes


def _gradients(bench: Bench, subject: Subject, precision: str) -> Arrays:
    """The loss with dropout and its gradients."""
    pair, found = bench.training_pair.of(subject.port, subject.training), {}
    backward = pair.side(**GRADIENT_RECIPE).gradients(*pair.batch(0), precision=precision)
    if backward.loss is not None:
        found["loss with dropout"] = np.asarray([backward.loss])
        found["gradients"] = np.concatenate(
            [np.ravel(backward.parameters[name]) for name in sorted(backward.parameters)]
        )
    return found


def _updates(bench: Bench, subject: Subject, precision: str) -> Arrays:
    """How far given gradients move the weights."""
    pair, found = bench.training_pair.of(subject.port, subject.training), {}
    before = pair.weights()
    for optimizer, scale in OPTIMIZER_RUNS:
        given = [
            {tensor.port: tensor.to_port(step[tensor.reference]) for tensor in pair.tensors if tensor.trainable}
            for step in pair.given_gradients(scale)
        ]
        last = pair.side(optimizer=optimizer).steps(given, pair.tensors, precision=precision)[-1]
        if not last.error:
            updates = [np.ravel(last.weights[name] - before[name]) for name in before]
            found[f"updates by {optimizer} along gradients of size {scale:g}"] = np.concatenate(updates)
    return found


def _run(bench: Bench, subject: Subject, precision: str) -> Arrays:
    """What a run of several steps with dropout leaves behind."""
    pair, found = bench.training_pair.of(subject.port, subject.training), {}
    for snapshot in pair.side().run(pair.batch, STEPS, pair.tensors, precision=precision):
        for group in GROUPS if not snapshot.error else ():
            tensors = getattr(snapshot, group)
            found[f"{group} after step {snapshot.step}"] = np.concatenate(
                [np.ravel(tensors[name]) for name in sorted(tensors)]
            )
    return found


def _examples(bench: Bench, subject: Subject, precision: str) -> Arrays:
    """All recorded examples as the port makes them, put together by what they consist of."""
    found: dict[str, list[np.ndarray]] = {}
    for quantity, array in epibert_data.port_arrays(GOLDENS / "data", subject.data):
        found.setdefault(quantity, []).append(np.ravel(array))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}
