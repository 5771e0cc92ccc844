"""Results as flat records: in Python, as files and as downloads."""

import csv
import datetime as dt
import io
import json
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from asgiref.sync import async_to_sync
from django.contrib import admin
from django.core.management import CommandError, call_command
from django.db import connection
from django.http import HttpRequest
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from autorun.declare import page_time
from autorun.models import Run
from autorun.observe import formats, records
from autorun.observe.formats import as_text
from autorun.observe.records import OWN, Records
from autorun.runner import QuerySetRunner
from sample_app.admin import ScanAdmin
from sample_app.models import Scan
from tests.browser import scenes
from tests.engine import declare, installed, work_off
from tests.library.models import Country, Document, Photo

pytestmark = pytest.mark.django_db

MODELS = {
    "integer": (Document, "title"),
    "uuid": (Photo, "caption"),
    "text": (Country, "name"),
}
LABEL = "tests.EchoRunner"


def measure(value: str) -> dict:
    if value == "bad":
        raise ValueError(value)
    return {
        "mean": len(value) / 4,
        "name": value,
        "parts": {"first": value[0], "all": list(value)},
        "is_long": len(value) > 5,
        "delta": -1,
    }


@pytest.fixture(params=MODELS)
def runner(request: pytest.FixtureRequest) -> Iterator[QuerySetRunner]:
    """A runner with two successes, a failure and a row without a run."""
    model, field = MODELS[request.param]
    keys = {Country: ("code", "abcd"), Photo: ("id", None), Document: ("id", None)}
    name, letters = keys[model]

    def make(number: int, text: str) -> None:
        key = {name: letters[number]} if letters else {}
        model.objects.create(**key, **{field: text})

    for number, text in enumerate(("=SUM(A1)", "Grüße", "bad")):
        make(number, text)
    runner_class = declare(
        measure,
        DATA_MODEL=model,
        INPUT_FIELDS=(field,),
        MAX_ATTEMPTS=1,
        FILTERS={"nice": lambda rows: rows.filter(**{field: "Grüße"})},
    )
    with installed(runner_class):
        runner_class().run()
        work_off()
        make(3, "later")
        yield runner_class()


def test_each_row_is_a_flat_record(runner: QuerySetRunner) -> None:
    field = runner.get_input_fields()[0]
    rows = {str(row.pk): row for row in runner.get_model().objects.all()}

    found = {getattr(rows[str(each["key"])], field): each for each in runner.records()}

    assert {text: each["state"] for text, each in found.items()} == {
        "=SUM(A1)": "succeeded",
        "Grüße": "succeeded",
        "bad": "failed",
        "later": "missing",
    }
    record = found["Grüße"]
    assert list(record)[:5] == list(OWN)
    assert isinstance(record["finished_at"], dt.datetime)
    assert isinstance(record["seconds"], float)
    assert record["name"] == str(rows[str(record["key"])])
    assert {name: record[name] for name in record if name not in OWN} == {
        "mean": 1.25,
        "outputs.name": "Grüße",
        "parts.first": "G",
        "parts.all": ["G", "r", "ü", "ß", "e"],
        "is_long": False,
        "delta": -1,
    }
    assert tuple(found["bad"]) == tuple(found["later"]) == OWN
    assert found["later"]["finished_at"] is None


def test_records_of_a_queryset_are_in_the_order_of_keys(runner: QuerySetRunner) -> None:
    rows = runner.get_model().objects.exclude(**{runner.get_input_fields()[0]: "bad"})

    found = [each["key"] for each in runner.records(rows.order_by("-pk")[:3])]

    expected = rows.order_by("pk").values_list("pk", flat=True)
    assert list(map(str, found)) == list(map(str, expected))


def test_pages_are_read_one_after_the_other(runner: QuerySetRunner, set_constants: Any) -> None:
    set_constants(records, PAGE=1)

    with CaptureQueriesContext(connection) as queries:
        found = runner.records()
        next(found)
        first = [each for each in queries if "outputs" in each["sql"]]
        assert len(list(found)) == 3

    assert len(first) == 1
    assert len([each for each in queries if "outputs" in each["sql"]]) == 4


