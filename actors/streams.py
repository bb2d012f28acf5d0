"""`step.writable`: a durable stream that is read while it is written.

The stream is a step of its own, open from the `async with` to its end. What writes to it are step
functions, through the writer that they are handed: a recorded step does not run again, so it does not
write again. What an attempt that did not succeed has written is void (`storage/streams.py`), and
readers are told. `run()` may write too: it is called again from the top and writes again, so what it has
written before is compared with what it writes now, and not written twice.

Prior art: Vercel's `getWritable`, whose handle can only be passed on, and whose streams are separate
from the run's own record; here chunks are committed with the steps that write them.

Invariants:
    A chunk is in the file's open transaction when `write` returns, and safe before more than
    `STREAM_BYTES_WAITING_MAX` of them wait.
    Only an attempt under way, or `run()`, writes; the writer of a closed stream refuses.
    A stream is closed by the end of its `async with`, and never by a suspension of the run.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

import trio

from perdure.actors.calls import StepCall
from perdure.actors.context import CURRENT
from perdure.actors.crossing import Crossing
from perdure.actors.run import Run
from perdure.errors import (
    AmbiguousStepError,
    DivergenceError,
    EncodingError,
    InvalidArgumentError,
    WorkflowCodeError,
)
from perdure.limits import STREAM_BYTES_WAITING_MAX
from perdure.storage.codec import Coder
from perdure.storage.journal import Step
from perdure.storage.records import Stored
from perdure.storage.streams import Extent, check_chunk

T = TypeVar("T")


class StreamWriter(Generic[T]):
    """What a stream is written with. Hand it to step functions, or use it in `run()` itself."""

    __slots__ = (
        "_bytes", "_chunks", "_closed", "_coder", "_crossing", "_is_own", "_place", "_run", "_sensitive",
        "_step", "_task", "_turn",
    )  # fmt: skip

    def __init__(self, run: Run, step: Step, coder: Coder, *, sensitive: bool) -> None:
        self._run = run
        self._step = step
        self._coder = coder
        self._sensitive = sensitive
        self._is_own = step.kind == "stream"  # else it takes the result of the step itself
        self._crossing = Crossing(self._is_unsettled, self._settle)
        self._closed = False
        self._chunks = self._bytes = 0
        self._task: trio.lowlevel.Task | None = None
        self._turn: int | None = None
        self._place: int | None = 0

    def __repr__(self) -> str:
        return f"<StreamWriter of {self.name!r}>"

    def __reduce__(self) -> Any:
        raise InvalidArgumentError(
            f"the stream {self.name!r} cannot be written in a process step: write it in a function that runs"
            " here, with what the process step returns"
        )

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._step.name

    @property
    def extent(self) -> Extent:
        """What was written through this object."""
        return Extent(chunks=self._chunks, bytes=self._bytes)

    async def write(self, chunk: T) -> None:
        """Write one chunk: text, bytes, or any value that can be stored. On trio and on asyncio.

        It is readable once it is durable, within a tick. Waits where half a megabyte is not safe yet.
        Raises `EncodingError`; `WorkflowCodeError` once the stream is closed or the attempt has ended.

        >>> async with step.writable("tokens") as out:
        ...     await out.write("high")
        ...     await out.write(" water")
        """
        if CURRENT.get(None) is None:
            await self._write_in_run(chunk)
        else:
            await self._crossing.call(self._put, self._writer(), chunk)

    def write_sync(self, chunk: T) -> None:
        """As `write`, for plain functions, which run in a thread."""
        self._crossing.call_sync(self._put, self._writer(), chunk)

    def close(self) -> None:
        """Refuse what is written from now on. For the runtime."""
        self._closed = True

    # -- inside ----------------------------------------------------------------------------

    def _writer(self) -> tuple[int, int]:
        """Return the step and attempt that is calling."""
        place: tuple[int, int] | None = getattr(CURRENT.get(None), "place", None)
        if place is None:
            raise WorkflowCodeError(
                f"the stream {self.name!r} is written by step functions and by run(), and by nothing else"
            )
        return place

    def _put(self, writer: tuple[int, int], chunk: T) -> None:
        self._refuse_closed()
        self._add(writer, self._stored(chunk))

    def _add(self, writer: tuple[int, int], stored: Stored) -> None:
        journal, step = self._run.journal, self._step
        if step.status != "running":  # a restart has its writers run again
            journal.reopen_stream(step)
        journal.streams.add(step.seq, writer, stored, at_ms=self._run.host.clock.wall_ms())

    def _stored(self, chunk: T) -> Stored:
        try:
            stored, _ = self._coder.record(chunk)
            size = check_chunk(stored)
        except EncodingError as error:
            if not self._sensitive:
                raise
            text = f"a chunk of {self.name!r} cannot be stored as it is (sensitive, so not shown)"
            raise EncodingError(text, path=error.path) from None
        self._chunks += 1
        self._bytes += size
        return stored

    def _refuse_closed(self) -> None:
        if self._closed:
            raise WorkflowCodeError(
                f"the stream {self.name!r} is closed: write to it inside its `async with step.writable(...)`"
            )

    async def _write_in_run(self, chunk: T) -> None:
        run = self._run
        self._refuse_closed()
        self._require_one_task()
        streams, step = run.journal.streams, self._step
        if self._turn is None:
            self._turn = streams.turn_of_run(step.seq)
        writer = step.seq, self._turn
        stored = self._stored(chunk)
        found = None if self._place is None else streams.next_written(step.seq, writer, self._place)
        await run.admit(recorded=found is not None)
        if found is None:
            self._place = None
            await self._crossing.call(self._add, writer, stored)
            return
        self._place = found[0] + 1
        if found[1] != stored:
            run.diverged(
                "arguments",
                DivergenceError(
                    f"run() writes another chunk to the stream {self.name!r} than is recorded at its place"
                    f" {found[0]}; what is recorded stays: let a step function write what differs",
                    recorded=f"chunk {found[0]}",
                    requested="another chunk",
                ),
                serious=False,
            )

    def _require_one_task(self) -> None:
        """Refuse a second branch of `run()`: nobody could tell on a replay whose chunk came first."""
        task = trio.lowlevel.current_task()
        if self._task is None:
            self._task = task
        elif self._task is not task:
            raise AmbiguousStepError(
                f"two branches of run() write to the stream {self.name!r} themselves, so that their order"
                " would be another on a replay: let their step functions write, or open a stream for each"
            )

    def _is_unsettled(self) -> bool:
        return not self._run.over and self._run.journal.streams.waiting_bytes >= STREAM_BYTES_WAITING_MAX

    async def _settle(self) -> None:
        await self._run.journal.streams.safe()


class WritableCall(StepCall[Any], AbstractAsyncContextManager["StreamWriter[T]"], Generic[T]):
    """`async with step.writable(name) as out`: the stream is open inside."""

    __slots__ = ("_sensitive", "_step", "_writer")

    kind = "stream"

    def __init__(self, run: Run, name: str, *, of: object, key: object, sensitive: bool, depth: int) -> None:
        coder = run.host.codec.coder(of)
        super().__init__(run, name, key, depth=depth + 1)
        self.coder = coder
        self._sensitive = sensitive
        self._step: Step | None = None
        self._writer: StreamWriter[T] | None = None
        if self.count > 1:
            run.open_calls.pop(self, None)
            raise AmbiguousStepError(
                f"the stream {self.name!r} was opened before in this run: open it once, around all that"
                " writes to it, or give each a name or key= of its own"
            )

    def __await__(self) -> Generator[Any, Any, Any]:
        raise WorkflowCodeError(f"write `async with step.writable({self.name!r}) as out`, without await")

    async def __aenter__(self) -> StreamWriter[T]:
        run = self.run
        self.awaited = True
        try:
            await run.admit(recorded=self.record is not None)
        except BaseException:
            run.open_calls.pop(self, None)
            raise
        step = self.record
        if step is None:
            step = run.journal.open_stream(
                self.name,
                self.count,
                at_ms=run.host.clock.wall_ms(),
                sensitive="output" if self._sensitive else None,
            )
        assert self.coder is not None
        self._step = step
        self._writer = StreamWriter(run, step, self.coder, sensitive=self._sensitive)
        return self._writer

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run, step, writer = self.run, self._step, self._writer
        assert step is not None
        assert writer is not None
        run.open_calls.pop(self, None)
        writer.close()
        if run.stopping is not None or run.over or run.sought is not None or run.file.failure is not None:
            return  # a suspension, which is not its end
        if step.status == "running":
            extent = run.journal.streams.extent(step.seq)
            run.journal.complete_stream(step, extent, at_ms=run.host.clock.wall_ms())
            if error is None:
                await run.recorded()
