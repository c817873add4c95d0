"""What ``epibert parity`` runs: the recorded cases of the repository, or a checkpoint of the user's own."""

import contextlib
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from parity import workers
from parity.convergence import Equivalence, Run, find_equivalences
from parity.environment import ROOT, describe_environment, hash_file, version
from parity.ladder import (
    CONVERGENCE,
    DATA,
    FORWARD_GATES,
    GATES,
    TRAINING_GATES,
    compare_live,
    find_culprits,
    judge,
    unrecorded,
)
from parity.ledger import Ledger, NotProven
from parity.pairs import epibert, epibert_data, rampage, rampage_convergence
from parity.pairs.epibert_convergence import PRETRAINING, margins, run_convergence
from parity.pairs.epibert_training import live_functions, live_training, recorded_functions, recorded_training
from parity.pairs.epibert_training.live_pair import TRAINING_BINS
from parity.pairs.epibert_training.parts import PORT, PortTraining
from parity.pairs.epibert_training.recorded_training import RECORDED_VARIANTS, recorded_targets
from parity.pairs.epibert_training.tensors import tensor_pairs
from parity.records import Comparison, GateStatus, KnownDifference, NotCompared, Result, WeightRow
from parity.reference import LiveReference, read_goldens
from parity.tolerances import table
from parity.training import Inputs, Targets, not_compared_gradients
from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights import CheckpointError, transplant
from weights.checkpoint import Checkpoint, read_checkpoint
from weights.command import choose_configuration
from weights.mapping import is_fine_tuning, locate
from weights.table import RAMPAGE_TABLE, TABLE
from weights.table import rows as weight_rows

GOLDENS = ROOT / "goldens"
CASES = ("P1", "P2")
FINETUNING_CASES = ("R1", "R2")
FINETUNING = "rampage_tiny"
"""What ``--config`` names the recorded cases of the fine-tuning model by; those of pre-training are the default."""

LONG_GATES = ("optimizer", "state", "trajectory")
FINETUNING_CASE = "R1"
"""Recorded training of the fine-tuning model: two heads, an optimizer for each group, weight decay."""
RECORDINGS = (
    "functions.h5",
    f"data/{epibert_data.RECORDING}",
    *(f"data/{kind}.tfr" for kind in epibert_data.KINDS),
)
"""Files without which the recorded cases cannot be compared, beside their own."""

SHORT_WINDOW = 64
INPUT_SEED = 2026
UNTOLD_ARGUMENTS = (
    "seed",
    "kernel_transformation",
    "use_rot_emb",
    "max_seq_length",
    "final_output_length",
    "BN_momentum",
)

DEVICES = ("cpu", "cuda")
RNA_HEAD = "model/final_dense_profile_rna/"

References = Literal["both", "live", "recorded"]
Say = Callable[[str], None]
PreparePort = Callable[[Any], None]
"""Called with each port before it is compared."""


class UsageError(ValueError):
    """A request that cannot be met, in one line for the user."""


