"""The convergence rung of EpiBERT: reference and port, each trained by its own stack on the same small task.

What the two runs of a pair have in common decides what the test can see. In common are the task, the order of the
batches, the recipe in words (``Recipe``) and the initial weights, drawn by the reference's initialisers and moved by
``weights.transplant``: a difference there would be one of the experiment. Everything that is being tested is each
stack's own: forward and backward pass, loss, optimizer, clipping, schedule, BatchNorm statistics, the switch between
training and evaluation, and dropout, of which each draws its own masks. The reference is trained by a loop around a
``tf.function``, the port by a Lightning Trainer, each in a process of its own.

Neither side is favoured. The port gets nothing from the reference but its starting point; both are scored by one
function, in float64, on their predictions, so a loss that is wrong cannot flatter itself; all runs learn from the same
examples, so differences between data do not widen the margin; and what the margin is measured with are runs of the
reference alone. Pairing takes from the differences what initial weights and order contribute.

The measurement trains the reference twice for each seed, with other dropout masks: from seed to seed it gives the
spread that the margin is a share of, and from its pairs the deviation that the number of pairs was planned with.

    python -m parity.pairs.epibert_convergence                          one rung; exit status 0 when it passes
    python -m parity.pairs.epibert_convergence --measure_pairs 30             measures the reference's spread anew
    python -m parity.pairs.epibert_convergence --repeat 20 --out FILE   repetitions with fresh seeds, one line each
"""

import contextlib
import dataclasses
import functools
import json
import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity import ledger
from parity.convergence import (
    Margin,
    Run,
    Side,
    equivalence_power,
    find_equivalences,
    judge_convergence,
    pairs_needed,
)
from parity.pairs import planted_motifs
from parity.pairs.planted_motifs import MOTIFS, Examples
from parity.records import Comparison, Status

if TYPE_CHECKING:
    from torch_impl import EpiBERT
    from torch_impl.epibert_lightning import EpiBERTLightning

CASE = "planted motifs"
MEASURED = Path(__file__).with_suffix(".json")
COMMAND = "python -m parity.pairs.epibert_convergence --measure_pairs 30"
FIRST_SEED = 1
MEASURED_FROM = 1_000_001
"""First seed of the measurement: far from those of the rung and its repetitions, so no pair is judged by itself."""

PAIRS = 24
TRAINING_EXAMPLES = 512
VALIDATION_EXAMPLES = 128
QUANTITIES = ("losses", "pearsons")

ARGUMENTS: Mapping[str, Any] = {
    "output_length": 32,
    "final_output_length": 28,
    "max_seq_length": 32,
    "num_heads": 2,
    "num_transformer_layers": 1,
    "filter_list_seq": (16, 24),
    "filter_list_atac": (16,),
    "final_point_scale": 2,
    "num_motifs": len(MOTIFS),
    "seed": 21,
}
"""Of the original's constructor. Rates of dropout and the BatchNorm momentum are its defaults."""

# Entropy of the random streams of one seed: no two of them alike, none shared by the two sides but the first two.
INITIAL_WEIGHTS, ORDER, REFERENCE_DROPOUT, PORT_DROPOUT, OTHER_REFERENCE_DROPOUT = range(5)

Weights = Mapping[str, np.ndarray]
Constants = tuple[np.ndarray, np.ndarray | None]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both stacks are told, each in its own words; the kind of the original's, in small.

    Rates are high because the run is short: training must get to where seeds agree. Weight decay is that of the
    original's fine-tuning, stronger by the same reason; its pre-training has none, and what has none cannot be wrong.

    Attributes:
        epochs: Passes over the training examples.
        batch: Examples in a step.
        peak: Highest learning rate.
        warmup: Steps up to it.
        floor: Share of it that remains after the last step.
        epsilon: Keras' epsilon of AdamW.
        weight_decay: Of kernels, times the learning rate.
        global_clipnorm: Largest norm of all gradients together.
    """

    epochs: int = 3
    batch: int = 16
    peak: float = 1e-2
    warmup: int = 16
    floor: float = 0.1
    epsilon: float = 1e-8
    weight_decay: float = 1e-2
    global_clipnorm: float = 1.0

    @property
    def decay(self) -> int:
        """Steps from the peak to the floor."""
        return self.epochs * (TRAINING_EXAMPLES // self.batch) - self.warmup

    @property
    def module(self) -> dict[str, Any]:
        """In the words of the port's LightningModules."""
        names = ("peak", "warmup", "decay", "floor", "epsilon", "weight_decay", "global_clipnorm")
        return {name: getattr(self, name) for name in names}


