"""The keys of `inits`, the dictionary that the original's fine-tuning model can start from (spec, section 2.2).

Nothing in the original makes such a dictionary, so the mapping is the one that the names mean: each key is a variable
of the checkpoint. The original reads the norms in front of each attention and then leaves them at ones and zeros.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from weights.errors import MappingError, listing

MARK = "stem_conv_k"
"""A key that every such dictionary has and no checkpoint."""

LAYER_NORMS = ("LN_g", "LN_b")
"""Norms in front of each attention: read and not used by the original."""

_LWW = "layer_with_weights"
_LAYER = "model/performer/layers/{i}"
_NORM = {"b": "beta", "g": "gamma", "m": "moving_mean", "v": "moving_variance"}


def _norm(key: str, path: str, *, end: str = "") -> dict[str, str]:
    return {f"{key}_{letter}{end}": f"{path}/{name}" for letter, name in _NORM.items()}


def _block(norm: str, conv: tuple[str, str], path: str, *, end: str = "") -> dict[str, str]:
    """BatchNorm and convolution of a conv block."""
    kernel, bias = conv
    names = {kernel: f"{path}/{_LWW}-1/kernel", bias: f"{path}/{_LWW}-1/bias"}
    return {**_norm(norm, f"{path}/{_LWW}-0", end=end), **names}


def _kernel_and_bias(key: str, path: str) -> dict[str, str]:
    return {f"{key}_k": f"{path}/kernel", f"{key}_b": f"{path}/bias"}


_HEAD = {
    **_block("final_point_BN", ("final_point_k", "final_point_b"), "model/final_pointwise_conv"),
    **_kernel_and_bias("final_dense", "model/final_dense_profile"),
}
"""The ATAC head: the original reads these for a model that has one, and no others need them."""

_ONCE = {
    **_kernel_and_bias("stem_conv", "model/stem_conv"),
    **_block("stem_res_conv_BN", ("stem_res_conv_k", "stem_res_conv_b"), "model/stem_res_conv/_layer"),
    "stem_pool_k": "model/stem_pool/dense/kernel",
    **_kernel_and_bias("stem_conv_atac", "model/stem_conv_atac"),
    **_block(
        "stem_res_conv_atac_BN", ("stem_res_conv_atac_k", "stem_res_conv_atac_b"), "model/stem_res_conv_atac/_layer"
    ),
    **_kernel_and_bias("tf_activity_fc1", "model/motif_activity_fc1"),
    **_kernel_and_bias("tf_activity_fc2", "model/motif_activity_fc2"),
    "pre_transformer_projection": "model/pre_transformer_projection/kernel",
    "performer_encoder_LN_g": "model/performer/layer_norm/gamma",
    "performer_encoder_LN_b": "model/performer/layer_norm/beta",
}
_REPEATED: dict[str, dict[str, str]] = {
    "conv1_k_": {
        **_block("BN1", ("conv1_k_{i}", "conv1_b_{i}"), f"model/conv_tower/{_LWW}-{{i}}/{_LWW}-0", end="_{i}"),
        "soft_max_pool_k_{i}": f"model/conv_tower/{_LWW}-{{i}}/{_LWW}-1/dense/kernel",
    },
    "conv_at1_k_": _block(
        "BN_at1", ("conv_at1_k_{i}", "conv_at1_b_{i}"), f"model/conv_tower_atac/{_LWW}-{{i}}/{_LWW}-0", end="_{i}"
    ),
    "SA_q": {
        "LN_g{i}": f"{_LAYER}/layer_norm/gamma",
        "LN_b{i}": f"{_LAYER}/layer_norm/beta",
        "SA_q{i}": f"{_LAYER}/self_attention/query_dense_layer/kernel",
        "SA_k{i}": f"{_LAYER}/self_attention/key_dense_layer/kernel",
        "SA_v{i}": f"{_LAYER}/self_attention/value_dense_layer/kernel",
        "SA_O{i}": f"{_LAYER}/self_attention/output_dense_layer/kernel",
        "FFN_LN_g{i}": f"{_LAYER}/FFN/FFN_layer_norm/gamma",
        "FFN_LN_b{i}": f"{_LAYER}/FFN/FFN_layer_norm/beta",
        "FFN_wide_k{i}": f"{_LAYER}/FFN/FFN_dense_wide/kernel",
        "FFN_wide_b{i}": f"{_LAYER}/FFN/FFN_dense_wide/bias",
        "FFN_narr_k{i}": f"{_LAYER}/FFN/FFN_dense_narrow/kernel",
        "FFN_narr_b{i}": f"{_LAYER}/FFN/FFN_dense_narrow/bias",
    },
}
"""What comes once for each block or layer, by the key that tells how many there are."""


def is_inits(source: object) -> bool:
    """Whether something is such a dictionary and no mapping of checkpoint keys."""
    return isinstance(source, Mapping) and MARK in source


def has_head(inits: Mapping[str, Any]) -> bool:
    """Whether a dictionary has anything of the ATAC head."""
    return any(key in inits for key in _HEAD)


def inits_paths(*, tower: int, atac_tower: int, layers: int, atac_head: bool = True) -> dict[str, str]:
    """`{key of inits: path in a checkpoint}`.

    Args:
        tower: blocks of the sequence tower.
        atac_tower: blocks of the accessibility tower.
        layers: transformer layers.
        atac_head: with the keys of the ATAC head.
    """
    paths = {**_ONCE, **_HEAD} if atac_head else dict(_ONCE)
    for (_, names), count in zip(_REPEATED.items(), (tower, atac_tower, layers), strict=True):
        for index in range(count):
            paths |= {key.replace("{i}", str(index)): path.replace("{i}", str(index)) for key, path in names.items()}
    return paths


def read_inits(inits: Mapping[str, Any], *, atac_head: bool = True) -> dict[str, np.ndarray]:
    """The arrays of an `inits` dictionary under the keys of a checkpoint.

    Args:
        inits: arrays, or Keras' `Constant` initialisers of them, by the original's keys.
        atac_head: whether there must be an ATAC head; otherwise there must be none.

    Raises:
        MappingError: lists every missing and every unknown key.
    """
    counts = [sum(re.fullmatch(rf"{re.escape(start)}\d+", key) is not None for key in inits) for start in _REPEATED]
    paths = inits_paths(tower=counts[0], atac_tower=counts[1], layers=counts[2], atac_head=atac_head)
    missing, unknown = sorted(set(paths) - set(inits)), sorted(set(inits) - set(paths))
    if missing or unknown:
        sections = (("missing keys", missing), ("unknown keys", unknown))
        text = "\n".join(listing(title, lines) for title, lines in sections if lines)
        raise MappingError(f"these are not the keys of an `inits` dictionary.\n{text}")
    return {path: np.asarray(getattr(inits[key], "value", inits[key])) for key, path in paths.items()}
