"""The data rung: records, draws, masks and augmentation, against numbers of the original and the living reference."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity import Status
from parity.attack.fault import Kind
from parity.pairs import epibert_data
from parity.pairs.epibert_data import AUGMENTATION, DRAWS, KINDS, MASKS, PORT_DATA, WHOLE, PortData
from parity.pairs.epibert_faults.catalogue import CATALOGUE
from parity.pairs.epibert_faults.subject import Subject
from tests.records import synthetic_records
from tests.suites.rungs import assert_all_pass, assert_gate, pick
from torch_impl.data import examples
from torch_impl.data.convert import convert_tfrecord_to_hdf5
from torch_impl.data.draws import Draws, OwnDraws, TensorFlowDraws
from torch_impl.data.examples import ExampleConfig, make_example, one_hot
from torch_impl.data.records import Record
from torch_impl.data.store import Store
from torch_impl.data.tfrecord import write_records
from torch_impl.data_module import ExampleDataset, ExampleSampler, ResumableLoader, collate
from torch_impl.random import round_to_bfloat16

EXAMPLES = 124
"""Recorded ones: four readers, six or seven variants, up to six seeds and three records."""

NOT_OF_EVERY_READER = {"pretrain_tr": 6, "pretrain_val": 5, "finetune_tr": 7, "finetune_val": 10}
"""Outputs of each reader that are compared; pre-training's validation lacks the motif activity."""


def test_the_rung_is_proven(ladder):
    assert_gate(ladder, "data")


@pytest.mark.parametrize("kind", KINDS)
def test_every_output_of_every_recorded_example_is_equal_to_the_last_bit(ladder, kind):
    rows = [row for row in pick(ladder, "data") if f"recorded: {kind}," in row.case]
    cases = {row.case for row in rows}
    outputs = [row for row in rows if row.layer in (MASKS, AUGMENTATION)]
    assert len(outputs) == NOT_OF_EVERY_READER[kind] * len(cases)
    # And once more with draws from the seed alone.
    assert len([row for row in rows if row.layer == WHOLE]) == len(outputs)
    assert_all_pass(rows)


def test_every_draw_of_every_recorded_example_comes_from_its_seed(ladder):
    rows = pick(ladder, "data", layer=DRAWS)
    assert len({row.case for row in rows}) == EXAMPLES
    always = {field.name for field in dataclasses.fields(Draws)} - {
        "block_order",
        "atac_replacement",
        "sequence_replacement",
    }
    for case in {row.case for row in rows}:
        assert {row.quantity for row in rows if row.case == case} >= always
    assert_all_pass(rows)


# --- seeded faults ---------------------------------------------------------------------------------------------------


FAULTS = {name: fault for name, fault in CATALOGUE.items() if fault.kind is Kind.DATA}


SLOW = (
    "a window one base to the right",
    "a window without its shift",
    "accessibility of the other strand",
    "an unmask of the other strand",
    "an inverted mask",
    "bases in another order",
    "a clip of twice the height",
    "means for sums",
    "motifs without noise",
    "motifs as stored",
    "unknown bases as A",
)
"""Others stand for these in the quick tests; ``epibert attack`` runs them all."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in FAULTS])
def test_a_fault_turns_the_rung_red_and_is_named(goldens, name):
    subject = Subject(pytest.fail)
    FAULTS[name].inject(subject)
    rows = epibert_data.compare_recorded_data(goldens / "data", subject.data)
    failing = {row.layer for row in rows if row.status is not Status.PASS}
    # Wrong draws and wrong parts both show in examples from the seed.
    assert failing == set(FAULTS[name].named)


def test_names_of_slow_faults_are_names_of_faults():
    assert set(SLOW) < set(FAULTS)


def test_a_port_without_a_fault_passes(goldens):
    assert {row.status for row in epibert_data.compare_recorded_data(goldens / "data", PORT_DATA)} == {Status.PASS}


# --- the living reference --------------------------------------------------------------------------------------------

CONFIGS = {
    "pre-training": ExampleConfig.tiny(num_motifs=12, mask_noise=True, log_atac=True),
    "fine-tuning": ExampleConfig.tiny(num_motifs=12, finetuning=True, mask_size=256, max_shift=10),
    "without inputs": ExampleConfig.tiny(num_motifs=12, use_atac=False, use_seq=False, use_motif_activity=False),
    "other lengths": ExampleConfig(
        input_length=8192,
        output_length_ATAC=1024,
        output_length=32,
        output_res=256,
        crop_size=7,
        mask_size=512,
        max_shift=1,
        atac_mask_dropout=0.5,
        atac_corrupt_rate=2,
        num_motifs=12,
    ),
    "published pre-training": ExampleConfig.pretraining(num_motifs=12, mask_noise=True),
    "published fine-tuning": ExampleConfig.finetuning_preset(num_motifs=12),
}


def reader_of(config: ExampleConfig, **tables: Any) -> Any:
    """The reference's reader of the same settings."""
    from tf_reference.data import Reader

    names = {field.name for field in dataclasses.fields(Reader)}
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name in names}
    return Reader(**settings, **tables)


