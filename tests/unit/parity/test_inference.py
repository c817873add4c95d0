"""Pairs are proposed by order, type and shape and confirmed by value; what is unsure is named."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity
from tests.unit.parity.keras_models import randomized

pytestmark = pytest.mark.usefixtures("tensorflow")

X = np.random.default_rng(3).standard_normal((2, 4, 4)).astype(np.float32)


class Attention(nn.Module):
    """Two projections of one input, of which the order of execution may be any."""

    def __init__(self, first: str = "query") -> None:
        super().__init__()
        self.first = first
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.first == "query":
            a = self.a(x)
            return a - self.b(x)
        b = self.b(x)
        return self.a(x) - b


def attention() -> Any:
    import tf_keras
    from tf_keras import layers

    inputs = tf_keras.Input((4, 4))
    query, key = layers.Dense(4, name="query")(inputs), layers.Dense(4, name="key")(inputs)
    return randomized(tf_keras.Model(inputs, layers.Subtract(name="difference")([query, key])))


def pairs_of(found: parity.Inference) -> dict[str, str]:
    return {row.pair.port: row.pair.reference for row in found.proposals if row.pair.port}


def fill(port: Any, model: Any, **names: str) -> None:
    with torch.no_grad():
        for ours, theirs in names.items():
            layer = model.get_layer(theirs)
            getattr(port, ours).weight.copy_(torch.from_numpy(layer.kernel.numpy().T))
            getattr(port, ours).bias.copy_(torch.from_numpy(layer.bias.numpy()))


def test_a_square_kernel_is_arranged_by_its_type_and_confirmed_by_value(tensorflow):
    found = parity.infer(attention(), Attention(), X)
    assert found.unconfirmed == ()
    assert pairs_of(found) == {"a": "query", "b": "key", "sub": "difference"}
    key, arrangement = found.weight_map["a.weight"]
    assert key == "query/kernel"
    assert isinstance(arrangement, parity.Arrangement)
    assert arrangement.name.startswith("dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_port_is_left_as_it_was(tensorflow, dtype):
    port = Attention().to(dtype)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in port.state_dict(keep_vars=True).items()}
    parity.infer(attention(), port, X)
    assert all(id(port.state_dict(keep_vars=True)[name]) == place for name, (place, _) in before.items())
    assert all(torch.equal(port.state_dict()[name], value) for name, (_, value) in before.items())


def test_weights_that_are_there_tell_of_another_order_of_execution(tensorflow):
    model, port = attention(), Attention(first="key")
    fill(port, model, a="query", b="key")
    found = parity.infer(model, port, X)
    assert pairs_of(found) == {"a": "query", "b": "key", "sub": "difference"}
    assert {row.evidence for row in found.proposals if row.kind == "dense"} == {"weights"}
    assert found.unconfirmed == ()
    assert parity.verify(model, port, X).passed


def test_weights_that_were_swapped_do_not_tell(tensorflow):
    model, port = attention(), Attention()
    fill(port, model, a="key", b="query")
    found = parity.infer(model, port, X)
    assert pairs_of(found) == {"a": "query", "b": "key", "sub": "difference"}
    assert "its weights are those of key" in str(found)
    result = parity.verify(model, port, X, gates=("weights", "layers"))
    assert result.culprits == ("a", "b")


def test_an_order_that_no_weights_tell_of_is_unconfirmed(tensorflow):
    found = parity.infer(attention(), Attention(first="key"), X)
    assert found.unconfirmed != ()
    assert not parity.verify(attention(), Attention(first="key"), X).passed


def test_a_table_decides(tensorflow):
    model, port = attention(), Attention(first="key")
    found = parity.infer(model, port, X, layers={"a": "query", "b": "key"})
    assert found.unconfirmed == ()
    assert {row.evidence for row in found.proposals if row.kind == "dense"} == {"table"}
    parity.load_weights(port, model, found.weight_map)
    result = parity.verify(model, port, X, layer_map=found.layer_map, weight_map=found.weight_map)
    assert result.passed


@pytest.mark.parametrize("table", [{"c": "query"}, {"a": "value"}])
def test_a_table_of_what_is_not_there_is_refused(tensorflow, table):
    with pytest.raises(ValueError, match="not there"):
        parity.infer(attention(), Attention(), X, layers=table)


class Longer(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.c(x))


def test_what_could_be_paired_in_several_ways_is_named_and_not_paired(tensorflow):
    model, port = attention(), Longer()
    found = parity.infer(model, port, X)
    assert set(found.ambiguous) == {"query", "key"}
    assert "3 (c, a, b)" in found.ambiguous["query"]
    assert not {"query", "key"} & set(pairs_of(found).values())
    result = parity.verify(model, port, X, modes=("evaluation",), precisions=("float64",))
    assert not result.passed
    assert {"query", "key"} <= {row.reference for row in result.gates["layers"].failures}
    assert {"query", "key"} <= {row.name for row in result.not_compared if row.side == "pairing"}


def test_weights_are_moved_all_or_none(tensorflow):
    model, port = attention(), Attention()
    weights = dict(parity.infer(model, port, X).weight_map)
    before = {name: tensor.clone() for name, tensor in port.state_dict().items()}
    faults = {
        "a.bias: the weight map does not mention it": {n: row for n, row in weights.items() if n != "a.bias"},
        "there is no such tensor": weights | {"c.bias": ("key/bias", None)},
        "there is no such variable": weights | {"a.bias": ("value/bias", None)},
        "key/kernel gives": weights | {"a.bias": ("key/kernel", None)},
        "key/bias: the weight map does not mention this variable": weights | {"b.bias": ("query/bias", None)},
    }
    for message, weight_map in faults.items():
        with pytest.raises(ValueError, match=message):
            parity.load_weights(port, model, weight_map)
    assert all(torch.equal(port.state_dict()[name], value) for name, value in before.items())
    parity.load_weights(port, model, weights)
    assert np.array_equal(port.a.weight.detach().numpy(), model.get_layer("query").kernel.numpy().T)


def chain(*parts: Any) -> Any:
    import tf_keras

    return randomized(tf_keras.Sequential([tf_keras.Input((6, 4)), *parts]))


class Heads(nn.Module):
    """Two projections onto heads and back, as linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.tanh(self.into(x)))


