"""Projection matrix and rotary table against those of the original (TensorFlow 2.12 on another CPU)."""

import re

import h5py
import numpy as np
import pytest

from tests.unit.tf_reference.recordings import GOLDENS, RECORDINGS
from tf_reference import constants

with h5py.File(GOLDENS / "functions.h5") as file:
    MATRICES = {name: (dataset[()], dict(dataset.attrs)) for name, dataset in file["create_projection_matrix"].items()}
    PARTS = {name: dataset[()] for name, dataset in file["create_projection_matrix_parts/seed3_m256_d100"].items()}

# QR is a chain of float32 sums whose order depends on the CPU, and an ill-conditioned Gaussian matrix amplifies it.
QR_LIMIT = 2e-5
BFLOAT16_ULP_OF_ONE = 2.0**-8


@pytest.mark.parametrize("name", MATRICES)
def test_projection_matrix(name):
    seed, m, d = map(int, re.findall(r"\d+", name))
    got = constants.projection_matrix(m, d, seed)
    expected, attributes = MATRICES[name]
    assert got.dtype == np.float32
    assert got.shape == (m, d)
    if "axis" in attributes:
        got = got.take(attributes["positions"], axis=attributes["axis"])
    # Relative to the largest entry, sign of every row included.
    assert np.abs(got - expected).max() <= QR_LIMIT * np.abs(expected).max()
    if d <= 32:
        assert np.array_equal(got, expected)


def test_random_numbers_are_those_of_the_original_to_the_bit():
    assert np.array_equal(constants._normal((100, 100), 3, 2), PARTS["block0_normal"])
    assert np.array_equal(constants._normal((100, 100), 4, 2), PARTS["block1_normal"])
    assert np.array_equal(constants._normal((100, 100), 5, 5), PARTS["rest_normal"])
    assert np.array_equal(constants._normal((256, 100), 9, 6), PARTS["multiplier_normal"])


def test_projection_rows_are_orthogonal_in_blocks():
    matrix = constants.projection_matrix(256, 100, 3).astype(np.float64)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    for rows in (slice(0, 100), slice(100, 200), slice(200, 256)):
        assert np.abs(unit[rows] @ unit[rows].T - np.eye(len(unit[rows]))).max() < 1e-6


def test_more_columns_than_rows():
    matrix = constants.projection_matrix(256, 300, 0)
    assert matrix.shape == (256, 300)


def test_seed_is_truncated_to_int32():
    assert np.array_equal(constants.projection_matrix(8, 4, 19.7), constants.projection_matrix(8, 4, 19))
    with pytest.raises(OverflowError):
        constants.projection_matrix(8, 4, 2**31)


@pytest.mark.parametrize("recording", RECORDINGS.values(), ids=RECORDINGS.keys())
def test_rotary_table_of_the_recordings(recording):
    expected = recording.under("constants")
    rows, d = expected["rotary_table_float32"][0].shape
    assert np.array_equal(constants.rotary_table(rows, d), expected["rotary_table_bfloat16"][0])
    exact = constants.rotary_table(rows, d, bfloat16=False)
    assert np.abs(exact - expected["rotary_table_float32"][0]).max() <= 2.0**-24


def test_full_rotary_table():
    """TensorFlow 2.21 has another sine than 2.12: at large angles 0.4 % of the entries round differently."""
    with np.load(GOLDENS / "golden_P_rotary.npz") as arrays:
        bits = arrays["rotary_d128_4097_bf16bits"]
    expected = (bits.astype(np.uint32) << 16).view(np.float32)
    got = constants.rotary_table(4097, 128)
    assert np.count_nonzero(got != expected) <= 3000
    assert np.abs(got - expected).max() <= BFLOAT16_ULP_OF_ONE
    sine, cosine = got[:, :64], got[:, 64:]
    assert sine[1, 0] == 0.83984375
    assert cosine[1, 0] == 0.5390625
    assert (sine[100, 3], cosine[100, 3]) == (0.859375, -0.51171875)
    assert (sine[0] == 0).all()
    assert (cosine[0] == 1).all()
