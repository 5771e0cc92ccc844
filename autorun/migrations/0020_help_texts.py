from django.db import migrations, models


class Migration(migrations.Migration):
    """Help texts alone; no table changes."""

    dependencies = [("autorun", "0019_unlanded")]
    operations = [
        migrations.AlterField(
            "batch",
            "is_beyond_base",
            models.BooleanField(
                default=False,
                help_text="Whether its rows may lie outside the runner's base queryset.",
            ),
        ),
        migrations.AlterField(
            "batch",
            "is_given",
            models.BooleanField(
                default=False,
                help_text="Whether only the process that started it has its queryset.",
            ),
        ),
        migrations.AlterField(
            "batch",
            "reason",
            models.TextField(
                blank=True, help_text="Why it was cancelled, failed or was paused by STOP_AFTER."
            ),
        ),
        migrations.AlterField(
            "batch",
            "scope",
            models.JSONField(default=dict, help_text="What another process needs to continue it."),
        ),
        migrations.AlterField(
            "batch",
            "token",
            models.IntegerField(
                default=0, help_text="Incremented whenever a process takes it over."
            ),
        ),
        migrations.AlterField(
            "batch",
            "tries",
            models.PositiveSmallIntegerField(
                default=0,
                help_text="Processes that have started to plan it since it last made progress.",
            ),
        ),
        migrations.AlterField(
            "chunk",
            "cancelling",
            models.JSONField(
                blank=True, help_text="Ids of runs that its worker should cancel.", null=True
            ),
        ),
        migrations.AlterField(
            "chunk",
            "doing",
            models.JSONField(
                blank=True, help_text="Progress that the running body has reported.", null=True
            ),
        ),
        migrations.AlterField(
            "chunk",
            "is_folded",
            models.BooleanField(
                default=False,
                help_text="Whether its counts are part of its node's and batch's totals.",
            ),
        ),
        migrations.AlterField(
            "chunk",
            "moved",
            models.IntegerField(default=0, help_text="Runs that continued in another chunk."),
        ),
        migrations.AlterField(
            "chunk",
            "token",
            models.IntegerField(
                default=0, help_text="Incremented whenever the chunk changes hands."
            ),
        ),
        migrations.AlterField(
            "node",
            "counted",
            models.JSONField(
                default=dict, help_text="The latest count of its model's rows, made for a page."
            ),
        ),
        migrations.AlterField(
            "node",
            "folded_hours",
            models.JSONField(
                default=dict, help_text="How many of them succeeded in each recent hour."
            ),
        ),
        migrations.AlterField(
            "node",
            "held_by",
            models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Who put its sweeps and saved rows on hold.",
                max_length=255,
            ),
        ),
        migrations.AlterField(
            "node",
            "inputs",
            models.JSONField(
                blank=True,
                help_text="Definitions of the input that its runs were given.",
                null=True,
            ),
        ),
        migrations.AlterField(
            "node",
            "paused_because",
            models.TextField(
                blank=True, db_default="", default="", help_text="Why STOP_AFTER paused it."
            ),
        ),
        migrations.AlterField(
            "node",
            "run_seconds",
            models.FloatField(
                blank=True,
                help_text="Duration of a run in seconds, as a moving average.",
                null=True,
            ),
        ),
        migrations.AlterField(
            "node",
            "sample",
            models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Rows of a candidate version: their number, highest hash and last key.",
                max_length=100,
            ),
        ),
        migrations.AlterField(
            "node",
            "unlanded_at",
            models.DateTimeField(
                blank=True,
                help_text="Successes before this are not landed: another version was in use.",
                null=True,
            ),
        ),
    ]
