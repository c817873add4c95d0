"""Rung 3: every layer by itself, fed with the reference's inputs and its children's outputs."""

import itertools

import pytest

from parity import Reading
from parity.pairs import epibert
from parity.pairs.epibert_run import load_case
from parity.reference import read_goldens
from parity.second_look import place
from tests.suites.rungs import CASES, MODES, PRECISIONS, assert_all_pass, assert_gate, layers_read, pick


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "layers")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_layer_of_the_living_reference_in_isolation(ladder, goldens, case, precision, mode):
    rows = pick(ladder, "layers", case=f"{case} live", precision=precision, mode=mode)
    config, _ = load_case(goldens / case)
    called = {name.partition("@")[0] for name in layers_read(rows, Reading.ISOLATED)}
    assert called == {pair.reference for pair in epibert.layer_map(config)}
    assert_all_pass(rows)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_recorded_layer(ladder, goldens, case, precision):
    rows = [
        row for gate in ("layers", "blocks") for row in pick(ladder, gate, case=f"{case} recorded", precision=precision)
    ]
    recording = read_goldens(goldens / case / "forward.h5", name=case)
    recorded = {f"{path}@{call}" if call else path for path, call in recording.traces[precision].calls}
    assert layers_read(rows, Reading.ACCUMULATED) == recorded
    assert_all_pass(rows)


@pytest.mark.parametrize("case", CASES)
def test_batchnorm_statistics_after_a_training_pass(ladder, case):
    rows = pick(ladder, "layers", case=f"{case} live", reading=Reading.STATE)
    assert {row.quantity for row in rows} == {"running_mean", "running_var"}
    assert len(rows) == 2 * 11 * len(PRECISIONS)
    assert_all_pass(rows)


@pytest.mark.parametrize("case", CASES)
def test_no_two_comparisons_of_a_pass_are_of_one_place(ladder, case):
    """Or a ratio that chance failed could be judged by another's second look."""
    passes = itertools.product(("layers", "blocks", "model"), PRECISIONS[1:], MODES)
    for gate, precision, mode in passes:
        rows = pick(ladder, gate, case=f"{case} live", precision=precision, mode=mode)
        places = [place(row) for row in rows]
        assert len(set(places)) == len(places)
