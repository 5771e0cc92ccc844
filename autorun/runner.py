"""The class a user writes: which rows, which analysis, and when.

class ScanPreprocessingRunner(QuerySetRunner):
    DATA_MODEL = Scan
    ANALYSIS = "Scan Preprocessing"
    ANALYSIS_VERSION = "1.0"
    INPUT_KEY = "input_file"

    def get_instance_representation(self, instance):
        return str(instance.path)
"""

import logging
from collections.abc import Iterator
from typing import Any, cast

from django.db.models import QuerySet

from autorun.declare import hooks, nodes, registry
from autorun.declare.base import Runner
from autorun.declare.sets import Each, Members
from autorun.declare.trials import Candidate, Failures
from autorun.models import Batch, Node, Run
from autorun.observe import comparison, explanation, records
from autorun.observe.comparison import Comparison
from autorun.observe.explanation import Explanation
from autorun.observe.formats import required
from autorun.observe.records import OWN, Records
from autorun.planning import on_demand, pending
from autorun.planning.scope import Scope
from autorun.state import counts
from autorun.state.async_twins import iterator_twin, twin
from autorun.state.counts import Progress

__all__ = (
    "Candidate",
    "Each",
    "Failures",
    "Members",
    "QuerySetRunner",
    "get_runner",
    "get_runners",
)


