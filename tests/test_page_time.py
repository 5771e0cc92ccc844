"""A page answers in bounded time, whatever the project's code does, and names what was too slow."""

import html
import re
import threading
import time
from typing import Any

import pytest
from django.contrib import admin
from django.db import connection
from django.db.models import BooleanField
from django.db.models.expressions import RawSQL
from django.test import Client
from django.urls import reverse

from autorun.admin import row_access
from autorun.declare import interruption, page_time, registry
from autorun.exceptions import RunTimeout
from autorun.models import Batch, Node, Run
from autorun.runner import QuerySetRunner
from sample_app.models import Scan
from tests.browser import scenes
from tests.engine import declare, installed

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

LABEL = "sample_app.ScanPreprocessingRunner"
SECONDS = 0.3
#: Far more than a page may take.
LONG = 8.0
SLOW_SQL = {
    "postgresql": f"(SELECT pg_sleep({LONG}) IS NULL)",
    "mysql": f"(SELECT SLEEP({LONG}) = 7)",
    "sqlite": (
        "(WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100000000) "
        "SELECT max(x) = 7 FROM c)"
    ),
}


@pytest.fixture
def runner(set_constants: Any) -> QuerySetRunner:
    set_constants(page_time, SECONDS=SECONDS, HUNG_FOR=0.0)
    return scenes.few()


@pytest.fixture
def user(runner: QuerySetRunner) -> Client:
    client = Client()
    client.force_login(scenes.add_user("root", is_superuser=True))
    return client


