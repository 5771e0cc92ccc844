"""Pulses: turns that one of many processes takes at intervals, and locks and notes by name."""

import datetime as dt
import hashlib
from collections.abc import Collection
from typing import Any

from django.db import IntegrityError, connections, transaction
from django.db.models import BooleanField, Expression, ExpressionWrapper, Q, QuerySet

from autorun.conf import settings
from autorun.models import Pulse
from autorun.state.clock import NOW_SQL, DatabaseNow, from_now
from autorun.state.leases import ends_at
from autorun.state.sql import Fragment, changed_by, insert_ignoring_conflicts, table
from autorun.state.transactions import unflushed, unlocked

#: The part of an interval after which a turn may be taken: two processes' timers differ a little.
EARLY = 0.8
#: By vendor: a time and `%s` seconds, the later of two times, what to do with a row that
#: is there, and the seconds from now to the time of a row.
_MOVING_ON = {
    "postgresql": (
        "{} + %s * INTERVAL '1 second'",
        "GREATEST({}, {})",
        "ON CONFLICT (name) DO UPDATE SET",
        "EXTRACT(EPOCH FROM beat_at - CLOCK_TIMESTAMP())",
    ),
    "mysql": (
        "{} + INTERVAL %s SECOND",
        "GREATEST({}, {})",
        "ON DUPLICATE KEY UPDATE",
        "TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), beat_at) / 1e6",
    ),
    "sqlite": (
        "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', {}, %s || ' seconds')",
        "MAX({}, {})",
        "ON CONFLICT (name) DO UPDATE SET",
        "(JULIANDAY(beat_at) - JULIANDAY('NOW')) * 86400.0",
    ),
}


def take_turn(name: str, *, every: float, early: float = EARLY) -> bool:
    """Take the turn if no process has for `every` seconds, or the `early` part of them."""
    # A turn that lies in the future was taken by a wrong clock, such as that of a former server.
    is_due = Q(beat_at__lte=from_now(-every * early)) | Q(beat_at__gt=from_now(every))
    pulses = Pulse.objects.filter(name=name)
    # Read first: most callers get no turn, and write nothing.
    turn = pulses.annotate(is_due=ExpressionWrapper(is_due, BooleanField())).values_list("is_due")
    found = turn.first()
    if found is None:
        return _create(name)
    return bool(found[0] and pulses.filter(is_due).update(beat_at=DatabaseNow()))


def give_back_turn(name: str) -> None:
    """Give up the turn, so that the next caller gets it."""
    Pulse.objects.filter(name=name).delete()


def take_lease(name: str, *, held: dt.datetime | None = None) -> dt.datetime | None:
    """Take the lease of that name, or extend the one `held`; its end, or None if others have it."""
    pulses = Pulse.objects.filter(name=name)
    # Further ahead than any lease: the database's clock was wrong, or a replica's is right.
    is_over = Q(beat_at__lte=DatabaseNow()) | Q(beat_at__gt=ends_at(2))
    free = _held(name, held) if held else pulses.filter(is_over)
    for _ in range(2):
        if free.update(beat_at=ends_at()):
            return beat_of(name)
        if held is not None or pulses.exists() or not _create(name):
            break
    return None


def end_lease(name: str, held: dt.datetime) -> None:
    """Leave the lease to others, if it is still `held`."""
    _held(name, held).update(beat_at=DatabaseNow())


def name_for(kind: str, label: str) -> str:
    """Return the name of a runner's pulse; its label may be longer than the column."""
    return f"{kind}:{hashlib.sha256(label.encode()).hexdigest()[:32]}"


def hold(name: str) -> None:
    """Hold the lock of that name until the transaction ends."""
    locked = Pulse.objects.select_for_update().filter(name=name).values_list("pk", flat=True)
    if not list(locked) and not _create(name):
        list(locked.all())


