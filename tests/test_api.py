"""The JSON that `autorun.contrib.api` serves, and its description in docs/openapi.json."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import AbstractBaseUser
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import resolve, reverse

from autorun.contrib import api
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.runner import QuerySetRunner
from sample_app.models import Scan
from tests.browser import scenes
from tests.engine import declare, installed
from tests.library.models import Country

pytestmark = pytest.mark.django_db

ROOT = "/autorun/api/"
LABEL = "sample_app.ScanPreprocessingRunner"
DESCRIPTION = json.loads((Path(__file__).parent.parent / "docs/openapi.json").read_text())
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


@pytest.fixture(autouse=True)
def runner() -> QuerySetRunner:
    return scenes.few()


def client_of(*codenames: str) -> Client:
    client = Client()
    client.force_login(scenes.add_user("-".join(codenames) or "nobody", *codenames))
    return client


@pytest.fixture
def client() -> Client:
    return client_of("view_run", "view_payload", "view_scan")


def get(client: Client, address: str, status: int = 200, **given: Any) -> Any:
    response = client.get(ROOT + address, given)
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/json"
    return response.json()


def addresses() -> dict[str, str]:
    """An address of each path that is described."""
    run = Run.objects.filter(status=Run.Status.FAILED).first()
    batch = Batch.objects.filter(runner=LABEL).first()
    values = {"label": LABEL, "key": run.object_id, "number": batch.pk}
    return {route: route.format(**values).removeprefix("/") for route in DESCRIPTION["paths"]}


def mismatches(value: Any, schema: dict[str, Any], at: str = "") -> list[str]:
    """The places of `value` that are not as the schema says; it knows what openapi.json uses."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return mismatches(value, DESCRIPTION["components"]["schemas"][name], at)
    if "oneOf" in schema:
        found = [mismatches(value, each, at) for each in schema["oneOf"]]
        return [] if [] in found else found[0]
    types = schema.get("type", list(TYPES))
    types = [types] if isinstance(types, str) else types
    is_typed = any(isinstance(value, TYPES[each]) for each in types)
    if not is_typed or (isinstance(value, bool) and "boolean" not in types):
        return [f"{at}: {value!r} is none of {types}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at}: {value!r} is none of {schema['enum']}"]
    if isinstance(value, list):
        return [each for item in value for each in mismatches(item, schema["items"], f"{at}[]")]
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    known, needed = schema["properties"], set(schema["required"])
    found = [f"{at}.{name} is not described" for name in value.keys() - known]
    found += [f"{at}.{name} is missing" for name in needed - value.keys()]
    for name in value.keys() & known.keys():
        found += mismatches(value[name], known[name], f"{at}.{name}")
    return found


def test_every_address_is_described_and_no_other() -> None:
    known = [each for each in api.urlpatterns if each.name != "unknown"]
    routes = {re.sub(r"<\w+:(\w+)>", r"{\1}", f"/{each.pattern}") for each in known}

    assert routes == set(DESCRIPTION["paths"])


@pytest.mark.parametrize("codenames", [("view_run",), ("view_run", "view_payload")], ids=len)
def test_every_answer_is_as_described(codenames) -> None:
    Chunk.objects.filter(state=Chunk.State.QUEUED).update(
        state=Chunk.State.PARKED, reason="Disk full."
    )
    Node.objects.update(paused_because="Maintenance.")
    client, found = client_of(*codenames, "view_scan"), []
    urls = list(addresses().items())
    urls += [
        ("/runners/{label}/rows/{key}/", f"runners/{LABEL}/rows/{scan.pk}/")
        for scan in Scan.objects.all()
    ]
    for route, url in urls:
        answers = DESCRIPTION["paths"][route]["get"]["responses"]
        schema = answers["200"]["content"]["application/json"]["schema"]
        found += mismatches(get(client, url), schema, url)

    error = get(client, "runs/", 400, stat="failed")

    assert found == []
    assert mismatches(error, {"$ref": "#/components/schemas/Error"}) == []


def test_every_parameter_that_is_described_is_understood_and_no_other(client) -> None:
    values = {
        "batch": "1", "limit": "2", "after": "2-1", "runner": LABEL, "state": "failed",
        "trigger": "sweep", "since": "24h", "group": "1-0123456789abcdef",
        **dict.fromkeys(("ended_from", "ended_until"), "2031-05-04T03:00"),
    }  # fmt: skip
    for route, url in addresses().items():
        described = DESCRIPTION["paths"][route]["get"].get("parameters", [])
        names = [each["name"] for each in described if each["in"] == "query"]
        for each in names:
            get(client, url, **{each: values.get(each, "x")})

        told = get(client, url, 400, other="1")["error"]

        assert told.startswith("Unknown parameter “other”.")
        assert all(each in told for each in names)


