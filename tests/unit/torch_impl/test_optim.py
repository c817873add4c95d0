"""The optimizers of the port against Keras' formulas written out in NumPy, and as citizens of PyTorch."""

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity.compare import compare_array
from parity.records import Reading, Status
from parity.reference import read_array
from tests.assertions import assert_same
from tests.unit.sources import ROOT
from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl.model import BatchNorm, LayerNorm
from torch_impl.optim import CosineWarmup, JointOptimizer, KerasAdam, KerasAdamW, cosine_warmup, decay_groups
from weights import read_checkpoint

KERNELS: dict[str, dict[str, Any]] = {
    "default": {},
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
SHAPES = [(3, 4), (5,), (2, 2, 2), ()]
EPSILON = 1e-8
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def draws(steps: int, scale: float = 1.0) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Weights, and gradients for every step, in float64."""
    generator = np.random.default_rng(11)
    weights = [generator.standard_normal(shape) for shape in SHAPES]
    return weights, [[scale * generator.standard_normal(shape) for shape in SHAPES] for _ in range(steps)]


def keras(
    weights: list[np.ndarray],
    gradients: list[list[np.ndarray]],
    rates: list[float],
    *,
    clip: float | None = None,
    decay: float = 0.0,
    epsilon: float = EPSILON,
) -> list[np.ndarray]:
    """Keras' update (spec, section 3.4), in float64."""
    weights = [np.array(w) for w in weights]
    means, squares = ([np.zeros_like(w) for w in weights] for _ in range(2))
    beta1, beta2 = (float(np.float32(beta)) for beta in (0.9, 0.999))
    decay = float(np.float32(decay))
    for t, (rate, step) in enumerate(zip(rates, gradients, strict=True), start=1):
        norm = math.sqrt(sum(np.sum(g**2) for g in step))
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        for w, m, v, g in zip(weights, means, squares, step, strict=True):
            w -= w * decay * rate
            m += (g * factor - m) * (1 - 0.9)
            v += ((g * factor) ** 2 - v) * (1 - 0.999)
            w -= rate * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (np.sqrt(v) + epsilon)
    return weights


def port(
    weights: list[np.ndarray],
    gradients: list[list[np.ndarray]],
    rates: list[float],
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """The same by an optimizer of ours; weights, and the optimizer."""
    parameters = [nn.Parameter(torch.tensor(w, dtype=dtype, device=device)) for w in weights]
    optimizer = make(parameters)
    for rate, step in zip(rates, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=dtype, device=device)
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer


def moved(after: Any, before: list[np.ndarray]) -> np.ndarray:
    """How far all weights moved; the weights themselves would hide it."""
    return np.concatenate([np.ravel(np.asarray(a) - b) for a, b in zip(after, before, strict=True)])


# --- Keras' numbers

RATES = [1e-7, 2e-2, 4e-2, 3e-2, 1e-2]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("clip", [None, 1e6, 0.05], ids=["no clip", "clip inactive", "clip active"])
@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1e-2, 1e2])
def test_updates_are_keras(kernel, clip, scale):
    weights, gradients = draws(len(RATES), scale)
    for decay in (0.0, 1e-2):
        expected = keras(weights, gradients, RATES, clip=clip, decay=decay)
        got, _ = port(
            weights, gradients, RATES,
            lambda p, d=decay: KerasAdamW(p, eps=EPSILON, weight_decay=d, global_clipnorm=clip, **KERNELS[kernel]),
        )  # fmt: skip
        assert_same(moved(got, weights), moved(expected, weights), "optimizer_update")


