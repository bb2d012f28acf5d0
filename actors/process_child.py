"""The program of a child process that runs process steps, one after the other.

Started by `processes.py` by the path of this file, so it imports the standard library alone: a child
is ready in a fraction of the time that importing the runtime takes, and imports what a step needs
when the step comes. The parent imports it for the constants of the wire.

The wire, both ways: one byte that says what follows, eight bytes of length, a pickle. The first
message to a child says how its interpreter should look, each later one is a call.

Invariants:
    A child dies with its parent, in the middle of a call too. Between calls it ends in order.
    A call is answered by one message, after the standard streams were flushed and the last heartbeat
    was sent; heartbeats go before it, and nothing else does.
    The script that the parent runs is loaded only for a call that names something in it, and not as
    `__main__`, so that its guarded part does not run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import pickle
import queue
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import IO, Any, Final, cast

HEADER: Final = struct.Struct("!cQ")
VALUE: Final = b"v"
ERROR: Final = b"e"
UNSENDABLE: Final = b"u"
CALL: Final = b"c"
PREPARE: Final = b"p"
BEAT: Final = b"h"

BEAT_S: Final = 0.1
"""Heartbeats are sent no more often; what was said meanwhile is overtaken by what was said last."""

MAIN_ALIAS: Final = "__mp_main__"
"""The name under which a child loads the parent's script: multiprocessing's, which libraries know."""

LOADING: Final = "__perdure_loading__"
"""An attribute of the module above while its code runs: no child may be started then."""

PICKLE_PROTOCOL: Final = 5
CAUSES_MAX: Final = 8
"""A chain of causes is carried this far; the traceback's text has all of it."""

READ_BYTES_MAX: Final = 1024 * 1024
"""A read sets aside as much as it asks for, and a pipe rarely holds more than 64 KiB."""

_PR_SET_PDEATHSIG: Final = 1


def frame(kind: bytes, payload: bytes) -> bytes:
    """Return a message of the wire."""
    return HEADER.pack(kind, len(payload)) + payload


def main() -> None:
    """Serve the calls that come through the pipe named on the command line, until it ends."""
    requests_fd, replies_fd, parent_pid = (int(text) for text in sys.argv[1:4])
    _die_with(parent_pid)
    # A handler, not SIG_IGN: what a step starts in turn inherits the latter and could not be interrupted.
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a background group must still be able to print
    for fd in (requests_fd, replies_fd):
        os.set_inheritable(fd, False)
    # Under the name by which a step imports it, so that there is one of it and `heartbeat` finds the child.
    sys.modules["perdure.actors.process_child"] = sys.modules[__name__]
    with contextlib.suppress(BrokenPipeError):  # the parent left while it was being answered
        child = Child(requests_fd, replies_fd)
        HERE.append(child)
        child.serve()


