"""The data rung: records, draws, masks and augmentation, against numbers of the original and the living reference."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity import Status
from parity.pairs import epibert_data
from parity.pairs.epibert_data import AUGMENTATION, DRAWS, KINDS, MASKS, PORT_DATA, WHOLE, PortData
from tests.records import synthetic_records
from tests.suites.rungs import assert_all_pass, assert_gate, pick
from torch_impl.data import draws as draws_module
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


def changed(**parts: Any) -> Callable[..., Any]:
    """``make_example`` with some of its parts replaced while it runs."""

    def make(*arguments: Any, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, part in parts.items():
                patch.setattr(examples, name, part)
            return make_example(*arguments, **options)

    return make


def drawing(**parts: Any) -> Callable[[int], Any]:
    """``TensorFlowDraws`` with some of what it calls replaced while it draws."""

    class Faulty(TensorFlowDraws):
        def draw(self, *arguments: Any, **options: Any) -> Draws:
            with pytest.MonkeyPatch.context() as patch:
                for name, part in parts.items():
                    patch.setattr(draws_module, name, part)
                return super().draw(*arguments, **options)

    return Faulty


class BoostedLess(TensorFlowDraws):
    """Twice the rate where it should be three times."""

    def draw(self, *arguments: Any, **options: Any) -> Draws:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(examples, "BOOST", 2)
            return super().draw(*arguments, **options)


def narrow_mask(peak: int | None, kept_regions: np.ndarray, config: ExampleConfig) -> np.ndarray:
    """As wide as a region."""
    visible = np.ones(config.output_length, dtype=bool)
    examples.cropped(visible, config)[:] = np.repeat(kept_regions, config.region_bins)
    if peak is not None:
        start = peak + config.crop_size - config.region_bins // 2
        visible[max(start, 0) : start + config.region_bins] = False
    return visible


def without_margins(peak: int | None, kept_regions: np.ndarray, config: ExampleConfig) -> np.ndarray:
    """The mask of a peak does not reach into the margins."""
    visible = original_visible(peak, kept_regions, config)
    visible[: config.crop_size] = visible[config.output_length - config.crop_size :] = True
    return visible


original_visible = examples.visible_bins


def log_after_clip(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    plain = make_example(record, draws, dataclasses.replace(config, log_atac=False), **tables)
    return plain._replace(atac=np.log1p(plain.atac)) if config.log_atac else plain


def noise_after_masking(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    example = make_example(record, draws, config, **tables)
    noise = np.abs(draws.atac_noise)
    return example._replace(atac=np.where(example.atac == 0, noise, example.atac))


def on_the_same_strand(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    example = make_example(record, draws, config, **tables)
    forward = make_example(record, dataclasses.replace(draws, reverse_complement=False), config, **tables)
    return example._replace(target=forward.target)


def shifted_atac(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    moved = dataclasses.replace(record, atac=np.roll(record.atac, -draws.shift, axis=0))
    return make_example(moved, draws, config, **tables)


def target_without_noise(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    quiet = dataclasses.replace(draws, atac_noise=np.zeros_like(draws.atac_noise))
    return make_example(record, draws, config, **tables)._replace(
        target=make_example(record, quiet, config, **tables).target
    )


def signed_motif_noise(activity: np.ndarray, noise: np.ndarray, config: ExampleConfig, *tables: Any) -> np.ndarray:
    """Scaled to the unit interval, and the noise itself added."""
    plain = original_scaling(activity, np.zeros_like(noise), config, *tables)
    return plain + noise if config.use_motif_activity else plain


def of_masked_bins(record: Any, draws: Draws, config: ExampleConfig, **tables: Any) -> Any:
    example = make_example(record, draws, config, **tables)
    return example._replace(unmask=example.mask)


FAULTS: dict[str, tuple[PortData, set[str]]] = {
    "a peak's mask as wide as a region": (PortData(make=changed(visible_bins=narrow_mask)), {MASKS, AUGMENTATION}),
    "a peak's mask that spares the margins": (PortData(make=changed(visible_bins=without_margins)), {AUGMENTATION}),
    "reversal without complement": (
        PortData(make=changed(reverse_complement=lambda indices: indices[::-1])),
        {AUGMENTATION},
    ),
    "complement without reversal": (
        PortData(make=changed(reverse_complement=lambda indices: np.minimum(indices ^ 3, 4))),
        {AUGMENTATION},
    ),
    "logarithm after the clip": (PortData(make=log_after_clip), {AUGMENTATION}),
    "noise at masked positions": (PortData(make=noise_after_masking), {AUGMENTATION}),
    "a target of the other strand": (PortData(make=on_the_same_strand), {AUGMENTATION}),
    "accessibility shifted with the sequence": (PortData(make=shifted_atac), {AUGMENTATION}),
    "a target without noise": (PortData(make=target_without_noise), {AUGMENTATION}),
    "a hard clip": (
        PortData(make=changed(soft_clip=lambda x, limit: np.minimum(x, np.float32(limit)))),
        {AUGMENTATION},
    ),
    "unmask on masked bins": (PortData(make=of_masked_bins), {MASKS}),
    "sums in another order": (PortData(make=changed(row_sums=lambda rows: rows.sum(axis=1))), {AUGMENTATION}),
    "RNA that is not smoothed": (
        PortData(make=changed(smooth_rna=lambda rna: np.sqrt(np.clip(rna, 0, 65500)).astype(np.float32))),
        {AUGMENTATION},
    ),
    "RNA without its root": (
        PortData(make=changed(smooth_rna=lambda rna: original_smoothing(np.square(np.clip(rna, 0, 65500))))),
        {AUGMENTATION},
    ),
    "lower case unknown": (
        PortData(make=changed(base_indices=lambda s: original_bases(bytes(b if b < 97 else 78 for b in s)))),
        {AUGMENTATION},
    ),
    "accessibility with noise of either sign": (
        PortData(make=changed(add_noise=lambda atac, noise: np.ravel(atac).astype(np.float32) + np.ravel(noise))),
        {AUGMENTATION},
    ),
    "motifs with noise of either sign": (PortData(make=changed(scale_motifs=signed_motif_noise)), {AUGMENTATION}),
    "a boost of two": (PortData(source=BoostedLess), {DRAWS}),
    "the next seed": (PortData(source=lambda seed: TensorFlowDraws(seed + 1)), {DRAWS}),
    "regions kept at a draw above the rate only": (
        PortData(source=drawing(stateless_uniform=lambda *a: original_uniform(*a) - np.float32(2**-23))),
        {DRAWS},
    ),
    "a shuffle by another seed": (
        PortData(source=drawing(stateless_permutation=lambda n, s: original_permutation(n, (s[0], s[1] + 1)))),
        {DRAWS},
    ),
    "a port that makes nothing": (
        PortData(make=lambda *a, **k: None),  # type: ignore[arg-type]  that is the fault
        {MASKS, AUGMENTATION},
    ),
}
original_scaling = examples.scale_motifs
original_smoothing = examples.smooth_rna
original_bases = examples.base_indices
original_uniform = draws_module.stateless_uniform
original_permutation = draws_module.stateless_permutation


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_turns_the_rung_red_and_is_named(goldens, name):
    port, named = FAULTS[name]
    rows = epibert_data.compare_recorded_data(goldens / "data", port)
    failing = {row.layer for row in rows if row.status is not Status.PASS}
    # Wrong draws and wrong parts both show in examples from the seed.
    assert failing - {WHOLE} == named


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
    dataset.draws = TensorFlowDraws(5)  # type: ignore[assignment]  the original's in place of our own
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
