"""Every bound, with the reason beside it. None limits what a workflow may do; each protects
the machine or keeps a mistake from becoming an outage. `App(limits=...)` replaces the settable ones.
"""

from __future__ import annotations

from typing import Final

import msgspec

# -- fixed -----------------------------------------------------------------------------------

NAME_CHARS_MAX: Final = 256
"""A step name is shown in every table; the peer's bound, so that names carry over."""

ID_CHARS_MAX: Final = 512
"""An id is hashed into the file name when long, so only the catalog's index pays for length."""

WORKFLOW_NAME_CHARS_MAX: Final = 64
"""A workflow's name is a folder's name; the peer's bound."""

EVENT_TYPE_CHARS_MAX: Final = 100
"""The peer's bound, so that event types carry over."""

TOKEN_CHARS_MAX: Final = 4096
"""A token is recorded with its command; one of a command to many has the instance's name behind it."""

SCHEDULE_CHARS_MAX: Final = 256
"""The peer's bound for a cron expression; an occurrence's id, with its time behind, stays below an id's."""

PRIORITY_MAX: Final = 1_000_000
"""Priorities go from minus this to this: room enough for any scheme."""

FILE_NAME_BYTES_MAX: Final = 200
"""Linux allows 255 bytes; `-wal`, `-shm` and an archive suffix must fit behind it."""

INPUT_BYTES_INLINE_MAX: Final = 64 * 1024
"""Arguments are recorded for reading, not for replay: beyond this only their digest is kept."""

INPUT_BYTES_COMPARED_MAX: Final = 256
"""Up to here a replay compares arguments by their text, which is then in memory; beyond, by its digest."""

HEARTBEAT_BYTES_MAX: Final = 64 * 1024
"""The details of a heartbeat say how far a step is; they are written again and again."""

VALUE_BYTES_INLINE_MAX: Final = 64 * 1024
"""A larger value goes to the chunk table, so that `steps` stays small and quick to scan."""

CHUNK_BYTES: Final = 256 * 1024
"""One row of the chunk table: large enough to be quick, small enough to be read piecemeal."""

VIEW_OUTPUT_BYTES_MAX: Final = 16 * 1024 * 1024
"""The views join chunks up to here; a table scan must not fill the memory of a reader."""

STREAM_CHUNK_BYTES_MAX: Final = 16 * 1024 * 1024
"""One chunk of a stream is written and read whole: it bounds what both sides hold. The peer's bound."""

STREAM_BYTES_WAITING_MAX: Final = 512 * 1024
"""Chunks written and not safe yet, per instance: then the writer waits. More than the relay log takes in one
commit, so that a large stream is not written twice."""

VALUE_BYTES_MAX: Final = 1_000_000_000 - 64 * 1024
"""SQLite's own limit on one value, less the room for its row."""

WORKERS_MAX: Final = 256
"""Processes of one state folder: each takes memory of its own, and all take turns at one catalog."""

BUSY_TIMEOUT_MS: Final = 10_000
"""How long a connection waits for another's lock; only the catalog has more than one writer."""


class WorkflowLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one instance, none by default. A class attribute `limits` sets them for one workflow.

    What exceeds one is refused with `LimitExceededError`; from 80 % on it is told, once.

    >>> WorkflowLimits(steps_max=10_000).steps_max
    10000
    """

    steps_max: int | None = None
    """Steps that a run may begin: `do`, `transaction` and `child`, the parts of a `map` one by one."""

    result_bytes_max: int | None = None
    """Bytes of one result, of a step or of `run()`, as stored. Streams have no such bound."""

    event_bytes_max: int | None = None
    """Bytes of params, and of an event's payload, as stored."""

    state_bytes_max: int | None = None
    """Bytes of an instance's file beyond which it begins no step."""


class Limits(WorkflowLimits, frozen=True, kw_only=True):
    """The settable bounds of one runtime, and those of `WorkflowLimits` for all its workflows.

    >>> Limits(running_max=8).running_max
    8
    """

    running_max: int = 1_000
    """Instances whose `run()` is warm and has something to do, at one time."""

    warm_max: int = 2_000
    """Instances kept in memory with their file open: three descriptors each."""

    visits_max: int = 100
    """Instances that are in memory beyond `warm_max` only to take a command: so senders slow down."""

    idle_grace_s: float = 5.0
    """A parked instance hibernates after this long without a wake-up."""

    unwritten_s: float = 0.1
    """An instance just created is in memory and in the relay log only for up to this long, with durability
    `full`; its file is written then, or when it ends before. 0 writes every file at once."""

    unwritten_max: int = 64
    """Instances in memory only: enough for one to run while others wait for the disk; each takes 200 KB."""

    threads_max: int = 32
    """Plain step functions running in worker threads at one time."""

    processes_max: int = 4
    """Child processes for `process_step`; CPU-bound work gains nothing beyond the cores."""

    sync_threads_max: int = 4
    """Threads that wait for the disk while instance files are synced one by one."""

    reset_delay_s: float = 5.0
    """An instance whose write failed rests this long: a full disk does not get better at once."""

    shutdown_grace_s: float = 10.0
    """After this long a shutdown stops waiting for step functions and exits hard."""

    query_timeout_s: float = 30.0
    """A reader that never ends keeps a WAL from being reset."""

    catalog_batch_max: int = 1_000
    """Writes of the catalog that share one transaction and so one sync."""

    catalog_waiting_max: int = 10_000
    """Writes of the catalog that wait in memory; whoever brings another waits until there is room."""

    inbox_waiting_max: int = 1_000
    """Commands of other processes taken into memory; what is beyond waits in the catalog's inbox."""

    claim_batch_max: int = 200
    """Queued instances that one tick starts: a long queue must not hold up the sleepers."""

    worker_silence_s: float = 10.0
    """A worker that gives no sign of life this long (stopped, not merely busy) is killed and taken over."""

    crashes_max: int = 16
    """Deaths of the process in a row, with no step recorded between, that park an instance as dead."""

    rollback_replay_s: float = 600.0
    """How long a `run()` that is replayed for its rollback handlers may wait outside its steps before those
    that are still missing are given up."""

    wal_pages_max: int = 2_000
    """An instance's WAL is checkpointed when it grows beyond this many pages (2 KiB each)."""

    delay_function_timeout_s: float = 5.0
    """A retry's delay function that hangs must not hold the step; the peer's bound."""
