"""`perdure create`: an instance that a serving process runs, now or later."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from perdure import App, InstanceExistsError, InvalidArgumentError, UnknownWorkflowError
from perdure.cli import options, render
from perdure.cli.batch import create_all
from perdure.engine.remote import open_remote
from perdure.engine.visitor import Options, read_options, stored_params


@click.command()
@click.argument("workflow", metavar="FILE:CLASS|NAME")
@click.option(
    "--params", metavar="JSON|@FILE|-", help="What the workflow is given, as JSON, from a file or stdin."
)
@click.option(
    "--id", "instance_id", help="The instance's id, unique within its workflow; a random one by default."
)
@click.option(
    "--if-exists",
    type=click.Choice(["fail", "attach", "restart"]),
    default="fail",
    show_default=True,
    help="What to do where the id is in use: refuse, leave it as it is, or end it and begin anew.",
)
@click.option(
    "--batch", metavar="FILE|-", help='Create one for each line: JSON params, or {"id": ..., "params": ...}.'
)
@click.option("--at", metavar="TIME", help="Start then, not at once: ISO 8601 with a time zone.")
@click.option("--timeout", metavar="DURATION", help="How long the whole run may take, from its creation.")
@click.option("--tag", "tags", multiple=True, help="A word to find it by; repeatable.")
@click.option("--event", metavar="TYPE[=JSON]", help="An event that is there before the first step runs.")
@click.option(
    "--retention",
    metavar="DURATION|JSON",
    help='How long it is kept once it has ended: "30 days", or {"complete": "1 day", "archive": true}.',
)
@click.option("--priority", type=int, default=0, show_default=True, help="The highest starts first.")
@click.option(
    "--wait",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the process that owns the folder may take.",
)
@options.state_option
@options.json_option
def create(
    *,
    workflow: str,
    params: str | None,
    instance_id: str | None,
    if_exists: Any,
    priority: int,
    batch: str | None,
    at: str | None,
    timeout: str | None,
    tags: tuple[str, ...],
    event: str | None,
    retention: str | None,
    timeout_s: float,
    state: Path,
    as_json: bool,
) -> None:
    """Create an instance. It stands durably in the state folder when this returns.

    A process that serves the folder starts it at once; without one it waits in the queue for
    `perdure serve`. The NAME alone will do where a process serves the workflow.

    \b
    perdure create audit.py:Audit --params '{"path": "."}'
    perdure create Audit --id nightly-7 --params @params.json
    echo '"Ada"' | perdure create hello.py:Hello --params -
    perdure create Audit --at 2030-01-31T09:00+01:00 --timeout '2 days' --tag nightly
    perdure create Approval --event 'approve={"by": "Ada"}' --retention '30 days'
    perdure create audit.py:Audit --batch folders.jsonl

    With --batch all lines are checked before the first is created; a line whose id exists already is
    left out, so that a batch with ids may be repeated.
    """
    how = read_options(
        at=at, timeout=timeout, tags=tags, event=_event(event), retention=retention, priority=priority
    )
    app, name = _workflow(workflow)
    if batch is not None:
        others = (params, instance_id, at, timeout, event, retention)
        if any(other is not None for other in others) or if_exists != "fail" or tags or priority:
            raise InvalidArgumentError("--batch has params and ids in its lines: leave out the other options")
        owner = create_all(state, app, name, batch, as_json=as_json, timeout_s=timeout_s)
        _say_who_runs_it(workflow, state, owner, as_json=as_json)
        return
    value = options.read_json(params, "--params")
    if app is not None:
        text = stored_params(app, name, value)
    else:
        text = "null" if params is None else options.as_json_text(value)
    key, owner = trio.run(
        partial(
            _create,
            state,
            (app, name),
            text,
            instance_id=instance_id,
            if_exists=if_exists,
            how=how,
            timeout_s=timeout_s,
        )
    )
    if as_json:
        render.print_json({"instance": str(key), "workflow": key.workflow, "id": key.id, "state": str(state)})
        return
    click.echo(str(key))
    _say_who_runs_it(workflow, state, owner, as_json=as_json)


def _event(text: str | None) -> tuple[str, str] | None:
    """Return the type of an event and its payload, as JSON text."""
    if text is None:
        return None
    type_, given, payload = text.partition("=")
    return type_, options.as_json_text(options.read_json(payload, "--event") if given else None)


def _say_who_runs_it(workflow: str, state: Path, owner: int | None, *, as_json: bool) -> None:
    if owner is None and not as_json:
        click.echo(f"queued: `perdure serve {_file(workflow)} --state {state}` runs it", err=True)


def _workflow(text: str) -> tuple[App | None, str]:
    if ":" in text or text.endswith(".py") or "/" in text:
        target = options.load_target(text)
        return target.app, target.workflow
    return None, text


def _file(text: str) -> str:
    return text.rpartition(":")[0] or text


async def _create(
    state: Path,
    workflow: tuple[App | None, str],
    text: str,
    *,
    instance_id: str | None,
    if_exists: Any,
    how: Options,
    timeout_s: float,
) -> tuple[Any, int | None]:
    app, name = workflow
    async with open_remote(state, known=app, make=app is not None) as remote:
        owner = remote.owner()
        if app is None and owner is None:
            raise UnknownWorkflowError(
                f"no process serves {state}, so nobody knows {name}: say where it is, as in"
                f" `perdure create FILE:{name}`"
            )
        try:
            key = await remote.create(
                name,
                params=text,
                instance_id=instance_id,
                if_exists=if_exists,
                who=options.who(),
                timeout_s=timeout_s,
                **how,
            )
        except InstanceExistsError as error:
            if if_exists == "attach":  # it exists with other params, and the text says so
                raise
            raise InstanceExistsError(
                f"{error.workflow or name}/{error.instance_id or instance_id} exists already: choose another"
                " --id, or say --if-exists attach or restart",
                workflow=error.workflow,
                instance_id=error.instance_id,
            ) from error
        return key, owner
