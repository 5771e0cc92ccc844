"""Rows that the admin of their own model hides from a user: autorun's pages hide them, too."""

import re

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.db import connection
from django.db.models import Manager
from django.http import HttpRequest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from autorun.admin import bulk_actions, row_access
from autorun.admin.cards import signed
from autorun.dispatch.publishing import redirected
from autorun.models import Batch, Failure, Node, Run
from autorun.observe import group_runs, listing
from autorun.observe.failures import group_failures
from autorun.planning.counting import Count
from autorun.planning.reasons import Reason
from autorun.runner import QuerySetRunner
from sample_app.admin import ScanAdmin
from sample_app.models import Scan
from tests.browser import scenes
from tests.engine import declare, installed, work_off
from tests.library.models import Document, DraftDocument

pytestmark = pytest.mark.django_db

LABEL = "sample_app.ScanPreprocessingRunner"
OWN, OTHERS = "/data/own/", "/data/scans/"
MOST_STATEMENTS = 12


@pytest.fixture
def runner() -> QuerySetRunner:
    """Twenty scans, of which the user's own hospital has every second one."""
    runner = scenes.few()
    for scan in Scan.objects.order_by("pk")[::2]:
        Scan.objects.filter(pk=scan.pk).update(path=f"{OWN}own-{scan.pk}.nii.gz")
    for run in Run.objects.filter(status=Run.Status.SUCCEEDED):
        Run.objects.filter(pk=run.pk).update(outputs={"of": f"output {run.object_id}"})
    for failure in Failure.objects.select_related("run"):
        message = f"message about scan {failure.run.object_id}"
        Failure.objects.filter(pk=failure.pk).update(message=message, traceback=message)
    return runner


class OwnScans(Manager):
    """The scans of the tenant that a middleware has noted."""

    def get_queryset(self):
        return super().get_queryset().filter(path__startswith=OWN)


@pytest.fixture(params=["get_queryset", "has_view_permission", "manager"])
def _hiding(request, monkeypatch) -> None:
    """A ScanAdmin that shows each user the scans of their own hospital."""

    def get_queryset(self, request):
        rows = admin.ModelAdmin.get_queryset(self, request)
        return rows if request.user.is_superuser else rows.filter(path__startswith=OWN)

    def has_view_permission(self, request, obj=None):
        allowed = admin.ModelAdmin.has_view_permission(self, request, obj)
        return allowed and (obj is None or obj.path.startswith(OWN))

    cache.clear()
    if request.param == "manager":
        request.getfixturevalue("runner")
        monkeypatch.setattr(Scan._meta, "default_manager", manager := OwnScans())
        manager.model = Scan
        return
    hook = {"get_queryset": get_queryset, "has_view_permission": has_view_permission}
    monkeypatch.setattr(ScanAdmin, request.param, hook[request.param], raising=False)


def own_rows():
    return Scan.objects.filter(path__startswith=OWN).values_list("pk", flat=True)


@pytest.fixture
def ada(client: Client) -> Client:
    codenames = ("view_scan", "view_run", "view_payload", "backfill_run", "start_run")
    client.force_login(scenes.add_user("ada", *codenames))
    return client


def run_of(status: Run.Status, *, is_own: bool) -> Run:
    rows = Scan.objects.filter(path__startswith=OWN if is_own else OTHERS).values("pk")
    runs = Run.objects.filter(status=status, object_id__in=rows)
    return runs.order_by("chunk__state", "pk").first()


def page_of(run: Run) -> str:
    return reverse("admin:autorun_run_change", args=[run.pk])


@pytest.mark.usefixtures("_hiding")
@pytest.mark.parametrize("status", [Run.Status.SUCCEEDED, Run.Status.FAILED])
def test_the_page_of_a_run_shows_the_key_of_a_hidden_row_and_no_payload(
    status, runner, ada
) -> None:
    hidden, own = run_of(status, is_own=False), run_of(status, is_own=True)

    page, own_page = ada.get(page_of(hidden)).text, ada.get(page_of(own)).text

    for payload in (OTHERS, "scan-0", f"output {hidden.object_id}", "message about"):
        assert payload not in page
    assert f"scan {hidden.object_id}" in page
    assert "deleted" not in page
    assert f"own-{own.object_id}" in own_page
    said = "message about" if status == Run.Status.FAILED else f"output {own.object_id}"
    assert said in own_page


@pytest.mark.usefixtures("_hiding")
def test_lists_of_runs_call_hidden_rows_by_their_key(runner, ada) -> None:
    page = ada.get(reverse("admin:autorun_run_changelist")).text

    assert "scan-0" not in page
    assert page.count("own-") == 9
    assert "deleted" not in page


