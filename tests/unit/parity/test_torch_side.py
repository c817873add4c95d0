"""Watching a PyTorch module: what is recorded, how a fed pass isolates, and that the module is left as it was found."""

import collections

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity import LayerMap, LayerPair, Reading
from parity.torch_side import TorchSide
from parity.trace import Call, Sample, Trace

GENERATOR = np.random.default_rng(1)
INPUT = (GENERATOR.standard_normal((2, 5, 3)),)


class Block(nn.Module):
    """A block with two layers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(x)))


class Net(nn.Module):
    """Everything that a watched module may have: a block, a layer called twice, dropout, statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 3)
        self.block = Block()
        self.norm = nn.BatchNorm1d(3)
        self.twice = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.stem(x))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        x = self.dropout(self.twice(self.twice(x)))
        return self.head(x)


NAMES = ("stem", "block", "block.first", "block.second", "norm", "twice", "dropout", "head")
PAIRS = (
    LayerPair(port="", reference="", inputs=0),
    *(
        LayerPair(
            port=name,
            reference=f"r/{name}",
            block=name == "block",
            layout="channels_first" if name == "norm" else "same",
            state=(("running_mean", "mean"), ("running_var", "variance")) if name == "norm" else (),
        )
        for name in NAMES
    ),
)
MAP = LayerMap(pairs=PAIRS)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(3)
    return Net()


def passes(module: nn.Module, layer_map: LayerMap = MAP, **options: object) -> Trace:
    arguments = {"precision": "float64", "training": False} | options
    inputs = arguments.pop("inputs", INPUT)
    return TorchSide(module, layer_map).trace(inputs, **arguments)  # type: ignore[arg-type]


def as_truth(trace: Trace) -> Trace:
    """The trace of a right port under the reference's names, to feed others with."""
    reference = {pair.port: pair.reference for pair in PAIRS}
    calls = {
        (reference[path], index): Call(
            path=reference[path], index=index, order=call.order, inputs=call.inputs, outputs=call.outputs
        )
        for (path, index), call in trace.calls.items()
    }
    return Trace(calls=calls, state=trace.state)


def differing(trace: Trace, truth: Trace) -> set[tuple[str, int]]:
    """Calls whose outputs are not bit for bit those of the truth."""
    reference = {pair.port: pair.reference for pair in PAIRS}
    found = set()
    for key, call in trace.calls.items():
        expected = truth.calls[reference[key[0]], key[1]].outputs
        if len(call.outputs) != len(expected) or any(
            not np.array_equal(a, b)  # type: ignore[arg-type]
            for a, b in zip(call.outputs, expected, strict=True)
        ):
            found.add(key)
    return found


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_every_call_is_recorded_in_order_with_what_went_in_and_what_came_out(net):
    trace = passes(net)
    order = ["", "stem", "block", "block.first", "block.second", "norm", "twice", "twice", "dropout", "head"]
    assert [path for path, _ in trace.calls] == order
    assert [call.order for call in trace.calls.values()] == list(range(len(order)))
    assert trace.error == ""
    stem = trace.calls["stem", 0]
    assert np.array_equal(stem.inputs[0], INPUT[0])  # type: ignore[index]
    expected = net.double().eval()(torch.from_numpy(INPUT[0]))
    assert np.array_equal(trace.calls["", 0].outputs[0], expected.detach().numpy())  # type: ignore[arg-type]


def test_a_module_called_twice_has_two_calls_that_feed_each_other(net):
    trace = passes(net)
    assert trace.count("twice") == 2
    assert np.array_equal(trace.calls["twice", 1].inputs[0], trace.calls["twice", 0].outputs[0])  # type: ignore[index, arg-type]


def test_activations_are_turned_into_the_references_layout(net):
    call = passes(net).calls["norm", 0]
    assert call.inputs[0].shape == call.outputs[0].shape == (2, 5, 3)  # type: ignore[index, union-attr]


@pytest.mark.parametrize(("precision", "kept"), [("float64", True), ("float32", False), ("bfloat16", False)])
def test_the_precision_is_the_one_asked_for(net, precision, kept):
    seen = []
    net.stem.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    trace = passes(net, precision=precision)
    assert seen == [getattr(torch, precision)]
    assert all(array.dtype == np.float64 for call in trace.calls.values() for array in call.outputs)  # type: ignore[union-attr]
    assert np.array_equal(trace.calls["stem", 0].inputs[0], INPUT[0]) == kept  # type: ignore[index]


