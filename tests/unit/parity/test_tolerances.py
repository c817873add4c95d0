"""The table of tolerances: every row has its reason, and no limit stands anywhere else."""

import ast
import math
import re

import numpy as np
import pytest

from parity.tolerances import TABLE, UNIT_ROUNDOFF, Tolerance, table
from tests.unit.sources import ROOT


@pytest.mark.parametrize("name", TABLE)
def test_every_row_has_a_reason_and_usable_numbers(name):
    row = TABLE[name]
    assert len(row.reason.split()) >= 10
    assert all(math.isfinite(number) and number >= 0 for number in (row.limit, row.floor, row.largest_peak))
    assert row.scale is None or 0 < row.scale < math.inf


def test_rows_cannot_be_changed():
    with pytest.raises(AttributeError):
        TABLE["float64"].limit = 1.0  # type: ignore[misc]


def test_only_the_rows_that_judge_by_distance_exceed_one_thousandth():
    large = {name for name, row in TABLE.items() if row.limit > 0.001}
    assert large - {name for name in TABLE if name.startswith("convergence")} == {
        "float32",
        "bfloat16",
        "bfloat16_other_processor",
        "bfloat16_flips",
        "copy_bfloat16",
        "gradient_float32",
        "gradient_bfloat16",
        "trajectory_float64",
        "trajectory_float32",
        "fault_location",
    }


def test_the_limits_that_were_promised():
    """The numbers that the project states in public: whoever changes one has to change them here, knowingly."""
    assert TABLE["exact"].limit == 0
    assert TABLE["float64"].limit == 10.0**-12
    assert (TABLE["float32"].limit, TABLE["bfloat16"].limit) == (2.0, 1.5)
    assert TABLE["own_constants"].limit == 10.0**-5
    assert TABLE["rounded_constant"].limit <= 5 * 10.0**-9
    assert {TABLE[name].limit for name in ("gradient", "optimizer", "state")} == {10.0**-10}
    assert TABLE["gradient_live"].limit == 10.0**-11
    assert {TABLE[f"trajectory_{precision}"].limit for precision in ("float64", "float32")} == {2.0}
    assert (TABLE["convergence"].limit, TABLE["convergence_power"].limit) == (1.0, 0.1)


@pytest.mark.parametrize(("precision", "roundings"), [("float32", 2), ("bfloat16", 1)])
def test_the_floor_is_the_largest_error_of_a_few_roundings(precision, roundings):
    """The numbers that rounding to nearest moves farthest stand right after a power of two."""
    import torch

    half_way = 1 + torch.finfo(getattr(torch, precision)).eps / 2
    exact = torch.tensor(half_way, dtype=torch.float64)
    error = float((exact.to(getattr(torch, precision)).double() - exact).abs() / exact)
    assert TABLE[precision].floor / roundings * 0.99 < error <= TABLE[precision].floor / roundings


def test_unit_roundoffs_are_those_of_the_formats():
    import torch

    assert {name: torch.finfo(getattr(torch, name)).eps / 2 for name in UNIT_ROUNDOFF} == UNIT_ROUNDOFF


def test_a_bound_without_the_references_error_is_the_limit():
    assert Tolerance(limit=0.5, reason="").bound() == 0.5


def test_a_correlation_moves_as_far_as_its_row_says():
    """By e |p| / |p - mean p| when predictions move by a share e of their norm, a small one as far as a large."""
    generator = np.random.default_rng(0)
    target, noise = generator.standard_normal((2, 9))
    share = 2.0**-20
    for slope in (0.0, 1.0):
        varying = slope * target + noise
        predictions = 30 + varying
        centred, across = varying - varying.mean(), target - target.mean()
        # The direction that moves it most: along the target, as far as that is not along the predictions.
        across -= centred * (across @ centred) / (centred @ centred)
        step = across * share * np.linalg.norm(predictions) / np.linalg.norm(across)
        before, after = (np.corrcoef(each, target)[0, 1] for each in (predictions, predictions + step))
        bound = share * np.linalg.norm(predictions) / np.linalg.norm(centred)
        assert 0.5 * bound < abs(after - before) <= bound


def test_correlations_alone_have_a_size_by_nature():
    assert {name for name, row in TABLE.items() if row.scale is not None} == {"correlation"}
    assert TABLE["correlation"].scale == 1
    assert TABLE["correlation"].limit == TABLE["float64"].limit


def test_chance_widens_a_ratio_of_few_numbers_and_hardly_one_of_many():
    counts = (1, 5, 24, 10_000)
    # 2 and 1.5 times 1 + 3 / sqrt(24) = 1.6124, also for fewer numbers, and 1 + 3 / sqrt(10,000) = 1.03.
    assert [round(TABLE["float32"].bound(1.0, count), 4) for count in counts] == [3.2247, 3.2247, 3.2247, 2.06]
    assert [round(TABLE["bfloat16"].bound(1.0, count), 4) for count in counts] == [2.4186, 2.4186, 2.4186, 1.545]
    assert TABLE["float32"].bound(1.0) == 2.0
    assert all("61 %" in TABLE[name].reason for name in ("float32", "bfloat16"))
    assert TABLE["float64"].bound(None, 1) == TABLE["float64"].limit
    assert TABLE["gradient_float32"].bound(1.0, 1) == TABLE["gradient_float32"].limit


def test_a_ratio_grows_with_the_references_error_and_never_falls_below_the_floor():
    row = Tolerance(limit=2.0, floor=0.25, reason="")
    assert [row.bound(error) for error in (0.0, 0.1, 0.125, 1.0)] == [0.25, 0.25, 0.25, 2.0]


