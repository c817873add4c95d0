"""EpiBERT, the pre-training model, in Keras 2: what its authors published, to the last rounding.

Its trunk, everything before the head, is that of the fine-tuning model in `rampage.py` as well.

Source of the semantics: the specification of the original TensorFlow implementation (naumanjaved/EpiBERT, MIT), its
section 1, which sections below refer to; written from that text, not from the code. Published: Javed et al., "A
multi-modal transformer for cell type-agnostic regulatory predictions" (Cell Genomics, 2025). FAVOR+ is from Choromanski
et al., "Rethinking attention with Performers" (2021); rotary positions from Su et al., "RoFormer" (2021).

Attribute names are those of the original, because they are the keys of its checkpoints (section 6.1): renaming one
makes published weights unreadable. Where the original fails, this does what it evidently meant: it runs in float64 and
float32 as well as mixed bfloat16 (section 1.10), with all three feature maps (section 1.9), and its configuration
round-trips.

Letters in shapes: B batch, L length (base pairs or bins), C channels, H heads, D head size, M random features,
N motifs, O output bins. Activations are channels-last, (B, L, C), everywhere.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf
import tf_keras
from jaxtyping import Float, Float32
from tf_keras.mixed_precision import Policy

from tf_reference import constants

STEM_KERNEL_SIZE = 15
TOWER_KERNEL_SIZE = 5
ATAC_STEM_KERNEL_SIZE = 50
ATAC_STEM_WIDTH = 32
BATCH_NORM_EPSILON = 1e-5
LAYER_NORM_EPSILON = 1e-5
RELU_STABILIZER = 1e-3
SOFTMAX_STABILIZER = 1e-6
ATTENTION_INITIALIZER_SEED = 5

RELU_KERNEL = "relu_kernel_transformation"
RELU_QUARTIC_KERNEL = "relu_kernel_transformation_q"

Inputs = tuple[tf.Tensor, tf.Tensor, tf.Tensor]
Features = dict[str, tuple[tf.Tensor, tf.Tensor]]


class Trunk(tf_keras.Model):
    """What the two models share: everything before the heads, and what their heads have in common.

    A base class and not a layer, because the checkpoint keys of both have the trunk's attributes right below the model.

    Args:
        arguments: All constructor arguments of the model, see ``EpiBERT``; ``get_config`` returns them.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        policy = _as_policy(arguments["dtype"])
        super().__init__(name=arguments["name"], dtype=policy)
        lists = {name: tuple(arguments[name]) for name in ("filter_list_seq", "filter_list_atac")}
        # Tuples, because Keras would track lists and dictionaries as parts of the checkpoint.
        self._constructor_arguments = tuple({**arguments, **lists, "dtype": policy.name}.items())
        self.output_length = arguments["output_length"]
        self.num_motifs = arguments["num_motifs"]
        widths = arguments["filter_list_seq"]
        stem_width, hidden = widths[0], widths[-1]
        self.head_width = hidden // arguments["final_point_scale"]
        self.BN_momentum = momentum = arguments["BN_momentum"]
        motif_units, motif_rate = arguments["motif_units_fc"], arguments["motif_dropout_rate"]

        # Creation order is the order of trainable_variables, hence of the optimizer's slots (section 6.2).
        self.stem_conv = _conv(stem_width, STEM_KERNEL_SIZE, policy)
        self.stem_res_conv = Residual(_conv_block(stem_width, 1, momentum, policy), dtype=policy)
        self.stem_pool = SoftmaxPool(name="stem_pool", dtype=policy)

        self.stem_conv_atac = _conv(ATAC_STEM_WIDTH, ATAC_STEM_KERNEL_SIZE, policy)
        self.stem_res_conv_atac = Residual(_conv_block(ATAC_STEM_WIDTH, 1, momentum, policy), dtype=policy)
        self.stem_pool_atac = tf_keras.layers.MaxPool1D(2, dtype=policy)

        self.conv_tower = Sequential(
            [
                Sequential(
                    [
                        _conv_block(width, TOWER_KERNEL_SIZE, momentum, policy),
                        SoftmaxPool(name=f"soft_max_pool_{index}", dtype=policy),
                    ]
                )
                for index, width in enumerate(widths)
            ]
        )
        self.conv_tower_atac = Sequential(
            [
                Sequential(
                    [
                        _conv_block(width, TOWER_KERNEL_SIZE, momentum, policy),
                        tf_keras.layers.MaxPool1D(4, dtype=policy),
                    ]
                )
                for width in arguments["filter_list_atac"]
            ]
        )

        self.motif_activity_fc1 = _dense(motif_units, policy, activation=gelu_erf)
        self.motif_dropout1 = tf_keras.layers.Dropout(motif_rate, dtype=policy)
        self.motif_activity_fc2 = _dense(motif_units // 4, policy)
        self.motif_dropout2 = tf_keras.layers.Dropout(motif_rate / 4, dtype=policy)

        self.pre_transformer_projection = _dense(hidden, policy, use_bias=False)
        self.performer = Performer(
            num_layers=arguments["num_transformer_layers"],
            num_heads=arguments["num_heads"],
            hidden_size=hidden,
            dropout_rate=arguments["dropout_rate"],
            kernel_transformation=arguments["kernel_transformation"],
            seed=arguments["seed"],
            norm=arguments["norm"],
            use_rot_emb=arguments["use_rot_emb"],
            max_seq_length=arguments["max_seq_length"],
            name="shared_transformer",
            dtype=policy,
        )

        # Of one head or of two: the fine-tuning model calls each of these twice.
        self.dropout = tf_keras.layers.Dropout(arguments["pointwise_dropout_rate"], dtype=policy)
        self.gelu = TanhGELU(dtype=policy)
        self.crop_final = Crop(
            arguments["output_length"], arguments["final_output_length"], name="crop_final", dtype=policy
        )

    def _encode(
        self, inputs: Inputs, training: bool | tf.Tensor, *, drop_second_motif_layer: bool = True
    ) -> tuple[Float[tf.Tensor, "B L C"], Features]:
        """All of the model before the heads, and the attention features."""
        sequence, atac, motifs = inputs

        x = self.stem_conv(sequence)
        x = self.stem_res_conv(x, training=training)
        x = self.stem_pool(x)
        x = self.conv_tower(x, training=training)

        accessibility = self.stem_conv_atac(atac)
        accessibility = self.stem_res_conv_atac(accessibility, training=training)
        accessibility = self.stem_pool_atac(accessibility)
        accessibility = self.conv_tower_atac(accessibility, training=training)

        motifs = self.motif_activity_fc1(motifs)
        motifs = self.motif_dropout1(motifs, training=training)
        motifs = self.motif_activity_fc2(motifs)
        if drop_second_motif_layer:
            motifs = self.motif_dropout2(motifs, training=training)
        motifs = tf.tile(motifs, [1, self.output_length, 1])

        x = self.pre_transformer_projection(tf.concat([x, accessibility, motifs], axis=2))
        return self.performer(x, training=training)

    def _as_computed(self, inputs: Inputs) -> Inputs:
        """The inputs in the compute dtype, as Keras' own ``__call__`` hands them to ``call``."""
        sequence, atac, motifs = (tf.cast(value, tf.as_dtype(self.compute_dtype)) for value in inputs)
        return sequence, atac, motifs

    def _head(
        self, x: tf.Tensor, pointwise: tf_keras.layers.Layer, profile: tf_keras.layers.Layer, training: bool | tf.Tensor
    ) -> Float[tf.Tensor, "B O 1"]:
        """One head: its own convolution block and profile layer, the common Dropout, GELU and crop."""
        x = self.gelu(self.dropout(pointwise(x, training=training), training=training))
        return self.crop_final(profile(x))

    def _head_layers(self) -> tuple[tf_keras.Sequential, tf_keras.layers.Layer]:
        """The two layers that a head has to itself."""
        policy = self._dtype_policy
        return _conv_block(self.head_width, 1, self.BN_momentum, policy), _dense(1, policy, activation="softplus")

    def build_weights(self, num_motifs: int | None = None) -> Self:
        """Create every variable without computing anything, for inputs of any batch size and any legal length.

        Args:
            num_motifs: Length of the motif vector; the constructor's when None.

        Returns:
            The model itself.
        """
        dtype = tf.as_dtype(self.compute_dtype)
        motifs = self.num_motifs if num_motifs is None else num_motifs
        # A scratch graph that nobody runs; Keras lifts the creation of variables out of it.
        with tf.__internal__.FuncGraph("build_weights").as_default():
            shapes = ([None, None, 4], [None, None, 1], [None, 1, motifs])
            self(tuple(tf.compat.v1.placeholder(dtype, shape) for shape in shapes), training=False)
        return self

    def checkpoint_variables(self) -> dict[str, tf.Variable]:
        """The model's variables by their keys in ``tf.train.Checkpoint(model=...)`` (section 6.1).

        Returns:
            ``{"model/stem_conv/kernel": variable, ...}``, without the suffix ``/.ATTRIBUTES/VARIABLE_VALUE``.
        """
        # TensorFlow names an object after the first path on which a breadth-first walk meets it.
        variables: dict[str, tf.Variable] = {}
        seen = {id(self)}
        queue: deque[tuple[str, Any]] = deque([("model", self)])
        while queue:
            path, node = queue.popleft()
            if isinstance(node, tf.Variable):
                variables[path] = node
            for name, child in tf.train.TrackableView.children(node).items():
                if id(child) not in seen:
                    seen.add(id(child))
                    queue.append((f"{path}/{name}", child))
        return variables

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Set every variable. Arrays may have any float dtype; ``tf.train.Checkpoint`` insists on the model's own.

        Args:
            values: One array for each key of ``checkpoint_variables``, no more and no fewer.

        Raises:
            ValueError: A key is missing or unknown, or a shape differs. Nothing is assigned then.
        """
        variables = self.checkpoint_variables()
        problems = [f"missing {key}" for key in sorted(variables.keys() - values.keys())]
        problems += [f"unknown {key}" for key in sorted(values.keys() - variables.keys())]
        problems += [
            f"{key} has shape {np.shape(values[key])}, expected {tuple(variables[key].shape)}"
            for key in sorted(variables.keys() & values.keys())
            if np.shape(values[key]) != tuple(variables[key].shape)
        ]
        if problems:
            raise ValueError("\n".join(problems))
        for key, variable in variables.items():
            variable.assign(np.asarray(values[key]).astype(variable.dtype.as_numpy_dtype))

    def get_constants(self) -> tuple[Float32[np.ndarray, "M D"], Float32[np.ndarray, "L D"] | None]:
        """Projection matrix and rotary table in use, float32; the table is None without rotary positions."""
        return self.performer.get_constants()

    def set_constants(
        self, projection: Float32[np.ndarray, "M D"], table: Float32[np.ndarray, "L D"] | None = None
    ) -> None:
        """Replace the constants of attention, before or after the first call.

        They are part of neither checkpoint nor configuration: whoever restores the model sets them again. A
        ``tf.function`` of the caller's that was traced before keeps the old ones.

        Args:
            projection: Projection matrix of all layers.
            table: Rotary table, used as it is: not rounded to bfloat16 here. Left alone when None.

        Raises:
            ValueError: A shape differs from the one in use, or a table is given to a model without rotary positions.
        """
        self.performer.set_constants(projection, table)
        # Keras traces these once and would go on using the old constants.
        self.train_function = self.test_function = self.predict_function = None

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments: ``from_config`` makes the same model of them, with new weights."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self._constructor_arguments}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Inverse of ``get_config``."""
        del custom_objects
        return cls(**config)


@tf_keras.utils.register_keras_serializable(package="tf_reference")
class EpiBERT(Trunk):
    """Accessibility from sequence, masked accessibility and motif activity.

    Arguments and defaults are the original's (section 1.1), dead ones included. Lengths follow from ``output_length``:
    a sequence of ``2^(1 + len(filter_list_seq))`` base pairs per bin, and ``2 * 4^len(filter_list_atac)`` ATAC values.

    Args:
        kernel_transformation: FAVOR+ feature map: ``relu_kernel_transformation``, ``relu_kernel_transformation_q``, and
            for any other text the softmax map.
        dropout_rate: After the attention's output projection and twice in each feed-forward network.
        pointwise_dropout_rate: Dropout in the head.
        input_length: Dead.
        output_length: Length to which the motif vector is tiled; with ``final_output_length`` it sets the crop.
        final_output_length: Bins kept; an odd difference to ``output_length`` keeps one more.
        num_heads: Attention heads.
        numerical_stabilizer: Dead; the effective value is ``RELU_STABILIZER``.
        num_transformer_layers: Transformer layers.
        norm: LayerNorm after the last transformer layer; those inside the layers are unconditional.
        max_seq_length: Longest sequence of bins; the rotary table has one row more.
        BN_momentum: Keras momentum of every BatchNorm: the weight of the old statistics.
        use_rot_emb: Rotary position encoding of queries and keys.
        normalize: Dead.
        seed: Seed of the projection matrix, truncated to int32; one matrix serves all layers.
        filter_list_seq: Widths of the sequence tower; the first is also the stem's, the last the hidden size.
        filter_list_atac: Widths of the accessibility tower; its stem is always 32 wide.
        final_point_scale: The head is ``hidden // final_point_scale`` wide.
        num_motifs: Dead in ``call``, which takes whatever width arrives; only ``build_weights`` reads it.
        motif_dropout_rate: First motif dropout; the second has a quarter of this rate.
        motif_units_fc: Width of the first motif layer; the second has a quarter of it.
        name: Name of the Keras model.
        dtype: Keras dtype policy or its name; the global policy when None. ``float64`` and ``float32`` compute in
            that precision throughout; ``mixed_bfloat16`` is the precision of the original.

    Raises:
        ValueError: ``num_heads`` does not divide the hidden size, rotary positions meet an odd head size, or
            ``final_output_length`` exceeds ``output_length``.
    """

    def __init__(
        self,
        kernel_transformation: str = RELU_KERNEL,
        dropout_rate: float = 0.20,
        pointwise_dropout_rate: float = 0.10,
        input_length: int = 524_288,
        output_length: int = 4096,
        final_output_length: int = 4092,
        num_heads: int = 8,
        numerical_stabilizer: float = 1e-7,
        num_transformer_layers: int = 8,
        norm: bool = True,
        max_seq_length: int = 4096,
        BN_momentum: float = 0.90,
        use_rot_emb: bool = True,
        normalize: bool = True,
        seed: float = 19,
        filter_list_seq: Sequence[int] = (512, 640, 640, 768, 896, 1024),
        filter_list_atac: Sequence[int] = (32, 64),
        final_point_scale: int = 6,
        num_motifs: int = 693,
        motif_dropout_rate: float = 0.25,
        motif_units_fc: int = 32,
        name: str = "epibert",
        dtype: str | Policy | None = None,
    ) -> None:
        super().__init__(constructor_arguments(locals()))
        self.final_pointwise_conv, self.final_dense_profile = self._head_layers()

    def call(self, inputs: Inputs, training: bool | tf.Tensor = True) -> Float[tf.Tensor, "B O 1"]:
        """Predict accessibility per 128-bp bin.

        Args:
            inputs: ``(sequence, atac, motif_activity)``: one-hot A, C, G, T of shape (B, L, 4), an unknown base being
                a zero row; masked accessibility in 4-bp bins, (B, A, 1); motif enrichment in [0, 1], (B, 1, N).
            training: True by default, as in the original: a plain ``model(inputs)`` uses batch statistics, updates the
                moving ones and drops out. ``fit``, ``evaluate`` and ``predict`` pass their own value.

        Returns:
            Predicted accessibility, cropped, non-negative, in the compute dtype.
        """
        x, _ = self._encode(inputs, training)
        return self._head(x, self.final_pointwise_conv, self.final_dense_profile, training)

    def predict_on_batch(
        self, inputs: Inputs, training: bool | tf.Tensor = False
    ) -> tuple[Float[tf.Tensor, "B O 1"], Features]:
        """The forward pass with the attention features of every layer (section 1.11); replaces Keras' own method.

        Args:
            inputs: As for ``call``.
            training: As for ``call``, but False by default. The second motif dropout is left out in any case.

        Returns:
            The profile, and ``{"layer_0": (k', q'), ...}``, each (L, B, H, M).
        """
        x, features = self._encode(self._as_computed(inputs), training, drop_second_motif_layer=False)
        return self._head(x, self.final_pointwise_conv, self.final_dense_profile, training), features


class Sequential(tf_keras.Sequential):
    """Layers one after the other, called as they are.

    Keras' own makes a functional model of them at its first call, with every layer run on symbols: most of the time
    that it takes to build a small model. Layers, their names, those of variables and the keys of checkpoints are the
    same.
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: None = None) -> tf.Tensor:
        """Run them; each takes ``training`` from the call around it, as Keras has it where nothing is given."""
        del training, mask
        # A functional model's variables are named after their layers alone.
        with tf.compat.v1.name_scope(""):
            for layer in self.layers:
                inputs = layer(inputs)
        return inputs


class Residual(tf_keras.layers.Layer):
    """x + layer(x).

    Args:
        layer: Layer that keeps the shape.
        **keras_arguments: Name and dtype policy.
    """

    def __init__(self, layer: tf_keras.layers.Layer, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self._layer = layer

    def call(self, inputs: Float[tf.Tensor, "B L C"], training: bool | None = None) -> Float[tf.Tensor, "B L C"]:
        """Add the layer's output to its input."""
        return inputs + self._layer(inputs, training=training)


class TanhGELU(tf_keras.layers.Layer):
    """GELU in its tanh form (section 1.2), as TensorFlow Addons computes it; the motif layer alone has the erf form."""

    def call(self, inputs: Float[tf.Tensor, "B L C"]) -> Float[tf.Tensor, "B L C"]:
        """Apply ``gelu_tanh``."""
        return gelu_tanh(inputs)


def gelu_tanh(x: tf.Tensor) -> tf.Tensor:
    """``x/2 (1 + tanh(√(2/π) (x + c x³)))``, one rounding per operation in the dtype of x.

    Of the constants, c alone passes through float32 on its way to float64 (section 1.2).
    """
    cubic_coefficient = tf.cast(tf.constant(0.044715, tf.float32), x.dtype)
    return 0.5 * x * (1.0 + tf.tanh(0.7978845608028654 * (x + cubic_coefficient * tf.pow(x, 3))))


def gelu_erf(x: tf.Tensor) -> tf.Tensor:
    """``x/2 (1 + erf(x/√2))`` with √2 rounded to float32 in float64, too (section 1.2).

    Written out, because current TensorFlow computes ``tf.nn.gelu`` from erfc and another constant.
    """
    square_root_of_two = tf.cast(tf.constant(1.4142135623730951, tf.float32), x.dtype)
    return 0.5 * x * (1.0 + tf.math.erf(x / square_root_of_two))


class SoftmaxPool(tf_keras.layers.Layer):
    """Attention pooling of neighbouring pairs: weights are the softmax of one linear logit per position.

    Args:
        **keras_arguments: Name and dtype policy.
    """

    def __init__(self, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.dense = _dense(1, self._dtype_policy, use_bias=False)

    def call(self, inputs: Float[tf.Tensor, "B L C"]) -> Float[tf.Tensor, "B L//2 C"]:
        """Pool pairs of positions; raises ValueError on an odd length."""
        _, length, channels = inputs.shape
        if length is None:
            batch, length = tf.shape(inputs)[0], tf.shape(inputs)[1]
        elif length % 2:
            raise ValueError(f"{self.name} pools pairs and got an odd length: {length}")
        else:
            batch = -1
        pairs = tf.reshape(inputs, [batch, length // 2, 2, channels])
        weights = tf.nn.softmax(self.dense(pairs), axis=-2)
        return tf.reduce_sum(pairs * weights, axis=-2)


class Performer(tf_keras.layers.Layer):
    """Pre-norm transformer with linear attention (section 1.6).

    Args:
        num_layers: Transformer layers.
        num_heads: Attention heads.
        hidden_size: Channels in and out.
        dropout_rate: Rate of every dropout in the layers.
        kernel_transformation: Feature map, see ``FeatureMap``.
        seed: Seed of the projection matrix.
        norm: LayerNorm after the last layer.
        use_rot_emb: Rotary positions.
        max_seq_length: Longest sequence.
        **keras_arguments: Name and dtype policy.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_heads: int,
        hidden_size: int,
        dropout_rate: float,
        kernel_transformation: str,
        seed: float,
        norm: bool,
        use_rot_emb: bool,
        max_seq_length: int,
        **keras_arguments: Any,
    ) -> None:
        super().__init__(**keras_arguments)
        head_size, remainder = divmod(hidden_size, num_heads)
        if remainder:
            raise ValueError(f"num_heads={num_heads} does not divide the hidden size {hidden_size}")
        if use_rot_emb and head_size % 2:
            raise ValueError(f"rotary positions need an even head size, not {hidden_size}/{num_heads} = {head_size}")
        policy = self._dtype_policy
        self.projection = constants.projection_matrix(constants.RANDOM_FEATURES, head_size, seed)

        if use_rot_emb:
            self.layer_pos_emb = RotaryTable(constants.rotary_table(max_seq_length + 1, head_size), dtype=policy)
        else:
            self.layer_pos_emb = None
        self.layers = [
            TransformerLayer(
                num_heads=num_heads,
                hidden_size=hidden_size,
                dropout_rate=dropout_rate,
                kernel_transformation=kernel_transformation,
                projection=self.projection,
                name="transformer_layer",
                dtype=policy,
            )
            for _ in range(num_layers)
        ]
        self.layer_norm = _layer_norm(policy) if norm else None

    def call(
        self, inputs: Float[tf.Tensor, "B L C"], training: bool | None = None
    ) -> tuple[Float[tf.Tensor, "B L C"], Features]:
        """Run all layers; also return ``{"layer_0": (k', q'), ...}``."""
        x = inputs
        features: Features = {}
        for index, layer in enumerate(self.layers):
            table = None if self.layer_pos_emb is None else self.layer_pos_emb(x)
            x, k_prime, q_prime = layer(x, table=table, training=training)
            features[f"layer_{index}"] = (k_prime, q_prime)
        return x if self.layer_norm is None else self.layer_norm(x), features

    def get_constants(self) -> tuple[np.ndarray, np.ndarray | None]:
        """See ``EpiBERT.get_constants``."""
        return self.projection, None if self.layer_pos_emb is None else self.layer_pos_emb.table

    def set_constants(self, projection: np.ndarray, table: np.ndarray | None) -> None:
        """See ``EpiBERT.set_constants``."""
        old_projection, old_table = self.get_constants()
        projection = _replacement("projection matrix", projection, old_projection)
        if table is not None:
            if self.layer_pos_emb is None:
                raise ValueError("a rotary table was given to a model without rotary positions")
            self.layer_pos_emb.table = _replacement("rotary table", table, old_table)
        self.projection = projection
        for layer in self.layers:
            layer.self_attention.feature_map.projection = projection


class RotaryTable(tf_keras.layers.Layer):
    """Rows of the table of sines and cosines for the positions of its input (section 1.7).

    Args:
        table: One row for each position.
        **keras_arguments: Name and dtype policy.
    """

    def __init__(self, table: Float32[np.ndarray, "L D"], **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.table = table

    def call(self, inputs: Float[tf.Tensor, "B L C"]) -> Float[tf.Tensor, "1 L D"]:
        """Cut the table to the input's length; raises ValueError when it has fewer rows."""
        length = inputs.shape[1]
        if length is None:
            length = tf.shape(inputs)[1]
            tf.debugging.assert_less_equal(length, len(self.table), "sequence longer than max_seq_length")
        elif length > len(self.table):
            raise ValueError(f"sequence of {length} bins is longer than max_seq_length={len(self.table) - 1}")
        return tf.cast(tf.constant(self.table)[tf.newaxis, :length], inputs.dtype)


class TransformerLayer(tf_keras.layers.Layer):
    """h + Dropout(Attention(LN(h))), then the feed-forward network on top of that (section 1.6).

    Args:
        num_heads: Attention heads.
        hidden_size: Channels in and out.
        dropout_rate: Rate of every dropout.
        kernel_transformation: Feature map.
        projection: Projection matrix.
        **keras_arguments: Name and dtype policy.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        hidden_size: int,
        dropout_rate: float,
        kernel_transformation: str,
        projection: Float32[np.ndarray, "M D"],
        **keras_arguments: Any,
    ) -> None:
        super().__init__(**keras_arguments)
        policy = self._dtype_policy
        self.layer_norm = _layer_norm(policy)
        self.self_attention = LinearAttention(
            num_heads=num_heads,
            hidden_size=hidden_size,
            kernel_transformation=kernel_transformation,
            projection=projection,
            dtype=policy,
        )
        self.dropout = tf_keras.layers.Dropout(dropout_rate, dtype=policy)
        self.FFN = FeedForward(hidden_size, dropout_rate, name="FFN", dtype=policy)

    def call(
        self,
        inputs: Float[tf.Tensor, "B L C"],
        table: Float[tf.Tensor, "1 L D"] | None = None,
        training: bool | None = None,
    ) -> tuple[Float[tf.Tensor, "B L C"], Float[tf.Tensor, "L B H M"], Float[tf.Tensor, "L B H M"]]:
        """Return the new hidden state, k' and q'."""
        x = self.layer_norm(inputs)
        x, k_prime, q_prime = self.self_attention(x, table=table)
        x = inputs + self.dropout(x, training=training)
        return x + self.FFN(x, training=training), k_prime, q_prime


class LinearAttention(tf_keras.layers.Layer):
    """Bidirectional FAVOR+ attention, linear in length (section 1.8): ``φ(q)(φ(k)ᵀv) / φ(q)Σφ(k)``.

    Queries are not scaled by 1/√D and the denominator has no epsilon. All four projections start from the same draw,
    in every layer, because the original fixes the initializer's seed.

    Args:
        num_heads: Attention heads.
        hidden_size: Channels in and out.
        kernel_transformation: Feature map.
        projection: Projection matrix.
        **keras_arguments: Name and dtype policy.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        hidden_size: int,
        kernel_transformation: str,
        projection: Float32[np.ndarray, "M D"],
        **keras_arguments: Any,
    ) -> None:
        super().__init__(**keras_arguments)
        policy = self._dtype_policy
        heads = (None, num_heads, hidden_size // num_heads)

        def projected(equation: str, output_shape: tuple[int | None, ...], name: str) -> tf_keras.layers.Layer:
            limit = (6.0 / (2 * hidden_size)) ** 0.5
            initializer = tf_keras.initializers.RandomUniform(-limit, limit, seed=ATTENTION_INITIALIZER_SEED)
            return tf_keras.layers.EinsumDense(
                equation, output_shape, kernel_initializer=initializer, name=name, dtype=policy
            )

        self.query_dense_layer = projected("blc,chd->blhd", heads, "query")
        self.key_dense_layer = projected("blc,chd->blhd", heads, "key")
        self.value_dense_layer = projected("blc,chd->blhd", heads, "value")
        self.output_dense_layer = projected("blhd,hdc->blc", (None, hidden_size), "output_transform")
        self.rotary = Rotary(dtype=policy)
        self.feature_map = FeatureMap(kernel_transformation, projection, dtype=policy)

    def call(
        self, inputs: Float[tf.Tensor, "B L C"], table: Float[tf.Tensor, "1 L D"] | None = None
    ) -> tuple[Float[tf.Tensor, "B L C"], Float[tf.Tensor, "L B H M"], Float[tf.Tensor, "L B H M"]]:
        """Return the attended values, k' and q'; no rotation without a table."""
        query = self.query_dense_layer(inputs)
        key = self.key_dense_layer(inputs)
        value = self.value_dense_layer(inputs)
        if table is not None:
            query, key = self.rotary(query, table=table), self.rotary(key, table=table)

        query_features = self.feature_map(query, is_query=True)
        key_features = self.feature_map(key, is_query=False)
        # Length first from here on: the layout in which the original returns the features.
        q_prime = tf.transpose(query_features, [1, 0, 2, 3])
        k_prime = tf.transpose(key_features, [1, 0, 2, 3])
        values = tf.transpose(value, [1, 0, 2, 3])

        weighted_values = tf.einsum("lbhm,lbhd->bhmd", k_prime, values)
        numerator = tf.einsum("lbhm,bhmd->lbhd", q_prime, weighted_values)
        # A product with ones, not a plain sum: the two round differently in bfloat16.
        ones = tf.ones([tf.shape(k_prime)[0]], k_prime.dtype)
        key_sum = tf.einsum("lbhm,l->bhm", k_prime, ones)
        denominator = tf.einsum("lbhm,bhm->lbh", q_prime, key_sum)
        attended = tf.transpose(numerator / denominator[..., tf.newaxis], [1, 0, 2, 3])
        return self.output_dense_layer(attended), k_prime, q_prime


class Rotary(tf_keras.layers.Layer):
    """Rotate the pairs (x_2j, x_2j+1) by the angle of frequency j and position (section 1.7). Has no weights."""

    def call(
        self, inputs: Float[tf.Tensor, "B L H D"], table: Float[tf.Tensor, "1 L D"]
    ) -> Float[tf.Tensor, "B L H D"]:
        """Rotate every position of every head by its row of the table."""
        sine, cosine = tf.split(table[:, :, tf.newaxis, :], 2, axis=-1)
        sine, cosine = tf.repeat(sine, 2, axis=-1), tf.repeat(cosine, 2, axis=-1)
        # (x_0, x_1, x_2, x_3, ...) -> (-x_1, x_0, -x_3, x_2, ...)
        shape = tf.shape(inputs)
        even, odd = tf.unstack(tf.reshape(inputs, tf.concat([shape[:-1], [-1, 2]], axis=0)), num=2, axis=-1)
        turned = tf.reshape(tf.stack([-odd, even], axis=-1), shape)
        return inputs * cosine + turned * sine


class FeatureMap(tf_keras.layers.Layer):
    """Positive random features of queries and keys (sections 1.8 and 1.9). Has no weights.

    Args:
        kernel_transformation: ``relu_kernel_transformation``: ``ReLU(xPᵀ/√M) + 0.001``;
            ``relu_kernel_transformation_q``: its fourth power before the addition; anything else: exponential features
            of the softmax kernel.
        projection: Projection matrix P.
        **keras_arguments: Name and dtype policy.
    """

    def __init__(
        self, kernel_transformation: str, projection: Float32[np.ndarray, "M D"], **keras_arguments: Any
    ) -> None:
        super().__init__(**keras_arguments)
        self.kernel_transformation = kernel_transformation
        self.projection = projection

    def call(self, inputs: Float[tf.Tensor, "B L H D"], is_query: bool) -> Float[tf.Tensor, "B L H M"]:
        """Map heads to non-negative features; only the softmax map treats queries and keys differently."""
        projection = tf.cast(tf.constant(self.projection), inputs.dtype)
        ratio = len(self.projection) ** -0.5
        if self.kernel_transformation not in (RELU_KERNEL, RELU_QUARTIC_KERNEL):
            return self._softmax_features(inputs, projection, ratio, is_query)
        features = tf.nn.relu(ratio * tf.einsum("blhd,md->blhm", inputs, projection))
        if self.kernel_transformation == RELU_QUARTIC_KERNEL:
            features = tf.pow(features, 4)
        return features + RELU_STABILIZER

    def _softmax_features(
        self, inputs: tf.Tensor, projection: tf.Tensor, ratio: float, is_query: bool
    ) -> Float[tf.Tensor, "B L H M"]:
        inputs = inputs * self.projection.shape[1] ** -0.25
        exponents = tf.einsum("blhd,md->blhm", inputs, projection)
        half_squared_norm = tf.reduce_sum(tf.square(inputs), axis=-1, keepdims=True) / 2
        # Keys share one maximum over the length, since their features are summed over it.
        maximum = tf.reduce_max(exponents, axis=-1 if is_query else (1, -1), keepdims=True)
        return ratio * (tf.exp(exponents - half_squared_norm - maximum) + SOFTMAX_STABILIZER)


class FeedForward(tf_keras.layers.Layer):
    """LN, twice as wide, dropout *before* ReLU, back, dropout (section 1.6). Both biases start random, like kernels.

    Args:
        hidden_size: Channels in and out.
        dropout_rate: Of both dropouts, which are one layer called twice.
        **keras_arguments: Name and dtype policy.
    """

    def __init__(self, hidden_size: int, dropout_rate: float, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        policy = self._dtype_policy
        self.FFN_layer_norm = _layer_norm(policy)
        self.FFN_dense_wide = _dense(2 * hidden_size, policy, bias_initializer="lecun_normal")
        self.dropout = tf_keras.layers.Dropout(dropout_rate, dtype=policy)
        self.relu = tf_keras.layers.ReLU(dtype=policy)
        self.FFN_dense_narrow = _dense(hidden_size, policy, bias_initializer="lecun_normal")

    def call(self, inputs: Float[tf.Tensor, "B L C"], training: bool | None = None) -> Float[tf.Tensor, "B L C"]:
        """Widen, rectify, narrow."""
        x = self.FFN_dense_wide(self.FFN_layer_norm(inputs))
        x = self.relu(self.dropout(x, training=training))
        return self.dropout(self.FFN_dense_narrow(x), training=training)


class Crop(tf_keras.layers.Layer):
    """Trim the same number of bins from both ends; an odd difference leaves one bin more than asked for.

    Args:
        uncropped_length: Bins before.
        target_length: Bins wanted.
        **keras_arguments: Name and dtype policy.

    Raises:
        ValueError: The target is longer than the input.
    """

    def __init__(self, uncropped_length: int, target_length: int, **keras_arguments: Any) -> None:
        super().__init__(**keras_arguments)
        self.trim = (uncropped_length - target_length) // 2
        if self.trim < 0:
            raise ValueError(f"cannot crop {uncropped_length} bins to {target_length}")

    def call(self, inputs: Float[tf.Tensor, "B L C"]) -> Float[tf.Tensor, "B O C"]:
        """Trim both ends."""
        return inputs[:, self.trim : -self.trim] if self.trim else inputs


def constructor_arguments(local_names: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor from its ``locals()``, before it has any other names."""
    return {name: value for name, value in local_names.items() if name not in ("self", "__class__")}


def _as_policy(dtype: str | Policy | None) -> Policy:
    if dtype is None:
        return tf_keras.mixed_precision.global_policy()
    return dtype if isinstance(dtype, Policy) else Policy(dtype)


def _conv(filters: int, kernel_size: int, policy: Policy) -> tf_keras.layers.Layer:
    return tf_keras.layers.Conv1D(filters, kernel_size, padding="same", kernel_initializer="lecun_normal", dtype=policy)


def _conv_block(filters: int, kernel_size: int, momentum: float, policy: Policy) -> tf_keras.Sequential:
    """BatchNorm, GELU, convolution: pre-activation order (section 1.4). Statistics span all replicas."""
    norm = tf_keras.layers.BatchNormalization(
        momentum=momentum, epsilon=BATCH_NORM_EPSILON, synchronized=True, dtype=policy
    )
    return Sequential([norm, TanhGELU(dtype=policy), _conv(filters, kernel_size, policy)])


def _dense(units: int, policy: Policy, **arguments: Any) -> tf_keras.layers.Layer:
    return tf_keras.layers.Dense(units, kernel_initializer="lecun_normal", dtype=policy, **arguments)


def _layer_norm(policy: Policy) -> tf_keras.layers.Layer:
    """Keras takes its fused kernel, which has another epsilon, only above 1e-5: not here."""
    return tf_keras.layers.LayerNormalization(axis=-1, epsilon=LAYER_NORM_EPSILON, dtype=policy)


def _replacement(what: str, new: np.ndarray, old: np.ndarray | None) -> np.ndarray:
    new = np.asarray(new, np.float32)
    if old is not None and new.shape != old.shape:
        raise ValueError(f"{what} has shape {new.shape}, expected {old.shape}")
    return new