def test_integer_inputs_stay_integers():
    embedding = nn.Embedding(5, 3)
    trace = passes(embedding, LayerMap.from_names({"": ""}), inputs=(np.array([[0, 4], [1, 2]]),))
    assert trace.error == ""
    assert trace.calls["", 0].outputs[0].shape == (2, 2, 3)  # type: ignore[union-attr]


def test_an_output_overwritten_later_is_recorded_as_it_was():
    net = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    trace = passes(net, LayerMap.from_names({"0": "0", "1": "1"}), inputs=(-np.ones((1, 2)),))
    assert np.array_equal(trace.calls["0", 0].outputs[0], -np.ones((1, 2)))  # type: ignore[arg-type]


def test_an_input_overwritten_by_the_layer_is_recorded_as_it_was():
    net = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    trace = passes(net, LayerMap.from_names({"0": "0", "1": "1"}), inputs=(-np.ones((1, 2)),))
    assert np.array_equal(trace.calls["1", 0].inputs[0], -np.ones((1, 2)))  # type: ignore[index]


def test_modules_that_the_map_does_not_mention_are_not_recorded(net):
    assert {path for path, _ in passes(net, LayerMap.from_names({"stem": "s"})).calls} == {"", "stem"}


def test_a_mapped_module_that_the_port_lacks_has_no_call(net):
    trace = passes(net, LayerMap.from_names({"stem": "s", "absent": "a"}))
    assert trace.count("absent") == 0
    assert trace.error == ""


def test_a_mapped_module_that_is_never_called_has_no_call(net):
    net.forward = lambda x: net.head(net.stem(x))
    trace = passes(net)
    assert trace.count("block") == 0
    assert trace.count("stem") == 1


def test_another_shape_is_recorded_as_it_is(net):
    net.head = nn.Linear(3, 7)
    assert passes(net).calls["head", 0].outputs[0].shape == (2, 5, 7)  # type: ignore[union-attr]


def test_nested_outputs_are_flattened():
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
            return x, {"layer": (x + 1, x + 2)}

    outputs = passes(Nested(), LayerMap.from_names({"": ""})).calls["", 0].outputs
    assert [np.array_equal(array, INPUT[0] + step) for step, array in enumerate(outputs)] == [True] * 3  # type: ignore[arg-type]


def test_complex_activations_are_refused_rather_than_cut_to_their_real_part():
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x)

    trace = passes(Spectrum(), LayerMap.from_names({"": ""}))
    assert "complex activations cannot be compared" in trace.error
    assert not trace.calls


def test_the_users_own_hooks_count_as_part_of_the_module(net):
    plain = passes(net)
    net.stem.register_forward_hook(lambda module, args, result: result + 1)
    net.twice.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    hooked = passes(net)
    assert np.array_equal(hooked.calls["stem", 0].outputs[0], plain.calls["stem", 0].outputs[0] + 1)  # type: ignore[operator, arg-type]
    # The pre-hook's change is the module's own: its input is what it was given.
    assert np.array_equal(hooked.calls["twice", 1].inputs[0], hooked.calls["twice", 0].outputs[0])  # type: ignore[index, arg-type]


# --- feeding ----------------------------------------------------------------------------------------------------------


def break_leaf(net: Net) -> None:
    with torch.no_grad():
        net.block.first.weight.mul_(2)


def break_block(net: Net) -> None:
    net.block.forward = lambda x: 2 * x + net.block.second(torch.tanh(net.block.first(x)))


def break_both(net: Net) -> None:
    break_leaf(net)
    with torch.no_grad():
        net.twice.bias.add_(1)


FAULTS = {
    break_leaf: {("block.first", 0)},
    break_block: {("block", 0)},
    break_both: {("block.first", 0), ("twice", 0), ("twice", 1)},
}


def test_a_port_that_is_right_differs_nowhere_when_fed(net):
    truth = as_truth(passes(net))
    assert differing(passes(net, truth=truth), truth) == set()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fed_pass_shows_every_fault_in_its_own_layer_and_nowhere_else(net, fault):
    truth = as_truth(passes(net))
    fault(net)
    assert differing(passes(net, truth=truth), truth) == FAULTS[fault]


def test_a_free_pass_carries_a_fault_on(net):
    truth = as_truth(passes(net))
    break_leaf(net)
    following = {"", "block", "block.first", "block.second", "norm", "twice", "dropout", "head"}
    assert {path for path, _ in differing(passes(net), truth)} == following


