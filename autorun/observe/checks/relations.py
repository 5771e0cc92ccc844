"""Checks of several runners together: their dependencies, and those that share a node."""

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from textwrap import dedent
from typing import Any

from django.core.checks import CheckMessage
from django.db.models import Model

from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.nodes import configuration_of, digest_of
from autorun.declare.sets import Each, rows_in
from autorun.exceptions import ImproperRunner, NotRegistered
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.problems import error, place, shown, warning
from autorun.observe.checks.values import set_problem

#: Options that say what becomes of a result.
_OF_RESULTS = ("OUTPUT_FIELDS", "OUTPUT_MODEL", "OUTPUT_KEY", "STORE_OUTPUTS")


def check_relations(runners: Sequence[Runner]) -> Iterator[CheckMessage]:
    """E018-E021, E033, E035, E036, W002, W008: runners before this one, and those of one node."""
    errors: dict[str, list[CheckMessage]] = defaultdict(list)
    upstream = {
        each.label: list(_upstream(each, errors[each.label])) for each in registry.runners()
    }
    for runner in runners:
        yield from errors[runner.label]
        path = _path_back(runner.label, [runner.label], upstream, set())
        if path:
            yield error(runner, "E019")(
                f"{_option(runner)} leads back to the runner itself: {' -> '.join(path)}. None of "
                "them would ever start.",
                f"Remove one of the steps, for example from {_option(runner)} in {place(runner)}.",
            )
        if not errors[runner.label]:
            yield from _other_models(runner, registry.dependencies_of(runner))
            yield from _sets(runner)
            yield from _outputs(runner)
    chosen = {runner.label for runner in runners}
    sound = [each for each in registry.runners() if not errors[each.label]]
    for sharing in _by_node(sound):
        if chosen & {runner.label for runner in sharing}:
            yield from _conflicts(sharing)
            yield from _results_told_apart(sharing)


def _upstream(runner: Runner, errors: list[CheckMessage]) -> Iterator[Runner]:
    """The registered runners before this one; an error for each entry that is not one."""
    declared: Any = runner.DEPENDS_ON
    if not isinstance(declared, (tuple, list)):
        written = getattr(declared, "__name__", repr(declared)) if declared else "OtherRunner"
        report = error(runner, "E018")(
            f"DEPENDS_ON is {shown(declared)}, not a tuple.",
            f"Edit {place(runner)}: DEPENDS_ON = ({written},).",
        )
        errors.append(report)
        return
    named = [("DEPENDS_ON", each.runner if isinstance(each, Each) else each) for each in declared]
    try:
        named += [("INPUT_FROM", each) for each in runner.input_from.values()]
    except ImproperRunner:
        report = error(runner, "E018")(
            f"INPUT_FROM is {shown(runner.INPUT_FROM)}, which names no runners.",
            f"Set INPUT_FROM in {place(runner)} to a runner, or to a dict such as "
            '{"cleaned": CleanRunner}.',
        )
        errors.append(report)
    for option, each in named:
        try:
            yield _registered(each)
        except NotRegistered as missing:
            report = error(runner, "E018")(
                f"{option}: {missing}",
                f"Edit {option} in {place(runner)}: use classes of registered runners, or labels "
                "such as 'app_label.ClassName'.",
            )
            errors.append(report)


def _registered(named: Any) -> Runner:
    if isinstance(named, str):
        return registry.get(named)
    if not (isinstance(named, type) and issubclass(named, Runner)):
        raise NotRegistered(f"{shown(named)} is not a runner.")
    if registry.find(named.get_label()) is None:
        raise NotRegistered(f"{named.__name__} is not registered.")
    return named()


def _path_back(
    start: str, path: list[str], upstream: Mapping[str, list[Runner]], seen: set[str]
) -> list[str] | None:
    for other in upstream.get(path[-1], ()):
        if other.label == start:
            return [*path, start]
        if other.label not in seen:
            seen.add(other.label)
            found = _path_back(start, [*path, other.label], upstream, seen)
            if found:
                return found
    return None


