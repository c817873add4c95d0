"""What a forward pass has to compute and to move, stage by stage, and the least time that a machine needs for it.

Counted on paper from the configuration, without running anything: the operations of products (a multiplication and an
addition are two), and bytes. ``ROOFLINE.md`` is made with the tables that this prints.

    python -m benchmarks.roofline [--config full] [--measure]
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl import model as model_module
from torch_impl.model import ATAC_STEM_KERNEL_SIZE, ATAC_STEM_WIDTH, STEM_KERNEL_SIZE, TOWER_KERNEL_SIZE

CONFIGS = {"full": EpiBERTConfig.pretrain, "rampage": EpiBERTConfig.rampage, "tiny": EpiBERTConfig.tiny}
ATAC_STEM_POOL, ATAC_TOWER_POOL = 2, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine reaches: products in operations a second, memory in bytes a second."""

    name: str
    products: float
    memory: float


H200 = {
    "float32": Machine(name="H200, float32", products=67e12, memory=4.8e12),
    "bfloat16": Machine(name="H200, bfloat16", products=989e12, memory=4.8e12),
}
"""From the vendor's data sheet, dense products; not measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a forward pass at batch 1.

    Attributes:
        name: Which.
        flops: Operations of its products.
        moved: Numbers that come in and go out, and weights: what has to be moved even if nothing between its layers
            leaves the cache.
        layered: Numbers that are moved when every layer reads its input from memory and writes its output there.
    """

    name: str
    flops: int
    moved: int
    layered: int

    def floor(self, machine: Machine, size: int, *, layered: bool = False) -> float:
        """The least seconds: products and memory at their rates, both at the same time."""
        return max(self.flops / machine.products, (self.layered if layered else self.moved) * size / machine.memory)


def stages(config: EpiBERTConfig, heads: int = 1) -> list[Stage]:
    """The stages of a forward pass, in the order in which the model runs them.

    Args:
        config: Of the model.
        heads: 1 for ``EpiBERT``, 2 for ``EpiBERTRampage``.
    """
    return list(_stages(config, heads))


def training_flops(config: EpiBERTConfig, heads: int = 1) -> int:
    """Operations of the products of a training step: of each product also both gradients.

    Inputs and the projection matrix of attention need none.
    """
    forward = sum(stage.flops for stage in stages(config, heads))
    by_inputs = (
        2 * config.sequence_length * 4 * STEM_KERNEL_SIZE * config.filter_list_seq[0]
        + 2 * config.atac_length * ATAC_STEM_KERNEL_SIZE * ATAC_STEM_WIDTH
        + 2 * config.num_motifs * config.motif_units_fc
    )
    features = config.output_length * config.num_heads * config.num_random_features
    by_projection = config.num_transformer_layers * 2 * 2 * features * config.head_size
    return 3 * forward - by_inputs - by_projection


