"""The port by itself: what it promises beyond computing what the reference computes."""

import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from parity.compare import distance
from parity.tolerances import TABLE
from tests.assertions import Disagreement, assert_same
from tests.unit.sources import ROOT
from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl import model as model_module
from torch_impl.model import BatchNorm, Conv1d, HeadsIn, HeadsOut, LayerNorm, Linear, Performer, SoftmaxPool

# 9 bins of 8 base pairs; 12 channels in 3 heads of 4; an odd crop.
SMALL: dict[str, Any] = {
    "filter_list_seq": (5, 12),
    "filter_list_atac": (3, 4),
    "num_heads": 3,
    "num_transformer_layers": 2,
    "output_length": 9,
    "final_output_length": 4,
    "max_seq_length": 9,
    "final_point_scale": 2,
    "num_motifs": 3,
    "motif_units_fc": 8,
}
NO_DROPOUT: dict[str, Any] = {"dropout_rate": 0.0, "pointwise_dropout_rate": 0.0, "motif_dropout_rate": 0.0}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
PRECISIONS = [torch.float64, torch.float32, torch.bfloat16]


def small(*, compute_dtype: torch.dtype | None = None, **changes: Any) -> EpiBERT:
    return EpiBERT(EpiBERTConfig(**{**SMALL, **changes}), compute_dtype=compute_dtype).eval()


