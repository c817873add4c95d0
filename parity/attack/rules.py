"""By which rule do others decide that a port is right? Each restated in a few lines, to be judged on the same runs.

The rules were read from public repositories; the numbers and the order of what is looked at are theirs, the code is
ours. Where a project looks at less than an observation holds, its rule does too; where it was not clear, the rule was
given the more. A rule says whether it finds a difference and, if it reports by layer, which its report names first.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from parity.attack.observation import PORT, REFERENCE, Computed, Observation, Pass

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a rule says about one run.

    Attributes:
        found: The rule sees a difference: a fault found, or a false alarm.
        named: Layer that its report names first, without the number of the call; empty where it names none.
        compared: Number of numbers or arrays that it held against each other; 0 when the run has nothing of what it
            looks at, so that it could not have found anything.
        seconds: Time of the judgement and of the passes that it needs, on both sides.
        detail: The reason in its own terms.
    """

    found: bool
    named: str = ""
    compared: int = 0
    seconds: float = 0.0
    detail: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A way to decide.

    Attributes:
        name: Short name.
        project: Repository that decides so.
        says: The rule in one line.
        needs: Passes that it needs: (side, precision, pass).
        decide: The verdict, without seconds.
    """

    name: str
    project: str
    says: str
    needs: tuple[tuple[str, str, Pass], ...]
    decide: Callable[[Observation], Verdict]

    def judge(self, observation: Observation) -> Verdict:
        """The verdict on one run with its time."""
        started = time.perf_counter()
        verdict = self.decide(observation)
        spent = time.perf_counter() - started
        return dataclasses.replace(verdict, seconds=spent + observation.seconds(self.needs))


def judge(observation: Observation) -> dict[str, Verdict]:
    """What every rule says about one run, by the rule's name."""
    return {rule.name: rule.judge(observation) for rule in RULES}


def layer_of(name: str) -> str:
    """Layer that an array belongs to: ``conv@1:output`` -> ``conv``."""
    return name.partition(":")[0].partition("@")[0]


def module_of(parameter: str) -> str:
    """Module that holds a parameter."""
    return parameter.rpartition(".")[0]


# --- transformers ----------------------------------------------------------------------------------------------------


def hugging_face(run: Observation) -> Verdict:
    """Cross test of two frameworks in huggingface/transformers v4 (``check_pt_tf_outputs``).

    Final outputs and hidden states in float32: same names, same shapes, and no absolute difference above 1e-5.
    A NaN of either side is first set to zero on both.
    """
    port, reference = run.port["float32"], run.reference["float32"]
    if port.error:
        return Verdict(found=True, detail=port.error)
    found, expected = _shown(port, run.blocks), _shown(reference, run.blocks)
    if list(found) != list(expected):
        return Verdict(found=True, compared=len(expected), detail="other outputs")
    for name, truth in expected.items():
        if found[name].shape != truth.shape:
            return Verdict(found=True, named=layer_of(name), compared=len(expected), detail="another shape")
        both = ~(np.isnan(found[name]) | np.isnan(truth))
        worst = float(np.max(np.abs(found[name] - truth), where=both, initial=0.0))
        if worst > 1e-5:
            return Verdict(found=True, named=layer_of(name), compared=len(expected), detail=f"{name}: {worst:.2g}")
    return Verdict(found=False, compared=len(expected))


def _shown(side: Computed, blocks: Sequence[str]) -> dict[str, np.ndarray]:
    """Hidden states, then final outputs, which name no layer."""
    hidden = {name: array for name, array in side.layers.items() if layer_of(name) in blocks}
    return hidden | {f":{name}": array for name, array in side.outputs.items()}


# --- OpenFold --------------------------------------------------------------------------------------------------------


def openfold(run: Observation) -> Verdict:
    """Comparison with the original in aqlaboratory/openfold (``tests/compare_utils.py``, ``tests/config.py``).

    Modules with the original's weights, each on the same inputs: largest absolute difference up to 5e-4 in float32.
    The whole model: mean absolute difference up to 5e-4. The limit is absolute, whatever the size of the numbers.
    """
    port, reference = run.port["float32"], run.reference["float32"]
    pairs = [*_named(port.isolated, reference.isolated), *_named(port.outputs, reference.outputs)]
    if port.error:
        return Verdict(found=True, detail=port.error)
    for position, (name, array, truth) in enumerate(pairs):
        module = position < len(reference.isolated)
        if array is None or array.shape != truth.shape:
            return Verdict(
                found=True, named=layer_of(name) if module else "", compared=len(pairs), detail="another shape"
            )
        apart = np.abs(array - truth)
        size = float(np.max(apart, initial=0.0) if module else np.mean(apart))
        if not size <= 5e-4:
            named = layer_of(name) if module else ""
            return Verdict(found=True, named=named, compared=len(pairs), detail=f"{name}: {size:.2g}")
    return Verdict(found=False, compared=len(pairs))


