"""Whatever stands in an address or a form: no page fails, and none leads off the site."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from django.contrib import admin
from django.http import QueryDict
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.datastructures import MultiValueDict

from autorun.admin.bulk_actions import ACTIONS
from autorun.dispatch.publishing import redirected
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.observe import doctor
from autorun.observe.listing import RunFilter
from autorun.state.words import harmless
from sample_app.models import Scan
from tests import admin_walk, test_permissions
from tests.browser import scenes
from tests.engine import declare, installed, work_off
from tests.library.models import Country

pytestmark = [pytest.mark.django_db, pytest.mark.slow, pytest.mark.once]

NAMES = {
    *(each.name for each in fields(RunFilter)),
    *("after", "all", "app", "autorun", "before", "begun", "filter", "limit", "next", "now"),
    *("only", "order", "q", "row", "runner", "selection", "since", "state", "trigger", "versions"),
    *("window", "action", "confirmed", "ids", "scope", "select_across", "page"),
}
FORM = "application/x-www-form-urlencoded"
ELSEWHERE = ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)"]
#: As they stand in an address.
VALUES = [
    *(
        "",
        "&{name}=&{name}=1",
        "%00",
        "a%00b",
        "%ff",
        "%ed%a0%80",
        "%",
        "1&{name}=2&{name}=%00",
        "x" * 5_000,
        "9" * 5_000,
    ),
    *map(quote, ["\U0001f4a9\u202e\x1b[2J", "' OR 1=1 --", "[]", '{"a": [1]}', "[" * 5_000]),
    *map(quote, ["-1", "0", str(2**31), str(2**63), str(10**30), "1.5", "1e400", "NaN"]),
    *map(quote, ["2026-99-99T99:99", "9999-12-31T23:59", "0001-01-01T00:00", "failed:"]),
    *map(quote, ["\u0661\u0662", "0001-01-01T00:00+23:59"]),
    *map(quote, ["pending:no.such.Runner", *ELSEWHERE]),
]


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(doctor, "FRESH", 600.0)
    scenes.few()
    client = Client()
    client.force_login(scenes.add_user("root", is_superuser=True))
    with redirected(lambda messages: None):
        yield client


def addresses() -> dict[str, str]:
    """One address of every page, of the API, and of the admin's own pages that autorun adds to."""
    found = dict(admin_walk.addresses(admin.site))
    documented = test_permissions.addresses().items()
    found |= {name: url for name, (url, _) in documented if name.startswith("api/")}
    row = Scan.objects.first().pk
    found["changelist"] = reverse("admin:sample_app_scan_changelist")
    found["change"] = reverse("admin:sample_app_scan_change", args=[row])
    return found


def is_on_the_site(location: str) -> bool:
    parts = urlsplit(location.replace("\\", "/"))
    return not parts.scheme and not parts.netloc


def requests() -> Iterator[tuple[str, str, str, str]]:
    """Each page by GET and by POST: its name, the method, its address, and the rest of the form."""
    run = Run.objects.first().pk
    chosen = [f"action={each}&ids={run}&confirmed=1" for each in ACTIONS]
    for name, address in addresses().items():
        yield name, "get", address, ""
        for rest in chosen if name == "autorun_run_act" else [""]:
            yield name, "post", address, rest


def ask(user: Client, method: str, address: str, query: str) -> Any:
    if method == "get":
        return user.get(f"{address}?{query}")
    return user.post(address, query, content_type=FORM)


def failures(user: Client, value: str, asked: Mapping[tuple[str, str, str, str], set[str]]) -> Any:
    """Requests that failed or led elsewhere, with that value of all their parameters."""
    wrong = []
    for (name, method, address, rest), names in asked.items():
        query = "&".join(f"{each}={value.replace('{name}', each)}" for each in sorted(names))
        page = ask(user, method, address, f"{query}&{rest}")
        location = page.headers.get("Location", "")
        if page.status_code >= 500 or not is_on_the_site(location):
            wrong.append((name, query, rest, page.status_code, location))
    return wrong


#: The parameters that each request looks for, once they are known.
_read: dict[str, set[str]] = {}


HOSTILE = "<script>x</script>=1+1\x1b]52;c;eA==\x07\x9b2J\r\u2028\u202eevil\u2066\u200f\x7f"


