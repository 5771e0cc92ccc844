"""Runs by filter, failures by group, rows by reason: what the pages are made of."""

import datetime as dt
from collections.abc import Iterator

import pytest
from django.utils import timezone

from autorun.control import interventions
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.notifications import FailureReport
from autorun.observe import failures, group_runs, listing
from autorun.observe.activity import Activity, activity_by_node
from autorun.observe.failures import (
    exception_classes,
    group_failures,
    recent_failures,
    runs_in,
)
from autorun.observe.group_runs import members_of
from autorun.observe.listing import RunFilter
from autorun.observe.run_states import STATES, Cursor, state_of
from autorun.planning import windows
from autorun.planning.counting import Count, count_rows
from autorun.runner import QuerySetRunner
from autorun.state.counts import batch_counts, progress_by_node
from autorun.upkeep import folding
from autorun.upkeep.folding import fold
from tests.browser import scenes
from tests.engine import declare, installed, work_off
from tests.library.models import Document, Photo

pytestmark = pytest.mark.django_db

LABEL = "sample_app.ScanPreprocessingRunner"


@pytest.fixture
def runner() -> QuerySetRunner:
    return scenes.few()


@pytest.fixture
def documents() -> Iterator[type[QuerySetRunner]]:
    """Sixty documents; every third one fails; one in five is saved again and run again."""

    def fail_thirds(value: str) -> str:
        if int(value.split(maxsplit=1)[0]) % 3 == 0:
            raise ValueError(f"{value!r} cannot be done")
        return value

    runner = declare(fail_thirds, MAX_ATTEMPTS=1, BATCH_SIZE=7)
    with installed(runner):
        rows = [Document.objects.create(title=f"{n} a") for n in range(60)]
        runner().run()
        work_off()
        for row in rows[::5]:
            Document.objects.filter(pk=row.pk).update(title=f"{row.title} b")
        runner().run()
        work_off()
        yield runner


def pages(chosen: RunFilter, *, size: int) -> list[Run]:
    found, after = [], None
    for _ in range(100):
        page = chosen.page(after, size=size)
        found += page.runs
        if page.after is None:
            return found
        after = Cursor.read(str(page.after))
    raise AssertionError("There is no last page.")


@pytest.mark.parametrize("size", [1, 3, 7, 50])
@pytest.mark.parametrize("state", ["", "succeeded", "failed", "superseded"])
@pytest.mark.slow
def test_pages_hold_every_run_once_and_newest_first(
    size: int, state: str, documents, set_constants
) -> None:
    set_constants(listing, CHUNKS_AT_ONCE=4)
    chosen = RunFilter(state=state)

    found = pages(chosen, size=size)

    expected = Run.objects.all()
    if state:
        expected = expected.filter(STATES[state].runs)
    assert [run.pk for run in found] == [
        pk for pk, _ in expected.order_by("-chunk_id", "-pk").values_list("pk", "chunk_id")
    ]
    assert len(found) > 10


def test_each_state_has_its_runs(runner) -> None:
    numbers = {state: len(pages(RunFilter(state=state), size=50)) for state in STATES}

    assert numbers == {
        "waiting": 2,
        "postponed": 0,
        "queued": 2,
        "running": 2,
        "parked": 0,
        "succeeded": 7,
        "failed": 5,
        "not_applicable": 0,
        "ignored": 0,
        "cancelled": 0,
        "superseded": 0,
    }
    for state in STATES:
        assert all(state_of(run) == state for run in pages(RunFilter(state=state), size=50))
        if state not in ("superseded", "cancelled"):
            assert RunFilter(state=state).number() == numbers[state]


