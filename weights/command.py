"""What `epibert weights inspect | transplant | transfer | export | diff` do.

Exit status: 0 good, 1 different, 2 bad input. The functions raise `CheckpointError` for bad input; the command line
prints it and exits with status 2.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights.checkpoint import Checkpoint, open_checkpoint, read_checkpoint
from weights.configuration import Inferred, infer_configuration
from weights.errors import ConfigurationError
from weights.export import CheckpointTensors, export, wide_enough
from weights.keras_weights import KerasWeights
from weights.lightning_checkpoint import LightningCheckpoint, is_lightning_checkpoint, load_lightning
from weights.mapping import canonical_shapes, is_fine_tuning
from weights.model_directory import (
    is_model_directory,
    load_config,
    load_saved_training_state,
    load_transplanted,
    read_arguments,
)
from weights.object_graph import GRAPH_KEY, SUFFIX
from weights.transfer import transfer
from weights.transplant import CONFIG_FILE, Transplant, transplant

ConstantsChoice = Literal["auto", "tensorflow", "philox"]


def _infer(checkpoint: Checkpoint) -> Inferred | None:
    """The configuration in a checkpoint's shapes; None for a Keras file, whose keys do not say what is what."""
    if isinstance(checkpoint, KerasWeights):
        return None
    return infer_configuration(canonical_shapes(checkpoint))


def choose_configuration(checkpoint: Checkpoint, config: str | None = None, seed: int | None = None) -> EpiBERTConfig:
    """The configuration for a checkpoint: what its shapes say, then what a file says, then the original's defaults.

    Args:
        checkpoint: an opened checkpoint.
        config: JSON file with constructor arguments; what it leaves out is inferred. A Keras file needs all of them.
        seed: over the file's.

    Raises:
        CheckpointError: the file cannot be read or contradicts the shapes, or nothing tells the sizes.
    """
    arguments = {} if config is None else read_arguments(config)
    if seed is not None:
        arguments["seed"] = seed
    inferred = _infer(checkpoint)
    if inferred is not None:
        return inferred.config(**arguments)
    if config is None:
        raise ConfigurationError("this checkpoint does not say what its tensors are: give a configuration")
    chosen = load_config(config)
    return chosen if seed is None else dataclasses.replace(chosen, seed=seed)


def _console() -> Console:
    """A console for tables. A pipe has no width, and a table cut to eighty columns would hide what it lists."""
    # Paths and keys may hold brackets, which rich would take for markup.
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=200, markup=False)


def inspect(checkpoint: str) -> int:
    """Show every tensor of a checkpoint and the configuration that its shapes imply.

    Args:
        checkpoint: a TensorFlow checkpoint (prefix, directory or .index), a SavedModel directory, a Keras .h5 file, or
            a Lightning checkpoint, whose tensors are shown under the names that they would have in the first.

    Returns:
        0.

    Raises:
        CheckpointError: missing, damaged, or no checkpoint.
    """
    found = LightningCheckpoint(checkpoint) if is_lightning_checkpoint(checkpoint) else read_checkpoint(checkpoint)
    console = _console()
    table = Table(title=f"{checkpoint}: {found.kind}, {len(found)} tensors")
    for heading in ("key", "shape", "dtype", "mean", "std"):
        table.add_column(heading, overflow="fold", no_wrap=False)
    numbers = 0
    for key in found:
        shape, dtype = found.shape(key), found.dtype(key)
        mean = deviation = ""
        if dtype.kind != "O":
            array = found[key].astype(np.float64)
            numbers += array.size
            if array.size:
                mean, deviation = f"{array.mean():.6g}", f"{array.std():.6g}"
        table.add_row(key.removesuffix(SUFFIX), str(shape), str(dtype), mean, deviation)
    console.print(table)
    console.print(f"{numbers:,} numbers; every checksum holds" if found.has_checksums else f"{numbers:,} numbers")
    inferred = _infer(found)
    if inferred is None:
        console.print("A Keras file names no attributes: give transplant a configuration.")
        return 0
    summary = Table(title=f"configuration of a {'fine-tuning' if inferred.fine_tuning else 'pre-training'} model")
    for heading in ("argument", "value", "from"):
        summary.add_column(heading)
    for name, value in inferred.values.items():
        summary.add_row(name, str(value), "shapes")
    for name, value in inferred.assumed.items():
        summary.add_row(name, str(value), "default, not in the checkpoint")
    console.print(summary)
    for complaint in inferred.complaints:
        console.print(complaint, style="red")
    return 0