RECIPE = Recipe()


# --- what both sides share -------------------------------------------------------------------------------------------


@functools.cache
def examples() -> tuple[Examples, Examples]:
    """Training and validation examples: the same for every seed."""
    bin_length = 2 ** (1 + len(ARGUMENTS["filter_list_seq"]))
    values_per_bin = 2 * 4 ** len(ARGUMENTS["filter_list_atac"])
    bins = ARGUMENTS["output_length"]
    shape = {
        "bins": bins,
        "crop": (bins - ARGUMENTS["final_output_length"]) // 2,
        "bin_length": bin_length,
        "values_per_bin": values_per_bin,
    }
    return planted_motifs.draw(1, TRAINING_EXAMPLES, **shape), planted_motifs.draw(2, VALIDATION_EXAMPLES, **shape)


def stream(seed: int, purpose: int) -> int:
    """A 31-bit seed for one purpose of a run."""
    return int(np.random.SeedSequence((seed, purpose)).generate_state(1)[0]) >> 1


def order(seed: int, epoch: int) -> list[np.ndarray]:
    """Which examples make up which step of an epoch."""
    generator = np.random.default_rng((stream(seed, ORDER), epoch))
    return np.split(generator.permutation(TRAINING_EXAMPLES), TRAINING_EXAMPLES // RECIPE.batch)


def score(prediction: np.ndarray) -> tuple[float, float]:
    """Poisson loss (spec, section 3.1) and Pearson correlation on all masked bins of the validation examples."""
    validation = examples()[1]
    masked = validation.mask[..., 0] == 1
    p = prediction.reshape(masked.shape)[masked].astype(np.float64)
    y = validation.target[..., 0][masked].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean(p - y * np.log(p + 1e-7))), float(np.corrcoef(p, y)[0, 1])


def _finished(side: Side, seed: int, quantities: Sequence[str], scores: Sequence[Sequence[float]]) -> Run:
    """A run from what it scored before training and after each epoch, in the order of the quantities."""
    found = dict(zip(quantities, zip(*scores, strict=True), strict=True))
    losses, pearsons = (found.pop(quantity) for quantity in QUANTITIES)
    return Run(side=side, seed=seed, losses=losses, pearsons=pearsons, others=found)


# --- the reference's stack -------------------------------------------------------------------------------------------