def test_filters_narrow(runner) -> None:
    batch = Batch.objects.get()
    scan = Run.objects.first().object_id
    lengths = {
        RunFilter(): 18,
        RunFilter(runner=LABEL): 18,
        RunFilter(runner="no.Runner"): 0,
        RunFilter(trigger="backfill"): 18,
        RunFilter(trigger="save"): 0,
        RunFilter(batch=batch.pk, state="failed"): 5,
        RunFilter(batch=batch.pk + 1): 0,
        RunFilter(exception="OSError"): 2,
        RunFilter(exception="OSError", since="1h"): 0,
        RunFilter(exception="ValueError", state="succeeded"): 0,
        RunFilter(since="1h"): 9,
        RunFilter(since="24h"): 18,
        RunFilter(row=str(scan)): 1,
        RunFilter(row="nonsense"): 0,
    }

    assert {chosen: len(pages(chosen, size=50)) for chosen in lengths} == lengths
    for chosen in lengths:
        assert RunFilter.read(chosen.written()) == chosen


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("2026-03-05T12:00", "2026-03-05T12:00"),
        ("2026-03-05 12:00:59.5", "2026-03-05T12:00"),
        ("2026-03-05T12:00+02:00", "2026-03-05T10:00"),
        ("2026-03-05", "2026-03-05T00:00"),
        ("2026-13-05T12:00", ""),
        ("0001-01-01T00:00+23:00", ""),
        ("9999-12-31T23:59-23:00", ""),
        ("\0", ""),
        ("now", ""),
        ("", ""),
    ],
)
def test_times_are_read_as_browsers_write_them(given: str, read: str) -> None:
    assert RunFilter.read({"ended_from": given}).ended_from == read


def test_runs_of_rows_with_other_keys_are_found_by_the_key() -> None:
    photo = Photo.objects.create(caption="a")
    other = declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
    with installed(other):
        other().run()
        work_off()
        key = Run.objects.get().object_key

        assert len(pages(RunFilter(row=key), size=5)) == 1
        assert Photo.objects.get(pk=key) == photo


def test_what_matches_is_gone_through_to_the_end(documents, set_constants) -> None:
    set_constants(listing, CHUNKS_AT_ONCE=3, RUNS_AT_ONCE=5)

    found = [run.pk for runs in RunFilter(state="failed").each() for run in runs]

    failed = Run.objects.filter(status=Run.Status.FAILED, is_current=True)
    assert sorted(found) == sorted(failed.values_list("pk", flat=True))


@pytest.mark.parametrize("is_folded", [False, True])
def test_how_many_match_is_told_from_counts(is_folded: bool, documents, set_constants) -> None:
    set_constants(folding, FEW=1)
    interventions.ignore_runs([list(Run.objects.filter(status=Run.Status.FAILED)[:20])])
    if is_folded:
        assert fold(documents().get_node().pk, quiet=-60) > 0
    first, second = Batch.objects.order_by("pk")
    numbers = {
        RunFilter(): 60,
        RunFilter(state="succeeded"): 40,
        RunFilter(state="ignored"): 16,
        # Four of them superseded.
        RunFilter(state="failed", runner=documents().label, since="1h"): 8,
        RunFilter(state="failed", since="1h", trigger="save"): 0,
        RunFilter(batch=first.pk): 60,
        RunFilter(batch=second.pk, state="succeeded"): 8,
        RunFilter(batch=second.pk, runner="no.Runner"): 0,
        RunFilter(batch=second.pk + 1): 0,
        RunFilter(runner=documents().label): None,
        RunFilter(since="1h", state="succeeded"): None,
        RunFilter(state="cancelled"): None,
        RunFilter(exception="ValueError", state="failed"): None,
    }

    assert {chosen: chosen.number() for chosen in numbers} == numbers


@pytest.mark.parametrize(
    "chosen",
    [
        RunFilter(exception="ValueError"),
        RunFilter(exception="ValueError", since="1h", state="failed"),
        RunFilter(exception="ValueError", trigger="code"),
    ],
)
def test_what_threw_an_exception_is_gone_through_a_few_at_a_time(
    chosen: RunFilter, documents, set_constants
) -> None:
    set_constants(listing, RUNS_AT_ONCE=5)
    for failure in list(Failure.objects.all()):
        failure.pk, failure.attempt = None, 7
        failure.save(force_insert=True)

    found = [[run.pk for run in runs] for runs in chosen.each()]

    assert max(map(len, found)) == 5
    ids = [pk for some in found for pk in some]
    failed = Run.objects.filter(status=Run.Status.FAILED)
    failed = failed.filter(is_current=True) if chosen.state else failed
    assert sorted(ids) == sorted(failed.values_list("pk", flat=True))


