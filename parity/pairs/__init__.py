"""Pairs of models that the harness knows how to bind. Its core knows none of them."""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn


def find_pair(reference: Any, port: nn.Module) -> Any | None:
    """The module that binds this reference to this port, or None for a pair of the user's own."""
    if "torch_impl" not in sys.modules:
        return None  # nobody can have made a model of ours, and other people's pairs need none of our packages
    from torch_impl import EpiBERT, EpiBERTRampage

    if not isinstance(port, EpiBERT | EpiBERTRampage):
        return None
    from parity.pairs import epibert, rampage

    if not epibert.matches(reference, port):
        return None
    return rampage if isinstance(port, EpiBERTRampage) else epibert


def find_binder(recording: Any, port: nn.Module) -> Callable[..., Any] | None:
    """What binds this recording to this port (``parity.verify_recording.Bound``); None for a pair of the user's own."""
    if "torch_impl" not in sys.modules:
        return None
    from torch_impl import EpiBERT, EpiBERTRampage

    if not isinstance(port, EpiBERT | EpiBERTRampage):
        return None
    from parity.pairs import epibert_recording

    return epibert_recording.bind if epibert_recording.matches(recording) else None
