"""EpiBERT: which layer, weight and constant of the port answers to which of the reference.

TensorFlow is needed for living references only, and imported there.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.compare import compare
from parity.keras_side import POLICIES
from parity.ladder import compare_array, compare_recorded
from parity.layer_map import LayerMap, LayerPair
from parity.records import Comparison, KnownDifference, NotCompared, Reading, Status, WeightRow
from parity.reference import Goldens
from parity.tolerances import TABLE
from parity.torch_side import DTYPES, TorchSide
from parity.trace import Trace
from torch_impl import EpiBERTConfig, EpiBERTRampage
from torch_impl.model import OWN_CONSTANTS, BatchNorm, ErfGELU, TanhGELU, Trunk
from torch_impl.random import projection_matrix, rotary_table
from weights.table import RAMPAGE_TABLE, kind_of
from weights.table import TABLE as PRETRAIN_TABLE
from weights.table import rows as weight_rows

NAME = "EpiBERT"
SOFTPLUS_THRESHOLD = 20.0
NO_DROPOUT = {"dropout_rate": 0.0, "pointwise_dropout_rate": 0.0, "motif_dropout_rate": 0.0}


# --- the layer map ---------------------------------------------------------------------------------------------------


def layer_map_of(port: Trunk) -> LayerMap:
    """The layer map of the model's kind and configuration."""
    return layer_map(port.config, rampage=isinstance(port, EpiBERTRampage))


