"""What other systems did on a machine like the one these targets are for: 2 cores, ext4, Python 3.11.

Measured on 2026-11-20 with programs of our own that give each the same work: a step returns a number
and 100 characters and does nothing else. Medians of three rounds unless noted. A figure stands here
under the key of the measure it is compared with; what a peer could not do is left out and told in
docs/benchmarks.md. `--peer-python` has those that are installed measured anew.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SOURCE: Final = "recorded 2026-11-20"


class Recorded(NamedTuple):
    """One peer's figures by the key of the measure; `about` is version and setting."""

    peer: str
    about: str
    figures: dict[str, float]


RECORDED: Final = (
    Recorded("DBOS", "3.4.0 on SQLite as it comes", {
        "chain/full": 703, "short/full": 64.5, "latency/p50": 5.50, "latency/p99": 17.4, "fanout/full": 452,
        "sleepers/p99": 949, "asleep/each": 15.1, "recover/spawn": 1_410, "large/1": 136,
        "bytes/instance": 2_855, "chain/syncs": 4.08,
    }),
    Recorded("DBOS, WAL", "3.4.0 on SQLite switched to WAL beforehand", {
        "chain/full": 1_021, "short/full": 102, "latency/p50": 2.62, "latency/p99": 4.00, "fanout/full": 486,
        "sleepers/p99": 597, "asleep/each": 16.3, "recover/spawn": 1_350, "large/1": 109,
        "bytes/instance": 7_152, "chain/syncs": 1.02,
    }),
    Recorded("Restate", "server 1.7.12, Python SDK 1.2.0", {
        "chain/full": 1_092, "short/full": 571, "latency/p50": 3.30, "latency/p99": 5.02,
        "fanout/full": 1_314, "sleepers/p99": 10_427, "asleep/each": 50.9, "recover/spawn": 440,
        "large/1": 72.2, "bytes/instance": 1_960, "chain/syncs": 2.53,
    }),
    Recorded("Absurd", "SDK 0.5.1 on PostgreSQL 15, polling every 10 ms, a lease of 5 s, 4 workers", {
        "chain/full": 1_389, "short/full": 322, "latency/p50": 13.6, "latency/p99": 15.5, "sleepers/p99": 111,
        "asleep/each": 2, "recover/spawn": 5_020, "large/1": 82.0,
        "bytes/instance": 2_900, "chain/syncs": 1.03,
    }),
    Recorded("Cloudflare, local", "Miniflare 4.20260426.0", {
        "chain/full": 960, "short/full": 99.2, "latency/p50": 7.18, "latency/p99": 16.9, "fanout/full": 956,
        "asleep/each": 115, "large/1": 55.4, "bytes/instance": 248_664, "chain/syncs": 3.14,
    }),
    Recorded("Vercel, local", "workflow 4.8.9 in Nitro, JSON files, no sync", {
        "short/full": 14.2, "latency/p50": 35.1, "latency/p99": 56.3, "large/1": 9.88,
        "bytes/instance": 98_304,
    }),
)  # fmt: skip
