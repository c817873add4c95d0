"""What it costs to watch: a pass in which every layer is compared, over the two forward passes that it watches.

The pre-training model in float32, batch 1, evaluation mode. Every layer of the port is fed with the reference's inputs
and compared with its outputs (the isolated reading) while both run. Each way is measured in a fresh process, with a
warm pass before.

    python -m benchmarks.harness [--config mid] [--ways streamed kept] [--out harness.json]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.forward import ENVIRONMENT, environment
from benchmarks.sides import PROJECTION, ROTARY_TABLE, SizeName, configuration, draw_inputs, draw_weights

WAYS = ("streamed", "kept")
"""Compared while both run; and after both have run, with all that their layers produced in memory."""

LIMIT = 2.0
"""Of the cost."""


def harness_benchmark(
    config: SizeName = "full",
    *,
    ways: Sequence[str] = ("streamed",),
    threads: int = 2,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measures what watching costs.

    Args:
        config: Size of the model.
        ways: Of ``streamed`` and ``kept``. At full size the latter holds 37 GB.
        threads: Threads of each framework.
        progress: Called with a line of text for each way.

    Returns:
        ``environment``, ``settings`` and for each way ``plain_seconds`` (both forward passes, unwatched), ``seconds``
        (the pass that compares), ``cost`` (what it takes beyond them, over them), ``comparisons``, ``beyond_limit``
        (how many of them differ by more than the limit for two float32 runs without float64 to decide; at full
        length sums over thousands of positions may), and in bytes
        ``plain_peak``, ``peak`` (resident memory at its highest, before and with the comparison), ``largest`` (what the
        layer with most of it is given and returns) and ``activations`` (what all layers are given and return).

    Raises:
        RuntimeError: A process fails, or a value is missing or not finite.
    """
    unknown = sorted(set(ways) - set(WAYS))
    if unknown:
        raise ValueError(f"unknown ways {unknown}; there are {', '.join(WAYS)}")
    found = {}
    for way in ways:
        command = [sys.executable, "-m", "benchmarks.harness", "--config", config, "--job", way]
        settings = {"OMP_NUM_THREADS": str(threads), "EPIBERT_THREADS": str(threads)} | ENVIRONMENT
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{way} failed with status {done.returncode}:\n{done.stderr[-4000:]}")
        found[way] = json.loads(done.stdout.splitlines()[-1])
        if progress is not None:
            progress(describe(way, found[way]))
    settings = {"config": config, "batch": 1, "threads": threads, "precision": "float32"}
    return {"benchmark": "harness", "environment": environment(), "settings": settings, "ways": found}


def describe(way: str, found: dict[str, Any]) -> str:
    """One way in a line of text."""
    sizes = {name: f"{found[name] / 1e9:.2f} GB" for name in ("plain_peak", "peak", "largest", "activations")}
    return (
        f"{way}: {found['comparisons']} comparisons ({found['beyond_limit']} beyond the limit of float32 alone) cost "
        f"{found['cost']:.2f} of the two forward passes ({found['plain_seconds']:.1f} s; limit {LIMIT:g}); "
        f"peak {sizes['plain_peak']} without, {sizes['peak']} with; layer {sizes['largest']}, all activations "
        f"{sizes['activations']}"
    )


def _measure(size: SizeName, way: str) -> dict[str, Any]:
    import tensorflow as tf
    import torch

    import tf_reference
    from parity.ladder import compare_pass
    from parity.pairs import epibert
    from parity.records import Reading, Status
    from parity.reference import LiveReference
    from parity.torch_side import TorchSide
    from torch_impl import EpiBERT
    from weights.table import rows

    threads = int(os.environ["EPIBERT_THREADS"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    torch.set_num_threads(threads)
    config = configuration(size)
    tensors, inputs = draw_weights(config), tuple(draw_inputs(config).values())
    port = EpiBERT(config).eval()
    state = port.state_dict()
    for row in rows(config):
        state[row.name].copy_(torch.from_numpy(row.layout.to_port(tensors[row.path])))
    model = tf_reference.EpiBERT(**epibert.original_arguments(config), dtype="float32")
    model.build_weights()
    projection, table = tensors.pop(PROJECTION), tensors.pop(ROTARY_TABLE, None)
    model.assign(tensors)
    model.set_constants(projection, table)
    mapped = epibert.layer_map(config)
    live = LiveReference({"float32": model}, inputs, mapped, "live", streamed=way == "streamed")
    side = TorchSide(port, mapped, epibert.set_precision)
    given = tuple(tf.constant(array) for array in inputs)
    tensors_of_port = [torch.from_numpy(array) for array in inputs]

    def plain() -> float:
        started = time.perf_counter()
        model(given, training=False)
        with torch.inference_mode():
            port(*tensors_of_port)
        return time.perf_counter() - started

    plain()
    plain_seconds, plain_peak = plain(), _peak()
    print(f"two forward passes: {plain_seconds:.1f} s", file=sys.stderr, flush=True)
    started = time.perf_counter()
    found = list(
        compare_pass(side, live, mapped, precision="float32", mode="evaluation", reading=Reading.ISOLATED, case="")
    )
    seconds = time.perf_counter() - started
    broken = [row for row in found if row.status not in (Status.PASS, Status.FAIL)]
    if broken:
        raise RuntimeError(f"{len(broken)} values are missing or not finite, first {broken[0]}")
    sizes: dict[str, int] = {}
    for row in found:
        sizes[row.port] = sizes.get(row.port, 0) + 4 * int(np.prod(row.shape or (0,)))
    return {
        "plain_seconds": plain_seconds,
        "seconds": seconds,
        "cost": seconds / plain_seconds - 1,
        "comparisons": len(found),
        "beyond_limit": sum(row.status is Status.FAIL for row in found),
        "plain_peak": plain_peak,
        "peak": _peak(),
        "largest": max(sizes.values()),
        "activations": sum(sizes.values()),
    }


def _peak() -> int:
    """Resident memory of this process at its highest, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the system reports no VmHWM")


def main() -> int:
    """Command line; exit status 1 when watching costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=("full", "mid", "tiny"), default="full", help="size of the model")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=("streamed",))
    parser.add_argument("--threads", type=int, default=2, help="threads of each framework")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--job", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        print(json.dumps(_measure(arguments.config, arguments.job)))
        return 0
    found = harness_benchmark(
        arguments.config,
        ways=arguments.ways,
        threads=arguments.threads,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return 0 if all(measured["cost"] < LIMIT for measured in found["ways"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
