"""What is done to ports of other people's models, and which layer has to be named for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A change of a port that is right.

    Attributes:
        inject: Makes it.
        culprits: Ports' layers that have to be named, no more and no fewer.
        gate: The rung that has to fail first.
    """

    inject: Callable[[Any], None]
    culprits: tuple[str, ...]
    gate: str = "layers"


def setting(path: str, **values: Any) -> Callable[[Any], None]:
    """Other settings of a layer."""

    def inject(port: Any) -> None:
        for name, value in values.items():
            setattr(port.get_submodule(path), name, value)

    return inject


def method(name: str, function: Callable[..., Any]) -> Callable[[Any], None]:
    """Another method of the port; the function takes what the method takes."""
    return lambda port: setattr(port, name, function)


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """Other numbers in a parameter or buffer."""

    def inject(port: Any) -> None:
        with torch.no_grad():
            port.state_dict()[name].copy_(change(port.state_dict()[name].clone()))

    return inject


def swapped(first: str, second: str) -> Callable[[Any], None]:
    """Two tensors changed for each other."""

    def inject(port: Any) -> None:
        state = port.state_dict()
        kept = state[first].clone()
        with torch.no_grad():
            state[first].copy_(state[second])
            state[second].copy_(kept)

    return inject


def forward(path: str, function: Callable[[Any, Tensor], Any]) -> Callable[[Any], None]:
    """Another forward of one layer."""

    def inject(port: Any) -> None:
        module = port.get_submodule(path)
        module.forward = lambda *inputs: function(module, *inputs)

    return inject


def _gates_in_the_order_of_keras(rows: Tensor) -> Tensor:
    reset, update, new = rows.chunk(3)
    return torch.cat([update, reset, new])


SPECTROGRAM = {
    "an activation that is much alike": Fault(inject=method("activate", F.mish), culprits=("mish",)),
    "square dense kernel as in Keras": Fault(
        inject=tensor("hidden.weight", lambda kernel: kernel.T), culprits=("hidden",), gate="weights"
    ),
    "square convolution kernel transposed": Fault(
        inject=tensor("smooth.weight", lambda kernel: kernel.transpose(2, 3)), culprits=("smooth",), gate="weights"
    ),
    "epsilon of PyTorch's batch norm": Fault(inject=setting("norm", eps=1e-5), culprits=("norm",)),
    "momentum taken from Keras as it is": Fault(inject=setting("norm", momentum=0.875), culprits=("norm",)),
    "running statistics left at their default": Fault(
        inject=tensor("norm.running_mean", torch.zeros_like), culprits=("norm",), gate="weights"
    ),
    "average in place of maximum": Fault(inject=forward("pool", lambda _, x: F.avg_pool2d(x, 2)), culprits=("pool",)),
    "frequency and channels flattened in the other order": Fault(
        inject=method("bands", lambda x: x.permute(0, 2, 1, 3).flatten(2)), culprits=("Spectrogram",)
    ),
    "gates of the GRU in the order of Keras": Fault(
        inject=tensor("gru.weight_hh_l0", _gates_in_the_order_of_keras), culprits=("gru",), gate="weights"
    ),
    "both biases of the LSTM filled": Fault(
        inject=lambda port: tensor("lstm.bias_hh_l0", lambda _: port.lstm.bias_ih_l0.detach())(port),
        culprits=("lstm",),
        gate="weights",
    ),
    "another rate of dropout": Fault(inject=setting("dropout", p=0.2), culprits=("dropout",)),
    "no activation": Fault(inject=method("activate", lambda x: x), culprits=("Spectrogram",)),
}

