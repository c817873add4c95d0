"""Random numbers and constants without TensorFlow: published vectors, recordings of the original, live TensorFlow."""

import functools
import math
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tf_reference.constants
from tests.assertions import Disagreement, assert_same
from torch_impl.random import (
    Generator,
    _philox_4x32,
    projection_matrix,
    random_mask,
    rotary_table,
    round_to_bfloat16,
    stateless_bits,
    stateless_integers,
    stateless_normal,
    stateless_permutation,
    stateless_uniform,
)

GOLDENS = Path(__file__).parents[3] / "goldens"
with h5py.File(GOLDENS / "functions.h5") as _file:
    MATRICES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        name: (dataset[()], dict(dataset.attrs)) for name, dataset in _file["create_projection_matrix"].items()
    }
    NORMALS = {
        name: dataset[()]
        for name, dataset in _file["create_projection_matrix_parts/seed3_m256_d100"].items()
        if name.endswith("normal")
    }
with np.load(GOLDENS / "golden_P_rotary.npz") as _arrays:
    MATRICES |= {name: (array, {}) for name, array in _arrays.items() if name.startswith("P_")}
    TABLES = {
        int(re.findall(r"rotary_d(\d+)", name)[0]): (array.astype(np.uint32) << 16).view(np.float32)
        for name, array in _arrays.items()
        if name.startswith("rotary")
    }

SHUFFLE = getattr(tf.random, "experimental").stateless_shuffle  # noqa: B009  pyright's stubs lack it

# TensorFlow takes the two halves as signed 64-bit integers.
seeds = st.tuples(*[st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 30)] * 2)


def sizes_of(name: str) -> tuple[int, int, int]:
    """(m, d, seed) from a name like seed3_m256_d100 or P_256_128_seed19."""
    numbers = [int(number) for number in re.findall(r"\d+", name)]
    return (numbers[1], numbers[2], numbers[0]) if name.startswith("seed") else (numbers[0], numbers[1], numbers[2])


# --- bits, uniforms, normals


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_by_the_known_answers_of_its_authors(counter, key, words):
    result = _philox_4x32(np.array([counter], np.uint32), key)
    assert " ".join(f"{word:08x}" for word in result[0]) == words


def test_bits_of_the_specification():
    assert stateless_bits(4, (19, 2)).tolist() == [3592725764, 983165640, 3458338795, 169962056]


def test_normals_of_the_specification():
    # Printed there to eight significant digits or decimals.
    for seed, printed in (((19, 2), "1.5116376 0.4652749 1.6232464"), ((25, 6), "-0.37047553 -0.11064485 0.6871005")):
        values = stateless_normal((3,), seed).astype(np.float64)
        decimals = [len(number.partition(".")[2]) for number in printed.split()]
        assert " ".join(f"{x:.{n}f}" for x, n in zip(values, decimals, strict=True)) == printed


@given(seed=seeds, count=st.integers(1, 70))
def test_bits_are_tensorflows(seed, count):
    expected = tf.random.stateless_uniform([count], seed=seed, minval=None, maxval=None, dtype=tf.uint32)  # type: ignore[arg-type]  None means all bits
    assert_same(stateless_bits(count, seed), expected, "exact")


@given(seed=seeds, shape=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple))
def test_uniforms_are_tensorflows_to_the_bit(seed, shape):
    assert_same(stateless_uniform(shape, seed), tf.random.stateless_uniform(shape, seed=seed), "exact")


@given(seed=seeds, limit=st.floats(1e-3, 1e3))
def test_symmetric_uniforms_are_tensorflows_to_the_bit(seed, limit):
    expected = tf.random.stateless_uniform([5, 3], seed=seed, minval=-limit, maxval=limit)
    assert_same(stateless_uniform((5, 3), seed, -limit, limit), expected, "exact")


