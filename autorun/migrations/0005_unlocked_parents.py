from django.db import migrations, models


class Migration(migrations.Migration):
    """On MariaDB, an insert locks the rows that it refers to by a constraint."""

    dependencies = [("autorun", "0004_held_up")]
    operations = [
        migrations.AlterField(
            "batch",
            "node",
            models.ForeignKey(
                "autorun.node",
                on_delete=models.CASCADE,
                db_constraint=False,
                related_name="batches",
            ),
        ),
        migrations.AlterField(
            "chunk",
            "batch",
            models.ForeignKey(
                "autorun.batch",
                null=True,
                blank=True,
                on_delete=models.SET_NULL,
                related_name="chunks",
                db_constraint=False,
                db_index=False,
            ),
        ),
    ]
