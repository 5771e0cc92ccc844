import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sample_app", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="Subject",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "code",
                    models.CharField(help_text="DICOM's PatientID.", max_length=64, unique=True),
                ),
                (
                    "age",
                    models.PositiveSmallIntegerField(blank=True, help_text="In years.", null=True),
                ),
            ],
            options={"ordering": ("code",)},
        ),
        migrations.AddField(
            "scan",
            "subject",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="scans",
                to="sample_app.subject",
            ),
        ),
    ]
