"""AutorunAdminMixin on a model's own admin pages."""

import pytest
from django.contrib import admin
from django.contrib.admin.sites import AdminSite
from django.test import Client, RequestFactory
from django.urls import reverse

from autorun.admin import AutorunAdminMixin
from autorun.models import Run
from sample_app.models import Scan
from tests.browser import scenes
from tests.engine import declare, installed, work_off
from tests.library.models import Photo

pytestmark = pytest.mark.django_db

LABEL = "sample_app.ScanPreprocessingRunner"
CHANGELIST = "admin:sample_app_scan_changelist"


@pytest.fixture
def superuser(client: Client) -> Client:
    client.force_login(scenes.add_user("admin", is_superuser=True))
    return client


def test_the_list_shows_the_state_of_each_row(superuser) -> None:
    scenes.few()

    page = superuser.get(reverse(CHANGELIST)).content.decode()

    assert "Scan Preprocessing" in page
    assert "Anatomical Preprocessing" in page
    assert page.count("ar-state ar-succeeded") == 7
    assert page.count("ar-state ar-failed") == 5
    assert page.count("no run") == 22


def test_the_list_takes_two_queries_more_whatever_its_length(
    superuser, django_assert_max_num_queries
) -> None:
    scenes.few()
    superuser.get(reverse(CHANGELIST))

    with django_assert_max_num_queries(10):
        superuser.get(reverse(CHANGELIST))


@pytest.mark.parametrize(("state", "number"), [("pending", 2), ("failed", 5), ("succeeded", 7)])
def test_rows_are_filtered_by_state(state: str, number: int, superuser) -> None:
    scenes.few()

    response = superuser.get(reverse(CHANGELIST), {"autorun": f"{state}:{LABEL}"})

    assert response.context["cl"].result_count == number


def test_the_change_page_shows_the_runs_of_the_row(superuser) -> None:
    scenes.few()
    scan = Scan.objects.order_by("pk").first()

    page = superuser.get(reverse("admin:sample_app_scan_change", args=[scan.pk])).content.decode()
    why = superuser.get(reverse("admin:autorun_node_why", args=[LABEL]), {"row": scan.pk})

    run = Run.objects.get(object_id=scan.pk)
    assert reverse("admin:autorun_run_change", args=[run.pk]) in page
    assert "failed for good" in why.content.decode()


def test_a_change_is_saved_beside_the_panel(superuser) -> None:
    scenes.few()
    scan = Scan.objects.order_by("pk").first()
    form = {"path": scan.path, "description": "new", "size": 1, "checksum": "c" * 64}

    response = superuser.post(reverse("admin:sample_app_scan_change", args=[scan.pk]), form)

    assert response.status_code == 302
    assert Scan.objects.get(pk=scan.pk).description == "new"


def test_nothing_is_shown_to_those_who_may_not_view_runs(client) -> None:
    scenes.few()
    client.force_login(scenes.add_user("ada", "view_scan", "change_scan", "start_run"))
    scan = Scan.objects.first()

    listing = client.get(reverse(CHANGELIST)).content.decode()
    page = client.get(reverse("admin:sample_app_scan_change", args=[scan.pk])).content.decode()

    assert "ar-state" not in listing
    assert "Autorun" not in page
    assert "autorun_run__" not in listing


def test_a_model_with_keys_that_are_no_integers(rf: RequestFactory) -> None:
    class PhotoAdmin(AutorunAdminMixin, admin.ModelAdmin):
        pass

    photos = [Photo.objects.create(caption=str(n)) for n in range(3)]
    runner = declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
    site = AdminSite()
    with installed(runner):
        runner().run(Photo.objects.filter(pk=photos[0].pk))
        work_off()
        request = rf.get("/")
        request.user = scenes.add_user("admin", is_superuser=True)
        model_admin = PhotoAdmin(Photo, site)
        changelist = model_admin.get_changelist_instance(request)
        label = runner.get_label()
        states = {row.pk: row._autorun_states[label] for row in changelist.result_list}
        panel = model_admin.autorun_runs(photos[0])

    assert states[photos[0].pk][0] == "succeeded"
    assert states[photos[1].pk] is None
    assert "succeeded" in panel
