"""What `continue_as_new` does to an instance's file: what the generations before have left is removed.

A run without end must not grow, so rows are deleted here and nowhere else. Besides the modules that own
the tables the only one that touches them, and only for this.

Invariants:
    No number is used twice: the last step stays, superseded, so that the seqs of steps, which are part
    of their idempotency keys, go on from it.
    Events that no wait has got yet stay, whatever their number; so does what user code wrote.
    Of what else came in, the newest `MESSAGES_KEPT` are known: a command that is repeated is recognised.
"""

from __future__ import annotations

from typing import Final

from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate

MESSAGES_KEPT: Final = 100

PATCH_KEPT: Final = "(kind = 'patch' AND superseded IS NULL AND ?2)"
LAST: Final = "SELECT max(seq) FROM _perdure_steps"
STEPS: Final = f"DELETE FROM _perdure_steps WHERE seq < ?1 AND NOT {PATCH_KEPT}"
LAST_STEP: Final = f"""
    UPDATE _perdure_steps SET superseded = coalesce(superseded, ?3), input = NULL, input_digest = NULL,
        output = NULL, output_ref = NULL, output_bytes = NULL, error = NULL, detail = NULL, heartbeat = NULL
    WHERE seq = ?1 AND NOT {PATCH_KEPT}"""
ATTEMPTS: Final = "DELETE FROM _perdure_attempts"
MESSAGES: Final = """
    DELETE FROM _perdure_messages
    WHERE (kind <> 'event' OR delivered_to IS NOT NULL) AND seq <= (
        SELECT seq FROM _perdure_messages WHERE kind <> 'event' OR delivered_to IS NOT NULL
        ORDER BY seq DESC LIMIT 1 OFFSET ?)"""
PAYLOADS: Final = """
    UPDATE _perdure_messages SET payload = NULL, payload_ref = NULL
    WHERE kind = 'event' AND delivered_to IS NOT NULL"""
CHUNKS: Final = """
    DELETE FROM _perdure_chunks WHERE NOT EXISTS (
        SELECT 1 FROM _perdure_messages
        WHERE payload_ref IS NOT NULL AND _perdure_chunks.id BETWEEN payload_ref AND payload_ref + 1048575)"""
HAS_STREAMS: Final = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_perdure_streams'"
STREAMS: Final = "DELETE FROM _perdure_streams"


def clear(file: InstanceFile, gate: Gate, *, generation: int, keep_patches: bool) -> None:
    """Remove the steps and what they refer to. The caller writes the new params after this."""
    gate.touch(file)
    ((last,),) = file.fetch(LAST)
    if last is not None:
        file.execute(STEPS, (last, keep_patches))
        file.execute(LAST_STEP, (last, keep_patches, generation))
        file.execute(ATTEMPTS)
    file.execute(MESSAGES, (MESSAGES_KEPT,))
    file.execute(PAYLOADS)
    file.execute(CHUNKS)
    if file.fetch(HAS_STREAMS):
        file.execute(STREAMS)
