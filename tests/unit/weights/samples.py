"""Recorded checkpoints and the models that they belong to, for the tests of this folder."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights.object_graph import SUFFIX
from weights.table import PRETRAIN, RAMPAGE, Kind

GOLDENS = Path(__file__).parents[3] / "goldens"
CHECKPOINTS = (
    "P1/ckpt_before",
    "P1/ckpt_after_poisson",
    "P1/ckpt_after_poisson_multinomial",
    "P2/ckpt_before",
    "R1/ckpt_before",
    "R1/ckpt_after_poisson_multinomial",
    "R2/ckpt_before",
)
AFTER = ("P1/ckpt_after_poisson", "P1/ckpt_after_poisson_multinomial", "R1/ckpt_after_poisson_multinomial")
CASES = ("P1", "P2", "R1", "R2")
# A model small enough for TensorFlow to trace in seconds, with no two widths alike.
SMALL = {
    "filter_list_seq": [6, 10],
    "filter_list_atac": [5],
    "num_heads": 5,
    "num_transformer_layers": 1,
    "num_motifs": 3,
    "motif_units_fc": 8,
    "output_length": 4,
    "final_output_length": 4,
    "max_seq_length": 4,
}


def arguments(case: str) -> dict[str, Any]:
    """The constructor arguments of a recorded case, `P1` or `P1/ckpt_before`."""
    return json.loads((GOLDENS / case.partition("/")[0] / "config.json").read_text())["config"]


def prefix(checkpoint: str) -> Path:
    return GOLDENS / checkpoint / "ckpt-1"


def kind(case: str) -> Kind:
    """What the checkpoints of a recorded case hold."""
    return RAMPAGE if case.startswith("R") else PRETRAIN


def build(case: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A freshly initialised model of a recorded case: an `EpiBERT`, or for R1 and R2 an `EpiBERTRampage`."""
    config = EpiBERTConfig(**{**arguments(case), **overrides})
    return (EpiBERTRampage(config) if kind(case) is RAMPAGE else EpiBERT(config)).to(dtype)


def copied(checkpoint: str, folder: Path) -> Path:
    """The prefix of a copy of a recorded checkpoint that a test may damage."""
    target = folder / "copy"
    shutil.copytree(GOLDENS / checkpoint, target)
    return target / "ckpt-1"


def fingerprint(model: Trunk) -> str:
    """Changes when anything in the model's state does."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


def without_suffix(arrays: Any) -> dict[str, np.ndarray]:
    return {key.removesuffix(SUFFIX): array for key, array in arrays.items()}
