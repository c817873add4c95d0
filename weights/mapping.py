"""The plan of a transplant: which stored tensor fills which place of the model, checked in full before reading any.

Total in both directions: every stored key is used or ignored for a stated reason, every parameter and buffer of the
model is filled, every shape and data type fits, and the configuration does not contradict the shapes. Otherwise one
error lists all of it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from torch_impl import EpiBERTConfig
from torch_impl.model import Trunk
from weights.checkpoint import Checkpoint
from weights.configuration import Inferred, contradict, infer_configuration
from weights.errors import MappingError, listing
from weights.keras_weights import KerasWeights
from weights.layouts import IDENTITY, Layout
from weights.table import CONSTANTS, IGNORED, MOMENTS, RAMPAGE, Kind, Row, legacy_slot_paths, rows, slot_paths

PARAMETER, STATISTIC, COUNTER = "parameter", "statistic", "counter"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One stored tensor and where it goes.

    Attributes:
        key: in the checkpoint.
        path: canonical path in the checkpoint, without suffix.
        name: in the port's state, or in the training state.
        role: parameter, statistic, exp_avg, exp_avg_sq or counter.
        layout: from the stored to the port's layout.
        shape: as stored.
        dtype: as stored.
    """

    key: str
    path: str
    name: str
    role: str
    layout: Layout
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def in_model(self) -> bool:
        """Whether it belongs to the model itself, not to the training state."""
        return self.role in (PARAMETER, STATISTIC)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All assignments, the ignored keys with their reasons, and what the shapes say about the configuration."""

    assignments: tuple[Assignment, ...]
    ignored: tuple[tuple[str, str], ...]
    inferred: Inferred


def torch_dtype(dtype: np.dtype) -> torch.dtype | None:
    """The torch dtype of the same name, None where there is none."""
    found = getattr(torch, dtype.name, None)
    return found if isinstance(found, torch.dtype) else None


def _exact(stored: np.dtype, target: torch.dtype) -> bool:
    """Whether every number of the stored type is one of the target type."""
    source = torch_dtype(stored)
    if source is None or not source.is_floating_point:
        return False
    return torch.promote_types(source, target) == target


def check_table(model: Trunk, table_rows: Iterable[Row]) -> list[str]:
    """Every way in which the table does not cover the model exactly once; empty when it does."""
    listed = list(table_rows)
    parameters = dict(model.named_parameters())
    state = model.state_dict()
    complaints = []
    for values, what in (([row.name for row in listed], "name"), ([row.path for row in listed], "path")):
        complaints += [
            f"the table has the {what} {value} twice" for value in sorted(set(values)) if values.count(value) > 1
        ]
    names = {row.name for row in listed}
    complaints += [f"the model has {name}, the table does not" for name in state if name not in (*names, *CONSTANTS)]
    for row in listed:
        if row.name not in state:
            complaints.append(f"the table has {row.name}, the model does not")
        elif (row.name in parameters) != row.trainable:
            complaints.append(f"{row.name} is {'' if row.trainable else 'not '}trainable in the table only")
    return complaints


def locate(checkpoint: Checkpoint, table_rows: list[Row]) -> dict[str, str]:
    """`{row.path: key}` for the rows that the checkpoint holds."""
    if isinstance(checkpoint, KerasWeights):
        return checkpoint.assign(table_rows)
    found = {row.path: checkpoint.find(row.path, row.alias) for row in table_rows}
    return {path: key for path, key in found.items() if key is not None}


def canonical_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """`{path: shape}` of a checkpoint whose keys are paths; the input of `infer_configuration`."""
    shapes = {}
    for key in checkpoint:
        path = checkpoint.path(key)
        shapes[re.sub(r"(_dense_layer)/_kernel$", r"\1/kernel", path)] = checkpoint.shape(key)
    return shapes


def is_fine_tuning(checkpoint: Checkpoint, configuration: EpiBERTConfig) -> bool:
    """Whether a checkpoint holds a fine-tuning model; a Keras file tells by the number of its layers."""
    if isinstance(checkpoint, KerasWeights):
        return checkpoint.has_the_layers_of(rows(configuration, RAMPAGE.table))
    return infer_configuration(canonical_shapes(checkpoint)).fine_tuning


def _assign(checkpoint: Checkpoint, key: str, path: str, name: str, role: str, layout: Layout) -> Assignment:
    return Assignment(
        key=key,
        path=path,
        name=name,
        role=role,
        layout=layout,
        shape=checkpoint.shape(key),
        dtype=checkpoint.dtype(key),
    )


def _slots(
    checkpoint: Checkpoint, model: Trunk, kind: Kind, weights: dict[str, Assignment]
) -> tuple[list[Assignment], list[str]]:
    """The optimizers' slots in the checkpoint, and those that one of them lacks though it has others."""
    found, missing = [], []
    legacy = any("/.OPTIMIZER_SLOT/" in key for key in checkpoint)
    for optimizer in kind.optimizers:
        here, absent = [], []
        parameters = [weights[row.path] for row in rows(model.config, optimizer.table) if row.trainable]
        for order, parameter in enumerate(parameters):
            name = optimizer.name
            paths = legacy_slot_paths(parameter.path, name) if legacy else slot_paths(order, name)
            for role, path in zip(MOMENTS, paths, strict=True):
                key = checkpoint.find(path)
                if key is None:
                    absent.append(f"{path} ({role} of {parameter.name})")
                else:
                    here.append(_assign(checkpoint, key, path, f"{role}/{parameter.name}", role, parameter.layout))
        found += here
        missing += absent if here else []
    return found, missing