def laid_out_otherwise(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values.T.copy()).permute(tuple(reversed(range(values.ndim))))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_and_moments_may_lie_otherwise_in_memory_than_their_weights(kernel):
    """Gradients as a product makes them, moments as a checkpoint of another layout is loaded."""
    weights, gradients = draws(2)
    expected, _ = port(weights, gradients, RATES[1:3], lambda p: KerasAdam(p, **KERNELS[kernel]))
    parameters = [nn.Parameter(torch.tensor(w)) for w in weights]
    optimizer = KerasAdam(parameters, **KERNELS[kernel])
    for given, rate in zip(gradients, RATES[1:3], strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(parameters, given, strict=True):
            parameter.grad = laid_out_otherwise(gradient)
            for name in ("exp_avg", "exp_avg_sq"):
                if state := optimizer.state[parameter]:
                    state[name] = laid_out_otherwise(state[name].numpy())
        assert any(p.grad is not None and p.grad.stride() != p.stride() for p in parameters)
        optimizer.step()
    assert all(torch.equal(got.detach(), other) for got, other in zip(parameters, expected, strict=True))


@pytest.mark.parametrize("mistake", ["epsilon", "clip epsilon", "powers", "decay unscaled", "decay after the step"])
def test_the_test_above_sees_every_difference(mistake):
    weights, gradients = draws(len(RATES), 1e-5)
    expected = keras(weights, gradients, RATES, clip=1e-6, decay=1e-2)
    match mistake:
        case "epsilon" | "powers":
            epsilon = EPSILON if mistake == "epsilon" else 0.0
            expected = keras(weights, gradients, RATES, decay=1e-2, epsilon=epsilon)
            got, _ = port(weights, gradients, RATES, lambda p: torch.optim.AdamW(p, eps=epsilon, weight_decay=1e-2))
        case "clip epsilon":
            norms = [math.sqrt(sum(np.sum(g**2) for g in step)) for step in gradients]
            gradients = [[g * 1e-6 / (n + 1e-6) for g in step] for step, n in zip(gradients, norms, strict=True)]
            got, _ = port(weights, gradients, RATES, lambda p: KerasAdamW(p, eps=EPSILON, weight_decay=1e-2))
        case "decay unscaled":
            got = keras(weights, gradients, RATES, clip=1e-6)
            got = [g - w * 1e-2 * len(RATES) for g, w in zip(got, weights, strict=True)]
        case "decay after the step":
            got = [np.array(w) for w in weights]
            for number, rate in enumerate(RATES, start=1):
                with_step = keras(weights, gradients[:number], RATES[:number], clip=1e-6)
                without = keras(weights, gradients[: number - 1], RATES[: number - 1], clip=1e-6)
                got = [(g + a - b) * (1 - 1e-2 * rate) for g, a, b in zip(got, with_step, without, strict=True)]
    with pytest.raises(AssertionError, match="relative L2 error"):
        assert_same(moved(got, weights), moved(expected, weights), "optimizer_update")


def recorded_step(variant: str) -> Iterator[tuple[str, np.ndarray, Any, np.ndarray]]:
    """Key, weight before the first recorded step, weight after it, gradient."""
    before = read_checkpoint(ROOT / "goldens" / "P1" / "ckpt_before")
    with h5py.File(ROOT / "goldens" / "P1" / "train.h5") as file:
        group = file["f64"][variant]
        for key in json.loads((ROOT / "goldens" / "P1" / "config.json").read_text())["trainable_order"]:
            yield key, before[key + SUFFIX], read_array(group["weights_after_1"][key]), group["grad0"][key][()]


@pytest.mark.parametrize("variant", ["poisson", "poisson_multinomial"])
def test_the_first_step_of_the_original(variant):
    keys, weights, expected, gradients = zip(*recorded_step(variant), strict=True)
    weights = [w.astype(np.float64) for w in weights]
    got, _ = port(weights, [list(gradients)], [1e-7], lambda p: KerasAdam(p, eps=EPSILON, global_clipnorm=1.0))
    assert len(keys) == 88
    for key, array, recorded in zip(keys, got, expected, strict=True):
        rows = compare_array(
            array.numpy(), recorded, None, gate="test", reading=Reading.ISOLATED, precision="float64",
            tolerance="optimizer", reference_path=key, port_path=key, layer=key, quantity="weight",
        )  # fmt: skip
        assert [row for row in rows if row.status is not Status.PASS] == []


def test_float32_powers_are_rounded_as_keras_rounds_them():
    """In the step where that matters most, from zero weights so that the step is all there is."""
    beta = float(np.float32(0.999))
    exact = {t: 1 - beta**t for t in range(2, 12)}
    rounded = {t: 1 - float(np.float32(beta**t)) for t in exact}
    worst = max(exact, key=lambda t: abs(rounded[t] / exact[t] - 1))
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = KerasAdam([parameter], lr=1.0, eps=0.0)
    for _ in range(worst):
        parameter.data.zero_()
        parameter.grad = torch.ones(3)
        optimizer.step()
    mean, square = 1 - 0.9**worst, 1 - 0.999**worst
    correction1 = 1 - float(np.float32(float(np.float32(0.9)) ** worst))
    step = {name: np.full(3, math.sqrt(c[worst] / square) * mean / correction1) for name, c in
            (("rounded", rounded), ("exact", exact))}  # fmt: skip
    assert_same(-parameter, step["rounded"], "float32_only")
    with pytest.raises(AssertionError):
        assert_same(-parameter, step["exact"], "float32_only")


def test_rates_are_rounded_as_keras_holds_them():
    """The learning rate in the precision of the parameters, weight decay in float32."""
    weights, gradients = draws(1)
    rate = 1e-3
    assert float(np.float32(rate)) != rate
    narrow, _ = port(weights, gradients, [rate], KerasAdam, torch.float32)
    same, _ = port(weights, gradients, [float(np.float32(rate))], KerasAdam, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(narrow, same, strict=True))
    zeros = [[0 * g for g in step] for step in gradients]
    wide, _ = port(weights, zeros, [rate], lambda p: KerasAdamW(p, weight_decay=0.1))
    assert_same(moved(wide, weights), -rate * float(np.float32(0.1)) * moved(weights, [0 * w for w in weights]),
                "optimizer_update")  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_weights_decay_to_the_bit_as_keras_decays_them(kernel):
    """At the original's highest rates, where the product of the two is less than an ulp."""
    rate, decay = 5e-4, 1e-4
    weights = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    found = {}
    for kind in (KerasAdamW, torch.optim.AdamW):
        parameter = nn.Parameter(torch.from_numpy(weights.copy()))
        parameter.grad = torch.zeros_like(parameter)
        kind([parameter], lr=rate, weight_decay=decay, **KERNELS[kernel]).step()
        found[kind] = parameter.detach().numpy()
    expected = weights - weights * np.float32(decay) * np.float32(rate)
    assert np.array_equal(found[KerasAdamW], expected)
    assert 0.7 < np.mean(expected != weights) < 0.8
    assert np.mean(found[torch.optim.AdamW] != weights) == 1


# --- clipping


def test_the_norm_spans_all_groups_and_one_optimizer():
    first, second, other = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(3))
    both, alone = (
        KerasAdam([{"params": [first]}, {"params": [second]}], global_clipnorm=1.0),
        KerasAdam([other], global_clipnorm=1.0),
    )
    for parameter, value in ((first, 3.0), (second, 4.0), (other, 12.0)):
        parameter.grad = torch.tensor([value], dtype=torch.float64)
    both.step()
    alone.step()
    gradients = [parameter.grad for parameter in (first, second, other)]
    assert_same(torch.cat([g for g in gradients if g is not None]), np.array([0.6, 0.8, 1.0]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_spoils_everything(value):
    weights, gradients = draws(1)
    gradients[0][0].flat[0] = value
    got, _ = port(weights, gradients, [1e-3], lambda p: KerasAdam(p, global_clipnorm=1.0))
    assert all(bool(weight.isnan().all()) for weight in got)


def test_zero_gradients_stay_zero():
    weights, gradients = draws(1, 0.0)
    got, _ = port(weights, gradients, [1e-3], lambda p: KerasAdam(p, global_clipnorm=1.0))
    assert not moved(got, weights).any()


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_an_impossible_clip_is_refused(clip):
    with pytest.raises(ValueError, match="global_clipnorm must be positive or None"):
        KerasAdam([nn.Parameter(torch.zeros(1))], global_clipnorm=clip)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", ["foreach", "fused"])
def test_a_step_on_a_gpu_is_the_same_and_waits_for_nothing(device, kernel):
    weights, gradients = draws(len(RATES))
    make = lambda p: KerasAdamW(p, eps=EPSILON, weight_decay=1e-2, global_clipnorm=0.5, **KERNELS[kernel])  # noqa: E731
    expected = keras(weights, gradients, RATES, clip=0.5, decay=1e-2)
    got, optimizer = port(weights, gradients, RATES, make, device=device)
    assert_same(moved([g.cpu() for g in got], weights), moved(expected, weights), "optimizer_update")
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# --- a citizen of PyTorch


@pytest.mark.parametrize("kernel", KERNELS)
def test_states_are_those_of_pytorchs_adam(kernel):
    weights, gradients = draws(5)
    make = lambda p: KerasAdamW(p, eps=EPSILON, weight_decay=1e-2, global_clipnorm=0.5, **KERNELS[kernel])  # noqa: E731
    expected, _ = port(weights, gradients, RATES, make)
    middle, optimizer = port(weights, gradients[:2], RATES[:2], make)
    state = copy.deepcopy(optimizer.state_dict())
    theirs = torch.optim.Adam([nn.Parameter(w.clone()) for w in middle], **KERNELS[kernel])
    assert theirs.state_dict()["param_groups"][0].keys() == state["param_groups"][0].keys()
    theirs.load_state_dict(state)
    assert {key: state["param_groups"][0][key] for key in ("lr", "eps", "weight_decay")} == {
        "lr": RATES[1], "eps": EPSILON, "weight_decay": 1e-2,
    }  # fmt: skip
    back = theirs.state_dict()
    assert {name for slots in back["state"].values() for name in slots} == {"step", "exp_avg", "exp_avg_sq"}

    def resume(parameters):
        resumed = make(parameters)
        resumed.load_state_dict(back)
        return resumed

    got, _ = port([w.numpy() for w in middle], gradients[2:], RATES[2:], resume)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copied", "pickled"])  # noqa: S301
def test_a_copy_goes_on_in_the_same_way(copied):
    weights, gradients = draws(3)
    _, optimizer = port(weights, gradients, RATES[:3], lambda p: KerasAdam(p, global_clipnorm=0.5))
    twin = copied(optimizer)
    assert twin.global_clipnorm == 0.5
    for each in (optimizer, twin):
        for parameter in each.param_groups[0]["params"]:
            parameter.grad = torch.full_like(parameter, 3.0)
        each.step()
    pairs = zip(optimizer.param_groups[0]["params"], twin.param_groups[0]["params"], strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_counter_serves_all_parameters(kernel):
    """Keras skips a variable without a gradient, and its next step is corrected as that of all others."""
    steady, late, pausing = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3))
    optimizer = KerasAdam([steady, late, pausing], eps=EPSILON, **KERNELS[kernel])
    for number in range(4):
        gradient = torch.tensor([1.0, -2.0], dtype=torch.float64)
        steady.grad = gradient.clone()
        late.grad = None if number < 2 else gradient.clone()
        pausing.grad = None if number == 2 else gradient.clone()
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in (steady, late, pausing)] == [4, 4, 4]
    beta1, beta2 = (float(np.float32(beta)) for beta in (0.9, 0.999))
    mean = square = weight = np.zeros(2)
    for t in (3, 4):
        g = np.array([1.0, -2.0])
        mean, square = mean + (g - mean) * (1 - 0.9), square + (g**2 - square) * (1 - 0.999)
        weight = weight - 1e-3 * math.sqrt(1 - beta2**t) / (1 - beta1**t) * mean / (np.sqrt(square) + EPSILON)
    assert_same(late, weight, "optimizer_update")


