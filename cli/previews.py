"""Streams as `perdure describe` shows them: how much there is, and how it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.text import Text

from perdure.cli import exits, render
from perdure.cli.picture import Fetch

PREVIEW_CHARS_MAX: Final = 1_024
LINE_CHARS_MAX: Final = 200
STREAMS_MAX: Final = 20
FIRST: Final = "SELECT chunk FROM streams WHERE name = ? AND NOT superseded LIMIT 256"


async def streams_of(fetch: Fetch, steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the streams of an instance, the first ones, with what they hold and a preview of it."""
    found: list[dict[str, Any]] = []
    for step in steps:
        detail: dict[str, Any] = render.loaded(step["detail"]) or {}
        if step["kind"] != "stream" and "stream" not in detail:
            continue
        if len(found) == STREAMS_MAX:
            break
        rows = await fetch(FIRST, step["name"])
        extent: dict[str, int] = detail.get("stream", {})
        found.append(
            {
                "name": step["name"],
                "step": step["kind"],
                "status": "open" if step["status"] in ("running", "waiting") else "closed",
                "chunks": extent.get("chunks"),
                "bytes": extent.get("bytes"),
                "sensitive": bool(step["sensitive"]),
                "preview": preview([row["chunk"] for row in rows]),
            }
        )
    return found


def preview(chunks: Sequence[Any]) -> str | None:
    """Return how a stream begins, as text; None where it is binary or withheld.

    >>> preview(['"high "', '"water"']), preview([b"page"])
    ('high water', None)
    """
    text = ""
    for chunk in chunks:
        if not isinstance(chunk, str):
            return None
        value = render.loaded(chunk)
        text += value if isinstance(value, str) else f"{chunk}\n"
        if len(text) >= PREVIEW_CHARS_MAX:
            break
    return text[:PREVIEW_CHARS_MAX]


def told(streams: Sequence[dict[str, Any]]) -> list[Text]:
    """Return a line for each stream."""
    lines: list[Text] = []
    for stream in streams:
        line = Text.assemble("stream ", (stream["name"], "bold"), f"  {stream['status']}")
        if stream["chunks"] is not None:
            line.append(f", {stream['chunks']:,} chunks, {stream['bytes']:,} bytes")
        if stream["preview"]:
            shown = exits.one_line(stream["preview"])
            line.append(
                f": {shown[:LINE_CHARS_MAX]}{'…' if len(shown) > LINE_CHARS_MAX else ''}", style="dim"
            )
        lines.append(line)
    return lines
