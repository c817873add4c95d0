"""EpiBERT in PyTorch. Needs no TensorFlow."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch_impl.config import EpiBERTConfig
    from torch_impl.model import EpiBERT
    from torch_impl.rampage import EpiBERTRampage

__all__ = ["EpiBERT", "EpiBERTConfig", "EpiBERTRampage"]

_MODULES = {"EpiBERT": "model", "EpiBERTConfig": "config", "EpiBERTRampage": "rampage"}


def __getattr__(name: str) -> Any:
    # Processes that read or convert data need none of these, and PyTorch takes more than a second to import.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
