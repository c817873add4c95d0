"""Records that the tests of training share, made with what converting them takes, which not every test needs."""

from pathlib import Path

import pytest

from tests.unit.torch_impl.surroundings import environment_kept


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Path:
    from tests.unit.torch_impl.training import write_data

    return write_data(tmp_path_factory.mktemp("records"))


@pytest.fixture
def environment():
    with environment_kept():
        yield


@pytest.fixture(scope="session")
def tiny_records(tmp_path_factory) -> Path:
    """Records for the configuration `tiny`."""
    from tests.records import synthetic_records
    from torch_impl.data.convert import convert_tfrecord_to_hdf5
    from torch_impl.data.examples import ExampleConfig
    from torch_impl.data.tfrecord import write_records

    folder = tmp_path_factory.mktemp("tiny")
    config = ExampleConfig.tiny(num_motifs=11)
    for subset in ("train", "valid"):
        (folder / "source" / subset).mkdir(parents=True)
        write_records(folder / "source" / subset / "0.tfr", synthetic_records(config, 4, seed=len(subset)))
    convert_tfrecord_to_hdf5(folder / "source", folder / "converted")
    return folder / "converted"
