-- One instance's file, schema version 1. Times are integer milliseconds since the epoch.
-- A fact carries the number of the commit that wrote it; a row that starts and ends carries two.

CREATE TABLE _perdure_instance (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    workflow TEXT NOT NULL,
    id TEXT NOT NULL,
    incarnation INTEGER NOT NULL,       -- random; an id created again after deletion is another one
    epoch INTEGER NOT NULL,             -- of the owner; checked inside each write transaction
    version TEXT,
    status TEXT NOT NULL,
    reason TEXT,
    params ANY,
    params_ref INTEGER,                 -- into _perdure_chunks, when the value is large
    output ANY,
    output_ref INTEGER,
    output_bytes INTEGER,
    error TEXT,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    wake_at INTEGER,
    paused_at INTEGER,                  -- and the same on the clock since boot
    paused_boot INTEGER,
    paused_boot_id INTEGER,
    replays INTEGER NOT NULL DEFAULT 0,
    parent TEXT,
    tags TEXT,
    timeout_at INTEGER,                 -- deadline of the whole run, and the same on the clock since boot
    timeout_boot INTEGER,
    timeout_boot_id INTEGER,
    created_commit INTEGER NOT NULL,
    started_commit INTEGER,
    ended_commit INTEGER
) STRICT;

-- The current or last attempt stands in the step's own row, so that an ordinary step costs one
-- insert and one update; attempts before it stand in _perdure_attempts.
CREATE TABLE _perdure_steps (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    count INTEGER NOT NULL,
    status TEXT NOT NULL,               -- running, waiting, completed, failed, cancelled
    attempt INTEGER NOT NULL,           -- number of the current or last attempt, 0 when there are none
    counted INTEGER NOT NULL,           -- attempts that count against the retry limit
    input TEXT,
    input_digest TEXT,
    output ANY,
    output_ref INTEGER,
    output_bytes INTEGER,
    error TEXT,
    started_at INTEGER NOT NULL,
    attempt_at INTEGER,
    ended_at INTEGER,
    wake_at INTEGER,                    -- wall-clock deadline
    wake_boot INTEGER,                  -- the same on the clock that runs since boot; decides within that boot
    boot INTEGER,
    config TEXT,
    detail TEXT,                        -- JSON: what this kind of step needs besides
    sensitive TEXT,
    started_commit INTEGER NOT NULL,
    attempt_commit INTEGER,
    ended_commit INTEGER,
    superseded INTEGER
) STRICT;

CREATE TABLE _perdure_attempts (
    step_seq INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    outcome TEXT NOT NULL,              -- failed, timeout, lost, interrupted
    error TEXT,
    heartbeat TEXT,
    cpu_ms INTEGER,
    started_commit INTEGER NOT NULL,
    ended_commit INTEGER,
    PRIMARY KEY (step_seq, attempt)
) STRICT, WITHOUT ROWID;

CREATE TABLE _perdure_events (
    seq INTEGER PRIMARY KEY,
    type TEXT NOT NULL,
    payload ANY,
    payload_ref INTEGER,
    received_at INTEGER NOT NULL,       -- and the same on the clock since boot, which decides against timeouts
    received_boot INTEGER,
    received_boot_id INTEGER,
    delivered_to INTEGER,
    token TEXT UNIQUE,                  -- of the message that brought it, so that none counts twice
    received_commit INTEGER NOT NULL,
    delivered_commit INTEGER
) STRICT;

CREATE TABLE _perdure_commands (
    seq INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    command TEXT NOT NULL,
    actor TEXT,                         -- who gave it
    detail TEXT,
    token TEXT UNIQUE,
    commit_no INTEGER NOT NULL
) STRICT;

CREATE TABLE _perdure_streams (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    idx INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    chunk ANY,
    written_at INTEGER NOT NULL,
    superseded INTEGER,
    commit_no INTEGER NOT NULL
) STRICT;

-- Pieces of large values: id = value number * 2^20 + index of the piece.
CREATE TABLE _perdure_chunks (
    id INTEGER PRIMARY KEY,
    chunk BLOB NOT NULL
) STRICT;