def test_without_any_gradient_nothing_happens():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = KerasAdamW([parameter], global_clipnorm=1.0)
    assert optimizer.step() is None
    assert not optimizer.state
    assert torch.equal(parameter, torch.ones(2))


def test_a_closure_is_called_with_gradients_on_and_hooks_once():
    parameter = nn.Parameter(torch.ones(2))
    torch.optim.Adam([parameter])  # instruments the step of its class
    optimizer, called = KerasAdam([parameter]), []
    optimizer.register_step_post_hook(lambda *_: called.append("hook"))

    def closure():
        loss = parameter.square().sum()
        loss.backward()
        called.append("closure")
        return loss

    assert optimizer.step(closure) == 2
    assert called == ["closure", "hook"]
    assert (parameter < 1).all()


def test_dtypes_may_be_mixed():
    weights, gradients = draws(5)
    singles = {dtype: port(weights, gradients, RATES, KerasAdam, dtype)[0] for dtype in (torch.float32, torch.float64)}
    parameters = [nn.Parameter(torch.tensor(w, dtype=dtype)) for dtype in singles for w in weights]
    optimizer = KerasAdam(parameters)
    for rate, step in zip(RATES, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(parameters, step + step, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=parameter.dtype)
        optimizer.step()
    expected = [*singles[torch.float32], *singles[torch.float64]]
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))


