"""The ladder is climbed once; each rung's file asks about its own part of the result.

What takes seconds to import is imported by the fixture that needs it: with several processes, the one that hands out
the tests reads this file and runs none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from parity import Result
    from parity.pairs.epibert_faults.bench import Bench


@pytest.fixture(scope="session")
def ladder(tensorflow) -> "Result":
    """What ``epibert parity`` finds: the recorded cases, against their recordings and against the living reference.

    It is climbed whole whatever is selected, and entered in the ledger, on which the rung of convergence stands. By
    this process alone, since others do other tests meanwhile: so the frameworks are imported once, and the signatures
    of the port are checked.
    """
    from parity.ledger import Ledger
    from parity.pairs.epibert_run import run

    return run(ledger=Ledger())


@pytest.fixture(scope="session")
def rampage_ladder(tensorflow) -> "Result":
    """What ``epibert parity --config rampage_tiny`` finds, entered in the ledger as well."""
    from parity.ledger import Ledger
    from parity.pairs.epibert_run import FINETUNING, run

    return run(config=FINETUNING, ledger=Ledger(), jobs=2)


@pytest.fixture(scope="session")
def proven_ladder() -> None:
    """Insists that every rung below convergence is proven for the present content, by whatever run before."""
    from parity.ladder import CONVERGENCE, GATES
    from parity.ledger import Ledger, NotProven

    try:
        Ledger().require(GATES[: GATES.index(CONVERGENCE)])
    except NotProven as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def bench(tensorflow, goldens: Path) -> "Bench":
    """The bench for seeded faults, on the first recorded case."""
    from parity.pairs.epibert_faults.bench import Bench
    from parity.pairs.epibert_run import CASES

    return Bench(goldens / CASES[0])


@pytest.fixture(scope="session")
def rampage_bench(tensorflow, goldens: Path) -> "Bench":
    """The same on the first recorded case of the fine-tuning model."""
    from parity.pairs.epibert_faults.bench import Bench
    from parity.pairs.epibert_run import FINETUNING_CASES

    return Bench(goldens / FINETUNING_CASES[0])
