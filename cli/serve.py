"""`perdure serve`: a long-running runtime that other `perdure` commands reach through its folder."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from perdure import App, InvalidArgumentError, StateLockedError, open_runtime
from perdure.cli import options, render
from perdure.cli.signals import Stop
from perdure.engine.app import merge_apps

OPEN_TRIES_S: Final = 3.0
"""A command that found nobody at work owns the folder for a moment."""
OPEN_PAUSE_S: Final = 0.1


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@options.state_option
@options.json_option
@click.option(
    "--replay",
    type=click.Choice(["warm", "always"]),
    default="warm",
    show_default=True,
    help="`always` calls run() from the top after every recorded step.",
)
@click.option(
    "--durability",
    type=click.Choice(["full", "process"]),
    default="full",
    show_default=True,
    help="`process` skips syncs: it survives the death of the process, not of the machine.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log what workflows say at level INFO, too.")
def serve(
    *, files: tuple[str, ...], state: Path, as_json: bool, replay: Any, durability: Any, verbose: bool
) -> None:
    """Run the instances of a state folder until stopped.

    Says in one line when it is ready. Ctrl-C or SIGTERM parks every instance, commits, and ends
    within the app's `shutdown_grace_s` (10 s by default); a second one ends at once. What was under
    way goes on with the next `serve`.

    \b
    perdure serve agents.py --state /var/lib/agents
    perdure create ResearchAgent --params '{"topic": "tides"}'     from another terminal
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s"
    )
    app = merge_apps(options.load_file(file) for file in files)
    if not app.definitions:
        raise InvalidArgumentError(f"{', '.join(files)}: there is no workflow to serve")
    stop = Stop(
        hard="stopped at once: attempts under way are lost as in a crash; the next `perdure serve` goes on"
    )
    with stop:
        trio.run(partial(_serve, app, state, stop, replay=replay, durability=durability, as_json=as_json))
    click.echo(f"perdure: stopped; `perdure serve {' '.join(files)}` goes on", err=True)


async def _serve(app: App, state: Path, stop: Stop, *, replay: Any, durability: Any, as_json: bool) -> None:
    with stop.scope():
        for left in range(round(OPEN_TRIES_S / OPEN_PAUSE_S), -1, -1):
            try:
                async with open_runtime(state, app, replay=replay, durability=durability):
                    _ready(app, state, as_json)
                    await trio.sleep_forever()
            except StateLockedError:
                if not left:
                    raise
                await trio.sleep(OPEN_PAUSE_S)


def _ready(app: App, state: Path, as_json: bool) -> None:
    names = sorted(app.definitions)
    if as_json:
        render.print_json(
            {"ready": True, "pid": os.getpid(), "state": str(state.absolute()), "workflows": names},
            pretty=False,
        )
    else:
        click.echo(f"ready: process {os.getpid()} serves {', '.join(names)} from {state}; Ctrl-C stops it")
