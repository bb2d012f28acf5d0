"""What is shown of an instance's family: its children, each with the step that waits for it."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any, Final

from rich.text import Text

from perdure.cli import render
from perdure.engine.remote import Remote
from perdure.engine.settlements import child_of_step

SHOWN_MAX: Final = 20
"""Children that are listed for people; the others are counted."""


def children_of(remote: Remote, steps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the children that child steps stand for, with their status as the catalog has it."""
    found: list[dict[str, Any]] = []
    for step in steps:
        ref = child_of_step(step["kind"], step["detail"])
        if ref is not None:
            row = remote.find(ref.key)
            is_it = row is not None and row.incarnation == ref.incarnation
            status = row.status if row is not None and is_it else "deleted"
            found.append(
                {"step": step["name"], "instance": ref.child, "status": status, "on_cancel": ref.on_cancel}
            )
    return found


def told(children: list[dict[str, Any]]) -> list[Text]:
    """Return the lines that list children for people; those that are not complete come first."""
    if not children:
        return []
    counts = collections.Counter(child["status"] for child in children)
    summary = ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in counts.most_common())
    lines = [Text(f"{len(children):,} children: {summary}")]
    for child in sorted(children, key=lambda child: child["status"] == "complete")[:SHOWN_MAX]:
        line = Text(f"  {child['step']}  {child['instance']}  ")
        lines.append(line.append_text(render.status_text(child["status"])))
    if len(children) > SHOWN_MAX:
        lines.append(Text(f"  … and {len(children) - SHOWN_MAX:,} more: --json lists all", style="dim"))
    return lines
