"""The examples in docstrings do what they say: those of every module, not of the public ones alone.

An example without `await` is an ordinary doctest. One with `await` is run under trio, with these names
to hand: `runtime`, `Tides`, a workflow, `instance`, one of it that has ended, and `order`, an instance of
`Order` that waits to be approved. One that speaks of `step`
is run inside a `run()`, which has an event of type `approve` waiting.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

import perdure
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import open_test_runtime

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def all_examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in pkgutil.walk_packages(perdure.__path__, "perdure."):
        if not module.name.endswith("__main__"):
            yield from finder.find(importlib.import_module(module.name))
    yield from finder.find(perdure, "perdure")


EXAMPLES = sorted((test for test in all_examples() if test.examples), key=lambda test: test.name)


def awaits(test: doctest.DocTest) -> bool:
    text = "".join(example.source for example in test.examples)
    return ("await " in text or "async " in text) and "trio.run" not in text


def is_of_steps(test: doctest.DocTest) -> bool:
    return any("step." in example.source for example in test.examples)


PLAIN = [test for test in EXAMPLES if not awaits(test)]
ASYNC = [test for test in EXAMPLES if awaits(test)]


def name_of(test: doctest.DocTest) -> str:
    return test.name


@pytest.mark.parametrize("test", PLAIN, ids=name_of)
def test_the_example_in_a_docstring_does_what_it_says(test: doctest.DocTest) -> None:
    printed = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=printed.write, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, printed.getvalue()


async def run_async(test: doctest.DocTest, names: dict[str, Any]) -> None:
    """Run the examples of a docstring as a console with `await` would."""
    checker = doctest.OutputChecker()
    for example in test.examples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            source = compile(example.source, test.name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            assert isinstance(source, CodeType)
            awaitable = FunctionType(source, names)()
            if inspect.iscoroutine(awaitable):
                await awaitable
        told = printed.getvalue()
        assert checker.check_output(example.want, told, FLAGS), f"{example.source} gives {told}"


async def fetch_levels(place: str) -> list[float]:
    return [0.4, 3.1] if place else []


class Tides(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> float:
        return max(await step.do("fetch levels", fetch_levels, event.payload))


class Greet(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        return f"hello {event.payload}"


class Order(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        self.address = event.payload
        approval = await step.wait_for_event("approval", type="approved")
        return f"shipped to {self.address}, approved by {approval.payload['by']}"

    async def set_address(self, address: str) -> str:
        self.address = address
        return f"shipping to {address}"

    async def count_steps(self) -> int:
        count: int = self.ctx.storage.sql.exec("SELECT count(*) AS n FROM steps").one()["n"]
        return count

    async def approve(self, by: str) -> None:
        self.ctx.send_event("approved", {"by": by})


class Essay(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await out.write("high")
            await out.write("water")


@pytest.mark.parametrize("test", [test for test in ASYNC if not is_of_steps(test)], ids=name_of)
async def test_the_awaiting_example_in_a_docstring_does_what_it_says(
    test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_test_runtime(tmp_path / "tests-own-state", workflows=[Tides, Order, Essay]) as runtime:
        instance = await runtime.create(Tides, params="Brest", id="brest")
        await instance.result()
        names: dict[str, Any] = {
            "perdure": perdure, "runtime": runtime, "instance": instance, "Tides": Tides,
        }  # fmt: skip
        if any("order." in example.source for example in test.examples):
            names |= {"order": await runtime.create(Order, params="1 Kay Street"), "Order": Order}
        if any("essay." in example.source for example in test.examples):
            names["essay"] = await runtime.create(Essay)
        await run_async(test, {**test.globs, **names})


@pytest.mark.parametrize("test", [test for test in ASYNC if is_of_steps(test)], ids=name_of)
async def test_the_example_of_a_step_method_does_what_it_says(test: doctest.DocTest, tmp_path: Path) -> None:
    class Example(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            names = {"perdure": perdure, "step": step, "Greet": Greet, "fetch_levels": fetch_levels}
            await run_async(test, {**test.globs, **names})

    async with open_test_runtime(tmp_path, workflows=[Example, Greet], replay="warm") as runtime:
        await (await runtime.create(Example, event=("approve", {"by": "Ada"}))).result()


def test_no_example_hides_behind_a_comment() -> None:
    hidden = [
        test.name
        for test in EXAMPLES
        for example in test.examples
        if example.source.lstrip().startswith("# ")
    ]
    assert hidden == []
