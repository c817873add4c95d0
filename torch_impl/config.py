"""Configuration of the port: the constructor arguments of the original, and what the original hard-codes."""

import dataclasses
import math
from collections.abc import Callable, Sequence

RELU_KERNEL = "relu_kernel_transformation"
RELU_QUARTIC_KERNEL = "relu_kernel_transformation_q"

SMALLEST, LARGEST = 1e-37, 1e37
"""Of a setting that is computed with, in size: beyond them it is, or becomes at once, 0 or infinite in float32."""
ROOM = f"of a size from {SMALLEST:g} to {LARGEST:g}"
LARGEST_SIZE = 2**31 - 1

_SIZES = (
    "output_length",
    "final_output_length",
    "num_heads",
    "max_seq_length",
    "final_point_scale",
    "num_motifs",
    "motif_units_fc",
    "num_random_features",
)


def _check_size(name: str, value: object, *, smallest: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
        raise ValueError(f"{name} must be a whole number from {smallest} up, not {value!r}")
    if value > LARGEST_SIZE:
        raise ValueError(f"{name} must be below 2^31, not {value}")


def _check_number(name: str, value: object, accepts: Callable[[float], bool], what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not accepts(value):
        raise ValueError(f"{name} must be a {what}, not {value!r}")
    if not has_room(value):
        raise ValueError(f"{name} must be {'0 or ' * accepts(0)}{ROOM}, not {value!r}")


def has_room(value: float) -> bool:
    """Whether float32 has room for computing with a setting."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpiBERTConfig:
    """Shape and behaviour of an EpiBERT model, for pre-training or fine-tuning.

    The first group of fields has the names and defaults of the original's constructor (spec, section 1.1), so
    ``EpiBERTConfig(**arguments_of_the_original)`` works. Some of those are dead there and therefore dead here:
    ``input_length``, ``numerical_stabilizer`` and ``normalize`` are stored and never used. The second group names
    what the original hard-codes, and where the port offers the sane choice beside the original's.

    Attributes:
        kernel_transformation: FAVOR+ feature map: ``relu_kernel_transformation``,
            ``relu_kernel_transformation_q``, and for any other text the softmax map (as in the original).
        dropout_rate: After the attention's output projection and twice in each feed-forward network.
        pointwise_dropout_rate: Dropout in the head.
        input_length: Dead. Base pairs of the sequence window.
        output_length: Length of the transformer's sequence, in 128-bp bins.
        final_output_length: Bins kept after the crop; an odd difference to ``output_length`` keeps one more.
        num_heads: Attention heads; divides the hidden size.
        numerical_stabilizer: Dead; the effective value is ``kernel_stabilizer``.
        num_transformer_layers: Transformer layers.
        norm: LayerNorm after the last transformer layer; those inside the layers are unconditional.
        max_seq_length: Longest sequence of bins; the rotary table has one row more.
        BN_momentum: Keras momentum of every BatchNorm: the weight of the *old* statistics.
        use_rot_emb: Rotary position encoding of queries and keys.
        normalize: Dead.
        seed: Seed of the projection matrix; truncated to an integer.
        filter_list_seq: Widths of the sequence tower; the first is also the stem's, the last the hidden size.
        filter_list_atac: Widths of the accessibility tower; its stem is always 32 wide.
        final_point_scale: The head is ``hidden // final_point_scale`` wide.
        num_motifs: Length of the motif activity vector. Dead in the original, which takes whatever arrives.
        motif_dropout_rate: First motif dropout; the second has a quarter of this rate.
        motif_units_fc: Width of the first motif layer; the second has a quarter of it.
        name: Name of the Keras model; kept so that configurations travel both ways.
        predict_atac: Fine-tuning model only: whether it has an ATAC head beside the RNA head (spec, section 2.1).

        kernel_stabilizer: Added to the ReLU feature maps; the original never passes its own argument on, so this
            default of its feature map is what counts (spec, section 1.8).
        num_random_features: Rows of the projection matrix.
        batch_norm_epsilon: Epsilon of every BatchNorm.
        layer_norm_epsilon: Epsilon of every LayerNorm.
        gelu_cubic_coefficient: Coefficient of x³ in the tanh GELU. TensorFlow rounds 0.044715 to float32 even in
            float64; 0.044715 here gives the textbook function (spec, section 1.2).
        gelu_erf_scale: Divisor inside the erf GELU of the motif layer, √2 rounded to float32 for the same reason.
        rotary_bfloat16: Round the rotary table to bfloat16 in every precision, as the original does.
        identical_attention_init: Start query, key, value and output projections of all layers from one and the
            same draw, as the original does by its fixed seed 5 (spec, section 1.6); else draw each independently.
    """

    kernel_transformation: str = RELU_KERNEL
    dropout_rate: float = 0.20
    pointwise_dropout_rate: float = 0.10
    input_length: int = 524_288
    output_length: int = 4096
    final_output_length: int = 4092
    num_heads: int = 8
    numerical_stabilizer: float = 1e-7
    num_transformer_layers: int = 8
    norm: bool = True
    max_seq_length: int = 4096
    BN_momentum: float = 0.90
    use_rot_emb: bool = True
    normalize: bool = True
    seed: float = 19
    filter_list_seq: Sequence[int] = (512, 640, 640, 768, 896, 1024)
    filter_list_atac: Sequence[int] = (32, 64)
    final_point_scale: int = 6
    num_motifs: int = 693
    motif_dropout_rate: float = 0.25
    motif_units_fc: int = 32
    name: str = "epibert"
    predict_atac: bool = True

    kernel_stabilizer: float = 1e-3
    num_random_features: int = 256
    batch_norm_epsilon: float = 1e-5
    layer_norm_epsilon: float = 1e-5
    gelu_cubic_coefficient: float = 0.044714998453855515
    gelu_erf_scale: float = 1.4142135381698608
    rotary_bfloat16: bool = True
    identical_attention_init: bool = False

    def __post_init__(self) -> None:
        for name in ("filter_list_seq", "filter_list_atac"):
            widths = getattr(self, name)
            if isinstance(widths, str) or not isinstance(widths, Sequence) or not widths:
                raise ValueError(f"{name} must be a sequence of at least one width, not {widths!r}")
            object.__setattr__(self, name, tuple(widths))
            for width in widths:
                _check_size(f"{name} entry", width)
        for name in _SIZES:
            _check_size(name, getattr(self, name))
        _check_size("num_transformer_layers", self.num_transformer_layers, smallest=0)
        for name in ("dropout_rate", "pointwise_dropout_rate", "motif_dropout_rate", "BN_momentum"):
            rate = getattr(self, name)
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, not {rate!r}")
        for name in ("batch_norm_epsilon", "layer_norm_epsilon", "kernel_stabilizer"):
            _check_number(name, getattr(self, name), lambda value: value >= 0, "number from 0 up")
        _check_number("gelu_cubic_coefficient", self.gelu_cubic_coefficient, lambda _: True, "finite number")
        _check_number("gelu_erf_scale", self.gelu_erf_scale, lambda value: value > 0, "number above 0")
        if not isinstance(self.predict_atac, bool):
            raise ValueError(f"predict_atac must be true or false, not {self.predict_atac!r}")
        if not isinstance(self.kernel_transformation, str):
            raise ValueError(f"kernel_transformation must be a text, not {self.kernel_transformation!r}")
        # The original casts its seed to int32, which NaN and larger numbers are not.
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | float) or not abs(self.seed) < 2**31:
            raise ValueError(f"seed must be a number that fits 32 bits, not {self.seed!r}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide the hidden size {self.hidden_size}")
        if self.use_rot_emb and self.head_size % 2:
            raise ValueError(f"rotary position encoding needs an even head size, not {self.head_size}")
        if self.final_point_scale > self.hidden_size:
            raise ValueError(f"final_point_scale={self.final_point_scale} leaves no width of {self.hidden_size}")
        if self.crop < 0:
            raise ValueError(
                f"final_output_length={self.final_output_length} is longer than output_length={self.output_length}"
            )

    @property
    def hidden_size(self) -> int:
        """Width of the transformer."""
        return self.filter_list_seq[-1]

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def crop(self) -> int:
        """Bins trimmed from each side of the output."""
        return (self.output_length - self.final_output_length) // 2

    @property
    def sequence_length(self) -> int:
        """Base pairs that the convolutions pool down to ``output_length`` bins."""
        return self.output_length * 2 ** (1 + len(self.filter_list_seq))

    @property
    def atac_length(self) -> int:
        """Accessibility bins that the convolutions pool down to ``output_length`` bins."""
        return self.output_length * 2 * 4 ** len(self.filter_list_atac)

    @classmethod
    def pretrain(cls) -> "EpiBERTConfig":
        """The published pre-training model: the defaults of the original's constructor."""
        return cls()

    @classmethod
    def rampage(cls) -> "EpiBERTConfig":
        """The fine-tuning model: the defaults of its original constructor (spec, section 2.1), made to run.

        Its own ``max_seq_length`` of 1536 is shorter than its ``output_length`` of 4096, so that the model fails on
        every input of full length; here the rotary table is as long as the output, as the training script has it.
        """
        return cls(
            pointwise_dropout_rate=0.20,
            num_heads=4,
            numerical_stabilizer=1e-3,
            num_transformer_layers=7,
            max_seq_length=4096,
            seed=3,
            filter_list_seq=(768, 896, 1024, 1024, 1152, 1280),
        )

    @classmethod
    def tiny(cls) -> "EpiBERTConfig":
        """A model of the same structure for tests: 8,192 bp, two layers, no two widths in a row alike."""
        return cls(
            input_length=8192,
            output_length=64,
            final_output_length=60,
            num_heads=2,
            num_transformer_layers=2,
            max_seq_length=64,
            filter_list_seq=(12, 16, 20, 24, 28, 32),
            filter_list_atac=(32, 64),
            num_motifs=11,
            seed=21,
        )
