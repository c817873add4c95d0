"""The EpiBERT pair: a map that leaves nothing out, constants lent and given back, weights compared to the bit."""

import dataclasses
import inspect
import itertools
from collections.abc import Mapping

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parity import Comparison, Status
from parity.compare import distance, values_of
from parity.keras_side import KerasSide, layers_by_path
from parity.ladder import find_culprits
from parity.pairs import epibert, find_pair
from parity.pairs.epibert_run import load_case, model_tensors
from parity.reference import Goldens, read_goldens
from parity.tolerances import TABLE
from tests.assertions import assert_same
from torch_impl import EpiBERT, EpiBERTConfig
from torch_impl.model import BatchNorm, ErfGELU, TanhGELU
from weights import transplant

CASES = ("P1", "P2")


@dataclasses.dataclass(frozen=True)
class Case:
    """A recorded case and a way to a fresh port with its weights and constants."""

    config: EpiBERTConfig
    stored: Mapping[str, np.ndarray]
    checkpoint: object
    recording: Goldens

    def port(self) -> EpiBERT:
        port = EpiBERT(self.config)
        transplant(self.checkpoint, port, constants=(*epibert.recorded_constants(self.recording), "recorded"))  # type: ignore[arg-type]
        return port

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        return epibert.recorded_inputs(self.recording)


@pytest.fixture(scope="module")
def cases(goldens) -> dict[str, Case]:
    found = {}
    for name in CASES:
        config, checkpoint = load_case(goldens / name)
        recording = read_goldens(goldens / name / "forward.h5", name="recorded")
        found[name] = Case(config, model_tensors(checkpoint, config), checkpoint, recording)
    return found


@pytest.fixture
def case(cases) -> Case:
    return cases["P1"]


@pytest.fixture
def port(case) -> EpiBERT:
    return case.port()


def failures(rows: list[Comparison]) -> list[Comparison]:
    return [row for row in rows if row.status is not Status.PASS]


# --- the layer map ----------------------------------------------------------------------------------------------------

VARIANTS = [
    {},
    {"use_rot_emb": False},
    {"norm": False},
    {"num_transformer_layers": 0},
    {"num_transformer_layers": 3},
    {"use_rot_emb": False, "norm": False},
]


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_tap_has_a_row(cases, name):
    found = cases[name]
    mapped = {pair.reference for pair in epibert.layer_map(found.config)}
    for trace in found.recording.traces.values():
        assert {path for path, _ in trace.calls} <= mapped


@pytest.mark.parametrize("name", CASES)
def test_every_row_has_a_recorded_tap_but_those_of_layers_that_the_original_lacks(cases, name):
    found = cases[name]
    mapped = epibert.layer_map(found.config)
    recorded = {path for path, _ in found.recording.traces["float64"].calls}
    lacking = {pair.reference for pair in mapped} - recorded - {""}
    assert lacking == set(epibert.absent_layers(mapped))
    assert len(lacking) == 2 * found.config.num_transformer_layers


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_layer_of_the_living_reference_has_a_row(tensorflow, case, changes):
    import tf_reference

    config = dataclasses.replace(case.config, **changes)
    model = tf_reference.EpiBERT(**epibert.original_arguments(config))
    model.build_weights(config.num_motifs)
    mapped = {pair.reference for pair in epibert.layer_map(config)}
    layers = set(layers_by_path(model))
    # A model without rotary positions, or without layers, still has these; they are never called there.
    idle = {path for path in layers if path.endswith(("/rotary", "/layer_pos_emb"))} if changes else set()
    assert mapped <= layers
    assert layers - mapped <= idle


def test_a_model_that_is_made_by_running_it_has_the_variables_and_calls_of_one_that_is_not(tensorflow, case):
    config = dataclasses.replace(case.config, output_length=8, final_output_length=8)
    inputs = epibert.synthetic_inputs(config, batch=2, seed=0)
    built, run = (epibert.new_reference(config, "float64", inputs=given) for given in (None, inputs))
    stored = epibert.draw_weights(built, 0)
    for model in (built, run):
        model.assign(stored)
    expected, found = (KerasSide(model).trace(inputs, training=True).calls for model in (built, run))
    assert list(found) == list(expected)
    for key, call in expected.items():
        assert_same(values_of(found[key].outputs[0]), values_of(call.outputs[0]), what=str(key))


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_row_names_a_module_and_every_module_has_a_row_or_is_named(case, changes):
    config = dataclasses.replace(case.config, **changes)
    port = EpiBERT(config)
    mapped = epibert.layer_map(config)
    modules = {name for name, module in port.named_modules() if not isinstance(module, nn.ModuleList)}
    rows = {pair.port for pair in mapped}
    named = {row.name for row in epibert.unmapped_modules(port, mapped)}
    assert rows <= modules
    assert rows | named == modules
    assert not rows & named


