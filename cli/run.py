"""`perdure run`: one instance, to its end, in this process or, where one owns the folder, in that.

Invariants:
    The result alone goes to stdout; the view and all words go to stderr.
    However this ends, what was under way goes on with the command that is printed.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import uuid
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import trio

from perdure import (
    DecodingError,
    InstanceDeadError,
    InstanceError,
    InstanceExistsError,
    InstanceNotFoundError,
    InstanceStatus,
    InvalidArgumentError,
    Runtime,
    StateLockedError,
    UnknownWorkflowError,
    open_runtime,
)
from perdure.cli import exits, options, picture, render
from perdure.cli.live import Follower, Local, View, open_view
from perdure.cli.options import Target
from perdure.cli.signals import Stop
from perdure.engine.remote import ENDED, Remote, open_remote
from perdure.engine.visitor import stored_params

PARAMS: Final = "SELECT params FROM instance"


class Job(NamedTuple):
    """What is to be run. `params` are JSON text, None where none were given."""

    target: Target
    params: str | None
    id: str
    new_id: bool
    state: Path
    replay: Any
    durability: Any

    @property
    def key(self) -> str:
        """The instance as it is named on the command line."""
        return f"{self.target.workflow}/{self.id}"


class Ending(NamedTuple):
    """How an instance ended: its status, its result as stored, its error as stored."""

    status: str
    output: Any
    output_bytes: int | None
    error: str | None


@click.command()
@click.argument("workflow", metavar="FILE:CLASS")
@click.option(
    "--params", metavar="JSON|@FILE|-", help="What the workflow is given, as JSON, from a file or stdin."
)
@click.option(
    "--id", "instance_id", help="The instance's id, a random one by default; one that exists goes on."
)
@options.state_option
@click.option("--replay", type=click.Choice(["warm", "always"]), default="warm", show_default=True,
              help="`always` calls run() from the top after every recorded step.")  # fmt: skip
@click.option("--durability", type=click.Choice(["full", "process"]), default="full", show_default=True,
              help="`process` skips syncs: survives the death of the process, not the machine.")  # fmt: skip
@options.json_option
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
def run(
    *, workflow: str, params: str | None, instance_id: str | None, state: Path, replay: Any, durability: Any,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Run one instance to its end, with a live view of its steps. Its result goes to stdout as JSON.

    Ctrl-C parks it; the same command with its --id goes on where it was, and so does one after a
    crash. An id that has finished gives its result again. Where a `perdure serve` owns the state
    folder, the instance is created there and followed.

    \b
    perdure run hello.py:Hello --params '{"name": "Ada"}'
    perdure run audit.py:Audit --params @params.json --id nightly-7
    echo '"tides"' | perdure run research.py --params -
    """
    target = options.load_target(workflow)
    value = options.read_json(params, "--params")
    if instance_id == "":
        raise InvalidArgumentError("--id is empty: leave it out for a random id")
    known = instance_id is not None and params is None
    text = None if known else stored_params(target.app, target.workflow, value)
    job = Job(target, text, instance_id or uuid.uuid4().hex, instance_id is None, state, replay, durability)
    again = _command_line(job)
    stop = Stop(hard=f"stopped at once: attempts under way are lost as in a crash; it goes on with: {again}")
    with stop, open_view(job.key, quiet=quiet or as_json) as view:
        ending = trio.run(partial(_run, job, view, stop))
    if ending is None:
        click.echo(f"perdure: {view.left.format(job.key)} {again}", err=True)
        raise SystemExit(exits.after_signal(stop.signal))
    _tell(job, ending, as_json=as_json)


def _command_line(job: Job) -> str:
    """Return the command that goes on with this instance."""
    words = ["perdure", "run", job.target.text, "--id", job.id]
    source = click.get_current_context().get_parameter_source("state")
    if source is not None and source.name == "COMMANDLINE":
        words += ["--state", str(job.state)]
    return shlex.join(words)


# -- running -------------------------------------------------------------------------------


async def _run(job: Job, view: View, stop: Stop) -> Ending | None:
    """Return how the instance ended, or None where a signal came first."""
    ending: Ending | None = None
    with stop.scope():
        while ending is None:
            try:
                async with open_runtime(
                    job.state, job.target.app, replay=job.replay, durability=job.durability
                ) as runtime:
                    ending = await _own(job, view, runtime)
            except StateLockedError:
                ending = await _follow(job, view)
            job = job._replace(new_id=False)  # a second turn finds what the first one created
    return ending


