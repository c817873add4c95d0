"""``epibert train fit | validate | test | predict``: LightningCLI, with what every run of ours has in addition.

Model, data, trainer and callbacks are those of the configuration (``configs/``), chosen by ``class_path``; every value
can be overridden on the command line, and ``--print_config`` shows them all. Always there: ``ResumableTraining`` and
``FiniteTraining``, and checkpoints that are written as a whole and read without running code.

Exit status 0: done. 1: training has gone to NaN or infinity. 2: wrong use or bad input, with one line that says what.
130: interrupted (SIGINT); the last checkpoint resumes. 143: asked to end (SIGTERM); ``last.ckpt``, written between two
steps of training, resumes.
"""

import functools
import inspect
import operator
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from torch_impl.callbacks import FiniteTraining, NonFiniteError, ResumableTraining
from torch_impl.checkpointing import SafeCheckpointIO, TrainingError, read_checkpoint_file
from torch_impl.data.examples import check_count
from torch_impl.data.records import DataError
from torch_impl.early_stopping import EpiBERTEarlyStopping
from torch_impl.sharded_checkpoint import check_sharded_checkpoint

DONE, DIVERGED, WRONG_USE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
USER_ERRORS = (TrainingError, DataError, MisconfigurationException, OSError, ModuleNotFoundError)

DESCRIPTION = "Train, validate, test and predict with EpiBERT in PyTorch Lightning."

MakeInitializer = Callable[..., Callback]
"""From a path, whether to take optimizer state and step from there as well, and the keyword ``allow`` (what may happen
without a word on the way from a pretrained model to one for fine-tuning): a callback that fills the model, and whose
``fills_model`` is true."""