class ReferenceStack:
    """The reference and its compiled steps, which every run starts anew.

    One model serves all runs, because tracing it takes as long as training it: weights, slots, step counter and the
    generators of dropout are set at the start of each run.

    Attributes:
        quantities: What a run is scored by, in the order of its scores.
    """

    quantities: tuple[str, ...] = QUANTITIES

    def __init__(self) -> None:
        import tensorflow as tf
        import tf_keras

        from tf_reference import optim

        # Dropout then keeps its state in variables, which can be set; else it is baked into the traced graph.
        tf_keras.backend.experimental.enable_tf_random_generator()
        self.tf, self.keras = tf, tf_keras
        self.model = self._model()
        self.optimizers = [
            optim.adamw(
                weight_decay=RECIPE.weight_decay, epsilon=RECIPE.epsilon, global_clipnorm=RECIPE.global_clipnorm
            )
            for _ in self._trained()
        ]
        for optimizer, variables in zip(self.optimizers, self._trained(), strict=True):
            optimizer.build(variables)
        self.step = self._step()
        self.schedule = functools.partial(
            optim.cosine_warmup, peak=RECIPE.peak, warmup=RECIPE.warmup, decay=RECIPE.decay, floor=RECIPE.floor
        )
        self.predict = tf.function(lambda inputs: self.model(inputs, training=False), autograph=False)
        self.validation = tuple(tf.constant(array) for array in examples()[1].arrays)

    def _model(self) -> Any:
        import tf_reference

        return tf_reference.EpiBERT(**ARGUMENTS, dtype="float32").build_weights()

    def _trained(self) -> Sequence[Sequence[Any]]:
        """The variables of each optimizer."""
        return [self.model.trainable_variables]

    def _step(self) -> Callable[..., Any]:
        """From a batch as tensors to one training step."""
        from tf_reference.training import pretraining_step

        step = pretraining_step(self.model, self.optimizers[0], loss_type="poisson")

        def take(sequence: Any, atac: Any, mask: Any, _: Any, target: Any, motif_activity: Any) -> None:
            step((sequence, atac, motif_activity), target, mask, None)

        return take

    def _batch(self, training: Examples, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        return training.take(indices)

    def _scored(self, outputs: Any) -> Sequence[float]:
        return score(outputs.numpy())

    def initial(self, seed: int) -> dict[str, np.ndarray]:
        """Weights as the reference's initialisers draw them, by their keys in a checkpoint."""
        self.keras.utils.set_random_seed(stream(seed, INITIAL_WEIGHTS))
        drawn: dict[int, np.ndarray] = {}
        for layer in self.model.submodules:
            for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"):
                variable, initializer = getattr(layer, name, None), getattr(layer, f"{name}_initializer", None)
                if variable is not None and initializer is not None:
                    # A copy, because an initialiser returns the same numbers whenever it is called.
                    fresh = type(initializer).from_config(initializer.get_config())
                    drawn[id(variable)] = fresh(variable.shape, variable.dtype).numpy()
        return {key: drawn[id(variable)] for key, variable in self.model.checkpoint_variables().items()}

    def train(self, seed: int, dropout: int) -> Run:
        """One run."""
        self.model.assign(self.initial(seed))
        for optimizer in self.optimizers:
            for variable in optimizer.variables:
                variable.assign(self.tf.zeros_like(variable))
        for index, layer in enumerate(self._dropouts()):
            layer._random_generator._maybe_init()
            layer._random_generator._generator.reset_from_seed(stream(stream(seed, dropout), index))
        training = examples()[0]
        scores = [self._score()]
        step = 0
        for epoch in range(RECIPE.epochs):
            for indices in order(seed, epoch):
                for optimizer in self.optimizers:
                    optimizer.learning_rate = self.schedule(step)
                self.step(*map(self.tf.constant, self._batch(training, indices)))
                step += 1
            scores.append(self._score())
        return _finished(Side.REFERENCE, seed, self.quantities, scores)

    def _score(self) -> Sequence[float]:
        sequence, atac, _, _, _, motif_activity = self.validation
        return self._scored(self.predict((sequence, atac, motif_activity)))

    def _dropouts(self) -> list[Any]:
        return [layer for layer in self.model.submodules if isinstance(layer, self.keras.layers.Dropout)]


@functools.cache
def _only(stack: type[ReferenceStack]) -> ReferenceStack:
    """The one of its kind in a process."""
    return stack()


def initial_weights(stack: type[ReferenceStack], seed: int) -> dict[str, np.ndarray]:
    """In the reference's process: see ``ReferenceStack.initial``."""
    return _only(stack).initial(seed)


def constants(stack: type[ReferenceStack]) -> Constants:
    """In the reference's process: projection matrix and rotary table, which no checkpoint holds."""
    return _only(stack).model.get_constants()


def train_reference(stack: type[ReferenceStack], seed: int, dropout: int = REFERENCE_DROPOUT) -> Run:
    """In the reference's process: one run."""
    return _only(stack).train(seed, dropout)


# --- the port's stack ------------------------------------------------------------------------------------------------


def train_port(
    seed: int,
    initial: Weights,
    constants: Constants,
    prepare_port: Callable[["EpiBERT"], None] | None = None,
    port_training: Callable[["EpiBERTLightning"], None] | None = None,
) -> Run:
    """In the port's process: one run by a Lightning Trainer.

    Args:
        seed: Of the pair.
        initial: Weights to start from, by checkpoint key.
        constants: Projection matrix and rotary table.
        prepare_port: Called with the model before training; tests inject faults here.
        port_training: Called with the Lightning module before training, for faults that are none of the model's.
    """
    from torch_impl import EpiBERTConfig
    from torch_impl.epibert_lightning import EpiBERTLightning

    def make() -> EpiBERTLightning:
        return EpiBERTLightning(EpiBERTConfig(**ARGUMENTS), **RECIPE.module)

    training, validation = (chosen.arrays for chosen in examples())
    return train_module(
        make,
        seed,
        initial,
        constants,
        training=training,
        validation=validation,
        scored=lambda outputs: score(outputs.numpy()),
        prepare_port=prepare_port,
        port_training=port_training,
    )


def train_module(
    make: Callable[[], Any],
    seed: int,
    initial: Weights,
    constants: Constants,
    *,
    training: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    scored: Callable[[Any], Sequence[float]],
    quantities: Sequence[str] = QUANTITIES,
    prepare_port: Callable[[Any], None] | None,
    port_training: Callable[[Any], None] | None,
) -> Run:
    """One run of a LightningModule.

    Args:
        make: Makes the module; PyTorch's generator has the run's own seed by then.
        seed: As for ``train_port``, as are the arguments of the same names.
        initial: As for ``train_port``.
        constants: As for ``train_port``.
        training: Arrays of a batch, examples first.
        validation: Likewise.
        scored: From what a validation step returns to the quantities.
        quantities: What is scored.
        prepare_port: As for ``train_port``.
        port_training: As for ``train_port``.
    """
    import lightning
    import torch
    from lightning.pytorch.callbacks import Callback
    from torch.utils.data import DataLoader, Sampler, TensorDataset

    from weights import transplant

    class Order(Sampler):
        """The steps of an epoch; the Trainer says which."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[Any]:
            return iter([torch.from_numpy(indices) for indices in order(seed, self.epoch)])

        def __len__(self) -> int:
            return TRAINING_EXAMPLES // RECIPE.batch

    class Scores(Callback):
        """Scores the predictions of every validation."""

        def __init__(self) -> None:
            self.scores: list[Sequence[float]] = []

        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            self.scores.append(scored(outputs))

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(stream(seed, PORT_DROPOUT))
    module = make()
    transplant(initial, module.model, constants=(*constants, "reference"))
    if prepare_port is not None:
        prepare_port(module.model)
    if port_training is not None:
        port_training(module)
    sets = [TensorDataset(*map(torch.from_numpy, arrays)) for arrays in (training, validation)]
    scores = Scores()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=RECIPE.epochs,
        num_sanity_val_steps=0,
        callbacks=[scores],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    steps = DataLoader(sets[0], batch_size=None, sampler=Order())
    whole = DataLoader(sets[1], batch_size=len(sets[1]))
    with warnings.catch_warnings():
        # Workers for the loader would take longer to start than the run lasts.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")  # Lightning's own use of PyTorch
        trainer.validate(module, whole, verbose=False)
        trainer.fit(module, steps, whole)
    return _finished(Side.PORT, seed, quantities, scores.scores)


# --- the rung --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained on the task, and how; class and function are ones that a process finds by their names.

    Attributes:
        case: Name of the case.
        measured: File that the margins come from.
        command: What measures it anew.
        stack: The reference and its steps, whose ``quantities`` are compared.
        train_port: As the function of that name.
        conditions: What the spread depends on beside the task, as plain data.
    """

    case: str
    measured: Path
    command: str
    stack: type[ReferenceStack]
    train_port: Callable[..., Run]
    conditions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


PRETRAINING = Experiment(
    case=CASE,
    measured=MEASURED,
    command=COMMAND,
    stack=ReferenceStack,
    train_port=train_port,
)


def measured(experiment: Experiment = PRETRAINING) -> dict[str, Any]:
    """What ``--measure_pairs`` found.

    Raises:
        ValueError: It was measured with another recipe, model or task than the present one.
    """
    found = json.loads(experiment.measured.read_text(encoding="utf-8"))
    complete = all(run.keys() == set(experiment.stack.quantities) for pair in found["runs"] for run in pair)
    if found["conditions"] != conditions(experiment) or not complete:
        raise ValueError(
            f"{experiment.measured.name} was measured under other conditions; measure again: {experiment.command}"
        )
    return found


def conditions(experiment: Experiment = PRETRAINING) -> dict[str, Any]:
    """Everything that the reference's spread depends on, as JSON gives it back."""
    training, validation = examples()
    described = {
        "recipe": dataclasses.asdict(RECIPE),
        "arguments": dict(ARGUMENTS),
        "examples": [len(training), len(validation)],
        # Not a hash: sums survive a NumPy that orders its draws the same and rounds them otherwise.
        "counts": [float(training.target.sum()), float(validation.target.sum())],
        **experiment.conditions,
    }
    return json.loads(json.dumps(described))


def margins(
    runs: Sequence[Sequence[Mapping[str, Any]]] | None = None, experiment: Experiment = PRETRAINING
) -> tuple[Margin, ...]:
    """What was declared: derived from the reference's runs that ``--measure_pairs`` kept.

    Args:
        runs: For each seed two runs of the reference, with their losses and Pearson correlations before training and
            after it; those of the file when None.
        experiment: Whose.
    """
    pairs = measured(experiment)["runs"] if runs is None else runs
    declared = []
    for quantity in experiment.stack.quantities:
        first, last = (np.array([[run[quantity][end] for run in pair] for pair in pairs]) for end in (0, -1))
        declared.append(
            Margin(
                quantity=quantity,
                # The two runs of a seed resemble each other, so each column is a sample by itself.
                spread=float(np.sqrt(np.mean(np.var(last, axis=0, ddof=1)))),
                change=float(np.mean(last - first)),
                paired_deviation=float(np.std(last[:, 1] - last[:, 0], ddof=1)),
            )
        )
    return tuple(declared)


def run_convergence(
    first_seed: int = FIRST_SEED,
    pairs: int = PAIRS,
    *,
    say: Say = lambda text: None,
    prepare_port: Callable[[Any], None] | None = None,
    port_training: Callable[[Any], None] | None = None,
    reference_runs: Sequence[Run] = (),
    experiment: Experiment = PRETRAINING,
) -> tuple[tuple[Run, ...], list[Comparison]]:
    """Trains every pair and judges.

    Args:
        first_seed: Pairs have this seed and those after it.
        pairs: How many.
        say: Told what is going on.
        prepare_port: Called with each model of the port before it is trained; tests inject faults here. It runs in
            another process, so it must be importable by its name.
        port_training: The same for the Lightning module.
        reference_runs: Runs of the reference from an earlier call with these seeds, which are not trained again.
        experiment: What is trained.

    Returns:
        (all runs, the comparisons of the rung). A run that fails, and all that a dead process leaves undone, carry
        their error and make their rows fail.
    """
    seeds = range(first_seed, first_seed + pairs)
    known = {run.seed: run for run in reference_runs}
    waiting: dict[tuple[Side, int], Future[Run]] = {}
    runs: dict[tuple[Side, int], Run] = {(Side.REFERENCE, seed): known[seed] for seed in seeds if seed in known}
    with processes(2) as (reference, port):
        shared = _submit(reference, constants, experiment.stack)
        initial = {seed: _submit(reference, initial_weights, experiment.stack, seed) for seed in seeds}
        for seed in seeds:
            if seed not in known:
                waiting[Side.REFERENCE, seed] = _submit(reference, train_reference, experiment.stack, seed)
        for seed in seeds:
            waiting[Side.PORT, seed] = _submit(
                port, experiment.train_port, seed, initial[seed], shared, prepare_port, port_training
            )
        for count, ((side, seed), future) in enumerate(waiting.items()):
            say(f"convergence: {count} of {len(waiting)} runs")
            try:
                runs[side, seed] = future.result()
            except Exception as error:  # noqa: BLE001  whatever it was, this run failed by it
                runs[side, seed] = Run(side=side, seed=seed, error=f"{type(error).__name__}: {error}")
    everything = tuple(runs[side, seed] for side in Side for seed in seeds)
    declared = margins(experiment=experiment)
    return everything, judge_convergence(everything, declared, seeds=seeds, case=experiment.case)


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Hands work to a process, waiting for those of its arguments that are in work themselves; never raises."""
    try:
        ready = [argument.result() if isinstance(argument, Future) else argument for argument in arguments]
        return pool.submit(function, *ready)
    except Exception as error:  # noqa: BLE001  whatever it was, this work failed by it
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed


ENVIRONMENT = {
    # One thread each: sums have one order, and two processes fit two cores.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_DETERMINISTIC_OPS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
}


def _end_with_parent() -> None:
    """Ends this process when its parent is killed; it would wait for work forever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def processes(count: int) -> Iterator[list[ProcessPoolExecutor]]:
    """Pools of one fresh process each, which start when they get work; the rest of the work is dropped at the end."""
    kept = {name: os.environ.get(name) for name in ENVIRONMENT}
    # Read by the frameworks when a process imports them, which is before it could be told otherwise.
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent) for _ in range(count)]
    try:
        yield pools
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- measuring, repeating --------------------------------------------------------------------------------------------


