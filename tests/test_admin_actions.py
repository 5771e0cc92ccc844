"""Actions on the pages: by whom, how, on which runs, and their entries in the log."""

import datetime as dt
import json
from collections.abc import Iterator

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db.models import Q
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.html import escape

from autorun.admin import bulk_actions, row_states, selections
from autorun.admin.selections import MOST_KEPT
from autorun.control import interventions
from autorun.dispatch.publishing import redirected
from autorun.exceptions import BrokerUnavailable
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.observe import listing
from autorun.observe.failures import recent_failures
from autorun.observe.listing import RunFilter
from autorun.planning import batches, windows
from autorun.planning.scope import Scope
from autorun.runner import QuerySetRunner
from autorun.upkeep import rounds
from sample_app.admin import ScanAdmin
from sample_app.models import Scan
from tests.browser import scenes
from tests.engine import declare, installed, plan_at_once, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db

LABEL = "sample_app.ScanPreprocessingRunner"
EVERY_PERMISSION = (
    "start_run",
    "backfill_run",
    "retry_run",
    "cancel_run",
    "pause_run",
    "view_payload",
)


@pytest.fixture(autouse=True)
def broker() -> Iterator[None]:
    """Rows are planned at once, in the test's own transaction."""
    with redirected(plan_at_once):
        yield


@pytest.fixture
def runner() -> QuerySetRunner:
    runner = scenes.few()
    # Whatever is started waits: nobody is there to work it off.
    Node.objects.filter(pk=runner.get_node().pk).update(paused_at="2026-01-01T00:00Z")
    return runner


def client_with(*codenames: str) -> Client:
    client = Client(enforce_csrf_checks=False)
    client.force_login(
        scenes.add_user("-".join(codenames) or "nobody", "view_run", "view_scan", *codenames)
    )
    return client


def group_of(exception: str) -> dict[str, str]:
    """The form of a group of failures, without what is to be done."""
    groups = [each.group for each in recent_failures("24h").groups]
    (group,) = [each for each in groups if each.exception_class == exception]
    return {"group": group.key, "since": "24h", "state": "failed", "scope": "everything"}


def posts() -> dict[str, tuple[str, str, dict[str, str]]]:
    """Each action: the permission it takes, its address, and the form."""
    batch = Batch.objects.get()
    pk = Run.objects.filter(status=Run.Status.FAILED).order_by("pk").first().pk
    act = reverse("admin:autorun_run_act")
    ticked = {"ids": str(pk), "confirmed": "1"}
    return {
        "sweep": ("start_run", reverse("admin:autorun_node_sweep", args=[LABEL]), {}),
        "pause": ("pause_run", reverse("admin:autorun_node_pause", args=[LABEL]), {}),
        "resume": ("pause_run", reverse("admin:autorun_node_resume", args=[LABEL]), {}),
        "hold": ("pause_run", reverse("admin:autorun_node_hold", args=[LABEL]), {}),
        "lift": ("pause_run", reverse("admin:autorun_node_lift", args=[LABEL]), {}),
        "try": ("start_run", reverse("admin:autorun_node_try_some", args=[LABEL]), {}),
        "start": ("backfill_run", reverse("admin:autorun_batch_start", args=[LABEL]), {}),
        "pause batch": ("pause_run", reverse("admin:autorun_batch_pause", args=[batch.pk]), {}),
        "resume batch": ("pause_run", reverse("admin:autorun_batch_resume", args=[batch.pk]), {}),
        "cancel batch": ("cancel_run", reverse("admin:autorun_batch_cancel", args=[batch.pk]), {}),
        "stop batch": ("cancel_run", reverse("admin:autorun_batch_stop", args=[batch.pk]), {}),
        "retry": ("retry_run", act, {"action": "retry", **ticked}),
        "ignore": ("cancel_run", act, {"action": "ignore", **ticked}),
        "cancel": (
            "cancel_run",
            act,
            {"action": "cancel", "scope": "everything", "confirmed": "1"},
        ),
        "retry group": (
            "retry_run",
            act,
            {"action": "retry", "confirmed": "1", **group_of("ValueError")},
        ),
        "ignore group": (
            "cancel_run",
            act,
            {"action": "ignore", "confirmed": "1", **group_of("ValueError")},
        ),
    }


NAMES = [
    "sweep",
    "pause",
    "resume",
    "hold",
    "lift",
    "try",
    "start",
    "pause batch",
    "resume batch",
    "cancel batch",
    "stop batch",
    "retry",
    "ignore",
    "cancel",
    "retry group",
    "ignore group",
]


def prepare(name: str) -> None:
    """Make the action have something to do."""
    if name == "pause":
        Node.objects.update(paused_at=None)
        Chunk.objects.filter(state=Chunk.State.WAITING).update(state=Chunk.State.PARKED)
    elif name == "lift":
        Node.objects.update(held_at="2026-01-01T00:00Z")
    elif name == "resume":
        Chunk.objects.filter(state=Chunk.State.WAITING).update(state=Chunk.State.PARKED)
    elif name == "resume batch":
        Batch.objects.update(state=Batch.State.PAUSED)


@pytest.mark.parametrize("name", NAMES)
def test_an_action_is_done_and_logged_with_its_permission(
    name: str, runner: QuerySetRunner, django_capture_on_commit_callbacks
) -> None:
    prepare(name)
    permission, address, form = posts()[name]

    with django_capture_on_commit_callbacks(execute=True):
        response = client_with(permission).post(address, form)

    assert response.status_code == 302
    assert LogEntry.objects.filter(user__username=permission).count() >= 1


@pytest.mark.parametrize("name", NAMES)
def test_an_action_is_refused_without_its_permission(name: str, runner: QuerySetRunner) -> None:
    prepare(name)
    permission, address, form = posts()[name]
    others = [each for each in EVERY_PERMISSION if each != permission]

    response = client_with(*others).post(address, form)

    assert response.status_code == 403
    assert LogEntry.objects.count() == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_action_is_refused_without_the_permission_to_view(
    name: str, runner: QuerySetRunner
) -> None:
    prepare(name)
    permission, address, form = posts()[name]
    client = Client()
    client.force_login(scenes.add_user("blind", permission))

    assert client.post(address, form).status_code == 403


