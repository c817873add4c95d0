"""Made-up results for the tests of the report: one that passes, one that fails in many ways, and the corner cases."""

import dataclasses
import functools
import math
import random
from collections.abc import Iterator

from parity.convergence import Margin, Run, Side, find_equivalences, judge_convergence
from parity.ladder import CONVERGENCE, FORWARD_GATES, GATES, TRAINING_GATES
from parity.records import (
    Comparison,
    Culprit,
    Gate,
    GateStatus,
    KnownDifference,
    NotCompared,
    Reading,
    Result,
    Status,
    WeightRow,
)

OFF = "dropout is off: it passes its input on"
HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>[red]%{y}\x1b[31m\ud800\u202e\x00&amp;"
)
SIZES = {"float64": 2e-15, "float32": 1.4e-7, "bfloat16": 4e-3}
TOLERANCES = {
    "exact": {"limit": 0.0, "floor": 0.0, "reason": "Copied, not computed."},
    "float64": {
        "limit": 1e-12,
        "floor": 0.0,
        "reason": "Another order of summation moves a sum of 1e4 terms by about 1e-14.",
    },
    "float32": {
        "limit": 2.0,
        "floor": 3.4e-8,
        "reason": "Two correct orders of summation differ by a random walk each.",
    },
    "bfloat16": {"limit": 1.5, "floor": 2.3e-3, "reason": "As float32; rounding dominates."},
    "gradient_live": {"limit": 1e-11, "floor": 0.0, "reason": "A backward pass is longer than a forward pass."},
    "gradient_float32": {"limit": 4.0, "floor": 3.4e-8, "reason": "As float32, through one long chain."},
    "zero_gradient": {"limit": 1e-12, "floor": 0.0, "reason": "Noise, related to all gradients."},
    "optimizer": {"limit": 1e-10, "floor": 0.0, "reason": "Elementwise arithmetic."},
    "state": {"limit": 1e-10, "floor": 0.0, "reason": "As accurate as the weights."},
    "trajectory_float64": {"limit": 2.0, "floor": 8.9e-16, "reason": "The reference's own divergence."},
    "trajectory_float32": {"limit": 2.0, "floor": 4.8e-7, "reason": "The reference's own divergence."},
    "convergence": {"limit": 1.0, "floor": 0.0, "reason": "One more seed."},
    "convergence_power": {"limit": 0.1, "floor": 0.0, "reason": "The power that is promised."},
    "convergence_learned": {"limit": 0.5, "floor": 0.0, "reason": "Two that have not learned are equivalent too."},
}
CASE = "P1 live"
STEPS = 50
QUANTITIES = ("loss", "weights", "statistics", "exp_avg", "exp_avg_sq")
SEEDS = tuple(range(1, 25))
MARGINS = (
    Margin(quantity="losses", spread=0.012, change=-0.3, paired_deviation=0.01),
    Margin(quantity="pearsons", spread=0.03, change=0.7, paired_deviation=0.02),
)


def names() -> Iterator[tuple[str, str]]:
    """(port, reference) of about 130 layers in the order of execution."""
    for tower in ("", "_atac"):
        yield f"stem_conv{tower}", f"stem_conv{tower}"
        yield f"stem_res_conv{tower}.block.norm", f"stem_res_conv{tower}/_layer/0"
        yield f"stem_res_conv{tower}.block.activation", f"stem_res_conv{tower}/_layer/1"
        yield f"stem_res_conv{tower}.block.conv", f"stem_res_conv{tower}/_layer/2"
        yield f"stem_pool{tower}.logits", f"stem_pool{tower}/dense"
        yield f"stem_pool{tower}", f"stem_pool{tower}"
        for i in range(6 if not tower else 2):
            for port, reference in (
                ("block.norm", "0/0"),
                ("block.activation", "0/1"),
                ("block.conv", "0/2"),
                ("pool", "1"),
            ):
                yield f"conv_tower{tower}.{i}.{port}", f"conv_tower{tower}/{i}/{reference}"
    for name in ("motif_activity_fc1", "motif_activity_fc2", "pre_transformer_projection"):
        yield name, name
    for i in range(7):
        port, reference = f"performer.layers.{i}", f"performer/layers/{i}"
        yield f"{port}.norm", f"{reference}/layer_norm"
        for part in ("query", "key", "value"):
            yield f"{port}.attention.{part}", f"{reference}/self_attention/{part}_dense_layer"
        yield f"{port}.attention.output", f"{reference}/self_attention/output_dense_layer"
        yield f"{port}.attention", f"{reference}/self_attention"
        for part, other in (("norm", "FFN_layer_norm"), ("wide", "FFN_dense_wide"), ("narrow", "FFN_dense_narrow")):
            yield f"{port}.ffn.{part}", f"{reference}/FFN/{other}"
        yield f"{port}.ffn", f"{reference}/FFN"
        yield port, reference
    yield "performer", "performer"
    yield "final_pointwise_conv.conv", "final_pointwise_conv/2"
    yield "final_dense_profile", "final_dense_profile"
    yield "", ""


