"""Parts of an example: numbers worked out by hand, and what cannot be made into one."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import pytest

from tests.records import synthetic_record
from torch_impl.data.draws import OwnDraws, tensorflow_mask
from torch_impl.data.examples import (
    ExampleConfig,
    _widened,
    base_indices,
    bin_target,
    cropped,
    make_example,
    mask_atac,
    one_hot,
    read_motif_table,
    reverse_complement,
    scale_motifs,
    smooth_rna,
    soft_clip,
    visible_bins,
)
from torch_impl.data.records import DataError

CONFIG = ExampleConfig.tiny(num_motifs=4)


def floats(values: list[Any]) -> np.ndarray:
    return np.array(values, np.float32)


def test_bases_in_either_case_and_nothing_else():
    assert base_indices(b"ACGTacgtNRYn-").tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4, 4, 4, 4]
    np.testing.assert_array_equal(one_hot(np.array([1, 4, 3], np.uint8)), [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])


def test_recorded_one_hot_strings(goldens):
    with h5py.File(goldens / "functions.h5") as file:
        samples = list(file["one_hot"].values())
        assert samples
        for sample in samples:
            text = sample.attrs["string"]
            letters = text if isinstance(text, bytes) else str(text).encode("latin-1")
            np.testing.assert_array_equal(one_hot(base_indices(letters)), sample[()])


def recorded_masks(goldens) -> Iterator[tuple[ExampleConfig, Any]]:
    """Every recorded call of the original's function for masks, each with some twenty seeds."""
    with h5py.File(goldens / "functions.h5") as file:
        for size in file["mask_ATAC_profile"].values():
            for peaks in size.values():
                for sample in peaks.values():
                    sizes = ("output_length_ATAC", "output_length", "crop_size", "output_res", "mask_size")
                    settings: dict[str, Any] = {name: int(sample.attrs[name]) for name in sizes}
                    length = settings["output_length"] * settings["output_res"]
                    rate = float(sample.attrs["atac_mask_dropout"])
                    yield ExampleConfig(input_length=length, atac_mask_dropout=rate, **settings), sample


def test_recorded_masks_come_from_their_draws(goldens):
    compared = 0
    for config, sample in recorded_masks(goldens):
        candidates, draws = np.flatnonzero(sample["peaks_c_crop"][()] > 0), sample["draws"]
        for row, first in enumerate(draws["first_peak_of_shuffle"]):
            peak = int(candidates[first]) if len(candidates) else None
            visible = visible_bins(peak, draws["keep"][row].astype(bool), config)
            np.testing.assert_array_equal(visible, sample["mask_at_bins"][row])
            np.testing.assert_array_equal(~cropped(visible, config), sample["mask_store"][row])
            compared += 1
    assert compared == 696


@pytest.mark.parametrize(
    ("fault", "shown"),
    [("", False), ("seed", True), ("boost", True), ("peak", True)],
    ids=["none", "seed", "boost", "peak"],
)
def test_recorded_masks_come_from_their_seeds(goldens, fault, shown):
    differing = 0
    for config, sample in recorded_masks(goldens):
        candidates = np.flatnonzero(sample["peaks_c_crop"][()] > 0)
        boost = int(sample.attrs["atac_mask_int"]) == 0
        for row, seed in enumerate(sample["randomish_seed"][()].tolist()):
            peak, kept, unmasked = tensorflow_mask(
                seed + (fault == "seed"), candidates, config, boost=boost != (fault == "boost")
            )
            if fault == "peak" and peak is not None:
                peak = max(peak - 1, 0)
            mask = ~cropped(visible_bins(peak, kept, config), config)
            unmask = np.zeros(config.cropped_length, bool)
            unmask[unmasked] = True
            differing += not np.array_equal(mask, sample["mask_store"][row])
            differing += not np.array_equal(unmask, sample["unmask_store"][row])
    assert bool(differing) == shown


def test_recorded_rates_leave_a_kept_bin_exactly_one(goldens):
    # The original scales what its dropout keeps back again; the port does neither.
    with h5py.File(goldens / "functions.h5") as file:
        for name in ("kept_value_python_rate", "kept_value_tensor_rate"):
            np.testing.assert_array_equal(file["mask_rate_scan"][name][()], np.ones(90, np.float32))


def test_the_soft_clip_is_the_square_root_beyond_the_limit():
    found = soft_clip(floats([0, 100, 150, 151, 250]), 150.0)
    np.testing.assert_array_equal(found, floats([0, 100, 150, 151, 160]))


def test_the_soft_clip_makes_negative_numbers_zero():
    assert soft_clip(floats([-3, -0.5]), 150.0).tolist() == [0, 0]