def inputs(
    config: EpiBERTConfig, batch: int = 2, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    bases = torch.randint(4, (batch, config.sequence_length), generator=generator)
    atac = torch.rand(batch, config.atac_length, 1, generator=generator, dtype=torch.float64) * 5
    motifs = torch.rand(batch, 1, config.num_motifs, generator=generator, dtype=torch.float64)
    sequence, atac, motifs = (x.to(device, dtype) for x in (nn.functional.one_hot(bases, 4), atac, motifs))
    return sequence, atac, motifs


def predict(model: EpiBERT, *arguments: Any, **keywords: Any) -> Tensor:
    with torch.no_grad():
        return model(*inputs(model.config, *arguments, **keywords))


# --- size and shape


def test_the_published_model_has_as_many_parameters_as_the_original():
    with torch.device("meta"):
        model = EpiBERT()
    assert sum(parameter.numel() for parameter in model.parameters()) == 84_303_037
    statistics = [buffer for name, buffer in model.named_buffers() if "running" in name]
    assert sum(buffer.numel() for buffer in statistics) == 11_200


def test_the_published_model_has_the_originals_shapes():
    with torch.device("meta"):
        model = EpiBERT().to("meta").eval()
        arguments = (torch.empty(1, 524_288, 4), torch.empty(1, 131_072, 1), torch.empty(1, 1, 693))
    assert model(*arguments).shape == (1, 4092, 1)


@pytest.mark.parametrize(("kept", "rows"), [(9, 9), (8, 9), (7, 7), (6, 7), (4, 5), (1, 1)])
def test_an_odd_crop_keeps_one_row_more(kept, rows):
    whole, model = small(final_output_length=9), small(final_output_length=kept)
    model.load_state_dict(whole.state_dict())
    trimmed = (9 - rows) // 2
    assert_same(predict(model), predict(whole)[:, trimmed : 9 - trimmed], "exact")


def test_the_prediction_is_not_negative():
    assert (predict(small(), batch=5) >= 0).all()


def test_examples_of_a_batch_do_not_see_each_other():
    model = small().double()
    arguments = inputs(model.config, batch=5)
    with torch.no_grad():
        one_by_one = torch.cat([model(*(x[i : i + 1] for x in arguments)) for i in range(5)])
        assert_same(model(*arguments), one_by_one)


def test_features_of_every_layer_come_with_the_prediction():
    model = small().double()
    arguments = inputs(model.config, batch=2)
    with torch.no_grad():
        profile, features = model(*arguments, return_features=True)
        assert_same(profile, model(*arguments), "exact")
    assert list(features) == ["layer_0", "layer_1"]
    for key_features, query_features in features.values():
        assert key_features.shape == query_features.shape == (9, 2, 3, 256)
        assert min(key_features.min(), query_features.min()) >= model.config.kernel_stabilizer
        assert not torch.equal(key_features, query_features)


# --- arguments


@pytest.mark.parametrize("dead", [{"input_length": 3}, {"numerical_stabilizer": 5.0}, {"normalize": False}])
def test_dead_arguments_change_nothing(dead):
    torch.manual_seed(0)
    expected = predict(small())
    torch.manual_seed(0)
    assert_same(predict(small(**dead)), expected, "exact")


@pytest.mark.parametrize(
    "living",
    [
        {"kernel_transformation": "relu_kernel_transformation_q"},
        {"kernel_transformation": "softmax"},
        {"kernel_stabilizer": 1e-2},
        {"use_rot_emb": False},
        {"norm": False},
        {"seed": 20},
        {"batch_norm_epsilon": 1e-3},
        {"layer_norm_epsilon": 1e-3},
        {"num_random_features": 128},
    ],
    ids=lambda argument: "-".join(map(str, *argument.items())),
)
def test_living_arguments_change_the_prediction(living):
    torch.manual_seed(0)
    expected = predict(small())
    torch.manual_seed(0)
    with pytest.raises(Disagreement):
        assert_same(predict(small(**living)), expected, "float32_only_accumulated")


@pytest.mark.parametrize("exact", [{"gelu_cubic_coefficient": 0.044715}, {"gelu_erf_scale": math.sqrt(2)}])
def test_textbook_constants_of_the_gelus_change_next_to_nothing(exact):
    torch.manual_seed(0)
    expected = predict(small().double())
    torch.manual_seed(0)
    result = predict(small(**exact).double())
    assert_same(result, expected, "rounded_constant")
    with pytest.raises(Disagreement):
        assert_same(result, expected, "float64")


def test_any_unknown_kernel_is_the_softmax_kernel():
    torch.manual_seed(0)
    expected = predict(small(kernel_transformation="softmax_kernel_transformation"))
    torch.manual_seed(0)
    assert_same(predict(small(kernel_transformation="anything")), expected, "exact")


def test_the_seed_is_truncated():
    assert_same(small(seed=19.7).performer.projection_matrix, small(seed=19).performer.projection_matrix, "exact")


def test_the_rotary_table_may_keep_its_precision():
    rounded, exact = small(), small(rotary_bfloat16=False)
    assert rounded.performer.rotary_table is not None
    assert exact.performer.rotary_table is not None
    assert_same(exact.performer.rotary_table.table.bfloat16(), rounded.performer.rotary_table.table, "exact")
    assert not torch.equal(exact.performer.rotary_table.table, rounded.performer.rotary_table.table)


def test_dropout_rates_are_the_originals():
    model = small(dropout_rate=0.2, pointwise_dropout_rate=0.1, motif_dropout_rate=0.4)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    per_layer = {f"performer.layers.{i}.{name}": 0.2 for i in range(2) for name in ("dropout", "ffn.dropout")}
    assert rates == {"motif_dropout1": 0.4, "motif_dropout2": 0.1, "dropout": 0.1, **per_layer}


def test_dropout_is_random_in_training_only():
    model = small()
    assert torch.equal(predict(model), predict(model))
    model.train()
    assert not torch.equal(predict(model), predict(model))


# --- what it refuses


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ((80, 288), r"sequence of 80 and atac of 288 .* pool to 10 and 9 bins, not to output_length=9; .* 72 and 288"),
        ((72, 320), r"sequence of 72 and atac of 320 .* pool to 9 and 10 bins, not to output_length=9; .* 72 and 288"),
        ((80, 320), r"pool to 10 and 10 bins, not to output_length=9"),
        ((71, 288), r"even length, not 71"),
        ((74, 288), r"even length, not 37"),
    ],
)
def test_a_wrong_length_is_refused_with_the_right_one(lengths, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(1, lengths[0], 4), torch.zeros(1, lengths[1], 1), torch.zeros(1, 1, 3))


def test_a_model_longer_than_its_rotary_table_is_refused():
    with pytest.raises(ValueError, match="9 positions, but the rotary table ends at 8"):
        predict(small(max_seq_length=7))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: Conv1d(4, 3, 5), (9, 4)),
        (lambda: SoftmaxPool(4), (1, 2, 8, 4)),
        (lambda: BatchNorm(4, 1e-5, 0.9), (9, 4)),
        (lambda: HeadsOut(4, 2, identical_init=False), (1, 9, 4)),
    ],
    ids=["Conv1d", "SoftmaxPool", "BatchNorm", "HeadsOut"],
)
def test_a_wrong_rank_is_refused_while_tests_run(layer: Callable[[], nn.Module], shape):
    with pytest.raises(jaxtyping.TypeCheckError):
        layer()(torch.zeros(shape))


