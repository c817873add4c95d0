"""What watching costs is measured on both models, every layer is compared, and memory is told apart."""

import pytest

from benchmarks import harness
from benchmarks.harness import harness_benchmark


def test_every_layer_is_compared_and_its_cost_measured():
    lines = []
    found = harness_benchmark("tiny", progress=lines.append)["ways"]["streamed"]
    assert found["comparisons"] > 200
    assert found["beyond_limit"] == 0
    assert found["seconds"] > 0
    assert found["cost"] == found["seconds"] / found["plain_seconds"] - 1
    assert found["largest"] < found["activations"]
    assert found["plain_peak"] <= found["peak"]
    assert [line.partition(":")[0] for line in lines] == ["streamed"]


def test_an_unknown_way_is_an_error():
    with pytest.raises(ValueError, match="unknown ways"):
        harness_benchmark("tiny", ways=("forgotten",))


@pytest.mark.parametrize(("cost", "status"), [(harness.LIMIT - 0.01, 0), (harness.LIMIT, 1), (float("nan"), 1)])
def test_watching_that_costs_more_than_the_limit_has_an_exit_status(monkeypatch, capsys, cost, status):
    monkeypatch.setattr(harness, "harness_benchmark", lambda *_, **__: {"ways": {"streamed": {"cost": cost}}})
    monkeypatch.setattr("sys.argv", ["harness"])
    assert harness.main() == status
    assert "streamed" in capsys.readouterr().out
