"""Records in formats of other programs: CSV, JSON Lines, Parquet, and PROV in an RO-Crate."""

import csv
import datetime as dt
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote

from autorun.declare.nodes import node_of
from autorun.models import Build, Run
from autorun.observe.records import Records
from autorun.planning.rows import key_of
from autorun.state.keys import key_kind
from autorun.state.masking import without_secrets

#: The formats that are text, with their media types.
TEXTS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson; charset=utf-8"}
#: What a spreadsheet reads as the start of a formula, or skips before one; the last are full-width.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
#: A number is no formula, such as the text of a negative Decimal.
_NUMBER = re.compile(r"[+-][0-9.]+(?:[eE][+-]?[0-9]+)?\Z")
_RECORDS_AT_ONCE = 500
#: Digits of a Decimal in Parquet.
_MOST_DIGITS = 38
NAMESPACE = "urn:autorun:"
PROV = "provenance.json"
#: The parts of a document of PROV-JSON.
_SECTIONS = (
    *("entity", "activity", "agent"),
    *("used", "wasGeneratedBy", "wasDerivedFrom", "wasAssociatedWith"),
)
_MEDIA_TYPES = {form: media.partition(";")[0] for form, media in TEXTS.items()} | {
    "parquet": "application/vnd.apache.parquet"
}


def as_text(records: Records, form: str) -> Iterator[str]:
    """The records in a format of TEXTS, some lines at a time."""
    if form == "csv":
        columns = list(records.columns())
        yield _csv([columns])
        rows = ([each.get(name) for name in columns] for each in records)
        while some := list(islice(rows, _RECORDS_AT_ONCE)):
            yield _csv(some)
    else:
        lines = (_json(each) + "\n" for each in records)
        while several := list(islice(lines, _RECORDS_AT_ONCE)):
            yield "".join(several)


def write_parquet(records: Records, path: str) -> None:
    """Write a file of Parquet. Raises ImportError, which says what to install, without pyarrow."""
    pyarrow = required("pyarrow")
    parquet = import_module("pyarrow.parquet")
    is_integer = key_kind(records.runner.get_model()).is_integer
    types = {name: _type(pyarrow, kinds) for name, kinds in records.columns().items()} | {
        "key": pyarrow.int64() if is_integer else pyarrow.string(),
        "finished_at": pyarrow.timestamp("us", tz="UTC"),
        "seconds": pyarrow.float64(),
    }
    rows = (
        {name: _in_column(pyarrow, each.get(name), kind) for name, kind in types.items()}
        for each in records
    )
    schema = pyarrow.schema(types)
    with parquet.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, _RECORDS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema=schema))


def required(package: str, extra: str = "") -> Any:
    """The module of a package that autorun does not depend on. Raises ImportError without it."""
    try:
        return import_module(package)
    except ImportError as error:
        named = f"django-autorun[{extra}]" if extra else package
        raise ImportError(f"{package} is not installed. Install it: pip install {named}") from error


class _Lines(list[str]):
    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    lines = _Lines()
    # A text with a character of the terminator is quoted. With "\n", one with a carriage return was
    # not before Python 3.13, and what followed it was a row of its own.
    csv.writer(lines, lineterminator="\r\n").writerows(
        [_cell(each) for each in row] for row in rows
    )
    return "".join(lines)


def _cell(value: Any) -> Any:
    """A value for CSV; a text that a spreadsheet would compute gets an apostrophe before it."""
    if isinstance(value, str):
        is_computed = value.startswith(_FORMULA) and not _NUMBER.match(value)
        return f"'{value}" if is_computed else value
    if isinstance(value, (bool, list, dict)):
        return _json(value)
    return value.isoformat() if isinstance(value, dt.datetime) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda each: each.isoformat())


def _type(pyarrow: Any, kinds: set[Any]) -> Any:
    """The type of a column with values of these types; a text for those that differ."""
    # Decimals have one number of places, unless they have more digits then than Parquet stores.
    kinds = kinds - {type(None)}
    if kinds and all(isinstance(each, tuple) for each in kinds):
        before, after = map(max, zip(*kinds, strict=True))
        is_short = before + after <= _MOST_DIGITS
        return pyarrow.decimal128(_MOST_DIGITS, after) if is_short else pyarrow.string()
    if kinds == {bool}:
        return pyarrow.bool_()
    if kinds == {int}:
        return pyarrow.int64()
    return pyarrow.float64() if kinds in ({float}, {int, float}) else pyarrow.string()


def _in_column(pyarrow: Any, value: Any, kind: Any) -> Any:
    if pyarrow.types.is_decimal(kind) and value is not None:
        return Decimal(value)
    is_text = kind == pyarrow.string() and not isinstance(value, str)
    return _json(value) if is_text and value is not None else value


def write_crate(records: Records, folder: Path, form: str) -> None:
    """Write an RO-Crate to a new folder: the results, and the PROV-JSON of the runs that made them.

    Raises ImportError, which says what to install, without rocrate, and OSError.
    """
    required("rocrate", "provenance")
    folder.mkdir(parents=True)
    results = folder / f"results.{form}"
    if form in TEXTS:
        with results.open("w", encoding="utf-8", newline="") as file:
            file.writelines(as_text(records, form))
    else:
        write_parquet(records, str(results))
    with ExitStack() as stack:
        story = _Provenance(records, stack)
        story.write(folder / PROV)
    _describe(story, folder, results)


