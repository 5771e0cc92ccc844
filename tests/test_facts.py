"""The facts of each run: its duration, and the code and environment that made it."""

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.utils import timezone

from autorun.analysis import temporarily_registered
from autorun.declare.code_digest import code_digest
from autorun.models import Build, Environment, Run
from autorun.observe import listing
from autorun.observe.doctor.system_checks import examine_code
from autorun.observe.listing import RunFilter
from tests.engine import declare, installed, work_off
from tests.library.models import Document

names = count()


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(3)]


def executed(function: Any, **options: Any) -> list[Run]:
    """All documents' runs, executed once."""
    runner = declare(function, **options)
    with installed(runner):
        runner().run()
        work_off()
    return list(Run.objects.order_by("pk"))


@pytest.mark.django_db
def test_a_run_keeps_how_long_its_last_attempt_took(documents, monkeypatch):
    passed, clock = [], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(passed))

    def measure(value):
        if value == "title 1":
            passed.append(50)
        if value == "title 2":
            raise ValueError

    first, slow, failed = executed(measure, MAX_ATTEMPTS=1)

    assert 0 < first.seconds < 50 <= slow.seconds < 100  # MariaDB rounds it
    assert failed.status == Run.Status.FAILED
    assert failed.seconds > 0
    assert Run.objects.slowest().first() == slow


@pytest.mark.django_db
def test_a_superseded_run_keeps_its_facts_and_an_adopted_one_has_none(documents):
    runner = declare()
    with installed(runner):
        runner().run()
        work_off()
        Document.objects.filter(pk=documents[0].pk).update(title="new")
        runner().adopt()

    superseded, adopted = Run.objects.filter(object_id=documents[0].pk).order_by("pk")
    assert superseded.seconds is not None
    assert superseded.build is not None
    assert (adopted.seconds, adopted.build) == (None, None)


@pytest.mark.django_db
def test_each_run_names_its_code_and_environment(documents):
    runs = executed(stated)

    [build] = Build.objects.all()
    assert {run.build for run in runs} == {build}
    assert build.code == code_digest(stated)
    assert build.environment.facts["python"].endswith(platform.python_version())
    assert "django" in build.environment.facts["packages"]
    assert Environment.objects.count() == 1


def stated(value: str) -> str:
    return value


@pytest.mark.django_db
def test_the_slowest_of_the_newest_runs_come_first(documents, set_constants):
    runs = executed(stated)
    Run.objects.filter(pk=runs[1].pk).update(seconds=90)

    found, is_all = RunFilter(state="succeeded").slowest(size=2)
    assert (found[0], len(found), is_all) == (runs[1], 2, True)
    set_constants(listing, MOST_COMPARED=0)
    assert RunFilter().slowest() == ([], False)


@pytest.mark.django_db
def test_the_slowest_runs_on_the_command_line(documents):
    runs = executed(stated)
    Run.objects.filter(pk=runs[2].pk).update(seconds=90, finished_at=timezone.now())
    out = StringIO()

    call_command("autorun", "runs", "--slowest", "--limit", "1", stdout=out)
    assert out.getvalue().splitlines()[2].split()[:3] == [
        *(str(runs[2].pk), str(documents[2].pk), "succeeded"),
    ]
    assert "1 min 30 s" in out.getvalue()
    out = StringIO()
    call_command("autorun", "runs", "--slowest", "--since", "24h", "--format", "json", stdout=out)
    assert json.loads(out.getvalue())[0]["id"] == runs[2].pk


@pytest.mark.django_db
def test_the_list_of_runs_can_begin_with_the_slowest(documents, admin_client):
    runs = executed(stated)
    Run.objects.filter(pk=runs[1].pk).update(seconds=90)

    page = admin_client.get("/admin/autorun/run/?state=succeeded&order=slowest").content.decode()

    assert page.index("1 min 30 s") < page.index(f"/run/{runs[0].pk}/")
    assert 'aria-sort="descending"' in page
    assert "Slowest of the newest runs first." in page


Digest = Callable[..., str]


@pytest.fixture
def digest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Digest:
    """The digest of `body` in a new package with these files; the others are as in FILES."""
    monkeypatch.syspath_prepend(tmp_path)

    def digest(**files: str) -> str:
        package = f"measured{next(names)}"
        (tmp_path / package).mkdir()
        for name, text in (FILES | files).items():
            (tmp_path / package / f"{name}.py").write_text(text)
        invalidate_caches()
        with temporarily_registered():
            found = code_digest(import_module(f"{package}.body").body)
        assert found
        return found

    return digest