def comparison(**changes) -> Comparison:
    """One that passes, unless changed."""
    values = {
        "gate": "layers",
        "reading": Reading.ISOLATED,
        "precision": "float64",
        "mode": "evaluation",
        "order": 0,
        "reference": "stem/conv",
        "port": "stem.conv",
        "layer": changes.get("port", "stem.conv"),
        "shape": (2, 8, 4),
        "status": Status.PASS,
        "error": 2e-15,
        "peak": 3e-15,
        "limit": 1e-12,
        "tolerance": "float64",
    }
    return Comparison(**(values | changes))


def _data() -> Iterator[Comparison]:
    """Recorded examples, which have no layers but parts."""
    for layer, quantity in (("draws", "shift"), ("masks", "mask"), ("augmentation", "target")):
        yield comparison(
            gate="data",
            case="data recorded: pretrain_tr, base, seed 1, record 0",
            precision="exact",
            mode="",
            reference=layer,
            port=layer,
            layer=layer,
            quantity=quantity,
            error=0.0,
            peak=0.0,
            limit=0.0,
            tolerance="exact",
        )


def _computed(
    random_: random.Random, gate: str, reading: Reading, rows: list[tuple[int, str, str]]
) -> Iterator[Comparison]:
    for order, port, reference in rows:
        depth = 1 + order / 25 if reading is Reading.ACCUMULATED else 1
        for mode in ("evaluation", "training"):
            for precision, size in SIZES.items():
                scale = (
                    0.0
                    if port.endswith("pool") and precision == "float64" and reading is Reading.ISOLATED
                    else size * depth
                )
                own = None if precision == "float64" else size * depth * random_.uniform(0.6, 1.5)
                limit = 1e-12 if own is None else own * TOLERANCES[precision]["limit"]
                error = scale * random_.uniform(0.3, 1.0) * (1 if own is None else own / size / depth)
                yield comparison(
                    gate=gate,
                    reading=reading,
                    precision=precision,
                    mode=mode,
                    order=order,
                    reference=reference,
                    port=port,
                    error=error,
                    peak=error * 2,
                    reference_error=own,
                    limit=limit,
                    tolerance=precision,
                )


def _values(gate: str, rows: list[tuple[str, str]]) -> Iterator[Comparison]:
    for order, (port, reference) in enumerate(rows):
        yield comparison(
            gate=gate,
            reading=Reading.VALUE,
            precision="exact",
            mode="",
            order=order,
            port=port,
            error=0.0,
            reference=reference,
            quantity="weight",
            peak=0.0,
            limit=0.0,
            tolerance="exact",
        )


def parameters() -> list[tuple[str, str]]:
    """(port, reference) of the parameters in model order."""
    silent = "pool", "activation", "ffn", "attention", "performer"
    layers = [(port, reference) for port, reference in names() if port and not port.endswith(silent)]
    layers = [(port, reference) for port, reference in layers if not port.rpartition(".")[2].isdigit()]
    return [
        (f"{port}.{own}", f"{reference}/{theirs}")
        for port, reference in layers
        for own, theirs in (("weight", "kernel"), ("bias", "bias"))
    ]


def _training(gate: str, random_: random.Random, size: float, **changes) -> Comparison:
    """A row of a training gate in float64."""
    error = size * random_.uniform(0.3, 1.0)
    values = {"gate": gate, "case": CASE, "mode": "training", "error": error, "peak": 2 * error}
    return comparison(**(values | changes))


def _losses(random_: random.Random) -> Iterator[Comparison]:
    where = {"port": "", "reference": "", "case": "functions live"}
    for quantity in ("poisson", "poisson, gradient", "poisson_multinomial", "poisson_multinomial, gradient"):
        yield _training("losses", random_, 1e-15, quantity=quantity, layer="loss", **where)
    for batch in range(1, 5):
        yield _training("losses", random_, 1e-15, quantity=f"PearsonR after batch {batch}", layer="metric", **where)


