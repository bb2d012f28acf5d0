"""What a program must come to: its result, its rows, its side effects, the order of its rollback.

An interpreter of a few lines for each kind of node. It knows the program and the promises of the
documentation, and imports nothing of the runtime.

Invariants:
    Where the order or the presence of something is not promised, it is not expected either.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, assert_never

from property import tree
from property.tree import Block, Do, Program, Undo, digest, fold, meant

Row = tuple[str, str, int]
"""Kind, name and count of a step."""


class FailedError(Exception):
    """A failure as a program sees it, by the text that stands for it."""


@dataclasses.dataclass
class Undoing:
    """A step with a rollback handler that has started; those of one stage started in any order."""

    stage: int
    undo: Undo


@dataclasses.dataclass
class Expected:
    """What one instance must come to."""

    id: str
    program: Program
    result: int | None = None
    failure: str | None = None
    rows: dict[Row, set[str]] = dataclasses.field(default_factory=dict[Row, set[str]])
    """The statuses that the steps of the last generation may have; a row with `missing` may be none."""
    ran: set[tuple[str, int]] = dataclasses.field(default_factory=set[tuple[str, int]])
    """The steps of all generations whose function has succeeded."""
    undone: dict[tuple[str, int], Undoing] = dataclasses.field(default_factory=dict[tuple[str, int], Undoing])
    sends: list[tuple[str, int]] = dataclasses.field(default_factory=list[tuple[str, int]])
    """Type and payload of each event that must be delivered, in an order in which they may be sent."""
    written: set[str] = dataclasses.field(default_factory=set[str])
    children: list[Expected] = dataclasses.field(default_factory=list["Expected"])

    @property
    def family(self) -> list[Expected]:
        """It and all below it."""
        return [self, *(each for child in self.children for each in child.family)]


def expect(program: Program, id_: str) -> Expected:
    """Return what an instance of that id must come to."""
    found = Expected(id_, program)
    number = program.number
    try:
        for generation, block in enumerate(program.generations):
            found.rows.clear()
            found.undone.clear()
            number = _Run(found, generation).block(block, f"g{generation}", number)
        found.result = number
    except FailedError as error:
        found.failure = str(error)
    return found


class _Run:
    """One generation."""

    def __init__(self, found: Expected, generation: int) -> None:
        self._found = found
        self._generation = generation
        self._counts: Counter[tuple[str, str]] = Counter()
        self._stage = 0
        self._parallel = 0

    def block(self, block: Block, path: str, number: int) -> int:
        for index, node in enumerate(block):
            number = self._node(node, f"{path}.{index}", number)
        return number

    def _node(self, node: tree.AnyNode, path: str, number: int) -> int:
        match node:
            case tree.Do():
                return fold(number, self._do(node, path, number))
            case tree.Sleep():
                self._row("sleep", path, "completed")
                return number
            case tree.Wait():
                return fold(number, self._wait(node, path))
            case tree.Missing():
                self._row("event", path, "failed")
                raise FailedError(f"timeout {path}")
            case tree.Chance():
                self._row("value", path, "completed")
                self._ran(self._row("do", f"{path}.keep", "completed"))
                return fold(number, 1)
            case tree.Write():
                self._row("transaction", path, "completed")
                self._found.written.add(path)
                return fold(number, self._counts["transaction", path])
            case tree.Raise():
                raise FailedError(f"raise {path}")
            case tree.If() | tree.Loop() | tree.Try() | tree.Par():
                return self._structure(node, path, number)
            case tree.Gather() | tree.Map() | tree.Race() | tree.Deadline():
                return self._group(node, path, number)
            case tree.Child() | tree.Brood():
                return self._family(node, path, number)
            case _:
                assert_never(node)

    def _structure(self, node: tree.If | tree.Loop | tree.Try | tree.Par, path: str, number: int) -> int:
        match node:
            case tree.If():
                branch = node.then if number % 2 else node.otherwise
                return self.block(branch, f"{path}.{'then' if number % 2 else 'otherwise'}", number)
            case tree.Loop():
                for turn in range(number % (node.most + 1)):
                    number = self.block(node.body, f"{path}[{turn}]" if node.named else path, number)
                return number
            case tree.Try():
                return fold(number, self._caught(lambda: self.block(node.body, path, number)))
            case tree.Par():
                with_all = [
                    self._beside(partial(self._branch, branch, f"{path}.{i}", number))
                    for i, branch in enumerate(node.branches)
                ]
                for each in with_all:
                    number = fold(number, each)
                self._stage += 1
                return number

    def _group(self, node: tree.Gather | tree.Map | tree.Race | tree.Deadline, path: str, number: int) -> int:
        match node:
            case tree.Gather():
                calls = [
                    self._beside(partial(self._outcome, part, f"{path}.{i}", number))
                    for i, part in enumerate(node.parts)
                ]
                self._stage += 1
                return self._all(calls, number)
            case tree.Map():
                for index in range(node.items):
                    self._ran(self._row("do", f"{path}[{index}]", "completed"))
                    number = fold(number, work(f"{path}[{index}]", index))
                return number
            case tree.Race():
                return self._race(node, path, number)
            case tree.Deadline():
                self._row("deadline", path, "completed")
                if node.strikes:
                    self._row("event", f"{path}.never", "cancelled")
                    return fold(number, 1)
                self._ran(self._row("do", f"{path}.soon", "completed"))
                return fold(number, work(f"{path}.soon", number))

    def _family(self, node: tree.Child | tree.Brood, path: str, number: int) -> int:
        if isinstance(node, tree.Child):
            return self._all([self._child(node.body, path, number)], number)
        return self._all(
            [self._child(body, f"{path}[{i}]", number) for i, body in enumerate(node.bodies)], number
        )

    # -- the kinds of steps ------------------------------------------------------------------

    def _do(self, node: Do, path: str, number: int) -> int:
        if not self._parallel:
            self._stage += 1
        fine = node.ending == "fine"
        _, name, count = row = self._row("do", path, "completed" if fine else "failed")
        if node.undo is not None:
            self._found.undone[name, count] = Undoing(self._stage, node.undo)
        if not fine:
            raise FailedError(f"{node.ending} {path}")
        self._ran(row)
        return tree.PIECES if node.large else work(path, number)

    def _wait(self, node: tree.Wait, path: str) -> int:
        _, name, count = self._row("event", path, "completed")
        payload = meant(name, count)
        self._found.sends.append((event_type(node, path, parallel=self._parallel > 0), payload))
        return payload

    def _race(self, node: tree.Race, path: str, number: int) -> int:
        self._row("race", path, "completed")
        for index, loser in enumerate(node.losers):
            kind = "do" if loser == "slow" else loser
            self._row(kind, f"{path}.{index}", "cancelled", "missing")
        if node.winner == "event":
            return fold(number, self._wait(tree.Wait(), f"{path}.winner"))
        row = self._row(node.winner, f"{path}.winner", "completed")
        if node.winner == "do":
            self._ran(row)
            return fold(number, work(f"{path}.winner", number))
        return fold(number, 7)

    def _child(self, body: Block, path: str, number: int) -> int | FailedError:
        kind, name, count = "child", path, self._counts["child", path] + 1
        id_ = f"{self._found.id}.{name}" + (f".{count}" if count > 1 else "")
        id_ += f"~{self._generation + 1}" if self._generation else ""
        child = expect(Program((body,), number=number, shared=True), id_)
        self._found.children.append(child)
        self._row(kind, name, "completed" if child.failure is None else "failed")
        if child.failure is not None:
            return FailedError(f"child {child.failure}")
        assert child.result is not None
        return child.result

    # -- what they share -----------------------------------------------------------------------

    def _row(self, kind: str, name: str, *statuses: str) -> Row:
        self._counts[kind, name] += 1
        row = kind, name, self._counts[kind, name]
        self._found.rows[row] = set(statuses)
        return row

    def _ran(self, row: Row) -> None:
        self._found.ran.add(row[1:])

    def _beside(self, part: Callable[[], Any]) -> Any:
        """Do one of several parts that run at the same time."""
        self._parallel += 1
        try:
            return part()
        finally:
            self._parallel -= 1

    def _caught(self, body: Callable[[], int]) -> int:
        try:
            return body()
        except FailedError as error:
            return digest(str(error))

    def _branch(self, block: Block, path: str, number: int) -> int:
        return self._caught(lambda: self.block(block, path, number))

    def _outcome(self, part: Do, path: str, number: int) -> int | FailedError:
        try:
            return self._do(part, path, number)
        except FailedError as error:
            return error

    def _all(self, results: list[int | FailedError], number: int) -> int:
        """All parts run to their end; one failure is raised as it is, several as a group."""
        failed = [each for each in results if isinstance(each, FailedError)]
        if len(failed) == 1:
            raise failed[0]
        if failed:
            raise FailedError(f"group({', '.join(sorted(map(str, failed)))})")
        for each in results:
            assert isinstance(each, int)
            number = fold(number, each)
        return number


def work(name: str, given: int) -> int:
    """Return what a step of that name makes of a number."""
    return (given * 7 + digest(name)) % tree.MODULUS


def event_type(node: tree.Wait, path: str, *, parallel: bool) -> str:
    """Return the type of event a wait asks for: branches beside each other have one each."""
    if node.picky:
        return "picky"
    return path if parallel else "next"
