"""Child processes in which process steps run: started when needed, used again, killed on cancellation.

One pool owns its children, their pipes and their process groups; only the function host uses it. A
child is spawned, never forked, and runs `process_child.py`. What a call needs goes to it by name
(the function) or as a pickle (the arguments), and comes back as a pickle.

Why not multiprocessing, concurrent.futures or anyio's workers: a child of theirs shares a queue or a
lock with the others, which a kill may leave broken, and none of them can find a function in a FILE
that was loaded from outside the search path.

Invariants:
    A cancelled call ends when its child has died, and so has what the child started in its group.
    A child holds no descriptor of this process but its two pipes and the standard streams.
    A child that has died, or may hold half a message, is never used again.
    Children are started from the loop's thread: the kernel's promise to kill a child with its parent
    is tied to the thread that started it, and worker threads come and go.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, Final, cast

import msgspec
import trio

from perdure.actors import process_child as wire
from perdure.errors import (
    EncodingError,
    InvalidArgumentError,
    RuntimeClosedError,
    StepError,
    StepFailedError,
)

__all__ = ["ProcessPool", "Target", "interpreter_flags", "preparation", "refuse_while_main_loads"]

CHILD_PROGRAM: Final = str(Path(__file__).with_name("process_child.py"))

EXIT_GRACE_S: Final = 2.0
"""An idle child that is told to end, or one whose pipe has ended, is killed after this long."""

RECEIVE_BYTES: Final = 64 * 1024
"""A pipe holds this much on Linux, so asking for more brings nothing."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A function as a child finds it: by name, and by file where the search path does not lead there."""

    module: str
    qualname: str
    file: str | None

    @property
    def name(self) -> str:
        """What people call the function."""
        return f"{self.module}.{self.qualname}"


class ChildDiedError(Exception):
    """A child ended in the middle of a call. Never leaves this file."""


# -- the pool ------------------------------------------------------------------------------


class ProcessPool:
    """Up to `processes_max` children. `alive` and `busy` count them."""

    def __init__(self, processes_max: int) -> None:
        self._turns = trio.Semaphore(processes_max)
        self._idle: list[ChildProcess] = []
        self._alive: set[ChildProcess] = set()
        self._closed = False

    @property
    def alive(self) -> int:
        """How many children there are."""
        return len(self._alive)

    @property
    def busy(self) -> int:
        """How many of them run a step."""
        return len(self._alive.difference(self._idle))

    async def call(
        self,
        target: Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_beat: Callable[[Any], None] | None = None,
    ) -> Any:
        """Run a function in a child and return what it returns; `on_beat` gets its heartbeats.

        Raises what the function raises; StepError when the child dies by itself; EncodingError when
        an argument or the result cannot be pickled.
        """
        request = _encode_call(target, args, kwargs)
        async with self._turns:
            child = self._take()
            try:
                kind, payload = await child.exchange(request, on_beat)
            except BaseException as error:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.exited.wait()
                if isinstance(error, ChildDiedError):
                    raise self._death(target, child) from None
                raise
            self._idle.append(child)
        return _decode_reply(target, child.pid, kind, payload)

    async def close(self) -> None:
        """End every child: idle ones in order, busy ones at once, and wait until all have ended."""
        self._closed = True
        idle = set(self._idle)
        for child in list(self._alive):
            if child in idle:
                await child.dismiss()
            else:
                child.kill()
        with trio.move_on_after(EXIT_GRACE_S):
            for child in list(self._alive):
                await child.exited.wait()
        left = list(self._alive)
        for child in left:
            child.kill()
        for child in left:
            await child.exited.wait()

    def _take(self) -> ChildProcess:
        while self._idle:
            # The one used last: its caches are warm, and the others may be swapped out.
            child = self._idle.pop()
            if not child.exited.is_set():
                return child
        if self._closed:
            raise RuntimeClosedError("The runtime has ended: no step function can be started.")
        child = ChildProcess()
        self._alive.add(child)
        trio.lowlevel.spawn_system_task(self._watch, child)
        return child

    async def _watch(self, child: ChildProcess) -> None:
        try:
            await child.wait_for_exit()
        finally:
            self._alive.discard(child)

    def _death(self, target: Target, child: ChildProcess) -> Exception:
        if self._closed:
            return RuntimeClosedError(f"The runtime ended while {target.name} was running.")
        return StepError(f"The child process {child.pid} {child.story()} while it ran {target.name}.")