def _gradients(random_: random.Random) -> Iterator[Comparison]:
    for reading, precision, size in (
        (Reading.ISOLATED, "float64", 3e-15),
        (Reading.ACCUMULATED, "float64", 5e-14),
        (Reading.ACCUMULATED, "float32", 4e-6),
    ):
        exact = precision == "float64"
        row = {"reading": reading, "precision": precision, "limit": 1e-11, "tolerance": "gradient_live"}
        if not exact:
            row |= {"reference_error": size, "limit": 4 * size, "tolerance": "gradient_float32"}
        yield _training("gradients", random_, size, port="", reference="", layer="loss", quantity="loss", **row)
        for order, (port, reference) in enumerate(parameters()):
            row |= {"port": port, "reference": reference, "order": order, "layer": port.rpartition(".")[0]}
            if port.endswith("attention.key.bias"):  # a shift of all keys changes nothing
                for side in ("port", "reference") if exact else ():
                    noise = row | {"limit": 1e-12, "tolerance": "zero_gradient"}
                    quantity = f"gradient of the {side}, zero in theory"
                    yield _training("gradients", random_, 1e-15, quantity=quantity, **noise)
                continue
            own = None if exact else size * random_.uniform(0.6, 1.5)
            if own is not None:
                row |= {"reference_error": own, "limit": 4 * own, "tolerance": "gradient_float32"}
            yield _training("gradients", random_, size, quantity="gradient", **row)
        for order, (port, reference) in enumerate(names() if exact else ()):
            row |= {"port": port, "reference": reference, "order": order, "layer": port or "loss"}
            for quantity in ("gradient by output", "gradient by input"):
                yield _training("gradients", random_, size, quantity=quantity, **row)


def _optimizer(random_: random.Random, runs: tuple[str, ...]) -> Iterator[Comparison]:
    for run in runs:
        row = {"case": f"{CASE}, {run}", "layer": "optimizer", "limit": 1e-10, "tolerance": "optimizer"}
        for step in (1, 5):
            for order, (port, reference) in enumerate(parameters()):
                row |= {"order": order, "port": port, "reference": reference}
                for quantity in ("change", "exp_avg", "exp_avg_sq"):
                    yield _training("optimizer", random_, 1e-13, quantity=f"{quantity} after step {step}", **row)
            row |= {"port": "", "reference": ""}
            exact = row | {"error": 0.0, "peak": 0.0, "limit": 0.0, "tolerance": "exact"}
            yield _training("optimizer", random_, 0.0, quantity=f"step counters at step {step}", **exact)
            rates = row | {"layer": "schedule", "limit": 1e-12, "tolerance": "float64"}
            yield _training("optimizer", random_, 1e-16, quantity=f"learning rates at step {step}", **rates)


def _state(random_: random.Random) -> Iterator[Comparison]:
    for step in (1, 5):
        for order, (port, reference) in enumerate((p, r) for p, r in names() if p.endswith("block.norm")):
            for name in ("running_mean", "running_var"):
                yield _training(
                    "state",
                    random_,
                    1e-15 * step,
                    reading=Reading.STATE if step == 1 else Reading.ACCUMULATED,
                    order=order,
                    port=f"{port}.{name}",
                    reference=f"{reference}/{name}",
                    layer=port if step == 1 else "",
                    quantity=f"{name} after step {step}",
                    limit=1e-10,
                    tolerance="state",
                )


def _trajectory(random_: random.Random) -> Iterator[Comparison]:
    for precision, size, floor in (("float64", 3e-16, 8.9e-16), ("float32", 1e-7, 4.8e-7)):
        drift = dict.fromkeys(QUANTITIES, size)
        for step in range(1, STEPS + 1):
            for quantity in QUANTITIES:
                drift[quantity] *= random_.uniform(1.0, 1.2)
                error = drift[quantity] * random_.uniform(0.4, 1.3)
                yield _training(
                    "trajectory",
                    random_,
                    0.0,
                    error=error,
                    peak=error,
                    reading=Reading.ACCUMULATED,
                    precision=precision,
                    order=step,
                    port="",
                    reference="",
                    quantity=f"{quantity} at step {step}",
                    reference_error=drift[quantity],
                    limit=max(4 * drift[quantity], floor),
                    tolerance=f"trajectory_{precision}",
                )


