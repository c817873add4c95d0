"""What a user does: a model of the reference, its checkpoint, a transplant, ``verify``; and ports that cheat or fail.

The weights are fresh ones, whose norms do nothing and whose projections are all alike.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity
from parity import GateStatus
from parity.pairs import epibert
from tests.suites.rungs import worst
from torch_impl import EpiBERT, EpiBERTConfig
from weights import transplant

CONFIG = dataclasses.replace(
    EpiBERTConfig.tiny(), filter_list_seq=(12, 16), output_length=32, final_output_length=28, max_seq_length=32
)


class User:
    """A reference, its checkpoint, and inputs."""

    def __init__(self, folder: Path, tensorflow: Any) -> None:
        self.folder = folder
        self.reference = self.new_reference()
        tensorflow.train.Checkpoint(model=self.reference).save(str(folder / "ckpt"))
        self.inputs = epibert.synthetic_inputs(CONFIG, batch=2, seed=3)

    def new_reference(self) -> Any:
        import tf_reference

        return tf_reference.EpiBERT(**epibert.original_arguments(CONFIG), dtype="float32").build_weights()

    def port(self, constants: Any = "auto", **arguments: Any) -> Any:
        port = EpiBERT(dataclasses.replace(CONFIG, **arguments))
        transplant(self.folder, port, constants=constants)
        return port

    def verify(self, port: nn.Module, reference: Any = None, **options: Any) -> parity.Result:
        options = {"precisions": ("float64",), "gates": ("layers", "blocks", "model"), **options}
        return parity.verify(self.reference if reference is None else reference, port, self.inputs, **options)


@pytest.fixture(scope="module")
def user(tmp_path_factory, tensorflow) -> User:
    # Shared by the tests of this file, so it is made before any of them sets a seed.
    tensorflow.random.set_seed(0)
    return User(tmp_path_factory.mktemp("user"), tensorflow)


@pytest.mark.parametrize("constants", ["auto", "philox"])
def test_a_right_port_is_proven_and_left_as_it_was(user, constants):
    port = user.port(constants).train()
    before = {name: tensor.clone() for name, tensor in port.state_dict().items()}
    result = user.verify(port, precisions=None)
    assert result.passed, "\n".join(worst(gate.failures) for gate in result.gates.values())
    assert result.culprits == ()
    assert port.training
    assert port.constants_origin.startswith("tensorflow" if constants == "auto" else "philox")
    assert all(torch.equal(before[name], tensor) for name, tensor in port.state_dict().items())


def remember(port: Any) -> None:
    forward, results = port.stem_conv.forward, {}
    port.stem_conv.forward = lambda x: results.setdefault(x.dtype, forward(x))


def watched_only(port: Any) -> None:
    gelu, forward = port.gelu, port.gelu.forward
    gelu.forward = lambda x: forward(x) if gelu._forward_hooks else torch.relu(x)


def extra_output(port: Any) -> None:
    forward = port.forward
    port.forward = lambda *inputs: (forward(*inputs), torch.full((1,), float("nan")))


def raise_in(path: str) -> Callable[[Any], None]:
    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("broken")

    return lambda port: setattr(port.get_submodule(path), "forward", fail)


def without_scale(port: Any) -> None:
    norm = port.performer.layers[1].norm
    norm.forward = lambda x: nn.functional.layer_norm(x, norm.normalized_shape, eps=norm.eps)


def replace_dropout(port: Any) -> None:
    port.performer.layers[1].ffn.dropout = nn.Identity()


def drop_channels(port: Any) -> None:
    port.dropout = nn.Dropout1d(port.dropout.p)


@pytest.mark.parametrize(
    ("fault", "gate", "culprit"),
    [
        (remember, "layers", "stem_conv"),
        (without_scale, "layers", "performer.layers.1.norm"),
        (watched_only, "model", "EpiBERT"),
        (extra_output, "layers", "EpiBERT"),
        (raise_in(""), "layers", "EpiBERT"),
        (raise_in("performer.layers.0.ffn.wide"), "layers", "performer.layers.0.ffn.wide"),
        (replace_dropout, "layers", "performer.layers.1.ffn.dropout"),
        (drop_channels, "layers", "dropout"),
    ],
)
def test_a_port_that_cheats_or_fails_is_found(user, fault, gate, culprit):
    port = user.port()
    fault(port)
    result = user.verify(port)
    assert not result.passed
    assert result.gates[gate].status is GateStatus.FAILED
    assert result.culprits == (culprit,)


@pytest.mark.parametrize(
    "arguments", [{"dropout_rate": 0.9}, {"BN_momentum": 0.8}, {"final_output_length": 26}, {"seed": 22}]
)
def test_another_configuration_is_found(user, arguments):
    result = user.verify(user.port(**arguments), gates=("constants",))
    assert result.gates["constants"].status is GateStatus.FAILED
    assert next(iter(arguments)) in {row.port for row in result.gates["constants"].failures}


@pytest.mark.parametrize("arguments", [{"num_heads": 4}, {"max_seq_length": 40}, {"use_rot_emb": False}])
def test_a_port_of_another_shape_is_a_finding_and_no_crash(user, arguments):
    result = user.verify(EpiBERT(dataclasses.replace(CONFIG, **arguments)), gates=("constants",))
    assert not result.passed
    assert next(iter(arguments)) in {row.port for row in result.gates["constants"].failures}


def test_one_element_gone_astray_in_bfloat16_is_found(user):
    port = user.port()

    def hook(_: nn.Module, inputs: Any, y: Tensor) -> Tensor:
        if y.dtype == torch.bfloat16:
            y[0, 5, 3] += 0.5
        return y

    port.stem_conv.register_forward_hook(hook)
    result = user.verify(port, precisions=("float64", "bfloat16"), modes=("evaluation",))
    assert result.culprits == ("stem_conv",)


def test_a_reference_that_its_copy_does_not_follow_is_found(user):
    reference = user.new_reference()
    reference.assign({key: variable.numpy() for key, variable in user.reference.checkpoint_variables().items()})
    call = reference.stem_conv.call
    vars(reference.stem_conv)["call"] = lambda x: 2 * call(x)
    result = user.verify(user.port(), reference, precisions=("float64", "float32"), modes=("evaluation",))
    (row,) = [row for row in result.gates["layers"].failures if row.quantity == "output of the reference"]
    assert row.error is not None
    assert np.isfinite(row.error)


def test_what_was_not_asked_for_is_named(user):
    result = user.verify(user.port(), gates=("layers",), modes=("evaluation",))
    names = {row.name for row in result.not_compared}
    assert {"mode training", "precision float32", "precision bfloat16"} <= names


def test_a_weight_map_for_a_known_pair_is_refused(user):
    with pytest.raises(ValueError, match="weight map"):
        user.verify(user.port(), weight_map={"stem_conv.weight": ("stem_conv/kernel", None)})