FILES = {
    "__init__": "from .reexported import through",
    "body": """
from __future__ import annotations
import json
from autorun.analysis import analysis
from . import helper, through
from .helper import other as renamed
from .limits import LIMIT as most

@analysis("Measured", version="1.0")
def body(value):
    from .late import within
    return json.dumps(helper.scaled(value)), renamed(value), through(value), most, within
""",
    "helper": """
FACTOR = 2

def scaled(value):
    return value * FACTOR

def other(value):
    return Kept().value

class Kept:
    value = 1

def unused():
    return 1
""",
    "limits": "LIMIT: int = 3",
    "late": "def within():\n    return 1\n",
    "reexported": "def through(value):\n    return value\n",
}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("body", "return json", "# as JSON\n    return json"),
        ("body", "def body(value):", 'def body(value):\n    """Docstring."""'),
        ("body", 'version="1.0"', 'version="1.0", '),
        ("helper", "class Kept:", 'class Kept:\n    """Docstring."""\n'),
        ("helper", "def unused():\n    return 1", "def unused():\n    return 2"),
        ("helper", "value * FACTOR", "(value\n        * FACTOR)"),
        ("reexported", "def through", "import os\n\n\ndef through"),
    ],
)
def test_comments_docstrings_layout_and_other_code_leave_the_digest(digest_of, name, old, new):
    assert FILES[name].count(old) == 1

    assert digest_of(**{name: FILES[name].replace(old, new)}) == digest_of()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("body", "json.dumps(", "str("),
        ("helper", "value * FACTOR", "value + FACTOR"),
        ("helper", "FACTOR = 2", "FACTOR = 3"),
        ("helper", "value = 1", "value = 2"),
        ("limits", "3", "4"),
        ("late", "return 1", "return 2"),
        ("reexported", "return value", "return -value"),
    ],
)
def test_an_edit_of_what_the_function_uses_changes_its_digest(digest_of, name, old, new):
    assert old in FILES[name]

    assert digest_of(**{name: FILES[name].replace(old, new)}) != digest_of()


def test_code_without_a_source_has_no_digest():
    made: dict[str, Any] = {"__name__": "nowhere"}
    exec("def body(value): return value", made)

    assert code_digest(made["body"]) == ""
    assert code_digest(lambda value: value) == ""


@pytest.mark.django_db
def test_results_are_recorded_even_if_their_code_cannot_be_noted(documents, caplog):
    with refused("autorun_build"):
        runs = executed(stated)

    assert {(run.status, run.build_id) for run in runs} == {(Run.Status.SUCCEEDED, None)}
    assert "could not be noted" in caplog.text


@contextmanager
def refused(table: str) -> Iterator[None]:
    """The database refuses statements about the table."""

    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if table in sql and "UPDATE" not in sql:
            raise DatabaseError("refused")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(refuse):
        yield


def original(value: str) -> str:
    return value


def edited(value: str) -> str:
    return value.strip()


@pytest.mark.django_db
def test_the_doctor_names_code_that_was_edited_under_its_version(documents):
    before, after = declare(original), declare(edited)
    with installed(before):
        before().run()
        work_off()
        assert [each.level for each in examine_code()] == ["ok"]

    with installed(after):
        [found] = examine_code()
        assert found.level == "warning"
        assert "edited under version 1.0" in found.message
        after().backfill(force=True)
        work_off()
        assert [each.level for each in examine_code()] == ["ok"]


by_python = {"get_instance_representation": lambda self, row: row.title, "INPUT_FIELDS": None}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "options", [pytest.param({}, id="database"), pytest.param(by_python, id="python")]
)
def test_an_edit_runs_all_rows_again_if_on_code_change_says_so(documents, options):
    before, after = (
        declare(body, ON_CODE_CHANGE="rerun", **options) for body in (original, edited)
    )
    with installed(before):
        before().run()
        work_off()
        assert before().run().planned == 0

    with installed(after):
        explanation = after().explain(documents[0])
        assert explanation.code == "changed"
        assert explanation.reason.startswith("The row or the code has changed since")
        assert [each.level for each in examine_code()] == ["ok"]

        assert after().run().planned == len(documents)
        work_off()
        assert after().run().planned == 0


@pytest.mark.django_db
def test_status_and_the_page_of_the_runner_tell_of_an_edit(documents, admin_client, capsys):
    before, after = declare(original), declare(edited)
    with installed(before):
        before().run()
        work_off()
        call_command("autorun", "status")
        assert "was edited" not in capsys.readouterr().out

    with installed(after):
        call_command("autorun", "status")
        page = admin_client.get(f"/admin/autorun/node/{after().label}/")

    told = capsys.readouterr().out
    assert "was edited under version 1.0" in " ".join(told.split())
    assert f"manage.py autorun backfill {after().label} --force" in told
    assert "was edited under version 1.0" in page.content.decode()
