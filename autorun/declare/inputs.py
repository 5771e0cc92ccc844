"""Inputs: how each of INPUT_FIELDS is expressed in SQL, and how its value is given to Python.

A path follows relations to a field, and from there leads to a key of JSON or through transforms. A
value in the row's own columns is read from the instance. Any other value is read by the expression
of its fingerprint, so Python has it for every row that SQL finds.
"""

import datetime as dt
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from functools import cache, cached_property, reduce
from operator import attrgetter
from pathlib import PurePath
from typing import Any
from uuid import UUID

from django.db import models
from django.db.models import F, OuterRef, Subquery
from django.db.models.fields.files import FieldFile
from django.db.models.fields.json import KeyTransform

from autorun.declare.conversion import StoredText
from autorun.state.documents import found_at

_PLAIN = (
    *(type(None), str, int, float, Decimal, bytes, dict, UUID, Enum, PurePath),
    *(dt.date, dt.time, dt.timedelta),
)


@dataclass(frozen=True)
class Input:
    """One of INPUT_FIELDS: `field` is the last one on its `path`, `column` the path that SQL reads.

    `keys` lead on into a JSON document. If `may_dangle`, a related row may be missing.
    """

    model: type[models.Model]
    path: str
    field: Any
    column: str
    keys: tuple[str, ...]
    is_own: bool
    may_dangle: bool

    def expression(self, path: str) -> Any:
        """The value at `path` of a row, NULL if a related row is missing."""
        if not self.may_dangle:
            return F(path)
        # A join would drop the row.
        rows = self.model._base_manager.order_by().filter(pk=OuterRef("pk"))
        return Subquery(rows.annotate(_autorun_value=F(path)).values("_autorun_value")[:1])

    @cached_property
    def annotation(self) -> str:
        """The attribute of an annotated instance that has the value of `column`."""
        return f"_autorun_{self.column.encode().hex()}"

    @cached_property
    def source(self) -> Any:
        """The expression that the fingerprint is made of."""
        value = self.expression(self.column)
        return reduce(lambda document, key: _AtKey(key, document), self.keys, value)

    @cached_property
    def read(self) -> Callable[[Any], Any]:
        """A function of an instance: the value in its row, for a call of the analysis."""
        is_plain = type(self.field).__module__ == models.CharField.__module__
        if self.is_own and is_plain and not isinstance(self.field, models.BinaryField):
            return attrgetter(self.field.attname)
        return self._read

    def _read(self, instance: Any) -> Any:
        if self.is_own:
            value = self.field.value_from_object(instance)
        else:
            if self.annotation not in vars(instance):
                rows = self.model._base_manager.using(instance._state.db).filter(pk=instance.pk)
                found = rows.annotate(**{self.annotation: self.expression(self.column)})
                setattr(instance, self.annotation, found.values_list(self.annotation)[0][0])
            value = getattr(instance, self.annotation)
        return self.converted(value, instance)

    def converted(self, value: Any, instance: Any) -> Any:
        """A value of `column` as it is given to Python."""
        if isinstance(self.field, models.FileField) and isinstance(value, str):
            value = self.field.attr_class(instance, self.field, value)
        return given(found_at(self.keys, value), self.field)


class _AtKey(KeyTransform):
    def as_postgresql(self, compiler: Any, connection: Any) -> Any:
        # Django's own operator finds a number only in a list, and not as a key.
        document, params, keys = self.preprocess_lhs(compiler, connection)
        return f"({document} #> %s)", (*params, keys)

    def as_mysql(self, compiler: Any, connection: Any) -> Any:
        document, params = compiler.compile(self.lhs)
        # MariaDB finds a key as it is written, and none that begins with a hyphen.
        written = {json.dumps(self.key_name, ensure_ascii=each) for each in (True, False)}
        paths = ["$"] if self.key_name[:1] == "-" else [f"$.{each}" for each in sorted(written)]
        sql = f"COALESCE({', '.join([f'JSON_EXTRACT({document}, %s)'] * len(paths))})"
        named = [each for path in paths for each in (*params, path)]
        try:
            place = int(self.key_name)
        except ValueError:
            return sql, named
        # There `$[0]` of no list is the whole, and a negative place is right in the first row only.
        from_end = f"CONCAT('$[', JSON_LENGTH({document}) {place}, ']')"
        at = from_end if place < 0 else f"'$[{place}]'"
        sql = f"IF(JSON_TYPE({document}) = 'ARRAY', JSON_EXTRACT({document}, {at}), {sql})"
        return sql, [*params * (3 if place < 0 else 2), *named]


def given(value: Any, field: Any) -> Any:
    """Return `value` of `field` as a plain Python value, or else as the text that stores it.

    An object that has no text, or that a JSON decoder has made, is returned unchanged.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [given(each, field) for each in value]
    if isinstance(value, FieldFile):
        return None if value.name is None else StoredText(value.name, value)
    if hasattr(value, "isempty"):
        return StoredText(_range_text(value), value)
    field = getattr(field, "base_field", field)  # of an array
    stored = field.get_prep_value(value)
    kind: Any = type(value)
    is_made = isinstance(field, models.JSONField) or kind.__str__ is object.__str__
    text = stored if isinstance(stored, _PLAIN) else value
    return value if is_made and text is value else StoredText(text, value)


def _range_text(value: Any) -> str:
    """Return a range as PostgreSQL writes it."""
    if value.isempty:
        return "empty"
    lower, upper = ("" if each is None else each for each in (value.lower, value.upper))
    return f"{'(['[value.lower_inc]}{lower},{upper}{')]'[value.upper_inc]}"


@cache
def input_of(model: type[models.Model], path: str) -> Input:
    """Return the input that `path` names; raise FieldDoesNotExist if it leads to no field."""
    names = path.split("__")
    passed: list[Any] = []
    current: Any = model
    while current is not None and len(passed) < len(names):
        name = names[len(passed)]
        passed.append(current._meta.pk if name == "pk" else current._meta.get_field(name))
        current = passed[-1].related_model
    field, rest = passed[-1], tuple(names[len(passed) :])
    is_document = isinstance(field, models.JSONField)
    return Input(
        model,
        path,
        field,
        column="__".join(names[: len(passed)]) if is_document else path,
        keys=rest if is_document else (),
        is_own=len(passed) == 1 and field.concrete and (is_document or not rest),
        may_dangle=any(not getattr(each, "db_constraint", True) for each in passed[:-1]),
    )


@cache
def value_annotations(inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Return annotations for the values of one field that are not in the row's own columns."""
    fields = [each for each in inputs if isinstance(each, Input) and not each.is_own]
    return {each.annotation: each.expression(each.column) for each in fields}
