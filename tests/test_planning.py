"""Which rows are pending, and that each gets exactly one run."""

import datetime as dt
import itertools
import os
import re
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Count, Q
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from autorun.models import Batch, Chunk, Run
from autorun.planning import named, rows, statements, windows
from autorun.planning.counting import preview
from autorun.planning.named import plan_keys
from autorun.planning.scope import Scope
from tests.engine import current_runs, declare, installed, statuses, work_off
from tests.library.models import (
    Country,
    Document,
    DraftDocument,
    Measurement,
    Note,
    Photo,
    Report,
    Tag,
)
from tests.waiting import until

pytestmark = pytest.mark.django_db


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}", state="new") for n in range(6)]


def represented(self, instance):
    return {"title": instance.title, "pk": str(instance.pk)}


PLANNERS = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="database"),
        pytest.param(
            {"INPUT_FIELDS": None, "get_instance_representation": represented}, id="python"
        ),
    ],
)


@PLANNERS
def test_every_row_gets_one_run_however_often_it_is_planned(documents, options):
    runner = declare(**options)
    with installed(runner):
        first, second = runner().run(), runner().run()

    assert (first.planned, second.planned) == (6, 0)
    assert set(current_runs()) == {document.pk for document in documents}


@PLANNERS
def test_a_row_that_changes_back_and_forth_runs_each_time(documents, options):
    runner = declare(**options)
    document = documents[0]
    with installed(runner):
        runner().run()
        work_off()
        for title in ("b", "title 0", "b"):
            Document.objects.filter(pk=document.pk).update(title=title)
            assert runner().run().planned == 1
            work_off()

    runs = Run.objects.filter(object_id=document.pk).order_by("pk")
    assert [run.status for run in runs] == [Run.Status.SUCCEEDED] * 4
    assert [bool(run.is_current) for run in runs] == [False, False, False, True]
    titles = [str(run.outputs["value"]) for run in runs]
    assert ["b" in title for title in titles] == [False, True, False, True]


@PLANNERS
def test_a_change_of_another_field_makes_nothing_pending(documents, options):
    runner = declare(**options)
    with installed(runner):
        runner().run()
        work_off()
        Document.objects.update(state="old", body="other")

        assert runner().run().planned == 0


def test_null_and_empty_are_different_inputs_and_boundaries_count():
    runner = declare(INPUT_FIELDS=("title", "body"))
    document = Document.objects.create(title="ab", body="c")
    with installed(runner):
        runner().run()
        work_off()
        Document.objects.filter(pk=document.pk).update(title="a", body="bc")

        assert runner().run().planned == 1


def test_without_input_fields_and_representation_a_row_runs_once(documents):
    runner = declare(lambda value: value.pk, INPUT_FIELDS=None)
    with installed(runner):
        runner().run()
        work_off()
        Document.objects.update(title="changed")

        assert runner().run().planned == 0
    assert current_runs()[documents[0].pk].outputs == documents[0].pk


@PLANNERS
@pytest.mark.parametrize("model", [Photo, Country, Report, DraftDocument, Note])
def test_models_with_every_kind_of_key_and_inheritance(model, options):
    if model in (Photo, Country, Note):
        field = {Photo: "caption", Country: "name", Note: "text"}[model]
    else:
        field = "title"
    if "INPUT_FIELDS" in options and options["INPUT_FIELDS"] is None:
        options = {**options, "get_instance_representation": lambda s, i: getattr(i, field)}
    else:
        options = {"INPUT_FIELDS": (field,)}
    keys = {"code": "at"} if model is Country else {}
    others = {"code": "be"} if model is Country else {}
    first = model.objects.create(**keys, **{field: "one"})
    model.objects.create(**others, **{field: "two"})
    runner = declare(DATA_MODEL=model, **options)
    with installed(runner):
        assert runner().run().planned == 2
        work_off()
        assert statuses() == [Run.Status.SUCCEEDED] * 2
        assert runner().run().planned == 0
        model.objects.filter(pk=first.pk).update(**{field: "three"})
        assert [row.pk for row in runner().pending()] == [first.pk]
        assert runner().run().planned == 1
        work_off()
        assert runner().has_run(first)

    assert statuses(is_current=True) == [Run.Status.SUCCEEDED] * 2


