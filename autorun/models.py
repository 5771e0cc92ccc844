"""Autorun's tables: five of one idea each, two of what made results, and four for upkeep.

`Run` is the largest: each run is written twice, once when planned and once when finished. Its
`Chunk` keeps everything about being queued and running.
"""

from typing import ClassVar, TypeAlias

from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models import F, Q

from autorun.state.clock import DatabaseNow, new_chunk_id
from autorun.state.fields import FingerprintField, ObjectKeyField, RealField
from autorun.state.keys import key_kind
from autorun.state.managers import (
    BatchQuerySet,
    BatchState,
    ChunkQuerySet,
    ChunkState,
    RunQuerySet,
    RunStatus,
)
from autorun.state.transactions import StateManager
from autorun.state.upkeep_tables import BatchRow, Pulse, SpilledTrigger, Table, Written

__all__ = (
    "UNCHANGING",
    "UNPREPARED",
    "Batch",
    "BatchRow",
    "Build",
    "Chunk",
    "Environment",
    "Failure",
    "Node",
    "Pulse",
    "Run",
    "SpilledTrigger",
    "Written",
)

#: The fingerprint of rows that never become pending again.
UNCHANGING = "0" * 32
#: The fingerprint of a row whose input could not be prepared.
UNPREPARED = "f" * 32

# Their methods are the words of the querysets: `Chunk.objects.waiting().of(node)`.
BatchManager = StateManager.from_queryset(BatchQuerySet)
ChunkManager = StateManager.from_queryset(ChunkQuerySet)
RunManager = StateManager.from_queryset(RunQuerySet)


class Node(Table):
    """One version of one analysis with one configuration, over one model."""

    title = models.CharField(max_length=255)
    version = models.CharField(max_length=100)
    configuration = models.JSONField(default=dict)
    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE, related_name="+")
    inputs = models.JSONField(
        null=True, blank=True, help_text="Definitions of the input that its runs were given."
    )
    digest = models.CharField(max_length=64, unique=True)
    run_seconds = models.FloatField(
        null=True, blank=True, help_text="Duration of a run in seconds, as a moving average."
    )
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_because = models.TextField(
        blank=True, default="", db_default="", help_text="Why STOP_AFTER paused it."
    )
    held_at = models.DateTimeField(null=True, blank=True)
    held_by = models.CharField(
        max_length=255,
        blank=True,
        default="",
        db_default="",
        help_text="Who put its sweeps and saved rows on hold.",
    )
    sample = models.CharField(
        max_length=100,
        blank=True,
        default="",
        db_default="",
        help_text="Rows of a candidate version: their number, highest hash and last key.",
    )
    unlanded_at = models.DateTimeField(
        null=True,
        blank=True,
        help_text="Successes before this are not landed: another version was in use.",
    )
    created_at = models.DateTimeField(db_default=DatabaseNow())

    # The current runs in folded chunks.
    folded_succeeded = models.BigIntegerField(default=0)
    folded_failed = models.BigIntegerField(default=0)
    folded_ignored = models.BigIntegerField(default=0)
    folded_not_applicable = models.BigIntegerField(default=0, db_default=0)
    folded_hours = models.JSONField(
        default=dict, help_text="How many of them succeeded in each recent hour."
    )
    counted = models.JSONField(
        default=dict, help_text="The latest count of its model's rows, made for a page."
    )

    class Meta(Table.Meta):
        # The name of the page in the admin's index, which has a card for each node.
        verbose_name_plural = "overview"

    def __str__(self) -> str:
        return f"{self.title} v{self.version}"

    def get_content_type(self) -> ContentType:
        """The content type of its rows, from Django's cache of them."""
        return ContentType.objects.db_manager(self._state.db).get_for_id(self.content_type_id)

    def get_model(self) -> type[models.Model] | None:
        """The model of its rows; None if it is gone from the code."""
        return self.get_content_type().model_class()


