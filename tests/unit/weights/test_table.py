"""The table against the original's own records, and proof that each of these checks can fail."""

import dataclasses
import importlib
import json
import re

import h5py
import numpy as np
import pytest
import torch

from tests.unit.weights.samples import AFTER, CASES, CHECKPOINTS, GOLDENS, arguments, build, kind, prefix
from torch_impl import EpiBERTConfig
from weights import CheckpointError, messages, read_checkpoint
from weights.errors import MappingError
from weights.layouts import CONV1D, DENSE, HEADS_IN, IDENTITY
from weights.mapping import check_table
from weights.object_graph import GRAPH_KEY, SUFFIX
from weights.table import MOMENTS, PRETRAIN, RAMPAGE_TABLE, TABLE, Group, Optimizer, Row, rows, slot_paths

transplant_module = importlib.import_module("weights.transplant")


def config(case: str) -> EpiBERTConfig:
    return EpiBERTConfig(**arguments(case))


@pytest.mark.parametrize("case", CASES)
def test_the_order_is_keras_order_of_trainable_variables(case):
    recorded = json.loads((GOLDENS / case / "config.json").read_text())
    assert [row.path for row in rows(config(case), kind(case).table) if row.trainable] == recorded["trainable_order"]


@pytest.mark.parametrize("case", CASES)
def test_the_rows_are_the_recorded_variables_with_their_shapes(case):
    recorded = json.loads((GOLDENS / case / "config.json").read_text())["variables"]
    state = build(case).state_dict()
    listed = rows(config(case), kind(case).table)
    assert {row.path: row.trainable for row in listed} == {key: value["trainable"] for key, value in recorded.items()}
    for row in listed:
        shape = row.layout.stored_shape(tuple(state[row.name].shape), arguments(case)["num_heads"])
        assert list(shape) == recorded[row.path]["shape"]


@pytest.mark.parametrize(
    "overrides", [{}, {"norm": False}, {"filter_list_seq": [8, 16]}, {"num_transformer_layers": 3}]
)
def test_the_table_covers_every_parameter_and_statistic_once(overrides):
    for case in ("P1", "R1", "R2"):
        model = build(case, **overrides)
        assert check_table(model, rows(model.config, kind(case).table)) == []


def test_the_table_counts_as_the_specification_does():
    listed = rows(EpiBERTConfig())
    assert len(listed) == 182
    assert sum(row.trainable for row in listed) == 64 + 12 * 8
    assert len(rows(EpiBERTConfig(), RAMPAGE_TABLE)) == 182 + 8
    assert len(rows(EpiBERTConfig(predict_atac=False), RAMPAGE_TABLE)) == 182


def test_slots_have_the_numbers_of_the_specification():
    assert slot_paths(0, "optimizer") == ("optimizer/_variables/1", "optimizer/_variables/2")
    assert slot_paths(87, "optimizer2") == ("optimizer2/_variables/175", "optimizer2/_variables/176")


def port_name(path: str) -> str:
    """The port's name for a checkpoint path by rewriting text: a second opinion, independent of the table."""
    path = path.removeprefix("model/").replace("/_layer/", "/block/")
    for pattern, replacement in (
        (r"(conv_tower\w*)/layer_with_weights-(\d+)/layer_with_weights-0/", r"\1/\2/block/"),
        (r"(conv_tower)/layer_with_weights-(\d+)/layer_with_weights-1/", r"\1/\2/pool/"),
        (r"layer_with_weights-0/", "norm/"),
        (r"layer_with_weights-1/", "conv/"),
        (r"/dense/", "/logits/"),
        (r"self_attention/(\w+)_dense_layer/", r"attention/\1/"),
        (r"FFN/FFN_layer_norm/", "ffn/norm/"),
        (r"FFN/FFN_dense_", "ffn/"),
        (r"layer_norm/", "norm/"),
        (r"(kernel|gamma)$", "weight"),
        (r"beta$", "bias"),
        (r"moving_mean$", "running_mean"),
        (r"moving_variance$", "running_var"),
    ):
        path = re.sub(pattern, replacement, path)
    return path.replace("/", ".")