def layer_map(config: EpiBERTConfig, *, rampage: bool = False) -> LayerMap:
    """Every layer of the model, in order of execution; a module stands before what it contains.

    Args:
        config: Configuration of the port.
        rampage: Whether it is the fine-tuning model. Its Dropout, GELU and crop have one row each and are called once
            by every head, first by the ATAC head.
    """

    def conv_block(port: str, reference: str, *, block: bool = False) -> list[LayerPair]:
        statistics = (("running_mean", "moving_mean"), ("running_var", "moving_variance"))
        return [
            LayerPair(port=port, reference=reference, block=block),
            LayerPair(port=f"{port}.norm", reference=f"{reference}/0", state=statistics),
            LayerPair(port=f"{port}.activation", reference=f"{reference}/1"),
            LayerPair(port=f"{port}.conv", reference=f"{reference}/2"),
        ]

    def softmax_pool(port: str, reference: str) -> list[LayerPair]:
        return [
            LayerPair(port=port, reference=reference),
            LayerPair(port=f"{port}.logits", reference=f"{reference}/dense"),
        ]

    def stem(suffix: str) -> list[LayerPair]:
        residual = f"stem_res_conv{suffix}"
        return [
            LayerPair(port=f"stem_conv{suffix}", reference=f"stem_conv{suffix}"),
            LayerPair(port=residual, reference=residual, block=True),
            *conv_block(f"{residual}.block", f"{residual}/_layer"),
        ]

    def same(name: str) -> LayerPair:
        return LayerPair(port=name, reference=name)

    def tower_block(tower: str, index: int, pool: list[LayerPair]) -> list[LayerPair]:
        port, reference = f"{tower}.{index}", f"{tower}/{index}"
        block = conv_block(f"{port}.block", f"{reference}/0")
        return [LayerPair(port=port, reference=reference, block=True), *block, *pool]

    def whole_tower(tower: str, blocks: int) -> LayerPair:
        return LayerPair(port=f"{tower}.{blocks - 1}", reference=tower, alias=True)

    def transformer_layer(index: int) -> list[LayerPair]:
        port, reference = f"performer.layers.{index}", f"performer/layers/{index}"
        attention, attention_reference = f"{port}.attention", f"{reference}/self_attention"
        features = ("output", "k_prime", "q_prime")
        rows = [
            LayerPair(port=port, reference=reference, outputs=features, block=True),
            LayerPair(port=f"{port}.norm", reference=f"{reference}/layer_norm"),
            LayerPair(port=attention, reference=attention_reference, outputs=features),
            *(
                LayerPair(port=f"{attention}.{name}", reference=f"{attention_reference}/{name}_dense_layer")
                for name in ("query", "key", "value")
            ),
        ]
        if config.use_rot_emb:
            rows.append(LayerPair(port=f"{attention}.rotary", reference=f"{attention_reference}/rotary", inputs=2))
        rows += [
            LayerPair(port=f"{attention}.features", reference=f"{attention_reference}/feature_map"),
            LayerPair(port=f"{attention}.output", reference=f"{attention_reference}/output_dense_layer"),
            LayerPair(port=f"{port}.dropout", reference=f"{reference}/dropout"),
            LayerPair(port=f"{port}.ffn", reference=f"{reference}/FFN"),
            LayerPair(port=f"{port}.ffn.norm", reference=f"{reference}/FFN/FFN_layer_norm"),
            LayerPair(port=f"{port}.ffn.wide", reference=f"{reference}/FFN/FFN_dense_wide"),
            LayerPair(port=f"{port}.ffn.dropout", reference=f"{reference}/FFN/dropout"),
            LayerPair(port=f"{port}.ffn.activation", reference=f"{reference}/FFN/relu"),
            LayerPair(port=f"{port}.ffn.narrow", reference=f"{reference}/FFN/FFN_dense_narrow"),
        ]
        return rows

    finals = ("final_atac", "final_rna") if config.predict_atac else ("final_rna",)
    root = LayerPair(port="", reference="", inputs=0, outputs=finals if rampage else ("output",))
    pairs = [root, *stem(""), *softmax_pool("stem_pool", "stem_pool")]
    for index in range(len(config.filter_list_seq)):
        pool = softmax_pool(f"conv_tower.{index}.pool", f"conv_tower/{index}/1")
        pairs += tower_block("conv_tower", index, pool)
    pairs += [whole_tower("conv_tower", len(config.filter_list_seq)), *stem("_atac"), same("stem_pool_atac")]
    for index in range(len(config.filter_list_atac)):
        pool = [LayerPair(port=f"conv_tower_atac.{index}.pool", reference=f"conv_tower_atac/{index}/1")]
        pairs += tower_block("conv_tower_atac", index, pool)
    pairs += [
        whole_tower("conv_tower_atac", len(config.filter_list_atac)),
        *map(same, ("motif_activity_fc1", "motif_dropout1", "motif_activity_fc2", "motif_dropout2")),
        same("pre_transformer_projection"),
        same("performer"),
    ]
    if config.use_rot_emb and config.num_transformer_layers:
        # Its argument only tells length and dtype; the table that comes out is what counts.
        pairs.append(LayerPair(port="performer.rotary_table", reference="performer/layer_pos_emb"))
    for index in range(config.num_transformer_layers):
        pairs += transformer_layer(index)
    if config.norm:
        pairs.append(LayerPair(port="performer.norm", reference="performer/layer_norm"))
    heads = [""] if not rampage else ["", "_rna"] if config.predict_atac else ["_rna"]
    for suffix in heads:
        pointwise, profile = f"final_pointwise_conv{suffix}", f"final_dense_profile{suffix}"
        pairs += conv_block(pointwise, pointwise, block=True)
        # The layers that the heads share stand with the head that calls them first.
        pairs += map(same, ("dropout", "gelu", profile, "crop_final") if suffix == heads[0] else (profile,))
    return LayerMap(pairs=tuple(pairs))


def unmapped_modules(port: nn.Module, mapped: LayerMap) -> tuple[NotCompared, ...]:
    """Modules of the port without a row of their own, by name."""
    names = {pair.port for pair in mapped}
    return tuple(
        NotCompared(side="port", name=name, reason=f"compared as a part of {mapped.owner(name) or NAME}")
        for name, module in port.named_modules()
        if name not in names and not isinstance(module, nn.ModuleList)
    )


