"""Mistakes that ports make, injected one by one: the right rung turns red and the layer named is the one broken.

The numbers are the rows of the specification's table of porting traps (section 8).
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parity import GateStatus, Status
from parity.ladder import FORWARD_GATES, compare_live, find_culprits, judge
from parity.pairs import epibert
from parity.pairs.epibert_run import load_case
from parity.reference import LiveReference, read_recording
from tests.suites.conftest import FaultBench
from torch_impl import EpiBERT, EpiBERTRampage
from torch_impl.random import projection_matrix, rotary_table
from weights import transplant

ATTENTION = "performer.layers.0.attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """One mistake.

    Attributes:
        trap: Row of the specification's table.
        name: What is wrong.
        gate: First rung that must turn red.
        culprits: The layers that must be named, no more and no fewer.
        inject: Breaks the port.
        mode: Mode in which it shows.
    """

    trap: str
    name: str
    gate: str = "layers"
    culprits: tuple[str, ...]
    inject: Callable[[Any], object]
    mode: str = "evaluation"


def set_attribute(path: str, attribute: str, value: object) -> Callable[[EpiBERT], None]:
    return lambda port: setattr(port.get_submodule(path), attribute, value)


def set_forward(path: str, forward: Callable[..., object]) -> Callable[[EpiBERT], None]:
    """Gives one module another forward, called with the module first."""

    def inject(port: EpiBERT) -> None:
        module: Any = port.get_submodule(path)
        module.forward = types.MethodType(forward, module)

    return inject


def padded_the_other_way(conv: Any, x: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (25, 24))
    return F.conv1d(padded, conv.weight, conv.bias).transpose(1, 2)


def flipped_kernel(conv: Any, x: Tensor) -> Tensor:
    return F.conv1d(x.transpose(1, 2), conv.weight.flip(-1), conv.bias, padding=2).transpose(1, 2)


def activation_first(block: Any, x: Tensor) -> Tensor:
    return block.conv(block.norm(block.activation(x)))


def batch_statistics(norm: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(0, 1), correction=0)
    return (x - mean) * torch.rsqrt(variance + norm.epsilon) * norm.weight + norm.bias


def unbiased_statistics(norm: Any, x: Tensor) -> Tensor:
    if norm.training:
        norm.running_mean.lerp_(x.mean(dim=(0, 1)), norm.update_rate)
        norm.running_var.lerp_(x.var(dim=(0, 1), correction=1), norm.update_rate)
        return batch_statistics(norm, x)
    return (x - norm.running_mean) * torch.rsqrt(norm.running_var + norm.epsilon) * norm.weight + norm.bias


def unbiased_layer_norm(norm: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=1)
    return (x - mean) * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias


def post_norm(layer: Any, x: Tensor, projection: Tensor, table: Tensor):
    attended, key, query = layer.attention(x, projection, table)
    x = layer.norm(x + layer.dropout(attended))
    return x + layer.ffn(x), key, query


def identity(_: Any, x: Tensor, *others: object) -> Tensor:
    return x


def pooled(reduce: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(pool: Any, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (-1, 2))
        pool.logits(pairs)
        return reduce(pairs)

    return forward


def sum_pool(pool: Any, x: Tensor) -> Tensor:
    pairs = x.unflatten(1, (-1, 2))
    return (pool.logits(pairs).softmax(dim=-1) * pairs).sum(dim=2)


def average_pool(pool: Any, x: Tensor) -> Tensor:
    return F.avg_pool1d(x.transpose(1, 2), pool.size).transpose(1, 2)


def without_residual(residual: Any, x: Tensor) -> Tensor:
    return residual.block(x)


def other_order_of_concatenation(port: Any) -> None:
    forward, concatenate = port.forward, torch.cat

    def reordered(tensors: list[Tensor], dim: int) -> Tensor:
        sequence, accessibility, motifs = tensors
        return concatenate([sequence, motifs, accessibility], dim=dim)

    def patched(*inputs: Tensor) -> object:
        with mock.patch.object(torch, "cat", reordered):
            return forward(*inputs)

    port.forward = patched


def rotated(turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(_: Any, x: Tensor, table: Tensor) -> Tensor:
        sine, cosine = table.unsqueeze(2).chunk(2, dim=-1)
        return turn(x, sine, cosine)

    return forward


def interleaved(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)


def rotate_half(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def tiled_frequencies(x: Tensor, sine: Tensor, cosine: Tensor) -> Tensor:
    turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * torch.cat([cosine, cosine], dim=-1) + turned * torch.cat([sine, sine], dim=-1)


def attention(
    *, rotate_value: bool = False, epsilon: float = 0.0, normalize: bool = True
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def forward(layer: Any, x: Tensor, projection: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = layer.query(x), layer.key(x), layer.value(x)
        query, key = layer.rotary(query, table), layer.rotary(key, table)
        if rotate_value:
            sine, cosine = table.unsqueeze(2).chunk(2, dim=-1)
            value = interleaved(value, sine, cosine)
        query = layer.features(query, projection, is_query=True)
        key = layer.features(key, projection, is_query=False)
        numerator = torch.einsum("blhm,bhmd->blhd", query, torch.einsum("blhm,blhd->bhmd", key, value))
        denominator = torch.einsum("blhm,bhm->blh", query, key.sum(dim=1)).unsqueeze(-1) + epsilon
        attended = layer.output(numerator / denominator if normalize else numerator)
        return attended, key.transpose(0, 1), query.transpose(0, 1)

    return forward


def relu_features(ratio: Callable[[Tensor], float]) -> Callable[..., Tensor]:
    def forward(features: Any, x: Tensor, projection: Tensor, *, is_query: bool) -> Tensor:
        return F.relu(ratio(projection) * F.linear(x, projection.to(x.dtype))) + features.stabilizer

    return forward


def scaled_query(heads: Any, x: Tensor) -> Tensor:
    query = F.linear(x, heads.weight).unflatten(-1, (heads.heads, -1))
    return query / math.sqrt(query.shape[-1])


def change_constants(change: Callable[[EpiBERT, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[EpiBERT], None]:
    def inject(port: Any) -> None:
        performer = port.performer
        projection, table = change(port, performer.projection_matrix.clone(), performer.rotary_table.table.clone())
        port.set_constants(projection, table, origin=port.constants_origin)

    return inject


def other_projection(make: Callable[[EpiBERT, Tensor], Tensor]) -> Callable[[EpiBERT], None]:
    return change_constants(lambda port, projection, table: (make(port, projection), table))


def other_seed(port: EpiBERT, projection: Tensor) -> Tensor:
    rows, columns = projection.shape
    return torch.from_numpy(projection_matrix(rows, columns, int(port.config.seed) + 1))


def gaussian(_: EpiBERT, projection: Tensor) -> Tensor:
    return torch.randn(projection.shape, generator=torch.Generator().manual_seed(0))


def untransposed_blocks(_: EpiBERT, projection: Tensor) -> Tensor:
    size = projection.shape[1]
    norms = projection.norm(dim=1, keepdim=True)
    blocks = (projection / norms).unflatten(0, (-1, size)).transpose(1, 2).flatten(0, 1)
    return norms * blocks


def unrounded_table(port: EpiBERT, projection: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = table.shape
    return projection, torch.from_numpy(rotary_table(rows, columns, bfloat16=False))


def one_sided_crop(crop: Any, x: Tensor) -> Tensor:
    return x[:, : x.shape[1] - 2 * crop.bins]


def other_base_order(conv: Any, x: Tensor) -> Tensor:
    return F.conv1d(x[..., [0, 2, 1, 3]].transpose(1, 2), conv.weight, conv.bias, padding=7).transpose(1, 2)


def rounded_weight(port: Any) -> None:
    weight = port.performer.layers[1].ffn.wide.weight
    weight.data = weight.data.bfloat16().float()


def heads_read_in_the_wrong_order(port: EpiBERT) -> None:
    query: Any = port.get_submodule(f"{ATTENTION}.query")
    size = query.weight.shape[0] // query.heads
    query.weight.data = query.weight.data.unflatten(0, (size, query.heads)).transpose(0, 1).flatten(0, 1)


def swapped_weights(port: Any) -> None:
    first, second = port.performer.layers[0].norm, port.performer.layers[0].ffn.norm
    first.weight.data, second.weight.data = second.weight.data, first.weight.data


def erf_gelu(_: Any, x: Tensor) -> Tensor:
    return F.gelu(x)


def tanh_gelu_dense(dense: Any, x: Tensor) -> Tensor:
    return F.gelu(F.linear(x, dense.weight, dense.bias), approximate="tanh")


FEATURES = tuple(f"performer.layers.{i}.attention.features" for i in range(2))
ROTARY = f"{ATTENTION}.rotary"
TOWER_NORM = "conv_tower.3.block.norm"

FAULTS = [
    Fault(
        trap="1",
        name="erf GELU in a conv block",
        culprits=("conv_tower.1.block.activation",),
        inject=set_forward("conv_tower.1.block.activation", erf_gelu),
    ),
    Fault(
        trap="2",
        name="tanh GELU in the motif layer",
        culprits=("motif_activity_fc1",),
        inject=set_forward("motif_activity_fc1", tanh_gelu_dense),
    ),
    Fault(
        trap="3",
        name="exact cubic coefficient",
        culprits=("gelu",),
        inject=set_attribute("gelu", "cubic_coefficient", 0.044715),
    ),
    Fault(
        trap="3",
        name="exact square root of two",
        culprits=("motif_activity_fc1",),
        inject=set_attribute("motif_activity_fc1.activation", "scale", 2**0.5),
    ),
    Fault(
        trap="4",
        name="even kernel padded 25/24",
        culprits=("stem_conv_atac",),
        inject=set_forward("stem_conv_atac", padded_the_other_way),
    ),
    Fault(
        trap="5",
        name="flipped kernel",
        culprits=("conv_tower.0.block.conv",),
        inject=set_forward("conv_tower.0.block.conv", flipped_kernel),
    ),
    Fault(
        trap="6",
        name="BatchNorm epsilon 1e-3",
        culprits=("stem_res_conv.block.norm",),
        inject=set_attribute("stem_res_conv.block.norm", "epsilon", 1e-3),
    ),
    Fault(
        trap="7",
        name="GELU before BatchNorm",
        culprits=("conv_tower.2.block",),
        inject=set_forward("conv_tower.2.block", activation_first),
    ),
    Fault(
        trap="8",
        name="batch statistics in evaluation",
        culprits=("final_pointwise_conv.norm",),
        inject=set_forward("final_pointwise_conv.norm", batch_statistics),
    ),
    Fault(
        trap="9",
        name="unbiased running variance",
        culprits=(TOWER_NORM,),
        inject=set_forward(TOWER_NORM, unbiased_statistics),
        mode="training",
    ),
    Fault(
        trap="10",
        name="momentum 0.9",
        culprits=(TOWER_NORM,),
        inject=set_attribute(TOWER_NORM, "update_rate", 0.9),
        mode="training",
    ),
    Fault(
        trap="11",
        name="update rate of exactly 0.1",
        culprits=(TOWER_NORM,),
        inject=set_attribute(TOWER_NORM, "update_rate", 0.1),
        mode="training",
    ),
    Fault(
        trap="12",
        name="LayerNorm epsilon 1e-3",
        culprits=("performer.layers.1.norm",),
        inject=set_attribute("performer.layers.1.norm", "eps", 1e-3),
    ),
    Fault(
        trap="13",
        name="LayerNorm epsilon 1e-6",
        culprits=("performer.layers.1.ffn.norm",),
        inject=set_attribute("performer.layers.1.ffn.norm", "eps", 1e-6),
    ),
    Fault(
        trap="14",
        name="unbiased LayerNorm",
        culprits=("performer.norm",),
        inject=set_forward("performer.norm", unbiased_layer_norm),
    ),
    Fault(
        trap="15",
        name="post-norm layer",
        culprits=("performer.layers.0",),
        inject=set_forward("performer.layers.0", post_norm),
    ),
    Fault(
        trap="16",
        name="no final LayerNorm",
        culprits=("performer.norm",),
        inject=set_forward("performer.norm", identity),
    ),
    Fault(
        trap="17",
        name="maximum pooling of the sequence",
        culprits=("stem_pool",),
        inject=set_forward("stem_pool", pooled(lambda pairs: pairs.amax(dim=2))),
    ),
    Fault(
        trap="18",
        name="mean pooling of the sequence",
        culprits=("conv_tower.4.pool",),
        inject=set_forward("conv_tower.4.pool", pooled(lambda pairs: pairs.mean(dim=2))),
    ),
    Fault(
        trap="18b",
        name="softmax over the wrong axis",
        culprits=("conv_tower.5.pool",),
        inject=set_forward("conv_tower.5.pool", sum_pool),
    ),
    Fault(
        trap="19",
        name="average pooling of accessibility",
        culprits=("stem_pool_atac",),
        inject=set_forward("stem_pool_atac", average_pool),
    ),
    Fault(
        trap="20",
        name="stem residual forgotten",
        culprits=("stem_res_conv",),
        inject=set_forward("stem_res_conv", without_residual),
    ),
    Fault(
        trap="21",
        name="motifs before accessibility",
        culprits=("EpiBERT",),
        inject=other_order_of_concatenation,
    ),
    Fault(trap="22", name="no rotation", culprits=(ROTARY,), inject=set_forward(ROTARY, identity)),
    Fault(trap="23", name="rotate-half", culprits=(ROTARY,), inject=set_forward(ROTARY, rotated(rotate_half))),
    Fault(
        trap="24", name="tiled frequencies", culprits=(ROTARY,), inject=set_forward(ROTARY, rotated(tiled_frequencies))
    ),
    Fault(
        trap="25",
        name="sine and cosine swapped",
        culprits=(ROTARY,),
        inject=set_forward(ROTARY, rotated(lambda x, sine, cosine: interleaved(x, cosine, sine))),
    ),
    Fault(
        trap="26",
        name="opposite rotation",
        culprits=(ROTARY,),
        inject=set_forward(ROTARY, rotated(lambda x, sine, cosine: interleaved(x, -sine, cosine))),
    ),
    Fault(
        trap="27",
        name="values rotated as well",
        culprits=(ATTENTION,),
        inject=set_forward(ATTENTION, attention(rotate_value=True)),
    ),
    Fault(
        trap="28",
        name="rotary table not rounded to bfloat16",
        gate="constants",
        culprits=("performer.rotary_table",),
        inject=change_constants(unrounded_table),
    ),
    Fault(
        trap="30",
        name="stabiliser 1e-7",
        culprits=FEATURES[1:],
        inject=set_attribute(FEATURES[1], "stabilizer", 1e-7),
    ),
    Fault(
        trap="31",
        name="stabiliser rounded to bfloat16",
        culprits=FEATURES[:1],
        inject=set_attribute(FEATURES[0], "stabilizer", torch.tensor(1e-3).bfloat16().item()),
    ),
    Fault(
        trap="32",
        name="ratio omitted",
        culprits=FEATURES[:1],
        inject=set_forward(FEATURES[0], relu_features(lambda projection: 1.0)),
    ),
    Fault(
        trap="33",
        name="ratio of the head size",
        culprits=FEATURES[:1],
        inject=set_forward(FEATURES[0], relu_features(lambda projection: projection.shape[1] ** -0.5)),
    ),
    Fault(
        trap="34",
        name="query scaled",
        culprits=(f"{ATTENTION}.query",),
        inject=set_forward(f"{ATTENTION}.query", scaled_query),
    ),
    Fault(
        trap="35",
        name="epsilon in the denominator",
        culprits=(ATTENTION,),
        inject=set_forward(ATTENTION, attention(epsilon=1e-6)),
    ),
    Fault(
        trap="36",
        name="normaliser omitted",
        culprits=(ATTENTION,),
        inject=set_forward(ATTENTION, attention(normalize=False)),
    ),
    Fault(
        trap="37",
        name="projection of another seed",
        gate="constants",
        culprits=("performer", *FEATURES),
        inject=other_projection(other_seed),
    ),
    Fault(
        trap="38",
        name="Gaussian projection",
        gate="constants",
        culprits=("performer", *FEATURES),
        inject=other_projection(gaussian),
    ),
    Fault(
        trap="39",
        name="Q blocks not transposed",
        gate="constants",
        culprits=("performer", *FEATURES),
        inject=other_projection(untransposed_blocks),
    ),
    Fault(
        trap="40",
        name="other row signs",
        gate="constants",
        culprits=("performer", *FEATURES),
        inject=other_projection(lambda port, projection: projection * projection[:, :1].sign()),
    ),
    Fault(
        trap="41",
        name="rows of unit norm",
        gate="constants",
        culprits=("performer", *FEATURES),
        inject=other_projection(lambda port, projection: F.normalize(projection, dim=1)),
    ),
    Fault(
        trap="43",
        name="projection rounded to bfloat16",
        gate="constants",
        culprits=("performer", *FEATURES),
        inject=other_projection(lambda port, projection: projection.bfloat16().float()),
    ),
    Fault(
        trap="44",
        name="GELU in the feed-forward network",
        culprits=("performer.layers.1.ffn.activation",),
        inject=set_forward("performer.layers.1.ffn.activation", erf_gelu),
    ),
    Fault(trap="45", name="no GELU in the head", culprits=("gelu",), inject=set_forward("gelu", identity)),
    Fault(trap="46", name="erf GELU in the head", culprits=("gelu",), inject=set_forward("gelu", erf_gelu)),
    Fault(
        trap="47",
        name="ReLU for softplus",
        culprits=("final_dense_profile",),
        inject=set_attribute("final_dense_profile", "activation", F.relu),
    ),
    Fault(
        trap="49", name="crop at one end", culprits=("crop_final",), inject=set_forward("crop_final", one_sided_crop)
    ),
    Fault(trap="50", name="bases A G C T", culprits=("stem_conv",), inject=set_forward("stem_conv", other_base_order)),
    Fault(
        trap="54",
        name="weight rounded to bfloat16",
        gate="weights",
        culprits=("performer.layers.1.ffn.wide",),
        inject=rounded_weight,
    ),
    Fault(
        trap="61",
        name="heads read as (C, D, H)",
        gate="weights",
        culprits=(f"{ATTENTION}.query",),
        inject=heads_read_in_the_wrong_order,
    ),
    Fault(
        trap="mapping",
        name="two tensors of one shape swapped",
        gate="weights",
        culprits=("performer.layers.0.norm", "performer.layers.0.ffn.norm"),
        inject=swapped_weights,
    ),
]


def first_mask_again(port: Any) -> None:
    """What the second head is given is what the first was: one call for both."""
    dropout, forward, kept = port.dropout, port.dropout.forward, []

    def once(x: Tensor) -> Tensor:
        kept.append(forward(x))
        return kept[-2] if len(kept) % 2 == 0 else kept[-1]

    dropout.forward = once


RAMPAGE_FAULTS = [
    Fault(
        trap="49",
        name="crop of both heads at one end",
        culprits=("crop_final",),
        inject=set_forward("crop_final", one_sided_crop),
    ),
    Fault(trap="heads", name="one dropout for both heads", culprits=("dropout",), inject=first_mask_again),
]
"""Mistakes that only a model with two heads shows; the crop is that of 896 bins in the published one."""


def climb(bench: FaultBench, port: EpiBERT, *, gates: tuple[str, ...], modes: tuple[str, ...]):
    """Gates and culprits of a port against the living reference, in float64."""
    projection, table = bench.constants
    rows = [
        *epibert.compare_weights(port, bench.stored),
        *epibert.compare_constants(port, projection, table),
        *compare_live(epibert.watch(port), bench.live, bench.layer_map, gates=gates, modes=modes),
    ]
    culprits = find_culprits(rows, bench.layer_map, model_name="EpiBERT")
    return judge(rows, requested=gates, ladder=FORWARD_GATES), culprits


def test_a_port_without_a_fault_is_proven(bench):
    gates, culprits = climb(bench, bench.port(), gates=("layers", "blocks", "model"), modes=("evaluation", "training"))
    assert {name: gate.status for name, gate in gates.items()} == dict.fromkeys(gates, GateStatus.PASSED)
    assert culprits == ()


@pytest.mark.slow
@pytest.mark.parametrize("fault", RAMPAGE_FAULTS, ids=lambda fault: f"{fault.trap}: {fault.name}")
def test_a_fault_of_the_fine_tuning_model_is_located(rampage_bench, fault):
    test_a_fault_turns_its_rung_red_and_is_located(rampage_bench, fault)


@pytest.mark.slow
def test_a_fine_tuning_port_without_a_fault_is_proven(rampage_bench):
    test_a_port_without_a_fault_is_proven(rampage_bench)


@pytest.mark.parametrize("trap", ["49", "heads"])
def test_recorded_numbers_of_the_fine_tuning_model_name_the_first_layer_that_shows_a_fault(goldens, trap):
    fault = next(fault for fault in RAMPAGE_FAULTS if fault.trap == trap)
    config, checkpoint = load_case(goldens / "R1")
    recording = read_recording(goldens / "R1" / "forward.h5", name="recorded")
    port = EpiBERTRampage(config)
    transplant(checkpoint, port, constants=(*epibert.recorded_constants(recording), "recorded"))
    assert {row.status for row in epibert.compare_with_recording(port, recording)} == {Status.PASS}
    fault.inject(port)
    rows = list(epibert.compare_with_recording(port, recording))
    (culprit,) = find_culprits(rows, epibert.layer_map_of(port), model_name="EpiBERTRampage")
    assert (culprit.port,) == fault.culprits
    assert not culprit.certain


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.trap}: {fault.name}")
def test_a_fault_turns_its_rung_red_and_is_located(bench, fault):
    port = bench.port()
    fault.inject(port)
    gates, culprits = climb(bench, port, gates=("layers",), modes=(fault.mode,))
    names = ["weights", "constants", "layers"]
    before, after = names[: names.index(fault.gate)], names[names.index(fault.gate) + 1 :]
    assert [gates[name].status for name in before] == [GateStatus.PASSED] * len(before)
    assert gates[fault.gate].status is GateStatus.FAILED
    assert [gates[name].status for name in after] == [GateStatus.BLOCKED] * len(after)
    assert tuple(culprit.port for culprit in culprits) == fault.culprits
    assert all(culprit.certain for culprit in culprits)


def test_all_of_several_faults_are_named_in_one_pass(bench):
    port = bench.port()
    chosen = [fault for fault in FAULTS if fault.trap in ("1", "6", "13", "19", "20", "35", "46", "49")]
    for fault in chosen:
        fault.inject(port)
    _, culprits = climb(bench, port, gates=("layers",), modes=("evaluation",))
    assert {culprit.port for culprit in culprits} == {name for fault in chosen for name in fault.culprits}


def norm_in_its_inputs_precision(norm: Any, x: Tensor) -> Tensor:
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x - mean).square().mean(dim=-1, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + norm.eps) * weight + bias


@pytest.mark.parametrize("broken", [False, True])
def test_a_layer_norm_that_computes_in_bfloat16_is_seen_by_its_rounding(bench, broken):
    """Right in float64, so only the comparison of roundings can tell."""
    port = bench.port()
    if broken:
        for layer in port.performer.layers:
            layer.norm.forward = functools.partial(norm_in_its_inputs_precision, layer.norm)
    models = {precision: bench.reference(precision) for precision in ("float64", "bfloat16")}
    live = LiveReference(models, bench.inputs, bench.layer_map, "living reference")
    rows = list(compare_live(epibert.watch(port), live, bench.layer_map, gates=("layers",), modes=("evaluation",)))
    failed = {(row.precision, row.layer) for row in rows if row.status is not Status.PASS}
    assert failed == ({("bfloat16", f"performer.layers.{index}.norm") for index in range(2)} if broken else set())


FIRST_RECORDED_TRACE = {
    "1": "conv_tower.1.block.activation",
    "6": "stem_res_conv.block.norm",
    "13": "performer.layers.1.ffn.norm",
    "18b": "conv_tower.5.pool",
    # Nothing between the values and the output projection was recorded.
    "35": f"{ATTENTION}.output",
    "46": "gelu",
}


@pytest.mark.parametrize("trap", FIRST_RECORDED_TRACE)
def test_recorded_numbers_name_the_first_layer_that_shows_a_fault(bench, trap):
    (fault,) = [fault for fault in FAULTS if fault.trap == trap]
    port = bench.port()
    fault.inject(port)
    rows = list(epibert.compare_with_recording(port, bench.recording))
    (culprit,) = find_culprits(rows, bench.layer_map, model_name="EpiBERT")
    assert culprit.port == FIRST_RECORDED_TRACE[trap]
    assert not culprit.certain