def test_the_other_strand_of_a_short_sequence():
    assert reverse_complement(base_indices(b"AACGTN")).tolist() == base_indices(b"NACGTT").tolist()
    # In words of eight where the length allows.
    letters = b"ACGTN" * 16
    other = letters[::-1].translate(bytes.maketrans(b"ACGT", b"TGCA"))
    for length in (1, 7, 8, 9, 80):
        found = reverse_complement(base_indices(letters[:length]))
        assert found.tolist() == base_indices(other[80 - length :]).tolist()


def test_every_float16_number_is_widened_as_numpy_does():
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert np.array_equal(_widened(numbers), numbers.astype(np.float32), equal_nan=True)
    wide = np.array([1.0, -2.5], np.float32)
    assert _widened(wide) is wide


def test_a_sequence_may_be_letters_or_indices():
    record = synthetic_record(CONFIG, 0)
    indexed = dataclasses.replace(record, sequence=base_indices(record.letters))
    for strand in (False, True):
        drawn = dataclasses.replace(OwnDraws(0).draw(record, CONFIG), reverse_complement=strand)
        one, other = (make_example(each, drawn, CONFIG) for each in (record, indexed))
        np.testing.assert_array_equal(one.sequence, other.sequence)
        assert not np.shares_memory(other.sequence, indexed.sequence)
        assert other.sequence.flags.writeable
        assert other.sequence.flags.c_contiguous


def test_a_target_is_the_clipped_sum_of_each_bin_without_the_margins():
    signal = np.repeat(floats([9, 9, 1, 2, *[0] * 57, 100, 9, 9]), 32)
    target = bin_target(signal, CONFIG)
    assert target.shape == (60, 1)
    assert target[:2, 0].tolist() == [32, 64]
    assert target[-1, 0] == 2000 + np.sqrt(np.float32(1200))


def test_masked_values_are_zero_or_those_of_another_block():
    noisy = np.arange(1, 2049, dtype=np.float32)
    visible = np.ones(64, bool)
    visible[[0, 63]] = False
    expected = np.r_[np.zeros(32), noisy[32:-32], np.zeros(32)]
    np.testing.assert_array_equal(mask_atac(noisy, visible, None, CONFIG), expected)
    expected[:32], expected[-32:] = noisy[1536:1568], noisy[480:512]
    np.testing.assert_array_equal(mask_atac(noisy, visible, np.array([3, 1, 2, 0]), CONFIG), expected)


def test_a_peaks_mask_is_one_bin_wider_than_an_even_region_and_cut_at_the_ends():
    kept = np.ones(CONFIG.regions, bool)
    masked = np.flatnonzero(~visible_bins(20, kept, CONFIG))
    assert masked.tolist() == list(range(16, 29))
    assert np.flatnonzero(~visible_bins(0, kept, CONFIG)).tolist() == list(range(9))
    assert np.flatnonzero(~visible_bins(59, kept, CONFIG)).tolist() == list(range(55, 64))
    assert visible_bins(None, kept, CONFIG).all()


def test_motifs_scaled_to_the_unit_interval_or_by_means_and_deviations():
    x, noise = floats([1, 3, 2, 5]), floats([-0.25, 0, 0, 0.5])
    np.testing.assert_array_equal(scale_motifs(x, noise, CONFIG), [[0.25, 0.5, 0.25, 1.5]])
    scaled = dataclasses.replace(CONFIG, motif_scaling="z_score")
    means, deviations = np.ones(4, np.float32), np.full(4, 2, np.float32)
    exact = (x - 1) / (np.float32(2) + np.float32(1e-6)) + noise
    np.testing.assert_array_equal(scale_motifs(x, noise, scaled, means, deviations), [exact])
    for tables in ((None, None), (means, None), (means, deviations[:3])):
        with pytest.raises(ValueError, match="z_score needs the means and the deviations of 4 motifs"):
            scale_motifs(x, noise, scaled, *tables)
    none = dataclasses.replace(CONFIG, use_motif_activity=False)
    np.testing.assert_array_equal(scale_motifs(x, noise, none), np.zeros((1, 4)))


def test_motifs_that_are_all_the_same_are_an_error_and_not_nan():
    with pytest.raises(DataError, match="motif_activity is 2 throughout"):
        scale_motifs(np.full(4, 2, np.float32), np.zeros(4, np.float32), CONFIG)


def test_rna_is_clipped_rooted_and_smoothed_and_zero_beyond_the_ends():
    found = smooth_rna(floats([[4], [0], [0], [70000]]))
    weights = floats([0.27406862, 0.45186275])
    expected = [2 * weights[1], 2 * weights[0], np.sqrt(65500) * weights[0], np.sqrt(65500) * weights[1]]
    np.testing.assert_array_max_ulp(found[:, 0], floats(expected), maxulp=4)