@dataclasses.dataclass
class Findings:
    """What the cases add up to."""

    comparisons: list[Comparison] = dataclasses.field(default_factory=list)
    not_compared: list[NotCompared] = dataclasses.field(default_factory=list)
    known_differences: list[KnownDifference] = dataclasses.field(default_factory=list)
    weights: list[WeightRow] = dataclasses.field(default_factory=list)
    references: list[str] = dataclasses.field(default_factory=list)
    configuration: dict[str, Any] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    unavailable: dict[str, str] = dataclasses.field(default_factory=dict)
    runs: list[Run] = dataclasses.field(default_factory=list)
    equivalences: list[Equivalence] = dataclasses.field(default_factory=list)
    workers: dict[str, int | str] = dataclasses.field(default_factory=dict)

    def add(self, other: "Findings") -> None:
        """Takes up what another part of the work found."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, dict):
                mine.update(theirs)
            else:
                mine.extend(theirs)

    def result(self, gates: Sequence[str], *, finetuning: bool = False) -> Result:
        """Judged; ``finetuning`` says of which of the two models the findings are."""
        name = rampage.NAME if finetuning else epibert.NAME
        # All cases have the same kinds of layers; the deepest one orders them.
        config = max(
            (EpiBERTConfig(**arguments) for arguments in self.configuration.values()),
            key=lambda found: (found.num_transformer_layers, len(found.filter_list_seq)),
        )
        return Result(
            pair=name,
            reference="; ".join(dict.fromkeys(self.references)),
            requested=tuple(gates),
            gates=judge(self.comparisons, requested=gates, unavailable=self.unavailable),
            culprit_rows=find_culprits(
                self.comparisons, epibert.layer_map(config, rampage=finetuning), model_name=name
            ),
            not_compared=tuple(dict.fromkeys(self.not_compared)),
            known_differences=tuple(self.known_differences),
            weights=tuple(self.weights),
            tolerances=table(),
            runs=tuple(self.runs),
            equivalences=tuple(self.equivalences),
            configuration=self.configuration,
            environment={
                **describe_environment(),
                **self.workers,
                "content": self.sources,
                "constants of attention": self.origins,
            },
            seconds=self.seconds,
        )


def tensorflow_installed() -> bool:
    """Whether a living reference can be built."""
    return all(importlib.util.find_spec(name) is not None for name in ("tensorflow", "tf_keras"))


def run(
    *,
    checkpoint: str | None = None,
    config: str | None = None,
    gates: Sequence[str] | None = None,
    reference: References = "both",
    goldens: str | Path = GOLDENS,
    bins: int = SHORT_WINDOW,
    batch: int = 2,
    prepare_port: PreparePort | None = None,
    training: PortTraining = PORT,
    ledger: Ledger | None = None,
    jobs: int = 1,
    device: str = "cpu",
    say: Say = lambda text: None,
) -> Result:
    """Climbs the ladder.

    Args:
        checkpoint: A checkpoint of the original; the recorded cases when None.
        config: JSON file with constructor arguments that the checkpoint's shapes do not tell. Without a checkpoint, the
            name of the recorded cases: ``rampage_tiny`` for the fine-tuning model, None for pre-training.
        gates: Rungs to prove; by default all but the convergence for the recorded cases, as far as the references that
            are wanted can prove them, and those without training for a checkpoint.
        reference: Numbers recorded from the original, the living reference, or both.
        goldens: Folder of the recorded cases.
        bins: Window of a user's checkpoint, in bins: no weight depends on the length, so a short one exercises all.
        batch: Examples in the synthetic inputs of a user's checkpoint.
        prepare_port: Called with every port before it is compared; tests inject faults here.
        training: What trains the port; tests put faulty parts here.
        ledger: Where to enter what was found; only a run on the recorded cases with both references is entered. What is
            found of the fine-tuning model is entered apart from the rest.
        jobs: Processes that share the recorded cases; nothing may be put in the port's place then.
        device: Where the port computes: ``cpu`` or ``cuda``; nothing is entered into the ledger for another than cpu.
        say: Told what is going on.

    Raises:
        UsageError: The request cannot be met: no TensorFlow, no recordings, an unknown gate.
        CheckpointError: The checkpoint or its configuration is at fault.
    """
    if gates is None:
        gates = default_gates(checkpoint is not None, reference)
    unknown = [gate for gate in gates if gate not in GATES]
    if unknown or not gates:
        raise UsageError(f"{f'unknown gates {unknown}' if unknown else 'no gates given'}; there are {', '.join(GATES)}")
    if reference != "recorded" and not tensorflow_installed():
        raise UsageError(
            "the living reference needs TensorFlow: install the extra 'reference', or compare with the recorded "
            "numbers alone by --reference recorded"
        )
    if CONVERGENCE in gates and (checkpoint is not None or reference != "both"):
        raise UsageError(
            "the gate convergence stands on the recorded cases and the living reference: leave --checkpoint and "
            "--reference out"
        )
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}; there are {', '.join(DEVICES)}")
    if device != "cpu" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device")
    if device != "cpu" and CONVERGENCE in gates:
        raise UsageError("the gate convergence is for the processor: leave --device out")
    as_it_is = prepare_port is None and training is PORT and device == "cpu"
    entered = ledger if as_it_is and checkpoint is None and reference == "both" else None
    if checkpoint is None and config not in (None, FINETUNING):
        raise UsageError(f"--config belongs to --checkpoint; without one it names recorded cases: {FINETUNING}")
    finetuning = checkpoint is None and config == FINETUNING
    if entered is not None:
        entered = entered.about(FINETUNING if finetuning else "")
        try:
            entered.open()
        except OSError as error:
            raise UsageError(f"cannot write the ledger {entered.folder}: {error.strerror}") from None
    findings = Findings()
    wanted = GATES[: max(GATES.index(gate) for gate in gates) + 1]
    if checkpoint is not None:
        if reference == "recorded":
            raise UsageError("nothing is recorded for a checkpoint of your own: it needs --reference live")
        with _exact_products(device):
            finetuning = _own_checkpoint(
                findings, wanted, checkpoint, config, bins, batch, prepare_port, training, say, device
            )
    else:
        if reference == "recorded" and "trajectory" in wanted:
            raise UsageError(
                "the recorded runs are five steps long: the gates trajectory and convergence need the living reference"
            )
        cases = FINETUNING_CASES if finetuning else (*CASES, FINETUNING_CASE)
        for name in (*(f"{case}/forward.h5" for case in cases), *RECORDINGS):
            if not (Path(goldens) / name).is_file():
                raise UsageError(
                    f"no recorded numbers in {Path(goldens) / name}: run from a clone of the repository, or give "
                    "--goldens"
                )
        units = _units(wanted, reference, finetuning=finetuning)
        job = _Job(tuple(wanted), str(goldens), reference, finetuning, device)
        if jobs == 1 or len(units) == 1 or prepare_port is not None or training is not PORT:
            found = [job.do(unit, prepare_port, training, say) for unit in units]
        else:
            threads = workers.threads_of(jobs)
            found = _in_processes(job, units, jobs, threads, say)
            findings.workers |= {"processes": jobs, "threads": threads}
        for part in found:
            findings.add(part)
    if device != "cpu":
        findings.workers["device"] = torch.cuda.get_device_name()
        findings.not_compared.append(
            NotCompared(
                side=device,
                name="losses and metrics by themselves, the data pipeline",
                reason="computed by the processor here; what trains a model on the device is compared in the gradients",
            )
        )
    if CONVERGENCE in wanted:
        _convergence(findings, prepare_port, say, finetuning=finetuning)
    result = findings.result(gates, finetuning=finetuning)
    if entered is not None:
        try:
            entered.record(result)
        except NotProven as error:
            raise UsageError(str(error)) from None
    return result


def default_gates(own_checkpoint: bool, reference: References) -> tuple[str, ...]:
    """The rungs that are climbed when nobody asks for others."""
    if own_checkpoint:
        return FORWARD_GATES
    return tuple(gate for gate in GATES if gate != CONVERGENCE and (reference != "recorded" or gate != "trajectory"))


def _model(config: EpiBERTConfig, *, finetuning: bool) -> Trunk:
    return EpiBERTRampage(config) if finetuning else EpiBERT(config)


def load_case(folder: Path) -> tuple[EpiBERTConfig, Checkpoint]:
    """Configuration and checkpoint of a recorded case."""
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return EpiBERTConfig(**description["config"]), read_checkpoint(folder / description["ckpt_before"])


def model_tensors(checkpoint: Checkpoint, config: EpiBERTConfig) -> dict[str, np.ndarray]:
    """Every tensor of the model by canonical path, read straight from the checkpoint.

    Tensors under ``model/`` that the table does not know are kept, so that the comparison finds them left over.
    """
    keys = locate(checkpoint, weight_rows(config, RAMPAGE_TABLE if is_fine_tuning(checkpoint, config) else TABLE))
    taken = set(keys.values())
    others = {checkpoint.path(key): key for key in checkpoint if key not in taken}
    keys |= {path: key for path, key in others.items() if path.startswith("model/")}
    return {path: checkpoint[key] for path, key in keys.items()}


@dataclasses.dataclass(frozen=True)
class _Job:
    """What is asked of the recorded cases; its units of work can be done apart from each other."""

    wanted: tuple[str, ...]
    goldens: str
    reference: References
    finetuning: bool = False
    device: str = "cpu"

    def do(
        self,
        unit: tuple[str, str],
        prepare_port: PreparePort | None = None,
        training: PortTraining = PORT,
        say: Say = lambda text: None,
    ) -> Findings:
        """One unit: (what to do, with which case)."""
        with _exact_products(self.device):
            return self._do(unit, prepare_port, training, say)

    def _do(
        self, unit: tuple[str, str], prepare_port: PreparePort | None, training: PortTraining, say: Say
    ) -> Findings:
        findings, (task, name) = Findings(), unit
        if task == "functions":
            _functions(findings, self.wanted, Path(self.goldens), self.reference, training, say)
            if self.finetuning:
                _finetuning_functions(findings, self.wanted, self.reference, training, say)
        elif task == "data":
            _data(findings, Path(self.goldens) / "data", say)
        elif task == "fine-tuning":
            _finetuning_case(findings, self.wanted, Path(self.goldens) / name, training, say, self.device)
        else:
            case = _Case(Path(self.goldens) / name, prepare_port, self.device)
            case.describe(findings)
            work = {"recorded": _recorded_case, "live": _living_case, "training": _training_case}[task]
            work(findings, self.wanted, case, training, say)
        return findings


def _units(wanted: Sequence[str], reference: References, *, finetuning: bool = False) -> list[tuple[str, str]]:
    """All units of work, those that take longest first."""
    units: list[tuple[str, str]] = []
    cases = FINETUNING_CASES if finetuning else CASES
    training = any(gate in TRAINING_GATES for gate in wanted)
    if DATA in wanted and reference != "live":
        units.append(("data", ""))
    if reference != "recorded":
        units += [("training", name) for name in cases if training]
        units += [("live", name) for name in cases]
    if reference != "live":
        units += [("recorded", name) for name in cases]
        units += [("fine-tuning", FINETUNING_CASE)] if training and not finetuning else []
    return [*units, ("functions", "")] if training else units


def _in_processes(job: _Job, units: Sequence[tuple[str, str]], jobs: int, threads: int, say: Say) -> list[Findings]:
    """The units by several processes, in their order. A process that dies ends the run: nothing is left out."""
    with workers.pool(jobs, threads, reference=job.reference != "recorded", device=job.device) as pool:
        futures = {pool.submit(job.do, unit): unit for unit in units}
        for count, future in enumerate(as_completed(futures), start=1):
            task, name = futures[future]
            say(f"{count} of {len(units)} parts compared, the last: {name} {task}".replace("  ", " "))
            if future.exception() is not None:
                pool.shutdown(cancel_futures=True)
                break
        return [future.result() for future in futures]


class _Case:
    """A recorded case, read."""

    def __init__(self, folder: Path, prepare_port: PreparePort | None, device: str) -> None:
        self.folder, self.name, self._prepare, self._device = folder, folder.name, prepare_port, device
        try:
            self.config, self.checkpoint = load_case(folder)
            self.original = json.loads((folder.parent / "environment.json").read_text(encoding="utf-8"))["tensorflow"]
            self.recording = read_goldens(folder / "forward.h5", name=f"recorded TensorFlow {self.original}")
            self.inputs = epibert.recorded_inputs(self.recording)
        except CheckpointError:
            raise
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UsageError(f"the recorded numbers in {folder} cannot be read: {error}") from None
        self.stored = model_tensors(self.checkpoint, self.config)
        self.finetuning = is_fine_tuning(self.checkpoint, self.config)
        self.layer_map = epibert.layer_map(self.config, rampage=self.finetuning)

    def describe(self, findings: Findings) -> None:
        """Notes what the case consists of."""
        findings.configuration[self.name] = dataclasses.asdict(self.config)
        rows = epibert.weight_map(self.config, self.stored, rampage=self.finetuning)
        findings.weights += [dataclasses.replace(row, note=self.name) for row in rows]
        findings.sources |= {f"{self.name}/{path.name}": hash_file(path) for path in self.checkpoint.files}
        findings.sources[f"{self.name}/forward.h5"] = hash_file(self.folder / "forward.h5")

    def port(self, config: EpiBERTConfig | None = None, constants: Any = "tensorflow") -> Any:
        """A port with the weights of the case, an ``EpiBERT`` or an ``EpiBERTRampage``."""
        made = _model(self.config if config is None else config, finetuning=self.finetuning)
        transplant(self.checkpoint, made, constants=constants)
        made.to(self._device)
        if self._prepare is not None:
            self._prepare(made)
        return made


def _recorded_case(findings: Findings, wanted: Sequence[str], case: _Case, training: PortTraining, say: Say) -> None:
    """A port against the recorded numbers."""
    name, recording = f"{case.name} recorded", case.recording
    with _timed(findings, name, say):
        projection, rotary = epibert.recorded_constants(recording)
        port = case.port(constants=(projection, rotary, recording.name))
        findings.origins[name] = port.constants_origin
        findings.references.append(f"numbers of the original, TensorFlow {case.original}")
        rows = [
            *epibert.compare_weights(port, case.stored, case=name),
            *epibert.compare_constants(port, projection, rotary, case=name),
        ]
        if "layers" in wanted:
            rows += epibert.compare_with_recording(port, recording, case=name)
            findings.not_compared += unrecorded(epibert.absent_layers(case.layer_map), case=name)
        if "model" in wanted:
            rows += epibert.compare_own_constants(port, case.inputs, recording.finals["float64", "eager"], case=name)
            differences, effects = epibert.measure_known_differences(port, case.inputs, case=name)
            findings.known_differences += differences
            rows += effects
        if "losses" in wanted and case.name in RECORDED_VARIANTS:
            targets = recorded_targets(recording)
            rows += _recorded_training(findings, case.name, port, case.folder, case.inputs, targets, training)
        elif "losses" in wanted:
            findings.not_compared.append(
                NotCompared(
                    side=f"{case.name} recorded",
                    name="training",
                    reason=f"of the original it was recorded for {' and '.join(RECORDED_VARIANTS)} alone; this case is "
                    "trained beside the living reference",
                )
            )
        findings.comparisons += [row for row in rows if row.gate in wanted]
        findings.not_compared += epibert.unmapped_modules(port, case.layer_map)


def _living_case(findings: Findings, wanted: Sequence[str], case: _Case, training: PortTraining, say: Say) -> None:
    """A port against the living reference, without training."""
    _live_case(findings, wanted, f"{case.name} live", case.port(), case.stored, case.inputs, say)


def _training_case(findings: Findings, wanted: Sequence[str], case: _Case, training: PortTraining, say: Say) -> None:
    """A port's training against the living reference's."""
    # Steps along given gradients and whole runs take long and do not depend on the shape of the model.
    longest = (FINETUNING_CASES if case.finetuning else CASES)[0]
    gates = [gate for gate in wanted if case.name == longest or gate not in LONG_GATES]
    left_out = [gate for gate in wanted if gate not in gates]
    if left_out:
        findings.not_compared.append(
            NotCompared(
                side=f"{case.name} live",
                name=", ".join(left_out),
                reason=f"compared on {longest}; neither optimizer nor statistics know the model's shape",
            )
        )
    _live_training(findings, gates, f"{case.name} live", case.config, case.stored, case.port, training, say)


def open_checkpoint(
    path: str, config_file: str | None, bins: int, batch: int
) -> tuple[Checkpoint, EpiBERTConfig, EpiBERTConfig]:
    """A checkpoint of the user's own, its configuration, and that of a window of so many bins.

    Raises:
        UsageError: The window or the number of examples is none that the model takes.
    """
    checkpoint = read_checkpoint(path)
    config = choose_configuration(checkpoint, config_file)
    trimmed = config.output_length - config.final_output_length
    if batch < 1 or not trimmed < bins <= config.output_length:
        raise UsageError(
            f"--batch must be at least 1 and --bins more than the {trimmed} that are cropped and at most "
            f"{config.output_length}"
        )
    return checkpoint, config, dataclasses.replace(config, output_length=bins, final_output_length=bins - trimmed)


def left_out(whole: EpiBERTConfig, config_file: str | None, bins: int) -> list[NotCompared]:
    """What a comparison on a checkpoint leaves open: arguments that nobody gave, and windows longer than its own.

    Args:
        whole: The checkpoint's configuration.
        config_file: Where its arguments are from, if they are not the original's defaults.
        bins: The window.
    """
    rows = []
    if config_file is None:
        name = "arguments that shapes do not tell: " + ", ".join(UNTOLD_ARGUMENTS)
        rows.append((name, "no --config was given; reference and port both have the original's defaults"))
    if bins < whole.output_length:
        reason = (
            f"the model takes {whole.output_length}; no weight depends on the length, and the rotary table is "
            "compared whole"
        )
        rows.append((f"windows longer than {bins} bins", reason))
    return [NotCompared(side="both", name=name, reason=reason) for name, reason in rows]


def _own_checkpoint(
    findings: Findings,
    wanted: Sequence[str],
    path: str,
    config_file: str | None,
    bins: int,
    batch: int,
    prepare_port: PreparePort | None,
    training: PortTraining,
    say: Say,
    device: str,
) -> bool:
    """Climbs with a checkpoint of the user's own; returns whether it is one of the fine-tuning model."""
    say("reading the checkpoint")
    checkpoint, whole, config = open_checkpoint(path, config_file, bins, batch)
    finetuning = is_fine_tuning(checkpoint, config)
    findings.not_compared.extend(left_out(whole, config_file, bins))
    findings.configuration["checkpoint"] = dataclasses.asdict(config)
    findings.sources |= {file.name: hash_file(file) for file in checkpoint.files}

    def make_port(config: EpiBERTConfig) -> Any:
        made = _model(config, finetuning=finetuning)
        transplant(checkpoint, made, constants="tensorflow")
        made.to(device)
        if prepare_port is not None:
            prepare_port(made)
        return made

    port = make_port(config)
    stored = model_tensors(checkpoint, config)
    findings.weights += epibert.weight_map(config, stored, rampage=finetuning)
    findings.not_compared += epibert.unmapped_modules(port, epibert.layer_map_of(port))
    inputs = epibert.synthetic_inputs(config, batch=batch, seed=INPUT_SEED)
    if "losses" in wanted:
        findings.comparisons += [
            *live_functions.compare_losses(training),
            *live_functions.compare_metrics(training),
        ]
    if DATA in wanted:
        findings.unavailable[DATA] = "a checkpoint has no data; the recorded cases prove the pipeline"
        if finetuning:
            findings.comparisons += _finetuning_rows(training)
    _live_case(findings, wanted, Path(path).name, port, stored, inputs, say)
    _live_training(findings, wanted, Path(path).name, config, stored, make_port, training, say)
    return finetuning


