"""compare: how the results of two versions differ, on the rows that both have run on."""

import json
import statistics
import time
from decimal import Decimal
from io import StringIO
from typing import TypedDict

import pytest
from django.contrib import admin
from django.contrib.admin import AdminSite
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from autorun.admin import result_pages
from autorun.analysis import Analysis
from autorun.declare import page_time
from autorun.models import Node, Run
from autorun.observe import comparison
from autorun.observe.comparison import Difference
from autorun.runner import Candidate
from tests.engine import declare, installed, work_off
from tests.library.models import Country, Document

pytestmark = pytest.mark.django_db
BEFORE = {
    "000": {"size": {"mean": 10, "name": "a"}, "tags": [1, 2], "ok": True},
    "001": {"size": {"mean": 20.5, "name": "b"}, "tags": [], "ok": True},
    "002": {"size": {"mean": 30, "name": "c"}, "tags": [3], "ok": False},
    "003": {"size": {"mean": 40, "name": "d"}, "tags": [], "ok": None},
    "004": ValueError("before"),
    "005": {"size": {"mean": 60, "name": "f"}, "tags": [], "ok": True},
    "006": ValueError("both"),
}
AFTER = {
    "000": {"tags": [1, 2], "ok": True, "size": {"name": "a", "mean": 10.0}},
    "001": {"size": {"mean": 21, "name": "b"}, "tags": [], "ok": True},
    "002": {"size": {"mean": -30, "name": "C"}, "tags": [3], "ok": False},
    "003": {"size": {"name": "d"}, "tags": [0], "ok": None},
    "004": {"size": {"mean": 50, "name": "e"}, "tags": [], "ok": True},
    "005": ValueError("after"),
    "006": ValueError("both"),
}


def returning(outputs):
    def body(value):
        found = outputs[value]
        if isinstance(found, Exception):
            raise found
        return found

    return body


@pytest.fixture
def make(monkeypatch):
    from autorun import analysis as analyses

    def made(before=BEFORE, after=AFTER, **options):
        for version, outputs in (("1.0", before), ("1.1", after)):
            known = Analysis("Tried", version, returning(outputs))
            monkeypatch.setitem(analyses._registry, ("Tried", version), known)
        defaults = {
            "ANALYSIS": "Tried",
            "ANALYSIS_VERSION": "1.0",
            "CANDIDATE": Candidate("1.1", share=1),
            "MAX_ATTEMPTS": 1,
        }
        return declare(**defaults | options)

    return made


def compared(runner, *versions, titles=BEFORE, **options):
    for title in titles:
        Document.objects.create(title=title)
    runner().run()
    work_off()
    return runner().compare(*versions, **options)


def test_rows_are_counted_by_how_their_results_compare(make):
    with installed(runner := make()):
        found = compared(runner, "1.0", "1.1")

    assert (found.before, found.after) == ("1.0", "1.1")
    assert (found.same, found.different) == (1, 3)
    assert (found.newly_failed, found.newly_fixed, found.other_input) == (1, 1, 0)


def test_each_output_has_its_medians_and_the_rows_that_differ_most(make):
    with installed(runner := make()):
        found = compared(runner)
    keys = list(Document.objects.order_by("pk").values_list("pk", flat=True))
    outputs = {each.name: each for each in found.outputs}
    mean, name, tags, ok = (outputs[each] for each in ("size.mean", "size.name", "tags", "ok"))

    assert (mean.median_before, mean.median_after) == (25.25, 10)
    assert mean.different == 3
    assert Difference(keys[3], 40, None) in mean.rows
    by_number = [each for each in mean.rows if each.after is not None]
    assert by_number == [Difference(keys[2], 30, -30), Difference(keys[1], 20.5, 21)]
    assert (name.different, name.rows) == (1, (Difference(keys[2], "c", "C"),))
    assert (tags.different, tags.rows) == (1, (Difference(keys[3], [], [0]),))
    assert (name.median_before, ok.different, ok.rows) == (None, 0, ())


