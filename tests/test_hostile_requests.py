"""Whatever stands in an address or a form: no page fails, and none leads off the site."""

from collections.abc import Iterator
from dataclasses import fields
from urllib.parse import quote, urlsplit

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from autorun.admin.bulk_actions import ACTIONS
from autorun.dispatch.publishing import redirected
from autorun.models import Run
from autorun.observe import doctor
from autorun.observe.listing import RunFilter
from sample_app.models import Scan
from tests import admin_walk
from tests.browser import scenes

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
    *("%00", "a%00b", "%ff", "%ed%a0%80", "%", "1&{name}=2&{name}=%00", "x" * 5_000, "9" * 5_000),
    *map(quote, ["\U0001f4a9\u202e\x1b[2J", "' OR 1=1 --", "[]", '{"a": [1]}', "[" * 5_000]),
    *map(quote, ["-1", "0", str(2**31), str(2**63), str(10**30), "1.5", "1e400", "NaN"]),
    *map(quote, ["2026-99-99T99:99", "9999-12-31T23:59", "0001-01-01T00:00", "failed:"]),
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
    """One address of every page, and those of the admin's own pages that autorun adds to."""
    found = dict(admin_walk.addresses(admin.site))
    row = Scan.objects.first().pk
    found["changelist"] = reverse("admin:sample_app_scan_changelist")
    found["change"] = reverse("admin:sample_app_scan_change", args=[row])
    return found


def is_on_the_site(location: str) -> bool:
    parts = urlsplit(location.replace("\\", "/"))
    return not parts.scheme and not parts.netloc


def failures(user: Client, value: str) -> list[object]:
    """Requests that failed or led elsewhere, with that value of all parameters."""
    run, wrong = Run.objects.first().pk, []
    query = "&".join(f"{name}={value.replace('{name}', name)}" for name in sorted(NAMES))
    chosen = [f"&action={each}&ids={run}&confirmed=1" for each in ACTIONS]
    for name, address in addresses().items():
        answers = [(query, user.get(f"{address}?{query}"))]
        for rest in chosen if name == "autorun_run_act" else [""]:
            form = f"{query}{rest}"
            answers.append((form, user.post(address, form, content_type=FORM)))
        for asked, page in answers:
            location = page.headers.get("Location", "")
            if page.status_code >= 500 or not is_on_the_site(location):
                wrong.append((name, asked, page.status_code, location))
    return wrong


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_no_parameters_make_a_page_fail_or_lead_off_the_site(value: str, user: Client) -> None:
    assert failures(user, value) == []