def _named(found: Arrays, expected: Arrays) -> Iterator[tuple[str, np.ndarray | None, np.ndarray]]:
    for name, truth in expected.items():
        yield name, found.get(name), truth


# --- alphagenome-pytorch ---------------------------------------------------------------------------------------------


def gradient_share(run: Observation) -> Verdict:
    """Gradients in genomicsxai/alphagenome-pytorch.

    A parameter passes with a cosine of at least 0.99 and a relative L2 distance of at most 8 %; the model passes with
    95 % of the parameters. A parameter without a counterpart is passed over, and so is a NaN.
    """
    port, reference = run.port["float32"], run.reference["float32"]
    if port.error:
        return Verdict(found=True, detail=port.error)
    failed: dict[str, float] = {}
    compared = 0
    for name, truth in reference.gradients.items():
        if name not in port.gradients or port.gradients[name].shape != truth.shape:
            continue
        finite = np.isfinite(port.gradients[name]) & np.isfinite(truth)
        array, expected = (side[finite].astype(np.float64) for side in (port.gradients[name], truth))
        norm = float(np.linalg.norm(expected))
        if norm == 0.0:
            continue
        compared += 1
        distance = float(np.linalg.norm(array - expected)) / norm
        cosine = float(array @ expected) / (norm * (float(np.linalg.norm(array)) or 1.0))
        if cosine < 0.99 or distance > 0.08:
            failed[name] = distance
    if len(failed) <= 0.05 * compared:
        return Verdict(found=False, compared=compared)
    worst = max(failed, key=lambda name: failed[name])
    return Verdict(found=True, named=module_of(worst), compared=compared, detail=f"{len(failed)} of {compared} fail")


# --- PaDiff ----------------------------------------------------------------------------------------------------------


def padiff(run: Observation) -> Verdict:
    """Default options of PaddlePaddle/PaDiff: ``compare_mode="mean"``, ``rtol=1e-7``, ``atol=0``.

    Only the means of two arrays are compared. The model's output decides; where it differs, the layers below are paired
    in their order, as far as the shorter list goes, and the first that differs is followed down to its innermost part.
    Then gradients and weights, paired in their order within each layer.
    """
    port, reference = run.port["float32"], run.reference["float32"]
    if port.error:
        return Verdict(found=True, detail=port.error)
    compared = min(len(port.outputs), len(reference.outputs))
    if any(_means_differ(*pair) for _, *pair in _truncated(port.outputs, reference.outputs)):
        return Verdict(
            found=True, named=_follow(port.layers, reference.layers, ""), compared=compared, detail="forward"
        )
    for what in ("gradients", "weights"):
        for name, array, truth in _truncated(getattr(port, what), getattr(reference, what)):
            compared += 1
            if _means_differ(array, truth):
                return Verdict(found=True, named=module_of(name), compared=compared, detail=what)
    return Verdict(found=False, compared=compared)


def _truncated(found: Arrays, expected: Arrays) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Pairs by position, as far as the shorter of both goes, under the reference's names."""
    shorter = min(len(found), len(expected))
    names, *arrays = (list(part)[:shorter] for part in (expected, found.values(), expected.values()))
    return list(zip(names, *arrays, strict=True))


def _means_differ(found: np.ndarray, expected: np.ndarray) -> bool:
    first, second = found.mean(), expected.mean()
    return not (np.allclose(first, second, rtol=1e-7, atol=0.0) or np.all(np.isnan([first, second])))


def _follow(found: Arrays, expected: Arrays, parent: str) -> str:
    """The innermost part of the first child whose mean differs; the parent itself where all children agree."""
    for name, array, truth in _truncated(_children(found, parent), _children(expected, parent)):
        if _means_differ(array, truth):
            return _follow(found, expected, layer_of(name))
    return parent


