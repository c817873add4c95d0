"""One forward pass of reference and port: time and peak memory, in one run on one machine.

Both get the same random weights, constants and inputs, batch 1, evaluation mode, no gradients, the same number of
threads. Each way is measured in a fresh process of its own that holds one framework only, so that its peak memory is
its own. The processes take turns, so that whatever else the machine does disturbs all of them alike. A turn is two
forwards, of which the second is timed: while a process waits, caches and memory that it freed go to others. Report the
ratios, which carry over to other machines better than seconds do.

    python -m benchmarks.forward [--config tiny] [--repeats 2] [--rounds 1] [--compiled] [--out forward.json]
"""

import argparse
import contextlib
import gc
import importlib.metadata
import inspect
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

ConfigName = Literal["full", "tiny"]
PRECISIONS = ("float32", "bfloat16")
REFERENCE_WAYS = ("eager", "graph")
# Limits of `distance`: far above the rounding of that precision. The ladder is what proves the port; this only makes
# sure that the two did the same work.
SAME_WORK = {"float32": 1e-3, "bfloat16": 3e-1}
KERNEL_GAIN = 1.5
# Of both sides. Where OpenMP's threads wait by spinning, any other process on a core stops all of them.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
PROJECTION, ROTARY_TABLE = "projection_matrix", "rotary_table"
PACKAGES = ("torch", "tensorflow", "tf_keras", "numpy")
_INPUTS = ("sequence", "atac", "motif_activity")