# --- constants


def constants(model: EpiBERT) -> tuple[Tensor, Tensor]:
    assert model.performer.rotary_table is not None
    return model.performer.projection_matrix, model.performer.rotary_table.table


def test_constants_are_our_own_until_set():
    model = small()
    assert model.constants_origin == "philox"
    projection, table = (torch.randn_like(constant) for constant in constants(model))
    before = predict(model)
    model.set_constants(projection, table, origin="recorded tensorflow 2.12.0")
    assert model.constants_origin == "recorded tensorflow 2.12.0"
    assert torch.equal(constants(model)[0], projection)
    assert torch.equal(constants(model)[1], table)
    assert not torch.equal(predict(model), before)


@pytest.mark.parametrize(
    ("projection", "table", "message"),
    [
        ((255, 4), (10, 4), r"projection matrix has shape \(255, 4\), the model's is \(256, 4\)"),
        ((256, 6), (10, 4), r"projection matrix has shape \(256, 6\)"),
        ((256, 4), (9, 4), r"rotary table has shape \(9, 4\), the model's is \(10, 4\)"),
        ((256, 4), None, "rotary table belongs to a model with use_rot_emb"),
    ],
)
def test_constants_that_do_not_fit_are_refused_and_nothing_changes(projection, table, message):
    model = small()
    before = [constant.clone() for constant in constants(model)]
    with pytest.raises(ValueError, match=message):
        model.set_constants(torch.ones(projection), None if table is None else torch.ones(table), origin="elsewhere")
    assert all(itertools.starmap(torch.equal, zip(constants(model), before, strict=True)))
    assert model.constants_origin == "philox"


def test_a_model_without_rotation_takes_no_table():
    model = small(use_rot_emb=False)
    with pytest.raises(ValueError, match="only to such a model"):
        model.set_constants(torch.ones(256, 4), torch.ones(10, 4), origin="elsewhere")
    model.set_constants(torch.ones(256, 4), None, origin="elsewhere")
    assert model.constants_origin == "elsewhere"


# --- state


def test_the_state_holds_everything_and_where_the_constants_come_from():
    model, other = small().double(), small(seed=3).double()
    model.set_constants(*(torch.randn_like(constant) for constant in constants(model)), origin="tensorflow 2.21.0 (é)")
    saved = safetensors.torch.save(model.state_dict())
    other.load_state_dict(safetensors.torch.load(saved))
    assert other.constants_origin == "tensorflow 2.21.0 (é)"
    assert_same(predict(other), predict(model), "exact")


@pytest.mark.parametrize("name", ["performer._extra_state", "performer.projection_matrix", "stem_conv.bias"])
def test_loading_is_strict(name):
    model = small()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=rf'Missing key.*"{name}"'):
        model.load_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"another"'):
        model.load_state_dict({**state, "another": torch.zeros(1)})


def test_a_state_of_another_size_is_refused():
    with pytest.raises(RuntimeError, match=r"size mismatch for performer\.rotary_table\.table"):
        small().load_state_dict(small(max_seq_length=20).state_dict())


# --- precision and devices


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_the_prediction_has_the_dtype_of_the_parameters(dtype, device):
    model = small().to(device, dtype)
    for given in (torch.float32, dtype):
        profile = predict(model, dtype=given, device=device)
        assert profile.dtype == dtype
        assert profile.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("parameters", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("compute_dtype", PRECISIONS, ids=str)
def test_compute_dtype_is_the_dtype_of_every_activation(compute_dtype, parameters, training, device):
    model = small(compute_dtype=compute_dtype, **NO_DROPOUT).to(device, parameters).train(training)
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: {x.dtype for x in tree_leaves(output)}})
        )
    profile = predict(model, device=device)
    assert profile.dtype == compute_dtype
    assert len(seen) > 50
    assert {name: dtypes for name, dtypes in seen.items() if dtypes != {compute_dtype}} == {}
    # The parameters, and the statistics that training updates, stay what they were.
    kept = {tensor.dtype for name, tensor in model.state_dict().items() if "extra_state" not in name}
    assert kept == {parameters}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_float64_is_exact_whatever_the_parameters(training):
    torch.manual_seed(0)
    narrow = small(compute_dtype=torch.float64, **NO_DROPOUT).train(training)
    wide = small(**NO_DROPOUT).train(training)
    wide.load_state_dict(narrow.state_dict())
    assert_same(predict(narrow), predict(wide.double()))


