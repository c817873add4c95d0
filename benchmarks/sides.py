"""The two sides of a measurement: reference and port with the same weights and inputs, each in a process of its own.

Frameworks are imported by the functions that use them, so that a process holds one of them only.
"""

import dataclasses
import inspect
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

ModelName = Literal["pretrain", "rampage"]
SizeName = Literal["full", "half", "quarter", "mid", "tiny"]
Kind = Literal["forward", "training"]
MODELS: tuple[ModelName, ...] = ("pretrain", "rampage")
SIZES: tuple[SizeName, ...] = ("full", "half", "quarter", "mid", "tiny")
KINDS: tuple[Kind, ...] = ("forward", "training")
BINS = {"half": 2048, "quarter": 1024, "mid": 512}
"""Of the published 4096: a half, a quarter and an eighth of the window at full width."""
CHECKPOINTED = ("checkpointed", "selective")
"""Ways of training with activation checkpointing: everything within a block is made again, or all but products."""
KERNEL_GAIN = 1.5
MASKED_SHARE = 0.15
PROJECTION, ROTARY_TABLE = "projection_matrix", "rotary_table"
LEARNING_RATE, EPSILON, CLIP = 1e-6, 1e-8, 1.0
_INPUTS = ("sequence", "atac", "motif_activity")


def configuration(size: SizeName, model: ModelName = "pretrain") -> Any:
    """The ``EpiBERTConfig`` of a size of a model."""
    from torch_impl import EpiBERTConfig

    if size == "tiny":
        return EpiBERTConfig.tiny()
    full = EpiBERTConfig.pretrain() if model == "pretrain" else EpiBERTConfig.rampage()
    if size == "full":
        return full
    bins, trimmed = BINS[size], full.output_length - full.final_output_length
    return dataclasses.replace(full, output_length=bins, final_output_length=bins - trimmed)


def prepare(folder: Path, *, size: SizeName, model: ModelName = "pretrain", batch: int = 1) -> dict[str, Any]:
    """Writes configuration, weights by checkpoint key, constants, inputs and targets; says how many parameters."""
    from safetensors.numpy import save_file

    config = configuration(size, model)
    tensors = draw_weights(config, model)
    # safetensors writes arrays in the order in which they lie in memory.
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "weights.safetensors")
    inputs = draw_inputs(config) | draw_targets(config)
    repeated = {name: np.repeat(array, batch, axis=0) for name, array in inputs.items()}
    save_file(repeated, folder / "inputs.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)), encoding="utf-8")
    trained = [row.path for row in _rows(config, model) if row.trainable]
    return {"parameters": sum(tensors[path].size for path in trained)}


def draw_weights(config: Any, model: ModelName = "pretrain") -> dict[str, np.ndarray]:
    """Weights for an ``EpiBERTConfig`` by checkpoint key, each from a seed of its own, and the port's constants."""
    import torch

    from torch_impl.random import projection_matrix, rotary_table

    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in _port_class(model)(config).state_dict().items()}
    tensors = {}
    for row in _rows(config, model):
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


def draw_targets(config: Any) -> dict[str, np.ndarray]:
    """Counts of both heads and the mask, (1, N, 1) each."""
    generator = np.random.default_rng(1)
    size = (1, config.output_length - 2 * config.crop, 1)
    target, mask = generator.exponential(size=size), generator.random(size) < MASKED_SHARE
    mask[:, 0] = True  # however few there are
    rna = generator.exponential(size=size)
    return {
        "target": target.astype(np.float32),
        "mask": mask.astype(np.int32),
        "rna_target": rna.astype(np.float32),
    }