@pytest.mark.parametrize("may_view", [True, False])
def test_the_payload_of_a_model_that_is_gone_needs_the_permission_to_view_it(
    may_view: bool, runner, client
) -> None:
    content_type = ContentType.objects.create(app_label="clinic", model="patient")
    run = run_of(Run.Status.SUCCEEDED, is_own=False)
    Node.objects.filter(pk=run.node_id).update(content_type=content_type)
    ContentType.objects.clear_cache()
    user = scenes.add_user("ada", "view_run", "view_payload")
    if may_view:
        viewing = Permission.objects.create(
            codename="view_patient", name="Can view patient", content_type=content_type
        )
        user.user_permissions.add(viewing)
    client.force_login(user)

    page = client.get(page_of(run)).text

    assert (f"output {run.object_id}" in page) is may_view


@pytest.mark.usefixtures("_hiding")
def test_why_a_hidden_row_is_pending_is_not_told(runner, ada) -> None:
    why = reverse("admin:autorun_node_why", args=[LABEL])
    hidden, own = run_of(Run.Status.FAILED, is_own=False), run_of(Run.Status.FAILED, is_own=True)

    assert ada.get(why, {"row": hidden.object_id}).status_code == 404
    assert ada.get(why, {"row": own.object_id}).status_code == 200


@pytest.mark.usefixtures("_hiding")
def test_a_preview_names_no_hidden_rows(runner, ada) -> None:
    keys = [str(scan.pk) for scan in Scan.objects.order_by("pk")[:4]]
    count = Count({Reason.DONE: 4}, keys[-1], {Reason.DONE: keys})
    asked = HttpRequest()
    asked.user = User.objects.get(username="ada")
    begun = signed(asked, count, runner, "only=again")

    page = ada.get(
        reverse("admin:autorun_batch_count", args=[LABEL]), {"only": "again", "begun": begun}
    ).text

    assert "scan-0" not in page
    assert "own-" in page


@pytest.mark.usefixtures("_hiding")
@pytest.mark.parametrize("narrowed", ["state", "exception", "group"])
@pytest.mark.parametrize(
    ("action", "most_at_once"), [("ignore", 5_000), ("retry", 5_000), ("retry", 0)]
)
@pytest.mark.slow
def test_an_action_on_all_looks_at_so_many_rows_a_request_and_goes_on_from_there(
    action: str, most_at_once: int, narrowed: str, runner, client, set_constants
) -> None:
    set_constants(bulk_actions, MOST_AT_ONCE=most_at_once)
    set_constants(row_access, MOST_NARROWED=1)
    set_constants(listing, RUNS_AT_ONCE=1, CHUNKS_AT_ONCE=1)
    set_constants(group_runs, MESSAGES_AT_ONCE=1)
    client.force_login(scenes.add_user("eve", "view_scan", "view_run", "retry_run", "cancel_run"))
    failed = Run.objects.current().failed()
    shown = set(failed.filter(object_id__in=own_rows()).values_list("object_id", flat=True))
    hidden = failed.exclude(object_id__in=shown).count()
    Failure.objects.update(message="one message", exception_class="ValueError")
    form = {"action": action, "scope": "everything", "confirmed": "1", "state": "failed"}
    if narrowed == "exception":
        form["exception"] = "ValueError"
    elif narrowed == "group":
        (group,) = group_failures(runner)
        form["group"] = group.key

    with redirected(lambda messages: None):
        for _ in range(2 + hidden + len(shown)):
            page = client.post(reverse("admin:autorun_run_act"), form, follow=True).text
            if "Repeat the action for the next ones" not in page:
                break

    scopes = Batch.objects.filter(requested_by="eve").values_list("scope", flat=True)
    if action == "retry":
        assert {pk for scope in scopes for pk in scope["pks"]} == shown
    assert failed.count() == (hidden if action == "ignore" else hidden + len(shown))
    assert hidden > 1
    assert len(shown) > 1


@pytest.mark.usefixtures("_hiding")
def test_messages_about_hidden_rows_are_not_shown_among_failures(runner, ada) -> None:
    of_hidden = set(Scan.objects.filter(path__startswith=OTHERS).values_list("pk", flat=True))

    page = ada.get(reverse("admin:autorun_failure_changelist"))

    groups = {line["group"].run_id: line["is_open"] for line in page.context["lines"]}
    hidden = {pk for pk, row in Run.objects.values_list("pk", "object_id") if row in of_hidden}
    assert {pk for pk, is_open in groups.items() if not is_open} == groups.keys() & hidden
    for row in of_hidden:
        assert f"message about scan {row}<" not in page.text


@pytest.mark.usefixtures("_hiding")
def test_what_came_of_a_deleted_row_is_for_superusers_where_rows_are_hidden(runner, ada) -> None:
    run = run_of(Run.Status.SUCCEEDED, is_own=True)
    Scan.objects.filter(pk=run.object_id).delete()
    root = Client()
    root.force_login(scenes.add_user("root", is_superuser=True))

    assert f"output {run.object_id}" not in ada.get(page_of(run)).text
    assert f"output {run.object_id}" in root.get(page_of(run)).text


