"""The command line: ``epibert parity | record | layer | attack | weights ... | data ... | train ... | bench``.

Exit status 0: proven, or done. 1: not proven, or different. 2: wrong use or bad input, with one line that says what.
"""

import contextlib
import dataclasses
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace, auto_parser
from rich.console import Console
from rich.markup import escape

PROVEN, NOT_PROVEN, WRONG_USE = 0, 1, 2
SCRIPTS = "repro"
"""Folder, below that of the report, of the scripts that show one layer's difference each."""


def parity(
    checkpoint: str | None = None,
    config: str | None = None,
    gates: str | None = None,
    out: str = "out/parity",
    reference: str = "both",
    bins: int = 64,
    batch: int = 2,
    goldens: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    against: str | None = None,
    attack: str | None = None,
    port: str | None = None,
) -> int:
    """Climb the ladder: does the port compute what the original computes, layer by layer?

    Writes parity.json, junit.xml, summary.md and report.html, and for each layer at fault a script that shows its
    difference with NumPy and PyTorch alone. Exit status 0: every gate asked for is proven; 1: not; 2: bad input.

    Args:
        checkpoint: A checkpoint of the original to verify on (prefix, directory, SavedModel or .h5); by default the
            recorded cases of the repository.
        config: JSON file with constructor arguments that the checkpoint's shapes do not tell, such as the seed. Without
            a checkpoint: rampage_tiny climbs with the recorded cases of the fine-tuning model instead of those of
            pre-training.
        gates: Rungs to prove, separated by commas, of weights, constants, layers, blocks, model, data, losses,
            gradients, optimizer, state, trajectory, convergence; the ones before them are climbed as well. By default
            all up to trajectory for the recorded cases, and up to model for a checkpoint of your own.
        out: Folder for the four files, and for the scripts in its folder repro; those of an earlier run are replaced.
        reference: Compare with numbers recorded from the original (recorded), with the living TensorFlow reference
            (live), or with both. A checkpoint of your own has only a living one. Or a file that epibert record wrote:
            the port is held against it, and no TensorFlow is needed.
        bins: Window for a checkpoint of your own, in 128-bp bins; no weight depends on its length.
        batch: Number of synthetic examples for a checkpoint of your own.
        goldens: Folder of the recorded cases; that of the repository by default.
        device: Where the port computes.
        against: parity.json of an earlier run. What changed is printed and traced to port, reference, weights,
            recordings, harness or environment by their hashes; a limit that grew without a new reason, and what is not
            compared any more, make the exit status 1.
        attack: attack.json of epibert attack, to be shown in the report.
        port: With a recording of a model of your own as reference: file.py:function, which returns its port.
    """
    from parity import workers

    jobs = workers.jobs()
    asked = checkpoint, config, gates, goldens, against, attack, port
    if jobs > 1 and reference == "both" and device == "cpu" and asked == (None,) * len(asked):
        # Nothing that could be wrong was asked for: workers get ready while this process imports what it needs itself.
        workers.prepare(workers.threads_of(jobs), reference=True)
    from parity.drift import NotAResult, compare_results, read_result
    from parity.environment import describe_environment
    from parity.ledger import Ledger
    from parity.pairs.epibert_repro import write_scripts
    from parity.pairs.epibert_run import GOLDENS, UsageError, run, tensorflow_installed
    from parity.pairs.record_command import verify_recorded, without_scripts
    from parity.report.campaign import NotACampaignError, read_campaign
    from parity.report.junit import write_junit
    from parity.report.markdown import write_markdown
    from parity.report.page import check_installed, write_html
    from parity.report.summary import printable
    from parity.report.terminal import print_result
    from parity.repro import remove_repros

    console = Console()
    # Whether the files can be made and written is found out before the minutes of work, not after.
    try:
        check_installed()
    except ImportError as error:
        raise UsageError(str(error)) from None
    try:
        earlier = None if against is None else read_result(against)
        campaign = None if attack is None else read_campaign(attack, describe_environment())
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None
    except (NotAResult, NotACampaignError) as error:
        raise UsageError(str(error)) from None
    with _files(out) as scratch:
        wanted = None if gates is None else [name for name in gates.replace(",", " ").split() if name]
        with console.status("starting") as status:

            def say(text: str) -> None:
                status.update(escape(text))

            if reference not in ("both", "live", "recorded"):
                _check_recorded(config, device, goldens)
                recorded = verify_recorded(reference, port=port, checkpoint=checkpoint, gates=wanted, say=say)
                result = without_scripts(recorded)
            elif port is not None:
                raise UsageError("--port belongs to --reference RECORDING: a recording of a model of your own")
            else:
                result = run(
                    checkpoint=checkpoint,
                    config=config,
                    gates=wanted,
                    reference="live" if checkpoint is not None and reference == "both" else reference,
                    goldens=GOLDENS if goldens is None else goldens,
                    bins=bins,
                    batch=batch,
                    jobs=jobs,
                    device=device,
                    ledger=Ledger(goldens=Path(GOLDENS if goldens is None else goldens)),
                    say=say,
                )
                if result.culprit_rows and tensorflow_installed():
                    say("writing scripts for the culprits")
                    result = write_scripts(
                        result,
                        scratch / SCRIPTS,
                        checkpoint=checkpoint,
                        config=config,
                        bins=bins,
                        batch=batch,
                        goldens=GOLDENS if goldens is None else goldens,
                    )
        if campaign is not None:
            result = dataclasses.replace(result, campaign=campaign)
        remove_repros(Path(out) / SCRIPTS)
        result.to_json(scratch / "parity.json")
        write_junit(result, scratch / "junit.xml")
        write_markdown(result, scratch / "summary.md")
        write_html(result, scratch / "report.html")
    print_result(result, console)
    drift = None if earlier is None else compare_results(earlier, result.to_dict())
    if drift is not None:
        console.print(f"Against {printable(str(against))}: {drift}", soft_wrap=True, markup=False, highlight=False)
    scripts = [culprit.script for culprit in result.culprit_rows if culprit.script]
    more = f", {len(scripts)} in {SCRIPTS}/" if scripts else ""
    console.print(
        f"written to {out}: report.html, parity.json, junit.xml, summary.md{more}", soft_wrap=True, markup=False
    )
    kept = drift is None or not (drift.loosened or drift.vanished)
    return PROVEN if result.passed and kept else NOT_PROVEN