def test_a_text_key_is_the_databases_own_text():
    photo = Photo.objects.create(id=uuid.UUID(int=2**100 + 5), caption="x")
    runner = declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
    with installed(runner):
        runner().run()

    run = Run.objects.get()
    assert run.object_id == 0
    assert uuid.UUID(run.object_key) == photo.pk


def queryset_shapes():
    everything = Document.objects.all()
    return {
        "filtered": (everything.filter(title="title 1"), 1),
        "excluded": (everything.exclude(title="title 1"), 5),
        "sliced": (everything.order_by("title")[1:4], 3),
        "sliced to one": (everything.order_by("-pk")[:1], 1),
        "ordered": (everything.order_by("-title"), 6),
        "select_related": (everything.select_related(), 6),
        "prefetched": (everything.prefetch_related("tags"), 6),
        "distinct": (everything.filter(tags__name__in=["a", "b"]).distinct(), 2),
        "joined": (everything.filter(tags__name__in=["a", "b"]), 2),
        "union": (everything.filter(title="title 1").union(everything.filter(title="title 2")), 2),
        "or": (everything.filter(title="title 1") | everything.filter(title="title 2"), 2),
        "values": (everything.values("title"), 6),
        "values_list": (everything.values_list("title", flat=True), 6),
        "grouped": (everything.annotate(n=Count("tags")).filter(n=2), 1),
        "annotated": (everything.annotate(n=Count("tags")), 6),
        "only": (everything.only("pk"), 6),
        "defer": (everything.defer("title"), 6),
        "none": (everything.none(), 0),
        "empty": (everything.filter(title="?"), 0),
        "nothing possible": (everything.filter(pk__in=[]), 0),
        "manager": (Document.objects, 6),
        "reversed": (everything.reverse(), 6),
        "proxy": (DraftDocument.objects.all(), 6),
        "child": (Report.objects.all(), 0),
        "select_for_update": (everything.select_for_update(), 6),
    }


@PLANNERS
@pytest.mark.parametrize("shape", queryset_shapes())
def test_any_queryset_a_developer_holds(documents, options, shape):
    tags = [Tag.objects.create(name=name) for name in "ab"]
    documents[0].tags.set(tags)
    documents[1].tags.set(tags[:1])
    queryset, expected = queryset_shapes()[shape]
    runner = declare(**options)
    with installed(runner):
        assert runner().pending(queryset).count() == expected
        assert runner().run(queryset).planned == expected
        work_off()
        existing, pending = runner().query_progress(queryset)

    assert (existing.count(), pending.count()) == (expected, 0)
    assert statuses() == [Run.Status.SUCCEEDED] * expected


def test_an_evaluated_queryset_is_looked_up_again(documents):
    queryset = Document.objects.filter(state="new")
    assert len(queryset) == 6
    runner = declare()
    with installed(runner):
        assert runner().run(queryset).planned == 6


def test_a_given_queryset_is_filtered_like_the_default_one(documents):
    runner = declare(
        filter_queryset=lambda self, queryset, log_level=20: queryset.filter(title="title 1")
    )
    with installed(runner):
        assert runner().run(Document.objects.all()).planned == 1
        assert runner().run(Document.objects.filter(title="title 2")).planned == 0


def test_a_given_queryset_may_lie_outside_of_the_base_query(documents):
    runner = declare(BASE_QUERY=Q(title="title 1"))
    with installed(runner):
        assert runner().run().planned == 1
        assert runner().run(Document.objects.filter(title="title 2")).planned == 1
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 2


@pytest.mark.parametrize("wrong", [[1, 2], "title", None.__class__, 5])
def test_what_is_no_queryset_is_refused_with_a_way_out(wrong):
    runner = declare()
    with installed(runner), pytest.raises(TypeError, match=r"filter\(pk__in"):
        runner().run(wrong)