@pytest.mark.once
def test_the_description_is_valid() -> None:
    validator = pytest.importorskip("openapi_spec_validator")

    validator.validate(DESCRIPTION)


def test_the_status_counts_the_runs_of_all_runners(client) -> None:
    found = get(client, "status/")

    assert found["level"] == "error"
    failed = Run.objects.current().filter(status=Run.Status.FAILED).count()
    assert found["runs"]["failed"] == failed > 0


def test_a_row_has_its_outputs_only_with_the_permission_to_see_payload(client) -> None:
    run = Run.objects.current().filter(status=Run.Status.SUCCEEDED).first()
    Run.objects.filter(pk=run.pk).update(outputs={"snr": 12.5})
    address = f"runners/{LABEL}/rows/{run.object_id}/"

    assert get(client, address)["outputs"] == {"snr": 12.5}
    assert "outputs" not in get(client_of("view_run", "view_scan"), address)


def test_messages_are_for_those_who_may_see_payload_and_the_row(client) -> None:
    Failure.objects.update(message="marked", log_tail="marked-log")
    run = Run.objects.current().filter(status=Run.Status.FAILED).first()
    address = f"runners/{LABEL}/rows/{run.object_id}/"

    assert get(client, address)["failure"]["message"] == "marked"
    assert {each["message"] for each in get(client, "failures/")["causes"]} == {"marked"}
    assert "marked" not in str(get(client_of("view_run", "view_scan"), address))
    for hidden in (
        client_of("view_run", "view_payload"),
        client_of("view_run", "view_scan", "retry_run"),
    ):
        causes = get(hidden, "failures/")["causes"]
        assert causes
        assert "marked" not in str(causes)


def test_a_row_that_the_admin_hides_is_not_found(client, monkeypatch) -> None:
    row = Scan.objects.latest("pk")
    hiding = type("Hiding", (admin.ModelAdmin,), {"get_queryset": lambda *_: Scan.objects.none()})
    monkeypatch.setitem(admin.site._registry, Scan, hiding(Scan, admin.site))

    told = get(client, f"runners/{LABEL}/rows/{row.pk}/", 404)["error"]

    assert f"{LABEL} has no row “{row.pk}” that you may see" in told


@pytest.mark.parametrize("key", ["a\nb", "\n", "a/", "/", "\r\n", "\u2028", "%0A", "é ?#"])
def test_a_row_of_any_text_key_is_found(key) -> None:
    Country.objects.create(code=key, name="x")
    runner, client = (
        declare(DATA_MODEL=Country, INPUT_FIELDS=("name",)),
        client_of("view_run", "view_country"),
    )
    with installed(runner):
        answer = client.get(reverse("autorun_api:row", args=[runner.get_label(), key])).json()

    assert (answer["row"], answer["code"]) == (key, "never_ran")


def test_pages_of_runs_follow_each_other(client) -> None:
    found, after = [], None
    for _ in range(20):
        page = get(client, "runs/", limit=3, state="failed", **({"after": after} if after else {}))
        found += [each["id"] for each in page["runs"]]
        assert len(page["runs"]) <= 3
        after = page["next"]
        if after is None:
            break

    failed = Run.objects.current().filter(status=Run.Status.FAILED)
    assert sorted(found) == sorted(failed.values_list("pk", flat=True))
    assert len(found) == len(set(found)) > 3


def test_the_runs_of_a_cause_are_those_of_its_group(client) -> None:
    causes = get(client, "failures/", runner=LABEL, since="30d")["causes"]

    for each in causes:
        runs = get(client, "runs/", group=each["group"])["runs"]
        assert len(runs) == each["runs"]
        assert {run["state"] for run in runs} == {"failed"}
    assert causes


def test_a_batch_says_how_many_of_its_runs_are_left(client) -> None:
    batch = Batch.objects.filter(runner=LABEL).first()
    Batch.objects.filter(pk=batch.pk).update(reason="marked")

    found = get(client, f"batches/{batch.pk}/")

    finished = sum(found[each] for each in ("succeeded", "failed", "cancelled", "not_applicable"))
    assert found["left"] == Run.objects.filter(chunk__batch=batch).count() - finished
    assert found["reason"] == "marked"
    assert "reason" not in get(client_of("view_run"), f"batches/{batch.pk}/")