def test_the_peak_is_the_limit_unless_it_is_given():
    assert Tolerance(limit=0.5, reason="").largest_peak == 0.5
    assert Tolerance(limit=0.5, peak=0.75, reason="").largest_peak == 0.75


def test_the_table_as_plain_data_is_complete():
    assert table().keys() == TABLE.keys()
    assert all(
        table()[name]["reason"] == row.reason and table()[name]["limit"] == row.limit for name, row in TABLE.items()
    )


# --- no other limit anywhere ------------------------------------------------------------------------------------------

CLOSE_ENOUGH = re.compile(
    r"^(?:assert_)?(?:all_?close|is_?close|array_almost_equal.*|almost_equal.*)$|^assert_close$|^approx$"
)
SLACK = {"rtol", "atol", "rel", "abs", "rel_tol", "abs_tol", "tol", "tolerance"}
SMALL = 0.01


def _number(node: ast.expr) -> float | None:
    """The value of a literal, also of a product, quotient or power of literals."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div | ast.Pow):
        left, right = _number(node.left), _number(node.right)
        if left is None or right is None:
            return None
        if isinstance(node.op, ast.Mult):
            return left * right
        return left / right if isinstance(node.op, ast.Div) else left**right
    return None


def _is_small(node: ast.expr) -> bool:
    number = _number(node)
    return number is not None and 0 < number < SMALL


def own_limits(source: str) -> list[int]:
    """Lines that compare with a small literal, call something named close, or hand a literal to a tolerance."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and any(_is_small(side) for side in (node.left, *node.comparators)):
            lines.add(node.lineno)
        if isinstance(node, ast.Call):
            slack = [
                keyword for keyword in node.keywords if keyword.arg in SLACK and _number(keyword.value) is not None
            ]
            if slack or CLOSE_ENOUGH.match(ast.unparse(node.func).rpartition(".")[2]):
                lines.add(node.lineno)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_small(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(re.search(r"(?i)limit|toleran|bound", ast.unparse(target)) for target in targets):
                lines.add(node.lineno)
    return sorted(lines)


@pytest.mark.parametrize(
    "offender",
    [
        "assert error < 1e-12",
        "assert 1e-6 > error",
        "assert error <= 2 * 1e-7",
        "assert error <= 2**-24",
        "assert error <= 1 / 1000",
        "assert np.allclose(a, b)",
        "torch.testing.assert_close(a, b)",
        "np.testing.assert_allclose(a, b, rtol=0)",
        "np.testing.assert_array_almost_equal(a, b)",
        "assert a == pytest.approx(b)",
        "assert math.isclose(a, b)",
        "check(a, b, atol=1)",
        "FLOAT64_LIMIT = 1e-12",
        "tolerance: float = 1e-3",
    ],
)
def test_the_scan_sees_a_limit_of_ones_own(offender):
    assert own_limits(offender)


@pytest.mark.parametrize(
    "innocent",
    [
        "assert error <= TABLE['float64'].limit",
        "norm.epsilon = 1e-3",
        "assert count > 0",
        "assert ratio < 2",
        "x = x + 1e-6",
        "verify(a, b, tolerance='float64')",
        "assert 'error 1e-12' in text",
        "file.close",
    ],
)
def test_the_scan_leaves_the_rest_alone(innocent):
    assert own_limits(innocent) == []


EXEMPT = {
    "parity/tolerances.py": "the table itself",
    "parity/attack/rules.py": "the limits of others, by which nothing here is judged but those limits",
    "tests/unit/parity/test_tolerances.py": "the numbers that were promised, so that the table cannot drift from them",
    "tests/unit/parity/test_convergence.py": "statistics held against published numbers, to their digits",
    "tests/unit/parity/test_planted_motifs.py": "scores held against their formulas, without the harness",
    "tests/unit/parity/test_planted_records.py": "what records in float16 and the pipeline's clip leave of the task",
    "tests/unit/benchmarks/test_device.py": "that a benchmark measured what it says, by orders of magnitude",
    "tests/unit/benchmarks/test_forward.py": "a rate held against its formula",
    "tests/unit/benchmarks/test_lengths.py": "an exponent held against the power that it was made with",
    "tests/unit/benchmarks/test_roofline.py": "a count held against the published one, to its digits",
    "tests/unit/test_configs.py": "the noise that the pipeline adds to accessibility",
    "tests/unit/weights/test_initialize.py": "which weights a gradient of zero has moved by rounding alone",
    "tests/unit/parity/test_pairs_samples.py": "sizes that the drawn numbers must have",
    "tests/unit/tf_reference/test_model.py": "the reference held against formulas, without the harness",
    "tests/unit/tf_reference/test_constants.py": "the reference held against formulas, without the harness",
    "tests/unit/weights/test_table.py": "what a changed row of the weight map does to the output",
}
"""Files with limits of their own, and why. An entry that is no longer needed fails."""


def test_no_limit_stands_outside_the_table():
    paths = [ROOT / "conftest.py", *(ROOT / "parity").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert len(paths) > 30
    found = {
        path.relative_to(ROOT).as_posix(): lines for path in sorted(paths) if (lines := own_limits(path.read_text()))
    }
    found.pop("tests/unit/parity/report/results.py", None)  # invents results to show; it judges nothing
    assert {name: lines for name, lines in found.items() if name not in EXEMPT} == {}
    unneeded = sorted(EXEMPT.keys() - found.keys() - {"parity/tolerances.py"})
    assert unneeded == []


def test_a_ratio_of_two_norms_of_noise_deviates_as_the_table_says():
    noise = np.random.default_rng(0).standard_normal((2, 20_000, 24))
    first, second = np.linalg.norm(noise, axis=-1)
    assert np.std(first / second) == pytest.approx(1 / 24**0.5, rel=0.1)
