"""The fine-tuning model of the port: what the original computed (R1, R2), and what it promises beyond that."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.compare import compare_array
from parity.pairs import epibert
from parity.records import Reading, Status
from parity.reference import read_array
from parity.trace import Sample
from tests.assertions import assert_same
from tests.unit.sources import ROOT
from tests.unit.torch_impl.test_model import NO_DROPOUT, SMALL, inputs
from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from weights import transplant

CASES = pytest.mark.parametrize("case", ["R1", "R2"])
FINALS = ("final_atac", "final_rna")
CONSTANTS = ("projection_matrix_0", "rotary_table_bfloat16")


def small(**changes: Any) -> EpiBERTRampage:
    return EpiBERTRampage(EpiBERTConfig(**{**SMALL, **changes})).double().eval()


class Case:
    """A recorded case: the port with the weights and constants behind it, its inputs, and what was recorded."""

    def __init__(self, folder: Path) -> None:
        self.file = h5py.File(folder / "forward.h5")
        config = EpiBERTConfig(**json.loads((folder / "config.json").read_text())["config"])
        self.model = EpiBERTRampage(config)
        matrix, table = (self.file["constants"][name][()] for name in CONSTANTS)
        transplant(folder / "ckpt_before", self.model, constants=(matrix, table, "recorded"))
        given = {name: self.file["inputs"][name][()] for name in ("sequence", "atac", "motif_activity")}
        self.inputs = epibert.one_hot(given["sequence"]), given["atac"], given["motif_activity"]

    def recorded(self, place: str) -> dict[str, np.ndarray | Sample]:
        """Every array at a place of the file by its path from there; hard links under each of their names."""
        found: dict[str, np.ndarray | Sample] = {}

        def walk(group: Any, prefix: str) -> None:
            for name, item in group.items():
                if isinstance(item, h5py.Group):
                    walk(item, f"{prefix}{name}/")
                else:
                    found[f"{prefix}{name}"] = read_array(item)

        walk(self.file[place], "")
        return found


@pytest.fixture(scope="module")
def cases(goldens) -> dict[str, Case]:
    return {name: Case(goldens / name) for name in ("R1", "R2")}


def verify(got: Any, expected: Any, what: str, *, same: Any = None, precision: str = "float64") -> None:
    common: dict[str, Any] = {"gate": "test", "reading": Reading.ACCUMULATED, "quantity": "output", "layer": what}
    paths = {"reference_path": what, "port_path": what}
    for row in compare_array(got, expected, same, precision=precision, tolerance=precision, **common, **paths):
        assert row.status is Status.PASS, (what, row.quantity, row.error, row.limit, row.detail)


# --- against the recordings


@CASES
def test_every_layer_and_both_predictions_in_float64(cases, case):
    found = cases[case]
    trace = epibert.watch(found.model).trace(found.inputs, precision="float64", training=False)
    assert trace.error == ""
    port_of = {pair.reference: pair for pair in epibert.layer_map_of(found.model)}
    taps = found.recorded("modes/f64/taps")
    assert len(taps) == {"R1": 134, "R2": 106}[case]
    for key, expected in taps.items():
        path, _, name = key.rpartition("/")
        reference, _, number = path.partition("@")
        pair = port_of[reference]
        call = trace.calls[pair.port, int(number or 0)]
        verify(call.outputs[pair.outputs.index(name)], expected, key)
    (whole,) = (call for (path, _), call in trace.calls.items() if path == "")
    names = port_of[""].outputs
    assert names == (FINALS if case == "R1" else FINALS[1:])
    for name, output in zip(names, whole.outputs, strict=True):
        for graph in ("", "_graph"):
            verify(output, found.recorded("modes/f64")[f"{name}{graph}"], f"{name}{graph}")


@CASES
def test_predictions_in_float32_round_no_worse_than_the_original(cases, case):
    found = cases[case]
    trace = epibert.watch(found.model).trace(found.inputs, precision="float32", training=False)
    names = FINALS if case == "R1" else FINALS[1:]
    for name, output in zip(names, trace.calls["", 0].outputs, strict=True):
        exact, same = (read_array(found.file[f"modes/{mode}/{name}"]) for mode in ("f64", "f32"))
        verify(output, exact, name, same=same, precision="float32")


@CASES
def test_training_mode_and_the_statistics_after_it(cases, case):
    found = cases[case]
    trace = epibert.watch(found.model).trace(found.inputs, precision="float64", training=True)
    expected = found.recorded("modes/f64/training_true")
    named = {row.path: row.name for row in epibert.weight_rows(found.model.config, epibert.RAMPAGE_TABLE)}
    statistics = {key: value for key, value in expected.items() if key.startswith("bn/")}
    assert len(statistics) == {"R1": 2 * 12, "R2": 2 * 11}[case]
    for key, value in statistics.items():
        layer, _, name = named[key.removeprefix("bn/")].rpartition(".")
        verify(trace.state[layer][name], value, key)
    names = FINALS if case == "R1" else FINALS[1:]
    assert expected.keys() == statistics.keys() | set(names)
    for name, output in zip(names, trace.calls["", 0].outputs, strict=True):
        verify(output, expected[name], name)


# --- the model by itself


def test_the_default_is_the_original_fine_tuning_model():
    with torch.device("meta"):
        model = EpiBERTRampage().to("meta").eval()
        arguments = (torch.empty(1, 524_288, 4), torch.empty(1, 131_072, 1), torch.empty(1, 1, 693))
    atac, rna = model(*arguments)
    assert model.config == EpiBERTConfig.rampage()
    assert atac.shape == rna.shape == (1, 4092, 1)


def test_without_atac_head_the_first_prediction_is_none():
    model = small(predict_atac=False)
    atac, rna = model(*inputs(model.config))
    assert atac is None
    assert rna.shape == (2, 5, 1)
    assert (rna >= 0).all()
    heads = {name.partition(".")[0] for name in model.state_dict() if name.startswith("final_")}
    assert heads == {"final_pointwise_conv_rna", "final_dense_profile_rna"}
    whole = small()
    whole.load_state_dict({**whole.state_dict(), **model.state_dict()})
    assert_same(whole(*inputs(model.config))[1], rna, "exact")


def test_a_pre_training_model_has_nothing_else_to_predict():
    with pytest.raises(ValueError, match="predict_atac=False leaves EpiBERT nothing"):
        EpiBERT(EpiBERTConfig(**SMALL, predict_atac=False))


def test_the_atac_head_is_that_of_the_pre_training_model():
    model, pretraining = small(), EpiBERT(EpiBERTConfig(**SMALL)).double().eval()
    state = model.state_dict()
    pretraining.load_state_dict({name: state[name] for name in pretraining.state_dict()})
    arguments = inputs(model.config)
    assert_same(model(*arguments)[0], pretraining(*arguments), "exact")


def test_features_of_every_layer_come_with_the_predictions():
    model = small()
    arguments = inputs(model.config)
    atac, rna, features = model(*arguments, return_features=True)
    for got, expected in zip((atac, rna), model(*arguments), strict=True):
        assert_same(got, expected, "exact")
    assert list(features) == ["layer_0", "layer_1"]
    assert {array.shape for pair in features.values() for array in pair} == {(9, 2, 3, 256)}


def same_heads(model: EpiBERTRampage) -> EpiBERTRampage:
    """The model with the weights of its ATAC head in its RNA head."""
    state = model.state_dict()
    model.load_state_dict({name: state[name.replace("_rna.", ".")] for name in state})
    return model


def test_the_heads_share_the_dropout_and_not_its_mask():
    """With equal weights in both heads, only the masks can tell their predictions apart."""
    torch.manual_seed(0)
    model = same_heads(small(**{**NO_DROPOUT, "pointwise_dropout_rate": 0.5}))
    masks: list[Tensor] = []
    model.dropout.register_forward_hook(lambda _, __, output: masks.append(torch.eq(output, 0)))
    for training in (False, True):
        masks.clear()
        atac, rna = model.train(training)(*inputs(model.config))
        assert torch.equal(atac, rna) == (not training)
        assert len(masks) == 2
        assert torch.equal(*masks) == (not training)
    dropouts = [name for name, part in model.named_modules() if isinstance(part, nn.Dropout) and "." not in name]
    assert dropouts == ["motif_dropout1", "motif_dropout2", "dropout"]


@pytest.mark.parametrize("compute_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_activations_have_the_compute_dtype_and_parameters_keep_theirs(compute_dtype):
    model = EpiBERTRampage(EpiBERTConfig(**SMALL), compute_dtype=compute_dtype).eval()
    atac, rna = model(*inputs(model.config, dtype=torch.float32))
    assert atac.dtype == rna.dtype == compute_dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.isfinite(atac).all()
    assert torch.isfinite(rna).all()


def test_each_loss_reaches_its_own_head_and_the_trunk():
    model = small(**NO_DROPOUT).train()
    for index, (own, other) in enumerate([("", "_rna"), ("_rna", "")]):
        model.zero_grad()
        model(*inputs(model.config))[index].square().sum().backward()
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        silent = {name for name, _ in model.named_parameters()} - reached
        assert {name.partition(".")[0] for name in silent} == {f"final_{part}{other}" for part in HEAD}
        assert {f"final_{part}{own}" for part in HEAD} < {name.partition(".")[0] for name in reached}


HEAD = ("pointwise_conv", "dense_profile")

# In an interpreter of its own, because the compiler does not look through the shape checks of the tests.
COMPILED = """
import sys
import torch
from torch_impl import EpiBERTConfig, EpiBERTRampage

config = EpiBERTConfig(**{small})
model = EpiBERTRampage(config).double().eval()
arguments = (torch.rand(2, config.sequence_length, 4), torch.rand(2, config.atac_length, 1), torch.rand(2, 1, 3))
arguments = [argument.double() for argument in arguments]
with torch.no_grad():
    results = [run(*arguments) for run in (model, torch.compile(model, fullgraph=True, backend="eager"))]
torch.save(results, sys.argv[1])
"""


def test_the_model_compiles_as_one_graph_to_the_same_function(tmp_path):
    arguments = {**SMALL, "filter_list_seq": (12,), "filter_list_atac": (4,), "num_transformer_layers": 1}
    command = [sys.executable, "-c", COMPILED.format(small=arguments), str(tmp_path / "results.pt")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    eager, compiled = torch.load(tmp_path / "results.pt", weights_only=True)
    assert len(eager) == 2
    for expected, got in zip(eager, compiled, strict=True):
        assert_same(got, expected)
