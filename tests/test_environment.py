"""The suite itself: that its databases, brokers and workers are real."""

import os
import time

import pytest
from celery import Celery
from django.db import connection

from settings import celery_app
from settings.brokers import Broker
from tests.conftest import StartWorker

VENDORS = {"sqlite": "sqlite", "postgres": "postgresql", "mariadb": "mysql"}


@pytest.mark.django_db
def test_suite_runs_on_the_database_that_was_asked_for() -> None:
    asked = os.environ.get("AUTORUN_TEST_DATABASE", "sqlite")

    connection.ensure_connection()

    assert connection.vendor == VENDORS[asked]


@pytest.mark.slow
def test_worker_on_the_tests_broker_answers_a_ping(
    broker: Broker, start_worker: StartWorker
) -> None:
    start_worker()

    answers = ping(celery_app)

    # Remote control on Redis reaches the workers of another session, too.
    ours = [answer for name, answer in answers.items() if f"-{os.getpid()}@" in name]
    assert ours == [{"ok": "pong"}]


def ping(app: Celery, *, seconds: float = 10) -> dict[str, dict[str, str]]:
    """Return the answers of workers by name."""
    deadline = time.monotonic() + seconds
    while not (answers := app.control.ping(timeout=1)) and time.monotonic() < deadline:
        pass
    return {name: said for answer in answers for name, said in answer.items()}
