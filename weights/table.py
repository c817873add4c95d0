"""Which tensor of the checkpoint is which tensor of the port: one table, as data (spec, section 6).

`TABLE` lists the pre-training model's layers in Keras' order of trainable variables, `RAMPAGE_TABLE` those of the
fine-tuning model, which has the same groups and one more head. An `Optimizer` lists the groups that it updates in the
order in which it numbers its slots: the k-th trainable variable's first moment is stored as `_variables/<2k+1>`, its
second as `_variables/<2k+2>`. So one set of groups drives weights, gradients and slots, and a `Kind` says which of
them a checkpoint holds.

In a group, `{i}` runs over the elements that `repeat` counts. Paths are those of the object graph, without the suffix
that TensorFlow appends to every key.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch_impl import EpiBERTConfig, EpiBERTRampage
from torch_impl.model import Trunk
from weights.layouts import CONV1D, DENSE, HEADS_IN, HEADS_OUT, IDENTITY, Layout


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor of the model.

    Attributes:
        path: in the checkpoint, without suffix.
        name: in the port's `state_dict`.
        layout: how to rearrange it.
        trainable: a parameter; otherwise a statistic, which has no gradient and no slots.
        alias: another name of the path's last component in the object graph.
    """

    path: str
    name: str
    layout: Layout
    trainable: bool = True
    alias: str | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that occur together, `repeat` times: once, or as often as that part of the configuration says.

    A field of the configuration counts by its number, its length, or as none or one.
    """

    rows: tuple[Row, ...]
    repeat: str | None = None


@dataclass(frozen=True, kw_only=True)
class Counter:
    """One number beside the model.

    Attributes:
        path: in the checkpoint, without suffix.
        name: in the training state.
        dtype: as TensorFlow stores it.
        legacy_path: where Keras' optimizers before version 2.11 keep it.
    """

    path: str
    name: str
    dtype: str
    legacy_path: str | None = None


def _kernel(path: str, name: str, layout: Layout, alias: str | None = None) -> tuple[Row, ...]:
    return (Row(path=f"{path}/kernel", name=f"{name}.weight", layout=layout, alias=alias),)


def _kernel_and_bias(path: str, name: str, layout: Layout) -> tuple[Row, ...]:
    return (*_kernel(path, name, layout), Row(path=f"{path}/bias", name=f"{name}.bias", layout=IDENTITY))


def _scale_and_shift(path: str, name: str) -> tuple[Row, ...]:
    return (
        Row(path=f"{path}/gamma", name=f"{name}.weight", layout=IDENTITY),
        Row(path=f"{path}/beta", name=f"{name}.bias", layout=IDENTITY),
    )


def _conv_block(path: str, name: str) -> tuple[Row, ...]:
    """BatchNorm (two parameters, two statistics) and convolution."""
    norm, conv = f"{path}/layer_with_weights-0", f"{path}/layer_with_weights-1"
    return (
        *_scale_and_shift(norm, f"{name}.norm"),
        Row(path=f"{norm}/moving_mean", name=f"{name}.norm.running_mean", layout=IDENTITY, trainable=False),
        Row(path=f"{norm}/moving_variance", name=f"{name}.norm.running_var", layout=IDENTITY, trainable=False),
        *_kernel_and_bias(conv, f"{name}.conv", CONV1D),
    )


_LAYER, _PORT_LAYER = "model/performer/layers/{i}", "performer.layers.{i}"
_ATTENTION, _PORT_ATTENTION = f"{_LAYER}/self_attention", f"{_PORT_LAYER}.attention"
_TOWER, _ATAC_TOWER = "model/conv_tower/layer_with_weights-{i}", "model/conv_tower_atac/layer_with_weights-{i}"

Groups = tuple[Group, ...]

_STEM: Groups = (
    Group(rows=_kernel_and_bias("model/stem_conv", "stem_conv", CONV1D)),
    Group(rows=_conv_block("model/stem_res_conv/_layer", "stem_res_conv.block")),
    Group(rows=_kernel("model/stem_pool/dense", "stem_pool.logits", DENSE)),
)
_ATAC_STEM: Groups = (
    Group(rows=_kernel_and_bias("model/stem_conv_atac", "stem_conv_atac", CONV1D)),
    Group(rows=_conv_block("model/stem_res_conv_atac/_layer", "stem_res_conv_atac.block")),
)
_TOWER_BLOCKS: Groups = (
    Group(
        repeat="filter_list_seq",
        rows=(
            *_conv_block(f"{_TOWER}/layer_with_weights-0", "conv_tower.{i}.block"),
            *_kernel(f"{_TOWER}/layer_with_weights-1/dense", "conv_tower.{i}.pool.logits", DENSE),
        ),
    ),
)
_ATAC_TOWER_BLOCKS: Groups = (
    Group(
        repeat="filter_list_atac",
        rows=_conv_block(f"{_ATAC_TOWER}/layer_with_weights-0", "conv_tower_atac.{i}.block"),
    ),
)
_MOTIFS: Groups = (
    Group(rows=_kernel_and_bias("model/motif_activity_fc1", "motif_activity_fc1", DENSE)),
    Group(rows=_kernel_and_bias("model/motif_activity_fc2", "motif_activity_fc2", DENSE)),
)
_PROJECTION: Groups = (Group(rows=_kernel("model/pre_transformer_projection", "pre_transformer_projection", DENSE)),)
_PERFORMER: Groups = (
    Group(
        repeat="num_transformer_layers",
        rows=(
            *_scale_and_shift(f"{_LAYER}/layer_norm", f"{_PORT_LAYER}.norm"),
            *_kernel(f"{_ATTENTION}/query_dense_layer", f"{_PORT_ATTENTION}.query", HEADS_IN, alias="_kernel"),
            *_kernel(f"{_ATTENTION}/key_dense_layer", f"{_PORT_ATTENTION}.key", HEADS_IN, alias="_kernel"),
            *_kernel(f"{_ATTENTION}/value_dense_layer", f"{_PORT_ATTENTION}.value", HEADS_IN, alias="_kernel"),
            *_kernel(f"{_ATTENTION}/output_dense_layer", f"{_PORT_ATTENTION}.output", HEADS_OUT, alias="_kernel"),
            *_scale_and_shift(f"{_LAYER}/FFN/FFN_layer_norm", f"{_PORT_LAYER}.ffn.norm"),
            *_kernel_and_bias(f"{_LAYER}/FFN/FFN_dense_wide", f"{_PORT_LAYER}.ffn.wide", DENSE),
            *_kernel_and_bias(f"{_LAYER}/FFN/FFN_dense_narrow", f"{_PORT_LAYER}.ffn.narrow", DENSE),
        ),
    ),
    Group(repeat="norm", rows=_scale_and_shift("model/performer/layer_norm", "performer.norm")),
)


def _head(suffix: str, repeat: str | None = None) -> Groups:
    pointwise, profile = f"final_pointwise_conv{suffix}", f"final_dense_profile{suffix}"
    return (
        Group(repeat=repeat, rows=_conv_block(f"model/{pointwise}", pointwise)),
        Group(repeat=repeat, rows=_kernel_and_bias(f"model/{profile}", profile, DENSE)),
    )


_ATAC_HEAD, _OPTIONAL_ATAC_HEAD, _RNA_HEAD = _head(""), _head("", repeat="predict_atac"), _head("_rna")
_TRUNK = (*_STEM, *_ATAC_STEM, *_TOWER_BLOCKS, *_ATAC_TOWER_BLOCKS, *_MOTIFS, *_PROJECTION, *_PERFORMER)

TABLE: Groups = (*_TRUNK, *_ATAC_HEAD)
RAMPAGE_TABLE: Groups = (*_TRUNK, *_OPTIONAL_ATAC_HEAD, *_RNA_HEAD)

_WEIGHTED = "layer_with_weights-"
MOMENTS = ("exp_avg", "exp_avg_sq")
_LEGACY_MOMENTS = ("m", "v")
"""First and second moment under torch.optim.Adam's names, in the order in which TensorFlow numbers them."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimizer beside the model.

    Attributes:
        name: in the checkpoint.
        table: what it updates, in the order in which it numbers its slots.
    """

    name: str
    table: Groups

    @property
    def counters(self) -> tuple[Counter, ...]:
        """Its two numbers."""
        name = self.name
        return (
            Counter(path=f"{name}/_iterations", name=f"{name}/iterations", dtype="int64", legacy_path=f"{name}/iter"),
            Counter(
                path=f"{name}/_learning_rate",
                name=f"{name}/learning_rate",
                dtype="float32",
                legacy_path=f"{name}/learning_rate",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the checkpoints of one of the two models hold (spec, section 6).

    Attributes:
        table: the model's groups.
        optimizers: each parameter belongs to one of them.
        script_counters: counters of the training script.
    """

    table: Groups
    optimizers: tuple[Optimizer, ...]
    script_counters: tuple[Counter, ...]

    @property
    def counters(self) -> tuple[Counter, ...]:
        """All counters, the optimizers' last."""
        return (*self.script_counters, *(counter for optimizer in self.optimizers for counter in optimizer.counters))


