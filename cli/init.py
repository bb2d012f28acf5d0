"""`perdure init`: a first workflow with its test, to run and to change.

What is written here is run by our tests as it stands, so that it cannot go stale.

Invariants:
    No file that exists is touched; where one does, nothing is written at all.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import click

from perdure import InvalidArgumentError
from perdure.cli import exits

HELLO: Final = '''\
"""A first workflow: steps, a sleep, a retry, and an event that somebody else sends."""

from dataclasses import dataclass

from perdure import EventTimeoutError, Retries, StepContext, WorkflowEntrypoint, WorkflowEvent, WorkflowStep


@dataclass
class Guest:
    name: str


@dataclass
class Visit:
    letter: str
    delivered_at_attempt: int
    answer: str


class Hello(WorkflowEntrypoint):
    """Write to a guest, deliver the letter, wait for the answer.

    Each step runs once: its result is recorded under its name. Kill the process at any point and
    start it again, and it goes on behind the last step that was recorded.
    """

    async def run(self, event: WorkflowEvent[Guest], step: WorkflowStep) -> Visit:
        letter = await step.do("write", write, event.payload.name)
        await step.sleep("let the ink dry", "2 seconds")
        attempt = await step.do("deliver", deliver, letter, retries=Retries(limit=3, delay="1 second"))
        try:
            reply = await step.wait_for_event("answer", type="answer", timeout="20 seconds", returns=str)
            answer = reply.payload
        except EventTimeoutError:
            answer = "(none)"
        return Visit(letter=letter, delivered_at_attempt=attempt, answer=answer)


# Step functions do the work. A plain function runs in a thread; `async def` runs in trio.


def write(name: str) -> str:
    return f"Hello, {name}!"


def deliver(letter: str, context: StepContext) -> int:
    if context.attempt == 1:
        raise ConnectionError("the first attempt fails on purpose, so that you see a retry")
    return context.attempt
'''

TEST_HELLO: Final = '''\
"""Tests of the first workflow. Time is virtual: sleeps and timeouts pass at once.

Here run() is called again from the top after every recorded step, so code that would not survive
a crash fails in the test.
"""

from pathlib import Path

import trio
from perdure.testing import open_test_runtime

from hello import Guest, Hello, Visit


async def visit(state: Path, answer: str | None) -> Visit:
    async with open_test_runtime(state, workflows=[Hello]) as runtime:
        instance = await runtime.create(Hello, params=Guest("Ada"))
        if answer is not None:
            await instance.send_event("answer", answer)
        return await instance.result()


def test_the_answer_arrives(tmp_path: Path) -> None:
    assert trio.run(visit, tmp_path, "Hello yourself") == Visit("Hello, Ada!", 2, "Hello yourself")


def test_nobody_answers(tmp_path: Path) -> None:
    assert trio.run(visit, tmp_path, None) == Visit("Hello, Ada!", 2, "(none)")
'''

FILES: Final = {"hello.py": HELLO, "test_hello.py": TEST_HELLO}


@click.command()
@exits.traceback_option
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
def init(*, folder: Path) -> None:
    """Write a first workflow, hello.py, and its test into DIR (default: the current folder).

    Existing files are never overwritten.

    \b
    perdure init
    perdure init hello
    """
    write_files(folder)
    for line in told(folder):
        click.echo(line)


def write_files(folder: Path) -> None:
    """Write both files, or none. Raises `InvalidArgumentError` where one exists or cannot be made."""
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise InvalidArgumentError(
            f"{folder / there[0]} exists already and was left as it is: choose another folder, as in"
            " `perdure init hello`"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise InvalidArgumentError(f"{folder} cannot be written to: {error.strerror or error}") from error


def told(folder: Path) -> list[str]:
    """Return what to do next."""
    enter = [] if folder == Path() else [f"    cd {shlex.quote(str(folder))}"]
    return [
        f"Wrote {folder / 'hello.py'}, a workflow, and {folder / 'test_hello.py'}, its test. Next:",
        "",
        *enter,
        """    perdure run hello.py:Hello --params '{"name": "Ada"}' --id ada""",
        "",
        "It waits 20 seconds for an answer. From another terminal, in the same folder:",
        "",
        """    perdure send-event Hello/ada answer '"Hello yourself"'""",
        "",
        "Press Ctrl-C, or kill it, and run the same command again: it goes on where it was. Then:",
        "",
        "    perdure describe Hello/ada",
        '    perdure sql Hello/ada "SELECT name, status, attempts, duration_ms FROM steps"',
        "    python -m pytest        # pip install pytest",
    ]
