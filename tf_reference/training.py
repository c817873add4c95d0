"""Train steps of the original: one for pre-training, one for fine-tuning with its two optimizers.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
sections 3.1, 3.2 and 3.4.

Letters in shapes: B batch, N bins after the crop.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras
from jaxtyping import Float, Shaped

from tf_reference.losses import gather, masked_loss, whole_loss
from tf_reference.metrics import R2, PearsonR
from tf_reference.model import Inputs

Scalar = Float[tf.Tensor, ""]
Bins = Shaped[tf.Tensor, "B N 1"]
Metrics = Mapping[str, tf_keras.metrics.Metric]


class FinetuningLoss(NamedTuple):
    """Losses of one fine-tuning step, each divided by the number of replicas.

    Attributes:
        total: What was minimised.
        rna: Loss of the RNA head.
        atac: Unscaled loss of the ATAC head; None for a model without one.
    """

    total: Scalar
    rna: Scalar
    atac: Scalar | None


def pretraining_metrics() -> dict[str, tf_keras.metrics.Metric]:
    """The original's metrics of pre-training, by its names: the loss, and correlations on the masked bins."""
    return {
        "train_loss": tf_keras.metrics.Mean("train_loss"),
        "ATAC_PearsonR_tr": PearsonR(name="ATAC_PearsonR_tr"),
        "ATAC_R2_tr": R2(name="ATAC_R2_tr"),
    }


def finetuning_metrics() -> dict[str, tf_keras.metrics.Metric]:
    """The original's metrics of fine-tuning: losses, and correlations of RNA on all bins and of ATAC on masked ones."""
    losses = ("train_loss", "train_loss_rna", "train_loss_atac")
    return {
        **{name: tf_keras.metrics.Mean(name) for name in losses},
        **{f"{head}_PearsonR_tr": PearsonR(name=f"{head}_PearsonR_tr") for head in ("RNA", "ATAC")},
        **{f"{head}_R2_tr": R2(name=f"{head}_R2_tr") for head in ("RNA", "ATAC")},
    }


def pretraining_step(
    model: tf_keras.Model,
    optimizer: tf_keras.optimizers.Optimizer,
    *,
    loss_type: str,
    total_weight: float = 0.15,
    unmask_loss: bool = False,
    replicas: int = 1,
    metrics: Metrics | None = None,
) -> Callable[[Inputs, Bins, Bins, Bins | None], Scalar]:
    """The train step of pre-training, to be called on every replica.

    Args:
        model: Returns accessibility.
        optimizer: Clips by itself.
        loss_type: ``poisson`` or ``poisson_multinomial``.
        total_weight: Weight of the total count in ``poisson_multinomial``.
        unmask_loss: Add the loss on the bins that ``unmask`` selects.
        replicas: Number of replicas, by which the loss is divided, because the optimizer sums their gradients.
        metrics: Those of ``pretraining_metrics``, or some of them, to update.

    Returns:
        ``step(inputs, target, mask, unmask=None)``, which updates the weights and returns the loss before that.
    """
    metrics = metrics or {}

    @tf.function(autograph=False)
    def step(inputs: Inputs, target: Bins, mask: Bins, unmask: Bins | None = None) -> Scalar:
        with tf.GradientTape() as tape:
            output = _widened(model(inputs, training=True))
            extra = unmask if unmask_loss else None
            loss = masked_loss(target, output, mask, loss_type=loss_type, total_weight=total_weight, unmask=extra) * (
                1 / replicas
            )
        variables = model.trainable_variables
        optimizer.apply_gradients(list(zip(tape.gradient(loss, variables), variables, strict=True)))
        _update(metrics, {"train_loss": (loss,), "ATAC": (gather(target, mask), gather(output, mask))})
        return loss

    return step


