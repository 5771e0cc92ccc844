"""The pages: their content, who may see it, and the number of statements."""

import datetime as dt
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models import F
from django.http import HttpRequest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import strip_tags

from autorun.admin import batch_pages, cards, markup
from autorun.admin.cards import Card, Counted, card_of, signed
from autorun.admin.tables import runner_name
from autorun.declare import page_time, registry
from autorun.declare.interruption import within
from autorun.declare.nodes import forget_nodes
from autorun.exceptions import RunTimeout
from autorun.models import Batch, Chunk, Failure, Node, Pulse, Run, SpilledTrigger
from autorun.observe.glance import Tally, progresses_and_tally, take_tally
from autorun.planning import batches
from autorun.planning.counting import Count
from autorun.planning.reasons import Reason
from autorun.planning.scope import Scope
from autorun.runner import QuerySetRunner
from autorun.state import clock, counts, pulses
from autorun.state.counts import STUCK_SECONDS
from autorun.triggers import on_schedule
from sample_app.models import Scan
from sample_app.runners import AnatomicalPreprocessingRunner, ScanPreprocessingRunner
from tests.browser import scenes
from tests.engine import declare, installed, work_off
from tests.library.models import Country, Document

pytestmark = pytest.mark.django_db

MOST_STATEMENTS = 12
LABEL = "sample_app.ScanPreprocessingRunner"
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def runner() -> QuerySetRunner:
    return scenes.few()


@pytest.fixture
def sign_in(client: Client) -> Callable[..., Client]:
    def sign_in_with(*codenames: str) -> Client:
        user = User.objects.create_user("ada", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
        client.force_login(user)
        return client

    return sign_in_with


def addresses() -> dict[str, str]:
    """Every page there is to look at, by name."""
    run, batch = Run.objects.order_by("pk").first(), Batch.objects.first()
    return {
        "overview": reverse("admin:autorun_node_changelist"),
        "runner": reverse("admin:autorun_node_runner", args=[LABEL]),
        "count": reverse("admin:autorun_node_count", args=[LABEL]),
        "health": reverse("admin:autorun_health_changelist"),
        "runs": reverse("admin:autorun_run_changelist"),
        "failed": reverse("admin:autorun_run_changelist") + "?state=failed&since=24h",
        "exception": reverse("admin:autorun_run_changelist") + "?exception=OSError",
        "run": reverse("admin:autorun_run_change", args=[run.pk if run else 0]),
        "failures": reverse("admin:autorun_failure_changelist"),
        "batches": reverse("admin:autorun_batch_changelist"),
        "batch": reverse("admin:autorun_batch_change", args=[batch.pk if batch else 0]),
        "choose": reverse("admin:autorun_batch_choose"),
        "prepare": reverse("admin:autorun_batch_prepare", args=[LABEL]) + "?only=all",
        "preview": reverse("admin:autorun_batch_count", args=[LABEL]),
    }


NEEDS_A_RUN = {"run", "batch"}
NAMES = [
    "overview",
    "runner",
    "count",
    "health",
    "runs",
    "failed",
    "exception",
    "run",
    "failures",
    "batches",
    "batch",
    "choose",
    "prepare",
    "preview",
]


@pytest.mark.django_db(transaction=True)  # in a transaction processes remember no nodes
def test_every_page_answers_in_few_statements(
    sign_in: Callable[..., Client], set_constants: Callable[..., None]
) -> None:
    scenes.few()
    set_constants(counts, CROWD_FRESH=600.0)
    client = sign_in("view_run", "backfill_run", "retry_run", "view_payload", "view_scan")
    statements = {}
    row = Run.objects.failed().earliest("pk").object_id
    why = f"{reverse('admin:autorun_node_why', args=[LABEL])}?row={row}"

    for name, address in {**addresses(), "why": why}.items():
        client.get(address)  # what processes remember: nodes, content types
        with CaptureQueriesContext(connection) as captured:
            assert client.get(address).status_code == 200, name
        statements[name] = len(captured)

    # Counting takes what it takes: it is no page, but what a page fetches.
    del statements["count"], statements["preview"]
    assert {name: n for name, n in statements.items() if n > MOST_STATEMENTS} == {}


@pytest.mark.parametrize(
    "fault", [{"ANALYSIS_VERSION": "9.9"}, {"ANALYSIS": "None such"}, {"INPUT_KEY": None}]
)
def test_every_page_answers_if_a_runner_is_declared_wrongly(
    sign_in: Callable[..., Client], fault: dict[str, str | None]
) -> None:
    scenes.few()
    client = sign_in("view_run", "backfill_run", "retry_run", "view_payload", "view_scan")
    names = {"__module__": ScanPreprocessingRunner.__module__} | fault
    pages = addresses() | {
        "scan": reverse("admin:sample_app_scan_changelist"),
        "why": reverse("admin:autorun_node_why", args=[LABEL]) + f"?row={Scan.objects.first().pk}",
        "row": reverse("admin:sample_app_scan_change", args=[Scan.objects.first().pk]),
    }
    with installed(type("ScanPreprocessingRunner", (ScanPreprocessingRunner,), names)):
        statuses = {name: client.get(address).status_code for name, address in pages.items()}

    assert statuses == dict.fromkeys(statuses, 200)


def test_every_page_answers_without_use_tz(sign_in: Callable[..., Client], settings) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("a system check refuses it elsewhere")
    settings.USE_TZ, settings.TIME_ZONE = False, "Asia/Tokyo"
    scenes.few()
    client = sign_in("view_run", "backfill_run", "retry_run", "view_payload", "view_scan")
    named = addresses()
    named["ended"] = f"{named['runs']}?ended_from=2020-01-01T00:00"

    for name, address in named.items():
        assert client.get(address).status_code == 200, name


def test_no_page_loads_the_scope_of_a_batch(sign_in: Callable[..., Client]) -> None:
    """A scope may hold 30,000 keys."""
    scenes.few()
    client = sign_in("view_run", "backfill_run", "retry_run", "view_payload", "view_scan")
    loading = []

    for name, address in addresses().items():
        with CaptureQueriesContext(connection) as captured:
            client.get(address)
        sql = "".join(query["sql"] for query in captured)
        loading += [name] if "scope" in sql else []

    assert loading == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_A_RUN])
