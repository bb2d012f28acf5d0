"""What the end of an instance means to its family: news for its parent, and an end for its children.

Posted in the catalog transaction that settles the instance, so that no kill comes between the two.
"""

from __future__ import annotations

import msgspec

from perdure.actors.actor import Actor
from perdure.actors.outcome import Completed, Failed, Outcome, Terminated
from perdure.storage.catalog import Catalog
from perdure.storage.family import ChildEnd, ChildRef, child_end, decode_ref
from perdure.storage.records import Key


def child_of_step(kind: str, detail: str | None) -> ChildRef | None:
    """Return the child that a row of the view `steps` stands for, None where it is no child step."""
    return decode_ref(detail) if kind == "child" else None


def end_of(key: Key, incarnation: int, outcome: Outcome) -> ChildEnd | None:
    """Return what is posted of an outcome to the parent, None where the instance has not ended."""
    match outcome:
        case Completed(output=output):
            return child_end(key, incarnation, "complete", output)
        case Failed(error=error):
            return child_end(key, incarnation, "errored", error)
        case Terminated():
            return child_end(key, incarnation, "terminated", None)
        case _:
            return None


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """What the end of an instance means to its family."""

    parent: str | None
    end: ChildEnd
    left_behind: list[ChildRef]

    def post(self, catalog: Catalog, *, at_ms: int) -> None:
        """Leave the posts. Inside the transaction that settles the instance."""
        if self.parent is not None:
            catalog.family.ended(self.parent, self.end, at_ms=at_ms)
        if self.left_behind:
            catalog.family.end(self.left_behind, parent=str(self.end.key), at_ms=at_ms)


def settlement_of(actor: Actor, outcome: Outcome, *, had_ended: bool) -> Settlement | None:
    """Return what is to be posted with the outcome of an instance, None where that is nothing."""
    state = actor.lifecycle.state
    # One that completes in the life that ran it has told its children, or never had any.
    looks = actor.children.asked or not actor.has_run or not isinstance(outcome, Completed)
    if state.parent is None and not looks:
        return None
    end = end_of(actor.key, state.incarnation, outcome)
    if end is None or (had_ended and not actor.has_run):
        return None
    left = actor.children.left_behind() if looks else []
    if state.parent is None and not left:
        return None
    return Settlement(parent=state.parent, end=end, left_behind=left)