def _live_case(
    findings: Findings,
    wanted: Sequence[str],
    case: str,
    port: Trunk,
    stored: Mapping[str, np.ndarray],
    inputs: tuple[np.ndarray, ...],
    say: Say,
) -> None:
    with _timed(findings, case, say):
        findings.origins[case] = port.constants_origin
        mapped = epibert.layer_map_of(port)
        models = {
            precision: epibert.build_reference(
                port.config, stored, precision, rampage=isinstance(port, EpiBERTRampage), inputs=inputs
            )
            for precision in ("float64", "float32", "bfloat16")
        }
        projection, rotary = models["float64"].get_constants()
        described = f"living reference, TensorFlow {version('tensorflow')}, tf_keras {version('tf_keras')}"
        findings.references.append(described)
        rows = [
            *epibert.compare_weights(port, stored, case=case),
            *epibert.compare_constants(port, projection, rotary if port.config.use_rot_emb else None, case=case),
        ]
        readings = [gate for gate in wanted if gate in ("layers", "blocks", "model")]
        if readings:
            side = epibert.watch(port)
            live = LiveReference(models, inputs, mapped, described)
            rows += compare_live(side, live, mapped, gates=readings, case=case)
            with epibert.drawn_weights(port, models["float64"]):
                drawn = LiveReference({"float64": models["float64"]}, inputs, mapped, described)
                rows += compare_live(
                    side, drawn, mapped, gates=["layers"], modes=["evaluation"], case=f"{case}, drawn weights"
                )
        findings.comparisons += [row for row in rows if row.gate in wanted]