def transplant_command(
    checkpoint: str,
    out: str,
    config: str | None = None,
    seed: int | None = None,
    constants: ConstantsChoice = "auto",
    overwrite: bool = False,
) -> int:
    """Turn a checkpoint of the original, pre-training or fine-tuning, into a PyTorch model, with evidence.

    Args:
        checkpoint: a TensorFlow checkpoint (prefix, directory or .index), a SavedModel directory, a Keras .h5 file, or
            a Lightning checkpoint of `epibert train`, which tells its configuration and holds the constants.
        out: folder for model.safetensors, config.json, transplant.json and the training state.
        config: JSON file with constructor arguments. What it leaves out is inferred from the checkpoint's shapes or
            has the original's default.
        seed: seed of the projection matrix, which the checkpoint does not tell; overrides the configuration's.
        constants: where projection matrix and rotary table come from; auto is TensorFlow if installed, else philox.
        overwrite: replace an earlier result in the folder.

    Returns:
        0.

    Raises:
        CheckpointError: anything that keeps the result from being complete; then nothing is written.
    """
    if is_lightning_checkpoint(checkpoint):
        if config is not None or seed is not None:
            raise ConfigurationError(f"{checkpoint} tells its configuration: leave config and seed out")
        opened = LightningCheckpoint(checkpoint)
        # Filled once more, as from any other source, so that the record says of each tensor what it was.
        model = opened.model
        record = transplant(opened, model, constants="keep" if constants == "auto" else constants)
    else:
        opened = open_checkpoint(checkpoint)
        chosen = choose_configuration(opened, config, seed)
        model = EpiBERTRampage(chosen) if is_fine_tuning(opened, chosen) else EpiBERT(chosen)
        record = transplant(opened, model, constants=constants)
    record.save(out, model, overwrite=overwrite)
    _report(record, out, assumed=config is None and not isinstance(opened, LightningCheckpoint))
    return 0


def transfer_command(
    checkpoint: str,
    out: str,
    config: str | None = None,
    allow: str = "",
    pretraining_seed: int | None = None,
    head_seed: int = 0,
    constants: ConstantsChoice = "auto",
    overwrite: bool = False,
) -> int:
    """Turn a pretraining checkpoint into a model for fine-tuning: trunk and ATAC head moved, RNA head fresh.

    Args:
        checkpoint: anything that transplant takes, or a folder that transplant wrote.
        out: folder for model.safetensors, config.json and transplant.json, which lists what was moved, what is fresh
            and what was dropped.
        config: JSON file with constructor arguments of the fine-tuning model. What it leaves out is as in the
            pretrained model.
        allow: what the original does without a word, separated by commas, of layers (another number of transformer
            layers), seed (another seed), atac_head (no ATAC head).
        pretraining_seed: seed of the pretrained model's projection matrix, where the checkpoint does not tell.
        head_seed: seed of PyTorch's generator that the fresh RNA head is drawn with.
        constants: as for transplant; auto takes those of a folder that transplant wrote where they fit.
        overwrite: replace an earlier result in the folder.

    Returns:
        0.

    Raises:
        CheckpointError: anything that keeps the result from being complete; then nothing is written.
    """
    arguments = {} if config is None else read_arguments(config)
    if is_model_directory(checkpoint):
        source: Checkpoint | str = checkpoint
        told = read_arguments(Path(checkpoint) / CONFIG_FILE)
    elif is_lightning_checkpoint(checkpoint):
        source = checkpoint
        told = dataclasses.asdict(load_lightning(checkpoint)[0].config)
    else:
        source = open_checkpoint(checkpoint)
        inferred = _infer(source)
        told = {} if inferred is None else dict(inferred.values)
        if pretraining_seed is not None:
            told["seed"] = pretraining_seed
        if inferred is None and config is None:
            raise ConfigurationError("this checkpoint does not say what its tensors are: give a configuration")
    try:
        chosen = EpiBERTConfig(**{**told, **arguments})
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the configuration is impossible: {error}") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(head_seed)
        model = EpiBERTRampage(chosen)
    names = [name for name in allow.replace(",", " ").split() if name]
    record = transfer(source, model, allow=names, seed=pretraining_seed, constants=constants)
    record.save(out, model, overwrite=overwrite)
    console = Console(soft_wrap=True, markup=False)
    console.print(f"{record.kind} -> {out}")
    console.print(f"  {len(record.moved)} moved, {len(record.fresh)} fresh, {len(record.dropped)} dropped")
    for tensor in record.fresh:
        console.print(f"  fresh {tensor.name}: {tensor.reason}")
    for reason in dict.fromkeys(tensor.reason for tensor in record.dropped):
        count = sum(tensor.reason == reason for tensor in record.dropped)
        console.print(f"  dropped {count}: {reason}")
    console.print(f"  projection matrix and rotary table: {record.constants['origin']}")
    if "seed" in record.assumed:
        console.print(f"  not in the checkpoint, assumed: the seed {chosen.seed}")
    return 0


