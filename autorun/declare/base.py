"""The options and hooks of a runner; `autorun.runner` adds the methods that plan and explain."""

from __future__ import annotations

import datetime as dt
import logging
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from types import ModuleType
from typing import Any, ClassVar, Literal, get_args

from celery.schedules import crontab
from django.apps import apps
from django.db.models import Model, Q, QuerySet

from autorun import analysis as analyses
from autorun.conf import settings
from autorun.declare import console
from autorun.declare.inputs import Input, input_of
from autorun.declare.sets import Each, Members, MembersInput, Related, along
from autorun.declare.trials import Candidate, Failures
from autorun.exceptions import ImproperRunner

#: The longest pause between two attempts, in seconds.
LONGEST_BACKOFF = 3600.0


def exponential(first: float, attempt: int) -> float:
    """Seconds to wait after the `attempt`-th attempt: doubled each time, jittered by a quarter."""
    seconds: float = min(first * 2 ** min(attempt - 1, 30), LONGEST_BACKOFF)
    return seconds * random.uniform(0.75, 1.25)


class _BySetting:
    def __repr__(self) -> str:
        return "BY_SETTING"


#: The value of an option that the setting of the same name decides.
BY_SETTING: Any = _BySetting()
#: Another spelling of FILTER_QUERYSET_START, as the guide of django_analyses prints it.
ALIASES = ("FILTER__QUERYSET_START",)
#: Every runner class, with its module if that was imported.
declared: dict[type[Runner], ModuleType | None] = {}


