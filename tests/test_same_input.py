"""INPUT_FIELDS has changed: results whose input has not are kept without running."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from autorun.declare import nodes
from autorun.models import Run
from autorun.planning import same_input
from autorun.planning.counting import preview
from autorun.planning.scope import Scope
from autorun.runner import Members, QuerySetRunner
from autorun.state.counts import Progress
from tests.engine import current_runs, declare, installed, statuses, work_off
from tests.library.models import Document, Photo

pytestmark = pytest.mark.django_db

ROWS = 4


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {number}") for number in range(ROWS)]


def run(runner_class: type[QuerySetRunner]) -> None:
    with installed(runner_class):
        runner_class().run()
        work_off()


def by_hook(self: Any, instance: Any) -> str:
    return str(instance.title)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"INPUT_FIELDS": ("title",)}, {"INPUT_FIELDS": ("title", "state")}),
        ({"INPUT_FIELDS": ("title", "state")}, {"INPUT_FIELDS": ("title",)}),
        (
            {"INPUT_FIELDS": None, "get_instance_representation": by_hook},
            {"INPUT_FIELDS": ("title", "state"), "get_instance_representation": by_hook},
        ),
        (
            {"INPUT_FIELDS": ("title",), "get_instance_representation": by_hook},
            {"INPUT_FIELDS": None, "get_instance_representation": by_hook},
        ),
    ],
    ids=["added", "removed", "from a hook", "to a hook"],
)
def test_rows_whose_input_was_the_same_are_kept_without_running(documents, before, after):
    run(declare(**before))
    made = {key: (each.pk, each.outputs) for key, each in current_runs().items()}
    changed = documents[0]
    Document.objects.filter(pk=changed.pk).update(title="changed")

    with installed(now := declare(**after)):
        assert now().pending().count() == ROWS
        assert preview(now(), Scope()).same_input == ROWS - 1
        assert now().adopt(same_input=True) == ROWS - 1
        assert now().adopt(same_input=True) == 0

        assert list(now().pending()) == [changed]
        kept = current_runs()
    assert {key: (each.pk, each.outputs) for key, each in kept.items()} == made
    assert {each.attempts for key, each in kept.items() if key != changed.pk} == {0}
    assert kept[changed.pk].attempts == 1


def test_rows_without_inputs_are_kept_when_the_first_field_is_named(documents):
    run(declare(lambda value: "seen", INPUT_FIELDS=None))

    with installed(now := declare(lambda value: "seen", INPUT_FIELDS=("title",))):
        assert now().adopt(same_input=True) == ROWS
        assert not now().pending().exists()


def test_only_the_given_rows_are_kept(documents):
    run(declare())

    with installed(now := declare(INPUT_FIELDS=("title", "state"))):
        assert now().adopt(Document.objects.filter(pk=documents[0].pk), same_input=True) == 1
        assert now().pending().count() == ROWS - 1


def test_text_keys_are_kept():
    Photo.objects.create(caption="a")
    run(declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",)))

    with installed(now := declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption", "pk"))):
        assert now().adopt(same_input=True) == 1
        assert not now().pending().exists()


def test_failed_and_ignored_rows_are_not_kept(documents):
    def fail_if_first(value: str) -> str:
        return f"{1 / int(value[-1])}"

    before = declare(fail_if_first, MAX_ATTEMPTS=1)
    with installed(before):
        before().ignore(Document.objects.filter(pk=documents[1].pk))
        before().run()
        work_off()

    with installed(now := declare(fail_if_first, INPUT_FIELDS=("title", "state"))):
        assert now().adopt(same_input=True) == ROWS - 2
        assert {each.pk for each in now().pending()} == {each.pk for each in documents[:2]}


def test_runners_that_depend_on_it_have_nothing_to_do_again(documents):
    upstream = declare(NAME="Upstream")
    after = {"NAME": "Downstream", "VERSION": "2.0", "DEPENDS_ON": ("tests.Upstream",)}
    with installed(upstream, downstream := declare(**after)):
        upstream().run()
        work_off()
        downstream().run()
        work_off()
        assert downstream().progress() == Progress(succeeded=ROWS)

    with installed(now := declare(NAME="Upstream", INPUT_FIELDS=("title", "state")), downstream):
        assert now().adopt(same_input=True) == ROWS
        assert not downstream().pending().exists()


def test_a_definition_that_can_no_longer_be_computed_keeps_nothing(documents):
    run(declare())
    node = nodes.Node.objects.get()
    node.inputs = [["gone"], ["title", "gone__too"]]
    node.save()

    with installed(now := declare(INPUT_FIELDS=("title", "state"))):
        assert now().adopt(same_input=True) == 0
        assert now().pending().count() == ROWS


def test_a_row_that_changes_while_it_is_checked_stays_pending(documents, monkeypatch):
    run(declare())
    changed = documents[0]
    selected = same_input._selected

    def changing(*args: Any) -> Any:
        found = selected(*args)
        Document.objects.filter(pk=changed.pk).update(title="changed meanwhile")
        return found

    with installed(now := declare(INPUT_FIELDS=("title", "state"))):
        monkeypatch.setattr(same_input, "_selected", changing)
        assert now().adopt(same_input=True) == ROWS - 1
        assert list(now().pending()) == [changed]


def test_a_run_that_another_process_has_superseded_is_left_alone(documents):
    run(declare())

    with installed(now := declare(INPUT_FIELDS=("title", "state"))):
        [found] = same_input._each(now(), None)
        now().backfill()
        assert same_input._keep(found) == 0
        assert statuses(is_current=True) == [Run.Status.PENDING] * ROWS


def test_the_members_of_a_set_are_a_definition_too(documents):
    definition = declare(INPUT_FIELDS=("title", Members("tags", "name")))().input_definition

    assert definition is not None
    assert definition[0] == "title"
    assert definition[1].startswith("Members(relation='tags', fields=('name',)")


class TestDefinitionsAreNoted:
    pytestmark = pytest.mark.django_db(transaction=True)

    @pytest.fixture(autouse=True)
    def _forget(self) -> Iterator[None]:
        nodes.forget_nodes()
        yield
        nodes.forget_nodes()

    def noted(self, *fields: str) -> Any:
        nodes.forget_nodes()
        with installed(now := declare(INPUT_FIELDS=fields)):
            return nodes.node_of(now()).inputs

    def test_the_latest_comes_first_and_ten_are_kept(self):
        self.noted("title")
        for number in range(nodes.MOST_DEFINITIONS):
            self.noted("title", *["state"] * number)

        assert self.noted("title")[-1] == ["title"]
        last = self.noted("state")
        assert (len(last), last[0]) == (nodes.MOST_DEFINITIONS, ["state"])
        assert ["title"] not in last

    def test_a_process_that_has_only_looked_notes_it_once_it_plans(self):
        self.noted("title")
        nodes.forget_nodes()
        with installed(now := declare(INPUT_FIELDS=("state",))):
            nodes.node_id_of(now())
            assert nodes.Node.objects.get().inputs == [["title"]]
            nodes.node_of(now())

            assert nodes.Node.objects.get().inputs == [["state"], ["title"]]

    def test_the_transaction_of_a_caller_locks_no_node(self):
        self.noted("title")
        nodes.forget_nodes()
        with installed(now := declare(INPUT_FIELDS=("state",))):
            with transaction.atomic():
                nodes.node_of(now())
            assert nodes.Node.objects.get().inputs == [["title"]]
            nodes.node_of(now())

            assert nodes.Node.objects.get().inputs == [["state"], ["title"]]

    def test_results_are_kept_again_after_a_rollback(self):
        Document.objects.create(title="a")
        for fields in (("title",), ("title", "state"), ("title",)):
            nodes.forget_nodes()
            with installed(now := declare(INPUT_FIELDS=fields)):
                now().adopt(same_input=True)
                now().run()
                work_off()

        assert Run.objects.count() == 1
