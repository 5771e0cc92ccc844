"""Tools for users' own tests: process rows inline, and assert what is pending or ran."""

import importlib.metadata
import os
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
from django.db import transaction
from django.test import TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext

from autorun import analysis as analyses
from autorun.analysis import analysis
from autorun.control.interventions import pause_runner
from autorun.declare import registry
from autorun.exceptions import NotRegistered
from autorun.models import Chunk, Run, SpilledTrigger
from autorun.runner import QuerySetRunner
from autorun.testing import AutorunFixture, AutorunTestCase
from tests.engine import declare
from tests.library.models import Document

CHECKOUT = Path(__file__).resolve().parent.parent


def shout(value: str) -> dict[str, str]:
    if not value:
        raise ValueError("There is nothing to shout.")
    return {"shouted": value.upper()}


Shouting = declare(shout, TITLE="Shout", NAME="ShoutRunner")
#: Runs after the other one, on the same row.
Echoing = declare(lambda value: value, TITLE="Echo", NAME="EchoRunner", DEPENDS_ON=[Shouting])


class SavedRowTests(AutorunTestCase, TestCase):
    """In a TestCase, where nothing is ever committed."""

    def setUp(self) -> None:
        self.register(Shouting)

    def test_a_saved_row_is_processed_before_save_returns(self):
        with self.run_inline():
            document = Document.objects.create(title="hey")
            self.assert_ran(Shouting, document, outputs={"shouted": "HEY"})

    def test_every_save_counts(self):
        with self.run_inline():
            document = Document.objects.create(title="hey")
            document.title = "ho"
            document.save()

        self.assert_ran(Shouting, document, outputs={"shouted": "HO"})
        assert Run.objects.count() == 2

    def test_a_save_in_an_atomic_block_is_processed_when_it_is_left(self):
        with self.run_inline():
            with transaction.atomic():
                document = Document.objects.create(title="hey")
                other = Document.objects.create(title="ho")
                self.assert_pending(Shouting, document, other)
            self.assert_ran(Shouting, document)
            self.assert_ran(Shouting, other)

    def test_a_rolled_back_save_is_not_processed(self):
        with self.run_inline():
            kept = Document.objects.create(title="kept")
            with suppress(ZeroDivisionError), transaction.atomic():
                Document.objects.create(title="lost")
                raise ZeroDivisionError

        self.assert_ran(Shouting, kept)
        assert Run.objects.count() == 1

    def test_saves_without_savepoints_are_processed_at_the_end_at_the_latest(self):
        with self.run_inline(), transaction.atomic(savepoint=False):
            document = Document.objects.create(title="hey")

        self.assert_ran(Shouting, document)

    def test_what_was_saved_before_the_block_waits(self):
        before = Document.objects.create(title="before")
        with self.run_inline():
            within = Document.objects.create(title="within")

        self.assert_pending(Shouting, before)
        self.assert_ran(Shouting, within)

    def test_runs_and_backfills_are_processed_inline(self):
        Document.objects.create(title="a")
        with self.run_inline():
            Shouting().run()
            assert Shouting().progress().succeeded == 1
            Shouting().backfill(force=True)

        assert Run.objects.filter(status=Run.Status.SUCCEEDED).count() == 2

    def test_what_depends_on_it_follows(self):
        with self.registered(Echoing), self.run_inline():
            document = Document.objects.create(title="hey")

            self.assert_ran(Echoing, document, outputs="hey")

    def test_hooks_of_the_project_are_left_alone(self):
        called: list[str] = []
        with self.captureOnCommitCallbacks() as callbacks, self.run_inline():
            transaction.on_commit(lambda: called.append("mine"))
            document = Document.objects.create(title="hey")

        assert called == []
        assert len(callbacks) == 1
        self.assert_ran(Shouting, document)

    def test_after_the_block_saves_wait_for_their_commit_again(self):
        with self.run_inline():
            pass
        with self.captureOnCommitCallbacks() as callbacks:
            document = Document.objects.create(title="hey")

        assert len(callbacks) == 1
        self.assert_pending(Shouting, document)

    def test_blocks_may_stand_inside_of_each_other(self):
        with self.run_inline():
            first = Document.objects.create(title="a")
            with transaction.atomic(), self.run_inline():
                second = Document.objects.create(title="b")
                self.assert_ran(Shouting, second)
            third = Document.objects.create(title="c")

        for each in (first, second, third):
            self.assert_ran(Shouting, each)


