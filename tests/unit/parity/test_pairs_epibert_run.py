import dataclasses

import pytest
import torch

from parity.ledger import Ledger
from parity.pairs import epibert_run
from parity.pairs.epibert_run import UsageError, run

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", DEVICES)
def test_the_port_computes_on_the_device_that_is_asked_for(device):
    seen = []

    def prepare(port):
        seen.append(port.performer.projection_matrix.device.type)
        seen.extend(parameter.device.type for parameter in port.parameters())

    result = run(reference="recorded", gates=["weights", "constants"], device=device, prepare_port=prepare)
    assert result.passed
    assert set(seen) == {device}


def test_several_processes_find_what_one_finds():
    one, two = (run(reference="recorded", gates=["weights", "constants"], jobs=jobs) for jobs in (1, 2))
    assert two.environment["processes"] == 2
    assert "processes" not in one.environment
    assert all(gate.comparisons for gate in one.gates.values() if gate.name in ("weights", "constants"))
    for part in dataclasses.fields(one):
        if part.name not in ("environment", "seconds"):
            assert getattr(two, part.name) == getattr(one, part.name), part.name


def test_an_unknown_device_is_named():
    with pytest.raises(UsageError, match="'abacus'"):
        run(reference="recorded", gates=["weights"], device="abacus")


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device"):
        run(reference="recorded", gates=["weights"], device="cuda")


def test_convergence_is_not_for_another_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="leave --device out"):
        run(gates=["convergence"], device="cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_what_the_processor_computed_is_entered_and_the_rest_is_named(monkeypatch, tmp_path, device):
    """The moves themselves need a GPU; everything around them does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
    jobs = []

    def do(job, unit, prepare_port, training, say):
        jobs.append(job.device)
        return epibert_run.Findings(configuration={"P1": {"output_length": 64, "final_output_length": 60}})

    monkeypatch.setattr(epibert_run._Job, "_do", do)
    ledger = Ledger(tmp_path / "ledger")
    result = run(gates=["weights"], device=device, ledger=ledger)
    assert set(jobs) == {device}
    assert ledger.path.exists() is (device == "cpu")
    left_out = [row for row in result.not_compared if row.side == "cuda"]
    assert len(left_out) == (device == "cuda")
    assert result.environment.get("device") == ("a device" if device == "cuda" else None)


def test_products_of_a_device_are_not_rounded_to_tf32():
    def settings():
        return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.get_float32_matmul_precision()

    kept = settings()
    with epibert_run._exact_products("cuda"):
        assert settings() == (False, True, "highest")
    assert settings() == kept
    with epibert_run._exact_products("cpu"):
        assert settings() == kept
