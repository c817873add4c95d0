"""What watching costs is measured on both models, every layer is compared, and memory is told apart."""

import pytest

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
