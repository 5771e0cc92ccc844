"""AutorunAdminMixin on the list of a model that very many runners process."""

import re

import pytest
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.sites import AdminSite
from django.contrib.auth.models import User
from django.test import RequestFactory
from django.urls import reverse

from autorun.admin import AutorunAdminMixin
from autorun.exceptions import NotRegistered
from autorun.models import Run
from sample_app.models import Scan
from tests.browser.scenes import add_user
from tests.engine import declare, installed, work_off

pytestmark = pytest.mark.django_db
MANY = 12


@pytest.fixture
def runners():
    options = {"DATA_MODEL": Scan, "INPUT_FIELDS": ("size",)}
    found = [declare(NAME=f"Runner{n:02}", TITLE=f"Title{n}", **options) for n in range(MANY)]
    Scan.objects.bulk_create(Scan(path=f"/{n}.nii", size=n) for n in range(3))
    with installed(*found):
        yield found


def changelist(rf: RequestFactory, query="", **attributes):
    bases = (AutorunAdminMixin, admin.ModelAdmin)
    model_admin = type("ScanAdmin", bases, attributes)(Scan, AdminSite())
    request = rf.get(f"/{query}")
    request.user = User(is_superuser=True, is_active=True, is_staff=True)
    return model_admin.get_changelist_instance(request)


def choices(found):
    (spec,) = found.filter_specs
    return [each["display"] for each in spec.choices(found)]


def test_many_runners_share_a_column_with_the_worst_state_first(runners, rf):
    for runner in runners[:5]:
        runner().run()
        work_off()
    one = Scan.objects.first()
    worst = Run.objects.filter(object_id=one.pk).order_by("pk").first()
    Run.objects.filter(pk=worst.pk).update(status=Run.Status.FAILED)

    found = changelist(rf)
    column = found.list_display[-1]
    row = next(each for each in found.result_list if each.pk == one.pk)
    words = re.sub("<[^>]*>", " ", column(row)).split()

    assert column.short_description == "Autorun"
    assert " ".join(words).startswith("1 failed 4 succeeded")
    assert "without a run" in " ".join(words)


def test_the_filter_asks_for_the_runner_and_then_for_the_state(runners, rf):
    runners[3]().run(Scan.objects.filter(size=0))
    work_off()
    label = runners[3].get_label()

    first = choices(changelist(rf))
    then = changelist(rf, f"?autorun=:{label}")
    done = changelist(rf, f"?autorun=succeeded:{label}")

    assert len(first) > MANY
    assert any(each.startswith("Runner") for each in first)
    assert len(choices(then)) == 5
    assert then.result_count == 3
    assert [each.size for each in done.result_list] == [0]
    with pytest.raises(IncorrectLookupParameters):
        changelist(rf, "?autorun=gone:nobody")


def test_the_list_is_about_the_runners_that_are_named(runners, rf):
    named = [runners[1], runners[2].get_label()]

    found = changelist(rf, autorun_runners=named)

    columns = [each.label for each in found.list_display if hasattr(each, "label")]
    assert columns == [runners[1].get_label(), runners[2].get_label()]
    assert len(choices(found)) == 7
    with pytest.raises(NotRegistered, match=r"scans\.Gone"):
        changelist(rf, autorun_runners=["scans.Gone"])


def test_e046_a_list_that_names_something_else_than_a_runner_of_its_model(runners):
    other = declare()  # of another model
    named = [runners[1], "tests.Runer02", other.get_label()]
    bases = (AutorunAdminMixin, admin.ModelAdmin)
    scan_admin = type("ScanAdmin", bases, {"autorun_runners": named})(Scan, AdminSite())

    with installed(other):
        misspelt, foreign = scan_admin.check()

    assert {misspelt.id, foreign.id} == {"autorun.E046"}
    assert "names 'tests.Runer02', which is not a runner of sample_app.Scan." in misspelt.msg
    assert misspelt.hint == "Did you mean 'tests.Runner02'?"
    assert "'tests.EchoRunner'" in foreign.msg
    assert foreign.hint


def test_e046_a_string_in_place_of_a_list(runners):
    bases = (AutorunAdminMixin, admin.ModelAdmin)
    scan_admin = type("ScanAdmin", bases, {"autorun_runners": "tests.Runner02"})(Scan, AdminSite())

    (found,) = scan_admin.check()

    assert (found.id, found.hint) == ("autorun.E046", "Write ['tests.Runner02'].")


def test_one_action_leads_to_the_choice_of_a_runner(runners, client):
    client.force_login(add_user("ada", "view_scan", "change_scan", "view_run", "start_run"))
    address = reverse("admin:sample_app_scan_changelist")
    ticked = {"action": "autorun_run", "_selected_action": [Scan.objects.first().pk]}

    page = client.get(address).content.decode()
    chosen = client.post(address, ticked, follow=True)
    prepare = reverse("admin:autorun_batch_prepare", args=[runners[0].get_label()])
    link = re.search(re.escape(prepare) + r"[^\"]*", chosen.content.decode())[0]
    preview = client.get(link.replace("&amp;", "&"))

    assert page.count('value="autorun_run') == 1
    assert "The row that you selected." in preview.content.decode()


def test_the_choice_of_a_runner_for_rows_that_are_forgotten_starts_over(runners, client):
    client.force_login(add_user("ada", "view_run", "start_run"))

    gone = client.get(reverse("admin:autorun_batch_choose") + "?selection=gone")
    bare = client.get(reverse("admin:autorun_batch_choose"))

    assert (gone.status_code, bare.status_code) == (302, 403)