def test_einsum_layers_are_linear_layers_with_heads(tensorflow):
    from tf_keras import layers

    model = chain(
        layers.EinsumDense("abc,cde->abde", (None, 2, 2), bias_axes="de", activation="tanh"),
        layers.EinsumDense("abde,dec->abc", (None, 4), bias_axes="c"),
    )
    port = Heads()
    x = np.random.default_rng(4).standard_normal((3, 6, 4)).astype(np.float32)
    found = parity.infer(model, port, x)
    assert found.unconfirmed == (), str(found)
    parity.load_weights(port, model, found.weight_map)
    assert parity.verify(model, port, x).passed


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4, eps=1e-3)
        self.up = nn.ConvTranspose1d(4, 4, 2, stride=2)
        self.depthwise = nn.Conv1d(4, 8, 3, groups=4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.up(self.norm(self.table(tokens)).transpose(1, 2))
        return self.depthwise(x).transpose(1, 2)


def test_embedding_layer_norm_transposed_and_depthwise_convolutions(tensorflow):
    import tf_keras
    from tf_keras import layers

    inputs = tf_keras.Input((4,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(5, 4)(inputs))
    x = layers.DepthwiseConv1D(3, depth_multiplier=2)(layers.Conv1DTranspose(4, 2, strides=2)(x))
    model, port = randomized(tf_keras.Model(inputs, x)), Tokens()
    tokens = np.random.default_rng(4).integers(0, 5, (3, 4), dtype=np.int32)
    found = parity.infer(model, port, tokens)
    assert found.unconfirmed == (), str(found)
    parity.load_weights(port, model, found.weight_map)
    assert parity.verify(model, port, tokens).passed


def test_a_layer_without_a_counterpart_in_pytorch_says_why(tensorflow):
    from tf_keras import layers

    model = chain(layers.GRU(3, reset_after=False))
    found = parity.infer(model, nn.GRU(4, 3, batch_first=True), np.zeros((2, 6, 4), np.float32))
    assert "reset_after" in str(found)


class Sly(Attention):
    """A forward that computes something else while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if type(y) is Tensor else y + y


def test_a_graph_that_computes_something_else_is_not_used(tensorflow):
    found = parity.infer(attention(), Sly(), X)
    assert "something else" in found.untraced[""]
    assert pairs_of(found) == {"a": "query", "b": "key"}
    assert "difference" in found.layer_map.ignored


def test_a_layer_that_the_port_does_without_is_named_and_left_out(tensorflow):
    found = parity.infer(attention(), Attention(), X, ignored={"difference": "the port subtracts"})
    assert found.layer_map.ignored == {"difference": "the port subtracts"}
    assert "difference" not in pairs_of(found).values()
    with pytest.raises(ValueError, match="not there"):
        parity.infer(attention(), Attention(), X, ignored={"sum": "there is none"})


class Convolved(nn.Module):
    """Channels first inside; whether they are last again outside is the question."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(4, 5, 1), last

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.transpose(1, 2))
        return x.transpose(1, 2) if self.last else x


def test_a_port_that_forgets_its_last_transpose_does_not_pass(tensorflow):
    from tf_keras import layers

    model = chain(layers.Conv1D(5, 1))
    x = np.random.default_rng(4).standard_normal((2, 6, 4)).astype(np.float32)
    for last in (True, False):
        port = Convolved(last=last)
        found = parity.infer(model, port, x)
        parity.load_weights(port, model, found.weight_map)
        assert "conv = 0: convolution, by type and shape, layout channels_first" in str(found)
        assert [row.pair.port for row in found.unconfirmed] == ([] if last else [""])
        result = parity.verify(model, port, x, modes=("evaluation",), precisions=("float64",))
        assert result.passed is last
        assert result.culprits == (() if last else ("Convolved",))
