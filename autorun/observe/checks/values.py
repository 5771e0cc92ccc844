"""Checks of the values of a runner's options, of the relations that they name, and of AUTORUN."""

from collections.abc import Iterator, Mapping
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.core.exceptions import FieldDoesNotExist
from django.db.models import CompositePrimaryKey, Model, Q

from autorun.conf import DEFAULTS, settings
from autorun.declare.base import BY_SETTING, Runner
from autorun.declare.sets import Each, Members, relation_at, rows_in
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.expectations import OPTION_VALUES, SETTINGS, advice, is_number
from autorun.observe.checks.problems import error, place, shown
from autorun.state.words import meant, suggestion

PLACE = "settings.AUTORUN"

#: A lease must outlast this many heartbeats, because one may get lost.
LEAST_BEATS = 2


def check_values(runner: Runner) -> Iterator[CheckMessage]:
    """E014-E017, E024: values of the runner's options."""
    for name, expected in OPTION_VALUES.items():
        value = getattr(runner, name)
        if value is not BY_SETTING and not expected.holds(value):
            yield error(runner, "E015" if name == "SCHEDULE" else "E014")(
                f"{name} is {shown(value)}. It must be {expected.words}.",
                f"Edit {place(runner)}: {advice(name, expected, value)}",
            )
    yield from _limit(runner)
    model = model_of(runner)
    if model is not None:
        yield from _input_fields(runner, model)
        yield from _queries(runner, model)


def _limit(runner: Runner) -> Iterator[CheckMessage]:
    limits: Any = settings.LIMITS
    name: Any = runner.LIMIT
    if not name or not isinstance(name, str) or not isinstance(limits, Mapping) or name in limits:
        return
    yield error(runner, "E024")(
        f"LIMIT is {name!r}, and AUTORUN['LIMITS'] has no such limit. "
        f"{suggestion(name, limits)}".rstrip(),
        f'Edit {place(runner)}, or the settings: AUTORUN = {{"LIMITS": {{"{name}": '
        "Limit(parallel=20)}}, with `from autorun.limits import Limit`.",
    )


def _input_fields(runner: Runner, model: type[Model]) -> Iterator[CheckMessage]:
    names = runner.INPUT_FIELDS
    if names is None:
        return
    if not isinstance(names, (tuple, list)):
        example = f"({names!r},)" if isinstance(names, str) else "a tuple of field names, or None"
        yield error(runner, "E016")(
            f"INPUT_FIELDS is {shown(names)}, not a tuple of field names.",
            f"Edit {place(runner)}: INPUT_FIELDS = {example}.",
        )
        return
    for name in names:
        if isinstance(name, Members):
            continue  # another check has a look at these
        problem = field_problem(model, name)
        if problem:
            yield error(runner, "E016")(
                f"INPUT_FIELDS has {shown(name)}: {problem[0]}",
                f"Edit INPUT_FIELDS in {place(runner)}. {problem[1]}",
            )


def field_problem(model: type[Model], path: Any) -> tuple[str, str] | None:
    """Why `path` does not name one value per row, and what to do; or None."""
    if not isinstance(path, str) or not path:
        return "it is not the name of a field.", f"Use names of fields of {model._meta.label}."
    current: Any = model
    field: Any = None
    for name in path.split("__"):
        if current is None:
            # The rest of the path may be a key of a JSON field, or a transform such as `year`.
            return None if field.get_transform(name) else _unknown_field(model, path, name)
        try:
            field = current._meta.pk if name == "pk" else current._meta.get_field(name)
        except FieldDoesNotExist:
            return _unknown_field(current, path, name)
        if problem := _no_single_value(field, path):
            return problem
        current = field.related_model if field.is_relation else None
    return None


def _no_single_value(field: Any, path: str) -> tuple[str, str] | None:
    if isinstance(field, CompositePrimaryKey):
        columns = ", ".join(map(repr, field.field_names))
        return f"{path} has several columns.", f"Name them instead: {columns}."
    if field.many_to_many or field.one_to_many:
        return (
            f"{field.name} gives several values per row.",
            f"Write Members({field.name!r}, ...), or read it in get_instance_representation().",
        )
    if field.is_relation and field.related_model is None:
        return (
            f"{field.name} is a generic relation, which has no column.",
            f"Name its columns instead: {field.ct_field!r} and {field.fk_field!r}.",
        )
    return None


