"""EpiBERT in PyTorch. Needs no TensorFlow."""

from torch_impl.config import EpiBERTConfig
from torch_impl.model import EpiBERT
from torch_impl.rampage import EpiBERTRampage

__all__ = ["EpiBERT", "EpiBERTConfig", "EpiBERTRampage"]
