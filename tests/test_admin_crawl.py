"""Every page and action answers, in a project in which much is missing."""

import re
from collections.abc import Iterator

import pytest
from django.contrib import admin
from django.contrib.contenttypes.models import ContentType
from django.test import Client
from django_celery_beat.models import PeriodicTask

from autorun.admin.bulk_actions import ACTIONS
from autorun.models import Batch, Chunk, Node, Run
from autorun.triggers import on_schedule
from sample_app.models import Scan
from tests import admin_walk
from tests.browser import scenes
from tests.engine import declare, installed
from tests.library.models import Document
from tests.two_sites import other

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.two_sites")]

#: About a row, which is not in the route.
WHY = "autorun_node_why"
REMOVED = "sample_app.RemovedRunner"


@pytest.fixture(autouse=True)
def _scene() -> Iterator[None]:
    """A runner that is gone, one without its analysis, a model that is gone, and deleted rows."""
    runner = scenes.few()
    on_schedule.sync()
    batch = Batch.objects.latest("pk")
    gone = Batch.objects.get(pk=batch.pk)
    gone.pk, gone.runner = None, REMOVED
    gone.save(force_insert=True)
    first = Chunk.objects.exclude(runs=None).order_by("pk").first()
    Chunk.objects.filter(pk=first.pk).update(runner=REMOVED, batch=gone)
    nowhere = ContentType.objects.create(app_label="gone", model="gone")
    node = runner.get_node()
    lost = Node.objects.create(
        title="Lost", version="1", configuration={}, content_type=nowhere, digest="1" * 64
    )
    run = Run.objects.filter(node=node).latest("pk")
    run.pk, run.node = None, lost
    run.save(force_insert=True)
    Scan.objects.order_by("pk").first().delete()
    Document.objects.create(title="title")
    nameless = declare(ANALYSIS="No such analysis", ANALYSIS_VERSION="1.0")
    task = type(admin.site._registry[PeriodicTask])
    admin.site.unregister(PeriodicTask)
    try:
        with installed(nameless):
            yield
    finally:
        admin.site.register(PeriodicTask, task)


@pytest.fixture
def user(client: Client) -> Client:
    client.force_login(scenes.add_user("root", is_superuser=True))
    return client


@pytest.mark.parametrize("site", [admin.site, other], ids=lambda site: site.name)
@pytest.mark.slow
def test_every_page_answers_and_links_to_pages_of_its_site(site, user: Client) -> None:
    found, linked = set(), set()
    row = Scan.objects.latest("pk").pk

    for name, address in admin_walk.addresses(site):
        page = user.get(address, {"row": row} if name == WHY else None)
        # 404 for a runner that is gone, 405 for what only a POST may do
        assert page.status_code in (200, 302, 404, 405), address
        if page.status_code == 404:  # only scans are in both sites
            assert REMOVED in address or (name == WHY and "PreprocessingRunner" not in address)
        elif page.status_code == 200:
            found.add(name)
            text = page.getvalue().decode() if page.streaming else page.text
            linked |= set(re.findall(r'href="(/[^"#]*)"', text))
    linked = {each.replace("&amp;", "&") for each in linked if not each.startswith("/static/")}

    assert len(found) >= 13
    root = "/admin/" if site is admin.site else "/other/"
    for link in sorted(linked - {"/", f"{root}logout/"}):
        assert link.startswith(root), link
        assert user.get(link).status_code in (200, 302), link


@pytest.mark.parametrize("site", [admin.site, other], ids=lambda site: site.name)
@pytest.mark.slow
def test_every_action_answers(site, user: Client) -> None:
    runs = list(Run.objects.values_list("pk", flat=True))
    everything = {"scope": "everything"}
    forms = [{}] + [
        {"action": name, "confirmed": "yes", **chosen}
        for name in ACTIONS
        for chosen in ({"ids": runs}, everything, {**everything, "runner": REMOVED})
    ]

    for name, address in admin_walk.addresses(site):
        for form in forms if name == "autorun_run_act" else [{}]:
            answer = user.post(address, form)

            assert answer.status_code in (200, 302, 404, 405), (address, form)
            if answer.status_code == 404:
                assert name == WHY or REMOVED in address
