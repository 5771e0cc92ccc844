"""The class a user writes: which rows, which analysis, and when.

class ScanPreprocessingRunner(QuerySetRunner):
    DATA_MODEL = Scan
    ANALYSIS = "Scan Preprocessing"
    ANALYSIS_VERSION = "1.0"
    INPUT_KEY = "input_file"

    def get_instance_representation(self, instance):
        return str(instance.path)
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from asgiref.sync import sync_to_async
from celery.schedules import crontab
from django.apps import apps
from django.db.models import Model, Q, QuerySet

from autorun import analysis as analyses
from autorun.conf import settings
from autorun.declare import hooks, nodes, registry, transcript
from autorun.declare.backoff import exponential
from autorun.declare.options import BY_SETTING
from autorun.exceptions import ImproperRunner
from autorun.models import Batch, Node
from autorun.observe import explanation, progress
from autorun.planning import looks
from autorun.planning.scope import Scope
from autorun.state.encoding import encode_configuration

if TYPE_CHECKING:
    from autorun.observe.explanation import Explanation
    from autorun.observe.progress import Progress

logger = logging.getLogger(__name__)


class QuerySetRunner:
    """Processes every row of a model by one version of one analysis.

    A subclass with a DATA_MODEL, in an app's `runners` module, is registered by itself.
    """

    #: The model: any concrete, proxy or child model with a primary key of one column.
    DATA_MODEL: ClassVar[type[Model] | None] = None
    #: The title of a registered analysis, or the decorated function itself.
    ANALYSIS: ClassVar[Any] = None
    ANALYSIS_VERSION: ClassVar[str | None] = None
    #: Keyword arguments that all runs have in common.
    ANALYSIS_CONFIGURATION: ClassVar[Mapping[str, Any] | None] = None
    #: The argument that receives an instance's representation.
    INPUT_KEY: ClassVar[str | None] = None
    #: Narrows the default queryset.
    BASE_QUERY: ClassVar[Q | None] = None
    #: Fields the input depends on, so that the database can tell which rows have changed. An empty
    #: sequence says that a row never changes.
    INPUT_FIELDS: ClassVar[Sequence[str] | None] = None
    #: Querysets of the default one that a backfill can be asked for by name.
    FILTERS: ClassVar[Mapping[str, Q | Callable[[QuerySet[Any]], QuerySet[Any]]] | None] = None
    #: Whether saving a row looks whether it is pending.
    ON_SAVE: ClassVar[bool] = True
    #: When everything is swept; None for never.
    SCHEDULE: ClassVar[crontab | dt.timedelta | None] = BY_SETTING
    #: Runners (classes or labels) that must have succeeded on a row first.
    DEPENDS_ON: ClassVar[Sequence[type[QuerySetRunner] | str]] = ()
    #: Attempts before a run has failed for good.
    MAX_ATTEMPTS: ClassVar[int] = 3
    #: Seconds before the second attempt; doubled for every further one, jittered, at most an hour.
    RETRY_BACKOFF: ClassVar[float] = 10.0
    #: Runs that may be worked on at once, over all workers; 0 for no limit.
    MAX_PARALLEL: ClassVar[int] = 0
    #: Runs a message carries; None for about a second of work.
    BATCH_SIZE: ClassVar[int | None] = None
    #: Seconds one run may take; None for no limit.
    TIMEOUT: ClassVar[float | None] = BY_SETTING
    #: Celery's queue and message priority.
    QUEUE: ClassVar[str | None] = None
    PRIORITY: ClassVar[int | None] = None
    #: The most runs one sweep creates.
    MAX_PER_SWEEP: ClassVar[int | None] = None
    #: What `log_filter_start` says.
    FILTER_QUERYSET_START: ClassVar[str] = "Filtering queryset..."

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        registry.declare(cls)

    # Hooks

    def get_base_queryset(self) -> QuerySet[Any]:
        """The rows this runner is about, before `filter_queryset`."""
        queryset = self.get_model()._default_manager.all()
        return queryset if self.BASE_QUERY is None else queryset.filter(self.BASE_QUERY)

    def filter_queryset(
        self, queryset: QuerySet[Any], log_level: int = logging.INFO
    ) -> QuerySet[Any]:
        """Those rows of `queryset` that are to be processed. Chain `super()` when overriding."""
        return queryset

    def log_filter_start(self, log_level: int = logging.INFO) -> None:
        """Say that the queryset is being filtered."""
        transcript.say(self.FILTER_QUERYSET_START, level=log_level)

    def log_filter_end(self, n_candidates: int, log_level: int = logging.INFO) -> None:
        """Say how many rows the filter let through."""
        transcript.say("%d execution candidates found.", n_candidates, level=log_level)

    def get_instance_representation(self, instance: Any) -> Any:
        """What the analysis receives for `instance`: something JSON can hold.

        By default the value of the only one of INPUT_FIELDS, a dict of several, or the primary key.
        """
        fields = self.get_input_fields()
        if not fields:
            return instance.pk
        if len(fields) == 1:
            return _follow(instance, fields[0])
        return {name: _follow(instance, name) for name in fields}

    def create_configuration(self) -> dict[str, Any]:
        """Keyword arguments that all runs have in common; part of what makes a node."""
        return dict(self.ANALYSIS_CONFIGURATION or {})

    # What the options come to

    @classmethod
    def get_label(cls) -> str:
        """`app_label.ClassName`, the runner's name everywhere."""
        config = apps.get_containing_app_config(cls.__module__)
        label = config.label if config else cls.__module__.partition(".")[0]
        return f"{label}.{cls.__name__}"

    @property
    def label(self) -> str:
        return self.get_label()

    def get_model(self) -> type[Model]:
        """DATA_MODEL. Raises ImproperRunner where there is none, or where it is no model."""
        declared: Any = self.DATA_MODEL
        if declared is None:
            raise ImproperRunner(
                f"{type(self).__qualname__} has no DATA_MODEL. Set it to the model whose rows "
                "are to be processed."
            )
        if not (isinstance(declared, type) and issubclass(declared, Model)):
            raise ImproperRunner(
                f"{type(self).__qualname__}.DATA_MODEL is {declared!r}, which is no model. Import "
                "the model and set DATA_MODEL to its class."
            )
        return declared

    def get_analysis(self) -> analyses.Analysis:
        """The analysis that ANALYSIS and ANALYSIS_VERSION name; a function knows its version.

        Raises NotRegistered, or ImproperRunner where one of them is missing.
        """
        if self.ANALYSIS is None:
            raise ImproperRunner(
                f"{type(self).__qualname__} has no ANALYSIS. Set it to the title of a registered "
                "analysis."
            )
        declared = getattr(self.ANALYSIS, "analysis", self.ANALYSIS)
        if isinstance(declared, analyses.Analysis):
            if self.ANALYSIS_VERSION in (None, declared.version):
                return declared
            return analyses.get(declared.title, self.ANALYSIS_VERSION)
        if self.ANALYSIS_VERSION is None:
            raise ImproperRunner(
                f"{type(self).__qualname__} has no ANALYSIS_VERSION. Set it to the version of "
                f"{self.ANALYSIS!r} to run."
            )
        return analyses.get(self.ANALYSIS, self.ANALYSIS_VERSION)

    def get_configuration(self) -> dict[str, Any]:
        """`create_configuration()` as plain JSON.

        Raises ConfigurationError, naming the key, or ImproperRunner where the hook raises.
        """
        return encode_configuration(nodes.configuration_of(self))

    def get_input_key(self) -> str:
        """INPUT_KEY. Raises ImproperRunner where there is none."""
        if self.INPUT_KEY is None:
            raise ImproperRunner(
                f"{type(self).__qualname__} has no INPUT_KEY. Set it to the argument of "
                f"{self.get_analysis()} that receives the row."
            )
        return self.INPUT_KEY

    def get_input_fields(self) -> tuple[str, ...]:
        """INPUT_FIELDS, empty where there are none. Raises ImproperRunner for a lone string."""
        if isinstance(self.INPUT_FIELDS, str):
            raise ImproperRunner(
                f"{type(self).__qualname__}.INPUT_FIELDS is {self.INPUT_FIELDS!r}, not a tuple of "
                f"field names. Write ({self.INPUT_FIELDS!r},)."
            )
        return tuple(self.INPUT_FIELDS or ())

    def get_digest(self) -> str:
        """What runners of one node have in common: SHA-256, in hex."""
        return nodes.digest_of(self)

    def get_node(self) -> Node:
        """The Node of this runner; made where it is new."""
        return nodes.node_of(self)

    def get_schedule(self) -> crontab | dt.timedelta | None:
        return settings.SCHEDULE if self.SCHEDULE is BY_SETTING else self.SCHEDULE

    def get_timeout(self) -> float | None:
        """Seconds one run may take; None for no limit."""
        return settings.TIMEOUT if self.TIMEOUT is BY_SETTING else self.TIMEOUT

    def get_retry_backoff(self, attempt: int) -> float:
        """Seconds to wait after the `attempt`-th attempt failed, from 1 on."""
        return exponential(self.RETRY_BACKOFF, attempt)

    def get_dependencies(self) -> list[QuerySetRunner]:
        """The runners in DEPENDS_ON. Raises NotRegistered for an unknown label."""
        return [registry.get(each) if isinstance(each, str) else each() for each in self.DEPENDS_ON]

    def get_every_row(self) -> QuerySet[Any]:
        """All rows of the model, whatever its default manager leaves out."""
        return self.get_model()._base_manager.using(self.get_database())

    def get_database(self) -> str:
        """The alias of the database the rows are in: one for the life of the runner's instance.

        Where a router spreads reads over replicas, return `.using(...)` the primary from
        `get_base_queryset`: a replica that lags behind does not have the rows just saved.
        """
        if not hasattr(self, "_database"):
            self._database: str = hooks.base_queryset(self).db
        return self._database

    @classmethod
    def overrides(cls, name: str) -> bool:
        """Whether the subclass has a hook of its own."""
        return getattr(cls, name) is not getattr(QuerySetRunner, name)

    # What a user calls

    def run(
        self,
        queryset: QuerySet[Any] | None = None,
        max_total: int | None = None,
        dry: bool = False,
        log_level: int = logging.INFO,
    ) -> Batch:
        """Plan and dispatch what is pending of the default queryset, or of `queryset`.

        At most `max_total` runs are planned. With `dry` nothing is recorded and nothing started;
        the batch that is returned is then not saved.
        """
        return looks.run_now(self, queryset, max_total=max_total, dry=dry, log_level=log_level)

    async def arun(
        self,
        queryset: QuerySet[Any] | None = None,
        max_total: int | None = None,
        dry: bool = False,
        log_level: int = logging.INFO,
    ) -> Batch:
        """`run()` for async code."""
        return await sync_to_async(self.run)(queryset, max_total, dry, log_level)

    def query_progress(
        self, queryset: QuerySet[Any] | None = None
    ) -> tuple[QuerySet[Any], QuerySet[Any]]:
        """The rows whose current input has a live or finished run, and the pending ones; lazy."""
        return progress.existing(self, queryset), progress.pending(self, queryset)

    def pending(self, queryset: QuerySet[Any] | None = None) -> QuerySet[Any]:
        """The rows whose current input has no live or finished run; lazy."""
        return progress.pending(self, queryset)

    def has_run(self, instance: Any) -> bool:
        """Whether the instance's current input has a live or finished run."""
        return progress.existing(self, self.get_every_row().filter(pk=instance.pk)).exists()

    def progress(self) -> Progress:
        """How many runs of the node are in which state; one query."""
        return progress.progress(self)

    def explain(self, instance: Any) -> Explanation:
        """Why the instance is pending or not."""
        return explanation.explain(self, instance)

    def backfill(
        self,
        queryset: QuerySet[Any] | None = None,
        *,
        filter: str | None = None,
        only: str | None = None,
        force: bool = False,
        limit: int | None = None,
        window: int | None = None,
        requested_by: str = "",
    ) -> Batch:
        """Plan everything that is already there, and start it, `window` runs at a time.

        `filter` is a name from FILTERS. `only` is "missing", "changed", "failed" or "all" of
        these; without it, what is pending. `force` runs again what has succeeded, too.
        """
        scope = Scope(filter=filter, only=only, force=force)
        return looks.backfill_now(
            self, scope, queryset, limit=limit, window=window, requested_by=requested_by
        )

    def retry(self, queryset: QuerySet[Any] | None = None, *, requested_by: str = "") -> Batch:
        """Run again what has failed for good."""
        return self.backfill(queryset, only="failed", requested_by=requested_by)

    def adopt(self, queryset: QuerySet[Any] | None = None) -> int:
        """Record the pending rows as up to date without running them; how many."""
        return looks.adopt(self, queryset)

    def ignore(self, queryset: QuerySet[Any] | None = None) -> int:
        """Leave the pending rows alone until their input changes; how many."""
        return looks.ignore(self, queryset)


def _follow(instance: Any, path: str) -> Any:
    for name in path.split("__"):
        instance = getattr(instance, name)
        if instance is None:
            return None
    return instance