def test_a_pass_that_feeds_only_blocks_shows_a_fault_in_its_block_and_what_is_inside(net):
    truth = as_truth(passes(net))
    break_leaf(net)
    found = differing(passes(net, truth=truth, fed=frozenset({"block"})), truth)
    assert found == {("block.first", 0), ("block.second", 0), ("block", 0)}


def test_a_fed_layer_records_what_the_port_would_have_given_it(net):
    truth = as_truth(passes(net))
    net.forward = lambda x: net.head(net.stem(x))
    call = passes(net, truth=truth).calls["head", 0]
    assert np.array_equal(call.inputs[0], truth.calls["r/stem", 0].outputs[0])  # type: ignore[index, arg-type]
    assert np.array_equal(call.outputs[0], truth.calls["r/head", 0].outputs[0])  # type: ignore[arg-type]


def test_an_exception_inside_a_layer_does_not_end_a_fed_pass(net):
    truth = as_truth(passes(net))

    def boom(x: Tensor) -> Tensor:
        raise RuntimeError("boom\n  and more")

    net.block.second.forward = boom
    trace = passes(net, truth=truth)
    assert trace.error == ""
    assert trace.calls["block.second", 0].error == "RuntimeError: boom and more"
    assert differing(trace, truth) == {("block.second", 0)}


def test_an_exception_ends_a_free_pass_and_is_kept(net):
    def boom(x: Tensor) -> Tensor:
        raise RuntimeError("boom")

    net.block.second.forward = boom
    trace = passes(net)
    assert trace.error == "RuntimeError: boom"
    assert trace.calls["block.second", 0].outputs == ()
    assert trace.calls["block.first", 0].error == ""
    assert trace.count("norm") == 0


def test_an_exception_in_the_model_itself_is_kept(net):
    net.forward = lambda x: x.no_such_method()
    trace = passes(net, truth=as_truth(passes(Net())))
    assert "AttributeError" in trace.error
    assert trace.calls["", 0].outputs == ()


def test_a_wrong_shape_is_recorded_and_does_not_disturb_the_layers_after_it(net):
    truth = as_truth(passes(net))
    net.stem = nn.Linear(3, 4)
    trace = passes(net, truth=truth)
    assert trace.calls["stem", 0].outputs[0].shape == (2, 5, 4)  # type: ignore[union-attr]
    assert differing(trace, truth) == {("stem", 0)}


