"""The base of autorun's tables, and those for upkeep; `autorun.models` has them all."""

from django.db import models

from autorun.state.clock import DatabaseNow
from autorun.state.fields import ObjectKeyField
from autorun.state.transactions import StateManager


class Table(models.Model):
    """A table whose rows are in the database that `AUTORUN["DATABASE"]` names."""

    objects = StateManager()

    class Meta:
        abstract = True
        base_manager_name = "objects"


class SpilledTrigger(Table):
    """Primary keys of saved rows whose message no broker took; upkeep plans them.

    With a `runner`, they are planned for that runner alone, as its dependencies have succeeded.
    """

    model_label = models.CharField(max_length=255)
    runner = models.CharField(max_length=255, blank=True, default="")
    keys = models.JSONField()
    created_at = models.DateTimeField(db_default=DatabaseNow())
    tries = models.PositiveSmallIntegerField(
        db_default=0, help_text="How many processes have started to plan them and did not finish."
    )
    expires_at = models.DateTimeField(
        null=True, blank=True, help_text="When another process may plan them."
    )
    reason = models.TextField(
        blank=True, db_default="", help_text="Why the last try planned none of them."
    )

    def __str__(self) -> str:
        return f"{len(self.keys)} saved {self.model_label} rows"


class Written(Table):
    """A row that was written, as a trigger in the database noted it; upkeep has it planned.

    On PostgreSQL one note stands for all rows of a statement whose keys are consecutive integers.

    Ids do not follow the order of commits: a transaction that began early may end late.
    """

    class Operation(models.TextChoices):
        INSERT = "i"
        UPDATE = "u"
        DELETE = "d"
        TRUNCATE = "t"

    source = models.CharField(max_length=255, help_text="The model of the table, in lower case.")
    operation = models.CharField(max_length=1, choices=Operation)
    object_id = models.BigIntegerField(db_default=0)
    last_id = models.BigIntegerField(
        null=True, blank=True, help_text="The last of the keys from object_id on, if many."
    )
    object_key = ObjectKeyField(max_length=255, blank=True, db_default="")
    written_at = models.DateTimeField(db_default=DatabaseNow())

    class Meta(Table.Meta):
        verbose_name_plural = "written rows"

    def __str__(self) -> str:
        return f"{self.get_operation_display()} of {self.object_key or self.object_id}"


class BatchRow(Table):
    """A row that a batch is about, until it is planned; `is_deleted` if it was deleted."""

    pk = models.CompositePrimaryKey("batch_id", "is_deleted", "object_id", "object_key")
    batch_id = models.BigIntegerField()
    is_deleted = models.BooleanField(db_default=False)
    object_id = models.BigIntegerField(db_default=0)
    object_key = ObjectKeyField(max_length=255, blank=True, db_default="")

    def __str__(self) -> str:
        return f"{self.object_key or self.object_id} of batch {self.batch_id}"


class Pulse(Table):
    """The last time that a periodic job ran; also a lock or a note by name."""

    name = models.CharField(max_length=64, primary_key=True)
    beat_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name
