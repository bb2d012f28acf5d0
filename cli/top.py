"""`perdure top`: what the processes that run a state folder are doing, drawn again and again.

It asks nothing of the catalog while somebody runs the folder (`engine.observer`); where nobody
does, it shows what the catalog knows. Rates are what was counted between two looks.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from perdure import RuntimeStatistics
from perdure.cli import exits, options, render
from perdure.cli.signals import Stop
from perdure.engine.observer import Look
from perdure.engine.remote import Remote, open_remote

ANSWER_S: Final = 3.0
"""How long a runtime that somebody owns is waited for: it looks ten times a second."""
OTHERS_S: Final = 0.2
"""How much longer the first look waits, for other workers than the one that was first to answer."""
POLL_S: Final = 0.02
COUNTS: Final = "SELECT workflow, status, count(*) AS instances FROM instances GROUP BY 1, 2 ORDER BY 1, 2"
COUNTED_MAX: Final = 100_000
STATUSES: Final = (
    "queued", "running", "waiting", "waiting_for_pause", "paused", "complete", "errored", "terminated",
    "dead",
)  # fmt: skip


@click.command()
@options.state_option
@options.json_option
@click.option(
    "--interval", "interval_s", type=click.FloatRange(min=0.1), default=1.0, show_default=True,
    metavar="SECONDS", help="How often it is drawn again.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Show it once and end, as where the output is no terminal.")
def top(*, state: Path, as_json: bool, interval_s: float, once: bool) -> None:
    """Show what the processes that serve a state folder are doing, until Ctrl-C.

    For each worker: instances in memory, ticks, commits and syncs each second, and how late the loop
    is. For each workflow: what began, ended and was recorded since the runtime was opened. Where
    nobody serves the folder, it shows how many instances there are in each status.

    \b
    perdure top --state /var/lib/agents
    perdure top --json | jq .total.queues
    """
    stop = Stop(hard="stopped at once")
    with stop:
        trio.run(partial(_top, state, stop, as_json=as_json, interval_s=interval_s, once=once))
    raise SystemExit(exits.after_signal(stop.signal) if as_json or once else exits.OK)


async def _top(state: Path, stop: Stop, *, as_json: bool, interval_s: float, once: bool) -> None:
    console = render.console()
    with stop.scope():
        async with open_remote(state) as remote:
            look = Look(remote.folder)
            if as_json:
                render.print_json(await _as_json(remote, look))
            elif once or not console.is_terminal:
                console.print(await _picture(remote, look, None))
            else:
                await _live(console, remote, look, interval_s)


async def _live(console: Console, remote: Remote, look: Look, interval_s: float) -> None:
    before: RuntimeStatistics | None = None
    with Live(console=console, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
        while True:
            live.update(await _picture(remote, look, before), refresh=True)
            before = look.total()
            await trio.sleep(interval_s)


async def _look(remote: Remote, look: Look) -> list[RuntimeStatistics]:
    """Return what each worker says of itself; nothing where nobody owns the folder, or none answers."""
    is_first = not look.seen()
    look.begin()
    with trio.move_on_after(ANSWER_S):
        while remote.owner() is not None:
            if look.seen():
                break
            await trio.sleep(POLL_S)
    if is_first and look.seen():
        await trio.sleep(OTHERS_S)
    return look.seen() if remote.owner() is not None else []


async def _as_json(remote: Remote, look: Look) -> dict[str, Any]:
    seen = await _look(remote, look)
    total = look.total()
    if total is None:
        counts = await _counts(remote)
        return {"state": str(remote.folder.root), "running": remote.owner() is not None, "instances": counts}
    return {
        "state": str(remote.folder.root),
        "running": True,
        "total": json.loads(msgspec.json.encode(total)),
        "workers": [json.loads(msgspec.json.encode(each)) for each in seen],
    }


async def _counts(remote: Remote) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for row in await remote.read_catalog(COUNTS, timeout_s=30.0):
        counts.setdefault(row["workflow"], {})[row["status"]] = row["instances"]
    return counts


# -- drawing -----------------------------------------------------------------------------------


async def _picture(remote: Remote, look: Look, before: RuntimeStatistics | None) -> RenderableType:
    seen = await _look(remote, look)
    total = look.total()
    if total is None:
        return await _at_rest(remote)
    late = {each.worker for each in look.late()}
    parts: list[RenderableType] = [_head(remote, total), _queues(total), Text()]
    parts += [_workers(seen, late), Text()] if len(seen) > 1 else []
    parts += [_workflows(total, before)]
    if late:
        parts += [Text("a process that is marked late has not answered for 3 s: it is held up", style="red")]
    return Group(*parts)


async def _at_rest(remote: Remote) -> RenderableType:
    counts = await _counts(remote)
    owner = remote.owner()
    said = (
        f"no process runs {remote.folder.root} now; `perdure serve FILE` does"
        if owner is None
        else f"process {owner} has {remote.folder.root} and does not answer: it is held up, or older"
    )
    columns = [status for status in STATUSES if any(status in each for each in counts.values())]
    table = render.table("workflow", *(each.replace("_", " ") for each in columns), right=columns)
    for workflow, each in counts.items():
        table.add_row(workflow, *(_number(each.get(status, 0)) for status in columns))
    return Group(Text(said, style="yellow"), Text(), table)


def _head(remote: Remote, total: RuntimeStatistics) -> Text:
    who = f"process {total.pid}" if total.workers == 1 else f"{total.workers} workers"
    text = Text(f"{remote.folder.root}", style="bold")
    text.append(f"  {who}, up {render.duration(total.uptime_s)}", style="dim")
    lag = total.lag
    style = "red" if lag.p99_ms > 50 else ""  # noqa: PLR2004 - people notice what is later than this
    figures = (("p50", lag.p50_ms), ("p99", lag.p99_ms), ("max", lag.max_ms))
    text.append("\nloop lag    " + "  ".join(f"{name} {late_ms:.1f} ms" for name, late_ms in figures), style)
    return text


def _queues(total: RuntimeStatistics) -> Text:
    queues = total.queues
    return (
        _facts(
            "in memory",
            {"warm": total.warm, "busy": total.busy, "parked": total.parked, "files": total.files_open},
        )
        + _facts(
            "\nwaiting",
            {
                "to start": _counted(queues.unstarted),
                "to wake": _counted(queues.due),
                "commands": queues.inbox,
                "catalog writes": queues.catalog_writes,
                "timers": total.timers,
            },
        )
        + _facts(
            "\nqueries", {"running": total.queries, "oldest": render.duration(total.oldest_query_s) or "-"}
        )
    )


def _facts(title: str, facts: dict[str, int | str]) -> Text:
    indent = "\n" if title.startswith("\n") else ""
    text = Text(f"{indent}{title.strip():<12}", style="dim")
    for name, value in facts.items():
        text.append(f"{value if isinstance(value, str) else _number(value)} ", style="bold")
        text.append(f"{name}  ", style="dim")
    return text


def _workers(seen: list[RuntimeStatistics], late: set[int | None]) -> RenderableType:
    columns = ("warm", "busy", "ticks", "commits", "syncs", "lag p99 ms")
    table = render.table("worker", "process", *columns, right=columns)
    for each in seen:
        name = Text(str(each.worker), style="red" if each.worker in late else "")
        if each.worker in late:
            name.append(" late")
        table.add_row(
            name, str(each.pid), _number(each.warm), _number(each.busy), _number(each.ticks),
            _number(each.gate.commits), _number(each.gate.syncs), f"{each.lag.p99_ms:.1f}",
        )  # fmt: skip
    return table


def _workflows(total: RuntimeStatistics, before: RuntimeStatistics | None) -> RenderableType:
    columns = ("queued", "warm", "parked", "started", "finished", "failed", "terminated", "steps", "replays")
    table = render.table("workflow", *columns, right=columns)
    for name, each in total.workflows.items():
        table.add_row(name, *(_number(getattr(each, column)) for column in columns))
    return Group(table, Text(), _rates(total, before))


def _rates(total: RuntimeStatistics, before: RuntimeStatistics | None) -> Text:
    """Draw what happens in a second: since the look before, or since the runtime was opened."""
    facts: dict[str, int | str] = {}
    passed_s = total.uptime_s - (before.uptime_s if before else 0.0)
    if passed_s <= 0:  # another runtime, or the same answer again
        before, passed_s = None, total.uptime_s or 1.0
    for name, now, then in (
        ("steps", total.steps, before.steps if before else 0),
        ("ticks", total.ticks, before.ticks if before else 0),
        ("commits", total.gate.commits, before.gate.commits if before else 0),
        ("syncs", total.gate.syncs, before.gate.syncs if before else 0),
        ("replays", total.replays, before.replays if before else 0),
    ):
        facts[name] = _number(round(max(0, now - then) / passed_s))
    return _facts("per second", facts)


def _number(value: int) -> str:
    return f"{value:,}"


def _counted(value: int) -> str:
    return f"{value:,}{'+' if value >= COUNTED_MAX else ''}"
