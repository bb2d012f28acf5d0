"""How one step function is run: in the loop, in a thread, on asyncio, or in a child process."""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import functools
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from math import factorial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from perdure.actors.functions import (
    SWITCH_INTERVAL_S,
    FunctionHost,
    asyncio_step,
    classify,
    open_function_host,
    process_step,
)
from perdure.errors import (
    EncodingError,
    InvalidArgumentError,
    NonRetryableError,
    RuntimeClosedError,
    StepError,
    StepFailedError,
)

COLOUR = contextvars.ContextVar("COLOUR", default="none")


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


# -- step functions of these tests; a child finds them by name -----------------------------


async def on_trio(value: int) -> int:
    await trio.lowlevel.checkpoint()
    return value + 1


def plain(value: int) -> int:
    return value + 1


@asyncio_step
async def on_asyncio(value: int) -> int:
    await asyncio.sleep(0)
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
    @asyncio_step
    async def fetch(self, value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    @process_step
    def crunch(self) -> None: ...

    def plain(self) -> None: ...

    @staticmethod
    @process_step
    def double(value: int) -> int:
        return value * 2

    @classmethod
    def named(cls, value: int) -> str:
        return f"{cls.__name__}{value}"

    async def __call__(self) -> None: ...


@process_step
def hidden(value: int) -> int:
    return value


def other() -> None: ...


hidden_by_another = hidden
globals()["hidden"] = other


# -- which kind ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "fn"),
    [
        ("trio", on_trio),
        ("trio", partial(on_trio, 1)),
        ("trio", partial(partial(on_trio), 1)),
        ("trio", Service()),
        ("trio", partial(Service())),
        ("plain", plain),
        ("plain", lambda: on_trio(1)),
        ("plain", partial(plain, 1)),
        ("plain", len),
        ("plain", Path),
        ("plain", Service().named),
        ("asyncio", on_asyncio),
        ("asyncio", partial(on_asyncio, 1)),
        ("asyncio", asyncio_step(on_trio)),
        ("asyncio", asyncio_step(lambda: on_trio(1))),
        ("asyncio", Service().fetch),
        ("process", in_process),
        ("process", partial(in_process, 1)),
        ("process", process_step(partial(plain, 1))),
        ("process", process_step(factorial)),
        ("process", process_step(Service.named)),
        ("process", Service.double),
    ],
)
def test_a_step_function_says_how_it_is_run(expected: str, fn: Callable[..., Any]) -> None:
    assert expected == classify(fn)


def test_in_a_workflow_on_asyncio_coroutine_functions_are_of_asyncio_and_others_are_as_ever() -> None:
    assert "asyncio" == classify(on_trio, "asyncio")
    assert "asyncio" == classify(partial(on_trio, 1), "asyncio")
    assert "plain" == classify(plain, "asyncio")
    assert "process" == classify(in_process, "asyncio")


def test_a_decorator_above_ours_keeps_the_kind() -> None:
    @functools.wraps(in_process)
    def logged(*args: Any) -> int:
        return in_process(*args)

    @functools.wraps(on_asyncio)
    def logged_too(*args: Any) -> Any:
        return on_asyncio(*args)

    assert "process" == classify(logged)
    assert "asyncio" == classify(logged_too)


async def test_a_decorated_function_still_runs_where_it_is_called() -> None:
    assert 3 == in_process(1, add=2)
    assert 4 == Service.double(2)
    assert 2 == await trio.to_thread.run_sync(lambda: asyncio.run(_of_asyncio()))


async def _of_asyncio() -> int:
    return await on_asyncio(1)


def test_what_cannot_be_called_is_refused() -> None:
    nothing: Any = None
    with pytest.raises(InvalidArgumentError, match="None cannot be called"):
        classify(nothing)
    with pytest.raises(InvalidArgumentError, match="None cannot be called"):
        asyncio_step(nothing)
    with pytest.raises(InvalidArgumentError, match="None cannot be called"):
        process_step(nothing)


def test_a_coroutine_is_refused_with_the_way_to_write_it() -> None:
    called: Any = on_trio(1)
    with pytest.raises(
        InvalidArgumentError, match=r"was called already: write step\.do\(name, on_trio, \.\.\.\)"
    ):
        classify(called)


def test_a_generator_is_refused() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later_numbers() -> AsyncIterator[int]:
        yield 1

    for fn in (numbers, partial(numbers), later_numbers):
        with pytest.raises(InvalidArgumentError, match="is a generator"):
            classify(fn)


