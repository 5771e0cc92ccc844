"""Bodies that change their own input, which would otherwise run for ever without a pause."""

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.urls import reverse

from autorun.dispatch.publishing import redirected
from autorun.models import Chunk, Run
from autorun.observe.doctor.backlog import examine_held_up
from autorun.observe.held_up import held_up
from autorun.planning import damping
from autorun.planning.damping import DAMPED, FREE, LONGEST_PAUSE
from autorun.state.clock import from_now
from autorun.tasks import plan
from autorun.triggers import installing
from autorun.upkeep.rounds import hand_on_batches
from autorun.upkeep.writes import hand_out_written
from tests.engine import current_runs, declare, installed, plan_all_spilled, plan_at_once, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def published(sent: list[Any]) -> list[Any]:
    return sent


def save_and_plan(*documents: Document) -> None:
    plan("library.Document", [each.pk for each in documents])
    work_off()


def lengthen(value: str) -> None:
    """Change the input."""
    Document.objects.filter(title=value).update(title=f"{value}x")


def lengthen_and_tell(value: str) -> None:
    """Change the input, and have it planned before this run is recorded."""
    lengthen(value)
    plan("library.Document", list(Document.objects.values_list("pk", flat=True)))


def executed() -> int:
    return Run.objects.filter(attempts__gt=0).count()


def damped() -> Chunk:
    """The only chunk that waits for its time."""
    return Chunk.objects.waiting().get(postponed_by=DAMPED)


def let_pass() -> None:
    """Stand for the time until damped runs are due."""
    Chunk.objects.waiting().update(not_before=from_now(-1))
    work_off()


@pytest.fixture(autouse=True)
def first_pause(set_constants: Callable[..., None]) -> int:
    """The first pause, in seconds, longer so that none ends before a slow test has looked."""
    set_constants(damping, FIRST_PAUSE=15)
    return 15


@pytest.mark.faults(52)
@pytest.mark.parametrize("body", [lengthen, lengthen_and_tell])
def test_a_body_that_changes_its_own_input_is_damped(body, first_pause):
    document = Document.objects.create(title="a")
    with installed(declare(body)):
        for _ in range(FREE + 5):
            save_and_plan(document)

        assert executed() == FREE
        pauses = []
        for number in range(FREE, FREE + 4):
            last = Run.objects.filter(finished_at__isnull=False).latest("finished_at")
            pauses.append((damped().not_before - last.finished_at).total_seconds())
            let_pass()
            save_and_plan(document)
            assert executed() == number + 1

    assert pauses == pytest.approx([first_pause, 2 * first_pause, 60, 60], abs=5)


@pytest.mark.faults(52)
def test_changes_of_a_damped_row_put_it_off_no_further():
    document = Document.objects.create(title="a")
    with installed(declare(lengthen)):
        for _ in range(FREE + 1):
            save_and_plan(document)
        before = damped()

        Document.objects.filter(pk=document.pk).update(title="changed by hand")
        save_and_plan(document)

        after = Run.objects.current().get().chunk
        assert after != before
        assert after.not_before == before.not_before


@pytest.mark.faults(52)
def test_a_row_that_a_person_changes_now_and_then_never_waits():
    document = Document.objects.create(title="a")
    with installed(declare()):
        for number in range(2 * FREE):
            Document.objects.filter(pk=document.pk).update(title=str(number))
            save_and_plan(document)
            assert executed() == number + 1
            # A little more than a minute passes.
            Run.objects.filter(attempts__gt=0).update(finished_at=from_now(-LONGEST_PAUSE - 1))


@pytest.mark.faults(52)
def test_a_row_that_is_damped_keeps_no_other_waiting():
    loops, other = (Document.objects.create(title=title) for title in "ab")
    with installed(declare(lambda value: lengthen(value) if value.startswith("a") else None)):
        for number in range(FREE + 3):
            Document.objects.filter(pk=other.pk).update(title=f"b{number // 4}")
            save_and_plan(loops, other)

        Document.objects.filter(pk=other.pk).update(title="b of a person")
        save_and_plan(loops, other)

        assert damped().size == 1
        assert current_runs()[loops.pk].status == Run.Status.PENDING
        assert current_runs()[other.pk].status == Run.Status.SUCCEEDED


@pytest.mark.faults(52)
def test_two_runners_that_change_each_others_input_are_damped():
    def to_body(value: str) -> None:
        Document.objects.update(body=value)

    def to_title(value: str) -> None:
        Document.objects.update(title=f"{value}x")

    document = Document.objects.create(title="a")
    first = declare(to_body, NAME="First", TITLE="First")
    second = declare(to_title, NAME="Second", TITLE="Second", INPUT_FIELDS=("body",))
    with installed(first, second):
        for _ in range(5 * FREE):
            save_and_plan(document)

    assert 2 * FREE <= executed() <= 2 * FREE + 2
    assert damped().size == 1


@pytest.mark.faults(52)
def test_a_body_that_changes_its_own_input_by_writes_is_damped():
    runner = declare(lengthen, ON_WRITE=True, ON_SAVE=False)
    with installed(runner):
        assert installing.install() == []
        try:
            Document.objects.bulk_create([Document(title="a")])
            for _ in range(FREE + 5):
                with redirected(plan_at_once):
                    hand_out_written()
                    hand_on_batches()
                plan_all_spilled()
                work_off()
        finally:
            assert installing.remove() == []

    assert executed() == FREE
    assert damped().size == 1


@pytest.mark.faults(52)
def test_a_damped_row_is_named(client: Client):
    document = Document.objects.create(title="a")
    runner = declare(lengthen, NAME="Loop")
    with installed(runner):
        for _ in range(FREE + 1):
            save_and_plan(document)

        client.force_login(User.objects.create_superuser("ada"))
        shown = client.get(reverse("admin:autorun_node_runner", args=["tests.Loop"]))
        printed = StringIO()
        call_command("autorun", "status", "tests.Loop", stdout=printed)
        (finding,) = examine_held_up()
        for text in (shown.content.decode(), printed.getvalue(), finding.message):
            assert "1 run damped" in text
        assert finding.level == "warning"
        assert "INPUT_FIELDS" in finding.hint
        explained = runner().explain(Document.objects.get())
        assert explained.code == "postponed"
        assert DAMPED in explained.reason
        assert runner().progress().postponed == 1

        Document.objects.filter(pk=document.pk).delete()
        let_pass()
    assert not held_up()