def test_a_chunk_of_many_runs_is_gone_through_a_few_at_a_time(documents, set_constants) -> None:
    set_constants(listing, RUNS_AT_ONCE=3)

    found = [len(runs) for runs in RunFilter(row="").each()]

    assert (max(found), sum(found)) == (3, Run.objects.count())


def test_ignored_runs_stay_so_until_their_row_changes(documents) -> None:
    interventions.ignore_runs(RunFilter(state="failed").each())

    progress = documents().progress()
    assert (progress.failed, progress.ignored) == (0, 20)
    assert documents().pending().count() == 0
    row = Document.objects.order_by("pk").first()
    Document.objects.filter(pk=row.pk).update(title="1 c")
    assert list(documents().pending()) == [row]


def test_failed_runs_of_chunks_that_are_worked_on_are_ignored_too(documents) -> None:
    failed = Run.objects.filter(status=Run.Status.FAILED, is_current=True)
    Chunk.objects.filter(pk__in=failed.values("chunk_id")).update(state=Chunk.State.RUNNING)

    assert interventions.ignore_runs([list(failed)]) == 20


def test_a_single_run_of_a_chunk_is_cancelled() -> None:
    for n in range(3):
        Document.objects.create(title=str(n))
    runner = declare()
    with installed(runner):
        batch = runner().run()
        runs = list(Run.objects.order_by("pk"))
        number = interventions.cancel_runs([runs[:1]])
        left = runner().progress().unfinished
        work_off()

    assert (number, left) == (1, 2)
    batch.refresh_from_db()
    assert batch.state == Batch.State.FINISHED
    chunk = Chunk.objects.get()
    assert (chunk.succeeded, chunk.cancelled, chunk.size) == (2, 1, 3)


def test_a_chunk_whose_runs_are_all_cancelled_is_finished() -> None:
    Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        batch = runner().run()
        interventions.cancel_runs(RunFilter(state="queued").each())

        assert work_off() == 0
        batch.refresh_from_db()
        assert batch.state == Batch.State.FINISHED
        assert runner().pending().count() == 1


def test_runs_are_retried_in_batches_that_a_statement_holds(documents, set_constants) -> None:
    set_constants(interventions, KEYS_IN_SCOPE=8)

    retried = interventions.retry_runs(RunFilter(state="failed").each(), requested_by="ada")

    assert retried.runs == 20
    assert [len(batch.scope["pks"]) for batch in retried.batches] == [8, 8, 4]


def run_ids_of(key: str, since: str) -> list[int]:
    return [each.run_id for members, _ in members_of(key, since) for each in members]


def test_failures_are_grouped_by_their_shape(documents) -> None:
    (recent,) = recent_failures("1h").groups

    assert recent.group.exception_class == "ValueError"
    assert recent.group.runs == 20
    assert recent.attempts == Failure.objects.count()
    assert sum(recent.times) == recent.attempts
    found = set(run_ids_of(recent.group.key, "1h"))
    failed = Run.objects.filter(status=Run.Status.FAILED, is_current=True)
    assert found == set(failed.values_list("pk", flat=True))


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("messages_at_once", [2, 1_000])
@pytest.mark.parametrize("ids_at_once", [4, 1_000])
@pytest.mark.slow
def test_the_runs_of_a_group_are_paged(
    ids_at_once: int, messages_at_once: int, size: int, documents, set_constants
) -> None:
    set_constants(group_runs, IDS_AT_ONCE=ids_at_once, MESSAGES_AT_ONCE=messages_at_once)
    (recent,) = recent_failures("24h").groups

    found = pages(RunFilter(group=recent.group.key, since="24h"), size=size)

    last_failures = Failure.objects.filter(run__is_current=True)
    expected = list(last_failures.order_by("-pk").values_list("run_id", flat=True))
    assert [run.pk for run in found] == expected
    assert len(expected) == 20


