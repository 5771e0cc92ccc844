"""`autorun export --provenance`: a folder with the results, W3C PROV and an RO-Crate."""

import json
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from django.core.management import CommandError, call_command

from autorun.models import Build, Run
from tests.engine import declare, installed, work_off
from tests.library.models import Country, Document, Photo

pytestmark = pytest.mark.django_db

LABEL = "tests.EchoRunner"
MODELS = {"integer": (Document, "title"), "uuid": (Photo, "caption"), "text": (Country, "name")}


def measure(value: str) -> dict[str, int]:
    if value == "bad":
        raise ValueError(value)
    return {"length": len(value)}


def export(folder: Path, *arguments: str) -> str:
    out = StringIO()
    call_command(
        "autorun", "export", LABEL, "--provenance", "--output", str(folder), *arguments, stdout=out
    )
    return out.getvalue()


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The crate of two successes, beside a failure."""
    pytest.importorskip("prov")
    pytest.importorskip("rocrate")
    model, field = MODELS[request.param]
    for number, value in enumerate(("one", "three", "bad")):
        key: Any = {"code": f"a/{number}"} if model is Country else {}
        model.objects.create(**{field: value}, **key)
    options = {"DATA_MODEL": model, "INPUT_FIELDS": (field,)}
    runner = declare(measure, MAX_ATTEMPTS=1, **options)
    with installed(runner):
        runner().run()
        work_off()
        assert "provenance written" in export(tmp_path / "crate")
    return tmp_path / "crate"


def test_the_prov_of_a_run_names_its_row_its_result_its_code_and_its_times(folder):
    from prov.model import ProvActivity, ProvAgent, ProvDocument

    text = (folder / "provenance.json").read_text()
    document = ProvDocument.deserialize(content=text, format="json")

    runs = Run.objects.succeeded()
    activities = {str(each.identifier): each for each in document.get_records(ProvActivity)}
    assert activities.keys() == {f"autorun:run/{run.pk}" for run in runs}
    for run in runs:
        activity = activities[f"autorun:run/{run.pk}"]
        assert activity.get_endTime() == run.finished_at
        assert activity.get_startTime() <= run.finished_at
    [agent] = document.get_records(ProvAgent)
    build = Build.objects.get()
    assert set(agent.get_attribute("autorun:code")) == {build.code}
    told = json.loads(text)
    assert len(told["used"]) == len(told["wasGeneratedBy"]) == len(told["wasAssociatedWith"]) == 2


def test_the_crate_describes_its_files_and_the_action_that_made_them(folder):
    from rocrate.rocrate import ROCrate

    crate = ROCrate(folder)

    assert {each.id for each in crate.data_entities} == {"results.csv", "provenance.json"}
    assert all((folder / each.id).exists() for each in crate.data_entities)
    [action] = crate.get_by_type("CreateAction")
    assert action["instrument"]["version"] == "1.0"
    assert action["result"].id == "results.csv"
    assert (folder / "results.csv").read_text().count("succeeded") == 2


@pytest.mark.slow
def test_an_adopted_result_has_no_activity(tmp_path):
    pytest.importorskip("prov")
    pytest.importorskip("rocrate")
    Document.objects.create(title="one")
    with installed(runner := declare(measure)):
        runner().adopt()
        export(tmp_path / "crate", "--format", "jsonl")

    told = json.loads((tmp_path / "crate" / "provenance.json").read_text())
    assert "activity" not in told
    assert len(told["wasDerivedFrom"]) == 1
    assert (tmp_path / "crate" / "results.jsonl").exists()


def test_a_folder_that_exists_is_left_alone(tmp_path):
    pytest.importorskip("prov")
    pytest.importorskip("rocrate")
    with installed(declare(measure)), pytest.raises(CommandError, match="exists already"):
        export(tmp_path)


def test_without_the_packages_the_error_says_what_to_install(tmp_path):
    with (
        installed(declare(measure)),
        patch.dict("sys.modules", {"rocrate": None}),
        pytest.raises(CommandError, match=r"pip install django-autorun\[provenance\]"),
    ):
        export(tmp_path / "crate")
    assert not (tmp_path / "crate").exists()


def test_provenance_needs_a_folder():
    with installed(declare(measure)), pytest.raises(CommandError, match="--output FOLDER"):
        call_command("autorun", "export", LABEL, "--provenance")
