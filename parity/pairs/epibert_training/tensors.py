"""Which trained tensor of the port is which of the reference's, and whose gradient is nothing but rounding."""

from collections.abc import Iterable

from parity.training import TensorPair
from torch_impl import EpiBERTConfig
from weights.table import TABLE, Group
from weights.table import rows as weight_rows


def tensor_pairs(config: EpiBERTConfig, groups: Iterable[Group] = TABLE) -> list[TensorPair]:
    """Every parameter and statistic, from the weight table, with what is known of its gradient."""
    zero, small = zero_gradients(config), small_gradients(config)
    return [
        TensorPair(
            port=row.name,
            reference=row.path,
            to_port=row.layout.to_port,
            to_reference=row.layout.to_stored,
            trainable=row.trainable,
            zero_gradient=zero.get(row.name, ""),
            small_gradient=small.get(row.name, ""),
        )
        for row in weight_rows(config, groups)
    ]


def zero_gradients(config: EpiBERTConfig) -> dict[str, str]:
    """Parameters whose gradient in training mode is zero in exact arithmetic: {name in the port: why}.

    They add one number to a whole channel, pooling and residual connections pass that on, and the next BatchNorm takes
    it away again with the mean of the batch.
    """
    names = ["stem_conv.bias", "stem_res_conv.block.conv.bias"]
    names += ["stem_conv_atac.bias", "stem_res_conv_atac.block.conv.bias"]
    names += [f"conv_tower.{index}.block.conv.bias" for index in range(len(config.filter_list_seq) - 1)]
    names += [f"conv_tower_atac.{index}.block.conv.bias" for index in range(len(config.filter_list_atac) - 1)]
    if config.norm:
        names.append("performer.norm.bias")
    return dict.fromkeys(names, "shifts a channel in front of a BatchNorm")


def small_gradients(config: EpiBERTConfig) -> dict[str, str]:
    """Parameters whose gradient is left of terms that cancel: {name in the port: why}."""
    if not config.norm:
        return {}
    return {
        "performer.norm.weight": "scales a channel in front of a BatchNorm, which takes the scale away up to its "
        "epsilon of 1e-5 beside the variance"
    }