def disagreements(table: tuple[Group, ...]) -> list[str]:
    return [row.name for row in rows(config("P1"), table) if port_name(row.path) != row.name]


@pytest.mark.parametrize("table", [TABLE, RAMPAGE_TABLE], ids=["pre-training", "fine-tuning"])
def test_the_names_agree_with_a_second_opinion(table):
    assert disagreements(table) == []


def output(table: tuple[Group, ...], monkeypatch: pytest.MonkeyPatch) -> float:
    """Relative distance of the transplanted float64 model's output from the original's recorded one."""
    kind = dataclasses.replace(PRETRAIN, table=table, optimizers=(Optimizer(name="optimizer", table=table),))
    monkeypatch.setattr(transplant_module, "kind_of", lambda _: kind)
    model = build("P1", torch.float64).eval()
    with h5py.File(GOLDENS / "P1" / "forward.h5") as file:
        constants = file["constants"]
        matrix, rotary = constants["projection_matrix_0"][()], constants["rotary_table_bfloat16"][()]
        transplant_module.transplant(prefix("P1/ckpt_before"), model, constants=(matrix, rotary, "recorded"))
        inputs = file["inputs"]
        sequence = (inputs["sequence"][()][..., None] == np.arange(4)).astype(np.float64)
        atac, motif = (inputs[name][()].astype(np.float64) for name in ("atac", "motif_activity"))
        expected = file["modes/f64/final_atac"][()]
    with torch.no_grad():
        got = model(*(torch.from_numpy(array) for array in (sequence, atac, motif))).numpy()
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def test_the_transplanted_model_computes_what_the_original_did(monkeypatch):
    assert output(TABLE, monkeypatch) <= 1e-12


def changed(where: str, **changes: object) -> tuple[Group, ...]:
    """The table with one row changed, or dropped when nothing is said to change."""
    table = []
    for group in TABLE:
        kept = []
        for row in group.rows:
            if row.path != where:
                kept.append(row)
            elif changes:
                kept.append(dataclasses.replace(row, **changes))
        table.append(dataclasses.replace(group, rows=tuple(kept)))
    assert tuple(table) != TABLE
    return tuple(table)


def swapped(first: str, second: str) -> tuple[Group, ...]:
    """The table with the port's names of two rows exchanged."""
    names = {row.path: row.name for group in TABLE for row in group.rows}
    other = {first: names[second], second: names[first]}
    return tuple(
        dataclasses.replace(
            group, rows=tuple(dataclasses.replace(row, name=other.get(row.path, row.name)) for row in group.rows)
        )
        for group in TABLE
    )


ATTENTION = "model/performer/layers/{i}/self_attention"
FAULTS = {
    "a row dropped": changed("model/stem_conv/bias"),
    "a statistic dropped": changed("model/stem_res_conv/_layer/layer_with_weights-0/moving_mean"),
    "a row doubled": (*TABLE, Group(rows=(TABLE[0].rows[0],))),
    "a row for nothing": (*TABLE, Group(rows=(Row(path="model/x", name="x", layout=IDENTITY),))),
    "a statistic trainable": changed("model/stem_res_conv/_layer/layer_with_weights-0/moving_mean", trainable=True),
    "a parameter not trainable": changed("model/final_dense_profile/bias", trainable=False),
    "dense not transposed": changed("model/pre_transformer_projection/kernel", layout=IDENTITY),
    "convolution as dense": changed("model/stem_conv/kernel", layout=DENSE),
    "dense as convolution": changed("model/final_dense_profile/kernel", layout=CONV1D),
    "heads in for heads out": changed(f"{ATTENTION}/output_dense_layer/kernel", layout=HEADS_IN),
    "another path": changed("model/stem_conv/bias", path="model/stem_conv/offset"),
}


