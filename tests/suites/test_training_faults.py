"""Mistakes that only training shows, injected one by one: the rung meant for each turns red and names who is at fault.

The forward rungs run without dropout, loss or optimizer, so they accept all of these but the two of BatchNorm's
statistics, which a forward pass in training mode shows as well.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from parity import Comparison, LayerMap, Reading, Status
from parity.ladder import TRAINING_GATES, find_culprits, judge
from parity.pairs import epibert, epibert_training
from parity.pairs.epibert_run import load_case, model_tensors
from parity.pairs.epibert_training import ADAM_EPSILON, CLIP, PORT, WEIGHT_DECAY, LivePair, PortTraining
from parity.records import GateStatus
from parity.reference import read_recording
from parity.training import LOSS, METRIC, MOMENTS, OPTIMIZER, SCHEDULE
from tests.training_faults import torch_momentum, unbiased_variance
from torch_impl import EpiBERT, EpiBERTRampage
from torch_impl.losses import finetuning_loss, masked_loss, poisson, poisson_multinomial
from torch_impl.metrics import R2, GeneCellCorrelation, PearsonR
from torch_impl.model import Trunk
from torch_impl.optim import KerasAdam, KerasAdamW, cosine_warmup, decay_groups
from torch_impl.rampage import optimizer_parts
from weights import transplant

STEPS = 8
"""Long enough to go on after the steps that the rung of state looks at."""


# --- the faults ------------------------------------------------------------------------------------------------------


class TorchEpsilon(torch.optim.Adam):
    """PyTorch's own epsilon, added after the bias correction; clipping as it should be."""

    def step(self, closure: Any = None) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm(gradients)
        for gradient in gradients:
            gradient.mul_(torch.clamp(CLIP / norm, max=1.0))
        return super().step(closure)


class ClipEpsilon(KerasAdam):
    """``clip_grad_norm_`` adds 1e-6 to the norm."""

    def step(self, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], CLIP)
        return super().step(closure)


class DecayWithoutRate(KerasAdamW):
    """The weight decay of each step is not scaled by the learning rate."""

    def step(self, closure: Any = None) -> Any:
        kept = [group["weight_decay"] for group in self.param_groups]
        with torch.no_grad():
            for group, decay in zip(self.param_groups, kept, strict=True):
                for parameter in group["params"]:
                    parameter.mul_(1 - decay)
                group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, kept, strict=True):
                group["weight_decay"] = decay


class SquaredCorrelation(PearsonR):
    """Equal to the coefficient of determination of a linear fit, which predictions are not."""

    def compute(self) -> Tensor:
        return super().compute().square()


def mean_of_examples(true: Tensor, predicted: Tensor, mask: Tensor, *, unmask: Any = None, **arguments: Any) -> Tensor:
    losses = [
        masked_loss(
            true[i : i + 1],
            predicted[i : i + 1],
            mask[i : i + 1],
            unmask=None if unmask is None else unmask[i : i + 1],
            **arguments,
        )
        for i in range(len(true))
    ]
    return torch.stack(losses).mean()


def dropouts(forward: Callable[[nn.Dropout, Tensor], Tensor]) -> Callable[[EpiBERT], None]:
    def inject(port: EpiBERT) -> None:
        for module in port.modules():
            if isinstance(module, nn.Dropout):
                module.forward = functools.partial(forward, module)  # type: ignore[method-assign]  a fault is a patch

    return inject


def without_scale(module: nn.Dropout, x: Tensor) -> Tensor:
    return F.dropout(x, module.p, module.training) * (1 - module.p if module.training else 1)


def same_masks(module: nn.Dropout, x: Tensor, *, period: int) -> Tensor:
    """Masks that come again after so many steps; their shapes tell the two calls of a feed-forward network apart."""
    if not module.training:
        return x
    masks, calls = vars(module).setdefault("masks", {}).setdefault(x.shape, []), vars(module).setdefault("calls", {})
    call = calls[x.shape] = calls.get(x.shape, -1) + 1
    if len(masks) < period:
        masks.append(F.dropout(torch.ones_like(x), module.p))
    return x * masks[call % period]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A mistake, the rung that must turn red, and who must be named: each culprit satisfies ``named``."""

    gate: str
    named: Callable[[str], bool]
    training: PortTraining = PORT
    inject: Callable[[Any], None] | None = None


def only(name: str) -> Callable[[str], bool]:
    return lambda culprit: culprit == name


def with_parts(**parts: Any) -> PortTraining:
    return dataclasses.replace(PORT, **parts)


def schedule(change: Callable[..., float]) -> PortTraining:
    return with_parts(schedule=change)


def raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no such thing")


def narrow_in_float32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Predictions rounded to bfloat16, but not those in float64."""

    def rounded(true: Tensor, predicted: Tensor, *masks: Tensor, **arguments: Any) -> Tensor:
        if predicted.dtype == torch.float32:
            predicted = predicted.bfloat16().float()
        return loss(true, predicted, *masks, **arguments)

    return rounded


