"""The comparator against every way of being wrong, one named test each, and its laws for any numbers."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from parity import Comparison, Reading, Status
from parity.compare import PIECE, compare, distance, summaries, take
from parity.tolerances import TABLE
from parity.trace import Sample

GENERATOR = np.random.default_rng(0)
LIMIT = TABLE["float64"].limit


def check(
    port: np.ndarray | None, reference: np.ndarray | None, tolerance: str = "float64", **more: object
) -> Comparison:
    return compare(
        port,
        reference,
        gate="layers",
        reading=Reading.ISOLATED,
        precision=tolerance if tolerance in ("float32", "bfloat16") else "float64",
        tolerance=tolerance,
        reference_path="reference/conv",
        port_path="port.conv",
        layer="port.conv",
        **more,  # type: ignore[arg-type]
    )


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape)


# --- right ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", ["exact", "float64"])
def test_equal_arrays_pass_with_no_error(tolerance):
    array = normal(3, 4)
    row = check(array.copy(), array, tolerance)
    assert row.status is Status.PASS
    assert (row.error, row.peak, row.limit) == (0.0, 0.0, TABLE[tolerance].limit)


def test_equal_arrays_of_zeros_pass():
    assert check(np.zeros((2, 2)), np.zeros((2, 2))).status is Status.PASS


def test_a_difference_of_rounding_passes():
    array = normal(50, 50)
    assert check(np.nextafter(array, np.inf), array).status is Status.PASS


def test_the_record_says_where_it_comes_from():
    row = check(normal(2), normal(2), case="P1", mode="training", order=7, quantity="k_prime")
    assert (row.reference, row.port, row.layer) == ("reference/conv", "port.conv", "port.conv")
    assert (row.case, row.mode, row.order, row.quantity, row.shape) == ("P1", "training", 7, "k_prime", (2,))
    assert (row.gate, row.reading, row.precision, row.tolerance) == ("layers", Reading.ISOLATED, "float64", "float64")


def test_a_non_contiguous_view_is_compared_by_value():
    array = normal(4, 6)
    assert check(array.T.copy().T, array).status is Status.PASS
    assert check(array[:, ::-1], array).status is Status.FAIL


def test_a_single_number_without_axes_is_compared():
    assert check(np.asarray(1.5), np.asarray(1.5)).status is Status.PASS
    assert check(np.asarray(1.25), np.asarray(1.5)).status is Status.FAIL


# --- wrong: absent or of another shape --------------------------------------------------------------------------------


def test_an_array_missing_in_the_port_is_missing():
    row = check(None, normal(2))
    assert row.status is Status.MISSING
    assert "port produced no such array" in row.detail
    assert row.error is None


def test_an_array_missing_in_the_reference_is_missing():
    row = check(normal(2), None)
    assert row.status is Status.MISSING
    assert "reference produced no such array" in row.detail


def test_an_array_missing_on_both_sides_is_missing():
    assert check(None, None).status is Status.MISSING


def test_what_is_known_about_a_missing_array_is_kept():
    assert check(None, normal(2), detail="RuntimeError: boom").detail == "RuntimeError: boom"


@pytest.mark.parametrize(
    ("port", "reference"),
    [
        ((3, 4), (4, 3)),
        ((12,), (3, 4)),
        ((1, 4), (3, 4)),
        ((4,), (3, 4)),
        ((3, 4), (1, 4)),
        ((), (1,)),
        ((1,), ()),
        ((3, 4, 1), (3, 4)),
        ((1, 3, 4), (3, 4)),
        ((2, 4), (3, 4)),
    ],
)
def test_another_shape_fails_also_where_it_would_broadcast(port, reference):
    row = check(np.ones(port), np.ones(reference))
    assert row.status is Status.FAIL
    assert str(port) in row.detail
    assert str(reference) in row.detail


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty_arrays_prove_nothing(shape):
    row = check(np.zeros(shape), np.zeros(shape))
    assert row.status is Status.FAIL
    assert "empty" in row.detail


# --- wrong: not finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sides", ["port", "reference", "both"])
@pytest.mark.parametrize("tolerance", ["exact", "float64", "float32", "own_constants"])
def test_nan_and_infinity_never_pass_not_even_on_both_sides_at_the_same_place(value, sides, tolerance):
    port, reference = np.ones((2, 3)), np.ones((2, 3))
    if sides != "reference":
        port[1, 2] = value
    if sides != "port":
        reference[1, 2] = value
    row = check(
        port, reference, tolerance, reference_same_precision=np.ones((2, 3)) if tolerance == "float32" else None
    )
    assert row.status is Status.NON_FINITE
    assert str(value) in row.detail
    assert "(1, 2)" in row.detail
    assert row.error is None


def test_an_array_of_nothing_but_nan_does_not_pass():
    assert check(np.full(3, np.nan), np.full(3, np.nan)).status is Status.NON_FINITE


def test_nan_in_the_reference_of_the_same_precision_does_not_pass():
    own = np.ones(3)
    own[1] = np.nan
    assert check(np.ones(3), np.ones(3), "float32", reference_same_precision=own).status is Status.NON_FINITE


# --- wrong: values ----------------------------------------------------------------------------------------------------


def assert_fails(port: np.ndarray, reference: np.ndarray) -> None:
    for tolerance in ("exact", "float64", "own_constants"):
        row = check(port, reference, tolerance)
        assert row.status is Status.FAIL
        assert row.detail


def test_a_single_wrong_element_in_a_million_fails():
    reference = normal(1_000_000)
    port = reference.copy()
    port[765_432] += 0.0625
    row = check(port, reference)
    assert row.status is Status.FAIL
    assert "(765432,)" in row.detail
    assert_fails(port, reference)


def test_a_single_element_whose_share_of_the_norm_is_below_the_limit_fails_by_its_peak():
    reference = np.ones(1_000_000)
    port = reference.copy()
    port[5] += 100 * LIMIT
    row = check(port, reference)
    assert row.error is not None
    assert row.error < LIMIT < row.peak  # type: ignore[operator]
    assert row.status is Status.FAIL


def test_opposite_errors_that_cancel_in_the_mean_fail():
    reference = normal(1000)
    port = reference + np.tile([0.125, -0.125], 500)
    assert_fails(port, reference)


def test_twice_the_reference_plus_three_fails_though_the_correlation_is_perfect():
    reference = normal(1000)
    assert_fails(2 * reference + 3, reference)


def test_a_constant_offset_fails():
    reference = normal(1000)
    assert_fails(reference + 0.0625, reference)


def test_a_constant_factor_fails():
    reference = normal(1000)
    assert_fails(reference * 1.0625, reference)


def test_one_agreeing_element_among_wrong_ones_does_not_help():
    reference = normal(1000)
    port = normal(1000)
    port[0] = reference[0]
    assert_fails(port, reference)


def test_a_difference_from_an_all_zero_reference_fails_however_small():
    port = np.zeros(10)
    port[3] = np.finfo(np.float64).tiny
    row = check(port, np.zeros(10))
    assert (row.status, row.error, row.peak) == (Status.FAIL, math.inf, math.inf)
    assert_fails(port, np.zeros(10))


def test_an_all_zero_port_fails():
    assert_fails(np.zeros(10), normal(10))
    assert check(np.zeros(10), normal(10)).error == 1.0


def test_a_transposed_square_array_fails():
    reference = normal(8, 8)
    assert_fails(reference.T, reference)


def test_a_flipped_sign_fails():
    reference = normal(100)
    assert_fails(-reference, reference)
    assert check(-reference, reference).error == 2.0


def test_two_swapped_channels_fail():
    reference = normal(10, 4)
    assert_fails(reference[:, [0, 2, 1, 3]], reference)


def test_a_shift_by_one_position_fails():
    reference = normal(100, 4)
    assert_fails(np.roll(reference, 1, axis=0), reference)


@pytest.mark.parametrize("size", [10.0**300, 10.0**-300, 5e-324, np.finfo(np.float64).max])
def test_huge_and_tiny_values_are_judged_like_any_other(size):
    reference = np.array([1.0, -1.0, 0.0, 1.0]) * size
    assert check(reference.copy(), reference).status is Status.PASS
    wrong = reference.copy()
    wrong[2] = size
    row = check(wrong, reference)
    assert row.status is Status.FAIL
    assert math.isfinite(row.error)  # type: ignore[arg-type]
    assert_fails(-reference, reference)


def test_a_difference_too_large_to_represent_is_infinite_and_fails():
    largest = np.finfo(np.float64).max
    row = check(np.array([-largest, 1.0]), np.array([largest, 1.0]))
    assert (row.status, row.error) == (Status.FAIL, math.inf)


def test_a_huge_port_against_a_subnormal_reference_fails():
    assert_fails(np.array([10.0**300]), np.array([5e-324]))


def test_the_largest_difference_is_named_with_both_values():
    reference = np.ones((2, 3))
    port = reference.copy()
    port[1, 0] = 4.5
    detail = check(port, reference).detail
    assert "(1, 0)" in detail
    assert "1.0" in detail
    assert "4.5" in detail


# --- copied, not computed ---------------------------------------------------------------------------------------------


def test_one_flipped_bit_is_not_exact():
    reference = normal(1000)
    port = reference.copy()
    port[123] = np.nextafter(port[123], np.inf)
    assert check(port, reference, "exact").status is Status.FAIL
    assert check(port, reference, "float64").status is Status.PASS


def test_a_subnormal_beside_a_huge_value_is_not_exact():
    row = check(np.array([10.0**10, 5e-324]), np.array([10.0**10, 0.0]), "exact")
    assert row.status is Status.FAIL
    assert "(1,)" in row.detail


def test_minus_zero_is_not_exactly_zero():
    row = check(np.array([1.0, -0.0]), np.array([1.0, 0.0]), "exact")
    assert row.status is Status.FAIL
    assert "(1,)" in row.detail


# --- ratios -----------------------------------------------------------------------------------------------------------

RATIOS = ["float32", "bfloat16"]


def off_by(reference: np.ndarray, error: float) -> np.ndarray:
    """The array with a relative L2 error of this size."""
    direction = np.where(np.arange(reference.size) % 2, 1.0, -1.0).reshape(reference.shape)
    return reference + direction * error * np.sqrt(np.mean(reference**2))


@pytest.mark.parametrize("tolerance", RATIOS)
def test_a_port_as_far_from_the_truth_as_the_reference_passes(tolerance):
    truth = normal(1000)
    row = check(off_by(truth, 0.005), truth, tolerance, reference_same_precision=off_by(truth, -0.005))
    assert row.status is Status.PASS
    assert row.limit == TABLE[tolerance].bound(row.reference_error, truth.size)


@pytest.mark.parametrize("tolerance", RATIOS)
def test_a_port_farther_than_the_factor_fails_and_one_nearer_passes(tolerance):
    truth, own = normal(1000), 0.005
    factor = TABLE[tolerance].bound(own, truth.size) / own
    reference = off_by(truth, own)
    assert (
        check(off_by(truth, 1.01 * factor * own), truth, tolerance, reference_same_precision=reference).status
        is Status.FAIL
    )
    assert (
        check(off_by(truth, 0.99 * factor * own), truth, tolerance, reference_same_precision=reference).status
        is Status.PASS
    )


@pytest.mark.parametrize(("tolerance", "few", "many"), [("float32", 3.2247, 2.06), ("bfloat16", 2.4186, 1.545)])
def test_few_numbers_are_judged_by_a_wider_ratio_but_not_by_any(tolerance, few, many):
    for count, factor in ((1, few), (5, few), (24, few), (10_000, many)):
        truth = np.ones(count)
        own = truth + 0.005
        for share, status in ((0.999, Status.PASS), (1.001, Status.FAIL)):
            port = truth + share * factor * 0.005
            assert check(port, truth, tolerance, reference_same_precision=own).status is status


@pytest.mark.parametrize("tolerance", RATIOS)
def test_a_reference_without_error_leaves_the_floor_and_no_more(tolerance):
    truth, floor = normal(1000), TABLE[tolerance].floor
    assert check(off_by(truth, 0.9 * floor), truth, tolerance, reference_same_precision=truth).status is Status.PASS
    row = check(off_by(truth, 1.1 * floor), truth, tolerance, reference_same_precision=truth)
    assert (row.status, row.limit) == (Status.FAIL, floor)


@pytest.mark.parametrize("tolerance", RATIOS)
def test_agreeing_with_the_references_own_rounding_is_no_excuse_for_the_wrong_size(tolerance):
    truth = normal(1000)
    assert check(2 * truth, truth, tolerance, reference_same_precision=off_by(truth, 0.01)).status is Status.FAIL


@pytest.mark.parametrize("tolerance", RATIOS)
def test_a_ratio_without_the_references_own_array_decides_nothing(tolerance):
    truth = normal(1000)
    row = check(truth.copy(), truth, tolerance)
    assert row.status is Status.MISSING
    assert tolerance in row.detail
    assert check(-truth, truth, tolerance).status is Status.MISSING


@pytest.mark.parametrize("tolerance", RATIOS)
def test_an_infinite_error_of_the_reference_bounds_nothing(tolerance):
    row = check(np.full(4, 1000.0), np.zeros(4), tolerance, reference_same_precision=np.full(4, 0.001))
    assert row.status is Status.FAIL
    assert "reference's own error" in row.detail


@pytest.mark.parametrize("tolerance", RATIOS)
def test_a_reference_that_changes_its_shape_with_the_precision_fails(tolerance):
    truth = normal(4)
    assert check(truth, truth, tolerance, reference_same_precision=normal(1, 4)).status is Status.FAIL


# --- a scale of its own -----------------------------------------------------------------------------------------------


def test_a_mean_that_cancels_is_related_to_the_scale_given():
    reference = np.array([10.0**-16, -(10.0**-16)])
    port = -reference
    assert check(port, reference).status is Status.FAIL
    assert check(port, reference, scale=1.0).status is Status.PASS


def test_a_scale_of_zero_excuses_nothing():
    assert check(np.array([0.5]), np.array([0.25]), scale=0.0).status is Status.FAIL


@pytest.mark.parametrize("value", [0.0, 0.05, -0.9])
def test_a_correlation_is_related_to_one_however_small_it_is(value):
    reference = np.array(value)
    assert check(reference + 0.9 * LIMIT, reference, "correlation").status is Status.PASS
    assert check(reference + 1.1 * LIMIT, reference, "correlation").status is Status.FAIL
    assert check(-reference - 1.1 * LIMIT, reference, "correlation").status is Status.FAIL
    if value:
        assert check(reference * (1 + 1.1 * LIMIT), reference).status is Status.FAIL


# --- samples and summaries --------------------------------------------------------------------------------------------


def sample_of(array: np.ndarray) -> Sample:
    positions = np.array([0, 3, 7])
    return Sample(
        values=array.take(positions, axis=1),
        positions=positions,
        axis=1,
        full_shape=array.shape,
        summaries=summaries(array, 1),
    )


def test_the_sampled_part_is_taken_from_a_whole_array_of_the_same_shape_only():
    array = normal(2, 8, 3)
    sample = sample_of(array)
    assert np.array_equal(take(array, sample), sample.values)  # type: ignore[arg-type]
    assert take(array[:, :7], sample) is None
    assert take(array.transpose(1, 0, 2), sample) is None


def test_summaries_are_those_of_the_whole_array():
    array = np.array([[1.0, 2.0], [3.0, 6.0]])
    found = summaries(array, 0)
    assert {name: value.tolist() for name, value in found.items()} == {
        "mean": 3.0,
        "std": math.sqrt(3.5),
        "min": 1.0,
        "max": 6.0,
        "axis_mean": [2.0, 4.0],
    }


# --- laws -------------------------------------------------------------------------------------------------------------

SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)
WIDE = st.floats(allow_nan=False, allow_infinity=False)


def pairs(elements: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    shapes = hnp.array_shapes(max_dims=3, max_side=5)
    return shapes.flatmap(
        lambda shape: st.tuples(*(hnp.arrays(np.float64, shape, elements=elements) for _ in range(2)))
    )


@given(pairs(WIDE))
def test_distance_is_never_nan_nor_negative(arrays):
    for number in distance(*arrays):
        assert number >= 0.0


@given(pairs(SINGLE))
def test_distance_is_zero_only_between_equal_arrays(arrays):
    port, reference = arrays
    error, peak = distance(port, reference)
    assert (error == 0.0) == (peak == 0.0) == np.array_equal(port, reference)


@given(pairs(SINGLE), st.integers(-300, 300))
def test_distance_does_not_change_when_both_are_scaled_alike(arrays, exponent):
    port, reference = (np.ldexp(array, exponent) for array in arrays)
    assert distance(-port, -reference) == distance(port, reference)
    assert distance(port, reference) == distance(*arrays)


@given(pairs(SINGLE))
def test_distance_does_not_depend_on_the_arrangement_of_the_elements(arrays):
    port, reference = arrays
    turned = distance(port.T.copy(), reference.T.copy())
    assert turned[1] == distance(port, reference)[1]
    assert compare_exactly(turned[0], distance(port, reference)[0])


def compare_exactly(first: float, second: float) -> bool:
    """Equal but for the order of summation."""
    return first == second or abs(first - second) <= LIMIT * max(first, second)


@given(hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-10, 10)), st.floats(0.001, 0.99), st.booleans())
def test_a_perturbation_below_the_limit_passes_and_one_above_fails(reference, share, above):
    size = float(np.max(np.abs(reference), initial=0.0))
    assume(size > 0.5)
    norm = float(np.sqrt(np.sum(reference**2)))
    # A factor on the whole array has the same relative L2 error and relative peak.
    wanted = LIMIT / share if above else LIMIT * share
    port = reference * (1 + wanted)
    # Rounding moves the perturbation by up to half a unit in the last place of each element.
    assume(norm > 0 and abs(wanted - LIMIT) > 2 * np.finfo(np.float64).eps)
    assert check(port, reference).status is (Status.FAIL if above else Status.PASS)


@given(
    hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-10, 10)),
    st.integers(0, 49),
    st.floats(2, 1000),
)
def test_one_element_over_the_limit_fails_wherever_it_stands(reference, position, factor):
    size = float(np.max(np.abs(reference), initial=0.0))
    assume(size > 0.5)
    port = reference.copy()
    port[position % reference.size] += factor * LIMIT * size
    assert check(port, reference).status is Status.FAIL


# --- large arrays, piece by piece -------------------------------------------------------------------------------------

LARGE = (3, PIECE, 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_the_distance_of_large_arrays_is_that_of_the_whole(dtype, scale, monkeypatch):
    reference, port = (normal(*LARGE).astype(dtype).transpose(0, 2, 1) for _ in range(2))
    found = distance(port, reference, scale)
    monkeypatch.setattr("parity.compare.PIECE", reference.size)
    assert distance(np.array(found), np.array(distance(port, reference, scale)))[0] <= LIMIT


def test_large_arrays_that_are_equal_have_no_distance():
    array = normal(*LARGE)
    assert distance(array.copy(), array) == (0.0, 0.0)


@pytest.mark.parametrize("position", [(0, 0, 0), (1, PIECE // 2, 1), (2, PIECE - 1, 1)])
def test_one_number_of_a_large_array_is_found_wherever_it_is(position):
    reference = normal(*LARGE)
    port = reference.copy()
    port[position] += 1.0
    row = check(port, reference)
    assert row.status is Status.FAIL
    assert f"largest difference at {position}" in row.detail
    port[position] = np.nan
    row = check(port, reference)
    assert row.status is Status.NON_FINITE
    assert str(position) in row.detail


def test_large_arrays_of_huge_and_of_tiny_numbers_do_not_overflow():
    unit = normal(*LARGE)
    other = unit + normal(*LARGE) / 1024
    for size in (2.0**1000, 2.0**-1000):
        found = distance(other * size, unit * size)
        assert distance(np.array(found), np.array(distance(other, unit)))[0] <= LIMIT
    assert distance(np.full(LARGE, 1e308), np.full(LARGE, -1e308)) == (math.inf, math.inf)
    assert distance(unit, np.zeros(LARGE)) == (math.inf, math.inf)
