"""What a transfer did: every tensor of both models, moved, fresh or dropped, and what was asked for by name."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save_file

from torch_impl import EpiBERTRampage
from weights.output import atomic_directory
from weights.transplant import CONFIG_FILE, MODEL_FILE, RECORD_FILE, SourceFile, software

LAYERS, SEED, ATAC_HEAD, NORMS = "layers", "seed", "atac_head", "layer_norms"
ALLOWED: Mapping[str, str] = {
    LAYERS: "another number of transformer layers: those that both have are moved, the first ones",
    SEED: "another seed: the layers then compute with another projection matrix than they were trained with",
    ATAC_HEAD: "a model without ATAC head: that of the checkpoint is dropped",
    NORMS: "the norms in front of each attention of an `inits` dictionary, which the original reads and never uses",
}
"""What the original does without a word, by the name to ask for it by."""

FORMAT = "epibert transfer 1"


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One tensor that was moved.

    Attributes:
        key: where it came from: key of the checkpoint, or name in our own folder.
        name: in the state of both models.
        sha256: of its bytes as they were stored (little-endian, C order).
    """

    key: str
    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Left:
    """One tensor that stayed as it was, or that was not used, and why.

    Attributes:
        name: in the model that was filled, or key in the source.
        reason: why.
        sha256: of its bytes in the model; empty for what was not used.
    """

    name: str
    reason: str
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The evidence of one transfer.

    Attributes:
        kind: what was read.
        files: the files that were read.
        moved: every tensor that was moved.
        fresh: every tensor of the model that was not filled, with what it holds instead.
        dropped: every tensor of the source that was not used.
        asked: what was asked for by name and happened.
        pretraining: configuration of the pretrained model.
        assumed: arguments of it that nothing tells, taken from the model that was filled.
        config: configuration of the model that was filled.
        constants: origin and sha256 of matrix and table.
    """

    kind: str
    files: tuple[SourceFile, ...]
    moved: tuple[Moved, ...]
    fresh: tuple[Left, ...]
    dropped: tuple[Left, ...]
    asked: tuple[str, ...]
    pretraining: Mapping[str, Any]
    assumed: tuple[str, ...]
    config: Mapping[str, Any]
    constants: Mapping[str, str]

    def to_json(self) -> str:
        """Everything but the tensors' numbers, and the sha256 of every source file.

        Raises:
            CheckpointError: a source file has changed since.
        """
        return json.dumps(self._as_dict(), indent=1)

    def _as_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "files": [{"name": file.path.name, "bytes": file.bytes, "sha256": file.sha256()} for file in self.files],
            "pretraining": {"config": dict(self.pretraining), "assumed": list(self.assumed)},
            "config": dict(self.config),
            "constants": dict(self.constants),
            "asked for": {name: ALLOWED[name] for name in self.asked},
            "moved": [dataclasses.asdict(tensor) for tensor in self.moved],
            "fresh": [dataclasses.asdict(tensor) for tensor in self.fresh],
            "dropped": [{"key": tensor.name, "reason": tensor.reason} for tensor in self.dropped],
            "software": software(),
        }

    def save(self, directory: str | os.PathLike[str], model: EpiBERTRampage, *, overwrite: bool = False) -> None:
        """Write model, configuration and this record, as `Transplant.save` does; all of them or nothing.

        Args:
            directory: gets `model.safetensors`, `config.json` and `transplant.json`. There is no training state: both
                optimizers begin anew.
            model: the model that was filled.
            overwrite: replace an earlier result there.

        Raises:
            OutputError: not writable, or there is an earlier result.
            CheckpointError: a source file has changed since.
        """
        with atomic_directory(directory, last=RECORD_FILE, overwrite=overwrite) as folder:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, folder / MODEL_FILE)
            config = json.dumps(dataclasses.asdict(model.config), indent=1)
            (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")
            record = {**self._as_dict(), "training_state": []}
            (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