# --- precision and constants -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def set_precision(module: nn.Module, precision: str) -> Iterator[None]:
    """The port in a precision; bfloat16 as the original computes it, with float32 parameters."""
    if not isinstance(module, Trunk):
        raise TypeError(f"expected an EpiBERT or EpiBERTRampage, not {type(module).__name__}")
    kept = module.compute_dtype
    module.to(torch.float64 if precision == "float64" else torch.float32)
    module.compute_dtype = DTYPES[precision]
    try:
        yield
    finally:
        module.compute_dtype = kept


def watch(port: Trunk) -> TorchSide:
    """The port with its layers watched."""
    return watch_as(port, layer_map_of(port))


def watch_as(port: Trunk, mapped: LayerMap) -> TorchSide:
    """The port with the layers of a map watched."""
    return TorchSide(port, mapped, set_precision)


@contextlib.contextmanager
def constants(port: Trunk, projection: np.ndarray, table: np.ndarray | None, origin: str) -> Iterator[None]:
    """Lends other constants to the port."""
    kept_projection = port.performer.projection_matrix.clone()
    kept_table = None if port.performer.rotary_table is None else port.performer.rotary_table.table.clone()
    kept_origin = port.constants_origin
    port.set_constants(torch.from_numpy(projection), None if table is None else torch.from_numpy(table), origin=origin)
    try:
        yield
    finally:
        port.set_constants(kept_projection, kept_table, origin=kept_origin)