def measure(pairs: int, say: Say = print, experiment: Experiment = PRETRAINING) -> None:
    """Trains the reference twice for each of many seeds and writes the file that the margins come from."""
    seeds = range(MEASURED_FROM, MEASURED_FROM + pairs)
    with processes(2) as pools:
        futures = [
            [pool.submit(train_reference, experiment.stack, seed, dropout) for seed in seeds]
            for pool, dropout in zip(pools, (REFERENCE_DROPOUT, OTHER_REFERENCE_DROPOUT), strict=True)
        ]
        runs = []
        for seed, *pair in zip(seeds, *futures, strict=True):
            say(f"seed {seed}")
            runs.append(
                [
                    {name: [run.values(name)[0], run.values(name)[-1]] for name in experiment.stack.quantities}
                    for run in (future.result() for future in pair)
                ]
            )
    text = json.dumps(
        {
            "command": experiment.command,
            "conditions": conditions(experiment),
            "first seed": MEASURED_FROM,
            "runs": runs,
        },
        indent=1,
    )
    experiment.measured.write_text(text + "\n", encoding="utf-8")
    for line in describe(experiment):
        say(line)


def describe(experiment: Experiment = PRETRAINING) -> Iterator[str]:
    """What was declared, and what it asks for, in words."""
    for declared in margins(experiment=experiment):
        needed = [pairs_needed(declared.margin, declared.paired_deviation, power) for power in (0.9, 0.99, 0.999)]
        power = equivalence_power(PAIRS, declared.margin, declared.paired_deviation)
        yield (
            f"{declared.quantity}: spread {declared.spread:.4f}, margin ±{declared.margin:.4f}, paired deviation "
            f"{declared.paired_deviation:.4f}, change {declared.change:.3f}; pairs for a power of 0.9, 0.99, 0.999: "
            f"{needed}; power of {PAIRS} pairs {power:.5f}"
        )


