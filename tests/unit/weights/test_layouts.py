import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weights.errors import MappingError
from weights.layouts import CONV1D, DENSE, HEADS_IN, HEADS_OUT, IDENTITY, LAYOUTS, Layout

RANKS = {IDENTITY.name: 2, DENSE.name: 2, CONV1D.name: 3, HEADS_IN.name: 3, HEADS_OUT.name: 3}


@st.composite
def stored_arrays(draw: st.DrawFn) -> tuple[Layout, np.ndarray]:
    """An array whose numbers are all different and whose axes have different lengths."""
    layout = draw(st.sampled_from(list(LAYOUTS.values())))
    rank = RANKS[layout.name]
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank, unique=True)))
    return layout, np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


@given(stored_arrays(), st.booleans())
def test_every_layout_has_its_inverse(sample, contiguous):
    layout, stored = sample
    port = layout.to_port(stored)
    port = np.ascontiguousarray(port) if contiguous else port
    assert np.array_equal(layout.to_stored(port, stored.shape), stored)
    heads = stored.shape[0] if layout is HEADS_OUT else stored.shape[1]
    assert layout.stored_shape(port.shape, heads) == stored.shape


@given(stored_arrays())
def test_no_layout_but_the_identity_keeps_the_order_of_the_numbers(sample):
    layout, stored = sample
    moved = layout.to_port(stored).ravel().tolist() != stored.ravel().tolist()
    trivial = layout is IDENTITY or sum(size > 1 for size in stored.shape) < 2
    if layout in (HEADS_IN, HEADS_OUT) and not trivial:
        # Heads are only merged; what moves is the channel axis.
        channels = stored.shape[0] if layout is HEADS_IN else stored.shape[2]
        trivial = channels == 1 or channels == stored.size
    assert moved != trivial


def test_each_number_goes_where_the_letters_say():
    conv = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    assert CONV1D.to_port(conv)[4, 1, 0] == conv[0, 1, 4]
    heads_in = np.arange(3 * 2 * 4).reshape(3, 2, 4)
    assert HEADS_IN.to_port(heads_in).shape == (8, 3)
    assert HEADS_IN.to_port(heads_in)[1 * 4 + 3, 2] == heads_in[2, 1, 3]
    heads_out = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    assert HEADS_OUT.to_port(heads_out).shape == (3, 8)
    assert HEADS_OUT.to_port(heads_out)[2, 1 * 4 + 3] == heads_out[1, 3, 2]
    assert DENSE.to_port(np.arange(6).reshape(2, 3))[2, 1] == 5


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS.values() if layout is not IDENTITY])
def test_a_layout_refuses_what_it_cannot_have_made(layout):
    rank = RANKS[layout.name]
    with pytest.raises(MappingError, match=layout.name):
        layout.to_port(np.zeros((2,) * (rank + 1)))
    stored = tuple(range(2, 2 + rank))
    port = layout.to_port(np.zeros(stored)).shape
    with pytest.raises(MappingError, match=layout.name):
        layout.to_stored(np.zeros((*port[:-1], port[-1] + 1)), stored)
    with pytest.raises(MappingError, match=layout.name):
        layout.to_stored(np.zeros(port), (*stored, 1))
    with pytest.raises(MappingError, match=layout.name):
        layout.stored_shape((*port, 1, 1), 2)
