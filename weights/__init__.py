"""Moves checkpoints between TensorFlow and PyTorch, and proves that nothing was lost. Needs no TensorFlow."""

from weights.checkpoint import read_checkpoint
from weights.errors import CheckpointError
from weights.export import export
from weights.model_directory import load_saved_training_state, load_transplanted
from weights.transplant import Transplant, transplant

__all__ = [
    "CheckpointError",
    "Transplant",
    "export",
    "load_saved_training_state",
    "load_transplanted",
    "read_checkpoint",
    "transplant",
]
