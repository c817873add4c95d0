"""A network like BPNet: dilated convolutions over DNA that shrink the window, with a profile and a count as heads.

The port writes everything but the convolutions as functions: activations, crops, sums, the mean.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LENGTH, CHANNELS, LAYERS = 64, 6, 3


def reference() -> Any:
    """The Keras model: (B, L, 4) bases and (B, 1) control counts -> (B, L', 2) profile and (B, 1) counts."""
    import tf_keras
    from tf_keras import layers

    bases, control = tf_keras.Input((LENGTH, 4), name="bases"), tf_keras.Input((1,), name="control")
    x = layers.Conv1D(CHANNELS, 5, activation="relu", name="stem")(bases)
    for index in range(1, LAYERS + 1):
        wide = layers.Conv1D(CHANNELS, 3, dilation_rate=2**index, activation="relu", name=f"dilated_{index}")(x)
        x = layers.Add(name=f"add_{index}")([wide, layers.Cropping1D(2**index, name=f"crop_{index}")(x)])
    profile = layers.Conv1D(2, 7, name="profile")(x)
    pooled = layers.GlobalAveragePooling1D(name="pool")(x)
    counts = layers.Dense(1, name="counts")(layers.Concatenate(name="join")([pooled, control]))
    return tf_keras.Model([bases, control], [profile, counts], name="bpnet")


class BPNet(nn.Module):
    """The port; (B, L, C) outside, (B, C, L) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, CHANNELS, 5)
        self.dilated = nn.ModuleList(
            nn.Conv1d(CHANNELS, CHANNELS, 3, dilation=2**index) for index in range(1, LAYERS + 1)
        )
        self.profile = nn.Conv1d(CHANNELS, 2, 7)
        self.counts = nn.Linear(CHANNELS + 1, 1)

    def forward(self, bases: Tensor, control: Tensor) -> tuple[Tensor, Tensor]:
        """Profile logits and logarithm of the counts."""
        x = torch.relu(self.stem(bases.transpose(1, 2)))
        for index, conv in enumerate(self.dilated, 1):
            x = self.activate(conv(x), index) + self.crop(x, index)
        return self.profile(x).transpose(1, 2), self.counts(self.join(self.pool(x), control))

    def activate(self, x: Tensor, index: int) -> Tensor:
        """The activation of one dilated layer."""
        return torch.relu(x)

    def crop(self, x: Tensor, index: int) -> Tensor:
        """What a convolution with this dilation leaves of the window."""
        return x[:, :, 2**index : -(2**index)]

    def pool(self, x: Tensor) -> Tensor:
        """Mean over positions."""
        return x.mean(dim=2)

    def join(self, pooled: Tensor, control: Tensor) -> Tensor:
        """Channels and control side by side."""
        return torch.cat([pooled, control], dim=1)


def inputs() -> tuple[np.ndarray, ...]:
    """A batch of three: one-hot bases, control counts."""
    generator = np.random.default_rng(0)
    bases = np.eye(4, dtype=np.float32)[generator.integers(0, 4, (3, LENGTH))]
    return bases, generator.uniform(0.5, 2.0, (3, 1)).astype(np.float32)