@pytest.fixture(params=["signals", "threads"])
def _way(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "threads":
        monkeypatch.setattr(interruption, "can_use_signals", lambda: False)


def sleeps(*_: Any, **__: Any) -> Any:
    time.sleep(LONG)


def address(name: str, *args: Any, query: str = "") -> str:
    return reverse(f"admin:{name}", args=args) + query


def pages() -> dict[str, str]:
    scan = Scan.objects.order_by("pk").first().pk
    run = Run.objects.current().succeeded().latest("pk").pk
    return {
        "count": address("autorun_node_count", LABEL),
        "preview": address("autorun_batch_count", LABEL),
        "filtered preview": address("autorun_batch_count", LABEL, query="?filter=slow"),
        "why": address("autorun_node_why", LABEL, query=f"?row={scan}"),
        "run": address("autorun_run_change", run),
        "runs": address("autorun_run_changelist"),
        "input": address("autorun_run_text", run, "input"),
        "changelist": address("sample_app_scan_changelist", query=f"?autorun=pending:{LABEL}"),
        "row": address("sample_app_scan_change", scan),
    }


def text_in_time(user: Client, page: str) -> str:
    url, began_at = pages()[page], time.monotonic()
    response = user.get(url, follow=True)
    assert time.monotonic() - began_at < LONG / 2
    return html.unescape(re.sub(r"<[^>]*>", "", response.text))


@pytest.mark.once
@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(
    ("hook", "page"),
    [
        *(("filter_queryset", each) for each in ("count", "preview", "why", "run")),
        *(("filter_queryset", each) for each in ("changelist", "row")),
        *(("get_base_queryset", each) for each in ("count", "preview", "why", "row")),
        *(("get_instance_representation", each) for each in ("count", "preview", "why", "run")),
        *(("get_instance_representation", each) for each in ("changelist", "row", "input")),
    ],
)
def test_a_page_says_which_hook_of_a_runner_is_too_slow(
    hook: str, page: str, user: Client, runner: QuerySetRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(runner), hook, sleeps)
    if hook == "get_instance_representation":
        monkeypatch.setitem(vars(registry.get(LABEL)), "is_fingerprinted_by_database", False)

    text = text_in_time(user, page)

    what = rf"sample_app\.\w+Runner\.{hook}\(\)( or the query for the row)?"
    found = re.search(f"{what} takes longer than {SECONDS} s", text)
    assert found, " ".join(text.split())[-700:]


@pytest.mark.usefixtures("_way")
def test_a_preview_says_that_a_named_filter_is_too_slow(
    user: Client, runner: QuerySetRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(runner), "FILTERS", {"slow": sleeps})

    text = text_in_time(user, "filtered preview")

    assert f"The filter 'slow' of {LABEL} takes longer" in text


@pytest.mark.usefixtures("_way")
def test_a_list_shows_keys_for_names_that_take_too_long(
    user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scan, "__str__", sleeps)

    text = text_in_time(user, "runs")

    run = Run.objects.current().succeeded().first()
    assert re.search(rf"scan {run.object_id}\b", text)


def test_a_page_says_that_an_admin_is_too_slow(
    user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(admin.site._registry[Scan]), "get_queryset", sleeps)

    text = text_in_time(user, "runs")

    assert "ScanAdmin.get_queryset(), its query or has_view_permission() takes longer" in text


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("page", ["count", "preview", "why", "changelist"])
def test_a_slow_query_is_cancelled_and_its_connection_goes_on(
    page: str, user: Client, runner: QuerySetRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = RawSQL(SLOW_SQL[connection.vendor], (), BooleanField())
    monkeypatch.setattr(
        type(runner), "filter_queryset", lambda self, rows, **_: rows.filter(pk__gt=0).filter(slow)
    )

    text = text_in_time(user, page)

    assert re.search(rf"(query for the |filter_queryset).*takes longer than {SECONDS} s", text)
    assert Scan.objects.count() > 0


@pytest.mark.usefixtures("_way")
def test_a_slow_query_of_an_admin_is_cancelled(
    user: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = RawSQL(SLOW_SQL[connection.vendor], (), BooleanField())
    monkeypatch.setattr(
        type(admin.site._registry[Scan]), "get_queryset", lambda *_: Scan.objects.filter(slow)
    )

    text = text_in_time(user, "runs")

    assert "ScanAdmin.get_queryset(), its query or has_view_permission() takes longer" in text


def test_an_action_says_what_was_done_and_goes_on_with_what_was_left(
    user: Client, monkeypatch: pytest.MonkeyPatch, set_constants: Any
) -> None:
    set_constants(page_time, SECONDS=1.5)
    set_constants(row_access, EXAMINED_AT_ONCE=1)
    failed = Run.objects.current().failed().order_by("-chunk_id", "-pk")
    rows = list(failed.values_list("object_id", flat=True))
    slow = {rows[2]}

    def has_view_permission(self: Any, request: Any, obj: Any = None) -> bool:
        if obj is not None and obj.pk in slow:
            time.sleep(10 * LONG)
        return True

    scan_admin = type(admin.site._registry[Scan])
    monkeypatch.setattr(scan_admin, "has_view_permission", has_view_permission)
    form = {"action": "retry", "scope": "everything", "confirmed": "1", "state": "failed"}
    asked = []
    for told in ("Only 2 runs were checked", ""):
        began_at = time.monotonic()
        page = user.post(address("autorun_run_act"), form, follow=True).text
        assert time.monotonic() - began_at < 5 * LONG
        assert told in page
        slow.clear()
        asked.append(Batch.objects.latest("pk").scope["pks"])

    assert sorted(asked[0] + asked[1]) == sorted(rows)
    assert len(asked[0]) == 2


def test_pausing_all_names_the_runners_that_are_left(user: Client, set_constants: Any) -> None:
    set_constants(page_time, SECONDS=1.5)
    slow = declare(NAME="SlowRunner", create_configuration=sleeps)

    with installed(slow):
        page = user.post(address("autorun_node_pause_all"), follow=True).text

    assert "Runner tests.SlowRunner was not changed: " in page
    assert Node.objects.exclude(paused_at=None).exists()


def test_a_page_has_one_time_for_all_that_it_calls(set_constants: Any) -> None:
    set_constants(page_time, SECONDS=0.3)
    began_at = time.monotonic()
    with page_time.budget():
        for _ in range(3):
            with (
                pytest.raises(RunTimeout, match=r"It (takes|was not tried)"),
                page_time.spent("It"),
            ):
                time.sleep(LONG)

    assert time.monotonic() - began_at < LONG / 2


def test_what_hangs_is_left_alone_for_a_while(set_constants: Any) -> None:
    set_constants(page_time, SECONDS=0.1)
    asked = []

    def hang() -> None:
        asked.append(1)
        threading.Event().wait(LONG)

    for _ in range(3):
        with pytest.raises(RunTimeout), page_time.spent("A page"):
            page_time.limited("A hook", hang, code=hang)

    assert len(asked) == 1


def test_code_off_pages_may_take_its_time() -> None:
    assert page_time.limited("A hook", lambda: "done") == "done"
