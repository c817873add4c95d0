"""The constants of attention, which no checkpoint holds: projection matrix and rotary table (spec, 1.7, 1.8, 6.1).

TensorFlow's own numbers are the first choice, because its float32 QR, power, sine and cosine are its own; without
TensorFlow the port's Philox gives the same matrix to 1.7e-6 of its largest entry. Unless this process has loaded
TensorFlow already, `tensorflow_constants.py` runs in a process of its own, so that a PyTorch process does not grow by
TensorFlow's size.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from torch_impl.model import Trunk
from torch_impl.random import projection_matrix, rotary_table
from weights.errors import CheckpointError

Choice = Literal["auto", "tensorflow", "philox", "keep"] | tuple[np.ndarray, np.ndarray | None, str]
PHILOX = "philox"
_TIMEOUT_SECONDS = 300
_PROGRAM = Path(__file__).with_name("tensorflow_constants.py")


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Projection matrix (M, D), rotary table (rows, D) or None, where they are from, and why not from elsewhere."""

    projection_matrix: np.ndarray
    rotary_table: np.ndarray | None
    origin: str
    note: str = ""


def _installed() -> bool:
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("tensorflow", "tf_keras", "tf_reference"))
    except (ImportError, ValueError):  # a blocked or half-initialised module
        return False


class ConstantsFinder:
    """Starts looking for the constants when entered, so that TensorFlow loads while tensors are being read.

    Args:
        choice: `"auto"`: TensorFlow's when it is installed, else our own; `"tensorflow"`; `"philox"`; `"keep"`: what
            the model has; or (projection matrix, rotary table or None, origin).
        model: the model that will receive them.

    Raises:
        CheckpointError: TensorFlow was asked for and is not there, or the choice is unknown.
    """

    def __init__(self, choice: Choice, model: Trunk) -> None:
        if isinstance(choice, str) and choice not in ("auto", "tensorflow", PHILOX, "keep"):
            raise CheckpointError(f"constants={choice!r}: choose auto, tensorflow, philox, keep, or give arrays")
        self._choice = choice
        self._model = model
        config = model.config
        self._sizes: dict[str, Any] = {
            "m": config.num_random_features,
            "d": config.head_size,
            "seed": int(config.seed),
            "rows": config.max_seq_length + 1 if config.use_rot_emb else None,
            "bfloat16": config.rotary_bfloat16,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "ConstantsFinder":
        if self._choice not in ("auto", "tensorflow") or not _installed() or "tensorflow" in sys.modules:
            return self
        self._folder = tempfile.TemporaryDirectory(prefix="epibert-constants-")
        root = str(Path(__file__).resolve().parents[1])
        arguments = json.dumps({"path": [root, *sys.path], "sizes": self._sizes, "file": str(self._file)})
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM), arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # The originals' numbers are the CPU's; this process must not claim an accelerator either.
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "constants.npz"

    def result(self) -> Constants:
        """The constants, in the model's shapes; waits for TensorFlow where it was started.

        Raises:
            CheckpointError: see the class.
        """
        if isinstance(self._choice, tuple):
            matrix, table, origin = self._choice
            return Constants(projection_matrix=np.asarray(matrix), rotary_table=table, origin=origin)
        if self._choice == "keep":
            performer = self._model.performer
            own = performer.rotary_table.table.cpu().numpy() if performer.rotary_table is not None else None
            return Constants(
                projection_matrix=performer.projection_matrix.cpu().numpy(),
                rotary_table=own,
                origin=self._model.constants_origin,
            )
        note = ""
        if self._choice in ("auto", "tensorflow"):
            try:
                matrix, table, origin = self._from_tensorflow()
                return Constants(projection_matrix=matrix, rotary_table=table, origin=origin)
            except (ImportError, subprocess.SubprocessError) as error:
                if self._choice == "tensorflow":
                    raise CheckpointError(f"TensorFlow's constants were asked for and cannot be had: {error}") from None
                note = f"TensorFlow's were not to be had: {error}"
        sizes = self._sizes
        matrix = projection_matrix(sizes["m"], sizes["d"], sizes["seed"])
        table = None
        if sizes["rows"] is not None:
            table = rotary_table(sizes["rows"], sizes["d"], bfloat16=sizes["bfloat16"])
        return Constants(projection_matrix=matrix, rotary_table=table, origin=PHILOX, note=note)

    def _from_tensorflow(self) -> tuple[np.ndarray, np.ndarray | None, str]:
        if self._process is None:
            if not _installed():
                raise ImportError("tensorflow, tf_keras or tf_reference is not installed")
            from weights.tensorflow_constants import tensorflow_constants

            return tensorflow_constants(**self._sizes)
        _, errors = self._process.communicate(timeout=_TIMEOUT_SECONDS)
        if self._process.returncode:
            last = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise ImportError(f"its process ended with status {self._process.returncode}: {last}")
        with np.load(self._file, allow_pickle=False) as found:
            return found["matrix"], found.get("table"), str(found["origin"])
