"""What the tests of both convergence experiments have in common: two short epochs, and where their runs start."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from parity.pairs import epibert_convergence
from parity.pairs.epibert_convergence import ARGUMENTS, Constants, Weights
from torch_impl import EpiBERTConfig
from weights.table import kind_of, rows

CONFIG = EpiBERTConfig(**ARGUMENTS)
Start = tuple[Weights, Constants]


def short_epochs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a fixture: two epochs of two steps, and eight examples to validate."""
    monkeypatch.setattr(epibert_convergence, "RECIPE", epibert_convergence.Recipe(epochs=2, warmup=1))
    monkeypatch.setattr(epibert_convergence, "TRAINING_EXAMPLES", 32)
    monkeypatch.setattr(epibert_convergence, "VALIDATION_EXAMPLES", 8)
    epibert_convergence.examples.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the rung; for tensors this small, a second one is waited for
    yield
    torch.set_num_threads(threads)
    epibert_convergence.examples.cache_clear()


def fresh_start(kind: Any) -> Start:
    """Weights and constants of a fresh model, as the reference's process would send them."""
    torch.manual_seed(0)
    model = kind(CONFIG)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stored = {
        row.path: row.layout.to_stored(
            state[row.name], row.layout.stored_shape(state[row.name].shape, CONFIG.num_heads)
        ).copy()
        for row in rows(CONFIG, kind_of(model).table)
    }
    table = model.performer.rotary_table
    assert table is not None
    return stored, (model.performer.projection_matrix.numpy().copy(), table.table.numpy().copy())
