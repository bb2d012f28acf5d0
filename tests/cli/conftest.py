"""The command line as people use it: real processes over a state folder of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from perdure.cli.main import main

PERDURE = Path(sysconfig.get_path("scripts"), "perdure")

WORKFLOWS = """
import time
from pathlib import Path

import trio

import perdure
from perdure import NonRetryableError, WorkflowEntrypoint, WorkflowEvent, WorkflowStep


def note(text: str) -> str:
    with Path(__file__).with_name("ran.txt").open("a") as file:
        file.write(text + "\\n")
    return text


class Greet(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        return "hello " + await step.do("greet", note, event.payload)


class Approval(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> dict[str, int]:
        await step.do("ask", note, "asked")
        answer = await step.wait_for_event("approval", type="approve", timeout="3 days")
        return {"answer": answer.payload}

    async def answer(self, number: int, *, twice: bool = False) -> list[int]:
        if number < 0:
            raise ValueError("no such answer")
        self.ctx.send_event("approve", number * (1 + twice))
        return [number]


class Errand(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[str]:
        names = ["Ada", "Grace"]
        return [*await step.children("greet", Greet, names), str(await step.child(Approval, name="ask"))]


class Secret(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
        return len(await step.do("say", lambda word: "sesame!", "open sesame", returns=str, sensitive="both"))


class Beating(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        async def work(context: perdure.StepContext) -> None:
            context.heartbeat({"page": 7})
            await trio.sleep_forever()

        await step.do("work", work)


class Stubborn(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        def work() -> None:
            note("working")
            time.sleep(60)

        await step.do("work", work)


class Declined(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        def decline() -> None:
            raise NonRetryableError("card declined\\nby the bank")

        await step.do("charge", decline)


class Unstorable(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> object:
        return await step.do("make", lambda: {"made": {1, 2}})


class Idler(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await trio.sleep_forever()


class Forgetful(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        step.do("forgotten", note, "forgotten")
        return "done"


app = perdure.App(
    [Greet, Approval, Errand, Secret, Beating, Stubborn, Declined, Unstorable, Idler, Forgetful],
    limits=perdure.Limits(shutdown_grace_s=1.0),
)
"""


class Done(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, read as JSON."""
        return json.loads(self.out)


class Place:
    """A folder with workflows.py and a state folder, and `perdure` to run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.started: list[subprocess.Popen[str]] = []
        folder.joinpath("workflows.py").write_text(textwrap.dedent(WORKFLOWS))

    def run(self, *words: str, stdin: str = "") -> Done:
        """Run a command to its end, in a process of its own."""
        done = subprocess.run(
            [PERDURE, *words],
            cwd=self.folder,
            env=self._env(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def json(self, *words: str) -> Any:
        """Run a command that has to succeed, and return what it prints as JSON."""
        done = self.run(*words, "--json")
        assert 0 == done.status, done.err
        return done.json

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command and go on."""
        process = subprocess.Popen(
            [PERDURE, *words],
            cwd=self.folder,
            env=self._env(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def serve(self, *options: str) -> subprocess.Popen[str]:
        """Start `perdure serve` and return once it is ready."""
        process = self.start("serve", "workflows.py", "--json", *options)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(f"serve did not become ready: {process.communicate()[1]}")
        assert json.loads(line)["ready"]
        return process

    def create(self, workflow: str, id_: str, params: str = "null") -> None:
        """Create an instance that has to be new."""
        done = self.run("create", f"workflows.py:{workflow}", "--id", id_, "--params", params)
        assert 0 == done.status, done.err

    def status(self, instance: str) -> str:
        """Return an instance's status."""
        return str(self.json("describe", instance)["status"])

    def ran(self) -> list[str]:
        """Return what the steps have noted."""
        path = self.folder / "ran.txt"
        return path.read_text().split() if path.exists() else []

    def _env(self) -> dict[str, str]:
        return os.environ | {"PERDURE_STATE": str(self.state), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}

    def close(self) -> None:
        """End what was started and is still there."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["served", "served by workers", "alone"])
def anyplace(request: pytest.FixtureRequest, place: Place) -> Place:
    """Return a place where a `perdure serve` runs, one where it has workers, and one where nothing runs."""
    if request.param == "served":
        place.serve()
    if request.param == "served by workers":
        place.serve("--workers", "2")
    return place


@pytest.fixture
def own_imports(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test import workflows.py into this process: the next place has a file of the same name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(place.folder)):
            del sys.modules[name]


@pytest.fixture
def cli(
    place: Place, own_imports: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run a command in this process: quicker, for what is refused before anything runs."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("PERDURE_STATE", str(place.state))

    def run(*words: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(list(words), prog_name="perdure")
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run
