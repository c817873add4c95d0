"""Small recordings for tests, made in this process by the recorder."""

import textwrap
from pathlib import Path

import numpy as np

from parity import recorder

MODEL = """
import numpy as np
import tf_keras
from tf_keras import layers

input_names = ("signal",)


def build(units=3, seed=0):
    signal = tf_keras.Input((6, 2), name="signal")
    x = layers.Conv1D(units, 3, activation="tanh", name="conv")(signal)
    x = layers.BatchNormalization(momentum=0.75, name="norm")(x)
    x = layers.Dropout(0.25, name="dropout")(layers.Flatten(name="flatten")(x))
    model = tf_keras.Model(signal, layers.Dense(2, name="head")(x), name="small")
    generator = np.random.default_rng(seed)
    model.set_weights([generator.uniform(0.2, 0.8, value.shape) for value in model.get_weights()])
    return model


def text():
    return "no model"


def failing():
    raise OSError("no weights here")


def constants(model):
    return {"table": np.arange(3.0)}
"""

SEQUENTIAL = """
import numpy as np
import tf_keras
from tf_keras import layers

input_names = ("signal",)


class Small(tf_keras.Model):
    def __init__(self):
        super().__init__(name="small")
        self.block = tf_keras.Sequential([layers.Conv1D(2, 3, padding="same"), layers.Dropout(0.25)])

    def call(self, signal, training=False):
        return self.block(self.block(signal, training=training), training=training)


def build():
    model = Small()
    model(np.zeros((1, 6, 2), tf_keras.mixed_precision.global_policy().compute_dtype))
    return model
"""
"""A Sequential of unknown input shape, built for one example and called twice."""


def write_model(folder: Path, source: str = MODEL) -> Path:
    path = folder / "small_model.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return path


def write_inputs(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "inputs.npz"
    given = arrays or {"signal": np.random.default_rng(1).standard_normal((3, 6, 2)).astype(np.float32)}
    np.savez(path, allow_pickle=False, **given)
    return path


def small_recording(folder: Path, source: str = MODEL, **options) -> Path:
    out = folder / "recording.h5"
    recorder.record(f"{write_model(folder, source)}:build", str(write_inputs(folder)), str(out), **options)
    return out
