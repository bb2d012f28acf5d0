"""`perdure top`: what a process that serves is doing, seen from another one."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

PERDURE = Path(sysconfig.get_path("scripts"), "perdure")


def test_top_shows_what_a_serving_process_has_done(place: Any) -> None:
    served = place.serve()
    place.create("Greet", "g1", '"Ada"')
    place.create("Approval", "a1")
    place.run("watch", "g1")
    shown = place.json("top")

    assert (True, 1) == (shown["running"], len(shown["workers"]))
    assert served.pid == shown["total"]["pid"] == shown["workers"][0]["pid"]
    greet = shown["total"]["workflows"]["Greet"]
    assert (1, 1, 1) == (greet["started"], greet["finished"], greet["steps"])
    assert 1 == shown["total"]["workflows"]["Approval"]["started"]
    assert {"unstarted", "due", "inbox", "catalog_writes"} == set(shown["total"]["queues"])
    assert {"samples", "p50_ms", "p99_ms", "max_ms"} == set(shown["total"]["lag"])


def test_where_the_output_is_no_terminal_top_shows_it_once(place: Any) -> None:
    served = place.serve()
    place.create("Greet", "g1", '"Ada"')
    place.run("watch", "g1")
    done = place.run("top")

    assert (0, "") == (done.status, done.err)
    assert f"process {served.pid}, up " in done.out
    assert "loop lag" in done.out
    assert re.search(r"^Greet +0 +\d+ +\d+ +1 +1 +0 +0 +1 +0$", done.out, re.MULTILINE)
    assert re.search(r"^waiting +0 to start +0 to wake ", done.out, re.MULTILINE)


def test_with_nobody_at_work_top_shows_what_the_catalog_knows(place: Any) -> None:
    place.create("Greet", "g1", '"Ada"')
    place.create("Greet", "g2", '"Bea"')
    shown = place.json("top")
    done = place.run("top", "--once")

    assert (False, {"Greet": {"queued": 2}}) == (shown["running"], shown["instances"])
    assert 0 == done.status
    assert "no process runs " in done.out
    assert re.search(r"^Greet +2$", done.out, re.MULTILINE)


def test_top_needs_a_state_folder(place: Any) -> None:
    done = place.run("top")

    assert 4 == done.status
    assert "there is no state in" in done.err


def test_top_is_drawn_again_and_ctrl_c_leaves_it_cleanly(place: Any) -> None:
    place.serve()
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [PERDURE, "top", "--interval", "0.1", "--state", place.state],
        cwd=place.folder, stdin=slave, stdout=slave, stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )  # fmt: skip
    os.close(slave)
    drawn = b""
    with contextlib.suppress(OSError):  # Linux's way of saying that nobody writes any more
        while more := os.read(master, 65536):
            drawn += more
            if drawn.count(b"loop lag") == 3 and process.poll() is None:
                process.send_signal(signal.SIGINT)
                drawn += b"loop lag"  # once
    _, err = process.communicate()
    os.close(master)

    assert (0, b"") == (process.returncode, err)
    assert b"\x1b[?1049l" in drawn  # the screen as it was


def test_a_served_folder_whose_process_is_stopped_is_said_to_be_held_up(place: Any) -> None:
    served = place.serve()
    served.send_signal(signal.SIGSTOP)
    done = place.run("top", "--once")

    assert 0 == done.status
    assert f"process {served.pid} has " in done.out
    assert "does not answer" in done.out
