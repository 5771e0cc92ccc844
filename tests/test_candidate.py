"""CANDIDATE: another version runs on some of the rows, beside ANALYSIS_VERSION."""

import hashlib
import uuid

import pytest

from autorun.declare.registry import trial_of
from autorun.models import Batch, Node, Run
from autorun.observe.checks.declarations import check_declaration
from autorun.observe.checks.values import check_values
from autorun.planning.named import plan_keys
from autorun.planning.on_demand import go_on, sweep_now
from autorun.runner import Candidate
from autorun.signals import run_succeeded
from autorun.tasks import sweep
from tests.engine import declare, installed, work_off
from tests.library.models import Country, Document, Photo

pytestmark = pytest.mark.django_db


@pytest.fixture
def versions(monkeypatch):
    """Versions 1.0 and 1.1 of an analysis that can be found by its title."""
    from autorun import analysis as analyses
    from autorun.analysis import Analysis

    for version, function in (("1.0", one), ("1.1", other), ("1.2", other)):
        known = Analysis("Tried", version, function)
        monkeypatch.setitem(analyses._registry, ("Tried", version), known)


def one(value, *, factor=1):
    return {"mean": len(value) * factor}


def other(value, *, factor=1):
    return {"mean": len(value) * factor + 1}


def make(candidate, **options):
    defaults = {"ANALYSIS": "Tried", "ANALYSIS_VERSION": "1.0", "CANDIDATE": candidate}
    return declare(**defaults | options)


def fill(number=40, model=Document):
    return model.objects.bulk_create([Document(title=f"{n:03}") for n in range(number)])


def rows_of(version):
    return set(Run.objects.filter(node__version=version).values_list("object_id", flat=True))


def lowest(keys, number):
    def hashed(key):
        return hashlib.md5(str(key).encode(), usedforsecurity=False).hexdigest()

    return set(sorted(keys, key=hashed)[:number])


@pytest.mark.parametrize("door", ["run", "backfill", "sweep", "saves"])
def test_a_candidate_runs_on_its_rows_and_on_no_others(versions, door):
    keys = [each.pk for each in fill()]
    with installed(runner := make(Candidate("1.1", rows=7))):
        doors = {
            "run": lambda: runner().run(),
            "backfill": lambda: runner().backfill(),
            "sweep": lambda: sweep_now(runner()),
            "saves": lambda: plan_keys(runner(), keys),
        }
        for _ in range(2):
            doors[door]()
            work_off()

    assert rows_of("1.0") == set(keys)
    assert rows_of("1.1") == lowest(keys, 7)
    assert Run.objects.count() == 47


def test_rows_that_come_and_go_leave_the_others_in_the_sample(versions):
    keys = [each.pk for each in fill()]
    with installed(runner := make(Candidate("1.1", rows=7))):
        sweep_now(runner())
        fill()
        sweep_now(runner())
        chosen = lowest(keys, 7)
        assert rows_of("1.1") == chosen
        Document.objects.filter(pk=min(chosen)).delete()
        sweep_now(runner())

    left = set(Document.objects.values_list("pk", flat=True))
    assert rows_of("1.1") - chosen
    assert rows_of("1.1") >= lowest(left, 7)


def test_a_share_of_the_rows(versions):
    keys = [each.pk for each in fill(100)]
    bound = f"{int(0.25 * 16**8):08x}"
    with installed(runner := make(Candidate("1.1", share=0.25))):
        runner().backfill()

    expected = {
        key
        for key in keys
        if hashlib.md5(str(key).encode(), usedforsecurity=False).hexdigest() < bound
    }
    assert rows_of("1.1") == expected
    assert 10 < len(expected) < 40


@pytest.mark.parametrize("wanted", [Candidate("1.1", share=1), Candidate("1.1", rows=40)])
def test_all_rows(versions, wanted):
    fill()
    with installed(runner := make(wanted)):
        sweep_now(runner())

    assert rows_of("1.1") == rows_of("1.0")


