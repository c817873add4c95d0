"""Two processes with a part of the batch each compute what one computes with all of it."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.assertions import assert_same
from tests.unit.sources import ROOT
from tests.unit.torch_impl.two_processes import PARTS, STEPS, correlate, genes, normalize, train


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> list[dict[str, Any]]:
    """The results of both, from one run."""
    folder = tmp_path_factory.mktemp("processes")
    script, rendezvous = "tests.unit.torch_impl.two_processes", folder / "rendezvous"
    running = [
        subprocess.Popen(
            [sys.executable, "-m", script, str(rank), str(rendezvous), str(folder / f"{rank}.pt")],
            cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Train steps of one process with the joint batch."""
    return train(PARTS, None)


def test_synchronised_statistics_are_those_of_the_joint_batch(processes):
    joint = normalize(0, 5, torch.float64)
    found = [process["normalize torch.float64"] for process in processes]
    for name in ("output", "gradient"):
        assert_same(torch.cat([each[name] for each in found]), joint[name], what=name)
    for name in ("mean", "variance"):
        for each in found:
            assert_same(each[name], joint[name], what=name)
    for name in ("weight gradient", "bias gradient"):
        assert_same(sum(each[name] for each in found), joint[name], what=name)


def test_narrow_inputs_lose_nothing_to_the_synchronisation(processes):
    """Sums travel in float64: bfloat16 outputs are the same to the bit, float32 ones as good."""
    for dtype, row in ((torch.float32, "float32_only"), (torch.bfloat16, "exact")):
        joint = normalize(0, 5, dtype)
        found = [process[f"normalize {dtype}"] for process in processes]
        assert_same(torch.cat([each["output"] for each in found]), joint["output"], row)
        assert_same(found[0]["mean"], joint["mean"], "float32_only")
        assert_same(found[0]["variance"], joint["variance"], "float32_only")


def test_statistics_of_one_process_alone_on_demand(processes):
    for (begin, end), process in zip(((0, 2), (2, 5)), processes, strict=True):
        for name, expected in normalize(begin, end, torch.float64).items():
            assert_same(process["alone"][name], expected, what=name)


def test_metrics_are_those_of_all_batches(processes):
    joint = correlate(0, 5)
    for process in processes:
        assert process["correlate"].keys() == joint.keys()
        for name, expected in joint.items():
            assert_same(process["correlate"][name], expected, what=name)


@pytest.mark.parametrize("seen", ["genes", "genes of one"])
def test_correlations_across_genes_are_those_of_all_examples_whoever_saw_them(processes, seen):
    """Also when one process saw none: it takes part in the synchronisation, or the other would wait forever."""
    joint = genes(0, 12)
    assert (int(joint["cells"]), int(joint["genes"])) == (3, 4)
    for process in processes:
        assert process[seen].keys() == joint.keys()
        for name, expected in joint.items():
            assert_same(process[seen][name].double(), expected.double(), what=name)


def test_the_loss_is_the_mean_of_the_means_of_the_replicas(processes, alone):
    """As in the original: not the mean over all masked bins, of which the processes have different numbers."""
    assert len(alone["losses"]) == STEPS
    for step, expected in enumerate(alone["losses"]):
        found = [process["train"]["losses"][step] for process in processes]
        assert found[0] != found[1]
        assert_same((found[0] + found[1]) / 2, expected)


@pytest.mark.parametrize("what", ["gradients", "state", "slots"])
def test_training_the_model_in_two_processes_is_training_it_in_one(processes, alone, what):
    """Gradients before clipping, then weights, statistics and moments after all steps."""
    first, second = (process["train"][what] for process in processes)
    assert first.keys() == second.keys() == alone[what].keys()
    largest = max(value.abs().max() for name, value in alone[what].items() if not name.endswith("step"))
    for name, expected in alone[what].items():
        assert torch.equal(first[name], second[name]), name
        # Gradients that are zero in theory, or what is left of much larger terms, are related to all others, and so
        # are their moments and what has moved by them alone.
        share = 1e-10 if name.endswith("exp_avg_sq") else 1e-5
        if expected.abs().max() < share * largest:
            assert_same((first[name] - expected) / largest + 1, torch.ones_like(expected), what=name)
        else:
            assert_same(first[name], expected, what=name)


def test_metrics_within_training(processes, alone):
    for process in processes:
        assert_same(process["train"]["metric"], alone["metric"])
