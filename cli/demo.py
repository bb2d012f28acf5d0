"""`perdure demo`: a real workflow, killed in the middle with SIGKILL, goes on where it was.

This process only watches. The workflow runs in a child, `demo_worker`; the moment of the kill is
chosen by progress: half of all steps are recorded, and the attempt that waits for the kill is under
way, so that one attempt is certainly lost. A second child then gets nothing but the state folder.

Invariants:
    No child outlives the demo, however that ends.
    It exits with 0 only where the instance completed and no recorded step ran a second time.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Final

import click
import msgspec
import trio
from rich.console import Console

from perdure import PerdureError
from perdure.cli.audit import list_distributions
from perdure.cli.demo_proof import Evidence, Story, gather
from perdure.cli.demo_show import Show
from perdure.cli.demo_worker import Progress
from perdure.cli.exits import traceback_option
from perdure.cli.options import json_option
from perdure.engine.clock import SystemClock
from perdure.engine.folder import StateFolder

RUN_S: Final = 5.0
"""How long the run is stretched to where somebody watches; --fast leaves that out."""
PAUSE_S_MAX: Final = 0.15

WORKER: Final = (sys.executable, "-P", "-m", "perdure.cli.demo_worker")
"""-P: a file in the current folder must not stand in for a module of ours."""


class DemoError(PerdureError):
    """The demo could not be carried out, or did not show what it is to show."""


@click.command()
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False),
    help="The state folder to use; a new one in the temporary folder by default. It is kept.",
)  # fmt: skip
@json_option
@click.option("--fast", is_flag=True, help="Do not slow the steps down for somebody who watches.")
@traceback_option
def demo(state: Path | None, as_json: bool, fast: bool) -> None:
    """Watch a real workflow survive SIGKILL, and ask it with SQL.

    The workflow audits every Python distribution installed beside Perdure: it reads the metadata,
    hashes the files against their RECORD, and classifies the licence. The demo kills its process
    in the middle, starts it again, and shows that no recorded step ran a second time.

    Exits with 0 when all that held, else with 1.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if callable(reconfigure):  # a locale without our characters gets "?" for them
        reconfigure(errors="replace")
    show = Show(Console(), quiet=as_json)
    watched = show.console.is_terminal and not as_json and not fast
    evidence = run_demo(state, show, stretch_s=RUN_S if watched else 0.0)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(evidence), indent=2).decode())
    if not evidence.proof.holds:
        raise DemoError("a recorded step ran a second time, or the records do not agree: see the proof above")


def run_demo(state: Path | None, show: Show, *, stretch_s: float) -> Evidence:
    """Run the whole demo and return what it found."""
    folder = (state or Path(tempfile.mkdtemp(prefix="perdure-demo-"))).absolute()
    StateFolder(folder).prepare()  # refuses a folder that cannot hold state
    names = list_distributions()
    pause_s = min(PAUSE_S_MAX, stretch_s * 4 / (3 * len(names) + 1))
    stage = Stage(folder, _free_id(folder), show, pause_s=pause_s)
    show.console.print("[bold]Perdure: a workflow that survives kill -9[/]", highlight=False)
    show.say(
        f"It audits the {len(names)} Python distributions installed here: reads the metadata of each,"
        " hashes its files against its RECORD, classifies its licence."
        f" That makes {3 * len(names) + 2} steps."
        + (" Each is slowed down so that you can follow; --fast leaves that out." if pause_s else "")
    )
    before, killed_pid, killed_at_ms = stage.until_killed()
    after, resumed_pid, resumed_at_ms = stage.to_the_end(before)
    story = Story(
        state=str(folder), instance=stage.instance, distributions=after.distributions or 0,
        total=after.total or 0, killed_pid=killed_pid, killed_at_ms=killed_at_ms,
        recorded_before=before.recorded, resumed_pid=resumed_pid, resumed_at_ms=resumed_at_ms,
        recorded_after=after.recorded,
    )  # fmt: skip
    evidence = trio.run(gather, story, stage.executions)
    _show_evidence(show, evidence)
    return evidence


