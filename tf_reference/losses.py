"""The two losses that the original trains with, and how its train steps apply them.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 3.1. Targets come before predictions, as in Keras. The original casts to float32 before it computes a loss; here
a float64 prediction stays float64.

Letters in shapes: B batch, N bins, T channels.
"""

import tensorflow as tf
import tf_keras
from jaxtyping import Float, Shaped

POISSON, POISSON_MULTINOMIAL = LOSS_TYPES = ("poisson", "poisson_multinomial")

Scalar = Float[tf.Tensor, ""]


def poisson(y_true: Float[tf.Tensor, "B N T"], y_pred: Float[tf.Tensor, "B N T"]) -> Scalar:
    """Mean of Keras' Poisson loss, p - y ln(p + 1e-7), over everything.

    Args:
        y_true: Counts y.
        y_pred: Predicted means p.
    """
    y_true, y_pred = _widened(y_true, y_pred)
    return tf.reduce_mean(tf_keras.losses.poisson(y_true, y_pred))


def poisson_multinomial(
    y_true: Float[tf.Tensor, "B N T"],
    y_pred: Float[tf.Tensor, "B N T"],
    total_weight: float = 0.15,
    *,
    epsilon: float = 1e-6,
    rescale: bool = True,
) -> Scalar:
    """How counts spread over the bins (multinomial), plus how many there are (Poisson), both per bin.

    Args:
        y_true: Counts.
        y_pred: Predicted means.
        total_weight: Weight of the Poisson term.
        epsilon: Added to both before anything else.
        rescale: Multiply by 2 / (1 + ``total_weight``).

    Returns:
        The mean over examples and channels.
    """
    y_true, y_pred = _widened(y_true, y_pred)
    y_true, y_pred = y_true + epsilon, y_pred + epsilon
    bins = tf.cast(tf.shape(y_true)[1], y_pred.dtype)
    true_total = tf.reduce_sum(y_true, axis=1, keepdims=True)
    predicted_total = tf.reduce_sum(y_pred, axis=1, keepdims=True)
    total = tf_keras.losses.poisson(true_total, predicted_total) / bins
    spread = -tf.reduce_sum(y_true * tf.math.log(y_pred / predicted_total), axis=1) / bins
    loss = spread + total_weight * total
    return tf.reduce_mean(loss * 2 / (1 + total_weight) if rescale else loss)


def masked_loss(
    y_true: Float[tf.Tensor, "B N T"],
    y_pred: Float[tf.Tensor, "B N T"],
    mask: Shaped[tf.Tensor, "B N T"],
    *,
    loss_type: str,
    total_weight: float = 0.15,
    unmask: Shaped[tf.Tensor, "B N T"] | None = None,
) -> Scalar:
    """The loss on the masked bins of the whole batch, gathered into one example of shape (1, n, 1).

    Args:
        y_true: Counts.
        y_pred: Predicted means.
        mask: 1 where a bin counts.
        loss_type: ``poisson`` or ``poisson_multinomial``.
        total_weight: As for ``poisson_multinomial``.
        unmask: When given, the loss on the bins where it is 1 is added, with the same weight.

    Returns:
        The loss; NaN when no bin is masked.

    Raises:
        ValueError: The loss type is unknown.
    """
    loss = whole_loss(gather(y_true, mask), gather(y_pred, mask), loss_type=loss_type, total_weight=total_weight)
    if unmask is None:
        return loss
    return loss + whole_loss(
        gather(y_true, unmask), gather(y_pred, unmask), loss_type=loss_type, total_weight=total_weight
    )


def whole_loss(
    y_true: Float[tf.Tensor, "B N T"], y_pred: Float[tf.Tensor, "B N T"], *, loss_type: str, total_weight: float = 0.15
) -> Scalar:
    """The loss of that name on all bins.

    Args:
        y_true: Counts.
        y_pred: Predicted means.
        loss_type: ``poisson`` or ``poisson_multinomial``.
        total_weight: As for ``poisson_multinomial``.

    Raises:
        ValueError: The loss type is unknown.
    """
    if loss_type == POISSON:
        return poisson(y_true, y_pred)
    if loss_type == POISSON_MULTINOMIAL:
        return poisson_multinomial(y_true, y_pred, total_weight)
    raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, not {loss_type!r}")


def gather(values: Shaped[tf.Tensor, "B N T"], mask: Shaped[tf.Tensor, "B N T"]) -> Shaped[tf.Tensor, "1 n 1"]:
    """The values where the mask is 1, from all examples, as one example with one channel."""
    return tf.reshape(tf.gather_nd(values, tf.where(mask == 1)), [1, -1, 1])


def _widened(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    dtype = tf.float64 if y_pred.dtype == tf.float64 else tf.float32
    return tf.cast(y_true, dtype), tf.cast(y_pred, dtype)
