"""A forward pass or a training step of reference and port: time and peak memory, in one run on one machine.

Both get the same random weights, constants, inputs and targets, and the same number of threads. Forward passes are in
evaluation mode without gradients; steps are forward, loss, backward and optimizer, with dropout, the reference's as the
graph that the original makes of it. Each way is measured in a fresh process of its own that holds one framework only,
so that its peak memory is its own. The processes take turns, so that whatever else the machine does disturbs all of
them alike. A turn does the work twice, and the second time counts: while a process waits, caches and memory that it
freed go to others. Report the ratios, which carry over to other machines better than seconds do.

    python -m benchmarks.forward [--kind training] [--config mid] [--model rampage] [--batch 2] [--repeats 2]
        [--rounds 1] [--compiled] [--checkpointed] [--apart] [--alone]
        [--out forward.json]
"""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import (
    CHECKPOINTED,
    KINDS,
    MODELS,
    SIZES,
    Kind,
    ModelName,
    SizeName,
    configuration,
    prepare,
    prepare_port,
    prepare_reference,
)

PRECISIONS = ("float32", "bfloat16")
BYTES = {"float32": 4, "bfloat16": 2}
REFERENCE_WAYS = {"forward": ("eager", "graph"), "training": ("graph",)}
# Limits of `distance`: far above the rounding of that precision. The ladder is what proves the port; this only makes
# sure that the two did the same work.
SAME_WORK = {"float32": 1e-3, "bfloat16": 3e-1}
SAME_LOSS = 0.2
"""Of steps, whose dropout draws other numbers on either side."""
# Of both sides, whose threads wait as they do where nobody says otherwise.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
PACKAGES = ("torch", "tensorflow", "tf_keras", "numpy")