def test_a_page_answers_with_nothing_to_show(name: str, sign_in: Callable[..., Client]) -> None:
    response = sign_in("view_run", "backfill_run").get(addresses()[name])

    assert response.status_code == 200


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_not_for_those_without_the_permission(
    name: str, runner: QuerySetRunner, sign_in: Callable[..., Client]
) -> None:
    client = sign_in("backfill_run", "view_scan", "view_node", "view_batch", "view_failure")

    assert client.get(addresses()[name]).status_code == 403


@pytest.mark.parametrize("name", NAMES)
def test_a_page_sends_strangers_to_the_login(
    name: str, runner: QuerySetRunner, client: Client
) -> None:
    response = client.get(addresses()[name])

    assert response.status_code == 302
    assert response["Location"].startswith(reverse("admin:login"))


def test_a_backfill_is_previewed_by_those_who_may_start_it(sign_in) -> None:
    client = sign_in("view_run")

    assert client.get(addresses()["choose"]).status_code == 403
    assert client.get(addresses()["prepare"]).status_code == 403
    assert client.get(addresses()["preview"]).status_code == 403


def test_the_index_leads_to_the_pages_for_those_who_may_view(sign_in) -> None:
    client = sign_in("view_run")

    index = client.get(reverse("admin:index")).content.decode()

    assert "Overview" in index
    assert reverse("admin:autorun_failure_changelist") in index


def test_inputs_outputs_and_messages_are_for_those_who_may_see_payloads(runner, sign_in) -> None:
    failed, done = Run.objects.filter(status=2).first(), Run.objects.filter(status=1).first()
    pages = [
        reverse("admin:autorun_run_change", args=[failed.pk]),
        reverse("admin:autorun_run_change", args=[done.pk]),
        reverse("admin:autorun_failure_changelist"),
        reverse("admin:autorun_node_why", args=[LABEL]) + f"?row={failed.object_id}",
    ]
    client = sign_in("view_run", "view_scan")

    shown = "".join(client.get(page).content.decode() for page in pages)
    client = Client()
    user = scenes.add_user("bea", "view_run", "view_scan", "view_payload")
    client.force_login(user)
    shown_to_bea = "".join(client.get(page).content.decode() for page in pages)

    for payload in ("pixel data", "101.37", "/data/scans/", "Traceback (most"):
        assert payload not in shown
        assert payload in shown_to_bea


def test_names_of_rows_are_for_those_who_may_see_the_rows(runner, sign_in) -> None:
    client = sign_in("view_run", "view_payload")

    listing = client.get(addresses()["runs"]).content.decode()
    page = client.get(addresses()["run"]).content.decode()

    assert "scan-0001" not in listing + page
    assert f"scan {Scan.objects.first().pk}" in listing


def test_what_a_body_throws_and_returns_is_escaped(client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))

    def throw(value):
        raise ValueError(SCRIPT)

    thrower, echo = declare(throw, MAX_ATTEMPTS=1), declare(TITLE=SCRIPT, NAME="ScriptRunner")
    Document.objects.create(title=SCRIPT)
    with installed(thrower, echo):
        thrower().run()
        echo().run()
        work_off()
        pages = [
            *(reverse("admin:autorun_run_change", args=[run.pk]) for run in Run.objects.all()),
            reverse("admin:autorun_failure_changelist"),
            reverse("admin:autorun_run_changelist"),
            reverse("admin:autorun_node_changelist"),
            reverse("admin:autorun_node_runner", args=[echo.get_label()]),
            reverse("admin:autorun_batch_prepare", args=[echo.get_label()]) + f"?filter={SCRIPT}",
            reverse("admin:autorun_run_changelist") + f"?row={SCRIPT}&exception={SCRIPT}",
        ]
        shown = "".join(client.get(page).content.decode() for page in pages)

    assert Failure.objects.get().message == SCRIPT
    assert "&lt;script&gt;" in shown
    assert SCRIPT not in shown


def test_failures_of_two_runners_of_one_analysis_tell_them_apart(client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))

    def throw(value, is_long=False):
        raise ValueError("no pixel data")

    Document.objects.create(title="a")
    short, long, former = (
        declare(throw, MAX_ATTEMPTS=1, NAME=name, **options)
        for name, options in {
            "ShortTextsRunner": {},
            "LongTextsRunner": {"ANALYSIS_CONFIGURATION": {"is_long": True}},
            "FormerRunner": {"VERSION": "0.9"},
        }.items()
    )
    with installed(short, long, former):
        for runner in (short, long, former):
            runner().run()
        work_off()
    address = reverse("admin:autorun_failure_changelist")
    with installed(short, long):
        page = client.get(address, {"versions": "all"})

    lines = {line["runner"]: line["is_earlier"] for line in page.context["lines"]}
    assert lines == {"Short Texts v1.0": False, "Long Texts v1.0": False, "Former v0.9": True}


def test_pages_hold_no_script_or_style_of_their_own(runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))

    shown = "".join(client.get(page).content.decode() for page in addresses().values())

    assert "<style" not in shown
    assert " style=" not in shown
    assert "onclick" not in shown
    assert "<script>" not in shown
    assert "//cdn" not in shown


