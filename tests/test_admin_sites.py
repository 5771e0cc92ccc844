"""The pages in a project with several admin sites, of which some lack models that they link to."""

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.admin import AdminSite, site
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

import autorun
from autorun.admin import Health
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.state.counts import STUCK_SECONDS
from autorun.triggers import on_schedule
from sample_app.models import Scan
from tests.browser import scenes
from tests.two_sites import other

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.two_sites")]

LABEL = "sample_app.ScanPreprocessingRunner"


@pytest.fixture
def admin(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("ada"))
    return client


@pytest.fixture
def _scene() -> None:
    scenes.few()
    on_schedule.sync()


def addresses(site: str) -> list[str]:
    pages = {
        "autorun_node_changelist": [],
        "autorun_node_runner": [LABEL],
        "autorun_node_count": [LABEL],
        "autorun_health_changelist": [],
        "autorun_run_changelist": [],
        "autorun_run_change": [Run.objects.latest("pk").pk],
        "autorun_failure_changelist": [],
        "autorun_batch_changelist": [],
        "autorun_batch_change": [Batch.objects.latest("pk").pk],
        "autorun_batch_choose": [],
        "autorun_batch_prepare": [LABEL],
        "autorun_batch_count": [LABEL],
        **rows(),
    }
    lacking = "health" if site == "brief" else site.removeprefix("no_")
    pages = {name: args for name, args in pages.items() if f"autorun_{lacking}_" not in name}
    if site.startswith("no_"):
        del pages["autorun_health_changelist"]
    return [reverse(f"admin:{name}", args=args, current_app=site) for name, args in pages.items()]


def rows() -> dict[str, list[int]]:
    return {
        "sample_app_scan_changelist": [],
        "sample_app_scan_change": [Scan.objects.latest("pk").pk],
    }


@pytest.mark.usefixtures("_scene")
def test_links_stay_in_their_site(admin: Client) -> None:
    for address in addresses("other"):
        page = admin.get(address)

        assert page.status_code == 200, address
        links = re.findall(r'(?:href|action)="(/[^"]*)"', page.text)
        assert links
        elsewhere = [link for link in links if not link.startswith(("/other/", "/static/"))]
        elsewhere = [link for link in elsewhere if link != "/"]  # "View site"
        assert elsewhere == [], address


@pytest.mark.usefixtures("_scene")
def test_pages_are_rendered_by_django_if_another_engine_takes_every_template(
    admin: Client, settings: Any
) -> None:
    folders = [Path(autorun.__file__).parent / "templates"]
    other = {"BACKEND": "django.template.backends.dummy.TemplateStrings", "DIRS": folders}
    settings.TEMPLATES = [other, *settings.TEMPLATES]

    for address in addresses("other"):
        page = admin.get(address)

        assert page.status_code == 200, address
        assert "{%" not in page.text, address


@pytest.mark.usefixtures("_scene")
def test_a_site_without_autoruns_pages_shows_states_without_links(admin: Client) -> None:
    for name, args in rows().items():
        page = admin.get(reverse(f"admin:{name}", args=args, current_app="bare"))

        assert page.status_code == 200
        assert "/autorun/" not in page.text.replace("/static/autorun/", "")
        assert "autorun_run__" not in page.text  # no action leads to a page that is not there


@pytest.mark.usefixtures("_scene")
def test_a_site_without_health_has_no_link_to_it(admin: Client) -> None:
    at = timezone.now() - dt.timedelta(seconds=2 * STUCK_SECONDS)
    busy = Chunk.objects.filter(state__in=[Chunk.State.RUNNING, Chunk.State.QUEUED])
    busy.update(state=Chunk.State.QUEUED, published_at=at)

    texts = {}
    for name in ("other", "brief"):
        pages = [admin.get(address) for address in addresses(name)]
        assert {page.status_code for page in pages} == {200}
        texts[name] = "".join(page.text for page in pages)

    assert "no worker is picking them up. See <a" in texts["other"]
    assert "no worker is picking them up.\n" in texts["brief"]
    assert "/brief/autorun/health/" not in texts["brief"]
    assert 'href=""' not in texts["brief"]


@pytest.mark.usefixtures("_scene")
@pytest.mark.parametrize("name", ["batch", "failure", "node", "run"])
def test_a_site_that_lacks_a_page_has_no_broken_one(admin: Client, name: str) -> None:
    pages = [admin.get(each) for each in addresses(f"no_{name}")]

    assert {page.status_code for page in pages} == {200}
    said = [page for page in pages if "that this admin site does not have" in page.text]
    assert bool(said) == (name != "failure")
    assert 'href=""' not in "".join(page.text for page in pages)
    if name != "node":
        address = reverse("admin:autorun_node_sweep", args=[LABEL], current_app=f"no_{name}")
        assert admin.get(admin.post(address)["Location"]).status_code == 200


@pytest.mark.usefixtures("_scene")
@pytest.mark.parametrize("name", ["count", "start"])
def test_rows_that_were_selected_on_another_site_are_refused_by_one_without_their_model(
    admin: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"action": f"autorun_run__{LABEL}", "_selected_action": Scan.objects.first().pk}
    chosen = admin.post(reverse("admin:sample_app_scan_changelist"), form, follow=True)
    monkeypatch.delitem(other._registry, Scan)
    address = reverse(f"admin:autorun_batch_{name}", args=[LABEL], current_app="other")
    call = admin.post if name == "start" else admin.get

    refused = call(address, {"selection": chosen.context["asked"].selection})

    assert refused.status_code == 403


def test_e047_a_site_with_some_of_the_pages():
    whole, none, older = (AdminSite(name=name) for name in ("whole", "none", "older"))
    for model in (Node, Run, Health, Batch):
        older.register(model, type(site._registry[model]))
    for model in (Batch, Failure, Run, Node):
        whole.register(model, type(site._registry[model]))
    none.register(Scan)

    (found,) = older.check(None)

    assert found.id == "autorun.E047"
    assert "'older' lacks autorun's Failure," in found.msg
    assert whole.check(None) == none.check(None) == []