def test_a_missing_output_of_a_tuple_is_recorded_as_missing():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x, x + 1

    class One(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (x,)

    class Outer(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[0]

    layer_map = LayerMap.from_names({"inner": "inner"})
    truth = passes(Outer(Two()), layer_map)
    trace = passes(Outer(One()), layer_map, truth=truth)
    assert trace.error == ""
    assert len(trace.calls["inner", 0].outputs) == 1


def test_a_named_tuple_of_a_layer_stays_one_when_fed():
    result = collections.namedtuple("result", "mean spread")

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return result(x, x + 1)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            found = self.inner(x)
            return found.mean + found.spread

    layer_map = LayerMap.from_names({"inner": "inner"})
    truth = passes(Outer(), layer_map)
    assert passes(Outer(), layer_map, truth=truth).error == ""


def test_further_arguments_stay_the_ports_own():
    class Scale(nn.Module):
        def forward(self, x: Tensor, factor: Tensor) -> Tensor:
            return x * factor

    class Outer(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.scale = Scale()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(x, torch.full_like(x, self.factor))

    layer_map = LayerMap.from_names({"scale": "scale"})
    truth = passes(Outer(2.0), layer_map)
    call = passes(Outer(3.0), layer_map, truth=truth).calls["scale", 0]
    assert len(call.inputs) == 1  # type: ignore[arg-type]
    assert np.array_equal(call.outputs[0], 3.0 * INPUT[0])  # type: ignore[arg-type]


def test_a_sample_feeds_nothing(net):
    full = as_truth(passes(net))
    call = full.calls["r/stem", 0]
    sample = Sample(values=np.zeros((2, 1, 3)), positions=np.array([0]), axis=1, full_shape=(2, 5, 3), summaries={})
    thinned = Call(path="r/stem", index=0, order=0, inputs=None, outputs=(sample,))
    trace = passes(net, truth=Trace(calls={("r/stem", 0): thinned}))
    assert trace.error == ""
    assert np.array_equal(trace.calls["block", 0].inputs[0], call.outputs[0])  # type: ignore[index, arg-type]


# --- the module is left as it was found -------------------------------------------------------------------------------


def snapshot(net: nn.Module) -> dict[str, object]:
    """Everything about a module that a user can see, by identity where there is one."""
    found: dict[str, object] = {}
    for name, parameter in net.named_parameters():
        found[f"parameter {name}"] = (id(parameter), parameter.data_ptr(), parameter.dtype, parameter.requires_grad)
        found[f"values {name}"] = parameter.detach().clone().numpy().tobytes()
        if parameter.grad is not None:
            found[f"gradient {name}"] = (id(parameter.grad), parameter.grad.dtype, parameter.grad.numpy().tobytes())
    for name, buffer in net.named_buffers():
        found[f"buffer {name}"] = (id(buffer), buffer.dtype, buffer.numpy().tobytes())
    for name, module in net.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        keys = sorted(key for key in vars(module) if not key.startswith("_"))
        own = (vars(module).get("forward"), getattr(module, "p", None))
        found[f"module {name}"] = (id(module), module.training, hooks, keys, own)
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
def test_the_module_is_left_as_it_was_found(net, training, precision, fed, mode):
    net.train(mode == "train")
    if mode == "mixed":
        net.block.train()
    net.stem.register_forward_hook(lambda *_: None)
    net.head.forward = net.head.forward
    net.head.weight.requires_grad_(False)
    truth = as_truth(passes(net)) if fed else None
    before = snapshot(net)
    passes(net, precision=precision, training=training, truth=truth)
    assert snapshot(net) == before


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_gradients_are_left_as_they_were_found(net, precision):
    net(torch.from_numpy(INPUT[0]).float()).sum().backward()
    before = snapshot(net)
    assert net.stem.weight.grad is not None
    passes(net, precision=precision, training=True)
    assert snapshot(net) == before


@pytest.mark.parametrize("training", [False, True])
def test_a_module_that_raises_is_left_as_it_was_found(net, training):
    net.head = nn.Linear(5, 1)
    before = snapshot(net)
    assert passes(net, training=training).error
    assert snapshot(net) == before


def test_the_dtype_of_a_float64_module_is_left_as_it_was_found(net):
    net.double()
    before = snapshot(net)
    passes(net, precision="float32")
    assert snapshot(net) == before


def test_a_forward_patched_on_the_instance_is_used_and_kept(net):
    patched = lambda x: torch.zeros(2, 5, 3, dtype=x.dtype)  # noqa: E731  an attribute, not a definition
    net.stem.forward = patched
    assert not passes(net).calls["stem", 0].outputs[0].any()  # type: ignore[union-attr]
    assert vars(net.stem)["forward"] is patched


def test_an_unknown_precision_leaves_the_module_as_it_was_found(net):
    before = snapshot(net)
    with pytest.raises(KeyError):
        passes(net, precision="float8")
    assert snapshot(net) == before


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_mode_uses_batch_statistics_without_dropout(net):
    first, second = passes(net, training=True), passes(net, training=True)
    assert np.array_equal(first.calls["", 0].outputs[0], second.calls["", 0].outputs[0])  # type: ignore[arg-type]
    call = first.calls["dropout", 0]
    assert np.array_equal(call.inputs[0], call.outputs[0])  # type: ignore[index, arg-type]
    assert not np.array_equal(first.calls["norm", 0].outputs[0], passes(net).calls["norm", 0].outputs[0])  # type: ignore[arg-type]


def test_statistics_are_those_after_the_pass_and_then_put_back(net):
    trace = passes(net, training=True)
    batch = trace.calls["norm", 0].inputs[0].reshape(-1, 3)  # type: ignore[index]
    # Summed by PyTorch in one pass and by NumPy pairwise, so equal to the last digits only.
    assert np.array_equal(np.float32(trace.state["norm"]["running_mean"]), np.float32(0.1 * batch.mean(axis=0)))
    assert not net.norm.running_mean.any()
    assert passes(net).state["norm"]["running_mean"].tolist() == [0.0, 0.0, 0.0]


def test_statistics_that_the_port_lacks_are_absent_not_an_error(net):
    net.norm = nn.Identity()
    trace = passes(net, training=True)
    assert trace.error == ""
    assert trace.state["norm"] == {}


def test_readings_have_names_of_their_own():
    assert len({reading.value for reading in Reading}) == len(Reading)
