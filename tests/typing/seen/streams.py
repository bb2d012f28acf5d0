"""What is inferred of streams: steps that yield, writers and readers. Nothing here runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any, assert_type

from perdure import (
    Instance,
    StepContext,
    StepStream,
    StreamReader,
    StreamWriter,
    WorkflowStep,
    asyncio_step,
)


@dataclass
class Token:
    text: str


async def pages(url: str, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield url.encode()


async def generated(context: StepContext, count: int) -> AsyncGenerator[Token, None]:
    yield Token(context.instance * count)


def lines(path: str) -> Iterator[str]:
    yield path


def numbers() -> Generator[int, None, None]:
    yield 1


async def opened(url: str) -> AsyncIterator[bytes]:
    return pages(url, 1)


@asyncio_step
async def on_asyncio(url: str) -> AsyncIterator[bytes]:
    yield url.encode()


async def ask(out: StreamWriter[Token], prompt: str) -> int:
    await out.write(Token(prompt))
    return 1


async def steps(step: WorkflowStep) -> None:
    assert_type(await step.do("pages", pages, "a", 3), StepStream[bytes])
    assert_type(await step.do("generated", generated, 3), StepStream[Token])
    assert_type(await step.do("lines", lines, "a"), StepStream[str])
    assert_type(await step.do("numbers", numbers), StepStream[int])
    assert_type(await (await step.do("lines", lines, "a")).collect(), list[str])
    async for page in await step.do("pages", pages, "a", 3):
        assert_type(page, bytes)
    async with step.writable("tokens", of=Token) as out:
        assert_type(out, StreamWriter[Token])
        assert_type(await step.do("ask", ask, out, "why"), int)
    async with step.writable("log") as log:
        assert_type(log, StreamWriter[Any])
        await log.write({"any": "thing"})
    assert_type(await step.do("on asyncio", on_asyncio, "a"), StepStream[bytes])
    assert_type(await step.do("opened", opened, "a"), StepStream[bytes])


async def readers(instance: Instance[int]) -> None:
    assert_type(instance.stream("tokens", returns=Token), StreamReader[Token])
    assert_type(instance.stream("tokens", -5, follow=False), StreamReader[Any])
    async for token in instance.stream("tokens", returns=Token):
        assert_type(token, Token)
