"""The two constants of attention that no checkpoint stores, in TensorFlow's own numbers (spec, sections 1.7 and 1.8).

Both are computed in float32 on the CPU whatever the precision of the model, because that is what the original does.
The random numbers are the same everywhere. Sine and QR decomposition agree between TensorFlow versions and CPU types
only to rounding, which reaches the output: an exact comparison with recorded numbers injects the recorded constants.
"""

import numpy as np
import tensorflow as tf
from jaxtyping import Float32

RANDOM_FEATURES = 256
"""Rows of the projection matrix; fixed in the original."""

_BLOCK_STREAM = 2
_REMAINDER_STREAM = 5
_NORM_STREAM = 6
_LONGEST_WAVELENGTH = 10_000.0


def projection_matrix(m: int, d: int, seed: float) -> Float32[np.ndarray, "m d"]:
    """Random projection of FAVOR+: orthogonal rows with the norms of Gaussian vectors (spec, section 1.8).

    Directions are the rows of transposed Q factors, d at a time; R's diagonal is left with whatever signs Householder
    reflections give it. The norms come from an independent Gaussian matrix.

    Args:
        m: Number of random features (rows).
        d: Size of one attention head (columns); may exceed ``m``.
        seed: First half of every stateless seed; truncated to int32 as in the original.

    Returns:
        The matrix, float32.
    """
    seed = int(np.int32(int(seed)))
    full_blocks, remaining_rows = divmod(m, d)
    with tf.init_scope(), tf.device("CPU:0"):
        blocks = [_orthogonal_rows(d, seed + block, _BLOCK_STREAM) for block in range(full_blocks)]
        if remaining_rows:
            blocks.append(_orthogonal_rows(d, seed + full_blocks, _REMAINDER_STREAM)[:remaining_rows])
        norms = tf.norm(_normal((m, d), seed + full_blocks + 4, _NORM_STREAM), axis=1)
        return (norms[:, tf.newaxis] * tf.concat(blocks, axis=0)).numpy()


def rotary_table(rows: int, d: int, *, bfloat16: bool = True) -> Float32[np.ndarray, "rows d"]:
    """Sines, then cosines, of ``position / 10000^(2j/d)`` for the d/2 frequencies j (spec, section 1.7).

    Args:
        rows: Number of positions, counted from 0.
        d: Size of one attention head; even.
        bfloat16: Round the entries to bfloat16, as the original does before using them in any precision.

    Returns:
        The table, float32; its values are representable in bfloat16 unless ``bfloat16`` is False.
    """
    with tf.init_scope(), tf.device("CPU:0"):
        exponents = tf.range(0, d, 2, dtype=tf.float32) / d
        frequencies = 1.0 / tf.pow(_LONGEST_WAVELENGTH, exponents)
        angles = tf.range(rows, dtype=tf.float32)[:, tf.newaxis] * frequencies[tf.newaxis, :]
        table = tf.concat([tf.sin(angles), tf.cos(angles)], axis=-1)
        if bfloat16:
            table = tf.cast(tf.cast(table, tf.bfloat16), tf.float32)
        return table.numpy()


def _orthogonal_rows(d: int, seed: int, stream: int) -> tf.Tensor:
    q, _ = tf.linalg.qr(_normal((d, d), seed, stream))
    return tf.transpose(q)


def _normal(shape: tuple[int, int], seed: int, stream: int) -> tf.Tensor:
    return tf.random.stateless_normal(shape, seed=(seed, stream), dtype=tf.float32)
