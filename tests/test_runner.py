"""Declarations of runner classes, and the errors of incomplete ones."""

import datetime as dt
import sys
from types import ModuleType
from typing import Any

import pytest
from celery.schedules import crontab
from django.db import InterfaceError

from autorun.analysis import Analysis, analysis, temporarily_registered
from autorun.conf import NIGHTLY
from autorun.declare import nodes, registry
from autorun.exceptions import AlreadyRegistered, ImproperRunner, NotRegistered, RunTimeout
from autorun.planning.on_demand import sweep_now
from autorun.runner import QuerySetRunner
from tests.crashes import AWAY
from tests.engine import declare, installed, work_off
from tests.library.models import Document, Photo, Tag
from tests.library.runners import CaptionRunner, LengthRunner


class TestAnalysis:
    @pytest.fixture(autouse=True)
    def versions(self):
        with temporarily_registered():

            @analysis("Measure", version="1.0")
            def one(value):
                return 1

            @analysis("Measure", version="2.0")
            def two(value):
                return 2

            self.one = one
            yield

    def test_it_is_found_by_title_and_version(self):
        runner = type("R", (QuerySetRunner,), {"ANALYSIS": "Measure", "ANALYSIS_VERSION": "2.0"})

        assert runner().get_analysis()(0) == 2

    def test_it_may_be_the_function_itself(self):
        runner = type("R", (QuerySetRunner,), {"ANALYSIS": self.one})

        assert runner().get_analysis().version == "1.0"

    def test_a_version_beside_the_function_decides(self):
        attributes = {"ANALYSIS": self.one, "ANALYSIS_VERSION": "2.0"}

        assert type("R", (QuerySetRunner,), attributes)().get_analysis().version == "2.0"

    def test_an_unknown_version_names_the_known_ones(self):
        attributes = {"ANALYSIS": "Measure", "ANALYSIS_VERSION": "3.0"}

        with pytest.raises(NotRegistered, match=r"1\.0.*2\.0"):
            type("R", (QuerySetRunner,), attributes)().get_analysis()


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "no DATA_MODEL. Set it to the model"),
        ({"DATA_MODEL": Document}, "no ANALYSIS. Set it to the title"),
        ({"DATA_MODEL": Document, "ANALYSIS": "Echo"}, "no ANALYSIS_VERSION. Set it"),
        (
            {"DATA_MODEL": Document, "ANALYSIS": Analysis("Echo", "1", lambda value: value)},
            "no INPUT_KEY. Set it to the argument of Echo v1",
        ),
    ],
)
@pytest.mark.django_db
def test_what_is_missing_is_named_with_a_way_out(attributes, words):
    runner = type("Incomplete", (QuerySetRunner,), attributes)

    method = "run" if "DATA_MODEL" in attributes else "get_model"

    with pytest.raises(ImproperRunner, match=words):
        getattr(runner(), method)()


@pytest.mark.django_db
def test_a_runner_without_a_model_says_so_when_it_is_run():
    runner = declare(DATA_MODEL=None)

    with pytest.raises(ImproperRunner, match="DATA_MODEL"):
        runner().run()


def test_a_label_is_the_app_and_the_class():
    assert CaptionRunner.get_label() == "library.CaptionRunner"
    assert LengthRunner().label == "library.LengthRunner"


def test_runners_of_an_app_are_found_by_themselves():
    labels = [runner.label for runner in registry.runners()]

    assert "library.CaptionRunner" in labels
    assert "sample_app.ScanPreprocessingRunner" in labels


def test_two_runners_of_one_label_are_an_error_at_once():
    other = type("CaptionRunner", (QuerySetRunner,), {"__module__": "tests.library.other"})

    with pytest.raises(AlreadyRegistered, match=r"tests\.library\.other\.CaptionRunner"):
        registry.register(other)


def test_two_runners_of_one_name_in_one_module_are_an_error_at_once():
    attributes = {"__module__": "tests.twins", "DATA_MODEL": Document}
    type("Twin", (QuerySetRunner,), attributes)
    type("Twin", (QuerySetRunner,), attributes)

    with pytest.raises(AlreadyRegistered, match=r"tests\.twins defines two runners called Twin"):
        registry.register_module("tests.twins")


def test_a_module_that_is_imported_anew_replaces_its_runners():
    with registry.registered():
        for _ in range(2):
            new = type(
                "Anew", (QuerySetRunner,), {"__module__": "tests.anew", "DATA_MODEL": Document}
            )
            registry.register_module("tests.anew")

        assert type(registry.get("tests.Anew")) is new


def test_a_module_that_is_imported_again_after_a_failed_import_defines_one_runner(monkeypatch):
    with registry.registered():
        for _ in range(2):
            monkeypatch.setitem(sys.modules, "tests.retried", ModuleType("tests.retried"))
            new = type(
                "Retried",
                (QuerySetRunner,),
                {"__module__": "tests.retried", "DATA_MODEL": Document},
            )
        registry.register_module("tests.retried")

        assert type(registry.get("tests.Retried")) is new


@pytest.mark.django_db
def test_a_lone_string_of_input_fields_is_named():
    with pytest.raises(ImproperRunner, match=r"INPUT_FIELDS is 'title'.*Write \('title',\)"):
        declare(INPUT_FIELDS="title")().pending()


@pytest.mark.django_db
def test_a_filter_that_returns_nothing_is_named():
    runner = declare(filter_queryset=lambda self, queryset, log_level=20: None)

    with pytest.raises(ImproperRunner, match=r"filter_queryset\(\) returned NoneType"):
        runner().pending()


