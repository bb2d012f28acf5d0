"""Perdure: durable workflows for Python. Every instance is an actor that owns its own SQLite file.

This is the whole public face; `perdure.errors`, `perdure.limits`, `perdure.testing` and
`perdure.portal` are public modules beside it. Everything else may change.
"""

from perdure.actors.compensation import Rollback, RollbackContext
from perdure.actors.concurrency import Concurrency
from perdure.actors.context import StepContext, StepName, current_step
from perdure.actors.durations import Duration
from perdure.actors.functions import asyncio_step, process_step
from perdure.actors.retention import Retention
from perdure.actors.retry import Retries, StepConfig
from perdure.actors.schedules import Cron, Every
from perdure.actors.step import WorkflowStep
from perdure.actors.step_stream import StepStream
from perdure.actors.streams import StreamWriter
from perdure.actors.waiting import StepEvent
from perdure.actors.workflow import ActorContext, Schedule, WorkflowEntrypoint, WorkflowEvent
from perdure.engine.app import App
from perdure.engine.batches import BatchEntry
from perdure.engine.bulk import BulkReport, BulkSelection, Refused
from perdure.engine.instance import Instance
from perdure.engine.opening import open_runtime
from perdure.engine.removal import DeletedBatch, DeleteError
from perdure.engine.runtime import Runtime
from perdure.engine.schedules import ScheduleStatus
from perdure.engine.statistics import RuntimeStatistics
from perdure.engine.status import InstanceStatus, RollbackResult
from perdure.engine.story import HistoryEntry
from perdure.engine.streams import StreamReader
from perdure.errors import (
    AmbiguousInstanceError,
    AmbiguousStepError,
    ChildFailedError,
    ChildTerminatedError,
    CommandError,
    DecodingError,
    DivergenceError,
    EncodingError,
    EventTimeoutError,
    ForgottenAwaitError,
    InstanceDamagedError,
    InstanceDeadError,
    InstanceError,
    InstanceExistsError,
    InstanceExpiredError,
    InstanceFailedError,
    InstanceFinishedError,
    InstanceNotFoundError,
    InstanceTerminatedError,
    InvalidArgumentError,
    InvalidDurationError,
    InvalidIdError,
    InvalidNameError,
    InvalidParamsError,
    LimitExceededError,
    NonRetryableError,
    OpenStepError,
    PerdureError,
    PerdureWarning,
    QueryError,
    QueryRefusedError,
    QueryTimeoutError,
    RetryDelayError,
    RollbackMissingError,
    RuntimeClosedError,
    RunTimeoutError,
    StateError,
    StateLockedError,
    StateUnusableError,
    StateVersionError,
    StepError,
    StepFailedError,
    StepLostError,
    StepNotFoundError,
    StepTimeoutError,
    StorageFullError,
    StorageWriteError,
    StreamNotFoundError,
    StreamRewoundError,
    UnknownDependencyError,
    UnknownWorkflowError,
    WorkflowCodeError,
)
from perdure.limits import Limits, WorkflowLimits
from perdure.storage.codec import TypeHook
from perdure.storage.rows import Row
from perdure.storage.sql import Rows, Sql

__all__ = [
    "ActorContext",
    "AmbiguousInstanceError",
    "AmbiguousStepError",
    "App",
    "BatchEntry",
    "BulkReport",
    "BulkSelection",
    "ChildFailedError",
    "ChildTerminatedError",
    "CommandError",
    "Concurrency",
    "Cron",
    "DecodingError",
    "DeleteError",
    "DeletedBatch",
    "DivergenceError",
    "Duration",
    "EncodingError",
    "EventTimeoutError",
    "Every",
    "ForgottenAwaitError",
    "HistoryEntry",
    "Instance",
    "InstanceDamagedError",
    "InstanceDeadError",
    "InstanceError",
    "InstanceExistsError",
    "InstanceExpiredError",
    "InstanceFailedError",
    "InstanceFinishedError",
    "InstanceNotFoundError",
    "InstanceStatus",
    "InstanceTerminatedError",
    "InvalidArgumentError",
    "InvalidDurationError",
    "InvalidIdError",
    "InvalidNameError",
    "InvalidParamsError",
    "LimitExceededError",
    "Limits",
    "NonRetryableError",
    "OpenStepError",
    "PerdureError",
    "PerdureWarning",
    "QueryError",
    "QueryRefusedError",
    "QueryTimeoutError",
    "Refused",
    "Retention",
    "Retries",
    "RetryDelayError",
    "Rollback",
    "RollbackContext",
    "RollbackMissingError",
    "RollbackResult",
    "Row",
    "Rows",
    "RunTimeoutError",
    "Runtime",
    "RuntimeClosedError",
    "RuntimeStatistics",
    "Schedule",
    "ScheduleStatus",
    "Sql",
    "StateError",
    "StateLockedError",
    "StateUnusableError",
    "StateVersionError",
    "StepConfig",
    "StepContext",
    "StepError",
    "StepEvent",
    "StepFailedError",
    "StepLostError",
    "StepName",
    "StepNotFoundError",
    "StepStream",
    "StepTimeoutError",
    "StorageFullError",
    "StorageWriteError",
    "StreamNotFoundError",
    "StreamReader",
    "StreamRewoundError",
    "StreamWriter",
    "TypeHook",
    "UnknownDependencyError",
    "UnknownWorkflowError",
    "WorkflowCodeError",
    "WorkflowEntrypoint",
    "WorkflowEvent",
    "WorkflowLimits",
    "WorkflowStep",
    "asyncio_step",
    "current_step",
    "open_runtime",
    "process_step",
]
