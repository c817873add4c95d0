"""The original's data pipeline: four readers (pre-training, fine-tuning; training, validation) and their datasets.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 4. Two things are apart that the original has in one function: what is drawn, by TensorFlow's generator in the
original's order, and what is made of it, so that the second can be fed with given draws. ``deserialize`` is both.

Letters in shapes: L base pairs, A accessibility values, O output bins, N output bins after the crop, R mask regions of
N, M motifs.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

ATAC_CLIP, TARGET_CLIP, RNA_CLIP = 150.0, 2000.0, 65500.0
NOISE_BLOCK = 512
LARGEST_SEED = 100_000_000
RNA_KERNEL = (0.27406862, 0.45186275, 0.27406862)
PRETRAINING = ("sequence", "atac", "peaks_center", "motif_activity")
FINETUNING = (*PRETRAINING, "rna")
FINETUNING_VALIDATION = (*FINETUNING, "tss_tokens", "processed_gene_token", "cell_encoding")
FLOATS = ("atac", "motif_activity", "rna")
"""Features that writers store as float16 or as float32; the other tensors are int32."""

Draws = Mapping[str, Any]
"""By the names of ``draw``; what is not drawn is absent or None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """One of the original's readers. Names of the settings are its own.

    Attributes:
        input_length: L.
        output_length_ATAC: A.
        output_length: O.
        crop_size: Output bins cut from each end.
        output_res: Base pairs of an output bin.
        max_shift: The sequence is moved by less than this.
        mask_size: Base pairs of a masked region.
        atac_mask_dropout: Share of regions that are masked.
        atac_corrupt_rate: One training example in so many has three times as many masked.
        mask_noise: Shuffled accessibility at masked positions.
        log_atac: log(1 + x) of the accessibility.
        use_atac: False: uniform noise.
        use_seq: False: random bases.
        use_motif_activity: False: zeros.
        num_motifs: M.
        constant_motifs: Make NaN of motif activity that is the same throughout, as the original does, instead of
            refusing it.
        training: The reader for training.
        finetuning: The reader of the fine-tuning script.
        motif_means: (M,) means, by which pre-training's validation scales; None scales by smallest and largest.
        motif_deviations: (M,) standard deviations that go with them.

    Raises:
        ValueError: The cropped bins are no multiple of a region's, or the original has no such reader.
    """

    input_length: int
    output_length_ATAC: int
    output_length: int
    crop_size: int
    output_res: int
    max_shift: int
    mask_size: int
    atac_mask_dropout: float
    atac_corrupt_rate: int = 20
    mask_noise: bool = False
    log_atac: bool = False
    use_atac: bool = True
    use_seq: bool = True
    use_motif_activity: bool = True
    num_motifs: int = 693
    constant_motifs: bool = False
    training: bool = True
    finetuning: bool = False
    motif_means: Any = None
    motif_deviations: Any = None

    def __post_init__(self) -> None:
        if self.region_bins < 1 or self.cropped_length % self.region_bins:
            raise ValueError(f"{self.cropped_length} bins cannot be cut into regions of {self.region_bins}")
        if self.mask_noise and self.finetuning:
            raise ValueError("mask_noise belongs to pre-training")
        if self.motif_means is not None and (self.training or self.finetuning):
            raise ValueError("motif_means belong to the validation of pre-training")

    @property
    def region_bins(self) -> int:
        """Bins of a masked region."""
        return self.mask_size // self.output_res

    @property
    def cropped_length(self) -> int:
        """N."""
        return self.output_length - 2 * self.crop_size

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that are read."""
        if not self.finetuning:
            return PRETRAINING
        return FINETUNING if self.training else FINETUNING_VALIDATION


# --- reading ---------------------------------------------------------------------------------------------------------


def find_dtypes(path: str | Path, compression: str = "ZLIB") -> dict[str, tf.DType]:
    """Types of the tensors in the first record of a file, by feature."""
    for serialized in tf.data.TFRecordDataset(str(path), compression_type=compression).take(1):
        example = tf.train.Example.FromString(serialized.numpy())
        found = {}
        for name, feature in example.features.feature.items():
            if name in FINETUNING_VALIDATION and name != "sequence":
                proto = tensor_pb2.TensorProto.FromString(feature.bytes_list.value[0])
                found[name] = tf.as_dtype(types_pb2.DataType.Name(proto.dtype).removeprefix("DT_").lower())
        return found
    raise ValueError(f"{path}: holds no records")


def original_dtypes(reader: Reader) -> dict[str, tf.DType]:
    """The only types that the original's reader takes, by feature.

    No file of pre-training is read by both of its readers: they want the motif activity in different types.
    """
    dtypes = {name: tf.float32 if name in FLOATS else tf.int32 for name in reader.features[1:]}
    if not reader.finetuning:
        dtypes["atac"] = tf.float16
        dtypes["motif_activity"] = tf.float32 if reader.training else tf.float16
    return dtypes


def parse(serialized: tf.Tensor, reader: Reader, dtypes: Mapping[str, tf.DType] | None = None) -> dict[str, tf.Tensor]:
    """Features of one record.

    Args:
        serialized: () string, a ``tf.train.Example``.
        reader: Says which features, and their lengths.
        dtypes: Types of the tensors, by feature. None: floats are of the type that the tensor itself names, float16 or
            float32, and become float32.

    Raises:
        tf.errors.InvalidArgumentError: A feature is missing, or a tensor has another type or shape.
    """
    described = {name: tf.io.FixedLenFeature([], tf.string) for name in reader.features}
    parsed = tf.io.parse_single_example(serialized, described)
    features = {"sequence": parsed["sequence"]}
    bins, shapes = reader.output_length, {}
    shapes |= {"atac": [reader.output_length_ATAC, 1], "peaks_center": [bins], "motif_activity": [reader.num_motifs]}
    shapes |= {"rna": [bins, 1], "tss_tokens": [bins], "processed_gene_token": [], "cell_encoding": []}
    for name in reader.features[1:]:
        if dtypes is not None:
            tensor = tf.io.parse_tensor(parsed[name], dtypes[name])
        elif name in FLOATS:
            tensor = _parse_floats(parsed[name])
        else:
            tensor = tf.io.parse_tensor(parsed[name], tf.int32)
        features[name] = tf.ensure_shape(tensor, shapes[name])
    return features


def _parse_floats(serialized: tf.Tensor) -> tf.Tensor:
    """float32 from a serialised tensor of float16 or float32; its first two bytes are its type's tag and number."""
    half = tf.equal(tf.strings.substr(serialized, 0, 2), bytes([8, types_pb2.DT_HALF]))
    return tf.cond(
        half,
        lambda: tf.cast(tf.io.parse_tensor(serialized, tf.float16), tf.float32),
        lambda: tf.io.parse_tensor(serialized, tf.float32),
    )


