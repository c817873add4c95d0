"""The ladder is climbed once; each rung's file asks about its own part of the result."""

import functools
from pathlib import Path
from typing import Any

import pytest

from parity import Result
from parity.ladder import CONVERGENCE, GATES
from parity.ledger import Ledger, NotProven
from parity.pairs import epibert
from parity.pairs.epibert_run import CASES, FINETUNING, FINETUNING_CASES, load_case, model_tensors, run
from parity.reference import LiveReference, Recording, read_recording
from torch_impl import EpiBERT, EpiBERTRampage
from weights import transplant
from weights.mapping import is_fine_tuning


@pytest.fixture(scope="session")
def ladder(tensorflow) -> Result:
    """What ``epibert parity`` finds: the recorded cases, against their recordings and against the living reference.

    It is climbed whole whatever is selected, and entered in the ledger, on which the rung of convergence stands.
    """
    return run(ledger=Ledger(), jobs=2)


@pytest.fixture(scope="session")
def rampage_ladder(tensorflow) -> Result:
    """What ``epibert parity --config rampage_tiny`` finds, entered in the ledger as well."""
    return run(config=FINETUNING, ledger=Ledger(), jobs=2)


@pytest.fixture(scope="session")
def proven_ladder() -> None:
    """Insists that every rung below convergence is proven for the present content, by whatever run before."""
    try:
        Ledger().require(GATES[: GATES.index(CONVERGENCE)])
    except NotProven as error:
        pytest.fail(str(error), pytrace=False)


class FaultBench:
    """A port, a living float64 reference that remembers its passes, and fresh ports to break."""

    def __init__(self, folder: Path) -> None:
        self.config, checkpoint = load_case(folder)
        self.finetuning = is_fine_tuning(checkpoint, self.config)
        self.stored = model_tensors(checkpoint, self.config)
        self.layer_map = epibert.layer_map(self.config, rampage=self.finetuning)
        model = self.reference("float64")
        self.constants = model.get_constants()
        self.recording: Recording = read_recording(folder / "forward.h5", name="recorded")
        self.inputs = epibert.recorded_inputs(self.recording)
        self.live = LiveReference({"float64": model}, self.inputs, self.layer_map, "living reference")
        self._checkpoint = checkpoint

    @functools.cache  # noqa: B019  one bench a session
    def reference(self, precision: str) -> Any:
        """The living reference in a precision."""
        return epibert.build_reference(self.config, self.stored, precision, rampage=self.finetuning)

    def port(self) -> Any:
        """A port that is right."""
        port = (EpiBERTRampage if self.finetuning else EpiBERT)(self.config)
        transplant(self._checkpoint, port, constants=(*self.constants, "living reference"))
        return port


@pytest.fixture(scope="session")
def bench(tensorflow, goldens: Path) -> FaultBench:
    """The bench for seeded faults, on the first recorded case."""
    return FaultBench(goldens / CASES[0])


@pytest.fixture(scope="session")
def rampage_bench(tensorflow, goldens: Path) -> FaultBench:
    """The same on the first recorded case of the fine-tuning model."""
    return FaultBench(goldens / FINETUNING_CASES[0])