def test_a_queryset_of_another_model_is_refused_by_name():
    runner = declare()
    words = r"library\.Document, not of library\.Tag"
    with installed(runner), pytest.raises(TypeError, match=words):
        runner().run(Tag.objects.all())


@PLANNERS
def test_max_total_limits_what_is_planned(documents, options):
    runner = declare(**options)
    with installed(runner):
        assert runner().run(max_total=2).planned == 2
        assert runner().run(max_total=0).planned == 0
        assert runner().run().planned == 4


@PLANNERS
def test_dry_says_what_it_would_do_and_does_nothing(documents, options):
    runner = declare(**options)
    with installed(runner):
        batch = runner().run(dry=True)

    assert (batch.pk, Run.objects.count(), Chunk.objects.count()) == (None, 0, 0)
    assert Batch.objects.count() == 0


@PLANNERS
def test_small_windows_plan_the_same(documents, options, set_constants):
    set_constants(windows, DATABASE_WINDOW=2, PYTHON_WINDOW=2)
    runner = declare(**options)
    with installed(runner):
        batch = runner().run()
        assert (batch.planned, batch.candidates) == (6, 6)
        work_off()
        Document.objects.filter(title="title 3").update(title="x")
        assert runner().run().planned == 1


def test_a_window_ends_when_its_time_is_up_where_rows_take_long_to_prepare(
    documents, set_constants
):
    set_constants(windows, WINDOW_SECONDS=0)
    runner = declare(INPUT_FIELDS=None, get_instance_representation=represented)
    with installed(runner):
        found = iter(windows.Windows(runner(), Document.objects.all(), runner().get_node().pk))
        ends = [window.last_key for window in found]
        batch = runner().run()

    assert ends == [*(str(document.pk) for document in documents[:-1]), ""]
    assert (batch.planned, batch.candidates) == (6, 6)


def test_a_window_does_not_end_at_an_empty_key(set_constants):
    set_constants(windows, WINDOW_SECONDS=0)
    Country.objects.bulk_create(Country(code=code, name=code) for code in ("", "a", "b"))
    runner = declare(
        DATA_MODEL=Country,
        INPUT_FIELDS=None,
        get_instance_representation=lambda self, row: row.name,
    )
    with installed(runner):
        found = iter(windows.Windows(runner(), Country.objects.all(), runner().get_node().pk))
        ends = [window.last_key for window in itertools.islice(found, 5)]

    assert ends == ["a", ""]


@pytest.mark.parametrize("dependencies", [False, True])
def test_a_quick_look_reads_larger_pages_after_a_slow_one(documents, set_constants, dependencies):
    upstream = declare(NAME="UpstreamRunner", TITLE="Upstream")
    options = {"DEPENDS_ON": (upstream,)} if dependencies else {}
    runner = declare(INPUT_FIELDS=None, get_instance_representation=represented, **options)
    with installed(upstream, runner), CaptureQueriesContext(connection) as queries:
        found = iter(windows.Windows(runner(), Document.objects.all(), runner().get_node().pk))
        set_constants(windows, WINDOW_SECONDS=0)
        ends = [next(found).last_key]
        set_constants(windows, WINDOW_SECONDS=60)
        ends += [window.last_key for window in found]

    assert ends == [str(documents[0].pk), str(documents[2].pk), ""]
    pages = [each["sql"] for each in queries if "library_document" in each["sql"]]
    assert [int(re.search(r"LIMIT (\d+)", sql)[1]) for sql in pages] == [100, 2, 40]


@pytest.mark.parametrize("number", [3, 5])
def test_large_rows_are_read_in_small_pages(documents, set_constants, number):
    set_constants(windows, FIRST_WINDOW=2, WINDOW_BYTES=10_000 * number)
    Document.objects.update(body="x" * 9_900)
    runner = declare(INPUT_FIELDS=None, get_instance_representation=represented)
    with installed(runner), CaptureQueriesContext(connection) as queries:
        batch = runner().backfill()

    assert batch.planned == 6
    pages = [each["sql"] for each in queries if "_autorun_key" not in each["sql"]]
    sizes = [re.search(r"library_document.* LIMIT (\d+)$", sql) for sql in pages]
    assert [int(found[1]) for found in sizes if found][:2] == [2, number]


