"""Moves checkpoints between TensorFlow and PyTorch, and proves that nothing was lost. Needs no TensorFlow."""

from weights.checkpoint import read_checkpoint
from weights.errors import CheckpointError
from weights.export import export
from weights.model_directory import load_saved_training_state, load_transplanted
from weights.transfer import Transfer, transfer
from weights.transplant import Transplant, transplant

__all__ = [
    "CheckpointError",
    "Transfer",
    "Transplant",
    "export",
    "load_saved_training_state",
    "load_transplanted",
    "read_checkpoint",
    "transfer",
    "transplant",
]