CREATE VIEW instance AS
SELECT id, workflow, version, status, reason,
    CASE WHEN params_ref IS NULL THEN params ELSE (
        SELECT group_concat(CAST(chunk AS TEXT), '') FROM (
            SELECT chunk FROM _perdure_chunks
            WHERE _perdure_chunks.id BETWEEN params_ref * 1048576 AND params_ref * 1048576 + 1048575
            ORDER BY _perdure_chunks.id)) END AS params,
    CASE WHEN output_ref IS NULL THEN output WHEN output_bytes <= 16777216 THEN (
        SELECT group_concat(CAST(chunk AS TEXT), '') FROM (
            SELECT chunk FROM _perdure_chunks
            WHERE _perdure_chunks.id BETWEEN abs(output_ref) * 1048576 AND abs(output_ref) * 1048576 + 1048575
            ORDER BY _perdure_chunks.id)) END AS output,
    output_bytes,
    error,
    strftime('%Y-%m-%dT%H:%M:%S', created_at / 1000, 'unixepoch') || printf('.%03dZ', created_at % 1000) AS created_at,
    strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000, 'unixepoch') || printf('.%03dZ', started_at % 1000) AS started_at,
    strftime('%Y-%m-%dT%H:%M:%S', ended_at / 1000, 'unixepoch') || printf('.%03dZ', ended_at % 1000) AS ended_at,
    strftime('%Y-%m-%dT%H:%M:%S', wake_at / 1000, 'unixepoch') || printf('.%03dZ', wake_at % 1000) AS wake_at,
    replays, parent, tags
FROM _perdure_instance;

CREATE VIEW steps AS
SELECT seq, name, count, kind, status, attempt AS attempts,
    CASE WHEN coalesce(sensitive, '') IN ('input', 'both') THEN NULL ELSE input END AS input,
    CASE WHEN coalesce(sensitive, '') IN ('output', 'both') THEN NULL
        WHEN output_ref IS NULL THEN output
        WHEN output_bytes > 16777216 THEN NULL
        WHEN output_ref > 0 THEN (
            SELECT group_concat(CAST(chunk AS TEXT), '') FROM (
                SELECT chunk FROM _perdure_chunks
                WHERE id BETWEEN output_ref * 1048576 AND output_ref * 1048576 + 1048575 ORDER BY id))
        ELSE (
            SELECT CAST(group_concat(CAST(chunk AS TEXT), '') AS BLOB) FROM (
                SELECT chunk FROM _perdure_chunks
                WHERE id BETWEEN -output_ref * 1048576 AND -output_ref * 1048576 + 1048575 ORDER BY id))
        END AS output,
    output_bytes,
    sensitive IS NOT NULL AS sensitive,
    error,
    strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000, 'unixepoch') || printf('.%03dZ', started_at % 1000) AS started_at,
    strftime('%Y-%m-%dT%H:%M:%S', ended_at / 1000, 'unixepoch') || printf('.%03dZ', ended_at % 1000) AS ended_at,
    ended_at - started_at AS duration_ms,
    strftime('%Y-%m-%dT%H:%M:%S', wake_at / 1000, 'unixepoch') || printf('.%03dZ', wake_at % 1000) AS wake_at,
    config, detail
FROM _perdure_steps WHERE superseded IS NULL;

CREATE VIEW attempts AS
SELECT step_seq, attempt,
    strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000, 'unixepoch') || printf('.%03dZ', started_at % 1000) AS started_at,
    strftime('%Y-%m-%dT%H:%M:%S', ended_at / 1000, 'unixepoch') || printf('.%03dZ', ended_at % 1000) AS ended_at,
    outcome, error, heartbeat, cpu_ms
FROM (
    SELECT step_seq, attempt, started_at, ended_at, outcome, error, heartbeat, cpu_ms FROM _perdure_attempts
    UNION ALL
    SELECT seq, attempt, attempt_at, ended_at,
        CASE WHEN status = 'waiting' THEN 'failed'
            WHEN status = 'failed' AND json_extract(error, '$.class') = 'StepTimeoutError' THEN 'timeout'
            WHEN status = 'failed' AND json_extract(error, '$.class') = 'StepLostError' THEN 'lost'
            ELSE status END,
        error, NULL, NULL
    FROM _perdure_steps AS s
    WHERE attempt > 0 AND superseded IS NULL
        AND NOT EXISTS (SELECT 1 FROM _perdure_attempts AS a WHERE a.step_seq = s.seq AND a.attempt = s.attempt)
)
ORDER BY step_seq, attempt;

