"""Outputs of runners in querysets, to filter by, sort by and compute with.

scans = with_outputs(Scan.objects.all(), size=SizeRunner, thick=ThicknessRunner)
scans.filter(size__mean__gt=2).order_by("thick__mm")
"""

from functools import cache
from typing import Any, TypeVar

from django.db.models import F, Manager, Model, QuerySet

from autorun.conf import settings
from autorun.declare import hooks, registry
from autorun.declare.base import Runner
from autorun.exceptions import ImproperRunner
from autorun.observe.output_values import OutputValue
from autorun.state.keys import key_kind

Row = TypeVar("Row", bound=Model)


class OutputsQuerySet(QuerySet[Row]):
    """A queryset with `with_outputs()`, whose `values()` know the keys of outputs.

    objects = OutputsQuerySet.as_manager()
    """

    def with_outputs(
        self, *, stale: bool = False, **runners: type[Runner] | str
    ) -> "OutputsQuerySet[Row]":
        """The rows with the outputs of each runner, under the name of its argument."""
        return with_outputs(self, stale=stale, **runners)

    def _values(self, *fields: Any, **expressions: Any) -> Any:
        # Django's own looks for the annotation's keys among the fields of the model.
        keys = {
            name: F(name)
            for name in fields
            if name not in expressions and self._is_key_of_output(name)
        }
        values: Any = super()
        return values._values(*fields, **expressions, **keys)

    def _is_key_of_output(self, name: Any) -> bool:
        first, separator, _ = name.partition("__") if isinstance(name, str) else ("", "", "")
        return bool(separator) and isinstance(self.query.annotations.get(first), OutputValue)


def with_outputs(
    queryset: QuerySet[Row] | Manager[Row], *, stale: bool = False, **runners: type[Runner] | str
) -> "OutputsQuerySet[Row]":
    """Add the outputs of runners to `queryset`: those of each row's current success, or None.

    Each runner, a class or a label, is one subquery, under the name of its argument. With `stale`,
    a row whose run is pending, has failed or was cancelled has the outputs of its last success.
    Raises TypeError for a runner of another model, and ImproperRunner for one whose rows are in
    another database than autorun's tables.
    """
    if not runners:
        raise TypeError("with_outputs() needs a runner: with_outputs(queryset, size=SizeRunner).")
    rows: Any = queryset.all()
    rows.__class__ = _class_of(rows.__class__)
    values = {}
    for name, named in runners.items():
        if not isinstance(named, (type, str)):
            raise TypeError(f"with_outputs() takes the class or label of a runner, not {named!r}.")
        runner = registry.instance_of(named)
        _require_rows_of(runner, rows)
        key = key_kind(runner.get_model()).expression()
        values[name] = OutputValue(key, type(runner), stale=stale)
    annotated: OutputsQuerySet[Row] = rows.annotate(**values)
    return annotated


def _require_rows_of(runner: Runner, queryset: QuerySet[Any]) -> None:
    model = runner.get_model()
    if not hooks.is_of(queryset, model):
        raise TypeError(
            f"{runner.label} has outputs of {model._meta.label}, and the queryset is of "
            f"{queryset.model._meta.label}."
        )
    database = hooks.database_of(runner)
    if database != settings.DATABASE:
        raise ImproperRunner(
            f"The rows of {runner.label} are in the database {database!r} and their outputs in "
            f"{settings.DATABASE!r}, so one query cannot read both. Use {type(runner).__name__}()"
            ".records(queryset), which reads one after the other."
        )


@cache
def _class_of(queryset_class: Any) -> Any:
    """`queryset_class` with the methods of OutputsQuerySet."""
    if issubclass(queryset_class, OutputsQuerySet):
        return queryset_class
    if queryset_class is QuerySet:
        return OutputsQuerySet

    def reduce(self: Any) -> tuple[Any, ...]:  # pickle finds no class that is made at run time
        return _unpickled, (queryset_class,), self.__getstate__()

    bases = (OutputsQuerySet, queryset_class)
    combined: Any = type(queryset_class.__name__, bases, {"__reduce__": reduce})
    return combined


def _unpickled(queryset_class: Any) -> Any:
    return _class_of(queryset_class)()
