"""Steps whose function yields its result: stored chunk by chunk as it comes, replayed as a stream.

A step function may be a generator, plain or async, or return an iterator, which its annotation then
says (`AsyncIterator[bytes]`). The attempt takes what it yields, in the loop, in a thread or on asyncio,
wherever the function belongs; each chunk is in the file before the next is asked for. `run()` gets a
`StepStream`, which reads the chunks from the file, as often as it likes.

Invariants:
    However large a result is, `STREAM_BYTES_WAITING_MAX` bytes of it and one chunk are in memory, no more.
    A step completes when its function has yielded all; what a failed attempt has yielded is void.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import abc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from perdure.actors.crossing import Crossing
from perdure.actors.functions import Kind, Library
from perdure.actors.run import Run
from perdure.actors.streams import StreamWriter
from perdure.errors import (
    DecodingError,
    EncodingError,
    InvalidArgumentError,
    StepTimeoutError,
    WorkflowCodeError,
)
from perdure.storage.codec import Codec, Coder
from perdure.storage.codec_annotations import shape_of
from perdure.storage.journal import Step
from perdure.storage.records import Stored
from perdure.storage.streams import Extent, extent_in

T = TypeVar("T", covariant=True)


class StepStream(Generic[T]):
    """The result of a step whose function yields. Iterate over it as often as you like.

    `async for` in `run()` and in async step functions, `for` in plain ones. `chunks` and `bytes` say how
    much there is. Chunks are read one by one from the instance's file.
    """

    __slots__ = ("_coder", "_crossing", "_run", "_step", "bytes", "chunks")

    def __init__(self, run: Run, step: Step, coder: Coder, extent: Extent) -> None:
        self.chunks = extent.chunks
        self.bytes = extent.bytes
        self._run = run
        self._step = step
        self._coder = coder
        self._crossing = Crossing(_never, _nothing)

    def __repr__(self) -> str:
        return f"<StepStream of {self._step.name!r}: {self.chunks} chunks, {self.bytes} bytes>"

    def __reduce__(self) -> Any:
        raise InvalidArgumentError(
            f"the stream that step {self._step.name!r} returned cannot cross to a process: pass on what it"
            " holds, or write it to a file"
        )

    def __aiter__(self) -> AsyncIterator[T]:
        return _Reading(self)

    def __iter__(self) -> Iterator[T]:
        return _Reading(self)

    async def collect(self) -> list[T]:
        """Return all chunks; `b"".join(...)` of them is a whole file, where that has room in memory."""
        return [chunk async for chunk in self]

    def next_from(self, place: int) -> tuple[int, T] | None:
        """Return the first chunk from `place` on, with its place. In the loop; for its iterators."""
        run = self._run
        if run.over:
            raise WorkflowCodeError(f"{self!r} was read after run() of {run.key} had ended")
        found = run.journal.streams.next_live(self._step.seq, place)
        return None if found is None else (found[0], self._coder.decode(found[1]))

    @property
    def crossing(self) -> Crossing:
        """The way into the loop. For its iterators."""
        return self._crossing


class _Reading(AsyncIterator[T], Iterator[T]):
    """One reading of a stream from its beginning."""

    def __init__(self, stream: StepStream[T]) -> None:
        self._stream = stream
        self._place = 0

    async def __anext__(self) -> T:
        found = await self._stream.crossing.call(self._stream.next_from, self._place)
        if found is None:
            raise StopAsyncIteration
        self._place = found[0] + 1
        return found[1]

    def __next__(self) -> T:
        found = self._stream.crossing.call_sync(self._stream.next_from, self._place)
        if found is None:
            raise StopIteration
        self._place = found[0] + 1
        return found[1]


def _never() -> bool:
    return False


async def _nothing() -> None:
    pass


# -- what is stored of it -------------------------------------------------------------------


class StreamCoder(Coder):
    """Stands for the coder of a step whose result is a stream: its chunks are stored one by one."""

    __slots__ = ("items",)

    def __init__(self, codec: Codec, items: object) -> None:
        super().__init__(codec, items, shape_of(Any), plain=False)
        self.items = codec.coder(items)

    def record_result(self, value: Any) -> tuple[Any, Any]:
        """Return how much there is, for the step's row, and the stream itself."""
        return Extent(chunks=value.chunks, bytes=value.bytes), value

    def decode(self, stored: Stored) -> Any:
        """Refuse: where a stream was stored, there is nothing in the step's row."""
        del stored
        raise DecodingError(
            "the step is recorded with a plain result, and its function now yields a stream: give the new"
            " step another name"
        )


def is_streamed(step: Step) -> bool:
    """Whether the result of a completed step is a stream."""
    return step.detail is not None and '"stream":{' in step.detail


def stream_of(run: Run, step: Step, coder: Coder | None) -> StepStream[Any]:
    """Return the stream that a completed step is recorded with."""
    items = coder.items if isinstance(coder, StreamCoder) else run.host.codec.coder(Any)
    return StepStream(run, step, items, extent_in(step.detail))


# -- taking what a function yields ---------------------------------------------------------


class Taken(NamedTuple):
    """How to take what a step function gave: the kind of function that does, and that function."""

    kind: Kind
    fn: Callable[[], Any]


def taking(
    source: Any, kind: Kind, library: Library, out: StreamWriter[Any], is_cancelled: Callable[[], bool]
) -> Taken:
    """Return how to write all that `source` yields to `out`.

    `library` is that of an async iterator which a plain function gave. Raises `EncodingError` for what
    yields nothing.
    """
    taken: Any = source
    if isinstance(source, abc.AsyncIterable):
        return Taken(library if kind == "plain" else kind, lambda: _take_async(taken, out))
    if isinstance(source, abc.Iterator):
        return Taken("plain", lambda: _take_sync(taken, out, is_cancelled))
    raise EncodingError(
        f"the function is annotated to return an iterator and returned {type(taken).__name__}", path="$"
    )


async def _take_async(source: Any, out: StreamWriter[Any]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if inspect.isasyncgen(source):
            await stack.enter_async_context(contextlib.aclosing(source))
        async for item in source:
            await out.write(item)


def _take_sync(source: Iterable[Any], out: StreamWriter[Any], is_cancelled: Callable[[], bool]) -> None:
    with contextlib.ExitStack() as stack:
        if inspect.isgenerator(source):
            stack.enter_context(contextlib.closing(source))
        for item in source:
            out.write_sync(item)
            if is_cancelled():
                raise StepTimeoutError(
                    f"step {out.name!r} was cancelled before its function had yielded all", step=out.name,
                    attempt=0,
                )  # fmt: skip