def test_a_group_is_narrowed_by_the_other_filters(runner) -> None:
    groups = [each.group for each in recent_failures("24h").groups]
    key = next(group.key for group in groups if group.exception_class == "ValueError")
    ignored = pages(RunFilter(group=key), size=50)[:1]
    interventions.ignore_runs([ignored])
    lengths = {
        RunFilter(group=key): 3,
        RunFilter(group=key, since="24h"): 3,
        RunFilter(group=key, since="1h"): 1,
        RunFilter(group=key, state="failed"): 2,
        RunFilter(group=key, state="ignored"): 1,
        RunFilter(group=key, runner=LABEL, trigger="backfill"): 3,
        RunFilter(group=key, runner="no.Runner"): 0,
        RunFilter(group=key, exception="ValueError"): 3,
        RunFilter(group=key, exception="OSError"): 0,
        RunFilter(group=key, row=str(ignored[0].object_id)): 1,
        RunFilter(group="0-0123456789abcdef"): 0,
        RunFilter(group="9" * 30 + "-0123456789abcdef"): 0,
    }

    assert {chosen: len(pages(chosen, size=2)) for chosen in lengths} == lengths
    for chosen, length in lengths.items():
        assert sum(map(len, chosen.each())) == length
        assert RunFilter.read(chosen.written()) == chosen


def test_failures_are_those_of_one_runner(documents, runner) -> None:
    labels = {documents.get_label(): {"ValueError": 20}, LABEL: {"ValueError": 3, "OSError": 2}}

    found = {label: recent_failures("24h", label=label).groups for label in labels}

    assert {
        label: {each.group.exception_class: each.group.runs for each in groups}
        for label, groups in found.items()
    } == labels
    assert recent_failures("24h", label="no.Runner").groups == []


def test_pages_and_commands_know_the_same_groups(documents) -> None:
    (of_page,) = [each.group for each in recent_failures("1h").groups]
    (of_command,) = group_failures()

    assert (of_page.key, of_page.runs) == (of_command.key, of_command.runs)


def test_a_group_is_of_one_version(documents, runner) -> None:
    keys = {each.group.key for each in recent_failures("24h").groups}
    key = next(key for key in keys if key.startswith(f"{runner.get_node().pk}-"))

    found = Run.objects.filter(pk__in=run_ids_of(key, "24h"))

    assert len(keys) == 3
    assert {run.node_id for run in found} == {runner.get_node().pk}


@pytest.mark.parametrize("key", ["", "x", "-", "9" * 30 + "-a", "1-a"])
def test_a_group_that_is_none_has_no_runs(key: str, documents) -> None:
    assert run_ids_of(key, "1h") == []


@pytest.fixture
def flood(runner, set_constants) -> None:
    """Twelve failures with three messages an hour ago, and before them one ValueError."""
    set_constants(failures, READ_AT_ONCE=5, LEAST_OF_CLASS=2, FAILURES_AT_ONCE=3)
    Failure.objects.all().delete()
    Run.objects.filter(status=Run.Status.FAILED).update(status=Run.Status.SUCCEEDED)
    runs = list(Run.objects.order_by("pk"))
    now = timezone.now()
    for n, run in enumerate(runs[:13]):
        kind, message = ("TimeoutError", f"{'abc'[n % 3]} took too long") if n else ("OSError", "!")
        Run.objects.filter(pk=run.pk).update(status=Run.Status.FAILED, attempts=1)
        Failure.objects.create(
            run=run,
            attempt=1,
            exception_class=kind,
            message=message,
            failed_at=now - dt.timedelta(minutes=90 - n if n else 180),
        )


