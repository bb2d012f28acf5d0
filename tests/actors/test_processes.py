"""Step functions in child processes: what crosses, what is killed, and what becomes of a child."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from math import factorial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from perdure.actors.functions import (
    FunctionHost,
    open_function_host,
    process_step,
)
from perdure.errors import (
    EncodingError,
    RuntimeClosedError,
    StepError,
    StepFailedError,
)


@pytest.fixture
async def host() -> AsyncIterator[FunctionHost]:
    async with open_function_host(threads_max=2, processes_max=2) as opened:
        yield opened


async def first_line(path: Path) -> str:
    """Wait until somebody writes a line into a named pipe; an empty one means that its writers are gone."""

    def read() -> str:
        with path.open() as pipe:
            return pipe.readline()

    with trio.fail_after(30):
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def plain(value: int) -> int:
    return value + 1


@process_step
def in_process(value: int, *, add: int = 1) -> int:
    return value + add


def child_pid() -> int:
    return os.getpid()


def stay(pipe: Path) -> None:
    """Hold a named pipe open for ever."""
    with pipe.open("w") as out:
        print(os.getpid(), file=out, flush=True)
        while True:
            signal.pause()


def stay_with_a_program(pipe: Path) -> None:
    subprocess.run(["/bin/sh", "-c", f"exec 9>'{pipe}'; echo $$ >&9; sleep 1000"], check=True)


def end_with(code: int) -> NoReturn:
    os._exit(code)


def end_by(number: int) -> NoReturn:
    os.kill(os.getpid(), number)
    raise AssertionError


def interrupted() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "went on"


def open_files() -> list[str]:
    return [
        str(path.readlink())
        for path in Path("/proc/self/fd").iterdir()
        if path.is_symlink() and path.exists()
    ]


class CardError(Exception):
    """Its constructor wants other arguments than it passes on."""

    def __init__(self, code: int) -> None:
        super().__init__(f"card refused with {code}")
        self.code = code


def refuse(code: int) -> NoReturn:
    try:
        raise KeyError("account")
    except KeyError as cause:
        raise CardError(code) from cause


def fail_to_open() -> NoReturn:
    raise FileNotFoundError(2, "No such file", "/nowhere")


def fail_with_a_class_of_its_own() -> NoReturn:
    class LocalError(Exception):
        pass

    raise LocalError("nobody else knows me")


def return_a_lock() -> Any:
    return threading.Lock()


class Service:
    @staticmethod
    @process_step
    def double(value: int) -> int:
        return value * 2

    @classmethod
    def named(cls, value: int) -> str:
        return f"{cls.__name__}{value}"


def run_script(path: Path, text: str) -> subprocess.CompletedProcess[str]:
    path.write_text(text)
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


# -- in a process --------------------------------------------------------------------------


async def test_a_process_step_runs_in_a_child_that_is_used_again(host: FunctionHost) -> None:
    pid = await host.call("process", child_pid)

    assert os.getpid() != pid
    assert pid == await host.call("process", child_pid)
    assert (1, 0) == (host.statistics().processes_alive, host.statistics().processes_busy)
    assert 2 == host.statistics().calls


async def test_a_child_finds_decorated_functions_methods_and_partials(host: FunctionHost) -> None:
    assert 2 == await host.call("process", in_process, (1,))
    assert 11 == await host.call("process", partial(in_process, add=10), (1,))
    assert 11 == await host.call("process", process_step(partial(in_process, 1, add=10)))
    assert 4 == await host.call("process", Service.double, (2,))
    assert "Service7" == await host.call("process", process_step(Service.named), (7,))
    assert 120 == await host.call("process", process_step(factorial), (5,))


async def test_arguments_and_results_of_many_megabytes_cross(host: FunctionHost) -> None:
    large = bytes(5_000_000)

    assert large * 2 == await host.call("process", Service.double, (large,))


async def test_an_object_that_is_there_twice_crosses_as_one(host: FunctionHost) -> None:
    order = [1]

    assert [order, order, order, order] == await host.call("process", Service.double, ([order, order],))
    assert Path("b") == await host.call("process", process_step(max), (Path("a"), Path("b")))


async def test_a_cancelled_process_step_is_killed_with_the_programs_it_started(
    host: FunctionHost, pipe: Path
) -> None:
    for fn in (stay, stay_with_a_program):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.call, "process", fn, (pipe,))
            reader = await trio.to_thread.run_sync(pipe.open)
            assert int(await trio.to_thread.run_sync(reader.readline)) > 0
            nursery.cancel_scope.cancel()
        with reader, trio.fail_after(30):
            assert "" == await trio.to_thread.run_sync(reader.readline, abandon_on_cancel=True)
        assert 0 == host.statistics().processes_alive
    assert 2 == await host.call("process", in_process, (1,))


@pytest.mark.parametrize(
    ("story", "fn", "argument"),
    [
        ("ended by itself with exit code 3", end_with, 3),
        ("ended by itself with exit code 4", sys.exit, 4),
        ("was killed by signal 9, SIGKILL", end_by, signal.SIGKILL),
        ("was killed by signal 11, SIGSEGV", end_by, signal.SIGSEGV),
    ],
)
async def test_a_child_that_dies_by_itself_is_reported_and_replaced(
    host: FunctionHost, story: str, fn: Callable[[int], NoReturn], argument: int
) -> None:
    with pytest.raises(StepError, match=f"The child process .* {story}.* while it ran .*{fn.__name__}"):
        await host.call("process", fn, (argument,))
    assert 2 == await host.call("process", in_process, (1,))


async def test_a_child_that_died_between_two_calls_is_replaced(host: FunctionHost) -> None:
    pid = await host.call("process", child_pid)
    os.kill(pid, signal.SIGKILL)
    with trio.fail_after(30):
        while host.statistics().processes_alive:
            await trio.lowlevel.checkpoint()

    assert pid != await host.call("process", child_pid)


async def test_without_process_descriptors_a_thread_watches_each_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    async with open_function_host(threads_max=1, processes_max=1) as host:
        with pytest.raises(StepError, match="exit code 3"):
            await host.call("process", end_with, (3,))
        assert 2 == await host.call("process", in_process, (1,))
    assert 0 == host.statistics().processes_alive


async def test_an_error_of_a_child_keeps_class_message_fields_cause_and_traceback(host: FunctionHost) -> None:
    with pytest.raises(CardError) as caught:
        await host.call("process", refuse, (51,))

    assert "card refused with 51" == str(caught.value)
    assert 51 == caught.value.code
    assert isinstance(caught.value.__cause__, KeyError)
    [note] = caught.value.__notes__
    assert "In the child process" in note
    assert "in refuse\n" in note
    assert "process_child" not in note


async def test_an_error_of_the_system_keeps_its_fields(host: FunctionHost) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await host.call("process", fail_to_open)

    assert (2, "/nowhere") == (caught.value.errno, caught.value.filename)


async def test_an_error_whose_class_is_unknown_here_is_described(host: FunctionHost) -> None:
    with pytest.raises(StepFailedError, match="LocalError: nobody else knows me") as caught:
        await host.call("process", fail_with_a_class_of_its_own)

    assert "nobody else knows me" == caught.value.error_message
    assert "in fail_with_a_class_of_its_own" in caught.value.traceback_text


async def test_what_cannot_cross_to_a_child_or_back_is_named(host: FunctionHost) -> None:
    lock: Any = threading.Lock()
    with pytest.raises(
        EncodingError, match=r"Argument 2, a lock, of the process step .*plain cannot be sent"
    ):
        await host.call("process", plain, (1, lock))
    with pytest.raises(EncodingError, match=r"Argument 'value', a lock, of"):
        await host.call("process", partial(Service.double, value=lock))
    with pytest.raises(EncodingError, match=r"return_a_lock returned what cannot be sent back, a lock"):
        await host.call("process", return_a_lock)


async def test_a_child_does_not_mind_an_interrupt(host: FunctionHost) -> None:
    assert "went on" == await host.call("process", interrupted)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_child_has_no_descriptor_of_its_parent(host: FunctionHost, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)

        assert str(tmp_path / "lock") not in await host.call("process", open_files)


async def test_closing_kills_a_child_that_is_at_work_and_ends_those_that_are_not(pipe: Path) -> None:
    async def caller(host: FunctionHost) -> None:
        with pytest.raises(RuntimeClosedError, match="stay was running"):
            await host.call("process", stay, (pipe,))

    async with (
        trio.open_nursery() as nursery,
        open_function_host(threads_max=1, processes_max=2) as host,
    ):
        nursery.start_soon(caller, host)
        await first_line(pipe)
        await host.call("process", child_pid)
        assert (2, 1) == (host.statistics().processes_alive, host.statistics().processes_busy)
    assert 0 == host.statistics().processes_alive
    with pytest.raises(RuntimeClosedError):
        await host.call("process", child_pid)


async def test_a_module_outside_the_search_path_is_found_by_its_file(
    host: FunctionHost, tmp_path: Path
) -> None:
    file = tmp_path / "flow.py"
    file.write_text(
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class Order:\n"
        "    number: int\n"
        "def next_order(order):\n"
        "    return Order(order.number + 1)\n"
    )
    spec = importlib.util.spec_from_file_location("flow_of_the_test", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["flow_of_the_test"] = module
    try:
        spec.loader.exec_module(module)
        assert "Order(number=1)" == await host.call("process", process_step(repr), (module.Order(1),))
        assert module.Order(2) == await host.call(
            "process", process_step(module.next_order), (module.Order(1),)
        )
    finally:
        del sys.modules["flow_of_the_test"]


# -- programs of their own -----------------------------------------------------------------


SCRIPT = """\
import dataclasses, sys, trio
from perdure.actors.functions import open_function_host, process_step

