"""EpiBERT as its authors published it: the original in TensorFlow, faithful to the last rounding."""

from tf_reference.model import EpiBERT
from tf_reference.rampage import EpiBERTRampage

__all__ = ["EpiBERT", "EpiBERTRampage"]
