"""Every rule of others passes a right port, sees the mistake that it is made for, and has its known hole."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from parity.attack.observation import PRECISIONS, Computed, Observation, Pass
from parity.attack.rules import RULES, Verdict, judge, layer_of, module_of

GENERATOR = np.random.default_rng(11)
LAYERS = ("stem", "block", "block.first", "block.second", "head")
PARAMETERS = tuple(f"block.layer{index}.weight" for index in range(40))
BY_NAME = {rule.name: rule for rule in RULES}
NAN = float("nan")


def normal(*shape: int) -> np.ndarray:
    return GENERATOR.standard_normal(shape)


TRUTH = Computed(
    outputs={"output": normal(4, 300)},
    layers={name: normal(4, 300) for name in LAYERS},
    isolated={name: normal(4, 300) for name in LAYERS},
    gradients={name: normal(30, 40) for name in PARAMETERS},
    loss=3.0,
    losses=(3.0, 2.0, 1.5),
    weights={name: normal(30, 40) for name in PARAMETERS},
    seconds={Pass.FORWARD: 1.0, Pass.ISOLATED: 10.0, Pass.BACKWARD: 100.0, Pass.STEPS: 1000.0},
)


def rounded(side: Computed) -> Computed:
    """The same in float32."""
    changes: dict[str, Any] = {
        field: {name: array.astype(np.float32) for name, array in getattr(side, field).items()}
        for field in ("outputs", "layers", "isolated", "gradients", "weights")
    }
    return dataclasses.replace(side, **changes)


def observe(port: Computed, reference: Computed = TRUTH) -> Observation:
    return Observation(
        reference={"float64": reference, "float32": rounded(reference)},
        port={"float64": port, "float32": rounded(port)},
        blocks=("block",),
    )


def with_array(field: str, name: str, array: np.ndarray, side: Computed = TRUTH) -> Computed:
    """The truth with one array replaced."""
    changes: dict[str, Any] = {field: {**getattr(side, field), name: array}}
    return dataclasses.replace(side, **changes)


def without(field: str, *names: str) -> Computed:
    changes: dict[str, Any] = {field: {n: a for n, a in getattr(TRUTH, field).items() if n not in names}}
    return dataclasses.replace(TRUTH, **changes)


def scaled(field: str, names: tuple[str, ...], factor: float) -> Computed:
    side = TRUTH
    for name in names:
        side = with_array(field, name, getattr(TRUTH, field)[name] * factor, side)
    return side


def opposite(array: np.ndarray, size: float) -> np.ndarray:
    """Errors of opposite sign at neighbours: none in the mean."""
    return array + np.where(np.arange(array.size) % 2, size, -size).reshape(array.shape)


def verdict(name: str, port: Computed) -> Verdict:
    return BY_NAME[name].judge(observe(port))


def found(name: str, port: Computed) -> bool:
    return verdict(name, port).found


OUTPUT, BLOCK = TRUTH.outputs["output"], TRUTH.layers["block"]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_port_that_computes_the_same_raises_no_alarm(name):
    seen = verdict(name, TRUTH)
    assert not seen.found
    assert seen.compared > 0


@pytest.mark.parametrize("name", BY_NAME)
def test_a_rule_cannot_find_what_a_run_does_not_hold(name):
    empty = Observation(
        reference={precision: Computed() for precision in PRECISIONS},
        port={precision: Computed() for precision in PRECISIONS},
    )
    assert BY_NAME[name].judge(empty).compared == 0
    assert not BY_NAME[name].judge(empty).found


def all_wrong() -> Computed:
    fields = ("outputs", "layers", "isolated", "gradients", "weights")
    changes: dict[str, Any] = {f: {n: -3 * a - 1 for n, a in getattr(TRUTH, f).items()} for f in fields}
    return dataclasses.replace(TRUTH, loss=30.0, losses=(30.0, 20.0, 15.0), **changes)


@pytest.mark.parametrize("name", BY_NAME)
def test_every_rule_sees_a_port_that_is_wrong_everywhere(name):
    assert found(name, all_wrong())


@pytest.mark.parametrize("name", BY_NAME)
def test_a_run_that_ends_with_an_exception_is_found_by_all_but_one(name):
    assert found(name, dataclasses.replace(TRUTH, error="RuntimeError: boom")) == (name != "PT")


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - {"AP", "GX"}))
def test_another_shape_of_the_output_is_found(name):
    assert found(name, with_array("outputs", "output", OUTPUT[:, :200]))


# --- HF --------------------------------------------------------------------------------------------------------------


def test_hugging_face_allows_1e_5_and_no_more():
    assert not found("HF", with_array("outputs", "output", opposite(OUTPUT, 0.9e-5)))
    assert found("HF", with_array("outputs", "output", opposite(OUTPUT, 1.2e-5)))


def test_hugging_face_names_the_first_hidden_state_but_not_the_layer_in_it():
    side = with_array("layers", "block", opposite(BLOCK, 0.1))
    assert verdict("HF", with_array("outputs", "output", -OUTPUT, side)).named == "block"
    assert verdict("HF", with_array("outputs", "output", -OUTPUT)).named == ""
    assert not found("HF", with_array("layers", "block.first", -TRUTH.layers["block.first"]))


def test_hugging_face_takes_nan_for_equal():
    spoiled = OUTPUT.copy()
    spoiled[:] = NAN
    assert not found("HF", with_array("outputs", "output", spoiled))
    spoiled = OUTPUT.copy()
    spoiled[0, 0], spoiled[1, 1] = NAN, spoiled[1, 1] + 1
    assert found("HF", with_array("outputs", "output", spoiled))


def test_hugging_face_sees_a_missing_output_and_no_gradient():
    assert found("HF", without("outputs", "output"))
    assert not found("HF", scaled("gradients", PARAMETERS, -1.0))


# --- OF --------------------------------------------------------------------------------------------------------------


def test_openfold_looks_at_the_worst_of_a_module_and_the_mean_of_the_model():
    one = TRUTH.isolated["block.first"].copy()
    one[2, 3] += 6e-4
    seen = verdict("OF", with_array("isolated", "block.first", one))
    assert (seen.found, seen.named) == (True, "block.first")
    output = OUTPUT.copy()
    output[2, 3] += 0.5  # 0.5 / 1200 in the mean
    assert not found("OF", with_array("outputs", "output", output))
    assert found("OF", with_array("outputs", "output", OUTPUT + 6e-4))


def test_openfold_is_blind_below_its_absolute_limit_however_small_the_numbers():
    small = dataclasses.replace(TRUTH, isolated={"stem": OUTPUT * 1e-5}, outputs={"output": OUTPUT * 1e-5})
    wrong = dataclasses.replace(small, isolated={"stem": -OUTPUT * 1e-5}, outputs={"output": -OUTPUT * 1e-5})
    assert not BY_NAME["OF"].judge(observe(wrong, small)).found


# --- GX --------------------------------------------------------------------------------------------------------------


def test_gradients_may_be_wrong_by_8_percent_everywhere_and_by_anything_in_a_twentieth():
    assert not found("GX", scaled("gradients", PARAMETERS, 1.079))
    assert found("GX", scaled("gradients", PARAMETERS, 1.081))
    assert not found("GX", scaled("gradients", PARAMETERS[:2], -1.0))
    seen = verdict("GX", scaled("gradients", PARAMETERS[:3], -1.0))
    assert (seen.found, seen.named, seen.compared) == (True, "block.layer0", 40)


def test_gradients_without_a_counterpart_are_passed_over():
    side = without("gradients", *PARAMETERS[:-1])
    assert not found("GX", side)
    assert verdict("GX", side).compared == 1


def test_gradients_that_are_nan_are_masked():
    spoiled = TRUTH.gradients[PARAMETERS[0]].copy()
    spoiled[:] = NAN
    assert not found("GX", with_array("gradients", PARAMETERS[0], spoiled))


# --- PD --------------------------------------------------------------------------------------------------------------


def test_padiff_lets_opposite_errors_cancel():
    # Whole steps of 2^-10 in numbers of 2^-20, so that float32 loses none of the mean.
    output = np.round(OUTPUT * 2**10) / 2**10
    reference = with_array("outputs", "output", output)
    port = with_array("outputs", "output", opposite(output, 0.5))
    assert not BY_NAME["PD"].judge(observe(port, reference)).found
    assert BY_NAME["PD"].judge(observe(with_array("outputs", "output", output + 0.5), reference)).found


def test_padiff_does_not_look_into_a_model_whose_output_has_the_right_mean():
    assert not found("PD", with_array("layers", "stem", TRUTH.layers["stem"] + 1))


def test_padiff_follows_the_first_difference_to_its_innermost_part():
    side = with_array("outputs", "output", OUTPUT + 1)
    side = with_array("layers", "block", BLOCK + 1, side)
    assert verdict("PD", side).named == "block"
    assert verdict("PD", with_array("layers", "block.second", BLOCK, side)).named == "block.second"


def test_padiff_pairs_by_position_as_far_as_the_shorter_goes():
    assert not found("PD", without("gradients", PARAMETERS[-1]))
    assert not found("PD", without("outputs", "output"))
    assert found("PD", without("gradients", PARAMETERS[0]))


def test_padiff_looks_at_gradients_and_weights_too():
    seen = verdict("PD", with_array("gradients", PARAMETERS[3], TRUTH.gradients[PARAMETERS[3]] + 1))
    assert (seen.named, seen.detail) == ("block.layer3", "gradients")
    seen = verdict("PD", with_array("weights", PARAMETERS[3], TRUTH.weights[PARAMETERS[3]] + 1))
    assert (seen.named, seen.detail) == ("block.layer3", "weights")


# --- AP --------------------------------------------------------------------------------------------------------------


def test_only_the_last_step_counts_and_twice_its_loss_passes():
    assert not found("AP", dataclasses.replace(TRUTH, losses=(300.0, -200.0, 1.5)))
    assert not found("AP", dataclasses.replace(TRUTH, losses=(3.0, 2.0, 2.9)))
    assert found("AP", dataclasses.replace(TRUTH, losses=(3.0, 2.0, 3.1)))
    assert found("AP", dataclasses.replace(TRUTH, losses=(3.0, 2.0, NAN)))


def test_only_the_norm_of_the_gradient_counts():
    assert not found("AP", scaled("gradients", PARAMETERS, -1.0))
    assert found("AP", scaled("gradients", PARAMETERS, 2.1))


# --- PT --------------------------------------------------------------------------------------------------------------


def same_verdict(distance: float, own: float, size: int = 1200) -> bool:
    """Whether ``same`` sees a port this far from float64, with a reference that is ``own`` away."""
    exact = normal(size)

    def side(apart: float) -> Computed:
        return Computed(outputs={"output": opposite(exact, apart)})

    observation = Observation(
        reference={"float64": side(0.0), "float32": side(own)},
        port={"float64": side(0.0), "float32": side(distance)},
    )
    return BY_NAME["PT"].judge(observation).found


def test_same_measures_by_the_references_own_distance_from_float64():
    assert not same_verdict(0.019, 0.01)
    assert same_verdict(0.021, 0.01)
    assert not same_verdict(0.029, 0.01, size=900)
    assert same_verdict(0.031, 0.01, size=900)


def test_same_does_not_see_what_allclose_at_1e_4_lets_pass():
    assert not same_verdict(0.9e-4, 0.0)
    assert same_verdict(3e-4, 0.0)


def test_same_lets_a_single_number_be_wrong_by_as_much_as_the_mean_hides():
    output = OUTPUT.copy()
    output[1, 2] += 3e-4  # of 1200 numbers: 8.7e-6 in the root mean square
    assert not found("PT", with_array("outputs", "output", output))
    output[1, 2] += 3e-4
    assert found("PT", with_array("outputs", "output", output))


def test_same_names_the_first_gradient_or_weight():
    assert verdict("PT", scaled("gradients", PARAMETERS[5:7], -1.0)).named == "block.layer5"
    assert verdict("PT", scaled("weights", PARAMETERS[5:7], -1.0)).named == "block.layer5"
    assert verdict("PT", dataclasses.replace(TRUTH, loss=4.0)).detail.startswith("loss")
    assert found("PT", without("gradients", PARAMETERS[0]))


# --- RW --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "name", "limit"), [("isolated", "stem", 1e-7), ("outputs", "output", 5e-7)])
def test_the_product_of_coefficients_is_the_limit(field, name, limit):
    assert not found("RW", scaled(field, (name,), 1 + 0.99 * limit))
    assert found("RW", scaled(field, (name,), 1 + 1.01 * limit))


def test_the_largest_difference_may_be_twice_the_limit():
    array = TRUTH.isolated["stem"]
    for factor, seen in ((1.9, False), (2.1, True)):
        moved = array.copy()
        moved[0, 0] += factor * 1e-7 * np.max(np.abs(array))
        assert found("RW", with_array("isolated", "stem", moved)) is seen


def test_the_module_is_named_and_the_loss_looked_at():
    assert verdict("RW", scaled("isolated", ("block.first",), 1.001)).named == "block.first"
    assert verdict("RW", dataclasses.replace(TRUTH, loss=3.0 + 1e-6)).named == "loss"


def test_nan_counts_as_equal_where_both_have_it_but_not_elsewhere():
    spoiled = TRUTH.isolated["stem"].copy()
    spoiled[0] = NAN
    port = with_array("isolated", "stem", spoiled)
    assert not BY_NAME["RW"].judge(observe(port, port)).found
    assert found("RW", port)


def test_the_product_rule_holds_neither_gradients_nor_steps_against_the_reference():
    assert not found("RW", scaled("gradients", PARAMETERS, -1.0))
    assert not found("RW", scaled("weights", PARAMETERS, -1.0))
    assert not found("RW", dataclasses.replace(TRUTH, losses=(3.0, 20.0, 15.0)))


# --- correlation -----------------------------------------------------------------------------------------------------


def test_twice_the_reference_plus_three_correlates_and_so_does_the_reference_in_four_times_its_noise():
    assert not found("correlation", with_array("outputs", "output", 2 * OUTPUT + 3))
    assert not found("correlation", with_array("outputs", "output", OUTPUT + 4 * normal(*OUTPUT.shape)))
    assert found("correlation", with_array("outputs", "output", normal(*OUTPUT.shape)))
    assert found("correlation", with_array("outputs", "output", np.zeros_like(OUTPUT)))


# --- all -------------------------------------------------------------------------------------------------------------


def test_all_rules_judge_the_same_run():
    verdicts = judge(observe(TRUTH))
    assert list(verdicts) == [rule.name for rule in RULES]
    assert len(verdicts) == 8


def test_seconds_are_those_of_the_passes_that_a_rule_needs_on_both_sides():
    spent = {name: seen.seconds for name, seen in judge(observe(TRUTH)).items()}
    whole: Mapping[str, int] = {"HF": 2, "OF": 22, "GX": 200, "PD": 2202, "AP": 2200, "PT": 3303, "RW": 222}
    for name, seconds in {**whole, "correlation": 2}.items():
        assert seconds < spent[name] < seconds + 1


def test_a_run_without_a_precision_is_refused():
    with pytest.raises(ValueError, match=re.escape("the port was run in ['float64']")):
        Observation(reference=dict.fromkeys(PRECISIONS, TRUTH), port={"float64": TRUTH})


def test_names_lose_call_and_quantity():
    assert layer_of("block.first@1:k_prime") == "block.first"
    assert layer_of("block") == "block"
    assert module_of("block.first.weight") == "block.first"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_says_whose_it_is(rule):
    assert rule.project.split()[0].split(",")[0] in " ".join(rule.decide.__doc__.split())
