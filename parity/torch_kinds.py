"""What kind of layer a PyTorch module is, in the words of ``parity.keras_kinds``."""

from torch import nn

from parity.operations import Operation

_CLASSES: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("dense", (nn.Linear,)),
    ("transposed", (nn.ConvTranspose1d, nn.ConvTranspose2d)),
    ("convolution", (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    ("lstm", (nn.LSTM,)),
    ("gru", (nn.GRU,)),
    ("embedding", (nn.Embedding,)),
    ("batch norm", (nn.modules.batchnorm._BatchNorm,)),
    ("layer norm", (nn.LayerNorm,)),
    ("dropout", (nn.modules.dropout._DropoutNd,)),
    ("pool", (
        nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
        nn.modules.pooling._AdaptiveMaxPoolNd,
    )),
    ("pad", (
        nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd,
    )),
    ("upsample", (nn.Upsample,)),
    ("shape", (nn.Flatten, nn.Unflatten, nn.Identity)),
)  # fmt: skip


def torch_kind(module: nn.Module) -> str:
    """Kind of a module; ``container`` for what holds others, ``custom`` for what this table does not know."""
    if isinstance(module, Operation):
        return module.kind
    for name, classes in _CLASSES:
        if isinstance(module, classes):
            return name
    if any(module.children()):
        return "container"
    if type(module).__module__ == nn.modules.activation.__name__ and not any(module.parameters()):
        return "activation"
    return "custom"
