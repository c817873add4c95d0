"""Faults of the mapping: a tensor of the checkpoint in the wrong place, in the wrong layout, or not at all."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from parity.attack.fault import Fault, Kind
from parity.pairs import epibert
from parity.pairs.epibert_faults.model import ATTENTION
from parity.pairs.epibert_faults.subject import PRETRAINING, Break, Subject, of_port

LAYER = "performer.layers.{}"
PARTS_OF_LAYER = (
    "norm",
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output",
    "ffn.norm",
    "ffn.wide",
    "ffn.narrow",
)


def exchange(*pairs: tuple[str, str]) -> Break:
    """Exchanges tensors of one shape."""

    def inject(port: Any) -> None:
        tensors = {**dict(port.named_parameters()), **dict(port.named_buffers())}
        for first, second in pairs:
            a, b = tensors[first].data, tensors[second].data
            if a.shape != b.shape:
                raise ValueError(f"{first} and {second} have different shapes")
            tensors[first].data, tensors[second].data = b, a

    return inject


def change(name: str, make: Callable[[Tensor], Tensor]) -> Break:
    """Puts another tensor in the place of one."""

    def inject(port: Any) -> None:
        tensors = {**dict(port.named_parameters()), **dict(port.named_buffers())}
        tensors[name].data = make(tensors[name].data).contiguous()

    return inject


def heads_in_the_wrong_order(weight: Tensor) -> Tensor:
    heads = 2
    return weight.unflatten(0, (-1, heads)).transpose(0, 1).flatten(0, 1)


def of_another_layer(first: int, second: int) -> Break:
    """Every tensor of a layer taken for the one beside it."""

    def inject(port: Any) -> None:
        one, other = (port.get_submodule(LAYER.format(index)).state_dict() for index in (first, second))
        kept = {name: tensor.clone() for name, tensor in one.items()}
        port.get_submodule(LAYER.format(first)).load_state_dict(other)
        port.get_submodule(LAYER.format(second)).load_state_dict(kept)

    return inject


def wrong_table(first: str, second: str) -> Callable[[Subject], contextlib.AbstractContextManager[None]]:
    """The weight map itself is wrong: it fills two tensors from each other's place, and is asked whether it did so."""

    @contextlib.contextmanager
    def wrong(subject: Subject) -> Iterator[None]:
        exchange((first, second))(subject.broken_port())
        original = epibert.weight_rows

        def rows(*arguments: Any) -> Sequence[Any]:
            made = list(original(*arguments))
            places = {row.name: index for index, row in enumerate(made)}
            one, other = made[places[first]], made[places[second]]
            made[places[first]] = dataclasses.replace(one, path=other.path, layout=other.layout)
            made[places[second]] = dataclasses.replace(other, path=one.path, layout=one.layout)
            return tuple(made)

        with mock.patch.object(epibert, "weight_rows", rows):
            yield

    return wrong


def misplaced(
    name: str, where: str, what: str, change: Break, *, source: str = "mapping", named: tuple[str, ...] | None = None
) -> Fault:
    """A fault that the rung of weights must find, and where the layers that hold the tensors must be named."""
    return of_port(source, name, where, what, change, rung="weights", kind=Kind.MAPPING, named=named)


def misread(name: str, first: str, second: str, what: str) -> Fault:
    """A fault of the table, which the rung of weights cannot find: it asks the same table."""
    layers = tuple(dict.fromkeys(tensor.rpartition(".")[0] for tensor in (first, second)))
    return Fault(
        name=name,
        source="mapping",
        kind=Kind.MAPPING,
        where=first,
        what=what,
        rung="layers",
        named=layers,
        inject=wrong_table(first, second),
        case=PRETRAINING,
    )


FAULTS = [
    misplaced(
        "weight rounded to bfloat16",
        "performer.layers.1.ffn.wide",
        "stored or sent in bfloat16",
        change("performer.layers.1.ffn.wide.weight", lambda weight: weight.bfloat16().float()),
        source="trap 54",
    ),
    misplaced(
        "heads read as (C, D, H)",
        f"{ATTENTION}.query",
        "the kernel's last two axes taken for each other",
        change(f"{ATTENTION}.query.weight", heads_in_the_wrong_order),
        source="trap 61",
    ),
    misplaced(
        "two norms of one shape swapped",
        "performer.layers.0.norm",
        "the scales of a layer's two norms exchanged",
        exchange(("performer.layers.0.norm.weight", "performer.layers.0.ffn.norm.weight")),
        named=("performer.layers.0.norm", "performer.layers.0.ffn.norm"),
    ),
    misplaced(
        "query and key exchanged",
        f"{ATTENTION}.query",
        "each other's kernels",
        exchange((f"{ATTENTION}.query.weight", f"{ATTENTION}.key.weight")),
        named=(f"{ATTENTION}.query", f"{ATTENTION}.key"),
    ),
    misplaced(
        "square kernel transposed",
        f"{ATTENTION}.output",
        "a kernel of as many channels in as out, whose shape tells nothing",
        change(f"{ATTENTION}.output.weight", lambda weight: weight.T),
    ),
    misplaced(
        "pointwise kernel transposed",
        "stem_res_conv.block.conv",
        "channels in and out of a square convolution of width one",
        change("stem_res_conv.block.conv.weight", lambda weight: weight.transpose(0, 1)),
    ),
    misplaced(
        "layers off by one",
        LAYER.format(0),
        "every tensor of a transformer layer taken from the one beside it",
        of_another_layer(0, 1),
        named=tuple(f"{LAYER.format(index)}.{part}" for index in (0, 1) for part in PARTS_OF_LAYER),
    ),
    misplaced(
        "scale and shift of a norm swapped",
        "conv_tower.3.block.norm",
        "gamma taken for beta",
        exchange(("conv_tower.3.block.norm.weight", "conv_tower.3.block.norm.bias")),
    ),
    misplaced(
        "mean and variance swapped",
        "conv_tower.2.block.norm",
        "the two running statistics taken for each other",
        exchange(("conv_tower.2.block.norm.running_mean", "conv_tower.2.block.norm.running_var")),
    ),
    misplaced(
        "stale statistics of a BatchNorm",
        "conv_tower.4.block.norm",
        "the running mean left at the value that it starts from",
        change("conv_tower.4.block.norm.running_mean", torch.zeros_like),
    ),
    misplaced(
        "bias left at zero",
        "conv_tower.1.block.conv",
        "a tensor that nobody filled",
        change("conv_tower.1.block.conv.bias", torch.zeros_like),
    ),
    misplaced(
        "kernel reversed in its positions",
        "stem_conv",
        "a layout that flips the kernel",
        change("stem_conv.weight", lambda weight: weight.flip(-1)),
    ),
    misplaced(
        "one row of a kernel lost",
        "pre_transformer_projection",
        "the weights of one channel are zero",
        change(
            "pre_transformer_projection.weight", lambda weight: weight.clone().index_fill_(0, torch.tensor([0]), 0.0)
        ),
    ),
    misread(
        "table takes query for key",
        f"{ATTENTION}.query.weight",
        f"{ATTENTION}.key.weight",
        "the weight map itself exchanges two kernels of one shape",
    ),
    misread(
        "table takes one layer's norm for the next one's",
        "performer.layers.0.norm.weight",
        "performer.layers.1.norm.weight",
        "the weight map itself is off by one layer",
    ),
    misread(
        "table takes one block's shift for another's mean",
        "conv_tower_atac.0.block.norm.bias",
        "conv_tower_atac.0.block.norm.running_mean",
        "the weight map itself takes a parameter for a statistic",
    ),
]
