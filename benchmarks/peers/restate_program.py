"""The work of the benchmarks, done by Restate: a program for an environment that has its SDK.

    python restate_program.py WORK FOLDER COUNT

Starts restate-server (`$RESTATE_SERVER`, or the one on PATH) with its own defaults over the folder, and this
file as the service, by hypercorn; both on the loopback. What is timed is timed by a client outside, as
Restate is used. Prints one line of JSON: figures by the key of the measure they are compared with.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import http.client
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

TEXT = "x" * 100
CLIENTS = 64
START_S_MAX = 60.0
SERVICE = "bench"
HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - a program of one file


# -- the service -----------------------------------------------------------------------------


async def value(number: int) -> dict[str, Any]:
    """Return what a step of ordinary size returns."""
    return {"i": number, "text": TEXT}


async def blob(number: int) -> str:
    """Return a megabyte of text."""
    del number
    return "b" * 1_000_000


async def noted(number: int) -> dict[str, Any]:
    """Append the step's number and time to a file."""
    with open(os.environ["BENCH_TRACE"], "a", encoding="ascii") as file:  # noqa: ASYNC230, PTH123 - in a program of one file
        file.write(f"{number} {time.time()}\n")
    return {"i": number}


async def run(ctx: Any, work: dict[str, Any]) -> int:
    """Run the steps that are asked for and return how many there were."""
    step = {"value": value, "blob": blob, "noted": noted}[work["step"]]
    calls = (ctx.run_typed(f"step {number}", step, number=number) for number in range(work["count"]))
    if work.get("together"):
        return len(await restate.gather(*calls))
    done = 0
    for call in calls:
        await call
        done += 1
    return done


# Where the SDK is not installed this can be imported all the same, but not run.
restate: Any = importlib.import_module("restate") if importlib.util.find_spec("restate") else None
app: Any = None
if restate is not None:
    workflow = restate.Workflow(SERVICE)
    workflow.main(name="run")(run)
    app = restate.app([workflow])


# -- server and service ----------------------------------------------------------------------


class Stack:
    """A server over a folder, and the service registered with it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.ports = [free_port() for _ in range(4)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._local = threading.local()

    def start(self) -> None:
        """Start both, and return when both listen."""
        node, ingress, admin, service = self.ports
        config = f"{self.folder}/restate.toml"
        with open(config, "w", encoding="ascii") as file:  # noqa: PTH123 - in a program of one file
            file.write(
                f'bind-address = "127.0.0.1:{node}"\nadvertised-address = "http://127.0.0.1:{node}/"\n'
                f'listen-mode = "tcp"\nlog-filter = "warn"\ndisable-telemetry = true\n'
                f'[ingress]\nbind-address = "127.0.0.1:{ingress}"\n'
                f'[admin]\nbind-address = "127.0.0.1:{admin}"\n'
            )
        server = os.environ.get("RESTATE_SERVER", "restate-server")
        data = f"{self.folder}/data"
        self._spawn(server, "--no-logo", "-c", config, "--base-dir", data, "--node-name", "one")
        self._spawn(
            sys.executable, "-m", "hypercorn", "--bind", f"127.0.0.1:{service}", "restate_program:app"
        )
        for port in (service, admin, ingress):
            wait_for_port(port)

    def _spawn(self, *command: str) -> None:
        environment = os.environ | {"BENCH_TRACE": f"{self.folder}/trace", "DO_NOT_TRACK": "1"}
        log = open(f"{self.folder}/log", "ab")  # noqa: PTH123, SIM115 - its processes write to it
        self._processes.append(
            subprocess.Popen(
                command, cwd=HERE, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        )
        log.close()

    def register(self) -> None:
        """Tell the server of the service."""
        _, _, admin, service = self.ports
        ends_s = time.monotonic() + START_S_MAX
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                request(
                    http.client.HTTPConnection("127.0.0.1", admin),
                    "/deployments",
                    {"uri": f"http://127.0.0.1:{service}"},
                )
                return
            if time.monotonic() > ends_s:
                raise SystemExit("the service could not be registered")
            time.sleep(0.2)

    def run(self, key: str, step: str, count: int, *, together: bool = False) -> None:
        """Run one workflow and wait for its result."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self.ports[1])
        found = request(
            connection, f"/{SERVICE}/{key}/run", {"step": step, "count": count, "together": together}
        )
        if found != count:
            raise SystemExit(f"the workflow returned {found!r}, not {count}")

    def submit(self, key: str, step: str, count: int) -> None:
        """Start a workflow and do not wait."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[1])
        request(connection, f"/{SERVICE}/{key}/run/send", {"step": step, "count": count})

    def kill(self) -> None:
        """Kill both as a crash does."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()


