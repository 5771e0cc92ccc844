"""Rows of a runner: which are eligible, and their current input."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

from django.db import connections, models
from django.db.models import F, Q
from django.db.models.functions import Cast

from autorun.conf import settings
from autorun.declare import hooks
from autorun.declare.base import Runner
from autorun.declare.console import SILENT
from autorun.declare.inputs import input_of, value_annotations
from autorun.declare.nodes import node_id_of
from autorun.declare.registry import dependencies_of, inputs_from, sets_before
from autorun.declare.sets import OWNER, PK, Each, MembersInput, rows_in
from autorun.exceptions import WorkerLost
from autorun.models import UNPREPARED, Failure, Run
from autorun.planning import fingerprints
from autorun.planning.samples import in_sample
from autorun.state.exception_text import name_exception
from autorun.state.keys import NOT_A_KEY, Key, key_kind, kind_of
from autorun.state.logs import get_logger
from autorun.state.transactions import Halving
from autorun.state.user_code import UserCode

logger = get_logger(__name__)

NOT_REPRESENTED = object()
#: Keys that a line of the log names.
SOME_KEYS = 5
#: Seconds for which one block around user code represents rows.
MOMENT = 0.01


class Row(NamedTuple):
    """A row of the data model with its key and the fingerprint of its current input.

    `representation` is set if the fingerprint was made from it. `error` is the exception that
    preparing the input raised; the fingerprint is then UNPREPARED. `upstream` are the outputs that
    INPUT_FROM names, by argument, of a row that was loaded for its call.
    """

    key: Key
    instance: Any
    fingerprint: str
    representation: Any = NOT_REPRESENTED
    error: Exception | None = None
    upstream: Mapping[str, Any] = MappingProxyType({})


def planned_by_database(runner: Runner) -> bool:
    """Whether one SQL statement can plan this runner's rows; if not, Python checks each."""
    return runner.is_fingerprinted_by_database and hooks.database_of(runner) == settings.DATABASE


def eligible(
    runner: Runner, queryset: models.QuerySet[Any] | None, *, log_level: int
) -> models.QuerySet[Any]:
    """The rows that pass the runner's filter, and its dependencies if the database can tell.

    They are rows of `queryset`, or of the runner's base queryset if that is None. Raises
    ImproperRunner if a hook raises.
    """
    given = hooks.base_queryset(runner) if queryset is None else hooks.as_plain(runner, queryset)
    return _passing(runner, given, log_level=log_level)


def eligible_named(
    runner: Runner, keys: Iterable[Any], *, within_base: bool = True, is_probe: bool = False
) -> models.QuerySet[Any]:
    """The eligible rows whose primary keys are `keys`; none of them for a probe.

    `within_base=False` also finds rows outside of the base queryset, for runs that were requested
    with a queryset of the caller's own.
    """
    base = hooks.base_queryset(runner) if within_base else hooks.every_row(runner)
    pks = list(keys)
    is_one = len(pks) == 1
    named = base.filter(Q(pk__in=pks) if is_one else key_kind(base.model).condition(pks, base.db))
    if is_probe:
        named = without_rows(named)  # before the filter, which may read them
    return _passing(runner, named, log_level=SILENT)


def _passing(runner: Runner, rows: models.QuerySet[Any], *, log_level: int) -> models.QuerySet[Any]:
    passed = hooks.filtered(runner, rows, log_level=log_level)
    if runner.sample is not None:
        passed = in_sample(runner, passed)
    if runner.depends_on and planned_by_database(runner):
        passed = fingerprints.with_dependencies(runner, passed)
    return passed.order_by()  # by related rows, it would drop the rows without one


def primary_keys(runner: Runner, keys: Collection[Any], *, lookup: str = PK) -> list[Any]:
    """`keys` as values of the primary key, or of a lookup; logs and skips what cannot be one."""
    model = runner.get_model()
    kind = key_kind(model) if lookup == PK else kind_of(input_of(model, lookup).field)
    found = []
    for key in keys:
        try:
            pk = kind.to_pk(key)
            if isinstance(pk, str) and "\0" in pk:
                here, there = connections[settings.DATABASE], connections[hooks.database_of(runner)]
                if "postgresql" in (here.vendor, there.vendor):
                    raise ValueError("PostgreSQL has no NUL in a text.")
        except NOT_A_KEY:
            logger.warning("%s: %.100r is not a primary key.", runner.label, key)
        else:
            found.append(pk)
    return found


def unnameable(runner: Runner) -> str:
    """Some keys of rows that are left out because they cannot be stored or read; '' for none."""
    # It reads all keys of a model that may have such.
    named = hooks.every_row(runner)
    if not named.query.where:
        return ""
    every = named.model._base_manager.using(named.db).exclude(pk__in=named.values("pk"))
    is_on_sqlite = connections[named.db].vendor == "sqlite"
    column: Any = Cast("pk", models.BinaryField()) if is_on_sqlite else F("pk")
    return ", ".join(map(repr, every.values_list(column, flat=True)[:SOME_KEYS]))


