"""What a runtime is doing, in figures: the records, their sum over workers, and the counters behind them.

Whoever does a thing counts it, in an integer of its own; nothing here is asked while work is done.
`Observer` puts the figures together when somebody wants them.

Invariants:
    Counting costs an addition. What takes longer is done by who asks.
    The statistics of several workers add up to those of the runtime.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeVar

import msgspec
import trio

from perdure.actors.functions import FunctionStatistics
from perdure.actors.outcome import Completed, Failed, Outcome, Terminated
from perdure.storage.disk import DiskStatistics
from perdure.storage.gate import GateStatistics
from perdure.storage.writer import CatalogStatistics

S = TypeVar("S", bound=msgspec.Struct)
LAG_LOOK_S: Final = 0.1
"""How often the loop's lag is measured: often enough to meet what holds the loop up, too seldom to cost."""
LAG_KEPT_S: Final = 60.0
QUEUE_COUNTED_MAX: Final = 10_000
"""Rows that `statistics()` counts of a queue, at most: half a millisecond of the loop's time."""
QUEUE_LOOKED_MAX: Final = 100_000
"""The same for `perdure top`, for which they are counted in a thread."""


class LagStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How late a task of the loop woke in the last minute, in milliseconds: what holds it up shows here.

    Up to one millisecond is the operating system's own rounding. Of several workers it is the worst one's.
    """

    samples: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class QueueStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What waits: instances to be started and to be woken, commands of other processes, catalog writes.

    The first two are counted up to 10,000 (by `perdure top`, to 100,000), which then means that or
    more; those whose class this process does not have are among them.
    """

    unstarted: int
    due: int
    inbox: int
    catalog_writes: int


class WorkflowStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One workflow, since the runtime was opened. `warm` ones are in memory now; `parked` ones only wait.

    `steps` counts the steps recorded; `replays` how often `run()` was called again from the top; `queued`
    those that wait to be started, or for a place, up to 10,000 of all workflows.
    """

    warm: int = 0
    parked: int = 0
    started: int = 0
    finished: int = 0
    failed: int = 0
    terminated: int = 0
    steps: int = 0
    replays: int = 0
    queued: int = 0


class RuntimeStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime is doing. `warm` instances are in memory; `busy` ones of them have work.

    `parked` ones could leave memory now. `oldest_query_s` is the age of the longest running query, which
    keeps a WAL from being reset. Counters begin when the runtime is opened, `uptime_s` ago.

    >>> await (await runtime.create(Tides, params="Cork")).result()
    3.1
    >>> runtime.statistics().workflows["Tides"].finished > 0
    True
    """

    at: datetime
    uptime_s: float
    workers: int = 1
    worker: int | None = None
    pid: int | None = None
    warm: int
    busy: int
    parked: int
    files_open: int
    ticks: int
    timers: int
    queries: int
    oldest_query_s: float | None
    lag: LagStatistics
    queues: QueueStatistics
    workflows: dict[str, WorkflowStatistics]
    gate: GateStatistics
    catalog: CatalogStatistics
    disk: DiskStatistics
    functions: FunctionStatistics

    @property
    def steps(self) -> int:
        """Steps recorded, of all workflows."""
        return sum(each.steps for each in self.workflows.values())

    @property
    def replays(self) -> int:
        """Calls of `run()` again from the top, of all workflows."""
        return sum(each.replays for each in self.workflows.values())


def united(workers: Sequence[RuntimeStatistics]) -> RuntimeStatistics:
    """Return the statistics of several workers of one state folder as one. There is at least one.

    What they see alike, the queues of the catalog, is not added up.
    """
    ages = [each.oldest_query_s for each in workers if each.oldest_query_s is not None]
    names = sorted({name for each in workers for name in each.workflows})
    none = WorkflowStatistics()
    return RuntimeStatistics(
        at=max(each.at for each in workers),
        uptime_s=max(each.uptime_s for each in workers),
        workers=sum(each.workers for each in workers),
        worker=workers[0].worker if len(workers) == 1 else None,
        pid=workers[0].pid if len(workers) == 1 else None,
        warm=sum(each.warm for each in workers),
        busy=sum(each.busy for each in workers),
        parked=sum(each.parked for each in workers),
        files_open=sum(each.files_open for each in workers),
        ticks=sum(each.ticks for each in workers),
        timers=sum(each.timers for each in workers),
        queries=sum(each.queries for each in workers),
        oldest_query_s=max(ages, default=None),
        lag=_worst([each.lag for each in workers]),
        queues=QueueStatistics(
            unstarted=max(each.queues.unstarted for each in workers),
            due=max(each.queues.due for each in workers),
            inbox=sum(each.queues.inbox for each in workers),
            catalog_writes=sum(each.queues.catalog_writes for each in workers),
        ),
        workflows={name: _united([each.workflows.get(name, none) for each in workers]) for name in names},
        gate=_added(GateStatistics, [each.gate for each in workers]),
        catalog=_added(CatalogStatistics, [each.catalog for each in workers]),
        disk=_added(DiskStatistics, [each.disk for each in workers]),
        functions=_added(FunctionStatistics, [each.functions for each in workers]),
    )