def heartbeat(details: object) -> None:
    """Send the heartbeat of the call that runs in this child. Raises what pickling raises."""
    payload = pickle.dumps(details, PICKLE_PROTOCOL)
    for child in HERE:
        child.beat(payload)


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing about a signal."""


class Child:
    """One child: a thread that reads calls, and the main thread that runs them."""

    # Descriptors, not files: closing a file waits for the thread that reads it.
    def __init__(self, requests_fd: int, replies_fd: int) -> None:
        self._requests_fd = requests_fd
        self._replies_fd = replies_fd
        self._calls: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        self._busy = False
        self._sending = threading.Lock()
        self._heartbeat: bytes | None = None
        self._beaten: threading.Event | None = None
        self._sources = Sources(pickle.loads(_read(requests_fd) or b""))  # noqa: S301  # from our own parent

    def serve(self) -> None:
        """Answer calls until the pipe ends."""
        # Steps run in the main thread, as libraries with signal handlers or GUI parts expect, so it
        # is another that notices the end of the pipe while a step computes.
        threading.Thread(target=self._receive, name="perdure requests", daemon=True).start()
        while (payload := self._calls.get()) is not None:
            reply = self._answer(payload)
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # closed, None, or replaced by the step
                    stream.flush()
            self._busy = False
            with self._sending:
                self._send(self._pending_beat() + reply)

    def beat(self, payload: bytes) -> None:
        """Take a heartbeat of the call that runs; a thread sends it, and does not wait for the call."""
        with self._sending:
            self._heartbeat = payload
            if self._beaten is None:
                self._beaten = threading.Event()
                beats = threading.Thread(target=self._send_beats, args=[self._beaten], daemon=True)
                beats.start()
        self._beaten.set()

    def _send_beats(self, beaten: threading.Event) -> None:
        while beaten.wait():
            beaten.clear()
            with contextlib.suppress(BrokenPipeError), self._sending:
                self._send(self._pending_beat())
            time.sleep(BEAT_S)

    def _pending_beat(self) -> bytes:
        payload, self._heartbeat = self._heartbeat, None
        return b"" if payload is None else frame(BEAT, payload)

    def _send(self, message: bytes) -> None:
        rest = memoryview(message)
        while rest:  # a pipe takes what has room
            rest = rest[os.write(self._replies_fd, rest) :]

    def _receive(self) -> None:
        while (payload := _read(self._requests_fd)) is not None:
            self._busy = True
            self._calls.put(payload)
        if self._busy:  # the parent is gone: nobody may run on, nor anything the step has started
            os.killpg(0, signal.SIGKILL)
        self._calls.put(None)

    def _answer(self, payload: bytearray) -> bytes:
        try:
            stream = io.BytesIO(payload)
            module, qualname, file = Unpickler(stream, self._sources).load()
            fn = find(self._sources.module(module, file), qualname)
            # Another one for the second pickle: references go by what one unpickler has seen so far.
            args, kwargs = Unpickler(stream, self._sources).load()
            value = fn(*args, **kwargs)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001  # whatever it is, the parent raises it
            return frame(ERROR, dump_error(error))
        try:
            return frame(VALUE, pickle.dumps(value, PICKLE_PROTOCOL))
        except Exception as error:  # noqa: BLE001  # pickling runs the value's own code
            return frame(UNSENDABLE, f"a {type(value).__qualname__}: {error}".encode())


HERE: Final[list[Child]] = []
"""The child that this process is; nothing in a parent."""


class Sources(importlib.abc.MetaPathFinder):
    """Where modules come from: the parent's search path, then the files it has loaded beside it."""

    def __init__(self, preparation: dict[str, Any]) -> None:
        sys.path[:] = preparation["path"]
        sys.argv[:] = preparation["argv"]
        self._files: dict[str, str] = preparation["files"]
        self._main_file: str | None = preparation["main_file"]
        self._main_package: str | None = preparation["main_package"]
        sys.meta_path.append(self)

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002  # as the import system calls it
        target: ModuleType | None = None,  # noqa: ARG002  # likewise
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module that lies outside the search path."""
        file = self._files.get(fullname)
        return None if file is None else _spec(fullname, file)

    def module(self, name: str, file: str | None = None) -> ModuleType:
        """Return the module of that name, from that file where one is given."""
        if name in ("__main__", MAIN_ALIAS):
            return sys.modules.get(MAIN_ALIAS) or self._load_main()
        if name in sys.modules:
            return sys.modules[name]
        if file is None or _leads_to(name, file):
            return importlib.import_module(name)
        return _load(name, file)

    def _load_main(self) -> ModuleType:
        if self._main_file is None:
            raise ModuleNotFoundError("the parent's main program has no file", name="__main__")
        module = importlib.util.module_from_spec(_spec(MAIN_ALIAS, self._main_file))
        # With a spec, Python would compare the package with the alias and warn about relative imports.
        module.__spec__ = None
        module.__package__ = self._main_package
        vars(module)[LOADING] = True
        sys.modules["__main__"] = sys.modules[MAIN_ALIAS] = module
        try:
            _loader(MAIN_ALIAS, self._main_file).exec_module(module)
        except BaseException:
            del sys.modules[MAIN_ALIAS]
            raise
        finally:
            vars(module)[LOADING] = False
        return module


class Unpickler(pickle.Unpickler):
    """Finds classes in the parent's script and in files outside the search path too."""

    def __init__(self, stream: IO[bytes], sources: Sources) -> None:
        super().__init__(stream)
        self._sources = sources

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Find a class or function that a pickle names."""
        return find(self._sources.module(module_name), global_name)


def find(module: ModuleType | None, qualname: str) -> Any:
    """Return what a dotted name means in a module. Raises AttributeError.

    >>> find(os, "path.join") is os.path.join
    True
    """
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def dump_error(error: BaseException, causes_max: int = CAUSES_MAX) -> bytes:
    """Return an exception in parts, each pickled by itself: one that cannot be costs no other."""
    cls = type(error)
    parts: dict[str, Any] = {
        "module": "__main__" if cls.__module__ == MAIN_ALIAS else cls.__module__,
        "qualname": cls.__qualname__,
        "message": _text(error),
        "traceback": _traceback(error),
        "whole": None,
        "args": b"",
        "fields": {},
        "cause": None,
    }
    if isinstance(cls.__reduce__, FunctionType):  # the class has a way of its own: leave it to that
        with contextlib.suppress(Exception):
            parts["whole"] = pickle.dumps(error, PICKLE_PROTOCOL)
    # From here, and not from `args` alone: OSError keeps its file name elsewhere.
    _, args, *rest = _reduced(error)
    parts["args"] = _dump(args) or pickle.dumps(tuple(_sendable(arg) for arg in args), PICKLE_PROTOCOL)
    fields = cast("dict[str, Any]", rest[0] if rest and isinstance(rest[0], dict) else {})
    parts["fields"] = {name: _dump(value) or _dump(repr(value)) for name, value in fields.items()}
    if error.__cause__ is not None and causes_max:
        parts["cause"] = dump_error(error.__cause__, causes_max - 1)
    return pickle.dumps(parts, PICKLE_PROTOCOL)


def _reduced(error: BaseException) -> tuple[Any, ...]:
    with contextlib.suppress(Exception):
        own = cast("tuple[Any, ...]", error.__reduce__())
        if own[0] is type(error):
            return own
    return cast("tuple[Any, ...]", BaseException.__reduce__(error))


def _dump(value: Any) -> bytes | None:
    try:
        return pickle.dumps(value, PICKLE_PROTOCOL)
    except Exception:  # noqa: BLE001  # pickling runs the value's own code
        return None


def _sendable(value: Any) -> Any:
    return repr(value) if _dump(value) is None else value


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # a broken __str__ must not hide the error itself
        return f"<no text: {type(error).__qualname__}.__str__ failed>"


def _traceback(error: BaseException) -> str:
    """Return the traceback without this program's own frame, which says nothing to the user."""
    inner = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
        inner = inner.tb_next
    return "".join(traceback.format_exception(type(error), error, inner or error.__traceback__))