def load(runner: Runner, keys: Collection[Key], *, within_base: bool) -> dict[Key, Row]:
    """Those of the rows named by `keys` that are still eligible, by key; one query for the rows.

    A row that cannot be loaded has an `error` and no instance.
    """
    to_pk = key_kind(runner.get_model()).to_pk
    found: dict[Key, Row] = {}

    def fail(key: Key, error: Exception) -> None:
        found[key] = Row(key, None, UNPREPARED, error=error)

    def probe() -> None:
        nothing = eligible_named(runner, map(to_pk, keys), within_base=within_base, is_probe=True)
        list(fingerprinted(runner, nothing))

    halving = Halving(list(keys), fail=fail, probe=probe, using=hooks.database_of(runner))
    for some in halving:
        try:
            named = eligible_named(runner, map(to_pk, some), within_base=within_base)
            instances = list(fingerprinted(runner, named))
            for each in runner.inputs:
                if isinstance(each, MembersInput):
                    each.attach(instances)
            rows = one_by_one(runner, instances)
            if runner.input_from:
                rows = _with_outputs(runner, list(filter(None, rows)))
            for row in rows:
                if row is not None:
                    found[row.key] = row
        except Exception as error:  # noqa: BLE001  halved, and raised if it hits all
            halving.errors.append(error)
    return found


def _with_outputs(runner: Runner, rows: Sequence[Row]) -> Iterator[Row]:
    """The rows with what INPUT_FROM names, except those that have lost it since they were read."""
    # It is read after the fingerprints: what is newer than a row's fingerprint is found by
    # planning.
    keys = [row.key for row in rows]
    found = {
        name: current_successes(each, keys, column="outputs")
        for name, each in inputs_from(runner).items()
    }
    for row in rows:
        if all(row.key in outputs for outputs in found.values()):
            upstream = {name: outputs[row.key] for name, outputs in found.items()}
            yield row._replace(upstream=upstream)


