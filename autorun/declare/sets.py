"""Related rows: how they lead to a runner's own, and sets of them, by Members and by Each."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db.models import F, Model, Q, QuerySet

from autorun.declare.inputs import Input, input_of

PK = "pk"
#: Begins the label of rows that are named by a related one.
RELATED = "related:"
#: The annotation of members with the primary key of the row that they belong to.
OWNER = "_autorun_owner"


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
    """The related rows that a path over relations reads, as far as it leads over any.

    An input (`is_input`) needs the column at the end of its path, not the row that it refers to.
    """
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


@dataclass(frozen=True, init=False)
class Members:
    """One of INPUT_FIELDS: the rows of a relation, as a list in the order of their keys.

    It has the value of `fields[0]`, or a dict if there are several; by default the primary keys.
    `where` chooses among the rows. The input calls the list `name`, by default as the relation.
    """

    relation: str
    fields: tuple[str, ...]
    where: Q | None
    name: str

    def __init__(
        self, relation: str, *fields: str, where: Q | None = None, name: str | None = None
    ) -> None:
        values = {"relation": relation, "fields": fields or ("pk",), "where": where}
        vars(self).update(values, name=name or relation)

    def __str__(self) -> str:
        return f"{self.relation} ({', '.join(self.fields)})"

    def paths(self) -> Iterator[str]:
        """The paths from a member to what is read of it."""
        yield from (*self.fields, *_paths_in(self.where))


@dataclass(frozen=True)
class Each:
    """One of DEPENDS_ON: a row waits until a runner has succeeded on every row of a relation.

    `runner` is its class or label. `where` chooses among those rows. If there are none, the row
    does not wait.
    """

    runner: Any
    relation: str
    where: Q | None = None

    def __repr__(self) -> str:
        named = getattr(self.runner, "__name__", repr(self.runner))
        return f"Each({named}, {self.relation!r}{', where=Q(...)' if self.where else ''})"

    def __str__(self) -> str:
        label = self.runner if isinstance(self.runner, str) else self.runner.get_label()
        return f"{label} on each of {self.relation}"

    def paths(self) -> Iterator[str]:
        """The paths from a member to what is read of it."""
        yield from _paths_in(self.where)


def _paths_in(where: Q | None) -> Iterator[str]:
    """The lookups of a condition, and the paths of the F() in it."""
    for each in where.flatten() if where else ():
        if isinstance(each, Q):
            yield from (child[0] for child in each.children if isinstance(child, tuple))
        elif isinstance(each, F):
            yield each.name  # type: ignore[attr-defined]


def rows_in(model: type[Model], named: Members | Each) -> QuerySet[Any]:
    """The members of all rows of `model`, each with its OWNER; a row in two sets is there twice.

    They are the rows of the default manager, as those of the relation itself are. Raises
    FieldDoesNotExist if it is not a relation.
    """
    back: list[str] = []
    for name in named.relation.split("__"):
        field = relation_at(model, name)
        back.insert(0, field.remote_field.name)
        model = field.related_model
    rows: QuerySet[Any] = model._default_manager.order_by()
    if named.where is not None:
        rows = rows.filter(named.where)
    owned: QuerySet[Any] = rows.annotate(**{OWNER: F("__".join([*back, "pk"]))})
    return owned


@dataclass(frozen=True, eq=False)
class MembersInput:
    """Members of the rows of a model, as an input."""

    model: type[Model]
    members: Members

    @property
    def path(self) -> str:
        return self.members.name

    @cached_property
    def rows(self) -> QuerySet[Any]:
        return rows_in(self.model, self.members)

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        model: type[Model] = self.rows.model
        return tuple(input_of(model, path) for path in self.members.fields)

    @property
    def _attribute(self) -> str:
        return f"_autorun_{self.path.encode().hex()}"

    def read(self, instance: Any) -> list[Any]:
        """The members of a row, as its analysis gets them."""
        if self._attribute not in vars(instance):
            self.attach([instance])
        found: list[Any] = vars(instance)[self._attribute]
        return found

    def attach(self, instances: Collection[Any]) -> None:
        """Load the members of these rows, with one query, for `read`."""
        sets: Mapping[Any, list[Any]] = defaultdict(list)
        by_key = {instance.pk: instance for instance in instances}
        if by_key:
            rows = self.rows.using(next(iter(by_key.values()))._state.db)
            columns = {each.annotation: each.expression(each.column) for each in self.inputs}
            rows = rows.annotate(**columns).filter(**{f"{OWNER}__in": list(by_key)})
            for owner, *values in rows.order_by("pk").values_list(OWNER, *columns):
                read = zip(self.inputs, values, strict=True)
                member = {each.path: each.converted(value, None) for each, value in read}
                sets[owner].append(member if len(member) > 1 else next(iter(member.values())))
        for key, instance in by_key.items():
            setattr(instance, self._attribute, sets[key])