def write_records(path: str | Path, records: Iterable[Mapping[str, Any]], compression: str = "ZLIB") -> None:
    """Writes records in the original's schema.

    Args:
        path: File to write.
        records: Arrays by the names of their features; bytes are written as they are.
        compression: ZLIB, GZIP or nothing.
    """
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in records:
            features = {}
            for name, value in record.items():
                content = value if isinstance(value, bytes) else tf.io.serialize_tensor(value).numpy()
                features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def deserialize(
    serialized: tf.Tensor,
    reader: Reader,
    generator: tf.random.Generator,
    dtypes: Mapping[str, tf.DType] | None = None,
) -> tuple[tf.Tensor, ...]:
    """What the original's functions of this name do: reads a record, draws, and makes the example of it.

    Args:
        serialized: As for ``parse``.
        reader: Which of the four readers, and its settings.
        generator: As for ``draw``.
        dtypes: As for ``parse``; those of ``original_dtypes`` make the reader as strict as the original.

    Returns:
        As ``apply``.
    """
    features = parse(serialized, reader, dtypes)
    return apply(features, draw(features, reader, generator), reader)


# --- drawing ---------------------------------------------------------------------------------------------------------

_shuffled = tf.random.experimental.stateless_shuffle  # type: ignore[attr-defined]  the stubs do not know it


