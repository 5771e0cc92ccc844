"""AutorunAdminMixin on a model's own admin pages."""

import html
import re

import pytest
from django.contrib import admin
from django.contrib.admin.sites import AdminSite
from django.test import Client, RequestFactory
from django.urls import reverse

from autorun.admin import AutorunAdminMixin, row_states
from autorun.models import Run
from autorun.planning import windows
from sample_app.admin import ScanAdmin
from sample_app.models import Scan
from sample_app.runners import ScanPreprocessingRunner
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


@pytest.mark.parametrize("state", ["pending", "failed", "unheard-of"])
def test_a_state_for_the_runner_of_another_model_is_refused(state: str, superuser) -> None:
    scenes.few()
    other = declare()
    with installed(other):
        response = superuser.get(reverse(CHANGELIST), {"autorun": f"{state}:{other.get_label()}"})

    assert response.status_code == 302
    assert response["Location"].endswith("?e=1")


def test_pending_rows_are_looked_for_as_long_as_there_is_time(superuser, set_constants) -> None:
    set_constants(row_states, LOOKING_SECONDS=0)
    set_constants(windows, DATABASE_WINDOW=5)
    scenes.few()  # of 20 rows the last two are pending
    ScanPreprocessingRunner().adopt(Scan.objects.filter(pk=Scan.objects.last().pk))
    older = scenes.add_scans(12, first=30)
    ScanPreprocessingRunner().adopt(Scan.objects.filter(pk__in=[scan.pk for scan in older[1:]]))
    address, found = f"{reverse(CHANGELIST)}?autorun=pending:{LABEL}&q=scan", []
    for _ in range(20):
        response = superuser.get(address)
        found.append([row.pk for row in response.context["cl"].result_list])
        further = re.search(r'"([^"]*autorun_up_to[^"]*)">check the others', response.text)
        if further is None:
            break
        address = reverse(CHANGELIST) + html.unescape(further[1])

    pending = ScanPreprocessingRunner().pending()
    assert sorted(pk for page in found for pk in page) == [row.pk for row in pending]
    assert len(found) == 7
    assert found[0] == []


def test_more_pending_rows_than_a_list_holds_are_cut(superuser, set_constants) -> None:
    set_constants(row_states, MOST_KEYS=8)
    scans = scenes.add_scans(20)

    first = superuser.get(reverse(CHANGELIST), {"autorun": f"pending:{LABEL}"})
    rest = superuser.get(
        reverse(CHANGELIST),
        {"autorun": f"pending:{LABEL}", "autorun_up_to": scans[11].pk},
    )

    assert f"autorun_up_to={scans[11].pk}" in first.text
    assert {row.pk for row in first.context["cl"].result_list} == {each.pk for each in scans[12:]}
    assert {row.pk for row in rest.context["cl"].result_list} == {each.pk for each in scans[4:12]}


@pytest.mark.parametrize("up_to", ["nonsense", "", "-1"])
def test_nonsense_about_where_to_look_is_passed_over(up_to: str, superuser) -> None:
    scenes.few()

    response = superuser.get(
        reverse(CHANGELIST), {"autorun": f"pending:{LABEL}", "autorun_up_to": up_to}
    )

    assert response.status_code == 200


def misdirected(*args, **kwargs):
    raise ValueError("no such shelf")


@pytest.mark.parametrize("more", [{}, {"_facets": "True"}], ids=["rows", "facets"])
@pytest.mark.parametrize("hook", ["get_base_queryset", "filter_queryset"])
def test_pending_rows_of_a_runner_whose_hook_raises_are_none_and_why(superuser, hook, more) -> None:
    scenes.add_scans(1, first=1)

    with installed(declare(DATA_MODEL=Scan, INPUT_FIELDS=("path",), **{hook: misdirected})):
        query = {"autorun": "pending:tests.EchoRunner", **more}
        response = superuser.get(reverse(CHANGELIST), query)

    assert response.context["cl"].result_count == 0
    assert f"The runner cannot run: tests.EchoRunner: {hook}() raises" in response.text