@given(seed=seeds, low=st.floats(-1e3, 1e3, width=32), extent=st.floats(0.125, 1e3, width=32))
def test_any_uniforms_are_tensorflows_to_the_bit(seed, low, extent):
    high = float(np.float32(low + extent))
    expected = tf.random.stateless_uniform([5, 3], seed=seed, minval=low, maxval=high)
    assert_same(stateless_uniform((5, 3), seed, low, high), expected, "exact")


@given(seed=seeds, shape=st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple))
def test_normals_are_tensorflows_to_the_bit(seed, shape):
    assert_same(stateless_normal(shape, seed), tf.random.stateless_normal(shape, seed=seed), "exact")


def test_half_a_million_normals_are_tensorflows_to_the_bit():
    expected = tf.random.stateless_normal([524_289], seed=(7, 3))
    assert_same(stateless_normal((524_289,), (7, 3)), expected, "exact")


def test_normals_from_numpys_float32_functions_are_others():
    unit = stateless_uniform((1000,), (7, 3)).reshape(-1, 2)
    radius, angle = np.sqrt(np.float32(-2) * np.log(unit[:, 0])), np.float32(2 * np.pi) * unit[:, 1]
    naive = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1).reshape(-1)
    with pytest.raises(Disagreement):
        assert_same(naive, tf.random.stateless_normal([1000], seed=(7, 3)), "exact")


@pytest.mark.parametrize(
    ("name", "seed"),
    [("block0_normal", (3, 2)), ("block1_normal", (4, 2)), ("rest_normal", (5, 5)), ("multiplier_normal", (9, 6))],
)
def test_normals_are_the_originals(name, seed):
    normals = stateless_normal(NORMALS[name].shape, seed)
    assert_same(normals, NORMALS[name], "exact")
    with pytest.raises(Disagreement):
        assert_same(stateless_normal(normals.shape, (seed[0], seed[1] + 1)), NORMALS[name], "exact")


def test_a_longer_stream_begins_like_a_shorter_one():
    bits = stateless_bits(4000, (7, 1))
    assert all(np.array_equal(stateless_bits(count, (7, 1)), bits[:count]) for count in (1, 2, 3, 4, 5, 255, 256, 257))


# --- integers, permutations, the generator


@given(seed=seeds, low=st.integers(-(2**31), 2**31 - 2), extent=st.integers(1, 2**31 - 1))
def test_integers_are_tensorflows(seed, low, extent):
    high = min(low + extent, 2**31 - 1)
    expected = tf.random.stateless_uniform([9], seed=seed, minval=low, maxval=high, dtype=tf.int32)
    assert_same(stateless_integers((9,), seed, low, high), expected, "exact")


@given(seed=seeds, count=st.integers(1, 70))
def test_permutations_are_tensorflows(seed, count):
    expected = SHUFFLE(tf.range(count), seed=seed)
    assert_same(stateless_permutation(count, seed), expected, "exact")


@pytest.mark.parametrize("count", [341, 4092])
def test_long_permutations_are_tensorflows(count):
    expected = SHUFFLE(tf.range(count), seed=(0, 96_299_908))
    assert_same(stateless_permutation(count, (0, 96_299_908)), expected, "exact")
    # What one might take for a shuffle: the order of random numbers.
    with pytest.raises(Disagreement):
        assert_same(np.argsort(stateless_uniform((count,), (0, 96_299_908))), expected, "exact")


def test_no_elements_have_one_permutation():
    assert stateless_permutation(0, (1, 2)).tolist() == []
    assert stateless_permutation(1, (1, 2)).tolist() == [0]


def assert_generators_agree(own: Generator, theirs: Any, shapes: list[tuple[int, ...]]) -> None:
    """Draws of each sort in turn, and the state after each."""
    assert own.state == tuple(theirs.state.numpy())
    for shape in shapes:
        assert_same(own.normal(shape, 1e-4, 3e-4), theirs.normal(shape, 1e-4, 3e-4), "exact")
        assert own.state == tuple(theirs.state.numpy())
        assert own.uniform() == theirs.uniform([]).numpy()
        assert own.integers(0, 20) == theirs.uniform([], 0, 20, dtype=tf.int32).numpy()
        assert own.integers(-7, 10**8) == theirs.uniform([], -7, 10**8, dtype=tf.int32).numpy()
        assert own.state == tuple(theirs.state.numpy())