def _check_recorded(config: str | None, device: str, goldens: str | None) -> None:
    from parity.pairs.epibert_run import UsageError

    if config is not None or goldens is not None or device != "cpu":
        raise UsageError("a recording holds its configuration, and is compared on the processor: leave the rest out")


@contextlib.contextmanager
def _files(out: str) -> Iterator[Path]:
    """A folder to write into; its files are moved to ``out`` when all are there, replacing those of an earlier run."""
    from parity.pairs.epibert_run import UsageError

    new = [folder for folder in (Path(out), *Path(out).parents) if not folder.exists()]
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=out, prefix=".writing-")
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from None
    try:
        with scratch as name:
            yield Path(name)
            for path in sorted(Path(name).rglob("*")):
                target = Path(out) / path.relative_to(name)
                if path.is_dir():
                    target.mkdir(exist_ok=True)
                else:
                    path.replace(target)
    finally:
        for folder in new:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def attack(
    only: Sequence[str] = (),
    kind: Literal["model", "constants", "mapping", "training", "data"] | None = None,
    clean: int | None = None,
    first_seed: int = 0,
    jobs: int | None = None,
    rules: bool = False,
    out: str = "out/attack",
    list: bool = False,
) -> int:
    """Does the harness catch faults? Break the port on purpose, one fault at a time, and see what the ladder says.

    Writes attack.json and attack.svg. What was judged is kept beside them: a run that was ended goes on, and one of the
    same sources, recordings and versions has nothing to do. Exit status 0: every fault whose effect exceeds the
    rounding of float64 is caught, at least 95 % of those caught on the right rung and with the right layer named first,
    and no port without a fault is accused; 1: not; 2: bad input.

    Args:
        only: Names of faults, one or several. The smallest perturbations of layers are then left out, and so are clean
            runs unless --clean is given.
        kind: Faults of one kind alone; the rest as for --only.
        clean: Ports without a fault to judge, each with weights and inputs of its own; 200 share 50 small
            configurations. 200 by default.
        first_seed: Of the ports without a fault. 200 gives others than the default, configurations too.
        jobs: Processes; as many as there are processors by default.
        rules: Let the decision rules of other projects judge every run as well, and write head_to_head.json, .md, .svg.
        out: Folder for the files.
        list: Print the catalogue and do nothing else.
    """
    from parity.attack.campaign import run_campaign
    from parity.attack.report import list_faults, print_campaign, write
    from parity.pairs.epibert_faults.catalogue import CATALOGUE
    from parity.pairs.epibert_faults.target import TARGET
    from parity.pairs.epibert_run import UsageError, tensorflow_installed

    console = Console()
    unknown = [name for name in only if name not in CATALOGUE]
    if unknown:
        raise UsageError(f"no fault of the name {unknown[0]!r}; epibert attack --list prints them all")
    clean = (200 if not only and kind is None else 0) if clean is None else clean
    if min(clean, first_seed) < 0 or (jobs is not None and jobs < 1):
        raise UsageError("--clean and --first_seed must be at least 0 and --jobs at least 1")
    chosen = [f for f in CATALOGUE.values() if (not only or f.name in only) and kind in (None, f.kind)]
    if list:
        list_faults(chosen, console)
        return PROVEN
    if not chosen:
        raise UsageError(f"none of these faults is of the kind {kind}")
    if not tensorflow_installed():
        raise UsageError("the reference needs TensorFlow: install the extra 'reference'")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from None
    with console.status("starting") as status:
        campaign = run_campaign(
            TARGET,
            names=[fault.name for fault in chosen],
            clean=clean,
            first_seed=first_seed,
            sensitivity=not only and kind is None,
            folder=Path(out) / "results",
            jobs=jobs or os.cpu_count() or 1,
            rules=rules,
            say=lambda text: status.update(escape(text)),
        )
    print_campaign(campaign, console)
    with _files(out) as scratch:
        names = write(campaign, scratch)
    console.print(f"written to {out}: {', '.join(names)}", soft_wrap=True, markup=False)
    return PROVEN if campaign.passed else NOT_PROVEN


