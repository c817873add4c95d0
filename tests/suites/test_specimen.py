"""A wild specimen: every mistake of a published port in one model, all named in one run."""

import pytest

from parity.pairs import epibert_specimen as specimen


@pytest.fixture(scope="module")
def examined(tensorflow):
    return specimen.examine()


@pytest.mark.slow
def test_every_planted_mistake_is_named_wherever_it_is(examined):
    findings, _ = specimen.find(*examined)
    assert len(findings) == len(specimen.PLANTED) == 13
    assert {found.planted.name: found.unnamed for found in findings} == {
        planted.name: () for planted in specimen.PLANTED
    }
    assert all({row.gate for row in found.rows} == set(found.planted.named) for found in findings)


@pytest.mark.slow
def test_nothing_is_named_that_was_not_planted(examined):
    _, unexplained = specimen.find(*examined)
    assert unexplained == ()


@pytest.mark.slow
def test_layers_that_are_right_are_compared_and_pass(examined):
    result, _ = examined
    isolated = [row for row in result.comparisons if row.gate == "layers" and row.precision == "float64"]
    for layer in ("stem_conv", "stem_pool_atac", "performer.norm", "performer.layers.1.attention.query", "crop_final"):
        rows = [row for row in isolated if row.layer == layer and row.reading == "isolated"]
        assert rows, layer
        assert {row.status for row in rows} == {"pass"}, layer


@pytest.mark.slow
def test_a_mistake_that_is_not_there_is_not_found(examined):
    """What the search finds is what failed: without the failures it finds nothing."""
    result, config = examined
    kept = {
        name: gate for name, gate in result.gates.items() if name not in ("weights", "layers", "losses", "optimizer")
    }
    findings, _ = specimen.find(type(result)(**{**vars(result), "gates": kept}), config)
    assert all(found.unnamed and not found.rows for found in findings)
