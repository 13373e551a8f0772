"""Fixtures of the training tests; a file that needs other models or data overrides `workshop`."""

import logging

import pytest

from tests.training_harness import Workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Tiny models and data, and the runs of one file."""
    return Workshop(tmp_path_factory.mktemp("training"))


@pytest.fixture
def info(caplog):
    """The log with its lines of level INFO."""
    caplog.set_level(logging.INFO, logger="sd")
    return caplog
