"""Things that should happen every so often, however many processes try."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress

from django.db import IntegrityError, transaction

from autorun.conf import settings
from autorun.models import Pulse
from autorun.state.clock import DatabaseNow, from_now

#: A turn may come a little early: who takes it and who sends it keep different time.
EARLY = 0.8


def take_turn(name: str, *, every: float, early: float = EARLY) -> bool:
    """Whether it is this process's turn, with nobody having had one for `every` seconds.

    `early` is the part of them that must have passed.
    """
    due = Pulse.objects.filter(name=name, beat_at__lte=from_now(-every * early))
    if due.update(beat_at=DatabaseNow()):
        return True
    if Pulse.objects.filter(name=name).exists():
        return False
    try:
        with transaction.atomic(using=settings.DATABASE):
            Pulse(name=name, beat_at=DatabaseNow()).save(force_insert=True, using=settings.DATABASE)
    except IntegrityError:
        return False
    return True


def give_back_turn(name: str) -> None:
    """Let the next who asks have the turn that was taken."""
    Pulse.objects.filter(name=name).delete()


def lock(name: str) -> None:
    """Be the only one who has locked that name, until the transaction ends."""
    locked = Pulse.objects.select_for_update().filter(name=name).values_list("pk", flat=True)
    if list(locked):
        return
    with suppress(IntegrityError), transaction.atomic(using=settings.DATABASE):
        Pulse(name=name, beat_at=DatabaseNow()).save(force_insert=True, using=settings.DATABASE)
        return
    list(locked.all())


def note(name: str, beat_at: dt.datetime) -> None:
    """Record that it happened then, whenever it has happened before."""
    Pulse.objects.update_or_create(name=name, defaults={"beat_at": beat_at})
