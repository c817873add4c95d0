"""What a record must be like to be trained on."""

import dataclasses

import numpy as np
import pytest

from tests.records import synthetic_record
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import DataError, _finite, check_record

RECORD = synthetic_record(ExampleConfig.tiny(num_motifs=8, finetuning=True), 0)
assert RECORD.rna is not None


def test_a_sound_record_passes_with_unknown_and_lower_case_letters():
    assert {b"N", b"a"} <= {RECORD.letters[i : i + 1] for i in range(200)}
    check_record(RECORD)


@pytest.mark.parametrize("name", ["atac", "motif_activity", "rna"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named(name, value):
    array = getattr(RECORD, name).copy()
    array.flat[-1] = value
    with pytest.raises(DataError, match=f"{name} has 1 values that are not finite"):
        check_record(dataclasses.replace(RECORD, **{name: array}))


def test_the_numbers_of_16_bits_that_are_not_finite_are_those_of_numpy():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [_finite(every[i : i + 1]) for i in range(1 << 16)] == np.isfinite(every).tolist()
    assert _finite(every[:0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motif_activity": np.full(8, 3, np.float32)}, "motif_activity is 3 throughout"),
        ({"sequence": RECORD.sequence[:-1] + b"\x00"}, "not made of letters"),
        ({"sequence": RECORD.sequence[:8191]}, "a sequence of 8191 letters is shorter than the 2048 values"),
        ({"atac": RECORD.atac[:-1]}, "atac has 2047 values, which are no multiple of the 64"),
        ({"rna": RECORD.rna[:-1]}, "rna has 63 values, peaks_center 64"),
        ({"peaks_center": RECORD.peaks_center[:0]}, "no multiple of the 0"),
    ],
)
def test_what_cannot_be_trained_on_is_named(changes, message):
    with pytest.raises(DataError, match=message):
        check_record(dataclasses.replace(RECORD, **changes))


def test_every_letter_is_one_and_nothing_else():
    for code in range(256):
        record = dataclasses.replace(RECORD, sequence=bytes([code]) + RECORD.sequence[1:])
        if bytes([code]).isalpha():
            check_record(record)
        else:
            with pytest.raises(DataError, match="not made of letters"):
                check_record(record)