def test_decay_groups_spare_biases_and_norms():
    with torch.device("meta"):
        model = EpiBERT(EpiBERTConfig.tiny())
    decaying, exempt = decay_groups(model, 1e-4)
    assert (decaying["weight_decay"], exempt["weight_decay"]) == (1e-4, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(parameter)] for parameter in exempt["params"]}
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, BatchNorm | LayerNorm)}
    assert spared == norms | {name for name in names.values() if name.endswith("bias")}
    assert (len(decaying["params"]), len(spared)) == (36, 52)
    order = [id(p) for p in model.parameters()]
    for group in (decaying, exempt):
        places = [order.index(id(parameter)) for parameter in group["params"]]
        assert places == sorted(places)
    model.final_dense_profile.requires_grad_(False)
    parts = decay_groups(nn.ModuleList([model.stem_conv, model.final_dense_profile]), 1e-4)
    assert [len(group["params"]) for group in parts] == [1, 1]


# --- learning rate


def test_learning_rates():
    with h5py.File(ROOT / "goldens" / "functions.h5") as file:
        settings = file["cos_w_warmup/settings_target_warmup_decay_alpha_constant"][()].tolist()
        recorded = [file[f"cos_w_warmup/lr_{index}"][()] for index in range(7)]
    for (peak, warmup, decay, floor, constant), expected in zip(settings, recorded, strict=True):
        rates = [cosine_warmup(step, peak, warmup, decay, floor, constant=bool(constant)) for step in range(50)]
        assert all(type(rate) is float for rate in rates)
        assert_same(np.array(rates), expected, "recorded_rate")


