"""Faults of the constants that no checkpoint of the original holds: projection matrix and rotary table."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.attack.fault import Fault, Kind
from parity.pairs.epibert_faults.model import FEATURES
from parity.pairs.epibert_faults.subject import Break, of_port
from torch_impl.random import projection_matrix, rotary_table


def change_constants(change: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Break:
    def inject(port: Any) -> None:
        performer = port.performer
        projection, table = change(port, performer.projection_matrix.clone(), performer.rotary_table.table.clone())
        port.set_constants(projection, table, origin=port.constants_origin)

    return inject


def other_projection(make: Callable[[Any, Tensor], Tensor]) -> Break:
    return change_constants(lambda port, projection, table: (make(port, projection), table))


def other_seed(port: Any, projection: Tensor) -> Tensor:
    rows, columns = projection.shape
    return torch.from_numpy(projection_matrix(rows, columns, int(port.config.seed) + 1))


def gaussian(_: Any, projection: Tensor) -> Tensor:
    return torch.randn(projection.shape, generator=torch.Generator().manual_seed(0))


def untransposed_blocks(_: Any, projection: Tensor) -> Tensor:
    size = projection.shape[1]
    norms = projection.norm(dim=1, keepdim=True)
    blocks = (projection / norms).unflatten(0, (-1, size)).transpose(1, 2).flatten(0, 1)
    return norms * blocks


def unrounded_table(port: Any, projection: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = table.shape
    return projection, torch.from_numpy(rotary_table(rows, columns, bfloat16=False))


def own_projection(port: Any, projection: Tensor) -> Tensor:
    rows, columns = projection.shape
    return torch.from_numpy(projection_matrix(rows, columns, int(port.config.seed)))


def own_table(port: Any, projection: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = table.shape
    return projection, torch.from_numpy(rotary_table(rows, columns, bfloat16=True))


def neighbouring_block(port: Any, projection: Tensor) -> Tensor:
    """The seed's own rows, but those of its neighbour for the norms."""
    rows, columns = projection.shape
    other = torch.from_numpy(projection_matrix(rows, columns, int(port.config.seed) + 1))
    return F.normalize(projection, dim=1) * other.norm(dim=1, keepdim=True)


def shared_projection(source: str, name: str, what: str, make: Callable[[Any, Tensor], Tensor]) -> Fault:
    """A wrong matrix shows in the constants, and in the features of every layer that is given it."""
    return of_port(
        source,
        name,
        "performer.projection_matrix",
        what,
        other_projection(make),
        rung="constants",
        kind=Kind.CONSTANTS,
        named=("performer", *FEATURES),
    )


FAULTS = [
    of_port(
        "trap 28",
        "rotary table not rounded to bfloat16",
        "performer.rotary_table",
        "the original rounds its table whatever the precision",
        change_constants(unrounded_table),
        rung="constants",
        kind=Kind.CONSTANTS,
    ),
    of_port(
        "trap 29",
        "rotary table of another library",
        "performer.rotary_table",
        "sines, cosines and powers of another library, then rounded as they should be",
        change_constants(own_table),
        rung="constants",
        kind=Kind.CONSTANTS,
    ),
    shared_projection("trap 37", "projection of another seed", "the next seed's matrix", other_seed),
    shared_projection("trap 38", "Gaussian projection", "rows that are not orthogonal", gaussian),
    shared_projection("trap 39", "Q blocks not transposed", "columns of Q where its rows belong", untransposed_blocks),
    shared_projection(
        "trap 40",
        "other row signs",
        "a QR with another convention of signs",
        lambda port, projection: projection * projection[:, :1].sign(),
    ),
    shared_projection(
        "trap 41",
        "rows of unit norm",
        "rows that keep no length of a Gaussian vector",
        lambda port, projection: F.normalize(projection, dim=1),
    ),
    shared_projection(
        "trap 41",
        "rows as long as the root of the head size",
        "one length for all rows",
        lambda port, projection: F.normalize(projection, dim=1) * projection.shape[1] ** 0.5,
    ),
    shared_projection(
        "constants", "norms of another seed", "directions of one seed, lengths of the next", neighbouring_block
    ),
    shared_projection(
        "trap 42", "projection recomputed", "an own Philox and a float64 QR passed off as TensorFlow's", own_projection
    ),
    shared_projection(
        "trap 43",
        "projection rounded to bfloat16",
        "rounded in a port that is not bfloat16",
        lambda port, projection: projection.bfloat16().float(),
    ),
]
