"""Runs all faults and clean runs, in several processes, and keeps every result as soon as it is there.

A result lies in a file of its own, under a fingerprint of everything that it depends on: the sources of all packages,
the recorded numbers, the versions of what computes, the machine. A campaign that was killed goes on where it was; one
of the same content reads what is there; after any change nothing of it is found. A file that was edited or cut short is
no result, and its part is done again.

Each part starts from the same random state and one thread, whichever process does it, so the order is of no matter.
"""

import dataclasses
import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

from parity.attack.fault import Fault
from parity.attack.records import Campaign, CleanRun, Outcome, Sensitivity
from parity.attack.rules import Verdict
from parity.environment import describe_environment
from parity.ledger import content, fingerprint
from parity.records import plain

CONFIGURATIONS, SHARING = 50, 200
"""Of every so many clean runs, by seed, the configurations are so many, in turn: one process does all of a
configuration, since it takes longer to make models than to run them. Weights and inputs are those of the run alone."""

TASKS_OF_A_PROCESS = 120
"""Then another one takes over: TensorFlow keeps something of every model that was built."""

FAULT, CLEAN, SENSITIVITY = "fault", "clean", "sensitivity"
Say = Callable[[str], None]


class Target(Protocol):
    """A pair of models that can be attacked. It is made by name, once in every process."""

    faults: Mapping[str, Fault]

    def attack(self, fault: Fault, *, rules: bool) -> Outcome:
        """Judges one fault; with ``rules`` by the rules of others too."""
        ...

    def spare(self, seed: int, *, configuration: int, rules: bool) -> CleanRun:
        """Judges one port without a fault, of a configuration of which it may keep what takes long to make."""
        ...

    def sensitivity(self) -> Sequence[Sensitivity]:
        """The smallest perturbation of each layer that is seen."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One unit of work.

    Attributes:
        kind: ``fault``, ``clean`` or ``sensitivity``.
        name: Name of the fault, seed of the clean run.
        rules: Whether the rules of others judge as well.
    """

    kind: str
    name: str = ""
    rules: bool = False

    @property
    def file(self) -> str:
        """Name of the file that holds the result."""
        digest = hashlib.sha256(f"{self.kind}|{self.name}|{self.rules}".encode()).hexdigest()[:16]
        return f"{self.kind}-{digest}.json"


def run_campaign(
    target: str,
    *,
    names: Sequence[str],
    clean: int,
    first_seed: int = 0,
    sensitivity: bool,
    folder: Path,
    jobs: int = 1,
    rules: bool = False,
    say: Say = lambda text: None,
) -> Campaign:
    """Does every part that is not done yet, and returns all results.

    Args:
        target: ``module:name`` of what makes the target.
        names: Faults to inject.
        clean: Number of clean runs.
        first_seed: Seed of the first of them; the others have those that follow.
        sensitivity: Whether to measure the smallest visible perturbation of each layer.
        folder: Where results are kept.
        jobs: Processes.
        rules: Whether the rules of others judge every run as well.
        say: Told what is going on.

    Raises:
        OSError: The folder cannot be written to.
        Exception: What a part raised that is a fault of this program, after the results of all others were kept.
    """
    started = time.perf_counter()
    described = content()
    store = Store(folder / fingerprint(described)[:16], described)
    parts = [Part(kind=FAULT, name=name, rules=rules) for name in names]
    parts += [Part(kind=CLEAN, name=str(seed), rules=rules) for seed in range(first_seed, first_seed + clean)]
    parts += [Part(kind=SENSITIVITY)] if sensitivity else []
    results = {part: found for part in parts if (found := store.read(part)) is not None}
    reused = len(results)
    waiting = _tasks([part for part in parts if part not in results])
    for count, (part, found) in enumerate(_do(target, waiting, jobs), start=1):
        store.write(part, found)
        results[part] = found
        say(f"{reused + count} of {len(parts)} parts, the last: {part.kind} {part.name}")
    return Campaign(
        outcomes=tuple(_outcome(results[part]) for part in parts if part.kind == FAULT),
        clean=tuple(_clean(results[part]) for part in parts if part.kind == CLEAN),
        sensitivity=tuple(
            Sensitivity(**row) for part in parts if part.kind == SENSITIVITY for row in results[part]["rows"]
        ),
        environment={**describe_environment(), "processes": jobs, "content": store.fingerprint},
        seconds=time.perf_counter() - started,
        reused=reused,
    )


# --- results ---------------------------------------------------------------------------------------------------------