def test_a_row_that_runs_again_keeps_its_last_outputs(runner: QuerySetRunner) -> None:
    runner.backfill(force=True)

    assert not [each for each in runner.records() if "mean" in each]
    kept = [each for each in runner.records(stale=True) if "mean" in each]
    assert len(kept) == 2
    assert {each["state"] for each in kept} <= {"waiting", "queued"}
    assert all(each["finished_at"] for each in kept)


def test_outputs_that_are_no_dict_are_one_column() -> None:
    Document.objects.create(title="a")
    runner_class = declare(lambda value: [1, None], TITLE="List")
    with installed(runner_class):
        runner_class().run()
        work_off()

        [record] = runner_class().records()

        assert record["outputs"] == [1, None]


def test_records_are_read_in_async_code(runner: QuerySetRunner) -> None:
    async def story() -> list[Any]:
        return [each["key"] async for each in runner.arecords()]

    assert async_to_sync(story)() == [each["key"] for each in runner.records()]


def test_a_project_without_pandas_is_told_what_to_install(runner: QuerySetRunner) -> None:
    with (
        patch.dict(sys.modules, {"pandas": None, "pyarrow": None}),
        pytest.raises(ImportError, match="Install it: pip install pandas"),
    ):
        runner.to_dataframe()


def test_records_become_a_dataframe(runner: QuerySetRunner) -> None:
    pandas = pytest.importorskip("pandas")

    frame = runner.to_dataframe()

    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 4
    assert frame["mean"].mean() == 1.625
    nothing = runner.to_dataframe(runner.get_model().objects.none())
    assert list(nothing.columns) == list(OWN)


