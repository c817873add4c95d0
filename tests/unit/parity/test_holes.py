"""The holes found in respected harnesses, each re-created against ours: none of these situations may look green.

They were read from the sources and issues of other projects; each test bears the number of its hole.
"""

import ast
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity import Comparison, Gate, GateStatus, LayerMap, LayerPair, Reading, Result, Status, command
from parity.compare import compare
from parity.ladder import GATES, compare_live, find_culprits, judge
from parity.pairs import epibert_run
from parity.tolerances import TABLE
from parity.torch_side import TorchSide
from parity.trace import Sample, Trace
from tests.unit.sources import ROOT, package_sources

GENERATOR = np.random.default_rng(7)


def check(port: np.ndarray | None, reference: np.ndarray | None, tolerance: str = "float64", **more: Any) -> Comparison:
    return compare(
        port,
        reference,
        gate="layers",
        reading=Reading.ISOLATED,
        precision="float64",
        tolerance=tolerance,
        reference_path="a",
        port_path="a",
        layer="a",
        **more,
    )


def green(comparisons: list[Comparison], gate: str = "layers") -> bool:
    """Whether the rung of these comparisons would pass, standing on rungs that do."""
    others = [
        Comparison(
            gate=n, reading=Reading.VALUE, precision="exact", reference="", port="", layer="", status=Status.PASS
        )
        for n in GATES[: GATES.index(gate)]
    ]
    return judge([*others, *comparisons], requested=(gate,))[gate].status is GateStatus.PASSED


class Living:
    """A PyTorch module in the place of a living reference."""

    precisions = ("float64", "float32")
    streamed = False

    def __init__(self, module: nn.Module, layer_map: LayerMap, inputs: tuple[np.ndarray, ...]) -> None:
        self.side, self.inputs = TorchSide(module, layer_map), inputs

    def trace(self, precision: str, *, training: bool, reading: Reading) -> Trace:
        truth = None
        if reading is not Reading.ACCUMULATED:
            truth = self.trace("float64", training=training, reading=Reading.ACCUMULATED)
        return self.side.trace(self.inputs, precision=precision, training=training, truth=truth)

    def outline(self, precision: str, *, training: bool) -> Trace:
        return self.trace(precision, training=training, reading=Reading.ACCUMULATED)

    def lacks(self, precision: str, *, training: bool, reading: Reading) -> str:
        return ""

    def on_other_inputs(self) -> "Living":
        other = copy.copy(self)
        other.inputs = tuple(np.ascontiguousarray(array[::-1]) for array in self.inputs)
        return other

    def on_shuffled_inputs(self, draw: int) -> "Living":
        other = copy.copy(self)
        other.inputs = tuple(np.random.default_rng(draw).permutation(array, axis=1) for array in self.inputs)
        return other

    def graph_output(self, precision: str, *, training: bool) -> tuple[np.ndarray | Sample, ...]:
        return self.trace(precision, training=training, reading=Reading.ACCUMULATED).calls["", 0].outputs


def climbed(port: nn.Module, reference: nn.Module, layer_map: LayerMap, *inputs: np.ndarray) -> list[Comparison]:
    living: Any = Living(reference, layer_map, inputs)
    return list(compare_live(TorchSide(port, layer_map), living, layer_map, gates=("layers", "model")))