@pytest.mark.parametrize(("tolerance", "different"), [(0.02, 3), (0.03, 2)])
def test_numbers_within_the_tolerance_are_the_same(make, tolerance, different):
    with installed(runner := make()):
        found = compared(runner, tolerance=tolerance)

    assert found.different == different


@pytest.mark.parametrize("number", [1, 2, 7, 8])
def test_a_lone_number_is_an_output(make, number):
    before = {f"{n:03}": n * n for n in range(number)}
    after = {title: value + 1 for title, value in before.items()}
    with installed(runner := make(before, after)):
        found = compared(runner, titles=before)
    (output,) = found.outputs

    assert (output.name, output.different, len(output.rows)) == ("outputs", number, min(number, 5))
    assert output.median_before == statistics.median(before.values())
    assert output.median_after == statistics.median(after.values())


class Price(TypedDict):
    price: Decimal


def test_declared_decimals_are_numbers(make, monkeypatch):
    before = {"000": {"price": "9.50"}, "001": {"price": "10"}}
    after = {"000": {"price": "9.5"}, "001": {"price": "-10"}}
    with installed(runner := make(before, after)):
        monkeypatch.setattr(Analysis, "return_annotation", Price)
        found = compared(runner, titles=before)
    (output,) = found.outputs

    assert (found.same, found.different) == (1, 1)
    assert (output.median_before, output.median_after) == (9.75, -0.25)
    assert [(each.before, each.after) for each in output.rows] == [("10", "-10")]


def test_rows_that_have_changed_in_between_are_not_compared(make):
    with installed(runner := make(CANDIDATE=None)):
        compared(runner, "1.0", "1.0")
    Document.objects.filter(title="001").update(title="003")
    with installed(raised := make(ANALYSIS_VERSION="1.1", CANDIDATE=None)):
        raised().run()
        work_off()
        found = raised().compare("1.0", "1.1")

    assert (found.other_input, found.same, found.different) == (1, 1, 2)


@pytest.mark.parametrize(("tolerance", "same"), [(0.02, 0), (0.03, 1)])
def test_numbers_in_lists_have_the_tolerance_too(make, tolerance, same):
    with installed(runner := make({"000": [1, [40.0, "a"]]}, {"000": [1, [41, "a"]]})):
        assert compared(runner, tolerance=tolerance, titles=["000"]).same == same


def test_true_is_not_one_and_numbers_may_be_larger_than_any_float(make):
    with installed(runner := make({"000": True, "001": 10**400}, {"000": 1, "001": 10**400})):
        found = compared(runner, titles=["000", "001"])

    assert (found.same, found.different) == (1, 1)


@pytest.mark.parametrize("page", [1, 2, 3])
def test_all_pages_are_compared_and_the_smaller_version_leads(make, monkeypatch, page):
    monkeypatch.setattr(comparison, "PAGE", page)
    with installed(runner := make()):
        found = compared(runner)
        Run.objects.filter(node__version="1.1").earliest("pk").delete()
        fewer = runner().compare()

    assert (found.same, found.different, found.newly_fixed) == (1, 3, 1)
    assert (fewer.same, fewer.different, fewer.newly_fixed) == (0, 3, 1)


def test_medians_of_many_rows_are_those_of_a_sample(make, monkeypatch):
    monkeypatch.setattr(comparison, "MOST_EXACT", 199)
    monkeypatch.setattr(comparison, "SAMPLED", 20)
    numbers = {f"{n:03}": n for n in range(200)}
    with installed(runner := make(numbers, {title: n + 1 for title, n in numbers.items()})):
        (output,) = compared(runner, titles=numbers).outputs

        assert runner().compare().outputs == (output,)
    assert output.different == 200
    assert output.median_after == output.median_before + 1
    assert abs(output.median_before - 100) < 50


