"""Training through the whole of both pipelines: converted HDF5 in Lightning, exported TFRecords in tf.data."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest

from parity.pairs.planted_records import NUM_MOTIFS, draw_records
from tests.assertions import assert_same
from tests.suites.test_data import reader_of
from torch_impl import EpiBERTConfig
from torch_impl.data.convert import convert_tfrecord_to_hdf5, export_hdf5_to_tfrecord
from torch_impl.data.draws import TensorFlowDraws
from torch_impl.data.examples import ExampleConfig
from torch_impl.data.tfrecord import write_records
from torch_impl.data_module import EpiBERTDataModule, ResumableLoader
from torch_impl.epibert_lightning import EpiBERTLightning
from torch_impl.optim import cosine_warmup
from weights import transplant

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers.*",
        "ignore:.*LeafSpec.*deprecated.*",
        "ignore:You defined a `validation_step` but have no `val_dataloader`.*",
    ),
]

MODEL: dict[str, Any] = {
    "output_length": 64,
    "final_output_length": 60,
    "max_seq_length": 64,
    "num_heads": 2,
    "num_transformer_layers": 1,
    "filter_list_seq": [12, 16, 20, 24, 28, 32],
    "filter_list_atac": [16, 32],
    "num_motifs": NUM_MOTIFS,
    # Each side would draw its own masks.
    "dropout_rate": 0.0,
    "pointwise_dropout_rate": 0.0,
    "motif_dropout_rate": 0.0,
}
DATA = ExampleConfig.tiny(num_motifs=NUM_MOTIFS, mask_size=256)
RATES = {"peak": 1e-2, "warmup": 4, "decay": 20, "floor": 0.1}
RECORDS, BATCH, EPOCHS, SEED = 14, 4, 2, 5


class OriginalDraws(EpiBERTDataModule):
    """The data module with the original's draws in the place of our own."""

    def train_dataloader(self) -> ResumableLoader:
        loader = super().train_dataloader()
        loader.dataset.draws = TensorFlowDraws(self.seed)  # type: ignore[attr-defined]
        return loader


def train_port(folder: Path, initial: dict[str, np.ndarray], constants: Any, seed: int) -> list[float]:
    """Losses of all steps of the Lightning module, fed by the data module."""
    found: list[float] = []

    class Losses(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            found.append(float(outputs["loss"]))

    module = EpiBERTLightning(EpiBERTConfig(**MODEL), **RATES)
    transplant(initial, module.model, constants=(*constants, "reference"))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true",
        max_epochs=EPOCHS,
        limit_val_batches=0,
        callbacks=[Losses()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=OriginalDraws(folder, DATA, batch_size=BATCH, seed=seed, order="stored"))
    return found


def train_reference(model: Any, folder: Path, tf: Any) -> list[float]:
    """Losses of all steps of the reference, fed by tf.data."""
    from tf_reference import optim
    from tf_reference.data import training_dataset
    from tf_reference.training import pretraining_step

    optimizer = optim.adam(epsilon=1e-8, global_clipnorm=1.0)
    optimizer.build(model.trainable_variables)
    step, found = pretraining_step(model, optimizer, loss_type="poisson"), []
    batches = training_dataset(
        folder, reader_of(DATA), seed=SEED, batch_size=BATCH, repeat=1, deterministic=True
    ).repeat(EPOCHS)
    for number, batch in enumerate(batches):
        sequence, atac, mask, _, target, motifs = (tf.cast(tensor, tf.float64) for tensor in batch)
        optimizer.learning_rate = cosine_warmup(number, *RATES.values())
        found.append(float(step((sequence, atac, motifs), target, mask, None)))
    return found


def test_both_stacks_train_alike_through_their_own_pipelines(tensorflow, tmp_path):
    """From one set of records: converted, and exported again; every loss of two epochs, in float64."""
    import tf_reference

    (tmp_path / "source" / "train").mkdir(parents=True)
    write_records(tmp_path / "source" / "train" / "planted.tfr", draw_records(1, RECORDS))
    convert_tfrecord_to_hdf5(tmp_path / "source", tmp_path / "converted")
    export_hdf5_to_tfrecord(tmp_path / "converted", tmp_path / "exported")

    model = tf_reference.EpiBERT(**MODEL, dtype="float64").build_weights()
    # Of float32 numbers, which the port holds before the Trainer widens it.
    initial = {key: variable.numpy().astype(np.float32) for key, variable in model.checkpoint_variables().items()}
    model.assign({key: value.astype(np.float64) for key, value in initial.items()})
    constants = model.get_constants()

    port = train_port(tmp_path / "converted", initial, constants, SEED)
    reference = train_reference(model, tmp_path / "exported", tensorflow)
    assert len(port) == EPOCHS * -(-RECORDS // BATCH)
    assert_same(np.array(port), np.array(reference), "optimizer", what="losses")
    assert len(set(port)) == len(port)
    # Other draws from the same records are seen.
    other = np.array(train_port(tmp_path / "converted", initial, constants, SEED + 1))
    with pytest.raises(AssertionError):
        assert_same(other, np.array(reference), "optimizer", what="losses")
