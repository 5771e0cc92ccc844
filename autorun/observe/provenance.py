"""How results were made, in standard formats: W3C PROV of each run, and an RO-Crate of a folder."""

import datetime as dt
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from urllib.parse import quote

from autorun.declare.nodes import node_of
from autorun.models import Build, Run
from autorun.observe.formats import TEXTS, as_text, required, write_parquet
from autorun.observe.records import Records
from autorun.planning.rows import key_of
from autorun.state.masking import without_secrets

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
        story = _Story(records, stack)
        story.write(folder / PROV)
    _describe(story, folder, results)


class _Story:
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


def _describe(story: _Story, folder: Path, results: Path) -> None:
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
