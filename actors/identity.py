"""Which call is which: counts of names, and the refusal of names that could be either (law 10).

trio runs ready tasks in random order, so the second use of a name has a meaning only where it
surely comes after the first: in the same task, or after the nursery has closed in which the
first was made. Anything else would swap results on a replay.

Invariants:
    The n-th use of a name in one run is the same call in every run.
    A refused name has not been counted, and leaves nothing that would have another refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any, Final, TypeVar

import trio
from trio.lowlevel import current_task

from perdure.errors import AmbiguousStepError, InvalidArgumentError
from perdure.limits import NAME_CHARS_MAX
from perdure.storage.names import check_step_name

T = TypeVar("T")
RENAMED: Final = "renamed"
"""Stands for the kind where a name is the former name of a step (`was=`), and so nobody's any more."""

ADVICE: Final = "give the parts distinct names, key=..., or use step.map / step.gather"


PLAIN_KEYS: Final = frozenset({str, int})


def keyed(name: str, key: object) -> str:
    """Return a name with its key, as it is recorded.

    Raises `InvalidArgumentError` for a key that reads otherwise in the next process: its step
    would run again there.
    """
    if key.__class__ not in PLAIN_KEYS:
        cls = type(key)
        if cls.__str__ is object.__str__ and cls.__repr__ is object.__repr__:
            raise InvalidArgumentError(
                f"key of step {name!r}: {cls.__qualname__} has no text of its own but its place in memory,"
                " which no replay finds again; give a text or a number"
            )
        if isinstance(key, set | frozenset):
            raise InvalidArgumentError(
                f"key of step {name!r}: a set is in another order in each process; give a text or a number"
            )
    return f"{name}[{key}]"


