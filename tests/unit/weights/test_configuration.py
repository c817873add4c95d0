import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.weights.samples import CHECKPOINTS, arguments, prefix
from torch_impl import EpiBERTConfig
from weights.checkpoint import open_checkpoint
from weights.configuration import contradict, infer_configuration
from weights.errors import ConfigurationError
from weights.mapping import canonical_shapes

SIZES = (
    "filter_list_seq",
    "filter_list_atac",
    "num_motifs",
    "motif_units_fc",
    "num_transformer_layers",
    "num_heads",
    "norm",
    "final_point_scale",
)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_sizes_of_a_recorded_checkpoint_are_inferred(checkpoint):
    inferred = infer_configuration(canonical_shapes(open_checkpoint(prefix(checkpoint))))
    recorded = EpiBERTConfig(**arguments(checkpoint))
    assert inferred.complaints == ()
    fine_tuning = checkpoint.startswith("R")
    told = (*SIZES, "predict_atac") if fine_tuning else SIZES
    assert inferred.fine_tuning == fine_tuning
    assert inferred.values == {name: getattr(recorded, name) for name in told}
    assert "predict_atac" not in inferred.assumed
    assert set(inferred.assumed).isdisjoint(SIZES)
    assert {"seed", "output_length", "max_seq_length", "dropout_rate", "use_rot_emb"} <= set(inferred.assumed)
    assert contradict(recorded, inferred) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 4},
        {"num_motifs": 12},
        {"num_transformer_layers": 3},
        {"norm": False},
        {"filter_list_seq": [16, 20, 20, 24, 30, 32]},
        {"filter_list_atac": [32, 60]},
        {"final_point_scale": 4},
        {"motif_units_fc": 36},
    ],
    ids=str,
)
def test_every_size_can_contradict(changes):
    inferred = infer_configuration(canonical_shapes(open_checkpoint(prefix("P1/ckpt_before"))))
    config = EpiBERTConfig(**{**arguments("P1"), **changes})
    found = contradict(config, inferred)
    assert len(found) == 1
    assert next(iter(changes)) in found[0]
    with pytest.raises(ConfigurationError, match=next(iter(changes))):
        inferred.config(**changes)


def test_all_contradictions_come_in_one_error():
    inferred = infer_configuration(canonical_shapes(open_checkpoint(prefix("P1/ckpt_before"))))
    with pytest.raises(ConfigurationError, match=r"(?s)\(2\).*num_motifs.*num_heads"):
        inferred.config(num_heads=4, num_motifs=12)


def test_unknown_and_impossible_arguments_are_refused():
    inferred = infer_configuration(canonical_shapes(open_checkpoint(prefix("P1/ckpt_before"))))
    with pytest.raises(ConfigurationError, match="no_such_thing"):
        inferred.config(no_such_thing=1)
    with pytest.raises(ConfigurationError, match="final_output_length"):
        inferred.config(output_length=4, final_output_length=5)


def test_what_is_not_in_the_shapes_may_be_given():
    inferred = infer_configuration(canonical_shapes(open_checkpoint(prefix("P1/ckpt_before"))))
    assert inferred.config(seed=21).seed == 21


@given(hidden=st.integers(2, 2048), scale=st.integers(1, 40))
def test_the_scale_of_the_head_gives_its_width(hidden, scale):
    width = hidden // scale
    if width == 0:
        return
    shapes = {
        "model/conv_tower/layer_with_weights-0/layer_with_weights-0/layer_with_weights-1/kernel": (5, 3, hidden),
        "model/final_pointwise_conv/layer_with_weights-1/kernel": (1, hidden, width),
    }
    found = infer_configuration(shapes).values["final_point_scale"]
    assert hidden // found == width
    assert found == 6 if hidden // 6 == width else found <= scale


def test_layers_with_different_heads_are_a_contradiction():
    shapes = canonical_shapes(open_checkpoint(prefix("P1/ckpt_before")))
    shapes["model/performer/layers/1/self_attention/query_dense_layer/kernel"] = (32, 4, 8)
    inferred = infer_configuration(shapes)
    assert "different numbers of heads" in inferred.complaints[0]
    with pytest.raises(ConfigurationError, match="different numbers of heads"):
        inferred.config()


def test_nothing_is_inferred_from_nothing():
    assert infer_configuration({}).complaints
    assert infer_configuration({"model/stem_conv/kernel": (1,)}).complaints