class ClassDataTests(AutorunTestCase, TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        with registry.registered(Shouting):
            cls.document = Document.objects.create(title="hey")

    def setUp(self) -> None:
        self.register(Shouting)

    def test_work_off_finds_it(self):
        self.work_off()

        self.assert_ran(Shouting, self.document)

    def test_work_off_finds_it_in_every_test(self):
        self.work_off()

        self.assert_ran(Shouting, self.document)


class CommittedTests(AutorunTestCase, TransactionTestCase):
    """Where saves are committed, and a publisher would hand them to a broker."""

    def setUp(self) -> None:
        self.register(Shouting)

    def test_a_committed_row_is_processed(self):
        with self.run_inline():
            with transaction.atomic():
                document = Document.objects.create(title="hey")
                self.assert_pending(Shouting, document)
            self.assert_ran(Shouting, document)

        assert not SpilledTrigger.objects.exists()

    def test_rows_that_no_broker_took_are_worked_off(self):
        document = Document.objects.create(title="hey")
        SpilledTrigger.objects.create(model_label="library.Document", keys=[document.pk])

        self.work_off()

        self.assert_ran(Shouting, document)


def test_work_off_plans_what_was_saved_and_executes_it(autorun):
    autorun.register(Shouting)
    document = Document.objects.create(title="hey")
    autorun.assert_pending(Shouting, document)

    assert autorun.work_off() == 1

    autorun.assert_not_pending(Shouting, document)
    autorun.assert_ran(Shouting, document, outputs={"shouted": "HEY"})


def test_work_off_executes_what_run_has_planned(autorun):
    autorun.register(Shouting)
    Document.objects.create(title="hey")
    Shouting().run()

    assert Chunk.objects.get().state == Chunk.State.QUEUED
    assert autorun.work_off() == 1
    assert autorun.work_off() == 0


def test_work_off_uses_up_the_attempts_where_asked_to(autorun):
    autorun.register(Shouting)
    document = Document.objects.create(title="")
    autorun.work_off()
    with pytest.raises(AssertionError, match="for attempt 2 of 3"):
        autorun.assert_failed(Shouting, document)

    autorun.work_off(retry_now=True)

    failure = autorun.assert_failed(Shouting, document, exception=ValueError)
    assert failure.attempt == 3
    assert failure.message == "There is nothing to shout."


def test_work_off_gives_up_on_what_never_ends(autorun):
    def again(value):
        Document.objects.get(updated_at=value).save()
        return value

    runner = declare(again, NAME="AgainRunner", INPUT_FIELDS=("updated_at",))
    autorun.register(runner)
    Document.objects.create(title="hey")

    with pytest.raises(RuntimeError, match=r"after 2 rounds, for tests\.AgainRunner\. A body that"):
        autorun.work_off(rounds=2)
    with pytest.raises(RuntimeError, match=r"after 1 round, .*`work_off\(rounds=\.\.\.\)`"):
        autorun.work_off(rounds=1)


def test_work_off_needs_no_round_to_see_that_all_is_done(autorun):
    autorun.register(Shouting)
    Document.objects.create(title="hey")

    assert autorun.work_off(rounds=1) == 1
    assert autorun.work_off(rounds=0) == 0


def test_a_runner_is_registered_until_the_test_ends(autorun):
    label = Shouting.get_label()
    with autorun.registered(Shouting):
        assert type(registry.get(label)) is Shouting
    with pytest.raises(NotRegistered):
        registry.get(label)


@pytest.fixture
def nothing_declared_is_left() -> Iterator[None]:
    before = analyses.registered()
    yield
    assert analyses.registered() == before


@pytest.mark.usefixtures("nothing_declared_is_left")
@pytest.mark.parametrize("greeting", ["hey", "ho"])
def test_what_a_test_declares_before_it_registers_is_forgotten(autorun, greeting):
    @analysis("Greet", version="1.0")
    def greet(value):
        return greeting

    autorun.register(declare(TITLE="Greet", NAME="GreetRunner", ANALYSIS=greet))

    assert analyses.get("Greet", "1.0").function is greet


def test_what_a_test_case_declares_is_forgotten():
    class Case(AutorunTestCase):
        def setUp(self):
            analysis("Greet", version="1.0")(shout)

        def test(self):
            assert analyses.get("Greet", "1.0").function is shout

    before = analyses.registered()
    result = Case("test").run()

    assert result.wasSuccessful()
    assert result.testsRun == 1
    assert analyses.registered() == before


def test_what_a_module_declares_that_a_test_imports_first_stays(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_analyses.py").write_text(
        "from autorun.analysis import analysis\n"
        "@analysis('Late', version='1')\n"
        "def late(): ...\n"
        "def declare():\n"
        "    @analysis('Later', version='1')\n"
        "    def later(): ...\n"
    )
    before = analyses.registered()
    with patch.dict(sys.modules), analyses.temporarily_registered():
        with AutorunFixture():
            import_module("late_analyses").declare()

        assert [str(each) for each in analyses.registered() if each not in before] == ["Late v1"]


def test_the_assertions_take_a_class_an_instance_or_a_label(autorun):
    autorun.register(Shouting)
    document = Document.objects.create(title="hey")

    autorun.assert_pending(Shouting, document)
    autorun.assert_pending(Shouting(), document)
    autorun.assert_pending("tests.ShoutRunner", document)


@pytest.mark.parametrize("name", ["pending", "not_pending", "ran", "failed"])
@pytest.mark.parametrize("given", [Document, shout, None])
def test_the_assertions_take_no_other_runner(autorun, name, given):
    autorun.register(Shouting)

    match = r"is not a runner class.* class, instance or label\. Registered: .*tests\.ShoutRunner"
    with pytest.raises(TypeError, match=match):
        getattr(autorun, f"assert_{name}")(given, Document())
    with pytest.raises(NotRegistered, match=r"registered as 'library\.Nope'\. Registered: "):
        getattr(autorun, f"assert_{name}")("library.Nope", Document())


@pytest.mark.parametrize("name", ["pending", "not_pending", "ran", "failed"])
@pytest.mark.parametrize("given", [1, [1], None])
def test_the_assertions_take_nothing_but_instances(autorun, name, given):
    autorun.register(Shouting)

    match = r"processes rows of library\.Document, not .*\. Give the instance itself"
    with pytest.raises(TypeError, match=match):
        getattr(autorun, f"assert_{name}")(Shouting, given)


@pytest.mark.parametrize("given", ["library.Nope", Document, shout, Shouting()])
def test_nothing_but_runner_classes_is_registered(autorun, given):
    with pytest.raises(TypeError, match=r"is not a runner class.* Give the class itself\."):
        autorun.register(given)


def test_without_instances_the_assertions_are_about_all_rows(autorun):
    autorun.register(Shouting)
    autorun.assert_not_pending(Shouting)
    with pytest.raises(AssertionError, match=r"No row is pending for tests\.ShoutRunner"):
        autorun.assert_pending(Shouting)

    Document.objects.create(title="hey")

    autorun.assert_pending(Shouting)
    with pytest.raises(AssertionError, match="Rows are pending for"):
        autorun.assert_not_pending(Shouting)


def test_a_failed_assertion_says_why(autorun):
    autorun.register(Shouting)
    document = Document.objects.create(title="hey")
    with pytest.raises(AssertionError, match="has not run on this row"):
        autorun.assert_ran(Shouting, document)
    with pytest.raises(AssertionError, match="is not up to date"):
        autorun.assert_not_pending(Shouting, document)

    autorun.work_off()

    with pytest.raises(AssertionError, match=r"is not pending .* succeeded at"):
        autorun.assert_pending(Shouting, document)
    with pytest.raises(AssertionError, match=r"returned \{'shouted': 'HEY'\}"):
        autorun.assert_ran(Shouting, document, outputs={"shouted": "hey"})
    with pytest.raises(AssertionError, match="is not failed"):
        autorun.assert_failed(Shouting, document)


IN_A_TEST = (
    r"In a test, call `work_off\(\)` after the save, or save inside `with run_inline\(\):`\."
)


@pytest.mark.parametrize("name", ["assert_ran", "assert_failed", "assert_not_pending"])
def test_what_is_pending_is_told_how_a_test_processes_it(autorun, name):
    autorun.register(Shouting)
    document = Document.objects.create(title="hey")

    with pytest.raises(AssertionError, match=rf"has not run on this row\. {IN_A_TEST}") as raised:
        getattr(autorun, name)(Shouting, document)

    assert "sweep" not in str(raised.value)


def test_what_no_save_announces_takes_what_the_message_says(autorun):
    autorun.register(Shouting)
    Document.objects.bulk_create([Document(title="hey")])
    autorun.work_off()
    with pytest.raises(AssertionError, match=rf"<Document.*\]\. {IN_A_TEST}.* For a row wri"):
        autorun.assert_not_pending(Shouting)

    Shouting().run()
    autorun.work_off()

    autorun.assert_not_pending(Shouting)


def test_a_runner_that_looks_at_no_saves_is_run(autorun):
    runner = declare(shout, NAME="OnDemandRunner", ON_SAVE=False)
    autorun.register(runner)
    document = Document.objects.create(title="hey")

    with pytest.raises(AssertionError, match=r"not process saved.* call `OnDemandRunner\(\)\.run"):
        autorun.assert_ran(runner, document)


def test_a_runner_that_is_not_registered_is_said_to_be_so(autorun):
    document = Document.objects.create(title="hey")

    with pytest.raises(AssertionError, match=r"Runner is not registered: call `register"):
        autorun.assert_ran(Shouting, document)


def test_runs_on_their_way_are_told_how_a_test_ends_them(autorun):
    autorun.register(Shouting)
    document = Document.objects.create(title="")
    Shouting().run()
    with pytest.raises(AssertionError, match=r"Waiting for a worker.* `work_off\(\)` executes it"):
        autorun.assert_failed(Shouting, document)

    autorun.work_off()

    with pytest.raises(AssertionError, match=r"(?s)shout\. `work_off\(retry_now=True\)` .*Traceb"):
        autorun.assert_failed(Shouting, document)


def test_what_waits_for_another_runner_is_told_about_that_one(autorun):
    autorun.register(Shouting, Echoing)
    document = Document.objects.create(title="hey")

    match = rf"for tests\.ShoutRunner.* tests\.ShoutRunner: Shout v1\.0 has not.* {IN_A_TEST}"
    with pytest.raises(AssertionError, match=match):
        autorun.assert_ran(Echoing, document)


def test_what_is_paused_is_not_said_to_be_worked_off(autorun):
    autorun.register(Shouting)
    document = Document.objects.create(title="hey")
    pause_runner(Shouting())

    with pytest.raises(AssertionError, match=r"has been paused since [^;]*$"):
        autorun.assert_ran(Shouting, document)


def test_a_failed_assertion_shows_the_traceback_of_the_analysis(autorun):
    autorun.register(Shouting)
    document = Document.objects.create(title="")
    autorun.work_off(retry_now=True)

    with pytest.raises(AssertionError, match=r"(?s)no attempts left.*Traceback.*nothing to shout"):
        autorun.assert_ran(Shouting, document)
    with pytest.raises(AssertionError, match=r"(?s)raised ValueError, not KeyError.*Traceback"):
        autorun.assert_failed(Shouting, document, exception=KeyError)


def failed(autorun, error):
    """A runner whose body raises `error`, and a row that it has failed on."""

    def fail(value):
        raise error

    runner = declare(fail, TITLE="Fail", NAME="FailRunner", MAX_ATTEMPTS=1)
    autorun.register(runner)
    document = Document.objects.create(title="hey")
    autorun.work_off()
    return runner, document


class Error(Exception):
    pass


def test_only_the_very_class_of_an_exception_counts(autorun):
    runner, document = failed(autorun, ZeroDivisionError())

    autorun.assert_failed(runner, document, exception=ZeroDivisionError)
    for other in (ArithmeticError, Error, "Error", "builtins.ZeroDivisionError"):
        with pytest.raises(AssertionError, match=r"raised ZeroDivisionError, not .*not a base"):
            autorun.assert_failed(runner, document, exception=other)


def test_an_exception_is_given_as_class_or_by_the_name_that_is_recorded(autorun):
    class Error(Exception):
        pass

    runner, document = failed(autorun, Error())

    failure = autorun.assert_failed(runner, document, exception=Error)
    autorun.assert_failed(runner, document, exception=failure.exception_class)
    assert failure.exception_class == f"{__name__}.{Error.__qualname__}"
    with pytest.raises(AssertionError, match=r"not tests\.test_testing\.Error, on <Document"):
        autorun.assert_failed(runner, document, exception=globals()["Error"])


@pytest.mark.parametrize("exception", [ValueError("x"), int, (ValueError, KeyError)])
def test_an_exception_is_nothing_else(autorun, exception):
    with pytest.raises(TypeError, match=r"exception=.* is not an exception's class\. Give the"):
        autorun.assert_failed(Shouting, Document(), exception=exception)


def test_adopted_rows_have_not_run(autorun):
    autorun.register(Shouting)
    document = Document.objects.create(title="hey")
    Shouting().adopt()

    with pytest.raises(AssertionError, match="adopted"):
        autorun.assert_ran(Shouting, document)


def test_outputs_are_compared_as_json_holds_them(autorun):
    runner = declare(lambda value: (1, 2), NAME="PairRunner")
    autorun.register(runner)
    document = Document.objects.create(title="hey")
    autorun.work_off()

    run = autorun.assert_ran(runner, document, outputs=(1, 2))

    assert run.outputs == [1, 2]


def test_inline_runs_need_no_broker(autorun, settings, monkeypatch):
    monkeypatch.setattr("autorun.dispatch.publishing._courier", None)
    autorun.register(Shouting)
    with autorun.run_inline():
        document = Document.objects.create(title="hey")

    autorun.assert_ran(Shouting, document)


def test_a_model_without_a_runner_costs_nothing_inline(autorun):
    from django.db import connection

    with autorun.run_inline(), CaptureQueriesContext(connection) as queries:
        Document.objects.create(title="hey")

    assert len(queries) == 1


@pytest.mark.once
def test_pytest_finds_the_fixture_by_an_entry_point():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]

    assert project["entry-points"]["pytest11"] == {"autorun": "autorun.contrib.pytest_plugin"}


