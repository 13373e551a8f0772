"""A tiny model and a run that trained it."""

import pytest

from tests.checkpoints import make_output_dir
from tests.tiny import make_tiny_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_tiny_repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def output_dir(repository, tmp_path_factory):
    return make_output_dir(repository, tmp_path_factory.mktemp("output"))
