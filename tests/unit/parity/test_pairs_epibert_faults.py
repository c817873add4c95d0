"""A bench asks of a sound port what it asks of a broken one: what both fail is no catch."""

import dataclasses
from typing import Any

import pytest

from parity.attack.fault import Fault, Kind
from parity.layer_map import LayerMap
from parity.pairs.epibert_faults.bench import Bench, Stage
from parity.pairs.epibert_faults.catalogue import CATALOGUE
from parity.records import Comparison, Reading, Status

ROW = Comparison(
    gate="layers", reading=Reading.ISOLATED, precision="float64", reference="", port="a", layer="a", status=Status.PASS
)


@dataclasses.dataclass
class Parts:
    """A subject of one part."""

    broken: bool = False

    @property
    def touched(self) -> frozenset[str]:
        return frozenset({"port"} if self.broken else ())


class Small(Bench):
    """A bench without a model."""

    def __init__(self) -> None:
        self._sound = {}

    def subject(self, *, training: bool = False) -> Any:
        return Parts()


FAULT = Fault(
    name="broken",
    source="",
    kind=Kind.MODEL,
    where="a",
    what="",
    rung="layers",
    named=("a",),
    inject=lambda subject: setattr(subject, "broken", True),
)


def stage(*, sound: Status, broken: Status, reads: str = "port") -> Stage:
    def rows(subject: Any) -> list[Comparison]:
        return [ROW, dataclasses.replace(ROW, status=broken if subject.broken else sound)]

    return Stage("layers", frozenset({reads}), rows)


@pytest.mark.parametrize(("fault", "reads"), [(FAULT, "port"), (FAULT, "data"), (None, "port")])
def test_what_a_sound_port_fails_is_no_catch(fault, reads):
    with pytest.raises(RuntimeError, match="the sound port fails 1 of 2 comparisons of 'layers'"):
        Small().rows(fault, stage(sound=Status.FAIL, broken=Status.FAIL, reads=reads))


def test_what_only_the_broken_port_fails_is_one():
    found = Small().rows(FAULT, stage(sound=Status.PASS, broken=Status.FAIL))
    assert [row.status for row in found] == [Status.PASS, Status.FAIL]


def test_layers_are_told_from_other_parts():
    bench = Small()
    bench.model_name, bench.layer_map = "Model", LayerMap.from_names({"a": "a", "b.c": "b/c"})
    assert bench.are_layers(("a", "b.c", "Model"))
    assert not bench.are_layers(("a", "loss"))


def test_every_fault_says_whom_it_breaks_and_no_pattern_does():
    assert {fault.name: fault.named for fault in CATALOGUE.values() if not fault.named or "*" in str(fault.named)} == {}
