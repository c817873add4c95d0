"""What ``epibert record --repo`` makes of a clone's modules, shown on modules made up here."""

import types

import pytest

from parity.pairs import epibert_original


def module_with(**classes: type) -> types.ModuleType:
    module = types.ModuleType("published")
    module.__file__ = "published.py"
    for cls in classes.values():
        cls.__module__ = module.__name__
    vars(module).update(classes)
    return module


@pytest.mark.parametrize("name", ["epibert", "epibert_atac_pretrain"])
def test_the_model_of_a_module_is_found_by_whatever_name(tensorflow, name):
    model, layer = type(name, (tensorflow.keras.Model,), {}), type("Residual", (tensorflow.keras.layers.Layer,), {})
    module = module_with(**{name: model}, Residual=layer)
    # What a star import brings along is no model of this module.
    vars(module).update(Model=tensorflow.keras.Model, text="no class")
    assert epibert_original._model_class(module) is model


def test_a_module_with_no_model_or_with_two_is_refused_by_name(tensorflow):
    with pytest.raises(ValueError, match=r"published.py: expected one Keras model, there is none"):
        epibert_original._model_class(module_with())
    two = {name: type(name, (tensorflow.keras.Model,), {}) for name in ("first", "second")}
    with pytest.raises(ValueError, match="there is first, second"):
        epibert_original._model_class(module_with(**two))


@pytest.mark.parametrize(
    ("returned", "expected"),
    [("rna", "rna"), (("atac", "rna"), ("atac", "rna")), (("atac", "rna", {"layer_0": "features"}), ("atac", "rna"))],
)
def test_a_call_returns_the_profiles_alone(returned, expected):
    class Published:
        def call(self, inputs, training=True):
            assert (inputs, training) == ("inputs", False)
            return returned

    cls = epibert_original._without_features(Published)
    assert cls.__name__ == "Published"
    assert cls().call("inputs", training=False) == expected