# At -1 the counter begins at its largest value and overflows; 2^63 - 1 carries into the sign.
@given(
    seed=st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, -1, -5, 2**32 - 1, 2**63 - 1, -(2**63)]),
    shapes=st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3),
)
def test_generators_are_tensorflows_to_the_bit(seed, shapes):
    assert_generators_agree(Generator(seed), tf.random.Generator.from_seed(seed), shapes)


def test_a_generators_large_draws_are_tensorflows_to_the_bit():
    # TensorFlow fills a large tensor in several threads.
    assert_generators_agree(Generator(42), tf.random.Generator.from_seed(42), [(131_072, 1), (1, 693)])


# Found by search: a uniform number of zero, which has no logarithm, and one of 2^-22, the second smallest.
@pytest.mark.parametrize(("seed", "smallest"), [(3_574_739, 0), (100_593, 2**-22)])
def test_normals_from_the_smallest_uniforms_are_tensorflows_to_the_bit(seed, smallest):
    # The counter starts at the seed, so numbers of the next blocks are those of the next seeds.
    words = _philox_4x32(np.array([[seed, 0, 0, 0]], np.uint32), (0, 0))[0] & 0x7FFFFF
    assert smallest in (words[[0, 2]] * 2**-23).tolist()
    normals = Generator(seed).normal((4,), 0, 1)
    assert np.abs(normals).max() > 3
    assert_same(normals, tf.random.Generator.from_seed(seed).normal((4,)), "exact")


def test_a_generator_of_another_seed_is_another():
    with pytest.raises(Disagreement):
        assert_same(Generator(3).normal((9,), 0, 1), tf.random.Generator.from_seed(4).normal((9,)), "exact")


# --- projection matrix


@pytest.mark.parametrize("name", MATRICES)
def test_projection_matrix_is_the_originals(name):
    expected, attributes = MATRICES[name]
    matrix = projection_matrix(*sizes_of(name))
    assert matrix.dtype == np.float32
    if "axis" in attributes:
        assert matrix.shape == tuple(attributes["full_shape"])
        assert_same(matrix.mean(axis=int(attributes["axis"])), attributes["axis_mean"], "own_projection")
        matrix = matrix.take(attributes["positions"], axis=int(attributes["axis"]))
    assert_same(matrix, expected, "own_projection")


# d = 100 leaves a rest of 56 rows, d = 300 has more columns than rows.
@pytest.mark.parametrize("name", ["seed3_m256_d100", "seed3_m256_d300", "seed3_m256_d16"])
def test_projection_matrix_of_another_seed_is_another(name):
    expected, attributes = MATRICES[name]
    m, d, seed = sizes_of(name)
    matrix = projection_matrix(m, d, seed + 1)
    if "axis" in attributes:
        matrix = matrix.take(attributes["positions"], axis=int(attributes["axis"]))
    with pytest.raises(Disagreement):
        assert_same(matrix, expected, "own_projection")


# The sizes of real models. A small Gaussian matrix may be close to singular, and TensorFlow's float32 QR then far off.
@pytest.mark.parametrize("seed", [0, 3, 19, 21])
@pytest.mark.parametrize(("m", "d"), [(256, 12), (256, 16), (256, 48), (256, 128), (16, 48)])
def test_projection_matrix_is_live_tensorflows(m, d, seed):
    assert_same(projection_matrix(m, d, seed), tf_reference.constants.projection_matrix(m, d, seed), "own_projection")


def test_a_seed_beyond_32_bits_is_refused():
    with pytest.raises(OverflowError):
        projection_matrix(8, 4, 2**31)


