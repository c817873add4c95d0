"""The ladder is climbed once; each rung's file asks about its own part of the result."""

from pathlib import Path

import pytest

from parity import Result
from parity.ladder import CONVERGENCE, GATES
from parity.ledger import Ledger, NotProven
from parity.pairs.epibert_faults.bench import Bench
from parity.pairs.epibert_run import CASES, FINETUNING, FINETUNING_CASES, run


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


@pytest.fixture(scope="session")
def bench(tensorflow, goldens: Path) -> Bench:
    """The bench for seeded faults, on the first recorded case."""
    return Bench(goldens / CASES[0])


@pytest.fixture(scope="session")
def rampage_bench(tensorflow, goldens: Path) -> Bench:
    """The same on the first recorded case of the fine-tuning model."""
    return Bench(goldens / FINETUNING_CASES[0])
