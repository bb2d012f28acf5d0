"""Tries what the pages say: README.md, CHANGELOG.md and docs/*.md, block by block.

A page's blocks are tried in order, from top to bottom, in an empty folder of the page's own:

    ```python whose first line is a comment with a file's name, as `# hello.py`: saved under that name.
              A later command runs it, or another file imports it.
    ```python else: run, in one namespace with the page's other such blocks.
    ```text   below a run block: what it printed.
    ```console a line `$ command` is run in the page's one shell; the lines below it are what it
              printed. A command that fails is followed by `$ echo $?`.
    ```sql    statements, each run on the instance that the page made last: they must be valid.
    ```sh     what sets a machine up (git, pip, make): read and not run.

What differs from one run to the next (times, durations, random ids, process ids, bars, the shell's
own "Killed") and the width of a table may differ from the page; a line `...` stands for any lines.
All else is equal.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

ROOT: Final = Path(__file__).resolve().parent.parent.parent
HOME: Final = "/home/ada/work"
"""What the pages call the folder in which they are tried."""
COMMAND_S_MAX: Final = 60.0
BLOCK: Final = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_LINE: Final = re.compile(r"# ([\w./-]+\.\w+)\n")

VARYING: Final = (  # what may differ, and what stands for it
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z| UTC)?"), "TIME"),
    (re.compile(r"\b\d\d:\d\d(:\d\d(\.\d+)?)?\b"), "TIME"),
    (re.compile(r"(?<![\w-])\d+(\.\d+)?\s?(ms|µs|s|min|h)(?![\w-])"), "SPAN"),
    (re.compile(r"SPAN SPAN"), "SPAN"),
    (re.compile(r"_ms\": \d+(\.\d+)?"), '_ms": SPAN'),
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"\b(pid|process) \d+"), "PID"),
    (re.compile(r"^(bash: .*\b)?Killed\b.*$", re.MULTILINE), ""),
    (re.compile(r"[·━]{4,}"), "BAR"),
    (re.compile(r"[─━═╌┈-]{3,}"), "-"),
    (re.compile(r"[ \t]+"), " "),
)


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One fenced block of a page. `line` is that of its fence."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name under which the block is to be saved."""
        found = FILE_LINE.match(self.text) if self.language in ("python", "toml") else None
        return found.group(1) if found else None

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with what it prints."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        pairs: list[tuple[str, str]] = []
        for part in parts:
            command, _, output = part.partition("\n")
            while command.endswith("\\"):
                more, _, output = output.partition("\n")
                command = f"{command[:-1]}{more.removeprefix('> ').lstrip()}"
            pairs.append((command, output))
        return pairs


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=str(page.relative_to(ROOT)), line=text.count("\n", 0, found.start()) + 1,
            language=found.group(1), text=found.group(2),
        )
        for found in BLOCK.finditer(text)
    ]  # fmt: skip


