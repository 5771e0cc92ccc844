"""Tests of faults: fast ones always, slow ones with AUTORUN_TEST_FAULTS=1 (`make test-faults`)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from autorun.dispatch import publishing
from autorun.state.user_code import UserCode
from tests.conftest import _use_broker
from tests.faults import driver
from tests.faults.driver import Lab

#: Seconds for a slow test on a machine that is busy. What a test waits for has limits of its own.
LONGEST = 900
DATABASE = os.environ.get("AUTORUN_TEST_DATABASE", "sqlite")
BROKERS = {"sqlite": ["embedded"], "postgres": ["rabbitmq", "redis"], "mariadb": ["rabbitmq"]}
#: The faults that concern the database; of the slow tests only these run on MariaDB.
OF_THE_DATABASE = {9, 10, 12, 14, 18, 29, 30, 31, 32, 33, 35, 36, 41, 53, 54, 55, 56, 58}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("faults") and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(LONGEST), append=True)  # after the test's own
    left_out = [item for item in items if _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Item) -> bool:
    faults = item.get_closest_marker("faults")
    if faults is None or item.get_closest_marker("slow") is None:
        return False
    if os.environ.get("AUTORUN_TEST_FAULTS") != "1":
        return True
    return DATABASE == "mariadb" and not OF_THE_DATABASE.intersection(faults.args)


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, object]:
    """Attributes of the lab's runner: `@pytest.mark.parametrize("options", [{...}])`."""
    return {}


@pytest.fixture(params=BROKERS[DATABASE][:1])
def lab(
    request: pytest.FixtureRequest,
    transactional_db: None,
    settings: object,
    tmp_path: Path,
    options: dict[str, object],
) -> Iterator[Lab]:
    """A lab on this database with the first of its brokers."""
    yield from _lab_on(request.param, settings, tmp_path, options)


@pytest.fixture(params=BROKERS[DATABASE])
def lab_of_each_broker(
    request: pytest.FixtureRequest,
    transactional_db: None,
    settings: object,
    tmp_path: Path,
    options: dict[str, object],
) -> Iterator[Lab]:
    """A lab on this database with each of its brokers in turn."""
    yield from _lab_on(request.param, settings, tmp_path, options)


def _lab_on(
    broker: str, settings: object, tmp_path: Path, options: dict[str, object]
) -> Iterator[Lab]:
    # The queue of the test before is deleted; a connection that had declared it would not again.
    publishing._courier._drop()
    for _ in _use_broker(broker):
        with driver.lab(tmp_path, broker, settings, options) as made:
            yield made
            UserCode("A test").mend()  # one that timed out in a query
