"""A ratio that chance failed passes on more inputs, one that a port rounds by does not, and the record shows both."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats

from parity import Comparison, Reading, Status
from parity.compare import compare
from parity.second_look import RARE, SURE, look_again
from parity.tolerances import TABLE, UNIT_ROUNDOFF

LOOKS = TABLE["bfloat16"].looks
OWN = UNIT_ROUNDOFF["bfloat16"]
TRUTH = np.random.default_rng(0).uniform(1.0, 2.0, size=4096)


def measured(ratio: float, own: float = OWN, **changes: Any) -> Comparison:
    """A row whose port is so many times as far from the truth as the reference is."""
    signs = np.where(np.arange(TRUTH.size) % 2, 1.0, -1.0)
    found = compare(
        TRUTH * (1 + ratio * own * signs),
        TRUTH,
        gate="model",
        reading=Reading.ACCUMULATED,
        precision="bfloat16",
        tolerance="bfloat16",
        reference_path="conv",
        port_path="conv",
        layer="conv",
        reference_same_precision=TRUTH * (1 - own * signs),
    )
    return dataclasses.replace(found, **changes)


def looked(first: Comparison, *others: Comparison) -> Comparison:
    """What becomes of a row of which the others are found on other inputs, over and over."""
    (found,) = look_again([first], lambda number: [others[number % len(others)]])
    return found


def test_what_passes_and_what_is_no_ratio_is_judged_by_one_input():
    exact = compare(
        TRUTH + 1, TRUTH, gate="layers", reading=Reading.ISOLATED, precision="float64", tolerance="float64",
        reference_path="a", port_path="a", layer="a",
    )  # fmt: skip
    rows = [measured(1.0), exact, measured(2.0, error=None, port="without a number")]
    assert look_again(rows, lambda number: pytest.fail("looked again")) == tuple(rows)


def test_chance_passes_and_the_record_keeps_every_look():
    first = measured(1.74)
    assert first.status is Status.FAIL
    found = looked(first, measured(0.8), measured(1.1))
    assert found.status is Status.PASS
    assert len(found.looks) == LOOKS + 1
    assert (found.looks[0].error, found.looks[0].reference_error) == (first.error, first.reference_error)
    assert f"measured on {LOOKS + 1} inputs; on the first alone {first.error:.2g}" in found.detail
    assert first.detail in found.detail
    assert (found.port, found.quantity) == (first.port, first.quantity)


def test_a_port_that_rounds_worse_on_every_input_fails_again():
    found = looked(measured(1.74), measured(1.6), measured(1.7))
    assert found.status is Status.FAIL
    assert len(found.looks) == SURE + 1
    found = looked(measured(1.74), *[measured(1.7)] * 5, measured(1.4))
    assert found.status is Status.FAIL
    assert len(found.looks) == LOOKS + 1


def test_one_input_that_is_far_off_is_not_outvoted():
    assert looked(measured(10.0), measured(1.0)).status is Status.FAIL


def test_no_number_of_inputs_moves_the_limit():
    first = measured(1.74)
    found = looked(first, measured(1.0))
    before, after = ((row.limit or 0.0) / (row.reference_error or 1.0) for row in (first, found))
    assert TABLE["bfloat16"].limit <= after < before < TABLE["bfloat16"].limit * 1.05


def test_an_element_that_went_astray_is_no_matter_of_luck():
    first = measured(1.74)
    astray = dataclasses.replace(first, peak=2 * (first.peak_limit or 0.0))
    assert looked(astray, measured(1.0)).status is Status.FAIL


def test_what_fails_on_every_input_fails_whatever_all_together_say():
    first = measured(1.0, status=Status.FAIL, detail="")
    assert looked(first, measured(1.0)).status is Status.PASS
    assert looked(first, first).status is Status.FAIL


def test_an_input_on_which_nothing_could_be_measured_excuses_nothing():
    lost = measured(1.0, status=Status.NON_FINITE, error=None, detail="the port has nan")
    found = looked(measured(1.74), measured(1.0), lost)
    assert found.status is Status.NON_FINITE
    assert "the port has nan" in found.detail
    assert looked(measured(1.74), measured(1.0, port="another")).status is Status.MISSING


def test_a_reference_that_refuses_other_inputs_leaves_the_first_result():
    def refuse(number: int) -> Iterator[Comparison]:
        raise ValueError("not sorted")
        yield

    rows = [measured(1.0), measured(1.74, port="b")]
    passed, failed = look_again(rows, refuse)
    assert passed == rows[0]
    assert failed == dataclasses.replace(rows[1], detail=failed.detail)
    assert "not measured on other inputs: ValueError: not sorted" in failed.detail


def test_only_what_failed_is_looked_at_again():
    rows = [measured(1.0), measured(1.74, port="b", layer="b"), measured(1.2, port="c", layer="c")]
    first, second, third = look_again(rows, lambda number: [dataclasses.replace(rows[0], port="b", layer="b")])
    assert (first, third) == (rows[0], rows[2])
    assert second.status is Status.PASS


@pytest.mark.parametrize(
    ("limit", "roundings", "one", "many"),
    [(2.0, 1, "0.30", "0.003"), (1.5, 1, "0.37", "0.05"), (1.5, 3, "0.26", "0.002")],
)
def test_a_ratio_of_few_roundings_exceeds_its_limit_as_rarely_as_the_table_says(limit, roundings, one, many):
    for inputs, text in ((1, one), (1 + LOOKS, many)):
        draws = inputs * roundings
        assert f"{scipy.stats.f.sf(limit**2, draws, draws):.{len(text) - 2}f}" == text


def test_looks_are_asked_for_by_their_numbers():
    asked: list[int] = []

    def measure(number: int) -> Iterator[Comparison]:
        asked.append(number)
        yield measured(1.0)

    look_again([measured(1.74)], measure)
    assert asked == list(range(1, LOOKS + 1))


def test_two_comparisons_of_one_place_are_an_error():
    rows = [measured(1.74), measured(1.0, port="b"), measured(0.9, gate="layers", order=7)]
    with pytest.raises(ValueError, match=r"1 places have several comparisons, such as \('conv', 'conv', 'output'"):
        look_again(rows, lambda number: pytest.fail("looked again"))


def jumped(*others: Comparison, moved: Sequence[Comparison]) -> tuple[Comparison, list[int]]:
    """A row that is tens of limits off, what is found on other inputs, and beside moved references; who was asked."""
    asked: list[int] = []

    def beside(number: int) -> list[list[Comparison]]:
        asked.append(number)
        return [[row] for row in moved]

    (found,) = look_again([measured(40.0)], lambda number: [others[number % len(others)]], beside)
    return found, asked


NEAR, FAR = measured(1.1), measured(38.0)
"""A port beside a moved reference that jumps as it does, and beside one that does not."""


def test_where_a_moved_reference_jumps_as_well_a_port_may():
    found, asked = jumped(measured(1.0), moved=[FAR, NEAR, FAR])
    assert (found.status, asked) == (Status.PASS, [0])
    assert found.looks[0].error == measured(40.0).error
    assert (found.error or 1.0) < 1.2 * OWN
    assert "on the first alone 0.16" in found.detail
    assert "on input 0 it is 0.0043 from a reference moved by one unit in the last place" in found.detail


@pytest.mark.parametrize("moved", [[FAR] * 16, [], [dataclasses.replace(NEAR, port="another")]])
def test_where_no_moved_reference_jumps_as_it_does_a_port_may_not(moved):
    found, asked = jumped(measured(1.0), moved=moved)
    assert (found.status, asked) == (Status.FAIL, [0])
    assert (found.error or 0.0) > 9 * OWN


def test_beside_a_moved_reference_the_limits_are_the_same():
    beyond = measured(2.0)
    assert jumped(measured(1.0), moved=[beyond])[0].status is Status.FAIL
    astray = dataclasses.replace(NEAR, peak=2 * (NEAR.peak_limit or 0.0))
    assert jumped(measured(1.0), moved=[astray])[0].status is Status.FAIL
    before, after = jumped(measured(1.0), moved=[FAR])[0], jumped(measured(1.0), moved=[NEAR])[0]
    assert (before.limit, before.peak_limit, before.looks) == (after.limit, after.peak_limit, after.looks)


def test_what_fails_on_many_inputs_is_no_jump():
    rare = [measured(40.0)] * (RARE - 1) + [measured(1.0)] * (LOOKS - RARE + 1)
    found, asked = jumped(*rare[-1:], *rare[:-1], moved=[NEAR])
    assert (found.status, asked) == (Status.PASS, list(range(RARE)))
    often = [measured(40.0)] * RARE + [measured(1.0)] * (LOOKS - RARE)
    found, asked = jumped(*often[-1:], *often[:-1], moved=[NEAR])
    assert (found.status, asked) == (Status.FAIL, [])
    found, asked = jumped(measured(40.0), moved=[NEAR])
    assert (found.status, asked) == (Status.FAIL, [])


def test_a_jump_on_one_input_excuses_nothing_on_another():
    beside = {0: [NEAR]}
    others = [measured(20.0), *[measured(1.0)] * (LOOKS - 1)]

    def judged() -> Comparison:
        (found,) = look_again(
            [measured(40.0)],
            lambda number: [others[number - 1]],
            lambda number: [beside.get(number, [FAR])],
        )
        return found

    found = judged()
    assert found.status is Status.FAIL
    assert "on input 1 it is 0.15 from a reference moved by one unit in the last place" in found.detail
    beside[1] = [NEAR]
    assert judged().status is Status.PASS


def test_where_no_moved_reference_can_be_measured_nothing_is_excused():
    def refuse(number: int) -> Iterator[list[Comparison]]:
        raise ValueError("not sorted")
        yield

    (found,) = look_again([measured(40.0)], lambda number: [measured(1.0)], refuse)
    assert found.status is Status.FAIL
    assert "on input 0 no reference was moved: ValueError: not sorted" in found.detail
    for lost in ([], [dataclasses.replace(NEAR, error=None)]):
        found, _ = jumped(measured(1.0), moved=lost)
        assert found.status is Status.FAIL
        assert "on input 0 no moved reference could be measured" in found.detail


def test_an_input_on_which_nothing_could_be_measured_is_no_jump():
    lost = measured(1.0, status=Status.FAIL, error=None, reference_error=None, detail="too large to decide by")
    others = [lost, *[measured(1.0)] * (LOOKS - 1)]
    found, asked = jumped(*others[-1:], *others[:-1], moved=[lost])
    assert (found.status, asked) == (Status.FAIL, [])
    assert "on input 1: too large to decide by" in found.detail


def test_what_passes_over_all_inputs_needs_no_moved_reference():
    (found,) = look_again([measured(1.74)], lambda _: [measured(1.0)], lambda _: pytest.fail("asked"))
    assert found.status is Status.PASS