class QuerySetRunner(Runner):
    """Processes every row of a model by one version of one analysis.

    A subclass with a DATA_MODEL, in an app's `runners` module, is registered automatically. The
    options and hooks are those of `autorun.declare.base.Runner`; the methods here act on them.
    """

    def run(
        self,
        queryset: QuerySet[Any] | None = None,
        max_total: int | None = None,
        dry: bool = False,
        log_level: int = logging.INFO,
    ) -> Batch:
        """Plan and dispatch the pending rows of the base queryset, or of `queryset`.

        At most `max_total` runs are planned. With `dry` nothing is recorded or started, and the
        returned batch is not saved.
        """
        return on_demand.run_now(self, queryset, max_total=max_total, dry=dry, log_level=log_level)

    def query_progress(
        self, queryset: QuerySet[Any] | None = None
    ) -> tuple[QuerySet[Any], QuerySet[Any]]:
        """Return two lazy querysets: rows with a live or finished run, and pending rows."""
        return pending.existing(self, queryset), pending.pending(self, queryset)

    def pending(self, queryset: QuerySet[Any] | None = None) -> QuerySet[Any]:
        """Return a lazy queryset of the rows whose current input has no live or finished run."""
        return pending.pending(self, queryset)

    def stale(self) -> QuerySet[Run]:
        """Return successes on rows that now lack one of a DEPENDS_ON runner; a lazy queryset."""
        return pending.stale(self)

    def has_run(self, instance: Any) -> bool:
        """Return whether the instance's current input has a live or finished run."""
        return pending.existing(self, hooks.every_row(self).filter(pk=instance.pk)).exists()

    def progress(self) -> Progress:
        """Count the runs of the node in each state, with one query."""
        return counts.progress(nodes.node_of(self))

    def explain(self, instance: Any) -> Explanation:
        """Say why the instance is pending or not."""
        return explanation.explain(self, instance)

    def outputs_of(self, instance: Any, *, stale: bool = False) -> Any:
        """Return the outputs of the instance's current success, or None.

        With `stale`, return those of its last success if its current run is pending, failed or
        cancelled.
        """
        return records.outputs_of(self, instance, stale=stale)

    def records(
        self, queryset: QuerySet[Any] | None = None, *, stale: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Iterate over rows with their results as flat dicts: all, or those of `queryset`.

        Each has `key`, `name`, `state`, `finished_at`, `seconds`, and a key for each output, `a.b`
        if it is nested. They are read in pages, so memory use does not grow. `stale` is as for
        `outputs_of()`.
        """
        return iter(Records(self, queryset, stale))

    def to_dataframe(self, queryset: QuerySet[Any] | None = None, *, stale: bool = False) -> Any:
        """Return `records()` as a pandas DataFrame. Raises ImportError without pandas."""
        pandas = required("pandas")
        return pandas.DataFrame(
            list(self.records(queryset, stale=stale)) or {name: [] for name in OWN}
        )

    def compare(
        self, before: str | None = None, after: str | None = None, *, tolerance: float = 0.0
    ) -> Comparison:
        """Compare two versions on the rows that both have processed; by default with the candidate.

        Numbers are the same if they differ by at most `tolerance` times the larger one. Raises
        ValueError for a version without results.
        """
        return comparison.compare(self, before, after, tolerance=tolerance)

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
        """Plan existing rows and start their runs, `window` at a time.

        `filter` is a name from FILTERS. `only` is "missing", "changed", "failed" or "all" of these;
        the default is pending rows. `force` includes rows that have succeeded or are ignored.
        """
        scope = Scope(filter=filter, only=only, force=force)
        return on_demand.backfill_now(
            self, scope, queryset, limit=limit, window=window, requested_by=requested_by
        )

    def retry(self, queryset: QuerySet[Any] | None = None, *, requested_by: str = "") -> Batch:
        """Retry the failed runs that have no attempts left."""
        return self.backfill(queryset, only="failed", requested_by=requested_by)

    def adopt(self, queryset: QuerySet[Any] | None = None, *, same_input: bool = False) -> int:
        """Record the pending rows as up to date without running them. Return how many.

        They keep the outputs of their last success. With `same_input`, keep only successes whose
        input has not changed by an earlier definition, such as INPUT_FIELDS before a field was
        added.
        """
        return on_demand.adopt(self, queryset, same_input=same_input)

    def ignore(self, queryset: QuerySet[Any] | None = None) -> int:
        """Ignore the pending rows until their input changes. Return how many."""
        return on_demand.ignore(self, queryset)

    # Each method above for async code

    arun = twin(run)
    aquery_progress = twin(query_progress)
    apending = twin(pending)
    astale = twin(stale)
    ahas_run = twin(has_run)
    aprogress = twin(progress)
    aexplain = twin(explain)
    aoutputs_of = twin(outputs_of)
    arecords = iterator_twin(records)
    ato_dataframe = twin(to_dataframe)
    acompare = twin(compare)
    abackfill = twin(backfill)
    aretry = twin(retry)
    aadopt = twin(adopt)
    aignore = twin(ignore)

    # Identity and rows

    def get_configuration(self) -> dict[str, Any]:
        """`create_configuration()` as plain JSON.

        Raises ConfigurationError, naming the key, or ImproperRunner if the hook raises.
        """
        return nodes.configuration_of(self)

    def get_digest(self) -> str:
        """Return the SHA-256, in hex, of what identifies the node."""
        return nodes.digest_of(self)

    def get_node(self) -> Node:
        """Return the Node of this runner, creating it on first use."""
        return nodes.node_of(self)

    def get_dependencies(self) -> list[Runner]:
        """The runners in DEPENDS_ON of the same row. Raises NotRegistered for an unknown label."""
        return registry.dependencies_of(self)

    def get_every_row(self) -> QuerySet[Any]:
        """Return all rows of the model, including those that its default manager leaves out."""
        return hooks.every_row(self)

    def get_database(self) -> str:
        """The alias of the database the rows are in, read once for each instance of the runner.

        If a router spreads reads over replicas, return `.using(...)` the primary from
        `get_base_queryset`: a replica that lags behind lacks the rows just saved.
        """
        return hooks.database_of(self)


def get_runner(label: str) -> QuerySetRunner:
    """The registered runner of that label. Raises NotRegistered, which lists the labels."""
    return cast("QuerySetRunner", registry.get(label))


def get_runners() -> list[QuerySetRunner]:
    """One instance of every registered runner, in the order of their labels."""
    return cast("list[QuerySetRunner]", registry.runners())
