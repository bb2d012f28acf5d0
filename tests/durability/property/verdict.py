"""The comparison of what a program has come to with what it must come to.

Files are read as a foreign tool reads them, after the runtime has been closed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from perdure.engine.folder import StateFolder
from perdure.storage.records import Key
from property.expected import Expected
from property.lives import Case, Ended

Line = tuple[str, str, str, int, int]
"""What a step function told: begin, end or undo; instance, step, count, attempt."""


def rows_of(path: Path, query: str) -> list[Any]:
    """Return the rows of a query of one file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def lines_of(path: Path) -> list[Line]:
    """Return what the step functions told, in order."""
    told = [line.rsplit("|", 4) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return [(what, of, step, int(count), int(attempt)) for what, of, step, count, attempt in told]


def same(expected: object, found: object, what: str) -> None:
    """Fail where two things differ, and say how: pytest explains no assertions of this file."""
    assert expected == found, f"{what}:\n  expected {expected}\n  found    {found}"


def judge(case: Case, expected: Expected, ended: Ended) -> None:
    """Fail where anything is not as expected."""
    same(Ended(result=expected.result, failure=expected.failure), ended, "how it ended")
    family = expected.family
    folder = StateFolder(case.state)
    catalog = rows_of(folder.catalog, "SELECT id, status FROM instances")
    statuses = [(each.id, "complete" if each.failure is None else "errored") for each in family]
    same(sorted(statuses), sorted(catalog), "the instances there are")
    told = lines_of(case.witness)
    for each in family:
        path = folder.instance(Key("Generated", each.id))
        mine = [line for line in told if line[1] == f"Generated/{each.id}"]
        judge_rows(path, each)
        judge_runs(path, each, mine)
        judge_rollback(path, each, mine)
        judge_events(path, each)


def judge_rows(path: Path, expected: Expected) -> None:
    """Each step is recorded once, as what it must be, and nothing else is."""
    found = rows_of(path, "SELECT kind, name, count, status FROM steps WHERE kind <> 'rollback'")
    recorded = {(kind, name, count): status for kind, name, count, status in found}
    same(len(recorded), len(found), "one row for each step")
    same({}, {row: recorded[row] for row in recorded if row not in expected.rows}, "steps beyond those due")
    wrong = {
        row: (recorded.get(row, "missing"), statuses)
        for row, statuses in expected.rows.items()
        if recorded.get(row, "missing") not in statuses
    }
    same({}, wrong, "steps that are not what they must be")
    if expected.written:
        rows = rows_of(path, "SELECT DISTINCT name FROM written")
        same(expected.written, {name for (name,) in rows}, "what transactions wrote")


def judge_runs(path: Path, expected: Expected, told: list[Line]) -> None:
    """Side effects happened at least once; no attempt ran twice, and none after a success."""
    begun = Counter(line[2:] for line in told if line[0] == "begin")
    ended = {line[2:] for line in told if line[0] == "end"}
    same({}, {attempt: times for attempt, times in begun.items() if times > 1}, "an attempt ran twice")
    same(
        set[tuple[str, int]](),
        expected.ran - {(name, count) for name, count, _ in ended},
        "steps that never ran",
    )
    completed = rows_of(
        path, "SELECT name, count, attempts FROM steps WHERE kind = 'do' AND status = 'completed'"
    )
    success = {(name, count): attempt for name, count, attempt in completed}
    same(
        set[tuple[str, int, int]](),
        {(*step, attempt) for step, attempt in success.items()} - ended,
        "recorded, and not done",
    )
    late = [line for line in begun if line[2] > success.get(line[:2], line[2])]
    same([], late, "attempts after a success")


def judge_rollback(path: Path, expected: Expected, told: list[Line]) -> None:
    """Handlers ran in the reverse order of the starts, each to its end once, up to one that is stuck."""
    undone = rows_of(path, "SELECT name, count, status FROM steps WHERE kind = 'rollback' ORDER BY seq")
    if expected.failure is None or not expected.undone:
        same([], undone, "no rollback")
        return
    started = rows_of(path, "SELECT name, count FROM steps WHERE kind = 'do' ORDER BY seq DESC")
    order: list[tuple[str, int]] = [step for step in started if step in expected.undone]
    stages = [expected.undone[step].stage for step in order]
    same(sorted(stages, reverse=True), stages, "the order in which steps started, last first")
    same(len(expected.undone), len(order), "steps with handlers")
    due: list[tuple[str, int, str]] = []
    for step in order:
        due.append((*step, "failed" if expected.undone[step].undo == "stuck" else "completed"))
        if due[-1][2] == "failed":
            break
    same(due, undone, "the rollback")
    effects = list(dict.fromkeys((name, count) for what, _, name, count, _ in told if what == "undo"))
    same([step[:2] for step in due if step[2] == "completed"], effects, "the effects of the rollback")
    outcome = rows_of(path, "SELECT rollback ->> '$.outcome' FROM instance")
    same([("failed" if due[-1][2] == "failed" else "complete",)], outcome, "how the rollback ended")


def judge_events(path: Path, expected: Expected) -> None:
    """Each wanted event was delivered once, and no other."""
    rows = rows_of(path, "SELECT type, payload, delivered_to FROM events WHERE delivered_to IS NOT NULL")
    if len(expected.program.generations) > 1:  # a continuation drops the payloads of what it leaves behind
        types = Counter(type_ for type_, _ in expected.sends)
        same(types, Counter(type_ for type_, _, _ in rows), "the events that were delivered")
        return
    delivered = Counter((type_, int(payload)) for type_, payload, _ in rows)
    same(Counter(expected.sends), delivered, "the events that were delivered")
    same(len(rows), len({taker for _, _, taker in rows}), "one event for each wait")
