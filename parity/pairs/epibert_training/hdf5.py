"""What recordings of training hold: groups within groups, and numbers."""

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np


def group_of(item: Any) -> h5py.Group:
    """A group that is one.

    Raises:
        KeyError: It is a data set.
    """
    if not isinstance(item, h5py.Group):
        raise KeyError(f"{item.name}: expected a group")
    return item


def groups_in(item: Any) -> Iterator[tuple[str, h5py.Group]]:
    """The groups that a group holds, by name."""
    for name, group in group_of(item).items():
        yield name, group_of(group)


def numbers(dataset: Any) -> np.ndarray:
    """A data set in float64."""
    return np.asarray(dataset[()], dtype=np.float64)