@pytest.mark.parametrize("name", NAMES)
def test_an_action_is_a_post_with_a_csrf_token(name: str, runner: QuerySetRunner) -> None:
    _, address, form = posts()[name]
    client = Client(enforce_csrf_checks=True)
    client.force_login(scenes.add_user("admin", is_superuser=True))

    assert client.get(address).status_code == 405
    assert client.post(address, form).status_code == 403
    assert LogEntry.objects.count() == 0


def test_a_runner_is_paused_and_resumed(runner) -> None:
    prepare("pause")
    client = client_with("pause_run")

    client.post(reverse("admin:autorun_node_pause", args=[LABEL]))
    paused_at = Node.objects.get(pk=runner.get_node().pk).paused_at
    client.post(reverse("admin:autorun_node_resume", args=[LABEL]))

    assert paused_at is not None
    assert Node.objects.get(pk=runner.get_node().pk).paused_at is None


def test_a_failed_run_is_retried(runner, django_capture_on_commit_callbacks) -> None:
    failed = Run.objects.filter(status=Run.Status.FAILED).first()
    form = {"action": "retry", "ids": failed.pk, "confirmed": "1"}

    with django_capture_on_commit_callbacks(execute=True):
        client_with("retry_run").post(reverse("admin:autorun_run_act"), form)

    failed.refresh_from_db()
    assert failed.is_current is None
    again = Run.objects.get(object_id=failed.object_id, is_current=True)
    assert again.status == Run.Status.PENDING
    assert runner.progress().failed == 4


def test_all_that_match_the_filter_are_ignored(runner) -> None:
    form = {"action": "ignore", "scope": "everything", "exception": "ValueError", "confirmed": "1"}

    client_with("cancel_run").post(reverse("admin:autorun_run_act"), form)

    assert runner.progress().ignored == 3
    assert runner.progress().failed == 2
    assert Run.objects.filter(status=Run.Status.CANCELLED, is_current=True).count() == 3


def test_an_action_on_all_ends_in_time_and_the_next_one_goes_on_from_there(
    runner, set_constants
) -> None:
    set_constants(batches, CANCEL_WITHIN=0.0)
    set_constants(listing, RUNS_AT_ONCE=1, CHUNKS_AT_ONCE=1)
    form = {"action": "ignore", "scope": "everything", "exception": "ValueError", "confirmed": "1"}
    client, ignored = client_with("cancel_run"), []

    for _ in range(3):
        page = client.post(reverse("admin:autorun_run_act"), form, follow=True).text
        ignored.append(runner.progress().ignored)
        assert "Only 1 run was checked. Repeat the action for the next ones." in page

    assert ignored == [1, 2, 3]


def test_what_has_not_been_started_is_cancelled(runner) -> None:
    form = {"action": "cancel", "scope": "everything", "confirmed": "1"}

    client_with("cancel_run").post(reverse("admin:autorun_run_act"), form)

    progress = runner.progress()
    assert (progress.queued, progress.waiting, progress.running) == (0, 0, 2)
    assert progress.ignored == 0
    assert runner.pending().count() == 6


@pytest.mark.parametrize(("scans", "words"), [(1, "1 failed run is"), (2, "2 failed runs are")])
def test_what_was_done_is_told_in_good_english(scans: int, words: str, runner) -> None:
    failed = Run.objects.filter(status=Run.Status.FAILED).values_list("pk", flat=True)[:scans]
    form = {"action": "ignore", "scope": "ticked", "ids": list(failed), "confirmed": "1"}

    response = client_with("cancel_run").post(reverse("admin:autorun_run_act"), form, follow=True)

    assert f"{words} ignored from now on." in response.text


def test_a_bulk_action_asks_first(runner) -> None:
    form = {"action": "retry", "scope": "everything", "state": "failed"}

    response = client_with("retry_run").post(reverse("admin:autorun_run_act"), form)

    assert "Retry 5 runs?" in response.content.decode()
    assert Batch.objects.count() == 1


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"action": "", "scope": "everything"}, "Choose an action first."),
        ({"action": "retry", "scope": "ticked"}, "Select runs first, or choose all that match."),
        ({"action": "retry", "scope": "everything", "state": "queued"}, "these are queued"),
    ],
)
def test_a_bulk_action_that_makes_no_sense_is_explained(form, message, runner) -> None:
    client = client_with("retry_run")

    response = client.post(reverse("admin:autorun_run_act"), form, follow=True)

    assert message in response.content.decode()


def test_a_group_of_failures_is_retried_as_one(runner, django_capture_on_commit_callbacks) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        form = {"action": "retry", "confirmed": "1", **group_of("ValueError")}
        response = client_with("retry_run").post(
            reverse("admin:autorun_run_act"), form, follow=True
        )

    assert "3 failed runs queued for retry." in response.content.decode()
    assert runner.progress().failed == 2


def test_a_retry_leads_to_the_page_of_its_batch_and_back(runner) -> None:
    failures = reverse("admin:autorun_failure_changelist") + "?since=24h"
    form = {"action": "retry", "confirmed": "1", "next": failures, **group_of("ValueError")}

    response = client_with("retry_run").post(reverse("admin:autorun_run_act"), form, follow=True)

    batch = Batch.objects.latest("pk")
    address = reverse("admin:autorun_batch_change", args=[batch.pk])
    assert response.redirect_chain == [(address, 302)]
    assert f'3 failed runs queued for retry. <a href="{failures}">Go back</a>' in response.text


def test_a_retry_in_several_batches_leads_back_to_the_list(runner) -> None:
    interventions.ignore_runs(RunFilter(state="failed", exception="ValueError").each())
    pks = list(Run.objects.current().exclude(finished_at=None).values_list("pk", flat=True))
    failures = reverse("admin:autorun_failure_changelist")
    form = {"action": "retry", "confirmed": "1", "ids": pks, "next": failures}

    response = client_with("retry_run").post(reverse("admin:autorun_run_act"), form, follow=True)

    assert response.redirect_chain == [(failures, 302)]
    assert "Watch" in response.text


