"""Perdure: durable workflows for Python. Every instance is an actor that owns its own SQLite file.

This is the whole public face; `perdure.errors`, `perdure.limits`, `perdure.testing` and
`perdure.portal` are public modules beside it. Everything else may change.
"""

from perdure.actors.context import StepContext, StepName, current_step
from perdure.actors.durations import Duration
from perdure.actors.functions import asyncio_step, process_step
from perdure.actors.retry import Retries, StepConfig
from perdure.actors.step import WorkflowStep
from perdure.actors.waiting import StepEvent
from perdure.actors.workflow import ActorContext, Schedule, WorkflowEntrypoint, WorkflowEvent
from perdure.engine.app import App
from perdure.engine.instance import HistoryEntry, Instance, InstanceStatus
from perdure.engine.runtime import Runtime, RuntimeStatistics, open_runtime
from perdure.errors import *  # noqa: F403 - the error tree is public as a whole; its __all__ is the list
from perdure.errors import __all__ as _errors
from perdure.limits import Limits
from perdure.storage.codec import TypeHook
from perdure.storage.rows import Row
from perdure.storage.sql import Rows, Sql

__all__ = [
    "ActorContext",
    "App",
    "Duration",
    "HistoryEntry",
    "Instance",
    "InstanceStatus",
    "Limits",
    "Retries",
    "Row",
    "Rows",
    "Runtime",
    "RuntimeStatistics",
    "Schedule",
    "Sql",
    "StepConfig",
    "StepContext",
    "StepEvent",
    "StepName",
    "TypeHook",
    "WorkflowEntrypoint",
    "WorkflowEvent",
    "WorkflowStep",
    "asyncio_step",
    "current_step",
    "open_runtime",
    "process_step",
]
__all__ += _errors
