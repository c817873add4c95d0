"""The port on a GPU at full size: how near it is to float64, time and memory of a forward and of a training step.

In two commands, because a GPU machine seldom has TensorFlow: the first writes what the reference computes on a
processor, the second holds the port on the device against it. Weights and inputs are drawn from seeds, the same on both
machines, so only the reference's outputs travel.

    python -m benchmarks.device reference outputs.npz [--config tiny]
    python -m benchmarks.device measure [--reference outputs.npz] [--config tiny] [--device cuda] [--out device.json]
"""

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import inspect
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sides import PROJECTION, ROTARY_TABLE, draw_inputs, draw_weights
from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl.checkpointing import checkpoint_activations
from torch_impl.losses import masked_loss
from torch_impl.optim import KerasAdam
from weights.table import rows

CONFIGS = {"full": EpiBERTConfig.pretrain, "tiny": EpiBERTConfig.tiny}
PRECISIONS = ("float32", "tf32", "bfloat16", "autocast")
"""float32 products; the same in TF32; the original's ``mixed_bfloat16``; PyTorch's own ``bf16-mixed``."""
REPEATS, WARM_UP = 10, 3
LARGEST_BATCH = 64
MASKED_SHARE = 0.15
PEAK_SIZE = 8192
COPIED_BYTES = 1 << 31
SHORTER = 4
"""Part of the window that gradients are compared on: in float64 the whole one takes more than there is."""


def reference_outputs(config: str) -> dict[str, np.ndarray]:
    """What the reference computes on the processor, (1, N, 1) each, in float32 and bfloat16; needs TensorFlow."""
    import tensorflow as tf

    import tf_reference

    settings = dataclasses.asdict(CONFIGS[config]())
    known = inspect.signature(tf_reference.EpiBERT).parameters
    arrays = draw_inputs(CONFIGS[config]())
    found = {}
    for precision, policy in (("float32", "float32"), ("bfloat16", "mixed_bfloat16")):
        tensors = draw_weights(CONFIGS[config]())
        model = tf_reference.EpiBERT(**{key: settings[key] for key in known if key in settings}, dtype=policy)
        projection, table = tensors.pop(PROJECTION), tensors.pop(ROTARY_TABLE, None)
        model.build_weights()
        model.assign(tensors)
        model.set_constants(projection, table)
        output = model(tuple(tf.constant(array) for array in arrays.values()), training=False)
        found[precision] = tf.cast(output, tf.float32).numpy()
        del model, output
        gc.collect()
    return found | {"content": np.array(_content(CONFIGS[config]()))}


