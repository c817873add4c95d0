"""Rung 4: every block fed with the reference's inputs, its own layers inside."""

import pytest

from parity import Reading
from parity.pairs import epibert
from parity.pairs.epibert_run import load_case
from tests.suites.rungs import CASES, MODES, PRECISIONS, assert_all_pass, assert_gate, layers_read, pick


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "blocks")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_block_of_the_living_reference(ladder, goldens, case, precision, mode):
    rows = pick(ladder, "blocks", case=f"{case} live", precision=precision, mode=mode)
    config, _ = load_case(goldens / case)
    blocks = {pair.reference for pair in epibert.layer_map(config) if pair.block}
    assert layers_read(rows, Reading.BLOCK) == blocks
    assert len(blocks) == 3 + len(config.filter_list_seq) + len(config.filter_list_atac) + config.num_transformer_layers
    assert_all_pass(rows)