def _counters(checkpoint: Checkpoint, kind: Kind) -> list[Assignment]:
    """The counters that the checkpoint holds; none of them is required."""
    found = []
    for counter in kind.counters:
        for path in (counter.path, counter.legacy_path):
            key = None if path is None else checkpoint.find(path)
            if key is not None:
                found.append(_assign(checkpoint, key, counter.path, counter.name, COUNTER, IDENTITY))
                break
    return found


def _left_over(checkpoint: Checkpoint, used: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The keys that nothing uses: those ignored with their reason, and the unexpected ones."""
    ignored, unexpected = [], []
    for key in checkpoint:
        if key in used:
            continue
        reasons = [reason for pattern, reason in IGNORED if re.fullmatch(pattern, checkpoint.path(key))]
        if reasons:
            ignored.append((key, reasons[0]))
        else:
            unexpected.append(key)
    return ignored, unexpected


def _inferred(checkpoint: Checkpoint, located: dict[str, str]) -> Inferred:
    if isinstance(checkpoint, KerasWeights):
        return infer_configuration({path: checkpoint.shape(key) for path, key in located.items()})
    return infer_configuration(canonical_shapes(checkpoint))


def _wrong_kind(inferred: Inferred, kind: Kind) -> list[str]:
    names = {True: "a fine-tuning model (EpiBERTRampage)", False: "a pre-training model (EpiBERT)"}
    wanted = kind is RAMPAGE
    if inferred.fine_tuning == wanted:
        return []
    return [f"the checkpoint holds {names[inferred.fine_tuning]}, to be filled is {names[wanted]}"]


def make_plan(checkpoint: Checkpoint, model: Trunk, kind: Kind) -> Plan:
    """Match a checkpoint with a model, reading shapes only.

    Args:
        checkpoint: what to read from.
        model: what to fill; not changed.
        kind: what checkpoints of such a model hold.

    Raises:
        MappingError: lists every contradiction in the configuration, missing key, unexpected key, wrong shape and
            data type that cannot be represented exactly.
    """
    table_rows, state = rows(model.config, kind.table), model.state_dict()
    located = locate(checkpoint, table_rows)
    inferred = _inferred(checkpoint, located)
    weights = [
        _assign(
            checkpoint, located[row.path], row.path, row.name, PARAMETER if row.trainable else STATISTIC, row.layout
        )
        for row in table_rows
        if row.path in located
    ]
    missing = [f"{row.path} (for {row.name})" for row in table_rows if row.path not in located]
    slots: list[Assignment] = []
    numbered = not missing  # without every variable the slots' numbers say nothing
    if numbered:
        slots, missing = _slots(checkpoint, model, kind, {weight.path: weight for weight in weights})
    assignments = [*weights, *slots, *_counters(checkpoint, kind)]
    used = [assignment.key for assignment in assignments]
    ignored, unexpected = _left_over(checkpoint, used)
    sections = {
        "the mapping table does not fit the model": check_table(model, table_rows),
        "configuration and checkpoint contradict each other": [
            *inferred.complaints,
            *_wrong_kind(inferred, kind),
            *contradict(model.config, inferred),
        ],
        "missing keys": missing,
        "unexpected keys": [
            f"{key} {checkpoint.shape(key)}"
            for key in unexpected
            if numbered or not re.match(r"\w+/_variables/", checkpoint.path(key))
        ]
        + [f"{key} is meant twice" for key in sorted(set(used)) if used.count(key) > 1],
        "wrong shapes": _wrong_shapes(assignments, state, model.config.num_heads),
        "data types that would be rounded": _rounded(weights, state),
    }
    if any(sections.values()):
        text = "\n".join(listing(title, lines) for title, lines in sections.items() if lines)
        raise MappingError(f"checkpoint and model do not match.\n{text}")
    return Plan(assignments=tuple(assignments), ignored=tuple(ignored), inferred=inferred)


def _rounded(weights: list[Assignment], state: dict[str, torch.Tensor]) -> list[str]:
    """Weights whose stored type holds numbers that the model's does not."""
    return [
        f"{weight.key}: {weight.dtype} into {str(state[weight.name].dtype).removeprefix('torch.')}"
        for weight in weights
        if weight.name in state and not _exact(weight.dtype, state[weight.name].dtype)
    ]


def _wrong_shapes(assignments: list[Assignment], state: dict[str, torch.Tensor], heads: int) -> list[str]:
    """Assignments whose stored shape is not the one that the model's tensor has in the checkpoint."""
    wrong = []
    for assignment in assignments:
        expected: tuple[int, ...] = ()
        if assignment.role != COUNTER:
            name = assignment.name.removeprefix(f"{assignment.role}/")
            if name not in state:
                continue  # reported by check_table
            try:
                expected = assignment.layout.stored_shape(tuple(state[name].shape), heads)
            except MappingError as error:
                wrong.append(f"{assignment.key}: {error} ({name})")
                continue
        if assignment.shape != expected:
            wrong.append(f"{assignment.key}: {assignment.shape}, the model needs {expected} ({assignment.name})")
    return wrong
