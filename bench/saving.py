"""The cost of a save for its caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from django.db import connections, transaction

from autorun.triggers import delivery
from bench import stage
from bench.measuring import Line, Timings, in_turns
from bench.scale import Scale
from bench.subject.models import Item, ItemByHand, PlainItem

THREADS = 8
MODELS: dict[str, type[Any]] = {
    "autorun": Item,
    "plain": PlainItem,
    "on_commit(delay)": ItemByHand,
}


def measure(scale: Scale) -> Iterator[Line]:
    """With a broker in memory, which favours `.delay`: it has no cost of a real broker."""
    for key, work, save, count in (
        ("save-autocommit", "saves, each a transaction", _each_alone, scale.saves),
        ("save-transaction", "saves in one transaction", _all_at_once, scale.saves),
        ("save-threads", f"saves by {THREADS} threads", _in_threads, scale.saves),
    ):
        stage.empty("subject_item", "subject_plainitem", "subject_itembyhand")
        yield from _compared(key, f"{count:,} {work}", save, count, rounds=2 * scale.rounds + 1)
    stage.empty("subject_item", "subject_plainitem", "subject_itembyhand")


def _compared(
    key: str, work: str, save: Callable[[Any, int], None], count: int, *, rounds: int
) -> Iterator[Line]:
    timings: Timings = in_turns(
        {name: _bound(save, model, count) for name, model in MODELS.items()},
        rounds=rounds,
        before=lambda _: delivery.wait_until_idle(30),
    )
    yield timings.line(
        *("autorun", "plain"),
        key=key,
        work=work,
        against="the same saves without autorun",
        goal=1.05,
        rows=count,
    )
    yield timings.line(
        *("autorun", "on_commit(delay)"),
        key=f"{key}-by-hand",
        work=work,
        against="hand-written on_commit(lambda: task.delay(pk)), to a broker in memory",
        goal=1,
        rows=count,
    )


def _bound(save: Callable[[Any, int], None], model: Any, count: int) -> Callable[[], None]:
    return lambda: save(model, count)


def _each_alone(model: Any, count: int) -> None:
    for number in range(count):
        model(title="A title of usual length", weight=number).save()


def _all_at_once(model: Any, count: int) -> None:
    with transaction.atomic():
        _each_alone(model, count)


def _in_threads(model: Any, count: int) -> None:
    def save() -> None:
        try:
            _each_alone(model, count // THREADS)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=save) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