def test_a_flood_of_one_exception_hides_no_other(flood) -> None:
    found = recent_failures("24h")

    assert found.attempts == 13
    assert [
        (each.group.exception_class, each.group.runs, each.attempts, each.group.of_newest)
        for each in found.groups
    ] == [
        ("TimeoutError", 2, 2, 5),
        ("TimeoutError", 2, 2, 5),
        ("OSError", 1, 1, 0),
        ("TimeoutError", 1, 1, 5),
    ]
    assert [each.group.of_class for each in found.groups] == [12, 12, 1, 12]


def test_what_is_done_with_a_group_is_done_with_all_of_it(flood) -> None:
    found = recent_failures("24h")

    key = found.groups[-1].group.key

    assert len(run_ids_of(key, "24h")) == 4


def test_commands_and_reports_count_a_flood_in_full(flood, runner) -> None:
    groups = group_failures(runner)

    report = FailureReport(runner.label, "", timezone.now(), groups)

    assert runs_in(groups) == report.runs == 13
    assert "2 x TimeoutError (newest 5 examined): a took too long" in str(report)


def test_every_exception_of_the_week_is_offered_as_a_filter(flood) -> None:
    assert exception_classes() == {"OSError", "TimeoutError"}


def test_exceptions_of_long_ago_are_offered_where_there_are_no_others(flood) -> None:
    Failure.objects.update(failed_at=timezone.now() - dt.timedelta(days=30))

    assert exception_classes() == {"TimeoutError"}


def test_rows_are_counted_by_reason(runner) -> None:
    count = count_rows(runner, seconds=10, samples=2)

    assert count.is_complete
    assert {name: number for name, number in count.rows.items() if number} == {
        "missing": 2,
        "done": 7,
        "failed": 5,
        "under_way": 6,
    }
    assert len(count.samples["done"]) == 2
    assert (count.pending, count.total) == (2, 20)


@pytest.mark.parametrize("fields", [("title",), None])
def test_a_count_goes_on_from_where_it_stopped(fields, set_constants) -> None:
    set_constants(windows, DATABASE_WINDOW=4, PYTHON_WINDOW=4)
    for n in range(10):
        Document.objects.create(title=str(n))
    options = {"INPUT_FIELDS": fields}
    if fields is None:
        options["get_instance_representation"] = lambda self, row: row.title
    runner = declare(**options)
    with installed(runner):
        counts = [count_rows(runner(), seconds=0)]
        while not counts[-1].is_complete:
            begun = Count.read(counts[-1].written())
            counts.append(count_rows(runner(), begun=begun, seconds=0))

    assert [count.rows["missing"] for count in counts] == [4, 8, 10]


def test_progress_of_all_nodes_is_that_of_each(documents, runner) -> None:
    runners = [documents(), runner]
    nodes = Node.objects.filter(pk__in=[each.get_node().pk for each in runners])

    found = progress_by_node(nodes)

    assert found == {each.get_node().pk: each.progress() for each in runners}


def test_folded_chunks_are_counted_in(set_constants) -> None:
    set_constants(folding, FEW=1)
    for n in range(6):
        Document.objects.create(title=str(n))
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        runner().run()
        work_off()
        node = runner().get_node()

    assert fold(node.pk, quiet=-60) == 3
    node.refresh_from_db()

    assert progress_by_node([node])[node.pk].succeeded == 6


def test_a_day_is_the_same_before_and_after_folding(set_constants) -> None:
    set_constants(folding, FEW=1)
    for n in range(6):
        Document.objects.create(title=str(n))
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        runner().run()
        work_off()
        node = runner().get_node()
    now = timezone.now()
    for hours, chunk in enumerate(Chunk.objects.order_by("pk")):
        at = now - dt.timedelta(hours=6 * hours, minutes=11)
        Chunk.objects.filter(pk=chunk.pk).update(started_at=at, finished_at=at)
    before = activity_by_node([node])[node.pk].hours

    folded = [fold(node.pk) for _ in range(2)]

    assert folded == [6, 0]
    node.refresh_from_db()
    assert activity_by_node([node])[node.pk].hours == before
    assert sum(hour.succeeded for hour in before) == 4