def _show_evidence(show: Show, evidence: Evidence) -> None:
    show.part("No recorded step ran a second time")
    show.proof(evidence.proof, evidence.story.recorded_before)
    show.part("The timeline")
    show.timeline(evidence.timeline)
    show.part("What the audit found")
    show.report(evidence.report)
    show.part("Three questions to the instance's own file")
    for answer in evidence.queries:
        show.answer(answer)
    show.look_on(evidence)


def _free_id(folder: Path) -> str:
    """Return the first of audit-1, audit-2, … that no file has: a state folder may be used again."""
    number = 1
    while (folder / "Audit" / f"audit-{number}.sqlite").exists():
        number += 1
    return f"audit-{number}"


class Stage:
    """One instance and the processes that run it."""

    def __init__(self, folder: Path, instance: str, show: Show, *, pause_s: float) -> None:
        self.instance = instance
        self.executions = folder / f"{instance}.executions.jsonl"
        self._folder = folder
        self._show = show
        self._pause_s = pause_s
        self._clock = SystemClock()

    def until_killed(self) -> tuple[Progress, int, int]:
        """Run the first process and kill it; return what it had recorded, its id, and when."""
        progress = Progress()
        with tempfile.TemporaryFile() as errors, self._worker(errors, "--new") as process:
            self._show.part("Start")
            self._show.say(f"Process {process.pid} runs Audit/{self.instance} in {self._folder}")
            with self._show.live() as live:
                for progress in _lines(process):
                    live.show(progress)
                    if progress.holding and progress.total and 2 * progress.recorded >= progress.total:
                        break
                else:
                    raise _failed(process, errors, "ended before it could be killed")
                process.send_signal(signal.SIGKILL)
                at_ms = self._clock.wall_ms()
                process.wait()
            self._show.part("Kill")
            self._show.say(
                f"[bold red]kill -9 {process.pid}[/], with {progress.recorded} of {progress.total} steps"
                " recorded. No handler ran, nothing was saved: what is recorded was on disk already. So that"
                " an attempt is under way for certain, one waits for the kill on purpose; any other that is"
                " lost was simply at work."
            )
            return progress, process.pid, at_ms

    def to_the_end(self, before: Progress) -> tuple[Progress, int, int]:
        """Run the second process to its end; return what is recorded then, its id, and when it began."""
        progress = before
        at_ms: int | None = None
        with tempfile.TemporaryFile() as errors, self._worker(errors) as process:
            self._show.part("Go on")
            self._show.say(
                f"Process {process.pid} opens the same folder. It is given no order: the instance goes on."
            )
            with self._show.live() as live:
                for progress in _lines(process):
                    at_ms = at_ms or self._clock.wall_ms()
                    live.show(progress)
            if process.wait() != 0 or not progress.done or at_ms is None:
                raise _failed(process, errors, "did not finish the audit")
            return progress, process.pid, at_ms

    @contextlib.contextmanager
    def _worker(self, errors: IO[bytes], *options: str) -> Generator[subprocess.Popen[bytes], None, None]:
        command = [
            *WORKER,
            str(self._folder),
            self.instance,
            str(self.executions),
            "--pause",
            f"{self._pause_s:.4f}",
        ]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=errors)  # noqa: S603 - our own module
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[Progress]:
    assert process.stdout is not None
    for line in process.stdout:
        yield msgspec.json.decode(line, type=Progress)


def _failed(process: subprocess.Popen[bytes], errors: IO[bytes], what: str) -> DemoError:
    code = process.wait()
    errors.seek(0)
    said = [line.strip(" |+-") for line in errors.read().decode(errors="replace").splitlines()]
    why = next((f": {line}" for line in reversed(said) if line), "")
    return DemoError(f"the process that runs the audit {what} (exit code {code}){why}")


__all__ = ["DemoError", "demo", "run_demo"]