def test_what_came_of_a_deleted_row_is_shown_where_no_rows_are_hidden(runner, ada) -> None:
    run = run_of(Run.Status.SUCCEEDED, is_own=True)
    Scan.objects.filter(pk=run.object_id).delete()
    stranger = Client()
    stranger.force_login(scenes.add_user("bea", "view_run", "view_payload"))

    assert f"output {run.object_id}" in ada.get(page_of(run)).text
    assert f"output {run.object_id}" not in stranger.get(page_of(run)).text


@pytest.mark.usefixtures("_hiding")
@pytest.mark.django_db(transaction=True)  # in a transaction processes remember no nodes
def test_hidden_rows_cost_no_query_each(runner, ada) -> None:
    pages = [
        reverse("admin:autorun_run_changelist"),
        reverse("admin:autorun_failure_changelist"),
        page_of(run_of(Run.Status.FAILED, is_own=False)),
    ]
    statements = {}

    for page in pages:
        ada.get(page)
        with CaptureQueriesContext(connection) as captured:
            ada.get(page)
        statements[page] = len(captured)

    assert {page: n for page, n in statements.items() if n > MOST_STATEMENTS} == {}


@pytest.mark.usefixtures("_hiding")
def test_the_admin_of_another_site_hides_rows_too(runner, ada, monkeypatch) -> None:
    hidden = run_of(Run.Status.SUCCEEDED, is_own=False)
    other = admin.AdminSite(name="other")
    other.register(Scan, ScanAdmin)
    monkeypatch.delitem(admin.site._registry, Scan)

    page = ada.get(page_of(hidden)).text

    assert OTHERS not in page
    assert f"output {hidden.object_id}" not in page


def test_the_admin_of_a_proxy_hides_rows_of_its_table(ada, monkeypatch) -> None:
    class DraftAdmin(admin.ModelAdmin):
        def get_queryset(self, request):
            return super().get_queryset(request).filter(state="draft")

    User.objects.get().user_permissions.add(
        *Permission.objects.filter(codename__in=["view_document", "view_draftdocument"])
    )
    rows = [Document.objects.create(title=f"title of {s}", state=s) for s in ("draft", "secret")]
    runner = declare(DATA_MODEL=DraftDocument)
    monkeypatch.setitem(admin.site._registry, DraftDocument, DraftAdmin(DraftDocument, admin.site))
    monkeypatch.setattr(admin.site, "get_app_list", lambda request, app_label=None: [])
    with installed(runner):
        runner().run()
        work_off()
        runs = {run.object_id: run for run in Run.objects.all()}
        draft, secret = (ada.get(page_of(runs[row.pk])).text for row in rows)

    assert "title of draft" in draft
    assert "title of secret" not in secret


@pytest.mark.usefixtures("_hiding")
@pytest.mark.parametrize("scope", ["ticked", "everything"])
@pytest.mark.parametrize(
    ("action", "status", "after"),
    [
        ("ignore", Run.Status.FAILED, Run.Status.CANCELLED),
        ("cancel", Run.Status.PENDING, Run.Status.CANCELLED),
        ("retry", Run.Status.FAILED, Run.Status.FAILED),
    ],
)
@pytest.mark.parametrize("is_for_workers", [True, False])
def test_an_action_leaves_runs_of_hidden_rows_out_and_says_so(
    action, status, after, scope, is_for_workers, runner, client, set_constants
) -> None:
    set_constants(bulk_actions, MOST_AT_ONCE=0 if is_for_workers else 5_000)
    client.force_login(scenes.add_user("ada", "view_scan", "view_run", "retry_run", "cancel_run"))
    own, hidden = run_of(status, is_own=True), run_of(status, is_own=False)
    rows = Scan.objects.filter(path__startswith=OWN).values_list("pk", flat=True)
    form = {"action": action, "scope": scope, "ids": [own.pk, hidden.pk], "confirmed": "1"}

    with redirected(lambda messages: None):
        page = client.post(reverse("admin:autorun_run_act"), form, follow=True).text

    assert re.search(r"Left out \d runs? whose rows? you may not see\.", page)
    hidden.refresh_from_db()
    own.refresh_from_db()
    assert (hidden.status, own.status) == (status, after)
    if action == "retry":
        batch = Batch.objects.order_by("-pk").first()
        assert own.object_id in batch.scope["pks"]
        assert set(batch.scope["pks"]) <= set(rows)


@pytest.mark.usefixtures("_hiding")
def test_the_page_of_a_hidden_rows_run_offers_no_actions(runner, client) -> None:
    client.force_login(scenes.add_user("ada", "view_scan", "view_run", "retry_run"))
    own, hidden = (run_of(Run.Status.FAILED, is_own=is_own) for is_own in (True, False))

    assert 'value="retry"' in client.get(page_of(own)).text
    assert 'value="retry"' not in client.get(page_of(hidden)).text
