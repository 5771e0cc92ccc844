import django.db.models.deletion
from django.db import migrations, models

import autorun.state.clock
import autorun.state.fields


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("contenttypes", "0002_remove_content_type_name"),
    ]

    operations = [
        migrations.CreateModel(
            name="Batch",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("runner", models.CharField(db_index=True, max_length=255)),
                (
                    "trigger",
                    models.CharField(
                        choices=[("sweep", "Sweep"), ("backfill", "Backfill"), ("code", "Code")],
                        max_length=16,
                    ),
                ),
                ("requested_by", models.CharField(blank=True, max_length=255)),
                (
                    "scope",
                    models.JSONField(
                        default=dict, help_text="What another process needs to go on with it."
                    ),
                ),
                (
                    "is_given",
                    models.BooleanField(
                        default=False,
                        help_text="Whether only the process that began it has its queryset.",
                    ),
                ),
                (
                    "is_beyond_base",
                    models.BooleanField(
                        default=False,
                        help_text="Whether its rows may lie outside of the runner's base queryset.",
                    ),
                ),
                ("description", models.CharField(blank=True, max_length=255)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("running", "Running"),
                            ("paused", "Paused"),
                            ("cancelled", "Cancelled"),
                            ("finished", "Finished"),
                            ("failed", "Failed"),
                        ],
                        default="running",
                        max_length=16,
                    ),
                ),
                (
                    "reason",
                    models.TextField(blank=True, help_text="Why it was cancelled or failed."),
                ),
                (
                    "cursor",
                    models.CharField(blank=True, help_text="The last key planned.", max_length=255),
                ),
                (
                    "upper_bound",
                    models.CharField(blank=True, help_text="The last key to plan.", max_length=255),
                ),
                ("limit", models.BigIntegerField(blank=True, null=True)),
                ("window", models.IntegerField(blank=True, null=True)),
                ("candidates", models.BigIntegerField(default=0)),
                ("existing", models.BigIntegerField(default=0)),
                ("planned", models.BigIntegerField(default=0)),
                ("unprepared", models.BigIntegerField(default=0)),
                ("folded_succeeded", models.BigIntegerField(default=0)),
                ("folded_cancelled", models.BigIntegerField(default=0)),
                (
                    "token",
                    models.IntegerField(
                        default=0, help_text="Raised whenever a process takes it over."
                    ),
                ),
                (
                    "tries",
                    models.PositiveSmallIntegerField(
                        default=0,
                        help_text="Processes that have begun to plan it since it last got any further.",
                    ),
                ),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField(db_default=autorun.state.clock.DatabaseNow())),
                ("planned_at", models.DateTimeField(blank=True, null=True)),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "base_manager_name": "objects",
                "verbose_name_plural": "batches",
            },
        ),
        migrations.CreateModel(
            name="Pulse",
            fields=[
                ("name", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("beat_at", models.DateTimeField()),
            ],
            options={
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="SpilledTrigger",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("model_label", models.CharField(max_length=255)),
                ("runner", models.CharField(blank=True, default="", max_length=255)),
                ("keys", models.JSONField()),
                ("created_at", models.DateTimeField(db_default=autorun.state.clock.DatabaseNow())),
            ],
            options={
                "base_manager_name": "objects",
            },
        ),
        migrations.CreateModel(
            name="Node",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("title", models.CharField(max_length=255)),
                ("version", models.CharField(max_length=100)),
                ("configuration", models.JSONField(default=dict)),
                ("digest", models.CharField(max_length=64, unique=True)),
                (
                    "run_seconds",
                    models.FloatField(
                        blank=True,
                        help_text="A run's time in seconds, as a moving average.",
                        null=True,
                    ),
                ),
                ("paused_at", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField(db_default=autorun.state.clock.DatabaseNow())),
                ("folded_succeeded", models.BigIntegerField(default=0)),
                ("folded_failed", models.BigIntegerField(default=0)),
                ("folded_ignored", models.BigIntegerField(default=0)),
                (
                    "folded_hours",
                    models.JSONField(
                        default=dict, help_text="How many of them succeeded in each hour of late."
                    ),
                ),
                (
                    "counted",
                    models.JSONField(
                        default=dict,
                        help_text="The rows of its model, as they were counted last for a page.",
                    ),
                ),
                (
                    "content_type",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="contenttypes.contenttype",
                    ),
                ),
            ],
            options={
                "base_manager_name": "objects",
                "verbose_name_plural": "overview",
            },
        ),
        migrations.CreateModel(
            name="Chunk",
            fields=[
                (
                    "id",
                    models.BigIntegerField(
                        default=autorun.state.clock.new_chunk_id, primary_key=True, serialize=False
                    ),
                ),
                ("runner", models.CharField(max_length=255)),
                (
                    "state",
                    models.PositiveSmallIntegerField(
                        choices=[
                            (0, "Waiting"),
                            (1, "Queued"),
                            (2, "Running"),
                            (3, "Parked"),
                            (4, "Finished"),
                        ],
                        default=0,
                    ),
                ),
                ("reason", models.TextField(blank=True, default="", help_text="Why it is parked.")),
                (
                    "priority",
                    models.SmallIntegerField(
                        choices=[(0, "Backfill"), (10, "Sweep"), (20, "Live")], default=0
                    ),
                ),
                ("queue", models.CharField(blank=True, default="", max_length=255)),
                ("size", models.IntegerField()),
                ("not_before", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField(db_default=autorun.state.clock.DatabaseNow())),
                ("published_at", models.DateTimeField(blank=True, null=True)),
                ("publications", models.PositiveSmallIntegerField(default=0)),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                (
                    "expires_at",
                    models.DateTimeField(blank=True, help_text="When the lease ends.", null=True),
                ),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                ("worker", models.CharField(blank=True, default="", max_length=255)),
                (
                    "token",
                    models.IntegerField(
                        default=0, help_text="Raised whenever the chunk changes hands."
                    ),
                ),
                ("succeeded", models.IntegerField(default=0)),
                ("failed", models.IntegerField(default=0)),
                ("cancelled", models.IntegerField(default=0)),
                (
                    "moved",
                    models.IntegerField(default=0, help_text="Runs that went on in another chunk."),
                ),
                ("superseded_succeeded", models.IntegerField(default=0)),
                ("superseded_failed", models.IntegerField(default=0)),
                ("superseded_cancelled", models.IntegerField(default=0)),
                (
                    "is_folded",
                    models.BooleanField(
                        default=False,
                        help_text="Whether its node and its batch have counted it in.",
                    ),
                ),
                (
                    "batch",
                    models.ForeignKey(
                        blank=True,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="chunks",
                        to="autorun.batch",
                    ),
                ),
                (
                    "node",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="chunks",
                        to="autorun.node",
                    ),
                ),
            ],
            options={
                "base_manager_name": "objects",
            },
        ),
        migrations.AddField(
            model_name="batch",
            name="node",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE,
                related_name="batches",
                to="autorun.node",
            ),
        ),
        migrations.CreateModel(
            name="Run",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("object_id", models.BigIntegerField(default=0)),
                (
                    "object_key",
                    autorun.state.fields.ObjectKeyField(blank=True, default="", max_length=255),
                ),
                ("fingerprint", autorun.state.fields.FingerprintField()),
                ("is_current", models.BooleanField(default=True, null=True)),
                (
                    "status",
                    models.PositiveSmallIntegerField(
                        choices=[(0, "Pending"), (1, "Succeeded"), (2, "Failed"), (3, "Cancelled")],
                        default=0,
                    ),
                ),
                ("attempts", models.PositiveSmallIntegerField(default=0)),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                ("outputs", models.JSONField(blank=True, null=True)),
                (
                    "chunk",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="runs",
                        to="autorun.chunk",
                    ),
                ),
                (
                    "node",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        related_name="runs",
                        to="autorun.node",
                    ),
                ),
            ],
            options={
                "base_manager_name": "objects",
                "permissions": [
                    ("start_run", "Can start sweeps, and runs of selected rows"),
                    ("backfill_run", "Can backfill"),
                    ("retry_run", "Can retry failed runs"),
                    ("cancel_run", "Can cancel and ignore runs"),
                    ("pause_run", "Can pause and resume runners and batches"),
                    ("view_payload", "Can see inputs, outputs and messages of failures"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Failure",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("attempt", models.PositiveSmallIntegerField()),
                ("exception_class", models.CharField(max_length=255)),
                ("message", models.TextField(blank=True)),
                ("traceback", models.TextField(blank=True)),
                ("worker", models.CharField(blank=True, max_length=255)),
                ("failed_at", models.DateTimeField(db_default=autorun.state.clock.DatabaseNow())),
                (
                    "run",
                    models.ForeignKey(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="failures",
                        to="autorun.run",
                    ),
                ),
            ],
            options={
                "base_manager_name": "objects",
            },
        ),
        migrations.AddIndex(
            model_name="chunk",
            index=models.Index(
                fields=["node", "state", "-priority", "id"], name="autorun_chunk_order"
            ),
        ),
        migrations.AddIndex(
            model_name="chunk",
            index=models.Index(fields=["state", "expires_at"], name="autorun_chunk_lease"),
        ),
        migrations.AddIndex(
            model_name="chunk",
            index=models.Index(fields=["node", "is_folded", "state"], name="autorun_chunk_folded"),
        ),
        migrations.AddIndex(
            model_name="chunk",
            index=models.Index(fields=["batch", "is_folded"], name="autorun_chunk_batch"),
        ),
        migrations.AddIndex(
            model_name="batch",
            index=models.Index(fields=["state", "runner"], name="autorun_batch_state"),
        ),
        migrations.AddConstraint(
            model_name="run",
            constraint=models.UniqueConstraint(
                fields=("node", "object_id", "object_key", "is_current"),
                name="autorun_run_one_current",
            ),
        ),
        migrations.AddConstraint(
            model_name="run",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("is_current", True), ("is_current__isnull", True), _connector="OR"
                ),
                name="autorun_run_current_or_null",
            ),
        ),
        migrations.AddIndex(
            model_name="failure",
            index=models.Index(fields=["failed_at"], name="autorun_failure_time"),
        ),
        migrations.AddConstraint(
            model_name="failure",
            constraint=models.UniqueConstraint(
                fields=("run", "attempt"), name="autorun_failure_one_a_attempt"
            ),
        ),
    ]
