"""What ``epibert bench`` does: reference and port side by side, and what belongs to the port alone."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from benchmarks.data import data_benchmark
from benchmarks.data import describe as describe_data
from benchmarks.forward import PRECISIONS, describe, forward_benchmark
from benchmarks.lengths import lengths_benchmark
from benchmarks.lengths import picture as picture_of_lengths
from benchmarks.ratios import data_ratios, picture, ratios, read_committed, regressions
from benchmarks.sides import ModelName, SizeName
from benchmarks.transplant import benchmark as transplant_benchmark

Part = Literal["forward", "training", "lengths", "transplant", "data", "harness"]
PARTS: tuple[Part, ...] = ("forward", "training", "lengths", "transplant", "data", "harness")
LARGEST_IN_TRAINING: SizeName = "quarter"
"""The reference has no activation checkpointing: from half the window on two processes do not fit into 20 GB."""


def run_benchmarks(
    config: SizeName,
    repeats: int,
    rounds: int,
    out: Path,
    *,
    parts: Sequence[Part] = ("forward", "training", "transplant"),
    models: Sequence[ModelName] = ("pretrain",),
    precisions: Sequence[str] = PRECISIONS,
    batches: Sequence[int] = (1,),
    compiled: bool = False,
) -> int:
    """Measures, prints ratios, writes everything measured and pictures.

    Args:
        config: Size; training of the published size is measured on a quarter of the window.
        repeats: Timed passes in each process.
        rounds: Processes of each kind.
        out: JSON file to write; pictures go beside it.
        parts: What to measure.
        models: Of ``pretrain`` and ``rampage``.
        precisions: Of ``float32`` and ``bfloat16``.
        batches: Examples at a time.
        compiled: Measure ``torch.compile`` as well.

    Returns:
        1 when a ratio falls short of the committed one, or, at full size, the port is slower or larger than the
        reference, a limit of another part is exceeded, or cost grows faster than the window.

    Raises:
        RuntimeError: A process fails, or the two models compute different functions.
    """
    console = Console(soft_wrap=True, highlight=False)
    found: dict[str, Any] = {}
    failures: list[str] = []
    with console.status("starting") as status:
        sides = [
            forward_benchmark(
                LARGEST_IN_TRAINING if (kind, config) == ("training", "full") else config,
                repeats,
                kind=kind,
                model=model,
                batch=batch,
                rounds=rounds,
                precisions=precisions,
                compiled=compiled,
                progress=status.update,
            )
            for kind in ("forward", "training")
            if kind in parts
            for model in models
            for batch in batches
        ]
        for part in parts:
            if part in ALONE:
                status.update(part)
                found[part] = ALONE[part](config, status.update)
    for result in sides:
        console.print(describe(result))
        found.setdefault(result["benchmark"], []).append(result)
    measured = ratios(sides) | (data_ratios(found["data"]) if "data" in found else {})
    if measured:
        found["ratios"] = measured
        worse, unknown = regressions(measured, read_committed())
        failures += worse
        for line in unknown:
            console.print(f"not held against anything: {line}")
        out.with_name("ratios.svg").write_text(picture(measured), encoding="utf-8")
    if config == "full":
        failures += [
            f"{name}: the port is worse in {quantity}"
            for name, values in measured.items()
            for quantity, value in values.items()
            if not value >= 1
        ]
    failures += _alone(found, config, console, out)
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for line in failures:
        console.print(f"FAILED {line}")
    return 1 if failures else 0


def _alone(found: dict[str, Any], config: SizeName, console: Console, out: Path) -> list[str]:
    """Prints what was measured of the port alone; returns what exceeds its limit."""
    failures = []
    if "transplant" in found:
        transplant = found["transplant"]
        console.print(
            f"transplant with slots: {transplant['time_ratio']:.2f}x the time of reading the file "
            f"(limit {transplant['time_limit']:g}x), {transplant['memory_ratio']:.2f}x the model's size in extra "
            f"memory (limit {transplant['memory_limit']:g}x)"
        )
        if not transplant["within_limits"]:
            failures.append("transplant: a limit is exceeded")
    if "lengths" in found:
        lengths = found["lengths"]
        console.print(f"cost grows with the power {lengths['exponent']:.2f} of the window")
        out.with_name("lengths.svg").write_text(picture_of_lengths(lengths), encoding="utf-8")
        # What a tiny model costs is overhead of calls, not of positions.
        if config == "full" and not lengths["linear"]:
            failures.append("lengths: the cost grows faster than the window")
    if "data" in found:
        console.print(describe_data(found["data"]))
    if "harness" in found:
        harness = found["harness"]
        console.print(f"`epibert parity`: {harness['seconds']:.0f} s, exit status {harness['status']}")
        if harness["status"] != 0:
            failures.append("harness: the ladder is not proven")
    return failures


def _harness() -> dict[str, float]:
    """Time of the whole ladder in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="epibert-benchmark-") as folder:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "parity", "--out", folder], check=False, capture_output=True)
        return {"seconds": time.perf_counter() - started, "status": done.returncode}


ALONE: dict[str, Callable[[SizeName, Callable[[str], None]], dict[str, Any]]] = {
    "lengths": lambda config, say: lengths_benchmark("tiny" if config == "tiny" else "full", progress=say),
    "transplant": lambda config, say: transplant_benchmark(),
    "data": lambda config, say: data_benchmark("tiny" if config == "tiny" else "full", progress=say),
    "harness": lambda config, say: _harness(),
}
"""Parts that are not a pass of reference against port."""