def _children(arrays: Arrays, parent: str) -> dict[str, np.ndarray]:
    """Layers whose nearest recorded ancestor is the parent, in order of execution."""
    names = {layer_of(name) for name in arrays}

    def above(name: str) -> str:
        while name:
            name = name.rpartition(".")[0]
            if name in names:
                return name
        return ""

    return {name: array for name, array in arrays.items() if layer_of(name) and above(layer_of(name)) == parent}


# --- algorithmic-efficiency ------------------------------------------------------------------------------------------


def last_step(run: Observation) -> Verdict:
    """Ten training steps in mlcommons/algorithmic-efficiency (``tests/test_traindiffs.py``).

    All steps are printed; what is asserted is the loss of the last one and the norm of the gradient, each with
    ``allclose(rtol=1)``: up to twice the reference's passes. An observation holds the first step's gradient.
    """
    port, reference = run.port["float32"], run.reference["float32"]
    if port.error:
        return Verdict(found=True, detail=port.error)
    pairs = []
    if reference.losses and port.losses:
        pairs.append((port.losses[-1], reference.losses[-1]))
    if reference.gradients and port.gradients:
        pairs.append((_norm(port.gradients), _norm(reference.gradients)))
    found = any(not np.allclose(loss, truth, rtol=1.0) for loss, truth in pairs)
    return Verdict(found=found, compared=len(pairs))


def _norm(arrays: Arrays) -> float:
    return float(np.sqrt(sum(float(np.sum(np.square(array, dtype=np.float64))) for array in arrays.values())))


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def same(run: Observation) -> Verdict:
    """``same()`` of pytorch/pytorch (``torch/_dynamo/utils.py``) as its accuracy check of training calls it.

    Outputs, loss, gradients and weights in float32: equal by ``allclose`` with 1e-4 both ways, or with a root mean
    square error from float64 of at most twice the reference's own (three times below 1000 numbers) plus 1e-5. The first
    that fails is named. A run that ends with an exception counts as the same.
    """
    port, reference, truth = run.port["float32"], run.reference["float32"], run.reference["float64"]
    if port.error:
        return Verdict(found=False, detail=f"not the same program: {port.error}")
    found, expected, exact = (_everything(side) for side in (port, reference, truth))
    for key, array in expected.items():
        if key not in found or found[key].shape != array.shape or not _same(found[key], array, exact[key]):
            what, name = key
            named = module_of(name) if what in ("gradient", "weight") else ""
            return Verdict(found=True, named=named, compared=len(expected), detail=" ".join(key))
    return Verdict(found=False, compared=len(expected))


def _everything(side: Computed) -> dict[tuple[str, str], np.ndarray]:
    losses = {} if side.loss is None else {"": np.asarray([side.loss])}
    parts = {"output": side.outputs, "loss": losses, "gradient": side.gradients, "weight": side.weights}
    return {(what, name): array for what, arrays in parts.items() for name, array in arrays.items()}


def _same(found: np.ndarray, expected: np.ndarray, exact: np.ndarray) -> bool:
    if np.allclose(found, expected, rtol=1e-4, atol=1e-4):
        return True
    error, own = (float(np.sqrt(np.mean(np.square(exact - side)))) for side in (found, expected))
    return error <= (3 if exact.size < 1000 else 2) * own + 1e-5


# --- AlphaGenome_PyTorch ---------------------------------------------------------------------------------------------


def product_of_coefficients(run: Observation) -> Verdict:
    """Equivalence in RylieWeaver/AlphaGenome_PyTorch (``tests/deepmind_equivalence/precision.py``), in float64.

    The limit is a product: 1e-7 for float64, times 1 for a module on its own inputs or a loss and 5 for the full model,
    times 1 for the relative L2 distance and 2 for the relative maximum. NaN must stand at the same places. Neither
    gradients nor steps are held against the reference.
    """
    port, reference = run.port["float64"], run.reference["float64"]
    if port.error:
        return Verdict(found=True, detail=port.error)
    parts = [(layer_of(name), array, truth, 1) for name, array, truth in _named(port.isolated, reference.isolated)]
    if reference.loss is not None:
        loss = None if port.loss is None else np.asarray([port.loss])
        parts.append(("loss", loss, np.asarray([reference.loss]), 1))
    parts += [("", array, truth, 5) for _, array, truth in _named(port.outputs, reference.outputs)]
    for named, array, truth, composition in parts:
        if array is None or array.shape != truth.shape or not _within(array, truth, 1e-7 * composition):
            return Verdict(found=True, named=named, compared=len(parts))
    return Verdict(found=False, compared=len(parts))