def misdirected(*args, **kwargs):
    raise ValueError("no such shelf")


CALLS: dict[str, Any] = {
    "pending": lambda runner: runner.pending(),
    "run": lambda runner: runner.run(),
    "sweep": sweep_now,
    "explain": lambda runner: runner.explain(Document.objects.create(title="a")),
}


@pytest.mark.django_db
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("hook", ["get_base_queryset", "filter_queryset"])
def test_a_hook_for_rows_that_raises_is_named(hook, call):
    runner = declare(**{hook: misdirected})

    said = rf"EchoRunner: {hook}\(\) raises ValueError: no such shelf\. Correct it in tests\."
    with installed(runner), pytest.raises(ImproperRunner, match=said) as raised:
        call(runner())

    assert isinstance(raised.value.__cause__, ValueError)


@pytest.mark.django_db
@pytest.mark.parametrize("error", [AWAY, InterfaceError("away"), RunTimeout(), KeyboardInterrupt()])
@pytest.mark.parametrize("hook", ["get_base_queryset", "filter_queryset"])
def test_what_is_no_fault_of_a_hook_is_not_laid_to_it(hook, error):
    def interrupted(*args, **kwargs):
        raise error

    with pytest.raises(type(error)) as raised:
        declare(**{hook: interrupted})().pending()

    assert raised.value is error


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda *args, **kwargs: Photo.objects.all(), "returned a queryset of library.Photo"),
        (lambda *args, **kwargs: [], "returned list, not a queryset"),
    ],
)
@pytest.mark.parametrize("hook", ["get_base_queryset", "filter_queryset"])
def test_a_hook_that_gives_other_rows_is_named(hook, given, words):
    with pytest.raises(ImproperRunner, match=rf"{hook}\(\) {words}"):
        declare(**{hook: given})().pending()


def test_bases_without_a_model_are_not_registered():
    base = type("Base", (QuerySetRunner,), {"__module__": "tests.library.runners"})
    type("Concrete", (base,), {"__module__": "tests.library.runners", "DATA_MODEL": Document})
    with registry.registered():
        registry.register_module("tests.library.runners")

        assert registry.find("library.Base") is None
        assert registry.find("library.Concrete") is not None
    assert registry.find("library.Concrete") is None


def test_an_unknown_label_is_corrected():
    with pytest.raises(NotRegistered, match=r"Did you mean 'library\.CaptionRunner'"):
        registry.get("library.CaptionRuner")


class TestRepresentation:
    def test_by_default_it_is_the_only_input_field(self):
        runner = declare(INPUT_FIELDS=("title",))

        assert runner().get_instance_representation(Document(title="a")) == "a"

    def test_or_a_dictionary_of_several(self):
        runner = declare(INPUT_FIELDS=("title", "state"))
        document = Document(title="a", state="new")

        representation = runner().get_instance_representation(document)
        assert representation == {"title": "a", "state": "new"}

    def test_or_the_instance(self):
        document = Document(pk=5)
        assert declare(INPUT_FIELDS=())().get_instance_representation(document) is document


class TestSettings:
    def test_options_left_alone_follow_the_settings(self, settings):
        settings.AUTORUN = {"TIMEOUT": 5, "SCHEDULE": dt.timedelta(hours=1)}

        assert declare()().get_timeout() == 5
        assert declare()().get_schedule() == dt.timedelta(hours=1)

    def test_an_option_overrides_its_setting_even_with_none(self, settings):
        settings.AUTORUN = {"TIMEOUT": 5}

        runner = declare(TIMEOUT=None, SCHEDULE=None)()
        assert runner.get_timeout() is None
        assert runner.get_schedule() is None

    def test_without_either_a_runner_is_swept_every_night(self):
        assert declare()().get_schedule() == NIGHTLY == crontab(minute="0", hour="3")


@pytest.mark.django_db
def test_has_run_is_about_the_current_input():
    document = Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        assert not runner().has_run(document)
        runner().run()
        assert runner().has_run(document)
        work_off()
        Document.objects.update(title="b")
        assert not runner().has_run(document)


@pytest.mark.django_db
def test_fields_of_related_rows_are_input_too():
    runner = declare(INPUT_FIELDS=("title", "tags__name"))
    document = Document.objects.create(title="a")
    document.tags.add(Tag.objects.create(name="x"))

    # A field of many values is refused by a system check; nothing worse happens without it.
    with installed(runner):
        assert runner().run().planned == 1


@pytest.mark.django_db
def test_progress_takes_one_query(django_assert_num_queries):
    Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        runner().run()
        work_off()
        runner().get_node()
        with django_assert_num_queries(2):  # the node, which a test's transaction forgets, and it
            progress = runner().progress()

    assert (progress.succeeded, progress.unfinished, progress.total) == (1, 0, 1)


def test_a_configuration_is_created_once_and_again_when_settings_change(settings):
    created = []

    def create_configuration(runner: QuerySetRunner) -> dict[str, Any]:
        created.append(runner)
        return {"site": settings.SITE_NAME}

    settings.SITE_NAME = "first"
    with installed(declare(create_configuration=create_configuration)):
        runner = registry.get("tests.EchoRunner")
        before = [nodes.digest_of(runner), nodes.digest_of(runner)]
        settings.SITE_NAME = "second"
        after = nodes.digest_of(runner)

    assert before[0] == before[1] != after
    assert len(created) == 2