def finetuning_step(
    model: tf_keras.Model,
    optimizers: tuple[tf_keras.optimizers.Optimizer, tf_keras.optimizers.Optimizer],
    *,
    loss_type: str,
    total_weight: float = 0.15,
    atac_scale: float = 1e-3,
    replicas: int = 1,
    metrics: Metrics | None = None,
) -> Callable[[Inputs, Bins, Bins | None, Bins | None], FinetuningLoss]:
    """The train step of fine-tuning, to be called on every replica.

    Args:
        model: Returns ``(atac, rna)``, or RNA alone.
        optimizers: For the two groups of ``finetuning_variables``; each clips its own.
        loss_type: ``poisson`` or ``poisson_multinomial``, for both heads.
        total_weight: Weight of the total count in ``poisson_multinomial``.
        atac_scale: Weight of the ATAC loss.
        replicas: Number of replicas, by which the losses are divided.
        metrics: Those of ``finetuning_metrics``, or some of them, to update.

    Returns:
        ``step(inputs, rna_target, atac_target=None, mask=None)``, which updates the weights and returns the losses
        before that. Models without an ATAC head need only the first two.
    """
    metrics = metrics or {}

    @tf.function(autograph=False)
    def step(
        inputs: Inputs, rna_target: Bins, atac_target: Bins | None = None, mask: Bins | None = None
    ) -> FinetuningLoss:
        trunk, head = finetuning_variables(model)
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            atac_output, rna_output = outputs if isinstance(outputs, tuple | list) else (None, outputs)
            rna_output = _widened(rna_output)
            rna = whole_loss(rna_target, rna_output, loss_type=loss_type, total_weight=total_weight) * (1 / replicas)
            atac, total = None, rna
            if atac_output is not None:
                atac_output = _widened(atac_output)
                atac = masked_loss(atac_target, atac_output, mask, loss_type=loss_type, total_weight=total_weight) * (
                    1 / replicas
                )
                total = atac_scale * atac + rna
        gradients = tape.gradient(total, trunk + head)
        for optimizer, variables in zip(optimizers, (trunk, head), strict=True):
            own, gradients = gradients[: len(variables)], gradients[len(variables) :]
            optimizer.apply_gradients(list(zip(own, variables, strict=True)))
        values = {"train_loss": (total,), "train_loss_rna": (rna,), "RNA": (rna_target, rna_output)}
        if atac is not None:
            values["train_loss_atac"] = (atac,)
            values["ATAC"] = (gather(atac_target, mask), gather(atac_output, mask))
        _update(metrics, values)
        return FinetuningLoss(total, rna, atac)

    return step


def finetuning_variables(model: tf_keras.Model) -> tuple[list[tf.Variable], list[tf.Variable]]:
    """What the two optimizers of fine-tuning train: the trunk with the ATAC head if there is one, and the RNA head.

    Args:
        model: The built fine-tuning model.

    Returns:
        Both lists in the original's order, which is the order of the optimizers' slots (section 3.4).
    """
    trunk = [
        model.stem_conv,
        model.stem_res_conv,
        model.stem_pool,
        model.conv_tower,
        model.stem_conv_atac,
        model.stem_res_conv_atac,
        model.conv_tower_atac,
        model.motif_activity_fc1,
        model.motif_activity_fc2,
        model.performer,
        model.pre_transformer_projection,
    ]
    if getattr(model, "final_pointwise_conv", None) is not None:
        trunk += [model.final_pointwise_conv, model.final_dense_profile]
    head = [model.final_pointwise_conv_rna, model.final_dense_profile_rna]
    return _variables(trunk), _variables(head)


def _variables(layers: list[tf_keras.layers.Layer]) -> list[tf.Variable]:
    return [variable for layer in layers for variable in layer.trainable_variables]


def _widened(output: tf.Tensor) -> tf.Tensor:
    return output if output.dtype == tf.float64 else tf.cast(output, tf.float32)


def _update(metrics: Metrics, values: Mapping[str, tuple[Any, ...]]) -> None:
    """Metrics named after a value take it; those of a head, ``ATAC_...`` or ``RNA_...``, its target and output."""
    for name, metric in metrics.items():
        key = name if name in values else name.partition("_")[0]
        if key in values:
            metric.update_state(*values[key])
