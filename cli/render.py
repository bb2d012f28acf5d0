"""How things look: consoles, durations, statuses, tables and JSON.

What a program reads goes to stdout; what a person watches meanwhile, to stderr. Where the output
is no terminal nothing is cut to a width.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perdure.engine.clock import SystemClock

WIDTH_UNLIMITED: Final = 10_000
BYTES_SHOWN_MAX: Final = 16
MINUTE_S: Final = 60

STYLES: Final[dict[str, str]] = {
    "queued": "cyan",
    "running": "bold blue",
    "waiting": "yellow",
    "waiting_for_pause": "magenta",
    "paused": "magenta",
    "complete": "green",
    "completed": "green",
    "errored": "bold red",
    "failed": "bold red",
    "timeout": "red",
    "lost": "red",
    "interrupted": "yellow",
    "terminated": "red",
    "cancelled": "dim",
    "dead": "bold red",
}
MARKS: Final[dict[str, str]] = {
    "running": "▸",
    "waiting": "◷",
    "completed": "✓",
    "failed": "✗",
    "cancelled": "∅",
}


def console(file: IO[str] | None = None) -> Console:
    """Return a console for stdout, or for `file`."""
    target = file or sys.stdout
    made = Console(file=target, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made = Console(file=target, highlight=False, width=WIDTH_UNLIMITED, color_system=None)
    return made


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table in the house's look."""
    made = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(
            column, justify="right" if column in right else "left", no_wrap=True, overflow="ellipsis"
        )
    return made


def status_text(status: str) -> Text:
    """Return a status in its colour."""
    return Text(status.replace("_", " "), style=STYLES.get(status, ""))


def now_ms() -> int:
    """Now, in milliseconds since the epoch."""
    return SystemClock().wall_ms()


def since(when: datetime | None, until: datetime | None = None) -> float | None:
    """Return the seconds from `when` to `until`, or to now."""
    if when is None:
        return None
    end_s = now_ms() / 1000 if until is None else until.timestamp()
    return end_s - when.timestamp()


def parse_time(text: str | None) -> datetime | None:
    """Return a time as the views write it."""
    return None if text is None else datetime.fromisoformat(text)


def duration(seconds: float | None) -> str:
    """Return a length of time for people.

    >>> [duration(s) for s in (0.0004, 0.25, 12.34, 125, 4000, 200000)]
    ['0 ms', '250 ms', '12.3 s', '2 min 5 s', '1 h 6 min', '2 d 7 h']
    """
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < MINUTE_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, lesser, lesser_size in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // lesser_size
            return f"{whole // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    return f"{seconds:.1f} s"


def moment(when: datetime | None) -> str:
    """Return a point in local time for people: the clock's reading, with the day unless it is today."""
    if when is None:
        return ""
    local = when.astimezone()
    today = datetime.fromtimestamp(now_ms() / 1000, UTC).astimezone().date()
    return local.strftime("%H:%M:%S" if local.date() == today else "%Y-%m-%d %H:%M:%S")


def print_json(value: Any, *, pretty: bool = True) -> None:
    """Write a value to stdout as JSON: indented, or in one line."""
    click.echo(json.dumps(value, indent=2 if pretty else None, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def loaded(value: Any) -> Any:
    """Return a stored value for JSON output: JSON text is read, bytes and nothing stay as they are."""
    return json.loads(value) if isinstance(value, str) else value


def cell(value: Any, *, chars_max: int | None = None) -> Text:
    """Return one value of a query for a table."""
    if value is None:
        return Text("null", style="dim")
    if isinstance(value, bytes):
        more = "…" if len(value) > BYTES_SHOWN_MAX else ""
        return Text(
            f"x'{value[:BYTES_SHOWN_MAX].hex()}{more}' ({len(value)} bytes)",
            style="dim",
        )
    text = str(value).replace("\n", "⏎")
    if chars_max is not None and len(text) > chars_max:
        text = text[: chars_max - 1] + "…"
    return Text(text)


def from_ms(ms: int | None) -> datetime | None:
    """Return the point in time that the catalog's milliseconds mean."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
