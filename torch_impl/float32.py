"""TensorFlow's float32 arithmetic on a CPU in NumPy, to the last bit, where NumPy's own rounds differently.

TensorFlow draws normals with the C library's float32 functions. Those of glibc (2.28 and later) evaluate a short
polynomial in float64 and round once, so they are neither correctly rounded nor NumPy's; their coefficients are numbers
that anyone can read off. Sums are those of Eigen: eight lanes, four accumulators of eight lanes each, and halves where
there are more than 8192 values.
"""

import numpy as np


def _numbers(text: str) -> np.ndarray:
    return np.array([float.fromhex(number) for number in text.split()])


_RECIPROCALS = _numbers(
    "0x1.661ec79f8f3bep+0 0x1.571ed4aaf883dp+0 0x1.49539f0f010bp+0 0x1.3c995b0b80385p+0 0x1.30d190c8864a5p+0 "
    "0x1.25e227b0b8eap+0 0x1.1bb4a4a1a343fp+0 0x1.12358f08ae5bap+0 0x1.0953f419900a7p+0 0x1p+0 0x1.e608cfd9a47acp-1 "
    "0x1.ca4b31f026aap-1 0x1.b2036576afce6p-1 0x1.9c2d163a1aa2dp-1 0x1.886e6037841edp-1 0x1.767dcf5534862p-1"
)
"""Of a number near the middle of each sixteenth of the range that a mantissa is reduced to."""

_LOGARITHMS = -np.log(_RECIPROCALS)
_MANTISSA_FROM = np.uint32(0x3F330000)
"""Bits of 0.69921875: mantissas are reduced to [0.699, 1.398)."""

_LOG = _numbers("-0x1.00ea348b88334p-2 0x1.5575b0be00b6ap-2 -0x1.ffffef20a4123p-2")
_SINE = _numbers("-0x1.555545995a603p-3 0x1.1107605230bc4p-7 -0x1.994eb3774cf24p-13")
_COSINE = _numbers("-0x1.ffffffd0c621cp-2 0x1.55553e1068f19p-5 -0x1.6c087e89a359dp-10 0x1.99343027bf8c3p-16")

_LANES, _ACCUMULATORS = 8, 4
_LARGEST_LEAF = 1024 * _LANES


def logarithm(x: np.ndarray) -> np.ndarray:
    """Natural logarithm as the C library's ``logf`` has it.

    Args:
        x: float32, positive and not subnormal, of any shape.

    Returns:
        float32 of the same shape.
    """
    bits = np.ascontiguousarray(x).view(np.uint32)
    offset = bits - _MANTISSA_FROM
    exponent = offset.view(np.int32) >> 23
    mantissa = (bits - (offset & np.uint32(0xFF800000))).view(np.float32).astype(np.float64)
    piece = (offset >> np.uint32(19)) & np.uint32(15)
    rest = mantissa * _RECIPROCALS[piece] - 1
    square = rest * rest
    high = _LOGARITHMS[piece] + exponent * np.log(2) + rest
    return ((_LOG[0] * square + (_LOG[1] * rest + _LOG[2])) * square + high).astype(np.float32)


def sine_and_cosine(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine as the C library's ``sincosf`` has them.

    Args:
        angle: float32 radians from 0 to 2 pi, of any shape.

    Returns:
        Two float32 arrays of the same shape.
    """
    x = angle.astype(np.float64)
    quarter = np.floor(x * (2 / np.pi) + 0.5)
    x -= quarter * (np.pi / 2)
    square = x * x
    cube, fourth = x * square, square * square
    sine = x + cube * _SINE[0] + cube * square * (_SINE[1] + square * _SINE[2])
    cosine = 1 + square * _COSINE[0] + fourth * _COSINE[1] + fourth * square * (_COSINE[2] + square * _COSINE[3])
    quadrant = quarter.astype(np.int64)
    odd = quadrant & 1 == 1
    sines = np.where(odd, cosine, sine) * np.where(quadrant & 2, -1, 1)
    cosines = np.where(odd, sine, cosine) * np.where((quadrant + 1) & 2, -1, 1)
    return sines.astype(np.float32), cosines.astype(np.float32)


def row_sums(rows: np.ndarray) -> np.ndarray:
    """Sum of each row, in the order in which ``tf.reduce_sum`` adds on a processor with AVX.

    Args:
        rows: float32 (n, m). Rows of more than 8192 values begin at a multiple of eight values.

    Returns:
        float32 (n,).
    """
    length = rows.shape[1]
    if length > _LARGEST_LEAF:
        half = -(-length // (2 * _LANES)) * _LANES
        return row_sums(rows[:, :half]) + row_sums(rows[:, half:])
    unrolled = _LANES * _ACCUMULATORS
    whole = length // unrolled * unrolled
    lanes = np.zeros((len(rows), _LANES), dtype=np.float32)
    if whole:
        accumulators = rows[:, :whole].reshape(len(rows), -1, _ACCUMULATORS, _LANES)
        # NumPy sums pairwise along the last axis only, along others one after the other, as is wanted here.
        accumulators = accumulators[:, 0] if whole == unrolled else accumulators.sum(axis=1)
        for number in range(_ACCUMULATORS):
            lanes += accumulators[:, number]
    packed = length // _LANES * _LANES
    for start in range(whole, packed, _LANES):
        lanes += rows[:, start : start + _LANES]
    rest = np.zeros(len(rows), dtype=np.float32)
    for column in range(packed, length):
        rest += rows[:, column]
    # Many rows are added several times as fast as the few numbers of each.
    lanes = np.ascontiguousarray(lanes.T)
    while len(lanes) > 1:
        middle = len(lanes) // 2
        lanes = lanes[:middle] + lanes[middle:]
    return rest + lanes[0]