_COUNTERS = (
    Counter(path="batch_num", name="batch_num", dtype="int32"),
    Counter(path="optimizer_step_track", name="optimizer_step_track", dtype="int32"),
    Counter(path="best_val_loss", name="best_val_loss", dtype="float32"),
    Counter(path="save_counter", name="save_counter", dtype="int64"),
)
PRETRAIN = Kind(
    table=TABLE,
    optimizers=(Optimizer(name="optimizer", table=TABLE),),
    script_counters=(*_COUNTERS, Counter(path="step_to_start", name="step_to_start", dtype="int32")),
)
# The script hands the trunk to its optimizer in an order of its own (spec, section 3.4), not in the table's.
_FIRST = (*_STEM, *_TOWER_BLOCKS, *_ATAC_STEM, *_ATAC_TOWER_BLOCKS, *_MOTIFS, *_PERFORMER, *_PROJECTION)
RAMPAGE = Kind(
    table=RAMPAGE_TABLE,
    optimizers=(
        Optimizer(name="optimizer1", table=(*_FIRST, *_OPTIONAL_ATAC_HEAD)),
        Optimizer(name="optimizer2", table=_RNA_HEAD),
    ),
    script_counters=_COUNTERS,
)
OPTIMIZERS = tuple(optimizer.name for kind in (PRETRAIN, RAMPAGE) for optimizer in kind.optimizers)