@pytest.mark.parametrize(("action", "codename"), [("retry", "retry_run"), ("ignore", "cancel_run")])
def test_a_group_of_failures_is_asked_about_first(action, codename, runner) -> None:
    client = client_with(codename)
    failures = reverse("admin:autorun_failure_changelist") + "?since=24h"
    form = {"action": action, "next": failures, **group_of("ValueError")}

    question = client.post(reverse("admin:autorun_run_act"), form)

    assert f"{action.capitalize()} 3 runs?" in question.text
    assert "ValueError · Scan Preprocessing v1.0" in question.text
    assert f'href="{failures}">Cancel' in question.text
    assert runner.progress().failed == 5
    assert LogEntry.objects.count() == 0


@pytest.mark.parametrize("may_see", [False, True])
def test_the_question_has_the_pattern_of_the_messages_for_those_who_may_see_them(
    may_see: bool, runner
) -> None:
    client = client_with("retry_run", *(["view_payload"] if may_see else []))
    (shape,) = {
        each.group.shape
        for each in recent_failures("24h").groups
        if each.group.exception_class == "ValueError"
    }

    form = {"action": "retry", **group_of("ValueError")}
    question = client.post(reverse("admin:autorun_run_act"), form)

    assert (escape(shape) in question.text) is may_see
    assert ("Message pattern" in question.text) is may_see


def test_the_question_names_its_filters_as_the_list_does(runner) -> None:
    form = {
        "action": "cancel",
        "scope": "everything",
        "runner": LABEL,
        "ended_until": "2031-05-04T03:00",
    }

    with translation.override("de"):
        question = client_with("cancel_run").post(reverse("admin:autorun_run_act"), form)

    assert "<dd>Scan Preprocessing</dd>" in question.text
    assert "<dt>Beendet bis</dt>" in question.text


def test_the_question_leads_back_to_no_other_site(runner) -> None:
    form = {"action": "retry", "next": "javascript:alert(1)", **group_of("ValueError")}

    question = client_with("retry_run").post(reverse("admin:autorun_run_act"), form)

    assert "javascript:" not in question.text


def test_the_log_tells_which_failures_were_meant(runner) -> None:
    form = {"action": "ignore", "confirmed": "1", "name": "Nonsense", **group_of("ValueError")}

    response = client_with("cancel_run").post(reverse("admin:autorun_run_act"), form, follow=True)

    (entry,) = LogEntry.objects.all()
    shape = next(
        each.group.shape
        for each in recent_failures("24h").groups
        if each.group.exception_class == "ValueError"
    )
    for words in ("ValueError", "Scan Preprocessing v1.0", "24h", shape):
        assert words in entry.change_message
    assert "ValueError" in entry.object_repr
    assert "Nonsense" not in entry.object_repr + entry.change_message
    # Whoever did it sees both on the index, and may not see what messages say.
    assert shape not in entry.object_repr + response.text


def test_the_log_names_each_of_a_few_ticked_runs(
    runner, django_capture_on_commit_callbacks
) -> None:
    failed = list(Run.objects.filter(status=Run.Status.FAILED).order_by("pk"))
    done = Run.objects.filter(status=Run.Status.SUCCEEDED).first()
    address = reverse("admin:autorun_run_act")
    forms = {
        "cancel_run": {"action": "ignore", "ids": [failed[0].pk, failed[1].pk, done.pk]},
        "retry_run": {"action": "retry", "ids": [failed[2].pk]},
    }

    for codename, form in forms.items():
        with django_capture_on_commit_callbacks(execute=True):
            client_with(codename).post(address, {**form, "confirmed": "1"})

    entries = LogEntry.objects.order_by("pk").values_list("object_id", "object_repr")
    batch = Batch.objects.order_by("-pk").first()
    assert [*entries] == [
        *((str(run.pk), str(run)) for run in failed[:3]),
        (str(batch.pk), str(batch)),
    ]
    assert LogEntry.objects.earliest("pk").get_admin_url() == reverse(
        "admin:autorun_run_change", args=[failed[0].pk]
    )


def test_the_log_has_the_ids_of_many_ticked_runs_in_one_entry(runner, set_constants) -> None:
    set_constants(bulk_actions, FEW=2)
    failed = list(Run.objects.filter(status=Run.Status.FAILED).values_list("pk", flat=True))
    form = {"action": "ignore", "ids": failed, "confirmed": "1"}

    client_with("cancel_run").post(reverse("admin:autorun_run_act"), form)

    (entry,) = LogEntry.objects.all()
    assert entry.object_repr == "5 selected runs"
    for pk in failed:
        assert f" {pk}" in entry.change_message


def test_the_log_has_the_words_of_a_filter(runner) -> None:
    form = {"action": "ignore", "scope": "everything", "exception": "OSError", "confirmed": "1"}

    client_with("cancel_run").post(reverse("admin:autorun_run_act"), form)

    (entry,) = LogEntry.objects.all()
    assert entry.object_repr == "runs: exception OSError"
    assert "2 failed runs" in entry.change_message


def test_nothing_is_logged_where_nothing_was_done(runner) -> None:
    done = Run.objects.filter(status=Run.Status.SUCCEEDED).first()
    form = {"action": "ignore", "ids": done.pk, "confirmed": "1"}

    response = client_with("cancel_run").post(reverse("admin:autorun_run_act"), form, follow=True)

    assert "0 failed runs" in response.text
    assert LogEntry.objects.count() == 0


@pytest.mark.parametrize("form", [{"scope": "everything", "state": "ignored"}, {"ids": "all"}])
def test_ignored_runs_are_retried_where_they_are_meant(
    form, runner, django_capture_on_commit_callbacks
) -> None:
    interventions.ignore_runs(RunFilter(state="failed", exception="ValueError").each())
    ignored = Run.objects.filter(status=Run.Status.CANCELLED, is_current=True)
    pks = list(ignored.values_list("pk", flat=True))
    form = {**form, "action": "retry", "confirmed": "1"} | ({"ids": pks} if "ids" in form else {})

    with django_capture_on_commit_callbacks(execute=True):
        response = client_with("retry_run").post(
            reverse("admin:autorun_run_act"), form, follow=True
        )

    assert "3 runs queued for retry." in response.text
    progress = runner.progress()
    assert (progress.ignored, progress.failed) == (0, 2)
    assert progress.unfinished == 6 + 3
    assert not Run.objects.filter(pk__in=pks, is_current=True).exists()


