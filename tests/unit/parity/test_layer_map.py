"""The layer map: unambiguous, with layouts that can be undone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from parity import LayerMap, LayerPair
from parity.layer_map import LAYOUTS


def pair(name: str, **options: object) -> LayerPair:
    return LayerPair(port=name, reference=f"reference_{name}", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    array=hnp.arrays(
        np.float64, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements={"min_value": 0, "max_value": 9}
    )
)
def test_every_layout_has_its_inverse(layout, array):
    row = pair("conv", layout=layout)
    array = array[:1] if layout == "last_state" else array
    assert np.array_equal(row.to_port(row.to_reference(array)), array)
    assert np.array_equal(row.to_reference(row.to_port(array)), array)


def test_channels_first_means_channels_on_the_second_axis():
    row = pair("conv", layout="channels_first")
    assert row.to_reference(np.zeros((2, 3, 5))).shape == (2, 5, 3)
    assert row.to_port(np.zeros((2, 5, 3))).shape == (2, 3, 5)
    assert row.to_reference(np.zeros((2, 3, 5, 7))).shape == (2, 5, 7, 3)


def test_no_layout_is_guessed_from_a_shape():
    square = np.arange(9.0).reshape(1, 3, 3)
    assert np.array_equal(pair("conv").to_reference(square), square)
    assert not np.array_equal(pair("conv", layout="channels_first").to_reference(square), square)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"unknown activation layouts \['sideways'\]"):
        LayerMap(pairs=(pair("conv", layout="sideways"),))


def test_a_reference_layer_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"names a reference layer twice: \['a'\]"):
        LayerMap(pairs=(LayerPair(port="x", reference="a"), LayerPair(port="y", reference="a")))


def test_a_port_layer_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"names a port layer twice: \['x'\]"):
        LayerMap(pairs=(LayerPair(port="x", reference="a"), LayerPair(port="x", reference="b")))


def test_an_alias_may_name_a_port_layer_again():
    rows = (LayerPair(port="x", reference="a"), LayerPair(port="x", reference="b", alias=True))
    assert [row.reference for row in LayerMap(pairs=rows)] == ["a", "b"]


def test_a_layer_that_is_mapped_cannot_be_ignored_as_well():
    with pytest.raises(ValueError, match=r"mapped and ignored at once: \['reference_conv'\]"):
        LayerMap(pairs=(pair("conv"),), ignored={"reference_conv": "why"})


def test_a_map_from_names_has_the_models_themselves_in_front():
    rows = list(LayerMap.from_names({"conv": "c", "dense": "d"}, ignored={"e": "why"}))
    assert [(row.port, row.reference) for row in rows] == [("", ""), ("conv", "c"), ("dense", "d")]
    assert rows[0].inputs == 0
    assert not any(row.block or row.alias or row.state for row in rows)


def test_a_map_from_names_that_names_the_models_is_left_as_it_is():
    assert [row.port for row in LayerMap.from_names({"conv": "c", "": ""})] == ["conv", ""]


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("tower.0.block.conv", "tower.0.block"),
        ("tower.0.block", "tower.0"),
        ("tower.0", ""),
        ("tower.0.unmapped.conv", "tower.0"),
        ("elsewhere.deep.down", ""),
        ("tower.01", ""),
        ("", ""),
    ],
)
def test_the_owner_is_the_nearest_mapped_module_around_a_path(path, owner):
    layer_map = LayerMap.from_names({name: name for name in ("tower.0", "tower.0.block", "tower.0.block.conv")})
    assert layer_map.owner(path) == owner
