"""Tables whose writes triggers note, and the runners that read these tables.

Triggers in the database note the key of every row that is inserted, deleted or changed in a column
that counts, in the writer's own transaction. Upkeep turns the notes into runs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from django.core.exceptions import FieldError
from django.db import DatabaseError, connections
from django.db.models import Field, Model

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.hooks import call
from autorun.declare.nodes import node_id_of
from autorun.declare.sets import PK
from autorun.exceptions import AutorunError
from autorun.models import Node
from autorun.planning.candidates import candidates_in
from autorun.planning.rows import eligible, without_rows
from autorun.state.keys import concrete
from autorun.state.logs import get_logger
from autorun.triggers.on_save import shared_key

logger = get_logger(__name__)


class Reader(NamedTuple):
    """A runner that reads a table; `path` leads from the runner's rows to the keys of the table.

    It follows `relation`, which leads to many rows of the table, or to one.
    """

    runner: Runner
    path: str = PK
    relation: str = ""
    is_of_many: bool = False


@dataclass
class Table:
    """A table with triggers: `source` names it in the notes, and `key` is the field they note."""

    source: str
    model: type[Model]
    key: Field[Any, Any]
    readers: list[Reader] = field(default_factory=list)

    @property
    def name(self) -> str:
        return table_name(self.model)

    def columns(self) -> set[str] | None:
        """The columns whose change is noted; None for any, if one of the readers may read any."""
        # A column whose name is not one word is always noted.
        found = {str(self.key.column)}
        for reader in self.readers:
            read = columns_read(reader.runner)
            if read is None:
                return None
            found.update(
                column
                for each in self.model._meta.local_concrete_fields
                if (column := str(each.column)).lower() in read or not re.fullmatch(r"\w+", column)
            )
        return found


def table_name(model: type[Model]) -> str:
    """The name of the model's table, without a schema that `db_table` names by quotes."""
    return re.split(r'"\."', model._meta.db_table.strip('"'))[-1]


@cache
def tables() -> dict[str, Table]:
    """The tables that runners with ON_WRITE read, by their source, until others are registered."""
    found: dict[str, Table] = {}
    for runner in registry.runners():
        if not runner.ON_WRITE:
            continue
        with suppress(AutorunError):  # a system check says what is wrong with it
            of_many = {each.relation for each in call(runner, "related") if each.attname != PK}
            for key, path, relation in dict.fromkeys(_keys_read(runner)):
                source = key.model._meta.label_lower
                if not key.primary_key:
                    source += f".{key.attname}"
                table = found.setdefault(source, Table(source, key.model, key))
                table.readers.append(Reader(runner, path, relation, relation in of_many))
    return found


@cache
def columns_read(runner: Runner) -> frozenset[str] | None:
    """The words, in lower case, of the statement that plans the rows; None for any column."""
    # Python may read any column: in get_instance_representation(), or in a filter that asks the
    # database itself. Every column that the statement reads is a word of it.
    if not runner.is_fingerprinted_by_database:
        return None
    asked: list[str] = []

    def listen(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if Node._meta.db_table not in sql:
            asked.append(sql)
        return execute(sql, params, many, context)

    try:
        with connections[settings.DATABASE].execute_wrapper(listen):
            rows = eligible(runner, None, log_level=logging.DEBUG)
            is_asked = bool(asked)
            found = candidates_in(runner, without_rows(rows), node_id=node_id_of(runner))
    except (AutorunError, DatabaseError, FieldError, TypeError, ValueError) as error:
        logger.debug("%s: any column is watched: %s", runner.label, error)
        return None
    if is_asked or found is None:
        return None
    return frozenset(re.findall(r"\w+", found.source.sql.lower()))


def forget() -> None:
    tables.cache_clear()
    columns_read.cache_clear()


registry.on_change(forget)


def _keys_read(runner: Runner) -> Iterator[tuple[Any, str, str]]:
    """A key of each table that the runner reads, how its rows lead to it, and the relation."""
    for parent, path in _tables_of(call(runner, "get_model")):
        yield parent._meta.pk, path, ""
    for each in call(runner, "related"):
        if each.attname != PK:
            yield each.model._meta.get_field(each.attname), each.lookup, each.relation
            continue
        for parent, path in _tables_of(each.model):
            # The lookup ends in the primary key of the related row.
            yield parent._meta.pk, each.lookup.removesuffix(PK) + path, each.relation


def _tables_of(model: type[Model]) -> Iterator[tuple[type[Model], str]]:
    """The tables that hold a row of `model`, its own and those of its parents, and their paths."""
    own = concrete(model)
    yield own, PK
    for parent in dict.fromkeys(map(concrete, own._meta.all_parents)):
        steps = own._meta.get_path_to_parent(parent)
        path = "__".join(str(step.join_field.name) for step in steps)
        yield parent, PK if shared_key(own, parent) else path
