"""What holds for every example of any legal geometry, whatever is drawn and wherever peaks lie."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records import SPARE, synthetic_record
from torch_impl.data.draws import Draws, OwnDraws, TensorFlowDraws, same_draws
from torch_impl.data.examples import (
    ExampleConfig,
    base_indices,
    cropped,
    make_example,
    one_hot,
    reverse_complement,
    visible_bins,
)
from torch_impl.data.records import Record

SOURCES = {"own": OwnDraws, "TensorFlow's": TensorFlowDraws}


@st.composite
def configs(draw: st.DrawFn) -> ExampleConfig:
    """Any legal geometry, small."""
    region, regions, crop = draw(st.integers(1, 13)), draw(st.integers(1, 6)), draw(st.integers(0, 3))
    bins, per_bin = region * regions + 2 * crop, draw(st.sampled_from([1, 4, 32]))
    finetuning = draw(st.booleans())
    return ExampleConfig(
        input_length=128 * bins,
        output_length_ATAC=bins * per_bin,
        output_length=bins,
        crop_size=crop,
        max_shift=draw(st.integers(1, SPARE)),
        # What is left over beyond whole bins does not matter.
        mask_size=128 * region + draw(st.integers(0, 127)),
        atac_mask_dropout=draw(st.sampled_from([0.0, 0.15, 0.5, 1.0])),
        atac_corrupt_rate=draw(st.integers(1, 3)),
        mask_noise=not finetuning and bins * per_bin % 512 == 0,
        log_atac=draw(st.booleans()),
        use_atac=draw(st.sampled_from([True, True, False])),
        use_seq=draw(st.sampled_from([True, True, False])),
        use_motif_activity=draw(st.booleans()),
        num_motifs=draw(st.integers(2, 9)),
        training=draw(st.booleans()),
        finetuning=finetuning,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What it takes to make one example; made in the test, since what draws must not run while cases are drawn."""

    config: ExampleConfig
    peaks: str
    record_seed: int
    source: str
    source_seed: int
    epoch: int
    index: int

    def made(self) -> tuple[ExampleConfig, Record, Draws]:
        record = synthetic_record(self.config, self.record_seed)
        bins, crop = np.arange(self.config.output_length), self.config.crop_size
        peaks = {
            "none": bins < 0,
            "all": bins >= 0,
            "edges": (bins == crop) | (bins == len(bins) - crop - 1),
            "margins alone": (bins < crop) | (bins >= len(bins) - crop),
            "some": record.peaks_center > 0,
        }[self.peaks]
        record = dataclasses.replace(record, peaks_center=peaks.astype(np.int32))
        source = SOURCES[self.source](self.source_seed)
        return self.config, record, source.draw(record, self.config, epoch=self.epoch, index=self.index)


cases = st.builds(
    Case,
    config=configs(),
    peaks=st.sampled_from(["none", "all", "edges", "margins alone", "some"]),
    record_seed=st.integers(0, 5),
    source=st.sampled_from(sorted(SOURCES)),
    source_seed=st.integers(0, 2**31),
    epoch=st.integers(0, 3),
    index=st.integers(0, 99),
)


@given(case=cases)
def test_draws_fit_their_configuration_and_survive_json(case):
    config, _, drawn = case.made()
    drawn.check(config)
    again = Draws.from_json(drawn.to_json())
    assert same_draws(again, drawn)
    for field in dataclasses.fields(Draws):
        one, other = getattr(again, field.name), getattr(drawn, field.name)
        assert type(one) is type(other)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@given(case=cases)
def test_shapes_and_types_are_those_of_the_configuration(case):
    config, record, drawn = case.made()
    example = make_example(record, drawn, config)
    bins = (config.cropped_length, 1)
    expected: dict[str, Any] = {
        "sequence": ((config.input_length,), np.uint8),
        "atac": ((config.output_length_ATAC, 1), np.float32),
        "mask": (bins, np.int32),
        "unmask": (bins, np.int32),
        "target": (bins, np.float32),
        "motif_activity": ((1, config.num_motifs), np.float32),
    }
    if config.finetuning:
        expected["rna"] = (bins, np.float32)
        if not config.training:
            expected |= {"tss_tokens": (bins, np.float32), "gene_token": ((), np.int32), "cell_type": ((), np.int32)}
    found = {name: (v.shape, v.dtype) for name, v in example._asdict().items() if v is not None}
    assert found == expected