class Runner:
    """Options and hooks of a runner; users subclass `autorun.runner.Runner`."""

    #: The model: any concrete, proxy or child model with a primary key of one column.
    DATA_MODEL: ClassVar[type[Model] | None] = None
    #: The title of a registered analysis, or the decorated function.
    ANALYSIS: ClassVar[Any] = None
    ANALYSIS_VERSION: ClassVar[str | None] = None
    #: Keyword arguments that all runs have in common.
    ANALYSIS_CONFIGURATION: ClassVar[Mapping[str, Any] | None] = None
    #: The argument that receives an instance's representation.
    INPUT_KEY: ClassVar[str | None] = None
    #: Narrows the default queryset.
    BASE_QUERY: ClassVar[Q | None] = None
    #: Fields, and Members of relations, that the input depends on, so that the database can tell
    #: which rows have changed. With an empty sequence a row never changes.
    INPUT_FIELDS: ClassVar[Sequence[str | Members] | None] = None
    #: Relations whose rows the representation or the filter reads besides.
    WATCH: ClassVar[Sequence[str]] = ()
    #: Named subsets of the default queryset, for backfills.
    FILTERS: ClassVar[Mapping[str, Q | Callable[[QuerySet[Any]], QuerySet[Any]]] | None] = None
    #: Whether a row is planned as soon as it is saved.
    ON_SAVE: ClassVar[bool] = True
    #: Whether triggers in the database note every row that is written, by any program.
    ON_WRITE: ClassVar[bool] = False
    #: When everything is swept; None for never.
    SCHEDULE: ClassVar[crontab | dt.timedelta | None] = BY_SETTING
    #: Runners (classes or labels) that must have succeeded on a row first, or on Each of a set.
    DEPENDS_ON: ClassVar[Sequence[type[Runner] | str | Each]] = ()
    #: Runners that it also depends on, by the arguments that receive their outputs on the row; a
    #: lone one for INPUT_KEY.
    INPUT_FROM: ClassVar[Mapping[str, type[Runner] | str] | type[Runner] | str | None] = None
    #: Whether an edit of the function under the same version is reported (warn), or reruns all
    #: rows.
    ON_CODE_CHANGE: ClassVar[Literal["warn", "rerun"]] = "warn"
    #: Attempts of a run, including the first.
    MAX_ATTEMPTS: ClassVar[int] = 3
    #: Seconds before the second attempt; doubled for every further one, jittered, at most an hour.
    RETRY_BACKOFF: ClassVar[float] = 10.0
    #: Another version or configuration, which also runs on some of the rows.
    CANDIDATE: ClassVar[Candidate | None] = None
    #: How many failures pause the batch, or the runner if no batch was requested.
    STOP_AFTER: ClassVar[Failures | None] = None
    #: Runs that may be worked on at once, over all workers; 0 for no limit.
    MAX_PARALLEL: ClassVar[int] = 0
    #: The name of a limit in the setting LIMITS, which other runners may share.
    LIMIT: ClassVar[str | None] = None
    #: Runs a message carries; None for about a second of work.
    BATCH_SIZE: ClassVar[int | None] = None
    #: Seconds one run may take; None for no limit.
    TIMEOUT: ClassVar[float | None] = BY_SETTING
    #: Celery's queue and message priority.
    QUEUE: ClassVar[str | None] = None
    PRIORITY: ClassVar[int | None] = None
    #: The most runs one sweep creates.
    MAX_PER_SWEEP: ClassVar[int | None] = None
    #: The fields of the row, or of OUTPUT_MODEL, by the outputs that are written to them; a lone
    #: name takes the whole output.
    OUTPUT_FIELDS: ClassVar[Mapping[str, str] | str | None] = None
    #: A model that gets one row for each success, and its unique field that names the input row.
    OUTPUT_MODEL: ClassVar[type[Model] | None] = None
    OUTPUT_KEY: ClassVar[str | None] = None
    #: Whether runs keep their outputs.
    STORE_OUTPUTS: ClassVar[bool] = True
    #: What `log_filter_start` says.
    FILTER_QUERYSET_START: ClassVar[str] = "Filtering queryset..."

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared[cls] = sys.modules.get(cls.__module__)
        names = ("FILTER_QUERYSET_START", *ALIASES)
        own = [vars(each)[name] for each in cls.__mro__ for name in names if name in vars(each)]
        cls.FILTER_QUERYSET_START = own[0]

    # Hooks

    def get_base_queryset(self) -> QuerySet[Any]:
        """The rows this runner is about, before `filter_queryset`."""
        queryset = self._model._default_manager.all()
        return queryset if self.BASE_QUERY is None else queryset.filter(self.BASE_QUERY)

    def filter_queryset(
        self, queryset: QuerySet[Any], log_level: int = logging.INFO
    ) -> QuerySet[Any]:
        """The rows of `queryset` to process. Call `super()` when overriding."""
        return queryset

    def log_filter_start(self, log_level: int = logging.INFO) -> None:
        console.say(self.FILTER_QUERYSET_START, level=log_level)

    def log_filter_end(self, n_candidates: int, log_level: int = logging.INFO) -> None:
        console.say("%d execution candidates found.", n_candidates, level=log_level)

    def get_instance_representation(self, instance: Any) -> Any:
        """The analysis's input for `instance`; without INPUT_FIELDS a value that JSON can hold.

        By default the value of the only one of INPUT_FIELDS, or a dict of several. Without
        INPUT_FIELDS, or for an argument annotated with the model, it is the instance itself.
        """
        if self.takes_instances:
            return instance
        values = {}
        for each in self.inputs:
            values[each.path] = each.read(instance)
        return values if len(values) > 1 else values.popitem()[1]

    def save_outputs(self, results: Sequence[Any]) -> None:
        """Save outputs of many successes, in the transaction that records them.

        Each result has the `key` of its row, its `outputs` and the id of its `run`. What is raised
        undoes all of them, and they are saved in halves, so that a row at fault fails alone.
        """

    def create_configuration(self) -> dict[str, Any]:
        """Keyword arguments that all runs have in common; part of what makes a node."""
        return dict(self.ANALYSIS_CONFIGURATION or {})

    @classmethod
    def get_label(cls) -> str:
        """The runner's name: `app_label.ClassName`."""
        config = apps.get_containing_app_config(cls.__module__)
        label = config.label if config else cls.__module__.partition(".")[0]
        return f"{label}.{cls.__name__}"

    @cached_property
    def label(self) -> str:
        return self.get_label()

    def get_model(self) -> type[Model]:
        """DATA_MODEL. Raises ImproperRunner if it is no model, or one with a composite key."""
        return self._model

    @cached_property
    def _model(self) -> type[Model]:
        declared: Any = self.DATA_MODEL
        if declared is None:
            raise self._lacks("DATA_MODEL", "the model whose rows are to be processed")
        if not (isinstance(declared, type) and issubclass(declared, Model)):
            raise ImproperRunner(
                f"{type(self).__qualname__}.DATA_MODEL is {declared!r}, which is not a model. "
                "Import the model and set DATA_MODEL to its class."
            )
        if len(declared._meta.pk_fields) > 1:
            raise ImproperRunner(
                f"{type(self).__qualname__}.DATA_MODEL is {declared._meta.label}, whose primary "
                "key has several columns. Give it a primary key of one column."
            )
        return declared

    def get_analysis(self) -> analyses.Analysis:
        """The analysis that ANALYSIS and ANALYSIS_VERSION name; a function knows its version.

        Raises NotRegistered, or ImproperRunner if one of them is missing.
        """
        if self.ANALYSIS is None:
            raise self._lacks("ANALYSIS", "the title of a registered analysis")
        declared = getattr(self.ANALYSIS, "analysis", self.ANALYSIS)
        if isinstance(declared, analyses.Analysis):
            if self.ANALYSIS_VERSION in (None, declared.version):
                return declared
            return analyses.get(declared.title, self.ANALYSIS_VERSION)
        if self.ANALYSIS_VERSION is None:
            raise self._lacks("ANALYSIS_VERSION", f"the version of {self.ANALYSIS!r} to run")
        return analyses.get(self.ANALYSIS, self.ANALYSIS_VERSION)

    def get_input_key(self) -> str:
        """INPUT_KEY. Raises ImproperRunner if it is missing."""
        if self.INPUT_KEY is None:
            receiver = f"the argument of {self.get_analysis()} that receives the row"
            raise self._lacks("INPUT_KEY", receiver)
        return self.INPUT_KEY

    def _lacks(self, option: str, value: str) -> ImproperRunner:
        return ImproperRunner(f"{type(self).__qualname__} has no {option}. Set it to {value}.")

    def get_input_fields(self) -> tuple[str | Members, ...]:
        """INPUT_FIELDS, or an empty tuple. Raises ImproperRunner for a lone string."""
        if isinstance(self.INPUT_FIELDS, str):
            raise ImproperRunner(
                f"{type(self).__qualname__}.INPUT_FIELDS is {self.INPUT_FIELDS!r}, not a tuple of "
                f"field names. Write ({self.INPUT_FIELDS!r},)."
            )
        return tuple(self.INPUT_FIELDS or ())

    @cached_property
    def inputs(self) -> tuple[Input | MembersInput, ...]:
        """INPUT_FIELDS, as SQL and Python read them."""
        model = self._model
        return tuple(
            MembersInput(model, each) if isinstance(each, Members) else input_of(model, each)
            for each in self.get_input_fields()
        )

    @cached_property
    def input_from(self) -> dict[str, type[Runner] | str]:
        """INPUT_FROM as {argument: runner}. Raises ImproperRunner for what names no runners."""
        declared: Any = self.INPUT_FROM
        if declared is None:
            return {}
        named = declared if isinstance(declared, Mapping) else {self.INPUT_KEY or "": declared}
        for each in named.values():
            if not (isinstance(each, str) or (isinstance(each, type) and issubclass(each, Runner))):
                raise ImproperRunner(
                    f"{type(self).__qualname__}.INPUT_FROM is {declared!r}. Set it to a runner, or "
                    "to a dict of runners by the arguments that receive their outputs."
                )
        return dict(named)

    @cached_property
    def depends_on(self) -> tuple[type[Runner] | str | Each, ...]:
        """DEPENDS_ON, and the runners in INPUT_FROM."""
        return (*self.DEPENDS_ON, *self.input_from.values())

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """The arguments that receive a row's input and what INPUT_FROM names."""
        return tuple(dict.fromkeys((self.get_input_key(), *self.input_from)))

    @cached_property
    def input_definition(self) -> list[str] | None:
        """INPUT_FIELDS as JSON, or None if Python makes the fingerprints."""
        if not self.is_fingerprinted_by_database:
            return None
        return [each if isinstance(each, str) else repr(each) for each in self.INPUT_FIELDS or ()]

    def related(self) -> tuple[Related, ...]:
        """The rows of other tables that INPUT_FIELDS, WATCH and DEPENDS_ON read."""
        # A check reports options that are no tuples.
        named, upstream = (
            each if isinstance(each, (tuple, list)) else ()
            for each in (self.WATCH, self.DEPENDS_ON)
        )
        inputs = self.get_input_fields()
        sets = [each for each in (*inputs, *upstream) if isinstance(each, (Members, Each))]
        read = [each for each in inputs if not isinstance(each, Members)]
        read += [f"{each.relation}__{path}" for each in sets for path in each.paths()]
        found = [*chain.from_iterable(along(self._model, path, is_input=True) for path in read)]
        for relation in (*named, *(each.relation for each in sets)):
            found += along(self._model, relation)
        return tuple(dict.fromkeys(found))

    def get_schedule(self) -> crontab | dt.timedelta | None:
        return settings.SCHEDULE if self.SCHEDULE is BY_SETTING else self.SCHEDULE

    def get_timeout(self) -> float | None:
        """Seconds one run may take; None for no limit."""
        return settings.TIMEOUT if self.TIMEOUT is BY_SETTING else self.TIMEOUT

    def get_retry_backoff(self, attempt: int) -> float:
        """Seconds to wait after the `attempt`-th attempt failed, from 1 on."""
        return exponential(self.RETRY_BACKOFF, attempt)

    @cached_property
    def output_fields(self) -> dict[str, str]:
        """OUTPUT_FIELDS as {path of an output: field}; "" is the path of the whole output."""
        declared = self.OUTPUT_FIELDS or {}
        return {"": declared} if isinstance(declared, str) else dict(declared)

    @cached_property
    def sample(self) -> Candidate | None:
        """The rows of a candidate version, on the runner derived from this one for it."""
        return None

    @cached_property
    def lands(self) -> bool:
        """Whether its outputs are written to the project's rows, or kept nowhere."""
        is_declared = bool(self.OUTPUT_FIELDS) or self.OUTPUT_MODEL is not None
        return is_declared or not self.STORE_OUTPUTS or self.overrides("save_outputs")

    @cached_property
    def takes_instances(self) -> bool:
        """Without INPUT_FIELDS, or if INPUT_KEY is annotated with the model or a base of it."""
        if not self.inputs:
            return True
        annotation = self.get_analysis().arguments.type_hints.get(self.get_input_key())
        return any(
            isinstance(each, type) and issubclass(each, Model) and issubclass(self._model, each)
            for each in (annotation, *get_args(annotation))
        )

    @cached_property
    def is_fingerprinted_by_database(self) -> bool:
        """Whether SQL computes the fingerprint; if not, Python hashes the representation."""
        return self.INPUT_FIELDS is not None or not self.overrides("get_instance_representation")

    @classmethod
    def overrides(cls, name: str) -> bool:
        """Whether the subclass overrides a hook."""
        return getattr(cls, name) is not getattr(Runner, name)