CONSTANTS = ("performer.projection_matrix", "performer.rotary_table.table", "performer._extra_state")
"""State of the port that no checkpoint holds (spec, section 6.1): where it comes from is `constants.py`'s business."""

IGNORED: tuple[tuple[str, str], ...] = (
    (r"_CHECKPOINTABLE_OBJECT_GRAPH", "structure, not a value: it was used to find the variables"),
    (r"(model/)?keras_api/metrics/.*", "state of a Keras metric, which says nothing about the model"),
    (
        rf"({'|'.join(OPTIMIZERS)})/(beta_1|beta_2|decay)",
        "argument of Keras' legacy Adam, which its successor takes from its constructor",
    ),
)
"""Stored keys (regular expressions for the whole path) that are left out, and why."""


def kind_of(model: Trunk) -> Kind:
    """What a model's checkpoints hold."""
    return RAMPAGE if isinstance(model, EpiBERTRampage) else PRETRAIN


def rows(configuration: EpiBERTConfig, table: Iterable[Group] = TABLE) -> list[Row]:
    """The table for one configuration: a row for every tensor, in the table's order.

    Args:
        configuration: sizes of the model.
        table: groups: `TABLE` for the pre-training model, `RAMPAGE_TABLE` for the fine-tuning model, or those of one
            of the optimizers.
    """
    expanded = []
    for group in table:
        count = 1
        if group.repeat is not None:
            amount = getattr(configuration, group.repeat)
            count = int(amount) if isinstance(amount, int) else len(list(amount))
        for index in range(count):
            expanded += [
                replace(row, path=row.path.replace("{i}", str(index)), name=row.name.replace("{i}", str(index)))
                for row in group.rows
            ]
    return expanded


def slot_paths(order: int, optimizer: str) -> tuple[str, str]:
    """Where the two moments of an optimizer's `order`-th (from 0) variable are stored, without suffix."""
    return f"{optimizer}/_variables/{2 * order + 1}", f"{optimizer}/_variables/{2 * order + 2}"


def legacy_slot_paths(path: str, optimizer: str) -> tuple[str, str]:
    """Where Keras' optimizers before version 2.11 keep the two moments of the variable at `path`."""
    first, second = (f"{path}/.OPTIMIZER_SLOT/{optimizer}/{moment}" for moment in _LEGACY_MOMENTS)
    return first, second


def path_aliases(row: Row) -> list[tuple[str, str]]:
    """Other paths in the object graph to the objects on a row's path, as (other path, path).

    A Keras Sequential numbers its layers twice: those with weights, which names the keys, and all of them, which is
    what a model that is not built yet restores by. The two differ in a conv block, whose activation stands between.
    """
    found = []
    if row.alias is not None:
        found.append((f"{row.path.rpartition('/')[0]}/{row.alias}", row.path))
    parts = row.path.split("/")
    for position, part in enumerate(parts):
        parent, is_leaf_layer = "/".join(parts[:position]), position == len(parts) - 2
        if part.startswith(_WEIGHTED):
            number = int(part.removeprefix(_WEIGHTED))
            if is_leaf_layer and number == 1:
                number = 2  # the convolution of a conv block: normalisation, activation, convolution
            found.append((f"{parent}/layer-{number}", f"{parent}/{part}"))
    return found
