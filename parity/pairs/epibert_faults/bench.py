"""Where faults of EpiBERT are judged: a recorded case, a living reference that remembers its passes, fresh ports."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from parity.attack.fault import Fault, injected
from parity.ladder import DATA, GATES, compare_live, find_culprits, judge
from parity.layer_map import LayerMap
from parity.pairs import epibert, epibert_data
from parity.pairs.epibert_faults.subject import Subject
from parity.pairs.epibert_run import GOLDENS, load_case, model_tensors
from parity.pairs.epibert_training import live_functions, live_training, recorded_functions
from parity.pairs.epibert_training.live_pair import LivePair, training_config
from parity.pairs.epibert_training.parts import PORT
from parity.records import Comparison, Culprit, Gate, GateStatus, Status
from parity.reference import Goldens, LiveReference, read_goldens
from torch_impl import EpiBERT, EpiBERTRampage
from torch_impl.model import Trunk
from weights import transplant
from weights.mapping import is_fine_tuning

STEPS = 8
"""Long enough to go on after the steps that the rung of state looks at."""

ROUNDED = ("float32", "bfloat16")
OPTIMIZER_RUNS = (("adam", 1e-6), ("adam", 1e-2), ("adamw", 1.0))
"""Gradients below epsilon, above it, and beyond the clip."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the ladder that is climbed as a whole.

    Attributes:
        name: What is compared.
        reads: Parts of a subject that it depends on; what it finds of the sound ones is the same for all faults.
        rows: The comparisons.
        training: Whether the port is that of the configuration that is trained.
    """

    name: str
    reads: frozenset[str]
    rows: Callable[[Subject], Iterable[Comparison]]
    training: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the ladder says of a subject.

    Attributes:
        gates: The rungs that were climbed, up to the first that is red.
        culprits: Who is named on that rung.
        stage: The stage that was red; empty when all pass.
        comparisons: How many arrays were compared.
    """

    gates: Mapping[str, Gate]
    culprits: tuple[Culprit, ...]
    stage: str
    comparisons: int

    @property
    def rung(self) -> str:
        """The first red rung; empty when none is."""
        return next((name for name, gate in self.gates.items() if gate.status is GateStatus.FAILED), "")

    @property
    def named(self) -> tuple[str, ...]:
        """Names of the culprits in the port."""
        return tuple(culprit.port for culprit in self.culprits)