PROJECT = {
    "conf.py": """
        SECRET_KEY = "x"
        INSTALLED_APPS = ["django.contrib.contenttypes", "autorun", "shop"]
        AUTORUN = {"SCHEDULE": None}
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "real.sqlite3"}}
        DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
        """,
    "shop/__init__.py": "",
    "shop/models.py": """
        from django.db import models

        class Item(models.Model):
            name = models.CharField(max_length=9)
        """,
    "shop/analyses.py": """
        from autorun.analysis import analysis

        @analysis("Shout", version="1")
        def shout(name: str) -> str:
            return name.upper()
        """,
    "shop/runners.py": """
        from autorun.runner import QuerySetRunner
        from shop.models import Item

        class ShoutRunner(QuerySetRunner):
            DATA_MODEL = Item
            ANALYSIS = "Shout"
            ANALYSIS_VERSION = "1"
            INPUT_KEY = "name"
            INPUT_FIELDS = ("name",)
        """,
    "test_shop.py": """
        from shop.models import Item

        def test_a_saved_item_is_shouted(autorun):
            with autorun.run_inline():
                item = Item.objects.create(name="hey")

            autorun.assert_ran("shop.ShoutRunner", item, outputs="HEY")
        """,
}


@pytest.mark.once
@pytest.mark.slow
def test_a_project_of_its_own_uses_the_fixture(tmp_path):
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))

    printed = run_pytest(tmp_path, "--ds=conf")

    assert "1 passed" in printed, printed
    # The fixture's database was pytest-django's, not the project's.
    assert not (tmp_path / "real.sqlite3").exists()


