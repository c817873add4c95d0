"""What ``epibert bench`` does: reference and port side by side, and the transplant of a full checkpoint."""

import json
from pathlib import Path
from typing import Literal

from rich.console import Console

from benchmarks.forward import describe, forward_benchmark
from benchmarks.transplant import benchmark as transplant_benchmark


def run_benchmarks(config: Literal["full", "tiny"], repeats: int, rounds: int, out: Path) -> int:
    """Measures, prints ratios, writes everything measured.

    Args:
        config: ``full`` measures the published model and the transplant of its checkpoint with optimizer slots;
            ``tiny`` only tries the measurement out.
        repeats: Timed passes in each process.
        rounds: Processes of each kind.
        out: JSON file to write.

    Returns:
        1 when, at full size, the port is slower or larger than the reference or the transplant exceeds its limits.

    Raises:
        RuntimeError: A process fails, or the two models compute different functions.
    """
    console = Console(soft_wrap=True, highlight=False)
    with console.status("starting") as status:
        found = {"forward": forward_benchmark(config, repeats, rounds=rounds, progress=status.update)}
        if config == "full":
            status.update("transplant of a full checkpoint")
            found["transplant"] = transplant_benchmark()
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    console.print(describe(found["forward"]))
    good = True
    if "transplant" in found:
        transplant = found["transplant"]
        console.print(
            f"transplant with slots: {transplant['time_ratio']:.2f}x the time of reading the file "
            f"(limit {transplant['time_limit']:g}x), {transplant['memory_ratio']:.2f}x the model's size in extra "
            f"memory (limit {transplant['memory_limit']:g}x)"
        )
        no_worse = (summary["port_is_no_worse"] for summary in found["forward"]["precisions"].values())
        good = transplant["within_limits"] and all(no_worse)
    return 0 if good else 1
