"""verify() on a pair of the user's own: a right port is proven, each wrong one is caught and its layer named."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity
from parity import GateStatus, Reading, Result, Status, ladder
from tests.unit.parity import keras_models
from tests.unit.parity.foreign_pair import INPUT, LAYER_MAP, WEIGHT_MAP, Port, port_of, reference

ALL = ("weights", "layers", "blocks", "model")
GATES = ("weights", "constants", "layers", "blocks", "model")

pytestmark = pytest.mark.usefixtures("tensorflow")


@pytest.fixture(scope="module")
def keras_model(tensorflow) -> Any:
    return reference()


@pytest.fixture
def port(keras_model) -> Port:
    return port_of(keras_model)


def verified(keras_model: Any, port: nn.Module, **options: Any) -> Result:
    arguments = {
        "gates": ALL,
        "layer_map": LAYER_MAP,
        "weight_map": WEIGHT_MAP,
        "precisions": ("float64",),
    } | options
    return parity.verify(keras_model, port, arguments.pop("inputs", INPUT), **arguments)


def failures(result: Result) -> list[parity.Comparison]:
    return [row for row in result.comparisons if row.status is not Status.PASS]


# --- a port that is right ---------------------------------------------------------------------------------------------


def test_a_right_port_is_proven_on_every_gate(keras_model, port):
    result = verified(keras_model, port, precisions=None)
    assert failures(result) == []
    assert result.passed is True
    assert result.culprits == ()
    statuses = {name: gate.status for name, gate in result.gates.items()}
    assert statuses == dict.fromkeys(GATES, GateStatus.PASSED) | {"constants": GateStatus.NOT_RUN}
    assert {row.precision for row in result.comparisons} == {"exact", "float64", "float32"}
    assert {row.mode for row in result.comparisons} == {"", "evaluation", "training"}


def test_bfloat16_is_compared_when_it_is_asked_for(keras_model, port):
    result = verified(keras_model, port, precisions=("float64", "bfloat16"))
    rounded = [row for row in result.gates["layers"].comparisons if row.precision == "bfloat16"]
    assert {row.port for row in rounded} == {pair.port for pair in LAYER_MAP}
    assert all(row.reference_error is not None for row in rounded if row.quantity != "dropout rate")


def test_every_variable_and_every_layer_is_compared(keras_model, port):
    result = verified(keras_model, port)
    assert len(result.gates["weights"].comparisons) == len(keras_model.variables) == len(WEIGHT_MAP)
    read = {row.reference for row in result.gates["layers"].comparisons if row.quantity == "output"}
    assert read == {pair.reference for pair in LAYER_MAP}
    assert {row.reference for row in result.gates["blocks"].comparisons} == {"branch"}


def test_what_is_not_compared_is_named(keras_model, port):
    result = verified(keras_model, port)
    left_out = [(row.side, row.name) for row in result.not_compared if row.reason != "not asked for"]
    assert left_out == [("reference", "flatten")]


def test_a_module_of_the_port_without_a_row_is_named(keras_model, port):
    port.leftover = nn.Linear(2, 2)
    result = verified(keras_model, port, weight_map=None, gates=("layers",))
    assert ("port", "leftover") in [(row.side, row.name) for row in result.not_compared]


def test_the_default_gates_can_be_proven_by_a_map_of_names(tensorflow):
    model = keras_models.dense()
    twin: Any = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with torch.no_grad():
        twin[0].weight.copy_(torch.from_numpy(model.layers[0].kernel.numpy().T))
        twin[0].bias.copy_(torch.from_numpy(model.layers[0].bias.numpy()))
    result = parity.verify(model, twin, INPUT[:, :6], layer_map={"0": "0", "1": "1"})
    assert failures(result) == []
    assert result.passed is True
    assert result.gates["blocks"].status is GateStatus.NOT_RUN
    assert "marks no blocks" in result.gates["blocks"].reason
    asked = parity.verify(model, twin, INPUT[:, :6], gates=("blocks",), layer_map={"0": "0", "1": "1"})
    assert asked.passed is False


def test_both_models_are_left_as_they_were_found(keras_model, port):
    port.train()
    keras_before = [variable.numpy().tobytes() for variable in keras_model.variables]
    port_before = {
        name: (id(value), value.numpy().tobytes()) for name, value in port.state_dict(keep_vars=False).items()
    }
    verified(keras_model, port, precisions=("float64", "float32"))
    assert [variable.numpy().tobytes() for variable in keras_model.variables] == keras_before
    after = {name: value.numpy().tobytes() for name, value in port.state_dict().items()}
    assert after == {name: value for name, (_, value) in port_before.items()}
    assert port.training


def test_a_reference_that_cannot_be_lifted_is_compared_in_its_own_precision(tensorflow):
    model = keras_models.hidden()

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x))

    twin = Twin()
    with torch.no_grad():
        for ours, theirs in ((twin.stem, model._layers_of_mine), (twin.head, model.head)):
            ours.weight.copy_(torch.from_numpy(theirs.kernel.numpy().T))
            ours.bias.copy_(torch.from_numpy(theirs.bias.numpy()))
    names = {"stem": model._layers_of_mine.name, "head": "head"}
    result = parity.verify(model, twin, INPUT, layer_map=names)
    assert failures(result) == []
    assert {row.tolerance for row in result.comparisons} == {"float32_only", "float32_only_accumulated"}
    assert [row.name for row in result.not_compared] == ["float64 readings"]
    with torch.no_grad():
        twin.head.bias[0] *= 1.001
    assert parity.verify(model, twin, INPUT, layer_map=names).culprits == ("head",)


# --- ports that are wrong ---------------------------------------------------------------------------------------------


def another_conv(port: Any) -> None:
    port.conv.forward = lambda x: nn.functional.conv1d(nn.functional.pad(x, (0, 2)), port.conv.weight, port.conv.bias)


def flipped_kernel(port: Any) -> None:
    port.conv.forward = lambda x: nn.functional.conv1d(x, port.conv.weight.flip(-1), port.conv.bias, padding=1)


def small_epsilon(port: Any) -> None:
    port.norm.epsilon = 1e-5


def torch_momentum(port: Any) -> None:
    port.norm.momentum = 0.25


def unbiased_variance(port: Any) -> None:
    port.norm.correction = 1


def hard_swish(port: Any) -> None:
    port.swish = nn.Hardswish()


def rounded_constant(port: Any) -> None:
    """An effect of some 1e-8 that no tolerance in common use would show."""
    port.swish.forward = lambda x: x * torch.sigmoid(x * (1 + 2**-25))


def maximum_pool(port: Any) -> None:
    port.pool = nn.MaxPool1d(2)


def no_bias(port: Any) -> None:
    port.head.forward = lambda x: nn.functional.linear(x, port.head.weight)


def no_shortcut(port: Any) -> None:
    port.add.forward = lambda x, y: y


def branch_order(port: Any) -> None:
    port.branch.forward = lambda x: port.branch.conv(port.branch.tanh(x))


def unturned_flatten(port: Any) -> None:
    def forward(x: Tensor) -> Tensor:
        x = port.pool(port.swish(port.norm(port.conv(x.transpose(1, 2)))))
        return port.head(port.add(x, port.branch(x)).flatten(1))

    port.forward = forward


def raising(port: Any) -> None:
    def forward(x: Tensor) -> Tensor:
        raise RuntimeError("not written yet")

    port.swish.forward = forward


def two_at_once(port: Any) -> None:
    no_bias(port)
    small_epsilon(port)


FAULTS: dict[Callable[[Any], None], tuple[str, ...]] = {
    another_conv: ("conv",),
    flipped_kernel: ("conv",),
    small_epsilon: ("norm",),
    torch_momentum: ("norm",),
    unbiased_variance: ("norm",),
    hard_swish: ("swish",),
    rounded_constant: ("swish",),
    maximum_pool: ("pool",),
    no_bias: ("head",),
    no_shortcut: ("add",),
    branch_order: ("branch",),
    unturned_flatten: ("Port",),
    raising: ("swish",),
    two_at_once: ("norm", "head"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_turns_the_layers_red_and_names_its_layer(keras_model, port, fault):
    fault(port)
    result = verified(keras_model, port)
    assert result.passed is False
    assert result.gates["weights"].status is GateStatus.PASSED
    assert result.gates["layers"].status is GateStatus.FAILED
    assert result.gates["blocks"].status is result.gates["model"].status is GateStatus.BLOCKED
    assert result.culprits == FAULTS[fault]


def test_a_fault_outside_the_gates_asked_for_still_blocks_them(keras_model, port):
    small_epsilon(port)
    result = verified(keras_model, port, gates=("model",))
    assert result.passed is False
    assert result.gates["model"].status is GateStatus.BLOCKED


def test_statistics_that_the_map_forgets_are_found(keras_model, port):
    torch_momentum(port)
    forgetful = dataclasses.replace(
        LAYER_MAP, pairs=tuple(dataclasses.replace(pair, state=()) for pair in LAYER_MAP.pairs)
    )
    result = verified(keras_model, port, layer_map=forgetful)
    assert result.passed is False
    assert {(row.reference, row.quantity) for row in failures(result)} == {
        ("norm", "moving_mean"),
        ("norm", "moving_variance"),
    }


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_transposed_square_kernel_is_found_in_the_weights(keras_model, port):
    with torch.no_grad():
        port.branch.conv.weight.copy_(port.branch.conv.weight.transpose(0, 1).clone())
    result = verified(keras_model, port)
    assert result.gates["weights"].status is GateStatus.FAILED
    assert result.gates["layers"].status is GateStatus.BLOCKED
    assert result.culprits == ("branch.conv",)


def test_one_flipped_bit_is_found_in_the_weights(keras_model, port):
    bits = port.head.weight.data.view(torch.int32)
    bits[1, 7] ^= 1
    (row,) = failures(verified(keras_model, port, gates=("weights",)))
    assert (row.port, row.layer, row.reference) == ("head.weight", "head", "head/kernel")
    assert "(1, 7)" in row.detail


def test_a_tensor_that_the_weight_map_forgets_is_found_on_both_sides(keras_model, port):
    fewer = {name: row for name, row in WEIGHT_MAP.items() if name != "norm.shift"}
    found = failures(verified(keras_model, port, weight_map=fewer, gates=("weights",)))
    assert {(row.port, row.reference, row.status) for row in found} == {
        ("norm.shift", "", Status.MISSING),
        ("", "norm/beta", Status.MISSING),
    }


def test_an_extra_tensor_of_the_port_is_found(keras_model, port):
    port.head.gain = nn.Parameter(torch.ones(1))
    (row,) = failures(verified(keras_model, port, gates=("weights",)))
    assert (row.port, row.layer, row.status) == ("head.gain", "head", Status.MISSING)
    assert "does not mention it" in row.detail


@pytest.mark.parametrize("name", ["nothing.weight", "head.nothing"])
def test_a_row_for_a_tensor_that_the_port_lacks_is_found(keras_model, port, name):
    more = WEIGHT_MAP | {name: ("head/bias", None)}
    (row,) = failures(verified(keras_model, port, weight_map=more, gates=("weights",)))
    assert (row.port, row.status) == (name, Status.MISSING)


def test_a_row_for_a_variable_that_the_reference_lacks_is_found(keras_model, port):
    wrong = WEIGHT_MAP | {"head.bias": ("head/offset", None)}
    found = failures(verified(keras_model, port, weight_map=wrong, gates=("weights",)))
    assert {(row.port, row.reference) for row in found} == {("head.bias", "head/offset"), ("", "head/bias")}


def test_two_tensors_filled_from_one_variable_leave_the_other_over(keras_model, port):
    wrong = WEIGHT_MAP | {"norm.shift": ("norm/gamma", None)}
    found = failures(verified(keras_model, port, weight_map=wrong, gates=("weights",)))
    assert ("", "norm/beta") in {(row.port, row.reference) for row in found}


@pytest.mark.parametrize("axes", [None, (0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_other_axes_are_found(keras_model, port, axes):
    wrong = WEIGHT_MAP | {"conv.weight": ("conv/kernel", axes)}
    (row,) = failures(verified(keras_model, port, weight_map=wrong, gates=("weights",)))
    assert row.port == "conv.weight"
    assert row.status is Status.FAIL


def test_without_a_weight_map_the_weights_are_named_as_not_proven(keras_model, port):
    result = verified(keras_model, port, weight_map=None)
    assert result.passed is False
    assert result.gates["weights"].status is GateStatus.NOT_RUN
    assert "no weight_map" in result.gates["weights"].reason
    assert result.gates["model"].status is GateStatus.PASSED


# --- layers -----------------------------------------------------------------------------------------------------------


def test_a_layer_that_the_port_lacks_is_found(keras_model, port):
    del port.swish
    port.swish = lambda x: nn.functional.silu(x)
    result = verified(keras_model, port)
    assert result.passed is False
    assert {row.port for row in failures(result)} == {"swish"}
    assert {row.status for row in failures(result)} == {Status.MISSING}


def test_a_layer_that_the_map_forgets_is_found(keras_model, port):
    fewer = dataclasses.replace(LAYER_MAP, pairs=tuple(pair for pair in LAYER_MAP if pair.port != "swish"))
    result = verified(keras_model, port, layer_map=fewer)
    assert result.passed is False
    assert "swish" in {row.reference for row in failures(result)}


def test_another_layout_is_not_guessed(keras_model, port):
    """With as many channels as positions no shape would tell."""
    wrong = tuple(dataclasses.replace(pair, layout="same") for pair in LAYER_MAP)
    result = verified(keras_model, port, layer_map=dataclasses.replace(LAYER_MAP, pairs=wrong))
    assert result.passed is False
    assert "conv" in result.culprits


def test_inputs_that_only_float64_can_hold_are_no_failure(keras_model, port):
    inputs = np.random.default_rng(12).standard_normal(INPUT.shape)
    assert failures(verified(keras_model, port, inputs=inputs)) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_that_are_not_finite_prove_nothing(keras_model, port, value):
    inputs = INPUT.copy()
    inputs[0, 0, 0] = value
    result = verified(keras_model, port, inputs=inputs)
    assert result.passed is False
    assert Status.NON_FINITE in {row.status for row in failures(result)}


# --- compared while both run ------------------------------------------------------------------------------------------


def test_streamed_comparisons_are_the_same(keras_model, port):
    kept = verified(keras_model, port, precisions=None)
    streamed = verified(keras_model, port, precisions=None, streamed=True)
    assert [repr(row) for row in streamed.comparisons] == [repr(row) for row in kept.comparisons]
    assert streamed.passed is True


def test_streamed_a_fault_is_named_as_well(keras_model, port):
    port.norm.epsilon = 1e-5
    kept, streamed = (verified(keras_model, port, streamed=way) for way in (False, True))
    assert streamed.culprits == kept.culprits == ("norm",)
    assert [repr(row) for row in streamed.comparisons] == [repr(row) for row in kept.comparisons]


def test_streamed_both_models_are_left_as_they_were_found(keras_model, port):
    weights = [variable.numpy() for variable in keras_model.variables]
    state = {name: tensor.clone() for name, tensor in port.state_dict().items()}
    verified(keras_model, port, streamed=True)
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(keras_model.variables, weights, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in port.state_dict().items())
    assert not any("call" in vars(layer) for layer in keras_model.layers)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in port.modules())


def test_streamed_an_error_of_the_comparison_is_not_taken_for_one_of_the_port(keras_model, port, monkeypatch):
    plain, calls = ladder.compare_array, []

    def broken(*args: Any, **where: Any) -> Iterator[parity.Comparison]:
        calls.append(where)
        if len(calls) == 1:
            raise ZeroDivisionError("in the comparison")
        return plain(*args, **where)

    monkeypatch.setattr(ladder, "compare_array", broken)
    with pytest.raises(ZeroDivisionError, match="in the comparison"):
        verified(keras_model, port, streamed=True)


# --- wrong use --------------------------------------------------------------------------------------------------------


def test_without_a_map_it_is_inferred_and_what_no_rule_knows_fails_by_name(keras_model, port):
    result = parity.verify(keras_model, port, INPUT, precisions=("float64",), modes=("evaluation",))
    assert result.passed is False
    # The norm is a class of the port's own, and only a table could say what its tensors are.
    assert {row.reference for row in failures(result) if row.gate == "layers"} == {"norm"}
    assert {row.port for row in failures(result) if row.gate == "weights"} >= {"norm.scale", "norm.shift"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gates": ("layers", "gradients")}, r"unknown gates \['gradients'\]"),
        ({"gates": "model"}, "gates must be a sequence of names"),
        ({"gates": ()}, "gates must be a sequence of names"),
        ({"modes": ("train",)}, r"unknown modes \['train'\]"),
        ({"modes": "training"}, "modes must be a sequence of names"),
        ({"modes": ()}, "modes must be a sequence of names"),
        ({"precisions": ("float16",)}, "unknown precisions"),
        ({"precisions": "float64"}, "unknown precisions"),
    ],
)
def test_wrong_use_is_an_error_that_says_so(keras_model, port, options, message):
    with pytest.raises(ValueError, match=message):
        verified(keras_model, port, **options)


def test_the_result_says_what_was_asked_and_of_what(keras_model, port):
    result = verified(keras_model, port, gates=("weights",), case="mine")
    assert result.requested == ("weights",)
    assert result.pair == "Functional and Port"
    assert "TensorFlow" in result.reference
    assert {row.case for row in result.comparisons} == {"mine"}
    assert {row.reading for row in result.comparisons} == {Reading.VALUE}
    assert result.environment["versions"]["torch"] == torch.__version__
