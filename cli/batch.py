"""`perdure create --batch`: many instances from JSON lines.

The lines are read and checked whole before anything is created, and then sent in shares, each of
which is created in one transaction. Repeating a batch whose lines have ids creates what is missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, cast

import click
import msgspec
import trio
from rich.progress import Progress

from perdure import App, InvalidArgumentError
from perdure.cli import render
from perdure.engine.inbox import BatchLine
from perdure.engine.remote import Remote, open_remote
from perdure.engine.visitor import stored_params

SHARE_LINES_MAX: Final = 1_000
SHARE_BYTES_MAX: Final = 1_000_000
"""What one transaction creates at most: it stands in the catalog's inbox as one command."""


def create_all(
    state: Path, app: App | None, name: str, source: str, *, as_json: bool, timeout_s: float
) -> int | None:
    """Create an instance for each line of the file `source` (`-` is stdin) and print their names.

    Returns the process that runs them, or None where nobody does. Raises what `create_batch` raises.
    """
    lines = list(_lines(source))
    if app is not None:
        for number, line in enumerate(lines, 1):
            _check(app, name, line, number)
    created, owner = trio.run(_create, state, app, name, lines, timeout_s)
    skipped = len(lines) - len(created)
    if as_json:
        render.print_json({"workflow": name, "created": created, "skipped": skipped, "state": str(state)})
        return owner
    for instance_id in created:
        click.echo(f"{name}/{instance_id}")
    also = f"; {skipped:,} exist already and were left as they are" if skipped else ""
    click.echo(f"created {len(created):,}{also}", err=True)
    return owner


def _lines(source: str) -> Iterator[BatchLine]:
    if source == "-":
        yield from _parsed(sys.stdin)
        return
    try:
        with Path(source).expanduser().open(encoding="utf-8") as file:
            yield from _parsed(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidArgumentError(f"--batch: the file {source} cannot be read: {reason}") from error


def _parsed(file: IO[str]) -> Iterator[BatchLine]:
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InvalidArgumentError(
                f"--batch: line {number} is not JSON ({error}); nothing was created"
            ) from error
        yield _line(value, number)


def _line(value: Any, number: int) -> BatchLine:
    """Return what a line asks for: an object of `params`, with `id` or `priority`; all else is params."""
    instance_id: Any = None
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    priority: Any = 0
    if "params" in fields and set(fields) <= {"id", "params", "priority"}:
        instance_id, value = fields.get("id"), fields["params"]
        priority = fields.get("priority", 0)
    if instance_id is not None and not isinstance(instance_id, str):
        raise InvalidArgumentError(f"--batch: line {number}: an id is text, not {instance_id!r}")
    if type(priority) is not int:
        raise InvalidArgumentError(f"--batch: line {number}: a priority is a whole number, not {priority!r}")
    text = json.dumps(value, ensure_ascii=False).encode()
    return BatchLine(params=msgspec.Raw(text), id=instance_id, priority=priority)


def _check(app: App, name: str, line: BatchLine, number: int) -> None:
    try:
        stored_params(app, name, msgspec.json.decode(line.params))
    except InvalidArgumentError as error:
        error.args = (f"--batch: line {number}: {str(error).rstrip('.')}; nothing was created",)
        raise


async def _create(
    state: Path, app: App | None, name: str, lines: list[BatchLine], timeout_s: float
) -> tuple[list[str], int | None]:
    created: list[str] = []
    async with open_remote(state, known=app, make=app is not None) as remote:
        owner = _require_owner(remote, app, name)
        console = render.console(sys.stderr)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("creating", total=len(lines))
            for share in _shares(lines):
                created += await remote.create_batch(name, share, timeout_s=timeout_s)
                progress.advance(task, len(share))
        return created, owner


def _require_owner(remote: Remote, app: App | None, name: str) -> int | None:
    owner = remote.owner()
    if app is None and owner is None:
        raise InvalidArgumentError(
            f"no process serves {remote.folder.root}, so nobody knows {name}: say where it is, as in"
            f" `perdure create FILE:{name} --batch ...`"
        )
    return owner


def _shares(lines: Iterable[BatchLine]) -> Iterator[list[BatchLine]]:
    share: list[BatchLine] = []
    size = 0
    for line in lines:
        share.append(line)
        size += len(bytes(line.params))
        if len(share) == SHARE_LINES_MAX or size >= SHARE_BYTES_MAX:
            yield share
            share, size = [], 0
    if share:
        yield share