def test_a_run_whose_row_and_runner_are_gone_is_still_shown(client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    document = Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        runner().run()
        work_off()
    document.delete()

    page = client.get(reverse("admin:autorun_run_change", args=[Run.objects.get().pk]))
    listing = client.get(reverse("admin:autorun_run_changelist"))
    batch = client.get(reverse("admin:autorun_batch_change", args=[Batch.objects.get().pk]))

    assert "is no longer registered" in page.content.decode()
    assert reverse("admin:autorun_node_runner", args=[runner.get_label()]) not in page.text
    assert reverse("admin:autorun_node_runner", args=[runner.get_label()]) not in batch.text
    assert "deleted" in listing.content.decode()
    assert "no longer registered" in batch.content.decode()


def test_a_row_that_has_no_text_is_called_by_its_key(runner, client, monkeypatch) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    monkeypatch.setattr(Scan, "__str__", lambda scan: scan.path[1_000])
    pk = Scan.objects.first().pk

    page = client.get(reverse("admin:autorun_node_why", args=[LABEL]), {"row": pk})

    assert f"Scan Preprocessing on scan {pk}" in page.text
    # Its tabs have the counts of every page.
    assert [tab.key for tab in page.context["tabs"] if tab.count][:2] == ["runs", "failures"]


def test_a_runner_that_is_declared_wrongly_has_a_card_that_says_so(client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    broken = declare(ANALYSIS_CONFIGURATION={"where": object()})
    with installed(broken):
        overview = client.get(reverse("admin:autorun_node_changelist"))
        page = client.get(reverse("admin:autorun_node_runner", args=[broken.get_label()]))

    assert "It cannot run:" in overview.content.decode()
    assert "It cannot run:" in page.content.decode()


def test_the_runner_page_compares_the_configuration_with_the_version_before(runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    Node.objects.filter(version="0.9").update(configuration={"harder": False, "smoother": 2})

    page = client.get(addresses()["runner"]).content.decode()

    assert "changed from" in page
    assert "<strong>added</strong>" in page
    assert "removed" in page


def test_versions_of_another_runner_of_the_analysis_are_not_its_own(client) -> None:
    Document.objects.create(title="a")
    client.force_login(scenes.add_user("admin", is_superuser=True))
    for version in ("1.0", "1.1"):
        own = declare(NAME="OwnRunner", VERSION=version)
        louder = {"ANALYSIS_CONFIGURATION": {"loudness": 11}}
        other = declare(NAME="OtherRunner", VERSION=version, **louder)
        with registry.registered(own, other, alone=True):
            own().run()
            other().run()
            page = client.get(f"/admin/autorun/node/{own.get_label()}/").text

    coverage = page.partition("Coverage by version")[2].partition("</table>")[0]
    assert coverage.count("<tr") == 3  # with the header
    assert "loudness" not in coverage


@pytest.mark.parametrize(
    "address",
    ["run/99/change/", "batch/99/change/", "node/no.Runner/", "batch/backfill/no.Runner/"],
)
def test_what_is_not_there_is_not_found(address: str, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))

    assert client.get(f"/admin/autorun/{address}").status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        "after=x",
        "after=9-9-9",
        "state=nonsense&trigger=nonsense&since=nonsense",
        "batch=99999999999999999999",
        "row=99999999999999999999",
        "row=%00&runner=%00",
    ],
)
def test_nonsense_in_the_address_is_passed_over(query: str, runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))

    assert client.get(f"{addresses()['runs']}?{query}").status_code == 200
    assert client.get(f"{addresses()['count']}?begun={query}").status_code == 200
    assert client.get(f"{addresses()['preview']}?limit=-1&window=x&only=x&{query}")


LONG_NUMBER, HUGE_NUMBER = "9" * 5_000, "9" * 30
NESTED = "[" * 100_000


