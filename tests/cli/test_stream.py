"""`perdure stream`: chunks as they are, or as lines of JSON; live, and at rest."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

pytestmark = pytest.mark.slow

STREAMS: Final = """
from collections.abc import AsyncIterator

import trio

from perdure import Retries, StepContext, StreamWriter, WorkflowEntrypoint, WorkflowEvent, WorkflowStep


async def tell(out: StreamWriter, context: StepContext) -> None:
    for word in ("high", " ", "water\\n"):
        await out.write(word)
    if context.attempt == 1:
        raise ConnectionError("the line is down")


async def pages() -> AsyncIterator[bytes]:
    yield b"\\x00page"


class Telling(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await step.do("tell", tell, out, retries=Retries(limit=1, delay=0.01))
            await out.write({"done": True})
        async with step.writable("secret", sensitive=True) as out:
            await out.write("hush")
        await step.do("pages", pages)
"""


@pytest.fixture
def telling(place: Any) -> Any:
    """Return a place where `Telling/t1` has run."""
    place.folder.joinpath("workflows.py").write_text(STREAMS)
    done = place.run("run", "workflows.py:Telling", "--id", "t1", "-q")
    assert 0 == done.status, done.err
    return place


def test_text_is_printed_as_it_is_and_other_chunks_as_json(telling: Any) -> None:
    assert 'high water\n{"done":true}\n' == telling.run("stream", "t1", "tokens").out
    assert '{"done":true}\n' == telling.run("stream", "t1", "tokens", "--from", "-1").out


def test_json_has_the_index_of_each_chunk(telling: Any) -> None:
    lines = [json.loads(line) for line in telling.run("stream", "t1", "tokens", "--json").out.splitlines()]

    assert ["high", " ", "water\n", {"done": True}] == [line["chunk"] for line in lines]
    assert [4, 5, 6, 7] == [line["index"] for line in lines]
    assert [2, 2, 2, 1] == [line["attempt"] for line in lines]


def test_who_goes_on_from_a_chunk_that_is_void_is_told(telling: Any) -> None:
    words = ("stream", "t1", "tokens", "--from", "2")

    assert {"rewound": 0} == json.loads(telling.run(*words, "--json").out.splitlines()[0])
    assert "what it wrote from chunk 0 on is superseded" in telling.run(*words).err


def test_a_sensitive_stream_is_withheld_unless_it_is_asked_for(telling: Any) -> None:
    assert "[sensitive]\n" == telling.run("stream", "t1", "secret").out
    assert "hush" == telling.run("stream", "t1", "secret", "--reveal").out
    line = telling.run("stream", "t1", "secret", "--json").json
    assert (None, True) == (line["chunk"], line["sensitive"])


def test_the_result_of_a_step_that_yields_is_a_stream_too(telling: Any) -> None:
    assert "\0page" == telling.run("stream", "t1", "pages").out


def test_describe_shows_how_a_stream_begins_and_of_bytes_how_many(telling: Any) -> None:
    out = telling.run("describe", "t1").out
    streams = {stream["name"]: stream for stream in telling.json("describe", "t1")["streams"]}

    assert "stream tokens  closed, 4 chunks, " in out
    assert ': high water {"done":true}' in out
    assert ['high water\n{"done":true}\n', None, None] == [
        streams[name]["preview"] for name in ("tokens", "secret", "pages")
    ]
    assert (1, 5) == (streams["pages"]["chunks"], streams["pages"]["bytes"])


def test_an_unknown_stream_is_an_error_that_lists_those_there_are(telling: Any) -> None:
    done = telling.run("stream", "t1", "token", "--no-follow")

    assert 0 != done.status
    assert "it has: 'tokens', 'secret', 'pages'" in done.err


def test_a_stream_is_printed_while_another_process_writes_it(place: Any) -> None:
    place.folder.joinpath("workflows.py").write_text(STREAMS)
    place.create("Telling", "t1")
    reader = place.start("stream", "t1", "tokens", "--json")
    assert "no process runs" in reader.stderr.readline()
    place.serve()

    lines = [json.loads(line) for line in reader.communicate(timeout=60)[0].splitlines()]

    assert ["high", " ", "water\n", {"done": True}] == [line["chunk"] for line in lines if "chunk" in line][
        -4:
    ]
    assert 0 == reader.returncode
