"""A pair of the user's own: a small Keras conv net and a port of it written by hand, channels first inside."""

from typing import Any

import numpy as np
import tf_keras
import torch
import torch.nn.functional as F
from tf_keras import layers
from torch import Tensor, nn

from parity import LayerMap, LayerPair
from tests.unit.parity.keras_models import randomized

LENGTH, CHANNELS = 24, 4
INPUT = np.random.default_rng(8).standard_normal((4, LENGTH, 3)).astype(np.float32)


def reference() -> Any:
    """The Keras model. Hidden widths are all alike, so that no shape gives a mistake away."""
    inputs = tf_keras.Input((LENGTH, 3), name="input")
    x = layers.Conv1D(CHANNELS, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(momentum=0.75, name="norm")(x)
    x = layers.Activation("swish", name="swish")(x)
    x = layers.AveragePooling1D(2, name="pool")(x)
    branch = [layers.Conv1D(CHANNELS, 1), layers.Activation("tanh")]
    x = layers.Add(name="add")([x, tf_keras.Sequential(branch, name="branch")(x)])
    x = layers.Flatten(name="flatten")(x)
    return randomized(tf_keras.Model(inputs, layers.Dense(2, name="head")(x)), seed=11)


class Norm(nn.Module):
    """BatchNorm as Keras has it: biased variance, momentum that weighs the old."""

    mean: Tensor
    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(CHANNELS))
        self.shift = nn.Parameter(torch.zeros(CHANNELS))
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("variance", torch.ones(CHANNELS))
        self.epsilon = 1e-3
        self.momentum = 0.75
        self.correction = 0

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = x.mean(dim=(0, 2)), x.var(dim=(0, 2), correction=0)
            self.mean.lerp_(mean, 1 - self.momentum)
            self.variance.lerp_(x.var(dim=(0, 2), correction=self.correction), 1 - self.momentum)
        return F.batch_norm(x, mean, variance, self.scale, self.shift, eps=self.epsilon)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.tanh(self.conv(x))


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Port(nn.Module):
    """The port; (B, L, C) outside, (B, C, L) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, CHANNELS, 3, padding=1)
        self.norm = Norm()
        self.swish = nn.SiLU()
        self.pool = nn.AvgPool1d(2)
        self.branch = Branch()
        self.add = Add()
        self.head = nn.Linear(LENGTH // 2 * CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.swish(self.norm(self.conv(x.transpose(1, 2)))))
        x = self.add(x, self.branch(x))
        return self.head(x.transpose(1, 2).flatten(1))


WEIGHT_MAP = {
    "conv.weight": ("conv/kernel", (2, 1, 0)),
    "conv.bias": ("conv/bias", None),
    "norm.scale": ("norm/gamma", None),
    "norm.shift": ("norm/beta", None),
    "norm.mean": ("norm/moving_mean", None),
    "norm.variance": ("norm/moving_variance", None),
    "branch.conv.weight": ("branch/0/kernel", (2, 1, 0)),
    "branch.conv.bias": ("branch/0/bias", None),
    "head.weight": ("head/kernel", (1, 0)),
    "head.bias": ("head/bias", None),
}


def _pair(port: str, path: str, layout: str = "channels_first", **options: Any) -> LayerPair:
    return LayerPair(port=port, reference=path, layout=layout, **options)


LAYER_MAP = LayerMap(
    pairs=(
        LayerPair(port="", reference="", inputs=0),
        _pair("conv", "conv"),
        _pair("norm", "norm", state=(("mean", "moving_mean"), ("variance", "moving_variance"))),
        _pair("swish", "swish"),
        _pair("pool", "pool"),
        _pair("branch", "branch", block=True),
        _pair("branch.conv", "branch/0"),
        _pair("branch.tanh", "branch/1"),
        _pair("add", "add", inputs=2),
        _pair("head", "head", layout="same"),
    ),
    ignored={"flatten": "a change of shape; the next layer's input shows its result"},
)


def port_of(model: Any) -> Port:
    """A port with the weights of the reference, filled without the harness."""
    values = {}
    for variable in model.variables:
        name = variable.name.rpartition("/")[2].removesuffix(":0")
        values["/".join([*_layer_of(model, variable), name])] = variable.numpy()
    port = Port()
    state = port.state_dict()
    for name, (key, axes) in WEIGHT_MAP.items():
        value = values[key] if axes is None else values[key].transpose(axes)
        state[name] = torch.from_numpy(np.ascontiguousarray(value))
    port.load_state_dict(state)
    return port


def _layer_of(model: Any, variable: Any) -> list[str]:
    for layer in model.layers:
        if isinstance(layer, tf_keras.Sequential):
            for index, child in enumerate(layer.layers):
                if any(variable is own for own in child.variables):
                    return [layer.name, str(index)]
        elif any(variable is own for own in layer.variables):
            return [layer.name]
    raise AssertionError(variable.name)
