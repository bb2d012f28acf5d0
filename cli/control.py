"""`perdure send-event`, `pause`, `resume`, `terminate`: commands to one instance.

Each is acknowledged after its effect is durable, whether a serving process carried it out or,
where there is none, this one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click
import trio

from perdure.cli import options, render
from perdure.engine.remote import open_remote

DONE: Final[dict[tuple[str, str | None], str]] = {
    ("pause", "waiting_for_pause"): "pausing {}: steps under way finish first",
    ("pause", "paused"): "paused {}",
    ("resume", None): "resumed {}",
    ("terminate", None): "terminated {}",
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
@click.argument("instance")
@options.state_option
@options.json_option
@options.timeout_option
def pause(*, instance: str, state: Path, as_json: bool, timeout_s: float) -> None:
    """Pause an instance: steps under way finish, none starts. Its timers stand still meanwhile.

    \b
    perdure pause ResearchAgent/tides-1
    perdure resume ResearchAgent/tides-1
    """
    _command("pause", state, instance, as_json, timeout_s)


@click.command()
@click.argument("instance")
@options.state_option
@options.json_option
@options.timeout_option
def resume(*, instance: str, state: Path, as_json: bool, timeout_s: float) -> None:
    """Take a pause back, or revive a dead instance. What it waits for moves by the pause's length.

    \b
    perdure resume ResearchAgent/tides-1
    """
    _command("resume", state, instance, as_json, timeout_s)


@click.command()
@click.argument("instance")
@options.state_option
@options.json_option
@options.timeout_option
def terminate(*, instance: str, state: Path, as_json: bool, timeout_s: float) -> None:
    """End an instance for good. Steps under way are cancelled and waited for.

    \b
    perdure terminate ResearchAgent/tides-1
    """
    _command("terminate", state, instance, as_json, timeout_s)


def _command(command: str, state: Path, instance: str, as_json: bool, timeout_s: float) -> None:
    key, status = trio.run(_carry_out, state, instance, command, timeout_s)
    _done(command, key, status, as_json)


async def _carry_out(state: Path, instance: str, command: str, timeout_s: float) -> tuple[Any, str | None]:
    async with open_remote(state) as remote:
        key = remote.resolve(instance)
        return key, await remote.command(key, command, who=options.who(), timeout_s=timeout_s)


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
