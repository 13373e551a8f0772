"""The acceptance suite runs on a card with `-m gpu`; its tests run on a CPU too, to be free of plain errors."""

from importlib import metadata
from pathlib import Path

import paddle
import pytest

from sd import devices
from tests.gpu.report import Report
from tests.training_harness import Workshop

REPORT_PATH = Path("gpu_report.json")
_report = Report()


def pytest_collection_modifyitems(items):
    """Without a card its tests are skipped."""
    if not devices.card_count():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="Paddle sees no card"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Take the outcomes of tests on a card into the report."""
    result = (yield).get_result()
    if item.get_closest_marker("gpu") and (result.when == "call" or result.outcome != "passed"):
        _report.add(item.name, result.outcome, result.duration, result.longreprtext)


def pytest_sessionfinish(session):
    """Write gpu_report.json if a test has run on a card."""
    if any(each["outcome"] != "skipped" for each in _report.results):
        packages = ("paddlepaddle-gpu", "paddlenlp", "ppdiffusers")
        versions = {name: metadata.version(name) for name in packages if _installed(name)}
        machine = {"device": devices.describe(devices.select("gpu")), "cards": devices.card_count(), **versions}
        print(f"\nreport: {_report.write(REPORT_PATH, machine).resolve()}")


def _installed(name):
    return any(distribution.metadata["Name"] == name for distribution in metadata.distributions(name=name))


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The device by its flag; Paddle computes on it within the test."""
    selected = devices.select(request.param)
    yield selected.kind
    paddle.set_device("cpu")


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """Tiny models and data."""
    return Workshop(tmp_path_factory.mktemp("gpu"))


@pytest.fixture
def figures(request):
    """A dict that stands in the report beside the test."""
    return _report.figures.setdefault(request.node.name, {})
