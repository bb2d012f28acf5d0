"""What an instance asks of the engine for its children, and with what.

The engine lives a floor above, so what it does stands here as a protocol; `Host.children` holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from perdure.errors import InstanceExistsError
from perdure.storage.family import ChildEnd, ChildRef
from perdure.storage.files import InstanceFile
from perdure.storage.records import Key, Stored


class ChildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A child that is to be there. `params` as they were given, `stored` as they are kept."""

    definition: Any  # a `Definition`: its module is above this one
    ref: ChildRef
    parent: Key
    params: Any
    stored: Stored
    timeout_s: float | None
    tags: Sequence[str] | None
    is_new: bool
    """Whether its step was recorded just now, so that nobody can have created it before."""


class ChildHost(Protocol):
    """What the engine does for the children of an instance."""

    def definition(self, workflow: type | str) -> Any:
        """Return what is known of a workflow. Raises `UnknownWorkflowError`."""
        ...

    async def start(
        self, requests: Sequence[ChildRequest]
    ) -> tuple[list[ChildEnd], list[tuple[int, InstanceExistsError]]]:
        """Create the children that are not there, durably.

        Returns how those have ended that are over, and the places in `requests` of those whose id belongs
        to somebody else. Raises `StateError`: then it is to be asked again.
        """
        ...

    async def end(self, children: Sequence[ChildRef]) -> None:
        """Have those of the children terminated that have not ended; returns once that is durably posted."""
        ...

    def end_soon(self, children: Sequence[ChildRef], file: InstanceFile) -> None:
        """As `end`, while the caller goes on: once what `file` says of them is durable."""
        ...