def test_facets_count_all_pending_rows(superuser, set_constants) -> None:
    set_constants(row_states, LOOKING_SECONDS=0)
    set_constants(windows, DATABASE_WINDOW=1)
    scenes.few()

    response = superuser.get(reverse(CHANGELIST), {"_facets": "True"})

    assert "pending for Scan Preprocessing (2)" in response.text


def test_pending_rows_whose_keys_are_no_numbers(rf: RequestFactory, set_constants) -> None:
    class PhotoAdmin(AutorunAdminMixin, admin.ModelAdmin):
        pass

    set_constants(row_states, MOST_KEYS=2)
    for n in range(7):
        Photo.objects.create(caption=str(n))
    runner = declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
    found = []
    with installed(runner):
        up_to = ""
        user = scenes.add_user("admin", is_superuser=True)
        for _ in range(10):
            asked = {"autorun": f"pending:{runner.get_label()}", "autorun_up_to": up_to}
            request = rf.get("/", asked)
            request.user = user
            changelist = PhotoAdmin(Photo, AdminSite()).get_changelist_instance(request)
            found += [row.pk for row in changelist.result_list]
            up_to = changelist.autorun_found.up_to
            if not up_to:
                break

    assert len(found) == 7
    assert set(found) == set(Photo.objects.values_list("pk", flat=True))


def test_the_change_page_shows_the_runs_of_the_row(superuser) -> None:
    scenes.few()
    scan = Scan.objects.order_by("pk").first()

    page = superuser.get(reverse("admin:sample_app_scan_change", args=[scan.pk])).content.decode()
    why = superuser.get(reverse("admin:autorun_node_why", args=[LABEL]), {"row": scan.pk})

    run = Run.objects.get(object_id=scan.pk)
    assert reverse("admin:autorun_run_change", args=[run.pk]) in page
    assert "no attempts left" in why.content.decode()


def test_a_change_is_saved_beside_the_panel(superuser) -> None:
    scenes.few()
    scan = Scan.objects.order_by("pk").first()
    form = {"path": scan.path, "description": "new", "size": 1, "checksum": "c" * 64}

    response = superuser.post(reverse("admin:sample_app_scan_change", args=[scan.pk]), form)

    assert response.status_code == 302
    assert Scan.objects.get(pk=scan.pk).description == "new"


def test_the_panel_says_why_without_quoting_messages(superuser) -> None:
    runner = scenes.few()
    told = {}
    for status, words in (
        (Run.Status.SUCCEEDED, ", and the row has not changed since."),
        (Run.Status.FAILED, "(no attempts left)"),
    ):
        run = Run.objects.filter(node=runner.get_node(), status=status, is_current=True).first()
        page = superuser.get(reverse("admin:sample_app_scan_change", args=[run.object_id]))
        told[words] = page.content.decode()

    assert all(words in page for words, page in told.items())
    assert not any("has no pixel data" in page for page in told.values())


PICTURE = "data:image/png;base64,iVBORw0KGgo="


def give_all(value):
    return {"mean": 2.5, "thumbnail": PICTURE}


def give_nested(value):
    return {"regions": [{"name": "cortex"}]}


def test_the_panel_shows_results_as_results(client: Client) -> None:
    scan = Scan.objects.create(path="/a.nii", size=1, checksum="c")
    address = reverse("admin:sample_app_scan_change", args=[scan.pk])
    options = {"DATA_MODEL": Scan, "INPUT_FIELDS": ("size",)}
    flat = declare(give_all, **options)
    nested = declare(give_nested, NAME="NestedRunner", TITLE="Nested", **options)
    client.force_login(scenes.add_user("ada", "view_scan", "view_run", "view_payload"))

    with installed(flat, nested):
        for runner in (flat, nested):
            runner().run()
            work_off()
        first = client.get(address).content.decode()
        Scan.objects.update(size=2)
        flat().run()
        waiting = client.get(address).content.decode()
        work_off()
        again = client.get(address).content.decode()
        client.force_login(scenes.add_user("bob", "view_scan", "view_run"))
        hidden = client.get(address).content.decode()

    assert f'<img class="ar-picture" src="{PICTURE}" alt="thumbnail">' in first
    assert "<dt><code>mean</code></dt>" in first
    assert "&quot;cortex&quot;" in first
    assert "data-autorun-copied" in first
    assert "kept until its re-run has succeeded" not in first
    assert "kept until its re-run has succeeded" in waiting
    assert PICTURE in waiting
    assert "succeeded, superseded" in again
    assert "ar-picture" not in hidden
    assert "cortex" not in hidden