def test_ignored_runs_stay_so_when_all_that_match_no_state_are_retried(
    runner, django_capture_on_commit_callbacks
) -> None:
    interventions.ignore_runs(RunFilter(state="failed", exception="ValueError").each())
    form = {"action": "retry", "scope": "everything", "confirmed": "1"}

    with django_capture_on_commit_callbacks(execute=True):
        client_with("retry_run").post(reverse("admin:autorun_run_act"), form)

    assert (runner.progress().ignored, runner.progress().failed) == (3, 0)


def test_an_ignored_run_can_be_retried_from_its_page(runner) -> None:
    interventions.ignore_runs(RunFilter(state="failed").each())
    run = Run.objects.filter(status=Run.Status.CANCELLED).first()

    page = client_with("retry_run", "cancel_run").get(
        reverse("admin:autorun_run_change", args=[run.pk])
    )

    assert 'value="retry"' in page.text
    assert 'value="ignore"' not in page.text


@pytest.mark.parametrize(
    ("chosen", "again"),
    [
        ({"exception": "ValueError"}, 3),
        ({"state": "failed"}, 5),
        ({"state": "failed", "since": "1h"}, 1),
        ({"runner": LABEL, "exception": "OSError", "since": "24h", "trigger": "backfill"}, 2),
    ],
)
def test_very_many_failed_runs_are_found_by_a_worker(
    chosen, again, runner, set_constants, django_capture_on_commit_callbacks
) -> None:
    set_constants(bulk_actions, MOST_AT_ONCE=0)
    failed = RunFilter.read({**chosen, "state": "failed"})
    expected = {run.object_id for runs in failed.each() for run in runs}
    form = {"action": "retry", "scope": "everything", "confirmed": "1", **chosen}

    with django_capture_on_commit_callbacks() as callbacks:
        response = client_with("retry_run").post(
            reverse("admin:autorun_run_act"), form, follow=True
        )
    batch = Batch.objects.order_by("-pk").first()
    planned_in_the_request = batch.planned
    for callback in callbacks:
        callback()

    address = reverse("admin:autorun_batch_change", args=[batch.pk])
    assert "retried in 1 batch." in response.text
    assert response.redirect_chain == [(address, 302)]
    batch.refresh_from_db()
    assert (planned_in_the_request, batch.planned) == (0, again)
    assert set(Run.objects.filter(chunk__batch=batch).values_list("object_id", flat=True)) == (
        expected
    )
    assert (batch.scope["pks"], batch.requested_by) == (None, "retry_run")


def test_what_a_worker_is_to_retry_is_meant_as_of_when_it_was_asked_for(runner) -> None:
    failed = Run.objects.filter(status=Run.Status.FAILED)
    (batch,) = interventions.retry_matching(RunFilter(since="1h", exception="ValueError")).batches
    long_ago = timezone.now() - dt.timedelta(days=3)
    source = {**batch.scope["source"], "at": (long_ago + dt.timedelta(minutes=50)).isoformat()}
    run = failed.first()
    Failure.objects.filter(run=run).update(failed_at=long_ago, exception_class="ValueError")
    Failure.objects.exclude(run=run).update(failed_at=long_ago - dt.timedelta(hours=1))
    Chunk.objects.update(finished_at=long_ago)

    rows = Scope(source=source).queryset(runner)

    assert [row.pk for row in rows] == [run.object_id]


def test_a_retry_of_all_that_match_is_described_without_the_words_of_its_filter(runner) -> None:
    key = Run.objects.filter(status=Run.Status.FAILED).first().key_text
    (batch,) = interventions.retry_matching(RunFilter(row=key, exception="ValueError")).batches

    assert "filtered by" in batch.description
    assert "row" in batch.description
    assert "exception" in batch.description
    assert key not in batch.description.split()
    assert "ValueError" not in batch.description


def test_nobody_is_bothered_with_runs_that_no_runner_has(runner) -> None:
    assert interventions.retry_matching(RunFilter(runner="no.Runner")).batches == []
    assert interventions.retry_matching(RunFilter(exception="no.Error")).batches == []


def test_runs_of_an_earlier_version_are_not_retried(runner) -> None:
    older = Node.objects.get(version="0.9")
    Run.objects.filter(status=Run.Status.FAILED).update(node=older)
    form = {"action": "retry", "scope": "everything", "confirmed": "1", "state": "failed"}

    response = client_with("retry_run").post(reverse("admin:autorun_run_act"), form, follow=True)

    assert "Skipped 5 runs of an earlier version" in response.content.decode()
    assert "/run/" in response.redirect_chain[-1][0]
    assert Batch.objects.count() == 1


def test_a_backfill_is_previewed_and_started(runner, django_capture_on_commit_callbacks) -> None:
    client = client_with("backfill_run")
    preview_page = reverse("admin:autorun_batch_count", args=[LABEL])

    preview = client.get(preview_page, {"only": "all"}).content.decode()
    with django_capture_on_commit_callbacks(execute=True):
        response = client.post(
            reverse("admin:autorun_batch_start", args=[LABEL]), {"only": "all"}, follow=True
        )

    assert "Start 7 runs" in preview
    batch = Batch.objects.order_by("-pk").first()
    assert (batch.planned, batch.requested_by) == (7, "backfill_run")
    assert batch.state == Batch.State.RUNNING
    assert reverse("admin:autorun_batch_change", args=[batch.pk]) in response.redirect_chain[0][0]


def test_a_preview_counts_as_many_as_the_limit(runner) -> None:
    client = client_with("backfill_run")
    page = reverse("admin:autorun_batch_count", args=[LABEL])

    assert "Start 2 runs" in client.get(page, {"only": "all", "limit": "2"}).content.decode()
    assert "Start 20 runs" not in client.get(page, {"only": "again"}).content.decode()
    assert "Start 14 runs" in client.get(page, {"only": "again"}).content.decode()