def test_a_module_without_a_row_is_named_with_the_layer_it_is_a_part_of(port):
    (row,) = epibert.unmapped_modules(port, epibert.layer_map(port.config))
    assert (row.side, row.name) == ("port", "motif_activity_fc1.activation")
    assert row.reason == "compared as a part of motif_activity_fc1"


def test_every_normalisation_with_statistics_has_them_compared(port):
    state = {pair.port: pair.state for pair in epibert.layer_map(port.config)}
    for name, module in port.named_modules():
        if isinstance(module, BatchNorm):
            assert state[name] == (("running_mean", "moving_mean"), ("running_var", "moving_variance"))


def test_a_module_stands_before_what_it_contains(port):
    rows = [pair.port for pair in epibert.layer_map(port.config) if not pair.alias]
    for earlier, later in itertools.combinations(rows, 2):
        assert not earlier.startswith(f"{later}.")


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "parameters", "activations"),
    [
        ("float64", torch.float64, torch.float64),
        ("float32", torch.float32, torch.float32),
        ("bfloat16", torch.float32, torch.bfloat16),
    ],
)
def test_bfloat16_keeps_float32_parameters_as_the_original_does(port, precision, parameters, activations):
    with epibert.set_precision(port, precision):
        assert {parameter.dtype for parameter in port.parameters()} == {parameters}
        assert port.compute_dtype is activations
    assert port.compute_dtype is None


def test_the_precision_of_another_module_is_not_ours_to_set():
    with (
        pytest.raises(TypeError, match="expected an EpiBERT or EpiBERTRampage, not Linear"),
        epibert.set_precision(nn.Linear(1, 1), "float64"),
    ):
        pass


# --- constants --------------------------------------------------------------------------------------------------------


def constants_of(port: EpiBERT) -> tuple[bytes, bytes, str]:
    matrix, table = port.performer.projection_matrix, port.performer.rotary_table.table  # type: ignore[union-attr]
    return matrix.numpy().tobytes(), table.numpy().tobytes(), port.constants_origin


def other_constants(port: EpiBERT) -> tuple[np.ndarray, np.ndarray]:
    matrix, table = port.performer.projection_matrix, port.performer.rotary_table.table  # type: ignore[union-attr]
    return np.ones_like(matrix.numpy()), np.ones_like(table.numpy())


def test_constants_are_lent_and_given_back(port):
    before = constants_of(port)
    with epibert.constants(port, *other_constants(port), "lent"):
        assert port.constants_origin == "lent"
        assert bool((port.performer.projection_matrix == 1).all())
    assert constants_of(port) == before


def test_constants_are_given_back_when_something_goes_wrong(port):
    before = constants_of(port)
    with pytest.raises(ZeroDivisionError), epibert.constants(port, *other_constants(port), "lent"):
        raise ZeroDivisionError
    assert constants_of(port) == before


def test_a_comparison_with_a_recording_gives_the_constants_back(case, port):
    own = EpiBERT(case.config)
    before = constants_of(own)
    rows = epibert.compare_with_recording(own, case.recording)
    next(rows)
    assert own.constants_origin == "recorded"
    rows.close()  # type: ignore[attr-defined]
    assert constants_of(own) == before


def compared_constants(port: EpiBERT, **changes: np.ndarray | None) -> list[Comparison]:
    matrix, table = port.performer.projection_matrix.numpy(), port.performer.rotary_table.table.numpy()  # type: ignore[union-attr]
    values = {"projection": matrix, "table": table} | changes
    return list(epibert.compare_constants(port, **values))  # type: ignore[arg-type]


def test_the_same_constants_pass_and_both_are_there(port):
    rows = compared_constants(port)
    assert [row.port for row in rows] == ["performer.projection_matrix", "performer.rotary_table.table"]
    assert {row.gate for row in rows} == {"constants"}
    assert {row.tolerance for row in rows} == {"exact"}
    assert failures(rows) == []