def _unknown_field(model: type[Model], path: str, name: str) -> tuple[str, str]:
    known = sorted(
        each.name
        for each in model._meta.get_fields()
        if getattr(each, "concrete", False) and not each.many_to_many
    )
    close = meant(name, known)
    hint = f"Did you mean {path.replace(name, close)!r}?" if close else ""
    return (
        f"{model._meta.label} has no field {name!r}.",
        hint or f"Its fields: {', '.join(known)}.",
    )


def _queries(runner: Runner, model: type[Model]) -> Iterator[CheckMessage]:
    misfit = error(runner, "E017")
    problem = None if runner.BASE_QUERY is None else _query_problem(model, runner.BASE_QUERY)
    if problem:
        yield misfit(
            f"BASE_QUERY {problem}",
            f'Edit {place(runner)}: BASE_QUERY = Q(field="value"), or override '
            "get_base_queryset().",
        )
    filters: Any = {} if runner.FILTERS is None else runner.FILTERS
    if not isinstance(filters, Mapping):
        yield misfit(
            f"FILTERS is {shown(filters)}, not a dict.",
            f'Edit {place(runner)}: FILTERS = {{"recent": Q(...)}}.',
        )
        return
    for name, filter_ in filters.items():
        if not isinstance(name, str) or not name:
            problem = "has a name that is not a string."
        else:
            problem = None if callable(filter_) else _query_problem(model, filter_)
        if problem:
            yield misfit(
                f"FILTERS[{shown(name)}] {problem}",
                f"Edit FILTERS in {place(runner)}: names with a Q, or with a function that takes "
                "a queryset and returns one.",
            )


