"""Every page and action, by every permission, as `docs/reference/permissions.md` has them.

The pages are those of the URLconf and the actions those that are registered: a new one fails here
until the reference names it.
"""

import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import TextField
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from autorun import tasks
from autorun.admin import bulk_actions
from autorun.admin.bulk_actions import ACTIONS
from autorun.admin.pages import PageAdmin, Permission
from autorun.contrib import api
from autorun.dispatch.publishing import redirected
from autorun.exceptions import ConfigurationError
from autorun.models import Batch, Chunk, Failure, Node, Run, SpilledTrigger
from autorun.observe import doctor
from autorun.observe.doctor import backlog
from autorun.observe.doctor.finding import Finding, examination
from autorun.runner import QuerySetRunner
from sample_app.admin import ScanAdmin
from sample_app.models import Scan
from sample_app.runners import ScanPreprocessingRunner
from tests.browser import scenes
from tests.engine import declare, installed

pytestmark = pytest.mark.django_db

LABEL = "sample_app.ScanPreprocessingRunner"
REFERENCE = Path(__file__).parent.parent / "docs/reference/permissions.md"
CODENAMES = [each.value.partition(".")[2] for each in Permission]
#: The users: without any permission, with each alone, with each beside the pages, and with all.
USERS = [
    (),
    *((each,) for each in CODENAMES),
    *(("view_run", each) for each in CODENAMES if each != "view_run"),
    tuple(CODENAMES),
]
#: Those that a page calls.
HOOKS = [
    *("create_configuration", "filter_queryset", "get_analysis", "get_base_queryset"),
    *("get_instance_representation", "get_schedule", "get_timeout"),
]
WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE")
#: Those to view the models of all registered runners.
VIEW_ROWS = ("view_scan", "view_subject", "view_photo", "view_specimen")
NAME, PAYLOAD, WORDS = "marked-name", "marked-payload", "marked-words"


def documented() -> dict[str, tuple[list[str], set[str]]]:
    """The methods and the permissions of each address, as the reference has them."""
    table = REFERENCE.read_text().partition("## Pages and actions")[2].partition("\n## ")[0]
    found = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            address, methods, needed, _ = (each.strip() for each in line.strip("|").split("|"))
            found[address.replace("`", "")] = (methods.split(", "), {*re.findall(r"\w+", needed)})
    return found


def addresses() -> dict[str, tuple[str, dict[str, str]]]:
    """By the address as the reference writes it: that of an object, and the form of the action."""
    run = Run.objects.filter(status=Run.Status.FAILED).order_by("pk").first()
    objects = {
        "label": LABEL,
        "node_id": run.node_id,
        "run_id": run.pk,
        "failure_id": run.failures.first().pk,
        "batch_id": Batch.objects.first().pk,
        "part": "outputs",
        "form": "csv",
        "key": run.object_id,
        "number": Batch.objects.first().pk,
    }
    found = {}
    for pattern in (each for each in api.urlpatterns if each.name != "unknown"):
        route = re.sub(r"<\w+:(\w+)>", r"<\1>", str(pattern.pattern))
        arguments = [objects[name] for name in re.findall(r"<(\w+)>", route)]
        found[f"api/{route}"] = (reverse(f"autorun_api:{pattern.name}", args=arguments), {})
    for model, model_admin in admin.site._registry.items():
        if not isinstance(model_admin, PageAdmin):
            continue
        for pattern in model_admin.get_urls():
            route = re.sub(r"<\w+:(\w+)>", r"<\1>", str(pattern.pattern))
            arguments = [objects[name] for name in re.findall(r"<(\w+)>", route)]
            url = reverse(f"admin:{pattern.name}", args=arguments)
            name = f"{model._meta.model_name}/{route}"
            if name.endswith("/why/"):
                url += f"?row={run.object_id}"
            if name != "run/act/":
                found[name] = (url, {})
                continue
            for each in ACTIONS:
                form = {"action": each, "ids": str(run.pk), "confirmed": "1"}
                found[f"{name} {each}"] = (url, form)
    return found