class ChildProcess:
    """One child and its pipes. `exited` is set once it has died and has been reaped."""

    def __init__(self) -> None:
        refuse_while_main_loads()
        with contextlib.ExitStack() as opened:
            request_read, request_write = _pipe(opened)
            reply_read, reply_write = _pipe(opened)
            self._popen = subprocess.Popen(  # noqa: S603  # our own program, by its own path
                [
                    *(sys.executable, *interpreter_flags(), CHILD_PROGRAM),
                    *(str(request_read), str(reply_write), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(request_read, reply_write),
                # A group of its own: Ctrl-C is for the parent to decide on, and a kill reaches
                # the programs that a step has started.
                process_group=0,
            )
            opened.pop_all()
        os.close(request_read)
        os.close(reply_write)
        self.pid = self._popen.pid
        self.exited = trio.Event()
        self._requests = trio.lowlevel.FdStream(request_write)
        self._replies = trio.lowlevel.FdStream(reply_read)
        self._received = bytearray()
        self._greeting = wire.frame(wire.PREPARE, pickle.dumps(preparation(), wire.PICKLE_PROTOCOL))
        self._exchange = trio.CancelScope()

    async def exchange(
        self, request: bytes, on_beat: Callable[[Any], None] | None = None
    ) -> tuple[bytes, bytes]:
        """Send a call and return kind and content of the answer. Raises ChildDiedError."""
        with trio.CancelScope() as self._exchange:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if self.exited.is_set():
                    raise ChildDiedError
                await self._requests.send_all(self._greeting + request)
                self._greeting = b""
                while True:
                    header = await self._receive(wire.HEADER.size)
                    kind, length = wire.HEADER.unpack(header)
                    payload = await self._receive(length)
                    if kind != wire.BEAT:
                        return kind, payload
                    if on_beat is not None:
                        on_beat(Unpickler(io.BytesIO(payload)).load())
            # Its pipe has ended, so it is about to: its own exit code says more than our signal.
            with trio.move_on_after(EXIT_GRACE_S):
                await self.exited.wait()
        raise ChildDiedError

    async def _receive(self, length: int) -> bytes:
        received = self._received
        while len(received) < length:
            chunk = await self._replies.receive_some(RECEIVE_BYTES)
            if not chunk:
                raise trio.BrokenResourceError
            received += chunk
        wanted = bytes(memoryview(received)[:length])
        del received[:length]
        return wanted

    async def wait_for_exit(self) -> None:
        """Wait until the child has died, reap it, and end a call that still waits for it."""
        # A pipe that a grandchild holds open does not end with the child, so the process is watched.
        await _wait_for_exit(self._popen)
        await self._close_pipes()
        self.exited.set()
        self._exchange.cancel()

    async def dismiss(self) -> None:
        """Tell an idle child to end."""
        await self._requests.aclose()

    def kill(self) -> None:
        """Kill the child and its process group, if it is there."""
        if not self.exited.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says so of a zombie
                os.killpg(self.pid, signal.SIGKILL)

    def story(self) -> str:
        """Say how the child ended."""
        code = self._popen.returncode
        if code is None:
            return "was lost"
        if code >= 0:
            return f"ended by itself with exit code {code}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = " (the system kills what uses too much memory)" if name == "SIGKILL" else ""
            return f"was killed by signal {-code}, {name}{hint},"
        return f"was killed by signal {-code}"

    async def _close_pipes(self) -> None:
        with trio.CancelScope(shield=True):
            await self._requests.aclose()
            await self._replies.aclose()


def refuse_while_main_loads() -> None:
    """Raise if this process is a child that is loading its parent's script, which started a runtime."""
    if getattr(sys.modules.get(wire.MAIN_ALIAS), wire.LOADING, False):
        raise InvalidArgumentError(
            "A child process loads the script it was started from to find the step function in it, "
            "and the script has started a runtime in turn. "
            "Put what the script does when it is run under `if __name__ == '__main__':`."
        )


async def _wait_for_exit(popen: subprocess.Popen[bytes]) -> None:
    try:
        descriptor = os.pidfd_open(popen.pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, or a sandbox
        limiter = trio.CapacityLimiter(1)  # one thread for each child, and none of the steps'
        await trio.to_thread.run_sync(popen.wait, abandon_on_cancel=True, limiter=limiter)
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    # The group's number cannot be given to others before the child is reaped.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)
    popen.wait()


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    opened.callback(os.close, read)
    opened.callback(os.close, write)
    return read, write


def interpreter_flags() -> Iterator[str]:
    """Give the options with which a child is to run as this interpreter does."""
    yield "-P"  # the folder of the child's program is not a place to import from
    if sys.flags.isolated:
        yield "-I"
    if sys.flags.optimize:
        yield "-" + "O" * sys.flags.optimize
    if sys.flags.dont_write_bytecode:
        yield "-B"
    yield from (f"-W{option}" for option in sys.warnoptions)
    options: dict[str, str | bool] = vars(sys)["_xoptions"]  # public, in spite of its name
    for name, value in options.items():
        yield f"-X{name}" if value is True else f"-X{name}={value}"


def preparation() -> dict[str, Any]:
    """Return what a child needs to find modules as this process does."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    folders = [str(Path(folder).absolute()) for folder in sys.path]
    return {
        "path": folders,
        "argv": sys.argv,
        "files": dict(_files_beside(set(folders))),
        "main_file": str(Path(file).absolute()) if file else None,
        "main_package": getattr(main, "__package__", None),
    }


def _files_beside(folders: set[str]) -> Iterator[tuple[str, str]]:
    """Name the modules that were loaded from a file to which the search path does not lead."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if "." in name or name in ("__main__", wire.MAIN_ALIAS) or not isinstance(file, str):
            continue
        path = Path(file).absolute()
        if path.suffix == ".py" and path.name != "__init__.py" and str(path.parent) not in folders:
            yield name, str(path)


# -- what crosses --------------------------------------------------------------------------


def _encode_call(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    # In the loop's thread: pickling holds the interpreter's lock anyway, and here nobody changes
    # an argument meanwhile.
    head = pickle.dumps((target.module, target.qualname, target.file), wire.PICKLE_PROTOCOL)
    try:
        body = pickle.dumps((args, kwargs), wire.PICKLE_PROTOCOL)
    except Exception as error:
        raise EncodingError(
            f"{_culprit(args, kwargs)} of the process step {target.name} cannot be sent to another process: "
            f"{error}. "
            f"Pass plain data, or open in the step function what it needs.",
        ) from error
    return wire.frame(wire.CALL, head + body)


def _culprit(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    named = [(f"Argument {place}", arg) for place, arg in enumerate(args, 1)]
    named += [(f"Argument {name!r}", arg) for name, arg in kwargs.items()]
    for name, arg in named:
        try:
            pickle.dumps(arg, wire.PICKLE_PROTOCOL)
        except Exception:  # noqa: BLE001  # pickling runs the argument's own code
            return f"{name}, a {type(arg).__qualname__},"
    return "An argument"


def _decode_reply(target: Target, pid: int, kind: bytes, payload: bytes) -> Any:
    if kind == wire.VALUE:
        return Unpickler(io.BytesIO(payload)).load()
    if kind == wire.UNSENDABLE:
        raise EncodingError(
            f"The process step {target.name} returned what cannot be sent back, {payload.decode()}. "
            f"Return plain data."
        )
    error = restore_error(payload)
    # Once, on the outermost: its text has the tracebacks of the causes too.
    error.add_note(f"In the child process {pid}:\n{_parts(payload).traceback.rstrip()}")
    raise error


class Unpickler(pickle.Unpickler):
    """Knows that a class of the script has another name in a child."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == wire.MAIN_ALIAS:
            module_name = "__main__"
        if module_name in sys.modules:
            return wire.find(sys.modules[module_name], global_name)
        return super().find_class(module_name, global_name)


class ErrorParts(msgspec.Struct, frozen=True, kw_only=True):
    """An exception as a child sends it; the byte fields are pickles."""

    module: str
    qualname: str
    message: str
    traceback: str
    whole: bytes | None
    args: bytes
    fields: dict[str, bytes]
    cause: bytes | None


def restore_error(payload: bytes) -> BaseException:
    """Make an exception of a child, and what caused it, into one of this process."""
    parts = _parts(payload)
    try:
        error = _rebuild(parts)
    except Exception:  # noqa: BLE001  # a class that cannot be rebuilt is still described
        error = StepFailedError(
            f"{parts.module}.{parts.qualname}: {parts.message}",
            error_class=f"{parts.module}.{parts.qualname}",
            error_message=parts.message,
            traceback_text=parts.traceback,
        )
    if parts.cause is not None:
        error.__cause__ = restore_error(parts.cause)
    return error


def _parts(payload: bytes) -> ErrorParts:
    return msgspec.convert(_loads(payload), ErrorParts)


def _rebuild(parts: ErrorParts) -> BaseException:
    """Rebuild without the class's own constructor, which may want other arguments than it passed on."""
    if parts.whole is not None:
        return cast("BaseException", _loads(parts.whole))
    cls = wire.find(sys.modules[parts.module], parts.qualname)
    args = _loads(parts.args)
    error: BaseException = cls.__new__(cls, *args)
    native = next(base for base in cls.__mro__ if _has_native_init(base))
    native.__init__(error, *args)  # OSError and others take their fields from here
    error.__setstate__({name: _loads(value) for name, value in parts.fields.items()})
    return error


def _has_native_init(cls: type) -> bool:
    init = vars(cls).get("__init__")
    return init is not None and not isinstance(init, FunctionType)


def _loads(payload: bytes) -> Any:
    return Unpickler(io.BytesIO(payload)).load()