@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize(
    "layer", [lambda: LayerNorm(3, 1e-5), lambda: BatchNorm(3, 1e-5, 0.9)], ids=["LayerNorm", "BatchNorm"]
)
def test_norms_compute_in_float32_at_least(layer, training, parameters):
    # bfloat16 has 8 bits: beside 1000 it has neither the means nor the deviations of these.
    x = (torch.tensor([992.0, 1000.0, 1008.0]) + torch.tensor([0.0, 8.0, 16.0, 32.0])[:, None])[None]
    expected = layer().train(training)(x).bfloat16()
    assert_same(layer().to(parameters).train(training)(x.bfloat16()), expected, "exact")


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_predicts_what_the_processor_predicts(device):
    torch.manual_seed(0)
    model = small().double()
    expected = predict(model)
    assert_same(predict(model.to(device), device=device), expected)


# --- training


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_reaches_every_parameter(device):
    model = small(**NO_DROPOUT).to(device).double().train()
    model(*inputs(model.config, batch=3, device=device)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    without = [name for name, gradient in gradients.items() if gradient is None or not gradient.any()]
    assert without == []
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


def test_gradients_are_those_of_finite_differences():
    model = small(num_transformer_layers=1, **NO_DROPOUT).double()
    arguments = inputs(model.config, batch=1)
    parameter = model.get_parameter("performer.layers.0.attention.key.weight")

    def loss() -> Tensor:
        return model(*arguments).square().sum()

    loss().backward()
    direction, step = torch.randn_like(parameter), 1e-5
    with torch.no_grad():
        parameter += step * direction
        after = loss()
        parameter -= 2 * step * direction
        slope = (after - loss()) / (2 * step)
    assert parameter.grad is not None
    # The error of a central difference is the square of the step; a ReLU that switches within it adds its share.
    assert_same((parameter.grad * direction).sum(), slope, "own_constants")


def test_a_training_step_moves_every_statistic():
    model = small(**NO_DROPOUT).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    predict(model)
    assert len(before) == 2 * sum(isinstance(module, BatchNorm) for module in model.modules()) == 14
    assert not [name for name, buffer in model.named_buffers() if name in before and torch.equal(buffer, before[name])]


# --- initialisation

STANDARD_ERRORS = 5
"""A sample's mean and deviation lie this many standard errors from the true ones about once in a million."""


def assert_deviation(tensor: Tensor, deviation: float) -> None:
    # Both distributions in use have lighter tails than a normal one, whose standard errors are therefore large enough.
    values, count = tensor.detach().double(), tensor.numel()
    assert count > 100
    assert abs(values.mean()) < STANDARD_ERRORS * deviation / math.sqrt(count)
    assert abs(values.std() / deviation - 1) < STANDARD_ERRORS / math.sqrt(2 * count)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: Conv1d(8, 32, 5), 40),
        (lambda: Conv1d(64, 32, 1), 64),
        (lambda: Linear(48, 64), 48),
        (lambda: Linear(200, 1, bias=False), 200),
    ],
)
def test_kernels_start_lecun_normal(layer, fan_in):
    torch.manual_seed(0)
    weight = layer().weight
    deviation = math.sqrt(1 / fan_in)
    assert_deviation(weight, deviation)
    # Truncated at two deviations of the normal that was cut: nothing is beyond, and something comes close.
    limit = 2 * deviation / 0.87962566103423978
    assert 0.9 * limit < weight.abs().max() <= limit * (1 + 1e-6)


def test_biases_start_at_zero_but_for_those_of_the_feed_forward_networks():
    model = EpiBERT(EpiBERTConfig.tiny())
    random = {name for name, p in model.named_parameters() if name.endswith("bias") and p.any()}
    assert random == {f"performer.layers.{i}.ffn.{name}.bias" for i in range(2) for name in ("wide", "narrow")}
    torch.manual_seed(0)
    bias = Linear(8, 4096, random_bias=True).bias
    assert_deviation(bias, math.sqrt(1 / 4096))


