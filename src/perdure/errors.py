"""Every error that Perdure raises, and the one warning category.

Each text says what happened and what to do next; the facts it was made from are attributes.
A refused call has changed nothing (law 13).

    PerdureError
    ├── InvalidArgumentError (ValueError)      the call is wrong; refused before any effect
    │   ├── InvalidNameError                   a step, workflow, stream or event name
    │   ├── InvalidIdError                     an instance id
    │   ├── InvalidDurationError               a duration or a point in time
    │   ├── InvalidParamsError                 params do not fit the annotation of `event`
    │   ├── EncodingError                      a value that cannot be stored, with its path
    │   ├── LimitExceededError                 beyond what App(limits=) or a class's `limits` allows
    │   ├── UnknownDependencyError (TypeError) a parameter of a declared step that nothing is passed for
    │   └── UnknownWorkflowError               no class of that name in the App
    ├── DecodingError                          stored bytes do not fit the annotation any more
    ├── InstanceError                          about one instance: .workflow, .instance_id
    │   ├── InstanceNotFoundError
    │   ├── InstanceExistsError
    │   ├── AmbiguousInstanceError             a bare id that several workflows have
    │   ├── InstanceFinishedError              an event or a command for a finished instance
    │   ├── InstanceFailedError                run() failed; __cause__ is the restored error
    │   ├── InstanceTerminatedError
    │   ├── ChildFailedError                   a child failed; __cause__ is its restored error
    │   ├── ChildTerminatedError               a child was terminated, or deleted before it had ended
    │   ├── RunTimeoutError (TimeoutError)     run() took longer than create(timeout=...)
    │   ├── StreamNotFoundError                the instance has ended without such a stream
    │   ├── StreamRewoundError                 a reader's chunks from .index on are superseded
    │   ├── InstanceDeadError                  it took its process down again and again
    │   ├── InstanceExpiredError               it had ended, and its retention has: no file any more
    │   └── InstanceDamagedError               its file cannot be read; the others go on
    ├── StepError                              about one step: .step, .attempt
    │   ├── StepFailedError                    a stored error whose class is not imported here
    │   ├── StepTimeoutError (TimeoutError)    an attempt took longer than its timeout
    │   ├── StepLostError                      the last allowed attempt died with its process
    │   ├── EventTimeoutError (TimeoutError)   no event of that type came in time
    │   ├── StepNotFoundError                  restart from a step that the instance does not have
    │   ├── RetryDelayError                    a delay function raised or gave nonsense
    │   └── RollbackMissingError               run() gives a step no rollback handler any more
    ├── NonRetryableError                      raise it in a step to end its retries
    ├── WorkflowCodeError                      the code of run() breaks a rule
    │   ├── AmbiguousStepError                 one name, two branches or two functions (law 10)
    │   ├── DivergenceError                    run() asks for what the journal does not hold (law 11)
    │   ├── OpenStepError                      run() ended while a step was open (law 8)
    │   └── ForgottenAwaitError                a step call that nobody awaited (law 8)
    ├── StateError                             about the state folder: .path
    │   ├── StateLockedError                   another process owns it
    │   ├── StateUnusableError                 read-only, not ours, on a network file system
    │   ├── StateVersionError                  written by a newer Perdure
    │   ├── StorageFullError                   the disk is full
    │   └── StorageWriteError                  a write or a sync failed; the actor was reset
    ├── QueryError                             SQL over state: .query
    │   ├── QueryRefusedError                  it would write, attach or is not one statement
    │   └── QueryTimeoutError (TimeoutError)
    ├── CommandError                           a control command could not be carried out
    └── RuntimeClosedError                     the runtime has ended or is ending

    PerdureWarning (UserWarning)
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AmbiguousInstanceError",
    "AmbiguousStepError",
    "ChildFailedError",
    "ChildTerminatedError",
    "CommandError",
    "DecodingError",
    "DivergenceError",
    "EncodingError",
    "EventTimeoutError",
    "ForgottenAwaitError",
    "InstanceDamagedError",
    "InstanceDeadError",
    "InstanceError",
    "InstanceExistsError",
    "InstanceExpiredError",
    "InstanceFailedError",
    "InstanceFinishedError",
    "InstanceNotFoundError",
    "InstanceTerminatedError",
    "InvalidArgumentError",
    "InvalidDurationError",
    "InvalidIdError",
    "InvalidNameError",
    "InvalidParamsError",
    "LimitExceededError",
    "NonRetryableError",
    "OpenStepError",
    "PerdureError",
    "PerdureWarning",
    "QueryError",
    "QueryRefusedError",
    "QueryTimeoutError",
    "RetryDelayError",
    "RollbackMissingError",
    "RunTimeoutError",
    "RuntimeClosedError",
    "StateError",
    "StateLockedError",
    "StateUnusableError",
    "StateVersionError",
    "StepError",
    "StepFailedError",
    "StepLostError",
    "StepNotFoundError",
    "StepTimeoutError",
    "StorageFullError",
    "StorageWriteError",
    "StreamNotFoundError",
    "StreamRewoundError",
    "UnknownDependencyError",
    "UnknownWorkflowError",
    "WorkflowCodeError",
]


class PerdureWarning(UserWarning):
    """What is allowed but likely to be a mistake."""


class PerdureError(Exception):
    """The root of every error that Perdure raises of its own."""


# -- the call is wrong ---------------------------------------------------------------------


class InvalidArgumentError(PerdureError, ValueError):
    """An argument breaks a rule. The text names the value and the rule."""


class InvalidNameError(InvalidArgumentError):
    """A name is empty, too long, or holds control characters."""


class InvalidIdError(InvalidArgumentError):
    """An instance id is empty, too long, or holds control characters."""


class InvalidDurationError(InvalidArgumentError):
    """A duration or a point in time is not of a form that Perdure knows."""


class InvalidParamsError(InvalidArgumentError):
    """`params` do not fit the annotation of the workflow's `event`."""