def forward_benchmark(
    config: SizeName = "full",
    repeats: int = 2,
    out: str | Path | None = None,
    *,
    kind: Kind = "forward",
    model: ModelName = "pretrain",
    batch: int = 1,
    rounds: int = 1,
    threads: int = 2,
    precisions: Sequence[str] = PRECISIONS,
    compiled: bool = False,
    checkpointed: bool = False,
    apart: bool = False,
    alone: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure one forward pass, or one training step, of reference and port.

    Args:
        config: The published model (84 M parameters, 524,288 bp; the reference needs 9 GB for a forward pass), the
            same on a half, a quarter or an eighth of the window, or a tiny one.
        repeats: Timed passes in each process, each after one that warms up; the processes take turns.
        out: JSON file to write; its folder is made. None: write nothing.
        kind: ``forward`` or ``training``.
        model: ``pretrain`` or ``rampage``.
        batch: Examples at a time.
        rounds: Sets of fresh processes. Times and ratios are medians over all turns, memory the smallest peak.
        threads: Threads of each framework.
        precisions: Of ``float32`` and ``bfloat16`` (parameters in float32, activations in bfloat16).
        compiled: Measure ``torch.compile`` of the port as well; it needs a C++ compiler.
        checkpointed: Measure training with activation checkpointing of the port as well, of everything within a block
            and of all but the products.
        apart: One process after the other, for sizes of which two do not fit into memory: the ratios are not those of
            turns then.
        alone: The port without the reference, for sizes of which that does not fit; there are no ratios then.
        progress: Called with a line of text for each process.

    Returns:
        ``environment``, ``settings``, ``runs`` (one entry a process) and, in ``precisions``, for each precision the
        measured ways (``reference_eager``, ``reference_graph``, ``port_eager``, ``port_compiled``,
        ``port_checkpointed``, ``port_selective``) with ``seconds``, ``cpu_seconds`` (of all threads), ``peak_bytes``,
        ``forward_bytes`` (rise over the resident memory before the first pass), and ``share_of_products`` and
        ``share_of_memory`` (of the rates of ``machine``, memory if every layer read its input there and wrote its
        output there); ``ratios`` of the first four, one way of the reference / port, those of time taken turn by turn;
        ``ratio``, the smaller of the two (over 1: the port is better than either way); ``fastest_reference``;
        ``distance`` of the outputs, or of the losses, to the reference's in float32; ``port_is_no_worse`` in time and
        peak, None without a reference. ``machine``: products and copied memory that it reaches, a second; ``flops`` of
        the products.

    Raises:
        ValueError: ``repeats`` or ``rounds`` is below 1.
        RuntimeError: A process fails, or the two outputs are not the same function's.
    """
    if repeats < 1 or rounds < 1:
        raise ValueError(f"repeats and rounds must be at least 1, not {repeats} and {rounds}")
    ways = [("port", "eager")]
    if not alone:
        ways += [("reference", "graph")]
        ways = [("reference", "eager"), *ways] if kind == "forward" else ways
    ways += [("port", "compiled")] if compiled else []
    ways += [("port", way) for way in CHECKPOINTED] if checkpointed else []
    flops, moved = _work_of(config, kind, model, batch)
    machine = _machine(threads, precisions)
    runs = []
    with tempfile.TemporaryDirectory(prefix="epibert-benchmark-") as name:
        folder = Path(name)
        with Worker({"task": "prepare", "size": config, "model": model, "batch": batch}, folder, threads):
            pass
        for _ in range(rounds):
            for precision in precisions:
                common = {"precision": precision, "threads": threads, "kind": kind, "model": model}
                jobs = [{"task": task, "way": way} | common for task, way in ways]
                for group in [[job] for job in jobs] if apart else [jobs]:
                    runs += _take_turns(group, repeats, folder, threads, progress)
        summaries = {precision: _summary(precision, runs, folder, kind) for precision in precisions}
    for precision, summary in summaries.items():
        rates = machine[precision]
        for measured in (summary[f"{task}_{way}"] for task, way in ways):
            measured["share_of_products"] = flops / measured["seconds"] / rates["products"]
            measured["share_of_memory"] = moved * BYTES[precision] / measured["seconds"] / rates["memory"]
    settings = {"config": config, "kind": kind, "model": model, "batch": batch, "threads": threads, "apart": apart}
    result = {
        "benchmark": kind,
        "environment": environment(),
        "settings": settings | {"repeats": repeats, "rounds": rounds, "variables": ENVIRONMENT},
        "machine": machine,
        "flops": flops,
        "precisions": summaries,
        "runs": runs,
    }
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _work_of(size: SizeName, kind: Kind, model: ModelName, batch: int) -> tuple[int, int]:
    """Operations of the products of one pass, and the numbers it moves if every layer reads and writes memory.

    A backward pass is taken to move twice what the forward pass moves.
    """
    from benchmarks.roofline import stages, training_flops

    config, heads = configuration(size, model), 1 if model == "pretrain" else 2
    found = stages(config, heads)
    moved = batch * sum(stage.layered for stage in found)
    if kind == "training":
        return batch * training_flops(config, heads), 3 * moved
    return batch * sum(stage.flops for stage in found), moved


def _machine(threads: int, precisions: Sequence[str]) -> dict[str, dict[str, float]]:
    """What the cores reach here, by precision; bfloat16 numbers may be multiplied in float32 where that is faster."""
    import torch

    from benchmarks.roofline import measured_machine

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = {name: measured_machine(name) for name in dict.fromkeys(("float32", *precisions))}
    finally:
        torch.set_num_threads(before)
    fastest = {name: max(found["float32"].products, found[name].products) for name in found}
    return {name: {"products": fastest[name], "memory": found[name].memory} for name in precisions}


def environment() -> dict[str, Any]:
    """Processor, cores, load and versions."""
    processor = platform.processor()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        fields = [line.partition(":") for line in information.read_text(encoding="utf-8").splitlines()]
        named = {key.strip(): value.strip() for key, _, value in fields}
        processor = named.get("model name", processor)
        flags = named.get("flags", "").split()
    else:
        flags = []
    return {
        "processor": processor,
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }


def distance(value: np.ndarray, reference: np.ndarray) -> float:
    """Relative L2 distance, once the reference's mean, which says little, is taken off both; NaN if either has one."""
    mean = reference.mean(dtype=np.float64)
    return float(np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference - mean))


def _share_apart(value: np.ndarray, reference: np.ndarray) -> float:
    """How far two losses are apart, as a share of the second; NaN if either is."""
    return float(abs(value - reference) / abs(reference))


def _take_turns(
    jobs: Sequence[dict[str, Any]],
    repeats: int,
    folder: Path,
    threads: int,
    progress: Callable[[str], None] | None,
) -> list[dict[str, Any]]:
    """One process a job, all alive at the same time, one of them at work at any time."""
    with contextlib.ExitStack() as stack:
        workers, runs = [], []
        for job in jobs:
            workers.append(stack.enter_context(Worker(job, folder, threads)))
            runs.append(job | {"resident_bytes": workers[-1].first_answer["resident_bytes"]})
        answers = [[worker.ask() for worker in workers] for _ in range(repeats)]
    for run, found in zip(runs, zip(*answers, strict=True), strict=True):
        for quantity in ("seconds", "cpu_seconds"):
            run[quantity] = [answer[quantity] for answer in found]
        run["peak_bytes"] = found[-1]["peak_bytes"]
        if progress is not None:
            progress(
                f"{run['task']} {run['way']} {run['precision']}: {statistics.median(run['seconds']):.2f} s, "
                f"{statistics.median(run['cpu_seconds']):.2f} CPU s, peak {run['peak_bytes'] / 1e9:.2f} GB"
            )
    return runs