def _report(record: Transplant, out: str, *, assumed: bool) -> None:
    console = Console(soft_wrap=True, markup=False)
    roles: dict[str, int] = {}
    for tensor in record.tensors:
        roles[tensor.role] = roles.get(tensor.role, 0) + 1
    console.print(f"{record.kind} -> {out}")
    console.print("  " + ", ".join(f"{count} {role}" for role, count in roles.items()))
    for key, reason in record.ignored:
        console.print(f"  ignored {key}: {reason}")
    console.print(f"  projection matrix and rotary table: {record.constants['origin']}")
    if assumed:
        values = {name: value for name, value in record.assumed.items() if name != "name"}
        console.print(f"  not in the checkpoint, assumed: {json.dumps(values)}")


def export_command(
    model_dir: str,
    out: str,
    dtype: Literal["float32", "float64"] | None = None,
    overwrite: bool = False,
) -> int:
    """Turn a model back into a TensorFlow checkpoint, slots and counters included.

    Args:
        model_dir: folder that transplant wrote, or a Lightning checkpoint of `epibert train`: a .ckpt file, or the
            folder that a sharded model was written to.
        out: folder for ckpt-1.index, ckpt-1.data-00000-of-00001 and checkpoint.
        dtype: type of the variables; float32 unless that would round.
        overwrite: replace a checkpoint of that name.

    Returns:
        0.

    Raises:
        CheckpointError: the source is incomplete or damaged, or the result cannot be written.
    """
    model, training_state = _load(model_dir)
    prefix = export(model, out, training_state=training_state, dtype=dtype, overwrite=overwrite)
    Console(soft_wrap=True, markup=False).print(f"{model_dir} -> {prefix}")
    return 0


def _load(path: str) -> tuple[Trunk, Mapping[str, np.ndarray]]:
    """Model and training state of a folder that `transplant` wrote, or of a Lightning checkpoint."""
    if is_lightning_checkpoint(path):
        return load_lightning(path)
    return load_transplanted(path), load_saved_training_state(path)


def _tensors(path: str) -> Mapping[str, np.ndarray]:
    """Either side of a comparison under the checkpoint's keys without suffix."""
    if is_model_directory(path) or is_lightning_checkpoint(path):
        model, training_state = _load(path)
        return _Plain(CheckpointTensors(model, training_state, wide_enough(model)))
    return _Plain(read_checkpoint(path))


class _Plain(Mapping[str, np.ndarray]):
    """A mapping without TensorFlow's suffix and without the object graph, which is structure and not a tensor."""

    def __init__(self, base: Mapping[str, np.ndarray]) -> None:
        self._base = base
        self._keys = {
            (base.path(key) if isinstance(base, Checkpoint) else key.removesuffix(SUFFIX)): key
            for key in base
            if key.removesuffix(SUFFIX) != GRAPH_KEY
        }

    def __getitem__(self, key: str) -> np.ndarray:
        return self._base[self._keys[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def diff(left: str, right: str) -> int:
    """Compare two checkpoints tensor by tensor, bit by bit.

    Args:
        left: anything that `inspect` takes, a folder that `transplant` wrote, or a Lightning checkpoint.
        right: likewise.

    Returns:
        0 when both hold the same keys, shapes, types and bytes (NaN equals NaN of the same bits), else 1. The object
        graph is not compared: it is structure, and differs between writers.

    Raises:
        CheckpointError: a side cannot be read.
    """
    first, second = _tensors(left), _tensors(right)
    table = Table(title=f"{left} and {right}")
    for heading in ("key", "difference", "max |left - right|"):
        table.add_column(heading, overflow="fold")
    different = 0
    for key in sorted({*first, *second}):
        what, largest = _difference(first, second, key)
        if what:
            different += 1
            table.add_row(key, what, largest)
    console = _console()
    if different:
        console.print(table)
    console.print(f"{different} of {len({*first, *second})} tensors differ")
    return 1 if different else 0


def _difference(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], key: str) -> tuple[str, str]:
    """What is different about a key (nothing: an empty text) and by how much."""
    if key not in second:
        return "only left", ""
    if key not in first:
        return "only right", ""
    left, right = first[key], second[key]
    if left.dtype != right.dtype or left.shape != right.shape:
        return f"{left.dtype} {left.shape} against {right.dtype} {right.shape}", ""
    if left.dtype.kind == "O":
        return ("", "") if left.tolist() == right.tolist() else ("text", "")
    if left.tobytes() == right.tobytes():
        return "", ""
    with np.errstate(invalid="ignore"):
        largest = np.abs(left.astype(np.float64) - right.astype(np.float64)).max()
    return "values", f"{largest:.3g}"
