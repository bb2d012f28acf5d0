"""What the tests of the engine share: a runtime whose instances run in other processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perdure import App, Runtime, open_runtime
from perdure.engine.app import load_app, load_module

PROGRAM = Path(__file__).parent / "programs" / "shared_workflows.py"

OpenShared = Callable[..., AbstractAsyncContextManager[Runtime]]


@pytest.fixture
def shared() -> ModuleType:
    """Return the module of workflows that workers load too."""
    return load_module(PROGRAM)


@pytest.fixture
def shared_app() -> App:
    """Return the app of those workflows."""
    return load_app(PROGRAM)


@pytest.fixture
def open_shared(tmp_path: Path, shared_app: App) -> OpenShared:
    """Return a function that opens a runtime of those workflows: `open_shared(workers=2)`."""

    def open_it(**options: Any) -> AbstractAsyncContextManager[Runtime]:
        options.setdefault("durability", "process")
        return open_runtime(tmp_path / "state", shared_app, **options)

    return open_it


@pytest.fixture
def lines_of() -> Callable[[Path], Counter[str]]:
    """Return a function that tells how often each step of each instance ran."""

    def read(path: Path) -> Counter[str]:
        return Counter(line.rpartition(" ")[0] for line in path.read_text().splitlines())

    return read