class Net(nn.Module):
    """Square layers, so that no shape gives a mistake away, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        with torch.no_grad():
            for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
                tensor.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(torch.tanh(self.first(x)))
        return self.second(x), x


NET = LayerMap(
    pairs=(
        LayerPair(port="", reference="", inputs=0, outputs=("output", "features")),
        LayerPair(port="first", reference="first"),
        LayerPair(
            port="norm", reference="norm", state=(("running_mean", "running_mean"), ("running_var", "running_var"))
        ),
        LayerPair(port="second", reference="second"),
    ),
    ignored={"norm/num_batches_tracked": "a counter that takes part in nothing"},
)
INPUT = GENERATOR.standard_normal((8, 4))


def test_the_bench_itself_is_green_when_nothing_is_wrong():
    assert green(climbed(Net(), Net(), NET, INPUT))


# --- 1 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["port", "reference", "both"])
def test_hole_1_nan_on_a_side_is_neither_masked_out_nor_equal(sides):
    port, reference = np.ones(5), np.ones(5)
    if sides != "reference":
        port[2] = np.nan
    if sides != "port":
        reference[2] = np.nan
    assert not green([check(np.ones(5), np.ones(5)), check(port, reference)])


# --- 2 ----------------------------------------------------------------------------------------------------------------


def test_hole_2_perfect_correlation_is_no_verdict():
    reference = GENERATOR.standard_normal(1000)
    port = 2 * reference + 3
    assert np.corrcoef(port, reference)[0, 1] > 0.999
    assert not green([check(port, reference)])


# --- 3 ----------------------------------------------------------------------------------------------------------------


def test_hole_3_an_output_that_the_port_lacks_is_not_just_a_warning():
    port: Any = Net()
    plain = port.forward
    port.forward = lambda x: plain(x)[0]
    comparisons = climbed(port, Net(), NET, INPUT)
    assert {row.quantity for row in comparisons if row.status is not Status.PASS} == {
        "features",
        "features, unwatched",
    }
    assert not green(comparisons)


def test_hole_3_an_unmapped_layer_is_not_passed_over():
    fewer = LayerMap(pairs=tuple(pair for pair in NET if pair.port != "second"), ignored=NET.ignored)
    living: Any = Living(Net(), NET, (INPUT,))
    comparisons = list(compare_live(TorchSide(Net(), fewer), living, fewer, gates=("layers",)))
    assert not green(comparisons)


# --- 4 ----------------------------------------------------------------------------------------------------------------


def test_hole_4_three_calls_against_one_do_not_match():
    class Repeated(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.first(x)
            self.first(x)
            return super().forward(x)

    for port, reference in ((Repeated(), Net()), (Net(), Repeated())):
        comparisons = climbed(port, reference, NET, INPUT)
        assert {row.port for row in comparisons if row.status is not Status.PASS} == {"first@1", "first@2"}
        assert not green(comparisons)


def test_hole_4_no_zip_of_ours_can_truncate():
    for name, source in package_sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
                strict = {keyword.arg: keyword.value for keyword in node.keywords}.get("strict")
                assert isinstance(strict, ast.Constant), (name, node.lineno)
                assert strict.value is True, (name, node.lineno)


# --- 5 ----------------------------------------------------------------------------------------------------------------


def test_hole_5_opposite_errors_do_not_cancel():
    reference = GENERATOR.standard_normal(1000)
    error = np.tile([0.5, -0.5], 500)
    assert error.mean() == 0
    assert not green([check(reference + error, reference)])


def test_hole_5_one_agreeing_element_is_not_enough():
    reference = GENERATOR.standard_normal(1000)
    port = reference + 1
    port[3] = reference[3]
    assert not green([check(port, reference)])


# --- 6 ----------------------------------------------------------------------------------------------------------------


def test_hole_6_one_bad_pass_among_good_ones_is_enough():
    good = check(np.ones(3), np.ones(3))
    for position in range(5):
        rows = [good] * 5
        rows[position] = check(np.ones(3) * 2, np.ones(3))
        assert not green(rows)


def test_hole_6_the_limit_in_force_is_the_one_in_the_record():
    row = check(np.ones(3) * 2, np.ones(3))
    assert row.limit == TABLE[row.tolerance].limit


def test_hole_6_a_crashed_run_leaves_no_new_verdict_and_no_green_status(tmp_path, monkeypatch):
    def crash(**_: object) -> None:
        raise epibert_run.UsageError("crashed")

    (tmp_path / "parity.json").write_text(json.dumps({"passed": True}))
    before = (tmp_path / "parity.json").stat().st_mtime_ns
    monkeypatch.setattr(epibert_run, "run", crash)
    with pytest.raises(SystemExit) as exit_:
        command.main(["parity", "--out", str(tmp_path)])
    assert exit_.value.code == command.WRONG_USE != 0
    assert (tmp_path / "parity.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]


# --- 7 ----------------------------------------------------------------------------------------------------------------


def test_hole_7_a_verdict_cannot_be_dropped_into_an_if_or_an_assert():
    gate = Gate(name="layers", status=GateStatus.FAILED)
    result = Result(pair="", reference="", requested=("layers",), gates={"layers": gate})
    verdicts: list[Any] = [check(np.ones(1), np.ones(1)), gate, result]
    for verdict in verdicts:
        with pytest.raises(TypeError, match="no truth value"):
            assert verdict


@pytest.mark.parametrize(("status", "expected"), [(GateStatus.PASSED, command.PROVEN), (GateStatus.FAILED, 1)])
def test_hole_7_a_result_decides_the_exit_status(tmp_path, monkeypatch, status, expected):
    gate = Gate(name="layers", status=status, comparisons=(check(np.ones(1), np.ones(1)),))
    result = Result(pair="", reference="", requested=("layers",), gates={"layers": gate})
    monkeypatch.setattr(epibert_run, "run", lambda **_: result)
    with pytest.raises(SystemExit) as exit_:
        command.main(["parity", "--out", str(tmp_path)])
    assert exit_.value.code == expected


def test_hole_7_every_rung_gates_the_ones_after_it():
    for position, name in enumerate(GATES[:-1]):
        rows = [
            Comparison(
                gate=gate,
                reading=Reading.VALUE,
                precision="exact",
                reference="",
                port="",
                layer="",
                status=Status.FAIL if gate == name else Status.PASS,
            )
            for gate in GATES
        ]
        last = (GATES[-1],)
        gates = judge(rows, requested=last)
        assert {gates[later].status for later in GATES[position + 1 :]} == {GateStatus.BLOCKED}
        assert not Result(pair="", reference="", requested=last, gates=gates).passed


# --- 8 ----------------------------------------------------------------------------------------------------------------


def test_hole_8_without_a_reference_nothing_is_green(tmp_path, monkeypatch):
    monkeypatch.setattr(epibert_run, "tensorflow_installed", lambda: False)
    for arguments in (["--reference", "live"], ["--reference", "recorded", "--goldens", str(tmp_path)]):
        with pytest.raises(SystemExit) as exit_:
            command.main(["parity", *arguments, "--out", str(tmp_path / "out")])
        assert exit_.value.code == command.WRONG_USE


def test_hole_8_no_test_of_ours_asks_to_be_skipped():
    asking = {"skip", "skipif", "importorskip", "skipTest"}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr in asking), (path, node.lineno)


# --- 9 ----------------------------------------------------------------------------------------------------------------


def test_hole_9_a_transposed_square_array_is_not_turned_until_it_fits():
    reference = GENERATOR.standard_normal((4, 4))
    assert not green([check(reference.T, reference)])


def test_hole_9_a_transposed_square_weight_names_its_layer():
    port = Net()
    with torch.no_grad():
        port.second.weight.copy_(port.second.weight.T.clone())
    comparisons = climbed(port, Net(), NET, INPUT)
    assert not green(comparisons)
    assert [found.port for found in find_culprits(comparisons, NET, model_name="Net")] == ["second"]


# --- 10 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["P1", "P2"])
def test_hole_10_no_tensor_of_the_test_models_has_its_default_value(goldens, case):
    config, checkpoint = epibert_run.load_case(goldens / case)
    for path, tensor in epibert_run.model_tensors(checkpoint, config).items():
        assert tensor.size == 1 or len(np.unique(tensor)) > 1, path
        assert not np.any(tensor == 0), path
        assert not np.any(tensor == 1), path


def test_hole_10_swapped_or_default_statistics_are_seen():
    swapped, default = Net(), Net()
    norm = swapped.norm
    norm.running_mean, norm.running_var = norm.running_var, norm.running_mean
    default.norm.reset_running_stats()
    for port in (swapped, default):
        comparisons = climbed(port, Net(), NET, INPUT)
        assert not green(comparisons)
        assert [found.port for found in find_culprits(comparisons, NET, model_name="Net")] == ["norm"]


# --- 11 ---------------------------------------------------------------------------------------------------------------


def test_hole_11_a_runtime_error_on_either_side_is_not_the_same():
    port = Net()

    def boom(x: Tensor) -> Tensor:
        raise RuntimeError("boom")

    port.norm.forward = boom  # type: ignore[method-assign]
    comparisons = climbed(port, Net(), NET, INPUT)
    assert not green(comparisons)
    both = Net()
    both.norm.forward = boom  # type: ignore[method-assign]
    assert not green(climbed(port, both, NET, INPUT))


def test_hole_11_no_loader_of_ours_may_drop_weights():
    for name, source in package_sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.keyword) and node.arg == "strict":
                assert isinstance(node.value, ast.Constant), (name, node.value.lineno)
                assert node.value.value is True, (name, node.value.lineno)


# --- 12 ---------------------------------------------------------------------------------------------------------------


def test_hole_12_training_mode_is_read_by_a_pass_of_its_own():
    """A fault that evaluation cannot show: the training comparisons are not the evaluation's once more."""
    port = Net()
    port.norm.momentum = 0.5
    failing = [row for row in climbed(port, Net(), NET, INPUT) if row.status is not Status.PASS]
    assert {row.mode for row in failing} == {"training"}
    assert {row.layer for row in failing} == {"norm"}


def test_hole_12_every_kind_of_comparison_can_fail():
    """One wrong bench turns every reading, precision, mode and gate that it has red."""
    port = Net()
    with torch.no_grad():
        for parameter in port.parameters():
            parameter.mul_(1.5)
    port.norm.momentum = 0.5
    comparisons = climbed(port, Net(), NET, INPUT)

    def kinds(rows: list[Comparison]) -> set[tuple[str, ...]]:
        return {(row.gate, row.reading, row.precision, row.mode) for row in rows}

    assert kinds([row for row in comparisons if row.status is not Status.PASS]) == kinds(comparisons)


def test_the_notes_of_this_file_match_the_tests():
    numbers = {int(name.split("_")[2]) for name in Path(__file__).read_text().split() if name.startswith("test_hole_")}
    assert numbers == set(range(1, 13))
