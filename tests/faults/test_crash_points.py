"""A process is killed at each crash point; nothing is lost, or done twice needlessly."""

import signal
from collections.abc import Iterator

import pytest
from django.db.models import F, QuerySet

from autorun.declare import registry
from autorun.models import Batch, Chunk, Failure, Run, SpilledTrigger
from autorun.state.clock import from_now
from autorun.state.leases import queued as find_queued, start
from autorun.state.probes import POINTS
from autorun.triggers import installing
from tests.crashes import ENVIRONMENT, armed, crashed_at
from tests.engine import declare, installed
from tests.faultlab import steps
from tests.faultlab.models import Specimen
from tests.faults.driver import Lab
from tests.library.models import Document

#: What reaches each point, where it is not planning.
STEPS = {
    "save.committed": "save",
    "spill.written": "save_without_broker",
    "dispatch.refused": "plan_without_broker",
    "rescue.taken": "rescue",
    "rescue.recorded": "rescue",
    "spilled.leased": "plan_spilled",
    "spilled.planned": "plan_spilled",
    "upkeep.counted": "send_again",
    "cancel.batch": "cancel",
    "cancel.runs": "cancel",
    "cancel.undone": "cancel",
    "cancel.started": "work_to_be_cancelled",
    "retire.runs": "retire",
    "writes.copied": "take_notes",
    "writes.taken": "take_notes",
} | {name: "work" for name in POINTS if name.startswith(("start.", "finish."))}
#: After these, rows have to be looked at again: what the dead process knew is gone, what it had
#: begun to cancel is cancelled, or it was about deleted rows.
LEFT_TO_THE_SWEEP = {
    "save.committed",
    "cancel.batch",
    "cancel.runs",
    "cancel.undone",
    "cancel.started",
    "retire.runs",
}
#: The process dies with a body's work done and not recorded: the body runs again.
RUNS_AGAIN = {name for name in POINTS if name.startswith("finish.")} | {"cancel.started"}


@pytest.fixture
def options(request: pytest.FixtureRequest) -> dict[str, object]:
    """Chunks of two; for `plan.unprepared` the runner prepares inputs while it plans.

    For `finish.landed` it lands what its bodies return on the rows; for notes it has triggers.
    Another runner waits for what is recorded.
    """
    point = request.node.callspec.params.get("point", "")
    fields = None if point == "plan.unprepared" else ["value"]
    options = {"BATCH_SIZE": 2, "INPUT_FIELDS": fields, "ON_WRITE": point.startswith("writes.")}
    if point.startswith(("finish.", "rescue.")):
        options["FOLLOWED"] = True
    return options | ({"OUTPUT_FIELDS": {"value": "landed"}} if point == "finish.landed" else {})


@pytest.fixture
def _triggers(lab: Lab) -> Iterator[None]:
    """The triggers of a runner with ON_WRITE."""
    installing.install()
    yield
    installing.remove()


def prepare(lab: Lab, point: str) -> None:
    """Rows that are done, rows that have changed since, a failing one and new ones."""
    lab.write(4)
    lab.runner.run()
    steps.heal()
    Specimen.objects.filter(value__in=("v0", "v1")).update(value="changed")
    lab.write(1, does="raise_once", value="f")
    lab.write(1, does="unprepared" if point == "plan.unprepared" else "", value="u")
    lab.write(5, value="w")
    if point.startswith("rescue."):
        lab.runner.run()
        chunk = find_queued(steps.queued()[0])
        assert chunk is not None
        assert start(chunk) is not None
        Chunk.objects.filter(pk=chunk.pk).update(expires_at=from_now(-1))
    elif point.startswith("spilled."):
        keys = list(Specimen.objects.values_list("pk", flat=True))
        SpilledTrigger.objects.create(model_label="faultlab.Specimen", keys=keys)
    elif point.startswith(("upkeep.", "cancel.")):
        lab.runner.run()


def heard_of(step: str) -> QuerySet[Specimen]:
    """The rows that the step was about."""
    rows = Specimen.objects.all()
    return rows.filter(value="saved") if step.startswith("save") else rows


def landed_rows() -> set[int]:
    """The rows that have what a body returned for their present value."""
    return set(Specimen.objects.filter(landed=F("value")).values_list("pk", flat=True))


def succeeded_rows() -> set[int]:
    """The rows whose current run has succeeded."""
    runs = Run.objects.current().succeeded().filter(chunk__runner="faultlab.SpecimenRunner")
    return set(runs.values_list("object_id", flat=True))


@pytest.mark.faults(1, 7, 18)
@pytest.mark.slow
@pytest.mark.usefixtures("_triggers")
@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_here_loses_nothing(lab: Lab, point: str):
    prepare(lab, point)
    before = lab.ledger.times()

    step = STEPS.get(point, "plan")
    process = lab.call(f"from tests.faultlab import steps; steps.{step}()", **{ENVIRONMENT: point})

    assert process.wait() == -signal.SIGKILL, f"{point} was not reached\n{lab.describe()}"
    lab.check_counts()
    if point == "finish.landed":
        assert landed_rows() == succeeded_rows()
    steps.heal()
    if point not in LEFT_TO_THE_SWEEP:
        assert not lab.runner.pending(heard_of(step)).exists()
    if "FOLLOWED" in lab.options:
        assert not registry.get("faultlab.FollowerRunner").pending().exists()
    steps.tasks.sweep(lab.runner.label)
    steps.heal()
    lab.check()
    assert not lab.runner.pending().exists()
    times = lab.ledger.times() - before
    most = 2 if point in RUNS_AGAIN else 1
    assert lab.runner.progress().total == Specimen.objects.count()
    usual = Specimen.objects.filter(does="").values_list("pk", flat=True)
    assert max(times[pk] for pk in usual) <= most
    if point == "finish.landed":
        assert (
            landed_rows() == succeeded_rows() == set(Specimen.objects.values_list("pk", flat=True))
        )
    if point == "plan.unprepared":
        assert Failure.objects.filter(exception_class__endswith="ValueError").count() >= 1
        assert Run.objects.filter(status=Run.Status.FAILED).count() == 1


@pytest.mark.faults(18)
def test_an_unknown_crash_point_is_refused():
    with pytest.raises(ValueError, match=r"no crash point 'no\.such'"), armed("no.such"):
        pass


@pytest.mark.faults(18)
@pytest.mark.django_db(transaction=True)
def test_a_forced_backfill_killed_after_its_last_window_runs_nothing_a_third_time():
    """Only the batch's own counts tell that forced rows are done."""

    for n in range(3):
        Document.objects.create(title=f"title {n}")
    calls = []
    runner = declare(lambda value: calls.append(value))
    with installed(runner):
        runner().run()
        steps.heal()
        with crashed_at("backfill.unfinished"):
            runner().backfill(force=True)
        steps.heal()

        assert len(calls) == 6
        assert runner().progress().succeeded == runner().progress().total == 3
    batch = Batch.objects.latest("pk")
    assert (batch.state, batch.planned) == (Batch.State.FINISHED, 3)
