"""Moves checkpoints between TensorFlow and PyTorch, and proves that nothing was lost. Needs no TensorFlow."""