def request(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> Any:
    """Post JSON and return the JSON of the answer. Raises `ValueError` for any other answer."""
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise ValueError(f"{path}: {answer.status} {text[:200]!r}")
    return json.loads(text)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    """Return once somebody listens there."""
    ends_s = time.monotonic() + START_S_MAX
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > ends_s:
            raise SystemExit(f"nobody listens on port {port}")
        time.sleep(0.01)


# -- what is measured ------------------------------------------------------------------------


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that it takes."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def measure_chain(stack: Stack, count: int) -> dict[str, float]:
    """Take the steps per second of one chain."""
    return {"chain/full": count / timed(lambda: stack.run("chain", "value", count))}


def measure_short(stack: Stack, count: int) -> dict[str, float]:
    """Take the instances of 5 steps per second."""
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        one = functools.partial(stack.run, step="value", count=5)
        keys = [f"short-{number}" for number in range(count)]
        return {"short/full": count / timed(lambda: list(clients.map(one, keys)))}


def measure_latency(stack: Stack, count: int) -> dict[str, float]:
    """Take the milliseconds from start to result, one at a time."""
    took_s = sorted(
        timed(functools.partial(stack.run, f"one-{number}", "value", 1)) for number in range(count)
    )
    return {"latency/p50": 1e3 * took_s[count // 2], "latency/p99": 1e3 * took_s[count * 99 // 100]}


def measure_fanout(stack: Stack, count: int) -> dict[str, float]:
    """Take the parallel steps per second."""
    return {"fanout/full": count / timed(lambda: stack.run("fan", "value", count, together=True))}


def measure_large(stack: Stack, count: int) -> dict[str, float]:
    """Take the megabytes of results per second."""
    return {"large/1": count / timed(lambda: stack.run("large", "blob", count))}


def measure_recover(stack: Stack, count: int) -> dict[str, float]:
    """Take the milliseconds from the start of both processes to the first new step after a kill."""
    stack.submit("traced", "noted", count)
    while len(trace(stack)) < count // 2:
        time.sleep(0.002)
    stack.kill()
    before = len(trace(stack))
    began_s = time.time()
    stack.start()
    while len({number for number, _ in trace(stack)}) < count:
        time.sleep(0.01)
    return {"recover/spawn": 1e3 * (trace(stack)[before][1] - began_s)}


def trace(stack: Stack) -> list[tuple[int, float]]:
    """Return number and time of each step that left its line."""
    try:
        with open(f"{stack.folder}/trace", encoding="ascii") as file:  # noqa: PTH123 - in a program of one file
            lines = [line.split() for line in file if line.endswith("\n")]
    except FileNotFoundError:
        return []
    return [(int(number), float(at)) for number, at in lines]


MEASURES: dict[str, Callable[[Stack, int], dict[str, float]]] = {
    "chain": measure_chain,
    "short": measure_short,
    "latency": measure_latency,
    "fanout": measure_fanout,
    "large": measure_large,
    "recover": measure_recover,
}


def main() -> None:
    """Measure what the command line says."""
    work, folder, count = sys.argv[1:]
    stack = Stack(folder)
    try:
        stack.start()
        stack.register()
        for number in range(10):
            stack.run(f"first-{number}", "value", 5)
        print(json.dumps(MEASURES[work](stack, int(count))), flush=True)
    finally:
        stack.kill()


if __name__ == "__main__":
    main()
