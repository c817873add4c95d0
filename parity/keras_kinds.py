"""What kind of layer a Keras layer is, and which tensor of its PyTorch counterpart each of its variables is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from parity import arrangements
from parity.arrangements import AS_IT_IS, Arrangement

RECURRENT = ("lstm", "gru")

_CLASSES = {
    "Activation": "activation", "ReLU": "activation", "LeakyReLU": "activation", "ELU": "activation",
    "Softmax": "activation", "ThresholdedReLU": "activation",
    "Dropout": "dropout", "SpatialDropout1D": "dropout", "SpatialDropout2D": "dropout",
    "GaussianDropout": "dropout", "AlphaDropout": "dropout",
    "MaxPooling1D": "pool", "MaxPooling2D": "pool", "AveragePooling1D": "pool", "AveragePooling2D": "pool",
    "GlobalAveragePooling1D": "pool", "GlobalAveragePooling2D": "pool",
    "GlobalMaxPooling1D": "pool", "GlobalMaxPooling2D": "pool",
    "Add": "merge", "Subtract": "merge", "Multiply": "merge", "Average": "merge", "Maximum": "merge",
    "Minimum": "merge", "Concatenate": "merge", "Dot": "merge",
    "Cropping1D": "crop", "Cropping2D": "crop", "SlicingOpLambda": "crop",
    "ZeroPadding1D": "pad", "ZeroPadding2D": "pad",
    "UpSampling1D": "upsample", "UpSampling2D": "upsample",
    "Flatten": "shape", "Reshape": "shape", "Permute": "shape", "RepeatVector": "shape", "InputLayer": "shape",
}  # fmt: skip

_FUNCTIONS = {
    "relu": "activation", "gelu": "activation", "sigmoid": "activation", "tanh": "activation", "softplus": "activation",
    "softmax": "activation", "silu": "activation", "swish": "activation", "elu": "activation", "exp": "activation",
    "add": "merge", "subtract": "merge", "multiply": "merge", "concat": "merge", "__operators__.add": "merge",
    "reduce_mean": "pool", "reduce_max": "pool", "reduce_sum": "pool",
    "reshape": "shape", "transpose": "shape", "expand_dims": "shape", "squeeze": "shape", "cast": "shape",
}  # fmt: skip


_DEPTHWISE = {"DepthwiseConv1D", "DepthwiseConv2D"}
_TRANSPOSED = {"Conv1DTranspose", "Conv2DTranspose"}
_CONVOLUTIONS = {"Conv1D", "Conv2D", "Conv3D"}
_SEPARABLE = {"SeparableConv1D", "SeparableConv2D"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasKind:
    """What a layer is.

    Attributes:
        name: Kind, a word that both frameworks share; ``container`` for what holds other layers, ``custom`` for what
            this table does not know.
        tensors: {parameter or buffer of PyTorch's layer of this kind: (variable path, arrangement)}.
        state: (buffer of PyTorch, own name of the variable) of statistics.
        split: Its own activation is read as a layer of its own.
        detail: Why it cannot be mapped without a table, if so.
    """

    name: str
    tensors: Mapping[str, tuple[str, Arrangement]] = dataclasses.field(default_factory=dict)
    state: tuple[tuple[str, str], ...] = ()
    split: bool = False
    detail: str = ""


def keras_kind(layer: Mapping[str, Any], *, has_parts: bool) -> KerasKind:
    """Tells what a layer is.

    Args:
        layer: What ``parity.recorder.describe_layer`` says of the layer, living or recorded.
        has_parts: Whether other layers lie below its path.
    """
    keys, classes, name = layer["keys"], frozenset(layer["classes"]), layer["class"]
    if classes & {"LSTM", "GRU"}:
        return _recurrent(layer)
    # A depthwise convolution is a subclass of convolutions, and so is a transposed one.
    for bases, kind, table in (
        (_DEPTHWISE, "convolution", arrangements.DEPTHWISE),
        (_TRANSPOSED, "transposed", arrangements.TRANSPOSED_CONVOLUTION),
        (_CONVOLUTIONS, "convolution", arrangements.CONVOLUTION),
    ):
        if classes & bases and not classes & _SEPARABLE:
            kernel = keys.get("kernel") or keys["depthwise_kernel"]
            return _with_bias(kind, kernel, table[layer["rank"]], layer)
    if "Dense" in classes:
        return _with_bias("dense", keys["kernel"], arrangements.DENSE, layer)
    if "EinsumDense" in classes:
        try:
            arrangement = arrangements.einsum_kernel(layer["equation"])
        except ValueError as error:
            return KerasKind(name="custom", detail=str(error))
        return _with_bias("dense", keys["kernel"], arrangement, layer, bias=arrangements.FLATTENED)
    if "Embedding" in classes:
        return KerasKind(name="embedding", tensors={"weight": (keys["embeddings"], AS_IT_IS)})
    if classes & {"BatchNormalization", "BatchNormalizationBase"}:
        statistics = {"running_mean": "moving_mean", "running_var": "moving_variance"}
        tensors = _scale(keys) | {tensor: (keys[key], AS_IT_IS) for tensor, key in statistics.items()}
        return KerasKind(name="batch norm", tensors=tensors, state=tuple(statistics.items()))
    if "LayerNormalization" in classes:
        return KerasKind(name="layer norm", tensors=_scale(keys))
    if name == "TFOpLambda":
        symbol = str(layer["symbol"])
        return KerasKind(name=_FUNCTIONS.get(symbol, _FUNCTIONS.get(symbol.rpartition(".")[2], "custom")))
    if keys and not has_parts:
        return KerasKind(name="custom", detail=f"no rule says how the variables of a {name} lie in PyTorch")
    if has_parts:
        return KerasKind(name="container")
    return KerasKind(name=_CLASSES.get(name, "custom"))


def _scale(keys: Mapping[str, str]) -> dict[str, tuple[str, Arrangement]]:
    names = {"weight": "gamma", "bias": "beta"}
    return {name: (keys[key], AS_IT_IS) for name, key in names.items() if key in keys}


def _with_bias(
    name: str, kernel: str, arrangement: Arrangement, layer: Mapping[str, Any], bias: Arrangement = AS_IT_IS
) -> KerasKind:
    tensors = {"weight": (kernel, arrangement)}
    if "bias" in layer["keys"]:
        tensors["bias"] = (layer["keys"]["bias"], bias)
    return KerasKind(name=name, tensors=tensors, split=bool(layer["activation"]))


def _recurrent(layer: Mapping[str, Any]) -> KerasKind:
    keys = layer["cell_keys"]
    kernel, recurrent = keys["kernel"], keys["recurrent_kernel"]
    if "LSTM" in layer["classes"]:
        tensors = {
            "weight_ih_l0": (kernel, arrangements.LSTM_KERNEL),
            "weight_hh_l0": (recurrent, arrangements.LSTM_KERNEL),
        }
        if "bias" in keys:
            tensors["bias_ih_l0"] = (keys["bias"], AS_IT_IS)
            tensors["bias_hh_l0"] = (keys["bias"], arrangements.NO_SECOND_BIAS)
        return KerasKind(name="lstm", tensors=tensors)
    if not layer["reset_after"]:
        return KerasKind(name="gru", detail="PyTorch has no GRU that resets before the product (reset_after=False)")
    tensors = {
        "weight_ih_l0": (kernel, arrangements.GRU_KERNEL),
        "weight_hh_l0": (recurrent, arrangements.GRU_KERNEL),
    }
    if "bias" in keys:
        tensors["bias_ih_l0"] = (keys["bias"], arrangements.GRU_INPUT_BIAS)
        tensors["bias_hh_l0"] = (keys["bias"], arrangements.GRU_RECURRENT_BIAS)
    return KerasKind(name="gru", tensors=tensors)