def _added(kind: type[S], records: Sequence[S]) -> S:
    """Return the sum of records whose fields are all numbers."""
    return kind(**{
        name: sum(getattr(record, name) for record in records) for name in kind.__struct_fields__
    })  # fmt: skip


def _united(workers: Sequence[WorkflowStatistics]) -> WorkflowStatistics:
    """Return the sum, but of the queue, which all workers see alike."""
    added = _added(WorkflowStatistics, workers)
    return msgspec.structs.replace(added, queued=max(each.queued for each in workers))


def _worst(lags: Sequence[LagStatistics]) -> LagStatistics:
    return LagStatistics(
        samples=sum(lag.samples for lag in lags),
        p50_ms=max(lag.p50_ms for lag in lags),
        p99_ms=max(lag.p99_ms for lag in lags),
        max_ms=max(lag.max_ms for lag in lags),
    )


class LoopLag:
    """Measures how late the loop comes to its tasks. `run` serves in a task.

    `on_look` is called whenever it has woken.
    """

    def __init__(self) -> None:
        self._late_s: collections.deque[float] = collections.deque(maxlen=round(LAG_KEPT_S / LAG_LOOK_S))

    async def wake(self) -> None:
        """Sleep for `LAG_LOOK_S` and note how much longer that took."""
        due_s = trio.current_time() + LAG_LOOK_S
        await trio.sleep_until(due_s)
        self._late_s.append(trio.current_time() - due_s)

    def statistics(self) -> LagStatistics:
        """Return the last minute's figures; all zero before the first."""
        late = sorted(self._late_s)
        return LagStatistics(
            samples=len(late),
            p50_ms=_quantile_ms(late, 0.5),
            p99_ms=_quantile_ms(late, 0.99),
            max_ms=_quantile_ms(late, 1.0),
        )


def _quantile_ms(ordered_s: Sequence[float], share: float) -> float:
    if not ordered_s:
        return 0.0
    return round(max(0.0, ordered_s[math.ceil(share * len(ordered_s)) - 1]) * 1000, 3)


class _Counts:
    __slots__ = ("failed", "finished", "replays", "started", "steps", "terminated")

    def __init__(self) -> None:
        self.started = self.finished = self.failed = self.terminated = self.steps = self.replays = 0


class Tally:
    """What became of instances, per workflow. The game loop counts; only figures are kept."""

    def __init__(self) -> None:
        self._counts: collections.defaultdict[str, _Counts] = collections.defaultdict(_Counts)

    def started(self, workflow: str) -> None:
        """Count an instance that begins."""
        self._counts[workflow].started += 1

    def ended(self, workflow: str, outcome: Outcome) -> None:
        """Count an instance that has ended, for good; what only rests is not counted."""
        match outcome:
            case Completed():
                self._counts[workflow].finished += 1
            case Failed():
                self._counts[workflow].failed += 1
            case Terminated():
                self._counts[workflow].terminated += 1
            case _:
                pass

    def worked(self, workflow: str, *, steps: int, replays: int) -> None:
        """Count what an instance has done that is leaving memory."""
        counts = self._counts[workflow]
        counts.steps += steps
        counts.replays += replays

    def statistics(
        self, warm: Iterable[tuple[str, bool, int, int]], queued: Mapping[str, int] | None = None
    ) -> dict[str, WorkflowStatistics]:
        """Return the figures per workflow; `warm` are (workflow, parked, steps, replays) of those."""
        counts = {name: msgspec.to_builtins(_as_record(each)) for name, each in self._counts.items()}
        for name, is_parked, steps, replays in warm:
            each = counts.setdefault(name, msgspec.to_builtins(WorkflowStatistics()))
            each["warm"] += 1
            each["parked"] += is_parked
            each["steps"] += steps
            each["replays"] += replays
        for name, count in (queued or {}).items():
            if count:
                counts.setdefault(name, msgspec.to_builtins(WorkflowStatistics()))["queued"] = count
        return {name: WorkflowStatistics(**counts[name]) for name in sorted(counts)}


def _as_record(counts: _Counts) -> WorkflowStatistics:
    return WorkflowStatistics(**{name: getattr(counts, name) for name in _Counts.__slots__})
