"""The published EpiBERT, made from a clone of its repository: what ``epibert record --repo`` hands to the recorder.

This file runs in the Python of the published code (TensorFlow 2.12 with Keras 2 and TensorFlow Addons) and imports
nothing of ours; its syntax is that of Python 3.8.

The published code computes in mixed bfloat16 alone. Two of its places are changed in memory while it runs, so that it
computes in float64 and float32 as well, and neither change does anything in bfloat16: the rotary table, once rounded to
bfloat16, is widened to the type of the activations, and the ones of the attention's denominator have that type. Its
BatchNorm is not synchronized between replicas, of which there is one here: in float64 TensorFlow 2.12 fails there. The
fine-tuning model returns its profiles alone; the attention's features are recorded as what its layers return.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Mapping

import numpy as np

input_names = ("sequence", "atac", "motif_activity")
"""In the order in which the model takes them."""

_LAYOUTS = (("", "src.models."), ("src", "epibert.models."), ("", "src.epibert.models."))
"""Where the models lie in a clone: (folder to import from, package), by the age of the layout."""

_MODULES = {"pretraining": "epibert_atac_pretrain", "finetuning": "epibert_rampage_finetune"}


def build(
    repo: str,
    kind: str,
    config: Mapping[str, Any],
    checkpoint: str | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Any:
    """The model of a clone, under Keras' present policy.

    Args:
        repo: Folder of the clone.
        kind: ``pretraining`` or ``finetuning``.
        config: Constructor arguments.
        checkpoint: Prefix of a TensorFlow checkpoint; fresh weights without one.
        left_out: {name: reason} of what a comparison leaves open, for the recording alone.

    Raises:
        ValueError: The folder is no clone, or the checkpoint does not hold every variable of the model.
    """
    import tensorflow as tf

    module = _import(Path(repo), _MODULES[kind])
    _allow_every_precision(module)
    model = _without_features(_model_class(module))(**config)
    _build(model, config)
    policy = tf.keras.mixed_precision.global_policy()
    if policy.compute_dtype != "bfloat16":
        for layer in model.submodules:
            if getattr(layer, "synchronized", False):
                layer.synchronized = False
    # In float64 the recorder moves the weights: a checkpoint of float32 numbers goes into float32 variables alone.
    if checkpoint is not None and policy.variable_dtype == "float32":
        status = tf.train.Checkpoint(model=model).restore(checkpoint)
        status.expect_partial()
        status.assert_existing_objects_matched()
    return model


def constants(model: Any) -> dict[str, Any]:
    """Projection matrix, one for all layers, and rotary table, rounded to bfloat16 as it is used."""
    import tensorflow as tf

    matrices = [np.asarray(layer.self_attention.projection_matrix, np.float32) for layer in model.performer.layers]
    for matrix in matrices:
        if not np.array_equal(matrix, matrices[0]):
            raise ValueError("the layers have different projection matrices; the port has one")
    table = tf.cast(tf.cast(model.performer.layer_pos_emb.emb, tf.bfloat16), tf.float32)
    return {"projection_matrix": matrices[0], "rotary_table": table.numpy()}


def _import(repo: Path, name: str) -> Any:
    for folder, package in _LAYOUTS:
        root = repo / folder
        if (root / package.replace(".", "/") / (name + ".py")).is_file():
            # Of the folders of a clone, those without an __init__.py are packages all the same.
            sys.path.insert(0, str(root.resolve()))
            return importlib.import_module(package + name)
    raise ValueError(f"{repo} is no clone of EpiBERT: it has no {name}.py where its models lie")


def _model_class(module: Any) -> Any:
    """The one Keras model that a module defines: ``epibert`` at first, later by the name of the module."""
    import tensorflow as tf

    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, tf.keras.Model) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        raise ValueError(f"{module.__file__}: expected one Keras model, there is {names}")
    return found[0]


def _without_features(model_class: Any) -> Any:
    """The class with the profiles as all that a call returns.

    With both heads the fine-tuning model also returns the features of its attention.
    """

    def call(self: Any, inputs: Any, training: bool = True) -> Any:
        returned = model_class.call(self, inputs, training=training)
        if not isinstance(returned, tuple):
            return returned
        return tuple(part for part in returned if not isinstance(part, Mapping))

    return type(model_class.__name__, (model_class,), {"call": call})


def _allow_every_precision(module: Any) -> None:
    import tensorflow as tf

    layers = sys.modules[module.Performer_Encoder.__module__]
    table, attention = layers.FixedPositionalEmbedding, layers.snnk_attention
    if getattr(attention, "computes_in_every_precision", False):
        return
    rounded = table.call

    def widened(self: Any, x: Any) -> Any:
        return tf.cast(rounded(self, x), x.dtype)

    def denominator(queries: Any, keys: Any) -> Any:
        key_sum = tf.einsum("lbhm,l->bhm", keys, tf.ones([keys.shape[0]], keys.dtype))
        return tf.einsum("lbhm,bhm->lbh", queries, key_sum)

    table.call = widened
    attention.noncausal_denominator = denominator
    attention.computes_in_every_precision = True


def _build(model: Any, config: Mapping[str, Any]) -> None:
    """One pass over a window of zeros makes every variable."""
    import tensorflow as tf

    bins = config["output_length"]
    dtype = tf.keras.mixed_precision.global_policy().compute_dtype
    shapes = (
        (1, bins * 2 ** (1 + len(config["filter_list_seq"])), 4),
        (1, bins * 2 * 4 ** len(config["filter_list_atac"]), 1),
        (1, 1, config["num_motifs"]),
    )
    model(tuple(tf.zeros(shape, dtype) for shape in shapes), training=False)
