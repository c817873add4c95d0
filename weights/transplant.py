"""Fills a torch model from a checkpoint of the original: all of it, or not at all.

In order: match keys, shapes and data types (`mapping`), read every tensor once in several threads, verifying checksum
and finiteness and hashing it on the way, find the constants of attention, and only then change the model. The weights
wait in memory until everything has been checked, so a failure leaves the model as it was; optimizer slots are
verified and hashed without being kept.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from torch_impl.model import Trunk
from weights.checkpoint import ArrayCheckpoint, Checkpoint, open_checkpoint
from weights.constants import Choice, Constants, ConstantsFinder
from weights.errors import CheckpointError, CorruptCheckpointError, MappingError, NotACheckpointError, listing
from weights.mapping import COUNTER, Assignment, Plan, make_plan
from weights.output import atomic_directory
from weights.table import kind_of
from weights.tensor_bundle import PIECE_BYTES, THREADS, Visitor
from weights.training_state import TrainingState, from_checkpoint, save_training_state

MODEL_FILE, CONFIG_FILE, RECORD_FILE = "model.safetensors", "config.json", "transplant.json"


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """What became of one stored tensor.

    Attributes:
        key: in the checkpoint.
        name: in the port's state or the training state.
        role: parameter, statistic, exp_avg, exp_avg_sq or counter.
        layout: name of the operation from the stored to the port's layout.
        stored_shape: in the checkpoint.
        shape: in the port.
        dtype: as stored.
        sha256: of the stored bytes (little-endian, C order).
    """

    key: str
    name: str
    role: str
    layout: str
    stored_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file that was read, identified by what the file system says of it at that time."""

    path: Path
    bytes: int
    modified_ns: int

    @staticmethod
    def of(path: Path) -> "SourceFile":
        """The file as it is now.

        Raises:
            NotACheckpointError: it cannot be looked at.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise NotACheckpointError(f"cannot read {path}: {error.strerror}") from None
        return SourceFile(path=path, bytes=status.st_size, modified_ns=status.st_mtime_ns)

    def sha256(self) -> str:
        """Hash the whole file, which must be the one that was read.

        Raises:
            CheckpointError: it has changed or is gone.
        """
        digest, buffer = hashlib.sha256(), bytearray(PIECE_BYTES)
        unchanged = SourceFile.of(self.path) == self
        if unchanged:
            with self.path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    digest.update(memoryview(buffer)[:count])
            unchanged = SourceFile.of(self.path) == self
        if not unchanged:
            raise CheckpointError(f"{self.path} has changed since it was transplanted")
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Transplant:
    """The evidence of one transplant.

    Attributes:
        kind: what was read: TensorFlow checkpoint, SavedModel, Keras h5 weights, arrays.
        files: the files that were read; hashed as a whole only when the record is written.
        tensors: every tensor that was used.
        ignored: (key, reason) of every other.
        inferred: constructor arguments that the shapes determine.
        assumed: those that they do not, as the model has them.
        config: the model's configuration.
        constants: origin, sha256 of matrix and table, and why TensorFlow's numbers were not used, if so.
        training_state: slots and counters by the port's names, read on access from the checkpoint.
    """

    kind: str
    files: tuple[SourceFile, ...]
    tensors: tuple[TensorRecord, ...]
    ignored: tuple[tuple[str, str], ...]
    inferred: Mapping[str, Any]
    assumed: Mapping[str, Any]
    config: Mapping[str, Any]
    constants: Mapping[str, str]
    training_state: TrainingState = field(repr=False, compare=False)

    def to_json(self) -> str:
        """Everything but the tensors' numbers, and the sha256 of every source file.

        Raises:
            CheckpointError: a source file has changed since.
        """
        return json.dumps(self._as_dict(), indent=1)

    def _as_dict(self) -> dict[str, Any]:
        return {
            "format": "epibert transplant 1",
            "kind": self.kind,
            "files": [{"name": file.path.name, "bytes": file.bytes, "sha256": file.sha256()} for file in self.files],
            "configuration": {"inferred": dict(self.inferred), "assumed": dict(self.assumed)},
            "constants": dict(self.constants),
            "tensors": [dataclasses.asdict(tensor) for tensor in self.tensors],
            "ignored": [{"key": key, "reason": reason} for key, reason in self.ignored],
            "software": software(),
        }

    def save(self, directory: str | os.PathLike[str], model: Trunk, *, overwrite: bool = False) -> None:
        """Write model, configuration, training state and this record; all of them or nothing.

        Args:
            directory: gets `model.safetensors`, `config.json`, `training_state-*.safetensors` and `transplant.json`.
            model: the model that was filled.
            overwrite: replace an earlier result there.

        Raises:
            OutputError: not writable, or there is an earlier result.
            CheckpointError: the checkpoint's training state can no longer be read.
        """
        with atomic_directory(directory, last=RECORD_FILE, overwrite=overwrite) as folder:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, folder / MODEL_FILE)
            config = json.dumps(dataclasses.asdict(model.config), indent=1)
            (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
            files = save_training_state(self.training_state, folder)
            record = {**self._as_dict(), "training_state": files}
            (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def software() -> dict[str, str]:
    """Versions of what made a record."""
    found = {"torch": torch.__version__, "numpy": np.__version__}
    with contextlib.suppress(PackageNotFoundError):  # run from a checkout
        found["epibert-parity"] = version("epibert-parity")
    return found


class _Finite:
    """A visitor that counts the numbers that are NaN or infinite."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype.newbyteorder("<")
        self.wrong = 0

    def __call__(self, piece: np.ndarray) -> None:
        finite = np.isfinite(piece.view(self._dtype))
        if not finite.all():
            self.wrong += int((~finite).sum())


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What reading one tensor gave: the array when it belongs to the model, its hash, or a complaint."""

    assignment: Assignment
    array: np.ndarray | None = None
    sha256: str = ""
    damage: str = ""
    wrong: int = 0


def _read(checkpoint: Checkpoint, assignment: Assignment) -> _Reading:
    digest = hashlib.sha256()
    finite = _Finite(assignment.dtype)
    visitors: list[Visitor] = [lambda piece: digest.update(piece.data)]
    if assignment.role != COUNTER:  # a counter such as the best loss so far may start at infinity
        visitors.append(finite)
    array = None
    try:
        if assignment.in_model:
            array = checkpoint.read(assignment.key, *visitors)
        else:
            checkpoint.visit(assignment.key, *visitors)
    except CorruptCheckpointError as error:
        return _Reading(assignment=assignment, damage=str(error))
    return _Reading(assignment=assignment, array=array, sha256=digest.hexdigest(), wrong=finite.wrong)


def _damage(checkpoint: Checkpoint, key: str) -> str:
    try:
        checkpoint.visit(key)
    except CorruptCheckpointError as error:
        return str(error)
    return ""


def _read_all(checkpoint: Checkpoint, plan: Plan) -> list[_Reading]:
    """Read every tensor, the ignored ones too; raises one error that lists every damaged or non-finite tensor."""
    with ThreadPoolExecutor(THREADS) as pool:
        readings = list(pool.map(lambda assignment: _read(checkpoint, assignment), plan.assignments))
        damaged = list(pool.map(lambda entry: _damage(checkpoint, entry[0]), plan.ignored))
    damaged = [damage for damage in (*damaged, *(reading.damage for reading in readings)) if damage]
    if damaged:
        raise CorruptCheckpointError(listing("damaged tensors", damaged))
    wrong = [
        f"{reading.assignment.key}: {reading.wrong} of {int(np.prod(reading.assignment.shape))}"
        for reading in readings
        if reading.wrong
    ]
    if wrong:
        raise MappingError(listing("tensors with NaN or infinity", wrong))
    return readings


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's memory; bfloat16 travels as integers, which is all torch takes from NumPy."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@torch.no_grad()
def _copy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    target, source = pair
    target.copy_(source)


def _fill(model: Trunk, readings: list[_Reading], constants: Constants) -> None:
    """Change the model. Everything has been checked; what could still raise comes before the first change."""
    state = model.state_dict()
    pairs = []
    for reading in readings:
        if reading.array is not None:
            source = _as_tensor(reading.assignment.layout.to_port(reading.array))
            target = state[reading.assignment.name]
            if source.shape != target.shape:
                raise MappingError(f"{reading.assignment.name}: {tuple(source.shape)} into {tuple(target.shape)}")
            pairs.append((target, source))
    table = None if constants.rotary_table is None else _as_tensor(constants.rotary_table)
    with torch.no_grad():
        try:
            model.set_constants(_as_tensor(constants.projection_matrix), table, origin=constants.origin)
        except ValueError as error:
            raise MappingError(f"the constants do not fit the model: {error}") from None
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(_copy, pairs):
            pass  # the loop passes on what a thread raises


def _constants_record(constants: Constants) -> dict[str, str]:
    record = {"origin": constants.origin, "note": constants.note}
    for name, array in (("projection_matrix", constants.projection_matrix), ("rotary_table", constants.rotary_table)):
        if array is not None:
            record[f"{name}_sha256"] = hashlib.sha256(array.tobytes()).hexdigest()
    return record


def transplant(
    source: str | os.PathLike[str] | Mapping[str, np.ndarray],
    model: Trunk,
    *,
    constants: Choice = "auto",
) -> Transplant:
    """Fill a model from a checkpoint of the original: every tensor of both is accounted for, or nothing changes.

    Args:
        source: anything that `read_checkpoint` takes, its result, or a mapping `{key: array}` with keys as in a
            TensorFlow checkpoint (spec, section 6), with or without their suffix.
        model: an `EpiBERT` or `EpiBERTRampage`; gets the weights, BatchNorm statistics and constants. Its mode, device
            and dtypes stay. Stored numbers must be exact in the model's dtypes: float32 goes into float32 and float64,
            not into bfloat16.
        constants: where projection matrix and rotary table come from: `"auto"` (TensorFlow's own numbers when it is
            installed, else `"philox"`), `"tensorflow"`, `"philox"` (our own generator), `"keep"` (the model's), or
            (projection matrix, rotary table or None, origin).

    Returns:
        the record, with optimizer slots and counters as a lazy mapping `training_state`.

    Raises:
        CheckpointError: see `read_checkpoint`; also MappingError, listing every missing or unexpected key, wrong shape,
            contradiction in the configuration, dtype that would be rounded, and tensor with NaN or infinity.
    """
    if isinstance(source, Checkpoint):
        checkpoint = source
    elif isinstance(source, Mapping):
        checkpoint = ArrayCheckpoint(source)
    else:
        checkpoint = open_checkpoint(source)
    files = tuple(SourceFile.of(path) for path in checkpoint.files)
    plan = make_plan(checkpoint, model, kind_of(model))
    with ConstantsFinder(constants, model) as finder:
        readings = _read_all(checkpoint, plan)
        found = finder.result()
    for name, array in (("projection matrix", found.projection_matrix), ("rotary table", found.rotary_table)):
        if array is not None and not np.isfinite(array).all():
            raise CheckpointError(f"the {name} has NaN or infinity")
    _fill(model, readings, found)
    config = dataclasses.asdict(model.config)
    return Transplant(
        kind=checkpoint.kind,
        files=files,
        tensors=tuple(_tensor_record(reading) for reading in readings),
        ignored=plan.ignored,
        inferred=plan.inferred.values,
        assumed={name: config[name] for name in plan.inferred.assumed},
        config=config,
        constants=_constants_record(found),
        training_state=from_checkpoint(checkpoint, plan.assignments),
    )


def _tensor_record(reading: _Reading) -> TensorRecord:
    assignment = reading.assignment
    port = assignment.layout.to_port(np.broadcast_to(np.False_, assignment.shape)).shape
    return TensorRecord(
        key=assignment.key,
        name=assignment.name,
        role=assignment.role,
        layout=assignment.layout.name,
        stored_shape=assignment.shape,
        shape=port,
        dtype=assignment.dtype.name,
        sha256=reading.sha256,
    )