def _query_problem(model: type[Model], query: Any) -> str | None:
    if not isinstance(query, Q):
        return f"is {shown(query)}, not a Q."
    try:
        model._base_manager.filter(query)
    except Exception as problem:  # noqa: BLE001 - FieldError, ValidationError, TypeError, ...
        return f"cannot be applied to {model._meta.label}: {problem}"
    return None


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E101-E105: the AUTORUN dict, its names and values."""
    given = getattr(django_settings, "AUTORUN", None)
    if given is None:
        return []
    if not isinstance(given, dict):
        return [
            error(PLACE, "E101")(
                f"AUTORUN is {shown(given)}, not a dict.",
                'Edit the settings: AUTORUN = {"WINDOW": 1000}, for example, or remove it.',
            )
        ]
    return [*_names(given), *_values(given), *_lease(given), *_database(given)]


def _names(given: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    for name in given:
        if name in DEFAULTS:
            continue
        known = meant(str(name), DEFAULTS)
        question = f" Did you mean {known!r}?" if known else ""
        edit = f"Rename it to {known!r}" if known else "Remove it"
        yield error(PLACE, "E102")(
            f"AUTORUN has no setting {name!r}.{question}",
            f"{edit} in AUTORUN. Known names: {', '.join(DEFAULTS)}.",
        )


def _values(given: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    for name, expected in SETTINGS.items():
        if name not in given or expected.holds(given[name]):
            continue
        value = given[name]
        place = f"AUTORUN[{name!r}]"
        yield error(PLACE, "E103")(
            f"{place} is {shown(value)}. It must be {expected.words}.",
            f"Edit the settings: {advice(place, expected, value)}",
        )


def _lease(given: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    lease = given.get("LEASE", DEFAULTS["LEASE"])
    heartbeat = given.get("HEARTBEAT", DEFAULTS["HEARTBEAT"])
    if not (is_number(lease) and is_number(heartbeat)) or lease > LEAST_BEATS * heartbeat:
        return
    yield error(PLACE, "E104")(
        f"AUTORUN['LEASE'] is {lease:g} s and AUTORUN['HEARTBEAT'] {heartbeat:g} s: a worker that "
        "misses one heartbeat would lose its chunk.",
        f"Edit the settings: make LEASE more than {LEAST_BEATS} times HEARTBEAT; "
        f"{4 * heartbeat:g}, for example.",
    )


def _database(given: Mapping[Any, Any]) -> Iterator[CheckMessage]:
    alias = given.get("DATABASE", DEFAULTS["DATABASE"])
    if not isinstance(alias, str) or alias in django_settings.DATABASES:
        return
    aliases = ", ".join(map(repr, django_settings.DATABASES))
    yield error(PLACE, "E105")(
        f"AUTORUN['DATABASE'] is {alias!r}, which is not in DATABASES.",
        f"Edit the settings: choose one of {aliases}, or add {alias!r} to DATABASES.",
    )


def check_related(runner: Runner) -> Iterator[CheckMessage]:
    """E031 and E032: names in WATCH and Members that lead to no related rows."""
    model = model_of(runner)
    if model is not None:
        yield from _members(runner, model)
    watched: Any = runner.WATCH
    if not isinstance(watched, (tuple, list)):
        example = f"({watched!r},)" if isinstance(watched, str) else '("relation",)'
        yield error(runner, "E031")(
            f"WATCH is {shown(watched)}, not a tuple of names of relations.",
            f"Edit {place(runner)}: WATCH = {example}.",
        )
        return
    for path in watched if model else ():
        problem = relation_problem(model, path)
        if problem:
            yield error(runner, "E031")(
                f"WATCH has {shown(path)}: {problem[0]}",
                f"Edit WATCH in {place(runner)}. {problem[1]}",
            )


def _members(runner: Runner, model: type[Model]) -> Iterator[CheckMessage]:
    named: Any = runner.INPUT_FIELDS if isinstance(runner.INPUT_FIELDS, (tuple, list)) else ()
    names: list[Any] = []
    for each in named:
        names.append(each.name if isinstance(each, Members) else each)
        if not isinstance(each, Members):
            continue
        problem = set_problem(model, each)
        if problem is None:
            rows = rows_in(model, each)
            problems = (field_problem(rows.model, field) for field in each.fields)
            problem = next(filter(None, problems), None)
        if problem is None and names.count(each.name) > 1:
            problem = (
                f"{each.name!r} is the name of another input.",
                f'Give it another one: Members({each.relation!r}, ..., name="...").',
            )
        if problem:
            yield error(runner, "E032")(
                f"INPUT_FIELDS has Members({shown(each.relation)}, ...): {problem[0]}",
                f"Edit INPUT_FIELDS in {place(runner)}. {problem[1]}",
            )


def set_problem(model: Any, each: Members | Each) -> tuple[str, str] | None:
    """Why the rows of a set cannot be found, and what to write; or None."""
    problem = relation_problem(model, each.relation)
    if problem:
        return problem
    try:
        rows_in(model, each)
    except Exception as refused:  # noqa: BLE001 - FieldError, ValidationError, TypeError, ...
        if each.where is None:
            hint = "Give the relation a related_name, or a generic one a related_query_name."
            return f"its rows do not lead back: {refused}", hint
        return (
            f"its `where` cannot be applied: {refused}",
            "Write where=Q(...) with fields of the related rows.",
        )
    return None


def relation_problem(model: Any, path: Any) -> tuple[str, str] | None:
    """Why `path` does not lead over relations of `model`, and what to write; or None."""
    if not isinstance(path, str) or not path:
        return "it is not a name.", f"Use names of relations of {model._meta.label}."
    for name in path.split("__"):
        try:
            model = relation_at(model, name).related_model
        except FieldDoesNotExist:
            return _not_a_relation(model, name)
    return None


def _not_a_relation(model: type[Model], name: str) -> tuple[str, str]:
    fields: list[Any] = [each for each in model._meta.get_fields() if each.is_relation]
    relations = [each for each in fields if each.related_model is not None]
    names = sorted(each.name for each in relations)
    # A reverse relation is filtered by another name than it is read by.
    accessors = {each.get_accessor_name(): each.name for each in relations if each.auto_created}
    close = accessors.get(name) or meant(name, names)
    hint = f"Did you mean {close!r}?" if close else f"Its relations: {', '.join(names) or 'none'}."
    return f"{model._meta.label} has no relation {name!r}.", hint