def without_rows(queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
    """`queryset` without its rows, but still executed by the database."""
    return queryset.extra(where=["1 = 0"])


def without_lethal(runner: Runner, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
    """`queryset` without the rows that have failed because processes died of preparing them."""
    # Those are prepared again when they are saved or retried.
    kind = key_kind(runner.get_model())
    died = Failure.objects.filter(
        exception_class=name_exception(WorkerLost),
        run__node=node_id_of(runner),
        run__is_current=True,
        run__fingerprint=UNPREPARED,
    )
    keys = list(died.values_list(f"run__{kind.column}", flat=True))
    return queryset.exclude(pk__in=map(kind.to_pk, keys)) if keys else queryset


def fingerprinted(runner: Runner, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
    """`queryset` with the annotations that `examined` reads."""
    kind = key_kind(runner.get_model())
    found = queryset
    if not kind.is_integer:  # the database has its own text of other keys
        found = found.annotate(_autorun_key=kind.expression())
    if runner.is_fingerprinted_by_database:
        # As text: a UUID would be turned back into 32 hex digits for each row.
        fingerprint = fingerprints.expression(
            runner, upstream=planned_by_database(runner), output_field=models.TextField()
        )
        found = found.annotate(_autorun_print=fingerprint, **value_annotations(runner.inputs))
    return found


def key_of(instance: Any) -> Key:
    """The key of an instance from `fingerprinted`, or of one annotated with `_autorun_key`."""
    is_annotated = hasattr(instance, "_autorun_key")
    # The `pk` property asks the model each time.
    key: Key = getattr(instance, "_autorun_key" if is_annotated else instance._meta.pk.attname)
    return key


def in_pages(runner: Runner, queryset: models.QuerySet[Any], *, size: int) -> Iterator[list[Any]]:
    """The instances of `queryset`, `fingerprinted`, in the order of their keys."""
    return pages(runner, fingerprinted(runner, queryset), size=size)


def pages(runner: Runner, queryset: models.QuerySet[Any], *, size: int) -> Iterator[list[Any]]:
    """The instances of `queryset`, annotated for `key_of`, in the order of their keys.

    `size` of them at a time; the last page has fewer, and may be empty.
    """
    kind = key_kind(runner.get_model())
    rows = queryset.order_by("pk")
    page = list(rows[:size])
    yield page
    while len(page) == size:
        page = list(rows.filter(pk__gt=kind.to_pk(key_of(page[-1])))[:size])
        yield page


def examined(runner: Runner, instances: Sequence[Any]) -> Iterator[Row]:
    """Instances from `fingerprinted` as rows, without those with unmet dependencies."""
    return (row for row in one_by_one(runner, instances) if row is not None)


def one_by_one(
    runner: Runner, instances: Sequence[Any], *, represent: Callable[[Any], object] | None = None
) -> Iterator[Row | None]:
    """Instances from `fingerprinted` as rows, None for those with unmet dependencies.

    `represent` replaces the runner's own `get_instance_representation`.
    """
    successes = None
    met = instances
    if runner.depends_on and not planned_by_database(runner):
        successes = _upstream_runs(runner, list(map(key_of, instances)))
        met = [instance for instance in instances if key_of(instance) in successes]
    represented = None
    if not runner.is_fingerprinted_by_database:
        represented = _represented(runner, met, represent or runner.get_instance_representation)
    for instance in instances:
        key = key_of(instance)
        if successes is not None and key not in successes:
            yield None
            continue
        row = next(represented) if represented else Row(key, instance, instance._autorun_print)
        if successes is not None:
            row = row._replace(fingerprint=fingerprints.combined(row.fingerprint, successes[key]))
        yield row


def _represented(
    runner: Runner, instances: Sequence[Any], represent: Callable[[Any], object]
) -> Iterator[Row]:
    """The instances as rows; those of a MOMENT are represented in one block around user code."""
    # If something had to be mended after a block, its rows are represented again, each in a block
    # of its own: one of them may have changed what the others read.
    user_code = UserCode(f"{runner.label}.get_instance_representation()")
    marks = [] if runner.ON_CODE_CHANGE == "warn" else [fingerprints.code_mark(runner)]
    done = alone_up_to = 0
    while done < len(instances):
        rows: list[Row] = []
        ends_at = time.monotonic() + MOMENT
        with user_code:
            for instance in islice(instances, done, None):
                rows.append(_row_of(instance, represent, marks))
                if done < alone_up_to or time.monotonic() >= ends_at:
                    break
        if user_code.has_mended and len(rows) > 1:
            alone_up_to = done + len(rows)
        else:
            yield from rows
            done += len(rows)


def _row_of(instance: Any, represent: Callable[[Any], object], marks: Sequence[str]) -> Row:
    key = key_of(instance)
    try:
        representation = represent(instance)
        fingerprint = fingerprints.fingerprint_of(representation)
        if marks:
            fingerprint = fingerprints.combined(fingerprint, marks)
        return Row(key, instance, fingerprint, representation)
    except Exception as error:  # noqa: BLE001  any exception is this row's failure
        return Row(key, instance, UNPREPARED, error=error)


def _upstream_runs(runner: Runner, keys: Collection[Key]) -> dict[Key, list[int | str]]:
    """The ids of the dependencies' successes, in order, by key; only keys that have them all."""
    # Those of a set follow the number of its members. INPUT_FROM counts by a print of the outputs.
    found: dict[Key, list[int | str]] = {key: [] for key in keys}
    read = {each.label for each in inputs_from(runner).values()}
    for dependency in dependencies_of(runner):
        marks: Mapping[Key, int | str]
        if dependency.label in read:
            outputs = current_successes(dependency, list(found), column="outputs")
            marks = {key: fingerprints.fingerprint_of(each) for key, each in outputs.items()}
        else:
            marks = current_successes(dependency, list(found))
        found = {key: [*earlier, marks[key]] for key, earlier in found.items() if key in marks}
    for each, upstream in sets_before(runner):
        members = members_of(runner, each, list(found))
        ids = current_successes(upstream, {member for some in members.values() for member in some})
        found = {
            key: [*earlier, len(members[key]), *sorted(ids[member] for member in members[key])]
            for key, earlier in found.items()
            if ids.keys() >= members[key]
        }
    return found


def members_of(runner: Runner, each: Each, keys: Sequence[Key]) -> dict[Key, set[Key]]:
    """The keys of the members of these rows' sets, by the key of the row."""
    kind = key_kind(runner.get_model())
    rows = rows_in(runner.get_model(), each).using(hooks.database_of(runner))
    rows = rows.filter(**{f"{OWNER}__in": list(map(kind.to_pk, keys))})
    rows = rows.annotate(
        _autorun_row=kind.expression(lambda _: F(OWNER)),
        _autorun_key=key_kind(rows.model).expression(),
    )
    found: dict[Key, set[Key]] = {key: set() for key in keys}
    for key, member in rows.values_list("_autorun_row", "_autorun_key"):
        found[key].add(member)
    return found


def current_successes(
    runner: Runner, keys: Collection[Key], *, column: str = "pk"
) -> dict[Key, Any]:
    """The ids, or another column, of the current successes of `runner` on these rows, by key."""
    kind = key_kind(runner.get_model())
    runs = Run.objects.current().succeeded().of(node_id_of(runner))
    return dict(runs.of_rows(kind, list(keys)).values_list(kind.column, column))