class Batch(Table):
    """One planning pass over a queryset, by schedule, person or code."""

    class Trigger(models.TextChoices):
        SWEEP = "sweep"
        BACKFILL = "backfill"
        CODE = "code"
        RELATED = "related"
        WRITE = "write"

    State: TypeAlias = BatchState

    runner = models.CharField(max_length=255, db_index=True)
    # Without a constraint: on MariaDB an insert locks the node until its transaction ends.
    node = models.ForeignKey(
        Node, on_delete=models.CASCADE, db_constraint=False, related_name="batches"
    )
    trigger = models.CharField(max_length=16, choices=Trigger)
    requested_by = models.CharField(max_length=255, blank=True)
    scope = models.JSONField(default=dict, help_text="What another process needs to continue it.")
    # Separate from the scope, which may hold thousands of keys: every chunk's start reads them.
    is_given = models.BooleanField(
        default=False, help_text="Whether only the process that started it has its queryset."
    )
    is_beyond_base = models.BooleanField(
        default=False, help_text="Whether its rows may lie outside the runner's base queryset."
    )
    description = models.CharField(max_length=255, blank=True)
    state = models.CharField(max_length=16, choices=State, default=State.RUNNING)
    reason = models.TextField(
        blank=True, help_text="Why it was cancelled, failed or was paused by STOP_AFTER."
    )

    cursor = models.CharField(max_length=255, blank=True, help_text="The last key planned.")
    upper_bound = models.CharField(max_length=255, blank=True, help_text="The last key to plan.")
    limit = models.BigIntegerField(null=True, blank=True)
    window = models.IntegerField(null=True, blank=True)

    candidates = models.BigIntegerField(default=0)
    existing = models.BigIntegerField(default=0)
    planned = models.BigIntegerField(default=0)
    unprepared = models.BigIntegerField(default=0)

    # The runs in its folded chunks, none of which has failed.
    folded_succeeded = models.BigIntegerField(default=0)
    folded_cancelled = models.BigIntegerField(default=0)
    folded_not_applicable = models.BigIntegerField(default=0, db_default=0)

    token = models.IntegerField(
        default=0, help_text="Incremented whenever a process takes it over."
    )
    tries = models.PositiveSmallIntegerField(
        default=0, help_text="Processes that have started to plan it since it last made progress."
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=DatabaseNow())
    planned_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = BatchManager()  # type: ignore[misc]

    class Meta(Table.Meta):
        verbose_name_plural = "batches"
        indexes: ClassVar = [models.Index(fields=["state", "runner"], name="autorun_batch_state")]

    def __str__(self) -> str:
        return f"{self.get_trigger_display()} {self.pk} of {self.runner}"

    @property
    def is_unfinished(self) -> bool:
        return self.state in (self.State.RUNNING, self.State.PAUSED)


class Chunk(Table):
    """Up to BATCH_SIZE runs of one node, handed to Celery as one message and leased as one.

    WAITING --release--> QUEUED --start--> RUNNING --finish--> FINISHED
       ^                    |                 |
       |<---park: PARKED----+                 +--rescue: FINISHED; its runs move to new chunks
    """

    State: TypeAlias = ChunkState
    #: Its unfinished runs, in a queryset of chunks.
    RUNS_LEFT: ClassVar = F("size") - F("succeeded") - F("failed") - F("cancelled") - F("moved")
    #: Read with a queued chunk: whether a more urgent one is queued, others of its node wait, and
    #: the worker is drained.
    is_preceded = is_followed = is_refused = False

    class Priority(models.IntegerChoices):
        BACKFILL = 0
        SWEEP = 10
        RELATED = 15
        WRITE = 16
        LIVE = 20

    id = models.BigIntegerField(primary_key=True, default=new_chunk_id)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="chunks", db_index=False)
    runner = models.CharField(max_length=255)
    batch = models.ForeignKey(
        Batch,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="chunks",
        db_constraint=False,
        db_index=False,
    )
    state = models.PositiveSmallIntegerField(choices=State, default=State.WAITING)
    reason = models.TextField(blank=True, default="", help_text="Why it is parked.")
    priority = models.SmallIntegerField(choices=Priority, default=Priority.BACKFILL)
    queue = models.CharField(max_length=255, blank=True, default="")
    size = models.IntegerField()
    not_before = models.DateTimeField(null=True, blank=True)
    postponed_by = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text="Why its runs wait until then: a RetryLater, or damping.",
    )

    created_at = models.DateTimeField(db_default=DatabaseNow())
    published_at = models.DateTimeField(null=True, blank=True)
    publications = models.PositiveSmallIntegerField(default=0)
    started_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="When the lease ends.")
    finished_at = models.DateTimeField(null=True, blank=True)
    worker = models.CharField(max_length=255, blank=True, default="")
    token = models.IntegerField(
        default=0, help_text="Incremented whenever the chunk changes hands."
    )
    cancelling = models.JSONField(
        null=True, blank=True, help_text="Ids of runs that its worker should cancel."
    )
    doing = models.JSONField(
        null=True, blank=True, help_text="Progress that the running body has reported."
    )

    succeeded = models.IntegerField(default=0)
    failed = models.IntegerField(default=0)
    cancelled = models.IntegerField(default=0)
    moved = models.IntegerField(default=0, help_text="Runs that continued in another chunk.")
    superseded_succeeded = models.IntegerField(default=0)
    superseded_failed = models.IntegerField(default=0)
    superseded_cancelled = models.IntegerField(default=0)
    # Among the cancelled ones, so that workers of an older version miss none.
    not_applicable = models.IntegerField(default=0, db_default=0)
    superseded_not_applicable = models.IntegerField(default=0, db_default=0)
    is_folded = models.BooleanField(
        default=False, help_text="Whether its counts are part of its node's and batch's totals."
    )

    objects = ChunkManager()  # type: ignore[misc]

    class Meta(Table.Meta):
        indexes: ClassVar = [
            # In the order of release: without the ids, every release sorted all waiting chunks.
            models.Index(fields=["node", "state", "-priority", "id"], name="autorun_chunk_order"),
            # Past a batch that is paused or full, which may have very many chunks.
            models.Index(
                fields=["node", "state", "batch", "-priority", "id"], name="autorun_chunk_by_batch"
            ),
            models.Index(fields=["state", "expires_at"], name="autorun_chunk_lease"),
            # With the state, finished chunks are found among millions of waiting ones.
            # So are those without a failure, which are to be folded, among those that stay.
            models.Index(
                fields=["node", "is_folded", "state", "failed"], name="autorun_chunk_folded"
            ),
            models.Index(fields=["batch", "is_folded"], name="autorun_chunk_batch"),
        ]

    def __str__(self) -> str:
        return f"Chunk {self.pk} of {self.runner}"