def test_nothing_is_shown_to_those_who_may_not_view_runs(client) -> None:
    scenes.few()
    client.force_login(scenes.add_user("ada", "view_scan", "change_scan", "start_run"))
    scan = Scan.objects.first()

    listing = client.get(reverse(CHANGELIST)).content.decode()
    page = client.get(reverse("admin:sample_app_scan_change", args=[scan.pk])).content.decode()

    assert "ar-state" not in listing
    assert "Autorun" not in page
    assert "autorun_run__" not in listing


@pytest.mark.parametrize("readonly", [(), ("autorun_runs",)])
def test_a_panel_in_the_projects_own_fieldset_is_for_those_who_may_view_runs(
    readonly: tuple[str, ...], client, monkeypatch
) -> None:
    scenes.few()
    placed = [(None, {"fields": ["path", "size", "checksum", "autorun_runs"]})]
    monkeypatch.setattr(ScanAdmin, "fieldsets", placed)
    monkeypatch.setattr(ScanAdmin, "readonly_fields", readonly)
    row = reverse("admin:sample_app_scan_change", args=[Scan.objects.first().pk])
    new = reverse("admin:sample_app_scan_add")
    shown = {}
    for name, *more in (("eve", "view_scan"), ("ada", "add_scan", "change_scan")):
        for runs in ((), ("view_run",)):
            client.force_login(scenes.add_user(f"{name}{len(runs)}", *more, *runs))
            pages = [client.get(address) for address in (row, new)]
            assert [page.status_code for page in pages] == [200, 403 if name == "eve" else 200]
            shown[name, *runs] = ["Scan Preprocessing v1.0" in page.text for page in pages]

    assert shown == {
        (name, *runs): [bool(runs), False]
        for name in ("eve", "ada")
        for runs in ((), ("view_run",))
    }


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
        rows = list(changelist.result_list)
        shown = [changelist.list_display[-1](photo) for photo in rows]
        model_admin.get_readonly_fields(request, photos[0])
        panel = model_admin.autorun_runs(photos[0])

    assert ["succeeded" in each for each in shown] == [photo == photos[0] for photo in rows]
    assert "succeeded" in panel


def without_its_address(self):
    raise KeyError("SCANNER_URL")


BROKEN = pytest.mark.parametrize(
    "options",
    [
        {"ANALYSIS": "Nobody's", "ANALYSIS_VERSION": "1.0"},
        {"create_configuration": without_its_address},
    ],
    ids=["analysis", "configuration"],
)


@BROKEN
def test_a_runner_that_cannot_run_has_a_column_that_says_so(superuser, options) -> None:
    scenes.few()
    with installed(declare(DATA_MODEL=Scan, INPUT_FIELDS=(), **options)):
        page = superuser.get(reverse(CHANGELIST)).content.decode()

    assert page.count("cannot run</span>") == Scan.objects.count()
    assert page.count("ar-state ar-succeeded") == 7


@BROKEN
@pytest.mark.parametrize("state", ["pending", "failed", "succeeded"])
def test_no_rows_are_found_for_a_runner_that_cannot_run(superuser, options, state) -> None:
    scenes.few()
    with installed(declare(DATA_MODEL=Scan, INPUT_FIELDS=(), **options)):
        response = superuser.get(reverse(CHANGELIST), {"autorun": f"{state}:tests.EchoRunner"})

    assert response.context["cl"].result_count == 0
    assert "The runner cannot run: " in html.unescape(response.text)


def test_a_runner_whose_model_is_none_is_about_no_rows(superuser) -> None:
    scenes.few()
    with installed(declare(DATA_MODEL="sample_app.Scan")):
        page = superuser.get(reverse(CHANGELIST)).content.decode()

    assert page.count("ar-state ar-succeeded") == 7