def own_constants(config: EpiBERTConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """Projection matrix and rotary table as the port makes them without TensorFlow."""
    projection = projection_matrix(config.num_random_features, config.head_size, int(config.seed))
    table = rotary_table(config.max_seq_length + 1, config.head_size, bfloat16=config.rotary_bfloat16)
    return projection, table if config.use_rot_emb else None


def compare_constants(
    port: Trunk, projection: np.ndarray, table: np.ndarray | None, *, case: str = ""
) -> Iterator[Comparison]:
    """The constants rung: bit for bit when they were exported, within the bounds of our own when they were not."""
    own = port.constants_origin == OWN_CONSTANTS
    performer = port.performer
    rotary = performer.rotary_table
    arrays: list[tuple[str, torch.Tensor | None, np.ndarray | None, str]] = [
        ("performer.projection_matrix", performer.projection_matrix, projection, "own_projection")
    ]
    if table is not None or rotary is not None:
        port_table = None if rotary is None else rotary.table
        arrays.append(("performer.rotary_table.table", port_table, table, "own_rotary_table"))
    for name, found, expected, tolerance in arrays:
        yield compare(
            None if found is None else found.detach().cpu().double().numpy(),
            None if expected is None else expected.astype(np.float64),
            gate="constants",
            reading=Reading.VALUE,
            precision="exact",
            tolerance=tolerance if own else "exact",
            reference_path=name,
            port_path=name,
            layer=name.rpartition(".")[0],
            quantity="constant",
            case=case,
        )


# --- weights ---------------------------------------------------------------------------------------------------------


def compare_weights(port: Trunk, stored: Mapping[str, np.ndarray], *, case: str = "") -> Iterator[Comparison]:
    """The weights rung: every stored tensor against the port's, bit for bit, none left over on either side.

    Args:
        port: The port.
        stored: {checkpoint key without suffix: array} of the model's tensors, all of them.
        case: Name of the case.
    """
    state = {name: value for name, value in port.state_dict().items() if not name.startswith(_CONSTANT_NAMES)}
    table = weight_rows(port.config, kind_of(port).table)
    common = {
        "gate": "weights",
        "reading": Reading.VALUE,
        "precision": "exact",
        "tolerance": "exact",
        "case": case,
        "quantity": "weight",
    }
    for order, row in enumerate(table):
        found = state[row.name].detach().cpu().double().numpy() if row.name in state else None
        expected = stored.get(row.path)
        yield compare(
            found,
            None if expected is None else row.layout.to_port(np.asarray(expected, dtype=np.float64)),
            reference_path=row.path,
            port_path=row.name,
            layer=row.name.rpartition(".")[0],
            order=order,
            **common,
        )
    for name in sorted(set(state) - {row.name for row in table}):
        detail = "no row of the weight map fills this tensor of the port"
        layer = name.rpartition(".")[0]
        yield compare(None, None, reference_path="", port_path=name, layer=layer, detail=detail, **common)
    for key in sorted(set(stored) - {row.path for row in table}):
        detail = "no row of the weight map uses this tensor of the reference"
        yield compare(None, None, reference_path=key, port_path="", layer="", detail=detail, **common)


_CONSTANT_NAMES = ("performer.projection_matrix", "performer.rotary_table.", "performer._extra_state")


def weight_map(
    config: EpiBERTConfig, stored: Mapping[str, np.ndarray], *, rampage: bool = False
) -> tuple[WeightRow, ...]:
    """The weight map with the hash of every stored tensor, for the report."""
    return tuple(
        WeightRow(
            key=row.path,
            name=row.name,
            shape=tuple(stored[row.path].shape),
            layout=row.layout.name,
            sha256=hashlib.sha256(np.ascontiguousarray(stored[row.path]).tobytes()).hexdigest(),
        )
        for row in weight_rows(config, RAMPAGE_TABLE if rampage else PRETRAIN_TABLE)
        if row.path in stored
    )


# --- living reference ------------------------------------------------------------------------------------------------


def matches(reference: Any, port: nn.Module) -> bool:
    """Whether this module binds the two."""
    same_kind = type(reference).__name__ == ("EpiBERTRampage" if isinstance(port, EpiBERTRampage) else "EpiBERT")
    return isinstance(port, Trunk) and same_kind and hasattr(reference, "get_constants")


def new_reference(
    config: EpiBERTConfig,
    precision: str,
    *,
    dropout: bool = False,
    rampage: bool = False,
    inputs: Sequence[np.ndarray] | None = None,
) -> Any:
    """The TensorFlow model with weights of its own drawing.

    Args:
        config: As for ``build_reference``, and so are the others.
        precision: Precision.
        dropout: Keep the configuration's rates.
        rampage: Whether it is the fine-tuning model.
        inputs: As for ``with_variables``.
    """
    import tf_reference

    rates = {} if dropout else NO_DROPOUT
    arguments: dict[str, Any] = {**original_arguments(config), **rates, "dtype": POLICIES[precision]}
    if rampage:
        model = tf_reference.EpiBERTRampage(**arguments, predict_atac=config.predict_atac)
    else:
        model = tf_reference.EpiBERT(**arguments)
    return with_variables(model, config.num_motifs, inputs)


def with_variables(model: Any, num_motifs: int, inputs: Sequence[np.ndarray] | None = None) -> Any:
    """A model with its variables made.

    Args:
        model: The model, that was not called yet.
        num_motifs: Length of the motif vector.
        inputs: Small inputs to run it on, which takes half as long as the graph that is built without them.
    """
    if inputs is None:
        return model.build_weights(num_motifs)
    import tensorflow as tf

    model(tuple(tf.constant(array, model.compute_dtype) for array in inputs), training=False)
    return model


def build_reference(
    config: EpiBERTConfig,
    stored: Mapping[str, np.ndarray],
    precision: str,
    *,
    projection: np.ndarray | None = None,
    table: np.ndarray | None = None,
    dropout: bool = False,
    rampage: bool = False,
    inputs: Sequence[np.ndarray] | None = None,
) -> Any:
    """The TensorFlow model with given weights, in a precision.

    Args:
        config: Configuration of the port; its fields that the original's constructor lacks are left out.
        stored: {checkpoint key without suffix: array}.
        precision: ``float64``, ``float32`` or ``bfloat16``.
        projection: Projection matrix; TensorFlow's own when None.
        table: Rotary table; TensorFlow's own when None.
        dropout: Keep the configuration's rates; all are 0 otherwise.
        rampage: Whether it is the fine-tuning model.
        inputs: As for ``with_variables``.
    """
    model = new_reference(config, precision, dropout=dropout, rampage=rampage, inputs=inputs)
    model.assign(stored)
    if projection is not None:
        model.set_constants(projection, model.get_constants()[1] if table is None else table)
    return model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A pair ready to be compared.

    Attributes:
        models: The reference in every precision: copies with the same weights and constants.
        comparisons: Those of weights and constants.
        lent: While entered, the port computes with the reference's constants; None when it has them already.
        not_compared: What is left out.
        configuration: Constructor arguments of the reference.
        weights: The weight map.
    """

    models: Mapping[str, Any]
    comparisons: list[Comparison]
    lent: contextlib.AbstractContextManager[None] | None
    not_compared: tuple[NotCompared, ...]
    configuration: Mapping[str, Any]
    weights: tuple[WeightRow, ...]


def prepare(reference: Any, port: Trunk, precisions: Sequence[str] | None = None, *, case: str = "") -> Prepared:
    """Weights and constants compared, the reference copied into every precision.

    A port with constants of its own making is judged on them as such; its layers are then compared with the reference's
    constants, or every attention layer would be blamed for the table it was given.
    """
    stored = {key: variable.numpy() for key, variable in reference.checkpoint_variables().items()}
    projection, table = reference.get_constants()
    comparisons = [
        *compare_weights(port, stored, case=case),
        *compare_constants(port, projection, table, case=case),
        *compare_configurations(port.config, reference.get_config(), case=case),
    ]
    lent = None
    if port.constants_origin == OWN_CONSTANTS and fit(port, projection, table):
        lent = constants(port, projection, table if port.config.use_rot_emb else None, "lent by the reference")
    return Prepared(
        models=lift(reference, stored, precisions or tuple(POLICIES)),
        comparisons=comparisons,
        lent=lent,
        not_compared=unmapped_modules(port, layer_map_of(port)),
        configuration=reference.get_config(),
        weights=weight_map(port.config, stored, rampage=isinstance(port, EpiBERTRampage)),
    )


def fit(port: Trunk, projection: np.ndarray, table: np.ndarray | None) -> bool:
    """Whether constants have the port's shapes; if not, the rung of constants says so."""
    rotary = port.performer.rotary_table
    if rotary is not None and (table is None or table.shape != tuple(rotary.table.shape)):
        return False
    return projection.shape == tuple(port.performer.projection_matrix.shape)


DEAD_ARGUMENTS = ("input_length", "numerical_stabilizer", "normalize", "num_motifs", "name", "dtype")
"""Arguments of the original that change nothing, or that the weights tell already."""


def compare_configurations(
    config: EpiBERTConfig, arguments: Mapping[str, Any], *, case: str = ""
) -> Iterator[Comparison]:
    """Every constructor argument that has an effect, the port's against the reference's."""
    for name, expected in arguments.items():
        if name in DEAD_ARGUMENTS:
            continue
        found = getattr(config, name)
        same = tuple(found) == tuple(expected) if isinstance(expected, list | tuple) else found == expected
        yield Comparison(
            gate="constants",
            case=case,
            reading=Reading.VALUE,
            precision="exact",
            reference=name,
            port=name,
            quantity="argument",
            layer="",
            status=Status.PASS if same else Status.FAIL,
            tolerance="exact",
            detail="" if same else f"expected {expected!r}, got {found!r}",
        )


@contextlib.contextmanager
def drawn_weights(port: Trunk, reference: Any, seed: int = 0) -> Iterator[None]:
    """Gives port and reference the same drawn weights for a while.

    A fresh model's weights hide mistakes: its query, key and value projections are equal, its norms do nothing. Drawn
    ones have no two tensors alike, no unit scales and no default statistics.
    """
    kept = {key: variable.numpy() for key, variable in reference.checkpoint_variables().items()}
    state = {name: tensor.clone() for name, tensor in port.state_dict().items()}
    drawn = draw_weights(reference, seed)
    reference.assign(drawn)
    filled = port.state_dict()
    with torch.no_grad():
        for row in weight_rows(port.config, kind_of(port).table):
            if row.name in filled and row.path in drawn:
                values = torch.from_numpy(np.array(row.layout.to_port(drawn[row.path])))
                if filled[row.name].shape == values.shape:
                    filled[row.name].copy_(values)
    try:
        yield
    finally:
        reference.assign(kept)
        port.load_state_dict(state)


def draw_weights(reference: Any, seed: int) -> dict[str, np.ndarray]:
    """Weights for every variable of a reference: {checkpoint key: array}, float32."""
    generator = np.random.default_rng(seed)
    shapes = {key: tuple(variable.shape) for key, variable in reference.checkpoint_variables().items()}
    return {key: _draw(key, shape, generator) for key, shape in sorted(shapes.items())}


def _draw(key: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    name = key.rpartition("/")[2]
    if name == "kernel":
        # Of query, key and value kernels (C, H, D) only the first axis is summed over.
        heads_in = any(f"/{part}_dense_layer/" in key for part in ("query", "key", "value"))
        fan_in = shape[0] if heads_in else int(np.prod(shape[:-1]))
        return (generator.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    if name in ("gamma", "moving_variance"):
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    # Softplus is told from its linear branch only where that begins, at 20 in PyTorch.
    center = SOFTPLUS_THRESHOLD if "/final_dense_profile" in key else 0.0
    return generator.normal(center, 0.2, shape).astype(np.float32)


def lift(
    reference: Any,
    stored: Mapping[str, np.ndarray],
    precisions: Sequence[str],
    inputs: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """Copies of the reference with given weights and its own constants, dropout off, most precise first.

    Args:
        reference: The reference.
        stored: Its tensors by checkpoint key.
        precisions: Precisions.
        inputs: As for ``with_variables``.

    Raises:
        ValueError: A precision is unknown, or none is given.
    """
    unknown = sorted(set(precisions) - set(POLICIES))
    if unknown or not precisions:
        raise ValueError(f"unknown precisions {unknown}; there are {', '.join(POLICIES)}")
    models = {}
    for precision in (name for name in POLICIES if name in precisions):
        model = type(reference).from_config({**reference.get_config(), **NO_DROPOUT, "dtype": POLICIES[precision]})
        with_variables(model, stored["model/motif_activity_fc1/kernel"].shape[0], inputs)
        model.assign(stored)
        model.set_constants(*reference.get_constants())
        models[precision] = model
    return models


def original_arguments(config: EpiBERTConfig) -> dict[str, Any]:
    """The constructor arguments that both original models have, among the fields of a configuration."""
    names = [field.name for field in dataclasses.fields(EpiBERTConfig)]
    original = names[: names.index("name") + 1]
    return {name: getattr(config, name) for name in original}


def synthetic_inputs(config: EpiBERTConfig, *, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs like real ones: bases with a few unknown, sparse non-negative accessibility with peaks, motifs in [0, 1].

    All values are bfloat16-representable, so that every precision sees the same numbers.

    Returns:
        sequence (B, L, 4), atac (B, A, 1), motif_activity (B, 1, N), float32.
    """
    generator = np.random.default_rng(seed)
    bases = generator.choice(5, size=(batch, config.sequence_length), p=[0.249, 0.249, 0.249, 0.249, 0.004])
    signal = generator.gamma(0.3, 4.0, size=(batch, config.atac_length, 1))
    signal[generator.random(signal.shape) < 0.5] = 0.0
    motifs = generator.random((batch, 1, config.num_motifs))
    return one_hot(bases), _bfloat16(signal), _bfloat16(motifs)


def one_hot(bases: np.ndarray) -> np.ndarray:
    """Base indices 0..3 for A, C, G, T as float32 rows; anything else is a zero row."""
    return (bases[..., None] == np.arange(4)).astype(np.float32)


def _bfloat16(array: np.ndarray) -> np.ndarray:
    return torch.from_numpy(array).to(torch.bfloat16).to(torch.float32).numpy()


# --- recorded reference ----------------------------------------------------------------------------------------------


def recorded_inputs(recording: Goldens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The model's arguments in a recording."""
    inputs = recording.inputs
    return one_hot(inputs["sequence"]), inputs["atac"], inputs["motif_activity"]


def recorded_constants(recording: Goldens) -> tuple[np.ndarray, np.ndarray]:
    """Projection matrix and rotary table of a recording, float32.

    Raises:
        ValueError: The layers were recorded with different projection matrices.
    """
    matrices = [value for name, value in recording.constants.items() if name.startswith("projection_matrix_")]
    if any(not np.array_equal(matrices[0], matrix) for matrix in matrices[1:]):
        raise ValueError("the recorded layers have different projection matrices; the model has one")
    return matrices[0], recording.constants["rotary_table_bfloat16"]


def compare_with_recording(port: Trunk, recording: Goldens, *, case: str = "") -> Iterator[Comparison]:
    """Layers, blocks and model against recorded numbers, with the constants of the recording."""
    projection, table = recorded_constants(recording)
    mapped = layer_map_of(port)
    named = {row.path: row.name for row in weight_rows(port.config, kind_of(port).table)}
    reference_of = {pair.port: pair.reference for pair in mapped if not pair.alias}
    state_names = {"running_mean": "moving_mean", "running_var": "moving_variance"}

    def by_layer(statistics: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        states: dict[str, dict[str, np.ndarray]] = {}
        for key, value in statistics.items():
            layer, _, name = named[key].rpartition(".")
            states.setdefault(reference_of[layer], {})[state_names[name]] = np.asarray(value, dtype=np.float64)
        return states

    state = {precision: by_layer(values) for precision, values in recording.state.items()}
    inputs, absent = recorded_inputs(recording), absent_layers(mapped)
    with constants(port, projection, table, recording.name):
        yield from compare_recorded(watch(port), recording, mapped, inputs, state, absent=absent, case=case)


def absent_layers(mapped: LayerMap) -> tuple[str, ...]:
    """Layers of our reference that are no layers in the original, which computes the same between its layers."""
    return tuple(pair.reference for pair in mapped if pair.reference.endswith(("/rotary", "/feature_map")))


# --- differences that are understood ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundedConstant:
    """A float64 constant that TensorFlow holds at float32 precision.

    Attributes:
        name: What it is.
        exact: The textbook value.
        used: The value that TensorFlow and, by decision, the port compute with.
        training: Whether only a training pass shows it, in the statistics.
        tolerance: Row of the table that bounds its effect.
        module: Type of the port's modules that hold it.
        attribute: Name of the attribute there.
    """

    name: str
    exact: float
    used: float
    training: bool
    tolerance: str
    module: type[nn.Module]
    attribute: str


ROUNDED_CONSTANTS = (
    RoundedConstant(
        name="cubic coefficient of the tanh GELU",
        exact=0.044715,
        used=0.044714998453855515,
        training=False,
        tolerance="rounded_constant",
        module=TanhGELU,
        attribute="cubic_coefficient",
    ),
    RoundedConstant(
        name="scale of the erf GELU",
        exact=2**0.5,
        used=1.4142135381698608,
        training=False,
        tolerance="rounded_constant",
        module=ErfGELU,
        attribute="scale",
    ),
    RoundedConstant(
        name="update rate of the BatchNorm statistics",
        exact=1 - 0.9,
        used=0.10000000149011612,
        training=True,
        tolerance="rounded_update_rate",
        module=BatchNorm,
        attribute="update_rate",
    ),
)
"""Decided once: the port computes with TensorFlow's rounded constants, so nothing else needs room for them."""


def measure_known_differences(
    port: Trunk, inputs: tuple[np.ndarray, ...], *, case: str = ""
) -> tuple[list[KnownDifference], list[Comparison]]:
    """How far each understood difference moves the port's float64 result on these inputs.

    An effect above its bound fails; so does one that has vanished, because then the entry explains nothing.
    """
    side = watch(port)
    differences, comparisons = [], []

    def passes(training: bool) -> Trace:
        return side.trace(inputs, precision="float64", training=training)

    baseline = {training: passes(training) for training in (False, True)}
    for constant in ROUNDED_CONSTANTS:
        holders = [module for module in port.modules() if isinstance(module, constant.module)]
        held = [getattr(module, constant.attribute) for module in holders]
        for module in holders:
            setattr(module, constant.attribute, constant.exact)
        try:
            changed = passes(constant.training)
        finally:
            for module, value in zip(holders, held, strict=True):
                setattr(module, constant.attribute, value)
        row = _effect(constant, changed, baseline[constant.training], case)
        comparisons.append(row)
        differences.append(
            KnownDifference(
                name=f"{case}: {constant.name}" if case else constant.name,
                reference=repr(constant.used),
                port=f"{constant.used!r} (the exact value is {constant.exact!r})",
                bound=TABLE[constant.tolerance].limit,
                measured=row.error,
                reason=TABLE[constant.tolerance].reason,
            )
        )
    return differences, comparisons


def _effect(constant: RoundedConstant, changed: Trace, baseline: Trace, case: str) -> Comparison:
    def observable(trace: Trace) -> np.ndarray | None:
        if not constant.training:
            call = trace.calls.get(("", 0))
            if call is None or not call.outputs:
                return None
            return np.concatenate([np.ravel(np.asarray(output)) for output in call.outputs])
        return np.concatenate([value for state in trace.state.values() for value in state.values()])

    row = compare(
        observable(changed),
        observable(baseline),
        gate="model",
        reading=Reading.ACCUMULATED,
        precision="float64",
        tolerance=constant.tolerance,
        reference_path="",
        port_path="",
        layer="",
        quantity=f"known difference: {constant.name}",
        case=case,
        detail=changed.error or baseline.error,
        mode="training" if constant.training else "evaluation",
    )
    if row.status is Status.PASS and row.error is not None and row.error <= TABLE["float64"].limit:
        return dataclasses.replace(
            row, status=Status.FAIL, detail="no longer needed: the exact constant changes nothing"
        )
    return row


def compare_own_constants(
    port: Trunk, inputs: tuple[np.ndarray, ...], expected: Sequence[np.ndarray], *, case: str = ""
) -> Iterator[Comparison]:
    """The whole model with the constants that a PyTorch-only user gets, against the reference with its own.

    Args:
        port: The port.
        inputs: Its arguments.
        expected: What the reference returned, in its order.
        case: Name of the case.
    """
    with constants(port, *own_constants(port.config), OWN_CONSTANTS):
        trace = watch(port).trace(inputs, precision="float64", training=False)
    call = trace.calls.get(("", 0))
    outputs = () if call is None else call.outputs
    (root,) = (pair for pair in layer_map_of(port) if pair.port == "" and not pair.alias)
    for index in range(max(len(outputs), len(expected), len(root.outputs))):
        name = root.outputs[index] if index < len(root.outputs) else f"output_{index}"
        yield from compare_array(
            outputs[index] if index < len(outputs) else None,
            expected[index] if index < len(expected) else None,
            None,
            gate="model",
            reading=Reading.ACCUMULATED,
            precision="float64",
            tolerance="own_constants",
            reference_path="",
            port_path="",
            layer="",
            quantity=f"{name} with our own constants",
            case=case,
            mode="evaluation",
            detail=trace.error,
        )
