"""The port's half of the convergence rung, on two short epochs: what it is fed, and that its hooks reach it."""

import json

import numpy as np
import pytest
import torch

from parity import ledger
from parity.convergence import Run, Side
from parity.pairs import epibert_convergence
from parity.pairs.epibert_convergence import ARGUMENTS, Constants, Weights, train_port
from parity.pairs.epibert_faults import trained
from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl.epibert_lightning import EpiBERTLightning
from weights.table import rows

CONFIG = EpiBERTConfig(**ARGUMENTS)
Start = tuple[Weights, Constants]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(epibert_convergence, "RECIPE", epibert_convergence.Recipe(epochs=2, warmup=1))
    monkeypatch.setattr(epibert_convergence, "TRAINING_EXAMPLES", 32)
    monkeypatch.setattr(epibert_convergence, "VALIDATION_EXAMPLES", 8)
    epibert_convergence.examples.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the rung; for tensors this small, a second one is waited for
    yield
    torch.set_num_threads(threads)
    epibert_convergence.examples.cache_clear()


@pytest.fixture(scope="module")
def start() -> Start:
    """Weights and constants of a fresh model, as the reference's process would send them."""
    torch.manual_seed(0)
    model = EpiBERT(CONFIG)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stored = {
        row.path: row.layout.to_stored(
            state[row.name], row.layout.stored_shape(state[row.name].shape, CONFIG.num_heads)
        ).copy()
        for row in rows(CONFIG)
    }
    table = model.performer.rotary_table
    assert table is not None
    return stored, (model.performer.projection_matrix.numpy().copy(), table.table.numpy().copy())


@pytest.fixture
def right(start) -> Run:
    """A run without a fault, trained once."""
    if not RIGHT:
        RIGHT.append(train_port(3, *start))
    return RIGHT[0]


RIGHT: list[Run] = []


def test_a_run_has_a_score_before_training_and_after_each_epoch(right):
    assert (right.side, right.seed, len(right.losses), len(right.pearsons), right.error) == (Side.PORT, 3, 3, 3, "")
    assert len(set(right.losses)) == 3


def test_a_seed_is_the_same_run_again_and_another_is_another(start, right):
    assert train_port(3, *start) == right
    assert train_port(4, *start) != right


def test_every_step_gets_the_batch_that_the_reference_gets(start):
    seen: list[np.ndarray] = []

    def watch(module: EpiBERTLightning) -> None:
        step = module.training_step

        def watched(batch, batch_idx):
            seen.append(batch[4].numpy().copy())
            return step(batch, batch_idx)

        module.training_step = watched

    train_port(3, *start, port_training=watch)
    training = epibert_convergence.examples()[0]
    expected = [training.target[indices] for epoch in (0, 1) for indices in epibert_convergence.order(3, epoch)]
    assert len(seen) == len(expected) == 4
    assert all(np.array_equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert not np.array_equal(seen[0], seen[2])


def test_training_starts_from_the_weights_that_were_sent(start):
    found: dict[str, np.ndarray] = {}

    def look(model: EpiBERT) -> None:
        found.update({name: tensor.numpy().copy() for name, tensor in model.state_dict().items()})

    train_port(3, *start, prepare_port=look)
    stored, (projection, _) = start
    for row in rows(CONFIG):
        assert np.array_equal(found[row.name], row.layout.to_port(stored[row.path]))
    assert np.array_equal(found["performer.projection_matrix"], projection)


@pytest.mark.parametrize(
    "fault",
    [*trained.OF_THE_MODEL, *trained.OF_THE_TRAINING],
    ids=lambda fault: fault.__name__,
)
def test_every_fault_reaches_the_training(start, right, fault):
    hook = "prepare_port" if fault in trained.OF_THE_MODEL else "port_training"
    wrong = train_port(3, *start, **{hook: fault})
    assert wrong.losses[0] == right.losses[0]
    assert wrong.losses != right.losses


def entry(content: str, *, passed: bool) -> str:
    return json.dumps({"content": content, "first seed": 1, "pairs": 24, "passed": passed}) + "\n"


def test_repetitions_are_counted_only_if_they_are_of_the_present_content(tmp_path, monkeypatch):
    monkeypatch.setattr(epibert_convergence, "describe", lambda: iter(()))
    monkeypatch.setattr(epibert_convergence, "run_convergence", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(ledger, "fingerprint", lambda _: "present")
    file = tmp_path / "repetitions.jsonl"
    file.write_text(entry("present", passed=True))
    assert epibert_convergence.converge(out=str(file)) == 0
    file.write_text(entry("present", passed=False))
    assert epibert_convergence.converge(out=str(file)) == 1
    file.write_text(entry("present", passed=True) + entry("other", passed=True))
    with pytest.raises(ValueError, match=r"repetitions\.jsonl holds repetitions of other sources"):
        epibert_convergence.converge(out=str(file))


def test_sources_that_change_during_a_repetition_end_it(monkeypatch):
    monkeypatch.setattr(epibert_convergence, "describe", lambda: iter(()))
    monkeypatch.setattr(epibert_convergence, "run_convergence", lambda *_: ((), []))
    monkeypatch.setattr(epibert_convergence, "summary", lambda *_: {"content": "later", "passed": True})
    with pytest.raises(ValueError, match="changed during the repetitions"):
        epibert_convergence.converge()
