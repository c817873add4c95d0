"""The object graph of a TensorFlow checkpoint: which object holds which variable, and under which key it is stored.

Restoring in TensorFlow walks this graph, not the keys; the same variable may be reached by several paths (an einsum
kernel as `kernel` and `_kernel`, a SavedModel's variables as `variables/0` and by attribute). So this reader asks the
graph for the key of a path, and the writer gives the exported keys a graph that restores.
"""

import heapq
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from weights import messages
from weights.errors import CorruptCheckpointError

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
ATTRIBUTE = "VARIABLE_VALUE"
SUFFIX = f"/.ATTRIBUTES/{ATTRIBUTE}"

# Edges that Keras adds beside the attributes of a model; the higher the cost, the less a path through it is wanted.
_ALIAS_COST = {
    "_kernel": 1,
    "keras_api": 9,
    "layers": 2,
    "layer_metrics": 9,
    "losses": 9,
    "metrics": 9,
    "non_trainable_variables": 9,
    "regularization_losses": 9,
    "signatures": 9,
    "trainable_variables": 9,
    "variables": 9,
    "_self_tracked_trackables": 9,
}


def _edge_cost(name: str) -> int:
    """How unwanted an edge is: 0 for a plain attribute, 1 for `layer-3` beside `layer_with_weights-1`."""
    if name.startswith("layer-"):
        return 1
    return _ALIAS_COST.get(name, 0)


class ObjectGraph:
    """A decoded object graph.

    Args:
        serialized: the bytes stored under `GRAPH_KEY`.

    Raises:
        CorruptCheckpointError: the bytes are no object graph, or an edge leads nowhere.
    """

    def __init__(self, serialized: bytes) -> None:
        try:
            nodes = messages.TrackableObjectGraph.FromString(serialized).nodes
        except DecodeError:
            raise CorruptCheckpointError(f"{GRAPH_KEY}: cannot be parsed") from None
        self._edges = [{child.local_name: child.node_id for child in node.children} for node in nodes]
        self._keys = [
            {attribute.name: attribute.checkpoint_key for attribute in node.attributes}.get(ATTRIBUTE) for node in nodes
        ]
        if not nodes or any(not 0 <= target < len(nodes) for edges in self._edges for target in edges.values()):
            raise CorruptCheckpointError(f"{GRAPH_KEY}: an edge leads to an object that does not exist")

    def resolve(self, path: str) -> str | None:
        """The key under which the variable at `path` (attribute names joined by `/`) is stored, or None."""
        node = 0
        for name in path.split("/"):
            if name not in self._edges[node]:
                return None
            node = self._edges[node][name]
        return self._keys[node]

    def all_paths(self) -> dict[str, str]:
        """Every path without a cycle that leads to a variable, `{path: key}`."""
        found: dict[str, str] = {}

        def walk(node: int, path: str, above: frozenset[int]) -> None:
            key = self._keys[node]
            if key is not None:
                found[path] = key
            for name, target in self._edges[node].items():
                if target not in above:
                    walk(target, f"{path}/{name}" if path else name, above | {target})

        walk(0, "", frozenset([0]))
        return found

    def canonical_paths(self) -> dict[str, str]:
        """The plainest path of every stored key, `{key: path}`: by attributes where possible, then the shortest."""
        found: dict[int, str] = {}
        queue: list[tuple[int, int, int, str, int]] = [(0, 0, 0, "", 0)]
        count = 0
        while queue:
            cost, depth, _, path, node = heapq.heappop(queue)
            if node in found:
                continue
            found[node] = path
            for name, target in self._edges[node].items():
                count += 1  # keeps the graph's own order among equals
                extended = f"{path}/{name}" if path else name
                heapq.heappush(queue, (cost + _edge_cost(name), depth + 1, count, extended, target))
        return {key: found[node] for node, key in enumerate(self._keys) if key and node in found}


def build_graph(paths: Iterable[str], aliases: Iterable[tuple[str, str]] = ()) -> bytes:
    """The serialized object graph for variables stored under `path + SUFFIX`.

    Args:
        paths: attribute paths of the variables, without suffix.
        aliases: further (path, existing path) under which TensorFlow reaches the same object, such as
            `.../_kernel` for `.../kernel`; the path's parent need not exist yet.

    Returns:
        the bytes for `GRAPH_KEY`.
    """
    graph = messages.TrackableObjectGraph()
    graph.nodes.add()
    edges: list[dict[str, int]] = [{}]

    def child(node: int, name: str) -> int:
        if name not in edges[node]:
            edges[node][name] = len(edges)
            graph.nodes[node].children.add(node_id=len(edges), local_name=name)
            graph.nodes.add()
            edges.append({})
        return edges[node][name]

    def walk(path: str) -> int:
        node = 0
        for name in path.split("/") if path else []:
            node = child(node, name)
        return node

    for path in paths:
        node = walk(path)
        graph.nodes[node].attributes.add(name=ATTRIBUTE, full_name=path, checkpoint_key=path + SUFFIX)
        while True:  # TensorFlow restores only below objects that are marked
            graph.nodes[node].has_checkpoint_values.value = True
            if "/" not in path:
                break
            path = path.rpartition("/")[0]
            node = walk(path)
    graph.nodes[0].has_checkpoint_values.value = True
    for alias, existing in aliases:
        parent, _, name = alias.rpartition("/")
        node, target = walk(parent), walk(existing)
        if edges[node].setdefault(name, target) != target:
            raise ValueError(f"{alias} already leads elsewhere than {existing}")
        if not any(child.local_name == name for child in graph.nodes[node].children):
            graph.nodes[node].children.add(node_id=target, local_name=name)
    return graph.SerializeToString()
