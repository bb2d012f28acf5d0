"""Show that an installed Perdure works: every module imports, and one small workflow runs.

Run by itself, with no test tools installed: `python -I smoke.py`, from any folder. It prints one
line and exits 0, or fails with the error as it is.

Invariants:
    It needs nothing but Perdure and its dependencies.
    It leaves nothing behind: its state folder is a temporary one.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

import trio

import perdure
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep

FLOORS: Final = {"actors", "benchmarks", "cli", "engine", "storage"}


def double(number: int) -> int:
    """Return twice the number: the step's function."""
    return 2 * number


class Doubling(WorkflowEntrypoint[None]):
    """Double a number in one step, and again in the next."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        """Return four times the payload."""
        twice = await step.do("double", double, event.payload)
        return await step.do("double again", double, twice)


def import_everything() -> list[str]:
    """Import every module of the package and return their names."""
    names = [module.name for module in pkgutil.walk_packages(perdure.__path__, "perdure.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    missing = FLOORS - {name.split(".")[1] for name in names}
    assert not missing, f"not in the package: {', '.join(sorted(missing))}"
    return names


async def run_one_workflow(state: Path) -> int:
    """Run the workflow, then open its state again: the result is still there."""
    app = perdure.App(workflows=[Doubling])
    async with perdure.open_runtime(state, app) as runtime:
        instance = await runtime.create(Doubling, params=21, id="smoke")
        first = await instance.result()
    async with perdure.open_runtime(state, app) as runtime:
        instance = await runtime.get(Doubling, "smoke")
        again = await instance.result()
        rows = await instance.sql("select name, status from steps order by seq")
    assert first == again == 84, (first, again)
    assert [row["name"] for row in rows] == ["double", "double again"], rows
    return first


def main() -> None:
    """Import, run, and say what was tried."""
    modules = import_everything()
    with tempfile.TemporaryDirectory() as folder:
        trio.run(run_one_workflow, Path(folder, "state"))
    version = metadata.version("perdure")
    where = Path(perdure.__file__).parent
    sys.stdout.write(f"perdure {version}: {len(modules)} modules import and a workflow runs, from {where}\n")


if __name__ == "__main__":
    main()
