"""Checks of a runner's required parts: its model, its analysis and the configuration."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeGuard

from django.apps import AppConfig
from django.core.checks import CheckMessage
from django.db import Error as DatabaseError, connections
from django.db.models import (
    CharField,
    IntegerField,
    Model,
    PositiveBigIntegerField,
    TextField,
    UUIDField,
)

from autorun import analysis as analyses
from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.code_digest import code_digest
from autorun.declare.nodes import configuration_of, digest_of
from autorun.exceptions import AutorunError, ConfigurationError, ImproperRunner, NotRegistered
from autorun.models import Run
from autorun.observe.checks.problems import error, is_in, place, shown, warning
from autorun.state.encoding import encode_configuration
from autorun.state.keys import key_kind
from autorun.state.masking import secrets_in


def check_declaration(runner: Runner) -> Iterator[CheckMessage]:
    """E002-E010, E022, E030, E034, E045, W004, W007: what a runner must have."""
    yield from _model(runner)
    yield from _keys(runner)
    yield from _named_analysis(runner)
    yield from _input_key(runner)
    yield from _configuration(runner)
    yield from _code(runner)
    yield from _candidate(runner)


def model_of(runner: Runner) -> type[Model] | None:
    """The runner's model, or None if `check_declaration` reports an error in it."""
    return None if list(_model(runner)) else runner.get_model()


def analysis_of(runner: Runner) -> analyses.Analysis | None:
    """The runner's analysis, or None if `check_declaration` reports an error in it."""
    return None if list(_named_analysis(runner)) else runner.get_analysis()


def check_unregistered(app_configs: Sequence[AppConfig] | None) -> Iterator[CheckMessage]:
    """E001: classes that are not registered because they have no model."""
    for each in registry.without_model():
        if is_in(app_configs, each):
            yield error(each, "E001")(
                f"{each.__name__} has an ANALYSIS but no DATA_MODEL, so it is not registered.",
                f"Set DATA_MODEL in {place(each)} to the model whose rows it processes. If it is a "
                "base of other runners, move ANALYSIS into those.",
            )


def _model(runner: Runner) -> Iterator[CheckMessage]:
    model = runner.DATA_MODEL
    if not (inspect.isclass(model) and issubclass(model, Model)):
        yield error(runner, "E002")(
            f"DATA_MODEL is {shown(model)}, which is not a model.",
            f"Import the model and set DATA_MODEL in {place(runner)} to its class.",
        )
        return
    why = None
    if model._meta.abstract:
        why = "is abstract", "one of its concrete children"
    elif model._meta.swapped:
        why = f"is swapped for {model._meta.swapped}", model._meta.swapped
    if why:
        yield error(runner, "E002")(
            f"DATA_MODEL is {model._meta.label}, which {why[0]}, so it has no rows.",
            f"Set DATA_MODEL in {place(runner)} to {why[1]}.",
        )
    elif len(getattr(model._meta, "pk_fields", (model._meta.pk,))) > 1:
        yield error(runner, "E003")(
            f"DATA_MODEL is {model._meta.label}, whose primary key has several columns.",
            f"Give {model._meta.label} a primary key of one column, with the fields of the "
            "composite one in a UniqueConstraint.",
        )


