import pytest

from tests.unit.weights.samples import CHECKPOINTS, prefix
from weights.errors import CorruptCheckpointError
from weights.object_graph import GRAPH_KEY, SUFFIX, ObjectGraph, build_graph
from weights.tensor_bundle import TensorBundle

QUERY = "model/performer/layers/0/self_attention/query_dense_layer"


def recorded_graph(checkpoint: str) -> ObjectGraph:
    return ObjectGraph(TensorBundle(prefix(checkpoint))[GRAPH_KEY].item())


def test_aliases_resolve_to_the_stored_key():
    graph = recorded_graph("P1/ckpt_after_poisson")
    for path in (f"{QUERY}/kernel", f"{QUERY}/_kernel"):
        assert graph.resolve(path) == f"{QUERY}/kernel{SUFFIX}"
    assert graph.resolve("optimizer/_variables/0") == f"optimizer/_iterations{SUFFIX}"
    assert graph.resolve("model/conv_tower/layer-1/layer-0/layer-2/kernel") == (
        f"model/conv_tower/layer_with_weights-1/layer_with_weights-0/layer_with_weights-1/kernel{SUFFIX}"
    )


@pytest.mark.parametrize("path", ["model", "model/none", "nothing/at/all", f"{QUERY}/kernel/more"])
def test_a_path_to_no_variable_resolves_to_nothing(path):
    assert recorded_graph("P1/ckpt_before").resolve(path) is None


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_plainest_path_of_a_recorded_variable_is_its_key(checkpoint):
    paths = recorded_graph(checkpoint).canonical_paths()
    assert set(paths) == set(TensorBundle(prefix(checkpoint))) - {GRAPH_KEY}
    assert all(path + SUFFIX == key for key, path in paths.items())


def test_a_built_graph_resolves_its_paths_and_aliases():
    graph = ObjectGraph(build_graph(["a/b/kernel", "a/b/bias", "c"], [("a/b/_kernel", "a/b/kernel"), ("x/0", "a/b")]))
    assert graph.resolve("a/b/_kernel") == graph.resolve("a/b/kernel") == f"a/b/kernel{SUFFIX}"
    assert graph.resolve("x/0/bias") == f"a/b/bias{SUFFIX}"
    assert graph.resolve("c") == f"c{SUFFIX}"


def test_an_alias_cannot_lead_elsewhere_than_a_path():
    with pytest.raises(ValueError, match="elsewhere"):
        build_graph(["a", "b"], [("a", "b")])


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", b"\n\x06\n\x04\x08\x63\x12\x00"])
def test_damaged_graphs_are_refused(data):
    with pytest.raises(CorruptCheckpointError):
        ObjectGraph(data)


def test_messages_do_not_clash_with_tensorflows(tensorflow):
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    theirs = trackable_object_graph_pb2.TrackableObjectGraph.FromString(build_graph(["a/b"]))
    assert [child.local_name for child in theirs.nodes[0].children] == ["a"]
