"""The whole package in an interpreter that cannot import TensorFlow, and what importing it costs."""

import subprocess
import sys
from pathlib import Path

from tests.unit.weights.samples import GOLDENS

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
for name in ("tensorflow", "tf_keras", "keras"):
    sys.modules[name] = None
import json
from pathlib import Path
import numpy as np
import torch
from parity.tolerances import TABLE
from torch_impl import EpiBERT, EpiBERTConfig
from weights import CheckpointError, export, load_transplanted, read_checkpoint, transplant
goldens, out = Path(sys.argv[1]), Path(sys.argv[2])
config = EpiBERTConfig(**json.loads((goldens / "config.json").read_text())["config"])
model = EpiBERT(config).eval()
record = transplant(goldens / "ckpt_after_poisson", model)
assert record.constants["origin"] == model.constants_origin == "philox"
record.save(out / "model", model)
export(model, out / "tensorflow", training_state=record.training_state)
original, exported = read_checkpoint(goldens / "ckpt_after_poisson"), read_checkpoint(out / "tensorflow")
assert all(original[key].tobytes() == exported[key].tobytes() for key in original if "OBJECT_GRAPH" not in key)
inputs = torch.rand(1, 8192, 4), torch.rand(1, 2048, 1), torch.rand(1, 1, 11)
loaded = load_transplanted(out / "model")
assert loaded.state_dict().keys() == model.state_dict().keys()
assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
# Tensors that lie elsewhere in memory may be summed in another order.
with torch.no_grad():
    ours, theirs = model(*inputs), loaded(*inputs)
assert torch.linalg.norm(ours - theirs) <= TABLE["copy_float32"].limit * torch.linalg.norm(ours)
try:
    transplant(goldens / "ckpt_before", model, constants="tensorflow")
except CheckpointError as error:
    assert "TensorFlow" in str(error)
else:
    raise AssertionError("TensorFlow's constants without TensorFlow")
assert not [name for name, module in sys.modules.items() if module and name.startswith(("tensorflow", "tf_"))]
"""


def run(program: str, *arguments: object) -> None:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_everything_works_where_tensorflow_cannot_be_imported(tmp_path):
    run(PROGRAM, GOLDENS / "P1", tmp_path)


def test_tensorflows_constants_do_not_load_it_into_this_process(tmp_path):
    program = """
import sys, json
from pathlib import Path
from torch_impl import EpiBERT, EpiBERTConfig
from weights import transplant
goldens = Path(sys.argv[1])
model = EpiBERT(EpiBERTConfig(**json.loads((goldens / "config.json").read_text())["config"]))
record = transplant(goldens / "ckpt_before", model)
assert record.constants["origin"].startswith("tensorflow "), record.constants
assert "tensorflow" not in sys.modules
"""
    run(program, GOLDENS / "P1")