def _live_training(
    findings: Findings,
    wanted: Sequence[str],
    case: str,
    config: EpiBERTConfig,
    stored: Mapping[str, np.ndarray],
    make_port: Callable[[EpiBERTConfig], Any],
    training: PortTraining,
    say: Say,
) -> None:
    gates = [gate for gate in wanted if gate in TRAINING_GATES]
    if not gates:
        return
    findings.not_compared.append(
        NotCompared(
            side=case,
            name=f"training on windows longer than {TRAINING_BINS} bins",
            reason="no weight depends on the length; dropout has the published rates where the recording had none",
        )
    )
    with _timed(findings, f"{case}, training", say):
        findings.comparisons += live_training.compare_live_training(
            config, stored, make_port, gates=gates, training=training, case=case, say=say
        )
        table = RAMPAGE_TABLE if any(path.startswith(RNA_HEAD) for path in stored) else TABLE
        findings.not_compared += not_compared_gradients(tensor_pairs(config, table), case=case)


def _functions(
    findings: Findings,
    wanted: Sequence[str],
    goldens: Path,
    reference: References,
    training: PortTraining,
    say: Say,
) -> None:
    """Losses, metrics and schedule, which belong to no case."""
    if "losses" not in wanted:
        return
    with _timed(findings, "losses and metrics", say):
        rows: list[Comparison] = []
        if reference != "live":
            path = goldens / "functions.h5"
            findings.sources["functions.h5"] = hash_file(path)
            rows += recorded_functions.compare_recorded_functions(path, training, case="functions recorded")
            findings.not_compared.append(
                NotCompared(
                    side="functions recorded",
                    name="float32 values of losses, sums inside metrics, the two helpers that do not stream",
                    reason="one rounded number is one draw; results are made of the sums; nothing uses the helpers",
                )
            )
        if reference != "recorded":
            rows += live_functions.compare_losses(training, case="functions live")
            rows += live_functions.compare_metrics(training, case="functions live")
        findings.comparisons += [row for row in rows if row.gate in wanted]


