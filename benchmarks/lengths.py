"""Time and memory of the port's forward pass by length of the window: nothing in it may grow faster than the window.

Batch 1, published widths, float32, from 2^16 to 2^20 bp; the second pass of each length counts. Prints JSON; the
exponent is the slope of a straight line through the logarithms of lengths and seconds, 1 for linear cost and 2 for
quadratic.

    python -m benchmarks.lengths [--config tiny] [--repeats 1] [--out lengths.json] [--picture lengths.svg]
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import SizeName, configuration, draw_inputs
from torch_impl.curve import draw

BINS = {"full": (512, 1024, 2048, 4096, 8192), "tiny": (32, 64, 128)}
LARGEST_EXPONENT = 1.1


def lengths_benchmark(
    size: SizeName = "full", repeats: int = 1, progress: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measures a forward pass at every length.

    Args:
        size: ``full`` (published widths) or ``tiny``.
        repeats: Timed passes; their median counts.
        progress: Called with a line for each length.

    Returns:
        ``lengths`` in base pairs, ``seconds``, ``exponent``, and whether it is ``linear``.
    """
    import torch

    from torch_impl import EpiBERT

    found: dict[str, Any] = {"size": size, "lengths": [], "seconds": []}
    for bins in BINS[size]:
        trimmed = configuration(size).output_length - configuration(size).final_output_length
        config = dataclasses.replace(
            configuration(size), output_length=bins, final_output_length=bins - trimmed, max_seq_length=bins
        )
        model = EpiBERT(config).eval()
        inputs = [torch.from_numpy(array) for array in draw_inputs(config).values()]
        seconds = []
        with torch.inference_mode():
            for _ in range(1 + repeats):
                started = time.perf_counter()
                model(*inputs)
                seconds.append(time.perf_counter() - started)
        found["lengths"].append(config.sequence_length)
        found["seconds"].append(statistics.median(seconds[1:]))
        progress(f"{config.sequence_length} bp: {found['seconds'][-1]:.2f} s")
    found["exponent"] = exponent(found["lengths"], found["seconds"])
    return found | {"linear": found["exponent"] <= LARGEST_EXPONENT}


def exponent(lengths: Sequence[float], seconds: Sequence[float]) -> float:
    """The power of the length that the seconds grow with."""
    return float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0])


def picture(found: dict[str, Any]) -> str:
    """SVG of seconds by base pairs, with the straight line from nothing through the longest window."""
    lengths, seconds = found["lengths"], found["seconds"]
    curves = {
        "port": list(zip(lengths, seconds, strict=True)),
        "linear": [(length, seconds[-1] * length / lengths[-1]) for length in lengths],
    }
    return draw(curves, [("seconds of a forward pass", ("port", "linear"))], across="{:.0f} bp")


def main() -> int:
    """Command line; exit status 1 when the cost grows faster than the window."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=tuple(BINS), default="full", help="widths of the model")
    parser.add_argument("--repeats", type=int, default=1, help="timed passes at each length")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="SVG file to write")
    arguments = parser.parse_args()
    found = lengths_benchmark(
        arguments.config, arguments.repeats, lambda line: print(line, file=sys.stderr, flush=True)
    )
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    if arguments.picture is not None:
        arguments.picture.write_text(picture(found), encoding="utf-8")
    return 0 if found["linear"] else 1


if __name__ == "__main__":
    sys.exit(main())
