"""Reports measurements: a line on the terminal, a table, and plots."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measuring import Line
from bench.plots import log_log

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "bench" / "results.json"
PAGE = CHECKOUT / "docs" / "performance.md"
PLOTS = CHECKOUT / "docs"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def one_line(line: Line) -> str:
    return (
        f"{_mark(line.is_reached)} {line.database}: {line.work}: {_value(line.value, line.unit)} "
        f"({_goal(line.goal, line.at_least)}); {_against(line.against, line.note)}; "
        f"{_seconds(line.seconds)}"
    )


def merged(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of the last report, replaced by `lines` if they were measured again."""
    found = {(line["key"], line["database"]): line for line in lines}
    earlier = json.loads(RESULTS.read_text())["lines"] if RESULTS.exists() else []
    updated = [found.pop((line["key"], line["database"]), line) for line in earlier]
    return [*updated, *found.values()]


def write(lines: Sequence[Mapping[str, Any]], *, scale: str, circumstances: str) -> None:
    """Write the results as JSON, and the page's table and plots."""
    document = {"scale": scale, "circumstances": circumstances, "lines": list(lines)}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    text = PAGE.read_text()
    table = f"{BEGIN}\n{circumstances}\n\n{_table(lines)}\n{END}"
    PAGE.write_text(
        re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: table, text, flags=re.DOTALL)
    )
    for database in sorted({line["database"] for line in lines}):
        for key, title, unit in (
            ("plan-growth", "Planning with nothing pending", "seconds"),
            ("memory", "Memory added by planning fresh rows", "MB"),
        ):
            found = [x for x in lines if (x["key"], x["database"]) == (key, database)]
            if found and found[0]["points"]:
                name = f"performance-{key}-{database}.svg"
                (PLOTS / name).write_text(
                    log_log(found[0]["points"], title=f"{title}, {database}", unit=unit)
                )


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row per topic, one column per database."""
    databases = sorted({line["database"] for line in lines})
    rows: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        rows.setdefault((line["key"], line["work"]), {})[line["database"]] = line
    head = ["work", "against", "goal", *databases]
    text = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for (_, work), by_database in rows.items():
        any_line = next(iter(by_database.values()))
        # Words that differ by database are shown with the number.
        notes = {each["against"] for each in by_database.values()}
        against = any_line["against"] if len(notes) == 1 else ""
        cells = [work, against, _goal(any_line["goal"], any_line["at_least"])]
        for database in databases:
            line = by_database.get(database)
            cells.append("" if line is None else _cell(line, says_against=not against))
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def _cell(line: Mapping[str, Any], *, says_against: bool) -> str:
    value = _value(line["value"], line["unit"])
    if line["is_reached"] is not None:
        value = f"**{value}**" if line["is_reached"] else f"{value} ✗"
    parts = [_seconds(line["seconds"]), line["note"], line["against"] if says_against else ""]
    rest = "; ".join(part for part in parts if part)
    return f"{value} ({rest})" if rest else value


def _mark(is_reached: bool | None) -> str:
    return {None: " ", True: "+", False: "-"}[is_reached]


def _goal(goal: float | None, at_least: bool) -> str:
    return "" if goal is None else f"{'≥' if at_least else '≤'} {goal:g}"


def _value(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}".strip()


def _against(against: str, note: str) -> str:
    return f"{against}; {note}" if note else against


def _seconds(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_time(value)}" for name, value in seconds.items())


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