def _finetuning_functions(
    findings: Findings, wanted: Sequence[str], reference: References, training: PortTraining, say: Say
) -> None:
    """Losses and metrics that the fine-tuning model alone has."""
    if "losses" not in wanted or reference == "recorded":
        return
    with _timed(findings, "losses and metrics of fine-tuning", say):
        findings.comparisons += [row for row in _finetuning_rows(training, "functions live") if row.gate in wanted]


def _finetuning_rows(training: PortTraining, case: str = "") -> list[Comparison]:
    return [
        *live_functions.compare_finetuning_losses(training, case=case),
        *live_functions.compare_gene_metrics(training, case=case),
    ]


def _data(findings: Findings, folder: Path, say: Say) -> None:
    """Records, draws and examples, which belong to no case either."""
    with _timed(findings, "data recorded", say):
        for path in (folder / epibert_data.RECORDING, *(folder / f"{kind}.tfr" for kind in epibert_data.KINDS)):
            findings.sources[f"data/{path.name}"] = hash_file(path)
        findings.comparisons += epibert_data.compare_recorded_data(folder)
        findings.not_compared += epibert_data.not_compared_data()


def _recorded_training(
    findings: Findings,
    name: str,
    port: Trunk,
    folder: Path,
    inputs: Inputs,
    targets: Targets,
    training: PortTraining,
) -> list[Comparison]:
    path, case = folder / "train.h5", f"{name} recorded"
    findings.sources[f"{name}/train.h5"] = hash_file(path)
    variants = RECORDED_VARIANTS[name]
    findings.not_compared += recorded_training.not_compared_recorded(case, variants, path)
    rows: list[Comparison] = []
    for variant in variants:
        rows += recorded_training.compare_recorded_training(
            port, variant, path, inputs, targets, training=training, case=case
        )
    return rows