@pytest.fixture
def runner() -> Iterator[QuerySetRunner]:
    runner = scenes.few()
    Scan.objects.update(description=PAYLOAD)
    for scan in Scan.objects.all():
        Scan.objects.filter(pk=scan.pk).update(path=f"/{scan.pk}/{NAME}-{scan.pk}")
    Run.objects.filter(status=Run.Status.SUCCEEDED).update(outputs={"of": f"{PAYLOAD}-output"})
    Failure.objects.update(message=f"{PAYLOAD}-message", traceback=f"{PAYLOAD}-traceback")
    Batch.objects.update(
        state=Batch.State.FAILED, reason=f"{PAYLOAD}-reason", finished_at=timezone.now()
    )
    running = Run.objects.filter(chunk__state=Chunk.State.RUNNING).latest("pk")
    doing = {"run": running.pk, "done": 0.5, "note": f"{PAYLOAD}-note"}
    Chunk.objects.filter(pk=running.chunk_id).update(doing=doing)
    Chunk.objects.filter(state=Chunk.State.QUEUED).update(
        state=Chunk.State.PARKED, reason=f"{PAYLOAD}-parked"
    )
    with redirected(lambda messages: None):
        yield runner


@examination("hooks")
def examine_what_raises() -> Iterator[Finding]:
    raise ValueError(f"{PAYLOAD}-examined")
    yield


def client_of(*codenames: str) -> Client:
    client = Client()
    client.force_login(scenes.add_user("-".join(codenames) or "nobody", *codenames))
    return client


def text_of(response: Any) -> str:
    return (response.getvalue() if response.streaming else response.content).decode()


def test_the_reference_has_every_page_and_every_action(runner) -> None:
    assert set(documented()) == set(addresses())


@pytest.mark.parametrize("codenames", USERS, ids=" ".join)
@pytest.mark.slow
def test_a_page_and_an_action_are_for_those_whom_the_reference_names(codenames, runner) -> None:
    client = client_of(*codenames, "view_scan")
    found = {}

    for name, (url, form) in addresses().items():
        methods, needed = documented()[name]
        is_allowed = {"view_run", *needed} <= {*codenames}
        entries = LogEntry.objects.count()
        for method in ("GET", "POST"):
            response = getattr(client, method.lower())(url, form)
            if method in methods:
                found[name, method] = (response.status_code != 403) is is_allowed
                assert response.status_code in (200, 302, 403), (name, method)
            elif method == "GET":
                assert response.status_code in (403, 405), (name, method)
        if not is_allowed:
            assert LogEntry.objects.count() == entries, name

    assert [each for each, is_right in found.items() if not is_right] == []


def test_a_get_writes_nothing_and_makes_no_node(runner) -> None:
    client = client_of(*CODENAMES, "view_scan")
    ours = {name: url for name, (url, _) in addresses().items() if "GET" in documented()[name][0]}
    ours["change"] = reverse("admin:sample_app_scan_change", args=[Scan.objects.first().pk])
    for state in ("pending", "failed", "succeeded"):
        ours[state] = f"{reverse('admin:sample_app_scan_changelist')}?autorun={state}:{LABEL}"
    ours["choice"] = f"{reverse('admin:autorun_batch_count', args=[LABEL])}?only=all"

    written = {}
    for name, url in ours.items():
        with CaptureQueriesContext(connection) as queries:
            client.get(url)
        statements = [each["sql"] for each in queries if each["sql"].lstrip().startswith(WRITES)]
        written[name] = statements

    assert {name: found for name, found in written.items() if found} == {}


@pytest.mark.parametrize("loss", [{"is_active": False}, {"is_staff": False}, "permission", "user"])
@pytest.mark.parametrize("asked", ["backfill", "ticked", "all", "try"])
def test_a_worker_asks_again_for_the_permission(asked, loss, runner, set_constants) -> None:
    if asked == "all":
        set_constants(bulk_actions, MOST_AT_ONCE=0)
    batch = ask(asked)
    user = User.objects.get(username=batch.requested_by)
    if loss == "permission":
        user.user_permissions.clear()
    elif loss == "user":
        user.delete()
    else:
        User.objects.filter(pk=user.pk).update(**loss)

    tasks.backfill(LABEL, batch=batch.pk)

    batch.refresh_from_db()
    assert (batch.state, batch.planned) == (Batch.State.FAILED, 0)
    assert "gone" in batch.reason if loss == "user" else "no longer" in batch.reason


@pytest.mark.parametrize("asked", ["backfill", "ticked", "all", "try"])
def test_a_worker_does_what_a_user_asked_who_still_may(asked, runner, set_constants) -> None:
    if asked == "all":
        set_constants(bulk_actions, MOST_AT_ONCE=0)
    batch = ask(asked)

    tasks.backfill(LABEL, batch=batch.pk)

    batch.refresh_from_db()
    assert batch.state != Batch.State.FAILED, batch.reason
    assert batch.candidates > 0


