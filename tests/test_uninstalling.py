"""The steps of docs/howto/uninstall.md: what they delete, and what they leave alone."""

from collections.abc import Iterator

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connection
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from sample_app.models import Scan
from sample_app.runners import ScanPreprocessingRunner
from tests.browser import scenes
from tests.test_docs import DOCS, blocks_of

PAGE = DOCS / "howto" / "uninstall.md"

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def _installed_again() -> Iterator[None]:
    yield
    ContentType.objects.clear_cache()
    call_command("migrate", "autorun", verbosity=0)


@pytest.mark.usefixtures("_installed_again")
@pytest.mark.slow
def test_uninstalling_leaves_nothing_behind():
    scenes.few()
    ScanPreprocessingRunner().run(Scan.objects.all()[:2])
    nurses = Group.objects.create(name="nurses")
    nurses.permissions.add(
        Permission.objects.get(codename="view_run"), Permission.objects.get(codename="view_scan")
    )
    LogEntry.objects.create(
        user=scenes.add_user("ada"),
        content_type=ContentType.objects.get(app_label="autorun", model="run"),
        action_flag=CHANGE,
    )
    call_command("autorun", "sync")
    hourly = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.create(name="mine", task="shop.report", interval=hourly)

    call_command("autorun", "sync", "--remove")
    (snippet,) = (block.code for block in blocks_of(PAGE) if block.language == "python")
    exec(snippet, {})
    call_command("migrate", "autorun", "zero", verbosity=0)

    assert [table for table in connection.introspection.table_names() if "autorun" in table] == []
    assert list(PeriodicTask.objects.values_list("name", flat=True)) == ["mine"]
    assert not CrontabSchedule.objects.exists()
    assert not ContentType.objects.filter(app_label="autorun").exists()
    assert not LogEntry.objects.exists()
    assert [each.codename for each in nurses.permissions.all()] == ["view_scan"]
    assert Scan.objects.count() == 20
