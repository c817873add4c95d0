"""Ranges of the options of both modules, and which examples of a batch count."""

import inspect
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torch_impl.checkpointing import TrainingError
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.rampage_lightning import EpiBERTRampageLightning
from torch_impl.training_settings import RANGES, check_settings, choose_tf32, repeated_examples


def options(module: type) -> dict[str, Any]:
    parameters = inspect.signature(module.__init__).parameters
    return {name: each.default for name, each in parameters.items() if name not in ("self", "config")}


def test_every_option_has_a_range_that_its_default_is_in():
    found = options(EpiBERTLightning) | options(EpiBERTRampageLightning)
    assert found.keys() == RANGES.keys()
    for module in (EpiBERTLightning, EpiBERTRampageLightning):
        check_settings(options(module))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *[(name, (-1, math.nan, math.inf, True, "1", 1e38, 1000.5)) for name in ("peak", "peak_rna")],
        *[(name, (-1, math.nan, math.inf, True, "1", 1e38, 1e-320)) for name in ("total_weight", "atac_scale")],
        ("weight_decay", (-1e-4, math.nan, None, 1e38)),
        ("warmup", (-1, 2.5, True)),
        ("decay", (0, -1, 1.5)),
        ("floor", (-0.1, 1.1, math.nan)),
        ("epsilon", (0, -1e-8, math.nan, 1e38, 1e-320)),
        ("global_clipnorm", (0, -1, math.nan, math.inf, 1e308, 1e-320)),
        ("loss_type", ("mse", None)),
        *[(name, (1, "yes", None)) for name, value in RANGES.items() if value[1] == "true or false"],
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_out_of_range_is_named(name, values):
    for value in values:
        with pytest.raises(TrainingError, match=f"^{name} must be .*, not {re.escape(repr(value))}$"):
            check_settings({name: value})


def test_a_zero_is_offered_where_it_is_taken():
    with pytest.raises(TrainingError, match=r"^weight_decay must be 0 or of a size from 1e-37 to 1e\+37, not 1e\+38$"):
        check_settings({"weight_decay": 1e38})
    with pytest.raises(TrainingError, match=r"^epsilon must be of a size from 1e-37 to 1e\+37, not 1e-320$"):
        check_settings({"epsilon": 1e-320})


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(TrainingError, match=r"peak must be .*; decay must be "):
        check_settings({"decay": 0, "peak": -1.0, "warmup": 0})


def test_no_clipping_is_a_choice_and_other_settings_are_not_ours():
    check_settings({"global_clipnorm": None, "of_a_derived_module": object()})
    with pytest.raises(TrainingError):
        check_settings({"global_clipnorm": 0.0})


def test_tf32_is_chosen_for_products_and_convolutions():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        choose_tf32(allowed)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_examples_that_are_repeated_are_the_last_ones():
    class Loader(list):
        sampler = SimpleNamespace(repeated=1)

    assert [repeated_examples(Loader("abc"), batch) for batch in range(3)] == [0, 0, 1]
    assert [repeated_examples(["a", "b"], batch) for batch in range(2)] == [0, 0]
    assert repeated_examples(None, 0) == 0
