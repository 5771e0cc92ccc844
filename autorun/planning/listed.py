"""Long lists of keys, `filter(pk__in=keys)`: cut into parts, each a parameter of its statements.

With a parameter for each key, every statement of every window carries the whole list: 100,000 keys
took 14 s on PostgreSQL, and SQLite refuses 250,000.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from django.db.models import CharField, QuerySet, TextField, UUIDField
from django.db.models.expressions import Col
from django.db.models.lookups import In

from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.state.keys import key_kind, kind_of
from autorun.state.sql import recordset

#: Shorter lists are left as they are.
LONG = 2_000
#: Keys in a part.
PART = 50_000


class Part(NamedTuple):
    """A part of a queryset: its rows, all rows of its keys, unfiltered, and the last key."""

    rows: QuerySet[Any]
    among: QuerySet[Any]
    last_key: str


class Listed(In):
    """`pk IN` keys that travel as one parameter, if the database compares them alike."""

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        kind, is_mysql = kind_of(self.lhs.output_field), connection.vendor == "mysql"
        is_text = isinstance(kind.field, CharField | TextField | UUIDField) and not is_mysql
        if not (kind.is_integer or is_text):
            return super().as_sql(compiler, connection)
        keys: Any = [key for key in self.rhs if key is not None]
        if not kind.is_integer:
            keys = (str(kind.field.get_db_prep_value(each, connection)) for each in keys)
        listed = recordset(connection, {"k": kind.sql_type}, ([key] for key in keys))
        needs_uuid = connection.vendor == "postgresql" and isinstance(kind.field, UUIDField)
        column = "CAST(k AS uuid)" if needs_uuid else "k"
        lhs, params = self.process_lhs(compiler, connection)
        return f"{lhs} IN (SELECT {column} FROM ({listed.sql}) AS l)", [*params, *listed.params]


def is_long(queryset: QuerySet[Any]) -> bool:
    """Whether the queryset is limited to a long list of keys."""
    conditions, place = _conditions(queryset)
    return place is not None and len(conditions[place].rhs) >= LONG


def parts(runner: Runner, queryset: QuerySet[Any], *, after: str, up_to: str) -> Iterator[Part]:
    """The parts of a long `queryset` with keys in (after, up_to], in the order of the database."""
    every = every_row(runner).filter(pk__in=[])
    conditions, place = _conditions(queryset)
    keys = conditions[place].rhs
    kind = key_kind(runner.get_model())
    least, most = (kind.to_pk(bound) if bound else None for bound in (after, up_to))
    if kind.is_integer:
        found = sorted(key for key in keys if key is not None)
        found = found[0 if least is None else bisect_right(found, least) :]
        found = found[: len(found) if most is None else bisect_right(found, most)]
    else:
        # Only the database knows the order of its texts.
        named = _limited(every, keys).order_by("pk")
        named = named if least is None else named.filter(pk__gt=least)
        named = named if most is None else named.filter(pk__lte=most)
        found = list(kind.values(named))
    for first in range(0, len(found), PART):
        some = [kind.to_pk(key) for key in found[first : first + PART]]
        last_key = str(found[first + PART - 1]) if first + PART < len(found) else ""
        yield Part(_limited(queryset, some), _limited(every, some), last_key)


def _conditions(queryset: QuerySet[Any]) -> tuple[list[Any], Any]:
    """The conditions that all rows meet, and the place of `pk__in=[...]` among them, or None."""
    query: Any = queryset.query
    if query.combinator or query.where.connector != "AND" or query.where.negated:
        return [], None
    for place, each in enumerate(query.where.children):
        is_list = isinstance(each, In) and type(each) is not Listed and each.rhs_is_direct_value()
        if is_list and isinstance(each.lhs, Col) and each.lhs.target == query.get_meta().pk:
            return query.where.children, place
    return [], None


def _limited(queryset: QuerySet[Any], keys: Sequence[Any]) -> QuerySet[Any]:
    """The queryset with other keys in place of its list."""
    limited = queryset.all()
    limited.query.where = queryset.query.where.clone()
    conditions, place = _conditions(limited)
    conditions[place] = Listed(conditions[place].lhs, keys)
    return limited
