"""What the integration tests share: the programs in `examples/`, started as they stand.

Each program serves on a port of its own choice and says so in its first line. A fixture starts it, kills
it, starts it again, and ends what is left.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
END_S = 30.0


class Service:
    """A program that serves, in a process of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        command = [sys.executable, str(EXAMPLES / name), "--state", str(folder), "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Serving on "), self.end(signal.SIGKILL)
        self.client = httpx.Client(base_url=line.split()[-1], timeout=END_S)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal; return how the program ended and what it wrote to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=END_S)
        return self.process.returncode, errors


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[[str], Service]]:
    """Start a program over one state folder, as often as it is called."""
    started: list[Service] = []

    def start(name: str) -> Service:
        started.append(Service(name, tmp_path / "state"))
        return started[-1]

    yield start
    for one in started:
        one.client.close()
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


@pytest.fixture
def example() -> Iterator[Callable[[str], ModuleType]]:
    """Import a program of `examples/` by its name, for the length of a test."""
    loaded: list[str] = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        del sys.modules[name]