def test_a_preview_offers_to_keep_results_of_which_only_the_definition_changed(
    admin_client,
) -> None:
    Document.objects.create(title="a")
    page = reverse("admin:autorun_batch_count", args=["tests.EchoRunner"])
    offer = "manage.py autorun adopt tests.EchoRunner --same-input"
    with installed(before := declare()):
        before().run()
        work_off()

    with installed(declare(INPUT_FIELDS=("title", "state"))):
        assert offer in admin_client.get(page).content.decode()
        Document.objects.update(title="changed")
        assert offer not in admin_client.get(page).content.decode()


@pytest.mark.parametrize("field", ["limit", "window"])
@pytest.mark.parametrize("typed", ["-5", "0", "abc", "1000000000000", "1.5"])
def test_a_number_that_is_none_starts_nothing(runner, field, typed) -> None:
    client = client_with("backfill_run")
    form = {"only": "again", field: typed}

    for name in ("prepare", "count"):
        page = client.get(reverse(f"admin:autorun_batch_{name}", args=[LABEL]), form)
        text = page.content.decode()
        assert f"“{typed}” is not a whole number from 1 to 2,147,483,647." in text
        assert f'value="{typed}" placeholder' in text
        assert "Start" not in text.split('id="preview"')[1]
        assert "data-autorun-fetch" not in text
    batches = Batch.objects.count()
    started = client.post(
        reverse("admin:autorun_batch_start", args=[LABEL]), form, follow=True
    ).content.decode()

    assert f"The backfill was not started: “{typed}” is not a whole number" in started
    assert Batch.objects.count() == batches


@pytest.mark.parametrize(
    ("name", "typed", "told"),
    [
        ("batch", "abc", "“abc” is not the number of a batch."),
        ("state", "foo", "Unknown state “foo”. Choose waiting, postponed,"),
        ("since", "9y", "Unknown since “9y”. Choose 1h,"),
        ("ended_from", "soon", "“soon” is not a time. Write 2031-05-04T03:00, for example."),
    ],
)
def test_a_filter_that_means_nothing_is_not_taken_for_all(runner, name, typed, told) -> None:
    client = client_with("cancel_run")
    page = client.get(reverse("admin:autorun_run_changelist"), {name: typed}).content.decode()
    deed = {"action": "ignore", "scope": "everything", "confirmed": "1", name: typed}
    failed = Run.objects.filter(status=Run.Status.FAILED, is_current=True).count()

    answer = client.post(reverse("admin:autorun_run_act"), deed, follow=True).content.decode()

    assert told in page
    assert "No runs are shown" in page
    assert told in answer
    assert Run.objects.filter(status=Run.Status.FAILED, is_current=True).count() == failed > 0


def test_superseded_runs_are_not_counted_among_those_an_action_is_about(runner) -> None:
    client = client_with("retry_run")
    failed = Run.objects.filter(status=Run.Status.FAILED, is_current=True)
    Run.objects.filter(pk=failed.values_list("pk", flat=True)[0]).update(is_current=None)
    number = failed.count()
    chosen = {"runner": LABEL, "state": "failed"}

    listed = client.get(reverse("admin:autorun_run_changelist"), chosen).content.decode()
    asked = client.post(
        reverse("admin:autorun_run_act"), {**chosen, "action": "retry", "scope": "everything"}
    ).content.decode()

    assert f"{number} runs match, newest first." in listed
    assert "About" not in listed
    assert f"Retry {number} runs?" in asked


def test_a_backfill_is_for_a_named_filter(
    runner, monkeypatch, django_capture_on_commit_callbacks
) -> None:
    filters = {"second session": Q(path__contains="ses-2"), "none": lambda rows: rows.none()}
    monkeypatch.setattr(type(runner), "FILTERS", filters)
    client = client_with("backfill_run")
    form = {"only": "all", "filter": "second session"}

    page = client.get(reverse("admin:autorun_batch_count", args=[LABEL]), form).content.decode()
    with django_capture_on_commit_callbacks(execute=True):
        client.post(reverse("admin:autorun_batch_start", args=[LABEL]), form)

    assert "Start 4 runs" in page
    assert Batch.objects.order_by("-pk").first().planned == 4


def test_a_filter_that_is_not_there_is_explained(runner) -> None:
    client = client_with("backfill_run")

    page = client.get(
        reverse("admin:autorun_batch_count", args=[LABEL]), {"filter": "nonsense"}
    ).content.decode()
    response = client.post(
        reverse("admin:autorun_batch_start", args=[LABEL]), {"filter": "nonsense"}, follow=True
    )

    assert "has no filter" in page
    assert "The backfill was not started" in response.content.decode()
    assert Batch.objects.count() == 1


def test_a_batch_goes_on_without_a_broker(runner, caplog) -> None:
    def refuse(messages):
        raise BrokerUnavailable("It is away.")

    with redirected(refuse):
        batch = interventions.request_backfill(runner, interventions.Scope(only="failed"))

    rounds.hand_on_batches()

    batch.refresh_from_db()
    assert batch.planned == 5


def test_the_next_address_stays_on_this_site(runner) -> None:
    client = client_with("pause_run")
    address = reverse("admin:autorun_node_pause", args=[LABEL])

    away = client.post(address, {"next": "https://example.org/"})
    here = client.post(address, {"next": "/admin/autorun/run/"})

    downgraded = client.post(address, {"next": "http://testserver/admin/"}, secure=True)

    assert away["Location"] == reverse("admin:autorun_node_runner", args=[LABEL])
    assert downgraded["Location"] == reverse("admin:autorun_node_runner", args=[LABEL])
    assert here["Location"] == "/admin/autorun/run/"


def test_selected_scans_are_previewed_and_run(runner, django_capture_on_commit_callbacks) -> None:
    client = client_with("start_run", "view_scan", "change_scan")
    pks = list(Scan.objects.order_by("pk").values_list("pk", flat=True))
    form = {"action": f"autorun_run__{LABEL}", "_selected_action": [pks[0], pks[1], pks[18]]}

    response = client.post(reverse("admin:sample_app_scan_changelist"), form, follow=True)
    token = response.context["asked"].selection
    preview = client.get(
        reverse("admin:autorun_batch_count", args=[LABEL]), {"selection": token, "only": "all"}
    )
    page = preview.content.decode()
    with django_capture_on_commit_callbacks(execute=True):
        client.post(
            reverse("admin:autorun_batch_start", args=[LABEL]), {"selection": token, "only": "all"}
        )

    assert "The 3 scans that you selected." in page
    assert "Start 2 runs" in page
    assert Batch.objects.order_by("-pk").first().planned == 2