def forward_benchmark(
    config: ConfigName = "full",
    repeats: int = 2,
    out: str | Path | None = None,
    *,
    rounds: int = 1,
    threads: int = 2,
    precisions: Sequence[str] = PRECISIONS,
    compiled: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure one forward pass of reference and port.

    Args:
        config: The published model (84 M parameters, 524,288 bp; the reference needs 9 GB), or a tiny one.
        repeats: Timed forwards in each process, each after one that warms up; the processes take turns.
        out: JSON file to write; its folder is made. None: write nothing.
        rounds: Sets of fresh processes. Times and ratios are medians over all turns, memory the smallest peak.
        threads: Threads of each framework.
        precisions: Of ``float32`` and ``bfloat16`` (parameters in float32, activations in bfloat16).
        compiled: Measure ``torch.compile`` of the port as well; it needs a C++ compiler.
        progress: Called with a line of text for each process.

    Returns:
        ``environment``, ``settings``, ``runs`` (one entry a process) and, in ``precisions``, for each precision the
        measured ways (``reference_eager``, ``reference_graph``, ``port_eager``, ``port_compiled``) with
        ``seconds``, ``cpu_seconds`` (of all threads), ``peak_bytes`` and ``forward_bytes`` (rise over the resident
        memory before the first forward); ``ratios`` of each of the four, one way of the reference / port, those of time
        taken turn by turn; ``ratio``, the smaller of the two (over 1: the port is better than either way);
        ``fastest_reference``; ``distance`` of the outputs to the reference's in float32;
        ``port_is_no_worse`` in time and peak.

    Raises:
        ValueError: ``repeats`` or ``rounds`` is below 1.
        RuntimeError: A process fails, or the two outputs are not the same function's.
    """
    if repeats < 1 or rounds < 1:
        raise ValueError(f"repeats and rounds must be at least 1, not {repeats} and {rounds}")
    ways = [("reference", "eager"), ("port", "eager"), ("reference", "graph")]
    if compiled:
        ways.append(("port", "compiled"))
    runs = []
    with tempfile.TemporaryDirectory(prefix="epibert-benchmark-") as name:
        folder = Path(name)
        with Worker({"task": "prepare", "config": config}, folder, threads):
            pass
        for _ in range(rounds):
            for precision in precisions:
                jobs = [{"task": task, "way": way, "precision": precision, "threads": threads} for task, way in ways]
                runs += _take_turns(jobs, repeats, folder, threads, progress)
        summaries = {precision: _summary(precision, runs, folder) for precision in precisions}
    result = {
        "benchmark": "forward",
        "environment": environment(),
        "settings": {"config": config, "batch": 1, "threads": threads, "repeats": repeats, "rounds": rounds}
        | {"variables": ENVIRONMENT},
        "precisions": summaries,
        "runs": runs,
    }
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


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


def _summary(precision: str, runs: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
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
    references = [f"reference_{way}" for way in REFERENCE_WAYS]
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
    exact = folder / "reference_eager_float32.npy"
    expected = np.load(exact if exact.is_file() else folder / f"reference_eager_{precision}.npy")
    differences = {name: distance(np.load(folder / f"{name}_{precision}.npy"), expected) for name in ways}
    for name, difference in differences.items():
        if name not in references and not difference <= max(SAME_WORK[precision], differences[references[0]]):
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
    """A fresh process with one framework, which does one forward each time it is asked.

    Args:
        job: ``task`` (``reference``, ``port``, or ``prepare``, which writes the files and ends), ``way`` and
            ``precision``.
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
        """A forward, after one that warms up: ``seconds``, ``cpu_seconds``, the process's ``peak_bytes`` so far."""
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
            return answer(_prepare(job["config"], folder))
        prepare = _prepare_reference if job["task"] == "reference" else _prepare_port
        forward = prepare(job, folder)
        gc.collect()
        answer({"resident_bytes": _memory("VmRSS")})
        for _ in sys.stdin:
            forward()
            started, cpu_started = time.perf_counter(), time.process_time()
            output = forward()
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


def _prepare(name: str, folder: Path) -> dict[str, Any]:
    """Writes configuration, weights by checkpoint key, constants and inputs."""
    import dataclasses

    from safetensors.numpy import save_file

    from torch_impl import EpiBERTConfig
    from weights.table import rows

    config = EpiBERTConfig.tiny() if name == "tiny" else EpiBERTConfig.pretrain()
    tensors = draw_weights(config)
    # safetensors writes arrays in the order in which they lie in memory.
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "weights.safetensors")
    save_file(draw_inputs(config), folder / "inputs.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)), encoding="utf-8")
    trained = [row.path for row in rows(config) if row.trainable]
    return {"parameters": sum(tensors[path].size for path in trained)}


def draw_weights(config: Any) -> dict[str, np.ndarray]:
    """Weights for an ``EpiBERTConfig`` by checkpoint key, each from a seed of its own, and the port's constants."""
    import torch

    from torch_impl import EpiBERT
    from torch_impl.random import projection_matrix, rotary_table
    from weights.table import rows

    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in EpiBERT(config).state_dict().items()}
    tensors = {}
    for row in rows(config):
        shape = shapes[row.name]
        generator = np.random.default_rng(zlib.crc32(row.path.encode()))
        value = generator.standard_normal(row.layout.stored_shape(shape, config.num_heads), np.float32)
        if row.path.endswith("/kernel"):
            # Enough to keep what varies along the sequence alive through the pooling.
            value *= np.float32(KERNEL_GAIN / np.sqrt(np.prod(shape[1:])))
        elif row.path.endswith(("/gamma", "/moving_variance")):
            value = np.exp(value / 10)
        else:
            value /= 10
        tensors[row.path] = value
    tensors[PROJECTION] = projection_matrix(config.num_random_features, config.head_size, int(config.seed))
    if config.use_rot_emb:
        tensors[ROTARY_TABLE] = rotary_table(
            config.max_seq_length + 1, config.head_size, bfloat16=config.rotary_bfloat16
        )
    return tensors


def draw_inputs(config: Any) -> dict[str, np.ndarray]:
    """Sequence, accessibility and motif activity for an ``EpiBERTConfig``, batch 1."""
    generator = np.random.default_rng(0)
    bases = generator.integers(4, size=(1, config.sequence_length))
    return {
        "sequence": np.eye(4, dtype=np.float32)[bases],
        "atac": generator.exponential(size=(1, config.atac_length, 1)).astype(np.float32),
        "motif_activity": generator.random((1, 1, config.num_motifs), dtype=np.float32),
    }


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], list[np.ndarray]]:
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inputs = load_file(folder / "inputs.safetensors")
    return config, load_file(folder / "weights.safetensors"), [inputs[name] for name in _INPUTS]


