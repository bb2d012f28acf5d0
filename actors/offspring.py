"""What an instance knows of its children while it is warm, and what it asks of the engine for them.

A child step is a row that waits; the instance it stands for lives by itself. `Children` writes down how
a child ended when the engine brings the news, whether or not a call waits for it at that moment.

Invariants:
    A child step is settled in the instance's own file before the news of it is dropped.
    News that no open step waits for changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from perdure.actors.child_host import ChildHost
from perdure.actors.host import Host
from perdure.errors import ChildFailedError, ChildTerminatedError
from perdure.limits import ID_CHARS_MAX
from perdure.storage.failure import describe_failure, failure_summary, with_cause
from perdure.storage.family import ChildEnd, ChildRef, decode_ref
from perdure.storage.files import InstanceFile
from perdure.storage.journal import Journal, Step
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.records import Key

HASH_CHARS: Final = 32


def told_of(step: Step) -> str:
    """Return a waiting step as people are told of it: a child with its instance."""
    ref = decode_ref(step.detail) if step.kind == "child" else None
    return f"{step.kind} {step.name!r}" + ("" if ref is None else f" ({ref.child})")


class Waiting:
    """A child step that a call of this run has asked for. `told` is called once it is settled."""

    __slots__ = ("step", "told")

    def __init__(self, step: Step, told: Callable[[], None] | None) -> None:
        self.step = step
        self.told = told


class Children:
    """The children of one warm instance. `asked` says that a call of this life asked for one."""

    def __init__(
        self, key: Key, file: InstanceFile, journal: Journal, lifecycle: Lifecycle, host: Host
    ) -> None:
        self.asked = False
        self.known: set[int] = set()
        """Children that are there: nobody needs to look again in this life."""
        self._key = key
        self._file = file
        self._journal = journal
        self._lifecycle = lifecycle
        self._host = host
        self._live: dict[int, Waiting] = {}

    @property
    def host(self) -> ChildHost:
        """What the engine does for children."""
        assert self._host.children is not None
        return self._host.children

    def forget(self) -> None:
        """Forget the calls of the last run; their steps stand in the journal."""
        self._live.clear()

    def name(self, step: str, count: int) -> tuple[str, int]:
        """Return the id that a child gets by default, and the incarnation that it has in any case.

        Both follow from what the parent is and which step asks, so that nobody creates a child twice.
        """
        state = self._lifecycle.state
        id_ = f"{state.id}.{step}" + (f".{count}" if count > 1 else "")
        id_ += f"~{state.generation}" if state.generation > 1 else ""
        if len(id_) > ID_CHARS_MAX:
            digest = hashlib.blake2b(id_.encode(), digest_size=HASH_CHARS // 2).hexdigest()
            id_ = f"{id_[: ID_CHARS_MAX - HASH_CHARS - 1]}~{digest}"
        token = f"{state.workflow}/{state.incarnation}/{state.generation}/{count}/{step}"
        return id_, int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest()) >> 2

    def expect(self, step: Step, ref: ChildRef, told: Callable[[], None] | None = None) -> None:
        """Settle this very step when its child has ended."""
        self._live[ref.incarnation] = Waiting(step, told)

    def ended(self, ends: Iterable[ChildEnd]) -> None:
        """Write down how children ended. Those that no open step waits for are passed over."""
        rest: list[ChildEnd] = []
        for end in ends:
            wait = self._live.get(end.incarnation)
            if wait is None or wait.step.status != "waiting":
                rest.append(end)
                continue
            self._settle(wait.step, end)
            if wait.told is not None:
                wait.told()
        if rest:
            self._settle_others(rest)

    def _settle_others(self, ends: Sequence[ChildEnd]) -> None:
        """Settle steps that no call of this run has asked for yet."""
        if self._live and not self._journal.left_count:
            return  # every open step has its call
        steps = {step.seq: step for step in self._journal.waiting() if step.kind == "child"}
        steps |= {step.seq: step for step in self._journal.left if step.seq in steps}
        by_child = {ref.incarnation: step for step in steps.values() if (ref := decode_ref(step.detail))}
        for end in ends:
            step = by_child.get(end.incarnation)
            if step is not None and step.status == "waiting":
                self._settle(step, end)

    def _settle(self, step: Step, end: ChildEnd) -> None:
        at_ms, stored = self._host.clock.wall_ms(), end.stored
        if end.how == "complete" and stored is not None:
            self._journal.complete(step, stored, at_ms=at_ms)
        else:
            self._journal.end(step, "failed", at_ms=at_ms, error=self._failure(step, end))

    def _failure(self, step: Step, end: ChildEnd) -> str:
        names = {"workflow": end.workflow, "instance_id": end.id}
        error: BaseException
        match end.how:
            case "errored" if end.text is not None:
                said = ": ".join(failure_summary(end.text))
                error = ChildFailedError(f"child {end.key} failed: {said}", **names)
            case "terminated":
                error = ChildTerminatedError(f"child {end.key} was terminated, so it has no result", **names)
            case "deleted":
                error = ChildTerminatedError(f"child {end.key} was deleted before it had ended", **names)
            case _:
                error = ChildFailedError(
                    f"child {end.key} has ended ({end.how}), and its file was removed before its result was"
                    " taken",
                    **names,
                )
        error.add_note(f"in step {step.name!r} of {self._key}")
        text = describe_failure(error, self._host.codec)
        return with_cause(text, end.text) if end.how == "errored" and end.text is not None else text

    def left_behind(self) -> list[ChildRef]:
        """Return the children that are to end with their parent, where it has not seen them end."""
        return self._to_end(superseded=False)

    def end_soon(self, refs: Sequence[ChildRef]) -> None:
        """Have those of the children end that are not abandoned, while the caller goes on."""
        ending = [ref for ref in refs if ref.on_cancel == "terminate"]
        if ending:
            self.host.end_soon(ending, self._file)

    def superseded(self) -> None:
        """Have the children end whose steps a restart has superseded: the run to come starts others."""
        self.end_soon(self._to_end(superseded=True))

    def _to_end(self, *, superseded: bool) -> list[ChildRef]:
        refs = map(decode_ref, self._journal.children_left(superseded=superseded))
        return [ref for ref in refs if ref is not None and ref.on_cancel == "terminate"]
