"""Finds out which layers and which weights of two models answer to each other: the entry, ``parity.infer``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from parity.inference.records import Inference
from parity.inference.reference_side import Living, Recorded, input_arrays
from parity.inference.search import Search
from parity.inference.weight_map import WeightMap
from parity.recording import Recording


def infer(
    reference: Any,
    port: nn.Module,
    inputs: Any = None,
    *,
    layers: Mapping[str, str] | None = None,
    weights: WeightMap | None = None,
    ignored: Mapping[str, str] | None = None,
) -> Inference:
    """Finds out which layers and which weights of two models answer to each other.

    The port needs no weights yet: ``load_weights`` moves them by the map that is found. It is left as it was.

    Args:
        reference: Built tf_keras model, or a recording of a model of any Keras.
        port: PyTorch module that takes the same inputs.
        inputs: The models' arguments, as for ``verify``; a recording has its own.
        layers: Pairs that are known, {port path: reference path}; they win over whatever would be inferred.
        weights: Rows of the weight map that are known.
        ignored: Layers of the reference that the port has none for, {path: reason}; the results name them.

    Returns:
        The maps with their evidence; print it.

    Raises:
        ValueError: The table names what does not exist.
    """
    arrays = input_arrays(reference, inputs)
    source = Recorded(reference) if isinstance(reference, Recording) else Living(reference)
    table = dict(layers or {})
    candidates = []
    # Where the port holds the reference's weights already, but in layers that other evidence would pair with others,
    # the order of execution may be another one, or the weights may have been swapped: what then computes the same
    # tells. An even result is one for the order.
    for by_weights in (False, True):
        search = Search(source, port, arrays, table, weights or {}, ignored or {}, by_weights=by_weights)
        candidates.append(search.run())
        if not search.disputed:
            return candidates[0]
    order, values = candidates
    chosen = min(candidates, key=lambda found: len(found.unconfirmed) + len(found.ambiguous))
    other = values if chosen is order else order
    partner = {row.pair.port: row.pair.reference for row in other.proposals}
    proposals = tuple(
        row
        if partner.get(row.pair.port, row.pair.reference) == row.pair.reference
        else dataclasses.replace(
            row, detail=f"{row.detail}; " * bool(row.detail) + f"its weights are those of {partner[row.pair.port]}"
        )
        for row in chosen.proposals
    )
    return chosen if chosen is values else dataclasses.replace(chosen, proposals=proposals)
