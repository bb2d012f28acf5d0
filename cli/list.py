"""`perdure list`: what the catalog knows of instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from perdure.cli import options, render
from perdure.engine.remote import STATUSES, open_remote


@click.command("list")
@options.state_option
@options.json_option
@click.option("--workflow", metavar="NAME", help="Only instances of this workflow.")
@click.option("--status", type=click.Choice(STATUSES), help="Only instances with this status.")
@click.option("--parent", metavar="INSTANCE", help="Only children of this instance.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many, newest first."
)
def list_(
    *, state: Path, as_json: bool, workflow: str | None, status: str | None, parent: str | None, limit: int
) -> None:
    """List instances, newest first.

    The catalog is an index: an instance in memory that sleeps is `running` here until it leaves
    memory; `perdure describe` asks the instance itself.

    \b
    perdure list
    perdure list --workflow ResearchAgent --status errored
    perdure list --parent Order/order-1 --status waiting
    perdure list --json | jq '.[].id'
    """
    found, owner, more = trio.run(_rows, state, workflow, status, parent, limit)
    if as_json:
        render.print_json([_json(row) for row in found])
        return
    if not found:
        click.echo(f"No instances in {state}" + (" match." if workflow or status or parent else " yet."))
        return
    table = render.table("instance", "status", "created", "took", "why")
    for row in found:
        end = row.ended_at_ms or (render.now_ms() if row.started_at_ms else None)
        took = None if end is None or row.started_at_ms is None else (end - row.started_at_ms) / 1000
        table.add_row(
            str(row.key),
            render.status_text(row.status),
            render.moment(render.from_ms(row.created_at_ms)),
            render.duration(took),
            _why(row, running=owner is not None),
        )
    render.console().print(table)
    if more:
        click.echo(f"… and more: --limit {limit} are shown", err=True)


async def _rows(
    state: Path, workflow: str | None, status: str | None, parent: str | None, limit: int
) -> tuple[list[Any], int | None, bool]:
    async with open_remote(state) as remote:
        of = None if parent is None else parent if "/" in parent else str(remote.resolve(parent))
        rows = remote.rows(workflow=workflow, status=status, parent=of, limit=limit + 1)
        rows = [msgspec.structs.replace(row, reason=remote.why_queued(row) or row.reason) for row in rows]
        return rows[:limit], remote.owner(), len(rows) > limit


def _why(row: Any, *, running: bool) -> str:
    if row.status in ("running", "queued") and not running:
        return "parked: no process runs this folder"
    parts = [row.reason or ""]
    if row.status in ("waiting", "queued"):
        when = render.from_ms(row.wake_at_ms or row.start_at_ms)
        parts.append(f"until {render.moment(when)}" if when else "")
    return " ".join(part for part in parts if part)


def _json(row: Any) -> dict[str, Any]:
    times = {
        "created_at": row.created_at_ms,
        "started_at": row.started_at_ms,
        "ended_at": row.ended_at_ms,
        "wake_at": row.wake_at_ms if row.wake_at_ms is not None else row.start_at_ms,
    }
    return {
        "instance": str(row.key),
        "workflow": row.workflow,
        "id": row.id,
        "status": row.status,
        "reason": row.reason,
        **{name: render.from_ms(ms) for name, ms in times.items()},
        "version": row.version,
        "tags": render.loaded(row.tags),
        "priority": row.priority,
        "parent": row.parent,
    }
