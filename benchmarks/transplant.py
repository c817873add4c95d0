"""Time and memory of transplanting a full checkpoint: 84 M parameters and both of Adam's moments, 1 GB.

Writes such a checkpoint with random numbers into a temporary folder, then measures in fresh processes: reading the
file's bytes in plain Python, verifying it (`read_checkpoint`), transplanting it, and saving the result. The page cache
is warm throughout. Prints JSON; ratios are to the time of plain reading and to the size of the model's parameters.

    python -m benchmarks.transplant [--repeats 3] [--constants philox]
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

TIME_LIMIT = 3.0
MEMORY_LIMIT = 1.5
Choice = Literal["philox", "auto", "tensorflow", "keep"]
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


class PeakMemory:
    """Samples resident memory while its block runs; `extra` is the highest rise over the start, in bytes."""

    def __enter__(self) -> "PeakMemory":
        self._start, self._peak, self._stop = resident_bytes(), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self._peak = max(self._peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.extra = max(0, max(self._peak, resident_bytes()) - self._start)


def write_full_checkpoint(prefix: Path) -> None:
    """A checkpoint of the constructor's defaults with slots and counters, all numbers random."""
    import numpy as np

    from torch_impl import EpiBERT, EpiBERTConfig
    from weights.export import export
    from weights.table import MOMENTS, PRETRAIN

    model = EpiBERT(EpiBERTConfig())
    generator = np.random.default_rng(0)
    state = {counter.name: np.ones((), counter.dtype) for counter in PRETRAIN.counters}
    for name, parameter in model.named_parameters():
        for moment in MOMENTS:
            state[f"{moment}/{name}"] = generator.random(tuple(parameter.shape), dtype=np.float32)
    export(model, prefix.parent, training_state=state)


def measure(task: str, prefix: Path, constants: Choice) -> dict[str, Any]:
    """Run one task in this process and measure it."""
    shards = sorted(prefix.parent.glob(f"{prefix.name}.data-*"))
    if task == "plain":
        started = time.perf_counter()
        for path in shards:
            path.read_bytes()
        return {"seconds": time.perf_counter() - started}

    from torch_impl import EpiBERT, EpiBERTConfig
    from weights import read_checkpoint, transplant

    if task == "verify":
        with PeakMemory() as memory:
            started = time.perf_counter()
            read_checkpoint(prefix)
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "extra_bytes": memory.extra}

    model = EpiBERT(EpiBERTConfig())
    result: dict[str, Any] = {"model_bytes": sum(parameter.nbytes for parameter in model.parameters())}
    with PeakMemory() as memory:
        started = time.perf_counter()
        record = transplant(prefix, model, constants=constants)
        result["seconds"] = time.perf_counter() - started
    result |= {"extra_bytes": memory.extra, "constants": record.constants["origin"]}
    if task == "save":
        with PeakMemory() as memory, tempfile.TemporaryDirectory(dir=prefix.parent) as folder:
            started = time.perf_counter()
            record.save(Path(folder) / "model", model)
            result["save_seconds"] = time.perf_counter() - started
        result["save_extra_bytes"] = memory.extra
    return result


def _in_fresh_process(task: str, prefix: Path, constants: Choice) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.transplant", "--task", task, "--prefix", str(prefix)]
    done = subprocess.run([*command, "--constants", constants], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@contextlib.contextmanager
def full_checkpoint() -> Iterator[Path]:
    """The prefix of a full checkpoint in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="epibert-benchmark-") as folder:
        prefix = Path(folder) / "full" / "ckpt-1"
        write_full_checkpoint(prefix)
        yield prefix


def benchmark(repeats: int = 3, constants: Choice = "philox") -> dict[str, Any]:
    """Measure everything; times are the best of `repeats`, memory the worst.

    Args:
        repeats: fresh processes per task.
        constants: passed to `transplant`. With `auto` or `tensorflow` the time includes TensorFlow's start.
    """
    with full_checkpoint() as prefix:
        size = sum(path.stat().st_size for path in prefix.parent.glob(f"{prefix.name}.*"))
        runs: dict[str, list[dict[str, Any]]] = {task: [] for task in ("plain", "verify", "transplant", "save")}
        # In turn, so that whatever else the machine does disturbs all of them alike.
        for _ in range(repeats):
            for task, found in runs.items():
                found.append(_in_fresh_process(task, prefix, constants))
    best = {task: min(run["seconds"] for run in found) for task, found in runs.items()}
    model_bytes = runs["transplant"][0]["model_bytes"]
    extra = max(run["extra_bytes"] for run in runs["transplant"])
    return {
        "checkpoint_bytes": size,
        "model_bytes": model_bytes,
        "constants": runs["transplant"][0]["constants"],
        "plain_read_seconds": best["plain"],
        "verify_seconds": best["verify"],
        "verify_extra_bytes": max(run["extra_bytes"] for run in runs["verify"]),
        "transplant_seconds": best["transplant"],
        "transplant_extra_bytes": extra,
        "save_seconds": min(run["save_seconds"] for run in runs["save"]),
        "save_extra_bytes": max(run["save_extra_bytes"] for run in runs["save"]),
        "time_ratio": best["transplant"] / best["plain"],
        "time_limit": TIME_LIMIT,
        "memory_ratio": extra / model_bytes,
        "memory_limit": MEMORY_LIMIT,
        "within_limits": best["transplant"] <= TIME_LIMIT * best["plain"] and extra < MEMORY_LIMIT * model_bytes,
    }


def main() -> int:
    """Command line; exit status 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes per measurement")
    parser.add_argument("--constants", default="philox", choices=("philox", "auto", "tensorflow", "keep"))
    parser.add_argument("--task", choices=("plain", "verify", "transplant", "save"), help=argparse.SUPPRESS)
    parser.add_argument("--prefix", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(arguments.task, arguments.prefix, arguments.constants)))
        return 0
    result = benchmark(arguments.repeats, arguments.constants)
    print(json.dumps(result, indent=1))
    return 0 if result["within_limits"] else 1


if __name__ == "__main__":
    sys.exit(main())
