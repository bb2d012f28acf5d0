"""The live view of `perdure run`: a picture that is drawn again whenever the instance moves.

On a terminal it stays in place; elsewhere each fact of the history is a line. Both go to stderr.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncGenerator, Generator
from typing import Any, Final, Protocol

import trio
from rich.console import Console
from rich.live import Live

from perdure import InstanceStatus, Runtime
from perdure.cli import picture, render
from perdure.cli.watch import line
from perdure.engine.folder import StateFolder
from perdure.engine.reader import file_signature
from perdure.engine.remote import ENDED, Remote
from perdure.engine.story import Story

REDRAW_S: Final = 0.1
STEPS_MAX: Final = 200


class Source(Protocol):
    """Where a view finds its instance."""

    def signature(self) -> object:
        """Return what differs once there is something new."""
        ...

    def read(self) -> contextlib.AbstractAsyncContextManager[tuple[str, picture.Fetch | None]]:
        """Give the instance's status, and a way to ask its file where there is one."""
        ...

    def is_over(self, status: str) -> bool:
        """Whether there is nothing more to see."""
        ...


class Local:
    """An instance that this process runs."""

    def __init__(self, runtime: Runtime, instance: Any) -> None:
        self._instance = instance
        self._path = StateFolder(runtime.path).instance(instance.key)

    def signature(self) -> object:
        """Return what differs once its file has been written to."""
        return file_signature(self._path)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncGenerator[tuple[str, picture.Fetch | None], None]:
        """Give its status and, where there is a file, its `sql`."""
        status: InstanceStatus = await self._instance.status()
        yield status.status, self._instance.sql if self._path.exists() else None

    def is_over(self, status: str) -> bool:
        """Whether it is over: never, whoever waits for the result says when."""
        del status
        return False


class Follower:
    """An instance that another process runs."""

    def __init__(self, remote: Remote, key: Any) -> None:
        self._remote = remote
        self._key = key

    def signature(self) -> object:
        """Return what differs once its file, its row or its folder's owner has changed."""
        row = self._remote.find(self._key)
        path = self._remote.folder.instance(self._key)
        return None if row is None else row.status, self._remote.owner() is None, file_signature(path)

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncGenerator[tuple[str, picture.Fetch | None], None]:
        """Give its status and, where there is a file, a way to ask that, once its owner has synced it."""
        async with self._remote.read(self._key) as file:
            yield file.status.status, file.fetch if file.has_file else None

    def is_over(self, status: str) -> bool:
        """Whether it has ended, or its owner has."""
        return status in ENDED or self._remote.owner() is None


class View:
    """What is shown while an instance runs.

    `left` is what to say about it if a signal ends this, `note` what such a signal does.
    """

    def __init__(self, key: str, live: Live | None, console: Console | None) -> None:
        self.left = "{} stops before it begins; begin it with:"
        self.note = "Ctrl-C parks it"
        self._key = key
        self._live = live
        self._console = console
        self._status = "queued"
        self._picture: picture.Picture | None = None
        self._story = Story(key)

    async def follow(self, source: Source) -> bool:
        """Show what happens until it is over; False where that is because its owner has gone."""
        seen: object = None
        while True:
            now = source.signature()
            if now != seen:
                seen = now
                await self.last(source)
                if source.is_over(self._status):
                    return self._status in ENDED
            self._draw()
            await trio.sleep(REDRAW_S)

    async def last(self, source: Source) -> None:
        """Read and show what there is now."""
        async with source.read() as (status, fetch):
            self._status = status
            if fetch is not None and self._live is not None:
                self._picture = await picture.take(fetch, steps_max=STEPS_MAX)
            elif fetch is not None and self._console is not None:
                while entries := await self._story.take(fetch):
                    for entry in entries:
                        self._console.print(line(entry), soft_wrap=True)
        self._draw()

    def _draw(self) -> None:
        if self._live is None:
            return
        height = self._live.console.height
        note = self.note if self._status not in ENDED else ""
        if self._status == "paused":
            note = f"`perdure resume {self._key}` lets it go on"
        drawn = picture.live(self._key, self._status, self._picture, height=height, note=note)
        self._live.update(drawn, refresh=True)


@contextlib.contextmanager
def open_view(key: str, *, quiet: bool) -> Generator[View, None, None]:
    """Open a view on stderr: in place on a terminal, line by line elsewhere, nothing where `quiet`."""
    console = render.console(sys.stderr)
    if quiet:
        yield View(key, None, None)
    elif not console.is_terminal:
        yield View(key, None, console)
    else:
        live = Live(
            console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty(), vertical_overflow="crop"
        )
        with live:
            yield View(key, live, console)
