"""`bytes`: what a finished instance of 5 steps takes on the disk, and in how many files.

Counted once the runtime has closed: the instance's files by their length, and the catalog's growth shared
out over all. The bare counterpart is a file that holds the rows of the same steps, and no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from perdure.benchmarks.bare import check_rows, connect
from perdure.benchmarks.harness import Bench, compared
from perdure.benchmarks.instances import Batch, perdure_batch, record_finished
from perdure.benchmarks.results import Found

SIZES: Final = {
    "full": (Batch(instances=1_000, steps=5), 1),
    "quick": (Batch(instances=200, steps=5), 1),
    "tiny": (Batch(instances=3, steps=5), 1),
}
BYTES_MAX: Final = 24 * 1024
FILES_MAX: Final = 1


def run(bench: Bench[Batch]) -> Found:
    """Run a batch and look at what it has left."""
    size = bench.size
    model = record_finished(bench.new_folder(), size.steps)
    file = bench.new_folder() / "bare.sqlite"
    connection = connect(file, "full", model.steps.table)
    with connection:
        connection.executemany(model.steps.table.insert, model.steps.table.rows)
    connection.close()
    check_rows(file, model.steps.table)
    laps = bench.in_turn({"full": lambda: left_behind(bench.new_folder(), size)})["full"]
    each = compared(
        [lap[0] for lap in laps], [file.stat().st_size for _ in laps],
        key="bytes/instance", what=f"a finished instance of {size.steps} steps", unit="bytes", better="less",
        target=BYTES_MAX, figures={"bytes of the catalog each": laps[-1][2]},
    )  # fmt: skip
    files = compared(
        [lap[1] for lap in laps], key="bytes/files", what="files of it", unit="files", better="less",
        target=FILES_MAX,
    )  # fmt: skip
    return Found(measures=[each, files], computed=[size])


def left_behind(folder: Path, size: Batch) -> tuple[float, float, float]:
    """Run a batch; return bytes and files of an instance, and the catalog's bytes for each."""
    perdure_batch(folder, "full", size)
    files = list((folder / "Short").iterdir())
    instances = size.instances + 1  # the first one warmed the runtime
    catalog = sum(path.stat().st_size for path in folder.glob("catalog.sqlite*"))
    return (
        sum(path.stat().st_size for path in files) / instances,
        len(files) / instances,
        catalog / instances,
    )