def test_no_statement_looks_at_what_is_folded(set_constants, django_assert_num_queries) -> None:
    """Pages are not the slower, the more chunks there ever were."""
    set_constants(folding, FEW=1)
    for n in range(6):
        Document.objects.create(title=str(n))
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        batch = runner().run()
        work_off()
        node = runner().get_node()
    fold(node.pk, quiet=-60)
    node.refresh_from_db()
    Chunk.objects.update(succeeded=1_000_000)

    assert progress_by_node([node])[node.pk].succeeded == 6
    assert sum(hour.succeeded for hour in activity_by_node([node])[node.pk].hours) == 6
    assert batch_counts([batch.pk])[batch.pk].succeeded == 6
    with django_assert_num_queries(3):
        assert RunFilter().number() == 6


def test_activity_has_hours_a_rate_and_a_median(runner) -> None:
    activity = activity_by_node([runner.get_node()])[runner.get_node().pk]

    assert sum(hour.succeeded for hour in activity.hours) == 7
    assert sum(hour.failed for hour in activity.hours) == 5
    assert activity.median_seconds == pytest.approx(0.8, abs=0.01)
    assert activity.per_second > 0


def _ended(runner: QuerySetRunner, *, ago: float, seconds: float, runs: int = 1) -> None:
    at = timezone.now() - dt.timedelta(seconds=ago)
    Chunk.objects.create(
        node=runner.get_node(),
        runner=runner.label,
        size=runs,
        state=Chunk.State.FINISHED,
        succeeded=runs,
        started_at=at - dt.timedelta(seconds=seconds),
        finished_at=at,
    )


def test_how_long_much_takes_is_not_told_from_how_little_there_was_to_do() -> None:
    runner = declare()
    with installed(runner):
        for ago in (10, 250, 550):
            _ended(runner(), ago=ago, seconds=0.05)
        node = runner().get_node()

    activity = activity_by_node([node])[node.pk]

    assert activity.per_second < 0.01
    assert activity.seconds_for(100_000, run_seconds=None) == pytest.approx(5_000, rel=0.01)


def test_what_workers_did_at_the_same_time_counts_once_as_time() -> None:
    runner = declare()
    with installed(runner):
        for ago, seconds in ((10, 10), (12, 8), (10, 10), (40, 5)):
            _ended(runner(), ago=ago, seconds=seconds, runs=5)
        node = runner().get_node()

    activity = activity_by_node([node])[node.pk]

    assert activity.per_second_at_work == pytest.approx(20 / 15, rel=0.01)


def test_the_last_minute_tells_how_long_it_takes_once_bodies_have_become_slower() -> None:
    runner = declare()
    with installed(runner):
        for ago in range(90, 400, 10):
            _ended(runner(), ago=ago, seconds=10, runs=1_000)  # 10 ms a run
        _ended(runner(), ago=-1, seconds=75, runs=150)  # 0.5 s a run, and still running
        Chunk.objects.filter(size=150).update(state=Chunk.State.RUNNING, finished_at=None)
        node = runner().get_node()

    activity = activity_by_node([node])[node.pk]

    left = activity.seconds_for(40, run_seconds=activity.median_seconds)
    assert left == pytest.approx(20, rel=0.5)


def test_much_takes_no_longer_than_run_after_run() -> None:
    activity = Activity(per_second_at_work=0.01)

    assert activity.seconds_for(10, run_seconds=2.0) == 20
    assert activity.seconds_for(10, run_seconds=500.0) == 1_000
    assert Activity().seconds_for(10, run_seconds=None) is None


def test_old_failures_do_not_tell_how_long_a_run_takes() -> None:
    runner = declare()
    with installed(runner):
        _ended(runner(), ago=5_000, seconds=3)
        Chunk.objects.update(succeeded=0, failed=1)
        node = runner().get_node()

    assert activity_by_node([node])[node.pk].median_seconds is None
