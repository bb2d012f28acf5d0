"""`perdure serve`: a long-running runtime that other `perdure` commands reach through its folder."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from perdure import App, InvalidArgumentError, PerdureError, Runtime, StateLockedError, open_runtime
from perdure.cli import options, render
from perdure.cli.signals import Stop
from perdure.engine.app import merge_apps
from perdure.limits import WORKERS_MAX

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
@click.option(
    "--workers",
    type=click.IntRange(min=1, max=WORKERS_MAX),
    default=1,
    show_default=True,
    metavar="N",
    help="Run the instances in N processes, to use N cores. SIGHUP restarts them one by one.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log what workflows say at level INFO, too.")
def serve(
    *,
    files: tuple[str, ...],
    state: Path,
    as_json: bool,
    replay: Any,
    durability: Any,
    workers: int,
    verbose: bool,
) -> None:
    """Run the instances of a state folder until stopped.

    Says in one line when it is ready. Ctrl-C or SIGTERM parks every instance, commits, and ends
    within the app's `shutdown_grace_s` (10 s by default); a second one ends at once. What was under
    way goes on with the next `serve`.

    \b
    perdure serve agents.py --state /var/lib/agents
    perdure create ResearchAgent --params '{"topic": "tides"}'     from another terminal

    With --workers N this process runs nothing itself: it starts N others, which share the folder's
    instances, and starts one anew where one dies; the others take over what that one had. SIGHUP
    replaces them one by one, each loading the files anew, and loses no step.

    \b
    perdure serve agents.py --workers 4
    kill -HUP 4711        the process that `ready` named: new code, without a pause
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
        trio.run(
            partial(
                _serve,
                app,
                state,
                stop,
                replay=replay,
                durability=durability,
                workers=workers,
                as_json=as_json,
            )
        )
    click.echo(f"perdure: stopped; `perdure serve {' '.join(files)}` goes on", err=True)


async def _serve(
    app: App, state: Path, stop: Stop, *, replay: Any, durability: Any, workers: int, as_json: bool
) -> None:
    deadline_s = trio.current_time() + OPEN_TRIES_S
    with stop.scope():
        while True:
            try:
                async with open_runtime(
                    state, app, replay=replay, durability=durability, workers=workers
                ) as runtime:
                    await _until_stopped(runtime, workers, partial(_ready, app, state, workers, as_json))
            except StateLockedError as error:
                # Workers whose supervisor has died end within the grace that they give their steps.
                grace_s = app.limits.shutdown_grace_s if error.is_orphaned else 0
                if trio.current_time() > deadline_s + grace_s:
                    raise
                await trio.sleep(OPEN_PAUSE_S)


async def _until_stopped(runtime: Runtime, workers: int, ready: Callable[[], None]) -> None:
    """Say `ready` and serve; with several workers SIGHUP, which is listened for by then, restarts them."""
    if workers == 1:
        ready()
        await trio.sleep_forever()
    with trio.open_signal_receiver(signal.SIGHUP) as signals:
        ready()
        async for _ in signals:
            click.echo("perdure: restarting the workers one by one", err=True)
            try:
                await runtime.restart_workers()
            except PerdureError as error:
                click.echo(f"perdure: not restarted: {error}; the workers that run go on", err=True)
            else:
                click.echo("perdure: all workers are new", err=True)


def _ready(app: App, state: Path, workers: int, as_json: bool) -> None:
    names = sorted(app.definitions)
    if as_json:
        render.print_json(
            {
                "ready": True,
                "pid": os.getpid(),
                "state": str(state.absolute()),
                "workflows": names,
                "workers": workers,
            },
            pretty=False,
        )
    else:
        by = f" with {workers} workers" if workers > 1 else ""
        click.echo(
            f"ready: process {os.getpid()} serves {', '.join(names)} from {state}{by}; Ctrl-C stops it"
        )
