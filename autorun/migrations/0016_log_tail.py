from django.db import migrations, models


class Migration(migrations.Migration):
    """What a failed attempt wrote last."""

    dependencies = [("autorun", "0015_sample")]
    operations = [
        migrations.AddField(
            "failure",
            "log_tail",
            models.TextField(
                blank=True,
                db_default="",
                default="",
                help_text="The end of its log, its standard output and a subprocess's stderr.",
            ),
        ),
    ]