def _keys(runner: Runner) -> Iterator[CheckMessage]:
    model = model_of(runner)
    if model is None:
        return
    field = key_kind(model).field
    # PostgreSQL writes an address as 10.0.0.1/32 and a float with fewer digits than it has; SQLite
    # and MariaDB write a time without its zone. A field's from_db_value() may return anything.
    is_found_again = isinstance(field, (IntegerField, UUIDField, CharField, TextField))
    if not is_found_again or hasattr(field, "from_db_value"):
        yield error(runner, "E030")(
            f"DATA_MODEL is {model._meta.label}, whose primary key is a {type(field).__name__}: a "
            "row may not be found again by the number or text that the database makes of such a "
            "key.",
            f"Give {model._meta.label} an integer, UUID or text key without a from_db_value(), and "
            f"make {field.name!r} a field with unique=True. If the field's to_python() restores "
            "the key from CAST(... AS text), add 'autorun.E030' to SILENCED_SYSTEM_CHECKS.",
        )
        return
    most = Run._meta.get_field("object_key").max_length or 0
    longest = None if isinstance(field, TextField) else field.max_length
    if isinstance(field, (CharField, TextField)) and (longest is None or longest > most):
        yield error(runner, "E022")(
            f"DATA_MODEL is {model._meta.label}, whose primary key {field.name!r} may be longer "
            f"than the {most} characters that autorun stores.",
            f"Give {model._meta.label} a primary key with a max_length of {most} at most, and the "
            "longer text its own field with unique=True. If no key is longer in practice, add "
            "'autorun.E022' to SILENCED_SYSTEM_CHECKS.",
        )
    is_on_mariadb = connections[settings.DATABASE].vendor == "mysql"
    if is_on_mariadb and isinstance(field, PositiveBigIntegerField):  # BIGINT UNSIGNED
        yield warning(runner, "W004")(
            f"DATA_MODEL is {model._meta.label}, whose primary key {field.name!r} may be greater "
            "than 2^63 - 1, the most that autorun stores. Rows with greater keys are skipped.",
            f"Make {field.name!r} a BigIntegerField or a BigAutoField. If no key is that great in "
            "practice, add 'autorun.W004' to SILENCED_SYSTEM_CHECKS.",
        )


def _named_analysis(runner: Runner) -> Iterator[CheckMessage]:
    # From the class, because the instance would bind a function as a method.
    given: Any = type(runner).ANALYSIS
    declared: Any = getattr(given, "analysis", given)
    version: Any = runner.ANALYSIS_VERSION
    is_analysis = isinstance(declared, analyses.Analysis)
    if not is_analysis and not _is_name(declared):
        titles = sorted({each.title for each in analyses.registered()})
        known = f"Registered: {', '.join(map(repr, titles))}." if titles else "None is registered."
        unnamed = f"{shown(declared)}, which does not name an analysis"
        yield error(runner, "E004")(
            f"ANALYSIS is {'missing' if declared is None else unnamed}.",
            f"Set ANALYSIS in {place(runner)} to the title of an @analysis, or to the decorated "
            f"function itself. {known}",
        )
        return
    title = declared.title if is_analysis else declared
    if is_analysis and version is None:
        version = declared.version
    if not _is_name(version):
        what = "missing" if version is None else f"{shown(version)}, not a string"
        yield error(runner, "E005")(
            f"ANALYSIS_VERSION is {what}.",
            f"Set ANALYSIS_VERSION in {place(runner)} to {_version_advice(title, version)}.",
        )
        return
    try:
        yield from _concurrency(runner, analyses.get(title, version))
    except NotRegistered as missing:
        yield error(runner, "E006")(
            str(missing),
            f"Correct ANALYSIS and ANALYSIS_VERSION in {place(runner)}, or declare "
            f"@analysis({title!r}, version={version!r}) in an app's analyses module.",
        )


def _concurrency(runner: Runner, found: analyses.Analysis) -> Iterator[CheckMessage]:
    if found.concurrency is not None and not found.is_concurrent:
        what = "takes batches" if found.is_async else "is not async"
        yield error(runner, "E034")(
            f"{found} has concurrency={found.concurrency}, but {what}.",
            f"Leave concurrency out in {found.location}, or make it an async function that takes "
            "one row.",
        )


def _version_advice(title: str, version: object) -> str:
    versions = [each.version for each in analyses.registered() if each.title == title]
    if version is not None and str(version) in versions:
        return repr(str(version))
    return " or ".join(map(repr, versions)) or "a version, such as '1.0'"


