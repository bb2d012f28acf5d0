"""What `perdure demo` shows afterwards: that no recorded step ran twice, the timeline, three queries.

Two witnesses are compared. The log of executions is written by the step functions themselves, whatever
the runtime does; the table of attempts is what the runtime has recorded. Rows are read through the
public `Instance.sql`, as anybody's program would.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from perdure import Instance, open_runtime
from perdure.cli.audit import Audit, Execution, Report, read_executions

SLOWEST: Final = """\
SELECT name, input ->> '$[0].name' AS distribution, duration_ms
FROM steps
WHERE attempts = 1
ORDER BY duration_ms DESC
LIMIT 5"""
NOT_MATCHING: Final = """\
SELECT output ->> '$.name' AS distribution,
       json_array_length(output, '$.changed') AS changed,
       json_array_length(output, '$.missing') AS missing
FROM steps
WHERE name GLOB 'hash files*' AND output ->> '$.match' = 0"""
RETRIED: Final = """\
SELECT s.name, s.input ->> '$[0].name' AS distribution, a.attempt, a.outcome
FROM steps AS s JOIN attempts AS a ON a.step_seq = s.seq
WHERE s.attempts > 1
ORDER BY s.seq, a.attempt"""
QUERIES: Final = (
    ("The slowest steps", SLOWEST),
    ("Distributions whose files are not as their RECORD says", NOT_MATCHING),
    ("Steps that took more than one attempt", RETRIED),
)

ATTEMPTS: Final = """
    SELECT s.name, a.attempt, a.outcome
    FROM attempts AS a JOIN steps AS s ON s.seq = a.step_seq
    WHERE s.kind = 'do'"""
# The views show times as text; their Julian day keeps the milliseconds.
SPANS: Final = """
    SELECT substr(name, 1, instr(name || '[', '[') - 1) AS phase, count(*) AS steps,
        CAST(round((julianday(min(started_at)) - 2440587.5) * 86400000) AS INTEGER) AS from_ms,
        CAST(round((julianday(max(ended_at)) - 2440587.5) * 86400000) AS INTEGER) AS to_ms
    FROM steps GROUP BY 1 ORDER BY min(seq)"""
LIFE: Final = """
    SELECT CAST(round((julianday(created_at) - 2440587.5) * 86400000) AS INTEGER) AS created_ms,
        CAST(round((julianday(ended_at) - 2440587.5) * 86400000) AS INTEGER) AS ended_ms, replays
    FROM instance"""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo did: which process it killed, when and how far that was, and which went on."""

    state: str
    instance: str
    distributions: int
    killed_pid: int
    killed_at_ms: int
    recorded_before: int
    total: int
    resumed_pid: int
    resumed_at_ms: int
    recorded_after: int


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """The log of executions against the recorded attempts. It holds when all four lists are empty.

    `ran_again`: steps that the first process had recorded and the second one ran. `twice`: attempts
    whose function ran twice. `unrecorded`: executions without an attempt on record. `unseen`:
    completed attempts that nothing executed. `lost` are the attempts that died with the process.
    """

    executions: int
    attempts: int
    kept: int
    lost: list[str]
    ran_again: list[str]
    twice: list[str]
    unrecorded: list[str]
    unseen: list[str]
    holds: bool


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the timeline, in milliseconds since the instance was created."""

    what: str
    from_ms: int
    to_ms: int
    steps: int = 0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One of the closing queries, with its rows."""

    title: str
    sql: str
    columns: list[str]
    rows: list[list[Any]]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that is shown of a run. `--json` prints it as it is."""

    story: Story
    proof: Proof
    timeline: list[Span]
    report: Report
    queries: list[Answer]
    file: str
    replays: int


async def gather(story: Story, executions: Path) -> Evidence:
    """Read everything from the state folder of a finished run."""
    async with open_runtime(story.state, workflows=[Audit]) as runtime:
        instance = await runtime.get(Audit, story.instance)
        rows = await instance.sql(ATTEMPTS)
        attempts = {(row["name"], row["attempt"]): str(row["outcome"]) for row in rows}
        (life,) = await instance.sql(LIFE)
        return Evidence(
            story=story,
            proof=prove(read_executions(executions), attempts, story),
            timeline=await _timeline(instance, story, life["created_ms"], life["ended_ms"]),
            report=await instance.result(),
            queries=[await _answer(instance, title, sql) for title, sql in QUERIES],
            file=str(Path(story.state, "Audit", f"{story.instance}.sqlite")),
            replays=life["replays"],
        )


def prove(log: Iterable[Execution], attempts: dict[tuple[str, int], str], story: Story) -> Proof:
    """Compare what ran with what is recorded."""
    log = list(log)
    starts = collections.Counter((line.step, line.attempt) for line in log if line.what == "start")
    first = {(line.step, line.attempt) for line in log if line.pid == story.killed_pid}
    second = {line.step for line in log if line.pid == story.resumed_pid}
    kept = {step for step, attempt in first if attempts.get((step, attempt)) == "completed"}
    ran_again = sorted(kept & second)
    twice = _named(key for key, times in starts.items() if times > 1)
    unrecorded = _named(key for key in starts if key not in attempts)
    unseen = _named(key for key, outcome in attempts.items() if outcome == "completed" and not starts[key])
    return Proof(
        executions=starts.total(),
        attempts=len(attempts),
        kept=len(kept),
        lost=_named(key for key, outcome in attempts.items() if outcome == "lost"),
        ran_again=ran_again,
        twice=twice,
        unrecorded=unrecorded,
        unseen=unseen,
        holds=not (ran_again or twice or unrecorded or unseen) and len(kept) >= story.recorded_before,
    )


def _named(keys: Iterable[tuple[str, int]]) -> list[str]:
    return [f"{step}, attempt {attempt}" for step, attempt in sorted(keys)]


async def _timeline(instance: Instance[Any], story: Story, created_ms: int, ended_ms: int) -> list[Span]:
    spans = [Span(what="instance created", from_ms=0, to_ms=0)]
    for row in await instance.sql(SPANS):
        from_ms, to_ms = row["from_ms"] - created_ms, row["to_ms"] - created_ms
        spans.append(Span(what=row["phase"], from_ms=from_ms, to_ms=to_ms, steps=row["steps"]))
    killed, resumed = story.killed_at_ms - created_ms, story.resumed_at_ms - created_ms
    spans.append(Span(what=f"kill -9 {story.killed_pid}", from_ms=killed, to_ms=killed))
    spans.append(Span(what=f"process {story.resumed_pid} goes on", from_ms=resumed, to_ms=resumed))
    spans.append(Span(what="instance complete", from_ms=ended_ms - created_ms, to_ms=ended_ms - created_ms))
    return sorted(spans, key=lambda span: span.from_ms)


async def _answer(instance: Instance[Any], title: str, sql: str) -> Answer:
    async with instance.sql_stream(sql) as stream:
        rows = [list(row) async for row in stream]
        return Answer(title=title, sql=sql, columns=list(stream.columns), rows=rows)