CREATE VIEW events AS
SELECT seq, type,
    CASE WHEN payload_ref IS NULL THEN payload ELSE (
        SELECT group_concat(CAST(chunk AS TEXT), '') FROM (
            SELECT chunk FROM _perdure_chunks
            WHERE id BETWEEN payload_ref * 1048576 AND payload_ref * 1048576 + 1048575 ORDER BY id)) END AS payload,
    strftime('%Y-%m-%dT%H:%M:%S', received_at / 1000, 'unixepoch') || printf('.%03dZ', received_at % 1000) AS received_at,
    delivered_to
FROM _perdure_events;

CREATE VIEW streams AS
SELECT name, idx, attempt, chunk,
    strftime('%Y-%m-%dT%H:%M:%S', written_at / 1000, 'unixepoch') || printf('.%03dZ', written_at % 1000) AS written_at,
    superseded
FROM _perdure_streams;

CREATE VIEW history AS
SELECT "commit",
    strftime('%Y-%m-%dT%H:%M:%S', at / 1000, 'unixepoch') || printf('.%03dZ', at % 1000) AS at,
    what, step, actor, detail
FROM (
    SELECT created_commit AS "commit", 0 AS rank, 0 AS seq, 0 AS phase, created_at AS at, 'instance created' AS what,
        NULL AS step, NULL AS actor, NULL AS detail FROM _perdure_instance
    UNION ALL
    SELECT started_commit, 1, 0, 0, started_at, 'instance started', NULL, NULL, NULL
    FROM _perdure_instance WHERE started_commit IS NOT NULL
    UNION ALL
    SELECT commit_no, 2, seq, 0, at, command, NULL, actor, detail FROM _perdure_commands
    UNION ALL
    SELECT received_commit, 2, seq, 0, received_at, 'event received', NULL, NULL, type FROM _perdure_events
    UNION ALL
    SELECT started_commit, 3, seq, 0, started_at, kind || ' started', name, NULL, NULL FROM _perdure_steps
    UNION ALL
    SELECT started_commit, 3, step_seq, attempt * 2, started_at, 'attempt started',
        (SELECT name FROM _perdure_steps WHERE seq = step_seq), NULL, json_object('attempt', attempt)
    FROM _perdure_attempts WHERE attempt > 1
    UNION ALL
    SELECT ended_commit, 3, step_seq, attempt * 2 + 1, coalesce(ended_at, started_at), 'attempt ' || outcome,
        (SELECT name FROM _perdure_steps WHERE seq = step_seq), NULL,
        json_object('attempt', attempt, 'error', json_extract(error, '$.message'))
    FROM _perdure_attempts WHERE ended_commit IS NOT NULL
    UNION ALL
    SELECT attempt_commit, 3, seq, attempt * 2, attempt_at, 'attempt started', name, NULL, json_object('attempt', attempt)
    FROM _perdure_steps AS s
    WHERE attempt > 1
        AND NOT EXISTS (SELECT 1 FROM _perdure_attempts AS a WHERE a.step_seq = s.seq AND a.attempt = s.attempt)
    UNION ALL
    SELECT ended_commit, 3, seq, 1000000, ended_at, kind || ' ' || status, name, NULL,
        CASE WHEN attempt > 1 OR error IS NOT NULL
            THEN json_object('attempt', attempt, 'error', json_extract(error, '$.message')) END
    FROM _perdure_steps WHERE ended_commit IS NOT NULL
    UNION ALL
    SELECT ended_commit, 9, 0, 0, ended_at, 'instance ' || status, NULL, NULL, json_extract(error, '$.message')
    FROM _perdure_instance WHERE ended_commit IS NOT NULL
)
ORDER BY "commit", at, rank, seq, phase;