def _finetuning_case(
    findings: Findings, wanted: Sequence[str], folder: Path, training: PortTraining, say: Say, device: str
) -> None:
    """Recorded training of the fine-tuning model."""
    case = f"{folder.name} recorded"
    with _timed(findings, case, say):
        config, checkpoint = load_case(folder)
        recording = read_goldens(folder / "forward.h5", name="recorded")
        projection, rotary = epibert.recorded_constants(recording)
        port = EpiBERTRampage(config)
        transplant(checkpoint, port, constants=(projection, rotary, recording.name))
        port.to(device)
        inputs, targets = epibert.recorded_inputs(recording), recorded_targets(recording)
        findings.sources[f"{folder.name}/forward.h5"] = hash_file(folder / "forward.h5")
        rows = _recorded_training(findings, folder.name, port, folder, inputs, targets, training)
        findings.comparisons += [row for row in rows if row.gate in wanted]


def _convergence(findings: Findings, prepare_port: PreparePort | None, say: Say, *, finetuning: bool) -> None:
    """Whole training runs, made only if everything before is proven: else the gate is blocked without them."""
    before = GATES[: GATES.index(CONVERGENCE)]
    gates = judge(findings.comparisons, requested=before)
    if all(gates[name].status is GateStatus.PASSED for name in before):
        experiment = rampage_convergence.finetuning() if finetuning else PRETRAINING
        with _timed(findings, CONVERGENCE, say):
            runs, rows = run_convergence(say=say, prepare_port=prepare_port, experiment=experiment)
            findings.comparisons += rows
            findings.runs += runs
            seeds = sorted({run.seed for run in runs})
            findings.equivalences += find_equivalences(runs, margins(experiment=experiment), seeds=seeds).values()


@contextlib.contextmanager
def _exact_products(device: str) -> Iterator[None]:
    """Products of float32 numbers in float32: cuDNN's default is TF32, which has ten bits."""
    if device == "cpu":
        yield
        return
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept)


class _timed:
    """Says what is going on and notes how long it took."""

    def __init__(self, findings: Findings, name: str, say: Say) -> None:
        self.findings, self.name, self.say = findings, name, say

    def __enter__(self) -> None:
        self.say(f"comparing {self.name}")
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.findings.seconds[self.name] = time.perf_counter() - self.started