def summary(
    runs: Sequence[Run], rows: Sequence[Comparison], seeds: Sequence[int], experiment: Experiment = PRETRAINING
) -> dict[str, Any]:
    """One repetition as plain data, with the ledger's fingerprint of the content that it speaks about."""
    failures = [row for row in rows if row.status is not Status.PASS]
    return {
        "content": ledger.fingerprint(ledger.content()),
        "first seed": seeds[0],
        "pairs": len(seeds),
        "passed": not failures,
        "failures": [f"{row.reference} {row.port} {row.quantity}: {row.status}, {row.detail}" for row in failures],
        "equivalence": {
            quantity: dataclasses.asdict(decision)
            for quantity, decision in find_equivalences(runs, margins(experiment=experiment), seeds=seeds).items()
        },
    }


def converge(
    repeat: int = 1, first_seed: int = FIRST_SEED, pairs: int = PAIRS, out: str | None = None, measure_pairs: int = 0
) -> int:
    """Train reference and port on planted motifs and test whether they arrive at the same place.

    For measuring by hand: it asks for no proof of the rungs before and so claims nothing. `epibert parity --gates
    convergence` and `make convergence` do. Exit status 0: every repetition passed; 1: not.

    Args:
        repeat: Repetitions, each with seeds of its own.
        first_seed: The first seed of the first repetition.
        pairs: Pairs in a repetition.
        out: File for one JSON line for each repetition; those that it holds already are not run again.
        measure_pairs: Measure the reference's own spread with this many seeds instead.

    Raises:
        ValueError: The file holds repetitions of other sources, versions or another machine, or they change meanwhile.
    """
    return repeated(PRETRAINING, repeat, first_seed, pairs, out, measure_pairs)