def test_the_published_schedule():
    at = {step: cosine_warmup(step, 1e-4, 5000, 500_000, 0.1) for step in (0, 2500, 5000, 255_000, 505_000, 10**9)}
    assert_same(np.array(list(at.values())), np.array([1e-7, 5.005e-5, 1e-4, 5.5e-5, 1e-5, 1e-5]), "recorded_rate")
    peak = at[5000]
    with pytest.raises(ValueError, match="positive number of steps"):
        cosine_warmup(5, peak, 5, 0, 0.1)
    assert cosine_warmup(5, peak, 5, 0, 0.1, constant=True) == peak


def test_the_scheduler_sets_the_rate_of_the_coming_step_and_goes_on():
    def fresh():
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.ones(1)
        optimizer = KerasAdam([{"params": [parameter]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 7.0}])
        return optimizer, CosineWarmup(optimizer, 1e-4, 5, 20, 0.1)

    expected = [cosine_warmup(step, 1e-4, 5, 20, 0.1) for step in range(30)]
    optimizer, scheduler = fresh()
    for step in range(30):
        if step == 12:
            state = pickle.loads(pickle.dumps((optimizer.state_dict(), scheduler.state_dict())))  # noqa: S301
            optimizer, scheduler = fresh()
            optimizer.load_state_dict(state[0])
            scheduler.load_state_dict(state[1])
        assert [group["lr"] for group in optimizer.param_groups] == [expected[step]] * 2
        optimizer.step()
        scheduler.step()


# --- several optimizers as one


