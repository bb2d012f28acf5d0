"""A plain script, on no event loop: counts the words of files, and goes on where it was killed.

    python examples/script.py README.md ARCHITECTURE.md

Each file is one step. Started again with the same files it counts only what it has not counted yet; once it
has finished, it answers from its record at once.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.portal import in_thread


class CountWords(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[list[str]], step: WorkflowStep) -> dict[str, int]:
        counts = await step.map("count", count_words, event.payload, limit=4)
        return dict(zip(event.payload, counts, strict=True))


def count_words(file: str) -> int:
    words = len(Path(file).read_text(encoding="utf-8").split())
    print(f"counted {file}\n", end="", flush=True)  # in one write: two steps may print at once
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the words of files, durably.")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--state", type=Path, default=Path("state-script"))
    options = parser.parse_args()
    files: list[str] = options.files
    job = hashlib.sha256("\n".join(files).encode()).hexdigest()[:12]  # the same files are the same instance
    with in_thread(options.state, workflows=[CountWords]) as p:
        instance = p(p.runtime.create, CountWords, params=files, id=job, if_exists="attach")
        for entry in p.iterate(instance.subscribe):  # from the beginning, then live, until it has ended
            if entry.what == "do completed":
                print(f"on record: {entry.step}", flush=True)
        for file, words in p(instance.result).items():
            print(f"{words:8} {file}")
        [slowest] = p(instance.sql, "SELECT name, duration_ms FROM steps ORDER BY 2 DESC LIMIT 1")
        print(f"slowest: {slowest.name}, {slowest.duration_ms} ms")


if __name__ == "__main__":
    main()
