"""EpiBERT against a recording of it, as ``epibert record --epibert`` makes one from the published code."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.layer_map import LayerMap
from parity.pairs import epibert
from parity.recorded_training import TensorRow
from parity.recording import Recording
from parity.records import NotCompared
from parity.verify_recording import Bound
from torch_impl import EpiBERT, EpiBERTConfig, EpiBERTRampage
from torch_impl.model import OWN_CONSTANTS, Trunk
from weights import transplant
from weights.table import Row, kind_of
from weights.table import rows as weight_rows

PROJECTION, ROTARY = "projection_matrix", "rotary_table"
"""Names of the two constants in a recording."""

_HEADS = ("final_dense_profile", "final_dense_profile_rna")
_SHARED = ("dropout", "gelu", "crop_final")


def matches(recording: Recording) -> bool:
    """Whether this is a recording of EpiBERT, of whatever class name."""
    return {"stem_conv/kernel", "pre_transformer_projection/kernel"} <= set(recording.variables)


def is_finetuning(recording: Recording) -> bool:
    """Whether it is the fine-tuning model."""
    return "final_dense_profile_rna/kernel" in recording.variables


def configuration(recording: Recording) -> EpiBERTConfig:
    """The port's configuration: the constructor arguments that were recorded.

    Raises:
        ValueError: They are no configuration of EpiBERT.
    """
    try:
        return EpiBERTConfig(**_recorded_arguments(recording))
    except TypeError as error:
        raise ValueError(f"{recording.path}: its arguments are no configuration of EpiBERT: {error}") from None


def left_out(recording: Recording) -> tuple[NotCompared, ...]:
    """What ``epibert record --repo`` left to defaults or left out."""
    rows: Mapping[str, str] = recording.arguments.get("left_out", {})
    return tuple(NotCompared(side="both", name=name, reason=reason) for name, reason in rows.items())


def make_port(recording: Recording) -> Trunk:
    """A port with the configuration, the weights and the constants of a recording."""
    config = configuration(recording)
    port: Trunk = EpiBERTRampage(config) if is_finetuning(recording) else EpiBERT(config)
    transplant(stored_tensors(recording, port), port, constants=(*_constants(recording), recording.described))
    return port


def stored_tensors(recording: Recording, port: Trunk) -> dict[str, np.ndarray]:
    """The recorded variables under the keys of a checkpoint; those that no row knows keep their names."""
    mapped, variables = epibert.layer_map_of(port), dict(recording.variables)
    stored = {}
    for row in weight_rows(port.config, kind_of(port).table):
        key = _key(row, mapped)
        if key in variables:
            stored[row.path] = np.asarray(variables.pop(key), dtype=np.float32)
    return stored | variables


def bind(recording: Recording, port: Trunk, layer_map: LayerMap | None, case: str) -> Bound:
    """Weights, constants and configuration compared; the port bound to the recording, see ``Bound``.

    The published code does some things between layers for which our reference has layers of its own: rotation and
    feature map. Of a recording that lacks them they are compared as parts of the attention that they belong to.
    """
    whole = epibert.layer_map_of(port) if layer_map is None else layer_map
    absent = [path for path in epibert.absent_layers(whole) if path not in recording.layers]
    mapped = LayerMap(
        pairs=tuple(pair for pair in whole if pair.reference not in absent), ignored=whole.ignored, split=whole.split
    )
    stored = stored_tensors(recording, port)
    projection, table = _constants(recording)
    comparisons = [
        *epibert.compare_weights(port, stored, case=case),
        *epibert.compare_constants(port, projection, table, case=case),
        *epibert.compare_configurations(port.config, _recorded_arguments(recording), case=case),
    ]
    lent = None
    if port.constants_origin == OWN_CONSTANTS and epibert.fit(port, projection, table):
        lent = epibert.constants(port, projection, table, recording.described)
    rows_left_out = [
        NotCompared(
            side="reference", name=path, reason="no layer of the recorded model: compared as a part of the attention"
        )
        for path in absent
    ]
    rows_left_out.append(
        NotCompared(side="recording", name="drawn weights", reason="the model is not here to be run with other weights")
    )
    rows = weight_rows(port.config, kind_of(port).table)
    return Bound(
        name="EpiBERTRampage" if isinstance(port, EpiBERTRampage) else epibert.NAME,
        side=epibert.watch_as(port, mapped),
        layer_map=mapped,
        tensors={row.name: TensorRow(key=_key(row, whole), to_port=row.layout.to_port) for row in rows},
        comparisons=comparisons,
        not_compared=[*rows_left_out, *left_out(recording), *epibert.unmapped_modules(port, mapped)],
        lent=lent,
        renumbered=_renumbered(recording),
        more={
            "configuration": {"recorded": dict(recording.arguments)},
            "weights": epibert.weight_map(port.config, stored, rampage=isinstance(port, EpiBERTRampage)),
        },
    )


def _key(row: Row, mapped: LayerMap) -> str:
    """Where a tensor of the table lies in a recording: layer path and own name."""
    layer = row.name.rpartition(".")[0]
    reference = next(pair.reference for pair in mapped if pair.port == layer and not pair.alias)
    return f"{reference}/{row.path.rpartition('/')[2]}"


def _renumbered(recording: Recording) -> dict[str, tuple[int, ...]]:
    """The published code computes the RNA head before the ATAC head, the port after it; they share three layers."""
    order = recording.execution
    heads = [order.index(path) for path in _HEADS if path in order]
    return dict.fromkeys(_SHARED, (1, 0)) if heads != sorted(heads) else {}


def _constants(recording: Recording) -> tuple[np.ndarray, np.ndarray | None]:
    constants: Mapping[str, Any] = recording.constants
    if PROJECTION not in constants:
        raise ValueError(f"{recording.path}: the recording holds no {PROJECTION}, which no variable of EpiBERT holds")
    return constants[PROJECTION], constants.get(ROTARY)


def _recorded_arguments(recording: Recording) -> dict[str, Any]:
    arguments = recording.arguments.get("config", recording.arguments)
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    return {name: value for name, value in lists.items() if name != "dtype"}
