"""From a save, or a backfill, to recorded successes, with a real prefork worker and a real broker.

Rates are compared, so that what is written by hand need not be waited for as often.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from celery import current_app, group
from django.conf import settings
from django.db import connection, transaction

from autorun.conf import settings as autorun_settings
from bench import stage
from bench.measuring import Line, Timings
from bench.scale import Scale
from bench.single import wait_for_one
from bench.subject.models import Item, ItemByHand, PlainItem, ResultByHand
from bench.subject.runners import TrivialRunner
from bench.subject.tasks import MESSAGE_OF, by_hand, hundred_by_hand
from bench.working import BROKER, real_worker

PATIENCE = 600.0  # seconds


def measure(scale: Scale) -> Iterator[Line]:
    with real_worker():
        stage.let_go(TrivialRunner())
        _save_and_wait(50)
        _by_hand_and_wait(50)
        yield _latency(scale)
        yield from _saves(scale)
        yield from _backfill(scale)
    if connection.vendor == "postgresql":
        yield from _datajoint(scale)


def _saves(scale: Scale) -> Iterator[Line]:
    rows, few = scale.end_to_end, scale.by_hand
    rates: dict[str, list[float]] = {"autorun": [], "by hand": [], "by hand, 100 a message": []}
    after_commit: list[float] = []
    by_hand_after_commit: list[float] = []
    plain: list[float] = []
    for _ in range(scale.rounds):
        plain.append(rows / _save_unheard(rows))
        whole, commit = _save_and_wait(rows)
        rates["autorun"].append(rows / whole)
        after_commit.append(rows / commit)
        whole, commit = _by_hand_and_wait(few)
        rates["by hand"].append(few / whole)
        by_hand_after_commit.append(few / commit)
        rates["by hand, 100 a message"].append(rows / _hundreds_and_wait(rows))
    _rates_of_autorun["saved"] = median(rates["autorun"])
    timings = Timings(rates)
    yield Line(
        key=f"flow-save-{BROKER}",
        database=connection.vendor,
        work=f"save → recorded success, {rows:,} rows in transactions of 1,000, {BROKER}",
        against=f"receiver and task by hand ({few:,} rows)",
        value=timings.ratio("autorun", "by hand"),
        goal=10,
        at_least=True,
        rows=rows,
        note=_rates({**rates, "the saves alone, nobody listening": plain}),
    )
    both = {"autorun": after_commit, "by hand": by_hand_after_commit}
    yield Line(
        key=f"flow-save-commit-{BROKER}",
        database=connection.vendor,
        work=f"the same without the saves themselves: last save → recorded success, {BROKER}",
        against="receiver and task by hand",
        value=Timings(both).ratio("autorun", "by hand"),
        rows=rows,
        note=_rates(both),
    )


#: Medians of rows per second, for the peer that is measured after the worker has stopped.
_rates_of_autorun: dict[str, float] = {}


def _rates(rates: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {median(each):,.0f} rows/s" for name, each in rates.items())


def _save_and_wait(count: int) -> tuple[float, float]:
    """Seconds from the first save, and from the last commit, to the last success."""
    stage.empty_state()
    stage.empty("subject_item")
    return _timed_saves(Item, count, lambda: stage.is_worked_off(count))


def _save_unheard(count: int) -> float:
    """Seconds for the saves alone, which is a lower limit for everything after them."""
    stage.empty("subject_plainitem")
    whole, _ = _timed_saves(PlainItem, count, lambda: True)
    return whole


def _by_hand_and_wait(count: int) -> tuple[float, float]:
    stage.empty("subject_resultbyhand", "subject_itembyhand")
    return _timed_saves(ItemByHand, count, lambda: ResultByHand.objects.count() >= count)


def _timed_saves(model: Any, count: int, is_done: Any) -> tuple[float, float]:
    began = time.perf_counter()
    left = count
    while left > 0:
        with transaction.atomic():
            for number in range(min(1_000, left)):
                model(title=f"A title of usual length, number {number}", weight=number).save()
        left -= 1_000
        saved_at = time.perf_counter()
    stage.wait_until(is_done, seconds=PATIENCE)
    ended = time.perf_counter()
    return ended - began, ended - saved_at


def _hundreds_and_wait(count: int) -> float:
    stage.empty("subject_resultbyhand", "subject_itembyhand")
    ItemByHand.objects.bulk_create(
        ItemByHand(title=f"A title of usual length, number {number}") for number in range(count)
    )
    pks = list(ItemByHand.objects.values_list("pk", flat=True))
    began = time.perf_counter()
    for start in range(0, count, MESSAGE_OF):
        hundred_by_hand.delay(pks[start : start + MESSAGE_OF])
    stage.wait_until(lambda: ResultByHand.objects.count() >= count, seconds=PATIENCE)
    return time.perf_counter() - began


def _latency(scale: Scale) -> Line:
    """One save on an idle system, until its body starts; alternating."""
    waits: dict[str, list[float]] = {"autorun": [], "by hand": []}
    stage.empty_state()
    stage.empty("subject_item", "subject_resultbyhand", "subject_itembyhand")
    for number in range(scale.latency):
        for name in ("autorun", "by hand") if number % 2 else ("by hand", "autorun"):
            time.sleep(0.2)
            waits[name].append(wait_for_one(Item if name == "autorun" else ItemByHand))
    medians = {name: median(each) for name, each in waits.items()}
    worst = {name: sorted(each)[int(len(each) * 0.95)] for name, each in waits.items()}
    return Line(
        key=f"flow-latency-{BROKER}",
        database=connection.vendor,
        work=f"latency of one save → its body starts, idle system, {BROKER}",
        against="hand-written .delay",
        value=(medians["autorun"] - medians["by hand"]) * 1000,
        goal=10,
        unit="ms more",
        seconds=medians,
        note=f"95th percentile {worst['autorun'] * 1000:.0f} ms, by hand "
        f"{worst['by hand'] * 1000:.0f} ms",
    )


def _backfill(scale: Scale) -> Iterator[Line]:
    rows, few = scale.backfill, scale.by_hand
    rates: dict[str, list[float]] = {"autorun": [], "Celery group": []}
    most = 0
    runner = TrivialRunner()
    stage.fill_items(rows)
    for _ in range(scale.rounds):
        stage.empty_state()
        stage.let_go(runner)
        with _watched_queue() as depth:
            began = time.perf_counter()
            runner.backfill()
            stage.wait_until(lambda: stage.is_worked_off(rows), seconds=PATIENCE)
            rates["autorun"].append(rows / (time.perf_counter() - began))
        most = max(most, depth[0])
        rates["Celery group"].append(few / _group_and_wait(few))
    _rates_of_autorun["backfilled"] = median(rates["autorun"])
    yield Line(
        key=f"flow-backfill-{BROKER}",
        database=connection.vendor,
        work=f"backfill of {rows:,} trivial rows, end to end, {BROKER}",
        against=f"a Celery group ({few:,} tasks)",
        value=Timings(rates).ratio("autorun", "Celery group"),
        goal=5,
        at_least=True,
        rows=rows,
        note=_rates(rates),
    )
    yield Line(
        key=f"flow-backfill-depth-{BROKER}",
        database=connection.vendor,
        work=f"most messages the broker held during that backfill, {BROKER}",
        against="the window, in runs",
        value=most,
        goal=autorun_settings.WINDOW,
        unit="",
    )


def _group_and_wait(count: int) -> float:
    stage.empty("subject_resultbyhand", "subject_itembyhand")
    ItemByHand.objects.bulk_create(
        ItemByHand(title=f"A title of usual length, number {number}") for number in range(count)
    )
    pks = list(ItemByHand.objects.values_list("pk", flat=True))
    began = time.perf_counter()
    group(by_hand.s(pk) for pk in pks).apply_async()
    stage.wait_until(lambda: ResultByHand.objects.count() >= count, seconds=PATIENCE)
    return time.perf_counter() - began


def _datajoint(scale: Scale) -> Iterator[Line]:
    """Rows per second of `populate`, in a separate process."""
    rates = []
    for _ in range(3):
        found = subprocess.run(
            [sys.executable, "-m", "bench.datajoint_peer", str(scale.by_hand)],
            check=False,
            capture_output=True,
            text=True,
        )
        if found.returncode:
            reason = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"DataJoint is left out: {reason}", file=sys.stderr)
            return
        rates.append(float(found.stdout.split()[-1]))
    theirs = median(rates)
    for key, work, goal in (
        ("saved", f"save → recorded success, {scale.end_to_end:,} rows, {BROKER}", 6),
        ("backfilled", f"rows that are there → recorded success, {BROKER}", 6),
    ):
        ours = _rates_of_autorun[key]
        yield Line(
            key=f"flow-datajoint-{key}-{BROKER}",
            database=connection.vendor,
            work=work,
            against="DataJoint populate(reserve_jobs=True) of rows that are there "
            f"({scale.by_hand:,} rows, one process)",
            value=ours / theirs,
            goal=goal,
            at_least=True,
            note=f"autorun {ours:,.0f} rows/s, DataJoint {theirs:,.0f} rows/s",
        )


# The broker's queue


@contextmanager
def _watched_queue() -> Iterator[list[int]]:
    """The maximum length of the queue during the block, in a list of one."""
    most = [0]
    stop = threading.Event()

    def watch() -> None:
        with current_app.connection_for_read() as broker:
            while not stop.wait(0.02):
                most[0] = max(most[0], _depth(broker))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def _depth(broker: Any) -> int:
    queue = settings.CELERY_TASK_DEFAULT_QUEUE
    channel = broker.default_channel
    if hasattr(channel, "_size"):
        return int(channel._size(queue))
    return int(channel.queue_declare(queue, passive=True).message_count)
