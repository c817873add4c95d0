"""Records that the tests of training share."""

from pathlib import Path

import pytest

from tests.unit.torch_impl.training import environment_kept, write_data


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("records"))


@pytest.fixture
def environment():
    with environment_kept():
        yield
