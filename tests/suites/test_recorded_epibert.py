"""EpiBERT against recordings of it: of our reference, and of a clone as the published code lays it out.

The clone is a stand-in: modules, classes and constructor arguments have the published names, the layers are those of
our reference, and the two places that compute in bfloat16 alone do so here as they do there. So do what the fine-tuning
model returns and the order of its heads. Of the two layouts pre-training has the first, fine-tuning the present one.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import parity
from parity import Recording, recorder
from parity.pairs import epibert, epibert_recording
from parity.pairs.record_command import verify_recorded
from tests.suites.rungs import worst
from tests.unit.sources import ROOT
from tests.unit.test_layout import TENSORFLOW, run_with_blocked
from torch_impl import EpiBERT, EpiBERTConfig
from weights import transplant

GATES = ("constants", "layers", "blocks", "model", "gradients", "trajectory")
CONFIG = dataclasses.replace(
    EpiBERTConfig.tiny(), filter_list_seq=(12, 16), output_length=32, final_output_length=28, max_seq_length=32
)
MODEL = """
import numpy as np

input_names = ("sequence", "atac", "motif_activity")


def build(config):
    import tf_reference
    from parity.pairs.epibert import draw_weights

    model = tf_reference.EpiBERT(**config).build_weights(config["num_motifs"])
    model.assign(draw_weights(model, 0))
    return model


def constants(model):
    projection, table = model.get_constants()
    return {"projection_matrix": projection, "rotary_table": table}
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory, tensorflow) -> Recording:
    folder = tmp_path_factory.mktemp("epibert")
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    names = ("sequence", "atac", "motif_activity")
    arrays = dict(zip(names, epibert.synthetic_inputs(CONFIG, batch=2, seed=3), strict=True))
    np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
    place, inputs, out = f"{folder / 'model.py'}:build", str(folder / "inputs.npz"), folder / "recording.h5"
    arguments = {"config": epibert.original_arguments(CONFIG)}
    recorder.record(place, inputs, str(out), precisions=("float64", "float32", "bfloat16"), arguments=arguments)
    return Recording(out)


@pytest.mark.slow
def test_epibert_is_proven_by_a_recording_in_every_precision(recording):
    port = epibert_recording.make_port(recording)
    result = parity.verify(recording, port, gates=GATES)
    assert result.passed, "\n".join(worst(gate.failures) for gate in result.gates.values())
    assert {row.precision for row in result.comparisons} == {"exact", "float64", "float32", "bfloat16"}
    assert len(result.gates["weights"].comparisons) == len(result.weights)


@pytest.mark.slow
def test_a_port_with_constants_of_its_own_is_judged_by_them(recording):
    port = EpiBERT(CONFIG)
    transplant(epibert_recording.stored_tensors(recording, port), port, constants="philox")
    result = parity.verify(recording, port, gates=("layers",), precisions=("float64",))
    assert result.passed, "\n".join(worst(gate.failures) for gate in result.gates.values())
    assert {row.tolerance for row in result.gates["constants"].comparisons} >= {"own_projection", "own_rotary_table"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "name", "value", "culprits"),
    [
        ("performer.layers.1.norm", "eps", 1e-6, ("performer.layers.1.norm",)),
        ("conv_tower.0.block.norm", "update_rate", 0.2, ("conv_tower.0.block.norm",)),
        ("gelu", "cubic_coefficient", 0.044715, ("gelu",)),
    ],
)
def test_a_fault_of_epibert_is_named(recording, path, name, value, culprits):
    port = epibert_recording.make_port(recording)
    module = port.get_submodule(path)
    assert getattr(module, name) != value
    setattr(module, name, value)
    result = parity.verify(recording, port, gates=("layers",), precisions=("float64",))
    assert result.culprits == culprits


@pytest.mark.slow
def test_another_configuration_and_another_weight_are_named(recording):
    port = EpiBERT(dataclasses.replace(CONFIG, pointwise_dropout_rate=0.3))
    transplant(epibert_recording.stored_tensors(recording, port), port, constants="philox")
    with torch.no_grad():
        port.stem_conv.weight[0, 0, 0] += 1e-7
    result = parity.verify(recording, port, gates=("layers",), precisions=("float64",))
    assert [row.port for row in result.gates["weights"].failures] == ["stem_conv.weight"]
    assert "pointwise_dropout_rate" in {row.port for row in result.gates["constants"].failures}


# --- a clone ----------------------------------------------------------------------------------------------------------