async def _own(job: Job, view: View, runtime: Runtime) -> Ending:
    """Run the instance in this process."""
    instance = await _created(job, runtime)
    view.left = "parked {}; it goes on with:"
    source = Local(runtime, instance)
    if (await instance.status()).status not in ENDED:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.follow, source)
            with contextlib.suppress(InstanceError, DecodingError):  # how it ended is read from its file
                await instance.result()
            nursery.cancel_scope.cancel()
        await view.last(source)
    status = await instance.status()
    _refuse_dead(job.key, status)
    return await _ending(instance.sql)


def _refuse_dead(key: str, status: InstanceStatus) -> None:
    if status.status == "dead":
        raise InstanceDeadError(
            f"{key} is parked as dead: {status.reason}; `perdure resume {key}` tries it again"
        )


async def _created(job: Job, runtime: Runtime) -> Any:
    """Return the instance: the one that has this id, if its params are these, else a new one."""
    if not job.new_id:
        try:
            instance = await runtime.get(job.target.workflow, job.id)
        except InstanceNotFoundError:
            pass
        else:
            await _check_params(job, instance.sql)
            return instance
    params = json.loads(job.params) if job.params is not None else None
    return await runtime.create(job.target.workflow, params=params, id=job.id)


async def _follow(job: Job, view: View) -> Ending | None:
    """Have the owner of the folder run the instance, and follow it; None once nobody owns the folder."""
    async with open_remote(job.state, known=job.target.app, make=True) as remote:
        key, new = await _created_there(job, remote)
        owner = f"process {remote.owner()}"
        view.left = f"{{}} goes on in {owner}; follow it again with:"
        view.note = f"Ctrl-C leaves it to {owner}"
        async with remote.read(key) as file:
            seen = file.status.status in ENDED and not new
        if not seen and not await view.follow(Follower(remote, key)):
            return None
        async with remote.read(key) as file:
            _refuse_dead(job.key, file.status)
            return await _ending(file.fetch)


async def _created_there(job: Job, remote: Remote) -> tuple[Any, bool]:
    """Return the instance, and whether this command has created it."""
    if not job.new_id:
        try:
            key = remote.resolve(job.key)
        except InstanceNotFoundError:
            pass
        else:
            await remote.make_file(key)
            async with remote.read(key) as file:
                await _check_params(job, file.fetch)
            return key, False
    text = job.params if job.params is not None else stored_params(job.target.app, job.target.workflow, None)
    try:
        key = await remote.create(job.target.workflow, params=text, instance_id=job.id, who=options.who())
    except UnknownWorkflowError as error:
        raise UnknownWorkflowError(
            f"process {remote.owner()}, which owns {job.state}, does not serve {job.target.workflow}"
            f" ({error}): serve its file there too, or choose another folder with --state DIR"
        ) from error
    return key, True


async def _check_params(job: Job, fetch: picture.Fetch) -> None:
    """Refuse to go on with an instance that was given other params."""
    if job.params is None:
        return
    (row,) = await fetch(PARAMS)
    stored = row["params"]
    if json.loads(stored if stored is not None else "null") != json.loads(job.params):
        raise InstanceExistsError(
            f"{job.key} exists already, with other params: leave --params out to go on with it, or choose"
            " another --id"
        )


async def _ending(fetch: picture.Fetch) -> Ending:
    (row,) = await fetch("SELECT status, output, output_bytes, error FROM instance")
    return Ending(row["status"], row["output"], row["output_bytes"], row["error"])


# -- telling -------------------------------------------------------------------------------


def _tell(job: Job, ending: Ending, *, as_json: bool) -> None:
    """Print the result, or say why there is none."""
    result = render.loaded(ending.output)
    if as_json:
        error = picture.error_line(ending.error) or None
        render.print_json({"instance": job.key, "status": ending.status, "result": result, "error": error})
    elif ending.status == "complete":
        _print_result(job, ending, result)
    if ending.status != "complete":
        if exits.wants_traceback() and ending.error:
            click.echo(json.loads(ending.error).get("traceback", ""), err=True, nl=False)
        what = f"failed: {picture.error_line(ending.error)}" if ending.error else f"was {ending.status}"
        click.echo(f"perdure: {job.key} {what}; `perdure describe {job.id}` shows its steps", err=True)
        raise SystemExit(exits.FAILED)


def _print_result(job: Job, ending: Ending, result: Any) -> None:
    if isinstance(result, bytes):
        sys.stdout.buffer.write(result)
    elif result is None and ending.output is None and ending.output_bytes:
        click.echo(
            f"perdure: the result has {ending.output_bytes} bytes: read it from {job.key} in Python", err=True
        )
    else:
        render.print_json(result, pretty=sys.stdout.isatty())