def test_norms_start_as_the_identity():
    for name, tensor in EpiBERT(EpiBERTConfig.tiny()).state_dict().items():
        if name.endswith(("norm.weight", "running_var")):
            assert (tensor == 1).all(), name
        if name.endswith(("norm.bias", "running_mean")):
            assert (tensor == 0).all(), name


@pytest.mark.parametrize("layer", [HeadsIn, HeadsOut])
def test_projections_of_attention_start_uniform(layer):
    torch.manual_seed(0)
    weight = layer(64, 4, identical_init=False).weight
    limit = math.sqrt(6 / 128)
    assert_deviation(weight, limit / math.sqrt(3))
    assert 0.99 * limit < weight.abs().max() <= limit


def test_projections_of_attention_are_drawn_independently():
    weights = attention_weights(identical_attention_init=False)
    pairs = itertools.combinations(weights.values(), 2)
    assert not any(itertools.starmap(torch.equal, pairs))


def test_projections_of_attention_are_all_one_draw_where_the_original_is_followed():
    weights = attention_weights(identical_attention_init=True)
    # All four Keras kernels have the same flat values, those of the output in the shape (H, D, C) instead of (C, H, D).
    # Both flatten to a square matrix, which is the transposed weight.
    first = next(iter(weights.values()))
    assert all(torch.equal(weight, first) for weight in weights.values())


def attention_weights(**changes: Any) -> dict[str, Tensor]:
    model = small(**changes)
    weights = {name: p.detach() for name, p in model.named_parameters() if ".attention." in name}
    assert len(weights) == 8
    return weights


# --- linear in length


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def cost(run: Callable[[Tensor], Any], length: int) -> tuple[int, int]:
    """Floating-point operations, and numbers in the largest tensor, without computing anything."""
    x = torch.empty(1, length, 64, device="meta")
    with FlopCounterMode(display=False) as flops, LargestTensor() as largest, torch.no_grad():
        run(x)
    return flops.get_total_flops(), largest.numel


@pytest.mark.parametrize("kernel", ["relu_kernel_transformation", "relu_kernel_transformation_q", "softmax"])
def test_attention_is_linear_in_length(kernel):
    config = EpiBERTConfig(filter_list_seq=(64,), num_heads=2, num_transformer_layers=2, kernel_transformation=kernel)
    performer = Performer(config).to("meta").eval()
    flops, numbers = cost(performer, 1024)
    assert flops > 0
    assert cost(performer, 2048) == (2 * flops, 2 * numbers)


def test_quadratic_attention_would_be_seen():
    def quadratic(x: Tensor) -> Tensor:
        return (x @ x.mT) @ x

    flops, numbers = cost(quadratic, 1024)
    assert cost(quadratic, 2048) == (4 * flops, 4 * numbers)


# --- compiled

# In an interpreter of its own, because the compiler does not look through the shape checks of the tests.
COMPILED = """
import sys
import torch
from torch_impl import EpiBERT, EpiBERTConfig

config = EpiBERTConfig(**{small})
torch.manual_seed(0)
model = EpiBERT(config).double().train({training})
arguments = (torch.rand(2, config.sequence_length, 4), torch.rand(2, config.atac_length, 1), torch.rand(2, 1, 3))
arguments = [argument.double() for argument in arguments]
compiled = torch.compile(model, fullgraph=True, backend={backend!r})
results = []
for run, moved in ((model, False), (compiled, False), (model, True)):
    if moved:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.nextafter(parameter, torch.randn_like(parameter)))
    model.zero_grad()
    with torch.set_grad_enabled({training}):
        profile = run(*arguments)
    if {training}:
        profile.sum().backward()
    results.append([profile.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
torch.save(results, sys.argv[1])
"""
HAS_COMPILER = any(map(shutil.which, ("g++", "clang++", "c++")))
INDUCTOR = [pytest.param("inductor", False, marks=pytest.mark.slow)] if HAS_COMPILER else []


