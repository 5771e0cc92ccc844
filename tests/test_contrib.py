"""Metrics, spans and the health check, each with the package it is for."""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models import F
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from health_check.views import HealthCheckView
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, generate_latest

from autorun.contrib import health, otel, prometheus
from autorun.models import Batch, Chunk, Node, Pulse, SpilledTrigger, Written
from autorun.observe import doctor
from autorun.observe.doctor import Finding
from autorun.state import probes
from autorun.testing import run_inline
from tests.engine import declare, installed, work_off
from tests.library.models import Country, Document


def failing(value):
    if value == "bad":
        raise ValueError(f"No good: {value}")
    return value


def failing_with_its_value(value):
    raise ValueError(value)


def without_its_address(self):
    raise KeyError("SCANNER_URL")


@pytest.fixture
def metrics() -> CollectorRegistry:
    """A registry that has nothing but autorun's metrics."""
    registry = CollectorRegistry(auto_describe=True)
    prometheus.register(registry)
    return registry


class TestPrometheus:
    @pytest.mark.django_db
    def test_runs_are_counted_by_runner_and_state(self, metrics):
        Document.objects.bulk_create(Document(title=title) for title in ("a", "b", "bad"))
        runner = declare(failing, MAX_ATTEMPTS=1)
        with installed(runner):
            runner().run()
            work_off()
            Document.objects.create(title="c")
            runner().run()

            def runs(state: str) -> float | None:
                labels = {"runner": "tests.EchoRunner", "analysis": "Echo", "version": "1.0"}
                return metrics.get_sample_value("autorun_runs", {**labels, "state": state})

            assert [runs(each) for each in ("succeeded", "failed", "queued")] == [2, 1, 1]
            assert runs("running") == 0

    @pytest.mark.django_db
    def test_what_workers_hold_is_told_with_its_age(self, metrics):
        Document.objects.create(title="a")
        runner = declare()
        with installed(runner):
            runner().run()
            label = {"runner": "tests.EchoRunner"}
            chunks = Chunk.objects.all()
            queued = metrics.get_sample_value("autorun_chunks", {**label, "state": "queued"})
            assert queued == 1
            assert metrics.get_sample_value("autorun_oldest_queued_seconds", label) < 60

            chunks.update(state=Chunk.State.RUNNING, expires_at=F("published_at"))

            # A lease that ends now began LEASE seconds ago.
            age = metrics.get_sample_value("autorun_lease_age_seconds", label)
            assert 60 <= age < 120

    @pytest.mark.django_db
    def test_batches_pauses_run_times_and_upkeep_are_told(self, metrics):
        Document.objects.create(title="a")
        runner = declare()
        with installed(runner):
            runner().run()
            work_off()
            node = runner().get_node()
            Node.objects.filter(pk=node.pk).update(run_seconds=0.25, paused_at=F("created_at"))
            SpilledTrigger.objects.create(model_label="library.Document", keys=[1])
            Pulse(name="upkeep", beat_at="2001-01-01T00:00Z").save()
            label = {"runner": "tests.EchoRunner"}

            value = metrics.get_sample_value
            assert value("autorun_batches", {**label, "state": Batch.State.FINISHED}) == 1
            assert value("autorun_run_seconds", label) == 0.25
            assert value("autorun_paused", label) == 1
            assert value("autorun_spilled_triggers") == 1
            assert value("autorun_oldest_spilled_seconds") < 60
            assert value("autorun_upkeep_age_seconds") > 10**8
            assert value("autorun_up") == 1

    @pytest.mark.django_db
    def test_written_rows_are_told_by_table(self, metrics):
        Written.objects.create(source="library.document", operation="u", object_id=1)
        with installed(declare(ON_WRITE=True, WATCH=("tags",))):
            value = metrics.get_sample_value
            document, tag = ({"table": f"library.{each}"} for each in ("document", "tag"))

            assert value("autorun_written_rows", document) == 1
            assert value("autorun_oldest_written_seconds", document) < 60
            assert value("autorun_written_rows", tag) == 0

    @pytest.mark.django_db
    def test_a_scrape_takes_seven_statements_however_many_runners_there_are(self, metrics):
        runners = [declare(NAME=f"Runner{each}", TITLE=f"Echo {each}") for each in range(5)]
        Document.objects.create(title="a")
        with installed(*runners):
            for runner in runners:
                runner().run()
            with CaptureQueriesContext(connection) as queries:
                page = generate_latest(metrics).decode()

        assert len(queries) == 7
        assert 'runner="tests.Runner4"' in page

    @pytest.mark.django_db
    def test_pending_rows_are_counted_where_asked_for(self, metrics):
        label = {"runner": "tests.EchoRunner"}
        Document.objects.create(title="a")
        with installed(declare()):
            assert metrics.get_sample_value("autorun_pending_rows", label) is None

            asked = CollectorRegistry()
            prometheus.register(asked, pending=True)

            assert asked.get_sample_value("autorun_pending_rows", label) == 1

    @pytest.mark.django_db
    @pytest.mark.parametrize(
        "options",
        [{"ANALYSIS": "Nothing of the kind"}, {"create_configuration": without_its_address}],
        ids=["analysis", "configuration"],
    )
    def test_a_runner_that_is_declared_wrongly_keeps_no_other_from_being_told(
        self, metrics, options
    ):
        wrong, right = declare(NAME="WrongRunner", **options), declare()
        with installed(wrong, right):
            right().get_node()

            assert metrics.get_sample_value("autorun_paused", {"runner": right.get_label()}) == 0

    def test_registering_asks_the_database_nothing(self):
        registry = CollectorRegistry(auto_describe=True)

        # Without django_db a query would be an error.
        prometheus.register(registry)

        with pytest.raises(ValueError, match="Duplicated"):
            prometheus.register(registry)

    @pytest.mark.django_db
    def test_a_database_that_is_away_is_told(self, metrics, monkeypatch):
        def refuse(*args):
            raise OperationalError("gone")

        monkeypatch.setattr(prometheus, "_of_batches", refuse)

        assert metrics.get_sample_value("autorun_up") == 0
        assert metrics.get_sample_value("autorun_spilled_triggers") is None


