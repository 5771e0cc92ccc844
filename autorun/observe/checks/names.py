"""Checks of the names in a runner's class, because a misspelt option or hook does nothing."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from django.core.checks import CheckMessage

from autorun.declare.base import ALIASES, Runner
from autorun.observe.checks.overrides import CALLS
from autorun.observe.checks.problems import error, place, warning
from autorun.state.words import meant, suggestion

OPTIONS = frozenset(name for name in vars(Runner) if name.isupper())
#: How alike a name and an option must be for the name to count as a misspelling.
ALIKE = 0.8
#: The same for methods and hooks: higher, because a runner's own methods use the words of hooks.
VERY_ALIKE = 0.85

_REMOVE = "Remove it"
_LINE = f"{_REMOVE}: run() logs its own lines. FILTER_QUERYSET_START is the one to set"
_LOGGING = f"{_REMOVE}: run() writes its own lines. log_filter_start() and log_filter_end() remain"
_DATABASE = f"{_REMOVE}: the database compares inputs. pending(), has_run() and explain() ask it"
_INPUT = "Return the input, without its key, from get_instance_representation()"

#: The lines that a runner of django_analyses prints, and the methods that print them.
_LINES = (
    *("BASE_QUERY_START", "BASE_QUERY_END", "BATCH_RUN_START", "DEFAULT_QUERYSET_QUERY"),
    *("EXECUTION_STARTED", "FILTER_QUERYSET_END", "INPUT_GENERATION", "INPUT_GENERATION_FINISHED"),
    *("INPUT_QUERY_START", "INPUT_QUERY_END", "INPUT_QUERYSET_VALIDATION", "NONE_PENDING"),
    *("NONE_PENDING_IN_QUERYSET", "NO_CANDIDATES", "PENDING_FOUND", "PENDING_QUERY_START"),
    *("PREPROCESSING_FAILURE", "PREPROCESSING_FAILURE_REPORT"),
)
_METHODS = (
    *("log_base_query_start", "log_base_query_end", "log_execution_start", "log_none_pending"),
    *("log_pending", "log_progress_query_start", "log_progress_query_end", "log_run_start"),
)
#: What to do about each name that only runners of django_analyses override.
REPLACEMENTS: Mapping[str, str] = {
    "ANALYSIS_TITLE": "Rename it to ANALYSIS",
    "ANALYSIS_VERSION_TITLE": "Rename it to ANALYSIS_VERSION",
    "create_input_specification": _INPUT,
    "create_inputs": _INPUT,
    "evaluate_queryset": "Move it into get_base_queryset() and filter_queryset()",
    "query_analysis": "Set ANALYSIS, or override get_analysis()",
    "query_analysis_version": "Set ANALYSIS_VERSION, or override get_analysis()",
    "query_input_definition": "Set INPUT_KEY",
    "query_input_set": _DATABASE,
    "get_or_create_node": f"{_REMOVE}: get_node() returns the node",
    "INPUT_GENERATION_PROGRESSBAR_KWARGS": f"{_REMOVE}: `autorun status` shows progress",
    "STATUS_QUERY_PROGRESSBAR_KWARGS": f"{_REMOVE}: `autorun status` shows progress",
    **dict.fromkeys(_LINES, _LINE),
    **dict.fromkeys(_METHODS, _LOGGING),
}


def check_shown(model_admin: Any, runners: Iterable[Runner]) -> Iterator[CheckMessage]:
    """The names in a ModelAdmin's `autorun_runners` that its model's `runners` do not have."""
    labels = [runner.label for runner in runners]
    given = model_admin.autorun_runners or ()
    if isinstance(given, str):  # its characters would be taken for names
        yield error(model_admin, "E046")(
            "autorun_runners is a string, not a list of them.", f"Write [{given!r}]."
        )
        return
    for each in given:
        named = each if isinstance(each, str) else getattr(each, "get_label", each.__repr__)()
        label = str(named)
        if label in labels:
            continue
        known = f"Its runners: {', '.join(labels) or 'none'}."
        yield error(model_admin, "E046")(
            f"autorun_runners names {label!r}, which is not a runner of "
            f"{model_admin.model._meta.label}.",
            suggestion(label, labels, otherwise=known),
        )


def check_site(model_admin: Any, names: Sequence[str]) -> Iterator[CheckMessage]:
    """E047, once a site: which of the models `names` it lacks, though their pages are linked."""
    site = model_admin.admin_site
    there = {each._meta.model_name for each in site._registry if each._meta.app_label == "autorun"}
    missing = ", ".join(name.capitalize() for name in names if name not in there)
    is_first = next(filter(there.__contains__, names), None) == model_admin.opts.model_name
    if missing and is_first:
        yield error(model_admin, "E047")(
            f"The admin site {site.name!r} lacks autorun's {missing}, to which its other pages "
            "lead, so these cannot be shown.",
            "Register all of Node, Run, Failure and Batch there, each with its ModelAdmin in "
            "autorun.admin, or none of them. Health may be left out.",
        )


def check_names(runners: Iterable[Runner]) -> Iterator[CheckMessage]:
    """E013, W001, W003 and W005: once for the class that has the name, however many inherit it."""
    classes = {
        cls: None
        for runner in runners
        for cls in type(runner).__mro__
        if cls is not object and not cls.__module__.startswith("autorun.")
    }
    for cls in classes:
        yield from _names(cls)


def _names(cls: type) -> Iterator[CheckMessage]:
    for name, value in vars(cls).items():
        yield from _ancestor(cls, name, value)
        is_answered = name in ALIASES or name in REPLACEMENTS
        is_inherited = any(hasattr(base, name) for base in cls.__bases__)
        if is_answered or is_inherited or name.startswith("_"):
            continue
        if name.isupper():
            yield _upper_case(cls, name)
        elif _is_method(value):
            yield from _method(cls, name)
        elif name.upper() in OPTIONS:
            yield warning(cls, "W003")(
                f"{name} is not an option of a runner, so autorun ignores it. "
                f"Did you mean {name.upper()}?",
                _renaming(cls, name, name.upper(), "An attribute"),
            )


def _upper_case(cls: type, name: str) -> CheckMessage:
    option = meant(name, OPTIONS, cutoff=ALIKE)
    if option:
        return error(cls, "E013")(
            f"{name} is not an option of a runner. Did you mean {option}?",
            _renaming(cls, name, option, "A constant"),
        )
    close = meant(name, OPTIONS)
    also = f" If you meant {close}, rename it to that." if close else ""
    return warning(cls, "W001")(
        f"{name} is not an option of a runner, so autorun ignores it.",
        f"Rename {name} to _{name} in {place(cls)} if it is a constant of your own.{also}",
    )


def _method(cls: type, name: str) -> Iterator[CheckMessage]:
    hook = meant(name, CALLS, cutoff=VERY_ALIKE)
    # A name with one word more than the hook's, or one less, is not a misspelling.
    mine, its = f"_{name}_", f"_{hook}_"
    if hook is None or hook in vars(cls) or its in mine or mine in its:
        return
    yield warning(cls, "W003")(
        f"{name}() is not a hook of a runner, so autorun does not call it. Did you mean {hook}()?",
        _renaming(cls, f"{name}()", f"{hook}()", "A method"),
    )


def _renaming(cls: type, name: str, correct: str, what: str) -> str:
    return f"Rename {name} to {correct} in {place(cls)}. {what} of your own may be called _{name}."


def _is_method(value: Any) -> bool:
    is_wrapped = isinstance(value, (staticmethod, classmethod))
    return is_wrapped or (callable(value) and not inspect.isclass(value))


def _ancestor(cls: type, name: str, value: Any) -> Iterator[CheckMessage]:
    """W005: a name, or an argument, that only django_analyses knows."""
    what, advice = name, REPLACEMENTS.get(name)
    is_base = name == "get_base_queryset" and inspect.isfunction(value)
    if is_base and "log_level" in inspect.signature(value).parameters:
        what = "The argument log_level of get_base_queryset()"
        advice = f"{_REMOVE}, also where super() is called"
    if advice:
        yield warning(cls, "W005")(
            f"{what} belongs to django_analyses, and autorun does not use it.",
            f"{advice}. Edit {place(cls)}; docs/howto/migrate.md shows a runner before and after.",
        )