def measure(
    config: str = "full",
    *,
    device: str = "cuda",
    reference: dict[str, np.ndarray] | None = None,
    compiled: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures the port on a device.

    Args:
        config: ``full`` or ``tiny``.
        device: ``cuda``, or ``cpu`` to try the measurement out.
        reference: What ``reference_outputs`` found.
        compiled: Measure ``torch.compile`` as well.
        progress: Called with a line for each figure.

    Returns:
        ``environment``; ``ceilings`` (products in TFLOP/s by precision, copying in GB/s); ``flops`` of one forward and
        of one training step at batch 1, recomputation not counted; ``parity`` (relative L2 distance to the port's
        float64 on the device, of port and reference, and their ratio); ``gradients`` (the same of all gradients
        together, on a shorter window); ``forward`` and ``training``: for each way the median ``seconds`` of a step,
        the peak of the device's memory in ``bytes``, and ``utilisation``, the share of the measured product rate in
        that precision that the model's operations make up.

    Raises:
        RuntimeError: There is no such device, or the reference had other weights or inputs.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device")
    shape = CONFIGS[config]()
    if reference is not None and str(reference["content"]) != _content(shape):
        raise RuntimeError("the reference computed with other weights or inputs; write its outputs anew")
    measured: dict[str, Any] = {"environment": _environment(device), "config": config, "ceilings": _ceilings(device)}
    progress(json.dumps(measured))
    measured["flops"] = _operations(shape)
    measured["parity"] = _parity(shape, device, reference)
    progress(json.dumps({name: measured[name] for name in ("flops", "parity")}))
    measured["gradients"] = _gradient_distances(shape, device)
    progress(json.dumps({"gradients": measured["gradients"]}))
    measured["forward"], measured["training"] = [], []

    def note(kind: str, **way: Any) -> dict[str, Any]:
        run = _forward if kind == "forward" else _training_step
        found = _timed(lambda: run(shape, device, **way), device)
        entry: dict[str, Any] = {**way, **found}
        if "seconds" in found:
            rate = measured["flops"][kind] * way["batch"] / found["seconds"]
            peak = "bfloat16" if way["precision"] == "autocast" else way["precision"]
            entry["utilisation"] = rate / (measured["ceilings"][peak] * 1e12)
        measured[kind].append(entry)
        progress(json.dumps({kind: entry}))
        return entry

    for precision in PRECISIONS:
        for kind in ("forward", "training"):
            note(kind, precision=precision, batch=1)
    if compiled:
        for kind in ("forward", "training"):
            note(kind, precision="bfloat16", batch=1, compiled=True)
    for checkpointed in (False, True):
        batch = 2
        while batch <= (LARGEST_BATCH if device == "cuda" else 2):
            if "seconds" not in note("training", precision="bfloat16", batch=batch, checkpointed=checkpointed):
                break
            batch *= 2
    return measured


# --- what is measured -------------------------------------------------------------------------------------------------


def _port(config: EpiBERTConfig, device: str, precision: str) -> EpiBERT:
    """A port with the drawn weights."""
    model = EpiBERT(config)
    state, tensors = model.state_dict(), draw_weights(config)
    for row in rows(config):
        state[row.name].copy_(torch.from_numpy(row.layout.to_port(tensors[row.path])))
    if precision == "float64":
        return model.to(device, torch.float64)
    model.compute_dtype = torch.bfloat16 if precision == "bfloat16" else None
    return model.to(device)


@contextlib.contextmanager
def _arithmetic(device: str, precision: str) -> Iterator[None]:
    """TF32 where it is asked for and nowhere else, and PyTorch's automatic mixing."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with (
            torch.backends.cudnn.flags(allow_tf32=precision == "tf32"),
            torch.autocast(device, torch.bfloat16, enabled=precision == "autocast"),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(kept)


def _inputs(config: EpiBERTConfig, device: str, batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.from_numpy(array).to(device, dtype).expand(batch, -1, -1) for array in draw_inputs(config).values()]


def _targets(config: EpiBERTConfig, device: str, batch: int) -> tuple[Tensor, Tensor]:
    """Counts and mask, (B, N, 1) each."""
    generator = np.random.default_rng(1)
    size = (batch, config.output_length - 2 * config.crop, 1)
    target, mask = generator.exponential(size=size), generator.random(size) < MASKED_SHARE
    mask[:, 0] = True  # however few there are
    return torch.from_numpy(target).to(device, torch.float32), torch.from_numpy(mask).to(device, torch.int32)


def _parity(
    config: EpiBERTConfig, device: str, reference: dict[str, np.ndarray] | None
) -> dict[str, dict[str, float | None]]:
    outputs = {}
    for precision in ("float64", *PRECISIONS):
        model = _port(config, device, precision).eval()
        dtype = torch.float64 if precision == "float64" else torch.float32
        with torch.inference_mode(), _arithmetic(device, precision):
            outputs[precision] = model(*_inputs(config, device, 1, dtype)).double().cpu().numpy()
        del model
        _release(device)
    truth = outputs["float64"]
    found: dict[str, dict[str, float | None]] = {}
    for precision in PRECISIONS:
        own = _distance(outputs[precision], truth)
        beside = "float32" if precision in ("float32", "tf32") else "bfloat16"
        theirs = None if reference is None else _distance(reference[beside], truth)
        found[precision] = {"port": own, "reference": theirs, "ratio": None if theirs is None else own / theirs}
    return found


def _gradient_distances(config: EpiBERTConfig, device: str) -> dict[str, float]:
    trimmed = config.output_length - config.final_output_length
    bins = config.output_length // SHORTER
    shorter = dataclasses.replace(
        config, output_length=bins, final_output_length=bins - trimmed, dropout_rate=0.0, pointwise_dropout_rate=0.0,
        motif_dropout_rate=0.0,
    )  # fmt: skip
    found: dict[str, Tensor] = {}
    for precision in ("float64", *PRECISIONS):
        model = _port(shorter, device, precision).train()
        dtype = torch.float64 if precision == "float64" else torch.float32
        target, mask = _targets(shorter, device, 1)
        with _arithmetic(device, precision):
            output = model(*_inputs(shorter, device, 1, dtype))
            loss = masked_loss(target.to(dtype), output.to(dtype), mask, loss_type="poisson")
            loss.backward()
        gradients = []
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                raise RuntimeError(f"{name} has no gradient in {precision}")
            gradients.append(parameter.grad)
        found[precision] = torch.cat([gradient.double().flatten() for gradient in gradients]).cpu()
        del model, output, loss, gradients, parameter
        _release(device)
    truth = found.pop("float64")
    return {precision: float((value - truth).norm() / truth.norm()) for precision, value in found.items()}


Step = Callable[[], None]


def _forward(
    config: EpiBERTConfig, device: str, *, precision: str, batch: int, compiled: bool = False
) -> Step:  # fmt: skip
    model = _port(config, device, precision).eval()
    arguments = _inputs(config, device, batch)
    function = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.inference_mode(), _arithmetic(device, precision):
            function(*arguments)

    return step


def _training_step(
    config: EpiBERTConfig,
    device: str,
    *,
    precision: str,
    batch: int,
    compiled: bool = False,
    checkpointed: bool = False,
) -> Step:
    """Forward, loss, backward and optimizer, with dropout, as the Lightning module makes them."""
    model = _port(config, device, precision).train()
    if checkpointed:
        checkpoint_activations(model)
    optimizer = KerasAdam(model.parameters(), lr=1e-6, eps=1e-8, global_clipnorm=1.0)
    arguments, (target, mask) = _inputs(config, device, batch), _targets(config, device, batch)
    function = torch.compile(model) if compiled else model

    def step() -> None:
        with _arithmetic(device, precision):
            loss = masked_loss(target, function(*arguments).float(), mask, loss_type="poisson")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _timed(make: Callable[[], Step], device: str) -> dict[str, Any]:
    """Median seconds and peak memory of a step; where the memory does not suffice, ``error`` instead."""
    _release(device)
    try:
        started = time.perf_counter()
        step = make()
        for _ in range(WARM_UP):
            step()
        _wait(device)
        warm_up = time.perf_counter() - started
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            step()
            _wait(device)
            seconds.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    finally:
        step = None
        _release(device)
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "warm_up_seconds": warm_up,
        "bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _ceilings(device: str) -> dict[str, float]:
    """What the device reaches: products of large matrices in TFLOP/s, copying in GB/s, read and written counted."""
    size = PEAK_SIZE if device == "cuda" else 512
    found = {}
    for precision, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        factors = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]
        with _arithmetic(device, precision):
            seconds = _median(lambda factors=factors: torch.mm(*factors), device)
        found[precision] = 2 * size**3 / seconds / 1e12
    length = COPIED_BYTES if device == "cuda" else 1 << 24
    source, target = (torch.empty(length, dtype=torch.uint8, device=device) for _ in range(2))
    found["copy"] = 2 * length / _median(lambda: target.copy_(source), device) / 1e9
    return found


def _median(step: Callable[[], object], device: str) -> float:
    seconds = []
    for index in range(WARM_UP + REPEATS):
        _wait(device)
        started = time.perf_counter()
        step()
        _wait(device)
        if index >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _operations(config: EpiBERTConfig) -> dict[str, int]:
    """Floating-point operations of products and convolutions at batch 1, counted without computing anything."""
    with torch.device("meta"):
        model = EpiBERT(config).to("meta")  # the constants are made by NumPy
        arguments = [
            torch.empty(1, config.sequence_length, 4),
            torch.empty(1, config.atac_length, 1),
            torch.empty(1, 1, config.num_motifs),
        ]
    counts = {}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*arguments)
    counts["forward"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model.train()(*arguments).sum().backward()
    counts["training"] = counter.get_total_flops()
    return counts


def _distance(value: np.ndarray, truth: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(value.astype(np.float64) - truth) / np.linalg.norm(truth))


def _content(config: EpiBERTConfig) -> str:
    """Hash of weights and inputs: another version of NumPy might draw others."""
    digest = hashlib.sha256()
    for name, array in sorted({**draw_weights(config), **draw_inputs(config)}.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _environment(device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _release(device: str) -> None:
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("reference", "measure"))
    parser.add_argument("file", type=Path, nargs="?", help="of the task `reference`: the file to write")
    parser.add_argument("--config", choices=tuple(CONFIGS), default="full", help="size of the model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--reference", type=Path, help="what the task `reference` wrote")
    parser.add_argument("--without_compiler", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.task == "reference":
        if arguments.file is None:
            parser.error("the file to write is missing")
        np.savez(arguments.file, allow_pickle=False, **reference_outputs(arguments.config))
        return 0
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    result = measure(
        arguments.config,
        device=arguments.device,
        reference=None if arguments.reference is None else dict(np.load(arguments.reference)),
        compiled=not arguments.without_compiler,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    text = json.dumps(result, indent=1)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
