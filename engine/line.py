"""The line between a supervisor and one of its workers: messages both ways over a socket pair.

Each message is four bytes of length and a msgpack record. Messages that wait are sent together: a
worker that ends a thousand instances says so in a few writes.

Invariants:
    Messages arrive in the order they were sent.
    A request is answered once, or fails with `LineClosedError` when the line ends.
    The line ends when either process does, however that dies.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from perdure.engine.messages import Answer, Message, Request, restored
from perdure.errors import PerdureError

LENGTH_BYTES: Final = 4
RECEIVE_BYTES: Final = 256 * 1024


class LineClosedError(PerdureError):
    """The process at the other end has ended."""


class Line:
    """One end. `run` serves in a task and returns when the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(end))
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
        self._outgoing = bytearray()
        self._work = trio.Event()
        self._sent = trio.Event()
        self._asked: dict[int, trio.Event] = {}
        self._answers: dict[int, Answer] = {}
        self._number = 0
        self.closed = trio.Event()

    def send(self, message: Message) -> None:
        """Send a message soon. Nothing happens where the other end is gone."""
        if self.closed.is_set():
            return
        data = self._encoder.encode(message)
        self._outgoing += len(data).to_bytes(LENGTH_BYTES, "big") + data
        self._work.set()

    async def flush(self) -> None:
        """Return when all that was to be sent has been, or the other end is gone."""
        while self._outgoing and not self.closed.is_set():
            await self._sent.wait()

    @property
    def backlog_bytes(self) -> int:
        """How much waits to be sent."""
        return len(self._outgoing)

    async def ask(self, request: Request) -> Answer:
        """Send a request and return its answer. Raises the error it carries, and `LineClosedError`."""
        self._number += 1
        number = self._number
        event = self._asked[number] = trio.Event()
        try:
            if self.closed.is_set():
                raise LineClosedError("the process at the other end has ended")
            self.send(msgspec.structs.replace(request, number=number))
            await event.wait()
        finally:
            self._asked.pop(number, None)
        answer = self._answers.pop(number, None)
        if answer is None:
            raise LineClosedError("the process at the other end has ended")
        if answer.error is not None:
            raise restored(answer.error, answer.text, answer.facts)
        return answer

    async def run(
        self, receive: Callable[[Message], None], serve: Callable[[Request], Awaitable[Answer]]
    ) -> None:
        """Hand messages to `receive`, and requests to `serve` in tasks of their own, until the line ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                await self._receive(nursery, receive, serve)
                nursery.cancel_scope.cancel()
        finally:
            self.closed.set()
            self._sent.set()
            for event in list(self._asked.values()):
                event.set()
            with trio.CancelScope(shield=True):
                await self._stream.aclose()

    async def _send(self) -> None:
        while True:
            await self._work.wait()
            await trio.lowlevel.checkpoint()  # what is ready now gets to say its part
            data, self._outgoing = self._outgoing, bytearray()
            self._work = trio.Event()
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # the receiving side notices the end
            if not self._outgoing:
                self._sent.set()
                self._sent = trio.Event()

    async def _receive(
        self,
        nursery: trio.Nursery,
        receive: Callable[[Message], None],
        serve: Callable[[Request], Awaitable[Answer]],
    ) -> None:
        received = bytearray()
        while True:
            try:
                chunk = await self._stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if not chunk:
                return
            received += chunk
            for message in self._messages(received):
                if isinstance(message, Request):
                    nursery.start_soon(self._answer, serve, message)
                elif isinstance(message, Answer):
                    self._answered(message)
                else:
                    receive(message)

    def _messages(self, received: bytearray) -> list[Message]:
        found: list[Message] = []
        start = 0
        while len(received) - start >= LENGTH_BYTES:
            end = start + LENGTH_BYTES + int.from_bytes(received[start : start + LENGTH_BYTES], "big")
            if len(received) < end:
                break
            found.append(self._decoder.decode(memoryview(received)[start + LENGTH_BYTES : end]))
            start = end
        del received[:start]
        return found

    def _answered(self, answer: Answer) -> None:
        event = self._asked.get(answer.number)
        if event is not None:  # who asked may have been cancelled since
            self._answers[answer.number] = answer
            event.set()

    async def _answer(self, serve: Callable[[Request], Awaitable[Answer]], request: Request) -> None:
        self.send(await serve(request))


def line_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a line."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
