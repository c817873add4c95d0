"""``epibert record``, and ``epibert parity --reference recording.h5``."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from parity import recorder
from parity.inference.infer import infer
from parity.inference.weight_map import load_weights
from parity.recording import NotARecording, Recording
from parity.records import Result
from parity.verify import verify
from parity.verify_recording import GATES, TRAINING_GATES


class RecordError(ValueError):
    """Wrong use, in one line for the user."""


def run_recorder(
    python: str, place: str, inputs: str, out: str, options: Sequence[str], say: Callable[[str], None]
) -> str:
    """Runs the recorder in another Python.

    Args:
        python: Interpreter.
        place: ``file.py:function``.
        inputs: ``.npz`` file.
        out: File to write.
        options: Further arguments of the recorder.
        say: Told what is going on.

    Returns:
        The recording's hash.

    Raises:
        RecordError: The interpreter cannot be run, or what the recorder says.
    """
    with tempfile.TemporaryDirectory(prefix="epibert-record-") as folder:
        # A copy in a folder of its own: beside the original lie modules whose names mean something else elsewhere.
        script = shutil.copy(recorder.__file__, folder)
        command = [python, script, place, "--inputs", inputs, "--out", out, *options]
        lines: list[str] = []
        try:
            with (
                (Path(folder) / "errors").open("w+", encoding="utf-8", errors="replace") as errors,
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
            ):
                for line in process.stdout or ():
                    lines.append(line.strip())
                    say(line.strip())
                status = process.wait()
                errors.seek(0)
                complaints = [line.strip() for line in errors if line.strip()]
        except OSError as error:
            raise RecordError(f"cannot run {python}: {error.strerror}") from None
    if status != 0 or not lines or not lines[-1].startswith("sha256 "):
        said = [line for line in complaints if line.startswith("recorder: error: ")]
        reason = said[-1].removeprefix("recorder: error: ") if said else (complaints or ["it said nothing"])[-1]
        raise RecordError(reason if said else f"the recorder in {python} ended with status {status}: {reason}")
    return lines[-1].removeprefix("sha256 ")


def record(
    model: str | None = None,
    inputs: str | None = None,
    out: str = "recording.h5",
    python: str | None = None,
    arguments: str | None = None,
    precisions: str = "float64,float32",
    modes: str = "evaluation,training",
    steps: int = recorder.STEPS,
    looks: bool = False,
    repo: str | None = None,
    checkpoint: str | None = None,
    config: str | None = None,
    bins: int = 64,
    batch: int = 2,
) -> int:
    """Write down what a Keras model computes, in the Python in which it lives: weights, every layer, gradients, steps.

    That Python needs TensorFlow 2.8 or newer, NumPy and h5py, and nothing of ours. The port is then compared with the
    recording, here or elsewhere, with no TensorFlow: epibert parity --reference recording.h5. On a machine that cannot
    be reached from here, copy parity/recorder.py to it and run it there. Exit status 0: recorded; 2: wrong use.

    Args:
        model: What to record: file.py:function, which returns the model. The file may also define input_names, and
            constants(model) for what no variable holds.
        inputs: .npz file with the model's arguments, batch first, by the names of the model's inputs.
        out: File to write.
        python: The interpreter to record in; this one by default.
        arguments: JSON file with keyword arguments of the function.
        precisions: Of float64, float32, bfloat16, separated by commas. What cannot be had is named in the recording.
        modes: evaluation, or evaluation,training.
        steps: Training steps, plain gradient descent on a loss without targets; 0 for none, and for no gradients.
        looks: Also record all passes on 16 more inputs, the given ones in other orders, on which a rounding error that
            is too large by chance is measured again. The recording grows to seventeen times its size.
        repo: Record the published EpiBERT instead, from this clone of its repository.
        checkpoint: Its weights: prefix or folder of a TensorFlow checkpoint.
        config: JSON file with constructor arguments that the checkpoint's shapes do not tell.
        bins: Its window, in 128-bp bins.
        batch: Number of its synthetic examples, where no --inputs are given.
    """
    from parity.pairs import epibert_recording
    from parity.pairs.epibert_run import UsageError

    console = Console(stderr=True)
    options = ["--precisions", precisions, "--modes", modes, "--steps", str(steps), *(["--looks"] if looks else [])]
    with tempfile.TemporaryDirectory(prefix="epibert-record-") as folder:
        if repo is not None:
            if model is not None or arguments is not None:
                raise UsageError("--repo names the model: leave --model and --arguments out")
            model, made, arguments = prepare_original(repo, checkpoint, config, bins, batch, Path(folder))
            inputs = made if inputs is None else inputs
        elif checkpoint is not None or config is not None:
            raise UsageError("--checkpoint and --config belong to --repo; a function takes --arguments")
        if model is None or inputs is None:
            raise UsageError("what is to be recorded? --model file.py:function --inputs inputs.npz, or --repo DIR")
        if arguments is not None:
            options += ["--arguments", arguments]
        with console.status("starting") as status:
            try:
                digest = run_recorder(
                    sys.executable if python is None else python, model, inputs, out, options, status.update
                )
                recording = Recording(out)
            except (RecordError, NotARecording) as error:
                raise UsageError(str(error)) from None
    plain = Console(markup=False, soft_wrap=True, highlight=False)
    plain.print(f"written to {out}: {recording.described}")
    plain.print(f"sha256 {digest}")
    # A function of someone else's may have an argument of the same name.
    untold = () if repo is None else epibert_recording.left_out(recording)
    for row in (*recording.not_compared(), *untold):
        plain.print(f"not recorded: {row.name}: {row.reason}")
    return 0


def prepare_original(
    repo: str, checkpoint: str | None, config_file: str | None, bins: int, batch: int, folder: Path
) -> tuple[str, str, str]:
    """The published EpiBERT for the recorder: its function, inputs and arguments.

    Raises:
        UsageError: There is no such folder, or nothing tells the model's configuration.
        CheckpointError: The checkpoint cannot be read.
    """
    from parity.pairs import epibert, epibert_original
    from parity.pairs.epibert_run import INPUT_SEED, UsageError, left_out, open_checkpoint
    from weights.mapping import is_fine_tuning

    if not Path(repo).is_dir():
        raise UsageError(f"{repo}: no such folder")
    if checkpoint is None:
        raise UsageError("--repo needs --checkpoint: the weights that are to be recorded")
    stored, whole, config = open_checkpoint(checkpoint, config_file, bins, batch)
    prefixes = [str(path.resolve().with_suffix("")) for path in stored.files if path.suffix == ".index"]
    if len(prefixes) != 1 or "variables" in Path(prefixes[0]).parts:
        raise UsageError(f"{checkpoint} is no checkpoint of tf.train.Checkpoint, which the published code restores")
    (prefix,) = prefixes
    finetuning = is_fine_tuning(stored, config)
    given: dict[str, Any] = epibert.original_arguments(config)
    if finetuning:
        given["predict_atac"] = config.predict_atac
    inputs = dict(
        zip(
            epibert_original.input_names,
            epibert.synthetic_inputs(config, batch=batch, seed=INPUT_SEED),
            strict=True,
        )
    )
    np.savez(folder / "inputs.npz", allow_pickle=False, **inputs)
    arguments = {
        "repo": str(Path(repo).resolve()),
        "kind": "finetuning" if finetuning else "pretraining",
        "config": given,
        "checkpoint": prefix,
        "left_out": {row.name: row.reason for row in left_out(whole, config_file, bins)},
    }
    (folder / "arguments.json").write_text(json.dumps(arguments), encoding="utf-8")
    # In a folder of its own, as the recorder: beside it lies an epibert.py, and a clone has a package of that name.
    place = shutil.copy(epibert_original.__file__, folder)
    return f"{place}:build", str(folder / "inputs.npz"), str(folder / "arguments.json")


def verify_recorded(
    path: str,
    *,
    port: str | None = None,
    checkpoint: str | None = None,
    gates: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """A port against a recording, for the command line.

    Args:
        path: The recording.
        port: ``file.py:function``, which returns the port; EpiBERT's is made by itself.
        checkpoint: Where EpiBERT's port has its weights from; from the recording when None.
        gates: Rungs to prove; all that the recording can prove by default.
        say: Told what is going on.

    Raises:
        UsageError: The recording, the port or a gate is none.
    """
    from parity.pairs import epibert_recording
    from parity.pairs.epibert_run import UsageError
    from weights import transplant

    say("reading the recording")
    try:
        recording = Recording(path)
    except NotARecording as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        reason = f"{path}: {error.strerror}; --reference takes both, live, recorded, or a file of epibert record"
        raise UsageError(reason) from None
    known = epibert_recording.matches(recording)
    unknown = [gate for gate in gates or () if gate not in GATES]
    if unknown or (gates is not None and not gates):
        raise UsageError(f"no such gates against a recording: {unknown}; there are {', '.join(GATES)}")
    forward = GATES[: -len(TRAINING_GATES)] if known else ("weights", "layers", "model")
    trained = recording.training is not None and recording.training["precision"] == "float64"
    wanted = gates or (*forward, *(TRAINING_GATES if trained else ()))
    try:
        if port is None:
            if not known:
                raise UsageError("the recording is of a model of your own: name its port, --port file.py:function")
            module = epibert_recording.make_port(recording)
            if checkpoint is not None:
                transplant(checkpoint, module, constants="keep")
            return verify(recording, module, gates=wanted)
        if checkpoint is not None:
            raise UsageError("--port makes a port with weights of its own: leave --checkpoint out")
        module = _load(port)
        say("comparing")
        inferred = infer(recording, module)
        load_weights(module, recording, inferred.weight_map)
        return verify(recording, module, gates=wanted)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from None


def _load(place: str) -> nn.Module:
    """What a function of a user's file returns."""
    from parity.pairs.epibert_run import UsageError

    file, _, name = place.rpartition(":")
    specification = importlib.util.spec_from_file_location("port_to_verify", file) if file else None
    if specification is None or specification.loader is None or not Path(file).is_file():
        raise UsageError(f"{place}: expected file.py:function, and such a file")
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(Path(file).resolve().parent))
    try:
        specification.loader.exec_module(module)
        made = getattr(module, name)()
    except Exception as error:
        raise UsageError(f"{place}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(made, nn.Module):
        raise UsageError(f"{place} returns a {type(made).__name__}, no PyTorch module")
    return made


def without_scripts(result: Result) -> Result:
    """The result with the reason why its culprits have no scripts: those take numbers from a living reference."""
    reason = "the reference is a recording; the script takes its numbers from a living one"
    rows = tuple(dataclasses.replace(row, no_script=reason) for row in result.culprit_rows)
    return dataclasses.replace(result, culprit_rows=rows)