@pytest.mark.parametrize(("which", "layer"), [("projection", "performer"), ("table", "performer.rotary_table")])
def test_one_bit_of_a_constant_that_was_exported_fails_and_names_its_layer(port, which, layer):
    held = {"projection": port.performer.projection_matrix, "table": port.performer.rotary_table.table}
    changed = held[which].numpy().copy()
    changed.view(np.int32)[1, 3] ^= 1
    (row,) = failures(compared_constants(port, **{which: changed}))
    assert row.layer == layer
    assert "(1, 3)" in row.detail


def test_a_rotary_table_on_one_side_alone_is_missing(case, port):
    (row,) = failures(compared_constants(port, table=None))
    assert (row.layer, row.status) == ("performer.rotary_table", Status.MISSING)
    table = port.performer.rotary_table.table.numpy()
    bare = EpiBERT(dataclasses.replace(case.config, use_rot_emb=False))
    rows = list(epibert.compare_constants(bare, bare.performer.projection_matrix.numpy(), table))
    assert {row.layer for row in failures(rows)} == {"performer.rotary_table"}


def test_constants_of_our_own_making_are_judged_by_their_own_bounds(case):
    port = EpiBERT(case.config)
    rows = list(epibert.compare_constants(port, *epibert.recorded_constants(case.recording)))
    assert [row.tolerance for row in rows] == ["own_projection", "own_rotary_table"]
    assert failures(rows) == []
    other = EpiBERT(dataclasses.replace(case.config, seed=int(case.config.seed) + 1))
    rows = list(epibert.compare_constants(other, *epibert.recorded_constants(case.recording)))
    assert [row.layer for row in failures(rows)] == ["performer"]


def test_recorded_layers_with_different_projection_matrices_are_refused(case):
    matrix = case.recording.constants["projection_matrix_0"]
    other = dataclasses.replace(
        case.recording, constants={**case.recording.constants, "projection_matrix_1": matrix + 1}
    )
    with pytest.raises(ValueError, match="different projection matrices"):
        epibert.recorded_constants(other)


# --- weights ----------------------------------------------------------------------------------------------------------


def compared_weights(port: EpiBERT, stored: Mapping[str, np.ndarray]) -> list[Comparison]:
    return list(epibert.compare_weights(port, stored))


@pytest.mark.parametrize("name", CASES)
def test_every_stored_tensor_and_every_tensor_of_the_port_is_compared(cases, name):
    found = cases[name]
    port = found.port()
    rows = compared_weights(port, found.stored)
    assert failures(rows) == []
    assert {row.reference for row in rows} == set(found.stored)
    constant = ("performer.projection_matrix", "performer.rotary_table.table", "performer._extra_state")
    assert {row.port for row in rows} == set(port.state_dict()) - set(constant)
    assert len(rows) == len(found.stored)


def test_one_flipped_bit_of_any_tensor_is_found_and_its_layer_named(case, port):
    mapped = epibert.layer_map(case.config)
    weights = {row.port for row in compared_weights(port, case.stored)}
    state = {name: value for name, value in port.state_dict().items() if name in weights}
    assert len(state) > 50
    for name, value in state.items():
        bits = value.view(-1).view(torch.int32)
        bits[-1] ^= 1
        (row,) = failures(compared_weights(port, case.stored))
        assert (row.port, row.layer, row.status) == (name, name.rpartition(".")[0], Status.FAIL)
        assert [found.port for found in find_culprits([row], mapped, model_name="EpiBERT")] == [row.layer]
        bits[-1] ^= 1


def test_a_tensor_left_over_in_the_port_is_found(case, port):
    port.gelu.register_parameter("gain", nn.Parameter(torch.ones(1)))
    (row,) = failures(compared_weights(port, case.stored))
    assert (row.port, row.layer, row.status) == ("gelu.gain", "gelu", Status.MISSING)
    assert "no row of the weight map fills this tensor" in row.detail


def test_a_tensor_left_over_in_the_checkpoint_is_found(case, port):
    (row,) = failures(compared_weights(port, {**case.stored, "model/stem_conv/gain": np.ones(1)}))
    assert (row.reference, row.status) == ("model/stem_conv/gain", Status.MISSING)
    assert "no row of the weight map uses this tensor" in row.detail


def test_a_tensor_missing_in_the_checkpoint_is_found(case, port):
    fewer = {key: value for key, value in case.stored.items() if key != "model/stem_conv/bias"}
    (row,) = failures(compared_weights(port, fewer))
    assert (row.port, row.layer, row.status) == ("stem_conv.bias", "stem_conv", Status.MISSING)