def _attack_arguments(given: Sequence[str]) -> list[str]:
    """Names after every --only as one list, and flags that need no value, in the form that the parser understands.

    Raises:
        UsageError: An --only has no name, or a flag is followed by something else.
    """
    from parity.pairs.epibert_run import UsageError

    arguments, names, waiting = [], [], [*given]
    while waiting:
        argument = waiting.pop(0)
        option, equals, value = argument.partition("=")
        if option == "--only":
            found = [value] if equals else []
            if value.startswith("["):
                with contextlib.suppress(ValueError):
                    found = json.loads(value)
            while waiting and not waiting[0].startswith("--"):
                found.append(waiting.pop(0))
            if not all(found) or not found:
                raise UsageError("--only needs the name of a fault; epibert attack --list prints them all")
            names += found
            continue
        if argument in ("--list", "--rules"):
            value = "true" if not waiting or waiting[0].startswith("-") else waiting.pop(0)
            if value not in ("true", "false"):
                raise UsageError(f"{argument} takes true or false, or nothing after it, not {value!r}")
            argument = f"{argument}={value}"
        arguments.append(argument)
    return [*arguments, f"--only={json.dumps(names)}"] if names else arguments


def bench(
    config: Literal["full", "half", "quarter", "mid", "tiny"] = "full",
    repeats: int = 3,
    rounds: int = 1,
    out: str = "out/bench",
    parts: Sequence[Literal["forward", "training", "lengths", "transplant", "data", "harness"]] = (
        "forward",
        "training",
        "transplant",
    ),
    models: Sequence[Literal["pretrain", "rampage"]] = ("pretrain",),
    precisions: Sequence[Literal["float32", "bfloat16"]] = ("float32", "bfloat16"),
    batches: Sequence[int] = (1,),
    compiled: bool = False,
) -> int:
    """Measure reference and port in one run on this machine, and what belongs to the port alone.

    Exit status 1 when a ratio of reference and port falls short of the committed one (benchmarks/ratios.json) or, at
    full size, of 1.

    Args:
        config: Size of the model: the published one, the same on a half (needs 23 GB in training), on a quarter (16 GB)
            or on an eighth of the window, or a tiny one to try the command out. Training of the published size is
            measured on the quarter, because the reference has no activation checkpointing.
        repeats: Timed passes in each process.
        rounds: Fresh processes of each kind.
        out: Folder for bench.json and pictures.
        parts: What to measure: reference against port in a forward pass or a training step, the port's time by length
            of the window, transplanting a full checkpoint, loading data, the ladder.
        models: Which models, for forward and training.
        precisions: In which precisions.
        batches: With how many examples at a time.
        compiled: Also with torch.compile; needs a C++ compiler.
    """
    from benchmarks.command import run_benchmarks
    from parity.pairs.epibert_run import UsageError, tensorflow_installed

    if repeats < 1 or rounds < 1 or not batches or min(batches) < 1:
        raise UsageError("--repeats, --rounds and --batches must be at least 1")
    if not parts or not models or not precisions:
        raise UsageError("--parts, --models and --precisions must not be empty")
    if not tensorflow_installed():
        raise UsageError("the reference needs TensorFlow: install the extra 'reference'")
    with _files(out) as scratch:
        try:
            status = run_benchmarks(
                config,
                repeats,
                rounds,
                scratch / "bench.json",
                parts=parts,
                models=models,
                precisions=precisions,
                batches=batches,
                compiled=compiled,
            )
        except RuntimeError as error:  # a process that died, or outputs that are not the same function's
            Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"epibert: error: {error}")
            return NOT_PROVEN
    Console(markup=False, soft_wrap=True, highlight=False).print(f"written to {out}: bench.json")
    return status


