"""Made-up results for the tests of the report: one that passes, one that fails in many ways, and the corner cases."""

import dataclasses
import math
import random
from collections.abc import Iterator

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
GATES = ("weights", "constants", "layers", "blocks", "model")
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
}


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


def passing() -> Result:
    """A full ladder that passes: some 130 layers, three readings, three precisions, two modes."""
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
    }
    return Result(
        pair="EpiBERT, tiny",
        reference="tf_reference on tensorflow 2.21.0, live",
        requested=GATES,
        gates={name: Gate(name=name, status=GateStatus.PASSED, comparisons=rows[name]) for name in GATES},
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
    }

    def culprit(port: str) -> Culprit:
        rows = [row for row in layers.failures if row.port == port]
        worst = max(rows, key=lambda row: math.inf if row.error is None else row.error / (row.limit or 1))
        return Culprit(port=port, reference=worst.reference, gates=("layers",), worst=worst)

    ports = wrong, "performer.layers.4.norm", "performer.layers.5.ffn.narrow", HOSTILE, "final_pointwise_conv.conv"
    return dataclasses.replace(
        result,
        gates=gates,
        culprit_rows=tuple(map(culprit, ports)),
        weights=(
            *result.weights,
            WeightRow(key=HOSTILE, name=HOSTILE, shape=(1,), layout="same", sha256="0" * 64, note=HOSTILE),
        ),
        not_compared=(*result.not_compared, NotCompared(side="port", name=HOSTILE, reason=HOSTILE)),
        environment={**result.environment, HOSTILE: HOSTILE},
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
