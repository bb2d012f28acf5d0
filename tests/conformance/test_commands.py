"""The command line (cases 126 to 129): what is refused, and what `latest` means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.cli.main import main
from perdure.testing import open_test_runtime

WORKFLOWS = """
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep

class Waits(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.wait_for_event("word", type="word", timeout=None)
"""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs a command in a folder with `workflows.py`: its status and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_STATE", str(tmp_path / "state"))
    (tmp_path / "workflows.py").write_text(WORKFLOWS)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words), prog_name="perdure")
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def create(cli: Cli, id_: str) -> None:
    status, _, err = cli("create", "workflows.py:Waits", "--id", id_)
    assert 0 == status, err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--count", "2"], "which step is meant"),
        (["--kind", "sleep"], "which step is meant"),
        (["--from", "word", "--count", "0"], "count=0"),
    ],
)
def test_case_126_a_restart_with_a_count_or_kind_and_no_step_or_a_count_below_1_is_refused(
    cli: Cli, words: list[str], told: str
) -> None:
    create(cli, "a")
    status, _, err = cli("restart", "a", *words)
    assert 2 == status
    assert told in err


def test_case_127_more_than_a_hundred_ids_are_deleted_at_once(cli: Cli, tmp_path: Path) -> None:
    class Waits(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
            await step.wait_for_event("word", type="word", timeout=None)

    ids = [f"i{number}" for number in range(101)]

    async def create_all() -> None:
        async with open_test_runtime(tmp_path / "state", workflows=[Waits]) as runtime:
            await runtime.create_batch(Waits, [{"id": id_} for id_ in ids])

    trio.run(create_all)
    status, _, err = cli("delete", *ids, "missing", "--yes")
    assert (3, True) == (status, "missing" in err)  # one that there is not refuses all
    assert 0 == cli("delete", *ids, "--yes")[0]  # adapted: their number has no bound
    assert [] == json.loads(cli("list", "--json")[1])


def test_case_128_latest_is_the_newest_instance(cli: Cli) -> None:
    for id_ in ("first", "second"):
        create(cli, id_)
    status, out, _ = cli("describe", "latest")
    assert (0, True) == (status, "Waits/second" in out), out
    status, out, err = cli("delete", "latest", "--yes")
    assert 0 == status, err
    assert "Waits/first" in cli("describe", "Waits/latest")[1]


def test_case_129_an_invalid_status_is_refused_with_the_valid_ones(cli: Cli) -> None:
    create(cli, "a")
    status, _, err = cli("list", "--status", "done")
    assert 2 == status
    assert all(name in err for name in ("queued", "running", "complete", "errored", "terminated"))
