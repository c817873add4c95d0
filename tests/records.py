"""Made-up training records of any geometry."""

from collections.abc import Iterator

import numpy as np

from torch_impl.data.examples import ExampleConfig
from torch_impl.data.records import Record
from torch_impl.data.tfrecord import _Example

LETTERS = np.frombuffer(b"ACGTacgtN", dtype=np.uint8)
SPARE = 16
"""Letters beyond the window, enough for every shift that is tested."""


def synthetic_record(config: ExampleConfig, seed: int, *, sequence_seed: int | None = None) -> Record:
    """A record as a writer of the original would leave it, peaks at both edges among others, with a few extremes.

    Args:
        config: Its lengths, and whether it has the features of fine-tuning.
        seed: Of everything.
        sequence_seed: Of the sequence alone, which cell types share.
    """
    generator = np.random.default_rng(seed)
    letters = generator if sequence_seed is None else np.random.default_rng(sequence_seed)
    sequence = letters.choice(LETTERS, size=config.input_length + SPARE).tobytes()
    atac = generator.gamma(0.2, 3.0, size=(config.output_length_ATAC, 1))
    atac[generator.random(atac.shape) < 0.7] = 0
    # Beyond both limits: 150 for one value, 2000 for the sum of a bin.
    atac[: 2 * config.values_per_bin] = 160
    peaks = np.zeros(config.output_length, dtype=np.int32)
    chosen = generator.choice(config.output_length, size=min(3, config.output_length), replace=False)
    peaks[[*chosen, config.crop_size, config.output_length - config.crop_size - 1]] = 1
    dtype = np.float32 if config.finetuning else np.float16
    extra = {}
    if config.finetuning:
        rna = generator.gamma(0.3, 20.0, size=(config.output_length, 1)).astype(np.float32)
        rna[generator.integers(config.output_length)] = 70_000
        extra = {
            "rna": rna,
            "tss_tokens": (generator.random(config.output_length) < 0.1).astype(np.int32),
            "processed_gene_token": np.array(generator.integers(100), dtype=np.int32),
            "cell_encoding": np.array(generator.integers(100), dtype=np.int32),
        }
    return Record(
        sequence=sequence,
        atac=atac.astype(dtype),
        peaks_center=peaks,
        motif_activity=generator.normal(2.0, 5.0, size=config.num_motifs).astype(dtype),
        others={"interval": f"chr{seed}".encode()},
        **extra,
    )


def synthetic_records(config: ExampleConfig, count: int, seed: int = 0) -> Iterator[Record]:
    """Several records; every other one shares its sequence with the one before."""
    for index in range(count):
        yield synthetic_record(config, seed + index, sequence_seed=seed + index // 2)


def serialized_example(**features: bytes | list[bytes]) -> bytes:
    """A ``tf.train.Example`` of byte strings, which need not be those of a record."""
    message = _Example()
    for name, values in features.items():
        entry = message.features.feature.add(key=name)
        entry.value.bytes_list.value.extend([values] if isinstance(values, bytes) else values)
    return message.SerializeToString()
