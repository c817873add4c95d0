"""``epibert train fit | validate | test | predict``: LightningCLI, with what every run of ours has in addition.

Model, data, trainer and callbacks are those of the configuration (``configs/``), chosen by ``class_path``; every value
can be overridden on the command line, and ``--print_config`` shows them all. Always there: ``ResumableTraining`` and
``FiniteTraining``, and checkpoints that are written as a whole and read without running code.

Exit status 0: done. 1: training has gone to NaN or infinity. 2: wrong use or bad input, with one line that says what.
130: interrupted (SIGINT); the last checkpoint resumes. 143: asked to end (SIGTERM); ``last.ckpt``, written between two
steps of training, resumes.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from torch_impl.callbacks import FiniteTraining, NonFiniteError, ResumableTraining
from torch_impl.checkpointing import SafeCheckpointIO, TrainingError, read_checkpoint_file
from torch_impl.data.records import DataError

DONE, DIVERGED, WRONG_USE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
USER_ERRORS = (TrainingError, DataError, MisconfigurationException, OSError, ModuleNotFoundError)

DESCRIPTION = "Train, validate, test and predict with EpiBERT in PyTorch Lightning."

MakeInitializer = Callable[[str, bool], Callback]
"""From a path and whether to take optimizer state and step from there as well, a callback that fills the model."""


class Command(LightningCLI):
    """LightningCLI for any module and data module.

    Args:
        arguments: Of the command line.
        initializer: What ``--init_from`` is for; without it the option is refused.
        program: Name shown in the help.
    """

    def __init__(self, arguments: Sequence[str], *, initializer: MakeInitializer | None, program: str) -> None:
        self.initializer = initializer
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
            parser_kwargs={"prog": program, "description": DESCRIPTION},
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning does, without its warning that arguments of the process are not used."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # Lightning would put the checkpoint's hyperparameters in the place of the configuration's, without a word. Here
        # the configuration counts, and the module refuses a checkpoint of another model.
        path = self.config[self.config["subcommand"]].get("ckpt_path")
        if path not in (None, "last", "best", "hpc") and not Path(path).is_dir():
            read_checkpoint_file(path)

    def instantiate_classes(self) -> None:
        """As Lightning does; what a constructor refuses, it refuses in its arguments, which are the user's."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            raise TrainingError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Adds what every run has."""
        always: list[Any] = [ResumableTraining(), FiniteTraining()]
        path = self._get(self.config_init, "init_from")
        if path is not None:
            if self.initializer is None:
                raise TrainingError("--init_from belongs to `epibert train`")
            initializer = self.initializer(path, self._get(self.config_init, "init_training_state"))
            if any(isinstance(callback, type(initializer)) for callback in _listed(self._callbacks())):
                raise TrainingError(f"--init_from and a callback {type(initializer).__name__}: one of them is too many")
            always.append(initializer)
        elif self._get(self.config_init, "init_training_state"):
            raise TrainingError("--init_training_state says nothing without --init_from")
        settings = self._get(self.config_init, "trainer")
        given = {type(callback) for callback in _listed(settings["callbacks"])}
        settings["callbacks"] = [*(c for c in always if type(c) not in given), *_listed(settings["callbacks"])]
        settings["plugins"] = [SafeCheckpointIO(), *_listed(settings["plugins"])]
        return super().instantiate_trainer(**kwargs)

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
        The exit status; the one of a command line that cannot be parsed is raised, as by argparse.
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
    except (*USER_ERRORS, *errors) as error:
        return _fail(program, error, WRONG_USE)
    for callback in command.trainer.early_stopping_callbacks:
        if callback is not None and callback.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC:
            return _fail(program, callback.stopping_reason_message, DIVERGED)
    return DONE


def _fail(program: str, error: object, status: int) -> int:
    print(f"{program}: error: {error}", file=sys.stderr)
    return status


def _quieten() -> None:
    """Takes out what Lightning says at every start and is no news to anyone who runs this command."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")  # Lightning's own use of PyTorch


if __name__ == "__main__":
    sys.exit(main())