@pytest.mark.parametrize("rate", [0.0625, 0.2])
def test_a_mask_drops_each_with_the_same_probability(rate):
    masks = np.stack([random_mask(4001, rate, seed) for seed in range(100)])
    assert masks.dtype == bool
    # Five standard deviations, of all and of the sums by place and by seed, whose squares add up to chi-square.
    count = masks.size
    assert abs((~masks).sum() - rate * count) < 5 * math.sqrt(count * rate * (1 - rate))
    for axis in (0, 1):
        sums, size = (~masks).sum(axis=axis), masks.shape[axis]
        chi_square = ((sums - rate * size) ** 2).sum() / (size * rate * (1 - rate))
        assert abs(chi_square - len(sums)) < 5 * math.sqrt(2 * len(sums))


def test_neighbours_in_a_mask_are_independent():
    dropped, rate = ~random_mask(10**6, 0.2, 3), 0.2**2
    both = (dropped[1:] & dropped[:-1]).mean()
    assert abs(both - rate) < 5 * math.sqrt(rate * (1 - rate) / dropped.size)


def test_a_seed_decides_a_mask():
    assert np.array_equal(random_mask(100, 0.5, 2**63 - 1), random_mask(100, 0.5, 2**63 - 1))
    assert not np.array_equal(random_mask(100, 0.5, 1), random_mask(100, 0.5, 2))
    assert random_mask(3, 0.0, 1).all()
    assert random_mask(0, 0.5, 1).shape == (0,)


def test_projection_rows_are_orthogonal_block_by_block():
    matrix = projection_matrix(256, 100, 3).astype(np.float64)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    for block in np.split(unit, [100, 200]):
        assert_same(block @ block.T, np.eye(len(block)), "float32_only")


# --- rotary table


@pytest.mark.parametrize("d", TABLES)
def test_rotary_table_is_the_originals(d):
    assert_same(rotary_table(4097, d), TABLES[d], "own_rotary_table")


def test_rotary_table_with_cosines_first_is_another():
    with pytest.raises(Disagreement):
        assert_same(np.roll(rotary_table(4097, 128), 64, axis=1), TABLES[128], "own_rotary_table")


@pytest.mark.parametrize("case", ["P1", "P2"])
def test_rotary_tables_of_the_recorded_models(case):
    with h5py.File(GOLDENS / case / "forward.h5") as file:
        rounded, exact = (file[f"constants/rotary_table_{kind}"][()] for kind in ("bfloat16", "float32"))
    assert_same(rotary_table(*rounded.shape), rounded, "exact")
    assert_same(rotary_table(*exact.shape, bfloat16=False), exact, "float32_only")


@pytest.mark.parametrize("d", [2, 12, 128])
def test_rotary_table_is_live_tensorflows(d):
    assert_same(rotary_table(4097, d), tf_reference.constants.rotary_table(4097, d), "own_rotary_table")


@given(values=arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=False)))
def test_rounding_to_bfloat16_is_pytorchs(values):
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert round_to_bfloat16(values).tobytes() == expected.tobytes()


def test_rounding_to_bfloat16_takes_ties_to_even():
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8], np.float32)
    assert round_to_bfloat16(halfway).tolist() == [1, 1 + 2**-6, -1]


# --- the original's initialisation


@functools.cache
def initial_query_kernel(hidden: int, heads: int) -> np.ndarray:
    model = tf_reference.EpiBERT(
        filter_list_seq=[hidden],
        filter_list_atac=[1],
        num_heads=heads,
        num_transformer_layers=1,
        output_length=2,
        final_output_length=2,
        max_seq_length=2,
        final_point_scale=1,
        num_motifs=1,
        motif_units_fc=4,
        dtype="float32",
    ).build_weights()
    return model.performer.layers[0].self_attention.query_dense_layer.kernel.numpy()


@pytest.mark.parametrize(("hidden", "heads"), [(12, 3), (16, 1)])
def test_identical_attention_init_is_the_references(hidden, heads):
    expected = initial_query_kernel(hidden, heads)
    limit = (6 / (2 * hidden)) ** 0.5
    assert_same(stateless_uniform(expected.shape, (5, 0), -limit, limit), expected, "exact")