@pytest.mark.parametrize(
    ("reason", "fn"),
    [
        ("it is a lambda", lambda: 1),
        ("it is a method of a Service object", Service().plain),
        ("it has no module and name of its own", "".upper),
        ("it has no module and name of its own", partial("".upper)),
    ],
)
def test_a_process_step_that_a_child_could_not_find_is_refused_where_it_is_made(
    reason: str, fn: Callable[[], Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"cannot be a process step.*{reason}"):
        process_step(fn)


def test_a_local_function_is_no_process_step() -> None:
    def local() -> None: ...

    with pytest.raises(InvalidArgumentError, match="it is defined inside a function"):
        process_step(local)


def test_an_async_function_is_no_process_step() -> None:
    with pytest.raises(InvalidArgumentError, match="is async and cannot be a process step"):
        process_step(on_trio)


def test_a_process_step_bound_to_an_object_is_refused_when_it_is_used() -> None:
    with pytest.raises(InvalidArgumentError, match="it is a method of a Service object"):
        classify(Service().crunch)


def test_a_process_step_whose_name_means_something_else_is_refused_when_it_is_used() -> None:
    with pytest.raises(InvalidArgumentError, match="is another object by now"):
        classify(hidden_by_another)


# -- in the loop ---------------------------------------------------------------------------


async def test_a_coroutine_function_runs_in_the_loop(host: FunctionHost) -> None:
    async def here() -> int:
        return threading.get_ident()

    assert threading.get_ident() == await host.call("trio", here)


@pytest.mark.parametrize(
    "needs_asyncio", [lambda: asyncio.sleep(0), lambda: asyncio.sleep(1), asyncio.get_running_loop]
)
async def test_an_asyncio_call_in_a_trio_step_is_explained(
    host: FunctionHost, needs_asyncio: Callable[[], Any]
) -> None:
    cleaned = False

    async def mistaken() -> None:
        nonlocal cleaned
        try:
            await needs_asyncio()
        finally:
            cleaned = True

    with pytest.raises(
        NonRetryableError, match=r"mistaken called something that needs asyncio.*asyncio_step\(mist"
    ):
        await host.call("trio", mistaken)
    assert cleaned


async def test_an_asyncio_call_in_a_worker_thread_is_explained(host: FunctionHost) -> None:
    with pytest.raises(NonRetryableError, match="runs in a worker thread.*step_library"):
        await host.call("plain", asyncio.get_running_loop)
    with pytest.raises(NonRetryableError, match="needs asyncio"):
        await host.call("plain", lambda: asyncio.sleep(0))


async def test_any_other_error_of_a_trio_step_is_left_as_it_is(host: FunctionHost) -> None:
    error = RuntimeError("the loop of the belt is worn")

    async def failing() -> None:
        raise error

    with pytest.raises(RuntimeError) as caught:
        await host.call("trio", failing)
    assert error is caught.value


# -- in a thread ---------------------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread_with_the_context_of_its_caller(host: FunctionHost) -> None:
    COLOUR.set("blue")

    thread, colour = await host.call("plain", lambda: (threading.get_ident(), COLOUR.get()))

    assert threading.get_ident() != thread
    assert "blue" == colour


async def test_what_a_plain_function_raises_comes_back_itself(host: FunctionHost) -> None:
    error = ValueError("no")

    def failing() -> NoReturn:
        raise error

    with pytest.raises(ValueError) as caught:
        await host.call("plain", failing)
    assert error is caught.value


async def test_an_awaitable_that_a_plain_function_returns_is_awaited_by_the_step_library(
    host: FunctionHost,
) -> None:
    assert 2 == await host.call("plain", lambda: on_trio(1))
    assert 2 == await host.call("plain", lambda: on_asyncio(1), library="asyncio")


async def test_a_plain_function_may_call_back_into_the_loop(host: FunctionHost) -> None:
    assert 2 == await host.call("plain", lambda: trio.from_thread.run(on_trio, 1))


async def test_a_cancelled_plain_function_is_told_and_waited_for_before_cancellation_goes_on(
    host: FunctionHost,
) -> None:
    started, told, ended = trio.Event(), threading.Event(), threading.Event()

    def stubborn() -> str:
        trio.from_thread.run_sync(started.set)
        assert told.wait(30)
        ended.set()
        return "dropped"

    async with trio.open_nursery() as nursery:

        async def cancel() -> None:
            await started.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(cancel)
        await host.call("plain", stubborn, on_cancel=told.set)
        raise AssertionError("went on after its cancellation")
    assert nursery.cancel_scope.cancelled_caught
    assert ended.is_set()


async def test_what_a_cancelled_plain_function_raises_is_dropped(host: FunctionHost) -> None:
    told = threading.Event()

    def stubborn() -> NoReturn:
        trio.from_thread.run_sync(scope.cancel)
        assert told.wait(30)
        raise ValueError("dropped")

    with trio.CancelScope() as scope:
        await host.call("plain", stubborn, on_cancel=told.set)
    assert scope.cancelled_caught


async def test_a_plain_function_that_ends_in_time_is_not_told_of_anything(host: FunctionHost) -> None:
    told: list[None] = []

    assert 2 == await host.call("plain", plain, (1,), on_cancel=lambda: told.append(None))

    assert [] == told


async def test_no_more_plain_functions_run_at_once_than_there_are_threads(host: FunctionHost) -> None:
    let_go = threading.Event()
    running: list[int] = []
    both_run = trio.Event()

    def occupy(number: int) -> None:
        running.append(number)
        if len(running) == 2:
            trio.from_thread.run_sync(both_run.set)
        assert let_go.wait(30)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(host.call, "plain", occupy, (number,))
        await both_run.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert 2 == host.statistics().threads_busy
        assert 2 == len(running)
        let_go.set()
    assert 3 == len(running)
    assert 0 == host.statistics().threads_busy


async def test_a_call_that_is_cancelled_before_its_turn_does_not_start(host: FunctionHost) -> None:
    let_go = threading.Event()
    started: list[None] = []
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(host.call, "plain", partial(let_go.wait, 30))
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await host.call("plain", lambda: started.append(None))
        let_go.set()

    assert [] == started


async def test_threads_are_switched_more_often_while_a_host_is_open() -> None:
    before_s = sys.getswitchinterval()
    async with open_function_host(threads_max=1, processes_max=1):
        assert SWITCH_INTERVAL_S == pytest.approx(sys.getswitchinterval())
        async with open_function_host(threads_max=1, processes_max=1):
            pass
        assert SWITCH_INTERVAL_S == pytest.approx(sys.getswitchinterval())
    assert before_s == pytest.approx(sys.getswitchinterval())


# -- on asyncio ----------------------------------------------------------------------------


async def test_asyncio_steps_share_one_loop_in_a_thread_of_its_own(host: FunctionHost) -> None:
    async def where() -> tuple[int, int]:
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop()), threading.get_ident()

    first = await host.call("asyncio", where)

    assert first == await host.call("asyncio", where)
    assert threading.get_ident() != first[1]


