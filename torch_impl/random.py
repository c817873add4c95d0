"""TensorFlow's random numbers without TensorFlow, and what the model makes of them: the constants of attention.

TensorFlow draws from Philox-4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"). Its stateless
functions scramble their seed with one Philox block first (spec, appendix A), its ``Generator`` counts on from its seed.
Bits, uniforms, integers and permutations here are those of TensorFlow on CPU and GPU, normals those of TensorFlow on a
CPU under Linux (``torch_impl.float32``), all to the last bit.
"""

import numpy as np

from torch_impl.float32 import logarithm, sine_and_cosine

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_INCREMENTS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_SCRAMBLE_KEY = (0x3EC8F720, 0x02461E29)
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_LONG = 2**64 - 1


def _philox_4x32(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox-4x32 on counters of shape (n, 4); words are kept in uint64 so that products fit."""
    word = [counters[:, i].astype(np.uint64) for i in range(4)]
    key_0, key_1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        product_0, product_1 = word[0] * _MULTIPLIERS[0], word[2] * _MULTIPLIERS[1]
        word = [
            (product_1 >> _HALF) ^ word[1] ^ key_0,
            product_1 & _WORD,
            (product_0 >> _HALF) ^ word[3] ^ key_1,
            product_0 & _WORD,
        ]
        key_0, key_1 = (key_0 + _KEY_INCREMENTS[0]) & _WORD, (key_1 + _KEY_INCREMENTS[1]) & _WORD
    return np.stack(word, axis=1).astype(np.uint32)


def stateless_bits(count: int, seed: tuple[int, int]) -> np.ndarray:
    """The first ``count`` 32-bit words of TensorFlow's Philox stream for a two-part seed, bit for bit.

    Args:
        count: Number of words.
        seed: TensorFlow's ``seed=[a, b]``; negative numbers count as their 64-bit two's complement.

    Returns:
        uint32 array of shape (count,).
    """
    halves = [(part >> shift) & 0xFFFFFFFF for part in seed for shift in (0, 32)]
    scrambled = [int(word) for word in _philox_4x32(np.array([halves], dtype=np.uint32), _SCRAMBLE_KEY)[0]]
    return _stream(count, key=(scrambled[0], scrambled[1]), counter=(scrambled[2] | scrambled[3] << 32) << 64)


def random_mask(count: int, rate: float, seed: int) -> np.ndarray:
    """Which of many to keep, where each is dropped with the same probability; not TensorFlow's numbers.

    Args:
        count: How many.
        rate: Probability of being dropped, in [0, 1); met to 2^-33.
        seed: Decides the mask, together with the count and the rate.

    Returns:
        bool array of shape (count,), true where kept.
    """
    words = np.random.SFC64(seed).random_raw(-(-count // 2)).view(np.uint32)[:count]
    return words >= np.uint32(round(rate * 2**32))


def _stream(count: int, *, key: tuple[int, int], counter: int) -> np.ndarray:
    """The first words of the blocks from a 128-bit counter on."""
    blocks = -(-count // 4)
    start, upper = np.uint64(counter & _LONG), np.uint64(counter >> 64 & _LONG)
    lower = np.arange(blocks, dtype=np.uint64) + start
    upper = upper + (lower < start).astype(np.uint64)
    counters = np.stack([lower & _WORD, lower >> _HALF, upper & _WORD, upper >> _HALF], axis=1)
    return _philox_4x32(counters, key).reshape(-1)[:count]


def _unit_interval(bits: np.ndarray) -> np.ndarray:
    """float32 in [0, 1): the low 23 bits as the mantissa of a number in [1, 2), minus one."""
    return ((bits & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)


def stateless_uniform(shape: tuple[int, ...], seed: tuple[int, int], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """``tf.random.stateless_uniform`` in float32, bit for bit.

    Args:
        shape: Shape of the result.
        seed: TensorFlow's ``seed=[a, b]``.
        low: Inclusive lower end.
        high: Exclusive upper end.

    Returns:
        float32 array of the given shape.
    """
    unit = _unit_interval(stateless_bits(int(np.prod(shape)), seed)).reshape(shape)
    return unit * np.float32(high - low) + np.float32(low)


def stateless_normal(shape: tuple[int, ...], seed: tuple[int, int]) -> np.ndarray:
    """``tf.random.stateless_normal`` in float32, bit for bit (Box-Muller on consecutive pairs of words).

    Args:
        shape: Shape of the result.
        seed: TensorFlow's ``seed=[a, b]``.

    Returns:
        float32 array of the given shape.
    """
    count = int(np.prod(shape))
    return _normals(stateless_bits(count + count % 2, seed))[:count].reshape(shape)


def _normals(bits: np.ndarray) -> np.ndarray:
    """float32 normals from an even number of words."""
    unit = _unit_interval(bits).reshape(-1, 2)
    radius = np.sqrt(np.float32(-2) * logarithm(np.maximum(unit[:, 0], np.float32(1e-7))))
    # The factor is a float64 number, the angle is not.
    sine, cosine = sine_and_cosine((2 * np.pi * unit[:, 1].astype(np.float64)).astype(np.float32))
    return np.stack([radius * sine, radius * cosine], axis=1).reshape(-1)


def stateless_integers(shape: tuple[int, ...], seed: tuple[int, int], low: int, high: int) -> np.ndarray:
    """``tf.random.stateless_uniform`` in int32, exactly, its slight bias included.

    Args:
        shape: Shape of the result.
        seed: TensorFlow's ``seed=[a, b]``.
        low: Inclusive lower end.
        high: Exclusive upper end.

    Returns:
        int32 array of the given shape.
    """
    return _integers(stateless_bits(int(np.prod(shape)), seed), low, high).reshape(shape)


def _integers(bits: np.ndarray, low: int, high: int) -> np.ndarray:
    return (bits % np.uint32(high - low)).astype(np.int32) + np.int32(low)


def stateless_permutation(count: int, seed: tuple[int, int]) -> np.ndarray:
    """Where ``tf.random.experimental.stateless_shuffle`` takes each of ``count`` elements from, exactly.

    Args:
        count: Number of elements.
        seed: TensorFlow's ``seed=[a, b]``.

    Returns:
        int64 array of shape (count,): element i of the result is element ``permutation[i]`` of what is shuffled.
    """
    order = list(range(count))
    for index, word in enumerate(stateless_bits(max(count - 1, 0), seed).tolist()):
        other = index + word % (count - index)
        order[index], order[other] = order[other], order[index]
    return np.array(order, dtype=np.int64)


class Generator:
    """``tf.random.Generator.from_seed`` with its default algorithm: a Philox counter that starts at the seed.

    A draw of n elements moves the counter on by 256 n, far more than it uses, as TensorFlow does.

    Args:
        seed: A signed 64-bit integer.
    """

    def __init__(self, seed: int) -> None:
        # A negative number is extended over counter and key.
        self._counter = seed % 2**128
        self._key = (0xFFFFFFFF, 0xFFFFFFFF) if seed < 0 else (0, 0)

    @property
    def state(self) -> tuple[int, int, int]:
        """Both halves of the counter, lower one first, and the key, each as a signed 64-bit integer."""
        words = (self._counter & _LONG, self._counter >> 64, self._key[0] | self._key[1] << 32)
        lower, upper, key = (word - (word >> 63 << 64) for word in words)
        return lower, upper, key

    def integers(self, low: int, high: int) -> int:
        """One int32 from [low, high)."""
        return int(_integers(self._bits(1), low, high)[0])

    def uniform(self) -> np.float32:
        """One float32 from [0, 1)."""
        return _unit_interval(self._bits(1))[0]

    def normal(self, shape: tuple[int, ...], mean: float, deviation: float) -> np.ndarray:
        """float32 normals of the given shape."""
        count = int(np.prod(shape))
        drawn = _normals(self._bits(count))[:count].reshape(shape)
        return drawn * np.float32(deviation) + np.float32(mean)

    def _bits(self, count: int) -> np.ndarray:
        """The words for so many elements, of an even number."""
        counter, self._counter = self._counter, (self._counter + 256 * count) % 2**128
        return _stream(count + count % 2, key=self._key, counter=counter)


def projection_matrix(m: int, d: int, seed: int) -> np.ndarray:
    """The orthogonal random features of FAVOR+ with TensorFlow's numbers (spec, section 1.8).

    Stacked transposed Q factors of Gaussian d-by-d draws, each row scaled by the norm of an independent Gaussian row.
    The factorisation runs in float64; the original's float32 one agrees with it to 1.7e-6 of the largest entry.

    Args:
        m: Number of random features (rows).
        d: Head size (columns); may exceed ``m``.
        seed: The model's seed, truncated to a 32-bit integer as in the original.

    Returns:
        float32 array of shape (m, d).
    """
    seed = int(np.int32(int(seed)))

    def orthogonal(first: int, second: int) -> np.ndarray:
        return np.linalg.qr(stateless_normal((d, d), (first, second)).astype(np.float64)).Q.T

    full, rest = divmod(m, d)
    blocks = [orthogonal(seed + block, 2) for block in range(full)]
    if rest:
        blocks.append(orthogonal(seed + full, 5)[:rest])
    norms = np.linalg.norm(stateless_normal((m, d), (seed + full + 4, 6)).astype(np.float64), axis=1)
    return (norms[:, None] * np.concatenate(blocks)).astype(np.float32, order="C")


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, and widened again."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) & np.uint64(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).reshape(np.shape(values))


def rotary_table(rows: int, d: int, *, bfloat16: bool = True) -> np.ndarray:
    """Sines and cosines of the rotary position encoding (spec, section 1.7).

    Frequencies are 1 / 10000^(2j/d); each step is rounded to float32 as in the original. Its ``pow``, ``sin`` and
    ``cos`` are its own, so about one entry in a thousand of the bfloat16 table is one unit in the last place off.

    Args:
        rows: Number of positions, counted from zero.
        d: Head size, even.
        bfloat16: Round the entries to bfloat16 (kept as float32), as the original does.

    Returns:
        float32 array of shape (rows, d): d/2 sines, then d/2 cosines.
    """
    exponent = np.arange(0, d, 2, dtype=np.float32) / np.float32(d)
    # NumPy's float32 power is off by several ulp; the float64 one, rounded, is what the original's comes closest to.
    frequency = np.float32(1) / np.power(10000.0, exponent.astype(np.float64)).astype(np.float32)
    angle = np.arange(rows, dtype=np.float32)[:, None] * frequency
    table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
    return round_to_bfloat16(table) if bfloat16 else table
