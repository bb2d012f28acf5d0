"""`perdure call`: a method of a running instance, called from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import click
import trio

from perdure.cli import options, render
from perdure.engine.remote import open_remote
from perdure.errors import InvalidArgumentError


@click.command()
@click.argument("instance")
@click.argument("method")
@click.argument("arguments", required=False, metavar="[ARGUMENTS]")
@options.state_option
@options.json_option
@options.timeout_option
def call(
    *, instance: str, method: str, arguments: str | None, state: Path, as_json: bool, timeout_s: float
) -> None:
    """Call a method of a running instance: any public async method of its workflow.

    Its result is printed as JSON.
    ARGUMENTS is JSON: a list of arguments, or an object of named ones; @FILE reads it from a file, - from
    stdin. The process that serves the instance carries the call out, at most once.

    \b
    perdure call Order/17 how_many
    perdure call Order/17 set_address '["12 Quay Street"]'
    perdure call Order/17 set_address '{"address": "12 Quay Street", "note": "ring twice"}'
    """
    read = options.read_json(arguments, "ARGUMENTS")
    if not isinstance(read, list | dict | None):
        raise InvalidArgumentError("ARGUMENTS must be a JSON list of arguments, or an object of named ones")
    given = cast("list[Any] | dict[str, Any]", [] if read is None else read)
    key, value = trio.run(_call, state, instance, method, given, timeout_s)
    if as_json:
        render.print_json({"instance": key, "method": method, "value": json.loads(value)})
    else:
        click.echo(value)


async def _call(
    state: Path, instance: str, method: str, given: list[Any] | dict[str, Any], timeout_s: float
) -> tuple[str, str]:
    async with open_remote(state) as remote:
        key = remote.resolve(instance)
        return str(key), await remote.call(key, method, given, who=options.who(), timeout_s=timeout_s)