def _prepare_reference(job: dict[str, Any], folder: Path) -> Callable[[], np.ndarray]:
    import tensorflow as tf

    import tf_reference

    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(job["threads"])
    arguments, tensors, arrays = _read(folder)
    known = inspect.signature(tf_reference.EpiBERT).parameters
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[job["precision"]]
    model = tf_reference.EpiBERT(**{key: arguments[key] for key in known if key in arguments}, dtype=policy)
    projection, table = tensors.pop(PROJECTION), tensors.pop(ROTARY_TABLE, None)
    model.build_weights()
    model.assign(tensors)
    model.set_constants(projection, table)
    inputs = tuple(tf.constant(array) for array in arrays)

    def call(values: tuple[tf.Tensor, ...]) -> tf.Tensor:
        return tf.cast(model(values, training=False), tf.float32)

    function = tf.function(call) if job["way"] == "graph" else call
    return lambda: function(inputs).numpy()


def _prepare_port(job: dict[str, Any], folder: Path) -> Callable[[], np.ndarray]:
    import torch

    from torch_impl import EpiBERT, EpiBERTConfig
    from weights.table import rows

    torch.set_num_threads(job["threads"])
    arguments, tensors, arrays = _read(folder)
    config = EpiBERTConfig(**arguments)
    compute_dtype = {"float32": None, "bfloat16": torch.bfloat16}[job["precision"]]
    model = EpiBERT(config, compute_dtype=compute_dtype).eval()
    state = model.state_dict()
    for row in rows(config):
        state[row.name].copy_(torch.from_numpy(row.layout.to_port(tensors.pop(row.path))))
    # The constants are the port's own already: the reference takes them over.
    left = tensors.keys() - {PROJECTION, ROTARY_TABLE}
    if left:
        raise RuntimeError(f"weights without a place in the port: {sorted(left)}")
    inputs = [torch.from_numpy(array) for array in arrays]
    function = torch.compile(model) if job["way"] == "compiled" else model

    def forward() -> np.ndarray:
        with torch.inference_mode():
            return function(*inputs).float().numpy()

    return forward


# --- command line -----------------------------------------------------------------------------------------------------


def describe(result: dict[str, Any]) -> str:
    """The result in a few lines of text."""
    lines = [f"forward, {result['settings']['config']} size, {result['settings']['threads']} threads, batch 1"]
    for precision, summary in result["precisions"].items():
        ratio = summary["ratio"]
        lines.append(
            f"{precision}: reference / port: time {ratio['seconds']:.2f} (reference's fastest way: "
            f"{summary['fastest_reference'].removeprefix('reference_')}), peak memory {ratio['peak_bytes']:.2f}, "
            f"memory of the forward alone {ratio['forward_bytes']:.2f}; "
            f"distance to the reference in float32: port {summary['distance']['port_eager']:.1e}, reference "
            f"{summary['distance']['reference_eager']:.1e}"
        )
    return "\n".join(lines)


def main() -> int:
    """Command line; exit status 1 when the port is slower or larger than the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("full", "tiny"), default="full", help="size of the model")
    parser.add_argument("--repeats", type=int, default=2, help="timed forwards in each process")
    parser.add_argument("--rounds", type=int, default=1, help="fresh processes of each kind")
    parser.add_argument("--threads", type=int, default=2, help="threads of each framework")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
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
        rounds=arguments.rounds,
        threads=arguments.threads,
        precisions=arguments.precisions,
        compiled=arguments.compiled,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(result, indent=1))
    print(describe(result), file=sys.stderr)
    return 0 if all(summary["port_is_no_worse"] for summary in result["precisions"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
