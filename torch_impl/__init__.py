"""EpiBERT in PyTorch. Needs no TensorFlow."""

from torch_impl.config import EpiBERTConfig
from torch_impl.model import EpiBERT

__all__ = ["EpiBERT", "EpiBERTConfig"]