def _other_models(runner: Runner, upstream: Sequence[Runner]) -> Iterator[CheckMessage]:
    model = model_of(runner)
    for other in upstream:
        other_model = model_of(other)
        if model is None or other_model is None:
            continue
        if _has_rows_of(model, other_model):
            if _are_of_other_databases(runner, other):
                yield error(runner, "E020")(
                    f"{_option(runner)} names {other.label}, which processes rows of another "
                    "database: one with the same key is not the same row.",
                    f"Have get_base_queryset() of {place(runner)} and {place(other)} use one "
                    f"database, or remove {other.label} from {_option(runner)}.",
                )
            continue
        yield error(runner, "E020")(
            f"{_option(runner)} names {other.label}, which processes {other_model._meta.label}, "
            f"not {model._meta.label}: the two have no rows in common.",
            f"Remove {other.label} from {_option(runner)} in {place(runner)}. To wait for all of a "
            f'row\'s related rows, write Each({type(other).__name__}, "relation"), with a relation '
            f"of {model._meta.label}.",
        )


def _sets(runner: Runner) -> Iterator[CheckMessage]:
    """E033: Each of a relation that is not one, or of other rows than the runner processes."""
    model = model_of(runner)
    if model is None:
        return
    for each, upstream in registry.sets_before(runner):
        problem = set_problem(model, each)
        other = model_of(upstream)
        rows = None if problem else rows_in(model, each).model
        if rows and other and not _has_rows_of(rows, other):
            found, wanted = rows._meta.label, other._meta.label
            problem = (
                f"{each.relation!r} leads to {found}, but {upstream.label} processes {wanted}.",
                f"Name a relation that leads to {wanted}, or a runner of {found}.",
            )
        if problem:
            yield error(runner, "E033")(
                f"DEPENDS_ON has Each({type(upstream).__name__}, {shown(each.relation)}): "
                f"{problem[0]}",
                f"Edit DEPENDS_ON in {place(runner)}. {problem[1]}",
            )


def _option(runner: Runner) -> str:
    """The options that name runners before this one."""
    options = (name for name in ("DEPENDS_ON", "INPUT_FROM") if getattr(runner, name))
    return " and ".join(options)


def _outputs(runner: Runner) -> Iterator[CheckMessage]:
    """E035 and E036: INPUT_FROM of outputs that are not stored, or in the place of an input."""
    for upstream in registry.inputs_from(runner).values():
        if not upstream.STORE_OUTPUTS:
            yield error(runner, "E035")(
                f"INPUT_FROM names {upstream.label}, which stores no outputs.",
                f"Remove STORE_OUTPUTS = False from {place(upstream)}, or read what it has written "
                f"in get_instance_representation() of {place(runner)}, with DEPENDS_ON.",
            )
    has_input = runner.INPUT_FIELDS or runner.overrides("get_instance_representation")
    if has_input and runner.INPUT_KEY in runner.input_from:
        source = "INPUT_FIELDS" if runner.INPUT_FIELDS else "get_instance_representation()"
        yield error(runner, "E036")(
            f"Both INPUT_FROM and {source} are for the argument {runner.INPUT_KEY!r}.",
            f"Edit {place(runner)}: remove {source}, or give the outputs an argument of their own: "
            'INPUT_FROM = {"cleaned": CleanRunner}.',
        )


def _has_rows_of(model: type[Model], other: type[Model]) -> bool:
    """Whether every row of `model` is also a row of `other`, with the same primary key."""
    wanted = other._meta.concrete_model
    current: Any = model._meta.concrete_model
    while current is not wanted:
        link = current._meta.pk.remote_field
        if link is None or not link.parent_link:
            return False
        current = link.model._meta.concrete_model
    return True


def _by_node(some: Sequence[Runner]) -> list[list[Runner]]:
    """Groups of these runners that share a node."""
    found: dict[str, list[Runner]] = defaultdict(list)
    for runner in some:
        with suppress(Exception):  # another check reports it, or the tables do not exist yet
            found[digest_of(runner)].append(runner)
    return [runners for runners in found.values() if len(runners) > 1]


