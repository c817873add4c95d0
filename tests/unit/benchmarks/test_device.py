import json
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import device
from benchmarks.device import measure, reference_outputs
from tests.unit.torch_impl.training import MODEL
from torch_impl import EpiBERTConfig

LONGER: dict[str, Any] = {"num_heads": 1, "output_length": 32, "final_output_length": 28, "max_seq_length": 32}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(scope="module", autouse=True)
def small_model():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(device.CONFIGS, "tiny", lambda: EpiBERTConfig(**MODEL | LONGER))
        yield


@pytest.fixture(scope="module")
def reference(tensorflow) -> dict[str, np.ndarray]:
    return reference_outputs("tiny")


@pytest.mark.parametrize("where", DEVICES)
def test_every_precision_is_measured_and_held_against_float64(reference, where, monkeypatch):
    monkeypatch.setattr(device, "REPEATS", 1)
    monkeypatch.setattr(device, "WARM_UP", 1)
    lines = []
    found = measure("tiny", device=where, reference=reference, compiled=False, progress=lines.append)
    assert json.loads(json.dumps(found)) == found
    assert found["parity"].keys() == found["gradients"].keys() == set(device.PRECISIONS)
    assert found["parity"]["float32"]["port"] < 1e-5 < found["parity"]["bfloat16"]["port"] < 0.1
    assert found["parity"]["float32"]["ratio"] == pytest.approx(
        found["parity"]["float32"]["port"] / found["parity"]["float32"]["reference"]
    )
    assert 0 < found["parity"]["bfloat16"]["ratio"] < 2
    # A CPU has no TF32; where there is, it has 11 bits, of which bfloat16 has 8.
    outputs = {precision: values["port"] for precision, values in found["parity"].items()}
    for distances in (outputs, found["gradients"]):
        assert 0 < distances["tf32"] < distances["bfloat16"]
        assert 1e-5 < distances["autocast"] < 2 * distances["bfloat16"]
    assert 0 < found["gradients"]["float32"] < 1e-4 < found["gradients"]["bfloat16"] < 1
    assert {entry["precision"] for entry in found["forward"]} == set(device.PRECISIONS)
    assert [(entry["batch"], entry.get("checkpointed")) for entry in found["training"]][-1][1] is True
    for kind in ("forward", "training"):
        for entry in found[kind]:
            rate = found["flops"][kind] * entry["batch"] / entry["seconds"]
            peak = found["ceilings"]["bfloat16" if entry["precision"] == "autocast" else entry["precision"]]
            assert entry["utilisation"] == pytest.approx(rate / peak / 1e12)
    assert len(lines) == 3 + len(found["forward"]) + len(found["training"])


def test_a_training_step_trains():
    config = device.CONFIGS["tiny"]()
    step = device._training_step(config, "cpu", precision="float32", batch=1)
    model = step.__closure__
    assert model is not None
    (optimizer,) = (cell.cell_contents for cell in model if isinstance(cell.cell_contents, torch.optim.Optimizer))
    parameters = optimizer.param_groups[0]["params"]
    before = [parameter.detach().clone() for parameter in parameters]
    step()
    assert all(parameter.grad is not None for parameter in parameters)
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters, strict=True))


def test_every_weight_has_a_gradient_that_is_compared(monkeypatch):
    port = device._port

    def frozen(config, where, precision):
        model = port(config, where, precision)
        next(model.parameters()).requires_grad_(precision != "autocast")
        return model

    monkeypatch.setattr(device, "_port", frozen)
    with pytest.raises(RuntimeError, match="has no gradient in autocast"):
        device._gradient_distances(device.CONFIGS["tiny"](), "cpu")


def test_operations_of_a_forward_are_those_of_its_products():
    config = device.CONFIGS["tiny"]()
    counted = device._operations(config)
    # Positions, outputs and inputs (of all taps of a kernel) of each product, from the widths above by hand.
    first = [(1024, 6, 4 * 15), (256, 32, 1 * 50), (1, 8, 3)]  # of sequence, accessibility and motif activity
    towers = [(1024, 6, 6), (512, 6, 6 * 5), (256, 6, 6 * 5), (128, 8, 6 * 5), (64, 10, 8 * 5)]
    pooling = [(1024, 1, 6), (512, 1, 6), (256, 1, 6), (128, 1, 8), (64, 1, 10)]
    others = [(256, 32, 32), (128, 5, 32 * 5), (1, 2, 8), (32, 10, 10 + 5 + 2)]
    projected = [(32, 256, 10), (32, 256, 10)]  # query and key on 256 random features
    attention = [(32, 10, 10)] * 4 + [(256, 10, 32), (32, 10, 256)]
    dense = [(32, 20, 10), (32, 10, 20), (32, 1, 10), (32, 1, 1)]
    forward = _of_products(first + towers + pooling + others + projected + attention + dense)
    assert counted["forward"] == forward
    # Backward makes two products of each, for both factors, but none for inputs and for features that are not learned.
    assert counted["training"] == 3 * forward - _of_products(first) - _of_products(projected)


def _of_products(shapes: list[tuple[int, int, int]]) -> int:
    return sum(2 * positions * outputs * inputs for positions, outputs, inputs in shapes)


def test_outputs_of_other_weights_are_refused(reference):
    with pytest.raises(RuntimeError, match="other weights"):
        measure("tiny", device="cpu", reference=reference | {"content": np.array("else")})


def test_memory_that_does_not_suffice_is_an_entry(monkeypatch):
    def exhausted():
        raise torch.OutOfMemoryError

    assert device._timed(lambda: exhausted, "cpu") == {"error": "out of memory"}


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_tf32_is_used_where_it_is_asked_for(precision, allowed):
    kept = (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    with device._arithmetic("cpu", precision):
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == kept


def test_a_machine_without_a_gpu_is_told_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["device", "measure"])
    with pytest.raises(SystemExit, match="2"):
        device.main()
    assert "no CUDA device" in capsys.readouterr().err


def test_both_commands(tmp_path, monkeypatch, capsys):
    recorded = {"float32": np.ones((1, 4, 1), np.float32), "content": np.array("hash")}

    def measured(config, *, device, reference, compiled, progress):
        progress("a line")
        assert (config, device, compiled) == ("tiny", "cpu", False)
        assert {name: value.tolist() for name, value in reference.items()} == {
            name: value.tolist() for name, value in recorded.items()
        }
        return {"found": 1}

    monkeypatch.setattr(device, "measure", measured)
    monkeypatch.setattr(device, "reference_outputs", lambda config: recorded)
    outputs, out = tmp_path / "outputs.npz", tmp_path / "device.json"
    monkeypatch.setattr("sys.argv", ["device", "reference", str(outputs), "--config", "tiny"])
    assert device.main() == 0
    options = ["--config", "tiny", "--device", "cpu", "--without_compiler", "--reference", str(outputs)]
    monkeypatch.setattr("sys.argv", ["device", "measure", *options, "--out", str(out)])
    assert device.main() == 0
    printed = capsys.readouterr()
    assert json.loads(out.read_text()) == json.loads(printed.out) == {"found": 1}
    assert printed.err == "a line\n"