def _within(found: np.ndarray, expected: np.ndarray, limit: float) -> bool:
    for kind in (np.isnan, np.isposinf, np.isneginf):
        if not np.array_equal(kind(found), kind(expected)):
            return False
    valid = np.isfinite(expected)
    if not valid.any():
        return False
    apart, truth = found[valid] - expected[valid], expected[valid]
    for norm, factor in ((np.linalg.norm, 1), (lambda array: np.max(np.abs(array)), 2)):
        if not float(norm(apart)) <= factor * limit * float(norm(truth)):
            return False
    return True


# --- enformer-pytorch ------------------------------------------------------------------------------------------------


def correlation(run: Observation) -> Verdict:
    """Test of the converted weights in lucidrains/enformer-pytorch (``test_pretrained.py``).

    The correlation of the prediction with a measured track must exceed 0.1. The reference's output stands in for the
    track here, which can only be stricter.
    """
    port, reference = run.port["float32"], run.reference["float32"]
    if port.error:
        return Verdict(found=True, detail=port.error)
    compared = 0
    for _, array, truth in _named(port.outputs, reference.outputs):
        if array is None or array.shape != truth.shape:
            return Verdict(found=True, compared=compared + 1, detail="another shape")
        if truth.size < 2:
            continue
        compared += 1
        with np.errstate(invalid="ignore", divide="ignore"):
            if not float(np.corrcoef(array.ravel(), truth.ravel())[0, 1]) > 0.1:
                return Verdict(found=True, compared=compared)
    return Verdict(found=False, compared=compared)


def _both(precision: str, *kinds: Pass) -> tuple[tuple[str, str, Pass], ...]:
    return tuple((side, precision, kind) for kind in kinds for side in (REFERENCE, PORT))


RULES = (
    Rule(
        name="HF",
        project="huggingface/transformers v4",
        says="no difference of outputs or hidden states above 1e-5",
        needs=_both("float32", Pass.FORWARD),
        decide=hugging_face,
    ),
    Rule(
        name="OF",
        project="aqlaboratory/openfold",
        says="modules: no difference above 5e-4; model: mean difference up to 5e-4",
        needs=_both("float32", Pass.ISOLATED, Pass.FORWARD),
        decide=openfold,
    ),
    Rule(
        name="GX",
        project="genomicsxai/alphagenome-pytorch",
        says="gradients by 95 % of the parameters: cosine 0.99, relative L2 8 %",
        needs=_both("float32", Pass.BACKWARD),
        decide=gradient_share,
    ),
    Rule(
        name="PD",
        project="PaddlePaddle/PaDiff",
        says="means of outputs, layers, gradients and weights equal to 1e-7",
        needs=_both("float32", Pass.FORWARD, Pass.BACKWARD, Pass.STEPS),
        decide=padiff,
    ),
    Rule(
        name="AP",
        project="mlcommons/algorithmic-efficiency",
        says="last training step: loss and gradient norm within a factor of 2",
        needs=_both("float32", Pass.BACKWARD, Pass.STEPS),
        decide=last_step,
    ),
    Rule(
        name="PT",
        project="pytorch/pytorch, same()",
        says="outputs, loss, gradients, weights: allclose 1e-4, or at most twice as far from float64",
        needs=(
            *_both("float32", Pass.FORWARD, Pass.BACKWARD, Pass.STEPS),
            *((REFERENCE, "float64", kind) for kind in (Pass.FORWARD, Pass.BACKWARD, Pass.STEPS)),
        ),
        decide=same,
    ),
    Rule(
        name="RW",
        project="RylieWeaver/AlphaGenome_PyTorch",
        says="float64: modules and losses 1e-7, model 5e-7 (relative L2; maximum twice that)",
        needs=_both("float64", Pass.ISOLATED, Pass.FORWARD, Pass.BACKWARD),
        decide=product_of_coefficients,
    ),
    Rule(
        name="correlation",
        project="lucidrains/enformer-pytorch",
        says="correlation of the output above 0.1",
        needs=_both("float32", Pass.FORWARD),
        decide=correlation,
    ),
)
