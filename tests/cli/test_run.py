"""`perdure run`: to the end, parked by a signal, gone on with, and beside a process that serves."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Return the lines that a process wrote to stderr up to the one with `text`."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return lines
    pytest.fail(f"{text!r} never came: {lines}")


def test_run_prints_the_result_alone_on_stdout_and_the_steps_on_stderr(place: Any) -> None:
    done = place.run("run", "workflows.py:Greet", "--params", '"Ada"')

    assert (0, '"hello Ada"\n') == (done.status, done.out)
    assert "do completed         greet" in done.err


def test_params_come_from_a_file_or_from_stdin(place: Any) -> None:
    place.folder.joinpath("params.json").write_text('"Ada"')

    from_file = place.run("run", "workflows.py:Greet", "--params", "@params.json", "-q")
    from_stdin = place.run("run", "workflows.py:Greet", "--params", "-", "-q", stdin='"Bob"')

    assert ["hello Ada", "hello Bob"] == [from_file.json, from_stdin.json]


def test_replay_always_gives_the_same_result_and_runs_no_step_twice(place: Any) -> None:
    done = place.run("run", "workflows.py:Greet", "--params", '"Ada"', "--replay", "always", "--json")

    assert {"status": "complete", "result": "hello Ada"}.items() <= done.json.items()
    assert ["Ada"] == place.ran()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_parks_the_instance_and_the_printed_command_goes_on(
    place: Any, number: int, status: int
) -> None:
    process = place.start("run", "workflows.py:Approval", "--id", "a1")
    read_until(process, "event started")
    process.send_signal(number)

    assert status == process.wait(30)
    err = process.communicate()[1]
    assert "parked Approval/a1; it goes on with: perdure run workflows.py:Approval --id a1" in err

    place.run("send-event", "a1", "approve", "7")
    done = place.run("run", "workflows.py:Approval", "--id", "a1", "-q")
    assert {"answer": 7} == done.json
    assert ["asked"] == place.ran()


def test_a_run_that_was_killed_goes_on_and_runs_no_recorded_step_again(place: Any) -> None:
    process = place.start("run", "workflows.py:Approval", "--id", "a1")
    read_until(process, "event started")
    process.kill()
    process.wait()

    place.run("send-event", "a1", "approve", "7")

    assert {"answer": 7} == place.run("run", "workflows.py:Approval", "--id", "a1", "-q").json
    assert ["asked"] == place.ran()


def test_an_id_that_has_finished_gives_its_result_again(place: Any) -> None:
    first = place.run("run", "workflows.py:Greet", "--id", "g1", "--params", '"Ada"', "-q")

    again = place.run("run", "workflows.py:Greet", "--id", "g1")

    assert (first.out, "") == (again.out, again.err)
    assert ["Ada"] == place.ran()


def test_an_id_in_use_with_other_params_is_refused(place: Any) -> None:
    place.run("run", "workflows.py:Greet", "--id", "g1", "--params", '"Ada"', "-q")

    refused = place.run("run", "workflows.py:Greet", "--id", "g1", "--params", '"Bob"')

    assert (3, "") == (refused.status, refused.out)
    assert "other params" in refused.err
    assert ["Ada"] == place.ran()


def test_a_second_signal_exits_at_once_where_a_function_does_not_return(place: Any) -> None:
    process = place.start("run", "workflows.py:Stubborn", "--id", "s1")
    read_until(process, "do started")
    while process.poll() is None:  # two signals at one moment are one
        process.send_signal(signal.SIGINT)
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue

    assert 75 == process.returncode
    assert "goes on with: perdure run workflows.py:Stubborn --id s1" in process.communicate()[1]


def test_an_orderly_end_past_the_stated_time_exits_hard(place: Any) -> None:
    process = place.start("run", "workflows.py:Stubborn", "--id", "s1")
    read_until(process, "do started")
    process.send_signal(signal.SIGTERM)

    assert 75 == process.wait(30)
    assert "running" == place.status("s1")


def test_serve_ends_in_good_order_and_what_it_had_goes_on(place: Any) -> None:
    serve = place.serve()
    place.create("Approval", "a1")
    place.run("send-event", "a1", "other")
    serve.send_signal(signal.SIGTERM)

    assert 0 == serve.wait(30)
    assert "stopped" in serve.communicate()[1]
    place.serve()
    place.run("send-event", "a1", "approve", "7")
    assert 0 == place.run("watch", "a1").status


def test_run_creates_in_the_process_that_serves_and_follows_it_there(place: Any) -> None:
    place.serve()

    done = place.run("run", "workflows.py:Greet", "--id", "g1", "--params", '"Ada"')
    again = place.run("run", "workflows.py:Greet", "--id", "g1", "-q")

    assert ("hello Ada", "hello Ada") == (done.json, again.json)
    assert "instance complete" in done.err


def test_run_takes_over_where_the_process_that_served_is_killed(place: Any) -> None:
    serve = place.serve()
    follower = place.start("run", "workflows.py:Approval", "--id", "a1")
    read_until(follower, "event started")
    serve.kill()
    serve.wait()

    place.run("send-event", "a1", "approve", "7")

    assert 0 == follower.wait(30)
    assert ["asked"] == place.ran()


def test_a_signal_to_a_follower_leaves_the_instance_to_the_process_that_serves(place: Any) -> None:
    serve = place.serve()
    follower = place.start("run", "workflows.py:Approval", "--id", "a1")
    read_until(follower, "event started")
    follower.send_signal(signal.SIGINT)

    assert 130 == follower.wait(30)
    assert (
        f"Approval/a1 goes on in process {serve.pid}; follow it again with: perdure"
        in follower.communicate()[1]
    )
    assert "waiting" == place.status("a1")


def test_a_failed_instance_is_told_in_one_line_and_its_traceback_only_if_asked(place: Any) -> None:
    plain = place.run("run", "workflows.py:Declined", "--id", "d1", "-q")
    full = place.run("run", "workflows.py:Declined", "--id", "d1", "-q", "--traceback")

    assert (1, "", 1) == (plain.status, plain.out, plain.err.count("\n"))
    assert "NonRetryableError: card declined by the bank" in plain.err
    assert "Traceback" not in plain.err
    assert 'raise NonRetryableError("card declined' in full.err


def test_on_a_terminal_the_view_stays_in_place(place: Any) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["perdure", "run", "workflows.py:Greet", "--params", '"Ada"', "--state", str(place.state)],
        cwd=place.folder, env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        stdout=subprocess.PIPE, stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed: Linux says so with an error
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    out, _ = process.communicate()

    assert '"hello Ada"\n' == out
    last = shown.decode().rpartition("Greet/")[2]
    assert "complete" in last
    assert "✓" in last
    assert "1 completed" in last