def training_runs(shift: float = 0.0, seeds: tuple[int, ...] = SEEDS) -> tuple[Run, ...]:
    """Runs of both sides; the port's last values differ by ``shift``."""
    random_ = random.Random(1)
    runs = []
    for seed in seeds:
        common = random_.gauss(0, 0.008)
        for side in Side:
            more = shift if side is Side.PORT else 0.0
            losses = [0.95 + common, 0.78, 0.69, 0.65 + common + more]
            pearsons = [0.02, 0.45, 0.66, 0.72 - 2 * common - more]
            runs.append(
                Run(
                    side=side,
                    seed=seed,
                    losses=tuple(value + random_.gauss(0, 0.005) for value in losses),
                    pearsons=tuple(value + random_.gauss(0, 0.01) for value in pearsons),
                )
            )
    return tuple(runs)


def with_runs(result: Result, runs: tuple[Run, ...], seeds: tuple[int, ...] = SEEDS) -> Result:
    """The result with the convergence gate that these runs give."""
    rows = tuple(judge_convergence(runs, MARGINS, seeds=seeds, case="planted motifs"))
    failed = sum(row.status is not Status.PASS for row in rows)
    gate = Gate(
        name=CONVERGENCE,
        status=GateStatus.FAILED if failed else GateStatus.PASSED,
        reason=f"{failed} of {len(rows)} comparisons do not pass" if failed else "",
        comparisons=rows,
    )
    return dataclasses.replace(
        result,
        gates={**result.gates, CONVERGENCE: gate},
        runs=runs,
        equivalences=tuple(find_equivalences(runs, MARGINS, seeds=seeds).values()),
    )


ADAM = ("adam, gradients of size 1", "adamw, gradients of size 1e-08")


@functools.cache
def passing(optimizer_runs: tuple[str, ...] = ADAM) -> Result:
    """A full ladder that passes: some 130 layers, three readings, three precisions, two modes, and training."""
    random_ = random.Random(0)
    layers = [(order, *pair) for order, pair in enumerate(names())]
    blocks = [row for row in layers if row[1].count(".") <= 2 and row[1].startswith(("performer.layers", "conv_tower"))]
    weights = tuple(
        WeightRow(
            key=f"model/{reference}/kernel/.ATTRIBUTES/VARIABLE_VALUE",
            name=f"{port}.weight",
            shape=(64, 32, 5),
            layout="conv1d",
            sha256=f"{order:064x}",
            note="" if order else "first",
        )
        for order, port, reference in layers
        if port
    )
    rows = {
        "weights": tuple(_values("weights", [(row.name, row.key) for row in weights])),
        "constants": tuple(
            _values(
                "constants",
                [
                    ("performer.projection_matrix", "performer/projection_matrix"),
                    ("performer.rotary_table.table", "performer/layer_pos_emb"),
                ],
            )
        ),
        "layers": tuple(_computed(random_, "layers", Reading.ISOLATED, layers)),
        "blocks": tuple(_computed(random_, "blocks", Reading.BLOCK, blocks)),
        "model": tuple(_computed(random_, "model", Reading.ACCUMULATED, layers)),
        "data": tuple(_data()),
        "losses": tuple(_losses(random_)),
        "gradients": tuple(_gradients(random_)),
        "optimizer": tuple(_optimizer(random_, optimizer_runs)),
        "state": tuple(_state(random_)),
        "trajectory": tuple(_trajectory(random_)),
    }
    result = Result(
        pair="EpiBERT, tiny",
        reference="tf_reference on tensorflow 2.21.0, live",
        requested=GATES,
        gates={name: Gate(name=name, status=GateStatus.PASSED, comparisons=found) for name, found in rows.items()},
        not_compared=(
            *(NotCompared(side="reference", name=f"performer/layers/{i}/dropout", reason=OFF) for i in range(7)),
            NotCompared(side="port", name="performer.rotary_table", reason="weightless; its table is a constant"),
        ),
        known_differences=(
            KnownDifference(
                name="c of the tanh GELU",
                reference="0.044715 rounded to float32",
                port="the same",
                bound=5e-9,
                measured=3.1e-10,
                reason="TensorFlow keeps the constant at float32 precision even in float64.",
            ),
        ),
        weights=weights,
        tolerances=TOLERANCES,
        configuration={
            "num_heads": 4,
            "filter_list_seq": [64, 80],
            "kernel_transformation": "relu_kernel_transformation",
        },
        environment={"python": "3.11.2", "torch": "2.13.0", "machine": {"processor": "x86_64", "cores": 2}, "seed": 7},
        seconds={"weights": 0.4, "constants": 0.02, "layers": 61.5, "blocks": 12.1, "model": 33.0},
    )
    return with_runs(result, training_runs())