def ask(what: str) -> Batch:
    """The batch that a user of pages has asked for, which no worker has planned yet."""
    client = client_of("view_run", "start_run", "backfill_run", "retry_run", "view_scan")
    if what == "backfill":
        url = reverse("admin:autorun_batch_start", args=[LABEL])
        client.post(url, {"only": "again"})
    elif what == "try":
        client.post(reverse("admin:autorun_node_try_some", args=[LABEL]))
    else:
        failed = Run.objects.filter(status=Run.Status.FAILED).values_list("pk", flat=True)
        chosen = {"scope": "everything"} if what == "all" else {"ids": list(failed)}
        url = reverse("admin:autorun_run_act")
        client.post(url, {"action": "retry", "confirmed": "1", **chosen})
    return Batch.objects.latest("pk")


def test_pages_of_a_runner_that_has_not_run_make_no_node(admin_client) -> None:
    with installed(declare()):
        for page in ("node_runner", "node_count", "batch_prepare", "batch_count"):
            url = reverse(f"admin:autorun_{page}", args=["tests.EchoRunner"])
            assert admin_client.get(url).status_code == 200
        admin_client.get(reverse("admin:autorun_node_changelist"))

        assert Node.objects.count() == 0

        admin_client.post(reverse("admin:autorun_node_count", args=["tests.EchoRunner"]))

        assert Node.objects.get().counted["rows"] is not None


@pytest.mark.parametrize("sees_rows", [True, False])
@pytest.mark.parametrize("codenames", USERS, ids=" ".join)
@pytest.mark.slow
def test_names_and_payload_are_for_those_whom_the_reference_names(
    codenames, sees_rows, runner, set_constants
) -> None:
    examined = (backlog.examine_held_up, backlog.examine_batches, examine_what_raises)
    set_constants(doctor, FIRST=(), THEN=examined, FRESH=0.0)
    client = client_of(*codenames, *(VIEW_ROWS if sees_rows else ()))
    succeeded = Run.objects.filter(status=Run.Status.SUCCEEDED).first()
    urls = [url for url, form in addresses().values() if not form]
    urls += [reverse("admin:autorun_run_change", args=[succeeded.pk])]
    urls += [reverse("admin:autorun_run_text", args=[succeeded.pk, "outputs"])]
    urls += [f"{reverse('admin:autorun_run_changelist')}?state=failed"]
    urls += [f"{reverse('admin:autorun_health_changelist')}?now=1"]
    for state in (Chunk.State.RUNNING, Chunk.State.PARKED):
        run = Run.objects.filter(chunk__state=state).latest("pk")
        urls.append(reverse("admin:autorun_run_change", args=[run.pk]))
        urls.append(f"{reverse('admin:autorun_node_why', args=[LABEL])}?row={run.object_id}")

    pages = " ".join(text_of(client.get(url)) for url in urls)

    shows = {NAME: sees_rows}
    for each in ("reason", "parked", "examined"):
        shows[f"{PAYLOAD}-{each}"] = sees_rows  # they may quote any row
    for each in ("output", "message", "traceback", "note"):
        shows[f"{PAYLOAD}-{each}"] = sees_rows
    is_open = "view_run" in codenames
    for marker, is_shown in shows.items():
        needs = is_open and (marker == NAME or "view_payload" in codenames)
        assert (marker in pages) is (is_shown and needs), marker


@pytest.mark.parametrize("may_hide", [False, True])
@pytest.mark.slow
def test_what_people_and_code_wrote_is_payload_wherever_it_is_shown(
    may_hide, set_constants, monkeypatch
) -> None:
    """If the admin may hide rows, texts that may quote any row are shown to superusers only."""
    if may_hide:
        own = lambda self, request: admin.ModelAdmin.get_queryset(self, request)  # noqa: E731
        monkeypatch.setattr(ScanAdmin, "get_queryset", own, raising=False)
    scenes.few()
    examined = (backlog.examine_held_up, backlog.examine_batches, backlog.examine_paused)
    set_constants(doctor, FIRST=(), THEN=examined, FRESH=0.0)
    markers = write_markers()
    others = [each for each in CODENAMES if each != "view_payload"]
    root = Client()
    root.force_login(scenes.add_user("root", is_superuser=True))
    clients = client_of(*others, "view_scan"), client_of(*CODENAMES, "view_scan"), root
    urls = [url for url, form in addresses().values() if not form]
    urls += [f"{reverse('admin:autorun_health_changelist')}?now=1"]
    runs = {(run.status, run.chunk.state): run for run in Run.objects.current()}
    for run in runs.values():
        urls.append(reverse("admin:autorun_run_change", args=[run.pk]))
        urls.append(f"{reverse('admin:autorun_node_why', args=[LABEL])}?row={run.object_id}")
        urls.append(reverse("autorun_api:row", args=[LABEL, run.object_id]))
        urls.append(reverse("admin:sample_app_scan_change", args=[run.object_id]))

    shown = ["", "", ""]
    for change in (dict, pause_all, end_what_holds_up):
        change()
        for place, client in enumerate(clients):
            shown[place] += " ".join(text_of(client.get(url)) for url in urls)

    assert WORDS not in shown[0]
    of_rows = {each for each in markers if re.search("-(run|failure|inapplicable)", each)}
    assert {each for each in markers if each in shown[1]} == (of_rows if may_hide else {*markers})
    assert {each for each in markers if each not in shown[2]} == set()