def test_a_tensor_missing_in_the_port_is_found(case, port):
    port.stem_conv.register_parameter("bias", None)
    (row,) = failures(compared_weights(port, case.stored))
    assert (row.port, row.status) == ("stem_conv.bias", Status.MISSING)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_on_both_sides_is_found(case, port, value):
    stored = {key: array.copy() for key, array in case.stored.items()}
    stored["model/stem_conv/bias"][2] = value
    with torch.no_grad():
        port.stem_conv.bias[2] = value
    (row,) = failures(compared_weights(port, stored))
    assert (row.port, row.status) == ("stem_conv.bias", Status.NON_FINITE)


def test_the_weight_map_of_the_report_has_a_row_and_a_hash_for_every_tensor(case):
    rows = epibert.weight_map(case.config, case.stored)
    assert {row.key for row in rows} == set(case.stored)
    assert len({row.name for row in rows}) == len(rows)
    assert {len(row.sha256) for row in rows} == {64}


# --- recorded numbers -------------------------------------------------------------------------------------------------


def exact_only(recording: Goldens) -> Goldens:
    return dataclasses.replace(recording, traces={"float64": recording.traces["float64"]})


@pytest.fixture(scope="module")
def recorded_rows(cases) -> list[Comparison]:
    found = cases["P1"]
    return list(epibert.compare_with_recording(found.port(), exact_only(found.recording), case="P1"))


def test_a_right_port_meets_every_recorded_number_in_float64(recorded_rows):
    assert failures(recorded_rows) == []
    assert {row.gate for row in recorded_rows} == {"layers", "blocks", "model"}
    assert {row.tolerance for row in recorded_rows} == {"float64"}


def test_every_recorded_array_its_summaries_and_every_statistic_is_compared(recorded_rows, case):
    recorded = {path for path, _ in case.recording.traces["float64"].calls}
    outputs = {row.reference.partition("@")[0] for row in recorded_rows if row.mode == "evaluation"}
    assert recorded <= outputs
    statistics = [row for row in recorded_rows if row.quantity in ("running_mean", "running_var")]
    assert len(statistics) == len(case.recording.state["float64"])
    assert {row.mode for row in statistics} == {"training"}


@pytest.mark.parametrize("name", CASES)
def test_without_the_rounding_of_the_rotary_table_the_port_is_the_original_without_it(cases, goldens, name):
    """A mode of the recordings that the ladder leaves out, because no released model computes in it."""
    case = cases[name]
    port, (projection, rounded) = case.port(), epibert.recorded_constants(case.recording)
    with h5py.File(goldens / name / "forward.h5") as file:
        expected = np.asarray(file["modes/f64_exact_rotary/final_atac"])
    errors = []
    for table in (case.recording.constants["rotary_table_float32"], rounded):
        with epibert.constants(port, projection, table, "recorded"):
            (output,), _ = epibert.watch(port).outputs(case.inputs, precision="float64", training=False)
        errors.append(distance(output, expected)[0])
    assert errors[0] <= TABLE["float64"].limit < errors[1]


# --- differences that are understood ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[EpiBERT, tuple[np.ndarray, ...]]:
    config = dataclasses.replace(EpiBERTConfig.tiny(), output_length=8, final_output_length=4)
    torch.manual_seed(0)
    port = EpiBERT(config)
    with torch.no_grad():
        for parameter in port.parameters():
            parameter.uniform_(-0.5, 0.5)
        for name, buffer in port.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    return port, epibert.synthetic_inputs(config, batch=2, seed=1)


def measured(small, monkeypatch, **changes: object) -> list[Comparison]:
    port, inputs = small
    if changes:
        entries = [dataclasses.replace(entry, **changes) for entry in epibert.ROUNDED_CONSTANTS]
        monkeypatch.setattr(epibert, "ROUNDED_CONSTANTS", tuple(entries))
    differences, rows = epibert.measure_known_differences(port, inputs, case="small")
    assert len(differences) == len(rows) == len(epibert.ROUNDED_CONSTANTS)
    for difference, row in zip(differences, rows, strict=True):
        assert difference.measured == row.error
        assert difference.reason
    return rows


def held(port: EpiBERT) -> list[float]:
    kinds = {TanhGELU: "cubic_coefficient", ErfGELU: "scale", BatchNorm: "update_rate"}
    return [getattr(module, kinds[type(module)]) for module in port.modules() if type(module) in kinds]


def test_known_differences_are_needed_and_bounded(small, monkeypatch):
    rows = measured(small, monkeypatch)
    assert failures(rows) == []
    for row in rows:
        assert TABLE["float64"].limit < row.error <= row.limit  # type: ignore[operator]
    assert {row.gate for row in rows} == {"model"}