class EncodingError(InvalidArgumentError):
    """A value cannot be stored so that it comes back the same.

    `path` says where in the value, in the form `$.items[3].price`.
    """

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class LimitExceededError(InvalidArgumentError):
    """A limit that was set forbids it: `limit` names it, `value` exceeds what is `allowed`."""

    def __init__(self, message: str, *, limit: str = "", value: int = 0, allowed: int = 0) -> None:
        super().__init__(message)
        self.limit = limit
        self.value = value
        self.allowed = allowed


class UnknownDependencyError(InvalidArgumentError, TypeError):
    """A declared step takes a parameter that is no argument of its call and no step declared before it."""


class UnknownWorkflowError(InvalidArgumentError):
    """No workflow class of that name belongs to the App."""


class DecodingError(PerdureError):
    """Stored bytes do not fit the annotation that should restore them."""


# -- one instance --------------------------------------------------------------------------


class InstanceError(PerdureError):
    """Something about one instance; `workflow` and `instance_id` name it."""

    def __init__(self, message: str, *, workflow: str = "", instance_id: str = "") -> None:
        super().__init__(message)
        self.workflow = workflow
        self.instance_id = instance_id


class InstanceNotFoundError(InstanceError):
    """No instance of that workflow and id exists."""


class InstanceExistsError(InstanceError):
    """An instance of that workflow and id exists already."""


class AmbiguousInstanceError(InstanceError):
    """Several workflows have an instance of that id; `candidates` lists `Workflow/id` texts."""

    def __init__(self, message: str, *, instance_id: str, candidates: list[str]) -> None:
        super().__init__(message, instance_id=instance_id)
        self.candidates = candidates


class StreamNotFoundError(InstanceError):
    """The instance has ended, or is read as it stands, and has no stream of that name: `stream`."""

    def __init__(self, message: str, *, workflow: str = "", instance_id: str = "", stream: str = "") -> None:
        super().__init__(message, workflow=workflow, instance_id=instance_id)
        self.stream = stream


class StreamRewoundError(InstanceError):
    """Chunks that a reader was given are superseded: the attempt that wrote them has not succeeded.

    Forget what came from `index` on. Iterating on gives what stands from there on now.
    """

    def __init__(
        self, message: str, *, workflow: str = "", instance_id: str = "", stream: str = "", index: int = 0
    ) -> None:
        super().__init__(message, workflow=workflow, instance_id=instance_id)
        self.stream = stream
        self.index = index


class InstanceFinishedError(InstanceError):
    """The instance has finished, so the event or command cannot reach it."""


class InstanceFailedError(InstanceError):
    """The instance failed. `__cause__` is the error that `run()` raised, restored."""


class InstanceTerminatedError(InstanceError):
    """The instance was terminated, so it has no result."""


class ChildFailedError(InstanceError):
    """A child that a step waited for has failed. `__cause__` is the error that its `run()` raised."""


class ChildTerminatedError(InstanceError):
    """A child that a step waited for was terminated, or deleted before it had ended."""


class RunTimeoutError(InstanceError, TimeoutError):
    """The whole run took longer than `create(timeout=...)` allowed. Steps under way were cancelled."""


