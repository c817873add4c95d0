"""Who decides what: distributions, independence, and what a damaged record of draws is worth."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from tests.records import synthetic_record
from torch_impl.data.draws import Draws, OwnDraws, TensorFlowDraws, same_draws
from torch_impl.data.examples import ExampleConfig

CONFIG = ExampleConfig.tiny(num_motifs=8)
RECORD = synthetic_record(CONFIG, 0)


def drawn(count: int, **changes: object) -> list[Draws]:
    config = dataclasses.replace(CONFIG, **changes)
    return [OwnDraws(1).draw(RECORD, config, index=index) for index in range(count)]


def test_own_draws_depend_on_seed_epoch_and_record_and_on_nothing_else():
    source = OwnDraws(1)
    first = source.draw(RECORD, CONFIG, epoch=2, index=3)
    source.draw(RECORD, CONFIG, epoch=0, index=0)
    assert same_draws(source.draw(RECORD, CONFIG, epoch=2, index=3), first)
    for other in (
        OwnDraws(2).draw(RECORD, CONFIG, epoch=2, index=3),
        source.draw(RECORD, CONFIG, epoch=3, index=3),
        source.draw(RECORD, CONFIG, epoch=2, index=4),
    ):
        assert not np.array_equal(other.atac_noise, first.atac_noise)


def test_own_draws_are_the_same_in_whatever_order_and_process():
    records = range(6)
    forward = [OwnDraws(1).draw(RECORD, CONFIG, epoch=1, index=index) for index in records]
    travelled = pickle.loads(pickle.dumps(OwnDraws(1)))  # noqa: S301  as to a worker
    backward = [travelled.draw(RECORD, CONFIG, epoch=1, index=index) for index in reversed(records)]
    assert all(same_draws(one, other) for one, other in zip(forward, reversed(backward), strict=True))


def test_own_draws_share_no_numbers_where_seed_epoch_and_record_change_places():
    noises = {
        OwnDraws(seed).draw(RECORD, CONFIG, epoch=epoch, index=index).atac_noise.tobytes()
        for seed, epoch, index in (
            (0, 0, 1),
            (0, 1, 0),
            (1, 0, 0),
            (2**32, 0, 0),
            (0, 2**32, 0),
            (0, 0, 2**32),
            (0, 0, 0),
        )
    }
    assert len(noises) == 7


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_is_no_key_is_an_error(seed):
    with pytest.raises(ValueError, match="the seed of draws must be from 0"):
        OwnDraws(seed)


def test_own_draws_have_the_distributions_of_the_original():
    # Five standard deviations of each mean over so many draws.
    count = 400
    found = drawn(count, atac_corrupt_rate=4)
    regions = count * CONFIG.regions
    kept = np.mean([each.kept_regions for each in found if not each.boost])
    assert abs(kept - 0.85) < 5 * np.sqrt(0.85 * 0.15 / (0.75 * regions))
    boosted = np.mean([each.kept_regions for each in found if each.boost])
    assert abs(boosted - 0.55) < 5 * np.sqrt(0.55 * 0.45 / (0.25 * regions))
    assert abs(np.mean([each.boost for each in found]) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / count)
    assert abs(np.mean([each.reverse_complement for each in found]) - 0.5) < 5 * np.sqrt(0.25 / count)
    assert {each.shift for each in found} == set(range(CONFIG.max_shift))
    assert len({each.peak for each in found}) == int((RECORD.peaks_center > 0).sum())
    noise = np.concatenate([each.atac_noise.ravel() for each in found])
    assert abs(noise.mean() - 1e-4) < 5e-4 / np.sqrt(noise.size)
    assert abs(noise.std() / 1e-4 - 1) < 5 / np.sqrt(2 * noise.size)


def test_validation_never_boosts():
    assert not any(each.boost for each in drawn(50, training=False, atac_corrupt_rate=1))
    assert all(each.boost for each in drawn(50, atac_corrupt_rate=1))


def test_tensorflows_draws_go_on_from_record_to_record():
    source = TensorFlowDraws(3)
    one, two = source.draw(RECORD, CONFIG), source.draw(RECORD, CONFIG)
    assert not same_draws(one, two)
    again = TensorFlowDraws(3)
    assert same_draws(again.draw(RECORD, CONFIG), one)
    assert same_draws(again.draw(RECORD, CONFIG), two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": 4}, "shift must be from 0 to 3"),
        ({"peak": 60}, "peak must be from 0 to 59"),
        ({"kept_regions": np.ones(4, bool)}, r"kept_regions must be bool_? of shape \(5,\), not bool of shape \(4,\)"),
        ({"kept_regions": np.ones(5, np.uint8)}, "kept_regions must be bool"),
        ({"atac_noise": np.zeros((2047, 1), np.float32)}, "atac_noise must be floating of shape"),
        ({"motif_noise": np.zeros(9, np.float32)}, "motif_noise must be floating of shape"),
        ({"block_order": np.arange(4)}, "block_order is not part of this configuration"),
        ({"unmasked": np.array([0])}, "unmasked must be integer of shape"),
    ],
)
def test_draws_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(drawn(1)[0], **changes).check(CONFIG)


def test_ablations_that_do_not_fit_are_named():
    config = dataclasses.replace(CONFIG, mask_noise=True, use_atac=False, use_seq=False, training=False)
    found = OwnDraws(1).draw(RECORD, config)
    found.check(config)
    for changes, message in (
        ({"block_order": None}, "block_order is missing"),
        ({"block_order": np.array([0, 1, 2, 2])}, "block_order must hold each number from 0 to 3 once"),
        ({"atac_replacement": None}, "atac_replacement is missing"),
        ({"sequence_replacement": np.full(CONFIG.input_length, 4, np.uint8)}, "numbers from 0 to 3"),
        ({"boost": True}, "boost is drawn in training only"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(found, **changes).check(config)


def test_unmasked_bins_that_are_masked_or_named_twice_are_an_error():
    found = drawn(1)[0]
    assert len(found.unmasked) > 1
    assert found.peak is not None
    for bins in (np.full_like(found.unmasked, found.unmasked[0]), np.r_[found.peak, found.unmasked[1:]]):
        with pytest.raises(ValueError, match="unmasked"):
            dataclasses.replace(found, unmasked=bins).check(CONFIG)


@pytest.mark.parametrize("text", ["{}", "[]", '{"shift": 0}', "{", '{"shift": {"dtype": "float32"}}'])
def test_a_text_that_is_no_record_of_draws_is_an_error(text):
    with pytest.raises(ValueError, match=r"draws|Expecting"):
        Draws.from_json(text)


def test_json_keeps_every_bit_and_the_types():
    strange = np.array([np.nan, -0.0, np.inf, 1e-45, np.float32(0.1)], np.float32)
    one = dataclasses.replace(drawn(1)[0], motif_noise=strange, peak=None)
    again = Draws.from_json(one.to_json())
    assert again.motif_noise.tobytes() == strange.tobytes()
    assert again.motif_noise.dtype == np.float32
    assert again.peak is None
    assert again.motif_noise.flags.writeable
    assert same_draws(again, one)


def test_draws_that_differ_in_one_bit_or_a_type_are_not_the_same():
    one = drawn(1)[0]
    moved = one.atac_noise.copy()
    moved[7] = np.nextafter(moved[7], np.float32(1))
    for other in (
        dataclasses.replace(one, atac_noise=moved),
        dataclasses.replace(one, kept_regions=one.kept_regions.astype(np.uint8)),
        dataclasses.replace(one, motif_noise=one.motif_noise[None]),
        dataclasses.replace(one, shift=one.shift + 1),
    ):
        assert not same_draws(one, other)


def test_numbers_that_are_cut_short_are_an_error():
    fields = json.loads(drawn(1)[0].to_json())
    fields["motif_noise"]["base64"] = fields["motif_noise"]["base64"][:-4]
    with pytest.raises(ValueError, match=r"reshape|buffer size"):
        Draws.from_json(json.dumps(fields))
