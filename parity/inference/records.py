"""What was found out about two models: the maps, and the evidence for each pair."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from parity.inference.weight_map import WeightMap
from parity.layer_map import LayerMap, LayerPair
from parity.records import NotCompared

Evidence = Literal["table", "type and shape", "name", "order", "weights", "values", "parts"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposal:
    """One pair as it was found.

    Attributes:
        pair: Row of the layer map.
        kind: Type of layer on both sides.
        evidence: What proposed it.
        confirmed: With the reference's weights and fed with the reference's inputs, the port's layer returns what the
            reference's does.
        detail: Why it is not confirmed, or what else spoke against it.
    """

    pair: LayerPair
    kind: str
    evidence: Evidence
    confirmed: bool = False
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """Both maps, and how they were found.

    Attributes:
        layer_map: Which layer answers to which.
        weight_map: Which tensor is which variable.
        proposals: Every pair with its evidence, in the order of execution.
        ambiguous: {layer of the reference: what it could be}, left unpaired.
        untraced: {module of the port: why its functional operations have no names}.
    """

    layer_map: LayerMap
    weight_map: WeightMap
    proposals: tuple[Proposal, ...]
    ambiguous: Mapping[str, str]
    untraced: Mapping[str, str]

    @property
    def unconfirmed(self) -> tuple[Proposal, ...]:
        """Pairs that no value confirms."""
        return tuple(row for row in self.proposals if not row.confirmed)

    def __str__(self) -> str:
        rows = [
            f"{'confirmed  ' if row.confirmed else 'UNCONFIRMED'} {row.pair.port or '(the port)'} = "
            f"{row.pair.reference or '(the reference)'}: {row.kind}, by {row.evidence}{_layout_of(row.pair)}"
            f"{f', {row.detail}' if row.detail else ''}"
            for row in self.proposals
        ]
        rows += [f"AMBIGUOUS   {path}: {reason}" for path, reason in self.ambiguous.items()]
        rows += [f"left out    {path}: {reason}" for path, reason in self.layer_map.ignored.items()]
        rows += [f"no names    {path or '(the port)'}: {reason}" for path, reason in self.untraced.items()]
        return "\n".join(rows)

    def not_compared(self) -> tuple[NotCompared, ...]:
        """What a verdict on these maps has to say about them."""
        rows = [
            NotCompared(side="pairing", name=row.pair.port or "model", reason=f"unconfirmed: {row.detail}")
            for row in self.unconfirmed
        ]
        rows += [NotCompared(side="pairing", name=path, reason=why) for path, why in self.ambiguous.items()]
        rows += [
            NotCompared(side="port", name=f"operations in {path or 'the model itself'}", reason=why)
            for path, why in self.untraced.items()
        ]
        return tuple(rows)


def _layout_of(pair: LayerPair) -> str:
    """The layouts that the port was found to have, in words; nothing where they are the reference's."""
    given = pair.layout if pair.input_layout is None else pair.input_layout
    if given == pair.layout:
        return "" if given == "same" else f", layout {given}"
    return f", layout {given} in and {pair.layout} out"
