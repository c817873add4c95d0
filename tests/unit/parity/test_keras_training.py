"""A reference in training: passes with other weights leave it as it was."""

import numpy as np
import pytest

from parity.draws import Draws
from parity.keras_training import KerasTraining
from parity.training import Recipe

KINK = np.asarray([[1.0, 0.5], [-1.0, 0.25]], np.float32)
"""Of ones, the first column makes exactly zero, where the derivative of ReLU jumps."""


@pytest.fixture
def side(tensorflow) -> KerasTraining:
    import tf_keras

    given = tf_keras.Input((2,))
    dense = tf_keras.layers.Dense(2, activation="relu", use_bias=False)
    model = tf_keras.Model(given, dense(given))
    dense.set_weights([KINK])
    recipe = Recipe(
        loss=lambda output, targets: tensorflow.reduce_sum(output * targets["target"]),
        optimizers=lambda model: (),
        schedule=lambda step: (),
    )
    variables = {variable.name: variable for variable in model.variables}
    return KerasTraining(model, variables, recipe, Draws(0))


def test_a_pass_with_moved_weights_crosses_a_kink_and_leaves_no_trace(side):
    batch = (np.ones((3, 2), np.float32),), {"target": np.arange(6.0, dtype=np.float32).reshape(3, 2)}
    before = {key: variable.numpy() for key, variable in side.variables.items()}
    kernel = next(iter(side.variables))
    asked = []

    def up(key: str, value: np.ndarray) -> np.ndarray:
        asked.append(key)
        return np.nextafter(value, np.float32(2.0)) if key == kernel else value

    first, moved, last = side.gradients(*batch), side.gradients(*batch, disturb=up), side.gradients(*batch)
    assert asked == list(side.variables)
    assert not first.parameters[kernel][:, 0].any()
    assert moved.parameters[kernel][:, 0].any()
    for key, variable in side.variables.items():
        assert np.array_equal(variable.numpy(), before[key]), key
    assert np.array_equal(first.parameters[kernel], last.parameters[kernel])