def test_the_port_computes_with_the_rounded_constants(small):
    port, _ = small
    used = {entry.used for entry in epibert.ROUNDED_CONSTANTS}
    assert set(held(port)) == used
    assert all(entry.used == float(np.float32(entry.exact)) != entry.exact for entry in epibert.ROUNDED_CONSTANTS)


def test_an_entry_that_is_no_longer_needed_fails(small, monkeypatch):
    entries = tuple(dataclasses.replace(entry, exact=entry.used) for entry in epibert.ROUNDED_CONSTANTS)
    monkeypatch.setattr(epibert, "ROUNDED_CONSTANTS", entries)
    rows = measured(small, monkeypatch)
    assert len(failures(rows)) == len(rows)
    assert all("no longer needed" in row.detail for row in rows)


def test_an_effect_above_its_bound_fails(small, monkeypatch):
    entries = tuple(dataclasses.replace(entry, exact=1.5 * entry.exact) for entry in epibert.ROUNDED_CONSTANTS)
    monkeypatch.setattr(epibert, "ROUNDED_CONSTANTS", entries)
    assert {row.status for row in measured(small, monkeypatch)} == {Status.FAIL}


def test_the_constants_are_put_back_after_measuring(small, monkeypatch):
    port, _ = small
    before = held(port)
    measured(small, monkeypatch)
    assert held(port) == before


def test_a_port_that_raises_is_a_failure_of_the_measurement_not_of_the_harness(small, monkeypatch):
    port, _ = small

    def boom(x: Tensor) -> Tensor:
        raise RuntimeError("boom")

    monkeypatch.setattr(port.crop_final, "forward", boom)
    rows = measured(small, monkeypatch)
    assert {row.status for row in rows[:2]} == {Status.MISSING}
    assert all("boom" in row.detail for row in rows[:2])


def test_our_own_constants_are_put_back_and_a_missing_output_is_missing(small, monkeypatch):
    port, inputs = small
    before = constants_of(port)
    expected = epibert.watch(port).trace(inputs, precision="float64", training=False).calls["", 0].outputs
    assert [row.status for row in epibert.compare_own_constants(port, inputs, expected)] == [Status.PASS]  # type: ignore[arg-type]
    monkeypatch.setattr(port.crop_final, "forward", lambda x: 1 / 0)
    (row,) = epibert.compare_own_constants(port, inputs, expected)  # type: ignore[arg-type]
    assert row.status is Status.MISSING
    assert "ZeroDivisionError" in row.detail
    assert constants_of(port) == before


# --- inputs and arguments ---------------------------------------------------------------------------------------------


def test_synthetic_inputs_are_the_same_numbers_in_every_precision(small):
    port, inputs = small
    assert [array.shape for array in inputs] == [
        (2, port.config.sequence_length, 4),
        (2, port.config.atac_length, 1),
        (2, 1, port.config.num_motifs),
    ]
    for array in inputs:
        assert array.dtype == np.float32
        tensor = torch.from_numpy(array)
        assert torch.equal(tensor.bfloat16().float(), tensor)
    again = epibert.synthetic_inputs(port.config, batch=2, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(inputs, again, strict=True))
    other = epibert.synthetic_inputs(port.config, batch=2, seed=2)
    assert not any(np.array_equal(a, b) for a, b in zip(inputs, other, strict=True))


def test_an_unknown_base_is_a_zero_row():
    assert epibert.one_hot(np.array([0, 1, 2, 3, 4, 255])).tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


def test_the_original_arguments_are_those_of_the_references_constructor(tensorflow, case):
    import tf_reference

    accepted = inspect.signature(tf_reference.EpiBERT.__init__).parameters
    given = epibert.original_arguments(case.config)
    assert set(given) <= set(accepted)
    own = {field.name for field in dataclasses.fields(EpiBERTConfig)} - set(given)
    assert not own & set(accepted) - {"dtype"}


# --- finding the pair -------------------------------------------------------------------------------------------------


def test_only_an_epibert_beside_an_epibert_is_this_pair(port):
    class EpiBERTReference:
        def get_constants(self) -> None: ...

    EpiBERTReference.__name__ = "EpiBERT"
    assert find_pair(EpiBERTReference(), port) is epibert
    assert find_pair(EpiBERTReference(), nn.Linear(1, 1)) is None
    assert find_pair(object(), port) is None
