"""Outputs that are landed by a sweep, because another version was in use when their runs ended."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, connections, transaction

from autorun.execution import unlanded
from autorun.execution.landing import note_unlanded
from autorun.models import Node, Run
from autorun.tasks import sweep
from tests.engine import installed, statuses, work_off
from tests.library.models import Document
from tests.test_candidate import fill, make, versions  # noqa: F401  a fixture
from tests.test_planning import has_somebody_waiting
from tests.waiting import until

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("versions")]

LANDING = {"OUTPUT_FIELDS": {"mean": "state"}}


def swept(runner):
    sweep(runner.get_label())
    work_off()


def test_a_version_that_another_runner_takes_up_is_landed_by_that_one_alone():
    fill(3)
    with installed(first := make(None, NAME="First", **LANDING)):
        swept(first)
    first = make(None, NAME="First", ANALYSIS_VERSION="1.1", **LANDING)
    second = make(None, NAME="Second", OUTPUT_FIELDS={"mean": "body"})
    with installed(first, second):
        for _ in range(2):
            swept(first)
            swept(second)
        Document.objects.update(body="edited")
        swept(first)
        swept(second)

    assert set(Document.objects.values_list("state", "body")) == {("4", "edited")}
    assert Node.objects.get(version="1.0").unlanded_at is None


def test_a_sweep_that_can_land_nothing_tries_one_page_and_the_next_sweep_all(set_constants, caplog):
    set_constants(unlanded, AT_ONCE=30)
    tried = set()

    def save_outputs(self, results):
        tried.update(each.key for each in results)
        if self.ANALYSIS_VERSION == "1.1" and not is_mended:
            raise ValueError("the table is gone")

    is_mended = True
    keys = {each.pk for each in fill(70)}
    for version in ("1.0", "1.1", "1.0"):
        with installed(runner := make(None, ANALYSIS_VERSION=version, save_outputs=save_outputs)):
            swept(runner)
    tried.clear()
    is_mended = False

    with installed(make(None, ANALYSIS_VERSION="1.1", save_outputs=save_outputs)):
        swept(runner)
        tried_at_first = len(tried)
        is_mended = True
        with caplog.at_level("INFO", logger="autorun.execution.unlanded"):
            swept(runner)

    assert tried_at_first == 30
    assert tried == keys
    assert "landed outputs of 70 runs" in caplog.text
    assert Run.objects.count() == 140


def test_rows_in_the_middle_that_cannot_be_landed_run_again_and_the_others_are_landed(
    set_constants, caplog
):
    set_constants(unlanded, AT_ONCE=20)
    landed = set()

    def save_outputs(self, results):
        if self.ANALYSIS_VERSION == "1.1" and {each.key for each in results} & bad:
            raise ValueError("it has no place")
        landed.update(each.key for each in results)

    bad: set[int] = set()
    keys = [each.pk for each in fill(70)]
    for version in ("1.0", "1.1", "1.0"):
        with installed(runner := make(None, ANALYSIS_VERSION=version, save_outputs=save_outputs)):
            swept(runner)
    bad.update(keys[20:40])
    landed.clear()

    with installed(runner := make(None, ANALYSIS_VERSION="1.1", save_outputs=save_outputs)):
        with caplog.at_level("INFO", logger="autorun.execution.unlanded"):
            sweep(runner.get_label())

        assert landed == {*keys} - bad
        assert runner().progress().unfinished == 20
    assert "landed outputs of 50 runs" in caplog.text
    assert not Node.objects.filter(version="1.1", unlanded_at__isnull=False)


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="it locks the whole database")
def test_a_row_that_the_project_holds_locked_runs_again():
    held, *_ = fill(2)
    for version in ("1.0", "1.1"):
        with installed(runner := make(None, ANALYSIS_VERSION=version, **LANDING)):
            swept(runner)

    with installed(make(None, **LANDING)):
        with transaction.atomic(), ThreadPoolExecutor() as pool:
            Document.objects.filter(pk=held.pk).update(body="being edited")
            pool.submit(lambda: (sweep(runner.get_label()), connections.close_all())).result()
        before = Node.objects.get(version="1.0").unlanded_at
        work_off()

    assert before is None
    assert set(Document.objects.values_list("state", flat=True)) == {"3"}
    assert len(statuses()) == 5


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="only it tells who waits for whom")
def test_the_time_until_which_outputs_are_not_landed_never_goes_back():
    with installed(runner := make(None, **LANDING)):
        nodes = Node.objects.filter(pk=runner().get_node().pk)

    def note():
        with transaction.atomic():
            note_unlanded(nodes)
        connection.close()

    with ThreadPoolExecutor(1) as other:
        with transaction.atomic():
            note_unlanded(nodes)
            noting = other.submit(note)
            until(has_somebody_waiting)
            note_unlanded(nodes)
            later = nodes.get().unlanded_at
        noting.result(timeout=10)

    assert nodes.get().unlanded_at > later
