"""Every method of a runner, in async code."""

import inspect

import pytest
from asgiref.sync import async_to_sync

from autorun.models import Run
from autorun.runner import QuerySetRunner
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db(transaction=True)


def fail(value):
    if value == "bad":
        raise ValueError(value)
    return value


@pytest.fixture
def runner():
    Document.objects.bulk_create(Document(title=title) for title in ("a", "b", "bad"))
    runner_class = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner_class):
        yield runner_class()


def test_every_method_has_a_twin_with_its_signature():
    methods = {
        name: each
        for name, each in vars(QuerySetRunner).items()
        if inspect.isfunction(each) and not name.startswith(("_", "get_", "a"))
    }
    twins = {name: getattr(QuerySetRunner, f"a{name}") for name in [*methods, "adopt"]}

    for name, twin in twins.items():
        is_iterator = name == "records"
        assert (inspect.isasyncgenfunction if is_iterator else inspect.iscoroutinefunction)(twin)
        assert inspect.signature(twin) == inspect.signature(getattr(QuerySetRunner, name))
        assert twin.__qualname__ == f"QuerySetRunner.a{name}"
    assert len(twins) == 15


def test_rows_are_run_and_asked_about(runner):
    async def story():
        assert [each.title async for each in await runner.apending()] == ["a", "b", "bad"]
        assert (await runner.arun(max_total=2)).planned == 2
        existing, pending = await runner.aquery_progress()
        assert (await existing.acount(), await pending.acount()) == (2, 1)
        assert (await runner.abackfill(only="missing", requested_by="me")).planned == 1
        return await Document.objects.aget(title="bad")

    bad = async_to_sync(story)()
    work_off()

    async def sequel():
        assert await runner.ahas_run(bad)
        assert (await runner.aexplain(bad)).code == "failed"
        assert (await runner.aprogress()).failed == 1
        assert (await runner.aretry(requested_by="me")).planned == 1

    async_to_sync(sequel)()


def test_rows_are_adopted_and_ignored(runner):
    async def story():
        assert await runner.aadopt(Document.objects.filter(title="a")) == 1
        assert await runner.aignore() == 2
        assert await runner.aignore() == 0

    async_to_sync(story)()

    assert sorted(Run.objects.values_list("status", flat=True)) == sorted(
        [Run.Status.SUCCEEDED, Run.Status.CANCELLED, Run.Status.CANCELLED]
    )


def test_a_twin_calls_the_override_of_its_method(runner):
    class Louder(type(runner)):
        def progress(self):
            return "overridden"

    assert async_to_sync(Louder().aprogress)() == "overridden"