class _KnownWeights(Callback):
    """Says where the weights come from when that turns out otherwise than asked.

    Lightning only warns when there is no checkpoint that ``--ckpt_path last`` could mean.
    """

    def __init__(self, asked: str | None) -> None:
        self.asked = asked

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Says that a run begins which was to go on if it could."""
        if self.asked is not None and trainer.ckpt_path is None:
            trainer.print(f"--ckpt_path {self.asked}: there is no such checkpoint, so the run begins anew")

    def _check(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Refuses to evaluate a model that is as it was drawn.

        Raises:
            TrainingError: Neither a checkpoint nor a callback has filled it.
        """
        evaluating = trainer.state.fn != TrainerFn.FITTING
        filled = any(getattr(callback, "fills_model", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if evaluating and not filled and trainer.ckpt_path is None:
            raise TrainingError(f"--ckpt_path {self.asked}: there is no such checkpoint to take the weights from")

    on_validation_start = on_test_start = on_predict_start = _check


class Command(LightningCLI):
    """LightningCLI for any module and data module.

    Args:
        arguments: Of the command line.
        initializer: What ``--init_from`` is for; without it the option is refused.
        program: Name shown in the help.
    """

    def __init__(self, arguments: Sequence[str], *, initializer: MakeInitializer | None, program: str) -> None:
        self.initializer = initializer
        _read_whole_numbers_as_such()
        kinds = {"model_class": lightning.LightningModule, "datamodule_class": lightning.LightningDataModule}
        super().__init__(
            **kinds,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveConfigCallback,
            # A run that resumes in its folder writes the configuration that it has now.
            save_config_kwargs={"overwrite": True},
            # The modules save their hyperparameters themselves, as plain values.
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
            parser_kwargs={"prog": program, "description": DESCRIPTION, "exit_on_error": False},
            args=list(arguments),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds where to start from."""
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Fill the model from this before the first step: a TensorFlow checkpoint (prefix or directory), "
            "SavedModel or Keras .h5, a folder that `epibert weights transplant` wrote, or a Lightning checkpoint. "
            "Ignored when --ckpt_path resumes a run.",
        )
        parser.add_argument(
            "--init_training_state",
            type=bool,
            default=False,
            help="With --init_from: take the state of the optimizers and the number of steps from there as well, and "
            "go on at that step.",
        )

        parser.add_argument(
            "--init_allow",
            type=str,
            default="",
            help="With --init_from a pretrained model, for fine-tuning: what `epibert weights transfer --allow` names, "
            "separated by commas.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning does, without its warning that arguments of the process are not used."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyperparameters in the place of the configuration's, without a word. Here
        # the configuration counts, and the module refuses a checkpoint of another model.
        path = self.config[self.config["subcommand"]].get("ckpt_path")
        if path not in (None, "last", "best", "hpc"):
            if Path(path).is_dir():
                check_sharded_checkpoint(path)
            else:
                read_checkpoint_file(path)

    def instantiate_classes(self) -> None:
        """As Lightning does; what a constructor refuses, it refuses in its arguments, which are the user's."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            first: BaseException = error
            while first.__cause__ is not None:
                first = first.__cause__
            raise TrainingError(_condensed(str(first))) from error

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Adds what every run has.

        Raises:
            TrainingError: ``--init_from`` and a callback both fill the model.
            ValueError: Something would be done after none of many, or after more than anyone counts to.
        """
        asked = self._get(self.config_init, "ckpt_path")
        always: list[Any] = [_KnownWeights(asked), ResumableTraining(), FiniteTraining()]
        initializer = self._initializer()
        if initializer is not None:
            if any(isinstance(callback, type(initializer)) for callback in _listed(self._callbacks())):
                raise TrainingError(f"--init_from and a callback {type(initializer).__name__}: one of them is too many")
            always.append(initializer)
        settings = self._get(self.config_init, "trainer")
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
            if settings[name] is not None:
                check_count(name, settings[name])
        if settings["val_check_interval"] == 0:
            raise ValueError("val_check_interval must be above 0")
        given = {type(callback) for callback in _listed(settings["callbacks"])}
        settings["callbacks"] = [*(c for c in always if type(c) not in given), *_listed(settings["callbacks"])]
        settings["plugins"] = [SafeCheckpointIO(), *_listed(settings["plugins"])]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Refuses what would only come to light after hours, or never.

        Raises:
            TrainingError: A callback watches what nobody logs or takes an old loss for a new one, or gradients are
                clipped twice.
        """
        logged = getattr(self.model, "logged_names", None)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            # Lightning offers these two to those that keep checkpoints, whatever is logged.
            offered = ("step", "epoch") if isinstance(callback, ModelCheckpoint) else ()
            if logged is not None and monitor is not None and monitor not in (*logged, *offered):
                raise TrainingError(
                    f"{type(callback).__name__} watches {monitor!r}; what is logged is {', '.join(sorted(logged))}"
                )
            # The other set, of cell types that were held out, is validated in every epoch.
            of_first_set = str(monitor).startswith("val_") and not str(monitor).endswith("_ho")
            if isinstance(callback, EpiBERTEarlyStopping) and of_first_set:
                valid_every = getattr(self.datamodule, "valid_every", callback.every)
                if callback.every != valid_every:
                    raise TrainingError(
                        f"EpiBERTEarlyStopping takes {monitor} for new in every {callback.every} epochs (every), and "
                        f"the data are validated in every {valid_every} (valid_every)"
                    )
        if self.trainer.gradient_clip_val and getattr(self.model, "global_clipnorm", None) is not None:
            raise TrainingError("the optimizer clips by itself (global_clipnorm): leave out trainer.gradient_clip_val")

    def before_validate(self) -> None:
        """Refuses to evaluate a model that was not trained.

        Raises:
            TrainingError: Nothing says where its weights come from.
        """
        filled = any(getattr(callback, "fills_model", False) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        if not filled and self._get(self.config_init, "ckpt_path") is None:
            raise TrainingError(f"{self.subcommand} needs weights: give --ckpt_path or --init_from")

    before_test = before_validate

    def before_predict(self) -> None:
        """Refuses to predict with a model that was not trained, or for nobody.

        Raises:
            TrainingError: Nothing says where the weights come from, or where the predictions go.
        """
        self.before_validate()
        if not any(isinstance(callback, BasePredictionWriter) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise TrainingError(
                "nothing writes the predictions: add the callback torch_impl.predictions.PredictionWriter"
            )

    def _initializer(self) -> Callback | None:
        """What ``--init_from`` and the options beside it ask for."""
        path, training_state, allow = (
            self._get(self.config_init, name) for name in ("init_from", "init_training_state", "init_allow")
        )
        if path is None:
            for name, value in (("--init_training_state", training_state), ("--init_allow", allow)):
                if value:
                    raise TrainingError(f"{name} says nothing without --init_from")
            return None
        if self.initializer is None:
            raise TrainingError("--init_from belongs to `epibert train`")
        return self.initializer(path, training_state, allow=allow.replace(",", " ").split())

    def _callbacks(self) -> Any:
        return self._get(self.config_init, "trainer")["callbacks"]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def main(
    arguments: Sequence[str] | None = None,
    *,
    initializer: MakeInitializer | None = None,
    program: str = "epibert train",
    errors: tuple[type[Exception], ...] = (),
) -> int:
    """Runs the command line.

    Args:
        arguments: Of the command line; those of the process when None.
        initializer: As for ``Command``.
        program: Name shown in messages.
        errors: More exceptions that are bad input.

    Returns:
        The exit status.
    """
    _quieten()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        command = Command(given, initializer=initializer, program=program)
    except SIGTERMException:
        return TERMINATED
    except SystemExit as error:
        # Lightning ends the process by itself when it is interrupted.
        if isinstance(error.__context__, KeyboardInterrupt):
            return INTERRUPTED
        raise
    except NonFiniteError as error:
        return _fail(program, error, DIVERGED)
    except ArgumentError as error:
        return _fail(program, _condensed(str(error)), WRONG_USE)
    except (*USER_ERRORS, *errors) as error:
        return _fail(program, error, WRONG_USE)
    except (TypeError, ValueError, RuntimeError) as error:
        if not _refused_by_lightning(error):
            raise
        return _fail(program, error, WRONG_USE)
    for callback in command.trainer.early_stopping_callbacks:
        if callback is not None and callback.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC:
            return _fail(program, callback.stopping_reason_message, DIVERGED)
    return DONE


def _fail(program: str, error: object, status: int) -> int:
    print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def _condensed(message: str) -> str:
    """What the parser says of an argument in a tree of lines, without what it says of any argument."""
    general = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(general)) or message


def _refused_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised it, which it does about its arguments; anything else is a mistake of ours."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_globals.get("__name__", "").startswith("lightning.")


def _read_whole_numbers_as_such() -> None:
    """Lets ``--trainer.limit_train_batches 1`` mean one batch, whatever was imported before Lightning.

    The parser tries the types of an option in their order, and as a fraction 1 is all batches. ``typing`` keeps one
    object for ``Union[int, float] | None`` in either order, that of the package which asked first; rich asks for float.
    """
    annotations = inspect.unwrap(lightning.Trainer.__init__).__annotations__
    for name, annotation in annotations.items():
        kinds = get_args(annotation)
        if int in kinds:
            annotations[name] = functools.reduce(operator.or_, sorted(kinds, key=lambda kind: kind is not int))


def _quieten() -> None:
    """Takes out what Lightning says at every start and is no news to anyone who runs this command."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")  # Lightning's own use of PyTorch
    # _KnownWeights says it, or refuses.
    warnings.filterwarnings("ignore", message=".*there is no last checkpoint available.*")
    # FSDP2 fears for activations that are changed in place, which none is.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor.*")


if __name__ == "__main__":
    sys.exit(main())