LAYERS = """
import tensorflow as tf
import tf_keras

import PACKAGE.layers.snnk_attention as snnk_attention
from tf_reference.model import Performer


class Performer_Encoder(Performer):
    pass


class FixedPositionalEmbedding(tf_keras.layers.Layer):
    def __init__(self, rows, width, table):
        super().__init__()
        self.table = table

    def build(self, input_shape):
        self.emb = tf.constant(self.table)

    def call(self, x):
        return tf.cast(self.emb[None, : x.shape[1], :], tf.bfloat16)
"""
ATTENTION = """
import tensorflow as tf


def noncausal_denominator(qs, ks):
    ones = tf.ones([ks.shape[0]], dtype=tf.bfloat16)
    return tf.einsum("lbhm,bhm->lbh", qs, tf.einsum("lbhm,l->bhm", ks, ones))
"""
MODELS = """
import tf_keras
import tf_reference
from PACKAGE.layers.layers import *
from PACKAGE.layers.layers import FixedPositionalEmbedding, Performer_Encoder


def give_constants(model):
    projection, table = model.get_constants()
    model.performer.layer_pos_emb = FixedPositionalEmbedding(*table.shape, table)
    for layer in model.performer.layers:
        layer.self_attention.projection_matrix = projection
"""
PRETRAINING = f"""{MODELS}

class epibert(tf_reference.EpiBERT):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        give_constants(self)
"""
FINETUNING = f"""{MODELS}

class epibert_rampage_finetune(tf_reference.EpiBERTRampage):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        give_constants(self)

    def call(self, inputs, training=True):
        x, features = self._encode(inputs, training)
        rna = self._head(x, self.final_pointwise_conv_rna, self.final_dense_profile_rna, training)
        if not self.predict_atac:
            return rna
        return self._head(x, self.final_pointwise_conv, self.final_dense_profile, training), rna, features
"""


def write_clone(root: Path, package: Path, sources: Mapping[str, str]) -> Path:
    """Modules below ``package``, whose name stands in them as PACKAGE."""
    for name, source in {"layers/layers.py": LAYERS, "layers/snnk_attention.py": ATTENTION, **sources}.items():
        path = root / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.replace("PACKAGE", package.name), encoding="utf-8")
    return root


@pytest.fixture
def clone(tmp_path) -> Path:
    return write_clone(tmp_path / "clone", Path("src"), {"models/epibert_atac_pretrain.py": PRETRAINING})


def record_clone(clone: Path, checkpoint: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    given = ["--repo", clone, "--checkpoint", checkpoint, "--bins", "8", "--batch", "1", "--out", out, *more]
    # tf.keras is Keras 2, as where the published code runs.
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "parity.command", "record", *map(str, given)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_clone_is_recorded_on_a_real_checkpoint_and_proves_the_port_without_tensorflow(clone, goldens, tmp_path):
    out, checkpoint = tmp_path / "clone.h5", goldens / "P1" / "ckpt_before"
    done = record_clone(clone, checkpoint, out, "--precisions", "float64,float32,bfloat16")
    assert done.returncode == 0, done.stderr
    recording = Recording(out)
    assert recording.precisions == ("float64", "float32", "bfloat16")
    statement = f"""
import parity
from parity.pairs.record_command import verify_recorded
for checkpoint in (None, {str(checkpoint)!r}):
    result = verify_recorded({str(out)!r}, checkpoint=checkpoint)
    assert result.passed, [(row.reference, row.detail) for gate in result.gates.values() for row in gate.failures][:9]
    assert len(result.requested) == 7
"""
    found = run_with_blocked(TENSORFLOW | {"tf_reference"}, statement)
    assert found.returncode == 0, found.stderr[-3000:]


@pytest.mark.slow
def test_the_fine_tuning_model_of_a_clone_proves_the_port_with_its_heads_in_their_own_order(goldens, tmp_path):
    sources = {"models/epibert_rampage_finetune.py": FINETUNING}
    clone = write_clone(tmp_path / "clone", Path("src", "epibert"), sources)
    out, checkpoint = tmp_path / "clone.h5", goldens / "R1" / "ckpt_before"
    done = record_clone(clone, checkpoint, out)
    assert done.returncode == 0, done.stderr
    recording = Recording(out)
    assert recording.name == "epibert_rampage_finetune"
    assert len(recording.given[1]) == 2
    order = recording.execution
    assert order.index("final_dense_profile_rna") < order.index("final_dense_profile")
    result = verify_recorded(str(out), checkpoint=str(checkpoint))
    assert result.passed, "\n".join(worst(gate.failures) for gate in result.gates.values())
    named = [row.name for row in result.not_compared]
    for text in ("arguments that shapes do not tell: seed, ", "windows longer than 8 bins"):
        assert sum(name.startswith(text) for name in named) == 1
        assert f"not recorded: {text}" in done.stdout


@pytest.mark.slow
def test_what_is_no_clone_and_what_is_no_checkpoint_of_it_are_refused_in_one_line(clone, goldens, tmp_path):
    checkpoint, out = goldens / "P1" / "ckpt_before", tmp_path / "out.h5"
    (clone / "src" / "models" / "epibert_atac_pretrain.py").unlink()
    for folder, path, reason in (
        (clone, checkpoint, "is no clone of EpiBERT"),
        (tmp_path / "absent", checkpoint, "no such folder"),
        (clone, tmp_path / "absent", "absent"),
    ):
        done = record_clone(folder, path, out)
        assert done.returncode == 2
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("epibert: error: ")
        assert reason in lines[0]
        assert not out.exists()