class TestCommand:
    def export(self, *arguments: str) -> str:
        stream = io.StringIO()
        call_command("autorun", "export", LABEL, *arguments, stdout=stream)
        return stream.getvalue()

    def test_csv_has_a_column_for_each_output(self, runner: QuerySetRunner) -> None:
        rows = list(csv.DictReader(io.StringIO(self.export())))

        assert set(rows[0]) == {
            *OWN,
            "mean",
            "outputs.name",
            "parts.first",
            "parts.all",
            "is_long",
            "delta",
        }
        found = {row["outputs.name"]: row for row in rows}
        # What a spreadsheet would compute is marked as text; a number is none of that.
        assert set(found) == {"'=SUM(A1)", "Grüße", ""}
        assert found["'=SUM(A1)"]["parts.first"] == "'="
        assert found["Grüße"]["delta"] == "-1"
        assert found["Grüße"]["is_long"] == "false"
        assert json.loads(found["Grüße"]["parts.all"]) == ["G", "r", "ü", "ß", "e"]
        assert dt.datetime.fromisoformat(found["Grüße"]["finished_at"])
        assert [row["state"] for row in rows].count("missing") == 1

    @pytest.mark.once
    @pytest.mark.parametrize(
        ("text", "is_marked"),
        [("-1.10", False), ("+1E-7", False), ("-", True), ("-1+1", True), ("-1.1\n", True)],
    )
    def test_only_a_text_that_is_computed_is_marked(self, text: str, is_marked: bool) -> None:
        assert formats._cell(text) == "'" * is_marked + text

    def test_json_lines_have_the_values(self, runner: QuerySetRunner) -> None:
        lines = [json.loads(line) for line in self.export("--format", "jsonl").splitlines()]

        assert len(lines) == 4
        assert {line.get("outputs.name") for line in lines} == {"=SUM(A1)", "Grüße", None}

    def test_a_filter_narrows_the_rows(self, runner: QuerySetRunner) -> None:
        [line] = self.export("--format", "jsonl", "--filter", "nice").splitlines()

        assert json.loads(line)["outputs.name"] == "Grüße"
        with pytest.raises(CommandError, match=r"no filter 'ugly' in FILTERS. There are: nice"):
            self.export("--filter", "ugly")

    def test_a_file_is_written_as_a_whole(self, runner: QuerySetRunner, tmp_path: Path) -> None:
        path = tmp_path / "results.csv"

        told = self.export("--output", str(path))

        assert told.split() == f"{LABEL}: results written to {path}.".split()
        assert "Grüße" in path.read_text(encoding="utf-8")
        assert [each.name for each in tmp_path.iterdir()] == ["results.csv"]
        missing = tmp_path / "missing" / "results.csv"
        with pytest.raises(CommandError, match=f"No such file or directory: '{missing}'"):
            self.export("--output", str(missing))

    def test_parquet_is_a_file(self, runner: QuerySetRunner, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="add --output FILE"):
            self.export("--format", "parquet")
        with (
            patch.dict(sys.modules, {"pyarrow": None}),
            pytest.raises(CommandError, match="pip install pyarrow"),
        ):
            self.export("--format", "parquet", "--output", str(tmp_path / "x"))
        parquet = pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "results.parquet"

        self.export("--format", "parquet", "--output", str(path))

        table = parquet.read_table(path)
        assert table.num_rows == 4
        assert str(table.schema.field("mean").type) == "double"
        assert str(table.schema.field("is_long").type) == "bool"
        assert str(table.schema.field("finished_at").type) == "timestamp[us, tz=UTC]"
        assert sorted(filter(None, table["parts.first"].to_pylist())) == ["=", "G"]

    def test_declared_decimals_are_decimals_of_parquet(self, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")

        def price(value: str) -> dict[str, Decimal]:
            return {"price": Decimal(value), "long": Decimal(value).scaleb(30)}

        titles = ["9.50", "-0.125", "1e2"]
        Document.objects.bulk_create(Document(title=title) for title in titles)
        path = tmp_path / "results.parquet"
        with installed(runner_class := declare(price)):
            runner_class().run()
            work_off()
            Run.objects.filter(object_id=Document.objects.first().pk).update(
                outputs={"price": "9.50", "long": "1e-30"}
            )
            self.export("--format", "parquet", "--output", str(path))

        table = parquet.read_table(path)
        assert str(table.schema.field("price").type) == "decimal128(38, 3)"
        assert table["price"].to_pylist() == [*map(Decimal, titles)]
        assert table["long"].to_pylist() == ["1e-30", "-1.25E+29", "1E+32"]


class TestDownload:
    @pytest.fixture
    def scans(self) -> Iterator[QuerySetRunner]:
        for name in ("a", "b"):
            Scan.objects.create(path=f"/{name}", description=name, size=1)
        runner_class = declare(
            lambda value: {"said": value}, DATA_MODEL=Scan, INPUT_FIELDS=("description",)
        )
        with installed(runner_class):
            runner_class().run()
            work_off()
            yield runner_class()

    def client(self, *codenames: str) -> Client:
        client = Client()
        client.force_login(scenes.add_user("reader", "view_run", *codenames))
        return client

    def get(self, client: Client, form: str = "jsonl") -> Any:
        return client.get(reverse("admin:autorun_node_export", args=[LABEL, form]))

    def test_results_are_streamed(self, scans: QuerySetRunner) -> None:
        client = self.client("view_payload", "view_scan")

        response = self.get(client, "csv")

        assert response.streaming
        assert response["Content-Disposition"] == f'attachment; filename="{LABEL}.csv"'
        text = response.getvalue().decode()
        assert [row["said"] for row in csv.DictReader(io.StringIO(text))] == ["a", "b"]
        lines = self.get(client).getvalue().decode().splitlines()
        assert [json.loads(line)["said"] for line in lines] == ["a", "b"]
        assert self.get(client, "parquet").status_code == 404
        page = client.get(reverse("admin:autorun_node_runner", args=[LABEL])).content.decode()
        assert reverse("admin:autorun_node_export", args=[LABEL, "csv"]) in page

    def test_under_asgi_they_are_read_piece_by_piece(
        self, scans: QuerySetRunner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(formats, "_RECORDS_AT_ONCE", 1)
        client = AsyncClient()
        client.force_login(scenes.add_user("reader", "view_run", "view_payload", "view_scan"))

        async def pieces() -> list[bytes]:
            response = await client.get(reverse("admin:autorun_node_export", args=[LABEL, "jsonl"]))
            assert response.is_async
            return [each async for each in response]

        assert [json.loads(each)["said"] for each in async_to_sync(pieces)()] == ["a", "b"]

    def test_they_take_the_permission_to_see_payloads_and_the_model(
        self, scans: QuerySetRunner
    ) -> None:
        assert self.get(self.client("view_scan")).status_code == 403

    def test_they_take_the_permission_to_view_the_model(self, scans: QuerySetRunner) -> None:
        assert self.get(self.client("view_payload")).status_code == 403

    def test_rows_that_the_models_admin_hides_are_left_out(self, scans: QuerySetRunner) -> None:
        shown = admin.site.get_model_admin(Scan)

        def get_queryset(request: HttpRequest) -> Any:
            return Scan.objects.filter(description="b")

        with patch.object(shown, "get_queryset", get_queryset):
            text = self.get(self.client("view_payload", "view_scan")).getvalue().decode()

        [line] = text.splitlines()
        assert json.loads(line)["said"] == "b"

    @pytest.mark.parametrize("form", ["csv", "jsonl"])
    def test_rows_are_hidden_by_the_request_until_the_last_one(
        self, form: str, scans: QuerySetRunner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noted = ["b"]  # by a middleware, until the response leaves it

        def get_queryset(self: Any, request: HttpRequest) -> Any:
            return Scan.objects.filter(description__in=noted)

        monkeypatch.setattr(ScanAdmin, "get_queryset", get_queryset, raising=False)

        response = self.get(self.client("view_payload", "view_scan"), form)
        noted.append("a")

        text = response.getvalue().decode()
        assert len(text.splitlines()) == 1 + (form == "csv")
        assert "/a" not in text

    @pytest.mark.parametrize("asked", ["name", "admin"])
    def test_code_of_the_project_has_the_time_of_a_page_for_each_page_of_rows(
        self, asked: str, scans: QuerySetRunner, set_constants: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_constants(page_time, SECONDS=0.6)
        monkeypatch.setattr(page_time, "_hung_until", {})
        set_constants(records, PAGE=1)
        pause = [0.4]

        def sleeps(self: Scan) -> str:
            time.sleep(pause[0])
            return "x"

        def get_queryset(self: Any, request: HttpRequest) -> Any:
            time.sleep(pause[0])
            return Scan.objects.all()

        slow = {
            "name": (Scan, "__str__", sleeps),
            "admin": (ScanAdmin, "get_queryset", get_queryset),
        }
        monkeypatch.setattr(*slow[asked], raising=False)
        client = self.client("view_payload", "view_scan")
        if asked == "name":  # else it is streamed, and ends where it hangs
            hides = lambda self, request, obj=None: True  # noqa: E731
            monkeypatch.setattr(ScanAdmin, "has_view_permission", hides, raising=False)

        rows = self.get(client, "csv").getvalue().decode().splitlines()
        pause[0] = 30.0
        page = client.get(reverse("admin:autorun_node_export", args=[LABEL, "csv"]), follow=True)

        assert len(rows) == 3
        assert "takes longer than 0.6 s" in page.text


def test_an_export_reads_rows_that_came_after_its_columns(runner: QuerySetRunner) -> None:
    parts = as_text(Records(runner), "csv")
    header = next(parts)
    Run.objects.succeeded().update(outputs={"new": 1, "mean": 2})

    rows = list(csv.DictReader(io.StringIO(header + "".join(parts))))

    assert "new" not in rows[0]
    assert {row["mean"] for row in rows} == {"2", ""}


@pytest.mark.parametrize("first", list("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"))
def test_a_text_is_no_formula_whatever_it_begins_with(first: str, runner: QuerySetRunner) -> None:
    Run.objects.succeeded().update(outputs={f"{first}name": f"{first}1+cmd|' /C calc'!A0"})

    header, *rows = csv.reader(io.StringIO("".join(as_text(Records(runner), "csv"))))

    assert f"'{first}name" in header
    cells = [cell for row in rows for cell in row if "cmd" in cell]
    assert {cell[:2] for cell in cells} == {f"'{first}"}


@pytest.mark.parametrize("line_break", ["\r", "\n", "\r\n"])
def test_a_line_break_in_a_text_does_not_begin_a_row(
    line_break: str, runner: QuerySetRunner
) -> None:
    Run.objects.succeeded().update(outputs={"name": f"a{line_break}=1+1"})

    text = "".join(as_text(Records(runner), "csv"))

    assert f'"a{line_break}=1+1"' in text
    assert text.endswith("\n")
    assert not text.endswith("\r\n")