@pytest.mark.parametrize(("backend", "training"), [("aot_eager", False), ("aot_eager", True), *INDUCTOR])
def test_the_model_compiles_as_one_graph_to_the_same_function(backend, training, tmp_path):
    arguments = {**SMALL, **NO_DROPOUT, "filter_list_seq": (12,), "filter_list_atac": (4,), "num_transformer_layers": 1}
    code = COMPILED.format(small=arguments, training=training, backend=backend)
    command = [sys.executable, "-c", code, str(tmp_path / "results.pt")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    eager, compiled, moved = torch.load(tmp_path / "results.pt", weights_only=True)
    assert len(eager) == (1 + len(list(EpiBERT(EpiBERTConfig(**arguments)).parameters())) if training else 1)
    rounding = 1e-12 * max(float(values.abs().max()) for values in eager)
    for expected, got, other in zip(eager, compiled, moved, strict=True):
        # The gradient of a bias in front of a BatchNorm is zero, of which each formula leaves a rounding of its own.
        if float(expected.abs().max()) < rounding:
            assert float(got.abs().max()) < rounding
            continue
        # Of the weights of a LayerNorm in front of one little is left: one unit in the last place of all weights moves
        # that by 1e-11 of itself. As in a trajectory, twice what the model itself is moved by is allowed.
        error, _ = distance(got.numpy(), expected.numpy())
        own, _ = distance(other.numpy(), expected.numpy())
        assert error <= max(TABLE["float64"].limit, TABLE["trajectory_float64"].limit * own)


def test_hyperparameters_of_norms_are_printed():
    assert repr(BatchNorm(3, 1e-5, 0.9)) == "BatchNorm(3, epsilon=1e-05, momentum=0.9)"


@pytest.mark.parametrize("gradients", [True, False])
def test_without_bfloat16_products_they_are_float32_ones_of_rounded_factors_rounded_once(monkeypatch, gradients):
    monkeypatch.setattr(model_module, "fast_bfloat16_products", lambda: False)
    monkeypatch.setattr(model_module, "WIDENED_ROWS", 5)
    torch.manual_seed(0)
    x = torch.randn(2, 9, 7).bfloat16()
    linear, convolution = Linear(7, 3), Conv1d(7, 3, 5)
    wide = []
    for layer in (linear, convolution):
        assert layer.bias is not None
        nn.init.normal_(layer.bias)
        wide.append([tensor.detach().bfloat16().float() for tensor in (layer.weight, layer.bias)])
    (dense, dense_bias), (kernel, kernel_bias) = wide
    multiplied = []
    product = nn.functional.linear

    def seen(factor: Tensor, *others: Any) -> Tensor:
        multiplied.append(factor.dtype)
        return product(factor, *others)

    with torch.set_grad_enabled(gradients), monkeypatch.context() as patch:
        patch.setattr(model_module.F, "linear", seen)
        found = linear(x), convolution(x)
    # All at once where there is a backward pass to come, else 18 rows in parts of 5.
    assert multiplied == [torch.float32] * (1 if gradients else 4)
    expected = (
        nn.functional.linear(x.float(), dense, dense_bias),
        nn.functional.conv1d(x.float().transpose(1, 2), kernel, kernel_bias, padding=2).transpose(1, 2),
    )
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert one.requires_grad == gradients
        assert torch.equal(one.detach(), other.bfloat16())


def test_with_bfloat16_products_nothing_is_widened(monkeypatch):
    monkeypatch.setattr(model_module, "fast_bfloat16_products", lambda: True)
    x = torch.ones(2, 3).bfloat16()
    assert model_module._for_product(x, None) == (x, None)
    monkeypatch.setattr(model_module, "fast_bfloat16_products", lambda: False)
    assert model_module._for_product(x, None)[0].dtype == torch.float32
    assert model_module._for_product(x.float())[0].dtype == torch.float32


@pytest.mark.parametrize("slow", ["float32", "bfloat16", "neither"])
def test_bfloat16_products_are_used_where_they_take_no_longer(monkeypatch, slow):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    moments = itertools.accumulate(
        [2.0 if index // 12 == ("float32", "bfloat16").index(slow) else 1.0 for index in range(24)]
        if slow != "neither"
        else [1.0] * 24
    )
    monkeypatch.setattr(model_module.time, "perf_counter", lambda: next(moments))
    measure = model_module.fast_bfloat16_products.__wrapped__
    assert measure() == (slow != "bfloat16")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not measure()


def in_pieces(monkeypatch, positions: int) -> list[int]:
    """Makes models compute so many positions at a time; the list gets the lengths that are given to stages."""
    monkeypatch.setattr(model_module, "PIECE_SIZE", 1)
    monkeypatch.setattr(model_module, "SHORTEST_PIECE", positions)
    lengths: list[int] = []
    run = model_module._by_pieces

    def seen(stage: Callable[[Tensor], Tensor], x: Tensor, **options: int) -> Tensor:
        def noted(piece: Tensor) -> Tensor:
            lengths.append(piece.shape[1])
            return stage(piece)

        return run(noted, x, **options)

    monkeypatch.setattr(model_module, "_by_pieces", seen)
    return lengths


COPY = {torch.float64: "copy_float64", torch.float32: "copy_float32", torch.bfloat16: "copy_bfloat16"}


@pytest.mark.parametrize("positions", [4, 20, 1000])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_what_is_computed_by_pieces_is_what_is_computed_as_a_whole(monkeypatch, dtype, positions):
    model = small().to(dtype)
    arguments = inputs(model.config, dtype=dtype)
    with torch.enable_grad():
        whole = model(*arguments).detach()
    lengths = in_pieces(monkeypatch, positions)
    with torch.no_grad():
        assert_same(model(*arguments), whole, COPY[dtype])
    # Sequence: 72 bp, 36, 18; accessibility: 18 values of 4 bp, 9 after a stem and a block.
    assert len(lengths) > 20 if positions == 4 else len(lengths) >= 5


def test_pieces_that_see_too_few_neighbours_are_seen():
    model = small().double()
    sequence = inputs(model.config)[0]
    whole = model._stem(sequence)
    options = {"width": 5, "pool": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "PIECE_SIZE", 1)
        patch.setattr(model_module, "SHORTEST_PIECE", 16)
        assert_same(model_module._by_pieces(model._stem, sequence, reach=7, **options), whole)
        with pytest.raises(Disagreement):
            assert_same(model_module._by_pieces(model._stem, sequence, reach=6, **options), whole)


def test_an_incomplete_window_at_the_end_is_dropped_in_pieces_too(monkeypatch):
    monkeypatch.setattr(model_module, "PIECE_SIZE", 1)
    monkeypatch.setattr(model_module, "SHORTEST_PIECE", 8)
    block = small().double().conv_tower_atac[0]
    for length in (31, 32, 33, 35, 40):
        x = torch.randn(2, length, 32, dtype=torch.float64)
        assert_same(model_module._by_pieces(block, x, width=32, reach=2, pool=4), block(x))


@pytest.mark.parametrize(
    "why", ["gradients", "training", "statistics alone", "a hook", "a hook before", "a hook of all"]
)
def test_whoever_could_see_the_pieces_gets_the_whole(monkeypatch, why):
    model = small(**NO_DROPOUT).double()
    lengths = in_pieces(monkeypatch, 4)
    predict(model)
    assert lengths
    lengths.clear()
    model.train(why == "training")
    if why == "a hook":
        model.stem_conv.register_forward_hook(lambda *_: None)
    if why == "a hook before":
        model.conv_tower[0].register_forward_pre_hook(lambda *_: None)
    if why == "statistics alone":
        dict(model.named_modules())["conv_tower.0.block.norm"].train()
    of_all = nn.modules.module.register_module_forward_hook(lambda *_: None) if why == "a hook of all" else None
    try:
        with torch.set_grad_enabled(why == "gradients"):
            model(*inputs(model.config))
    finally:
        if of_all is not None:
            of_all.remove()
    assert lengths == []


def test_a_batch_of_nothing_gives_nothing():
    assert predict(small(), batch=0).shape == (0, 5, 1)


def test_products_are_measured_in_their_own_precisions_whatever_is_around(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    seen = []
    monkeypatch.setattr(torch, "mm", lambda one, other: seen.append((one.dtype, torch.is_autocast_enabled("cpu"))))
    with torch.autocast("cpu", torch.bfloat16):
        model_module.fast_bfloat16_products.__wrapped__()
    assert set(seen) == {(torch.float32, False), (torch.bfloat16, False)}
