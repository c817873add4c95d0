import json
from typing import Any

import pytest

from benchmarks import command
from benchmarks.command import run_benchmarks
from benchmarks.ratios import data_ratios, name_of


def result(kind: str, size: str, ratio: float, batch: int = 1, model: str = "pretrain") -> dict[str, Any]:
    settings = {"kind": kind, "model": model, "config": size, "batch": batch, "threads": 2}
    return {
        "benchmark": kind,
        "settings": settings,
        "precisions": {"float32": {"ratio": {"seconds": ratio, "peak_bytes": 2.0}}},
    }


@pytest.fixture
def measurements(monkeypatch) -> list[tuple[Any, ...]]:
    made: list[tuple[Any, ...]] = []

    def measure(size: str, repeats: int, *, kind: str, model: str, batch: int, **_: Any) -> dict[str, Any]:
        made.append((kind, size, model, batch))
        return result(kind, size, 1.2, batch, model)

    monkeypatch.setattr(command, "forward_benchmark", measure)
    monkeypatch.setattr(command, "describe", lambda found: found["benchmark"])
    return made


def committed(monkeypatch, seconds: float) -> None:
    name = name_of(result("forward", "tiny", 1.0)["settings"], "float32")
    monkeypatch.setattr(command, "read_committed", lambda: {name: {"seconds": seconds, "peak_bytes": 2.0}})


def test_what_is_selected_is_measured_and_written(monkeypatch, measurements, tmp_path):
    committed(monkeypatch, 1.2)
    options = {"parts": ("forward", "training"), "models": ("pretrain", "rampage"), "batches": (1, 2)}
    assert run_benchmarks("tiny", 1, 1, tmp_path / "bench.json", **options) == 0
    assert len(measurements) == 8
    written = json.loads((tmp_path / "bench.json").read_text())
    assert len(written["ratios"]) == len(written["forward"]) + len(written["training"]) == 8
    assert (tmp_path / "ratios.svg").is_file()


def test_training_at_full_size_is_measured_on_a_quarter_of_the_window(monkeypatch, measurements, tmp_path):
    committed(monkeypatch, 1.2)
    assert run_benchmarks("full", 1, 1, tmp_path / "bench.json", parts=("forward", "training")) == 0
    assert measurements == [("forward", "full", "pretrain", 1), ("training", "quarter", "pretrain", 1)]


def test_a_port_slower_than_committed_fails(monkeypatch, measurements, tmp_path, capsys):
    committed(monkeypatch, 1.2 * 1.5)
    assert run_benchmarks("tiny", 1, 1, tmp_path / "bench.json", parts=("forward",)) == 1
    assert "FAILED forward pretrain tiny float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "found", "status"),
    [
        ("harness", {"seconds": 70.0, "status": 0}, 0),
        ("harness", {"seconds": 70.0, "status": 1}, 1),
        ("lengths", {"lengths": [1, 2], "seconds": [1.0, 2.0], "exponent": 1.0, "linear": True}, 0),
        ("lengths", {"lengths": [1, 2], "seconds": [1.0, 4.0], "exponent": 2.0, "linear": False}, 1),
    ],
)
def test_parts_of_the_port_alone_have_limits_of_their_own(monkeypatch, part, found, status, tmp_path):
    monkeypatch.setitem(command.ALONE, part, lambda *_: found)
    assert run_benchmarks("full", 1, 1, tmp_path / "bench.json", parts=(part,)) == status
    assert json.loads((tmp_path / "bench.json").read_text()) == {part: found}


@pytest.mark.parametrize(("conversion", "status"), [(0.8, 0), (1.3, 1)])
def test_a_conversion_slower_than_committed_fails(monkeypatch, conversion, status, tmp_path):
    sides = {side: {"speed_ratio": 4.0, "memory_ratio": 0.5} for side in ("port", "port_workers")}
    settings = {"config": "full", "workers": {"port": 0, "port_workers": 2}}
    found = {"settings": settings, "loading": sides, "conversion": {"ratio": conversion}}
    monkeypatch.setitem(command.ALONE, "data", lambda *_: found)
    monkeypatch.setattr(command, "describe_data", lambda found: "data")
    monkeypatch.setattr(command, "read_committed", lambda: data_ratios(found | {"conversion": {"ratio": 0.8}}))
    assert run_benchmarks("full", 1, 1, tmp_path / "bench.json", parts=("data",)) == status
    assert (tmp_path / "ratios.svg").is_file()