def forward() -> Result:
    """The same without training: neither asked for nor run."""
    result = passing()
    unasked = {name: Gate(name=name, status=GateStatus.NOT_RUN, reason="not asked for") for name in GATES}
    gates = unasked | {name: result.gates[name] for name in FORWARD_GATES}
    return dataclasses.replace(result, requested=FORWARD_GATES, gates=gates, runs=(), equivalences=())


def _from_here_blocked(result: Result, name: str, culprits: tuple[Culprit, ...] = ()) -> Result:
    """The result in which a gate fails: what follows is blocked, and there are no runs."""
    later = {
        gate: dataclasses.replace(
            result.gates[gate], status=GateStatus.BLOCKED, reason=f"the gate {name!r} did not pass"
        )
        for gate in GATES[GATES.index(name) + 1 :]
    }
    if CONVERGENCE in later:
        later[CONVERGENCE] = dataclasses.replace(later[CONVERGENCE], comparisons=())
        result = dataclasses.replace(result, runs=(), equivalences=())
    return dataclasses.replace(result, gates={**result.gates, **later}, culprit_rows=culprits)


def changed(name: str, change) -> Result:
    """``passing()`` with ``change(row)`` applied to each comparison of one gate, and what follows from it."""
    result = passing()
    gate = replace_rows(result.gates[name], change)
    reason = f"{len(gate.failures)} of {len(gate.comparisons)} comparisons do not pass"
    result = dataclasses.replace(result, gates={**result.gates, name: dataclasses.replace(gate, reason=reason)})
    owners = {row.layer: row for row in gate.failures if row.reading is not Reading.ACCUMULATED}
    culprits = tuple(
        Culprit(port=owner, reference=row.reference, gates=(name,), worst=row) for owner, row in owners.items()
    )
    return _from_here_blocked(result, name, culprits)


def wrong_gradients() -> Result:
    """One layer's backward pass is wrong, in isolation and all the way down from it; a hostile name among them."""

    def change(row: Comparison) -> Comparison:
        if row.layer == "performer.layers.3.norm" and row.quantity.startswith("gradient"):
            return dataclasses.replace(row, status=Status.FAIL, error=2e-3, detail="largest difference at (0,)")
        if row.layer == "performer.layers.2.norm" and row.quantity == "gradient":
            return dataclasses.replace(
                row, port=HOSTILE, reference=HOSTILE, layer=HOSTILE, status=Status.FAIL, error=1e-3, detail=HOSTILE
            )
        if row.layer == "performer.layers.1.norm" and row.quantity == "gradient":
            return dataclasses.replace(row, status=Status.MISSING, error=None, limit=None, detail="no such array")
        return row

    return changed("gradients", change)


def wrong_optimizer() -> Result:
    """Epsilon is in the wrong place, which shows where gradients are small."""

    def change(row: Comparison) -> Comparison:
        if row.quantity.startswith("change") and "1e-08" in row.case:
            return dataclasses.replace(row, status=Status.FAIL, error=0.3)
        return row

    return changed("optimizer", change)


def leaving() -> Result:
    """The run leaves the envelope at step 20."""

    def change(row: Comparison) -> Comparison:
        if row.order >= 20 and row.quantity.startswith(("weights", "loss")):
            return dataclasses.replace(
                row, status=Status.FAIL, error=40 * (row.reference_error or 0), detail="most of it in stem_conv.weight"
            )
        return row

    return changed("trajectory", change)


def different() -> Result:
    """Every gate passes but the last: the port arrives elsewhere."""
    return with_runs(passing(), training_runs(shift=0.02))


def broken_run() -> Result:
    """A run of the port ends with an error."""
    first, *others = training_runs()
    assert first.side is Side.REFERENCE
    second, *others = others
    ended = dataclasses.replace(second, losses=(), pearsons=(), error=f"ValueError: {HOSTILE}")
    return with_runs(passing(), (first, ended, *others))


def full_size() -> Result:
    """As many rows as a run on the recorded cases has."""
    return passing(tuple(f"adam, gradients of size 1e{power}" for power in range(-8, 8)))