@pytest.mark.parametrize("model", [Photo, Country])
def test_other_keys_are_chosen_by_their_text(versions, model):
    name = {Photo: "caption", Country: "name"}[model]
    for n in range(20):
        model.objects.create(pk=uuid.uuid4() if model is Photo else f"ä{n}", **{name: f"{n:03}"})
    texts = {getattr(each.pk, "hex", str(each.pk)) for each in model.objects.all()}
    wanted = Candidate("1.1", rows=5)
    with installed(runner := make(wanted, DATA_MODEL=model, INPUT_FIELDS=(name,))):
        sweep_now(runner())

    found = Run.objects.filter(node__version="1.1").values_list("object_key", flat=True)
    assert {each.replace("-", "") for each in found} == lowest(texts, 5)


def test_a_changed_row_of_the_sample_runs_again(versions):
    keys = [each.pk for each in fill(10)]
    with installed(runner := make(Candidate("1.1", rows=3))):
        sweep_now(runner())
        work_off()
        Document.objects.update(title="changed")
        plan_keys(runner(), keys)

    changed = Run.objects.filter(is_current=True, status=Run.Status.PENDING)
    assert changed.filter(node__version="1.0").count() == 10
    assert changed.filter(node__version="1.1").count() == 3


def test_outputs_and_progress_stay_those_of_the_version(versions):
    fill(5)
    with installed(runner := make(Candidate("1.1", rows=5))):
        runner().run()
        work_off()
        outputs = runner().outputs_of(Document.objects.first())
        progress = runner().progress()

    assert outputs == {"mean": 3}
    assert progress.succeeded == 5
    assert Node.objects.get(version="1.1").pk != runner().get_node().pk


def test_raising_the_version_repeats_nothing(versions):
    fill(10)
    with installed(runner := make(Candidate("1.1", rows=4))):
        sweep_now(runner())
        work_off()
    with installed(raised := make(None, ANALYSIS_VERSION="1.1")):
        batch = sweep_now(raised())
        batch.refresh_from_db()
        work_off()

    assert (batch.candidates, batch.existing, batch.planned) == (10, 4, 6)
    assert Run.objects.filter(node__version="1.1").count() == 10


def test_dropping_it_leaves_its_results(versions):
    fill(10)
    with installed(runner := make(Candidate("1.1", rows=4))):
        sweep_now(runner())
        work_off()
    with installed(dropped := make(None)):
        Document.objects.update(title="changed")
        sweep_now(dropped())
        work_off()

    assert Run.objects.succeeded().current().filter(node__version="1.1").count() == 4
    assert not Run.objects.filter(node__version="1.1", is_current=None).exists()


def test_another_configuration(versions):
    fill(10)
    with installed(runner := make(Candidate("1.0", rows=4, configuration={"factor": 2}))):
        sweep_now(runner())
        work_off()

    tried = Run.objects.filter(node__configuration={"factor": 2})
    assert [each.outputs for each in tried] == [{"mean": 6}] * 4


def test_its_outputs_are_not_landed_and_send_no_signal(versions):
    fill(6)
    heard = []

    def hear(outputs, **kwargs):
        heard.append(outputs["mean"])

    run_succeeded.connect(hear)
    wanted = Candidate("1.1", rows=6)
    try:
        with installed(runner := make(wanted, OUTPUT_FIELDS={"mean": "state"})):
            runner().run()
            work_off()
    finally:
        run_succeeded.disconnect(hear)

    assert set(Document.objects.values_list("state", flat=True)) == {"3"}
    assert heard == [3] * 6


def test_outputs_of_a_dropped_candidate_are_not_landed(versions):
    fill(6)
    with installed(runner := make(Candidate("1.1", rows=6), OUTPUT_FIELDS={"mean": "state"})):
        runner().run()
    with installed(make(None, OUTPUT_FIELDS={"mean": "state"})):
        work_off()

    assert Run.objects.succeeded().filter(node__version="1.1").count() == 6
    assert set(Document.objects.values_list("state", flat=True)) == {"3"}


@pytest.mark.parametrize("way", ["fields", "hook"])
def test_its_outputs_are_landed_once_by_the_sweep_after_its_version_is_raised(versions, way):
    saved = []

    def save_outputs(self, results):
        saved.extend((each.key, each.outputs["mean"]) for each in results)

    landing = {
        "fields": {"OUTPUT_FIELDS": {"mean": "state"}},
        "hook": {"save_outputs": save_outputs},
    }
    documents = fill(6)
    with installed(runner := make(Candidate("1.1", rows=4), **landing[way])):
        sweep(runner.get_label())
        work_off()
    tried = rows_of("1.1")

    with installed(make(None, ANALYSIS_VERSION="1.1", **landing[way])):
        for _ in range(2):
            sweep(runner.get_label())
            work_off()

    assert Run.objects.filter(node__version="1.1").count() == 6
    if way == "fields":
        assert set(Document.objects.values_list("state", flat=True)) == {"4"}
    else:
        assert sorted(saved) == sorted((each.pk, mean) for each in documents for mean in (3, 4))
    assert len(tried) == 4