class Environment(Table):
    """The surroundings of code: Python, the installed packages and the project's git revision."""

    digest = models.CharField(max_length=64, unique=True)
    facts = models.JSONField(default=dict)
    created_at = models.DateTimeField(db_default=DatabaseNow())

    def __str__(self) -> str:
        return f"Environment {self.digest[:12]}"


class Build(Table):
    """The code that executed runs of a node, in an environment; a run names it in four bytes."""

    # The start of its digest: a sequence would give a number that processes remember to another
    # build after a failover.
    id = models.IntegerField(primary_key=True)
    node = models.ForeignKey(
        Node, on_delete=models.CASCADE, db_constraint=False, related_name="builds"
    )
    code = models.CharField(
        max_length=64, blank=True, help_text="A digest of the analysis's code; empty if unknown."
    )
    environment = models.ForeignKey(
        Environment, on_delete=models.CASCADE, db_constraint=False, related_name="builds"
    )
    created_at = models.DateTimeField(db_default=DatabaseNow())

    class Meta(Table.Meta):
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["node", "code", "environment"], name="autorun_build_once"
            )
        ]

    def __str__(self) -> str:
        return f"Build {self.pk} of {self.node}"


class Run(Table):
    """One row, processed or to be processed once by one node.

    At most one run of a node and row is *current*: the one for the row's latest input. Its
    `is_current` is True; on the others it is NULL, which a unique constraint ignores. `object_id`
    names the row, or `object_key` if its primary key is not an integer.
    """

    Status: TypeAlias = RunStatus

    id = models.BigAutoField(primary_key=True)
    node = models.ForeignKey(
        Node, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False, related_name="runs"
    )
    object_id = models.BigIntegerField(default=0)
    object_key = ObjectKeyField(max_length=255, blank=True, default="")
    fingerprint = FingerprintField()
    is_current = models.BooleanField(null=True, default=True)
    chunk = models.ForeignKey(
        Chunk, on_delete=models.DO_NOTHING, db_constraint=False, related_name="runs"
    )
    status = models.PositiveSmallIntegerField(choices=Status, default=Status.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    finished_at = models.DateTimeField(null=True, blank=True)
    outputs = models.JSONField(null=True, blank=True)
    seconds = RealField(null=True, blank=True, help_text="How long its last attempt took.")
    build = models.ForeignKey(
        Build,
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="runs",
    )

    objects = RunManager()  # type: ignore[misc]

    class Meta(Table.Meta):
        permissions: ClassVar = [
            ("start_run", "Can start sweeps, and runs of selected rows"),
            ("backfill_run", "Can backfill"),
            ("retry_run", "Can retry failed runs"),
            ("cancel_run", "Can cancel and ignore runs"),
            ("pause_run", "Can pause and resume runners and batches"),
            ("view_payload", "Can see inputs, outputs and messages of failures"),
        ]
        # No index mentions the status: it would cost every update its HOT path.
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["node", "object_id", "object_key", "is_current"],
                name="autorun_run_one_current",
            ),
            models.CheckConstraint(
                condition=Q(is_current=True) | Q(is_current__isnull=True),
                name="autorun_run_current_or_null",
            ),
        ]

    def __str__(self) -> str:
        return f"Run {self.pk}"

    @property
    def key_text(self) -> str:
        """The primary key of the row, as text."""
        model = self.node.get_model() if self.object_key else None
        key = self.object_key or self.object_id
        return str(key_kind(model).spelled(key) if model else key)


class Failure(Table):
    """The exception of one attempt of a run."""

    run = models.ForeignKey(
        Run, on_delete=models.CASCADE, db_constraint=False, related_name="failures"
    )
    attempt = models.PositiveSmallIntegerField()
    exception_class = models.CharField(max_length=255)
    message = models.TextField(blank=True)
    traceback = models.TextField(blank=True)
    log_tail = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text="The end of its log, its standard output and a subprocess's stderr.",
    )
    worker = models.CharField(max_length=255, blank=True)
    failed_at = models.DateTimeField(db_default=DatabaseNow())

    class Meta(Table.Meta):
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "attempt"], name="autorun_failure_one_a_attempt")
        ]
        indexes: ClassVar = [models.Index(fields=["failed_at"], name="autorun_failure_time")]

    def __str__(self) -> str:
        return f"{self.exception_class}: {self.message[:80]}"
