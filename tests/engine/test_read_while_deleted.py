"""Who reads an instance that is deleted or replaced at that moment is told so, in the words of instances."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Instance,
    InstanceNotFoundError,
    QueryError,
    Runtime,
    StreamRewoundError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

pytestmark = pytest.mark.parametrize("replay", ["warm", "always"])


class Talk(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        async with step.writable("words") as out:
            for letter in event.payload:
                await out.write(letter)
        return event.payload


class Meddling:
    """Runs queries as the runtime does, after something else has been done once."""

    def __init__(self, runtime: Runtime, meddle: Any) -> None:
        self._queries = runtime.queries
        self._meddle = meddle

    async def fetch(self, *arguments: Any, **options: Any) -> Any:
        meddle, self._meddle = self._meddle, None
        if meddle is not None:
            await meddle()
        return await self._queries.fetch(*arguments, **options)


def meddled(runtime: Runtime, instance: Instance[Any], meddle: Any) -> Instance[Any]:
    """Return a handle whose first query comes after something else was done."""
    queries: Any = Meddling(runtime, meddle)
    return Instance(instance.key, vars(instance)["_access"], queries, None)


@asynccontextmanager
async def told(tmp_path: Path, replay: Replay) -> AsyncGenerator[tuple[Runtime, Instance[Any]]]:
    async with open_test_runtime(tmp_path, workflows=[Talk], replay=replay) as runtime:
        instance = await runtime.create(Talk, params="abc", id="t")
        await instance.result()
        await vars(instance)["_access"].closed(instance.key)
        yield runtime, instance


async def test_a_query_whose_instance_is_deleted_under_it_says_so(tmp_path: Path, replay: Replay) -> None:
    async with told(tmp_path, replay) as (runtime, instance):
        with pytest.raises(InstanceNotFoundError, match="there is no instance Talk/t"):
            await meddled(runtime, instance, instance.delete).sql("SELECT 1 FROM steps")


async def test_a_query_that_is_wrong_is_told_as_before(tmp_path: Path, replay: Replay) -> None:
    async with told(tmp_path, replay) as (_, instance):
        with pytest.raises(QueryError):
            await instance.sql("SELECT 1 FROM nowhere")


async def test_a_reader_whose_instance_is_deleted_under_it_is_told(tmp_path: Path, replay: Replay) -> None:
    async with told(tmp_path, replay) as (runtime, instance):
        reader = meddled(runtime, instance, instance.delete).stream("words")
        with pytest.raises(InstanceNotFoundError, match="there is no instance Talk/t"):
            await anext(reader)


async def test_a_reader_goes_on_with_the_instance_that_replaced_its_own(
    tmp_path: Path, replay: Replay
) -> None:
    async with told(tmp_path, replay) as (runtime, instance):

        async def replace() -> None:
            await instance.delete()
            await runtime.create(Talk, params="xyz", id="t")

        reader = meddled(runtime, instance, replace).stream("words")
        words: list[str] = []
        while len(words) < 3:
            try:
                words.append(await anext(reader))
            except StreamRewoundError:
                words = []
        assert ["x", "y", "z"] == words


async def test_attaching_to_an_instance_that_is_deleted_meanwhile_creates_it(
    tmp_path: Path, replay: Replay
) -> None:
    async with told(tmp_path, replay) as (runtime, instance):
        queries = runtime.queries
        runtime.queries = vars(meddled(runtime, instance, instance.delete))["_queries"]
        attached = await runtime.create(Talk, params="xyz", id="t", if_exists="attach")
        runtime.queries = queries
        assert "xyz" == await attached.result()