def _summary(precision: str, runs: Sequence[dict[str, Any]], folder: Path, kind: Kind = "forward") -> dict[str, Any]:
    times: dict[str, dict[str, list[float]]] = {}
    ways: dict[str, dict[str, float]] = {}
    for task, way in dict.fromkeys((run["task"], run["way"]) for run in runs):
        found = [run for run in runs if (run["task"], run["way"], run["precision"]) == (task, way, precision)]
        every = {name: [value for run in found for value in run[name]] for name in ("seconds", "cpu_seconds")}
        times[f"{task}_{way}"] = every
        ways[f"{task}_{way}"] = {name: statistics.median(values) for name, values in every.items()} | {
            "peak_bytes": min(run["peak_bytes"] for run in found),
            "forward_bytes": min(run["peak_bytes"] - run["resident_bytes"] for run in found),
        }
    references = [name for name in (f"reference_{way}" for way in REFERENCE_WAYS[kind]) if name in ways]
    if not references:
        return {**ways, "ratios": {}, "ratio": {}, "distance": {}, "port_is_no_worse": None}
    ratios: dict[str, dict[str, float]] = {}
    for name in references:
        # Neighbours in time met the same load of the machine.
        ratios[name] = {
            quantity: statistics.median(
                theirs / ours for theirs, ours in zip(times[name][quantity], times["port_eager"][quantity], strict=True)
            )
            for quantity in ("seconds", "cpu_seconds")
        }
        for quantity in ("peak_bytes", "forward_bytes"):
            ratios[name][quantity] = ways[name][quantity] / ways["port_eager"][quantity]
    ratio = {quantity: min(ratios[name][quantity] for name in references) for quantity in ratios[references[0]]}
    # In bfloat16 the reference itself may be far from what it means: on a processor without bfloat16 arithmetic
    # TensorFlow rounds partial sums. So all are held against its float32 result, where there is one.
    exact = folder / f"{references[0]}_float32.npy"
    expected = np.load(exact if exact.is_file() else folder / f"{references[0]}_{precision}.npy")
    apart = distance if kind == "forward" else _share_apart
    differences = {name: apart(np.load(folder / f"{name}_{precision}.npy"), expected) for name in ways}
    largest = SAME_WORK[precision] if kind == "forward" else SAME_LOSS
    for name, difference in differences.items():
        if name not in references and not difference <= max(largest, differences[references[0]]):
            raise RuntimeError(f"{name} in {precision} differs from the reference by {difference:.2g}")
    return {
        **ways,
        "ratios": ratios,
        "ratio": ratio,
        "fastest_reference": min(references, key=lambda name: ratios[name]["seconds"]),
        "distance": differences,
        "port_is_no_worse": ratio["seconds"] >= 1 and ratio["peak_bytes"] >= 1,
    }


# --- one process ------------------------------------------------------------------------------------------------------


class Worker:
    """A fresh process with one framework, which does its work each time it is asked.

    Args:
        job: ``task`` (``reference``, ``port``, or ``prepare``, which writes the files and ends), ``way`` and
            ``precision``; ``kind`` and ``model``.
        folder: Where configuration, weights and inputs lie, and where outputs go.
        threads: Threads of the framework.

    Attributes:
        first_answer: What the process said when it was ready.

    Raises:
        RuntimeError: The process ends early.
    """

    def __init__(self, job: dict[str, Any], folder: Path, threads: int) -> None:
        self._job = job
        self._errors = folder / f"{'_'.join(str(value) for value in job.values())}.txt"
        settings = {"OMP_NUM_THREADS": str(threads)} | ENVIRONMENT
        command = [sys.executable, "-m", "benchmarks.forward", "--job", json.dumps(job), "--folder", str(folder)]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                env=os.environ | settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.first_answer = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self) -> dict[str, Any]:
        """A pass, after one that warms up: ``seconds``, ``cpu_seconds``, the process's ``peak_bytes`` so far."""
        if self._process.poll() is None and self._process.stdin is not None:
            self._process.stdin.write("forward\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if line:
            return json.loads(line)
        status = self._process.wait()
        killed = " (killed: out of memory?)" if status == -signal.SIGKILL else ""
        text = self._errors.read_text(encoding="utf-8", errors="replace")[-4000:]
        raise RuntimeError(f"{self._job} failed with status {status}{killed}:\n{text}")


def _work(job: dict[str, Any], folder: Path) -> None:
    """The other end of a ``Worker``: answers on the standard output, which is kept free of everything else."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def answer(content: dict[str, Any]) -> None:
            answers.write(json.dumps(content) + "\n")
            answers.flush()

        if job["task"] == "prepare":
            return answer(prepare(folder, size=job["size"], model=job["model"], batch=job["batch"]))
        prepare_side = prepare_reference if job["task"] == "reference" else prepare_port
        run = prepare_side(job, folder)
        gc.collect()
        answer({"resident_bytes": _memory("VmRSS")})
        for _ in sys.stdin:
            run()
            started, cpu_started = time.perf_counter(), time.process_time()
            output = run()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            np.save(folder / f"{job['task']}_{job['way']}_{job['precision']}.npy", output)
            answer({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": _memory("VmHWM")})


def _memory(field: str) -> int:
    """Resident memory of this process, now (VmRSS) or at its highest (VmHWM), in bytes.

    ``ru_maxrss`` would start from the peak of the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"the system reports no {field}")