class Bench:
    """One recorded case.

    What the reference computes is remembered, and what the ladder finds of parts that no fault has touched: all faults
    on a case share it.

    Args:
        folder: Of the case, among the recorded numbers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config, self._checkpoint = load_case(folder)
        self.finetuning = is_fine_tuning(self._checkpoint, self.config)
        self.model_name = "EpiBERTRampage" if self.finetuning else "EpiBERT"
        self.stored = model_tensors(self._checkpoint, self.config)
        self.layer_map: LayerMap = epibert.layer_map(self.config, rampage=self.finetuning)
        self.recording: Goldens = read_goldens(folder / "forward.h5", name="recorded")
        self.inputs = epibert.recorded_inputs(self.recording)
        self._sound: dict[str, tuple[Comparison, ...]] = {}

    def are_layers(self, named: Iterable[str]) -> bool:
        """Whether all of these answer for a computation of the port: layers of the map, or the model itself."""
        layers = {pair.port for pair in self.layer_map} | {self.model_name}
        return set(named) <= layers

    # --- the reference -----------------------------------------------------------------------------------------------

    @functools.cache  # noqa: B019  one bench a process
    def reference(self, precision: str) -> Any:
        """The living reference in a precision."""
        return epibert.build_reference(self.config, self.stored, precision, rampage=self.finetuning, inputs=self.inputs)

    @functools.cached_property
    def constants(self) -> Any:
        """Projection matrix and rotary table of the reference."""
        return self.reference("float64").get_constants()

    @functools.cached_property
    def live(self) -> LiveReference:
        """The reference in float64."""
        return self._remembering("float64")

    @functools.cached_property
    def rounding(self) -> LiveReference:
        """The reference in every precision."""
        return self._remembering("float64", *ROUNDED)

    @functools.cached_property
    def drawn(self) -> LiveReference:
        """The reference in float64, to be given drawn weights."""
        return self._remembering("float64")

    def _remembering(self, *precisions: str) -> LiveReference:
        models = {precision: self.reference(precision) for precision in precisions}
        return LiveReference(models, self.inputs, self.layer_map, "living reference", remember=True)

    @functools.cached_property
    def training_pair(self) -> LivePair:
        """The reference in training, dropout on, on a short window."""
        return LivePair(training_config(self.config), self.stored, self.port(training=True))

    # --- ports -------------------------------------------------------------------------------------------------------

    def port(self, *, training: bool = False) -> Any:
        """A port that is right, of the recorded configuration or of the one that is trained."""
        return copy.deepcopy(self._sound_port(training))

    def subject(self, *, training: bool = False) -> Subject:
        """Sound parts, to be broken."""
        return Subject(functools.partial(self.port, training=training))

    @functools.cache  # noqa: B019  one bench a process
    def _sound_port(self, training: bool) -> Trunk:
        config = training_config(self.config) if training else self.config
        port = (EpiBERTRampage if self.finetuning else EpiBERT)(config)
        transplant(self._checkpoint, port, constants=(*self.constants, "living reference"))
        return port

    # --- the ladder --------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The whole ladder but convergence, in the order of the rungs."""
        port, data = frozenset({"port"}), frozenset({"data"})
        losses, both = frozenset({"training"}), frozenset({"port", "training"})
        return (
            Stage("weights, constants and layers", port, self._values_and_layers),
            Stage("layers in training mode", port, self._training_layers),
            Stage("layers with drawn weights", port, self._drawn_layers),
            Stage("rounding of layers", port, self._rounding),
            Stage("blocks and model", port, self._blocks_and_model),
            Stage(DATA, data, self._data),
            Stage("losses and metrics", losses, self._losses),
            Stage("gradients", both, self._gradients, training=True),
            Stage("gradients in float32", both, self._float32_gradients, training=True),
            Stage("optimizer steps", both, self._optimizer, training=True),
            Stage("state", both, self._state, training=True),
            Stage("trajectory", both, self._trajectory, training=True),
            Stage("trajectory in float32", both, self._float32_trajectory, training=True),
        )

    def judge(self, fault: Fault | None, *, stages: Iterable[str] | None = None) -> Judgement:
        """Climbs until a rung is red.

        Args:
            fault: What is wrong; None for a sound port.
            stages: Only these; by default all.

        Raises:
            ValueError: The fault leaves every part as it was.
        """
        wanted = None if stages is None else set(stages)
        rows: list[Comparison] = []
        for stage in self.stages:
            if wanted is not None and stage.name not in wanted:
                continue
            found = self.rows(fault, stage)
            rows += found
            if any(row.status is not Status.PASS for row in found):
                culprits = find_culprits(found, self.layer_map, model_name=self.model_name)
                return Judgement(gates=_gates(rows), culprits=culprits, stage=stage.name, comparisons=len(rows))
        return Judgement(gates=_gates(rows), culprits=(), stage="", comparisons=len(rows))

    def rows(self, fault: Fault | None, stage: Stage) -> tuple[Comparison, ...]:
        """What one stage finds of a subject that is broken anew, since faults may remember what was asked of them.

        Raises:
            ValueError: The fault leaves every part as it was.
            RuntimeError: Sound parts do not pass either, so that nothing red would speak of the fault.
        """
        found = None
        with injected(fault, self.subject(training=stage.training)) as subject:
            if fault is not None and not subject.touched:
                raise ValueError(f"the fault {fault.name!r} leaves every part as it was")
            if subject.touched & stage.reads:
                found = tuple(stage.rows(subject))
        if found is not None and all(row.status is Status.PASS for row in found):
            return found
        if stage.name not in self._sound:
            self._sound[stage.name] = tuple(stage.rows(self.subject(training=stage.training)))
        sound = self._sound[stage.name]
        failed = [row for row in sound if row.status is not Status.PASS]
        if failed:
            row = failed[0]
            raise RuntimeError(
                f"the sound port fails {len(failed)} of {len(sound)} comparisons of {stage.name!r}, such as "
                f"{row.port or row.layer} [{row.quantity}]: {row.status} {row.detail}"
            )
        return sound if found is None else found

    def _values_and_layers(self, subject: Subject) -> Iterable[Comparison]:
        projection, table = self.constants
        yield from epibert.compare_weights(subject.port, self.stored)
        yield from epibert.compare_constants(subject.port, projection, table)
        yield from self._compare(subject, gates=("layers",), modes=("evaluation",))

    def _training_layers(self, subject: Subject) -> Iterable[Comparison]:
        return self._compare(subject, gates=("layers",), modes=("training",))

    def _blocks_and_model(self, subject: Subject) -> Iterable[Comparison]:
        return self._compare(subject, gates=("blocks", "model"), modes=("evaluation", "training"))

    def _compare(self, subject: Subject, *, gates: tuple[str, ...], modes: tuple[str, ...]) -> Iterable[Comparison]:
        return compare_live(epibert.watch(subject.port), self.live, self.layer_map, gates=gates, modes=modes)

    def _drawn_layers(self, subject: Subject) -> Iterable[Comparison]:
        model = self.reference("float64")
        with epibert.drawn_weights(subject.port, model):
            side = epibert.watch(subject.port)
            return list(compare_live(side, self.drawn, self.layer_map, gates=("layers",), modes=("evaluation",)))

    def _rounding(self, subject: Subject) -> Iterable[Comparison]:
        side = epibert.watch(subject.port)
        how = {"gates": ("layers",), "modes": ("evaluation",), "precisions": ROUNDED}
        return compare_live(side, self.rounding, self.layer_map, **how)

    def _data(self, subject: Subject) -> Iterable[Comparison]:
        return epibert_data.compare_recorded_data(GOLDENS / "data", subject.data)

    def _losses(self, subject: Subject) -> Iterable[Comparison]:
        training = subject.training
        yield from live_functions.compare_losses(training)
        yield from live_functions.compare_metrics(training)
        yield from recorded_functions.compare_recorded_functions(
            GOLDENS / "functions.h5", dataclasses.replace(training, schedule=PORT.schedule), case="functions"
        )
        if self.finetuning:
            yield from live_functions.compare_finetuning_losses(training)
            yield from live_functions.compare_gene_metrics(training)

    def _pair(self, subject: Subject) -> LivePair:
        """The subject's training beside the reference's."""
        return self.training_pair.of(subject.port, subject.training)

    def _gradients(self, subject: Subject) -> Iterable[Comparison]:
        return live_training.live_gradients(self._pair(subject), precisions=("float64",))

    def _float32_gradients(self, subject: Subject) -> Iterable[Comparison]:
        return live_training.live_gradients(self._pair(subject), precisions=("float32",))

    def _optimizer(self, subject: Subject) -> Iterable[Comparison]:
        return live_training.live_steps(self._pair(subject), runs=OPTIMIZER_RUNS)

    def _state(self, subject: Subject) -> Iterable[Comparison]:
        return live_training.live_runs(self._pair(subject), "float64", STEPS, draws=1, with_trajectory=False)

    def _trajectory(self, subject: Subject) -> Iterable[Comparison]:
        return live_training.live_runs(self._pair(subject), "float64", STEPS, draws=1)

    def _float32_trajectory(self, subject: Subject) -> Iterable[Comparison]:
        return live_training.live_runs(self._pair(subject), "float32", STEPS)


def _gates(rows: Iterable[Comparison]) -> dict[str, Gate]:
    rows = list(rows)
    present = [gate for gate in GATES if any(row.gate == gate for row in rows)]
    return judge(rows, requested=present, ladder=present)
