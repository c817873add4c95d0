"""Small Keras models of every kind, with no weight and no statistic at its default."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers


def randomized(model: Any, seed: int = 5) -> Any:
    """The model with random weights: a default that was never copied would not show."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        value = generator.uniform(0.5, 1.5, variable.shape) * generator.choice([-1, 1], variable.shape)
        variable.assign(np.abs(value) if "variance" in variable.name else value)
    return model


def sequential() -> Any:
    return randomized(
        tf_keras.Sequential(
            [
                tf_keras.Input((6, 3)),
                layers.Conv1D(4, 3, padding="same"),
                layers.BatchNormalization(),
                layers.Dropout(0.5),
                layers.Dense(2),
            ]
        )
    )


def dense() -> Any:
    """Two layers, one of them without weights."""
    return randomized(tf_keras.Sequential([tf_keras.Input((6, 3)), layers.Dense(3), layers.Activation("tanh")]))


def functional() -> Any:
    inputs = tf_keras.Input((6, 3), name="input")
    x = layers.Conv1D(3, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    tail = tf_keras.Sequential([layers.Dense(3), layers.Activation("relu")], name="tail")(x)
    x = layers.Add(name="add")([x, tail])
    x = layers.Dropout(0.5, name="drop")(x)
    return randomized(tf_keras.Model(inputs, layers.Dense(2, name="head")(x)))


class Subclassed(tf_keras.Model):
    """Layers as attributes, in a list and in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layers.Dense(3)
        self.tower = [layers.Dense(3), layers.BatchNormalization()]
        self.heads = {"a": layers.Dense(1), "b": layers.Dense(1)}
        self.shared = layers.Dense(3)
        self.drop = layers.Dropout(0.5)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.stem(x)
        for layer in self.tower:
            x = layer(x, training=training) if isinstance(layer, layers.BatchNormalization) else layer(x)
        x = self.drop(self.shared(self.shared(x)), training=training)
        return self.heads["a"](x) + self.heads["b"](x)


def subclassed() -> Any:
    model = Subclassed()
    model(np.zeros((1, 6, 3), np.float32))
    return randomized(model)


class Hidden(tf_keras.Model):
    """A layer behind a name that looks like one of Keras' own."""

    def __init__(self) -> None:
        super().__init__()
        self._layers_of_mine = layers.Dense(3)
        self.head = layers.Dense(2)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.head(self._layers_of_mine(x))


def hidden() -> Any:
    model = Hidden()
    model(np.zeros((1, 6, 3), np.float32))
    return randomized(model)


class Unnamed(layers.Layer):
    """Two variables that are given no names, in a layer that Keras cannot rebuild."""

    def build(self, _: Any) -> None:
        self.factor = self.add_weight(shape=(3,))
        self.offset = self.add_weight(shape=(3,))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x * self.factor + self.offset


def unregistered() -> Any:
    inputs = tf_keras.Input((6, 3))
    return randomized(tf_keras.Model(inputs, Unnamed(name="unnamed")(inputs)))


two_variables_of_one_name = unregistered


def embedding() -> Any:
    inputs = tf_keras.Input((6,), dtype="int32")
    return randomized(tf_keras.Model(inputs, layers.Dense(2)(layers.Embedding(5, 3)(inputs))))


def two_inputs() -> Any:
    inputs = [tf_keras.Input((6, 3)), tf_keras.Input((6, 3))]
    return tf_keras.Model(inputs, layers.Add()(inputs))


class Spectrum(layers.Layer):
    """A complex output."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return tf.signal.rfft(x)


def spectrum() -> Any:
    inputs = tf_keras.Input((6, 3))
    return tf_keras.Model(inputs, Spectrum()(inputs))


def input_of(model: Any) -> np.ndarray:
    """A batch of two for any of these models."""
    generator = np.random.default_rng(6)
    if model.inputs[0].dtype == "int32":
        return generator.integers(0, 5, (2, 6), dtype=np.int32)
    return generator.standard_normal((2, 6, 3)).astype(np.float32)