def hold_free(names: Collection[str], *, has_tried: bool = False) -> set[str]:
    """Hold those of the locks that no other process holds until the transaction ends; their names.

    A database that cannot skip locked rows waits for all of them. SQLite has one writer at a time.
    The caller `has_tried` to hold them by the statement `to_hold_free`, in vain.
    """
    if not locks_rows():
        return set(names)
    held = set() if has_tried else set(_free(name__in=names))
    if len(held) < len(names):
        known = Pulse.objects.filter(name__in=names).values_list("pk", flat=True)
        if missing := set(names) - held - set(known):
            made = [Pulse(name=name, beat_at=DatabaseNow()) for name in sorted(missing)]
            Pulse.objects.bulk_create(made, ignore_conflicts=True)
            held |= set(_free(name__in=missing))
    return held


def _free(**named: Any) -> QuerySet[Any, str]:
    """The names of those pulses that no other process locks, which are locked then."""
    return unlocked(Pulse.objects.filter(**named)).order_by("name").values_list("pk", flat=True)


def to_hold_free(name: str) -> Fragment | None:
    """A statement that finds and holds the lock if it is free; None if no lock is needed."""
    connection = connections[settings.DATABASE]
    if not locks_rows():
        return None
    skip = connection.features.has_select_for_update_skip_locked
    words = connection.ops.for_update_sql(skip_locked=skip)
    return Fragment(f"SELECT 1 FROM {table(Pulse, connection)} WHERE name = %s {words}", (name,))


def locks_rows() -> bool:
    """Whether a process may find that another one holds a lock."""
    return connections[settings.DATABASE].features.has_select_for_update


def leave_note(name: str) -> bool:
    """Leave a note for another process. Return whether there was none."""
    connection = connections[settings.DATABASE]
    begin, end = insert_ignoring_conflicts(connection)
    values = f"{table(Pulse, connection)} (name, beat_at) VALUES (%s, {NOW_SQL[connection.vendor]})"
    with unflushed(connection):
        return changed_by(Fragment(f"{begin} {values} {end}", (name,))) > 0


def take_note(name: str) -> bool:
    """Remove the note of that name. Return whether there was one."""
    connection = connections[settings.DATABASE]
    with unflushed(connection):
        delete = f"DELETE FROM {table(Pulse, connection)} WHERE name = %s"
        return changed_by(Fragment(delete, (name,))) > 0


def note(name: str, beat_at: dt.datetime | Expression) -> None:
    Pulse.objects.update_or_create(name=name, defaults={"beat_at": beat_at})


def move_on(name: str, seconds: float, *, slack: float = 0.0) -> float:
    """Move the time that was noted on by `seconds`, from itself or from now if that is later.

    It may have fallen behind by `slack` seconds. Returns the seconds from now to the new time. One
    statement.
    """
    connection = connections[settings.DATABASE]
    later, latest, if_there, seconds_to = _MOVING_ON[connection.vendor]
    pulse, now = table(Pulse, connection), NOW_SQL[connection.vendor]
    moved = later.format(latest.format(f"{pulse}.beat_at", later.format(now)))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {pulse} (name, beat_at) VALUES (%s, {later.format(now)}) "
            f"{if_there} beat_at = {moved} RETURNING {seconds_to}",
            [name, seconds, -slack, seconds],
        )
        return float(cursor.fetchall()[0][0])


def note_at_least(name: str, beat_at: Expression) -> None:
    """Note a time unless a later one has been noted."""
    noted = Pulse.objects.filter(name=name)
    if not noted.filter(beat_at__lt=beat_at).update(beat_at=beat_at) and not noted.exists():
        note(name, beat_at)


def is_ahead(name: str) -> bool:
    """Whether the time that was noted is still to come."""
    return Pulse.objects.filter(name=name, beat_at__gt=DatabaseNow()).exists()


def beat_of(name: str) -> dt.datetime | None:
    """The time of the last note or turn."""
    return Pulse.objects.values_list("beat_at", flat=True).filter(name=name).first()


def _held(name: str, end: dt.datetime) -> QuerySet[Pulse]:
    """The lease with that end; SQLite writes a whole second in two ways that are not equal."""
    return Pulse.objects.filter(name=name, beat_at__range=(end, end + dt.timedelta(milliseconds=1)))


def _create(name: str) -> bool:
    try:
        with transaction.atomic(using=settings.DATABASE):
            Pulse(name=name, beat_at=DatabaseNow()).save(force_insert=True, using=settings.DATABASE)
    except IntegrityError:
        return False
    return True
