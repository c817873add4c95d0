"""Watching a Keras model: paths of every kind of model, feeding, restoring, and copies in other precisions."""

import numpy as np
import pytest

from parity.keras_side import KerasSide, layers_by_path, lift, variables_by_path
from parity.trace import Call, Trace
from tests.unit.parity import keras_models as models

GENERATOR = np.random.default_rng(2)
INPUT: tuple[np.ndarray] = (GENERATOR.standard_normal((2, 6, 3)).astype(np.float32),)

pytestmark = pytest.mark.usefixtures("tensorflow")


# --- paths ------------------------------------------------------------------------------------------------------------


def test_layers_of_a_sequential_go_by_index():
    assert list(layers_by_path(models.sequential())) == ["", "0", "1", "2", "3"]


def test_layers_of_a_functional_model_go_by_name_and_nested_models_by_both():
    assert list(layers_by_path(models.functional())) == [
        "",
        "input",
        "conv",
        "norm",
        "tail",
        "tail/0",
        "tail/1",
        "add",
        "drop",
        "head",
    ]


def test_layers_of_a_subclassed_model_go_by_attribute_lists_and_dictionaries_included():
    paths = set(layers_by_path(models.subclassed()))
    assert paths == {"", "stem", "tower/0", "tower/1", "heads/a", "heads/b", "shared", "drop"}


def test_a_layer_reachable_in_two_ways_has_one_path():
    model = models.subclassed()
    model.again = model.stem
    assert [path for path, layer in layers_by_path(model).items() if layer is model.stem] == ["stem"]


def test_a_layer_behind_a_name_of_keras_own_is_found_all_the_same():
    model = models.hidden()
    layers = layers_by_path(model)
    assert set(map(id, model.layers)) <= set(map(id, layers.values()))
    assert len(variables_by_path(model)) == len(model.variables)


# --- variables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [models.sequential, models.functional, models.subclassed], ids=lambda build: build.__name__
)
def test_every_variable_has_a_name_of_its_own(build):
    model = build()
    found = variables_by_path(model)
    assert len(found) == len(model.variables)
    by_value = sorted(float(np.sum(value)) for value in found.values())
    assert by_value == sorted(float(np.sum(np.float64(variable.numpy()))) for variable in model.variables)


def test_variables_go_by_layer_path_and_own_name():
    assert {"conv/kernel", "norm/moving_variance", "tail/0/bias"} <= set(variables_by_path(models.functional()))
    assert {"tower/1/gamma", "heads/b/bias"} <= set(variables_by_path(models.subclassed()))


def test_two_variables_of_one_name_in_one_layer_are_both_there():
    model = models.two_variables_of_one_name()
    assert len(variables_by_path(model)) == len(model.variables) == 2


# --- what is recorded -------------------------------------------------------------------------------------------------


def passes(model: object, inputs: tuple[np.ndarray, ...] = INPUT, **options: object) -> Trace:
    return KerasSide(model).trace(inputs, **({"training": False} | options))  # type: ignore[arg-type]


def test_every_call_is_recorded_in_order():
    trace = passes(models.functional())
    assert [path for path, _ in trace.calls] == ["", "conv", "norm", "tail", "tail/0", "tail/1", "add", "drop", "head"]
    assert len(trace.calls["add", 0].inputs) == 2  # type: ignore[arg-type]
    assert all(array.dtype == np.float64 for call in trace.calls.values() for array in call.outputs)  # type: ignore[union-attr]


def test_a_layer_called_twice_has_two_calls():
    trace = passes(models.subclassed())
    assert trace.count("shared") == 2
    assert np.array_equal(trace.calls["shared", 1].inputs[0], trace.calls["shared", 0].outputs[0])  # type: ignore[index, arg-type]


def test_an_ignored_layer_is_not_watched():
    side = KerasSide(models.functional(), {"add": "why", "no such layer": "why"})
    assert ("add", 0) not in side.trace(INPUT, training=False).calls


def test_the_graph_gives_the_final_output_alone():
    model = models.functional()
    trace = passes(model, graph=True)
    assert list(trace.calls) == [("", 0)]
    assert np.array_equal(np.float32(trace.calls["", 0].outputs[0]), model(INPUT[0]).numpy())  # type: ignore[arg-type]


def test_several_inputs_reach_a_model_that_wants_several():
    trace = passes(models.two_inputs(), (INPUT[0], INPUT[0]))
    assert np.array_equal(trace.calls["", 0].outputs[0], 2 * np.float64(INPUT[0]))  # type: ignore[arg-type]


def test_a_reference_that_raises_is_an_error_and_left_as_it_was_found():
    model = models.functional()
    before = snapshot(model)
    with pytest.raises(ValueError, match="expected shape"):
        passes(model, (np.ones((2, 6, 5), np.float32),), training=True)
    assert snapshot(model) == before


def test_complex_activations_are_refused_rather_than_cut_to_their_real_part():
    with pytest.raises(TypeError, match="complex activations cannot be compared"):
        passes(models.spectrum())


# --- feeding ----------------------------------------------------------------------------------------------------------


def doubled(trace: Trace, path: str) -> Trace:
    """The trace with the output of one layer doubled, and the input of the next to match nothing."""
    calls = dict(trace.calls)
    call = calls[path, 0]
    outputs = tuple(2 * np.asarray(array) for array in call.outputs)
    calls[path, 0] = Call(path=path, index=0, order=call.order, inputs=call.inputs, outputs=outputs)
    return Trace(calls=calls, state=trace.state)