@pytest.mark.parametrize(
    "address",
    [
        "runners/no.Such/", "runners/no.Such/rows/1/", f"runners/{LABEL}/rows/x/",
        f"runners/{LABEL}/rows/{'9' * 30}/", "batches/0/", f"batches/{'9' * 30}/",
        "failures/?runner=no.Such", "runs/?runner=no.Such", "", "rnus/", "runs/1/", "batches/x/",
    ],
)  # fmt: skip
def test_what_does_not_exist_is_not_found(address, client) -> None:
    told = get(client, address, 404)["error"]

    expected = "No runner is registered as 'no.Such'." if "no.Such" in address else "There is no"
    assert told.startswith((expected, f"{LABEL} has no row"))
    assert get(Client(), address, 401)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("runs/?state=done", "Unknown state “done”. Choose waiting"),
        ("runs/?batch=x", "“x” is not the number of a batch."),
        ("runs/?group=zz", "“zz” is not a group of failures."),
        ("runs/?ended_from=x", "“x” is not a time. Write 2031-05-04T03:00"),
        ("runs/?limit=201", "limit: “201” is not a whole number from 1 to 200."),
        ("runs/?after=x", "after: “x” is not the `next` of a page. Omit it."),
        ("failures/?since=1y", "Unknown since “1y”. Choose 1h, 24h, 7d, 30d."),
        ("status/?x=1", "Unknown parameter “x”. There are none here."),
    ],
)
def test_a_value_without_meaning_is_refused_by_name(address, words, client) -> None:
    assert words in get(client, address, 400)["error"]


def test_strangers_get_401_and_users_without_the_permission_403() -> None:
    outsider = client_of("view_run", "view_payload")
    outsider_user = scenes.User.objects.get(username="view_run-view_payload")
    scenes.User.objects.filter(pk=outsider_user.pk).update(is_staff=False)
    for url in addresses().values():
        assert "WWW-Authenticate" in Client().get(ROOT + url)
        assert get(Client(), url, 401) == {"error": "Log in first."}
        for refused in (client_of("view_payload"), outsider):
            assert "autorun.view_run" in get(refused, url, 403)["error"]
            scenes.User.objects.filter(username="view_payload").delete()


class Member(AbstractBaseUser):
    """A user model without `is_staff`."""

    class Meta:
        app_label, managed = "tests", False


class Reader(Member):
    class Meta:
        app_label, managed = "tests", False

    def has_perm(self, name: str, obj: Any = None) -> bool:
        return name == "autorun.view_run"


@pytest.mark.parametrize(("user", "status"), [(Reader(), 200), (Member(), 403), (None, 401)])
def test_a_user_model_without_staff_is_let_in_by_the_permission(user, status, rf) -> None:
    for url in (ROOT + each for each in ("status/", "runners/", "runs/", "failures/")):
        request = rf.get(url)
        if user is not None:
            request.user = user
        view, args, kwargs = resolve(url)
        answer = view(request, *args, **kwargs)

        assert answer.status_code == status
        assert status != 403 or "autorun.view_run" in json.loads(answer.content)["error"]


def test_an_answer_that_has_not_changed_is_304(client) -> None:
    for url in addresses().values():
        first = client.get(ROOT + url)
        again = client.get(ROOT + url, headers={"If-None-Match": first["ETag"]})
        assert (again.status_code, again.content) == (304, b""), url
        assert "private" in first["Cache-Control"]

    url = ROOT + addresses()["/batches/{number}/"]
    tag = client.get(url)["ETag"]
    Batch.objects.update(planned=99)

    assert client.get(url, headers={"If-None-Match": tag}).json()["planned"] == 99


def test_nothing_but_reading_is_allowed(client) -> None:
    for url in addresses().values():
        assert client.post(ROOT + url).status_code == 405
        assert client.head(ROOT + url).status_code == 200


def test_a_runner_that_is_declared_wrongly_is_shown_and_its_rows_are_not(client) -> None:
    with installed(declare(DATA_MODEL=Scan, ANALYSIS="No such analysis", ANALYSIS_VERSION="1.0")):
        states = {each["runner"]: each for each in get(client, "runners/")["runners"]}
        row = Scan.objects.latest("pk").pk

        assert states["tests.EchoRunner"]["state"] == "error"
        assert "No such analysis" in states["tests.EchoRunner"]["error"]
        assert get(client, f"runners/tests.EchoRunner/rows/{row}/")["code"] == "unknown"


def test_the_queries_of_an_answer_do_not_grow_with_the_rows(client, runner, sent) -> None:
    def queries() -> dict[str, int]:
        found = {}
        for route, url in addresses().items():
            with CaptureQueriesContext(connection) as captured:
                get(client, url)
            found[route] = len(captured)
        return found

    queries()
    before = queries()
    scenes.add_scans(30, first=100)
    runner.backfill(Scan.objects.filter(description__gt=""))
    after = queries()

    assert after == before
    assert max(before.values()) <= 20


def test_addresses_have_names() -> None:
    assert reverse("autorun_api:runner", args=[LABEL]) == f"{ROOT}runners/{LABEL}/"
