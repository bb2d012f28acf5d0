-- Made in an instance's file when the first stream is written (schema version 2 and later).
-- A chunk belongs to the step that is its stream: one of kind stream, or a do step whose function
-- yields its result. `id` is that step's seq times 2^32, plus the chunk's place, which only grows.
-- A row without a chunk is a mark: what that attempt of that step has written before it is void, from the
-- place on that stands there instead of the chunk's bytes.

CREATE TABLE _perdure_streams (
    id INTEGER PRIMARY KEY,
    step_seq INT NOT NULL,              -- of the step that wrote it; the stream's own where run() itself did
    attempt INT NOT NULL,
    bytes INT NOT NULL,
    written_at INT NOT NULL,
    chunk ANY
) STRICT;

CREATE INDEX _perdure_stream_marks ON _perdure_streams (step_seq, attempt) WHERE chunk IS NULL;

CREATE VIEW streams AS
SELECT of.name, c.id & 4294967295 AS idx, c.attempt,
    iif(of.sensitive IN ('output', 'both'), NULL, c.chunk) AS chunk,
    strftime('%Y-%m-%dT%H:%M:%fZ', c.written_at / 1e3, 'unixepoch') AS written_at,
    of.superseded IS NOT NULL OR EXISTS (
        SELECT 1 FROM _perdure_streams AS mark
        WHERE mark.chunk IS NULL AND mark.step_seq = c.step_seq AND mark.attempt = c.attempt
            AND mark.id > c.id AND mark.id >> 32 = c.id >> 32) AS superseded
FROM _perdure_streams AS c JOIN _perdure_steps AS of ON of.seq = c.id >> 32
WHERE c.chunk IS NOT NULL;
