"""EpiBERT as the target of ``epibert attack``."""

import functools
import gc
import time
from collections.abc import Mapping, Sequence

import numpy as np

from parity.attack.fault import Fault, injected
from parity.attack.head_to_head import OURS
from parity.attack.observation import PRECISIONS, Computed, Observation
from parity.attack.records import CleanRun, Outcome, Sensitivity
from parity.attack.rules import Verdict, judge
from parity.attack.sensitivity import measure
from parity.pairs import epibert, epibert_data
from parity.pairs.epibert_faults.bench import Bench, Judgement
from parity.pairs.epibert_faults.catalogue import CATALOGUE
from parity.pairs.epibert_faults.clean import Clean, Models
from parity.pairs.epibert_faults.clean import judge as judge_clean
from parity.pairs.epibert_faults.effects import Effects
from parity.pairs.epibert_faults.subject import PRETRAINING, Subject
from parity.pairs.epibert_observation import Observer
from parity.pairs.epibert_run import GOLDENS

DATA = "data pipeline"
"""The case of faults of the data, whatever model it is for."""

TARGET = "parity.pairs.epibert_faults.target:EpiBERTTarget"


class EpiBERTTarget:
    """All faults, each on its case."""

    faults: Mapping[str, Fault] = CATALOGUE

    def __init__(self) -> None:
        self._models: Models | None = None
        import tf_keras  # noqa: F401  every part needs it

        # Millions of objects of the libraries are there to stay: the collector need not look at them after every run.
        gc.collect()
        gc.freeze()

    @functools.cache  # noqa: B019  one target a process
    def bench(self, case: str) -> Bench:
        """The bench of a case."""
        return Bench(GOLDENS / case)

    @functools.cache  # noqa: B019  one target a process
    def _effects(self, case: str) -> Effects:
        return Effects(self.bench(case))

    def attack(self, fault: Fault, *, rules: bool = False) -> Outcome:
        """Judges a fault by the ladder, and by the rules of others if asked."""
        bench = self.bench(fault.case)
        started = time.perf_counter()
        found = bench.judge(fault)
        seconds = time.perf_counter() - started
        effect = self._effects(fault.case).measure(fault)
        named = tuple(dict.fromkeys(found.named))
        verdicts: Mapping[str, Verdict] = {}
        sound: Mapping[str, Verdict] = {}
        case = fault.case
        if rules:
            observation, case = self._observe(fault)
            verdicts = {**judge(observation), OURS: _ours(found, seconds)}
            sound = self._sound(fault.case, of_data=case == DATA)
        return Outcome(
            name=fault.name,
            kind=fault.kind,
            source=fault.source,
            where=fault.where,
            what=fault.what,
            expected_rung=fault.rung,
            expected=fault.named,
            of_layers=bench.are_layers(fault.named),
            rung=found.rung,
            stage=found.stage,
            named=named,
            effect=effect.size,
            measured=effect.of,
            comparisons=found.comparisons,
            seconds=seconds,
            right=fault.names(named),
            located=bool(named) and fault.blames(named[0]),
            verdicts=verdicts,
            case=case,
            sound=sound,
        )

    def observe(self, fault: Fault) -> Observation:
        """What both sides compute with a fault, for other rules to judge."""
        return self._observe(fault)[0]

    def _observe(self, fault: Fault) -> tuple[Observation, str]:
        """The same, and what was attacked: the case, or the pipeline of the data."""
        bench, observer = self.bench(fault.case), self._observer(fault.case)
        with injected(fault, bench.subject()) as subject:
            if subject.touched == {"data"}:
                return _observed_data(subject), DATA
            with injected(fault, bench.subject(training=True)) as trained:
                pair = bench.training_pair.of(trained.port, trained.training)
                return observer.observe(subject.port, pair, sound="port" not in subject.touched), fault.case

    @functools.cache  # noqa: B019  one target a process
    def _sound(self, case: str, *, of_data: bool) -> Mapping[str, Verdict]:
        """What all rules say of a case without a fault."""
        bench, started = self.bench(case), time.perf_counter()
        ours = _ours(bench.judge(None), time.perf_counter() - started)
        if of_data:
            return {**judge(_observed_data(bench.subject())), OURS: ours}
        port, trained = bench.subject().port, bench.subject(training=True)
        pair = bench.training_pair.of(trained.port, trained.training)
        return {**judge(self._observer(case).observe(port, pair)), OURS: ours}

    @functools.cache  # noqa: B019  one target a process
    def _observer(self, case: str) -> Observer:
        bench = self.bench(case)
        return Observer(bench.rounding, bench.training_pair)

    def spare(self, seed: int, *, configuration: int, rules: bool = False) -> CleanRun:
        """Judges a port without a fault."""
        started = time.perf_counter()
        clean = Clean(seed, self._models_of(configuration))
        found = judge_clean(clean)
        seconds = time.perf_counter() - started
        verdicts: dict[str, Verdict] = {}
        if rules:
            ours = Verdict(
                found=bool(found.alarms),
                compared=sum(found.comparisons.values()),
                seconds=seconds,
                detail=found.alarms[0] if found.alarms else "",
            )
            observed = Observer(clean.live, clean.training_pair).observe(clean.port, clean.training_pair)
            verdicts = {**judge(observed), OURS: ours}
        return CleanRun(
            seed=seed,
            configuration=clean.described,
            comparisons=found.comparisons,
            alarms=found.alarms,
            second_looks=found.second_looks,
            seconds=seconds,
            verdicts=verdicts,
        )

    def _models_of(self, configuration: int) -> Models:
        """Those of the configuration, until another one is asked for."""
        if self._models is None or self._models.number != configuration:
            self._models = None
            _forget_models()
            self._models = Models(configuration)
        return self._models

    def sensitivity(self) -> Sequence[Sensitivity]:
        """The smallest perturbation of each layer that is seen, on the smallest case of pre-training."""
        bench = self.bench(PRETRAINING)
        return list(measure(bench.port(), bench.live, bench.layer_map, epibert.set_precision))


def _ours(found: Judgement, seconds: float) -> Verdict:
    """The ladder's judgement in the words of a rule."""
    return Verdict(
        found=bool(found.rung),
        named=found.named[0] if found.named else "",
        compared=found.comparisons,
        seconds=seconds,
        detail=found.stage,
    )


def _forget_models() -> None:
    """Models of a clean run are needed no more; layers and watchers refer to each other in circles."""
    import tf_keras

    tf_keras.backend.clear_session()
    gc.collect()


def _observed_data(subject: Subject) -> Observation:
    """What the pipeline hands on, beside what a sound one does, whose every bit is the original's."""

    def handed_on(data: epibert_data.PortData) -> dict[str, Computed]:
        arrays: dict[str, list[np.ndarray]] = {}
        for name, array in epibert_data.port_arrays(GOLDENS / "data", data):
            if name.startswith("whole: "):
                arrays.setdefault(name.removeprefix("whole: "), []).append(np.ravel(array))
        joined = {name: np.concatenate(parts) for name, parts in arrays.items()}
        return {p: Computed(outputs={n: a.astype(p) for n, a in joined.items()}) for p in PRECISIONS}

    return Observation(reference=handed_on(epibert_data.PORT_DATA), port=handed_on(subject.data))
