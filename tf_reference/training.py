"""Train steps of the original: one for pre-training, one for fine-tuning with its two optimizers and its validation.

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


class FinetuningValidation(NamedTuple):
    """What one validation step of fine-tuning finds.

    Attributes:
        loss: Its losses.
        outputs: ATAC, None for a model without that head, and RNA; both widened to float32.
        true_at_starts: (B,) measured RNA, summed over the bins of start sites; None without such tokens.
        predicted_at_starts: (B,) likewise predicted RNA.
    """

    loss: FinetuningLoss
    outputs: tuple[Bins | None, Bins]
    true_at_starts: Float[tf.Tensor, " B"] | None
    predicted_at_starts: Float[tf.Tensor, " B"] | None


def pretraining_metrics() -> dict[str, tf_keras.metrics.Metric]:
    """The original's metrics of pre-training, by its names: the loss, and correlations on the masked bins."""
    return {
        "train_loss": tf_keras.metrics.Mean("train_loss"),
        "ATAC_PearsonR_tr": PearsonR(name="ATAC_PearsonR_tr"),
        "ATAC_R2_tr": R2(name="ATAC_R2_tr"),
    }


def finetuning_metrics(stage: str = "train") -> dict[str, tf_keras.metrics.Metric]:
    """The original's metrics of fine-tuning: losses, and correlations of RNA on all bins and of ATAC on masked ones.

    Args:
        stage: ``train``, ``val``, or ``val_ho`` for the second validation set, of cell types that were held out.
    """
    loss, _, end = stage.partition("_")
    end = f"_{end}" if end else ""
    suffix = "_tr" if stage == "train" else end
    losses = [f"{loss}_loss{part}{end}" for part in ("", "_rna", "_atac")]
    return {
        **{name: tf_keras.metrics.Mean(name) for name in losses},
        **{f"{head}_PearsonR{suffix}": PearsonR(name=f"{head}_PearsonR{suffix}") for head in ("RNA", "ATAC")},
        **{f"{head}_R2{suffix}": R2(name=f"{head}_R2{suffix}") for head in ("RNA", "ATAC")},
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
    forward = _forward(model, loss_type, total_weight, atac_scale, replicas)

    @tf.function(autograph=False)
    def step(
        inputs: Inputs, rna_target: Bins, atac_target: Bins | None = None, mask: Bins | None = None
    ) -> FinetuningLoss:
        trunk, head = finetuning_variables(model)
        with tf.GradientTape() as tape:
            outputs, loss = forward(inputs, rna_target, atac_target, mask, training=True)
        gradients = tape.gradient(loss.total, trunk + head)
        for optimizer, variables in zip(optimizers, (trunk, head), strict=True):
            own, gradients = gradients[: len(variables)], gradients[len(variables) :]
            optimizer.apply_gradients(list(zip(own, variables, strict=True)))
        _update_heads(metrics, "train", loss, outputs, rna_target, atac_target, mask)
        return loss

    return step


def finetuning_validation_step(
    model: tf_keras.Model,
    *,
    loss_type: str,
    total_weight: float = 0.15,
    atac_scale: float = 1e-3,
    replicas: int = 1,
    metrics: Metrics | None = None,
) -> Callable[[Inputs, Bins, Bins | None, Bins | None, Bins | None], FinetuningValidation]:
    """The validation step of fine-tuning, to be called on every replica.

    Args:
        model: As for ``finetuning_step``.
        loss_type: As for ``finetuning_step``.
        total_weight: As for ``finetuning_step``.
        atac_scale: As for ``finetuning_step``.
        replicas: As for ``finetuning_step``.
        metrics: Those of ``finetuning_metrics("val")``, or ``"val_ho"``, or some of them, to update.

    Returns:
        ``step(inputs, rna_target, atac_target=None, mask=None, tss_tokens=None)``.
    """
    metrics = metrics or {}
    forward = _forward(model, loss_type, total_weight, atac_scale, replicas)

    @tf.function(autograph=False)
    def step(
        inputs: Inputs,
        rna_target: Bins,
        atac_target: Bins | None = None,
        mask: Bins | None = None,
        tss_tokens: Bins | None = None,
    ) -> FinetuningValidation:
        outputs, loss = forward(inputs, rna_target, atac_target, mask, training=False)
        _update_heads(metrics, "val", loss, outputs, rna_target, atac_target, mask)
        if tss_tokens is None:
            return FinetuningValidation(loss, outputs, None, None)
        rna = outputs[1]
        tokens = tf.cast(tss_tokens, rna.dtype)
        true, predicted = (tf.reduce_sum(tf.cast(bins, rna.dtype) * tokens, axis=[1, 2]) for bins in (rna_target, rna))
        return FinetuningValidation(loss, outputs, true, predicted)

    return step


def _forward(
    model: tf_keras.Model, loss_type: str, total_weight: float, atac_scale: float, replicas: int
) -> Callable[..., tuple[tuple[Bins | None, Bins], FinetuningLoss]]:
    """What the steps of training and validation begin with: predictions of both heads, and their losses."""

    def forward(
        inputs: Inputs, rna_target: Bins, atac_target: Bins | None, mask: Bins | None, *, training: bool
    ) -> tuple[tuple[Bins | None, Bins], FinetuningLoss]:
        outputs = heads(model(inputs, training=training))
        loss = finetuning_loss(
            outputs,
            rna_target,
            atac_target,
            mask,
            loss_type=loss_type,
            total_weight=total_weight,
            atac_scale=atac_scale,
            replicas=replicas,
        )
        return outputs, loss

    return forward


def finetuning_loss(
    outputs: tuple[Bins | None, Bins],
    rna_target: Bins,
    atac_target: Bins | None = None,
    mask: Bins | None = None,
    *,
    loss_type: str,
    total_weight: float = 0.15,
    atac_scale: float = 1e-3,
    replicas: int = 1,
) -> FinetuningLoss:
    """RNA on all bins, plus ATAC on the masked ones when the model predicts it.

    Args:
        outputs: ATAC, or None, and RNA.
        rna_target: RNA counts.
        atac_target: ATAC counts.
        mask: 1 where an ATAC bin counts.
        loss_type: ``poisson`` or ``poisson_multinomial``, for both heads.
        total_weight: Weight of the total count in ``poisson_multinomial``.
        atac_scale: Weight of the ATAC loss.
        replicas: Number of replicas, by which the losses are divided.
    """
    atac_output, rna_output = outputs
    kind = {"loss_type": loss_type, "total_weight": total_weight}
    rna = whole_loss(rna_target, rna_output, **kind) * (1 / replicas)
    if atac_output is None:
        return FinetuningLoss(rna, rna, None)
    atac = masked_loss(atac_target, atac_output, mask, **kind) * (1 / replicas)
    return FinetuningLoss(atac_scale * atac + rna, rna, atac)


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


def heads(outputs: Any) -> tuple[Bins | None, Bins]:
    """ATAC or None, and RNA, of what the model returned, in float32 at least."""
    atac, rna = outputs if isinstance(outputs, tuple | list) else (None, outputs)
    return None if atac is None else _widened(atac), _widened(rna)


def _update_heads(
    metrics: Metrics,
    stage: str,
    loss: FinetuningLoss,
    outputs: tuple[Bins | None, Bins],
    rna_target: Bins,
    atac_target: Bins | None,
    mask: Bins | None,
) -> None:
    atac_output, rna_output = outputs
    values: dict[str, tuple[Any, ...]] = {
        f"{stage}_loss": (loss.total,),
        f"{stage}_loss_rna": (loss.rna,),
        "RNA": (rna_target, rna_output),
    }
    if loss.atac is not None:
        values[f"{stage}_loss_atac"] = (loss.atac,)
        values["ATAC"] = (gather(atac_target, mask), gather(atac_output, mask))
    _update(metrics, values)


def _widened(output: tf.Tensor) -> tf.Tensor:
    return output if output.dtype == tf.float64 else tf.cast(output, tf.float32)


def _update(metrics: Metrics, values: Mapping[str, tuple[Any, ...]]) -> None:
    """Metrics named after a value take it; those of a head, ``ATAC_...`` or ``RNA_...``, its target and output.

    That a metric is of the second validation set is for its owner to know.
    """
    for name, metric in metrics.items():
        key = name.removesuffix("_ho")
        key = key if key in values else name.partition("_")[0]
        if key in values:
            metric.update_state(*values[key])
