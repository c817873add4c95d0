"""BERT of Hugging Face's transformers: their TensorFlow implementation and their PyTorch one, with random weights.

Needs the extra ``huggingface``: the last line of versions that has the TensorFlow classes is 4.x.
"""

from typing import Any

import numpy as np
from torch import nn

from parity.inference.weight_map import WeightMap

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    # Heads of 4: their attention divides by a square root in float32, whatever the precision, and that of 4 is exact.
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
    # So does their GELU, by the square root of 2.
    "hidden_act": "silu",
    "attn_implementation": "eager",
}
LENGTH = 10

# The TensorFlow implementation keeps the three tables of embeddings in one layer, of which no rule can know.
WEIGHTS: WeightMap = {
    "embeddings.word_embeddings.weight": ("bert/embeddings/weight", None),
    "embeddings.token_type_embeddings.weight": ("bert/embeddings/embeddings", None),
    "embeddings.position_embeddings.weight": ("bert/embeddings/embeddings@1", None),
}


def reference() -> Any:
    """The Keras model, in float64: it is subclassed, so nobody can rebuild it in another precision later."""
    import tf_keras
    from transformers import BertConfig, TFBertModel  # pyright: ignore[reportMissingImports]  an extra of its own

    floatx, policy = tf_keras.backend.floatx(), tf_keras.mixed_precision.global_policy()
    tf_keras.backend.set_floatx("float64")
    tf_keras.mixed_precision.set_global_policy("float64")
    try:
        model = TFBertModel(BertConfig(**SIZES))
        model(inputs())
    finally:
        tf_keras.backend.set_floatx(floatx)
        tf_keras.mixed_precision.set_global_policy(policy)
    return model


def port() -> nn.Module:
    """The PyTorch model, in float64 as the reference's weights are."""
    from transformers import BertConfig, BertModel  # pyright: ignore[reportMissingImports]  an extra of its own

    return BertModel(BertConfig(**SIZES)).double()


def inputs() -> tuple[np.ndarray, ...]:
    """Tokens and the mask of a batch of three, the second of them shorter."""
    tokens = np.random.default_rng(0).integers(1, SIZES["vocab_size"], (3, LENGTH), dtype=np.int32)
    mask = np.ones_like(tokens)
    mask[1, LENGTH // 2 :] = 0
    return tokens, mask