@dataclasses.dataclass
class Order:
    number: int

@process_step
def next_order(order):
    print("crunching", order.number)
    return Order(order.number + 1)

async def main():
    async with open_function_host(threads_max=1, processes_max=1) as host:
        print(await host.call("process", next_order, (Order(1),)) == Order(2))

"""


def test_functions_and_classes_of_the_running_script_cross(tmp_path: Path) -> None:
    done = run_script(tmp_path / "order flow", SCRIPT + "if __name__ == '__main__':\n    trio.run(main)\n")

    assert ("crunching 1\nTrue\n", "", 0) == (done.stdout, done.stderr, done.returncode)


def test_a_script_that_forgot_its_guard_is_told(tmp_path: Path) -> None:
    done = run_script(tmp_path / "flow.py", SCRIPT + "trio.run(main)\n")

    assert 1 == done.returncode
    assert "under `if __name__ == '__main__':`" in done.stderr


def test_a_child_dies_with_its_parent_in_the_middle_of_a_call(tmp_path: Path, pipe: Path) -> None:
    text = (
        "import sys, trio\n"
        "from perdure.actors.functions import open_function_host, process_step\n"
        "@process_step\n"
        "def spin(pipe):\n"
        "    out = open(pipe, 'w')\n"
        "    print('spinning', file=out, flush=True)\n"
        "    while True: pass\n"
        "async def main():\n"
        "    async with open_function_host(threads_max=1, processes_max=1) as host:\n"
        "        await host.call('process', spin, (sys.argv[1],))\n"
        "if __name__ == '__main__':\n"
        "    trio.run(main)\n"
    )
    (tmp_path / "flow.py").write_text(text)
    with (
        subprocess.Popen([sys.executable, str(tmp_path / "flow.py"), str(pipe)]) as parent,
        pipe.open() as reader,
    ):
        assert "spinning\n" == reader.readline()
        parent.kill()
        assert "" == reader.readline()
