"""EpiBERT, the fine-tuning model, in Keras 2: the trunk of `model.py`, and a second head that predicts RAMPAGE signal.

Source of the semantics: the specification of the original TensorFlow implementation, its section 2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from jaxtyping import Float
from tf_keras.mixed_precision import Policy

from tf_reference.model import RELU_KERNEL, Features, Inputs, Trunk, constructor_arguments

Profile = Float[tf.Tensor, "B O 1"]


@tf_keras.utils.register_keras_serializable(package="tf_reference")
class EpiBERTRampage(Trunk):
    """Accessibility and transcription starts (RAMPAGE) from sequence, masked accessibility and motif activity.

    Both heads are alike and have the Dropout layer, the GELU and the crop in common; each call of the Dropout draws a
    mask of its own. Arguments are those of ``EpiBERT`` with the fine-tuning script's class defaults (section 2.1); the
    rotary table of the default ``max_seq_length`` is too short for the default ``output_length``, as in the original.

    Args:
        kernel_transformation: See ``EpiBERT``, as for all arguments that are not described here.
        dropout_rate: See ``EpiBERT``.
        pointwise_dropout_rate: Dropout in both heads.
        input_length: Dead.
        output_length: See ``EpiBERT``.
        final_output_length: See ``EpiBERT``.
        num_heads: See ``EpiBERT``.
        numerical_stabilizer: Dead.
        num_transformer_layers: See ``EpiBERT``.
        norm: See ``EpiBERT``.
        max_seq_length: See ``EpiBERT``; must be at least ``output_length``.
        BN_momentum: See ``EpiBERT``.
        use_rot_emb: See ``EpiBERT``.
        normalize: Dead.
        seed: See ``EpiBERT``.
        filter_list_seq: See ``EpiBERT``.
        filter_list_atac: See ``EpiBERT``.
        final_point_scale: See ``EpiBERT``.
        num_motifs: See ``EpiBERT``.
        motif_dropout_rate: See ``EpiBERT``.
        motif_units_fc: See ``EpiBERT``.
        load_init: Must be False. The original can start from a dictionary of arrays that nothing in it makes (section
            2.2); here weights come from ``assign`` or from a checkpoint, as in its own training script (section 2.3).
        inits: Must be None, likewise.
        predict_atac: Whether there is an ATAC head beside the RNA head.
        name: See ``EpiBERT``.
        dtype: See ``EpiBERT``.

    Raises:
        ValueError: As for ``EpiBERT``; also ``load_init`` or ``inits`` was given.
    """

    def __init__(
        self,
        kernel_transformation: str = RELU_KERNEL,
        dropout_rate: float = 0.20,
        pointwise_dropout_rate: float = 0.20,
        input_length: int = 524_288,
        output_length: int = 4096,
        final_output_length: int = 4092,
        num_heads: int = 4,
        numerical_stabilizer: float = 1e-3,
        num_transformer_layers: int = 7,
        norm: bool = True,
        max_seq_length: int = 1536,
        BN_momentum: float = 0.90,
        use_rot_emb: bool = True,
        normalize: bool = True,
        seed: float = 3,
        filter_list_seq: Sequence[int] = (768, 896, 1024, 1024, 1152, 1280),
        filter_list_atac: Sequence[int] = (32, 64),
        final_point_scale: int = 6,
        num_motifs: int = 693,
        motif_dropout_rate: float = 0.25,
        motif_units_fc: int = 32,
        load_init: bool = False,
        inits: Mapping[str, Any] | None = None,
        predict_atac: bool = True,
        name: str = "epibert",
        dtype: str | Policy | None = None,
    ) -> None:
        arguments = constructor_arguments(locals())
        # They have one legal value, so they are no part of the configuration.
        if arguments.pop("load_init") is not False or arguments.pop("inits") is not None:
            raise ValueError("load_init and inits are not supported: restore a checkpoint, or assign the weights")
        super().__init__(arguments)
        self.predict_atac = predict_atac
        # The order of the optimizer's slots again: the ATAC head first.
        if predict_atac:
            self.final_pointwise_conv, self.final_dense_profile = self._head_layers()
        self.final_pointwise_conv_rna, self.final_dense_profile_rna = self._head_layers()

    def call(self, inputs: Inputs, training: bool | tf.Tensor = True) -> tuple[Profile, Profile] | Profile:
        """Predict accessibility and RAMPAGE signal per 128-bp bin.

        Args:
            inputs: As for ``EpiBERT``.
            training: As for ``EpiBERT``: True by default.

        Returns:
            ``(atac, rna)``, each cropped and non-negative, in the compute dtype; ``rna`` alone without ATAC head.
        """
        x, _ = self._encode(inputs, training)
        atac, rna = self._profiles(x, training)
        return rna if atac is None else (atac, rna)

    def predict_on_batch(
        self, inputs: Inputs, training: bool | tf.Tensor = False
    ) -> tuple[Profile, Profile, Features] | tuple[Profile, Features]:
        """The forward pass with the attention features of every layer; replaces Keras' own method.

        What the original's method means to do: it fails, because it leaves out the projection before the transformer
        and names a head that does not exist (section 2.1).

        Args:
            inputs: As for ``call``.
            training: As for ``call``, but False by default. Unlike in ``EpiBERT``, all motif dropouts are applied.

        Returns:
            ``(atac, rna, features)``, or ``(rna, features)`` without ATAC head; features as in ``EpiBERT``.
        """
        x, features = self._encode(self._as_computed(inputs), training)
        atac, rna = self._profiles(x, training)
        return (rna, features) if atac is None else (atac, rna, features)

    def _profiles(self, x: tf.Tensor, training: bool | tf.Tensor) -> tuple[Profile | None, Profile]:
        """The predictions of both heads; None for one that is not there."""
        atac = None
        if self.predict_atac:
            atac = self._head(x, self.final_pointwise_conv, self.final_dense_profile, training)
        return atac, self._head(x, self.final_pointwise_conv_rna, self.final_dense_profile_rna, training)