@pytest.mark.parametrize(
    ("page", "form"),
    [
        ("runs", {"row": "--5"}),
        ("runs", {"row": HUGE_NUMBER}),
        ("runs", {"row": "²"}),
        ("runs", {"row": LONG_NUMBER, "batch": LONG_NUMBER, "after": f"{LONG_NUMBER}-1"}),
        ("runs", {"ended_from": "\0", "ended_until": LONG_NUMBER, "group": "\0"}),
        ("runs", {"ended_from": "9999-12-31T23:59", "ended_until": "0001-01-01"}),
        ("runs", {"after": f"{HUGE_NUMBER}-{HUGE_NUMBER}", "batch": HUGE_NUMBER}),
        ("batches", {"runner": "\0", "before": LONG_NUMBER}),
        ("batches", {"before": HUGE_NUMBER, "state": "\0", "trigger": HUGE_NUMBER}),
        ("failures", {"since": "\0", "runner": "\0"}),
        ("preview", {"limit": LONG_NUMBER, "window": LONG_NUMBER}),
        ("preview", {"filter": "\0", "selection": "\0", "only": "\0"}),
        ("preview", {"begun": '[{"missing":1e999},"5",{}]'}),
        ("preview", {"begun": f'[{{"missing":{HUGE_NUMBER}}},"5",{{}}]'}),
        ("preview", {"begun": f'[{{}},"{HUGE_NUMBER}",{{}}]'}),
        ("preview", {"begun": '[{},"5",{"missing":["abc"]}]'}),
        ("preview", {"begun": f'[{{}},"5",{{"missing":["{HUGE_NUMBER}"],"done":["\\u0000"]}}]'}),
        ("preview", {"begun": NESTED}),
        ("count", {"begun": f'[{{"missing":1e999}},"{LONG_NUMBER}",{{}}]'}),
        ("count", {"begun": NESTED}),
        ("why", {"row": HUGE_NUMBER}),
        ("why", {"row": LONG_NUMBER}),
        ("why", {"row": "\0"}),
        ("scans", {"autorun": f"pending:{LABEL}", "autorun_up_to": HUGE_NUMBER}),
        ("scans", {"autorun": f"pending:{LABEL}", "autorun_up_to": LONG_NUMBER}),
    ],
)
def test_nothing_in_an_address_breaks_a_page(page: str, form, runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    known = {
        **addresses(),
        "why": reverse("admin:autorun_node_why", args=[LABEL]),
        "scans": reverse("admin:sample_app_scan_changelist"),
    }

    response = client.get(known[page], form)

    assert response.status_code == (404 if page == "why" else 200)


@pytest.mark.parametrize("ids", [[HUGE_NUMBER], [LONG_NUMBER], ["-1"], ["\0"], ["x", "²"]])
def test_nonsense_among_the_ticked_is_passed_over(ids: list[str], runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    form = {"action": "ignore", "ids": ids, "confirmed": "1"}

    response = client.post(reverse("admin:autorun_run_act"), form, follow=True)

    assert "Select runs first" in response.text


def by(user: User) -> HttpRequest:
    request = HttpRequest()
    request.user = user
    return request


@pytest.mark.parametrize("keys", [["\ud800"], ["\0"], ["x" * 300], ["x"]])
def test_keys_of_text_that_no_row_can_have_are_passed_over(keys, client) -> None:
    user = scenes.add_user("admin", is_superuser=True)
    client.force_login(user)
    runner = declare(DATA_MODEL=Country, INPUT_FIELDS=("name",))
    Country.objects.create(code="il")
    with installed(runner):
        page = reverse("admin:autorun_batch_count", args=[runner.get_label()])
        count = Count({}, keys[0], {Reason.MISSING: keys})
        begun = signed(by(user), count, runner())

        assert client.get(page, {"begun": begun}).status_code == 200


@pytest.mark.parametrize("page", ["count", "preview"])
def test_a_count_is_continued_only_from_what_was_counted_here(page, runner, client) -> None:
    ada = scenes.add_user("ada", "view_run", "backfill_run")
    client.force_login(ada)
    forged = Count({Reason.MISSING: 123_456_789}, "1")
    elsewhere = signed(by(ada), forged, AnatomicalPreprocessingRunner())
    of_other_rows = signed(by(ada), forged, runner, "filter=x")
    of_another = signed(by(scenes.add_user("eve")), forged, runner)
    with patch("time.time", return_value=time.time() - 601):
        old = signed(by(ada), forged, runner)
    with patch.object(cards, "digest_or_problem", return_value=("0" * 64, "")):
        of_another_version = signed(by(ada), forged, runner)

    genuine = client.get(addresses()[page], {"begun": signed(by(ada), forged, runner)}).text
    assert "123,456," in genuine
    refused = (elsewhere, of_other_rows, of_another, old, of_another_version)
    for begun in (forged.written(), *refused):
        text = client.get(addresses()[page], {"begun": begun}).text
        assert "123,456," not in text
    assert "123456" not in str(Node.objects.values_list("counted", flat=True))


def test_the_paragraphs_of_a_docstring_are_not_broken_where_its_source_is(admin_client) -> None:
    def documented(value: str) -> str:
        """Measure it.

        As it is given, and
        once more.
        - twice
        """
        return value

    with installed(declare(documented)):
        page = admin_client.get(reverse("admin:autorun_node_runner", args=["tests.EchoRunner"]))

    assert "Measure it.\n\nAs it is given, and once more.\n- twice</p>" in page.text


def test_the_log_leads_to_the_page_of_what_it_is_about(runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))

    node = client.get(reverse("admin:autorun_node_change", args=[runner.get_node().pk]))
    failure = client.get(reverse("admin:autorun_failure_change", args=[Failure.objects.first().pk]))

    assert node["Location"] == reverse("admin:autorun_node_runner", args=[LABEL])
    assert "/run/" in failure["Location"]


def test_a_count_is_known_to_all_processes_for_an_hour(runner, client) -> None:
    client.force_login(scenes.add_user("root", is_superuser=True))
    client.post(reverse("admin:autorun_node_count", args=[LABEL]))

    late = card_of(runner).counted
    at = timezone.now() - dt.timedelta(minutes=61)
    node = Node.objects.get(pk=runner.get_node().pk)
    Node.objects.filter(pk=node.pk).update(counted={**node.counted, "at": at.isoformat()})

    assert (late.pending, late.rows) == (2, "20")
    assert card_of(runner).counted is None


def test_idle_pages_are_refreshed_too(runner, client) -> None:
    client.force_login(scenes.add_user("root", is_superuser=True))
    pages = [
        reverse("admin:autorun_node_changelist"),
        reverse("admin:autorun_node_runner", args=[LABEL]),
    ]
    busy = [client.get(page).text for page in pages]

    Chunk.objects.update(state=Chunk.State.FINISHED, succeeded=F("size"), failed=0)

    assert all('data-autorun-refresh="5"' in page for page in busy)
    assert all('data-autorun-refresh="30"' in client.get(page).text for page in pages)


def test_rows_that_were_counted_and_planned_since_are_no_longer_pending(runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    overview = reverse("admin:autorun_node_changelist")
    unasked = client.get(overview).content.decode()
    client.post(addresses()["count"])
    before = card_of(runner)
    Node.objects.update(paused_at=timezone.now())
    runner.run()

    after = card_of(runner)

    assert "count pending rows" in unasked
    assert (before.counted.pending, before.counted.left_out) == (2, 0)
    assert after.counted.pending == 0


def test_coverage_by_version_is_told_of_the_rows_that_were_counted(runner, admin_client) -> None:
    uncounted = admin_client.get(addresses()["runner"]).content.decode()
    admin_client.post(addresses()["count"])

    counted = admin_client.get(addresses()["runner"]).content.decode()

    total = runner.get_base_queryset().count()
    share = f'{runner.progress().succeeded} <span class="ar-quiet">of {total}</span>'
    assert share in counted
    assert share not in uncounted


def test_batches_are_filtered_and_paged(runner, client, set_constants) -> None:
    set_constants(batch_pages, PAGE=2)
    client.force_login(scenes.add_user("admin", is_superuser=True))
    made = [
        Batch.objects.create(runner=LABEL, node=runner.get_node(), trigger=trigger, state=state)
        for trigger in ("sweep", "backfill", "code")
        for state in ("running", "failed", "failed")
    ]
    Batch.objects.create(runner="no.Runner", node=runner.get_node(), trigger="code", state="failed")
    address, found = reverse("admin:autorun_batch_changelist"), []

    query = f"runner={LABEL}&state=failed"
    while query:
        response = client.get(f"{address}?{query}")
        found += [line["pk"] for line in response.context["lines"]]
        query = response.context["older"]
    response = client.get(f"{address}?trigger=code&state=running")

    failed = [batch.pk for batch in made if batch.state == "failed"]
    assert found == failed[::-1]
    assert [line["pk"] for line in response.context["lines"]] == [made[6].pk]
    assert '<option value="running" selected>running' in response.text


def test_a_batch_shows_the_causes_of_its_failures(runner, sign_in) -> None:
    client = sign_in("view_run", "view_payload", "view_scan")
    Batch.objects.update(state=Batch.State.FINISHED)

    causes = client.get(addresses()["batch"]).context["causes"]
    listed = client.get(f"{reverse('admin:autorun_run_changelist')}?{causes[0]['query']}")

    assert causes[0]["words"] == "<path> has no pixel data."
    assert causes[0]["exception_class"] == "ValueError"
    assert len(listed.context["lines"]) == int(causes[0]["runs"]) > 0


def test_the_causes_of_a_batch_quote_no_message_to_those_who_may_see_none(runner, sign_in) -> None:
    Batch.objects.update(state=Batch.State.FINISHED)

    causes = sign_in("view_run").get(addresses()["batch"]).context["causes"]

    assert {each["words"] for each in causes} == {"ValueError", "OSError"}


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        (Scope(only="failed", pks=[1, 2]), "retry of 2 rows"),
        (Scope(only="failed", pks=[1]), "retry of 1 row"),
        (Scope(pks=[1, 2]), "pending rows among 2 chosen rows"),
    ],
)
def test_a_batch_is_named_by_what_it_does(scope: Scope, words: str) -> None:
    assert str(scope) == words