def train(arguments: Sequence[str]) -> int:
    """Train, validate, test and predict in PyTorch Lightning: `epibert train fit --help`.

    Args:
        arguments: What follows: fit, validate, test or predict, and their options (LightningCLI).
    """
    from torch_impl.training_command import main as run
    from weights import CheckpointError
    from weights.initialize import InitializeFrom

    return run(arguments, initializer=InitializeFrom, program="epibert train", errors=(CheckpointError,))


def layer(arguments: Sequence[str]) -> int:
    """Property-test one layer: `epibert layer --help`.

    Args:
        arguments: What follows: the layer's name and options.
    """
    try:
        from parity.pairs.layer_command import main as run
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        reason = "testing a layer needs Hypothesis: install the extra 'layer'"
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"epibert: error: {reason}")
        return WRONG_USE
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return 130


def _layer(arguments: list[str]) -> int:
    """Property-test one layer, starting in seconds; see `epibert layer --help`.

    Args:
        arguments: The layer's name and options.
    """
    return layer(arguments)


def _train(arguments: list[str]) -> int:
    """Train, validate, test and predict in PyTorch Lightning; see `epibert train --help`.

    Args:
        arguments: fit, validate, test or predict, and their options.
    """
    return train(arguments)


def commands() -> dict[str, Any]:
    """The subcommands."""
    from parity.pairs.record_command import record
    from torch_impl.data import command as data
    from weights.command import diff, export_command, inspect, transfer_command, transplant_command

    weights = {
        "_help": "Checkpoints between TensorFlow and PyTorch.",
        "inspect": inspect,
        "transplant": transplant_command,
        "transfer": transfer_command,
        "export": export_command,
        "diff": diff,
    }
    records = {
        "_help": "Training records: from TFRecords to HDF5 and back.",
        "convert": data.convert,
        "verify": data.verify,
        "inspect": data.inspect,
        "export": data.export,
    }
    return {
        "parity": parity,
        "record": record,
        "layer": _layer,
        "attack": attack,
        "weights": weights,
        "data": records,
        "train": _train,
        "bench": bench,
    }


def _call(component: Any, arguments: Namespace) -> int:
    """Calls the command that was named; the call of jsonargparse itself drops an argument named ``config``."""
    if isinstance(component, Mapping):
        name = arguments["subcommand"]
        return _call(component[name], arguments[name])
    return component(**{name: arguments[name] for name in inspect.signature(component).parameters})


def main(arguments: Sequence[str] | None = None, components: Any = None, program: str = "epibert") -> None:
    """Runs the command line and exits with its status.

    Args:
        arguments: Command-line arguments; those of the process when None.
        components: Subcommands or one command; all when None.
        program: Name shown in the help.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    given = sys.argv[1:] if arguments is None else list(arguments)
    if components is None and given[:1] == ["layer"]:
        # Who works on a layer runs this again and again, and should not wait for what the other commands need.
        sys.exit(layer(given[1:]))
    from parity.pairs.epibert_run import UsageError
    from torch_impl.data.records import DataError
    from weights import CheckpointError

    if components is None and given[:1] == ["train"]:
        # LightningCLI reads its own command line, and needs none of what the others do.
        sys.exit(train(given[1:]))
    try:
        if components is None and given[:1] == ["attack"]:
            given = _attack_arguments(given)
        components = commands() if components is None else components
        parser = auto_parser(
            components,
            prog=program,
            description="EpiBERT in PyTorch, with proof that it computes what the TensorFlow original computes. "
            "Exit status: 0 proven or done, 1 not proven or different, 2 wrong use or bad input.",
        )
        status = _call(components, parser.parse_args(given))
    except (CheckpointError, DataError, UsageError) as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"{program}: error: {error}")
        status = WRONG_USE
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
