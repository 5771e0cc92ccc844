"""Names that runners of django_analyses override, and their replacements in autorun."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from django.core.checks import CheckMessage

from autorun.observe.checks.problems import place, warning

_REMOVE = "Remove it"
_LINE = f"{_REMOVE}: run() words its own lines. FILTER_QUERYSET_START is the one to set"
_LOGGING = f"{_REMOVE}: run() writes its own lines. log_filter_start() and log_filter_end() remain"
_DATABASE = f"{_REMOVE}: the database compares inputs. pending(), has_run() and explain() ask it"
_INPUT = "Return the input, without its key, from get_instance_representation()"

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
    **dict.fromkeys(
        (
            "BASE_QUERY_START",
            "BASE_QUERY_END",
            "BATCH_RUN_START",
            "DEFAULT_QUERYSET_QUERY",
            "EXECUTION_STARTED",
            "FILTER_QUERYSET_END",
            "INPUT_GENERATION",
            "INPUT_GENERATION_FINISHED",
            "INPUT_QUERY_START",
            "INPUT_QUERY_END",
            "INPUT_QUERYSET_VALIDATION",
            "NONE_PENDING",
            "NONE_PENDING_IN_QUERYSET",
            "NO_CANDIDATES",
            "PENDING_FOUND",
            "PENDING_QUERY_START",
            "PREPROCESSING_FAILURE",
            "PREPROCESSING_FAILURE_REPORT",
        ),
        _LINE,
    ),
    **dict.fromkeys(
        (
            "log_base_query_start",
            "log_base_query_end",
            "log_execution_start",
            "log_none_pending",
            "log_pending",
            "log_progress_query_start",
            "log_progress_query_end",
            "log_run_start",
        ),
        _LOGGING,
    ),
}


def check_ancestor(cls: type, name: str, value: Any) -> Iterator[CheckMessage]:
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
