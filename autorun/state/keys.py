"""Keys: how autorun's tables name a row of the project, and how a key leads back to the row.

An integer primary key is stored in `object_id`, any other in `object_key`, as the database's own
text of it. A UUID is 32 hex digits on SQLite and dashed on PostgreSQL, so a text made by Python
would name no row on one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BooleanField, CharField, Expression, F, Func, TextField, UUIDField
from django.db.models.functions import Cast
from django.db.models.sql.compiler import SQLCompiler

from autorun.conf import settings
from autorun.state.documents import READABLE
from autorun.state.parameters import LEAST, LONGEST_TEXT, MOST, read_number

#: Raised for a value that cannot be a primary key.
NOT_A_KEY = (ValidationError, ValueError, TypeError, ArithmeticError)

#: The name of a row: an int for integer primary keys, otherwise the database's text for the key.
Key = int | str


class KeyText(Cast):
    """A primary key as text, with the collation of `object_key` instead of its column's own.

    PostgreSQL cannot hash text of some ICU collations, nor compare texts of different ones.
    """

    def as_postgresql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> Any:
        sql, params = super().as_postgresql(compiler, connection, **extra)
        return f'({sql} COLLATE "C")', params


class IsNameable(Func):
    """Whether autorun's tables can hold a text as a key, and the driver can read it.

    PostgreSQL holds no NUL, and SQLite may hold bytes that are not UTF-8.
    """

    output_field = BooleanField()

    def as_sql(  # type: ignore[override]
        self, compiler: Any, connection: Any, **_: Any
    ) -> tuple[str, list[Any]]:
        key, params = compiler.compile(self.source_expressions[0])
        conditions = []
        if connection.vendor == "sqlite":
            key = f"CAST({key} AS BLOB)"
            conditions.append(f"{READABLE}({key})")
        if connections[settings.DATABASE].vendor == "postgresql":
            conditions.append(f"INSTR({key}, x'00') = 0")
        return " AND ".join(conditions), [*params] * len(conditions)


@dataclass(frozen=True)
class KeyKind:
    field: models.Field[Any, Any]

    @cached_property
    def is_integer(self) -> bool:
        return isinstance(self.field, models.IntegerField)

    @cached_property
    def is_bigint(self) -> bool:
        """Whether every key is a signed number of 64 bits; MariaDB also has a BIGINT UNSIGNED."""
        return self.is_integer and not isinstance(self.field, models.PositiveBigIntegerField)

    @property
    def column(self) -> str:
        """The column of Run that holds such a key."""
        return "object_id" if self.is_integer else "object_key"

    @property
    def sql_type(self) -> str:
        """A column type of `autorun.state.sql`."""
        return "bigint" if self.is_integer else "text"

    def expression(self, reference: Callable[[str], Any] = F) -> Expression | F:
        """The key of a row, as a queryset of the model (or of an inner query) computes it."""
        if self.is_integer:
            found: F = reference("pk")
            return found
        return KeyText(reference("pk"), TextField())

    def condition(self, pks: Sequence[Any], using: str) -> Any:
        """Whether a row has one of the primary keys `pks`, for a filter of a query to `using`."""
        # PostgreSQL gets them as one parameter: for Django and psycopg, hundreds take longer than
        # the query takes.
        is_django_s = type(self.field).__module__ == models.Field.__module__
        is_plain = is_django_s and set(map(type, pks)) == {int}
        if not is_plain or connections[using].vendor != "postgresql":
            return models.Q(pk__in=pks)
        array = models.Value(f"{{{','.join(map(str, pks))}}}")
        template = "%(expressions)s::bigint[])"
        parts: dict[str, Any] = {"template": template, "arg_joiner": " = ANY("}
        return models.Func(F("pk"), array, output_field=models.BooleanField(), **parts)

    def stored(self, named: models.QuerySet[Any]) -> Any:
        """The primary keys that rows of autorun's name, as a subquery for `pk__in`."""
        column = F("object_id") if self.is_integer else Cast("object_key", self.field)
        return named.order_by().annotate(_autorun_pk=column).values("_autorun_pk")

    def nameable(self, rows: models.QuerySet[Any], key: str = "pk") -> models.QuerySet[Any]:
        """Those of the rows that autorun can name by that column; it sees no other rows."""
        from_to = connections[rows.db].vendor, connections[settings.DATABASE].vendor
        if self.is_integer:
            is_limited = not self.is_bigint and from_to[0] == "mysql"
            return rows.filter(**{f"{key}__lte": MOST}) if is_limited else rows
        is_limited = from_to[0] == "sqlite" or from_to == ("mysql", "postgresql")
        is_text = not isinstance(self.field, UUIDField)
        return rows.filter(IsNameable(F(key))) if is_text and is_limited else rows

    def values(self, queryset: models.QuerySet[Any]) -> models.QuerySet[Any, Key]:
        keyed: Any = queryset.annotate(_autorun_key=self.expression())
        keys: models.QuerySet[Any, Key] = keyed.values_list("_autorun_key", flat=True)
        return keys

    def lookup(self, key: Any) -> dict[str, Any]:
        """Keyword arguments that find the runs of `key`, which may be an expression."""
        if self.is_integer:
            return {"object_id": key, "object_key": ""}
        return {"object_id": 0, "object_key": key}

    def to_pk(self, key: Any) -> Any:
        """The primary key that `key` stands for; raises one of NOT_A_KEY if no row can have it."""
        pk = self.field.to_python(key)
        if pk is None:
            raise ValueError("No primary key is NULL.")
        if isinstance(pk, str):
            pk.encode()  # no database stores lone surrogates
        elif isinstance(pk, int) and (
            not LEAST <= pk <= MOST or (type(key) is float and pk != key)
        ):
            raise ValueError(f"{key!r:.60} is not a whole number from {LEAST:,} to {MOST:,}.")
        return pk

    def read(self, text: str, *, using: str | None = None) -> Any:
        """The primary key that an untrusted text stands for; None if no row can have it.

        With `using`, it may be one that this database can store, and autorun cannot.
        """
        if self.is_integer:
            most: int = MOST
            if using is not None and not self.is_bigint:
                kind = self.field.get_internal_type()
                most = connections[using].ops.integer_field_range(kind)[1]
            return read_number(text, least=LEAST, most=most)
        try:
            pk = self.to_pk(text)
        except NOT_A_KEY:
            return None
        # PostgreSQL refuses NUL in a text.
        return None if "\0" in text or len(text) > LONGEST_TEXT else pk

    def of(self, run: Any) -> Key:
        """The key a Run (or anything with its two columns) names."""
        key: Key = run.object_id if self.is_integer else run.object_key
        return key

    def spelled(self, key: Key) -> Key:
        """The key as Python writes the primary key: SQLite stores a UUID without dashes."""
        try:
            return key if self.is_integer else str(self.to_pk(key))
        except NOT_A_KEY:
            return key

    def is_ordered_alike(self, connection: BaseDatabaseWrapper) -> bool:
        """Whether the database orders these primary keys as it orders the keys in Run."""
        # If it does not, bounds on the primary key say nothing about bounds on the key.
        if self.is_integer:
            return True
        if isinstance(self.field, UUIDField):
            return connection.vendor in ("postgresql", "sqlite")
        is_plain = isinstance(self.field, CharField) and self.field.db_collation is None
        return is_plain and connection.vendor == "sqlite"


def as_json(pks: Iterable[Any]) -> list[Key]:
    """Primary keys as JSON can hold them, and as `to_pk` reads them."""
    return [pk if type(pk) is int else str(pk) for pk in pks]


def is_storable(key: object) -> bool:
    """Whether autorun's database can store `key`, which may be any value of JSON, as one."""
    if not isinstance(key, str):
        return type(key) in (int, float)
    try:
        key.encode()  # no database stores lone surrogates
    except UnicodeEncodeError:
        return False
    return "\0" not in key or connections[settings.DATABASE].vendor != "postgresql"


def concrete(model: type[models.Model]) -> type[models.Model]:
    """The model whose table has the rows: that of a proxy, else `model` itself."""
    return model._meta.concrete_model or model


def kind_of(field: Any) -> KeyKind:
    """How values of `field`, which may be a foreign key, are stored as keys."""
    while field.remote_field is not None:
        field = field.target_field
    return KeyKind(field)


#: How the rows of a model are named: found once for each model.
key_kind: Callable[[type[models.Model]], KeyKind] = cache(lambda model: kind_of(model._meta.pk))
