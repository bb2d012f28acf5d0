"""What the test kit changes of a workflow under test: results, errors, delays, events.

A `Modifiers` belongs to one runtime of `perdure.testing` and holds one `Rules` for each workflow or
instance that a test looks into. Step functions are met where all of them are run, in the function
host, so an ordinary runtime does nothing for this; sleeps, waits and retries ask `Host.modifiers`.

Invariants:
    What is changed is what a step function does: each attempt is recorded as any other.
    A rollback handler is never changed by the rules of its step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

from perdure.actors.attempt import Attempt
from perdure.actors.compensation import RollbackContext
from perdure.actors.context import CURRENT
from perdure.actors.functions import FunctionStatistics, Kind, Library
from perdure.actors.host import Functions
from perdure.errors import InvalidArgumentError, StepTimeoutError
from perdure.storage.records import Key, Stored


class _Run:
    """What an attempt is given that no rule speaks of: it runs its own function."""


RUN: Final = _Run()


class Failing(NamedTuple):
    """Some attempts of a step fail: the next `times`, or all where that is None."""

    error: BaseException | None  # None: it times out
    times: int | None


class Rules:
    """What is changed of one instance, or of all of a workflow. Steps go by their recorded names.

    `results` and `failures` are of a step's name and, where it is not None, its count. `sleeps` and
    `delays` name what takes no time (None: all), `timeouts` the waits that time out, `events` what comes.
    """

    def __init__(self, number: int, workflow: str, id_: str | None) -> None:
        self.number = number
        self.workflow = workflow
        self.id = id_
        self.results: dict[tuple[str, int | None], Any] = {}
        self.failures: dict[tuple[str, int | None], list[Failing]] = {}
        self.sleeps: set[str] | None = set()
        self.delays: set[str] | None = set()
        self.timeouts: set[str] = set()
        self.events: list[tuple[str, Stored]] = []

    def applies_to(self, workflow: str, id_: str) -> bool:
        """Whether they are of this instance."""
        return workflow == self.workflow and self.id in (None, id_)

    def failing(self, name: str, count: int, attempt: int) -> Failing | None:
        """Return how this attempt fails, where it does: the failures of a step come in order."""
        for place in ((name, count), (name, None)):
            for failing in self.failures.get(place, ()):
                if failing.times is None or attempt <= failing.times:
                    return failing
                attempt -= failing.times
        return None

    def result(self, name: str, count: int) -> Any:
        """Return what the step returns instead of running, or `RUN`."""
        return self.results.get((name, count), self.results.get((name, None), RUN))


class Modifiers:
    """All rules of one runtime. `holding` keeps its clock from jumping, while a test looks."""

    def __init__(self, holding: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.holding = holding
        self._rules: list[Rules] = []
        self._made = 0

    def add(self, workflow: str, id_: str | None) -> Rules:
        """Return new rules. Raises `InvalidArgumentError` where there are some of the same instances."""
        if any(rules.workflow == workflow and rules.id == id_ for rules in self._rules):
            what = workflow if id_ is None else f"{workflow}/{id_}"
            raise InvalidArgumentError(f"{what} is being introspected already: leave that block first")
        self._made += 1
        rules = Rules(self._made, workflow, id_)
        self._rules.append(rules)
        self._rules.sort(key=lambda each: each.id is None)  # those of one instance come first
        return rules

    def remove(self, rules: Rules) -> None:
        """Change nothing by these rules from now on."""
        self._rules.remove(rules)

    def _of(self, key: Key) -> Iterator[Rules]:
        return (rules for rules in self._rules if rules.applies_to(key.workflow, key.id))

    def skips_sleep(self, key: Key, name: str) -> bool:
        """Whether a sleep takes no time."""
        return any(rules.sleeps is None or name in rules.sleeps for rules in self._of(key))

    def skips_delay(self, key: Key, name: str) -> bool:
        """Whether the next attempt of a step comes at once."""
        return any(rules.delays is None or name in rules.delays for rules in self._of(key))

    def times_out(self, key: Key, name: str) -> bool:
        """Whether a wait for an event times out at once."""
        return any(name in rules.timeouts for rules in self._of(key))

    def events(self, key: Key, type_: str) -> list[tuple[str, Stored]]:
        """Return the events of that type that are to come, each with a name that no other has."""
        return [
            (f"introspection-{rules.number}-{index}", payload)
            for rules in self._of(key)
            for index, (type__, payload) in enumerate(rules.events)
            if type__ == type_
        ]

    def answer(self) -> Any:
        """Return what the attempt under way returns instead of running, or `RUN`; raise how it fails."""
        attempt = CURRENT.get(None)
        if not isinstance(attempt, Attempt) or isinstance(attempt.context, RollbackContext):
            return RUN
        context = attempt.context
        name, count = context.step.name, context.step.count
        for rules in self._of(Key(*context.instance.split("/", 1))):
            failing = rules.failing(name, count, context.attempt)
            if failing is not None:
                raise _error_of(failing, name, context.attempt)
            result = rules.result(name, count)
            if result is not RUN:
                return result
        return RUN

    def chunks(self) -> Iterator[Any] | None:
        """Return what a step that yields is to yield, or None where it runs. Raises as `answer`."""
        answer = self.answer()
        return None if answer is RUN else iter(answer)


def _error_of(failing: Failing, name: str, attempt: int) -> BaseException:
    if failing.error is None:
        return StepTimeoutError(
            f"attempt {attempt} of step {name!r} was made to time out by the test", step=name, attempt=attempt
        )
    try:
        return copy.copy(failing.error)  # each attempt puts notes of its own on it
    except Exception:  # noqa: BLE001 - a class of the user's that cannot be copied is raised as it is
        return failing.error


class ModifiedFunctions:
    """A function host in front of another: it asks the rules before it runs anything."""

    def __init__(self, functions: Functions, modifiers: Modifiers) -> None:
        self._functions = functions
        self._modifiers = modifiers

    async def call(
        self,
        kind: Kind,
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        *,
        library: Library = "trio",
        on_cancel: Callable[[], None] | None = None,
        still_counts: Callable[[], bool] | None = None,
        on_beat: Callable[[Any], None] | None = None,
    ) -> Any:
        """As `FunctionHost.call`."""
        answer = self._modifiers.answer()
        if answer is not RUN:
            return answer
        return await self._functions.call(
            kind, fn, args, library=library, on_cancel=on_cancel, still_counts=still_counts, on_beat=on_beat
        )

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """As `FunctionHost.call_now`."""
        answer = self._modifiers.answer()
        return self._functions.call_now(fn, args) if answer is RUN else answer

    def statistics(self) -> FunctionStatistics:
        """As `FunctionHost.statistics`."""
        return self._functions.statistics()
