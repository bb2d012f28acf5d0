"""One instance as a person looks at it: what is asked of its file, and how its steps are drawn.

`describe` draws a picture once, `run` again and again while the instance moves.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from perdure.cli import exits, render

Fetch = Callable[..., Awaitable[Sequence[Any]]]
"""Runs one reading statement on the instance's file: `await fetch(query, *bindings)`."""

INSTANCE: Final = "SELECT * FROM instance"
COUNTS: Final = "SELECT status, count(*) AS n FROM steps GROUP BY 1"
STEPS: Final = """
    SELECT seq, name, count, kind, status, attempts, error, started_at, ended_at, duration_ms, wake_at,
        json_extract(config, '$.retries.limit') AS retries_max, json_extract(detail, '$.type') AS event_type
    FROM steps
    WHERE status IN ('running', 'waiting') OR seq > (SELECT coalesce(max(seq), 0) FROM steps) - ?
    ORDER BY seq"""
FAILURES: Final = """
    SELECT step_seq, attempt, started_at, ended_at, outcome, error, heartbeat FROM attempts
    WHERE iif(outcome = 'running', heartbeat IS NOT NULL, outcome <> 'completed')
    ORDER BY step_seq, attempt"""
"""The attempts of which there is more to tell than that they run or have succeeded."""

RETRIES_DEFAULT: Final = 5
BAR_CELLS: Final = 24
ERROR_CHARS_MAX: Final = 100
ALL: Final = 1_000_000_000


class Picture(NamedTuple):
    """What was read, and when it was read, in milliseconds since the epoch."""

    instance: dict[str, Any]
    counts: dict[str, int]
    steps: Sequence[Any]
    failures: dict[int, list[Any]]
    at_ms: int


async def take(fetch: Fetch, *, steps_max: int = ALL) -> Picture:
    """Read an instance's file: of its steps those that are open, and the last `steps_max`."""
    instance = await fetch(INSTANCE)
    counts = await fetch(COUNTS)
    steps = await fetch(STEPS, steps_max)
    failures: dict[int, list[Any]] = {}
    for row in await fetch(FAILURES):
        failures.setdefault(row["step_seq"], []).append(row)
    return Picture(
        instance=instance[0].as_dict() if instance else {},
        counts={row["status"]: row["n"] for row in counts},
        steps=steps,
        failures=failures,
        at_ms=render.now_ms(),
    )


# -- words ---------------------------------------------------------------------------------


def error_line(text: str | None) -> str:
    """Return a stored error as `Class: message`, in one line."""
    if not text:
        return ""
    try:
        record = json.loads(text)
        return exits.one_line(f"{record['class']}: {record['message']}")
    except (ValueError, KeyError, TypeError):
        return exits.one_line(text)


def label(step: Any) -> str:
    """Return a step's name, with its occurrence where it is not the first."""
    return step["name"] if step["count"] == 1 else f"{step['name']} #{step['count']}"


def progress(step: Any, now_ms: int) -> Text:
    """Return what a step is doing, or how long it took."""
    wake = render.parse_time(step["wake_at"])
    left = "" if wake is None else render.duration(wake.timestamp() - now_ms / 1000)
    match step["status"], step["kind"]:
        case "waiting", "sleep":
            return Text(f"wakes in {left}", style="yellow")
        case "waiting", "event":
            return Text(
                f"waits for {step['event_type']!r}" + (f", {left} left" if left else ""), style="yellow"
            )
        case "waiting", "do":
            return Text(f"tries again in {left}", style="yellow")
        case "running" | "waiting", _:
            begun = render.parse_time(step["started_at"])
            return Text(
                render.duration(None if begun is None else now_ms / 1000 - begun.timestamp()), style="blue"
            )
        case _:
            return Text(render.duration(None if step["duration_ms"] is None else step["duration_ms"] / 1000))


def attempts(step: Any) -> Text:
    """Return which attempt a step is at, where that is worth a word."""
    number = step["attempts"]
    if number < 2:  # noqa: PLR2004 - the first attempt needs no word
        return Text("")
    limit = RETRIES_DEFAULT if step["retries_max"] is None else step["retries_max"]
    return Text(
        f"attempt {number} of {limit + 1}", style="dim" if step["status"] == "completed" else "yellow"
    )


# -- the timeline --------------------------------------------------------------------------


