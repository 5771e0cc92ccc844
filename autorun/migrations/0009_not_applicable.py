from django.db import migrations, models

_COUNT = {
    "default": 0,
    "db_default": 0,
}


class Migration(migrations.Migration):
    """Runs that end as not applicable, and runs that a body has postponed."""

    dependencies = [("autorun", "0008_written_rows")]
    operations = [
        migrations.AddField("node", "folded_not_applicable", models.BigIntegerField(**_COUNT)),
        migrations.AddField("batch", "folded_not_applicable", models.BigIntegerField(**_COUNT)),
        migrations.AddField("chunk", "not_applicable", models.IntegerField(**_COUNT)),
        migrations.AddField("chunk", "superseded_not_applicable", models.IntegerField(**_COUNT)),
        migrations.AddField(
            "chunk",
            "postponed_by",
            models.TextField(
                blank=True,
                default="",
                db_default="",
                help_text="The RetryLater that its runs wait for.",
            ),
        ),
        migrations.AlterField(
            "run",
            "status",
            models.PositiveSmallIntegerField(
                choices=[
                    (0, "Pending"),
                    (1, "Succeeded"),
                    (2, "Failed"),
                    (3, "Cancelled"),
                    (4, "Not Applicable"),
                ],
                default=0,
            ),
        ),
    ]
