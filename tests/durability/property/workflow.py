"""The workflow that runs any program, by the step methods that people use.

Step functions tell a witness file outside the runtime when they begin and end, and pass a point at
which the process may be stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, assert_never

import msgspec
import trio

from perdure import (
    ChildFailedError,
    NonRetryableError,
    Retries,
    Rollback,
    RollbackContext,
    Sql,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.errors import EventTimeoutError, StepLostError
from property import tree
from property.tree import Block, Do, Program, digest, fold, meant

PATIENT: Final = Retries(limit=1_000_000, delay=0.001, backoff="constant")
"""More retries than there are kills, which count as attempts."""
NEVER_S: Final = 3600


class FatalError(NonRetryableError):
    """What a step raises that fails for good at once."""


class WornOutError(Exception):
    """What a step raises that fails until its retries are used up."""


class RaisedError(Exception):
    """What `run()` raises itself."""


class World:
    """The outside: a file of witness, and the points at which a life may end."""

    def __init__(self, witness: Path, point: Callable[[], None]) -> None:
        self._witness = witness
        self._point = point

    def tell(self, what: str, context: StepContext) -> None:
        """Write down that a step function begins or ends, in one write; a life may end just after."""
        line = f"{what}|{context.instance}|{context.step.name}|{context.step.count}|{context.attempt}\n"
        descriptor = os.open(self._witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        self._point()

    def work(self, given: int, fails: int, ending: str, context: StepContext) -> int:
        """Make a number of a number; fail as often as asked first."""
        self.tell("begin", context)
        if ending == "final" and context.attempt > fails:
            raise FatalError(context.step.name)
        if ending == "exhausted" or context.attempt <= fails:
            raise WornOutError(context.step.name)
        self.tell("end", context)
        return (given * 7 + digest(context.step.name)) % tree.MODULUS

    async def work_slowly(self, given: int, fails: int, ending: str, context: StepContext) -> int:
        """Do the same with a turn of the loop between."""
        await trio.lowlevel.checkpoint()
        return self.work(given, fails, ending, context)

    async def work_large(self, given: int, fails: int, ending: str, context: StepContext) -> str:
        """Do the same and return a value that is too large for the step's row."""
        self.work(given, fails, ending, context)
        return "x" * tree.PIECES

    async def work_for_ever(self, context: StepContext) -> int:
        """Lose a race."""
        self.tell("begin", context)
        await trio.sleep_forever()
        raise AssertionError

    def keep(self, given: float, context: StepContext) -> float:
        """Return what was given, for a replay to compare."""
        self.tell("begin", context)
        self.tell("end", context)
        return given

    def write(self, sql: Sql, name: str) -> int:
        """Write a row and return how many there are of that name."""
        sql.exec("CREATE TABLE IF NOT EXISTS written (name TEXT)")
        sql.exec("INSERT INTO written VALUES (?)", name)
        return int(sql.exec("SELECT count(*) AS n FROM written WHERE name = ?", name).one()["n"])

    def undo(self, how: tree.Undo, context: RollbackContext[Any]) -> None:
        """Undo a step: at once, at the second attempt, or not at all."""
        if how == "stuck":
            raise FatalError(context.name)
        if how == "flaky" and context.attempt == 1:
            raise WornOutError(context.name)
        self.tell("undo", context)


def code_of(error: BaseException | None) -> str:
    """Return the text that stands for a failure: whoever is told of it, it is the same one."""
    match error:
        case FatalError():
            return f"final {error}"
        case WornOutError():
            return f"exhausted {error}"
        case StepLostError():  # its last attempt was lost with the process
            return f"exhausted {error.step}"
        case EventTimeoutError():
            return f"timeout {error.step}"
        case RaisedError():
            return f"raise {error}"
        case ChildFailedError():
            return f"child {code_of(error.__cause__)}"
        case ExceptionGroup():
            group: ExceptionGroup[Exception] = error
            return f"group({', '.join(sorted(map(code_of, group.exceptions)))})"
        case _:
            raise AssertionError(f"no program fails so: {error!r}") from error