class Store:
    """Results of one content, a file each.

    Args:
        folder: Where they lie; made when the first is written.
        described: What they depend on.
    """

    def __init__(self, folder: Path, described: Mapping[str, Any]) -> None:
        self.folder = folder
        self.fingerprint = fingerprint(dict(described))

    def read(self, part: Part) -> dict[str, Any] | None:
        """The result of a part; None when there is none that can be trusted."""
        try:
            entry = json.loads((self.folder / part.file).read_text(encoding="utf-8"))
            intact = entry["seal"] == self._seal(part, entry["result"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return entry["result"] if intact else None

    def write(self, part: Part, result: Mapping[str, Any]) -> None:
        """Keeps a result, at once and as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = {"part": dataclasses.asdict(part), "result": result, "seal": self._seal(part, result)}
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entry, file, indent=1, allow_nan=False)
        Path(name).replace(self.folder / part.file)

    def _seal(self, part: Part, result: Any) -> str:
        """Tells an edited or truncated result, or one of another content, from the one that was written."""
        text = json.dumps([self.fingerprint, dataclasses.asdict(part), result], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _outcome(result: Mapping[str, Any]) -> Outcome:
    judged = {name: _verdicts(result[name]) for name in ("verdicts", "sound")}
    fields = {**result, "effect": float(result["effect"]), **judged}
    return Outcome(**{**fields, **_tuples(result, "expected", "named")})


def _clean(result: Mapping[str, Any]) -> CleanRun:
    return CleanRun(
        **{**result, "verdicts": _verdicts(result["verdicts"]), **_tuples(result, "alarms", "second_looks")}
    )


def _tuples(result: Mapping[str, Any], *names: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(result[name]) for name in names}


def _verdicts(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Verdict]:
    return {rule: Verdict(**verdict) for rule, verdict in found.items()}


# --- processes -------------------------------------------------------------------------------------------------------

_target: Any = None


Task = tuple[Part, ...]
"""Parts that one process does one after the other."""


def _tasks(parts: Iterable[Part]) -> list[Task]:
    """All parts: clean runs by configuration, every other alone; the longest first, so that no process ends alone."""
    tasks: dict[tuple[str, str | int], list[Part]] = {}
    for part in parts:
        of = _configuration(part) if part.kind == CLEAN else part.name
        tasks.setdefault((part.kind, of), []).append(part)
    order = (SENSITIVITY, CLEAN, FAULT)
    return [tuple(tasks[key]) for key in sorted(tasks, key=lambda key: (order.index(key[0]), -len(tasks[key])))]


def _configuration(part: Part) -> int:
    block, run = divmod(int(part.name), SHARING)
    return block * CONFIGURATIONS + run % CONFIGURATIONS


def _do(target: str, tasks: Sequence[Task], jobs: int) -> Iterable[tuple[Part, dict[str, Any]]]:
    """Every part and its result, as they are done; what raised is raised at the end."""
    if not tasks:
        return
    # TensorFlow must not be forked, and it counts threads when it is first imported: even one job has its process.
    context = multiprocessing.get_context("spawn")
    failed: BaseException | None = None
    # Fresh processes from time to time. Not by max_tasks_per_child: Python 3.11 takes every task that was done for an
    # idle process, starts no other when one ends, and waits for ever when the last has.
    for some in _portions(tasks, jobs * TASKS_OF_A_PROCESS):
        with ProcessPoolExecutor(min(jobs, len(some)), context, initializer=_start, initargs=(target,)) as pool:
            futures = {pool.submit(_work, task): task for task in some}
            for future in as_completed(futures):
                if (error := future.exception()) is not None:
                    failed = failed or error
                    continue
                done, error = future.result()
                failed = failed or error
                yield from done
    if failed is not None:
        raise failed


def _portions(tasks: Sequence[Task], size: int) -> list[Sequence[Task]]:
    return [tasks[start : start + size] for start in range(0, len(tasks), size)]


def _start(target: str) -> None:
    """Makes the target. One thread a process: sums then round alike however many processes there are."""
    global _target
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    import torch

    torch.set_num_threads(1)
    module, _, name = target.partition(":")
    _target = getattr(importlib.import_module(module), name)()


def _work(task: Task) -> tuple[list[tuple[Part, dict[str, Any]]], Exception | None]:
    """The results of a task, and what one of its parts raised: the others are done all the same."""
    done, failed = [], None
    for part in task:
        try:
            done.append((part, _result(part)))
        except Exception as error:  # noqa: BLE001  raised again when all others are done
            error.add_note(traceback.format_exc())
            failed = failed or error
    return done, failed


def _result(part: Part) -> dict[str, Any]:
    """One result as plain data."""
    import torch

    torch.manual_seed(0)
    if part.kind == FAULT:
        return plain(_target.attack(_target.faults[part.name], rules=part.rules))
    if part.kind == CLEAN:
        return plain(_target.spare(int(part.name), configuration=_configuration(part), rules=part.rules))
    return {"rows": plain(list(_target.sensitivity()))}