def parts_of(name: str, items: Iterable[T], limit: int | None) -> Iterable[T]:
    """Return what the parts of a step are made of, checked with how many may run at a time.

    Raises `InvalidArgumentError`.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidArgumentError(
            f"limit={limit!r}: it must be 1 or more, a whole number, or None for all at once"
        )
    if isinstance(items, set | frozenset):
        raise InvalidArgumentError(
            f"{name!r} has a set for its parts, which is in another order in each process: give a list, as of"
            " sorted(...)"
        )
    if not isinstance(items, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
        raise InvalidArgumentError(f"{name!r} has {items!r} for its parts: give a list")
    return items


Asker = tuple[trio.lowlevel.Task, frozenset[trio.Nursery], str]
"""Who asked for a name last, the nurseries open around it then, and the kind that was asked for first."""

NOWHERE: Final[frozenset[trio.Nursery]] = frozenset()


class Names:
    """The names that one run of `run()` has used so far. `root` is the task that runs it."""

    def __init__(self, root: trio.lowlevel.Task) -> None:
        self._root = root
        self._askers: dict[str, Asker] = {}
        self._root_do: Asker = (root, NOWHERE, "do")  # the same for nearly every name
        self._counts: dict[tuple[str, str], int] = {}
        self._functions: dict[str, object] = {}
        self._former: dict[str, str] = {}

    def claim(self, kind: str, name: str, key: object = None, function: object = None) -> tuple[str, int]:
        """Count one use of `name` and return the name as recorded and which use of it this is.

        Raises `InvalidNameError` and `AmbiguousStepError`.
        """
        full = name if key is None else keyed(name, key)
        return full, self.claim_full(kind, full, name, function)

    def claim_full(self, kind: str, full: str, name: str, function: object) -> int:
        """Do what `claim` does where the name as recorded is known: half of what a replay costs is calls."""
        askers = self._askers
        task = current_task()
        if full in askers:
            return self._claim_again(kind, name, full, function, task)
        # What is printable has none of the characters that are refused, and is known at a fifth of the cost.
        if type(full) is not str or not full.isprintable() or not 0 < len(full) <= NAME_CHARS_MAX:
            check_step_name(full)
        if function is not None and self._functions.setdefault(name, function) is not function:
            self._require_same(name, function)
        # The first use is not counted: who asked for it says so, and most names are used once.
        if task is self._root and kind == "do":
            askers[full] = self._root_do
        else:
            askers[full] = (task, self._open_around(task), kind)
        return 1

    def former(self, was: str | tuple[str, ...], name: str, key: object) -> tuple[str, ...]:
        """Return the full names that a step may be recorded under besides its own.

        Raises `InvalidNameError`, `InvalidArgumentError` and, for a name in use, `AmbiguousStepError`.
        """
        names = (was,) if isinstance(was, str) else was
        if not isinstance(names, tuple) or not names:  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
            raise InvalidArgumentError(f"was={was!r}: it is the former name of the step, or a tuple of them")
        full = tuple(names) if key is None else tuple(f"{each}[{key}]" for each in names)
        own = name if key is None else keyed(name, key)
        for each in full:
            check_step_name(each)
            if each == own:
                raise InvalidArgumentError(f"was={was!r}: it is the name that step {name!r} has now")
            asked = self._askers.get(each)
            if (asked is not None and asked[2] != RENAMED) or self._former.get(each, own) != own:
                other = self._former.get(each, each)
                raise AmbiguousStepError(
                    f"step {own!r} says that its name was {each!r} (was=), and step {other!r} of this run has"
                    " that name, or had it: one recorded step answers one"
                )
        return full

    def retire(self, former: tuple[str, ...], name: str) -> None:
        """Let nobody else ask for the former names of the step `name`."""
        for each in former:
            self._former[each] = name
            self._askers.setdefault(each, (self._root, NOWHERE, RENAMED))

    def _claim_again(
        self, kind: str, name: str, full: str, function: object, task: trio.lowlevel.Task
    ) -> int:
        """Count another use of a name, of whatever kind, and return which use of its kind it is."""
        asked = self._askers[full]
        if asked[2] == RENAMED:
            raise AmbiguousStepError(
                f"step {full!r} is asked for, and {self._former[full]!r} says that this was its name (was=):"
                " give one of them another name"
            )
        if asked[0] is not task:
            self._require_after(full, asked, task)
        if function is not None:
            self._require_same(name, function)
        if asked[0] is not task:  # nothing refuses it any more
            self._askers[full] = (task, self._open_around(task), asked[2])
        counted = (kind, full)
        count = self._counts.get(counted, 1 if kind == asked[2] else 0) + 1
        self._counts[counted] = count
        return count

    def _require_same(self, name: str, function: object) -> None:
        known = self._functions.setdefault(name, function)
        if known is not function and known != function:
            raise AmbiguousStepError(
                f"step {name!r} was asked for with {describe(known)} and now with {describe(function)}: one"
                f" name stands for one function; give one of them another name"
            )

    def _open_around(self, task: trio.lowlevel.Task) -> frozenset[trio.Nursery]:
        """Return the nurseries open at this moment around a task that is not the root."""
        if task is self._root:
            return NOWHERE
        nurseries: set[trio.Nursery] = set()
        at = task
        while at is not self._root:
            parent = at.parent_nursery
            if parent is None:
                break
            at = parent.parent_task
            nurseries.update(at.child_nurseries)
        return frozenset(nurseries)

    def _require_after(self, name: str, asked: Asker, task: trio.lowlevel.Task) -> None:
        earlier, open_then, _ = asked
        around = set(self._chain(task))
        while True:
            nursery = earlier.parent_nursery
            if earlier is self._root or nursery is None or nursery in nursery.parent_task.child_nurseries:
                break
            earlier = nursery.parent_task
            if earlier is task:
                return
            if earlier in around:
                if self._branch_below(earlier, task) not in open_then:
                    return
                break
        raise AmbiguousStepError(
            f"step {name!r} is asked for by two branches that run at the same time, so nobody could tell"
            f" which result is whose on a replay: {ADVICE}"
        )

    def _chain(self, task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
        chain = [task]
        while chain[-1] is not self._root and (nursery := chain[-1].parent_nursery) is not None:
            chain.append(nursery.parent_task)
        return chain

    def _branch_below(self, ancestor: trio.lowlevel.Task, task: trio.lowlevel.Task) -> trio.Nursery | None:
        """Return the nursery of `ancestor` in which `task`, or a parent of it, runs."""
        for at in self._chain(task):
            if at.parent_nursery is not None and at.parent_nursery.parent_task is ancestor:
                return at.parent_nursery
        return None


def function_identity(fn: Callable[..., Any]) -> object:
    """Return what makes two step functions the same: the code, through partials and methods."""
    target: Any = fn
    while True:
        inner = (
            getattr(target, "func", None)
            or getattr(target, "__func__", None)
            or getattr(target, "__wrapped__", None)
        )
        if inner is None:
            break
        target = inner
    return getattr(target, "__code__", None) or target


def describe(function: object) -> str:
    """Return what people call a function that `function_identity` identified."""
    if isinstance(function, CodeType):
        return f"{function.co_qualname} ({function.co_filename}:{function.co_firstlineno})"
    return str(getattr(function, "__qualname__", function))