def test_a_window_that_selects_a_related_row_offers_no_action(runner) -> None:
    client = client_with("start_run", "view_scan", "change_scan")
    address = reverse("admin:sample_app_scan_changelist")

    offered, in_popup = (client.get(f"{address}{query}") for query in ("", "?_popup=1"))

    assert f"autorun_run__{LABEL}" in offered.content.decode()
    assert "autorun_run__" not in in_popup.content.decode()


def test_all_scans_a_filter_shows_are_backfilled(
    runner, django_capture_on_commit_callbacks
) -> None:
    client = client_with("start_run", "backfill_run", "view_scan", "change_scan")
    form = {
        "action": f"autorun_run__{LABEL}",
        "select_across": "1",
        "_selected_action": [Scan.objects.first().pk],
    }
    changelist = reverse("admin:sample_app_scan_changelist") + f"?autorun=pending:{LABEL}"

    response = client.post(changelist, form, follow=True)
    token = response.context["asked"].selection
    with django_capture_on_commit_callbacks(execute=True):
        client.post(reverse("admin:autorun_batch_start", args=[LABEL]), {"selection": token})

    assert "All rows that match your filter" in response.content.decode()
    assert Batch.objects.order_by("-pk").first().planned == 2


def choose_everything(client: Client, query: str) -> str:
    """The token of all rows that the page of scans shows for the query."""
    form = {
        "action": f"autorun_run__{LABEL}",
        "select_across": "1",
        "_selected_action": [Scan.objects.first().pk],
    }
    response = client.post(reverse("admin:sample_app_scan_changelist") + query, form, follow=True)
    return response.context["asked"].selection


def start(client: Client, token: str, **form: str) -> Batch:
    address = reverse("admin:autorun_batch_start", args=[LABEL])
    assert client.post(address, {"selection": token, **form}).status_code == 302
    return Batch.objects.order_by("-pk").first()


@pytest.fixture
def _tenants(monkeypatch) -> None:
    """A ScanAdmin that shows the scans of the session's tenant, which no worker knows."""

    def get_queryset(self, request):
        rows = admin.ModelAdmin.get_queryset(self, request)
        return rows.filter(path__contains=request.session["tenant"])

    monkeypatch.setattr(ScanAdmin, "get_queryset", get_queryset, raising=False)


def client_of_tenant(tenant: str) -> Client:
    client = client_with("start_run", "backfill_run", "view_scan", "change_scan")
    session = client.session
    session["tenant"] = tenant
    session.save()
    return client


def _paths_in(batch: Batch) -> set[str]:
    """The paths of the scans that the batch has planned."""
    keys = Run.objects.filter(chunk__batch=batch).values_list("object_id", flat=True)
    return set(Scan.objects.filter(pk__in=list(keys)).values_list("path", flat=True))


@pytest.mark.usefixtures("_tenants")
def test_a_worker_takes_the_rows_that_the_users_own_request_shows(
    runner, django_capture_on_commit_callbacks
) -> None:
    client = client_of_tenant("ses-2")
    with django_capture_on_commit_callbacks(execute=True):
        batch = start(client, choose_everything(client, ""), only="again")

    assert _paths_in(batch)
    assert all("ses-2" in path for path in _paths_in(batch))


@pytest.mark.usefixtures("_tenants")
def test_more_rows_than_keys_are_kept_need_an_admin_that_asks_the_user_alone(
    runner, set_constants, monkeypatch, django_capture_on_commit_callbacks
) -> None:
    set_constants(selections, MOST_KEYS=1)
    client = client_of_tenant("ses-2")
    own = Scan.objects.filter(path__contains="ses-2")
    token = choose_everything(client, "")
    address = reverse("admin:autorun_batch_start", args=[LABEL])

    refused = client.post(address, {"selection": token, "only": "again"}, follow=True)
    before = Batch.objects.count()
    monkeypatch.setattr(ScanAdmin, "autorun_rows", lambda *given: own.all(), raising=False)
    with django_capture_on_commit_callbacks(execute=True):
        batch = start(client, token, only="again")

    assert "autorun_rows(self, user, query)" in refused.content.decode()
    assert before == 1
    assert len(_paths_in(batch)) > 1
    assert all("ses-2" in path for path in _paths_in(batch))


@pytest.mark.parametrize("name", ["prepare", "count", "start"])
def test_rows_of_one_model_are_not_for_the_runner_of_another(name: str, runner) -> None:
    client = client_with("start_run", "backfill_run", "view_scan", "change_scan")
    token = choose_everything(client, "")
    other = declare()
    with installed(other):
        address = reverse(f"admin:autorun_batch_{name}", args=[other.get_label()])
        call = client.post if name == "start" else client.get

        response = call(address, {"selection": token})

    assert response.status_code == 404
    assert Batch.objects.count() == 1


def choose(client: Client, *pks: int) -> str:
    """The token of the scans with these keys."""
    form = {"action": f"autorun_run__{LABEL}", "_selected_action": pks}
    response = client.post(reverse("admin:sample_app_scan_changelist"), form, follow=True)
    return response.context["asked"].selection


@pytest.mark.parametrize("choice", ["ticked", "everything"])
@pytest.mark.parametrize("name", ["count", "start"])
def test_rows_that_the_user_may_view_no_longer_are_neither_counted_nor_started(
    name: str, choice: str, runner
) -> None:
    client = client_with("start_run", "backfill_run", "change_scan")
    is_ticked = choice == "ticked"
    token = choose(client, Scan.objects.first().pk) if is_ticked else choose_everything(client, "")
    User.objects.get().user_permissions.remove(
        *Permission.objects.filter(codename__in=("view_scan", "change_scan"))
    )
    call = client.post if name == "start" else client.get

    response = call(reverse(f"admin:autorun_batch_{name}", args=[LABEL]), {"selection": token})

    assert response.status_code == 403
    assert Batch.objects.count() == 1


