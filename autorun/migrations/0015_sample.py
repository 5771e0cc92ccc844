from django.db import migrations, models


class Migration(migrations.Migration):
    """The rows that a candidate version runs on."""

    dependencies = [("autorun", "0014_inputs")]
    operations = [
        migrations.AddField(
            "node",
            "sample",
            models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="The rows of a candidate version: their number, highest hash and last "
                "key.",
                max_length=100,
            ),
        ),
    ]