def essence(text: str, folder: Path) -> list[str]:
    """Return the lines of an output without what may differ."""
    text = text.replace(str(folder), HOME)
    for pattern, stands_for in VARYING:
        text = pattern.sub(stands_for, text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def agrees(expected: list[str], printed: list[str]) -> bool:
    """Whether the output is the expected one, where `...` stands for any lines."""
    if not expected:
        return not printed
    if expected[0] == "...":
        return any(agrees(expected[1:], printed[index:]) for index in range(len(printed) + 1))
    return bool(printed) and expected[0] == printed[0] and agrees(expected[1:], printed[1:])


class Shell:
    """One bash for all commands of a page, so that jobs and `export` carry over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._output: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._number = 0
        self._process = subprocess.Popen(
            ["bash", "--norc"], cwd=folder, env=_environment(folder), text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self, command: str, enough: Callable[[str], bool]) -> tuple[str, int]:
        """Run a command; return what it printed and its exit code.

        One in the background is given time until `enough` accepts what was printed.
        """
        self._number += 1
        marker = f"--- {self._number} ends with "
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n_code=$?; echo '{marker}'$_code; (exit $_code)\n")
        self._process.stdin.flush()
        deadline_s = time.monotonic() + COMMAND_S_MAX
        printed, code = "", None
        while code is None or (command.endswith("&") and not enough(printed)):
            try:
                line = self._output.get(timeout=deadline_s - time.monotonic())
            except (queue.Empty, ValueError):
                break
            before, is_marker, number = line.partition(marker)
            printed += before
            if is_marker:
                code = int(number)
        if code is None:
            pytest.fail(f"`{command}` did not end within {COMMAND_S_MAX:g} s; it printed:\n{printed}")
        return printed, code

    def close(self) -> None:
        """End the shell and what it still runs."""
        assert self._process.stdin is not None
        self._process.stdin.write("kill $(jobs -p) 2>/dev/null; wait; exit\n")
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._output.put(line)


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "PYTEST"))}
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    plain = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8"}
    quiet = {"PYTEST_ADDOPTS": "-W ignore"}  # what other libraries warn of comes and goes
    return {**kept, **plain, **quiet, "PATH": scripts, "HOME": str(folder)}


class Page:
    """One page being tried."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.blocks = blocks_of(path)
        self._folder = folder
        self._module = types.ModuleType(f"page_{path.stem}")
        self._shell: Shell | None = None

    def try_all(self) -> None:
        """Try every block; fail with the page and line of the first one that is not true."""
        for index, block in enumerate(self.blocks):
            follower = self.blocks[index + 1] if index + 1 < len(self.blocks) else None
            if block.file is not None:
                path = self._folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                printed = self._run(block)
                told = follower.text if follower is not None and follower.language == "text" else ""
                self._compare(block, told, printed)
            elif block.language == "console":
                self._type(block)
            elif block.language == "sql":
                self._ask(block)

    def close(self) -> None:
        """End the shell, if one was opened."""
        if self._shell is not None:
            self._shell.close()

    def _run(self, block: Block) -> str:
        sys.modules[self._module.__name__] = self._module
        # Blank lines put the block's own line numbers into tracebacks.
        code = compile("\n" * block.line + block.text, block.page, "exec", dont_inherit=True)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, vars(self._module))  # noqa: S102 - the page's own example
        return printed.getvalue()

    def _type(self, block: Block) -> None:
        shell = self._shell = self._shell or Shell(self._folder)
        commands = block.commands
        for index, (command, told) in enumerate(commands):
            if command.startswith("sqlite3 ") and shutil.which("sqlite3") is None:
                continue
            expected = essence(told, self._folder)
            printed, code = shell.run(command, lambda text: agrees(expected, essence(text, self._folder)))  # noqa: B023 - called before the next turn
            asked = index + 1 < len(commands) and commands[index + 1][0] == "echo $?"
            if code and not asked:
                pytest.fail(f"{block.page}:{block.line}: `{command}` ends with {code}:\n{printed}")
            self._compare(block, told, printed, command)

    def _ask(self, block: Block) -> None:
        files = sorted(self._folder.glob(".perdure/*/*.sqlite"), key=lambda file: file.stat().st_mtime_ns)
        with contextlib.closing(sqlite3.connect(files[-1])) as connection:
            for statement in block.text.split(";"):
                connection.execute(statement).fetchall()

    def _compare(self, block: Block, told: str, printed: str, command: str = "the block") -> None:
        if not agrees(essence(told, self._folder), essence(printed, self._folder)):
            pytest.fail(
                f"{block.page}:{block.line}: {command} prints\n{printed}\nwhere the page has\n{told}",
                pytrace=False,
            )


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """Return the page named by the test's parameter, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    known = set(sys.modules)
    page = Page(ROOT / request.param, tmp_path)
    yield page
    page.close()
    for name in set(sys.modules) - known:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or "") or name.startswith("page_"):
            del sys.modules[name]