class TestOpenTelemetry:
    @pytest.fixture
    def spans(self) -> Iterator[Any]:
        """`spans()` gives what has been traced, by name."""
        exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(exporter))
        otel.enable(self.provider)

        def by_name() -> dict[str, list[Any]]:
            found: dict[str, list[Any]] = {}
            for span in exporter.get_finished_spans():
                found.setdefault(span.name, []).append(span)
            return found

        yield by_name
        otel.disable()

    @pytest.mark.django_db
    def test_planning_chunks_and_runs_have_spans(self, spans):
        documents = [Document.objects.create(title=title) for title in ("a", "bad")]
        runner = declare(failing, MAX_ATTEMPTS=1)
        with installed(runner):
            batch = runner().run()
            work_off()

        found = spans()
        (plan,), (chunk,) = found["autorun.plan"], found["autorun.chunk"]
        assert dict(plan.attributes) == {
            "autorun.runner": "tests.EchoRunner",
            "autorun.batch": batch.pk,
            "autorun.trigger": "code",
            "autorun.candidates": 2,
            "autorun.planned": 2,
        }
        assert chunk.attributes["autorun.succeeded"] == 1
        assert chunk.attributes["autorun.failed"] == 1
        good, bad = found["autorun.run"]
        assert good.parent.span_id == chunk.context.span_id
        assert good.attributes["autorun.key"] == documents[0].pk
        assert good.attributes["autorun.status"] == "succeeded"
        assert good.status.status_code == StatusCode.UNSET
        assert bad.attributes["autorun.status"] == "failed"
        assert bad.status.status_code == StatusCode.ERROR

    @pytest.mark.django_db
    def test_a_key_and_a_message_act_on_no_terminal(self, spans):
        Country.objects.create(code="\x1b[2J\u202e\nx", name="bad\x1b]52;c;eA==\x07")
        runner = declare(
            failing_with_its_value, DATA_MODEL=Country, INPUT_FIELDS=("name",), MAX_ATTEMPTS=1
        )
        otel.enable(self.provider, messages=True)
        with installed(runner):
            runner().run()
            work_off()

        (span,) = spans()["autorun.run"]
        told = str(dict(span.attributes)) + str(dict(span.events[0].attributes))
        assert span.attributes["autorun.key"] == "\u241b[2J\ufffd\u240ax"
        assert "bad\u241b]52;c;eA==\u2407" in told
        assert not {"\x1b", "\x07", "\u202e"} & {*told}

    @pytest.mark.django_db
    def test_messages_of_exceptions_are_left_out_unless_asked_for(self, spans):
        Document.objects.create(title="bad")
        runner = declare(failing, MAX_ATTEMPTS=1)
        with installed(runner):
            runner().run()
            work_off()
            otel.enable(self.provider, messages=True)
            runner().retry()
            work_off()

        without, with_message = (each.events[0] for each in spans()["autorun.run"])
        assert dict(without.attributes) == {"exception.type": "ValueError"}
        assert with_message.attributes["exception.message"] == "No good: bad"

    @pytest.mark.django_db
    def test_rows_that_were_saved_have_a_planning_span(self, spans):
        runner = declare()
        with installed(runner), run_inline():
            Document.objects.create(title="a")

        (plan,) = spans()["autorun.plan"]
        assert plan.attributes["autorun.planned"] == 1

    def test_what_ends_a_block_is_an_error_without_its_message(self, spans):
        with pytest.raises(KeyError), probes.span("autorun.plan"):
            raise KeyError("secret")

        (span,) = spans()["autorun.plan"]
        assert span.status.description == "KeyError"
        assert not span.events

    def test_when_off_no_span_is_made(self):
        assert probes.span("autorun.run") is probes.span("autorun.plan")