def _input_key(runner: Runner) -> Iterator[CheckMessage]:
    key: Any = runner.INPUT_KEY
    if _is_name(key):
        return
    analysis = analysis_of(runner)
    names = ", ".join(map(repr, analysis.signature.parameters)) if analysis else ""
    yield error(runner, "E007")(
        "INPUT_KEY is missing." if key is None else f"INPUT_KEY is {shown(key)}, not a name.",
        f"Set INPUT_KEY in {place(runner)} to the argument of the analysis that receives the row"
        + (f": one of {names}." if names else "."),
    )


def _is_name(key: Any) -> TypeGuard[str]:
    return isinstance(key, str) and bool(key)


def _configuration(runner: Runner) -> Iterator[CheckMessage]:
    declared: Any = runner.ANALYSIS_CONFIGURATION
    advice = f"Edit ANALYSIS_CONFIGURATION or create_configuration() of {place(runner)}"
    if declared is not None and not isinstance(declared, Mapping):
        yield error(runner, "E009")(
            f"ANALYSIS_CONFIGURATION is {shown(declared)}, not a dict.",
            f"{advice}: keyword arguments by name, such as {{'better': 100}}.",
        )
        return
    try:
        configuration = runner.create_configuration()
    except DatabaseError:  # the tables may not exist yet
        return
    except Exception as problem:  # noqa: BLE001
        yield error(runner, "E010")(
            f"create_configuration() raises {type(problem).__name__}: {problem}",
            f"Correct create_configuration() in {place(runner)}; every process calls it, "
            "without arguments.",
        )
        return
    try:
        encode_configuration(configuration)
    except ConfigurationError as problem:
        yield error(runner, "E009")(
            f"JSON cannot hold the configuration: {problem}",
            f"{advice}: use strings, numbers, True, False, None, lists and dicts.",
        )
        return
    if secrets := ", ".join(secrets_in(configuration)):
        yield warning(runner, "W006")(
            f"These values of the configuration look like secrets: {secrets}. They are stored with "
            "every version of the runner.",
            f"{advice}: leave them out, and read them from the environment in the analysis.",
        )
    analysis = analysis_of(runner)
    if analysis is not None and _is_name(runner.INPUT_KEY):
        for misfit in analysis.check(configuration, *_receivers(runner)):
            yield error(runner, "E008")(misfit.message, misfit.hint)


def _code(runner: Runner) -> Iterator[CheckMessage]:
    analysis = analysis_of(runner)
    if runner.ON_CODE_CHANGE == "rerun" and analysis and not code_digest(analysis.function):
        yield warning(runner, "W007")(
            f"ON_CODE_CHANGE is 'rerun', but the source of {analysis.location} cannot be read, so "
            "an edit is not noticed.",
            f"Deploy the source file, or remove ON_CODE_CHANGE from {place(runner)} and raise the "
            "version with each edit.",
        )


def _receivers(runner: Runner) -> tuple[str, ...]:
    with suppress(ImproperRunner):  # another check reports INPUT_FROM
        return runner.receivers
    return (runner.get_input_key(),)


def _candidate(runner: Runner) -> Iterator[CheckMessage]:
    if (trial := registry.trial_of(runner)) is None or analysis_of(runner) is None:
        return
    wrong = error(runner, "E045")
    named = f"CANDIDATE names version {trial.ANALYSIS_VERSION!r}"
    try:
        analysis = trial.get_analysis()
        problems = analysis.check(configuration_of(trial), trial.get_input_key())
        is_same = digest_of(trial) == digest_of(runner)
    except NotRegistered as missing:
        yield wrong(f"{named}, which is not registered.", str(missing))
    except AutorunError:
        return  # the runner has the same problem, which is reported
    else:
        for each in problems:
            yield wrong(f"{named}: {each.message}", f"{each.hint} Edit {place(runner)}.")
        if is_same:
            yield wrong(
                f"{named}, which runs on all rows already.",
                f"Remove CANDIDATE from {place(runner)}, or name another version.",
            )