def _stages(config: EpiBERTConfig, heads: int) -> Iterator[Stage]:
    length, width = config.sequence_length, config.filter_list_seq[0]
    yield _convolutional("stem", length, 4, width, kernels=(STEM_KERNEL_SIZE, 1), pool=2, weighted=True, residual=True)
    for index, (before, after) in enumerate(
        zip((width, *config.filter_list_seq[:-1]), config.filter_list_seq, strict=True)
    ):
        length //= 2
        yield _convolutional(
            f"tower {index}", length, before, after, kernels=(TOWER_KERNEL_SIZE,), pool=2, weighted=True
        )
    length, width = config.atac_length, ATAC_STEM_WIDTH
    yield _convolutional(
        "stem, accessibility", length, 1, width, kernels=(ATAC_STEM_KERNEL_SIZE, 1), pool=ATAC_STEM_POOL, residual=True
    )
    length //= ATAC_STEM_POOL
    for index, after in enumerate(config.filter_list_atac):
        yield _convolutional(
            f"tower {index}, accessibility", length, width, after, kernels=(TOWER_KERNEL_SIZE,), pool=ATAC_TOWER_POOL
        )
        length, width = length // ATAC_TOWER_POOL, after

    bins, hidden, units = config.output_length, config.hidden_size, config.motif_units_fc
    weights = config.num_motifs * units + units * (units // 4)
    yield Stage(name="motif activity", flops=2 * weights, moved=weights, layered=weights)
    joined = hidden + config.filter_list_atac[-1] + units // 4
    moved = bins * (joined + hidden) + joined * hidden
    yield Stage(
        name="projection", flops=2 * bins * joined * hidden, moved=moved, layered=moved + 2 * bins * joined
    )  # the joined activations are written first

    layers, square, activation = config.num_transformer_layers, hidden**2, bins * hidden
    features = bins * config.num_heads * config.num_random_features
    # Four projections; features of queries and keys, sums over keys, products with queries.
    yield Stage(
        name=f"attention, {layers} layers",
        flops=layers * (2 * bins * 4 * square + 4 * 2 * features * config.head_size),
        moved=layers * (2 * activation + 4 * square),
        # Norm 2, projections 8, rotation 4, features of two from two and back, values, result, residual sum.
        layered=layers * (20 * activation + 4 * features + 4 * square),
    )
    yield Stage(
        name=f"feed-forward, {layers} layers",
        flops=layers * 2 * bins * 4 * square,
        moved=layers * (2 * activation + 4 * square),
        layered=layers * ((2 + 3 + 4 + 3 + 3) * activation + 4 * square),
    )
    narrow = hidden // config.final_point_scale
    moved = heads * (bins * hidden + hidden * narrow)
    yield Stage(
        name="heads",
        flops=heads * 2 * bins * narrow * (hidden + 1),
        moved=moved,
        layered=moved + heads * bins * (4 * hidden + 4 * narrow),
    )


def _convolutional(
    name: str,
    length: int,
    channels_in: int,
    width: int,
    *,
    kernels: tuple[int, ...],
    pool: int,
    weighted: bool = False,
    residual: bool = False,
) -> Stage:
    """Convolutions, the first from another width and the others from and to ``width``, then a pooling.

    Args:
        name: Of the stage.
        length: Positions.
        channels_in: Channels that come in.
        width: Channels within.
        kernels: Sizes of the convolutions.
        pool: Positions that become one.
        weighted: The pooling computes a logit for each position.
        residual: The second convolution, with its norm and activation, is added to what it started from. Without one,
            norm and activation precede the first.
    """
    weights = kernels[0] * channels_in * width + sum(size * width**2 for size in kernels[1:])
    flops = 2 * length * (weights + (width if weighted else 0))
    outside = length * channels_in + length // pool * width
    moved = outside + weights
    inside = length * width
    if residual:
        # The first convolution's result; norm and activation, read and written; the second; the sum of two; pooling.
        layered = moved + (1 + 2 + 2 + 2 + 3 + 1) * inside
    else:
        layered = moved + 4 * length * channels_in + 2 * inside
    return Stage(name=name, flops=flops, moved=moved, layered=layered)


# --- this machine -----------------------------------------------------------------------------------------------------


def measured_machine(precision: str = "float32") -> Machine:
    """What all cores together reach here: products of 2048 x 2048 matrices, copying half a gigabyte (read and written).

    The best of several: what else the machine does only takes away from it.
    """
    dtype = getattr(torch, precision)
    factors = [torch.randn(2048, 2048).to(dtype) for _ in range(2)]
    products = 2 * 2048**3 / _best(lambda: torch.mm(*factors))
    source, target = torch.ones(1 << 27), torch.ones(1 << 27)
    memory = 2 * source.nbytes / _best(lambda: target.copy_(source))
    return Machine(name=f"{torch.get_num_threads()} threads, {precision}", products=products, memory=memory)


def measured_stages(config: EpiBERTConfig, repeats: int = 2) -> dict[str, float]:
    """Seconds of the stages of a forward pass of the port here, by name; attention and feed-forward together."""
    model = EpiBERT(config).eval()
    sequence = torch.nn.functional.one_hot(torch.randint(4, (1, config.sequence_length)), 4).float()
    arguments = (sequence, torch.rand(1, config.atac_length, 1), torch.rand(1, 1, config.num_motifs))
    convolutional = [stage.name for stage in stages(config) if "tower" in stage.name or "stem" in stage.name]
    seconds: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = run()
        seconds.setdefault(name, []).append(time.perf_counter() - started)
        return found

    by_pieces, performer = model_module._by_pieces, model.performer.forward
    # Every forward pass runs the same stages in the same order.
    names = itertools.cycle(convolutional)

    def timed_stage(*given: Any, **options: int) -> torch.Tensor:
        return timed(next(names), lambda: by_pieces(*given, **options))

    with (
        torch.inference_mode(),
        mock.patch.object(model_module, "_by_pieces", timed_stage),
        mock.patch.object(model.performer, "forward", lambda x: timed("transformer", lambda: performer(x))),
    ):
        for _ in range(1 + repeats):
            timed("all", lambda: model(*arguments))
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def _best(run: Callable[[], object], repeats: int = 7) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def table(config: EpiBERTConfig, machines: list[tuple[Machine, int]], measured: dict[str, float] | None = None) -> str:
    """Markdown: a row a stage with GFLOP, megabytes of float32 and floors in milliseconds; what was measured last.

    Args:
        config: Of the model.
        machines: Each with the bytes of a number there.
        measured: What ``measured_stages`` found.
    """
    measured = measured or {}
    names = ["stage", "GFLOP", "MB", "MB by layers", *(f"{machine.name}, ms" for machine, _ in machines)]
    rows = [[*names, "measured, ms"], ["---", *["---:"] * len(names)]]
    found = stages(config)
    whole = Stage(
        name="all", **{key: sum(getattr(stage, key) for stage in found) for key in ("flops", "moved", "layered")}
    )
    for stage in (*found, whole):
        floors = [
            sum(one.floor(machine, size) for one in found) if stage is whole else stage.floor(machine, size)
            for machine, size in machines
        ]
        taken = measured.get(stage.name)
        rows.append(
            [
                stage.name,
                f"{stage.flops / 1e9:.1f}",
                f"{stage.moved * 4 / 1e6:.0f}",
                f"{stage.layered * 4 / 1e6:.0f}",
                *(f"{seconds * 1e3:.3g}" for seconds in floors),
                "" if taken is None else f"{taken * 1e3:.0f}",
            ]
        )
    if "transformer" in measured:
        rows.append(["transformer", *[""] * (len(names) - 1), f"{measured['transformer'] * 1e3:.0f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="full")
    parser.add_argument("--measure", action="store_true", help="time the stages of the port (config full or tiny)")
    arguments = parser.parse_args()
    config = CONFIGS[arguments.config]()
    heads = 2 if arguments.config == "rampage" else 1
    here = {precision: measured_machine(precision) for precision in ("float32", "bfloat16")}
    for machine in here.values():
        print(f"{machine.name}: {machine.products / 1e9:.0f} GFLOP/s, {machine.memory / 1e9:.1f} GB/s")
    measured = measured_stages(config) if arguments.measure else None
    machines = [(here["float32"], 4), (H200["float32"], 4), (H200["bfloat16"], 2)]
    print(table(config, machines, measured))
    forward = sum(stage.flops for stage in stages(config, heads))
    print(f"forward {forward / 1e12:.3f} TFLOP, training step {training_flops(config, heads) / 1e12:.3f} TFLOP")
    if measured is not None:
        share = forward / measured["all"] / here["float32"].products
        print(f"float32 forward: {share:.0%} of the measured rate of products")


if __name__ == "__main__":
    main()
