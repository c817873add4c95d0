"""Float32 arithmetic of the C library and of TensorFlow: the C library itself, live TensorFlow, recorded sums."""

import ctypes
from collections.abc import Iterator

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tests.assertions import Disagreement, assert_same
from torch_impl.data.examples import add_noise
from torch_impl.data.tfrecord import read_records
from torch_impl.float32 import logarithm, row_sums, sine_and_cosine

# Every 509th of the numbers from 0 to 1 that TensorFlow's normals start from, the first and the last ones among them.
MANTISSAS = np.union1d(np.arange(0, 2**23, 509), [1, 2, 2**23 - 2, 2**23 - 1]).astype(np.uint32)
UNIT = (MANTISSAS | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
ANGLES = (2 * np.pi * UNIT.astype(np.float64)).astype(np.float32)


def of_the_c_library(name: str, values: np.ndarray) -> np.ndarray:
    function = getattr(ctypes.CDLL(None), name)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    return np.array([function(value) for value in values.tolist()], np.float32)


def test_the_logarithm_is_the_c_librarys_to_the_bit():
    positive = np.maximum(UNIT, np.float32(1e-7))
    expected = of_the_c_library("logf", positive)
    assert_same(logarithm(positive), expected, "exact")
    with pytest.raises(Disagreement):
        assert_same(np.log(positive.astype(np.float64)).astype(np.float32), expected, "exact")


@pytest.mark.parametrize("exponent", [-126, -3, 0, 1, 127])
def test_the_logarithm_is_the_c_librarys_at_any_size(exponent):
    values = np.ldexp(np.linspace(1, 2, 300, endpoint=False, dtype=np.float32), exponent).reshape(3, 100)
    assert_same(logarithm(values).reshape(-1), of_the_c_library("logf", values.reshape(-1)), "exact")


def test_sine_and_cosine_are_the_c_librarys_to_the_bit():
    sine, cosine = sine_and_cosine(ANGLES)
    for found, name, precise in ((sine, "sinf", np.sin), (cosine, "cosf", np.cos)):
        expected = of_the_c_library(name, ANGLES)
        assert_same(found, expected, "exact")
        with pytest.raises(Disagreement):
            assert_same(precise(ANGLES.astype(np.float64)).astype(np.float32), expected, "exact")


@pytest.mark.slow
def test_all_numbers_that_normals_start_from_have_the_c_librarys_functions_to_the_bit():
    unit = (np.arange(2**23, dtype=np.uint32) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    positive, angles = np.maximum(unit, np.float32(1e-7)), (2 * np.pi * unit.astype(np.float64)).astype(np.float32)
    assert_same(logarithm(positive), of_the_c_library("logf", positive), "exact")
    sine, cosine = sine_and_cosine(angles)
    assert_same(sine, of_the_c_library("sinf", angles), "exact")
    assert_same(cosine, of_the_c_library("cosf", angles), "exact")


def skewed(*shape: int) -> np.ndarray:
    """Numbers of several sizes, of which almost every addition rounds."""
    return np.random.default_rng(shape).gamma(0.3, 3.0, shape).astype(np.float32)


# Below and above each step: one value, eight lanes, four times eight, the largest leaf, two and three levels of halves.
@pytest.mark.parametrize("length", [1, 7, 8, 9, 31, 32, 33, 63, 100, 2048, 8192, 8193, 8200, 16_391, 131_072, 200_000])
def test_a_whole_sum_is_tensorflows_to_the_bit(length):
    values = skewed(length)
    expected = tf.reduce_sum(values).numpy()
    assert row_sums(values[None]) == expected
    assert row_sums(values[None]) == tf.reduce_sum(values[:, None]).numpy()


@pytest.mark.parametrize("width", [1, 2, 3, 8, 12, 20, 32, 40, 64, 100, 256])
def test_sums_of_rows_are_tensorflows_to_the_bit(width):
    rows = skewed(64, width)
    assert_same(row_sums(rows), tf.reduce_sum(rows, axis=1), "exact")
    assert_same(row_sums(rows), tf.reduce_sum(rows[:, :, None], axis=1)[:, 0], "exact")


@pytest.mark.parametrize("other", [np.sum, lambda rows, axis: np.cumsum(rows, axis)[:, -1]], ids=["pairs", "sequence"])
def test_sums_in_another_order_are_others(other):
    rows = skewed(64, 32)
    with pytest.raises(Disagreement):
        assert_same(other(rows, axis=1), tf.reduce_sum(rows, axis=1), "exact")


def recorded_sums(goldens) -> Iterator[tuple[np.ndarray, np.float32]]:
    """Noisy accessibility and its sum, of every recorded validation example."""
    with h5py.File(goldens / "data" / "data.h5") as file:
        for kind in ("pretrain_val", "finetune_val"):
            records = list(read_records(goldens / "data" / f"{kind}.tfr"))
            for seeds in file[kind].values():
                for recorded in seeds.values():
                    for name, example in recorded.items():
                        draws = example["draws"]
                        noisy = add_noise(records[int(name.removeprefix("record"))].atac, draws["1_atac_normal"][()])
                        yield noisy, draws["atac_sum_float32"][()]


def test_the_recorded_sums_that_seed_validation_are_met_to_the_bit(goldens):
    cases = list(recorded_sums(goldens))
    assert len(cases) == 62
    assert all(row_sums(noisy[None])[0] == total for noisy, total in cases)
    # Not those of exact arithmetic, rounded once.
    assert not all(np.float32(noisy.sum(dtype=np.float64)) == total for noisy, total in cases)