def replace_rows(gate: Gate, change) -> Gate:
    """The gate with ``change(row)`` applied to each comparison, failed if one of them does not pass any more."""
    rows = tuple(change(row) for row in gate.comparisons)
    failed = any(row.status is not Status.PASS for row in rows)
    return dataclasses.replace(gate, comparisons=rows, status=GateStatus.FAILED if failed else GateStatus.PASSED)


def failing() -> Result:
    """Two culprits, NaN, a missing layer, a failed, a blocked and an unrun gate, and hostile names."""
    result = passing()
    wrong = "performer.layers.2.attention"

    def change(row: Comparison) -> Comparison:
        if row.port == wrong:
            error = 2.13e-4 * (1 + row.order / 1000) if row.precision != "bfloat16" else row.error
            status = Status.PASS if row.precision == "bfloat16" else Status.FAIL
            return dataclasses.replace(row, status=status, error=error, peak=error)
        if row.port == "performer.layers.4.norm" and row.precision == "float64":
            return dataclasses.replace(row, status=Status.FAIL, error=3.3e-6)
        if row.port == "performer.layers.5.ffn.narrow" and row.precision == "bfloat16":
            return dataclasses.replace(
                row, status=Status.NON_FINITE, error=math.nan, peak=math.inf, detail="12 of 4096 are NaN"
            )
        if row.port == "final_pointwise_conv.conv":
            return dataclasses.replace(
                row, status=Status.MISSING, error=None, peak=None, shape=None, detail="the port never calls it"
            )
        if row.port == "performer.layers.6.norm":
            return dataclasses.replace(
                row, port=HOSTILE, layer=HOSTILE, reference=HOSTILE, status=Status.FAIL, error=1e-3, detail=HOSTILE
            )
        return row

    layers = replace_rows(result.gates["layers"], change)
    layers = dataclasses.replace(
        layers, reason=f"{len(layers.failures)} of {len(layers.comparisons)} comparisons did not pass"
    )
    gates = dict(result.gates) | {
        "layers": layers,
        "blocks": dataclasses.replace(
            result.gates["blocks"], status=GateStatus.BLOCKED, reason="gate layers did not pass"
        ),
        "model": Gate(name="model", status=GateStatus.NOT_RUN, reason="stopped by hand"),
        **{
            name: Gate(name=name, status=GateStatus.BLOCKED, reason="the gate 'layers' did not pass")
            for name in ("data", *TRAINING_GATES, CONVERGENCE)
        },
    }

    def culprit(port: str) -> Culprit:
        rows = [row for row in layers.failures if row.port == port]
        worst = max(rows, key=lambda row: math.inf if row.error is None else row.error / (row.limit or 1))
        return Culprit(port=port, reference=worst.reference, gates=("layers",), worst=worst)

    ports = wrong, "performer.layers.4.norm", "performer.layers.5.ffn.narrow", HOSTILE, "final_pointwise_conv.conv"
    return dataclasses.replace(
        result,
        gates=gates,
        runs=(),
        equivalences=(),
        culprit_rows=tuple(map(culprit, ports)),
        weights=(
            *result.weights,
            WeightRow(key=HOSTILE, name=HOSTILE, shape=(1,), layout="same", sha256="0" * 64, note=HOSTILE),
        ),
        not_compared=(*result.not_compared, NotCompared(side="port", name=HOSTILE, reason=HOSTILE)),
        environment={**result.environment, HOSTILE: HOSTILE},
        campaign={
            "passed": False,
            "summary": ["faults: 5, caught 4"],
            "matrix": {"layers": {"layers": 3, "model": 1}, HOSTILE: {"not caught": 1}},
            "survivors": {HOSTILE: HOSTILE},
            "alarms": [f"seed 1: {HOSTILE}"],
            "same_sources": False,
        },
        reference=f"{result.reference} {HOSTILE}",
    )


def empty() -> Result:
    """All gates are there, say that they passed, and hold nothing."""
    gates = {name: Gate(name=name, status=GateStatus.PASSED) for name in GATES}
    return Result(pair="empty", reference="none", requested=GATES, gates=gates)


def nothing_asked() -> Result:
    """No gate was asked for."""
    gates = {name: Gate(name=name, status=GateStatus.NOT_RUN, reason="not asked for") for name in GATES}
    return Result(pair="nothing", reference="none", requested=(), gates=gates)
