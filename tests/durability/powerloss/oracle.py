"""What the world outside has been told, and so must still be true after a power failure.

Invariants:
    Only facts told before the crash count.
    What a life with durability `process` touched is not promised, until a later life with `full`
    has acknowledged something about it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from powerloss.work import Fact

LASTING: Final = ("complete", "terminated", "paused")
"""Statuses that an instance leaves only when somebody asks for it."""

ENDED: Final = ("complete", "terminated")
"""Those after which nobody touches the file."""


class Known:
    """What was told about one instance."""

    def __init__(self) -> None:
        self.asked = 0
        self.generation = 0
        self.promised = True
        self.forget()

    def forget(self) -> None:
        """Start over, with another incarnation in the place of the old one."""
        self.attempts: dict[int, int] = {}
        self.befores: dict[int, str] = {}
        self.events: set[int] = set()
        self.shown: dict[str, str] = {}
        self.notes: list[str] = []
        self.result: str | None = None
        self.status: str | None = None

    def recorded(self) -> int:
        """Return how many steps, from the first, are known to have their result on record."""
        return max(self.attempts, default=0)

    def note(self, fact: Fact) -> None:
        """Take in one fact about this instance."""
        match fact:
            case {"what": "asks", "generation": int(generation)}:
                self.asked = max(self.asked, generation)
                if generation > self.generation:  # the old incarnation may end any time now
                    self.status = None
                return
            case {"what": "asks"}:
                self.status = None
                return
            case {"what": "created", "generation": int(generation)}:
                if generation <= self.generation:  # it was there already: the catalog says so, not its file
                    return
                self.forget()
                self.generation = generation
            case {"what": "began", "generation": int(generation), "n": int(n), "attempt": int(attempt)}:
                if generation < self.generation:  # a function of the old incarnation was still on its way
                    return
                self.attempts[n] = max(attempt, self.attempts.get(n, 0))
                self.befores[n] = fact["before"]
            case {"what": "event", "n": int(n)}:
                self.events.add(n)
            case {"what": "result"}:
                self.result, self.status = fact["digest"], "complete"
            case {"what": "shown"}:
                self.shown.update(fact["steps"])
            case {"what": "edited"}:
                self.notes.append(fact["note"])
            case {"what": "status" | "commanded"}:
                if self.status is None or fact["what"] == "commanded":
                    self.status = fact["status"] if fact["status"] in LASTING else None
            case _:
                raise LookupError(f"a fact that the oracle does not know: {fact}")
        self.promised = True


class Oracle:
    """What was told about all instances, in the order in which it was told."""

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self.instances: dict[str, Known] = {}
        self.bystander: str | None = None
        self._class = "full"
        for fact in facts:
            self.note(fact)

    def note(self, fact: Fact) -> None:
        """Take in the next fact."""
        if fact["what"] == "open":
            self._class = fact["durability"]
            if self._class == "process":
                self._risk()
        elif fact["what"] == "bystander":
            self.bystander = fact["digest"]
        else:
            known = self.instances.setdefault(fact["id"], Known())
            before = known.promised and known.status in ENDED
            known.note(fact)
            if self._class == "process":
                known.promised = before

    def _risk(self) -> None:
        for known in self.instances.values():
            known.promised = known.promised and known.status in ENDED
