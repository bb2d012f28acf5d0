"""The calls that start other instances and wait for them: `step.child` and `step.children`.

A child is recorded as a step that waits, then created under an incarnation that follows from the
parent's and the step's name, and then the call parks: the parent may leave memory. What became of the
child is written into the parent's file by `Children` when the engine brings the news.

Invariants:
    The step is on record, durably, before its child is created (law 2); it is created once.
    A child whose step was cancelled is told to end before the call goes on, unless it is abandoned.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from typing import Any, Final, Literal, TypeVar, get_args

import outcome
import trio

from perdure.actors.calls import StepCall
from perdure.actors.child_host import ChildRequest
from perdure.actors.compose import GroupCall, unwrapped
from perdure.actors.host import deadline_in
from perdure.actors.run import ENDING, EXPIRED, Run
from perdure.actors.workflow import Definition, accept_params
from perdure.errors import (
    DivergenceError,
    InstanceExistsError,
    InvalidArgumentError,
    PerdureError,
    StateError,
)
from perdure.limits import INPUT_BYTES_COMPARED_MAX, INPUT_BYTES_INLINE_MAX
from perdure.storage.codec_describe import digest_of
from perdure.storage.failure import describe_failure
from perdure.storage.family import ChildEnd, ChildRef, decode_ref, encode_ref
from perdure.storage.journal import Step
from perdure.storage.names import check_instance_id, check_tags
from perdure.storage.records import Stored

R = TypeVar("R")
OnCancel = Literal["terminate", "abandon"]
logger: Final = logging.getLogger("perdure.workflow")
STARTED_AT_ONCE: Final = 500
"""Children of one call that are recorded in one commit and created in one write of the catalog."""


class ChildCall(StepCall[R]):
    """A call of `step.child`, or one part of `step.children`."""

    __slots__ = ("definition", "input", "params", "ref", "stored", "tags", "timeout_s")

    kind = "child"
    record: Step | None

    def __init__(
        self, run: Run, cls: type | str, params: Any, *, name: str | None, id_: str | None, key: object,
        on_cancel: OnCancel, timeout_s: float | None, tags: Sequence[str] | None, depth: int,
    ) -> None:  # fmt: skip
        definition: Definition = run.children.host.definition(cls)
        _check(on_cancel, id_, tags)
        stored = accept_params(definition, params, codec=run.host.codec)
        super().__init__(run, definition.name if name is None else name, key, definition.cls, depth=depth + 1)
        self.definition = definition
        self.params = params
        self.stored = stored
        self.timeout_s = timeout_s
        self.tags = tags
        self.input = _described(stored)
        self.coder = run.host.codec.coder(definition.result)
        record = self.record
        self.ref = (None if record is None else decode_ref(record.detail)) or self._named(id_, on_cancel)
        run.children.asked = True
        if record is not None and record.status == "waiting":
            run.children.expect(record, self.ref)

    def _named(self, id_: str | None, on_cancel: OnCancel) -> ChildRef:
        default, incarnation = self.run.children.name(self.name, self.count)
        child = f"{self.definition.name}/{id_ or default}"
        return ChildRef(child=child, incarnation=incarnation, on_cancel=on_cancel)

    def __await__(self) -> Generator[Any, Any, R]:
        self.look_at_params()
        return (yield from super().__await__())

    async def perform(self) -> R:
        """Wait for the child, created where it is not there, and return its result."""
        await ChildWait(self.run, [self]).until_ended()
        return await self.result()

    async def result(self) -> R:
        """Return what became of the child, as its step has it."""
        step = self.record
        assert step is not None
        if step.status == "failed":
            raise self.error(step)
        if step.status == "cancelled":
            await self.run.until_cancelled()
        return self.answer(step)

    def look_at_params(self) -> None:
        """Report params that differ from those that the step is recorded with (law 11)."""
        record = self.record
        if record is None or record.fingerprint == (self.input[1] or self.input[0]):
            return
        try:
            self.run.diverged(
                "arguments",
                DivergenceError(
                    f"child step {self.name!r} is recorded with other params than run() gives it now; the"
                    " child that was started then is the one that counts",
                    recorded=f"params {record.fingerprint}",
                    requested=f"params {self.input[1] or self.input[0]}",
                ),
                serious=False,
            )
        except DivergenceError:
            self.run.open_calls.pop(self, None)
            raise

    def begin(self) -> bool:
        """Record the step, where it is not yet; say whether it is new."""
        if self.record is not None:
            return False
        run = self.run
        self.record = run.journal.wait(
            "child", self.name, self.count, at_ms=run.host.clock.wall_ms(), wake=None,
            detail=encode_ref(self.ref), input_=self.input,
        )  # fmt: skip
        return True

    def request(self, *, is_new: bool) -> ChildRequest:
        """Return what the engine needs to know of the child."""
        return ChildRequest(
            definition=self.definition, ref=self.ref, parent=self.run.key, params=self.params,
            stored=self.stored, timeout_s=self.timeout_s, tags=self.tags, is_new=is_new,
        )  # fmt: skip

    def fail(self, error: PerdureError) -> None:
        """Record that the child could not be created."""
        assert self.record is not None
        error.add_note(f"in step {self.name!r} of {self.run.key}")
        text = describe_failure(error, self.run.host.codec)
        self.run.journal.end(self.record, "failed", at_ms=self.run.host.clock.wall_ms(), error=text)

    def lost(self) -> None:
        """Have the child end: a rival has won the race that the call was a part of."""
        if _was_cancelled(self):
            self.run.children.end_soon([self.ref])


class ChildrenCall(GroupCall[list[R]]):
    """A call of `step.children`: await it, once, for the results in order."""

    __slots__ = ("calls",)

    def __init__(
        self, run: Run, name: str, calls: Sequence[ChildCall[R]], *, limit: int | None, depth: int
    ) -> None:
        super().__init__(run, name, calls, lambda results: results, limit=limit, depth=depth + 1)
        self.calls = calls

    async def _all(self) -> list[R]:
        run = self.run
        try:
            for call in self.calls:
                call.awaited = True
                call.look_at_params()
            if run.stopping is not None or run.sought is not None or EXPIRED.get():
                await run.admit(recorded=all(call.record is not None for call in self.calls))
            await ChildWait(run, self.calls, self.limit).until_ended()
            return unwrapped(self.name, [await outcome.acapture(call.result) for call in self.calls])
        except PerdureError as error:
            if error is not run.file.failure:
                raise
            await run.broke(error)
            raise
        finally:
            run.open_calls.pop(self, None)


class ChildWait:
    """Children that one call waits for, in one task: started in slices, at most `limit` under way."""

    def __init__(self, run: Run, calls: Sequence[ChildCall[Any]], limit: int | None = None) -> None:
        self._run = run
        self._calls = calls
        self._limit = limit or len(calls)
        self._changed = trio.Event()

    async def until_ended(self) -> None:
        """Return when every step has its outcome. A cancellation ends those that are still open."""
        try:
            await self._start_and_wait()
        except trio.Cancelled:
            await self._cancelled()
            raise

    async def _start_and_wait(self) -> None:
        run = self._run
        known = run.children.known
        to_start = [call for call in self._calls if _is_open(call) and call.ref.incarnation not in known]
        under_way = [call for call in self._calls if _is_open(call) and call.ref.incarnation in known]
        to_start.sort(key=lambda call: call.record is None)  # those of an earlier run have their places
        for call in under_way:
            self._expect(call)
        lost = [call.ref for call in self._calls if _was_cancelled(call)]
        if lost:  # the process may have died before they were told
            run.children.end_soon(lost)
        while to_start or under_way:
            self._changed = trio.Event()
            room = min(self._limit - len(under_way), STARTED_AT_ONCE)
            if to_start and room > 0:
                batch, to_start = to_start[:room], to_start[room:]
                await self._start(batch)
                under_way += batch
            else:
                await run.park_until(None, self._changed)
            ended = len(under_way)
            under_way = [call for call in under_way if _is_open(call)]
            if len(under_way) < ended:
                await run.recorded()

    def _expect(self, call: ChildCall[Any]) -> None:
        assert call.record is not None
        self._run.children.expect(call.record, call.ref, self._tell)

    def _tell(self) -> None:
        self._changed.set()

    async def _start(self, batch: Sequence[ChildCall[Any]]) -> None:
        """Record the steps, and have their children created once that is durable."""
        run = self._run
        while True:
            if run.held:
                await run.may_start()
            run.attempt_begins()
            ended: list[ChildEnd] = []
            refused: list[tuple[int, InstanceExistsError]] = []
            try:
                requests = [call.request(is_new=call.begin()) for call in batch]
                for call in batch:
                    self._expect(call)
                await run.host.gate.passed(run.file)
                with trio.CancelScope(shield=True):  # what is begun is known to have been, or not
                    ended, refused = await run.children.host.start(requests)
            except StateError as error:
                if error is run.file.failure:
                    raise
                logger.error("children of %s cannot be created, and are tried again: %s", run.key, error)
            else:
                for place, why in refused:
                    batch[place].fail(why)
                run.children.known.update(call.ref.incarnation for call in batch)
                run.children.ended(ended)
                return
            finally:
                run.attempt_ends()
            rest = deadline_in(run.host.clock, run.host.limits.reset_delay_s)
            await run.park_until(rest, trio.Event())

    async def _cancelled(self) -> None:
        """Record open steps as cancelled, where the call is over for good, and have their children end."""
        run = self._run
        if run.over or run.file.failure is not None:
            return
        open_calls = [call for call in self._calls if call.record is not None and _is_open(call)]
        ending = [call.ref for call in open_calls if call.ref.on_cancel == "terminate"]
        if run.stopping not in ENDING:
            return
        for call in open_calls:
            assert call.record is not None
            run.journal.end(call.record, "cancelled", at_ms=run.host.clock.wall_ms(), error=None)
        if run.stopping is None and ending:
            run.attempt_begins()
            try:
                with trio.CancelScope(shield=True):
                    await run.host.gate.passed(run.file)
                    await run.children.host.end(ending)
            finally:
                run.attempt_ends()


def _is_open(call: ChildCall[Any]) -> bool:
    return call.record is None or call.record.status == "waiting"


def _was_cancelled(call: ChildCall[Any]) -> bool:
    return call.record is not None and call.record.status == "cancelled"


def _described(stored: Stored) -> tuple[str | None, str | None]:
    """Return the text and the digest of params, as `Journal.wait` records them."""
    raw = stored.encode() if isinstance(stored, str) else stored
    text = stored if isinstance(stored, str) and len(raw) <= INPUT_BYTES_INLINE_MAX else None
    return text, None if text is not None and len(raw) <= INPUT_BYTES_COMPARED_MAX else digest_of(raw)


def _check(on_cancel: str, id_: str | None, tags: Sequence[str] | None) -> None:
    if on_cancel not in get_args(OnCancel):
        raise InvalidArgumentError(f"on_cancel={on_cancel!r}: it must be 'terminate' or 'abandon'")
    if id_ is not None:
        check_instance_id(id_)
    if tags is not None:
        check_tags(tags)