def _leads_to(name: str, file: str) -> bool:
    """Tell whether importing a module by name would load that file."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    try:
        return spec.origin is None or Path(spec.origin).samefile(file)
    except OSError:  # inside an archive, or built in
        return True


def _load(name: str, file: str) -> ModuleType:
    spec = _spec(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _loader(name, file).exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _spec(name: str, file: str) -> importlib.machinery.ModuleSpec:
    # Given the loader, because a script need not end in .py.
    spec = importlib.util.spec_from_file_location(name, file, loader=_loader(name, file))
    assert spec is not None
    return spec


def _loader(name: str, file: str) -> importlib.machinery.SourceFileLoader:
    return importlib.machinery.SourceFileLoader(name, file)


def _read(fd: int) -> bytearray | None:
    """Return the next message's content; None where the pipe has ended."""
    header = _read_exactly(fd, HEADER.size)
    return None if header is None else _read_exactly(fd, HEADER.unpack(header)[1])


def _read_exactly(fd: int, length: int) -> bytearray | None:
    received = bytearray()
    while len(received) < length:
        chunk = os.read(fd, min(length - len(received), READ_BYTES_MAX))
        if not chunk:
            return None
        received += chunk
    return received


def _die_with(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent ends; the end of the pipe says it elsewhere."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415  # on one platform only, and slow to import

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it ended before the line above
            os._exit(1)


if __name__ == "__main__":
    main()