@pytest.mark.parametrize("table", FAULTS.values(), ids=FAULTS.keys())
def test_a_wrong_table_is_refused(table, monkeypatch):
    with pytest.raises(MappingError):
        output(table, monkeypatch)


SQUARE = (
    "model/stem_res_conv/_layer/layer_with_weights-1/kernel",
    "model/stem_res_conv_atac/_layer/layer_with_weights-1/kernel",
)
SWAPS = {
    "query and key": (f"{ATTENTION}/query_dense_layer/kernel", f"{ATTENTION}/key_dense_layer/kernel"),
    "key and value": (f"{ATTENTION}/key_dense_layer/kernel", f"{ATTENTION}/value_dense_layer/kernel"),
    "gamma and beta": ("model/performer/layer_norm/gamma", "model/performer/layer_norm/beta"),
    "mean and variance": (
        "model/final_pointwise_conv/layer_with_weights-0/moving_mean",
        "model/final_pointwise_conv/layer_with_weights-0/moving_variance",
    ),
    "the layer norms of a layer": (
        "model/performer/layers/{i}/layer_norm/beta",
        "model/performer/layers/{i}/FFN/FFN_layer_norm/beta",
    ),
}


@pytest.mark.parametrize("pair", SWAPS.values(), ids=SWAPS.keys())
def test_two_rows_of_one_shape_swapped_are_seen_by_names_and_by_numbers(pair, monkeypatch):
    """Shapes cannot tell these apart, so keys and shapes alone prove nothing; the other two checks do."""
    table = swapped(*pair)
    assert disagreements(table)
    assert not output(table, monkeypatch) <= 1e-6  # a swapped variance gives NaN


@pytest.mark.parametrize("path", SQUARE)
def test_a_square_kernel_left_untransposed_is_seen_by_numbers(path, monkeypatch):
    square = dataclasses.replace(
        CONV1D, name="wrong", _forward=lambda array: np.ascontiguousarray(array.transpose(1, 2, 0))
    )
    assert output(changed(path, layout=square), monkeypatch) > 1e-6


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_recorded_key_is_in_the_table(checkpoint):
    stored = read_checkpoint(prefix(checkpoint))
    model_keys = {key.removesuffix(SUFFIX) for key in stored if key.startswith("model/")}
    assert model_keys == {row.path for row in rows(config(checkpoint), kind(checkpoint).table)}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_parameter_belongs_to_one_optimizer(checkpoint):
    updated = [row for each in kind(checkpoint).optimizers for row in rows(config(checkpoint), each.table)]
    assert sorted(row.path for row in updated) == sorted(
        row.path for row in rows(config(checkpoint), kind(checkpoint).table)
    )


@pytest.mark.parametrize("checkpoint", AFTER)
def test_a_slot_is_what_tensorflow_called_it(checkpoint):
    """Shapes alone could not tell two slots apart; but TensorFlow named each moment after its variable."""
    stored = read_checkpoint(prefix(checkpoint))
    nodes = messages.TrackableObjectGraph.FromString(stored[GRAPH_KEY].item()).nodes
    names = {attribute.checkpoint_key: attribute.full_name for node in nodes for attribute in node.attributes}
    seen = 0
    for optimizer in kind(checkpoint).optimizers:
        updated = [row for row in rows(config(checkpoint), optimizer.table) if row.trainable]
        for order, row in enumerate(updated):
            for letter, path in zip(("m", "v"), slot_paths(order, optimizer.name), strict=True):
                assert names[path + SUFFIX].endswith(f"/{letter}/{names[row.path + SUFFIX]}")
                assert stored.shape(path + SUFFIX) == stored.shape(row.path + SUFFIX)
                seen += 1
    assert (
        seen
        == len([key for key in stored if "/_variables/" in key])
        == len(MOMENTS) * len([row for row in rows(config(checkpoint), kind(checkpoint).table) if row.trainable])
    )


def test_errors_of_the_mapping_are_checkpoint_errors():
    assert issubclass(MappingError, CheckpointError)
    assert issubclass(CheckpointError, ValueError)
