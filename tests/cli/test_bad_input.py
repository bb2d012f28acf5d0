"""Bad input: one line that says the way out, an exit status that is documented, and nothing lost."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def assert_refused(done: Any, status: int, *texts: str) -> None:
    assert (status, "") == (done.status, done.out), done.err
    assert 1 == done.err.count("\n"), done.err
    assert done.err.startswith("perdure: ")
    assert "Traceback" not in done.err
    for text in texts:
        assert text in done.err


def pragma(path: Path, text: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {text}")
        connection.commit()


def in_namespace(place: Any, setup: str, *words: str) -> Any:
    """Run a command in a mount namespace that `setup` has changed; skip where that is not allowed."""
    script = f'set -e; {setup}; exec perdure "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *words]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed here")
    probe = subprocess.run(
        ["unshare", "--mount", "sh", "-c", setup],
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip(f"mount namespaces are not allowed here: {probe.stderr.strip()}")
    done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, timeout=60, check=False)
    return type("Done", (), {"status": done.returncode, "out": done.stdout, "err": done.stderr})


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["run", "nothing.py:Greet"], ["there is no file nothing.py"]),
        (["run", "workflows.py:Great"], ["no workflow Great", "Approval", "Greet"]),
        (["run", "workflows.py"], ["several workflows", "workflows.py:CLASS"]),
        (["run", "workflows.py:Greet", "--params", "{"], ["--params: not valid JSON"]),
        (["run", "workflows.py:Greet", "--params", "@gone.json"], ["gone.json cannot be read"]),
        (["run", "workflows.py:Greet", "--params", "7"], ["params do not fit str"]),
        (["run", "workflows.py:Greet", "--params", '"a"', "--id", "a\nb"], ["instance id"]),
        (["run", "workflows.py:Greet", "--params", '"a"', "--id", ""], ["--id is empty"]),
        (["create", "workflows.py:Greet", "--params", "7"], ["params do not fit str"]),
        (["create", "workflows.py:Greet", "--params", '"a"', "--id", "\x07"], ["instance id"]),
        (["serve", "nothing.py"], ["there is no file nothing.py"]),
        (["serve"], ["Missing argument", "see perdure serve --help"]),
        (["list", "--status", "lazy"], ["'lazy' is not one of", "see perdure list --help"]),
        (["fly"], ["No such command 'fly'"]),
        (["sql", "SELECT 1"], ["give an INSTANCE and one QUERY"]),
        (["sql", "--catalog", "--all", "Greet", "SELECT 1"], ["exclude each other"]),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_made(
    cli: Run, place: Any, words: list[str], texts: list[str]
) -> None:
    assert_refused(cli(*words), 2, *texts)
    assert not place.state.exists() or not list(place.state.glob("*/*"))


@pytest.mark.parametrize(
    "words",
    [
        ["describe", "x"],
        ["pause", "x"],
        ["send-event", "x", "go"],
        ["sql", "x", "SELECT 1"],
        ["watch", "x"],
        ["list"],
    ],
)
def test_a_folder_without_state_is_told_and_not_made(cli: Run, place: Any, words: list[str]) -> None:
    assert_refused(cli(*words), 4, "there is no state in", "--state DIR")
    assert not place.state.exists()


def test_a_file_that_cannot_be_imported_is_told_with_its_line(cli: Run, place: Any) -> None:
    place.folder.joinpath("broken.py").write_text("import perdure\n\n1 / 0\n")

    assert_refused(cli("run", "broken.py:X"), 2, "ZeroDivisionError: division by zero (line 3)")


def test_an_id_in_use_is_refused_and_the_first_one_stays(cli: Run) -> None:
    assert 0 == cli("create", "workflows.py:Greet", "--id", "g1", "--params", '"Ada"').status

    assert_refused(
        cli("create", "workflows.py:Greet", "--id", "g1", "--params", '"Bob"'), 3, "Greet/g1", "--if-exists"
    )
    assert [{"params": '"Ada"'}] == cli("sql", "g1", "SELECT params FROM instance", "--json").json


def test_an_unknown_instance_is_told_with_one_that_is_alike(cli: Run) -> None:
    cli("create", "workflows.py:Greet", "--id", "tides-1", "--params", '"Ada"')

    assert_refused(cli("describe", "tides-2"), 3, "no instance tides-2", "did you mean tides-1?")
    assert_refused(cli("describe", "Great/tides-1"), 3, "did you mean Greet/tides-1?")


def test_an_id_of_several_workflows_is_refused_with_the_candidates(cli: Run) -> None:
    cli("create", "workflows.py:Greet", "--id", "x", "--params", '"Ada"')
    cli("create", "workflows.py:Approval", "--id", "x")

    assert_refused(cli("terminate", "x"), 3, "Approval/x or Greet/x")
    assert {"queued"} == {row["status"] for row in cli("list", "--json").json}


def test_an_event_with_a_bad_name_or_payload_is_refused(cli: Run) -> None:
    cli("create", "workflows.py:Approval", "--id", "a1")

    assert_refused(cli("send-event", "a1", "ap\nprove"), 2, "event type")
    assert_refused(cli("send-event", "a1", "approve", "{by: Ada}"), 2, "PAYLOAD: not valid JSON")
    assert [] == cli("sql", "a1", "SELECT * FROM events", "--json").json


def test_a_name_alone_needs_a_process_that_serves_it(cli: Run, place: Any) -> None:
    cli("create", "workflows.py:Approval", "--id", "a1")

    assert_refused(cli("create", "Approval"), 2, "no process serves", "perdure create FILE:Approval")
    place.serve()
    assert_refused(cli("create", "Nothing"), 2, "no workflow is called 'Nothing'")


def test_a_folder_with_other_files_is_left_alone(cli: Run, place: Any) -> None:
    place.state.mkdir()
    place.state.joinpath("diary.txt").write_text("dear diary")

    assert_refused(cli("create", "workflows.py:Approval"), 4, "not a state folder")
    assert ["diary.txt"] == [path.name for path in place.state.iterdir()]


def test_a_folder_of_a_newer_version_or_of_another_program_is_refused(cli: Run, place: Any) -> None:
    cli("create", "workflows.py:Approval", "--id", "a1")
    catalog = place.state / "catalog.sqlite"

    pragma(catalog, "user_version = 99")
    assert_refused(cli("list"), 4, "newer Perdure", "upgrade")
    assert_refused(cli("run", "workflows.py:Approval"), 4, "newer Perdure")
    pragma(catalog, "user_version = 1")
    pragma(catalog, "application_id = 7")
    assert_refused(cli("list"), 4, "another program")


@pytest.mark.slow
def test_a_damaged_file_is_reported_and_the_others_go_on(cli: Run, place: Any) -> None:
    for id_ in ("g1", "g2"):
        assert 0 == cli("run", "workflows.py:Greet", "--id", id_, "--params", '"Ada"', "-q").status
    place.state.joinpath("Greet", "g1.sqlite").write_bytes(b"no database at all" * 400)

    united = cli("sql", "--all", "Greet", "SELECT output FROM instance", "--json")
    described = cli("describe", "g1")

    assert (6, [{"instance_id": "g2", "output": '"hello Ada"'}]) == (united.status, united.json)
    assert "Greet/g1 gave no answer" in united.err
    assert described.status in (4, 6)
    assert "damaged" in described.err
    assert '"hello Ada"\n' == cli("run", "workflows.py:Greet", "--id", "g2", "-q").out


@pytest.mark.slow
def test_a_result_that_cannot_be_stored_and_a_forgotten_await_fail_in_one_line(cli: Run) -> None:
    assert_refused(cli("run", "workflows.py:Unstorable", "-q"), 1, "EncodingError", "annotate")
    assert_refused(
        cli("run", "workflows.py:Forgetful", "-q"), 1, "ForgottenAwaitError", "'forgotten'", "workflows.py:"
    )


@pytest.mark.slow
def test_a_second_serve_is_refused_and_names_the_first(cli: Run, place: Any) -> None:
    serve = place.serve()

    assert_refused(cli("serve", "workflows.py"), 4, f"process {serve.pid}")


@pytest.mark.slow
def test_a_read_only_folder_is_refused(place: Any) -> None:
    place.create("Approval", "a1")
    setup = "mount --bind state state && mount -o remount,bind,ro state"

    for words in (["list"], ["pause", "a1"], ["run", "workflows.py:Approval"]):
        assert_refused(in_namespace(place, setup, *words, "--state", "state"), 4, "read-only", "--state DIR")
    assert "queued" == place.status("a1")


@pytest.mark.slow
def test_a_full_disk_is_told_and_what_is_committed_stays(place: Any) -> None:
    setup = "mkdir -p state && mount -t tmpfs -o size=128k tmpfs state"
    setup += " && head -c 100k /dev/zero > state/owner.lock"

    done = in_namespace(place, setup, "create", "workflows.py:Approval", "--state", "state")

    assert_refused(done, 4, "full")


@pytest.mark.slow
def test_a_network_file_system_is_refused(place: Any) -> None:
    mount = f"99 1 0:99 / {place.folder} rw - nfs4 server:/export rw"
    place.folder.joinpath("mounts").write_text(mount + "\n")

    done = in_namespace(
        place, "mount --bind mounts /proc/$$/mountinfo", "create", "workflows.py:Approval", "--state", "state"
    )

    assert_refused(done, 4, "network file system (nfs4)")
    assert not place.state.exists()