def pair_of_parts() -> tuple[list[KerasAdamW], list[nn.Parameter]]:
    """Two optimizers with settings of their own, and the parameters of both."""
    torch.manual_seed(3)
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]
    settings = zip((parameters[:2], parameters[2:]), (1e-2, 3e-3), (0.1, 0.0), (0.05, 1.0), strict=True)
    return [
        KerasAdamW(part, lr=rate, eps=EPSILON, weight_decay=decay, global_clipnorm=clip)
        for part, rate, decay, clip in settings
    ], parameters


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def after_steps(optimizer: JointOptimizer, parameters: list[nn.Parameter], steps: range) -> list[Tensor]:
    for step in steps:
        give_gradients(parameters, step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def test_optimizers_as_one_take_the_steps_of_each_by_itself():
    members, parameters = pair_of_parts()
    joint = after_steps(JointOptimizer(members), parameters, range(4))
    apart, others = pair_of_parts()
    for step in range(4):
        give_gradients(others, step)
        for optimizer in apart:
            optimizer.step()
    for found, expected in zip(joint, others, strict=True):
        assert_same(found, expected.detach(), "exact")
    # Each clips to a bound of its own.
    give_gradients(parameters, 9)
    JointOptimizer(members).step()
    for part, clip in ((parameters[:2], 0.05), (parameters[2:], 1.0)):
        gradients = [p.grad for p in part if p.grad is not None]
        assert_same(torch.nn.utils.get_total_norm(gradients), torch.tensor(clip, dtype=torch.float64))


@pytest.mark.parametrize("travel", ["state_dict", "pickle", "deepcopy"])
def test_optimizers_as_one_are_saved_and_go_on(travel):
    members, parameters = pair_of_parts()
    optimizer = JointOptimizer(members)
    after_steps(optimizer, parameters, range(2))
    if travel == "state_dict":
        state = optimizer.state_dict()
        assert set(state["state"]) == set(range(len(SHAPES)))
        others, copies = pair_of_parts()
        with torch.no_grad():
            for copied, parameter in zip(copies, parameters, strict=True):
                copied.copy_(parameter)
        again = JointOptimizer(others)
        again.load_state_dict(copy.deepcopy(state))
    else:
        both = (optimizer, parameters)
        again, copies = copy.deepcopy(both) if travel == "deepcopy" else pickle.loads(pickle.dumps(both))  # noqa: S301
    assert all(member.state is again.state for member in again.members)
    expected = after_steps(optimizer, parameters, range(2, 5))
    for found, value in zip(after_steps(again, copies, range(2, 5)), expected, strict=True):
        assert_same(found, value, "exact")
    assert {int(slots["step"]) for slots in again.state.values()} == {5}


def test_a_member_that_rested_goes_on_from_its_own_step():
    members, parameters = pair_of_parts()
    optimizer = JointOptimizer(members)
    for step in range(3):
        give_gradients(parameters[2:], step)
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    give_gradients(parameters, 3)
    optimizer.step()
    assert [int(optimizer.state[parameter]["step"]) for parameter in parameters] == [1, 1, 4, 4]


def test_one_schedule_sets_the_rates_of_each_member():
    members, parameters = pair_of_parts()
    optimizer = JointOptimizer(members)
    schedule = CosineWarmup(optimizer, [1e-2, 3e-3], 2, 10, 0.1)
    for step in range(5):
        for member, peak in zip(members, (1e-2, 3e-3), strict=True):
            assert member.param_groups[0]["lr"] == cosine_warmup(step, peak, 2, 10, 0.1)
        give_gradients(parameters, step)
        optimizer.step()
        schedule.step()
    with pytest.raises(ValueError, match="3 peaks for 2 groups"):
        CosineWarmup(optimizer, [1.0, 2.0, 3.0], 2, 10, 0.1)


def test_a_closure_is_called_once_and_a_parameter_belongs_to_one_member():
    members, parameters = pair_of_parts()
    calls = []

    def closure() -> float:
        assert torch.is_grad_enabled()
        calls.append(1)
        give_gradients(parameters, 0)
        return 7.0

    assert JointOptimizer(members).step(closure) == 7.0
    assert len(calls) == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        JointOptimizer([members[0], KerasAdam(parameters[:1])])
