"""The configuration: names and defaults of the original, derived sizes, and what it refuses."""

import dataclasses
import inspect
import itertools
import json

import pytest

import tf_reference
from torch_impl import EpiBERTConfig


def fields() -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(EpiBERTConfig)}


def test_names_order_and_defaults_are_the_references():
    parameters = dict(inspect.signature(tf_reference.EpiBERT).parameters)
    del parameters["dtype"]  # Keras' own argument; the original takes none
    assert list(fields())[: len(parameters)] == list(parameters)
    assert {name: fields()[name] for name in parameters} == {name: p.default for name, p in parameters.items()}


def test_the_fine_tuning_preset_is_the_references_but_for_the_table_that_is_too_short():
    parameters = dict(inspect.signature(tf_reference.EpiBERTRampage).parameters)
    for name in ("load_init", "inits", "dtype"):  # what has one legal value, and Keras' own
        del parameters[name]
    config = EpiBERTConfig.rampage()
    different = {name for name, p in parameters.items() if getattr(config, name) != p.default}
    assert different == {"max_seq_length"}
    assert parameters["max_seq_length"].default < config.output_length <= config.max_seq_length


def test_what_the_port_adds_does_not_change_the_original():
    added = dict(list(fields().items())[list(fields()).index("name") + 1 :])
    assert added == {
        "predict_atac": True,  # the fine-tuning model's, which a pre-training model has no other value for
        "kernel_stabilizer": 1e-3,
        "num_random_features": 256,
        "batch_norm_epsilon": 1e-5,
        "layer_norm_epsilon": 1e-5,
        "gelu_cubic_coefficient": 0.044714998453855515,
        "gelu_erf_scale": 1.4142135381698608,
        "rotary_bfloat16": True,
        "identical_attention_init": False,
    }


@pytest.mark.parametrize("case", ["P1", "P2", "R1", "R2"])
def test_a_recorded_configuration_is_taken_as_it_is(goldens, case):
    arguments = json.loads((goldens / case / "config.json").read_text())["config"]
    config = EpiBERTConfig(**arguments)
    assert {name: getattr(config, name) for name in arguments} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()
    }


@pytest.mark.parametrize("preset", [EpiBERTConfig.pretrain, EpiBERTConfig.rampage, EpiBERTConfig.tiny])
def test_a_configuration_survives_json(preset):
    config = preset()
    again = EpiBERTConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert hash(again) == hash(config)


def test_a_configuration_is_frozen_and_takes_names_only():
    config = EpiBERTConfig.tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_heads = 3  # type: ignore[misc]  on purpose
    with pytest.raises(TypeError, match="positional"):
        EpiBERTConfig("relu_kernel_transformation")  # type: ignore[misc]  on purpose
    with pytest.raises(TypeError, match="number_of_heads"):
        EpiBERTConfig(number_of_heads=2)  # type: ignore[call-arg]  on purpose


def test_sizes_of_the_published_model():
    config = EpiBERTConfig.pretrain()
    assert (config.hidden_size, config.head_size, config.crop) == (1024, 128, 2)
    assert (config.sequence_length, config.atac_length) == (524_288, 131_072)
    assert config.sequence_length == config.input_length


def test_sizes_of_the_tiny_model():
    config = EpiBERTConfig.tiny()
    assert (config.hidden_size, config.head_size, config.crop) == (32, 16, 2)
    assert (config.sequence_length, config.atac_length) == (8192, 2048)
    widths = config.filter_list_seq
    assert all(before != after for before, after in itertools.pairwise(widths))


@pytest.mark.parametrize(("kept", "trimmed"), [(64, 0), (63, 0), (62, 1), (61, 1), (60, 2), (1, 31)])
def test_an_odd_rest_is_kept(kept, trimmed):
    assert EpiBERTConfig(output_length=64, final_output_length=kept).crop == trimmed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 7}, "num_heads=7 does not divide the hidden size 1024"),
        ({"filter_list_seq": (8, 12), "num_heads": 4}, "even head size, not 3"),
        ({"output_length": 64, "final_output_length": 65}, "final_output_length=65 is longer than output_length=64"),
        ({"filter_list_seq": ()}, "at least one width"),
        ({"filter_list_atac": []}, "at least one width"),
        ({"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be a number from 0 up"),
        ({"batch_norm_epsilon": float("nan")}, "batch_norm_epsilon must be a number from 0 up"),
        ({"kernel_stabilizer": float("inf")}, "kernel_stabilizer must be a number from 0 up"),
        ({"gelu_cubic_coefficient": float("nan")}, "gelu_cubic_coefficient must be a finite number"),
        ({"gelu_erf_scale": 0}, "gelu_erf_scale must be a number above 0"),
        ({"gelu_cubic_coefficient": -1e38}, "gelu_cubic_coefficient must be 0 or of a size from 1e-37 to 1e.37, not"),
        ({"gelu_erf_scale": 1e-320}, "gelu_erf_scale must be of a size from 1e-37"),
        ({"num_random_features": 2**31}, "num_random_features must be below 2.31, not 2147483648"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpiBERTConfig(**arguments)


def test_an_odd_head_size_is_fine_without_rotation():
    assert EpiBERTConfig(filter_list_seq=(8, 12), num_heads=4, use_rot_emb=False).head_size == 3