@given(case=cases)
def test_masks_conserve_counts_and_do_not_overlap(case):
    config, record, drawn = case.made()
    example = make_example(record, drawn, config)
    masked, unmasked = int(example.mask.sum()), int(example.unmask.sum())
    assert set(np.unique(example.mask)) | set(np.unique(example.unmask)) <= {0, 1}
    assert not (example.mask & example.unmask).any()
    assert unmasked == min(masked, config.cropped_length - masked)
    # As many masked bins of the input as of the target, but for what reaches into the margins.
    visible = visible_bins(drawn.peak, drawn.kept_regions, config)
    assert int((~cropped(visible, config)).sum()) == masked
    if drawn.peak is not None:
        assert not cropped(visible, config)[drawn.peak]


@given(case=cases)
def test_what_is_masked_is_zero_and_what_is_visible_is_positive(case):
    config, record, drawn = case.made()
    plain = dataclasses.replace(config, mask_noise=False, use_atac=True)
    example = make_example(record, dataclasses.replace(drawn, block_order=None, atac_replacement=None), plain)
    visible = np.repeat(visible_bins(drawn.peak, drawn.kept_regions, config), config.values_per_bin)
    visible = visible[::-1] if drawn.reverse_complement else visible
    noise = np.abs(drawn.atac_noise[:, 0])
    noise = noise[::-1] if drawn.reverse_complement else noise
    assert (example.atac[~visible] == 0).all()
    assert (example.atac[visible & (noise > 0), 0] > 0).all()


@given(case=cases)
def test_the_other_strand_is_the_example_read_backwards(case):
    config, record, drawn = case.made()
    forward = make_example(record, dataclasses.replace(drawn, reverse_complement=False), config)
    backward = make_example(record, dataclasses.replace(drawn, reverse_complement=True), config)
    if config.use_seq:
        np.testing.assert_array_equal(reverse_complement(forward.sequence), backward.sequence)
    if config.use_atac:
        np.testing.assert_array_equal(forward.atac[::-1], backward.atac)
    for name in ("mask", "unmask", "rna", "tss_tokens"):
        one, other = getattr(forward, name), getattr(backward, name)
        if one is not None:
            np.testing.assert_array_equal(one[::-1], other)
    # Sums in another order, of up to 32 values: every value passes through six additions, and the clip has two more.
    np.testing.assert_array_max_ulp(forward.target[::-1].copy(), backward.target, maxulp=16)
    np.testing.assert_array_equal(forward.motif_activity, backward.motif_activity)


@given(st.binary(min_size=1, max_size=200))
def test_two_reverse_complements_are_none(letters):
    indices = base_indices(letters)
    np.testing.assert_array_equal(reverse_complement(reverse_complement(indices)), indices)
    wide = one_hot(indices)
    # As channels: the order turns round, and so do the positions.
    np.testing.assert_array_equal(one_hot(reverse_complement(indices)), wide[::-1, ::-1])
    assert set(wide.sum(axis=1)) <= {0.0, 1.0}


@given(case=cases)
def test_an_example_is_a_function_of_record_and_draws(case):
    config, record, drawn = case.made()
    before = drawn.to_json()
    one = make_example(record, drawn, config)
    two = make_example(record, Draws.from_json(before), config)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert drawn.to_json() == before


@pytest.mark.parametrize("strand", [False, True])
@given(st.integers(0, 15))
def test_a_shift_moves_the_sequence_alone(strand, shift):
    config = ExampleConfig.tiny(num_motifs=4, max_shift=SPARE)
    record = synthetic_record(config, 0)
    drawn = dataclasses.replace(OwnDraws(0).draw(record, config), reverse_complement=strand)
    one, other = (make_example(record, dataclasses.replace(drawn, shift=s), config) for s in (0, shift))
    expected = base_indices(record.letters[shift : shift + config.input_length])
    np.testing.assert_array_equal(other.sequence, reverse_complement(expected) if strand else expected)
    for a, b in zip(one[1:], other[1:], strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
