"""Sequences at two bits a base: every byte comes back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_impl.data.examples import base_indices
from torch_impl.data.letters import pack, packed_length, unpack, unpack_indices


@given(st.binary(max_size=100) | st.text("ACGT", max_size=100).map(str.encode) | st.text("ACGTN").map(str.encode))
def test_every_sequence_comes_back(sequence):
    packed, others = pack(sequence)
    assert len(packed) == packed_length(len(sequence))
    assert (others is None) == (set(sequence) <= set(b"ACGT"))
    assert unpack(packed, len(sequence), others) == sequence


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 1003])
def test_codes_of_bases_are_their_indices(length):
    sequence = np.random.default_rng(length).choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes()
    packed, others = pack(sequence)
    assert others is None
    np.testing.assert_array_equal(unpack_indices(packed, length), base_indices(sequence))


def test_the_first_base_has_the_lowest_bits():
    packed, _ = pack(b"CGTA" + b"A" * 4)
    assert packed.tolist() == [0b00_11_10_01, 0]
