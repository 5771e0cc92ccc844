"""Landing: writing a project's own rows in the transaction that records the success.

So both the success and its landed row exist, or neither does. This is the one place where user
code, `save_outputs()`, runs inside a transaction of autorun's; its time and its waits are bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

from django.db import OperationalError, connections
from django.db.models import Field, Model, QuerySet

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.interruption import time_limit
from autorun.declare.nodes import node_of
from autorun.exceptions import AutorunError
from autorun.execution.results import Lands, Result
from autorun.models import Chunk, Node
from autorun.state.clock import DatabaseNow
from autorun.state.keys import key_kind
from autorun.state.transactions import has_waited
from autorun.state.user_code import UserCode
from autorun.state.waits import bounded_idleness, bounded_waits

#: Seconds that `save_outputs()` may take for the results of one transaction.
HOOK_SECONDS = 5.0
#: Seconds without a statement after which the server ends the transaction, where no signal does.
IDLE_SECONDS = 10
#: Parameters of one statement.
MOST_PARAMETERS = 10_000

#: The length or precision of a column's type.
_MODIFIER = re.compile(r"\([\d, ]+\)")

_AnyField: TypeAlias = "Field[Any, Any]"


class Landed(NamedTuple):
    """A success: the primary key of its row, its outputs as plain JSON, and the id of its run."""

    key: Any
    outputs: Any
    run: int


class NotLanded(Exception):
    """Outputs that could not be landed; the cause says why."""


def landing_of(runner: Runner, chunk: Chunk) -> Lands:
    """The object that lands the chunk's outputs, for a runner with landings.

    Those of another version or configuration are not landed: a candidate's are only compared.
    """
    with suppress(AutorunError):
        if node_of(runner).pk != chunk.node_id:
            return Unlanded(chunk.node_id)
    return Landing(runner)


class Unlanded:
    """Notes that a node has outputs that are not landed: `autorun.execution.unlanded` does so."""

    keeps_outputs = True

    def __init__(self, node_id: int) -> None:
        self._node_id = node_id

    def land(self, results: Sequence[Result]) -> None:
        note_unlanded(Node.objects.filter(pk=self._node_id))


def note_unlanded(nodes: QuerySet[Node]) -> None:
    """Note, within the caller's transaction, that the nodes' outputs until now are not landed."""
    # The time of a statement that waits for the lock would be from before the wait.
    list(nodes.select_for_update().order_by("pk").values_list("pk"))
    nodes.update(unlanded_at=DatabaseNow())


class Landing:
    """Lands the outputs of a runner's successes, as its options and its hook say."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._kind = key_kind(runner.get_model())
        self._has_hook = runner.overrides("save_outputs")
        self.keeps_outputs = runner.STORE_OUTPUTS

    def land(self, results: Sequence[Result]) -> None:
        """Write the project's rows for successes. Raises NotLanded, except for conflicts."""
        connection = connections[settings.DATABASE]
        try:
            # In the same order in all processes, to avoid deadlocks.
            landed = sorted(map(self._landed, results), key=_order)
            with bounded_waits(connection):
                if self._runner.OUTPUT_MODEL is not None:
                    self._upsert(landed)
                elif self._runner.OUTPUT_FIELDS:
                    self._update(landed)
                if self._has_hook:
                    self._call(landed)
                if connection.vendor == "postgresql":
                    # Otherwise one dangling foreign key would fail the commit for all.
                    connection.check_constraints()
        except OperationalError as error:
            if has_waited(error):  # for a lock that the project holds on one of the rows
                raise NotLanded from error
            raise
        # Whatever a hook raises is its own, even SystemExit.
        except BaseException as error:
            raise NotLanded from error

    def _landed(self, result: Result) -> Landed:
        return Landed(
            self._kind.to_pk(result.key), json.loads(result.outputs or "null"), result.run_id
        )

    def _call(self, landed: Sequence[Landed]) -> None:
        owner = f"{self._runner.label}.save_outputs()"
        message = f"{owner} took longer than {HOOK_SECONDS:g} s."
        connection = connections[settings.DATABASE]
        with (
            bounded_idleness(connection, IDLE_SECONDS),
            UserCode(owner),
            time_limit(HOOK_SECONDS, message=message),
        ):
            self._runner.save_outputs(landed)

    def _update(self, landed: Sequence[Landed]) -> None:
        """Write OUTPUT_FIELDS to the rows themselves: one UPDATE for each table."""
        model = self._runner.get_model()
        named = self._runner.output_fields
        by_owner: dict[type[Model], list[tuple[str, _AnyField]]] = {}
        for path, name in named.items():
            field: Any = model._meta.get_field(name)
            by_owner.setdefault(field.model, []).append((path, field))
        for owner, fields in by_owner.items():
            rows = [
                (each.key, *(value_at(each.outputs, path) for path, _ in fields)) for each in landed
            ]
            most = max(1, MOST_PARAMETERS // (len(fields) + 1))
            for begin in range(0, len(rows), most):
                _update_rows(
                    owner,
                    [owner._meta.pk, *(field for _, field in fields)],
                    rows[begin : begin + most],
                )

    def _upsert(self, landed: Sequence[Landed]) -> None:
        """Write a row of OUTPUT_MODEL for each success, found by OUTPUT_KEY."""
        model, key = self._runner.OUTPUT_MODEL, self._runner.OUTPUT_KEY
        if model is None or key is None:  # a check says so
            raise ValueError("OUTPUT_MODEL needs an OUTPUT_KEY.")
        named = self._runner.output_fields
        attname = model._meta.get_field(key).attname  # type: ignore[union-attr]
        rows, written = [], dict.fromkeys(named.values())
        for each in landed:
            values = {name: value_at(each.outputs, path) for path, name in named.items()}
            if not named:
                values = _fields_of(model, each.outputs)
                written |= dict.fromkeys(values)
            rows.append(model(**{attname: each.key}, **_attributes(model, values)))
        stamps = [
            each.name for each in model._meta.concrete_fields if getattr(each, "auto_now", False)
        ]
        _write_rows(model, key, rows, [*written, *stamps] or [key])


def value_at(outputs: Any, path: str) -> Any:
    """The value at a path such as "size__mean"; the outputs themselves for an empty one."""
    found = outputs
    for name in path.split("__") if path else ():
        is_item = isinstance(found, list) and name.isdecimal() and int(name) < len(found)
        if not is_item and not (isinstance(found, Mapping) and name in found):
            raise KeyError(f"The outputs have no {path!r}: they are {_shown(outputs)}.")
        found = found[int(name) if is_item else name]
    return found


def _fields_of(model: type[Model], outputs: Any) -> dict[str, Any]:
    if not isinstance(outputs, Mapping):
        raise TypeError(f"The outputs are {_shown(outputs)}, not a dict of {model._meta.label}.")
    names = {each.name for each in model._meta.concrete_fields}
    if unknown := outputs.keys() - names:
        raise KeyError(f"{model._meta.label} has no field {min(unknown)!r}.")
    return dict(outputs)


def _attributes(model: type[Model], values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values as attributes of an instance; for a foreign key, the key that it holds."""
    fields: list[Any] = [model._meta.get_field(name) for name in values]
    return {each.attname: _python(each, values[each.name]) for each in fields}


def _shown(value: Any) -> str:
    return f"the keys {', '.join(value)}" if value and isinstance(value, dict) else repr(value)[:60]


def _order(landed: Landed) -> Any:
    return landed.key if isinstance(landed.key, int) else str(landed.key)


def _write_rows(model: type[Model], key: str, rows: Sequence[Any], changed: Sequence[str]) -> None:
    """Insert the rows, or change those fields of the rows that have the same key."""
    manager = model._base_manager.using(settings.DATABASE)
    if connections[settings.DATABASE].features.supports_update_conflicts_with_target:
        manager.bulk_create(rows, update_conflicts=True, unique_fields=[key], update_fields=changed)
        return
    # MariaDB would also change a row that has another unique field in common.
    fields: list[Any] = [model._meta.get_field(name) for name in (key, *changed)]
    by_key = {str(getattr(row, fields[0].attname)): row for row in rows}
    there = manager.select_for_update().filter(**{f"{key}__in": list(by_key)}).order_by("pk")
    found = map(str, there.values_list(key, flat=True))
    known = [by_key.pop(each) for each in found if each in by_key]
    manager.bulk_create(by_key.values())
    if known:
        values = [[field.pre_save(row, False) for field in fields] for row in known]
        _update_rows(model, fields, values)


def _update_rows(model: type[Model], columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
    """Set the columns of the rows that the first one finds; without signals."""
    connection = connections[settings.DATABASE]
    quote = connection.ops.quote_name
    is_mysql = connection.vendor == "mysql"
    params: list[Any] = []
    tuples: list[str] = []
    for row in rows:
        placeholders = []
        for number, (field, value) in enumerate(zip(columns, row, strict=True), 1):
            prepared = field.get_db_prep_save(_python(field, value), connection)
            placeholders.append(f"%s AS column{number}" if is_mysql else "%s")
            params.append(prepared)
        tuples.append(", ".join(placeholders))
    if is_mysql:
        source = " UNION ALL ".join(f"SELECT {each}" for each in tuples)
    else:
        source = f"VALUES {', '.join(f'({each})' for each in tuples)}"
    changes = []
    for number, field in enumerate(columns, 1):
        value = f"s.column{number}"
        if connection.vendor == "postgresql":
            kind = field.rel_db_type(connection) if field.primary_key else field.db_type(connection)
            # A cast to varchar(10) would cut longer texts silently.
            value = f"{value}::{_MODIFIER.sub('', kind)}"
        changes.append(f"{quote(field.column)} = {value}")
    (match, *changed) = changes
    table = quote(model._meta.db_table)
    sql = (
        f"UPDATE {table} JOIN ({source}) AS s ON {table}.{match} SET {', '.join(changed)}"
        if is_mysql
        else f"UPDATE {table} SET {', '.join(changed)} FROM ({source}) AS s WHERE {table}.{match}"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


def _python(field: Any, value: Any) -> Any:
    """A JSON value as the field holds it: a date for a text; anything for a JSON field."""
    if value is None or field.get_internal_type() == "JSONField":
        return value
    return field.target_field.to_python(value) if field.is_relation else field.to_python(value)
