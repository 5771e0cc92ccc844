"""Outputs of rows, outside of querysets: of one row, and of all rows as flat dicts."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import partial
from operator import call
from typing import Any

from django.db.models import F, QuerySet

from autorun.declare import hooks, page_time
from autorun.declare.base import Runner
from autorun.declare.nodes import node_id_of
from autorun.declare.returns import Kind, kind_of, type_at
from autorun.exceptions import RunTimeout
from autorun.models import Run
from autorun.observe.run_states import state_of
from autorun.planning.rows import key_of, pages
from autorun.state.keys import Key, key_kind
from autorun.state.words import encodable

#: Rows that are read at once.
PAGE = 500
LARGE = 2**63
#: The columns of a record before those of the outputs.
OWN = ("key", "name", "state", "finished_at", "seconds")
#: The order of a row's successes: the current one, and then the newest.
_LAST_FIRST = (F("is_current").desc(nulls_last=True), "-pk")
_READ = (
    *("object_id", "object_key", "status", "is_current", "finished_at", "seconds", "outputs"),
    *("fingerprint", "build_id"),
)


def outputs_of(runner: Runner, instance: Any, *, stale: bool = False) -> Any:
    """The outputs of the row's current success, or with `stale` of its last one; None without.

    Raises TypeError for an instance of another model.
    """
    model = runner.get_model()
    if not hooks.is_of(type(instance)._default_manager.all(), model):
        raise TypeError(
            f"{runner.label} has outputs of {model._meta.label}, not of {instance._meta.label}."
        )
    kind = key_kind(model)
    named = hooks.every_row(runner).filter(pk=instance.pk)
    keys = [instance.pk] if kind.is_integer else list(kind.values(named))
    successes = _successes(runner, keys)
    runs = successes.order_by(*_LAST_FIRST) if stale else successes.current()
    return next(iter(runs.values_list("outputs", flat=True)[:1]), None)


@dataclass(frozen=True)
class Records:
    """Rows with their results as flat dicts, in the order of their keys; read in pages.

    They are the rows of `queryset`, or of the runner's base queryset; `among` may leave out some of
    a page. With `stale`, a row without a current success has the outputs of its last one. `step`
    makes the calls that run the project's code and queries, and may limit their time.
    """

    runner: Runner
    queryset: QuerySet[Any] | None = None
    stale: bool = False
    among: Callable[[list[Any]], Sequence[Any]] = list
    step: Callable[[Callable[[], Any]], Any] = call

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for instances, runs, successes in self.pages():
            names = self.step(partial(_names, instances))
            for instance, name in zip(instances, names, strict=True):
                key = key_of(instance)
                yield _record(instance, name, runs.get(key), successes.get(key))

    def columns(self) -> dict[str, set[Any]]:
        """The columns of all records, with the types that the values of each output have.

        An integer of more than 64 bits counts as a text. Instead of a type, a declared Decimal has
        the numbers of its digits before and after the point.
        """
        found: dict[str, set[Any]] = {name: set() for name in OWN}
        annotation = self.runner.get_analysis().return_annotation
        is_decimal: dict[tuple[str, ...], bool] = {}
        for _, runs, successes in self.pages():
            for run in {**runs, **successes}.values():
                if run.status != Run.Status.SUCCEEDED:
                    continue
                for path, value in leaves(run.outputs, ()):
                    if path not in is_decimal:
                        is_decimal[path] = kind_of(type_at(annotation, path)) is Kind.DECIMAL
                    kind = _type(value, is_decimal=is_decimal[path])
                    found.setdefault(_column(path), set()).add(kind)
        return found

    def pages(self) -> Iterator[tuple[Sequence[Any], dict[Key, Run], dict[Key, Run]]]:
        """Instances, with the current runs of their rows and other successes, by key."""
        found = self._pages()
        while (page := self.step(partial(next, found, None))) is not None:
            yield page

    def _pages(self) -> Iterator[tuple[Sequence[Any], dict[Key, Run], dict[Key, Run]]]:
        runner = self.runner
        if self.queryset is None:
            rows = hooks.base_queryset(runner)
        else:
            rows = hooks.as_plain(runner, self.queryset)
        kind = key_kind(runner.get_model())
        for page in pages(runner, rows.annotate(_autorun_key=kind.expression()), size=PAGE):
            instances = self.among(page)
            keys = [key_of(each) for each in instances]
            current = Run.objects.current().of(node_id_of(runner)).of_rows(kind, keys)
            current = current.select_related("chunk").only(*_READ, "chunk__state")
            runs = {kind.of(run): run for run in current}
            successes: dict[Key, Run] = {}
            if self.stale:
                without = [
                    key
                    for key in keys
                    if key not in runs or runs[key].status != Run.Status.SUCCEEDED
                ]
                last = _successes(runner, without).only(*_READ).order_by("pk")
                successes = {kind.of(run): run for run in last}
            yield instances, runs, successes


def _successes(runner: Runner, keys: Collection[Key]) -> Any:
    runs = Run.objects.of(node_id_of(runner)).succeeded().unretired()
    return runs.of_rows(key_kind(runner.get_model()), keys)


def _record(instance: Any, name: str, run: Run | None, success: Run | None) -> dict[str, Any]:
    result = success or run
    record = {
        "key": instance.pk if isinstance(instance.pk, int) else str(instance.pk),
        "name": name,
        "state": "missing" if run is None else state_of(run),
        "finished_at": None if result is None else result.finished_at,
        "seconds": None if result is None else result.seconds,
    }
    if result is not None and result.status == Run.Status.SUCCEEDED:
        found = leaves(result.outputs, ())
        record.update((_column(path), each) for path, each in found)
    return record


def _type(value: Any, *, is_decimal: bool) -> Any:
    if is_decimal and isinstance(value, str):
        with suppress(InvalidOperation):
            _, digits, exponent = Decimal(value).as_tuple()
            if isinstance(exponent, int):
                return max(0, len(digits) + exponent), max(0, -exponent)
    is_large = isinstance(value, int) and abs(value) >= LARGE
    return str if is_large else type(value)


def _names(instances: Sequence[Any]) -> list[str]:
    names = [f"{each._meta.verbose_name} {each.pk}" for each in instances]

    def ask() -> None:
        for place, each in enumerate(instances):
            try:
                names[place] = encodable(str(each))
            except Exception as error:  # a project's own __str__
                if isinstance(error, RunTimeout):
                    raise

    if instances:
        page_time.limited(f"{type(instances[0]).__name__}.__str__()", ask)
    return names


def _column(path: tuple[str, ...]) -> str:
    """The column of an output: a nested key is `a.b`; one that is not a dict is `outputs`."""
    name = ".".join(path)
    return f"outputs.{name}" if name in OWN else name or "outputs"


def leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The paths in `value`, which is at `path`, to values that are not dicts, with these values."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    else:
        yield path, value
