"""DEPENDS_ON: one runner after another on the same row."""

import pytest
from django.db.models import F

from autorun.clock import from_now
from autorun.execution.execute import execute
from autorun.execution.work import Work
from autorun.models import Chunk, Run
from autorun.registry import dependents
from autorun.rescue import rescue_expired
from autorun.tasks import plan
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db

by_python = {"get_instance_representation": lambda self, row: row.title, "INPUT_FIELDS": None}
PLANNERS = pytest.mark.parametrize(
    "options", [pytest.param({}, id="database"), pytest.param(by_python, id="python")]
)


def chain(**options):
    first = declare(NAME="First", TITLE="First")
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), **options)
    return first, second


@PLANNERS
def test_a_row_waits_for_the_runner_it_depends_on(options):
    Document.objects.create(title="a")
    first, second = chain(**options)
    with installed(first, second):
        assert second().run().planned == 0
        assert second().pending().count() == 0
        first().run()
        work_off()

        assert second().progress().succeeded == 1
        assert second().run().planned == 0


@PLANNERS
def test_each_new_success_makes_the_row_pending_again(options):
    document = Document.objects.create(title="a")
    first, second = chain(**options)
    with installed(first, second):
        first().run()
        work_off()
        first().backfill(force=True)
        work_off()

        assert Run.objects.filter(node=second().get_node()).count() == 2
        assert second().has_run(document)


def test_only_rows_that_succeeded_are_passed_on():
    def fail(value):
        if value == "bad":
            raise ValueError

    for title in ("good", "bad"):
        Document.objects.create(title=title)
    first = declare(fail, NAME="First", TITLE="First", MAX_ATTEMPTS=1)
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), ON_SAVE=False)
    with installed(first, second):
        first().run()
        work_off()

        assert second().progress().succeeded == 1


def test_what_was_recorded_before_the_lease_was_lost_is_passed_on(monkeypatch):
    monkeypatch.setattr("autorun.execution.work.WRITE_EVERY", 0)

    def lose_the_lease(value):
        if value == "b":
            Chunk.objects.update(token=F("token") + 1)

    for title in ("a", "b"):
        Document.objects.create(title=title)
    first = declare(lose_the_lease, NAME="First", TITLE="First")
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), ON_SAVE=False)
    with installed(first, second):
        first().run()
        execute(Chunk.objects.get().pk)

        assert first().progress().succeeded == 1
        assert Run.objects.filter(node=second().get_node()).count() == 1


def test_what_was_recorded_before_its_worker_died_is_passed_on(monkeypatch):
    monkeypatch.setattr("autorun.execution.work.WRITE_EVERY", 0)

    class Death(BaseException):
        """Stands for SIGKILL."""

    def die(value):
        if value == "b":
            monkeypatch.setattr(Work, "_run", killed)

    def killed(*_):
        raise Death

    for title in ("a", "b", "c"):
        Document.objects.create(title=title)
    first = declare(die, NAME="First", TITLE="First")
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), ON_SAVE=False)
    with installed(first, second):
        first().run()
        with pytest.raises(Death):
            execute(Chunk.objects.get().pk)
        Chunk.objects.update(expires_at=from_now(-1))
        rescue_expired(at_most=10)

        assert first().progress().succeeded == 2
        assert Run.objects.filter(node=second().get_node()).count() == 2


def test_a_runner_that_is_declared_wrongly_keeps_no_other_from_its_work(caplog):
    Document.objects.create(title="a")
    first, second = chain()
    broken = declare(NAME="Broken", TITLE="Third", DEPENDS_ON=("tests.Nobody", first))
    with installed(first, second, broken):
        broken.ANALYSIS, broken.ANALYSIS_VERSION = "Nothing", "1.0"
        plan("library.Document", [Document.objects.get().pk])
        work_off()

        assert second().progress().succeeded == 1
    assert "tests.Broken" in caplog.text


def test_a_runner_may_be_named_by_its_label_and_chains_are_long():
    Document.objects.create(title="a")
    first, second = chain()
    third = declare(NAME="Third", TITLE="Third", DEPENDS_ON=("tests.First", second))
    with installed(first, second, third):
        first().run()
        work_off()

        assert third().progress().succeeded == 1
        assert {runner.label for runner in dependents(first())} == {"tests.Second", "tests.Third"}