@pytest.mark.parametrize("only", ["not_applicable", "again"])
def test_selected_rows_that_are_neither_pending_nor_failed_are_run_by_who_may_backfill(
    only: str, runner
) -> None:
    done = Run.objects.filter(node=runner.get_node(), status=Run.Status.SUCCEEDED).first()
    if only == "not_applicable":
        Run.objects.filter(pk=done.pk).update(status=Run.Status.NOT_APPLICABLE)
    clients = [client_with("start_run", "change_scan", *more) for more in ((), ("backfill_run",))]
    address = reverse("admin:autorun_batch_start", args=[LABEL])
    form = reverse("admin:autorun_batch_prepare", args=[LABEL])
    answers, offered = [], []
    for client in clients:
        token = choose(client, done.object_id)
        offered.append(f'value="{only}"' in client.get(form, {"selection": token}).text)
        response = client.post(address, {"selection": token, "only": only})
        answers.append((response.status_code, Batch.objects.order_by("-pk").first().description))

    again = {
        "again": "all rows of one key, again",
        "not_applicable": "not_applicable rows of one key",
    }
    assert answers == [(403, "pending rows"), (302, again[only])]
    assert offered == [False, True]


@pytest.mark.parametrize("loss", ["hidden", "permission", "view", "staff"])
def test_ticked_rows_are_looked_at_again_when_they_are_started_and_planned(
    loss: str, runner, monkeypatch, django_capture_on_commit_callbacks
) -> None:
    client = client_with("start_run", "view_scan", "change_scan")
    pks = list(Scan.objects.order_by("pk").values_list("pk", flat=True))
    form = {"action": f"autorun_run__{LABEL}", "_selected_action": [pks[0], pks[1], pks[18]]}
    response = client.post(reverse("admin:sample_app_scan_changelist"), form, follow=True)
    token = response.context["asked"].selection
    if loss == "hidden":

        def has_view_permission(self, request, obj=None):
            return obj is None or obj.pk != pks[18]

        monkeypatch.setattr(ScanAdmin, "has_view_permission", has_view_permission, raising=False)

    with django_capture_on_commit_callbacks() as callbacks:
        batch = start(client, token, only="all")
    if loss == "permission":
        User.objects.get().user_permissions.clear()
    elif loss == "view":
        of_scans = Permission.objects.filter(codename__in=("view_scan", "change_scan"))
        User.objects.get().user_permissions.remove(*of_scans)
    elif loss == "staff":
        User.objects.update(is_staff=False)
    for callback in callbacks:
        callback()

    batch.refresh_from_db()
    assert (batch.state == Batch.State.FAILED, batch.planned) == (
        loss != "hidden",
        loss == "hidden",
    )
    assert ("can no longer view sample_app.Scan" in batch.reason) is (loss == "view")


@pytest.mark.slow
def test_a_filter_is_planned_by_a_worker_however_many_rows_it_shows(
    runner, django_capture_on_commit_callbacks, django_assert_max_num_queries
) -> None:
    scenes.add_scans(31_500, first=100)
    Scan.objects.filter(path__contains="scan-0").update(modality="CT")
    client = client_with("start_run", "backfill_run", "view_scan", "change_scan")
    token = choose_everything(client, "?modality=MR&q=scan-")

    with django_capture_on_commit_callbacks() as callbacks, django_assert_max_num_queries(30):
        batch = start(client, token)
    planned_in_the_request = batch.planned
    for callback in callbacks:
        callback()

    batch.refresh_from_db()
    shown = Scan.objects.filter(modality="MR", path__contains="scan-")
    assert planned_in_the_request == 0
    assert batch.planned == Run.objects.filter(chunk__batch=batch).count() == shown.count() > 30_000
    assert len(json.dumps(batch.scope)) < 500
    assert batch.description == "pending rows of scans that the admin shows for a filter"


@pytest.mark.parametrize("may_see", [True, False])
def test_the_search_behind_a_batch_is_not_shown_and_the_reason_it_failed_is_payload(
    may_see: bool, runner, django_capture_on_commit_callbacks
) -> None:
    searcher = client_with("start_run", "backfill_run", "view_scan", "change_scan")
    with django_capture_on_commit_callbacks():
        batch = start(searcher, choose_everything(searcher, "?q=Mueller+HIV"))
    Batch.objects.filter(pk=batch.pk).update(state=Batch.State.FAILED, reason="no Jane Doe")
    reader = Client()
    codenames = ("view_run", *(["view_payload", "view_scan"] * may_see))
    reader.force_login(scenes.add_user("reader", *codenames))

    page = reader.get(reverse("admin:autorun_batch_change", args=[batch.pk])).text
    listed = reader.get(reverse("admin:autorun_batch_changelist")).text

    assert ("Jane Doe" in page) is may_see
    assert "Mueller" not in page + listed
    assert "Jane Doe" not in listed


@pytest.mark.parametrize("may_see", [True, False])
def test_secrets_in_a_configuration_are_masked_and_the_source_is_payload(may_see, runner) -> None:
    def call_service(value, **configuration):
        return {"is": "the body"}

    configuration = {
        "api_key": "sk-live-SECRET",
        "url": "https://u:pw-SECRET@host/",
        "service": {"hosts": [{"password": "SECRET"}]},
        "colour": "green",
    }
    secretive = declare(call_service, ANALYSIS_CONFIGURATION=configuration)
    reader = Client()
    codenames = ("view_run", *(["view_payload"] if may_see else []))
    reader.force_login(scenes.add_user("reader", *codenames))
    with installed(secretive):
        Document.objects.create(title="one")
        secretive().run()
        run = Run.objects.get(node=secretive().get_node())
        pages = [
            reader.get(reverse("admin:autorun_node_runner", args=[secretive.get_label()])).text,
            reader.get(reverse("admin:autorun_run_change", args=[run.pk])).text,
        ]

    for page in pages:
        assert "SECRET" not in page
        assert "green" in page
        assert "https://u:****" in page
    assert ("the body" in pages[0]) is may_see


