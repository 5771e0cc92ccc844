"""Which runners exist: a dict of their classes by label."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.apps import apps
from django.utils.module_loading import autodiscover_modules

from autorun import analysis as analyses
from autorun.declare.base import Runner, declared
from autorun.declare.sets import Each
from autorun.declare.trials import Candidate
from autorun.exceptions import AlreadyRegistered, NotRegistered
from autorun.state.encoding import qualified_name
from autorun.state.logs import get_logger
from autorun.state.words import suggestion

logger = get_logger(__name__)

RunnerClass = TypeVar("RunnerClass", bound=type[Runner])

_runners: dict[str, type[Runner]] = {}
_listeners: list[Callable[[], object]] = []
_instances: dict[str, Runner] = {}
#: By the class of a runner, the runner of its candidate version.
_trials: dict[type[Runner], Runner] = {}
#: Classes that `register_module` has registered: others of the same name were imported again.
_registered_once: set[type[Runner]] = set()


def register(runner_class: RunnerClass) -> RunnerClass:
    """Register a runner class under its label; usable as a decorator.

    Raises AlreadyRegistered if a class of another module or name has that label.
    """
    label = runner_class.get_label()
    known = _runners.get(label)
    if known is not None and (place := qualified_name(known)) != qualified_name(runner_class):
        raise AlreadyRegistered(
            f"{label} is registered as {place} already, so {qualified_name(runner_class)} cannot "
            "be: rename one of the two classes."
        )
    _runners[label] = runner_class
    _tell_change()
    return runner_class


@contextmanager
def registered(*runner_classes: type[Runner], alone: bool = False) -> Iterator[None]:
    """Register runners for a `with` block, in place of any of the same label, or of all others."""
    before = dict(_runners)
    if alone:
        _runners.clear()
    _runners.update({each.get_label(): each for each in runner_classes})
    _tell_change()
    try:
        yield
    finally:
        _runners.clear()
        _runners.update(before)
        _tell_change()


def on_change(listener: Callable[[], object]) -> None:
    """Call `listener` whenever other runners are registered."""
    _listeners.append(listener)


def runners() -> list[Runner]:
    """One instance of every registered runner, sorted by label."""
    return [get(label) for label in sorted(_runners)]


def labels() -> list[str]:
    return sorted(_runners)


def find(label: str) -> Runner | None:
    known = _instances.get(label)
    if known is None and (runner_class := _runners.get(label)) is not None:
        known = _instances[label] = runner_class()
    return known


def is_registered(runner: Runner) -> bool:
    """Whether `runner` is the instance that stands for its class here."""
    return _instances.get(runner.label) is runner


def get(label: str) -> Runner:
    """The runner of that label. Raises NotRegistered, which lists the labels."""
    runner = find(label)
    if runner is not None:
        return runner
    hint = suggestion(label, _runners, cutoff=0.7, plain=_stem)
    known = f"Registered: {', '.join(sorted(_runners)) or 'none'}."
    problem = f"No runner is registered as {label!r}."
    raise NotRegistered(" ".join(filter(None, (problem, hint, known))))


def can_run(label: str, title: str, version: str) -> bool:
    """Whether this process has the runner, and can execute that version of the analysis."""
    try:
        analyses.get_executable(title, version)
    except NotRegistered:
        return False
    return label in _runners


def dependencies_of(runner: Runner) -> list[Runner]:
    """The runners that must succeed on the same row. Raises NotRegistered for an unknown label."""
    named = (instance_of(each) for each in runner.depends_on if not isinstance(each, Each))
    return list({each.label: each for each in named}.values())


def inputs_from(runner: Runner) -> dict[str, Runner]:
    """The runners in INPUT_FROM by argument. Raises NotRegistered for an unknown label."""
    return {argument: instance_of(named) for argument, named in runner.input_from.items()}


def sets_before(runner: Runner) -> list[tuple[Each, Runner]]:
    """Each set in DEPENDS_ON, with its runner. Raises NotRegistered for an unknown label."""
    sets = [each for each in runner.DEPENDS_ON if isinstance(each, Each)]
    return [(each, instance_of(each.runner)) for each in sets]


def instance_of(named: type[Runner] | str) -> Runner:
    """The runner that a class or a label names. Raises NotRegistered for an unknown label."""
    if isinstance(named, str):
        return get(named)
    labels = [label for label, each in _runners.items() if each is named]
    return get(labels[0]) if labels else named()


def trial_of(runner: Runner) -> Runner | None:
    """The runner of the version in CANDIDATE, which plans its sample of the rows; None without one.

    It has the label of `runner`, which executes its chunks: these name their version themselves.
    """
    candidate, kind = runner.CANDIDATE, type(runner)
    if not isinstance(candidate, Candidate) or not candidate.is_proper:  # a check reports it
        return None
    if kind not in _trials:
        namespace: dict[str, Any] = {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "ANALYSIS_VERSION": candidate.version,
            "CANDIDATE": None,
            "sample": candidate,
        }
        if candidate.configuration is not None:
            namespace["create_configuration"] = lambda _: dict(candidate.configuration or {})
        trial = type(kind.__name__, (kind,), namespace)
        declared.pop(trial, None)  # else it would be registered in place of its base
        _trials[kind] = trial()
    return _trials[kind]


def autodiscover() -> None:
    """Import every app's `analyses` and `runners` modules and register the runners found there."""
    autodiscover_modules("analyses")
    autodiscover_modules("runners")
    for config in apps.get_app_configs():
        if config.module is not None:
            register_module(f"{config.name}.runners")


def register_module(name: str) -> None:
    """Register the concrete runners that an imported module or package defines.

    Raises AlreadyRegistered if it defines two of one name, of which Python keeps the last.
    """
    found = [
        each
        for each in declared
        if f"{each.__module__}.".startswith(f"{name}.") and each.DATA_MODEL
    ]
    new = set(found) - _registered_once
    _registered_once.update(new)
    # An import that failed and was repeated has made another module object.
    names = Counter((each.__module__, each.__qualname__, declared[each]) for each in new)
    for (module, class_name, _), number in names.items():
        if number > 1:
            raise AlreadyRegistered(
                f"{module} defines two runners called {class_name}: rename one of the two classes."
            )
    for runner_class in found:
        register(runner_class)


def without_model() -> list[type[Runner]]:
    """Classes without subclasses that name an analysis but no model."""
    return [
        each
        for each in declared
        if each.DATA_MODEL is None and each.ANALYSIS is not None and not each.__subclasses__()
    ]


def _stem(label: str) -> str:
    """The name of the class without its ending `Runner`, or a slip of it."""
    return re.sub(r"(?<=.)run\w{0,3}$", "", label.rpartition(".")[2].lower())


def _tell_change() -> None:
    _instances.clear()
    _trials.clear()
    for listener in _listeners:
        listener()