def make_hostile() -> None:
    """Have all that foreign code and people wrote in the scene be hostile."""
    Scan.objects.update(description=HOSTILE)
    for scan in Scan.objects.all():
        Scan.objects.filter(pk=scan.pk).update(path=f"/{HOSTILE}{scan.pk}")
    done = Run.objects.filter(status=Run.Status.SUCCEEDED)
    done.update(outputs={HOSTILE: HOSTILE, "nested": [HOSTILE]})
    Failure.objects.update(message=HOSTILE, traceback=HOSTILE, log_tail=HOSTILE)
    failed, cut = Batch.State.FAILED, HOSTILE[:200]
    Batch.objects.update(state=failed, reason=cut, description=cut, requested_by=cut)
    doing = {"run": Run.objects.latest("pk").pk, "done": 0.5, "note": HOSTILE}
    Chunk.objects.filter(state=Chunk.State.RUNNING).update(worker=HOSTILE[:100], doing=doing)
    Chunk.objects.filter(state=Chunk.State.QUEUED).update(
        state=Chunk.State.PARKED, reason=HOSTILE[:200]
    )
    Node.objects.update(paused_at=timezone.now(), paused_because=HOSTILE[:200])


def test_no_text_of_a_row_hides_or_turns_round_on_a_page(user: Client) -> None:
    """Each is shown, with a sign in place of every such character; forms return the others."""
    make_hostile()
    country = declare(
        NAME="HostileRunner", DATA_MODEL=Country, INPUT_FIELDS=("name",), INPUT_KEY="value"
    )
    key = HOSTILE[-8:]
    Country.objects.create(code=key, name=HOSTILE)
    row = Scan.objects.latest("pk").pk
    found = []
    with installed(country):
        country().run()
        work_off()
        every = {*addresses().values(), *(url for _, url in admin_walk.addresses(admin.site))}
        for address in sorted(every):
            if "/export/" in address or "/sample_app/" in address:
                continue  # what other programs read, and pages of Django's own
            page = user.get(address, {"row": row} if "/why/" in address else None)
            if page.status_code != 200:
                continue
            text = page.text
            found.append(text)
            if page["Content-Type"].startswith("text/html"):
                text = re.sub(r' value="[^"]*"', "", text)
                assert "<script>x" not in text, address
            assert text == harmless(text), address

    assert sum("\u241b]52;c" in each for each in found) > 10
    assert len(found) > 30


@pytest.fixture
def read(user: Client, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, set[str]]:
    """The parameters that each page looks for, by its name and method."""
    looked_for: set[str] = set()

    def noted(method: Any) -> Any:
        def look(self: QueryDict, key: Any, *args: Any) -> Any:
            looked_for.add(str(key))
            return method(self, key, *args)

        return look

    with monkeypatch.context() as patch:
        for name in ("get", "getlist", "__getitem__", "__contains__"):
            patch.setattr(MultiValueDict, name, noted(getattr(MultiValueDict, name)), raising=False)
        for name, method, address, rest in () if _read else list(requests()):
            looked_for.clear()
            ask(user, method, address, rest)
            # Django's changelist takes all that there is, for its filters to choose from.
            taken = {"autorun", "autorun_up_to"} if name == "changelist" else set()
            _read[f"{method} {name} {rest}"[:40]] = looked_for | taken
    return _read


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_no_parameters_make_a_page_fail_or_lead_off_the_site(value: str, user: Client) -> None:
    assert failures(user, value, dict.fromkeys(requests(), NAMES)) == []


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_no_parameter_alone_makes_a_page_fail_or_lead_off_the_site(
    value: str, user: Client, read: Mapping[str, set[str]]
) -> None:
    """Each parameter that a page reads meets every tenth value: all of them would take minutes."""
    alone = [
        (each, name)
        for each in requests()
        for name in sorted(read[f"{each[1]} {each[0]} {each[3]}"[:40]])
        if not name.startswith(("_", "csrf"))
    ]
    wrong = []
    for each, name in alone[VALUES.index(value) % 10 :: 10]:
        wrong += failures(user, value, {each: {name}})

    assert wrong == []


def test_the_parameters_that_pages_read_are_those_that_are_tried(
    read: Mapping[str, set[str]],
) -> None:
    found = set().union(*read.values())

    assert {"runner", "selection", "begun", "row", "ids", "only", "autorun", "group"} <= found


def test_no_selection_of_rows_makes_their_list_fail(user: Client) -> None:
    address = reverse("admin:sample_app_scan_changelist")
    action = "action=autorun_run__sample_app.ScanPreprocessingRunner&select_across="
    wrong = []
    for value in VALUES:
        for rest in (f"{action}0", f"{action}1"):
            asked = {("changelist", "post", address, rest): {"_selected_action"}}
            wrong += failures(user, value, asked)

    assert wrong == []
