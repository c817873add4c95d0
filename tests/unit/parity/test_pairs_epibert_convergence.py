"""The port's half of the convergence rung, on two short epochs: what it is fed, and that its hooks reach it."""

import json

import numpy as np
import pytest

from parity import ledger
from parity.convergence import Run, Side
from parity.pairs import epibert_convergence
from parity.pairs.epibert_convergence import train_port
from parity.pairs.epibert_faults import trained
from tests.unit.parity.short_runs import CONFIG, Start, fresh_start, short_epochs
from torch_impl import EpiBERT
from torch_impl.epibert_lightning import EpiBERTLightning
from weights.table import rows


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    yield from short_epochs(monkeypatch)


@pytest.fixture(scope="module")
def start() -> Start:
    return fresh_start(EpiBERT)


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
    monkeypatch.setattr(epibert_convergence, "describe", lambda _: iter(()))
    monkeypatch.setattr(epibert_convergence, "run_convergence", lambda *_, **__: pytest.fail("trained again"))
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
    monkeypatch.setattr(epibert_convergence, "describe", lambda _: iter(()))
    monkeypatch.setattr(epibert_convergence, "run_convergence", lambda *_, **__: ((), []))
    monkeypatch.setattr(epibert_convergence, "summary", lambda *_: {"content": "later", "passed": True})
    with pytest.raises(ValueError, match="changed during the repetitions"):
        epibert_convergence.converge()