def test_text_keys_and_other_configurations(make, monkeypatch):
    monkeypatch.setattr(comparison, "PAGE", 1)
    by_factor = {"000": 1, "001": 2}

    def scaled(value, *, factor=1):
        return by_factor[value] * factor

    tried = Candidate("1.0", share=1, configuration={"factor": 3})
    options = {"DATA_MODEL": Country, "INPUT_FIELDS": ("name",), "CANDIDATE": tried}
    for title in by_factor:
        Country.objects.create(code=f"x{title}", name=title)
    with installed(runner := declare(scaled, **options)):
        runner().run()
        work_off()
        (output,) = runner().compare().outputs

    assert output.rows == (Difference("x001", 2, 6), Difference("x000", 1, 3))


def test_few_statements_whatever_the_number_of_rows(make, django_assert_max_num_queries):
    with installed(runner := make()):
        compared(runner)
        with django_assert_max_num_queries(15):
            runner().compare()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("1.0", "9.9"), "no results of version '9.9', only of 1.0, 1.1"),
        ((None, None, 2), "tolerance is 2"),
    ],
)
def test_what_cannot_be_compared_is_named(make, arguments, told):
    *versions, tolerance = arguments if len(arguments) == 3 else (*arguments, 0)
    with installed(runner := make()):
        compared(runner)
        with pytest.raises(ValueError, match=told):
            runner().compare(*versions, tolerance=tolerance)


def test_without_a_candidate_versions_are_asked_for(make):
    with installed(runner := make(CANDIDATE=None)), pytest.raises(ValueError, match="CANDIDATE"):
        runner().compare()


def test_the_command_prints_and_writes_json(make):
    text, written = StringIO(), StringIO()
    with installed(runner := make()):
        compared(runner)
        label = runner.get_label()
        call_command("autorun", "compare", label, stdout=text)
        call_command("autorun", "compare", label, "1.0", "1.1", "--format=json", stdout=written)
        with pytest.raises(CommandError, match="both versions"):
            call_command("autorun", "compare", label, "1.0")
        with pytest.raises(CommandError, match="no results"):
            call_command("autorun", "compare", label, "1.0", "3")

    told = " ".join(text.getvalue().split())  # whatever the width
    assert "1 same, 3 different, 1 newly failed, 1 newly fixed" in told
    assert "size.mean" in told
    found = json.loads(written.getvalue())
    assert (found["same"], found["outputs"][1]["name"]) == (1, "size.mean")


def page_of(runner, *permissions):
    client, user = Client(), User.objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=("view_run", *permissions)))
    client.force_login(user)
    url = reverse("admin:autorun_node_compare", args=[runner.get_label()])
    client.get(url)  # from then on the process knows the ids of the nodes
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(url)
    assert answer.status_code == 200
    return answer, len(captured)


def test_the_page_compares_the_candidate_within_few_statements(make):
    with installed(runner := make()):
        compared(runner)
        answer, statements = page_of(runner, "view_payload", "view_document")
        client = Client()
        client.force_login(User.objects.get())
        of_runner = client.get(reverse("admin:autorun_node_runner", args=[runner.get_label()]))
    text = answer.content.decode()

    assert "v1.0 and v1.1" in text
    assert "<dt>Different</dt><dd>3</dd>" in text
    assert "size.mean" in text
    assert "25.25" in text
    assert f"row={Document.objects.order_by('pk')[2].pk}" in text
    assert statements <= 12
    assert "Compare versions" in of_runner.content.decode()
    assert '<span class="ar-tag">candidate</span>' in of_runner.content.decode()


def test_the_page_shows_pictures_side_by_side_and_names_the_rows(make):
    with installed(runner := make()):
        compared(runner)
        for run in Run.objects.succeeded():
            outputs = {"slice": f"data:image/png;base64,AAA{run.pk % 10}"}
            Run.objects.filter(pk=run.pk).update(outputs=outputs)
        text = page_of(runner, "view_payload", "view_document")[0].text

    assert text.count('<img class="ar-picture" src="data:image/png;base64,AAA') >= 2
    assert f">{Document.objects.order_by('pk').first()}</a>" in text