def as_arrays(outputs: Any) -> list[np.ndarray]:
    """Outputs of the reference, bfloat16 widened."""
    import tensorflow as tf

    return [(tf.cast(x, tf.float32) if x.dtype == tf.bfloat16 else x).numpy() for x in outputs]


def batch_of(example: examples.Example) -> list[np.ndarray]:
    """An example as the reference hands it out."""
    wide = example._replace(
        sequence=one_hot(example.sequence),
        atac=round_to_bfloat16(example.atac),
        motif_activity=round_to_bfloat16(example.motif_activity),
    )
    return [np.asarray(value) for value in wide if value is not None]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], *, finetuning: bool) -> None:
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        if finetuning and position == 6:
            # Three products, summed in an order that TensorFlow's convolution chooses by processor and version.
            np.testing.assert_array_max_ulp(one, other, maxulp=3)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("source", [OwnDraws, TensorFlowDraws])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_records_and_draws_make_the_same_example(tensorflow, tmp_path, name, training, source):
    import tensorflow as tf

    from tf_reference import data

    config = dataclasses.replace(CONFIGS[name], training=training)
    tables: dict[str, Any] = {}
    if not training and not config.finetuning:
        config = dataclasses.replace(config, motif_scaling="z_score")
        generator = np.random.default_rng(0)
        tables = {
            "motif_means": generator.normal(size=12).astype(np.float32),
            "motif_deviations": generator.random(12).astype(np.float32),
        }
    reader = reader_of(config, **tables)
    path = tmp_path / "some.tfr"
    records = list(synthetic_records(config, 4))
    write_records(path, records)
    dtypes = data.find_dtypes(path)
    drawer = source(3)
    raw = tf.data.TFRecordDataset(str(path), compression_type="ZLIB")
    for index, (serialized, record) in enumerate(zip(raw, records, strict=True)):
        drawn = drawer.draw(record, config, index=index)
        given = {field.name: getattr(drawn, field.name) for field in dataclasses.fields(drawn)}
        given["peak"] = -1 if drawn.peak is None else drawn.peak
        expected = as_arrays(data.apply(data.parse(serialized, reader, dtypes), given, reader))
        found = batch_of(make_example(record, drawn, config, **tables))
        assert_same(found, expected, finetuning=config.finetuning)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_reference_draws_what_the_port_draws_from_the_same_seed(tensorflow, tmp_path, name, training):
    import tensorflow as tf

    from tf_reference import data

    config = dataclasses.replace(CONFIGS[name], training=training)
    reader = reader_of(config)
    path = tmp_path / "some.tfr"
    records = list(synthetic_records(config, 4))
    write_records(path, records)
    dtypes, generator, source = data.find_dtypes(path), tf.random.Generator.from_seed(11), TensorFlowDraws(11)
    raw = tf.data.TFRecordDataset(str(path), compression_type="ZLIB")
    for serialized, record in zip(raw, records, strict=True):
        found = source.draw(record, config)
        expected = data.draw(data.parse(serialized, reader, dtypes), reader, generator)
        for key, value in expected.items():
            own = getattr(found, key)
            if key == "peak":
                own = -1 if own is None else own
            if value is None or own is None:
                assert value is own
                continue
            np.testing.assert_array_equal(np.asarray(own), value.numpy(), err_msg=key)


def test_converted_records_make_every_recorded_example_too(tmp_path, goldens):
    """As they are read for training."""

    def read(path: Path) -> Iterator[Record]:
        convert_tfrecord_to_hdf5(path, tmp_path / path.stem)
        store = Store(tmp_path / path.stem)
        return map(store.for_training, range(len(store)))

    rows = list(epibert_data.compare_recorded_data(goldens / "data", PortData(read=read)))
    assert len(rows) > 2000
    assert_all_pass(rows)


def test_both_stacks_see_the_same_batches_in_the_same_order(tensorflow, tmp_path):
    """From the same TFRecords: tf.data with the original's draws, and the port's loader over converted records."""
    from tf_reference import data

    config = ExampleConfig.tiny(num_motifs=12)
    folder = tmp_path / "source" / "valid"
    folder.mkdir(parents=True)
    for number in range(2):
        write_records(folder / f"{number}.tfr", synthetic_records(config, 3, seed=10 * number))
    convert_tfrecord_to_hdf5(tmp_path / "source", tmp_path / "target")
    evaluation = dataclasses.replace(config, training=False)
    dataset = ExampleDataset(tmp_path / "target" / "valid", evaluation, seed=5)
    dataset.draws = TensorFlowDraws(5)  # the original's in place of our own
    sampler = ExampleSampler(dataset.store.shard_sizes, order="stored")
    ours = list(ResumableLoader(dataset, sampler, batch_size=4, collate_fn=collate))
    theirs = list(
        data.validation_dataset(
            tmp_path / "source", reader_of(evaluation), seed=5, batch_size=4, steps=2, repeat=1, deterministic=True
        )
    )
    assert [len(batch[0]) for batch in ours] == [4, 2]
    for found, expected in zip(ours, theirs, strict=True):
        sequence, atac, *others = (tensor.numpy() for tensor in found)
        wide = np.stack([one_hot(each) for each in sequence])
        others[3] = round_to_bfloat16(others[3])
        assert_same([wide, round_to_bfloat16(atac), *others], as_arrays(expected), finetuning=False)