def prepare_reference(job: dict[str, Any], folder: Path) -> Callable[[], np.ndarray]:
    """What the reference does each time it is asked; returns outputs of a forward pass, or the loss of a step."""
    import tensorflow as tf

    import tf_reference
    from tf_reference.optim import adam, adamw
    from tf_reference.training import finetuning_step, pretraining_step

    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(job["threads"])
    arguments, tensors, arrays = _read(folder)
    pretraining = job.get("model", "pretrain") == "pretrain"
    model_class = tf_reference.EpiBERT if pretraining else tf_reference.EpiBERTRampage
    known = inspect.signature(model_class).parameters
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[job["precision"]]
    model = model_class(**{key: arguments[key] for key in known if key in arguments}, dtype=policy)
    projection, table = tensors.pop(PROJECTION), tensors.pop(ROTARY_TABLE, None)
    model.build_weights()
    model.assign(tensors)
    model.set_constants(projection, table)
    given = {name: tf.constant(array) for name, array in arrays.items()}
    inputs: Any = tuple(given[name] for name in _INPUTS)

    if job.get("kind", "forward") == "training":
        rates: dict[str, Any] = {"learning_rate": LEARNING_RATE, "epsilon": EPSILON, "global_clipnorm": CLIP}
        tf.random.set_seed(1)  # dropout asks for one where operations are made deterministic
        # A graph like the original's, whatever the way.
        if pretraining:
            step = pretraining_step(model, adam(**rates), loss_type="poisson")
            return lambda: step(inputs, given["target"], given["mask"], None).numpy()
        steps = finetuning_step(model, (adamw(**rates), adamw(**rates)), loss_type="poisson")
        return lambda: steps(inputs, given["rna_target"], given["target"], given["mask"]).total.numpy()

    def call(values: tuple[tf.Tensor, ...]) -> tf.Tensor:
        output = model(values, training=False)
        return tf.cast(output if pretraining else tf.stack(output), tf.float32)

    function = tf.function(call) if job["way"] == "graph" else call
    return lambda: function(inputs).numpy()


def prepare_port(job: dict[str, Any], folder: Path) -> Callable[[], np.ndarray]:
    """The same of the port."""
    import torch

    from torch_impl import EpiBERTConfig
    from torch_impl.checkpointing import checkpoint_activations
    from torch_impl.losses import finetuning_loss, masked_loss
    from torch_impl.memory import keep_freed_memory
    from torch_impl.optim import JointOptimizer, KerasAdam, KerasAdamW, decay_groups
    from torch_impl.rampage import EpiBERTRampage, optimizer_parts

    torch.set_num_threads(job["threads"])
    keep_freed_memory()  # as the Lightning modules do
    arguments, tensors, arrays = _read(folder)
    config = EpiBERTConfig(**arguments)
    name = job.get("model", "pretrain")
    compute_dtype = {"float32": None, "bfloat16": torch.bfloat16}[job["precision"]]
    model = _port_class(name)(config, compute_dtype=compute_dtype).eval()
    state = model.state_dict()
    for row in _rows(config, name):
        state[row.name].copy_(torch.from_numpy(row.layout.to_port(tensors.pop(row.path))))
    # The constants are the port's own already: the reference takes them over.
    left = tensors.keys() - {PROJECTION, ROTARY_TABLE}
    if left:
        raise RuntimeError(f"weights without a place in the port: {sorted(left)}")
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    inputs = [given[name] for name in _INPUTS]

    if job.get("kind", "forward") == "training":
        model.train()
        if job["way"] in CHECKPOINTED:
            checkpoint_activations(model, keep_products=job["way"] == "selective")
        rates: dict[str, Any] = {"lr": LEARNING_RATE, "eps": EPSILON, "global_clipnorm": CLIP}
        if isinstance(model, EpiBERTRampage):
            parts = optimizer_parts(model)
            optimizer: torch.optim.Optimizer = JointOptimizer(
                [KerasAdamW(decay_groups(part, 1e-4), weight_decay=1e-4, **rates) for part in parts]
            )
        else:
            optimizer = KerasAdam(model.parameters(), **rates)
        function = torch.compile(model) if job["way"] == "compiled" else model

        def step() -> np.ndarray:
            optimizer.zero_grad(set_to_none=True)
            outputs = function(*inputs)
            if isinstance(model, EpiBERTRampage):
                atac, rna = (output.float() for output in outputs)
                loss = finetuning_loss(
                    given["rna_target"], rna, given["target"], atac, given["mask"], loss_type="poisson"
                ).total
            else:
                loss = masked_loss(given["target"], outputs.float(), given["mask"], loss_type="poisson")
            loss.backward()
            optimizer.step()
            return loss.detach().numpy()

        return step

    function = torch.compile(model) if job["way"] == "compiled" else model

    def forward() -> np.ndarray:
        with torch.inference_mode():
            output = function(*inputs)
            return (torch.stack(output) if isinstance(output, tuple) else output).float().numpy()

    return forward


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, load_file(folder / "weights.safetensors"), load_file(folder / "inputs.safetensors")


def _port_class(model: ModelName) -> Any:
    from torch_impl import EpiBERT, EpiBERTRampage

    return EpiBERT if model == "pretrain" else EpiBERTRampage


def _rows(config: Any, model: ModelName) -> Any:
    from weights.table import RAMPAGE_TABLE, TABLE, rows

    return rows(config, TABLE if model == "pretrain" else RAMPAGE_TABLE)