@pytest.mark.parametrize("kind", [ValueError, ConfigurationError])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.slow
def test_the_words_of_a_hook_are_payload_whatever_it_raises(
    hook, kind, runner, monkeypatch
) -> None:
    def raises(*_: Any, **options: Any) -> None:
        raise kind(WORDS)

    client = client_of(*[each for each in CODENAMES if each != "view_payload"], "view_scan")
    asked = [(name, *each) for name, each in addresses().items()]
    state = f"{reverse('admin:sample_app_scan_changelist')}?autorun=pending:{LABEL}"
    row = Run.objects.current().filter(status=Run.Status.FAILED).first().object_id
    change = reverse("admin:sample_app_scan_change", args=[row])
    asked += [("changelist", state, {}), ("change", change, {})]
    monkeypatch.setattr(ScanPreprocessingRunner, hook, raises, raising=False)

    found = {}
    with installed():  # so that nothing is remembered of the runners
        for name, url, form in asked:
            for method in (client.get, client.post):
                page = method(url, form, follow=True)
                found[name, method.__name__] = page.status_code < 500 and WORDS not in text_of(page)

    assert [each for each, is_right in found.items() if not is_right] == []
    assert not LogEntry.objects.filter(change_message__contains=WORDS)


def test_a_name_and_an_input_that_no_encoding_has_are_shown(runner, monkeypatch) -> None:
    strange = "scan-\udcff"
    monkeypatch.setattr(Scan, "__str__", lambda self: strange)
    hook = "get_instance_representation"
    monkeypatch.setattr(ScanPreprocessingRunner, hook, lambda self, instance: [strange])
    client = client_of(*CODENAMES, "view_scan")

    pages = {name: text_of(client.get(url)) for name, (url, form) in addresses().items()}

    for name in ("run/", "run/<run_id>/change/", "node/<label>/export/<form>/"):
        assert "scan-\\udcff" in pages[name], name


def pause_all() -> None:
    Node.objects.update(paused_at=timezone.now())
    Batch.objects.update(state=Batch.State.PAUSED)


def end_what_holds_up() -> None:
    Node.objects.update(paused_at=None)
    Batch.objects.update(state=Batch.State.RUNNING)
    Chunk.objects.filter(state=Chunk.State.PARKED).update(state=Chunk.State.QUEUED)
    SpilledTrigger.objects.all().delete()


def write_markers() -> list[str]:
    """Write one into every text column, all of which hold the words of people or of code."""
    SpilledTrigger.objects.create(runner=LABEL, model_label="sample_app.Scan", keys=[])
    markers = [f"{WORDS}-inapplicable"]
    Batch.objects.update(finished_at=timezone.now())
    for model in apps.get_app_config("autorun").get_models():
        for field in model._meta.concrete_fields:
            if isinstance(field, TextField) and field.name != "object_key":
                markers.append(f"{WORDS}-{model._meta.model_name}-{field.name}-end")
                model.objects.update(**{field.name: markers[-1]})
    done = Run.objects.current().filter(status=Run.Status.SUCCEEDED).first()
    inapplicable = {"status": Run.Status.NOT_APPLICABLE, "outputs": markers[0]}
    Run.objects.filter(pk=done.pk).update(**inapplicable)
    Chunk.objects.filter(state=Chunk.State.QUEUED).update(state=Chunk.State.PARKED)
    waiting = Chunk.objects.filter(state=Chunk.State.WAITING)
    waiting.update(not_before=timezone.now() + dt.timedelta(hours=1))
    return markers