def _conflicts(sharing: Sequence[Runner]) -> Iterator[CheckMessage]:
    first, *others = sharing
    for other in others:
        names = [
            name
            for name in ("INPUT_KEY", "INPUT_FIELDS", "INPUT_FROM", "ON_CODE_CHANGE", "DEPENDS_ON")
            if _compared(first, name) != _compared(other, name)
        ]
        if "INPUT_KEY" in names and not all(map(_takes_its_input, (first, other))):
            continue  # another check reports the key, which may cause the other differences
        differing = " and ".join(names)
        places = f"{place(other)} and {place(first)}"
        claim = (
            f"{first.label} and {other.label} have the same analysis, version, configuration and "
            "model, so they share their runs, but not"
        )
        if _are_of_other_databases(first, other):
            yield error(other, "E021")(
                f"{claim} the database: a row of one would be taken for the row of the other with "
                "the same key.",
                f"Give {place(other)} or {place(first)} another ANALYSIS_CONFIGURATION, or have "
                "get_base_queryset() of both use one database.",
            )
        elif differing:
            yield error(other, "E021")(
                f"{claim} {differing}: each would treat the other's rows as changed.",
                f"Make {differing} of {places} alike, or give one of them another "
                "ANALYSIS_CONFIGURATION or DATA_MODEL.",
            )
        elif not _has_same_hook(first, other, "get_instance_representation"):
            yield warning(other, "W002")(
                f"{claim} get_instance_representation(): if they differ, each would treat the "
                "other's rows as changed.",
                f"Inherit get_instance_representation() of {places} from one base, or give one of "
                "them another ANALYSIS_CONFIGURATION.",
            )


def _results_told_apart(sharing: Sequence[Runner]) -> Iterator[CheckMessage]:
    """W008: options that decide for a result of either runner which of the two has planned it."""
    first, *others = sharing
    for other in others:
        names = [name for name in _OF_RESULTS if getattr(first, name) != getattr(other, name)]
        if not _has_same_hook(first, other, "save_outputs"):
            names.append("save_outputs()")
        versions = [getattr(each.CANDIDATE, "version", None) for each in (first, other)]
        if versions[0] == versions[1] and first.CANDIDATE != other.CANDIDATE:
            names.append("CANDIDATE")
        if names:
            differing = " and ".join(names)
            yield warning(other, "W008")(
                f"{first.label} and {other.label} have the same analysis, version, configuration "
                f"and model, so they share their runs, but not {differing}: for a row that both "
                "process, those of the runner count that plans it first.",
                f"Make {differing} of {place(other)} and {place(first)} alike, or give one of them "
                "another ANALYSIS_CONFIGURATION. If no row passes both filters, silence this "
                "check: SILENCED_SYSTEM_CHECKS.",
            )


def _has_same_hook(one: Runner, other: Runner, name: str) -> bool:
    """Whether the runners have one function as a hook, or two of one text and one meaning."""
    hooks = [getattr(type(each), name) for each in (one, other)]
    if hooks[0] is hooks[1]:
        return True
    try:
        texts = [ast.dump(ast.parse(dedent(inspect.getsource(hook)))) for hook in hooks]
        names = [inspect.getclosurevars(hook)[:3] for hook in hooks]
    except (OSError, SyntaxError, TypeError):  # not functions, or without a source file
        return False
    return texts[0] == texts[1] and names[0] == names[1]


def _takes_its_input(runner: Runner) -> bool:
    is_named = bool(runner.INPUT_KEY)
    return is_named and not runner.get_analysis().check(configuration_of(runner), *runner.receivers)


def _are_of_other_databases(one: Runner, other: Runner) -> bool:
    try:
        querysets: list[Any] = [each.get_base_queryset() for each in (one, other)]
    except Exception:  # noqa: BLE001 - another check reports it
        return False
    # A router may choose another replica each time, so only compare databases that are named.
    is_named = any(each._db is not None for each in querysets)
    return is_named and querysets[0].db != querysets[1].db


def _compared(runner: Runner, name: str) -> Any:
    value = getattr(runner, name)
    if name == "INPUT_FROM":
        return {name: each.label for name, each in registry.inputs_from(runner).items()}
    if name == "DEPENDS_ON":
        return sorted(other.label for other in _upstream(runner, [])), [
            each for each in runner.DEPENDS_ON if isinstance(each, Each)
        ]
    return tuple(value) if isinstance(value, (list, tuple)) else value