class TestHealthCheck:
    def test_errors_make_it_unavailable(self, set_constants):
        self.answer(set_constants, Finding("error", "It is away.", "Start it.", "broker"))

        status, told = self.ask("autorun.contrib.health.Autorun")

        assert status == 500
        assert list(told.values()) == ["Unavailable: broker: It is away."]

    def test_what_an_error_of_the_project_says_is_not_told(self, set_constants):
        finding = Finding("error", "It raises: payload", "", "hook", bare="It raises.")
        self.answer(set_constants, finding)

        _, told = self.ask("autorun.contrib.health.Autorun")

        assert list(told.values()) == ["Unavailable: hook: It raises."]

    def test_warnings_do_where_asked_for(self, set_constants):
        self.answer(set_constants, Finding("warning", "It is late.", "Look.", "beat"))

        assert self.ask("autorun.contrib.health.Autorun")[0] == 200
        status, told = self.ask((health.Autorun, {"warnings": True}))

        assert status == 500
        assert list(told.values()) == ["Warning: beat: It is late."]

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.slow
    def test_it_asks_the_doctor(self):
        status, told = self.ask("autorun.contrib.health.Autorun")

        assert status == 500
        assert "listening on" in str(told)  # no worker does

    def answer(self, set_constants: Callable[..., None], *findings: Finding) -> None:
        set_constants(doctor, FIRST=(), THEN=(lambda: findings,))

    def ask(self, check: Any) -> tuple[int, dict[str, str]]:
        view = HealthCheckView.as_view(checks=[check])
        request = RequestFactory().get("/health/", {"format": "json"})
        response = asyncio.run(view(request))
        return response.status_code, json.loads(response.content)


@pytest.mark.once
@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("otel", "opentelemetry", "otel"),
        ("health", "health_check", "health"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, module, package, extra):
    for name in [each for each in sys.modules if each.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"autorun.contrib.{module}")

    with pytest.raises(ImportError, match=rf"pip install 'django-autorun\[{extra}\]'"):
        __import__(f"autorun.contrib.{module}")
