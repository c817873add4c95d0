"""Shapes and types in the port's signatures are checked while tests run, and not otherwise."""

import subprocess
import sys

import jaxtyping
import pytest
import torch

from tests.unit.sources import ROOT
from torch_impl import EpiBERT, EpiBERTConfig


@pytest.mark.parametrize(
    "shapes",
    [
        [(8192, 4), (1, 2048, 1), (1, 1, 693)],  # no batch
        [(1, 4, 8192), (1, 2048, 1), (1, 1, 693)],  # channels first
        [(2, 8192, 4), (1, 2048, 1), (1, 1, 693)],  # two batch sizes
        [(1, 8192, 4), (1, 2048, 1), (1, 693)],  # motifs without their axis
    ],
)
def test_a_wrong_shape_is_refused_by_name(shapes):
    forward = EpiBERT.forward
    with pytest.raises(jaxtyping.TypeCheckError):
        forward(torch.nn.Identity(), *(torch.zeros(shape) for shape in shapes))  # type: ignore[arg-type]  on purpose


def test_right_shapes_get_past_the_check():
    with pytest.raises(AttributeError, match="encode"):  # the first thing that a real forward looks at
        EpiBERT.forward(torch.nn.Identity(), torch.zeros(1, 8192, 4), torch.zeros(1, 2048, 1), torch.zeros(1, 1, 693))  # type: ignore[arg-type]


def test_a_wrong_type_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        EpiBERTConfig(num_heads="eight")  # type: ignore[arg-type]  on purpose


def test_an_integer_passes_for_a_float():
    assert EpiBERTConfig(dropout_rate=0).dropout_rate == 0


def test_users_do_not_pay_for_the_checks():
    code = "import sys, torch_impl; print('beartype' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