def repeated(
    experiment: Experiment, repeat: int, first_seed: int, pairs: int, out: str | None, measure_pairs: int
) -> int:
    """What ``converge`` does, for any experiment."""
    if measure_pairs:
        measure(measure_pairs, experiment=experiment)
        return 0
    for line in describe(experiment):
        print(line)
    present = ledger.fingerprint(ledger.content())
    file = None if out is None else Path(out)
    done: list[dict[str, Any]] = []
    if file is not None and file.exists():
        done = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if any(entry["content"] != present for entry in done):
            raise ValueError(
                f"{file} holds repetitions of other sources, versions or another machine; name another file"
            )
    finished = {entry["first seed"]: entry["passed"] for entry in done if entry["pairs"] == pairs}
    passed = 0
    for start in range(first_seed, first_seed + repeat * pairs, pairs):
        if start not in finished:
            started = time.perf_counter()
            runs, rows = run_convergence(start, pairs, experiment=experiment)
            entry = summary(runs, rows, range(start, start + pairs), experiment)
            if entry["content"] != present:
                raise ValueError("sources or versions changed during the repetitions; begin again")
            entry["seconds"] = round(time.perf_counter() - started, 1)
            finished[start] = entry["passed"]
            verdict = "passed" if entry["passed"] else "FAILED"
            print(f"seeds {start} to {start + pairs - 1}: {verdict}, {entry['seconds']} s")
            for row in rows:
                if row.status is not Status.PASS or row.shape == (pairs,):
                    print(f"  {row.reference}{row.port} {row.quantity}: {row.status}, {row.detail}")
            if file is not None:
                with file.open("a", encoding="utf-8") as stream_:
                    stream_.write(json.dumps(entry) + "\n")
        passed += finished[start]
    print(f"{passed} of {repeat} passed")
    return 0 if passed == repeat else 1


if __name__ == "__main__":
    import sys

    from jsonargparse import auto_cli

    # By its own name, so that what is sent to the processes is found there.
    from parity.pairs.epibert_convergence import converge as command

    try:
        sys.exit(auto_cli(command, as_positional=False))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