def test_a_hook_that_hangs_costs_its_row_and_no_other(documents):
    def hanging(self, instance):
        while instance.title == "title 1":
            time.sleep(0.01)
        return instance.title

    runner = declare(INPUT_FIELDS=None, TIMEOUT=1, get_instance_representation=hanging)
    with installed(runner):
        batch = runner().run()

    assert (batch.planned, batch.unprepared) == (5, 1)
    failure = Run.objects.get(status=Run.Status.FAILED).failures.get()
    assert failure.exception_class.endswith("RunTimeout")
    assert failure.message == "get_instance_representation() took longer than 1 s."


@pytest.mark.parametrize(("timeout", "seconds"), [(30, 30), (7_200, 48), (None, 48)])
def test_preparing_a_row_may_not_take_longer_than_the_lease_of_a_batch(settings, timeout, seconds):
    settings.AUTORUN = {"LEASE": 6}
    runner = declare(TIMEOUT=timeout)
    with installed(runner):
        settings.AUTORUN = {"LEASE": 6, "TIMEOUT": timeout}

        assert windows._longest_check(runner()) == pytest.approx(seconds)


def test_a_row_whose_input_cannot_be_prepared_is_a_visible_failure(documents):
    def broken(self, instance):
        if instance.title == "title 1":
            raise RuntimeError("no such file")
        return instance.title

    runner = declare(INPUT_FIELDS=None, get_instance_representation=broken)
    with installed(runner):
        batch = runner().run()
        assert (batch.planned, batch.unprepared) == (5, 1)
        assert runner().run().planned == 0
        work_off()
        failed = Run.objects.get(status=Run.Status.FAILED)
        assert "no such file" in failed.failures.get().message
        Document.objects.filter(title="title 1").update(title="mended")
        assert runner().run().planned == 1
        work_off()
        assert runner().progress().failed == 0
        assert runner().progress().succeeded == 6


@pytest.mark.parametrize("together", [10.0, 0.0])
def test_rows_represented_together_read_nothing_that_one_of_them_has_left(
    documents, set_constants, together
):
    set_constants(rows, MOMENT=together)

    def represented(self, instance):
        found = [instance.title, timezone.get_current_timezone_name(), str(Path.cwd())]
        if instance.title == "title 1":
            timezone.activate("Asia/Tokyo")
            os.chdir("/")
            raise RuntimeError("no such file")
        return found

    runner = declare(INPUT_FIELDS=None, get_instance_representation=represented)
    with installed(runner):
        found = list(rows.examined(runner(), list(Document.objects.order_by("pk"))))

    assert [row.representation for row in found if row.error is None] == [
        [f"title {number}", "UTC", str(Path.cwd())] for number in (0, 2, 3, 4, 5)
    ]
    assert [str(row.error) for row in found if row.error is not None] == ["no such file"]


def test_a_file_system_that_is_away_for_a_night_costs_no_success(documents):
    away = False

    def represented(self, instance):
        if away:
            raise OSError("not mounted")
        return instance.title

    runner = declare(INPUT_FIELDS=None, get_instance_representation=represented)
    with installed(runner):
        runner().run()
        work_off()
        away = True
        assert runner().run().unprepared == 6
        away = False

        assert runner().progress().succeeded == 6
        assert runner().run().planned == 0


@pytest.mark.parametrize("only", ["failed", "changed", "all", None])
def test_rows_that_failed_for_want_of_an_input_are_taken_once_there_is_one(documents, only):
    away = True

    def represented(self, instance):
        if away:
            raise OSError("not mounted")
        return instance.title

    runner = declare(INPUT_FIELDS=None, get_instance_representation=represented)
    with installed(runner):
        runner().run()
        away = False
        foreseen = preview(runner(), Scope(only=only))

        batch = runner().backfill(only=only)
        work_off()

        assert (foreseen.planned, batch.planned) == (6, 6)
        assert [group.reason for group in foreseen.groups if group.rows] == ["preparable"]
        assert runner().progress().succeeded == 6


