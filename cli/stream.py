"""`perdure stream`: a stream of an instance, as it is written."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import trio

from perdure.cli import options, render
from perdure.engine.remote import ENDED, Remote, open_remote
from perdure.engine.streams import Rewound, StreamChunk, StreamCursor

WITHHELD: Final = "[sensitive]"


@click.command()
@click.argument("instance")
@click.argument("name")
@options.state_option
@options.json_option
@options.reveal_option
@click.option("--from", "start", type=int, default=0, show_default=True, metavar="INDEX",
              help="Begin at this chunk; below 0 that many chunks before the end.")  # fmt: skip
@click.option("--follow/--no-follow", default=True, help="Wait for more, or end with what there is.")
def stream(
    *, instance: str, name: str, state: Path, as_json: bool, reveal: bool, start: int, follow: bool
) -> None:
    """Print a stream, or the result of a step that yields, while it is written.

    Text and bytes are printed as they are, one chunk behind the other; any other chunk is a line of
    JSON. With --json each chunk is a line that has its index: what went to --from goes on from there.
    When an attempt fails, what it has written is superseded: that is told on stderr, with --json by a
    line {"rewound": INDEX}, and what was printed from that chunk on is to be forgotten.

    \b
    perdure stream Writer/essay tokens
    perdure stream essay tokens --from -20 --no-follow
    perdure stream essay tokens --json | jq -r .chunk
    """
    trio.run(_stream, state, instance, (name, start, follow), Printer(as_json=as_json, reveal=reveal))


async def _stream(state: Path, instance: str, what: tuple[str, int, bool], printer: Printer) -> None:
    name, start, follow = what
    async with open_remote(state) as remote:
        key = remote.resolve(instance)
        cursor = StreamCursor(key, name, start)
        told = False
        async with contextlib.aclosing(remote.changes(key)) as changes:
            async for _ in changes:
                while await _take(remote, cursor, printer, follow=follow):
                    pass
                if cursor.is_over:
                    return
                owned = remote.owner() is not None
                if not owned and not told:
                    note = f"perdure: no process runs {state} now: waiting for `perdure serve FILE`"
                    click.echo(note, err=True)
                told = not owned


async def _take(remote: Remote, cursor: StreamCursor, printer: Printer, *, follow: bool) -> bool:
    """Print what there is, about a megabyte of it at most; whether there may be more."""
    async with remote.read(cursor.key) as file:
        has_ended = not follow or file.status.status in ENDED
        found = await cursor.take(file.fetch if file.has_file else _no_rows, has_ended=has_ended)
    printer.show(cursor, found)
    return bool(found) and not cursor.is_over


async def _no_rows(_query: str, *_bindings: Any) -> Sequence[Any]:
    return ()


class Printer:
    """Prints chunks: as they are, or each as a line of JSON."""

    def __init__(self, *, as_json: bool, reveal: bool) -> None:
        self._as_json = as_json
        self._reveal = reveal

    def show(self, cursor: StreamCursor, found: Sequence[StreamChunk | Rewound]) -> None:
        """Print what has come."""
        withheld = cursor.is_sensitive and not self._reveal
        for entry in found:
            if isinstance(entry, Rewound):
                self._rewound(entry)
            elif self._as_json:
                render.print_json(_line(entry, withheld=withheld), pretty=False)
            else:
                _write(WITHHELD + "\n" if withheld else _plain(entry.chunk))
        sys.stdout.flush()

    def _rewound(self, entry: Rewound) -> None:
        if self._as_json:
            render.print_json({"rewound": entry.index}, pretty=False)
        else:
            text = f"an attempt has not succeeded: what it wrote from chunk {entry.index} on is superseded"
            click.echo(f"\nperdure: {text}", err=True)


def _line(entry: StreamChunk, *, withheld: bool) -> dict[str, Any]:
    chunk = None if withheld else render.loaded(entry.chunk)
    line = {"index": entry.index, "attempt": entry.attempt, "written_at": entry.written_at, "chunk": chunk}
    return line | {"sensitive": True} if withheld else line


def _plain(chunk: str | bytes) -> str | bytes:
    if isinstance(chunk, bytes):
        return chunk
    value = msgspec.json.decode(chunk)
    return value if isinstance(value, str) else f"{chunk}\n"


def _write(text: str | bytes) -> None:
    click.echo(text, nl=False)
