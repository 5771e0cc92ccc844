"""Each page in time with a million runs: of one runner, and of 62 with five versions each."""

import os
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from autorun.dispatch.publishing import Message
from autorun.state import counts
from tests.browser import scenes
from tests.browser.laboratory import laboratory
from tests.browser.test_pages import EVERYTHING, addresses, settle

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(900),  # a million runs are made first
    pytest.mark.django_db(transaction=True),
]
#: Seconds and statements that a page may take; seconds of the overview of 62 runners, and of the
#: counts of all.
LONGEST, MOST_STATEMENTS = 0.2, 12
OVERVIEW, ALL_COUNTS = 0.5, 5.0
#: What the script of the pages sends with its requests.
FETCHED = {"X-Requested-With": "autorun"}


@pytest.fixture(autouse=True)
def by_sql(sent: list[Message], set_constants: Callable[..., None]) -> None:
    """No worker gets a message, and what processes remember is not read anew in between."""
    set_constants(counts, CROWD_FRESH=3_600.0)
    if connection.vendor != "postgresql":
        pytest.skip("The million is made by SQL of PostgreSQL.")


@pytest.fixture
def user() -> User:
    return scenes.add_user("ada", *EVERYTHING)


@pytest.mark.parametrize("scene", [scenes.many, scenes.many_alone])
def test_a_million_runs_are_no_trouble(scene: Callable, user, open_as, keep) -> None:
    scene()
    page = open_as(user)

    problems = list(_slow(user, addresses()))
    for name, address in addresses():
        page.goto(address)
        settle(page)
        keep(page, f"{scene.__name__}-{name}-light")

    assert problems == []


def test_a_million_runs_of_many_runners_are_no_trouble(user, open_as, keep) -> None:
    client = Client(headers=FETCHED)
    client.force_login(user)
    page = open_as(user)
    with laboratory() as runners:
        label = runners[3].label
        pages = [
            (name, address.replace(scenes.ScanPreprocessingRunner.get_label(), label))
            for name, address in addresses()
        ]
        pages.append(("compare", f"/admin/autorun/node/{label}/compare/"))

        problems = list(_slow(user, pages))
        began = time.perf_counter()
        for runner in runners:
            assert client.post(f"/admin/autorun/node/{runner.label}/count/").status_code == 200
        counts = time.perf_counter() - began
        for name, address in pages:
            page.goto(address)
            settle(page)
            keep(page, f"laboratory-{name}-light")

    print(f"all counts {counts:.1f} s")
    assert (problems, counts <= ALL_COUNTS * _slowness()) == ([], True)


def _slow(user: User, pages: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Ask for each page and print what it takes; those that take too much."""
    client = Client()
    client.force_login(user)
    for name, address in pages:
        client.get(address)
        with CaptureQueriesContext(connection) as captured:
            seconds = min(_seconds(client, address) for _ in range(5))
        told = f"{name:12} {len(captured) / 5:4.0f} statements {seconds * 1000:5.0f} ms"
        print(told)
        longest = OVERVIEW if name == "overview" else LONGEST
        if seconds > longest * _slowness() or len(captured) > 5 * MOST_STATEMENTS:
            yield told


def _slowness() -> float:
    """On a machine that is busy with other things, everything takes longer."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _seconds(client: Client, address: str) -> float:
    began = time.perf_counter()
    assert client.get(address).status_code == 200
    return time.perf_counter() - began