def test_runners_of_one_node_share_their_runs(documents):
    one, other = declare(NAME="OneRunner"), declare(NAME="OtherRunner")
    with installed(one, other):
        one().run()

        assert other().run().planned == 0


@pytest.mark.parametrize(
    ("configuration", "is_another"),
    [({"a": 100.0}, False), ({"a": 101}, True), ({"a": 100, "b": None}, True)],
)
def test_the_configuration_is_part_of_the_node(documents, configuration, is_another):
    one = declare(ANALYSIS_CONFIGURATION={"a": 100})
    other = declare(ANALYSIS_CONFIGURATION=configuration)
    with installed(one):
        one().run()
    with installed(other):
        assert other().run().planned == (6 if is_another else 0)


def test_adopted_rows_are_up_to_date_until_they_change(documents):
    runner = declare()
    with installed(runner):
        assert runner().adopt(Document.objects.exclude(title="title 0")) == 5
        assert runner().run().planned == 1
        Document.objects.filter(title="title 1").update(title="new")
        assert runner().run().planned == 1


def test_ignored_rows_are_left_alone_until_they_change(documents):
    runner = declare()
    with installed(runner):
        assert runner().ignore() == 6
        assert runner().run().planned == 0
        assert runner().progress().ignored == 6
        Document.objects.filter(title="title 1").update(title="new")
        assert runner().run().planned == 1
        assert runner().progress().ignored == 5


def test_what_is_planned_in_the_same_millisecond_shares_no_chunk(documents, monkeypatch):
    """A window that has both good rows and rows whose input fails makes two blocks of chunks."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    monkeypatch.setattr(secrets, "randbits", lambda bits: 1 << bits - 1)
    runner = declare(
        INPUT_FIELDS=None,
        get_instance_representation=lambda self, row: {"inverse": 1 / row.pk.__sub__(failing)},
    )
    failing = documents[2].pk

    with installed(runner):
        runner().run()

    sizes = Counter(Run.objects.values_list("chunk_id", flat=True))
    assert sorted(sizes.values()) == [1, 5]
    assert {chunk.pk: chunk.size for chunk in Chunk.objects.all()} == sizes


@pytest.fixture
def before_superseding(monkeypatch) -> list[Callable[[], Any]]:
    """Events between a planner's reading of the runs to supersede and its superseding them."""
    meanwhile: list[Callable[[], Any]] = []
    supersede = statements.supersede

    def later(*args: Any, **kwargs: Any) -> dict[int, int]:
        for each in meanwhile:
            each()
        return supersede(*args, **kwargs)

    monkeypatch.setattr(statements, "supersede", later)
    return meanwhile


def test_a_run_that_ends_on_the_new_input_as_it_is_superseded_stands(before_superseding):
    document = Document.objects.create(title="a")
    with installed(runner_class := declare()):
        runner_class().run()
        Document.objects.filter(pk=document.pk).update(title="b")
        before_superseding.append(work_off)

        assert runner_class().run().planned == 0
        work_off()

        assert statuses() == [Run.Status.SUCCEEDED]
        assert runner_class().progress().total == 1


def test_a_run_that_ends_on_the_old_input_as_it_is_superseded_is_followed(before_superseding):
    document = Document.objects.create(title="a")
    with installed(runner_class := declare()):
        runner_class().run()
        Document.objects.filter(pk=document.pk).update(title="b")
        before_superseding.append(lambda: Run.objects.update(status=Run.Status.SUCCEEDED))

        assert runner_class().run().planned == 1