async def test_an_asyncio_step_has_the_context_of_its_caller(host: FunctionHost) -> None:
    async def colour() -> str:
        return COLOUR.get()

    COLOUR.set("green")

    assert "green" == await host.call("asyncio", colour)


async def test_a_bound_asyncio_step_and_a_partial_of_one_are_run(host: FunctionHost) -> None:
    assert 2 == await host.call("asyncio", Service().fetch, (1,))
    assert 2 == await host.call("asyncio", partial(on_asyncio, 1))


async def test_a_cancelled_asyncio_step_has_ended_before_cancellation_goes_on(host: FunctionHost) -> None:
    token = trio.lowlevel.current_trio_token()
    story: list[str] = []

    async def careful() -> None:
        try:
            token.run_sync_soon(scope.cancel)
            await asyncio.sleep(1_000)
        finally:
            await asyncio.sleep(0)
            story.append("cleaned")

    with trio.CancelScope() as scope:
        await host.call("asyncio", careful)
    assert scope.cancelled_caught
    assert ["cleaned"] == story
    assert 0 == host.statistics().asyncio_busy


async def test_an_asyncio_step_that_cancels_itself_fails_with_a_plain_error(host: FunctionHost) -> None:
    async def confused() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(StepError, match="was cancelled, and not by the runtime"):
        await host.call("asyncio", confused)


async def test_an_asyncio_step_that_exits_leaves_the_loop_to_the_others(host: FunctionHost) -> None:
    async def leave() -> NoReturn:
        sys.exit(3)

    with pytest.raises(SystemExit):
        await host.call("asyncio", leave)
    assert 2 == await host.call("asyncio", on_asyncio, (1,))


async def test_closing_ends_what_still_runs_on_asyncio() -> None:
    token = trio.lowlevel.current_trio_token()
    started = trio.Event()

    async def endless() -> None:
        token.run_sync_soon(started.set)
        await asyncio.sleep(1_000)

    async def caller(host: FunctionHost) -> None:
        with pytest.raises(RuntimeClosedError):
            await host.call("asyncio", endless)

    async with (
        trio.open_nursery() as nursery,
        open_function_host(threads_max=1, processes_max=1) as host,
    ):
        nursery.start_soon(caller, host)
        await started.wait()
    assert [] == [thread for thread in threading.enumerate() if thread.name == "perdure asyncio"]


def test_as_a_guest_an_asyncio_step_runs_in_the_loop_of_its_host() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            of_guest,
            loop,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        (await ended).unwrap()

    async def of_guest(loop: asyncio.AbstractEventLoop) -> None:
        async def careful() -> None:
            try:
                token.run_sync_soon(scope.cancel)
                await asyncio.sleep(1_000)
            finally:
                await asyncio.sleep(0)
                story.append("cleaned")

        async def where() -> asyncio.AbstractEventLoop:
            await asyncio.sleep(0)
            return asyncio.get_running_loop()

        token = trio.lowlevel.current_trio_token()
        async with open_function_host(threads_max=1, processes_max=1, asyncio_loop=loop) as host:
            assert loop is await host.call("asyncio", where)
            with trio.CancelScope() as scope:
                await host.call("asyncio", careful)
            assert scope.cancelled_caught
            with pytest.raises(NonRetryableError, match="needs asyncio"):
                await host.call("trio", where)

    story: list[str] = []
    asyncio.run(main())
    assert ["cleaned"] == story


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


def run_script(path: Path, text: str) -> subprocess.CompletedProcess[str]:
    path.write_text(text)
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


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
