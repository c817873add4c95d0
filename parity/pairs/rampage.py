"""EpiBERT's fine-tuning model: the pair of `epibert.py` with the fine-tuning model's layers."""

from parity.layer_map import LayerMap
from parity.pairs import epibert
from parity.pairs.epibert import drawn_weights, matches, prepare, set_precision
from torch_impl import EpiBERTConfig

__all__ = ["NAME", "drawn_weights", "layer_map", "matches", "prepare", "set_precision"]

NAME = "EpiBERTRampage"


def layer_map(config: EpiBERTConfig) -> LayerMap:
    """Every layer of the model, in order of execution."""
    return epibert.layer_map(config, rampage=True)