@pytest.mark.parametrize("is_ignored", [True, False])
def test_a_failed_run_that_is_ignored_as_it_is_retried_stays_ignored(
    before_superseding, is_ignored
):
    def fail(value: Any) -> None:
        raise ValueError

    Document.objects.create(title="a")
    with installed(runner_class := declare(fail, MAX_ATTEMPTS=1)):
        runner_class().run()
        work_off()
        if is_ignored:
            before_superseding.append(lambda: Run.objects.update(status=Run.Status.CANCELLED))

        assert runner_class().retry().planned == (not is_ignored)


@pytest.fixture
def measurement() -> Measurement:
    return Measurement.objects.create(
        taken_on=dt.date(2026, 3, 4), lasted=dt.timedelta(days=40, seconds=5), value=0.1
    )


MEASUREMENTS = {
    "DATA_MODEL": Measurement,
    "INPUT_FIELDS": ("taken_on", "lasted", "value"),
    "get_instance_representation": lambda self, instance: {"value": instance.value},
}


@pytest.mark.skipif(connection.vendor != "postgresql", reason="only it has several ways")
def test_how_a_session_writes_intervals_changes_no_input(measurement):
    runner = declare(**MEASUREMENTS)
    with installed(runner):
        runner().run()
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL IntervalStyle = 'sql_standard'")

        assert runner().run().planned == 0


@pytest.mark.parametrize(
    "change",
    [
        {"taken_on": dt.date(2026, 3, 5)},
        {"lasted": dt.timedelta(days=40, seconds=5, microseconds=1)},
        {"value": 0.1 + 2**-56},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_smallest_change_of_a_value_is_one(measurement, change):
    runner = declare(**MEASUREMENTS)
    with installed(runner):
        runner().run()
        assert runner().run().planned == 0
        Measurement.objects.update(**change)

        assert runner().run().planned == 1


@pytest.mark.skipif(connection.vendor != "postgresql", reason="only it inserts in two ways")
@pytest.mark.django_db(transaction=True)
def test_a_row_that_somebody_else_plans_at_the_same_time_is_planned_once(documents, set_constants):
    set_constants(statements, WORTH_A_SAVEPOINT=1)
    runner_class = declare()

    def plan() -> tuple[Batch, list[str]]:
        try:
            with CaptureQueriesContext(connection) as queries:
                return runner_class().run(), [query["sql"] for query in queries]
        finally:
            connection.close()

    with installed(runner_class), ThreadPoolExecutor(1) as other:
        runner_class().get_node()
        with transaction.atomic():
            plan_keys(runner_class(), [documents[3].pk])
            planning = other.submit(plan)
            until(has_somebody_waiting)
        batch, statements_sent = planning.result(timeout=10)

    inserts = [sql for sql in statements_sent if 'INSERT INTO "autorun_run"' in sql]
    assert ["ON CONFLICT" in sql for sql in inserts] == [False, True]
    assert set(current_runs()) == {document.pk for document in documents}
    assert (batch.planned, Run.objects.count()) == (5, 6)


def has_somebody_waiting() -> bool:
    """Whether another session of the database waits for a lock of this one."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_locks WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))")
        return cursor.fetchone() is not None


def test_rows_that_others_plan_again_and_again_are_left_pending(documents, monkeypatch, caplog):
    numbers = itertools.count(1)
    # As if another process planned a row before each insert, and the row changed after it.
    monkeypatch.setattr(statements, "insert", lambda *args, **options: 0)
    monkeypatch.setattr(
        statements, "count", lambda *args, **options: statements.Counts(next(numbers), missing=1)
    )
    with installed(runner_class := declare()):
        assert runner_class().run().planned == 0

    assert "some rows change too fast" in caplog.text


def test_given_keys_in_any_order_are_planned_once(documents, set_constants):
    set_constants(named, KEYS_AT_ONCE=3)
    keys = [document.pk for document in documents]
    with installed(runner := declare()):
        assert plan_keys(runner(), keys[::-1] + keys[:1]).planned == len(keys)
        assert plan_keys(runner(), keys[::-1]).planned == 0

        # What is compared ends with the keys that are given.
        Document.objects.update(title="new")
        assert plan_keys(runner(), keys[1:-1]).planned == len(keys) - 2