def draw(features: Mapping[str, tf.Tensor], reader: Reader, generator: tf.random.Generator) -> dict[str, Any]:
    """What chance decides about one example, in the original's order of draws.

    Args:
        features: Of the record, by ``parse``.
        reader: Settings.
        generator: Of the original's kind: ``tf.random.Generator.from_seed(seed)``, one for all records.

    Returns:
        ``shift``, ``reverse_complement``, ``boost``, ``peak`` (cropped bin, -1 for none), ``kept_regions`` (R,),
        ``unmasked`` (cropped bins), ``atac_noise`` (A, 1), ``motif_noise`` (M,), and None or the tensors
        ``block_order``, ``atac_replacement`` and ``sequence_replacement``.
    """
    deviation = 1e-3 if reader.motif_means is not None else 1e-4
    boost = tf.constant(False)
    rate = tf.constant(reader.atac_mask_dropout, tf.float32)
    if reader.training:
        boost = tf.equal(generator.uniform([], 0, reader.atac_corrupt_rate, dtype=tf.int32), 0)
        rate = tf.where(boost, tf.constant(3 * reader.atac_mask_dropout, tf.float32), rate)
        seed = generator.uniform([], 0, LARGEST_SEED, dtype=tf.int32)
        shift_seed = [seed + 1, seed + 1]
        reverse = tf.equal(tf.random.stateless_uniform([], [seed + 2, seed + 6], 0, 2, tf.int32), 1)
        atac_noise = generator.normal([reader.output_length_ATAC, 1], 1e-4, 1e-4)
    else:
        atac_noise = generator.normal([reader.output_length_ATAC, 1], 1e-4, 1e-4)
        reverse = tf.equal(tf.round(generator.uniform([])), 1.0)
        noisy = tf.cast(features["atac"], tf.float32) + tf.abs(atac_noise)
        seed = tf.reduce_sum(features["peaks_center"]) + tf.cast(tf.reduce_sum(noisy), tf.int32)
        shift_seed = [seed + 1, seed + 7]
    motif_noise = generator.normal([1, reader.num_motifs], 0.0, deviation)[0]

    peaks = tf.where(_cropped(features["peaks_center"], reader) > 0)[:, 0]
    shuffled = _shuffled(peaks, seed=[seed + 4, 5])
    peak = tf.cond(tf.size(peaks) > 0, lambda: shuffled[0], lambda: tf.constant(-1, tf.int64))
    regions = reader.cropped_length // reader.region_bins
    kept = tf.random.stateless_uniform([regions], [0, seed - 5]) >= rate
    seen = tf.where(_cropped(_visible(peak, kept, reader), reader))[:, 0]
    order = _shuffled(seen, seed=[0, seed + 1])
    drawn: dict[str, Any] = {
        "shift": tf.random.stateless_uniform([], shift_seed, 0, reader.max_shift, tf.int32),
        "reverse_complement": reverse,
        "boost": boost,
        "peak": peak,
        "kept_regions": kept,
        "unmasked": order[: reader.cropped_length - tf.size(seen)],
        "atac_noise": atac_noise,
        "motif_noise": motif_noise,
        "block_order": None,
        "atac_replacement": None,
        "sequence_replacement": None,
    }
    if reader.mask_noise:
        blocks = tf.range(reader.output_length_ATAC // NOISE_BLOCK)
        drawn["block_order"] = _shuffled(blocks, seed=[seed + 34, seed + 4])
    if not reader.use_atac:
        shape = [reader.output_length_ATAC, 1]
        drawn["atac_replacement"] = tf.random.stateless_uniform(shape, [seed + 1, seed + 3], 0.0, ATAC_CLIP)
    if not reader.use_seq:
        drawn["sequence_replacement"] = tf.random.stateless_uniform(
            [reader.input_length], [seed + 21, seed + 2], 0, 4, tf.int32
        )
    return drawn


# --- applying --------------------------------------------------------------------------------------------------------

_BASES = [4] * 256
for _index, _base in enumerate("ACGT"):
    _BASES[ord(_base)] = _BASES[ord(_base.lower())] = _index


def apply(features: Mapping[str, tf.Tensor], draws: Draws, reader: Reader) -> tuple[tf.Tensor, ...]:
    """The example that draws make of a record, in the original's order.

    Args:
        features: Of the record, by ``parse``.
        draws: Of ``draw`` or of anybody else, as tensors or arrays; a peak of None is as good as -1.
        reader: Settings.

    Returns:
        Sequence (L, 4), masked accessibility (A, 1), mask, unmask (N, 1 each, int32), target (N, 1, float32), motif
        activity (1, M); of fine-tuning also RNA (N, 1, float32), in its validation also transcription start sites
        (N, 1, float32), gene token and cell type (int32). Inputs of the model are bfloat16.
    """
    reverse = tf.cast(draws["reverse_complement"], tf.bool)

    def turned(x: tf.Tensor) -> tf.Tensor:
        return tf.where(reverse, tf.reverse(x, [0]), x)

    letters = tf.strings.substr(features["sequence"], draws["shift"], reader.input_length)
    indices = tf.ensure_shape(
        tf.gather(tf.constant(_BASES, tf.int32), tf.cast(tf.io.decode_raw(letters, tf.uint8), tf.int32)),
        [reader.input_length],
    )
    sequence = tf.one_hot(indices, 4)
    sequence = tf.where(reverse, tf.reverse(sequence, [0, 1]), sequence)

    noisy = tf.cast(features["atac"], tf.float32) + tf.abs(draws["atac_noise"])
    peak = -1 if draws["peak"] is None else draws["peak"]
    visible = _visible(tf.cast(peak, tf.int64), tf.cast(draws["kept_regions"], tf.bool), reader)
    per_bin = reader.output_length_ATAC // reader.output_length
    keep = tf.cast(tf.repeat(visible, per_bin), tf.float32)[:, None]
    atac = noisy * keep
    if reader.mask_noise:
        blocks = tf.gather(tf.reshape(noisy, [-1, NOISE_BLOCK]), draws["block_order"])
        atac = atac + tf.reshape(blocks, [-1, 1]) * (1.0 - keep)
    if reader.log_atac:
        atac = tf.math.log1p(atac)
    atac = turned(_soft_clip(atac, ATAC_CLIP))

    mask = tf.cast(tf.logical_not(_cropped(visible, reader)), tf.int32)[:, None]
    marks = tf.ones_like(draws["unmasked"], tf.int32)
    unmask = tf.scatter_nd(tf.cast(draws["unmasked"], tf.int32)[:, None], marks, [reader.cropped_length])[:, None]
    sums = tf.reduce_sum(tf.reshape(turned(noisy), [reader.output_length, per_bin]), axis=1, keepdims=True)
    target = _cropped(_soft_clip(sums, TARGET_CLIP), reader)

    if draws.get("atac_replacement") is not None:
        atac = draws["atac_replacement"]
    if draws.get("sequence_replacement") is not None:
        sequence = tf.one_hot(tf.cast(draws["sequence_replacement"], tf.int32), 4)
    outputs = [
        tf.cast(sequence, tf.bfloat16),
        tf.cast(atac, tf.bfloat16),
        turned(mask),
        turned(unmask),
        target,
        tf.cast(_scaled_motifs(features["motif_activity"], draws["motif_noise"], reader), tf.bfloat16),
    ]
    if reader.finetuning:
        outputs.append(turned(_cropped(_smooth(features["rna"]), reader)))
        if not reader.training:
            tokens = tf.cast(_cropped(features["tss_tokens"], reader), tf.float32)[:, None]
            outputs += [turned(tokens), features["processed_gene_token"], features["cell_encoding"]]
    return tuple(outputs)


def _cropped(x: tf.Tensor, reader: Reader) -> tf.Tensor:
    return x[reader.crop_size : reader.output_length - reader.crop_size]


def _soft_clip(x: tf.Tensor, limit: float) -> tf.Tensor:
    return tf.clip_by_value(x, 0.0, limit) + tf.sqrt(tf.maximum(x - limit, 0.0))


def _visible(peak: tf.Tensor, kept: tf.Tensor, reader: Reader) -> tf.Tensor:
    """(O,) bool, False where the input is masked."""
    bins = tf.range(reader.output_length, dtype=tf.int64)
    half = reader.region_bins // 2
    near = tf.logical_and(peak >= 0, tf.abs(bins - (peak + reader.crop_size)) <= half)
    margins = [[reader.crop_size, reader.crop_size]]
    regions = tf.pad(tf.repeat(kept, reader.region_bins), margins, constant_values=True)
    return tf.logical_and(regions, tf.logical_not(near))


def _scaled_motifs(motif_activity: tf.Tensor, noise: tf.Tensor, reader: Reader) -> tf.Tensor:
    x = tf.cast(motif_activity, tf.float32)
    if not reader.use_motif_activity:
        return tf.zeros([1, reader.num_motifs])
    if reader.motif_means is not None:
        return ((x - reader.motif_means) / (reader.motif_deviations + 1e-6) + noise)[None]
    lowest, highest = tf.reduce_min(x), tf.reduce_max(x)
    if not reader.constant_motifs:
        message = "motif_activity is the same throughout and cannot be scaled"
        with tf.control_dependencies([tf.debugging.assert_less(lowest, highest, message)]):
            lowest = tf.identity(lowest)
    return ((x - lowest) / (highest - lowest) + tf.abs(noise))[None]


def _smooth(rna: tf.Tensor) -> tf.Tensor:
    x = tf.sqrt(tf.clip_by_value(tf.cast(rna, tf.float32), 0.0, RNA_CLIP))
    kernel = tf.constant(RNA_KERNEL, tf.float32)[:, None, None]
    return tf.nn.conv1d(x[None], kernel, stride=1, padding="SAME")[0]


# --- datasets --------------------------------------------------------------------------------------------------------


def training_dataset(
    path: str | Path,
    reader: Reader,
    *,
    seed: int,
    batch_size: int,
    repeat: int | None = None,
    deterministic: bool = False,
    dtypes: Mapping[str, tf.DType] | None = None,
) -> tf.data.Dataset:
    """Batches of ``path/train``: files shuffled by the seed anew in each pass, records in the order of their files.

    The original shuffles the names of files in Python first. That has no effect: ``list_files`` sorts them.

    Args:
        path: Folder with the subfolder.
        reader: For training.
        seed: Of the order of files and of the draws.
        batch_size: Examples in a batch; the last may have fewer.
        repeat: Passes over the data; 2 for pre-training and 3 for fine-tuning when None, without end when -1.
        deterministic: One record after the other. The original reads and draws in parallel, in no fixed order.
        dtypes: As for ``parse``.

    Raises:
        ValueError: There are no files.
    """
    files = _files(path, "train")
    listed = tf.data.Dataset.list_files(files, shuffle=True, seed=seed)
    passes = (3 if reader.finetuning else 2) if repeat is None else repeat
    batches = _examples(listed, reader, seed, deterministic, dtypes).repeat(passes).batch(batch_size)
    return _prefetched(batches, tf.data.experimental.AutoShardPolicy.FILE, deterministic)


def validation_dataset(
    path: str | Path,
    reader: Reader,
    *,
    seed: int,
    batch_size: int,
    steps: int,
    repeat: int = 48,
    deterministic: bool = False,
    dtypes: Mapping[str, tf.DType] | None = None,
    subset: str = "valid",
) -> tf.data.Dataset:
    """Batches of ``path/valid``: its first ``steps`` batches, again and again.

    Args:
        path: Folder with the subfolder.
        reader: For validation.
        seed: Of the draws.
        batch_size: Examples in a batch.
        steps: Batches of one pass.
        repeat: Passes.
        deterministic: As for ``training_dataset``.
        dtypes: As for ``parse``.
        subset: Name of the subfolder.

    Raises:
        ValueError: There are no files.
    """
    files = _files(path, subset)
    listed = tf.data.Dataset.from_tensor_slices(files)
    examples = _examples(listed, reader, seed, deterministic, dtypes)
    batches = examples.take(batch_size * steps).batch(batch_size).repeat(repeat)
    return _prefetched(batches, tf.data.experimental.AutoShardPolicy.DATA, deterministic)


def _files(path: str | Path, subset: str) -> list[str]:
    files = sorted(str(found) for found in (Path(path) / subset).glob("*.tfr"))
    if not files:
        raise ValueError(f"{Path(path) / subset}: holds no .tfr files")
    return files


def _examples(
    listed: tf.data.Dataset,
    reader: Reader,
    seed: int,
    deterministic: bool,
    dtypes: Mapping[str, tf.DType] | None,
) -> tf.data.Dataset:
    parallel = 1 if deterministic else tf.data.AUTOTUNE
    generator = tf.random.Generator.from_seed(seed)
    records = tf.data.TFRecordDataset(listed, compression_type="ZLIB", num_parallel_reads=parallel)
    return records.map(lambda serialized: deserialize(serialized, reader, generator, dtypes), parallel)


def _prefetched(dataset: tf.data.Dataset, policy: Any, deterministic: bool) -> tf.data.Dataset:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policy
    options.deterministic = deterministic
    return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)
