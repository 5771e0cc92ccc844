"""Related rows: those of other tables that a runner reads, and how they lead to its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model

PK = "pk"
#: Begins the label of rows that are named by a related one.
RELATED = "related:"


@dataclass(frozen=True)
class Related:
    """Rows of `model` that a runner reads: those concerned have `attname` of one as `lookup`.

    A row that refers to the runner's is known by what it refers to, so that it can be deleted.
    """

    relation: str
    model: type[Model]
    attname: str
    lookup: str


def label_of_related(model_label: str, lookup: str) -> str:
    """The label under which values are delivered that find rows of a model by a lookup."""
    # A worker of an older version leaves it to other workers.
    return f"{RELATED}{model_label}:{lookup}"


def along(model: type[Model], path: Any, *, is_input: bool = False) -> Iterator[Related]:
    """The related rows that a path over relations reads, as far as it leads over any."""
    # An input needs the column at the end of its path, and not the row that this refers to.
    passed: list[str] = []
    names = str(path).split("__")
    for name in names:
        try:
            field = relation_at(model, name)
        except FieldDoesNotExist:
            return
        passed.append(name)
        is_last = len(passed) == len(names)
        if not (is_input and is_last and field.concrete and not field.many_to_many):
            yield from _of_relation(field, passed)
        model = field.related_model


def relation_at(model: type[Model], name: str) -> Any:
    """The relation of that name to rows of one model; raise FieldDoesNotExist for anything else."""
    field: Any = model._meta.pk if name == PK else model._meta.get_field(name)
    if field.related_model is None:
        raise FieldDoesNotExist(f"{model._meta.label} has no relation {name!r}.")
    return field


def _of_relation(field: Any, passed: list[str]) -> Iterator[Related]:
    model, relation = field.related_model, "__".join(passed)

    def near(name: str = PK) -> str:
        return "__".join((*passed[:-1], name))

    if field.many_to_many:
        is_reverse = field.auto_created  # from Django 6.0 on, no such field is concrete
        declared = field.field if is_reverse else field
        through = declared.remote_field.through
        attname, target = _link(declared, through, is_reverse=is_reverse)
        yield Related(relation, through, attname, near(target))
    elif hasattr(field, "object_id_field_name"):  # a generic relation
        link = model._meta.get_field(field.object_id_field_name)
        yield Related(relation, model, link.attname, near())
        return
    elif not field.concrete:
        link = field.field
        yield Related(relation, model, link.attname, near(link.target_field.name))
        if not model._meta.all_parents:  # in whose tables some of its columns are
            return
    yield Related(relation, model, PK, f"{relation}__{PK}")


def _link(declared: Any, through: Any, *, is_reverse: bool) -> tuple[str, str]:
    """The column of a many-to-many row that names the runner's row, and the field it refers to."""
    if is_reverse:
        name = declared.m2m_reverse_field_name()
    else:  # the tags of django-taggit always name it so
        name = getattr(declared, "m2m_field_name", lambda: "content_object")()
    link = through._meta.get_field(name)
    if hasattr(link, "fk_field"):  # it may be a row of any model
        key: Any = through._meta.get_field(link.fk_field)
        return key.attname, PK
    return link.attname, link.target_field.name
