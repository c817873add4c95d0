"""The crop of the published fine-tuning, 896 bins of 4096: one that is taken on one side is named, by layer and data.

Recorded cases crop two or four bins of 64, where a crop at the wrong end moves everything by as little.
"""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from torch import Tensor

import parity
from parity import Comparison, GateStatus, Status
from parity.pairs import epibert, epibert_data
from parity.pairs.epibert_data import AUGMENTATION, MASKS
from tests.records import synthetic_records
from tests.suites.rungs import assert_all_pass
from torch_impl import EpiBERTConfig, EpiBERTRampage
from torch_impl.data import examples
from torch_impl.data.draws import Draws, OwnDraws
from torch_impl.data.examples import ExampleConfig, make_example
from torch_impl.data.records import Record
from torch_impl.data.tfrecord import write_records
from weights import transplant

BINS, KEPT = 4096, 896
MODEL = EpiBERTConfig(
    output_length=BINS, final_output_length=KEPT, max_seq_length=BINS, num_heads=2, num_transformer_layers=1,
    filter_list_seq=(8,), filter_list_atac=(4,), final_point_scale=2, num_motifs=3, seed=3,
)  # fmt: skip
DATA = ExampleConfig.finetuning_preset(num_motifs=12, training=False)


# --- the layer -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tensorflow) -> Callable[[], tuple[Any, EpiBERTRampage, Any]]:
    """The reference, a fresh port with its weights, and inputs."""
    import tf_reference

    reference = tf_reference.EpiBERTRampage(
        **epibert.original_arguments(MODEL), predict_atac=True, dtype="float32"
    ).build_weights()
    folder = tmp_path_factory.mktemp("crop")
    tensorflow.train.Checkpoint(model=reference).save(str(folder / "ckpt"))
    inputs = epibert.synthetic_inputs(MODEL, batch=1, seed=1)

    def make() -> tuple[Any, EpiBERTRampage, Any]:
        port = EpiBERTRampage(MODEL)
        transplant(folder, port)
        return reference, port, inputs

    return make


def verified(reference: Any, port: Any, inputs: Any) -> parity.Result:
    gates, modes = ("layers", "model"), ("evaluation",)
    return parity.verify(reference, port, inputs, precisions=("float64",), gates=gates, modes=modes)


def one_sided(crop: Any, x: Tensor) -> Tensor:
    return x[:, : x.shape[1] - 2 * crop.bins]


def at_the_other_end(crop: Any, x: Tensor) -> Tensor:
    return x[:, 2 * crop.bins :]


def one_bin_off(crop: Any, x: Tensor) -> Tensor:
    return x[:, crop.bins - 1 : x.shape[1] - crop.bins - 1]


@pytest.mark.slow
def test_a_right_crop_is_proven_at_the_published_size(pair):
    reference, port, inputs = pair()
    assert port.crop_final.bins == (BINS - KEPT) // 2
    result = verified(reference, port, inputs)
    for gate in ("layers", "model"):
        assert result.gates[gate].status is GateStatus.PASSED
        assert_all_pass(list(result.gates[gate].comparisons))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [one_sided, at_the_other_end, one_bin_off], ids=lambda fault: fault.__name__)
def test_a_wrong_crop_of_the_model_is_named(pair, fault):
    reference, port, inputs = pair()
    port.crop_final.forward = types.MethodType(fault, port.crop_final)
    result = verified(reference, port, inputs)
    assert result.gates["layers"].status is GateStatus.FAILED
    assert result.culprits == ("crop_final",)


# --- the data --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Read:
    """A record, what was drawn for it, and what the reference's reader hands out."""

    record: Record
    drawn: Draws
    outputs: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def read(tmp_path_factory, tensorflow) -> Read:
    from tf_reference import data

    names = {field.name for field in dataclasses.fields(data.Reader)}
    reader = data.Reader(**{name: value for name, value in dataclasses.asdict(DATA).items() if name in names})
    path = tmp_path_factory.mktemp("data") / "one.tfr"
    (record,) = synthetic_records(DATA, 1)
    write_records(path, [record])
    drawn = dataclasses.replace(OwnDraws(3).draw(record, DATA), reverse_complement=False)
    given = {field.name: getattr(drawn, field.name) for field in dataclasses.fields(drawn)}
    given["peak"] = epibert_data.NO_PEAK if drawn.peak is None else drawn.peak
    (serialized,) = tensorflow.data.TFRecordDataset(str(path), compression_type="ZLIB")
    found = data.apply(data.parse(serialized, reader, data.find_dtypes(path)), given, reader)
    arrays = [(tf.cast(x, tf.float32) if x.dtype == tf.bfloat16 else x).numpy() for x in found]
    outputs = dict(zip(epibert_data.OUTPUTS, arrays, strict=True))
    # One hot in the reference, indices in the port, which widens them on the device.
    one_hot = outputs["sequence"]
    outputs["sequence"] = np.where(one_hot.any(axis=-1), one_hot.argmax(axis=-1), examples.UNKNOWN_BASE)
    return Read(record, drawn, outputs)


def compared(read: Read) -> list[Comparison]:
    rows = list(
        epibert_data.compare_example(make_example(read.record, read.drawn, DATA), read.outputs, case="published crop")
    )
    # TensorFlow's convolution adds up the three products of RNA in an order that depends on the processor.
    return [row for row in rows if row.quantity != "rna"]


def test_a_right_crop_of_the_data_is_proven_at_the_published_size(read):
    assert read.outputs["atac_target"].shape == read.outputs["rna_target"].shape == (KEPT, 1)
    rows = compared(read)
    assert {row.quantity for row in rows} == set(examples.Example._fields) - {"rna"}
    assert_all_pass(rows)
    rna = make_example(read.record, read.drawn, DATA).rna
    assert rna is not None
    np.testing.assert_array_max_ulp(rna, read.outputs["rna_target"], maxulp=3)


@pytest.mark.parametrize(
    "taken",
    [
        lambda bins, config: bins[: config.output_length - 2 * config.crop_size],
        lambda bins, config: bins[2 * config.crop_size :],
        lambda bins, config: bins[config.crop_size - 1 : config.output_length - config.crop_size - 1],
    ],
    ids=["one_sided", "at_the_other_end", "one_bin_off"],
)
def test_a_wrong_crop_of_the_data_is_named(read, monkeypatch, taken):
    monkeypatch.setattr(examples, "cropped", taken)
    failing = {row.layer: set() for row in compared(read) if row.status is not Status.PASS}
    for row in compared(read):
        if row.status is not Status.PASS:
            failing[row.layer].add(row.quantity)
    assert failing.keys() == {MASKS, AUGMENTATION}
    assert failing[AUGMENTATION] >= {"target", "tss_tokens"}


def test_a_target_of_other_bins_than_its_mask_is_named(read, monkeypatch):
    whole = dataclasses.replace(DATA, crop_size=0, mask_size=128)

    def one_sided_target(signal: np.ndarray, config: ExampleConfig) -> np.ndarray:
        return original(signal, whole)[: config.cropped_length]

    original = examples.bin_target
    monkeypatch.setattr(examples, "bin_target", one_sided_target)
    assert {(row.layer, row.quantity) for row in compared(read) if row.status is not Status.PASS} == {
        (AUGMENTATION, "target")
    }