def test_a_motif_table_is_one_row_and_nothing_else(tmp_path):
    path = tmp_path / "means.tsv"
    path.write_text("1.5,2,-3e-2\n")
    assert read_motif_table(path).tolist() == floats([1.5, 2, -0.03]).tolist()
    path.write_text("1.5,two\n")
    with pytest.raises(DataError, match=r"means\.tsv: not a row of numbers"):
        read_motif_table(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": b"A" * 8194}, "a sequence of 8194 letters is too short"),
        ({"atac": np.zeros((2047, 1), np.float32)}, "atac has 2047 values, 2048 are expected"),
        ({"motif_activity": np.zeros(5, np.float32)}, "motif_activity has 5 values, 4 are expected"),
        ({"rna": None}, "has no rna"),
        ({"tss_tokens": None}, "has no tss_tokens"),
        ({"tss_tokens": np.zeros(63, np.int32)}, "tss_tokens has 63 values, 64 are expected"),
        ({"cell_encoding": np.zeros(2, np.int32)}, "cell_encoding has 2 values, 1 are expected"),
    ],
)
def test_a_record_that_does_not_fit_is_named(changes, message):
    finetuning = not changes.keys() & {"sequence", "atac", "motif_activity"}
    config = dataclasses.replace(CONFIG, finetuning=finetuning, training="rna" in changes)
    record = synthetic_record(config, 0)
    drawn = OwnDraws(0).draw(record, config)
    with pytest.raises(DataError, match=message):
        make_example(dataclasses.replace(record, **changes), drawn, config)


@pytest.mark.parametrize("option", ["mask_noise", "use_atac", "use_seq"])
def test_draws_of_another_configuration_are_an_error(option):
    other = dataclasses.replace(CONFIG, **{option: not getattr(CONFIG, option)})
    record = synthetic_record(CONFIG, 0)
    for drawn_for, made_for in ((CONFIG, other), (other, CONFIG)):
        with pytest.raises(ValueError, match="unlike the configuration"):
            make_example(record, OwnDraws(0).draw(record, drawn_for), made_for)


@pytest.mark.parametrize("strand", [False, True])
def test_replacements_take_the_place_of_the_inputs_as_they_were_drawn(strand):
    config = dataclasses.replace(CONFIG, use_atac=False, use_seq=False, log_atac=True)
    record = synthetic_record(config, 0)
    drawn = dataclasses.replace(OwnDraws(0).draw(record, config), reverse_complement=strand)
    example = make_example(record, drawn, config)
    np.testing.assert_array_equal(example.atac, drawn.atac_replacement)
    np.testing.assert_array_equal(example.sequence, drawn.sequence_replacement)
    assert set(np.unique(example.sequence)) == {0, 1, 2, 3}
    assert 100 < example.atac.max() < 150


def test_an_examples_arrays_are_its_own():
    config = dataclasses.replace(CONFIG, use_atac=False, use_seq=False, finetuning=True, training=False)
    record = synthetic_record(config, 0)
    drawn = OwnDraws(0).draw(record, config)
    for array in make_example(record, drawn, config):
        assert array is not None
        assert array.flags.writeable
        assert array.flags.c_contiguous
        sources = [value for value in (*vars(record).values(), *vars(drawn).values()) if isinstance(value, np.ndarray)]
        assert not any(np.shares_memory(array, source) for source in sources)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_shift": 0}, "max_shift must be at least 1"),
        ({"mask_size": 100}, "mask_size=100 is 0 bins"),
        ({"mask_size": 7 * 128}, "60 cropped bins are no multiple"),
        ({"crop_size": 32}, "crop_size=32 leaves nothing"),
        ({"input_length": 8191}, "64 bins of 128 bp are not input_length=8191"),
        ({"output_length_ATAC": 2000}, "no multiple of output_length"),
        ({"atac_corrupt_rate": 0}, "atac_corrupt_rate must be at least 1"),
        ({"atac_corrupt_rate": 10**20}, "atac_corrupt_rate must be below 2"),
        ({"max_shift": 2**31}, "max_shift must be below 2"),
        ({"atac_mask_dropout": 1.5}, "atac_mask_dropout must be from 0 to 1"),
        ({"mask_noise": True, "finetuning": True}, "mask_noise belongs to pre-training"),
        ({"mask_noise": True, "output_length_ATAC": 64}, "into blocks of 512"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_a_scaling_that_does_not_exist_is_named():
    config = dataclasses.replace(CONFIG)
    # Past the check of types, which tests have and users have not.
    object.__setattr__(config, "motif_scaling", "max")
    with pytest.raises(ValueError, match="motif_scaling must be min_max or z_score, not 'max'"):
        config.__post_init__()


def test_the_published_settings():
    pretraining, finetuning = ExampleConfig.pretraining(), ExampleConfig.finetuning_preset()
    assert (pretraining.cropped_length, pretraining.region_bins, pretraining.regions) == (4092, 12, 341)
    assert (finetuning.cropped_length, finetuning.region_bins, finetuning.regions) == (896, 8, 112)
    assert pretraining.mask_rate(boost=True) == np.float32(0.45)
