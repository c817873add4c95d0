"""pytest with one attack on the harness: ``pytest -p tests.attacks.plugin --attack NAME FILES``."""

import pytest

from tests.attacks.attack import AttackError, launch
from tests.attacks.catalogue import ATTACKS

NAMES = {attack.name: attack for attack in ATTACKS}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--attack", default="", metavar="NAME", help="cut this hole into our own code before the tests")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("attack")
    if not name:
        return
    if name not in NAMES:
        raise pytest.UsageError(f"no attack {name!r}; there are {', '.join(NAMES)}")
    try:
        launch(NAMES[name])
    except AttackError as error:
        raise pytest.UsageError(str(error)) from None