def test_a_version_that_is_taken_up_again_lands_its_outputs_again(versions):
    fill(3)
    for version, landed in (("1.0", "3"), ("1.1", "4"), ("1.0", "3"), ("1.1", "4")):
        options = {"ANALYSIS_VERSION": version, "OUTPUT_FIELDS": {"mean": "state"}}
        with installed(runner := make(None, **options)):
            sweep(runner.get_label())
            work_off()

        assert set(Document.objects.values_list("state", flat=True)) == {landed}
    assert Run.objects.count() == 6


def test_a_row_that_cannot_be_landed_when_its_version_is_raised_runs_again(versions):
    one = fill(6)[0]
    landing = {"OUTPUT_FIELDS": {"mean": "state"}}
    with installed(runner := make(Candidate("1.1", share=1), **landing)):
        sweep(runner.get_label())
        work_off()
    Run.objects.filter(node__version="1.1", object_id=one.pk).update(outputs={"other": 1})

    with installed(make(None, ANALYSIS_VERSION="1.1", **landing)):
        sweep(runner.get_label())
        before = Document.objects.values_list("state", flat=True).get(pk=one.pk)
        work_off()

    assert before == "3"
    assert set(Document.objects.values_list("state", flat=True)) == {"4"}
    assert Run.objects.filter(node__version="1.1").count() == 7


def test_its_batch_is_continued_by_another_process(versions):
    fill(10)
    with installed(runner := make(Candidate("1.1", rows=4))):
        batch = sweep_now(runner())
        tried = Batch.objects.exclude(pk=batch.pk).get()
        Run.objects.filter(node__version="1.1").delete()
        Batch.objects.filter(pk=tried.pk).update(planned_at=None, cursor="", state="running")
        tried.refresh_from_db()
        go_on(tried)

    assert (tried.runner, tried.node.version) == (batch.runner, "1.1")
    assert len(rows_of("1.1")) == 4
    assert Batch.objects.count() == 2


def test_a_candidate_that_cannot_run_keeps_no_row_from_the_version(versions):
    keys = [each.pk for each in fill(3)]
    with installed(runner := make(Candidate("9.9", rows=3))):
        plan_keys(runner(), keys)
        sweep_now(runner())

    assert len(rows_of("1.0")) == 3
    assert not rows_of("9.9")


def test_the_runner_of_a_candidate_is_not_registered(versions):
    from autorun.declare import registry
    from autorun.declare.base import declared

    with installed(runner := make(Candidate("1.1", rows=3))):
        trial = trial_of(runner())

        assert trial is trial_of(runner())
        assert type(trial) not in declared
        assert registry.get(runner.get_label()).ANALYSIS_VERSION == "1.0"
        assert trial.label == runner.get_label()


@pytest.mark.parametrize(
    "value",
    [
        "1.1",
        Candidate("1.1"),
        Candidate("1.1", rows=3, share=0.1),
        Candidate("1.1", rows=0),
        Candidate("1.1", share=2),
        Candidate(1.1, rows=3),
        Candidate("1.1", rows=3, configuration="x"),
    ],
)
def test_a_check_names_other_values(versions, value):
    with installed(runner := make(value)):
        (found,) = check_values(runner())
        sweep_now(runner())

    assert (found.id, "CANDIDATE" in found.msg) == ("autorun.E014", True)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (Candidate("9.9", rows=3), "not registered"),
        (Candidate("1.0", rows=3), "runs on all rows already"),
        (Candidate("1.1", rows=3, configuration={"unknown": 1}), "unknown"),
    ],
)
def test_a_check_names_a_version_that_cannot_be_tried(versions, wanted, told):
    with installed(runner := make(wanted)):
        (found,) = check_declaration(runner())

    assert found.id == "autorun.E045"
    assert told in found.msg
