"""The database, the brokers and the worker processes that tests run on.

The suite runs on one database at a time (`AUTORUN_TEST_DATABASE`; `make test` goes through all);
a test that takes `broker` runs on every broker that answers.
"""

import ast
import inspect
import os
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import kombu.pools
import pytest
from celery import Celery
from django.urls import get_resolver

from autorun.contrib.pytest_plugin import autorun  # noqa: F401

# What the entry point does where autorun is installed.
from autorun.declare.base import declared
from autorun.dispatch.publishing import Message, redirected
from autorun.observe import doctor
from autorun.triggers import delivery
from sample_app.processes import Processes
from settings import celery_app
from settings.brokers import Broker
from tests import services
from tests.celery_settings import configure

StartWorker = Callable[..., Path]
#: What the tools of a test may make in the checkout's root.
_CACHES = {".hypothesis", ".pytest_cache", ".coverage", "__pycache__", "var"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if _is_left_out(item, config.option.markexpr)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _is_left_out(item: pytest.Item, asked_for: str) -> bool:
    # Playwright's loop runs in the main thread until the session ends, in the way of other loops.
    if item.get_closest_marker("browser"):
        return "browser" not in asked_for
    on_sqlite = os.environ.get("AUTORUN_TEST_DATABASE", "sqlite") == "sqlite"
    return item.get_closest_marker("once") is not None and not on_sqlite


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """Have the delivery's thread send what the test saved, before the tables are emptied.

    Otherwise the next test would get those rows, or find them written down.
    """
    delivery.deliver_waiting()


@pytest.fixture(autouse=True)
def _declared_runners() -> Iterator[None]:
    """Runner classes that a test declares are gone after it."""
    with patch.dict(declared):
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_in_the_checkout() -> Iterator[None]:
    """Tests leave no files in the checkout's root, such as a database that SQLite has made."""
    root = Path(__file__).parent.parent
    before = set(root.iterdir())
    yield
    left = {each.name for each in root.iterdir() if each not in before}
    assert left <= _CACHES, f"The tests left {sorted(left - _CACHES)} in {root}."


@pytest.fixture(autouse=True)
def _findings_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages show no findings of an earlier test."""
    monkeypatch.setattr(doctor, "FRESH", 0.0)


@pytest.fixture(scope="session", autouse=True)
def _addresses() -> None:
    """The addresses as the admin has them at first, whichever test comes first.

    They are made when they are first asked for, and some tests take a model out of the admin.
    """
    assert get_resolver().url_patterns


@pytest.fixture
def sent() -> Iterator[list[Message]]:
    """The messages that are published in the test; no broker gets them."""
    messages: list[Message] = []
    with redirected(messages.extend):
        yield messages


@pytest.fixture
def set_constants(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`set_constants(windows, DATABASE_WINDOW=2)`: a module's own limits, other than they are."""

    def change(module: ModuleType, **values: Any) -> None:
        for name, value in values.items():
            assert name in _assigned_in(module), f"{module.__name__} imports {name} or has none"
            monkeypatch.setattr(module, name, value)

    return change


@cache
def _assigned_in(module: ModuleType) -> set[str]:
    targets = [
        target
        for each in ast.parse(inspect.getsource(module)).body
        for target in (each.targets if isinstance(each, ast.Assign) else ())
    ]
    return {each.id for each in targets if isinstance(each, ast.Name)}


@pytest.fixture(scope="session")
def brokers() -> dict[str, Broker]:
    """The brokers that answer, by name."""
    return {
        name: locate()
        for name, locate in services.BROKERS.items()
        if services.silence(name) is None
    }


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("rabbitmq", marks=pytest.mark.services),
        pytest.param("redis", marks=pytest.mark.services),
    ]
)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Each broker in turn, with this process's Celery app publishing to it and an empty queue."""
    yield from _use_broker(request.param)


@pytest.fixture
def embedded_broker() -> Iterator[Broker]:
    """The SQLite broker alone, for what does not depend on the broker."""
    yield from _use_broker("embedded")


@pytest.fixture
def start_worker(transactional_db: None, tmp_path: Path) -> Iterator[StartWorker]:
    """A function that starts a real Celery worker on the test's database and broker.

    Take it together with `broker` or `embedded_broker`. It waits until the worker is ready, gives
    the worker's log, and takes Celery arguments and environment variables:
    `start_worker("--concurrency", "1", AUTORUN_X="y")`.
    """
    # A worker on the embedded broker takes five seconds to stop: its threads end one by one.
    with Processes(logs=tmp_path, patience=2) as processes:

        def start(*arguments: str, **environment: str) -> Path:
            name = f"worker-{len(list(tmp_path.glob('worker-*.log'))) + 1}"
            log = tmp_path / f"{name}.log"
            processes.start(
                name,
                *("-m", "celery", "-A", "settings", "worker", "--loglevel", "INFO"),
                *("-n", f"{name}-{os.getpid()}@%h", "--concurrency", "2", *arguments),
                **process_environment(),
                **environment,
            )
            _wait_until_ready(processes, name, log)
            return log

        yield start


def process_environment() -> dict[str, str]:
    """Return the environment of a process that works on this test's database and broker."""
    from django.db import connection

    return {
        "DJANGO_SETTINGS_MODULE": "settings.test",
        "AUTORUN_DATABASE_NAME": str(connection.settings_dict["NAME"]),
        "AUTORUN_TEST_BROKER": _broker_in_use,
        "PYTHONUNBUFFERED": "1",
    }


_broker_in_use = "embedded"


def _use_broker(name: str) -> Iterator[Broker]:
    global _broker_in_use  # noqa: PLW0603
    if why := services.silence(name):
        if services.are_required():
            pytest.fail(f"{name} does not answer: {why}")
        pytest.skip(f"{name} does not answer: {why}")
    before = Broker(celery_app.conf.broker_url, celery_app.conf.broker_transport_options)
    name_before, _broker_in_use = _broker_in_use, name
    broker = services.BROKERS[name]()
    _connect(celery_app, broker)
    _drop_queue(celery_app)  # what tests without a broker of their own have published
    try:
        yield broker
    finally:
        _drop_queue(celery_app)
        _connect(celery_app, before)
        _broker_in_use = name_before


def _connect(app: Celery, broker: Broker) -> None:
    kombu.pools.reset()
    app.amqp._producer_pool = None
    app._pool = None
    configure(
        broker_url=broker.url,
        broker_read_url=broker.url,
        broker_write_url=broker.url,
        broker_transport_options=broker.options,
    )


def _drop_queue(app: Celery) -> None:
    with app.connection_for_write() as connection:
        connection.default_channel.queue_delete(app.conf.task_default_queue)


def _wait_until_ready(processes: Processes, name: str, log: Path, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while " ready." not in log.read_text():
        if name in processes.ended() or time.monotonic() > deadline:
            pytest.fail(f"The worker is not ready:\n{log.read_text()}")
        time.sleep(0.05)