class _Provenance:
    """The runs behind the current successes, in PROV-JSON.

    Each run is an activity that used the row and generated a result; the build is the agent, and
    the analysis with its configuration the plan. Sections are kept in temporary files, as there may
    be millions of runs.
    """

    def __init__(self, records: Records, stack: ExitStack) -> None:
        self.records = records
        self.node = node_of(records.runner)
        self.plan = f"autorun:analysis/{self.node.pk}"
        builds = Build.objects.filter(node=self.node.pk).select_related("environment")
        self.builds = {each.pk: each for each in builds}
        #: When the runs of each build began and ended.
        self.times: dict[int, tuple[dt.datetime, dt.datetime]] = {}
        self._begun: set[str] = set()
        self._sections = {}
        for name in _SECTIONS:
            file = TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
            self._sections[name] = stack.enter_context(file)

    def write(self, path: Path) -> None:
        title = f"{self.node.title} v{self.node.version}"
        configuration = json.dumps(without_secrets(self.node.configuration), sort_keys=True)
        plan = {"prov:label": title, "autorun:configuration": configuration}
        self._add("entity", self.plan, {"prov:type": _name("prov:Plan"), **plan})
        for instances, runs, successes in self.records.pages():
            for instance in instances:
                key = key_of(instance)
                run = successes.get(key) or runs.get(key)
                if run is not None and run.status == Run.Status.SUCCEEDED:
                    self._tell(run, f"{instance._meta.label}/{quote(str(instance.pk), safe='')}")
        with path.open("w", encoding="utf-8") as document:
            document.write(f'{{"prefix": {{"autorun": "{NAMESPACE}"}}')
            for name, section in self._sections.items():
                if name in self._begun:
                    section.seek(0)
                    document.write(f', "{name}": {{')
                    shutil.copyfileobj(section, document)
                    document.write("}")
            document.write("}\n")

    def _tell(self, run: Run, row_name: str) -> None:
        row, result = f"autorun:row/{row_name}", f"autorun:result/{run.pk}"
        self._add("entity", row, {"autorun:fingerprint": str(run.fingerprint)})
        self._add("entity", result, {})
        derived = {"prov:generatedEntity": result, "prov:usedEntity": row}
        self._add("wasDerivedFrom", f"_:d{run.pk}", derived)
        if run.seconds is None or run.finished_at is None:  # adopted: no run of autorun's made it
            return
        began, ended = run.finished_at - dt.timedelta(seconds=run.seconds), run.finished_at
        activity = f"autorun:run/{run.pk}"
        times = {"prov:startTime": began.isoformat(), "prov:endTime": ended.isoformat()}
        self._add("activity", activity, times)
        self._add("used", f"_:u{run.pk}", {"prov:activity": activity, "prov:entity": row})
        generated = {"prov:entity": result, "prov:activity": activity}
        self._add("wasGeneratedBy", f"_:g{run.pk}", generated)
        build = self.builds.get(run.build_id or 0)
        if build is not None:
            by = {
                "prov:activity": activity,
                "prov:agent": self._agent(build),
                "prov:plan": self.plan,
            }
            self._add("wasAssociatedWith", f"_:a{run.pk}", by)
            first, last = self.times.get(build.pk, (began, ended))
            self.times[build.pk] = min(first, began), max(last, ended)

    def _agent(self, build: Build) -> str:
        name = f"autorun:build/{build.pk}"
        if build.pk not in self.times:
            facts = build.environment.facts
            described = {
                "prov:type": _name("prov:SoftwareAgent"),
                "autorun:code": build.code,
                "autorun:python": facts["python"],
                "autorun:revision": facts["revision"],
                "autorun:packages": json.dumps(facts["packages"]),
            }
            self._add("agent", name, described)
        return name

    def _add(self, section: str, name: str, described: dict[str, Any]) -> None:
        file = self._sections[section]
        separator = ",\n" if section in self._begun else ""
        self._begun.add(section)
        file.write(f"{separator}{json.dumps(name)}: {json.dumps(described)}")


def _describe(story: _Provenance, folder: Path, results: Path) -> None:
    """Write the crate's metadata: the files, and an action of each build that made results."""
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    runner, node = story.records.runner, story.node
    crate = ROCrate()
    crate.name = f"Results of {runner.label}"
    rows = runner.get_model()._meta.label
    crate.description = f"Results of {node.title} v{node.version} for {rows}."
    media = _MEDIA_TYPES[results.suffix[1:]]
    file = crate.add_file(
        results, dest_path=results.name, properties={"name": "Results", "encodingFormat": media}
    )
    properties = {"name": "W3C PROV of each run", "encodingFormat": "application/json"}
    crate.add_file(folder / PROV, dest_path=PROV, properties=properties)
    described = {"@type": "SoftwareApplication", "name": node.title, "version": node.version}
    software = crate.add(ContextEntity(crate, f"#analysis-{node.pk}", properties=described))
    for pk, (began, ended) in story.times.items():
        facts = story.builds[pk].environment.facts
        properties = {
            "@type": "CreateAction",
            "name": f"Runs of {runner.label}",
            "startTime": began.isoformat(),
            "endTime": ended.isoformat(),
            "description": (
                f"Code {story.builds[pk].code or 'unknown'}, {facts['python']}, "
                f"revision {facts['revision'] or 'unknown'}."
            ),
        }
        action = crate.add(ContextEntity(crate, f"#build-{pk}", properties=properties))
        action["instrument"], action["result"] = software, file
        crate.root_dataset.append_to("mentions", action)
    crate.metadata.write(folder)


def _name(name: str) -> dict[str, str]:
    return {"$": name, "type": "prov:QUALIFIED_NAME"}
