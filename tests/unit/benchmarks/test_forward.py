import functools
import json

import numpy as np
import pytest

from benchmarks import forward, roofline
from benchmarks.forward import describe, distance, forward_benchmark

REFERENCE = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


def test_both_models_are_measured_and_do_the_same_work(tmp_path, monkeypatch):
    # Of the machine, one look instead of the best of several.
    monkeypatch.setattr(roofline, "_best", functools.partial(roofline._best, repeats=1))
    lines = []
    out = tmp_path / "new" / "forward.json"
    result = forward_benchmark("tiny", 1, out, precisions=["bfloat16"], progress=lines.append)
    assert json.loads(out.read_text()) == result
    expected = {
        "config": "tiny",
        "kind": "forward",
        "model": "pretrain",
        "batch": 1,
        "threads": 2,
        "repeats": 1,
        "rounds": 1,
    }
    assert expected.items() <= result["settings"].items()
    assert {"processor", "cores", "versions"} <= result["environment"].keys()
    summary = result["precisions"]["bfloat16"]
    for way in ("reference_eager", "reference_graph", "port_eager"):
        assert all(summary[way][quantity] > 0 for quantity in ("seconds", "cpu_seconds", "peak_bytes"))
    assert all(np.isfinite(value) and value > 0 for value in summary["ratio"].values())
    assert summary["distance"].keys() == {"reference_eager", "reference_graph", "port_eager"}
    assert [(run["task"], run["way"]) for run in result["runs"]] == [
        ("reference", "eager"),
        ("port", "eager"),
        ("reference", "graph"),
    ]
    assert len(lines) == 3
    assert "bfloat16: reference / port: time" in describe(result)
    rate = result["flops"] / summary["port_eager"]["seconds"] / result["machine"]["bfloat16"]["products"]
    assert summary["port_eager"]["share_of_products"] == pytest.approx(rate)
    assert 0 < summary["port_eager"]["share_of_memory"] < 1


def test_the_port_alone_has_no_ratios(tmp_path):
    summary = forward._summary("float32", [run("port", "eager", [2.0], 500)], tmp_path, "training")
    assert (summary["ratio"], summary["port_eager"]["seconds"]) == ({}, 2.0)
    assert summary["port_is_no_worse"] is None
    settings = {"kind": "training", "model": "pretrain", "config": "full", "threads": 2, "batch": 1}
    text = describe({"settings": settings, "precisions": {"float32": summary}})
    assert text.endswith("float32, port eager: 2.0 s, 0.0 GB")


@pytest.mark.slow
def test_a_training_step_of_the_other_model_is_measured_with_its_batch():
    options = {"kind": "training", "model": "rampage", "batch": 2, "checkpointed": True, "apart": True}
    result = forward_benchmark("tiny", 1, precisions=["float32"], **options)
    assert {"kind": "training", "model": "rampage", "batch": 2, "apart": True}.items() <= result["settings"].items()
    summary = result["precisions"]["float32"]
    assert summary["distance"].keys() == {"reference_graph", "port_eager", "port_checkpointed", "port_selective"}
    assert summary["distance"]["port_eager"] < forward.SAME_LOSS
    assert summary["fastest_reference"] == "reference_graph"
    text = describe(result)
    assert "training, rampage, tiny size, 2 threads, batch 2" in text
    assert "float32, port checkpointed: time" in text
    assert "float32, port selective: time" in text


@pytest.mark.parametrize("bad", [2.0, np.nan])
def test_steps_with_other_losses_are_not_compared(tmp_path, bad):
    np.save(tmp_path / "reference_graph_float32.npy", np.float32(1.0))
    np.save(tmp_path / "port_eager_float32.npy", np.float32(bad))
    runs = [run("reference", "graph", [1.0], 500), run("port", "eager", [1.0], 500)]
    with pytest.raises(RuntimeError, match="port_eager in float32 differs from the reference by"):
        forward._summary("float32", runs, tmp_path, "training")


def run(task: str, way: str, seconds: list[float], peak: int) -> dict[str, object]:
    measured: dict[str, object] = {
        "seconds": seconds,
        "cpu_seconds": seconds,
        "peak_bytes": peak,
        "resident_bytes": 100,
    }
    return {"task": task, "way": way, "precision": "float32", **measured}


@pytest.fixture
def outputs(tmp_path):
    for name in ("reference_eager", "reference_graph", "port_eager"):
        np.save(tmp_path / f"{name}_float32.npy", REFERENCE)
    return tmp_path


def test_the_port_is_held_turn_by_turn_against_the_better_of_the_references_ways(outputs):
    runs = [
        run("reference", "eager", [9.0, 8.0, 40.0], 900),
        run("reference", "graph", [6.0, 7.0, 20.0], 1300),
        run("port", "eager", [3.0, 4.0, 10.0], 500),
    ]
    summary = forward._summary("float32", runs, outputs)
    assert summary["reference_eager"]["seconds"] == 9
    assert summary["fastest_reference"] == "reference_graph"
    assert summary["ratios"]["reference_eager"]["seconds"] == 3  # of 9/3, 8/4 and 40/10, not 9/4
    assert summary["ratio"] == {"seconds": 2, "cpu_seconds": 2, "peak_bytes": 1.8, "forward_bytes": 2}
    assert summary["port_is_no_worse"]


@pytest.mark.parametrize(("seconds", "peak"), [(7.0, 500), (2.0, 901)])
def test_a_slower_or_larger_port_is_worse(outputs, seconds, peak):
    runs = [
        run("reference", "eager", [9.0], 900),
        run("reference", "graph", [6.0], 1300),
        run("port", "eager", [seconds], peak),
    ]
    assert not forward._summary("float32", runs, outputs)["port_is_no_worse"]


@pytest.mark.parametrize("bad", [1.0, np.nan])
def test_models_that_compute_different_functions_are_not_compared(outputs, bad):
    np.save(outputs / "port_eager_float32.npy", REFERENCE * np.float32(1.01) if bad == 1 else REFERENCE * bad)
    runs = [run(task, way, [1.0], 500) for task, way in (("reference", "eager"), ("reference", "graph"))]
    with pytest.raises(RuntimeError, match="port_eager in float32 differs from the reference by"):
        forward._summary("float32", [*runs, run("port", "eager", [1.0], 500)], outputs)


def test_distance_does_not_credit_what_all_positions_share():
    assert distance(REFERENCE, REFERENCE) == 0
    assert 0.11 < distance(REFERENCE + 1000.125, REFERENCE + 1000) < 0.12  # 0.25 / sqrt(5)
    assert np.isnan(distance(np.array([np.nan, 2.0, 3.0, 4.0]), REFERENCE))


def test_a_failing_process_tells_why(tmp_path):
    with pytest.raises(RuntimeError, match=r"'task': 'port'.* failed with status 1(?s:.*)config\.json"):
        forward.Worker({"task": "port", "precision": "float32", "way": "eager", "threads": 1}, tmp_path, 1)


@pytest.mark.parametrize("arguments", [{"repeats": 0}, {"rounds": 0}])
def test_at_least_one_forward_is_timed(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        forward_benchmark("tiny", **arguments)


def test_peak_memory_is_that_of_this_process():
    assert 0 < forward._memory("VmRSS") <= forward._memory("VmHWM")
    with pytest.raises(RuntimeError, match="reports no Unheard"):
        forward._memory("Unheard")