def timeline(picture: Picture, *, bars: bool = True, errors: bool = True) -> list[Text]:
    """Return a line for each step: mark, name, kind, attempts, time, and a bar over the whole run."""
    span = _span(picture)
    rows = [
        (Text(label(step)), Text(step["kind"], style="dim"), attempts(step), progress(step, picture.at_ms))
        for step in picture.steps
    ]
    widths = [max((cell.cell_len for cell in column), default=0) for column in zip(*rows, strict=True)]
    lines: list[Text] = []
    for step, (name, kind, attempt, took) in zip(picture.steps, rows, strict=True):
        line = Text(f"{render.MARKS.get(step['status'], '?')} ", style=render.STYLES.get(step["status"], ""))
        line = Text.assemble(line, " ", _wide(name, widths[0]), _wide(kind, widths[1]))
        line.append_text(_wide(attempt, widths[2]) if widths[2] else Text(""))
        line.append_text(_wide(took, widths[3], right=True))
        line.append_text(_bar(step, span) if bars else Text(""))
        lines.append(line)
        failures = picture.failures.get(step["seq"]) if errors else None
        lines += [_told(each) for each in failures or ()]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _wide(text: Text, width: int, *, right: bool = False) -> Text:
    room = " " * (width - text.cell_len)
    return Text.assemble(room, text, "  ") if right else Text.assemble(text, room, "  ")


def _told(row: Any) -> Text:
    if row["outcome"] == "running":
        return Text(f"   heartbeat: {_short(row['heartbeat'])}", style="dim")
    return Text(f"   attempt {row['attempt']} {_failure(row)}", style="red")


def _short(text: str) -> str:
    return text if len(text) <= ERROR_CHARS_MAX else text[: ERROR_CHARS_MAX - 1] + "…"


def _failure(row: Any) -> str:
    text = _short(error_line(row["error"]))
    return f"{row['outcome']}: {text}" if text else str(row["outcome"])


def _span(picture: Picture) -> tuple[float, float]:
    begun = render.parse_time(picture.instance.get("started_at")) or render.parse_time(
        picture.instance.get("created_at")
    )
    ended = render.parse_time(picture.instance.get("ended_at"))
    start_s = begun.timestamp() if begun else picture.at_ms / 1000
    return start_s, max(ended.timestamp() if ended else picture.at_ms / 1000, start_s + 0.001)


def _bar(step: Any, span: tuple[float, float]) -> Text:
    start_s, end_s = span
    begun = render.parse_time(step["started_at"])
    ended = render.parse_time(step["ended_at"])
    scale = BAR_CELLS / (end_s - start_s)
    first = int(((begun.timestamp() if begun else start_s) - start_s) * scale)
    last = int(((ended.timestamp() if ended else end_s) - start_s) * scale)
    first = min(max(first, 0), BAR_CELLS - 1)
    cells = max(1, min(last, BAR_CELLS) - first)
    made = Text("·" * first, style="dim")
    made.append("━" * cells, style=render.STYLES.get(step["status"], ""))
    made.append("·" * (BAR_CELLS - first - cells), style="dim")
    return made


# -- the live view -------------------------------------------------------------------------


def live(key: str, status: str, picture: Picture | None, *, height: int, note: str) -> RenderableType:
    """Return the live view: a head, the steps that fit into `height` lines, and a foot."""
    head = Text(f"{key}  ", style="bold")
    head.append_text(render.status_text(status))
    if picture is None:
        return Group(head)
    picture = picture._replace(at_ms=render.now_ms())
    start_s, end_s = _span(picture)
    head.append(f"  {render.duration(end_s - start_s)}", style="dim")
    room = max(3, height - 4)
    open_steps = [step for step in picture.steps if step["status"] in ("running", "waiting")][-room:]
    done = [step for step in picture.steps if step["status"] not in ("running", "waiting")]
    shown = sorted([*done[len(done) - (room - len(open_steps)) :], *open_steps], key=lambda step: step["seq"])
    total = sum(picture.counts.values())
    if len(done) <= room - len(open_steps):
        shown = list(picture.steps)[-room:]
    parts: list[RenderableType] = [head]
    if total > len(shown):
        parts.append(Text(f"  … {total - len(shown)} more steps", style="dim"))
    parts += timeline(picture._replace(steps=shown), bars=False, errors=False)
    parts.append(_foot(picture, note))
    return Group(*parts)


def _foot(picture: Picture, note: str) -> Text:
    made = Text()
    for status in ("completed", "running", "waiting", "failed", "cancelled"):
        if picture.counts.get(status):
            made.append(f"{picture.counts[status]} {status}  ", style=render.STYLES.get(status, ""))
    made.append(note, style="dim")
    return made