def test_the_page_shows_the_start_of_large_outputs(make):
    nested = "deep"
    for _ in range(8):
        nested = [nested] * 2
    with installed(runner := make()):
        compared(runner)
        for run in Run.objects.succeeded():
            outputs = {f"of {n}": [run.pk, nested] for n in range(20)}
            Run.objects.filter(pk=run.pk).update(outputs=outputs)
        answer = page_of(runner, "view_payload", "view_document")[0]

    assert "of 19" in answer.text
    assert len(answer.content) < 300_000


def test_the_page_names_the_command_if_a_comparison_takes_long(make, set_constants):
    def execute_slowly(execute, sql, params, many, context):
        if "a.outputs = b.outputs" in sql:
            time.sleep(5)
        return execute(sql, params, many, context)

    set_constants(page_time, SECONDS=0.05)
    with installed(runner := make()):
        compared(runner)
        with connection.execute_wrapper(execute_slowly):
            text = page_of(runner)[0].text

    assert f"manage.py autorun compare {runner.get_label()} 1.0 1.1" in text


@pytest.mark.parametrize("permissions", [(), ("view_payload",), ("view_document",)])
def test_outputs_are_on_the_page_for_those_who_may_see_them(make, permissions):
    with installed(runner := make()):
        compared(runner)
        text = page_of(runner, *permissions)[0].content.decode()

    assert "<dt>Different</dt><dd>3</dd>" in text
    assert "size.mean" not in text
    assert "25.25" not in text


@pytest.mark.parametrize("shown", ["003", "none"])
def test_the_page_tells_nothing_of_rows_that_the_admin_hides(make, shown):
    class OwnRows(admin.ModelAdmin):
        def get_queryset(self, request):
            return super().get_queryset(request).filter(title=shown)

    site = AdminSite("elsewhere")
    site.register(Document, OwnRows)

    try:
        with installed(runner := make()):
            compared(runner)
            text = page_of(runner, "view_payload", "view_document")[0].content.decode()
    finally:
        site.unregister(Document)  # Django knows the site for as long as anything refers to it

    assert "25.25" not in text
    assert "size.name" not in text
    assert ("size.mean" in text) is (shown == "003")


def test_without_a_candidate_the_page_compares_the_version_before(make):
    with installed(runner := make(CANDIDATE=None)):
        assert "no other version" in page_of(runner)[0].content.decode()
        assert not Node.objects.exists()
        compared(runner, "1.0", "1.0")
    User.objects.all().delete()
    with installed(raised := make(ANALYSIS_VERSION="1.1", CANDIDATE=None)):
        raised().run()
        work_off()
        text = page_of(raised)[0].content.decode()

    assert "v1.0 and v1.1" in text
    assert "<dt>Newly fixed</dt><dd>1</dd>" in text


def test_a_version_without_results_is_told_of(make):
    with installed(runner := make(CANDIDATE=None)):
        runner().get_node()
    with installed(raised := make(ANALYSIS_VERSION="1.1", CANDIDATE=None)):
        raised().run()
        work_off()
        text = page_of(raised)[0].content.decode()

    assert "No row has a result of both versions." in text


def test_the_page_of_many_runs_names_the_command(make, monkeypatch):
    monkeypatch.setattr(result_pages, "MOST_COMPARED", 3)
    with installed(runner := make()):
        compared(runner)
        text = page_of(runner)[0].content.decode()

    assert f"manage.py autorun compare {runner.get_label()} 1.0 1.1" in text


def test_the_results_of_both_versions_are_read_once(make):
    with installed(runner := make()):
        compared(runner)
        with CaptureQueriesContext(connection) as queries:
            found = runner().compare()
    joins = [each["sql"] for each in queries if " b ON " in each["sql"]]

    assert (found.same, found.different) == (1, 3)
    assert ["status" in each for each in joins] == [True, False]
