"""A Keras classifier of spectrograms, convolutions before an LSTM and a GRU, and a port of it written by hand."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Widths that are all alike: no shape gives a mistake away.
TIME, BANDS, CHANNELS, CLASSES = 12, 12, 6, 3


def reference() -> Any:
    """The Keras model: (B, time, frequency, 2) -> (B, classes)."""
    import tf_keras
    from tf_keras import layers

    inputs = tf_keras.Input((TIME, BANDS, 2), name="spectrogram")
    x = layers.Conv2D(CHANNELS, 3, padding="same", activation="relu", name="stem")(inputs)
    smooth = layers.Conv2D(CHANNELS, 3, padding="same", name="smooth")
    x = smooth(smooth(x))
    # The fused kernel, which Keras has in float32 only, divides the variance by n - 1; the layer itself divides by n.
    x = layers.BatchNormalization(momentum=0.875, fused=False, name="norm")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Reshape((TIME // 2, BANDS // 2 * CHANNELS), name="bands")(x)
    x = layers.LSTM(CHANNELS, return_sequences=True, name="lstm")(x)
    x = layers.GRU(CHANNELS, name="gru")(x)
    x = layers.Dense(CHANNELS, activation="swish", name="hidden")(x)
    x = layers.Dropout(0.25, name="dropout")(x)
    return tf_keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="head")(x), name="spectrogram")


class BatchNorm(nn.BatchNorm2d):
    """Running statistics as Keras keeps them: the variance of the batch itself, not the estimate of PyTorch."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, H, W) over all but the channels."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None
        assert variance is not None
        if not self.training:
            return F.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)
        with torch.no_grad():
            mean.lerp_(input.mean(dim=(0, 2, 3)), self.momentum or 0.0)
            variance.lerp_(input.var(dim=(0, 2, 3), correction=0), self.momentum or 0.0)
        # Given statistics are constants to PyTorch: no gradient would pass through them.
        return F.batch_norm(input, None, None, self.weight, self.bias, training=True, eps=self.eps)


class Spectrogram(nn.Module):
    """The port; (B, time, frequency, 2) outside, channels first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, CHANNELS, 3, padding=1)
        self.smooth = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = BatchNorm(CHANNELS, eps=1e-3, momentum=0.125)
        self.pool = nn.MaxPool2d(2)
        self.lstm = nn.LSTM(BANDS // 2 * CHANNELS, CHANNELS, batch_first=True)
        self.gru = nn.GRU(CHANNELS, CHANNELS, batch_first=True)
        self.hidden = nn.Linear(CHANNELS, CHANNELS)
        self.dropout = nn.Dropout(0.25)
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of the classes."""
        x = F.relu(self.stem(x.permute(0, 3, 1, 2)))
        x = self.smooth(self.smooth(x))
        x = self.bands(self.pool(self.norm(x)))
        x, _ = self.lstm(x)
        _, state = self.gru(x)
        x = self.dropout(self.activate(self.hidden(state[-1])))
        return torch.softmax(self.head(x), dim=-1)

    def bands(self, x: Tensor) -> Tensor:
        """(B, C, time, frequency) -> (B, time, frequency of all channels), in the order of Keras."""
        return x.permute(0, 2, 3, 1).flatten(2)

    def activate(self, x: Tensor) -> Tensor:
        """The activation of the hidden layer."""
        return F.silu(x)


def inputs() -> tuple[np.ndarray, ...]:
    """A batch of four."""
    return (np.random.default_rng(0).standard_normal((4, TIME, BANDS, 2)).astype(np.float32),)


def randomize(model: Any, seed: int = 1) -> Any:
    """Draws every variable of a Keras model: a default, such as a bias of 0, could hide that nothing was copied."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        value = generator.uniform(0.5, 1.5, variable.shape) * generator.choice([-1, 1], variable.shape)
        scale = max(1.0, float(np.sqrt(np.prod(variable.shape[:-1]))))
        variable.assign(np.abs(value) if "variance" in variable.name else value / scale)
    return model