@pytest.mark.once
@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("def test_without_django():\n    pass\n", "1 passed"),
        ("def test_with_fixture(autorun):\n    pass\n", "fixture 'db' not found"),
    ],
)
def test_the_plugin_is_harmless_without_pytest_django(tmp_path, body, outcome):
    (tmp_path / "test_user.py").write_text(body)

    printed = run_pytest(tmp_path, "-p", "no:django")

    assert outcome in printed, printed


def run_pytest(directory: Path, *arguments: str) -> str:
    """Return what pytest prints in a project that has autorun installed."""
    is_installed = importlib.metadata.entry_points(group="pytest11", name="autorun")
    plugin = () if is_installed else ("-p", "autorun.contrib.pytest_plugin")
    command = [sys.executable, "-W", "error", "-m", "pytest", "-c", os.devnull, "--rootdir", "."]
    done = subprocess.run(
        [*command, *plugin, "-p", "no:cacheprovider", *arguments, "."],
        cwd=directory,
        env={"PYTHONPATH": os.pathsep.join([str(CHECKOUT), "."])},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_runner_api_has_no_part_in_it(autorun):
    """A runner declared inside a test is one like any other."""

    class LocalRunner(QuerySetRunner):
        DATA_MODEL = Document
        ANALYSIS = Shouting.ANALYSIS
        INPUT_KEY = "value"
        INPUT_FIELDS = ("title",)

    with autorun.registered(LocalRunner), autorun.run_inline():
        document = Document.objects.create(title="hey")
        autorun.assert_ran(LocalRunner, document)