def test_health_is_in_the_index_and_marked_in_the_sidebar(runner, admin_client) -> None:
    health = reverse("admin:autorun_health_changelist")

    index = admin_client.get(reverse("admin:index")).text
    page = admin_client.get(health).text

    assert f'<a href="{health}"' in index
    assert re.findall(r'<tr class="model-(\w+) current-model">', page) == ["health"]


def test_runners_of_one_name_are_told_apart_by_their_app(runner) -> None:
    class ScanPreprocessingRunner(QuerySetRunner):
        DATA_MODEL = Scan

        @classmethod
        def get_label(cls):
            return "library.ScanPreprocessingRunner"

    assert runner_name(LABEL) == "Scan Preprocessing"
    assert runner_name("gone.HTTPProbeRunner") == "HTTP Probe"
    with installed(ScanPreprocessingRunner):
        assert runner_name(LABEL) == "Scan Preprocessing (sample_app)"


def test_sweeps_that_found_nothing_are_listed_on_request(runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    found = {"runner": LABEL, "node": runner.get_node(), "trigger": Batch.Trigger.SWEEP}
    empty = Batch.objects.create(**found, state=Batch.State.FINISHED)
    failed = Batch.objects.create(**found, state=Batch.State.FAILED)
    address = reverse("admin:autorun_batch_changelist")

    usual = [line["pk"] for line in client.get(address).context["lines"]]
    everything = [line["pk"] for line in client.get(address, {"all": "1"}).context["lines"]]

    assert failed.pk in usual
    assert empty.pk not in usual
    assert set(everything) == {*usual, empty.pk}


def without_its_address(self):
    raise KeyError("SCANNER_URL")


@pytest.mark.parametrize(
    "options",
    [
        {"ANALYSIS": "Nobody's", "ANALYSIS_VERSION": "1.0"},
        {"create_configuration": without_its_address},
        {"DATA_MODEL": "sample_app.Scan"},
        {"get_schedule": without_its_address},
    ],
    ids=["analysis", "configuration", "model", "schedule"],
)
def test_a_runner_that_is_declared_wrongly_takes_no_page_from_others(
    runner, admin_client, options
) -> None:
    with installed(declare(**{"DATA_MODEL": Scan, **options})):
        for name, address in addresses().items():
            response = admin_client.get(address)
            assert response.status_code == 200, name


@pytest.mark.parametrize(
    "options",
    [
        {"ANALYSIS": "Nobody's", "ANALYSIS_VERSION": "1.0"},
        {"create_configuration": without_its_address},
    ],
    ids=["analysis", "configuration"],
)
def test_the_pages_of_a_runner_that_cannot_run_say_so(runner, admin_client, options) -> None:
    label = "tests.EchoRunner"
    row = Scan.objects.first()
    with installed(declare(DATA_MODEL=Scan, **options)):
        count = admin_client.get(reverse("admin:autorun_node_count", args=[label]))
        why = admin_client.get(reverse("admin:autorun_node_why", args=[label]), {"row": row.pk})

    assert "It cannot run:" in count.content.decode()
    assert "It cannot be explained:" in why.content.decode()


def misdirected(*args, **kwargs):
    raise ValueError("no such shelf")


@pytest.mark.parametrize("is_fetched", [True, False], ids=["part", "page"])
@pytest.mark.parametrize("hook", ["get_base_queryset", "filter_queryset"])
def test_a_count_of_a_runner_whose_hook_raises_says_so(admin_client, hook, is_fetched) -> None:
    headers = {"X-Requested-With": "autorun"} if is_fetched else {}
    with installed(declare(**{hook: misdirected})):
        address = reverse("admin:autorun_node_count", args=["tests.EchoRunner"])
        response = admin_client.get(address, headers=headers)

    assert response.status_code == 200
    assert response.text.count("It cannot run:") == 1
    assert f"{hook}() raises ValueError: no such shelf" in response.text
    assert "data-autorun-fetch" not in response.text


def test_the_page_of_a_batch_leads_to_the_comparison_once_there_are_two_versions(
    admin_client,
) -> None:
    Document.objects.create(title="a")
    pages = []
    for version in ("1.0", "1.1"):
        with installed(runner := declare(VERSION=version)):
            batch = runner().run()
            address = reverse("admin:autorun_batch_change", args=[batch.pk])
            pages.append(admin_client.get(address).text)

    assert ["Compare versions" in page for page in pages] == [False, True]


def test_a_card_is_up_to_date_once_that_is_counted_and_has_no_rate_at_rest(admin_client) -> None:
    overview = reverse("admin:autorun_node_changelist")
    with installed(declare()):
        before = admin_client.get(overview).text
        admin_client.post(reverse("admin:autorun_node_count", args=["tests.EchoRunner"]))
        after = admin_client.get(overview).text

    assert "up to date" not in before
    assert "up to date" in after
    assert "<dt>Rate</dt>" not in after


@pytest.mark.parametrize("hook", ["get_base_queryset", "filter_queryset"])
def test_the_pages_of_a_runner_whose_hook_for_rows_raises_are_there(
    runner, admin_client, monkeypatch, hook
) -> None:
    monkeypatch.setattr(type(runner), hook, misdirected)
    for name, address in addresses().items():
        response = admin_client.get(address)
        assert response.status_code == 200, name


@pytest.mark.parametrize("deed", ["sweep", "pause", "resume"])
def test_what_is_asked_of_a_runner_that_cannot_run_is_answered(runner, admin_client, deed) -> None:
    broken = declare(DATA_MODEL=Scan, create_configuration=without_its_address)
    with installed(broken):
        address = reverse(f"admin:autorun_node_{deed}", args=[broken.get_label()])
        page = admin_client.post(address, follow=True).content.decode()

    assert "ests.EchoRunner cannot run: " in page  # the admin capitalises messages
    assert "raises KeyError" in page


def test_what_nobody_works_on_is_said_to_be_so(runner, client) -> None:
    pulses.note("upkeep", timezone.now())
    client.force_login(scenes.add_user("admin", is_superuser=True))
    batch = Batch.objects.latest("pk")
    pages = [
        reverse("admin:autorun_node_changelist"),
        addresses()["runner"],
        reverse("admin:autorun_batch_change", args=[batch.pk]),
    ]
    batch_list = reverse("admin:autorun_batch_changelist")
    while_running = [client.get(page).content.decode() for page in pages]
    long_ago = timezone.now() - dt.timedelta(minutes=5)
    Chunk.objects.filter(state=Chunk.State.RUNNING).update(expires_at=long_ago)

    afterwards = [client.get(page).content.decode() for page in pages]

    assert not any("no worker" in page for page in while_running)
    assert all("no worker is processing it" in page for page in afterwards)
    assert all(reverse("admin:autorun_health_changelist") in page for page in afterwards)
    assert "no worker</span>" in client.get(batch_list).text
    assert [tabs(page)["Health"] for page in afterwards] == ["! no worker"] * 3


def test_messages_that_have_just_been_sent_are_not_stuck(runner) -> None:
    node = runner.get_node()
    Chunk.objects.filter(state=Chunk.State.RUNNING).delete()
    sent = [0, STUCK_SECONDS - 5, STUCK_SECONDS + 5]

    stuck = []
    for seconds in sent:
        at = timezone.now() - dt.timedelta(seconds=seconds)
        Chunk.objects.filter(state=Chunk.State.QUEUED).update(published_at=at)
        stuck.append(take_tally().stuck)

    assert STUCK_SECONDS + 5 <= 30
    assert stuck == [set(), set(), {node.pk}]


def test_tasks_that_wait_for_a_busy_worker_are_not_stuck(runner) -> None:
    node = runner.get_node()
    other = Node.objects.get(pk=node.pk)
    other.pk, other.digest = None, "f" * len(node.digest)
    other.save()
    long_ago = timezone.now() - dt.timedelta(minutes=1)
    Chunk.objects.filter(state=Chunk.State.RUNNING).delete()
    Chunk.objects.filter(state=Chunk.State.QUEUED).update(published_at=long_ago)
    batch = batches.begin(runner, Batch.Trigger.SWEEP)
    old = {"pk": clock.first_chunk_id_at(long_ago), "node": other, "runner": "lab.Other", "size": 1}
    busy = Chunk.objects.create(**old, state=Chunk.State.RUNNING, worker="w@host:1:a")

    def stuck(**chunk: Any) -> bool:
        Chunk.objects.filter(pk=busy.pk).update(**chunk)
        found = take_tally().stuck
        assert progresses_and_tally()[1].stuck == found <= {node.pk}
        return bool(found)

    beside_planning = stuck(expires_at=clock.from_now(-1))
    Batch.objects.filter(pk=batch.pk).update(expires_at=clock.from_now(-60))
    beside_none = stuck()
    beside_another_queue = stuck(expires_at=clock.from_now(60), queue="another")
    beside_a_chunk = stuck(queue="")
    leased = {"keys": [1], "tries": 1, "expires_at": clock.from_now(60)}
    spilled = SpilledTrigger.objects.create(model_label="library.Document", **leased)
    beside_stored_rows = stuck(queue="another")
    spilled.delete()
    saved = Chunk.objects.create(**old | {"pk": clock.new_chunk_id()}, state=Chunk.State.FINISHED)
    beside_saved_rows = stuck()
    saved.delete()

    assert stuck()
    assert (beside_planning, beside_a_chunk) == (False, False)
    assert (beside_stored_rows, beside_saved_rows) == (False, False)
    assert (beside_none, beside_another_queue) == (True, True)


def test_a_batch_whose_planning_nobody_takes_up(runner, client) -> None:
    pulses.note("upkeep", timezone.now())
    client.force_login(scenes.add_user("admin", is_superuser=True))
    batch = batches.begin(runner, Batch.Trigger.BACKFILL, scope={})
    address = reverse("admin:autorun_batch_change", args=[batch.pk])
    planned = client.get(address).content.decode()
    long_ago = timezone.now() - dt.timedelta(minutes=5)
    Batch.objects.filter(pk=batch.pk).update(expires_at=long_ago)
    Chunk.objects.filter(state=Chunk.State.RUNNING).update(expires_at=clock.from_now(0))

    left = client.get(address).content.decode()

    assert "<dd>not started</dd>" in left
    assert ("no worker" in planned, "no worker" in left) == (False, True)


def test_a_batch_of_a_paused_runner_says_so(runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    Node.objects.update(paused_at=timezone.now())
    batch = Batch.objects.latest("pk")

    page = client.get(reverse("admin:autorun_batch_change", args=[batch.pk])).content.decode()

    assert "The runner is paused; no more runs will start." in page
    assert '<span class="ar-quiet">paused</span>' in page


def test_a_batch_shows_what_is_running_and_cancels_it_too(
    runner, client, django_capture_on_commit_callbacks
) -> None:
    batch = Batch.objects.latest("pk")
    Batch.objects.filter(pk=batch.pk).update(state=Batch.State.RUNNING, finished_at=None)
    run = Run.objects.current().order_by("pk").first()
    chunk = Chunk.objects.create(
        node=batch.node,
        runner=batch.runner,
        batch=batch,
        size=10,
        succeeded=3,
        state=Chunk.State.RUNNING,
        worker="w@host:1:a",
        started_at=timezone.now(),
        doing={"run": run.pk, "done": 0.4, "note": "registering"},
    )
    Run.objects.filter(pk=run.pk).update(chunk=chunk, status=Run.Status.PENDING)
    address = reverse("admin:autorun_batch_change", args=[batch.pk])

    client.force_login(scenes.add_user("bea", "view_run"))
    blind = client.get(address).text
    client.force_login(
        scenes.add_user("ada", "view_run", "cancel_run", "view_payload", "view_scan")
    )
    page = client.get(address).text
    with django_capture_on_commit_callbacks(execute=True):
        stopped = client.post(reverse("admin:autorun_batch_stop", args=[batch.pk]), follow=True)

    assert all(each in page for each in ("w@host:1:a", "3 of 10", "40 % done: registering"))
    assert "Cancel running runs, too" in page
    assert "registering" not in blind
    assert "Cancel running runs, too" not in blind
    assert "3 runs in progress will stop within" in stopped.text
    assert Batch.objects.get(pk=batch.pk).state == Batch.State.CANCELLED
    assert Chunk.objects.get(pk=chunk.pk).cancelling == [run.pk]


def test_all_rows_are_in_the_parts_of_a_card(runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    client.post(addresses()["count"])
    Node.objects.update(paused_at=timezone.now())
    number = Scan.objects.count()
    at_first = card_of(runner)
    Node.objects.update(counted={**at_first.node.counted, "left_out": 3})
    scenes.add_scans(3, first=101)  # those three
    runner.run()

    parts = {part.name: part.number for part in card_of(runner).parts}

    assert sum(part.number for part in at_first.parts) == number
    assert sum(parts.values()) == number + 3
    assert "filtered" not in parts


def test_rows_that_wait_for_another_runner_are_not_said_to_be_filtered_out() -> None:
    upstream = declare(NAME="Upstream")
    downstream = declare(NAME="Downstream", TITLE="Down", DEPENDS_ON=(upstream,))
    with installed(upstream, downstream):
        words = {
            label: next(p.words for p in _counted(runner()).parts if p.name == "filtered")
            for label, runner in (("up", upstream), ("down", downstream))
        }

    assert words == {"up": "filtered out", "down": "filtered out, or waiting for another runner"}


def _counted(runner: QuerySetRunner) -> Card:
    return replace(card_of(runner), counted=Counted("1", 0, 1, "now"))


def test_who_may_not_backfill_is_not_offered_to_run_everything_again(runner, sign_in) -> None:
    client = sign_in("view_run", "view_scan", "start_run")
    token = client.post(
        reverse("admin:sample_app_scan_changelist"),
        {"action": f"autorun_run__{LABEL}", "_selected_action": [Scan.objects.first().pk]},
    )

    page = client.get(token.url).content.decode()

    assert 'value="failed"' in page
    assert 'value="again"' not in page
    assert "The row that you selected." in page


def tabs(page: str) -> dict[str, str]:
    """The counts on the tabs of a page, by tab."""
    nav = page.partition('id="tabs"')[2].partition("</nav>")[0]
    found = [strip_tags(each.partition(">")[2]).split() for each in nav.split("<a ")[1:]]
    return {name: " ".join(words) for name, *words in found}


@pytest.mark.parametrize("name", ["batches", "run"])
def test_tabs_have_counts(name, runner, admin_client) -> None:
    address = addresses()[name]
    pulses.note("upkeep", timezone.now())
    Failure.objects.all().delete()
    page = admin_client.get(address).text
    done = {"state": Chunk.State.FINISHED, "superseded_failed": F("failed")}
    Chunk.objects.update(**done, cancelled=F("size") - F("succeeded") - F("failed"))
    Batch.objects.update(state=Batch.State.FINISHED)
    quiet = admin_client.get(address).text

    assert tabs(page) == {
        "Overview": "",
        "Runs": "6 in progress",
        "Failures": "5 failed",
        "Batches": "1 unfinished",
        "Health": "",
    }
    assert set(tabs(quiet).values()) == {""}


@pytest.mark.parametrize(("unfinished", "count"), [(30_000, "about 30,000"), (0, "")])
def test_a_tab_tells_about_how_many_of_very_many_runs_there_are(unfinished, count) -> None:
    tally = Tally(unfinished=unfinished, crowd=frozenset({1}))

    runs = next(tab for tab in admin.site._registry[Run]._tabs(tally) if tab.key == "runs")

    assert runs.count == count


def test_counts_of_tabs_are_of_folded_chunks_as_well(runner, admin_client) -> None:
    Node.objects.filter(pk=runner.get_node().pk).update(folded_failed=1_000)

    page = admin_client.get(reverse("admin:autorun_run_changelist")).text

    assert tabs(page)["Failures"] == "1,005 failed"


def at_a_glance(client: Client) -> list[str]:
    page = client.get(reverse("admin:autorun_node_changelist")).text
    line = page.partition('id="glance"')[2].partition(">")[2].partition("</ul>")[0]
    return [" ".join(strip_tags(each).split()) for each in line.split("</li>")[:-1]]


def test_the_overview_begins_with_what_an_operator_has_to_know(runner, admin_client) -> None:
    Pulse.objects.filter(name="upkeep").delete()

    at_first = at_a_glance(admin_client)
    pulses.note("upkeep", timezone.now())
    runner.get_node()
    Node.objects.update(paused_at=timezone.now())
    batch = batches.begin(runner, Batch.Trigger.SWEEP, description="pending rows")
    then = at_a_glance(admin_client)
    Batch.objects.filter(pk=batch.pk).update(expires_at=clock.from_now(-60))
    Chunk.objects.filter(state=Chunk.State.RUNNING).update(expires_at=clock.from_now(0))
    at_last = at_a_glance(admin_client)

    assert at_first[:2] == ["No worker is running", "5 failed"]
    assert then[-1].startswith("last sweep ")
    assert "1 paused" in then
    assert at_last[0] == "No worker is picking up tasks"


def test_many_runners_are_a_table_with_the_troubled_ones_first(admin_client) -> None:
    declared = [declare(NAME=f"Number{n}Runner", TITLE=f"Number {n}") for n in range(10)]
    broken = declare(NAME="BrokenRunner", ANALYSIS_VERSION="9.9")
    overview = reverse("admin:autorun_node_changelist")

    with installed(*declared, broken):
        page = admin_client.get(overview).text
        found = admin_client.get(overview, {"q": "number3"}).text
        of_app = admin_client.get(overview, {"app": "tests"}).text
        of_none = admin_client.get(overview, {"app": "none"}).text

    assert page.index("cannot run</span>") < page.index("tests.Number0Runner")
    assert [f"tests.Number{n}Runner" in found for n in (3, 4)] == [True, False]
    assert "tests.Number9Runner" in of_app
    assert "No runner matches." in of_none


def test_all_runners_are_paused_and_resumed_by_one_click(runner, admin_client) -> None:
    overview = reverse("admin:autorun_node_changelist")
    paused = admin_client.post(reverse("admin:autorun_node_pause_all"), follow=True).text
    number = Node.objects.exclude(paused_at=None).count()
    resumed = admin_client.post(reverse("admin:autorun_node_resume_all"), follow=True).text

    assert f"{number} runners paused. Runs in progress will finish." in paused
    assert "Resume all" in paused
    assert f"{number} runners resumed." in resumed
    assert "Pause all" in admin_client.get(overview).text


def test_a_filter_that_the_list_does_not_know_shows_no_runs(runner, admin_client) -> None:
    page = admin_client.get(addresses()["runs"], {"weather": "x", "state": "failed"}).text

    assert "Unknown filter “weather”." in page
    assert "No runs are shown" in page


def test_a_finished_batch_says_how_many_of_its_runs_failed(runner, admin_client) -> None:
    batch = Batch.objects.get()
    Batch.objects.update(state=Batch.State.FINISHED)

    page = admin_client.get(reverse("admin:autorun_batch_change", args=[batch.pk])).text

    assert "finished, 5 failed" in page
    assert f"<h1>Backfill {batch.pk}: pending rows</h1>" in page


def test_failures_are_those_of_present_versions_unless_others_are_asked_for(
    runner, admin_client
) -> None:
    Node.objects.filter(pk=runner.get_node().pk).update(digest="1" * 64)
    forget_nodes()
    failures = addresses()["failures"]

    present = admin_client.get(failures).text
    attempts = Failure.objects.count()
    everything = admin_client.get(failures, {"versions": "all"}).text

    assert f"Also {attempts} failed attempts of earlier versions" in present
    assert "OSError" not in present
    assert "earlier version" in everything
    assert "Retry all" not in everything


def test_what_a_worker_did_between_two_times_is_listed(runner, admin_client) -> None:
    runs = Run.objects.succeeded().order_by("pk")
    worker = runs[0].chunk.worker.rsplit(":", 2)[0]
    ended = timezone.localtime(runs[0].finished_at)
    around = {
        "ended_from": (ended - dt.timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M"),
        "ended_until": (ended + dt.timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M"),
    }

    def listed(**query: str) -> int:
        page = admin_client.get(addresses()["runs"], query).text
        return page.count('name="ids"')

    expected = Run.objects.filter(
        chunk__worker__startswith=worker,
        finished_at__range=(ended - dt.timedelta(minutes=3), ended + dt.timedelta(minutes=3)),
    ).count()
    assert worker
    assert listed(worker=worker, **around) == expected > 0
    assert listed(worker="none@host", **around) == 0
    assert listed(ended_until="2001-01-01T00:00") == 0
    assert worker in admin_client.get(addresses()["health"]).text


PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("outputs", "shown", "hidden"),
    [
        ({"mean": 2.5, "what": "<b>"}, ["<code>mean</code>", "<dd>2.5</dd>", "&lt;b&gt;"], ["<b>"]),
        ({"thumbnail": PIXEL}, [f'src="{PIXEL}" alt="thumbnail"'], []),
        (PIXEL, [f'src="{PIXEL}"'], []),
        ({"a": 'data:image/png;base64,x" onerror=alert(1)'}, [], ["<img class"]),
        ({"a": "data:text/html;base64,AAAA"}, [], ["<img class"]),
        ({"a": {"b": 1}, "c": PIXEL}, ["<dd>{&quot;b&quot;: 1}</dd>", f'src="{PIXEL}"'], []),
        ([1, 2], ["Outputs"], ["<img class"]),
    ],
)
def test_outputs_are_under_their_names_and_pictures_are_shown(
    outputs, shown, hidden, runner, admin_client
) -> None:
    run = Run.objects.succeeded().first()
    Run.objects.filter(pk=run.pk).update(outputs=outputs)

    page = admin_client.get(reverse("admin:autorun_run_change", args=[run.pk])).text

    assert [each for each in shown if each not in page] == []
    assert [each for each in hidden if each in page] == []


def test_the_schedule_of_sweeps_is_told_in_words(runner, client) -> None:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    on_schedule.sync()

    page = client.get(addresses()["runner"]).content.decode()

    assert "daily 03:00, next " in page


def test_a_batch_whose_rows_are_on_their_way_says_that_they_were_skipped(
    sign_in: Callable[..., Client],
) -> None:
    Document.objects.bulk_create(Document(title=f"title {n}") for n in range(3))
    with installed(runner := declare()):
        runner().run()
        batch = runner().run()
        page = sign_in("view_run").get(reverse("admin:autorun_batch_change", args=[batch.pk]))

    figures = " ".join(strip_tags(page.text).split())
    assert "Skipped 3 (up to date or already queued)" in figures
    assert "Runs planned 0" in figures


def test_a_page_shows_the_start_of_a_long_output_and_links_to_all_of_it(
    runner, client, set_constants
) -> None:
    set_constants(markup, MOST_SHOWN=5_000)
    nested: Any = "deep"
    for depth in range(28):
        nested = [nested] * (2 if depth < 9 else 1)
    run = Run.objects.filter(status=Run.Status.SUCCEEDED).first()
    Run.objects.filter(pk=run.pk).update(outputs={"of": nested})
    client.force_login(scenes.add_user("admin", is_superuser=True))

    page = client.get(reverse("admin:autorun_run_change", args=[run.pk]))

    address = reverse("admin:autorun_run_text", args=[run.pk, "outputs"])
    assert address in page.text
    assert len(page.content) < 40_000
    whole = client.get(address)
    assert json.loads(whole.content) == {"of": nested}
    assert whole["Content-Type"].startswith("text/plain")
    assert client.get(address.replace("outputs", "other")).status_code == 404


def test_a_page_waits_for_a_hook_no_longer_than_its_limit(client, set_constants) -> None:
    set_constants(page_time, SECONDS=0.05)

    def get_instance_representation(self, instance):
        time.sleep(5)

    runner = scenes.few()
    run = Run.objects.filter(status=Run.Status.SUCCEEDED).first()
    client.force_login(scenes.add_user("admin", is_superuser=True))
    with patch.object(type(runner), "get_instance_representation", get_instance_representation):
        address = reverse("admin:autorun_run_text", args=[run.pk, "input"])
        page = client.get(address)

    assert "get_instance_representation() takes longer than 0.05 s." in page.text


def test_a_thread_that_no_signal_reaches_waits_no_longer_either() -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(within, 0.05, lambda: time.sleep(1))
        quick = pool.submit(within, 5, lambda: "done")

        with pytest.raises(RunTimeout, match=r"longer than 0\.05 s"):
            slow.result()
        assert quick.result() == "done"


def test_rows_are_asked_for_their_names_only_if_these_are_shown(
    runner, admin_client, monkeypatch
) -> None:
    named: list[Scan] = []
    monkeypatch.setattr(Scan, "__str__", lambda scan: named.append(scan) or "a name")

    causes = admin_client.get(addresses()["failures"]).text
    asked_for_causes = len(named)
    runs = admin_client.get(addresses()["runs"]).text

    assert "has no pixel data" in causes
    assert asked_for_causes == 0
    assert "a name" in runs
