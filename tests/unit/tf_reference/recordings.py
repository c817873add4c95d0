"""What the original computed (goldens/), and the taps of the reference by the same paths."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import tensorflow as tf
import tf_keras

from tf_reference import EpiBERT, EpiBERTRampage

GOLDENS = Path(__file__).resolve().parents[3] / "goldens"
CPU_INFORMATION = Path("/proc/cpuinfo")
NATIVE_BFLOAT16 = CPU_INFORMATION.is_file() and "avx512_bf16" in CPU_INFORMATION.read_text(encoding="utf-8").split()
"""Whether this processor has the bfloat16 arithmetic that the recording was made with (goldens/environment.json)."""

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
POLICIES = {"f64": "float64", "f64_exact_rotary": "float64", "f32": "float32", "bf16": "mixed_bfloat16"}


@dataclass(frozen=True)
class Recording:
    """One case: a configuration, its weights and inputs, and what the original made of them."""

    case: str

    @cached_property
    def description(self) -> dict[str, Any]:
        return json.loads((GOLDENS / self.case / "config.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        return self.description["config"]

    @cached_property
    def arrays(self) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
        """Every array of forward.h5 by its path, with its attributes; hard links appear under each of their names."""
        with h5py.File(GOLDENS / self.case / "forward.h5") as file:
            return {path: (array[()], dict(array.attrs)) for path, array in _datasets(file, "")}

    def array(self, path: str) -> np.ndarray:
        return self.arrays[path][0].astype(np.float64)

    def under(self, path: str) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
        return {key[len(path) + 1 :]: value for key, value in self.arrays.items() if key.startswith(path + "/")}

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        reader = tf.train.load_checkpoint(str(self.checkpoint("ckpt_before")))
        return {key: reader.get_tensor(key + SUFFIX) for key in self.description["variables"]}

    def checkpoint(self, name: str) -> Path:
        return GOLDENS / self.case / name / "ckpt-1"

    @property
    def inputs(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        bases, atac, motifs = (self.arrays[f"inputs/{name}"][0] for name in ("sequence", "atac", "motif_activity"))
        one_hot = np.concatenate([np.eye(4), np.zeros((1, 4))])[bases]
        return tf.constant(one_hot, tf.float32), tf.constant(atac, tf.float32), tf.constant(motifs, tf.float32)

    def model(self, mode: str) -> Any:
        """The reference with the weights and constants of the recording: one object per precision, as good as new."""
        model = _built(self.case, POLICIES[mode])
        model.assign(self.weights)
        table = "rotary_table_float32" if mode == "f64_exact_rotary" else "rotary_table_bfloat16"
        constants = self.under("constants")
        model.set_constants(constants["projection_matrix_0"][0], constants[table][0])
        return model


RECORDINGS = {case: Recording(case) for case in ("P1", "P2")}
FINE_TUNING = {case: Recording(case) for case in ("R1", "R2")}


@cache
def _built(case: str, policy: str) -> EpiBERT | EpiBERTRampage:
    kind = EpiBERT if case in RECORDINGS else EpiBERTRampage
    return kind(**Recording(case).config, dtype=policy).build_weights()


def _datasets(group: h5py.Group, prefix: str) -> Iterator[tuple[str, h5py.Dataset]]:
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from _datasets(item, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", item


def relative_distance(got: np.ndarray, expected: np.ndarray) -> float:
    """Relative L2 distance; infinite for a shape that differs or a value that is not finite."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    if got.shape != expected.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.linalg.norm(got - expected) / (np.linalg.norm(expected) or 1.0))


def layer_at(model: tf_keras.Model, path: str) -> Any:
    node: Any = model
    for name in path.split("/"):
        if isinstance(node, tf_keras.Sequential):
            node = node.layers[int(name)]
        else:
            node = node[int(name)] if name.isdigit() else getattr(node, name)
    return node


@contextmanager
def captured(model: tf_keras.Model, paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Record the outputs of the layers at ``paths``; the second call of a layer is ``path@1``, and so on."""
    names = {id(layer_at(model, path)): path for path in paths}
    outputs: dict[str, Any] = {}
    original = tf_keras.layers.Layer.__call__

    def call(layer, *arguments, **keywords):
        output = original(layer, *arguments, **keywords)
        if id(layer) in names:
            name = path = names[id(layer)]
            number = 0
            while name in outputs:
                number += 1
                name = f"{path}@{number}"
            outputs[name] = output
        return output

    with mock.patch.object(tf_keras.layers.Layer, "__call__", call):
        yield outputs


def tapped(model: tf_keras.Model, recording: Recording, mode: str) -> dict[str, np.ndarray]:
    """One evaluation pass: the tap of every recorded array, cut to the recorded positions."""
    recorded = recording.under(f"modes/{mode}/taps")
    paths = {key.rpartition("/")[0].partition("@")[0] for key in recorded}
    with captured(model, paths) as outputs:
        model(recording.inputs, training=False)
    assert {key.rpartition("/")[0] for key in recorded} <= outputs.keys()
    taps = {}
    for key, (_, attributes) in recorded.items():
        path, _, name = key.rpartition("/")
        output = outputs[path]
        if isinstance(output, tuple):
            output = output[("output", "k_prime", "q_prime").index(name)]
        array = tf.cast(output, tf.float64).numpy()
        if "axis" in attributes:
            assert array.shape == tuple(attributes["full_shape"])
            array = array.take(attributes["positions"], axis=int(attributes["axis"]))
        taps[key] = array
    return taps
