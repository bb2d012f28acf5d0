"""`perdure send-event`, `pause`, `resume`, `terminate`, `restart`, `delete`: commands to instances.

Each is acknowledged after its effect is durable, whether a serving process carried it out or,
where there is none, this one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import click
import trio

from perdure.cli import many, options, render
from perdure.cli.many import Wanted
from perdure.engine.bulk import BulkOptions
from perdure.engine.inbox import TerminateBody
from perdure.engine.remote import Remote, open_remote

DONE: Final[dict[tuple[str, str | None], str]] = {
    ("pause", "waiting_for_pause"): "pausing {}: steps under way finish first",
    ("pause", "paused"): "paused {}",
    ("resume", None): "resumed {}",
    ("terminate", "terminated"): "terminated {}",
    ("terminate", None): "rolling back {}: it ends as terminated after that",
    ("restart", None): "restarted {}",
    ("send-event", None): "sent to {}",
}


@click.command("send-event")
@click.argument("instance")
@click.argument("type_", metavar="TYPE")
@click.argument("payload", required=False, metavar="[PAYLOAD]")
@options.state_option
@options.json_option
@options.timeout_option
def send_event(
    *, instance: str, type_: str, payload: str | None, state: Path, as_json: bool, timeout_s: float
) -> None:
    """Send an event to an instance. It stands in the instance's file when this returns.

    PAYLOAD is JSON; @FILE reads it from a file, - from stdin. The first wait for that TYPE gets
    the event, also one that begins later.

    \b
    perdure send-event ResearchAgent/tides-1 approve '{"by": "Ada"}'
    perdure send-event tides-1 approve
    """
    value = options.as_json_text(options.read_json(payload, "PAYLOAD"))
    key, status = trio.run(_send_event, state, instance, type_, value, timeout_s)
    _done("send-event", key, status, as_json)


@click.command()
@many.wanted
def pause(meant: Wanted) -> None:
    """Pause instances: steps under way finish, none starts. Their timers stand still meanwhile.

    \b
    perdure pause ResearchAgent/tides-1
    perdure pause --workflow ResearchAgent --tag nightly
    perdure resume ResearchAgent/tides-1
    """
    many.give("pause", meant, one=_commander("pause", meant), ask=False)


@click.command()
@many.wanted
def resume(meant: Wanted) -> None:
    """Take a pause back, or revive a dead instance. What it waits for moves by the pause's length.

    Nothing happens to an instance that is neither paused nor dead.

    \b
    perdure resume ResearchAgent/tides-1
    perdure list --status dead
    perdure resume --status dead
    """
    many.give("resume", meant, one=_commander("resume", meant), ask=False)


@click.command()
@many.wanted
@click.option("--rollback", is_flag=True, help="Undo first what its steps did: run their rollback handlers.")
def terminate(meant: Wanted, *, rollback: bool) -> None:
    """End instances for good. Steps under way are cancelled and waited for.

    With --rollback the handlers that its steps were given (`step.do(..., rollback=...)`) run first,
    last step first. That takes a process that runs its workflow: this command returns once it is
    sure to happen, and `perdure describe` shows how far it is. A second `terminate`, without
    --rollback, breaks it off.

    \b
    perdure terminate ResearchAgent/tides-1
    perdure terminate ResearchAgent/tides-1 --rollback
    perdure terminate --where "created_at < '2026-01-01'" --dry-run
    """
    one = _commander("terminate", meant, TerminateBody(rollback=rollback))
    many.give("terminate", meant, one=one, options_=BulkOptions(rollback=rollback), ask=True)


@click.command()
@many.wanted
@click.option("--from", "from_step", metavar="STEP", help="Keep what started before this step.")
@click.option("--count", type=int, default=1, show_default=True, help="Which use of the step's name.")
@click.option("--kind", default="do", show_default=True, help="What kind of step it is: do, sleep, event …")
def restart(meant: Wanted, *, from_step: str | None, count: int, kind: str) -> None:
    """Run instances again, from the beginning or from a step.

    That goes whatever their status is. Steps under way are cancelled and waited for. What is run
    again stays in the history.

    \b
    perdure restart ResearchAgent/tides-1
    perdure restart tides-1 --from 'read source'
    perdure restart --workflow ResearchAgent --status errored --from synthesise
    """
    chosen = BulkOptions(from_step=from_step, count=count, kind=kind)

    async def one(remote: Remote, key: Any) -> None:
        status = await remote.restart(key, chosen, who=options.who(), timeout_s=meant.timeout_s)
        _done("restart", key, status, meant.as_json)

    many.give("restart", meant, one=one, options_=chosen, ask=True)


@click.command()
@many.wanted
def delete(meant: Wanted) -> None:
    """Remove instances, and all that is kept of them.

    That is their files, what is archived of them, and their rows: there is no way back. Those that
    run are stopped first. An id is free again once this returns.

    \b
    perdure delete ResearchAgent/tides-1
    perdure delete --workflow ResearchAgent --status terminated --yes
    """
    many.give("delete", meant, ask=True)  # one, too, goes the way of many, for it is asked for twice


def _commander(command: str, meant: Wanted, body: Any = None) -> Callable[[Remote, Any], Awaitable[None]]:
    """Return what gives a command to the one instance that is named, and tells what came of it."""

    async def one(remote: Remote, key: Any) -> None:
        status = await remote.command(key, command, body, who=options.who(), timeout_s=meant.timeout_s)
        _done(command, key, status, meant.as_json)

    return one


async def _send_event(
    state: Path, instance: str, type_: str, payload: str, timeout_s: float
) -> tuple[Any, str | None]:
    async with open_remote(state) as remote:
        key = remote.resolve(instance)
        return key, await remote.send_event(key, type_, payload, who=options.who(), timeout_s=timeout_s)


def _done(command: str, key: Any, status: str | None, as_json: bool) -> None:
    if as_json:
        render.print_json({"instance": str(key), "command": command, "status": status})
        return
    text = DONE.get((command, status)) or DONE.get((command, None)) or f"{command}: {{}} is {status}"
    click.echo(text.format(key))
