"""Outputs in querysets: the value at a path in the outputs of each row's success.

It is a subquery of one run, and its SQL has a type: that of the analysis's return annotation, or
else that of recorded outputs. So the database can compare it, sort by it and compute with it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from decimal import Decimal
from functools import cached_property, partial
from typing import Any

from django.core.exceptions import FieldError
from django.db import models
from django.db.models import Expression, F
from django.db.models.lookups import Exact

from autorun.declare import nodes, registry
from autorun.declare.base import Runner
from autorun.declare.returns import NUMBERS, Kind, common, kind_of, members_of, type_at
from autorun.models import Chunk, Run
from autorun.observe.records import LARGE
from autorun.state.documents import NORMALIZED, found_at, text_of
from autorun.state.encoding import Encoder
from autorun.state.keys import key_kind
from autorun.state.managers import RETIRED
from autorun.state.sql import table
from autorun.state.words import suggestion

#: The chunks and the runs in them whose outputs tell the type of one that is not annotated.
SAMPLED_CHUNKS = 3
SAMPLED_RUNS = 20

_FIELDS: dict[Kind, models.Field[Any, Any]] = {
    Kind.INTEGER: models.BigIntegerField(),
    Kind.NUMBER: models.FloatField(),
    Kind.DECIMAL: models.DecimalField(),
    Kind.TEXT: models.TextField(),
    Kind.BOOLEAN: models.BooleanField(),
    Kind.JSON: models.JSONField(),
}
#: Lookups by how they compare.
_OF_TEXT = ("startswith", "endswith", "regex")
_OF_ANY_CASE = ("iexact", "icontains", "istartswith", "iendswith", "iregex")
_OF_JSON = ("exact", "in")
_OF_SEVERAL = ("in", "range")
#: A number, or the text of a Decimal; `(?!.)` is its end. No database takes any exponent.
_DECIMAL = "'^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]{1,3})?(?!.)'"
#: SQL for a value by vendor and kind; `$` is the outputs and their path. A value of another kind is
#: NULL.
_EXTRACTED = "JSON_EXTRACT($)"
_SQL = {
    "postgresql": {
        Kind.INTEGER: "CASE JSONB_TYPEOF($) WHEN 'number' THEN ($)::numeric END",
        Kind.NUMBER: "CASE JSONB_TYPEOF($) WHEN 'number' THEN ($)::numeric END",
        Kind.DECIMAL: f"CASE WHEN ($) #>> '{{}}' ~ {_DECIMAL} THEN (($) #>> '{{}}')::numeric END",
        Kind.TEXT: "CASE JSONB_TYPEOF($) WHEN 'string' THEN ($) #>> '{}' END",
        Kind.BOOLEAN: "CASE JSONB_TYPEOF($) WHEN 'boolean' THEN ($)::boolean END",
        Kind.JSON: "$",
    },
    "mysql": {
        Kind.INTEGER: f"CASE WHEN JSON_TYPE({_EXTRACTED}) IN ('INTEGER', 'DOUBLE') "
        f"THEN CAST({_EXTRACTED} AS DECIMAL(65)) END",
        Kind.NUMBER: f"CASE WHEN JSON_TYPE({_EXTRACTED}) IN ('INTEGER', 'DOUBLE') "
        f"THEN CAST({_EXTRACTED} AS DOUBLE) END",
        Kind.DECIMAL: f"CASE WHEN JSON_UNQUOTE({_EXTRACTED}) RLIKE {_DECIMAL} "
        f"THEN CAST(JSON_UNQUOTE({_EXTRACTED}) AS DECIMAL(65, 30)) END",
        Kind.TEXT: f"CASE JSON_TYPE({_EXTRACTED}) WHEN 'STRING' "
        f"THEN JSON_UNQUOTE({_EXTRACTED}) END",
        Kind.BOOLEAN: f"CASE JSON_TYPE({_EXTRACTED}) WHEN 'BOOLEAN' "
        f"THEN JSON_UNQUOTE({_EXTRACTED}) = 'true' END",
        Kind.JSON: _EXTRACTED,
    },
    "sqlite": {
        Kind.INTEGER: f"CASE WHEN JSON_TYPE($) IN ('integer', 'real') THEN {_EXTRACTED} END",
        Kind.NUMBER: f"CASE WHEN JSON_TYPE($) IN ('integer', 'real') THEN {_EXTRACTED} END",
        Kind.DECIMAL: "CAST(CASE WHEN JSON_TYPE($) IN ('integer', 'real', 'text') "
        f"AND {_EXTRACTED} REGEXP {_DECIMAL} THEN {_EXTRACTED} END AS REAL)",
        Kind.TEXT: f"CASE JSON_TYPE($) WHEN 'text' THEN {_EXTRACTED} END",
        Kind.BOOLEAN: "CASE JSON_TYPE($) WHEN 'true' THEN 1 WHEN 'false' THEN 0 END",
        Kind.JSON: "CASE WHEN JSON_TYPE($) IN ('true', 'false', 'null') THEN JSON_TYPE($) "
        f"WHEN JSON_TYPE($) IS NOT NULL THEN JSON_QUOTE({_EXTRACTED}) END",
    },
}


class OutputValue(Expression):
    """The value at `path` in the outputs of the current success of the row with that key.

    With `stale`, it is in those of the row's last success if none is current. `kind` overrides the
    type that the value has by its annotation, or by what is recorded.
    """

    def __init__(
        self,
        key: Any,
        runner: type[Runner],
        path: tuple[str, ...] = (),
        *,
        stale: bool = False,
        kind: Kind | None = None,
    ) -> None:
        super().__init__()
        self.key = F(key) if isinstance(key, str) else key
        self.runner = runner
        self.path = path
        self.stale = stale
        self.given_kind = kind

    def get_source_expressions(self) -> list[Any]:
        return [self.key]

    def set_source_expressions(self, exprs: Any) -> None:
        [self.key] = exprs

    def _resolve_output_field(self) -> models.Field[Any, Any]:
        return _FIELDS[self.kind]

    @cached_property
    def kind(self) -> Kind:
        found = self.given_kind or kind_of(self._annotation)
        return found or _recorded_kind(self._runner, self.path)

    @property
    def _runner(self) -> Runner:
        return registry.instance_of(self.runner)

    @property
    def _annotation(self) -> Any:
        return type_at(self._runner.get_analysis().return_annotation, self.path)

    def as_kind(self, kind: Kind) -> OutputValue:
        return OutputValue(self.key, self.runner, self.path, stale=self.stale, kind=kind)

    # Keys and lookups

    def get_transform(self, name: str) -> Any:
        """The value at a key of this one. Raises FieldError if the annotation has no such key."""
        members = members_of(self._annotation)
        if members is not None and name not in members:
            advice = suggestion(name, members, otherwise=f"Keys: {', '.join(members)}.")
            raise FieldError(f"Outputs of {self._runner.label} have no key {name!r}. {advice}")
        if kind_of(self._annotation) not in (None, Kind.JSON):
            return None
        return partial(self._at, name)

    @staticmethod
    def _at(name: str, value: OutputValue) -> OutputValue:
        return OutputValue(value.key, value.runner, (*value.path, name), stale=value.stale)

    def get_lookup(self, name: str) -> Any:
        known = any(field.get_lookup(name) for field in _FIELDS.values())
        return partial(self._lookup, name) if known else None

    @staticmethod
    def _lookup(name: str, value: OutputValue, rhs: Any) -> Any:
        """The lookup over the value as what it is compared with: a number, a text, ..."""
        if name in _OF_SEVERAL and not hasattr(rhs, "resolve_expression"):
            rhs = list(rhs)
        kind = value._kind_for(name, rhs)
        typed: Any = value.as_kind(kind)
        if kind is Kind.JSON and name in _OF_JSON and not hasattr(rhs, "resolve_expression"):
            return _SameJSON(typed, rhs if name == "in" else [rhs])
        if name in _OF_ANY_CASE:
            typed = _InAnyCase(typed, output_field=_FIELDS[kind])
        lookup: Any = _FIELDS[kind].get_lookup(name)
        if lookup is None:
            raise FieldError(f"An output that is compared with {rhs!r} has no lookup {name!r}.")
        return lookup(typed, rhs if kind is Kind.JSON or name == "isnull" else _plain(rhs, kind))

    def _kind_for(self, name: str, rhs: Any) -> Kind:
        if name in (*_OF_TEXT, *_OF_ANY_CASE) and rhs is not None:
            return Kind.TEXT
        if name == "isnull" or _FIELDS[Kind.TEXT].get_lookup(name) is None:  # such as `has_key`
            return Kind.JSON
        if hasattr(rhs, "resolve_expression"):
            return self._kind_beside(_kind_of_field(getattr(rhs, "output_field", None)))
        if name == "contains":  # of a text, or of a list
            return self.kind if self.kind is Kind.TEXT else Kind.JSON
        return self._kind_among(rhs if name in _OF_SEVERAL else [rhs])

    def _kind_among(self, values: Collection[Any]) -> Kind:
        """The kind that all of the values have; JSON if they differ."""
        plain = [each for each in values if not hasattr(each, "resolve_expression")]
        kinds = {kind_of_value(each) for each in plain}
        for each in values:
            if hasattr(each, "resolve_expression"):
                kinds.add(_kind_of_field(getattr(each, "output_field", None)) or self.kind)
        kind = common(kinds) or Kind.JSON
        if kind is Kind.JSON and len(plain) < len(values):
            raise FieldError(
                f"An output of {self._runner.label} is compared with values of several types, some "
                "of them of other fields. Cast them to one type."
            )
        if kind is Kind.INTEGER and any(abs(each) >= LARGE for each in plain):
            kind = Kind.DECIMAL
        return self._kind_beside(kind)

    def _kind_beside(self, other: Kind | None) -> Kind:
        """The kind in which the value is compared with one of the kind `other`."""
        if other not in NUMBERS:
            return other or self.kind
        declared = kind_of(self._annotation)
        if declared is Kind.NUMBER:
            return declared
        return common((other, declared if declared in NUMBERS else Kind.NUMBER)) or other

    # SQL

    def as_sql(  # type: ignore[override]  # some lookups of Django 5.2 take a list only
        self, compiler: Any, connection: Any, **extra: Any
    ) -> tuple[str, list[Any]]:
        key, key_params = compiler.compile(self.key)
        value, params = value_sql(connection, "ours.outputs", self.path, self.kind)
        is_integer = key_kind(self._runner.get_model()).is_integer
        row = f"ours.object_id = {key} AND ours.object_key = ''"
        if not is_integer:
            row = f"ours.object_id = 0 AND ours.object_key = {key}"
        which, order = "AND ours.is_current = TRUE", ""
        if self.stale:
            which = f"AND ours.fingerprint <> '{RETIRED}'"
            order = " ORDER BY CASE WHEN ours.is_current THEN 0 ELSE 1 END, ours.id DESC LIMIT 1"
        sql = (
            f"(SELECT {value} FROM {table(Run, connection)} ours WHERE ours.node_id = %s AND {row} "
            f"AND ours.status = {Run.Status.SUCCEEDED:d} {which}{order})"
        )
        return sql, [*params, nodes.node_id_of(self._runner), *key_params]


def value_sql(
    connection: Any, outputs: str, path: tuple[str, ...], kind: Kind
) -> tuple[str, list[Any]]:
    """SQL for the value at `path` in the column `outputs`, and its parameters."""
    if kind is Kind.JSON and not path:
        return outputs, []
    template = _SQL[connection.vendor][kind]
    if connection.vendor == "postgresql":
        return template.replace("$", f"{outputs} #> %s"), [list(path)] * template.count("$")
    if connection.vendor == "sqlite" and set('"\\') & set("".join(path)):
        # Its paths know no escapes.
        place, named = f"{NORMALIZED}({outputs}, %s), '$'", json.dumps(path)
    else:
        quoted = partial(json.dumps, ensure_ascii=False)
        keys = (f"[{key}]" if key.isdecimal() else f".{quoted(key)}" for key in path)
        place, named = f"{outputs}, %s", "$" + "".join(keys)
    return template.replace("$", place), [named] * template.count("$")


class _SameJSON(Exact):
    """Whether a document is one of some, whatever the order of keys; None is a null of JSON."""

    prepare_rhs = False

    def as_sql(self, compiler: Any, connection: Any, **extra: Any) -> tuple[str, tuple[Any, ...]]:
        lhs, lhs_params = compiler.compile(self.lhs)
        text, given = "$", "%s::jsonb"
        if connection.vendor != "postgresql":
            text = text_of(self.lhs.output_field, connection.alias)
            given = text.replace("$", "%s")
        params = [*lhs_params] * text.count("$")
        for each in self.rhs:
            params += [json.dumps(Encoder().encode(each), ensure_ascii=False)] * given.count("%s")
        among = ", ".join([given] * len(self.rhs)) or "NULL"
        return f"{text.replace('$', lhs)} IN ({among})", tuple(params)


class _InAnyCase(models.Func):
    """A text of JSON, which MariaDB compares byte by byte, with a collation that ignores case."""

    template = "%(expressions)s"

    def as_mysql(self, compiler: Any, connection: Any) -> Any:
        template = "CONVERT(%(expressions)s USING utf8mb4) COLLATE utf8mb4_general_ci"
        return self.as_sql(compiler, connection, template=template)


def _recorded_kind(runner: Runner, path: tuple[str, ...]) -> Kind:
    """The kind of all recorded values at `path`, by a sample; JSON if they differ."""
    node = nodes.known_node_of(runner)
    known: dict[tuple[str, ...], Kind] = {} if node is None else vars(node).setdefault("kinds", {})
    if path not in known:
        values = [] if node is None else _sample(node.pk, path)
        if not values:
            return Kind.NUMBER  # nothing is recorded, so nothing is lost by it
        found = common(kind_of_value(each) for each in values if each is not None)
        known[path] = Kind.NUMBER if found in NUMBERS else found or Kind.JSON
    return known[path]


def _sample(node_id: int, path: tuple[str, ...]) -> list[Any]:
    chunks = Chunk.objects.of(node_id).filter(succeeded__gt=0).order_by("-pk")
    ids = list(chunks.values_list("pk", flat=True)[:SAMPLED_CHUNKS])
    runs = Run.objects.succeeded().filter(chunk__in=ids)[:SAMPLED_RUNS]
    return [found_at(path, outputs) for outputs in runs.values_list("outputs", flat=True)]


def kind_of_value(value: Any) -> Kind:
    return Kind.JSON if value is None else kind_of(type(value)) or Kind.TEXT


def _kind_of_field(field: Any) -> Kind | None:
    if isinstance(field, models.BooleanField):
        return Kind.BOOLEAN
    if isinstance(field, models.IntegerField):
        return Kind.INTEGER
    if isinstance(field, models.FloatField):
        return Kind.NUMBER
    if isinstance(field, models.DecimalField):
        return Kind.DECIMAL
    if isinstance(field, (models.CharField, models.TextField)):
        return Kind.TEXT
    return None


def _plain(rhs: Any, kind: Kind) -> Any:
    """Return a value, or each of several, as JSON has it: a date is a text there."""
    if isinstance(rhs, float) and kind is Kind.DECIMAL:
        return Decimal(repr(rhs))  # 0.1 itself, and not its 55 digits
    if hasattr(rhs, "resolve_expression") or isinstance(rhs, (str, int, float, Decimal)):
        return rhs
    if isinstance(rhs, Collection):
        return [_plain(each, kind) for each in rhs]
    return Encoder().encode(rhs)
