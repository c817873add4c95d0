"""Optimizers and learning rate of the original: Keras 2's Adam and AdamW, cosine decay with a warm-up.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
sections 3.3 and 3.4. tf_keras still has the optimizers of TensorFlow 2.12; here they are configured as the original
configures them, and compiled by XLA nowhere, so that every machine computes the same.
"""

import contextlib
import math
from collections.abc import Iterator

import tf_keras

EXCLUDED_FROM_WEIGHT_DECAY = (
    "bias",
    "batch_norm",
    "layer_norm",
    "BN",
    "LN",
    "LayerNorm",
    "BatchNorm",
)
"""A variable whose name contains one of these does not decay: in effect all biases, BatchNorms and LayerNorms."""


def adam(
    learning_rate: float = 1e-7,
    *,
    epsilon: float = 1e-8,
    global_clipnorm: float | None = None,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    dtype: str = "float64",
) -> tf_keras.optimizers.Optimizer:
    """Adam, as pre-training uses it.

    Args:
        learning_rate: Overwritten before every step: ``optimizer.learning_rate = cosine_warmup(...)``.
        epsilon: Added to √v, before the bias correction.
        global_clipnorm: Largest norm of the gradients of this optimizer together; None does not clip.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        dtype: Dtype that holds the learning rate, in Keras its global ``floatx``. It is rounded to the dtype of a
            variable on use, so float32 models, whose rate the original holds in float32, do not feel float64, and
            float64 models get the rate that they were recorded with. ``float32`` restores the original's checkpoints.
    """
    with _floatx(dtype):
        return tf_keras.optimizers.Adam(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            global_clipnorm=global_clipnorm,
            jit_compile=False,
        )


def adamw(
    learning_rate: float = 1e-7,
    *,
    weight_decay: float = 1e-4,
    epsilon: float = 1e-8,
    global_clipnorm: float | None = None,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    dtype: str = "float64",
) -> tf_keras.optimizers.Optimizer:
    """AdamW, as fine-tuning uses it; biases and norms do not decay.

    Args:
        learning_rate: As for ``adam``.
        weight_decay: Share of a weight that goes in every step, times the learning rate, before the gradient step.
        epsilon: As for ``adam``.
        global_clipnorm: As for ``adam``.
        beta_1: As for ``adam``.
        beta_2: As for ``adam``.
        dtype: As for ``adam``.
    """
    with _floatx(dtype):
        optimizer = tf_keras.optimizers.AdamW(
            learning_rate,
            weight_decay=weight_decay,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            global_clipnorm=global_clipnorm,
            jit_compile=False,
        )
    optimizer.exclude_from_weight_decay(var_names=list(EXCLUDED_FROM_WEIGHT_DECAY))
    return optimizer


def cosine_warmup(
    step: float, peak: float, warmup: float, decay: float, floor: float, *, constant: bool = False
) -> float:
    """Learning rate of a step: linear from a thousandth of the peak to the peak, then half a cosine down to the floor.

    Args:
        step: Number of updates made before this one.
        peak: Highest learning rate.
        warmup: Steps up to the peak.
        decay: Steps from the peak to the floor; later ones keep it.
        floor: Lowest learning rate after the peak, as a share of the peak.
        constant: Keep the peak after the warm-up.

    Returns:
        The learning rate, a Python float.
    """
    if step < warmup:
        start = peak * 0.001
        return start + (step / warmup) * (peak * 0.999)
    if constant:
        return peak
    progress = min(step - warmup, decay) / decay
    return peak * ((1 - floor) * (0.5 * (1 + math.cos(math.pi * progress))) + floor)


@contextlib.contextmanager
def _floatx(dtype: str) -> Iterator[None]:
    """Keras takes the dtype of a learning rate from this global alone."""
    before = tf_keras.backend.floatx()
    tf_keras.backend.set_floatx(dtype)
    try:
        yield
    finally:
        tf_keras.backend.set_floatx(before)