@pytest.mark.parametrize("may_see", [True, False])
def test_the_words_of_a_hook_that_raises_are_payload(may_see: bool, runner) -> None:
    def create_configuration(self):
        raise RuntimeError("token hvs.SECRET")

    broken = declare(NAME="BrokenRunner", create_configuration=create_configuration)
    reader = Client()
    codenames = ("view_run", "backfill_run", *(["view_payload", "view_document"] * may_see))
    reader.force_login(scenes.add_user("reader", *codenames))
    with installed(broken):
        label = broken.get_label()
        counted = reader.get(reverse("admin:autorun_batch_count", args=[label])).text
        pages = [
            reader.get(reverse("admin:autorun_node_changelist")).text,
            reader.get(reverse("admin:autorun_node_runner", args=[label])).text,
        ]

    assert "create_configuration() raises RuntimeError" in counted
    assert ("hvs.SECRET" in counted) is may_see
    for page in pages:
        assert "create_configuration() raises RuntimeError" in page
        assert "hvs.SECRET" not in page


def test_a_filter_of_pending_rows_is_planned_to_the_last(
    runner, django_capture_on_commit_callbacks, set_constants
) -> None:
    set_constants(row_states, MOST_KEYS=3)
    set_constants(windows, DATABASE_WINDOW=4)
    scenes.add_scans(20, first=100)
    client = client_with("start_run", "backfill_run", "view_scan", "change_scan")
    token = choose_everything(client, f"?autorun=pending:{LABEL}")

    with django_capture_on_commit_callbacks(execute=True):
        batch = start(client, token, only="all")

    batch.refresh_from_db()
    assert batch.planned == 22


@pytest.mark.parametrize("loss", ["permission", "user", "site"])
def test_a_filter_that_a_worker_can_no_longer_ask_for_fails_its_batch(
    loss: str, runner, django_capture_on_commit_callbacks
) -> None:
    client = client_with("start_run", "backfill_run", "view_scan", "change_scan")
    token = choose_everything(client, "?modality=MR")
    with django_capture_on_commit_callbacks() as callbacks:
        batch = start(client, token)
    if loss == "permission":
        User.objects.get().user_permissions.clear()
    elif loss == "user":
        User.objects.update(is_active=False)
    else:
        source = {**batch.scope["source"], "site": "gone"}
        Batch.objects.filter(pk=batch.pk).update(scope={**batch.scope, "source": source})

    for callback in callbacks:
        callback()

    batch.refresh_from_db()
    assert (batch.state, batch.planned) == (Batch.State.FAILED, 0)
    assert batch.reason


def test_everything_selected_takes_the_permission_to_backfill(runner) -> None:
    client = client_with("start_run", "view_scan", "change_scan")
    form = {
        "action": f"autorun_run__{LABEL}",
        "select_across": "1",
        "_selected_action": [Scan.objects.first().pk],
    }

    response = client.post(reverse("admin:sample_app_scan_changelist"), form, follow=True)

    assert "requires the permission to backfill" in response.content.decode()


@pytest.mark.parametrize(("most", "is_refused"), [(2, True), (3, False)])
def test_more_ticked_rows_than_are_kept_are_refused(
    most: int, is_refused: bool, runner, set_constants
) -> None:
    set_constants(row_states, MOST_KEYS=most)
    client = client_with("start_run", "view_scan", "change_scan")
    pks = list(Scan.objects.values_list("pk", flat=True)[:3])
    form = {"action": f"autorun_run__{LABEL}", "_selected_action": pks}

    response = client.post(reverse("admin:sample_app_scan_changelist"), form, follow=True)

    assert ("More than 2 rows are selected" in response.text) == is_refused
    assert ("The 3 scans that you selected." in response.text) != is_refused


@pytest.mark.parametrize("step", ["prepare", "count", "start"])
@pytest.mark.parametrize("loss", ["session", "age"])
@pytest.mark.parametrize("codenames", [("start_run",), ("start_run", "backfill_run")])
@pytest.mark.slow
def test_rows_whose_choice_is_forgotten_do_not_become_all_rows(
    codenames, loss: str, step: str, runner
) -> None:
    client = client_with(*codenames, "view_scan", "change_scan")
    form = {"action": f"autorun_run__{LABEL}", "_selected_action": [Scan.objects.first().pk]}
    changelist = reverse("admin:sample_app_scan_changelist")
    token = client.post(changelist, form, follow=True).context["asked"].selection
    if loss == "session":
        client.logout()
        client.force_login(User.objects.get())
    else:
        for _ in range(MOST_KEPT):
            client.post(changelist, form)
    ask = client.post if step == "start" else client.get

    response = ask(
        reverse(f"admin:autorun_batch_{step}", args=[LABEL]),
        {"selection": token, "only": "all"},
        follow=True,
    )

    assert "no longer known" in response.text
    assert "would start" not in response.text
    assert Batch.objects.count() == 1


def test_the_preview_that_a_script_fetches_says_so_too(runner) -> None:
    client = client_with("start_run")

    response = client.get(
        reverse("admin:autorun_batch_count", args=[LABEL]),
        {"selection": "lost"},
        headers={"X-Requested-With": "autorun"},
    )

    assert response.status_code == 200
    assert "no longer known" in response.text
    assert "data-autorun-fetch" not in response.text


def test_a_selection_is_its_owners_alone(runner) -> None:
    client = client_with("start_run", "view_scan", "change_scan")
    form = {"action": f"autorun_run__{LABEL}", "_selected_action": [Scan.objects.first().pk]}
    token = client.post(reverse("admin:sample_app_scan_changelist"), form)["Location"]

    other = client_with("start_run", "backfill_run")
    response = other.get(token, follow=True)

    assert "no longer known" in response.content.decode()
    assert User.objects.count() == 2


@pytest.mark.parametrize(("window", "status"), [("1000", 302), ("1001", 403)])
def test_more_runs_at_a_time_than_usual_take_the_permission_to_backfill(
    window: str, status: int, runner
) -> None:
    client = client_with("start_run", "change_scan")
    pk = Scan.objects.order_by("pk").first().pk
    form = {"action": f"autorun_run__{LABEL}", "_selected_action": [pk]}
    response = client.post(reverse("admin:sample_app_scan_changelist"), form, follow=True)
    form = {"selection": response.context["asked"].selection, "only": "all", "window": window}

    assert client.post(reverse("admin:autorun_batch_start", args=[LABEL]), form).status_code == (
        status
    )