def test_a_fed_pass_gives_every_layer_the_truths_inputs_and_outputs():
    model = models.functional()
    truth = passes(model)
    fed = passes(model, truth=doubled(truth, "conv"))
    # ``norm`` is given the doubled output, but computes on the truth's own input.
    assert np.array_equal(fed.calls["norm", 0].inputs[0], 2 * truth.calls["conv", 0].outputs[0])  # type: ignore[index, operator]
    for key in truth.calls:
        assert np.array_equal(fed.calls[key].outputs[0], truth.calls[key].outputs[0])  # type: ignore[arg-type]


def test_a_pass_that_feeds_one_path_leaves_the_others_free():
    model = models.functional()
    truth = passes(model)
    fed = passes(model, truth=doubled(truth, "conv"), fed=frozenset({"conv"}))
    assert np.array_equal(fed.calls["conv", 0].outputs[0], truth.calls["conv", 0].outputs[0])  # type: ignore[arg-type]
    assert not np.array_equal(fed.calls["norm", 0].outputs[0], truth.calls["norm", 0].outputs[0])  # type: ignore[arg-type]


# --- the model is left as it was found --------------------------------------------------------------------------------


def snapshot(model: object) -> dict[str, object]:
    found: dict[str, object] = {name: value.tobytes() for name, value in variables_by_path(model).items()}
    for path, layer in layers_by_path(model).items():
        found[f"layer {path}"] = (id(layer), sorted(vars(layer)), getattr(layer, "rate", None), vars(layer).get("call"))
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    "build", [models.sequential, models.functional, models.subclassed], ids=lambda build: build.__name__
)
def test_the_model_is_left_as_it_was_found(build, graph, training):
    model = build()
    passes(model)
    before = snapshot(model)
    passes(model, training=training, graph=graph)
    assert snapshot(model) == before


def test_a_call_patched_on_the_instance_is_used_and_kept():
    model = models.functional()
    layer = model.get_layer("conv")
    own = layer.call
    patched = lambda inputs: own(inputs) + 1  # noqa: E731  an attribute, not a definition
    plain = passes(model).calls["conv", 0].outputs[0]
    vars(layer)["call"] = patched
    assert np.array_equal(np.float32(passes(model).calls["conv", 0].outputs[0]), np.float32(plain) + 1)  # type: ignore[arg-type]
    assert vars(layer)["call"] is patched


def test_statistics_are_those_after_a_training_pass_without_dropout():
    model = models.functional()
    first, second = passes(model, training=True), passes(model, training=True)
    assert np.array_equal(first.calls["", 0].outputs[0], second.calls["", 0].outputs[0])  # type: ignore[arg-type]
    before = passes(model).state["norm"]
    assert first.state["norm"].keys() == {"moving_mean", "moving_variance"}
    for name, value in first.state["norm"].items():
        assert not np.array_equal(value, before[name])
        assert np.array_equal(value, second.state["norm"][name])


# --- copies in other precisions ---------------------------------------------------------------------------------------

LIFTED = {"float64": "float64", "float32": "float32", "bfloat16": "bfloat16"}


@pytest.mark.parametrize(
    "build", [models.sequential, models.functional, models.embedding], ids=lambda build: build.__name__
)
@pytest.mark.parametrize("precision", LIFTED)
def test_a_lifted_copy_computes_in_its_precision_with_the_same_weights(build, precision):
    model = build()
    copies, left_out = lift(model, [precision])
    assert left_out == ()
    copy = copies[precision]
    assert copy is not model
    assert variables_by_path(copy).keys() == variables_by_path(model).keys()
    for name, value in variables_by_path(model).items():
        assert np.array_equal(variables_by_path(copy)[name], value)
    output = copy(models.input_of(model))
    assert output.dtype.name == LIFTED[precision]


def test_copies_come_most_precise_first_whatever_the_order_asked_for():
    copies, _ = lift(models.sequential(), ["float32", "float64"])
    assert list(copies) == ["float64", "float32"]


def test_integer_inputs_of_a_lifted_copy_stay_integers():
    copies, _ = lift(models.embedding(), ["float64"])
    assert copies["float64"].inputs[0].dtype == "int32"


@pytest.mark.parametrize("build", [models.sequential, models.functional], ids=lambda build: build.__name__)
def test_inputs_that_only_float64_can_hold_reach_a_lifted_copy_unrounded(build):
    inputs = (GENERATOR.standard_normal((2, 6, 3)),)
    assert not np.array_equal(np.float64(np.float32(inputs[0])), inputs[0])
    copies, _ = lift(build(), ["float64"])
    trace = passes(copies["float64"], inputs)
    first = next(call for call in trace.calls.values() if call.path)
    assert np.array_equal(first.inputs[0], inputs[0])  # type: ignore[index]


@pytest.mark.parametrize("build", [models.subclassed, models.unregistered], ids=lambda build: build.__name__)
def test_a_model_that_keras_cannot_rebuild_is_compared_as_it_is_and_the_rest_named(build):
    model = build()
    copies, left_out = lift(model, ["float64", "float32", "bfloat16"])
    assert copies == {"float32": model}
    assert [row.name for row in left_out] == ["float64 readings", "bfloat16 readings"]
    assert all(row.side == "reference" and "rebui" in row.reason for row in left_out)


@pytest.mark.parametrize("precisions", [["float16"], ["float64", "half"], []])
def test_an_unknown_precision_is_refused(precisions):
    with pytest.raises(ValueError, match="unknown precisions"):
        lift(models.sequential(), precisions)