def narrow_sums(kind: type[Metric]) -> Callable[..., Metric]:
    """A metric whose sums are kept in bfloat16 where they should be in float32."""

    def make(state_dtype: torch.dtype = torch.float32, **arguments: Any) -> Metric:
        return kind(state_dtype=torch.bfloat16 if state_dtype == torch.float32 else state_dtype, **arguments)

    return make


class NarrowMoments(KerasAdam):
    """Moments of float32 parameters rounded to bfloat16."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for parameter, slots in self.state.items():
            if parameter.dtype == torch.float32:
                for moment in MOMENTS:
                    slots[moment].copy_(slots[moment].bfloat16())
        return result


FAULTS = {
    "PyTorch's Adam epsilon": Fault(
        gate="optimizer",
        named=only(OPTIMIZER),
        training=with_parts(adam=lambda module: [TorchEpsilon(module.parameters(), eps=ADAM_EPSILON)]),
    ),
    "clipping by norm + 1e-6": Fault(
        gate="optimizer",
        named=only(OPTIMIZER),
        training=with_parts(
            adam=lambda module: [ClipEpsilon(module.parameters(), eps=ADAM_EPSILON, global_clipnorm=CLIP)]
        ),
    ),
    "decay on biases and norms": Fault(
        gate="optimizer",
        named=only(OPTIMIZER),
        training=with_parts(
            adamw=lambda module: [
                KerasAdamW(module.parameters(), eps=ADAM_EPSILON, global_clipnorm=CLIP, weight_decay=WEIGHT_DECAY)
            ]
        ),
    ),
    "decay not scaled by the learning rate": Fault(
        gate="optimizer",
        named=only(OPTIMIZER),
        training=with_parts(
            adamw=lambda module: [
                DecayWithoutRate(
                    epibert_training.decay_groups(module, WEIGHT_DECAY), eps=ADAM_EPSILON, global_clipnorm=CLIP
                )
            ]
        ),
    ),
    "schedule off by one": Fault(
        gate="optimizer", named=only(SCHEDULE), training=schedule(lambda step, **a: cosine_warmup(step + 1, **a))
    ),
    "decay to zero": Fault(
        gate="optimizer",
        named=only(SCHEDULE),
        training=schedule(lambda step, **a: cosine_warmup(step, **{**a, "floor": 0.0})),
    ),
    "mean of per-example losses": Fault(
        gate="losses", named=only(LOSS), training=with_parts(masked_loss=mean_of_examples)
    ),
    "squared correlation for the coefficient of determination": Fault(
        gate="losses",
        named=only(METRIC),
        training=with_parts(metrics={"PearsonR": PearsonR, "R2": SquaredCorrelation}),
    ),
    "unbiased running variance": Fault(
        gate="state", named=lambda culprit: culprit.endswith(".norm"), inject=unbiased_variance
    ),
    "momentum 0.9 for 0.1": Fault(gate="state", named=lambda culprit: culprit.endswith(".norm"), inject=torch_momentum),
    "dropout scale missing": Fault(
        gate="gradients", named=lambda culprit: "dropout" in culprit, inject=dropouts(without_scale)
    ),
    "the same mask at every step": Fault(
        gate="state", named=only("EpiBERT"), inject=dropouts(functools.partial(same_masks, period=1))
    ),
    "masks that come again after six steps": Fault(
        gate="trajectory", named=only("EpiBERT"), inject=dropouts(functools.partial(same_masks, period=6))
    ),
}


# --- the faults of fine-tuning ---------------------------------------------------------------------------------------


class JointClip(KerasAdam):
    """Clips what others train together with what it trains itself."""

    others: Sequence[nn.Parameter] = ()

    def step(self, closure: Any = None) -> Any:
        own = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in (*own, *self.others) if p.grad is not None]
        scale = torch.clamp(CLIP / torch.nn.utils.get_total_norm(gradients), max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        return super().step(closure)


def one_clip(model: EpiBERTRampage, make: Any) -> list[torch.optim.Optimizer]:
    """One clip over the parameters of both optimizers (spec, section 8, row 62)."""
    decay = WEIGHT_DECAY if make is PORT.adamw else 0.0
    trunk, head = optimizer_parts(model)
    first = JointClip(decay_groups(trunk, decay), eps=ADAM_EPSILON)
    first.others = list(head.parameters())
    # What the first has clipped is within the bound when the second takes it.
    return [first, KerasAdam(decay_groups(head, decay), eps=ADAM_EPSILON)]


def atac_head_in_the_second(model: EpiBERTRampage, make: Any) -> list[torch.optim.Optimizer]:
    """Both heads trained by the optimizer of the RNA head."""
    trunk, head = optimizer_parts(model)
    atac = [model.final_pointwise_conv, model.final_dense_profile]
    rest = nn.ModuleList(child for child in trunk if all(child is not part for part in atac))
    return [made for part in (rest, nn.ModuleList([*atac, *head])) for made in make(part)]


def one_mask_for_both_heads(port: EpiBERTRampage) -> None:
    dropout, forward = port.dropout, port.dropout.forward
    masks: list[Tensor] = []

    def shared(x: Tensor) -> Tensor:
        if not dropout.training:
            return x
        if not masks:
            masks.append(forward(torch.ones_like(x)))
            return x * masks[0]
        return x * masks.pop()

    dropout.forward = shared  # type: ignore[method-assign]  a fault is a patch


def per_head_mean(*arguments: Any, **options: Any) -> Any:
    """The mean of both losses, where the original adds them."""
    found = finetuning_loss(*arguments, **options)
    return found if found.atac is None else found._replace(total=found.total / 2)


class SumOfLogarithms(GeneCellCorrelation):
    """Takes the logarithm of each example before those of one gene and cell type are summed."""

    def update(self, pred: Tensor, target: Tensor, tss_tokens: Tensor, gene: Tensor, cell: Tensor) -> None:
        super().update(torch.log2(1 + pred), torch.log2(1 + target), tss_tokens, gene, cell)


RAMPAGE_FAULTS = {
    "one clip over both optimizers": Fault(
        gate="optimizer", named=only(OPTIMIZER), training=with_parts(finetuning_optimizers=one_clip)
    ),
    "the ATAC head trained by the RNA head's optimizer": Fault(
        gate="optimizer", named=only(OPTIMIZER), training=with_parts(finetuning_optimizers=atac_head_in_the_second)
    ),
    "one dropout mask for both heads": Fault(gate="gradients", named=only("dropout"), inject=one_mask_for_both_heads),
    "the mean of both heads' losses": Fault(
        gate="losses", named=only(LOSS), training=with_parts(finetuning_loss=per_head_mean)
    ),
    "logarithms summed over examples": Fault(
        gate="losses", named=only(METRIC), training=with_parts(gene_metric=SumOfLogarithms)
    ),
}


# --- the bench -------------------------------------------------------------------------------------------------------


class Bench:
    """A living reference that remembers what it computed, and fresh ports to break."""

    def __init__(self, folder: Path, kind: type[Trunk] = EpiBERT) -> None:
        self.kind = kind
        config, self.checkpoint = load_case(folder)
        self.config = epibert_training.training_config(config)
        self.stored = model_tensors(self.checkpoint, config)
        self.pair = LivePair(self.config, self.stored, self.port())
        self.layer_map: LayerMap = self.pair.layer_map

    def port(self) -> Any:
        port = self.kind(self.config)  # type: ignore[call-arg]  both models take a configuration alone
        transplant(self.checkpoint, port, constants="tensorflow")
        return port

    def rows(self, fault: Fault, gates: Sequence[str]) -> list[Comparison]:
        """What the rungs find, each in its short form."""
        port = self.port()
        if fault.inject is not None:
            fault.inject(port)
        pair = self.pair.of(port, fault.training)
        rows: list[Comparison] = []
        if "losses" in gates:
            rows += epibert_training.compare_losses(fault.training)
            rows += epibert_training.compare_metrics(fault.training)
            if self.kind is EpiBERTRampage:
                rows += epibert_training.compare_finetuning_losses(fault.training)
                rows += epibert_training.compare_gene_metrics(fault.training)
        if "gradients" in gates:
            rows += epibert_training.live_gradients(pair, precisions=("float64",))
        if "optimizer" in gates:
            rows += epibert_training.live_steps(pair, runs=(("adam", 1e-6), ("adam", 1e-2), ("adamw", 1.0)))
        if "state" in gates:
            with_trajectory = "trajectory" in gates
            rows += epibert_training.live_runs(pair, "float64", STEPS, draws=1, with_trajectory=with_trajectory)
        return rows


@pytest.fixture(scope="module")
def training_bench(tensorflow, goldens) -> Bench:
    return Bench(goldens / "P1")


@pytest.fixture(scope="module")
def rampage_bench(tensorflow, goldens) -> Bench:
    return Bench(goldens / "R1", EpiBERTRampage)


def test_a_port_without_a_fault_passes_all_training_rungs(training_bench):
    rows = training_bench.rows(Fault(gate="", named=only("")), TRAINING_GATES)
    gates = judge(rows, requested=TRAINING_GATES, ladder=TRAINING_GATES)
    failures = [row for row in rows if row.status is not Status.PASS]
    assert {gate.status for gate in gates.values()} == {GateStatus.PASSED}, failures[:5]


@pytest.mark.parametrize("name", FAULTS)
def test_the_rung_meant_for_a_fault_turns_red_and_names_who_is_at_fault(training_bench, name):
    assert_found(training_bench, FAULTS[name], "EpiBERT")


@pytest.mark.slow
def test_a_fine_tuning_port_without_a_fault_passes_all_training_rungs(rampage_bench):
    test_a_port_without_a_fault_passes_all_training_rungs(rampage_bench)


@pytest.mark.slow
@pytest.mark.parametrize("name", RAMPAGE_FAULTS)
def test_a_fault_of_fine_tuning_turns_its_rung_red_and_names_who_is_at_fault(rampage_bench, name):
    assert_found(rampage_bench, RAMPAGE_FAULTS[name], "EpiBERTRampage")


def assert_found(bench: Bench, fault: Fault, model_name: str) -> None:
    before = TRAINING_GATES[: TRAINING_GATES.index(fault.gate) + 1]
    # State and trajectory stand on long runs; the rungs before them that a fault cannot touch are not climbed again.
    wanted = {
        "state": ("gradients", "state"),
        "trajectory": ("state", "trajectory"),
    }.get(fault.gate, before)
    rows = bench.rows(fault, wanted)
    gates = judge(rows, requested=wanted, ladder=wanted)
    red = [gate for gate, found in gates.items() if found.status is GateStatus.FAILED]
    assert red == [fault.gate], {gate: found.reason for gate, found in gates.items()}
    failing = [row for row in rows if row.gate == fault.gate]
    culprits = [culprit.port for culprit in find_culprits(failing, bench.layer_map, model_name=model_name)]
    assert culprits
    assert [culprit for culprit in culprits if not fault.named(culprit)] == []


@pytest.mark.parametrize("name", ["dropout scale missing", "the same mask at every step"])
def test_forward_rungs_accept_faults_of_dropout(training_bench, bench, name):
    from parity.ladder import compare_live

    port = bench.port()
    fault = FAULTS[name]
    assert fault.inject is not None
    fault.inject(port)
    rows = list(compare_live(epibert.watch(port), bench.live, bench.layer_map))
    assert {row.reading for row in rows} >= {Reading.ISOLATED, Reading.BLOCK, Reading.ACCUMULATED}
    assert {row.status for row in rows} == {Status.PASS}


# --- functions, recorded: no living reference is needed --------------------------------------------------------------

FUNCTION_FAULTS = {
    "epsilon inside Poisson's logarithm": (
        with_parts(poisson=lambda true, predicted: poisson(true, predicted + 1e-7)),
        # A prediction of zero shows it in float32 as well.
        {(LOSS, "float64"), (LOSS, "float32")},
    ),
    "multinomial that never rescales": (
        with_parts(
            poisson_multinomial=lambda true, predicted, **arguments: poisson_multinomial(
                true, predicted, **{**arguments, "rescale": False}
            )
        ),
        {(LOSS, "float64"), (LOSS, "float32")},
    ),
    "Poisson loss of narrow predictions": (with_parts(poisson=narrow_in_float32(poisson)), {(LOSS, "float32")}),
    "multinomial loss of narrow predictions": (
        with_parts(poisson_multinomial=narrow_in_float32(poisson_multinomial)),
        {(LOSS, "float32")},
    ),
    "narrow sums": (
        with_parts(metrics={"PearsonR": narrow_sums(PearsonR), "R2": narrow_sums(R2)}),
        {(METRIC, "float32")},
    ),
    "a loss that raises": (with_parts(poisson=raises), {(LOSS, "float64"), (LOSS, "float32")}),
    "a metric that cannot be made": (with_parts(metrics={"PearsonR": raises, "R2": R2}), {(METRIC, "float32")}),
    "a schedule that raises": (with_parts(schedule=raises), {(SCHEDULE, "float64")}),
}


@pytest.mark.parametrize("name", FUNCTION_FAULTS)
def test_recorded_functions_find_a_fault_and_say_whose_it_is(goldens, name):
    training, named = FUNCTION_FAULTS[name]
    rows = list(epibert_training.compare_recorded_functions(goldens / "functions.h5", training, case="functions"))
    failing = {(row.layer, row.precision) for row in rows if row.status is not Status.PASS}
    assert failing == named


def without_scale_of_atac(*arguments: Any, **options: Any) -> Any:
    return finetuning_loss(*arguments, **{**options, "atac_scale": 1.0})


def recorded_finetuning_failures(goldens: Path, **parts: Any) -> list[Comparison]:
    """What the recorded training finds wrong with these parts."""
    config, checkpoint = load_case(goldens / "R1")
    recording = read_recording(goldens / "R1" / "forward.h5", name="recorded")
    port = EpiBERTRampage(config)
    transplant(checkpoint, port, constants=(*epibert.recorded_constants(recording), recording.name))
    rows = epibert_training.compare_recorded_training(
        port,
        epibert_training.RECORDED_VARIANTS["R1"][0],
        goldens / "R1" / "train.h5",
        epibert.recorded_inputs(recording),
        epibert_training.recorded_targets(recording),
        training=with_parts(**parts),
        case="R1",
    )
    return [row for row in rows if row.status is not Status.PASS]


@pytest.mark.parametrize("fault", [without_scale_of_atac, raises])
def test_the_recorded_training_of_the_fine_tuning_model_finds_a_fault_of_its_loss(goldens, fault):
    failing = recorded_finetuning_failures(goldens, finetuning_loss=fault)
    assert {row.layer for row in failing if row.gate == "losses"} == {LOSS}


@pytest.mark.parametrize("fault", [one_clip, atac_head_in_the_second])
def test_the_recorded_training_of_the_fine_tuning_model_finds_a_fault_of_its_optimizers(goldens, fault):
    failing = recorded_finetuning_failures(goldens, finetuning_optimizers=fault)
    assert {row.layer for row in failing if row.gate == "optimizer"} == {OPTIMIZER}
    assert not {row.gate for row in failing} & {"losses", "gradients"}


# --- float32, live ---------------------------------------------------------------------------------------------------


def test_a_loss_that_is_wrong_in_float32_alone_is_found_by_the_gradients(training_bench):
    faulty = training_bench.pair.of(training_bench.port(), with_parts(masked_loss=narrow_in_float32(masked_loss)))
    rows = list(epibert_training.live_gradients(faulty))
    assert {row.precision for row in rows if row.status is not Status.PASS} == {"float32"}
    sound = list(epibert_training.live_gradients(training_bench.pair.of(training_bench.port())))
    assert {row.status for row in sound} == {Status.PASS}


def test_moments_that_are_wrong_in_float32_alone_are_found_by_the_trajectory(training_bench):
    narrow = with_parts(
        adam=lambda module: [NarrowMoments(module.parameters(), eps=ADAM_EPSILON, global_clipnorm=CLIP)]
    )
    found = {}
    for name, training in (("sound", PORT), ("narrow", narrow)):
        pair = training_bench.pair.of(training_bench.port(), training)
        rows = list(epibert_training.live_runs(pair, "float32", STEPS))
        found[name] = [row for row in rows if row.status is not Status.PASS]
    assert found["sound"] == []
    assert any(row.quantity.startswith("exp_avg at") for row in found["narrow"])


@pytest.mark.parametrize("part", ["adam", "schedule"])
def test_a_part_that_raises_is_a_finding(training_bench, part):
    pair = training_bench.pair.of(training_bench.port(), with_parts(**{part: raises}))
    rows = list(epibert_training.live_runs(pair, "float64", STEPS, draws=1, with_trajectory=False))
    assert rows
    assert {row.status for row in rows} == {Status.MISSING}
    assert all("no such thing" in row.detail for row in rows)
    steps = list(epibert_training.live_steps(pair, runs=(("adam", 1.0),)))
    assert any("no such thing" in row.detail for row in steps if row.status is Status.MISSING)
