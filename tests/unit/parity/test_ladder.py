"""The ladder: comparisons into gates, failures into culprits, and traces into comparisons."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity import Comparison, GateStatus, LayerMap, LayerPair, Reading, Status
from parity.ladder import (
    GATES,
    compare_array,
    compare_live,
    compare_pass,
    compare_recorded,
    find_culprits,
    judge,
    tolerance_of,
)
from parity.reference import Goldens
from parity.second_look import SURE
from parity.stream import Stream
from parity.torch_side import TorchSide
from parity.trace import Call, Readable, Recorder, Sample, Trace

GENERATOR = np.random.default_rng(4)
INPUT: tuple[np.ndarray] = (GENERATOR.standard_normal((4, 16, 3)).astype(np.float32).astype(np.float64),)


def row(gate: str = "layers", status: Status = Status.PASS, layer: str = "conv", **more: object) -> Comparison:
    values = {
        "gate": gate,
        "reading": Reading.ISOLATED,
        "precision": "float64",
        "reference": layer,
        "port": layer,
        "layer": layer,
        "status": status,
    }
    return Comparison(**values | more)  # type: ignore[arg-type]


def rows(**failing: Status) -> list[Comparison]:
    """One passing comparison on every gate, and another with the given status."""
    found = [row(gate) for gate in GATES]
    return found + [row(gate, status) for gate, status in failing.items()]


def statuses(
    comparisons: list[Comparison], requested: tuple[str, ...] = GATES, **more: object
) -> dict[str, GateStatus]:
    return {name: gate.status for name, gate in judge(comparisons, requested=requested, **more).items()}  # type: ignore[arg-type]


# --- gates ------------------------------------------------------------------------------------------------------------


def test_all_gates_pass_when_every_comparison_passes():
    assert statuses(rows()) == dict.fromkeys(GATES, GateStatus.PASSED)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PASS])
@pytest.mark.parametrize("gate", GATES)
def test_one_comparison_that_does_not_pass_fails_its_gate_and_blocks_all_later_ones(gate, status):
    position = GATES.index(gate)
    expected = [GateStatus.PASSED] * position + [GateStatus.FAILED] + [GateStatus.BLOCKED] * (len(GATES) - position - 1)
    assert list(statuses(rows(**{gate: status})).values()) == expected


def test_a_blocked_gate_says_which_gate_did_not_pass_and_keeps_its_comparisons():
    gates = judge(rows(weights=Status.FAIL, blocks=Status.FAIL), requested=GATES)
    assert gates["blocks"].reason == gates["model"].reason == "the gate 'weights' did not pass"
    assert len(gates["blocks"].comparisons) == 2
    assert gates["weights"].reason == "1 of 2 comparisons do not pass"


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_with_nothing_to_compare_fails(gate):
    comparisons = [found for found in rows() if found.gate != gate]
    gates = judge(comparisons, requested=GATES)
    assert gates[gate].status is GateStatus.FAILED
    assert gates[gate].reason == "nothing was compared"
    assert all(gates[name].status is GateStatus.BLOCKED for name in GATES[GATES.index(gate) + 1 :])


def test_no_comparison_at_all_passes_nothing():
    assert GateStatus.PASSED not in statuses([]).values()


def test_gates_after_those_asked_for_are_not_run():
    gates = judge([row("weights")], requested=("weights",))
    assert gates["weights"].status is GateStatus.PASSED
    assert {gates[name].status for name in GATES[1:]} == {GateStatus.NOT_RUN}
    assert gates["model"].reason == "not asked for"


def test_a_gate_before_the_one_asked_for_cannot_be_left_out():
    assert statuses([row("model")], requested=("model",))["model"] is GateStatus.BLOCKED


def test_an_unavailable_gate_is_not_run_blocks_nothing_and_is_not_passed():
    comparisons = [found for found in rows() if found.gate != "constants"]
    gates = judge(comparisons, requested=GATES, unavailable={"constants": "there are none"})
    assert gates["constants"].status is GateStatus.NOT_RUN
    assert gates["constants"].reason == "there are none"
    assert {gate.status for name, gate in gates.items() if name != "constants"} == {GateStatus.PASSED}


def test_nothing_requested_runs_nothing():
    assert set(statuses([], requested=()).values()) == {GateStatus.NOT_RUN}


def test_a_comparison_of_an_unknown_gate_is_an_error():
    with pytest.raises(KeyError):
        judge([row("no such gate")], requested=GATES)


# --- culprits ---------------------------------------------------------------------------------------------------------

ORDER = ("stem", "tower", "tower.conv", "tower.norm", "head")
MAP = LayerMap(pairs=tuple(LayerPair(port=name, reference=f"r/{name}") for name in ("", *ORDER)))


def culprits(comparisons: list[Comparison]) -> tuple[str, ...]:
    return tuple(found.port for found in find_culprits(comparisons, MAP, model_name="Model"))


@pytest.mark.parametrize("names", [("stem",), ("tower.conv", "head"), ORDER], ids=len)
def test_all_layers_at_fault_are_named_in_model_order_whatever_the_order_of_the_rows(names):
    failing = [row(status=Status.FAIL, layer=name) for name in names]
    for arrangement in itertools.islice(itertools.permutations(failing), 24):
        assert culprits([*arrangement, row(layer="stem", gate="model")]) == names


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PASS])
@pytest.mark.parametrize("reading", [Reading.ISOLATED, Reading.VALUE, Reading.STATE])
def test_every_way_of_not_passing_makes_a_culprit(status, reading):
    assert culprits([row(status=status, reading=reading, layer="head")]) == ("head",)


def test_a_passing_comparison_makes_no_culprit():
    assert culprits([row(layer="head")]) == ()


def test_an_error_that_was_only_passed_on_makes_no_culprit_where_isolated_readings_exist():
    passed_on = [row("model", Status.FAIL, name, reading=Reading.ACCUMULATED) for name in ORDER]
    block = row("blocks", Status.FAIL, "tower", reading=Reading.BLOCK)
    (found,) = find_culprits([*passed_on, block, row(status=Status.FAIL, layer="tower.norm")], MAP, model_name="Model")
    assert (found.port, found.reference, found.certain) == ("tower.norm", "r/tower.norm", True)


def test_of_end_to_end_readings_only_the_first_layer_to_finish_is_named_and_as_uncertain():
    for arrangement in itertools.permutations(("tower", "tower.norm", "head", "")):
        failing = [row("model", Status.FAIL, name, reading=Reading.ACCUMULATED) for name in arrangement]
        (found,) = find_culprits(failing, MAP, model_name="Model")
        assert (found.port, found.certain) == ("tower.norm", False)


def test_the_last_layer_finishes_before_the_model_also_where_other_rows_are_aliases():
    aliases = (
        LayerPair(port="stem", reference="r/a", alias=True),
        LayerPair(port="tower", reference="r/b", alias=True),
    )
    layer_map = LayerMap(pairs=(MAP.pairs[0], MAP.pairs[1], *aliases, *MAP.pairs[2:]))
    for arrangement in itertools.permutations(("head", "")):
        failing = [row("model", Status.FAIL, name, reading=Reading.ACCUMULATED) for name in arrangement]
        (found,) = find_culprits(failing, layer_map, model_name="Model")
        assert found.port == "head"


def test_a_block_that_fails_alone_is_named_as_uncertain():
    (found,) = find_culprits([row("blocks", Status.FAIL, "tower", reading=Reading.BLOCK)], MAP, model_name="Model")
    assert (found.port, found.certain) == ("tower", False)


def test_the_model_itself_goes_by_its_name():
    (found,) = find_culprits([row(status=Status.FAIL, layer="", reference="")], MAP, model_name="Model")
    assert (found.port, found.reference) == ("Model", "r/")


def test_the_worst_comparison_is_the_one_farthest_above_its_limit():
    near = row(status=Status.FAIL, layer="head", error=0.5, limit=0.25, gate="weights")
    far = row(status=Status.FAIL, layer="head", error=0.25, limit=0.0625)
    (found,) = find_culprits([near, far], MAP, model_name="Model")
    assert found.worst is far
    assert found.gates == ("weights", "layers")


@pytest.mark.parametrize(
    "worse", [{"error": None}, {"error": 0.125, "limit": 0.0}, {"error": float("inf"), "limit": 0.5}]
)
def test_a_missing_or_exact_comparison_is_worse_than_any_ratio(worse):
    measured = row(status=Status.FAIL, layer="head", error=100.0, limit=0.25)
    unmeasured = row(status=Status.MISSING, layer="head", **worse)
    (found,) = find_culprits([measured, unmeasured], MAP, model_name="Model")
    assert found.worst is unmeasured


def test_a_layer_that_the_map_does_not_know_comes_last():
    assert culprits([row(status=Status.FAIL, layer="unknown"), row(status=Status.FAIL, layer="head")]) == (
        "head",
        "unknown",
    )


# --- a living reference, played by a PyTorch module -------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(3, 6)
        self.narrow = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.tanh(self.wide(x)))


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean += 0.5 * (x.mean(dim=(0, 1)) - self.mean)
            return x - x.mean(dim=(0, 1))
        return x - self.mean


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.stem = nn.Linear(3, 3)
        self.block = Block()
        self.norm = Norm()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.block(self.stem(x)))
        return self.head(x), x


NET = LayerMap(
    pairs=(
        LayerPair(port="", reference="", inputs=0, outputs=("output", "features")),
        LayerPair(port="stem", reference="stem"),
        LayerPair(port="block", reference="block", block=True),
        LayerPair(port="block.wide", reference="block.wide"),
        LayerPair(port="block.narrow", reference="block.narrow"),
        LayerPair(port="norm", reference="norm", state=(("mean", "mean"),)),
        LayerPair(port="head", reference="head"),
    )
)


class Reference:
    """A module in the place of a living Keras model."""

    def __init__(
        self, module: nn.Module, layer_map: LayerMap, precisions: tuple[str, ...] = ("float64", "float32")
    ) -> None:
        self.side = TorchSide(module, layer_map)
        self.layer_map = layer_map
        self.precisions = precisions
        self.inputs = INPUT
        self.streamed = False

    def fed_paths(self, reading: Reading) -> frozenset[str]:
        if reading is Reading.ACCUMULATED:
            return frozenset()
        return frozenset(p.port for p in self.layer_map if p.block or reading is not Reading.BLOCK)

    def run(
        self, precision: str, *, training: bool, reading: Reading, truth: Readable | None, recorder: Recorder
    ) -> Trace:
        fed = self.fed_paths(reading) if reading is Reading.BLOCK else None
        # A module for itself, as a Keras model in another precision is.
        side = TorchSide(copy.deepcopy(self.side.module), self.layer_map)
        return side.trace(self.inputs, precision=precision, training=training, truth=truth, fed=fed, recorder=recorder)

    def outline(self, precision: str, *, training: bool) -> Trace:
        return self.trace(precision, training=training, reading=Reading.ACCUMULATED)

    def trace(self, precision: str, *, training: bool, reading: Reading) -> Trace:
        truth = fed = None
        if reading is not Reading.ACCUMULATED:
            truth = self.trace(self.precisions[0], training=training, reading=Reading.ACCUMULATED)
            fed = frozenset(p.port for p in self.layer_map if p.block) if reading is Reading.BLOCK else None
        return self.side.trace(self.inputs, precision=precision, training=training, truth=truth, fed=fed)

    def lacks(self, precision: str, *, training: bool, reading: Reading) -> str:
        return ""

    def on_other_inputs(self) -> "Reference":
        other = copy.copy(self)
        other.inputs = tuple(np.ascontiguousarray(array[::-1]) for array in self.inputs)
        return other

    def on_shuffled_inputs(self, draw: int) -> "Reference":
        other = copy.copy(self)
        other.inputs = tuple(np.random.default_rng(draw).permutation(array, axis=1) for array in self.inputs)
        return other

    def graph_output(self, precision: str, *, training: bool) -> tuple[np.ndarray | Sample, ...]:
        return self.trace(precision, training=training, reading=Reading.ACCUMULATED).calls["", 0].outputs


def compared(
    port: nn.Module, reference: nn.Module | None = None, layer_map: LayerMap = NET, **more: object
) -> list[Comparison]:
    """What is compared, which must be the same whether passes are kept whole or read while they run."""
    living = Reference(reference or Net(), NET)
    found = list(compare_live(TorchSide(port, layer_map), living, layer_map, **more))  # type: ignore[arg-type]
    living.streamed = True
    streamed = list(compare_live(TorchSide(port, layer_map), living, layer_map, **more))  # type: ignore[arg-type]
    # Compared as text, in which NaN equals NaN.
    assert [repr(row) for row in streamed] == [repr(row) for row in found]
    return found


def failures(comparisons: list[Comparison]) -> list[Comparison]:
    return [found for found in comparisons if found.status is not Status.PASS]


def test_a_port_that_is_right_passes_everywhere_and_everything_is_there():
    found = compared(Net())
    assert failures(found) == []
    for precision, mode in itertools.product(("float64", "float32"), ("evaluation", "training")):
        here = [c for c in found if (c.precision, c.mode) == (precision, mode)]
        isolated = {(c.port, c.quantity) for c in here if c.reading is Reading.ISOLATED}
        layers = ("stem", "block", "block.wide", "block.narrow", "norm", "head")
        outputs = {("", "output"), ("", "features")} | {(name, "output") for name in layers}
        assert isolated == outputs | {(name, "input") for name in layers}
        assert {(c.port, c.quantity) for c in here if c.reading is Reading.BLOCK} == {("block", "output")}
        free = {(c.port, c.quantity) for c in here if c.reading is Reading.ACCUMULATED}
        unwatched = {("", f"{name}, unwatched") for name in NET.pairs[0].outputs if precision == "float64"}
        assert free == outputs | unwatched | ({("norm", "mean")} if mode == "training" else set())
        assert len([c for c in here if c.reading is Reading.STATE]) == (mode == "training")
    assert set(judge(found, requested=("layers", "blocks", "model"), unavailable=dict.fromkeys(GATES[:2], "")).values())


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("reading", [Reading.ISOLATED, Reading.ACCUMULATED])
def test_streamed_no_more_is_held_than_a_few_layers_have(monkeypatch, reading, precision):
    held = []

    class Watched(Stream):
        def _publish(self, call: Call, ended: bool) -> None:
            held.append(self.held)
            super()._publish(call, ended)

    def chain() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(*(nn.Linear(3, 3) for _ in range(40)))

    monkeypatch.setattr("parity.ladder.Stream", Watched)
    names = {str(index): str(index) for index in range(40)}
    layers = LayerMap.from_names(names)
    living = Reference(chain(), layers)
    living.streamed = True
    where = {"precision": precision, "mode": "evaluation", "reading": reading, "case": ""}
    found = list(compare_pass(TorchSide(chain(), layers), living, layers, **where))
    assert len(found) == (81 if reading is Reading.ISOLATED else 41)
    assert failures(found) == []
    assert 0 < max(held) <= 4 * INPUT[0].nbytes * 2


def test_only_the_gates_asked_for_are_compared():
    assert {found.gate for found in compared(Net(), gates=("layers",))} == {"layers"}


def damaged(**changes: object) -> Net:
    port: Any = Net()
    with torch.no_grad():
        for path in changes:
            port.get_submodule(path.replace("__", ".")).weight.mul_(1.5)
    return port


def named(comparisons: list[Comparison]) -> tuple[str, ...]:
    return tuple(found.port for found in find_culprits(comparisons, NET, model_name="Net"))


def test_a_port_that_remembers_its_first_results_fails_on_other_inputs():
    port: Any = Net()
    plain, first = port.head.forward, {}

    def forward(x: Tensor) -> Tensor:
        return first.setdefault((x.dtype, port.training, x.shape), plain(x))

    port.head.forward = forward
    found = failures(compared(port))
    assert {c.case for c in found} == {"other inputs"}
    assert "head" in {c.layer for c in found}


def test_several_faults_at_once_are_all_named_in_model_order():
    assert named(compared(damaged(head=1, block__wide=1, stem=1))) == ("stem", "block.wide", "head")


def test_a_fault_in_the_wiring_of_a_block_names_the_block():
    port: Any = Net()
    port.block.forward = lambda x: port.block.narrow(torch.tanh(port.block.wide(x)))
    assert named(compared(port)) == ("block",)


def test_a_fault_in_the_wiring_of_the_model_names_the_model():
    port: Any = Net()

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        x = port.norm(port.block(port.stem(2 * x)))
        return port.head(x), x

    port.forward = forward
    assert named(compared(port)) == ("Net",)


def test_a_fault_of_the_statistics_shows_in_training_mode_only_and_names_the_layer():
    port: Any = Net()
    plain = port.norm.forward

    def forward(x: Tensor) -> Tensor:
        result = plain(x)
        if port.norm.training:
            port.norm.mean += 0.125
        return result

    port.norm.forward = forward
    found = failures(compared(port))
    assert {c.mode for c in found} == {"training"}
    assert {c.quantity for c in found} == {"mean"}
    assert {c.reading for c in found} == {Reading.STATE, Reading.ACCUMULATED}
    assert named(found) == ("norm",)


def test_a_statistic_that_no_row_of_the_map_mentions_fails():
    bare = LayerMap(pairs=tuple(dataclasses.replace(pair, state=()) for pair in NET))

    class Stateful(Reference):
        def trace(self, precision: str, *, training: bool, reading: Reading) -> Trace:
            return super().trace(precision, training=training, reading=reading)

    living = Stateful(Net(), NET)
    found = failures(list(compare_live(TorchSide(Net(), bare), living, bare)))
    assert {(c.reference, c.quantity, c.status) for c in found} == {("norm", "mean", Status.MISSING)}
    assert "names no counterpart" in found[0].detail
    ignored = dataclasses.replace(bare, ignored={"norm/mean": "of no consequence"})
    assert failures(list(compare_live(TorchSide(Net(), ignored), living, ignored))) == []


def test_a_statistic_that_the_port_lacks_is_missing():
    port: Any = Net()
    del port.norm.mean
    port.norm.forward = lambda x: x - x.mean(dim=(0, 1)) if port.norm.training else x
    found = failures(compared(port))
    assert {(c.port, c.quantity, c.status) for c in found} == {("norm", "mean", Status.MISSING)}


def test_a_layer_of_the_reference_that_no_row_mentions_fails():
    fewer = LayerMap(pairs=tuple(pair for pair in NET if pair.port != "norm"))
    found = failures(compared(Net(), layer_map=fewer))
    assert {c.reference for c in found if c.quantity == "output"} == {"norm"}
    assert {c.status for c in found} == {Status.MISSING}
    assert "names no counterpart" in found[0].detail


def test_a_layer_that_the_port_lacks_is_missing_and_the_one_around_it_is_blamed():
    port: Any = Net()
    port.block.wide, port.block.other = nn.Identity(), port.block.wide
    port.block.forward = lambda x: x + port.block.narrow(torch.tanh(port.block.other(x)))
    found = [c for c in failures(compared(port)) if c.port == "block.wide"]
    assert found
    assert {(c.status, c.layer) for c in found} == {(Status.MISSING, "block")}
    assert "called 0 times in the port and 1 times in the reference" in found[0].detail


def test_a_layer_that_is_no_module_of_the_port_answers_for_itself():
    port: Any = Net()
    port.block.other = port.block.wide
    del port.block.wide
    port.block.forward = lambda x: x + port.block.narrow(torch.tanh(port.block.other(x)))
    found = failures(compared(port))
    assert {(c.port, c.status, c.layer) for c in found} == {("block.wide", Status.MISSING, "block.wide")}
    assert "the port has no module of this name" in found[0].detail


def test_a_layer_called_more_often_in_the_port_than_in_the_reference_fails():
    port: Any = Net()
    port.block.forward = lambda x: x + port.block.narrow(torch.tanh(port.block.wide(x))) + 0 * port.block.wide(x).sum()
    found = failures(compared(port))
    assert {(c.port, c.layer, c.status) for c in found} == {("block.wide@1", "block.wide", Status.MISSING)}
    assert "called 2 times in the port and 1 times in the reference" in found[0].detail


def test_a_layer_called_less_often_in_the_port_than_in_the_reference_fails():
    class Twice(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x + 0 * self.stem(x).sum())

    found = failures(compared(Net(), Twice()))
    assert ("stem@1", Status.MISSING) in {(c.port, c.status) for c in found}


def test_a_mapped_layer_that_neither_side_calls_fails():
    more = LayerMap(pairs=(*NET.pairs, LayerPair(port="ghost", reference="ghost")))
    found = failures(compared(Net(), layer_map=more))
    assert {(c.port, c.status) for c in found} == {("ghost", Status.MISSING)}


def test_an_output_that_the_port_lacks_is_missing():
    port: Any = Net()
    plain = port.forward
    port.forward = lambda x: plain(x)[:1]
    found = failures(compared(port))
    missing = ("features", "features, unwatched")
    assert {(c.port, c.quantity, c.status) for c in found} == {("", name, Status.MISSING) for name in missing}


def test_an_output_that_the_map_expects_and_neither_side_has_is_missing():
    more = LayerMap(
        pairs=tuple(
            dataclasses.replace(pair, outputs=("output", "attention")) if pair.port == "head" else pair for pair in NET
        )
    )
    found = failures(compared(Net(), layer_map=more))
    assert {(c.port, c.quantity, c.status) for c in found} == {("head", "attention", Status.MISSING)}


def test_an_exception_in_a_layer_is_a_failure_that_says_what_happened():
    port: Any = Net()

    def boom(x: Tensor) -> Tensor:
        raise RuntimeError("boom")

    port.block.narrow.forward = boom
    found = failures(compared(port))
    assert named(found) == ("block.narrow",)
    own = [c for c in found if c.reading is Reading.ISOLATED]
    assert {(c.port, c.status, c.detail) for c in own} == {("block.narrow", Status.MISSING, "RuntimeError: boom")}
    assert any("the pass ended with RuntimeError: boom" in c.detail for c in found if c.port == "head")


def test_nan_in_one_layer_names_it():
    port: Any = Net()
    with torch.no_grad():
        port.norm.mean[1] = torch.nan
    found = failures(compared(port, modes=("evaluation",)))
    assert named(found) == ("norm",)
    assert {c.status for c in found} == {Status.NON_FINITE}


def test_float32_is_judged_by_the_references_own_distance():
    found = [c for c in compared(Net(), gates=("layers",)) if c.precision == "float32"]
    assert {c.tolerance for c in found} == {"float32"}
    assert all(c.reference_error is not None for c in found)


def rounded_by(change: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """A port that is right in float64 and whose stem in float32 returns something else, given input and output."""
    port: Any = Net()
    port.stem.register_forward_hook(
        lambda _, given, result: change(given[0], result) if result.dtype is torch.float32 else result
    )
    return port


def test_a_layer_that_rounds_once_more_fails_on_every_input():
    found = compared(rounded_by(lambda _, result: result.bfloat16().float()), modes=("evaluation",))
    own = [c for c in failures(found) if c.reading is Reading.ISOLATED]
    assert named(own) == ("stem",)
    assert [len(c.looks) for c in own] == [1 + SURE]
    assert {c.status for c in own} == {Status.FAIL}


def test_a_layer_that_chance_moves_on_one_input_passes_and_both_results_are_kept():
    first = torch.from_numpy(INPUT[0]).float()
    moved = 2 * torch.finfo(torch.float32).eps

    def unlucky(given: Tensor, result: Tensor) -> Tensor:
        return result * (1 + moved) if torch.equal(given, first) else result

    found = compared(rounded_by(unlucky), modes=("evaluation",))
    assert failures(found) == []
    again = [c for c in found if c.looks]
    assert ("stem", Reading.ISOLATED) in {(c.port, c.reading) for c in again}
    assert all(c.looks[0].error > (c.limit or 0.0) >= (c.error or 0.0) for c in again)


def test_a_port_that_is_wrong_in_float64_is_not_looked_at_again():
    port: Any = Net()
    with torch.no_grad():
        port.stem.weight[0] += 1e-3
    found = compared(port, modes=("evaluation",))
    assert {c.precision for c in failures(found)} == {"float64", "float32"}
    assert [c for c in found if c.looks] == []


def test_some_precisions_alone_are_what_all_have_of_them():
    everything = compared(Net())
    for precision in ("float64", "float32"):
        here = [c for c in everything if c.precision == precision]
        assert compared(Net(), precisions=(precision,)) == here


@pytest.mark.parametrize(
    ("precision", "first", "reading", "row_name"),
    [
        ("float64", "float64", Reading.ISOLATED, "float64"),
        ("float32", "float64", Reading.ACCUMULATED, "float32"),
        ("bfloat16", "float64", Reading.BLOCK, "bfloat16"),
        ("float32", "float32", Reading.ISOLATED, "float32_only"),
        ("float32", "float32", Reading.BLOCK, "float32_only"),
        ("float32", "float32", Reading.ACCUMULATED, "float32_only_accumulated"),
        ("bfloat16", "float32", Reading.ISOLATED, "bfloat16"),
    ],
)
def test_the_row_of_the_table_follows_from_precision_and_reading(precision, first, reading, row_name):
    assert tolerance_of(precision, first, reading) == row_name


# --- a recording ------------------------------------------------------------------------------------------------------


def recording(module: nn.Module) -> tuple[Goldens, dict[str, dict[str, dict[str, np.ndarray]]]]:
    side = TorchSide(module, NET)
    traces, finals, state = {}, {}, {}
    for precision in ("float64", "float32"):
        trace = side.trace(INPUT, precision=precision, training=False)
        trained = side.trace(INPUT, precision=precision, training=True)
        traces[precision] = Trace(
            calls={
                key: dataclasses.replace(call, inputs=None, outputs=call.outputs[:1])
                for key, call in trace.calls.items()
                if key[0]
            }
        )
        finals[precision, "eager"] = finals[precision, "graph"] = trace.calls["", 0].outputs[:1]
        finals[precision, "training"] = trained.calls["", 0].outputs[:1]
        state[precision] = trained.state
    found = Goldens(name="recorded", traces=traces, finals=finals, state={}, inputs={}, constants={})
    return found, state


ONE_OUTPUT = LayerMap(pairs=tuple(dataclasses.replace(pair, outputs=("output",)) for pair in NET))


def against_recording(port: nn.Module, change=lambda found: found, **more: object) -> list[Comparison]:
    found, state = recording(Net())
    side = TorchSide(port, ONE_OUTPUT)
    return list(compare_recorded(side, change(found), ONE_OUTPUT, INPUT, state, **more))  # type: ignore[arg-type]


def test_a_recording_of_the_port_itself_passes_on_every_gate():
    found = against_recording(Net())
    assert failures(found) == []
    assert {c.gate for c in found} == {"layers", "blocks", "model"}
    assert {c.port for c in found if c.gate == "blocks"} == {"block"}
    assert {c.reading for c in found} == {Reading.ACCUMULATED}
    assert {(c.precision, c.mode, c.quantity) for c in found if c.gate == "model"} == {
        (precision, mode, quantity)
        for precision in ("float64", "float32")
        for mode, quantity in (("evaluation", "output"), ("training", "output"), ("training", "mean"))
    }


def test_against_a_recording_only_the_first_layer_that_differs_is_named_and_as_uncertain():
    found = against_recording(damaged(head=1, block__narrow=1))
    assert {c.port for c in failures(found)} >= {"block.narrow", "block", "norm", "head", ""}
    (culprit,) = find_culprits(found, ONE_OUTPUT, model_name="Net")
    assert (culprit.port, culprit.certain) == ("block.narrow", False)


def without(path: str):
    def change(found: Goldens) -> Goldens:
        traces = {
            precision: Trace(calls={key: call for key, call in trace.calls.items() if key[0] != path})
            for precision, trace in found.traces.items()
        }
        return dataclasses.replace(found, traces=traces)

    return change


def test_a_layer_that_the_recording_lost_is_missing():
    found = failures(against_recording(Net(), without("norm")))
    assert {(c.port, c.status) for c in found} == {("norm", Status.MISSING)}


def test_a_layer_that_the_recorded_model_does_not_have_is_left_out():
    assert failures(against_recording(Net(), without("norm"), absent=("norm",))) == []


def test_a_recorded_layer_that_no_row_mentions_fails():
    def more(found: Goldens) -> Goldens:
        call = Call(path="other", index=0, order=0, inputs=None, outputs=(np.ones(1),))
        traces = {
            precision: Trace(calls={**trace.calls, ("other", 0): call}) for precision, trace in found.traces.items()
        }
        return dataclasses.replace(found, traces=traces)

    found = failures(against_recording(Net(), more))
    assert {(c.reference, c.status) for c in found} == {("other", Status.MISSING)}


# --- samples ----------------------------------------------------------------------------------------------------------

WHERE = {
    "gate": "layers",
    "reading": Reading.ACCUMULATED,
    "precision": "float64",
    "tolerance": "float64",
    "reference_path": "conv",
    "port_path": "conv",
    "layer": "conv",
    "quantity": "output",
}


def sampled(array: np.ndarray) -> Sample:
    from parity.compare import summaries

    positions = np.array([0, 5, 15])
    return Sample(
        values=array.take(positions, 1),
        positions=positions,
        axis=1,
        full_shape=array.shape,
        summaries=summaries(array, 1),
    )


def test_a_sample_is_compared_with_its_part_and_all_summaries_of_the_whole():
    array = INPUT[0]
    found = list(compare_array(array, sampled(array), None, **WHERE))
    names = ["output", "output.mean", "output.std", "output.min", "output.max", "output.axis_mean"]
    assert [c.quantity for c in found] == names
    assert failures(found) == []


def test_an_error_outside_the_sampled_part_shows_in_the_summaries():
    wrong = INPUT[0].copy()
    wrong[1, 7, 2] += 0.125
    found = {c.quantity: c.status for c in compare_array(wrong, sampled(INPUT[0]), None, **WHERE)}
    assert found["output"] is Status.PASS
    assert found["output.mean"] is found["output.std"] is found["output.axis_mean"] is Status.FAIL


def test_an_array_of_another_length_than_the_sampled_one_is_missing_with_both_shapes():
    (found,) = compare_array(INPUT[0][:, :15], sampled(INPUT[0]), None, **WHERE)
    assert found.status is Status.MISSING
    assert "(4, 16, 3)" in found.detail
    assert "(4, 15, 3)" in found.detail


def test_a_missing_array_is_missing_against_a_sample_too():
    (found,) = compare_array(None, sampled(INPUT[0]), None, **WHERE)
    assert found.status is Status.MISSING


def test_a_sample_on_the_ports_side_is_an_error():
    with pytest.raises(TypeError, match="always whole"):
        list(compare_array(sampled(INPUT[0]), INPUT[0], None, **WHERE))