class Generated(WorkflowEntrypoint[World]):
    """Runs a program."""

    async def run(self, event: WorkflowEvent[Program], step: WorkflowStep) -> int:
        """Run one generation."""
        program = event.payload
        run = Interpreter(step, self.env)
        index = program.generation
        number = await run.block(program.generations[index], f"g{index}", program.number)
        if index + 1 < len(program.generations):
            following = msgspec.structs.replace(program, number=number, generation=index + 1)
            await step.continue_as_new(following)
        return number


class Interpreter:
    """One call of `run()`."""

    def __init__(self, step: WorkflowStep, world: World) -> None:
        self._step = step
        self._world = world
        self._asked: dict[str, int] = {}

    async def block(self, block: Block, path: str, number: int, *, parallel: bool = False) -> int:
        """Run one node after the other."""
        for index, node in enumerate(block):
            number = await self._node(node, f"{path}.{index}", number, parallel=parallel)
        return number

    async def _node(self, node: tree.AnyNode, path: str, number: int, *, parallel: bool) -> int:
        step = self._step
        match node:
            case tree.Do():
                return fold(number, size_of(await self._do(node, path, number)))
            case tree.Sleep():
                await step.sleep(path, node.ms / 1000)
                return number
            case tree.Wait():
                return fold(number, await self._wait(node, path, parallel=parallel))
            case tree.Missing():
                await step.wait_for_event(path, type="nobody", timeout=0.002)
                raise AssertionError(path)
            case tree.Chance():
                drawn = await step.random(path)
                return fold(number, int(drawn == await step.do(f"{path}.keep", self._world.keep, drawn)))
            case tree.Write():
                return fold(number, await step.transaction(path, self._world.write, path))
            case tree.Raise():
                raise RaisedError(path)
            case tree.If() | tree.Loop() | tree.Try() | tree.Par():
                return await self._structure(node, path, number, parallel=parallel)
            case tree.Gather() | tree.Map() | tree.Race() | tree.Deadline():
                return await self._group(node, path, number, parallel=parallel)
            case tree.Child() | tree.Brood():
                return await self._family(node, path, number)
            case _:
                assert_never(node)

    async def _structure(
        self, node: tree.If | tree.Loop | tree.Try | tree.Par, path: str, number: int, *, parallel: bool
    ) -> int:
        match node:
            case tree.If():
                if number % 2:
                    return await self.block(node.then, f"{path}.then", number, parallel=parallel)
                return await self.block(node.otherwise, f"{path}.otherwise", number, parallel=parallel)
            case tree.Loop():
                for turn in range(number % (node.most + 1)):
                    where = f"{path}[{turn}]" if node.named else path
                    number = await self.block(node.body, where, number, parallel=parallel)
                return number
            case tree.Try():
                return fold(number, await self._caught(node.body, path, number, parallel=parallel))
            case tree.Par():
                results: dict[int, int] = {}

                async def work(index: int, branch: Block) -> None:
                    results[index] = await self._caught(branch, f"{path}.{index}", number, parallel=True)

                async with trio.open_nursery() as nursery:
                    for index, branch in enumerate(node.branches):
                        nursery.start_soon(work, index, branch)
                for index in range(len(node.branches)):
                    number = fold(number, results[index])
                return number

    async def _caught(self, block: Block, path: str, number: int, *, parallel: bool) -> int:
        try:
            return await self.block(block, path, number, parallel=parallel)
        except Exception as error:  # noqa: BLE001 - whatever it is, code_of knows it or says so
            return digest(code_of(error))

    async def _group(
        self,
        node: tree.Gather | tree.Map | tree.Race | tree.Deadline,
        path: str,
        number: int,
        *,
        parallel: bool,
    ) -> int:
        step, world = self._step, self._world
        match node:
            case tree.Gather():
                parts = {str(i): self._do(part, f"{path}.{i}", number) for i, part in enumerate(node.parts)}
                for found in (await step.gather(path, parts)).values():
                    number = fold(number, size_of(found))
                return number
            case tree.Map():
                fn = partial(map_item, world, node.fails)
                for found in await step.map(path, fn, range(node.items), limit=node.limit, retries=PATIENT):
                    number = fold(number, found)
                return number
            case tree.Race():
                return await self._race(node, path, number, parallel=parallel)
            case tree.Deadline():
                found = 1
                async with step.move_on_after(path, 0.003 if node.strikes else NEVER_S) as scope:
                    if node.strikes:
                        await step.wait_for_event(f"{path}.never", type="nobody", timeout=None)
                    found = await step.do(f"{path}.soon", world.work, number, 0, "fine", retries=PATIENT)
                assert scope.expired == node.strikes
                return fold(number, found)

    async def _race(self, node: tree.Race, path: str, number: int, *, parallel: bool) -> int:
        step, world = self._step, self._world
        parts: dict[str, Any] = {}
        name = f"{path}.winner"
        match node.winner:
            case "do":
                parts["winner"] = step.do(name, world.work, number, node.fails, "fine", retries=PATIENT)
            case "sleep":
                parts["winner"] = step.sleep(name, 0.002)
            case "event":
                parts["winner"] = self._wait_call(tree.Wait(), name, parallel=parallel)
        for index, loser in enumerate(node.losers):
            other = f"{path}.{index}"
            match loser:
                case "slow":
                    parts[other] = step.do(other, world.work_for_ever, retries=PATIENT)
                case "sleep":
                    parts[other] = step.sleep(other, NEVER_S)
                case "event":
                    parts[other] = step.wait_for_event(other, type="nobody", timeout=None)
        who, found = await step.race(path, parts)
        assert who == "winner", who
        return fold(
            number, 7 if node.winner == "sleep" else found.payload if node.winner == "event" else found
        )

    async def _family(self, node: tree.Child | tree.Brood, path: str, number: int) -> int:
        step = self._step
        if isinstance(node, tree.Child):
            child = Program((node.body,), number=number, shared=True)
            return fold(number, await step.child(Generated, child, name=path))
        children = [Program((body,), number=number, shared=True) for body in node.bodies]
        for found in await step.children(path, Generated, children, limit=node.limit):
            number = fold(number, found)
        return number

    def _do(self, node: Do, path: str, number: int) -> Any:
        world = self._world
        fn: Callable[..., Any] = world.work if node.plain else world.work_slowly
        if node.large:
            fn = world.work_large
        undo = None if node.undo is None else Rollback(partial(world.undo, node.undo), retries=PATIENT)
        retries = Retries(limit=1, delay=0.001) if node.ending == "exhausted" else PATIENT
        return self._step.do(path, fn, number, node.fails, node.ending, retries=retries, rollback=undo)

    async def _wait(self, node: tree.Wait, path: str, *, parallel: bool) -> int:
        event = await self._wait_call(node, path, parallel=parallel)
        return int(event.payload)

    def _wait_call(self, node: tree.Wait, path: str, *, parallel: bool) -> Any:
        type_ = "picky" if node.picky else path if parallel else "next"
        self._asked[path] = self._asked.get(path, 0) + 1
        wanted = meant(path, self._asked[path])
        where: Callable[[int], bool] | None = (lambda payload: payload == wanted) if node.picky else None
        return self._step.wait_for_event(path, type=type_, timeout=None, returns=int, where=where)


async def map_item(world: World, fails: int, item: int, context: StepContext) -> int:
    """Do one part of a map."""
    return await world.work_slowly(item, fails, "fine", context)


def size_of(found: int | str) -> int:
    """Return the number that stands for a result."""
    return len(found) if isinstance(found, str) else found