BPNET = {
    "kernel reversed in time": Fault(
        inject=tensor("stem.weight", lambda kernel: kernel.flip(-1)), culprits=("stem",), gate="weights"
    ),
    "another dilation": Fault(
        inject=setting("dilated.1", dilation=(2,)),
        culprits=("dilated.1",),
    ),
    "weights of two layers exchanged": Fault(
        inject=swapped("dilated.0.weight", "dilated.2.weight"), culprits=("dilated.0", "dilated.2"), gate="weights"
    ),
    "bias left out": Fault(
        inject=forward("dilated.0", lambda conv, x: F.conv1d(x, conv.weight, dilation=conv.dilation)),
        culprits=("dilated.0",),
    ),
    "another activation in one layer": Fault(
        inject=method("activate", lambda x, index: F.silu(x) if index == 2 else torch.relu(x)), culprits=("silu",)
    ),
    "no activation in one layer": Fault(
        inject=method("activate", lambda x, index: x if index == 3 else torch.relu(x)), culprits=("BPNet",)
    ),
    "cropped at one end": Fault(
        inject=method("crop", lambda x, index: x[:, :, 2 ** (index + 1) :]), culprits=("crop", "crop_1", "crop_2")
    ),
    "maximum in place of mean": Fault(inject=method("pool", lambda x: x.amax(dim=2)), culprits=("amax",)),
    "sum in place of mean": Fault(inject=method("pool", lambda x: x.sum(dim=2)), culprits=("BPNet",)),
    "control before channels": Fault(
        inject=method("join", lambda pooled, control: torch.cat([control, pooled], dim=1)), culprits=("BPNet",)
    ),
    "one weight off by a millionth": Fault(
        inject=tensor("counts.weight", lambda kernel: kernel * (1 + 1e-6)), culprits=("counts",), gate="weights"
    ),
}

_LAYER = "encoder.layer.0"


def _without_mask(attention: Any, x: Tensor, *_: Any, **more: Any) -> Any:
    return type(attention).forward(attention, x)


def _without_residual(output: Any, x: Tensor, _: Tensor) -> Tensor:
    return output.LayerNorm(output.dropout(output.dense(x)))


BERT = {
    "epsilon of PyTorch's layer norm": Fault(
        inject=setting(f"{_LAYER}.output.LayerNorm", eps=1e-5), culprits=(f"{_LAYER}.output.LayerNorm",)
    ),
    "square query kernel as in Keras": Fault(
        inject=tensor(f"{_LAYER}.attention.self.query.weight", lambda kernel: kernel.T),
        culprits=(f"{_LAYER}.attention.self.query",),
        gate="weights",
    ),
    "query and key exchanged": Fault(
        inject=swapped(f"{_LAYER}.attention.self.query.weight", f"{_LAYER}.attention.self.key.weight"),
        culprits=(f"{_LAYER}.attention.self.query", f"{_LAYER}.attention.self.key"),
        gate="weights",
    ),
    "an activation that is much alike": Fault(
        inject=forward(f"{_LAYER}.intermediate.intermediate_act_fn", lambda _, x: F.mish(x)),
        culprits=(f"{_LAYER}.intermediate",),
    ),
    "bias of the values left out": Fault(
        inject=forward(f"{_LAYER}.attention.self.value", lambda dense, x: F.linear(x, dense.weight)),
        culprits=(f"{_LAYER}.attention.self.value",),
    ),
    "tokens of the second type": Fault(
        inject=lambda port: port.embeddings.token_type_ids.fill_(1), culprits=("embeddings",)
    ),
    "mask left out in one layer": Fault(
        inject=lambda port: setattr(
            port.encoder.layer[1].attention.self,
            "forward",
            lambda *inputs, **more: _without_mask(port.encoder.layer[1].attention.self, *inputs, **more),
        ),
        culprits=("encoder.layer.1.attention.self",),
    ),
    "positions off by one": Fault(
        inject=tensor("embeddings.position_embeddings.weight", lambda rows: rows.roll(1, 0)),
        # The reference keeps the table in the layer that holds it, so the layer is at fault as well as the tensor.
        culprits=("embeddings", "embeddings.position_embeddings"),
        gate="weights",
    ),
    "residual left out": Fault(
        inject=lambda port: setattr(
            port.encoder.layer[1].output,
            "forward",
            lambda *inputs: _without_residual(port.encoder.layer[1].output, *inputs),
        ),
        culprits=("encoder.layer.1.output",),
    ),
    "another rate of dropout": Fault(
        inject=setting(f"{_LAYER}.output.dropout", p=0.3), culprits=(f"{_LAYER}.output.dropout",)
    ),
    "no activation in the pooler": Fault(
        inject=forward("pooler.activation", lambda _, x: x), culprits=("pooler.activation",)
    ),
}
