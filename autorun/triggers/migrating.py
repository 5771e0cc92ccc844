"""Triggers around `migrate`: removed from the tables it changes, and installed afterwards.

Some of them would stop the migrations. Afterwards it installs those of all runners with ON_WRITE.
The nodes of renamed models get the digests of the new names.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.core.management import CommandError
from django.db import connections
from django.db.migrations import AlterField, Migration, RenameModel
from django.db.models import CharField, Model
from django.db.models.functions import Cast
from django.db.models.signals import post_migrate, pre_migrate

from autorun.conf import settings
from autorun.declare.nodes import forget_nodes
from autorun.models import Node, Written
from autorun.state.encoding import digest
from autorun.state.logs import get_logger
from autorun.triggers import on_write
from autorun.triggers.installing import drop_statement, existing, install, is_forbidden, remove
from autorun.triggers.on_write import table_name

logger = get_logger(__name__)


def connect() -> None:
    """Keep the triggers up to date with every `migrate` from now on."""
    config = apps.get_app_config("autorun")
    pre_migrate.connect(_before_migrations, sender=config, dispatch_uid="autorun.on_write")
    post_migrate.connect(_after_migrations, sender=config, dispatch_uid="autorun.on_write")


def _before_migrations(
    plan: Sequence[tuple[Migration, bool]] = (), using: str = "", **_: Any
) -> None:
    """Remove the triggers of the tables that the migrations may change; all if autorun's own do."""
    if not plan or using != settings.DATABASE or not _is_ready(using):
        return
    if is_forbidden():
        _refuse_to_break_writes()
        return
    is_all = any(migration.app_label == "autorun" for migration, _ in plan)
    known = set(map(table_name, apps.get_models(True)))
    safe = known.difference(map(table_name, _touched(plan)))
    for error in remove([each for each in existing() if is_all or each.table not in safe]):
        logger.error("A trigger was not removed before the migrations: %s", error)


def _refuse_to_break_writes() -> None:
    """Stop the migrations if a trigger reads a column that its table will not have."""
    # On MariaDB every write of the table would then fail, and this user may not drop the trigger.
    columns: dict[str, set[str]] = defaultdict(set)
    for model in apps.get_models(True):
        columns[table_name(model)].update(str(each.column) for each in model._meta.local_fields)
    broken = [
        each
        for each in existing()
        if each.table in columns and not columns[each.table].issuperset(each.columns)
    ]
    if broken:
        tables = ", ".join(dict.fromkeys(each.table for each in broken))
        drop = "; ".join(map(drop_statement, broken))
        raise CommandError(
            f"{tables}: triggers of ON_WRITE read a column that the models no longer have. Once it "
            "is removed, every write of the table fails, and the binary log forbids this user to "
            f"drop triggers. Ask a database administrator to run `{drop}`, migrate again, and have "
            "the administrator install what `manage.py autorun triggers --sql` prints then."
        )


def _touched(plan: Sequence[tuple[Migration, bool]]) -> set[type[Model]]:
    """The models of these migrations, and those whose references follow an altered key."""
    models, labels = set(apps.get_models(True)), {each.app_label for each, _ in plan}
    altered = {
        (migration.app_label, operation.model_name_lower)
        for migration, _ in plan
        for operation in migration.operations
        if isinstance(operation, AlterField) and operation.field.unique
    }
    touched = {each for each in models if each._meta.app_label in labels}
    new = {each for each in models if (each._meta.app_label, each._meta.model_name) in altered}
    follow: set[type[Model]] = set()
    while new:
        follow |= new
        new = {
            each
            for each in models - follow
            if any(field.related_model in new for field in each._meta.local_concrete_fields)
        }
    return touched | follow


def _after_migrations(using: str = "", **sent: Any) -> None:
    if using != settings.DATABASE or not _is_ready(using):
        return
    if "plan" not in sent:
        # By `flush`, which may have emptied the table of notes before the tables that note.
        Written.objects.all()._raw_delete(using)
    _follow_renames(sent.get("plan", ()))
    on_write.forget()
    for error in install():
        logger.error("The triggers of ON_WRITE are not installed: %s", error)


def _follow_renames(plan: Sequence[tuple[Migration, bool]]) -> None:
    """Give the nodes of models that these migrations have renamed the digests of the new names."""
    labels = {
        f"{migration.app_label}.{name}"
        for migration, _ in plan
        for operation in migration.operations
        if isinstance(operation, RenameModel)
        for name in (operation.old_name_lower, operation.new_name_lower)
    }
    # Only columns of the first migration: the others may be missing yet.
    columns = ("pk", "title", "version", "configuration", "digest")
    model = ("content_type__app_label", "content_type__model")
    renamed: dict[int, str] = {}
    for pk, title, version, configuration, known, *of in Node.objects.values_list(*columns, *model):
        digests = {label: digest(title, version, configuration, label) for label in labels}
        if known in digests.values() and known != digests.get(label := ".".join(of), known):
            renamed[pk] = digests[label]
    nodes = Node.objects.filter(pk__in=renamed)
    if not Node.objects.filter(digest__in=renamed.values()).exclude(pk__in=renamed).exists():
        nodes.update(digest=Cast("pk", CharField()))  # two models may have swapped their names
        for pk, found in renamed.items():
            nodes.filter(pk=pk).update(digest=found)
    forget_nodes()


def _is_ready(using: str) -> bool:
    """Whether the table of notes is there: not before autorun's migrations, nor after they go."""
    connection = connections[using]
    with connection.cursor() as cursor:
        return Written._meta.db_table in connection.introspection.table_names(cursor)