# --- command line -----------------------------------------------------------------------------------------------------


def describe(result: dict[str, Any]) -> str:
    """The result in a few lines of text."""
    settings = result["settings"]
    lines = [
        f"{settings['kind']}, {settings['model']}, {settings['config']} size, {settings['threads']} threads, batch "
        f"{settings['batch']}"
    ]
    for precision, summary in result["precisions"].items():
        ratio = summary["ratio"]
        if not ratio:
            measured = {
                name: way for name, way in summary.items() if name.startswith("port_") and isinstance(way, dict)
            }
            lines += [
                f"{precision}, {name.replace('_', ' ')}: {way['seconds']:.1f} s, {way['peak_bytes'] / 1e9:.1f} GB"
                for name, way in measured.items()
            ]
            continue
        lines.append(
            f"{precision}: reference / port: time {ratio['seconds']:.2f} (reference's fastest way: "
            f"{summary['fastest_reference'].removeprefix('reference_')}), peak memory {ratio['peak_bytes']:.2f}, "
            f"memory of the pass alone {ratio['forward_bytes']:.2f}; port at "
            f"{summary['port_eager']['share_of_products']:.0%} of the machine's products; distance to the reference in "
            f"float32: {', '.join(f'{name} {value:.1e}' for name, value in summary['distance'].items())}"
        )
        fastest = summary[summary["fastest_reference"]]
        lines += [
            f"{precision}, port {way}: time {fastest['seconds'] / summary[f'port_{way}']['seconds']:.2f}, peak memory "
            f"{fastest['peak_bytes'] / summary[f'port_{way}']['peak_bytes']:.2f}; "
            f"{summary[f'port_{way}']['seconds']:.1f} s, {summary[f'port_{way}']['peak_bytes'] / 1e9:.1f} GB"
            for way in ("compiled", *CHECKPOINTED)
            if f"port_{way}" in summary
        ]
    return "\n".join(lines)


def main() -> int:
    """Command line; exit status 1 when the port is slower or larger than the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=SIZES, default="full", help="size of the model")
    parser.add_argument("--kind", choices=KINDS, default="forward")
    parser.add_argument("--model", choices=MODELS, default="pretrain")
    parser.add_argument("--batch", type=int, default=1, help="examples at a time")
    parser.add_argument("--repeats", type=int, default=2, help="timed forwards in each process")
    parser.add_argument("--rounds", type=int, default=1, help="fresh processes of each kind")
    parser.add_argument("--threads", type=int, default=2, help="threads of each framework")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--checkpointed", action="store_true", help="training with activation checkpointing as well")
    parser.add_argument("--apart", action="store_true", help="one process after the other, where memory is short")
    parser.add_argument("--alone", action="store_true", help="the port alone, where the reference does not fit")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        _work(arguments.job, arguments.folder)
        return 0
    result = forward_benchmark(
        arguments.config,
        arguments.repeats,
        arguments.out,
        kind=arguments.kind,
        model=arguments.model,
        batch=arguments.batch,
        rounds=arguments.rounds,
        threads=arguments.threads,
        precisions=arguments.precisions,
        compiled=arguments.compiled,
        checkpointed=arguments.checkpointed,
        apart=arguments.apart,
        alone=arguments.alone,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(result, indent=1))
    print(describe(result), file=sys.stderr)
    return 0 if all(summary["port_is_no_worse"] is not False for summary in result["precisions"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