class InstanceDeadError(InstanceError):
    """The instance took its process down again and again and is parked; resume() revives it."""


class InstanceExpiredError(InstanceError):
    """The instance had ended and its retention is over: its file was removed, or moved to the archive."""


class InstanceDamagedError(InstanceError):
    """The instance's file cannot be read. Nothing was changed in it."""


# -- one step ------------------------------------------------------------------------------


class StepError(PerdureError):
    """Something about one step; `step` is its name, `attempt` counts from 1."""

    def __init__(self, message: str, *, step: str = "", attempt: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.attempt = attempt


class StepFailedError(StepError):
    """A stored error whose class this process has not imported.

    `error_class` is the full name of the class, `error_message` its text, `fields` its
    fields as plain values, `traceback_text` the traceback where it was raised.
    """

    def __init__(
        self,
        message: str,
        *,
        step: str = "",
        attempt: int = 0,
        error_class: str = "",
        error_message: str = "",
        fields: dict[str, Any] | None = None,
        traceback_text: str = "",
    ) -> None:
        super().__init__(message, step=step, attempt=attempt)
        self.error_class = error_class
        self.error_message = error_message
        self.fields = fields or {}
        self.traceback_text = traceback_text


class StepTimeoutError(StepError, TimeoutError):
    """An attempt took longer than its timeout. It had ended when this was raised (law 5)."""


class StepLostError(StepError):
    """The last allowed attempt was lost with its process, so nobody knows how it ended."""


class EventTimeoutError(StepError, TimeoutError):
    """No event of the awaited type arrived before the timeout."""


class StepNotFoundError(StepError):
    """The instance has no such step to restart from. Nothing was changed."""


class RetryDelayError(StepError):
    """A delay function raised, took too long, or returned what is not a duration."""


class RollbackMissingError(StepError):
    """A step is to be undone, and `run()` does not register its rollback handler any more."""


class NonRetryableError(PerdureError):
    """Raise this, or a subclass, in a step function to end the step's retries at once.

    Class, fields and message reach `run()` unchanged.

    >>> raise NonRetryableError("card declined")
    Traceback (most recent call last):
        ...
    perdure.errors.NonRetryableError: card declined
    """


# -- the code of run() ---------------------------------------------------------------------


class WorkflowCodeError(PerdureError):
    """The code of a workflow breaks a rule that replay depends on."""


class AmbiguousStepError(WorkflowCodeError):
    """One step name stands for two concurrent calls or for two different functions."""


class DivergenceError(WorkflowCodeError):
    """A replay asked for something other than what the journal holds.

    `recorded` and `requested` describe both sides.
    """

    def __init__(self, message: str, *, recorded: str = "", requested: str = "") -> None:
        super().__init__(message)
        self.recorded = recorded
        self.requested = requested


class OpenStepError(WorkflowCodeError):
    """`run()` ended while a step was still open."""


class ForgottenAwaitError(WorkflowCodeError):
    """A step was called and never awaited."""


# -- the state folder ----------------------------------------------------------------------


class StateError(PerdureError):
    """Something about a state folder or a file in it; `path` says which."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class StateLockedError(StateError):
    """Another process owns the state folder; `pid` is that process where it is known.

    `is_orphaned` says that it has died, and that workers of it are only ending.
    """

    def __init__(
        self, message: str, *, path: str = "", pid: int | None = None, is_orphaned: bool = False
    ) -> None:
        super().__init__(message, path=path)
        self.pid = pid
        self.is_orphaned = is_orphaned


class StateUnusableError(StateError):
    """The folder is read-only, holds something else, or is on a network file system."""


class StateVersionError(StateError):
    """The folder or file was written by a newer Perdure."""


class StorageFullError(StateError):
    """The disk is full. What was committed is intact."""


class StorageWriteError(StateError):
    """A write or a sync failed. What was acknowledged is intact; the actor was reset."""


# -- queries and commands ------------------------------------------------------------------


class QueryError(PerdureError):
    """A query over state failed; `query` is its text."""

    def __init__(self, message: str, *, query: str = "") -> None:
        super().__init__(message)
        self.query = query


class QueryRefusedError(QueryError):
    """The statement would change the file, or reach out of it."""


class QueryTimeoutError(QueryError, TimeoutError):
    """The query took longer than its time limit and was interrupted."""


class CommandError(PerdureError):
    """A control command was understood and could not be carried out."""


class RuntimeClosedError(PerdureError):
    """The runtime has ended, or is ending and takes no more work."""
