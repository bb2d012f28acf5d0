-- One instance's file, schema version 2. Times are integer milliseconds since the epoch.
-- A fact carries the number of the commit that wrote it; a row that starts and ends carries two.
--
-- SQLite parses all of this each time the file is opened, and keeps a page for each table and index:
-- so tables are few, views share what they have in common, and the file holds this text without its
-- comments and spaces (`files.template`). What few instances need is better made at first need.

CREATE TABLE _perdure_instance (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    workflow TEXT NOT NULL,
    id TEXT NOT NULL,
    incarnation INT NOT NULL,           -- random; an id created again after deletion is another one
    epoch INT NOT NULL,                 -- of the owner; checked inside each write transaction
    version TEXT,
    status TEXT NOT NULL,
    reason TEXT,
    params ANY,
    params_ref INT,                     -- into _perdure_chunks, when the value is large
    output ANY,
    output_ref INT,
    output_bytes INT,
    error TEXT,
    created_at INT NOT NULL,
    started_at INT,
    ended_at INT,
    wake_at INT,
    paused_at INT,                      -- and the same on the clock since boot
    paused_boot INT,
    paused_boot_id INT,
    replays INT NOT NULL DEFAULT 0,
    parent TEXT,
    tags TEXT,
    timeout_at INT,                     -- deadline of the whole run, and the same on the clock since boot
    timeout_boot INT,
    timeout_boot_id INT,
    generation INT NOT NULL DEFAULT 1,  -- 1, and one more for each restart and continuation
    schedule TEXT,                      -- JSON: which schedule created it, and for when
    rollback TEXT,                      -- JSON: how the rollback ended
    retention TEXT,                     -- JSON: how long it is kept once it has ended
    created_commit INT NOT NULL,
    started_commit INT,
    ended_commit INT
) STRICT;

-- The current or last attempt stands in the step's own row, so that an ordinary step costs one
-- insert and one update; attempts before it stand in _perdure_attempts.
CREATE TABLE _perdure_steps (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    count INT NOT NULL,
    status TEXT NOT NULL,               -- running, waiting, completed, failed, cancelled
    attempt INT NOT NULL,               -- number of the current or last attempt, 0 when there are none
    counted INT NOT NULL,               -- attempts that count against the retry limit
    input TEXT,
    input_digest TEXT,
    output ANY,
    output_ref INT,
    output_bytes INT,
    error TEXT,
    started_at INT NOT NULL,
    attempt_at INT,
    ended_at INT,
    wake_at INT,                        -- wall-clock deadline
    wake_boot INT,                      -- the same on the clock that runs since boot; decides within that boot
    boot INT,
    config TEXT,
    detail TEXT,                        -- JSON: what this kind of step needs besides
    sensitive TEXT,
    heartbeat TEXT,                     -- JSON: the last one of the current attempt
    started_commit INT NOT NULL,
    attempt_commit INT,
    ended_commit INT,
    superseded INT
) STRICT;

CREATE TABLE _perdure_attempts (
    step_seq INT NOT NULL,
    attempt INT NOT NULL,
    started_at INT NOT NULL,
    ended_at INT,
    outcome TEXT NOT NULL,              -- failed, timeout, lost, interrupted
    error TEXT,
    heartbeat TEXT,
    cpu_ms INT,
    started_commit INT NOT NULL,
    ended_commit INT,
    PRIMARY KEY (step_seq, attempt)
) STRICT, WITHOUT ROWID;

-- What has reached the instance from outside: events and control commands, in the order in which they came.
CREATE TABLE _perdure_messages (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,                 -- event, command; past: a start or an end, before a restart
    name TEXT NOT NULL,                 -- the event's type, or the command
    payload ANY,                        -- of the event; of a command, what else is to be said
    payload_ref INT,
    actor TEXT,                         -- who gave the command
    received_at INT NOT NULL,           -- and the same on the clock since boot, which decides against timeouts
    received_boot INT,
    received_boot_id INT,
    delivered_to INT,                   -- the seq of a wait; 0: discarded; of a past: its generation, a start's below 0
    token TEXT UNIQUE,                  -- of the message, so that none counts twice
    received_commit INT NOT NULL,
    delivered_commit INT
) STRICT;

-- Pieces of large values. A value's first piece has the id that its row refers to, which is a multiple
-- of 2^20, below zero where the value is bytes rather than text; the other pieces follow.
CREATE TABLE _perdure_chunks (
    id INTEGER PRIMARY KEY,
    chunk BLOB NOT NULL
) STRICT;

CREATE VIEW _perdure_values AS
SELECT id, iif(id > 0, joined, CAST(joined AS BLOB)) AS value
FROM (
    SELECT id, (
        SELECT group_concat(chunk, '') FROM (
            SELECT chunk FROM _perdure_chunks
            WHERE id BETWEEN first.id AND first.id + 1048575 ORDER BY id)) AS joined
    FROM _perdure_chunks AS first);

CREATE VIEW instance AS
SELECT id, workflow, version, status, reason,
    ifnull(params, (SELECT value FROM _perdure_values WHERE id = params_ref)) AS params,
    ifnull(output, (
        SELECT value FROM _perdure_values WHERE id = output_ref AND output_bytes <= 16777216)) AS output,
    output_bytes,
    error,
    strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1e3, 'unixepoch') AS created_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', started_at / 1e3, 'unixepoch') AS started_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', ended_at / 1e3, 'unixepoch') AS ended_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', wake_at / 1e3, 'unixepoch') AS wake_at,
    replays, parent, tags, generation, rollback
FROM _perdure_instance;

CREATE VIEW steps AS
SELECT seq, name, count, kind, status, attempt AS attempts,
    iif(sensitive IN ('input', 'both'), NULL, input) AS input,
    iif(sensitive IN ('output', 'both'), NULL, ifnull(output, (
        SELECT value FROM _perdure_values WHERE id = output_ref AND output_bytes <= 16777216))) AS output,
    output_bytes,
    sensitive IS NOT NULL AS sensitive,
    error,
    strftime('%Y-%m-%dT%H:%M:%fZ', started_at / 1e3, 'unixepoch') AS started_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', ended_at / 1e3, 'unixepoch') AS ended_at,
    ended_at - started_at AS duration_ms,
    strftime('%Y-%m-%dT%H:%M:%fZ', wake_at / 1e3, 'unixepoch') AS wake_at,
    config, detail
FROM _perdure_steps WHERE superseded IS NULL;

-- The attempts that something came after, and each step's current or last one.
CREATE VIEW _perdure_all_attempts AS
SELECT seq, name, a.attempt, a.started_at, a.ended_at, outcome, a.error,
    iif(sensitive IS NULL, a.heartbeat, NULL) AS heartbeat, cpu_ms,
    a.started_commit, a.ended_commit, superseded
FROM _perdure_attempts AS a JOIN _perdure_steps ON seq = step_seq
UNION ALL
SELECT seq, name, attempt, attempt_at, ended_at,
    CASE WHEN status = 'waiting' THEN 'failed'
        WHEN status <> 'failed' THEN status
        ELSE CASE json_extract(error, '$.class')
            WHEN 'StepTimeoutError' THEN 'timeout' WHEN 'StepLostError' THEN 'lost' ELSE status END END,
    error, iif(sensitive IS NULL, heartbeat, NULL), NULL, attempt_commit, NULL, superseded
FROM _perdure_steps AS s
WHERE attempt > 0 AND NOT EXISTS (SELECT 1 FROM _perdure_attempts WHERE step_seq = seq AND attempt = s.attempt);

CREATE VIEW attempts AS
SELECT seq AS step_seq, attempt,
    strftime('%Y-%m-%dT%H:%M:%fZ', started_at / 1e3, 'unixepoch') AS started_at,
    strftime('%Y-%m-%dT%H:%M:%fZ', ended_at / 1e3, 'unixepoch') AS ended_at,
    outcome, error, heartbeat, cpu_ms
FROM _perdure_all_attempts WHERE superseded IS NULL ORDER BY 1, 2;

CREATE VIEW events AS
SELECT seq, name AS type,
    ifnull(payload, (SELECT value FROM _perdure_values WHERE id = payload_ref)) AS payload,
    strftime('%Y-%m-%dT%H:%M:%fZ', received_at / 1e3, 'unixepoch') AS received_at,
    delivered_to
FROM _perdure_messages WHERE kind = 'event';

-- Nothing writes streams yet: their table will be made at first need, and this view with it.
CREATE VIEW streams (name, idx, attempt, chunk, written_at, superseded) AS
SELECT 0, 0, 0, 0, 0, 0 WHERE 0;

-- `place` orders what one commit wrote in one millisecond: the instance, what came in, steps, the end. No
-- two facts of a commit have the same, and none gets another: it is part of the cursor of `subscribe`.
CREATE VIEW history AS
SELECT "commit", strftime('%Y-%m-%dT%H:%M:%fZ', at / 1e3, 'unixepoch') AS at, what, step, actor, detail, place
FROM (
    SELECT created_commit AS "commit", -(3 << 50) AS place, created_at AS at, 'instance created' AS what,
        NULL AS step, NULL AS actor, NULL AS detail FROM _perdure_instance
    UNION ALL
    SELECT started_commit, generation - (3 << 50), started_at, 'instance started', NULL, NULL, NULL FROM _perdure_instance
    UNION ALL
    SELECT received_commit, iif(kind <> 'past', seq - (2 << 50), iif(delivered_to > 0, delivered_to + (4 << 60), -delivered_to - (3 << 50))), received_at,
        iif(kind = 'event', 'event received', name), NULL, actor, iif(kind = 'event', name, payload) FROM _perdure_messages
    UNION ALL
    SELECT started_commit, seq << 21, started_at, kind || ' started', name, NULL, NULL FROM _perdure_steps
    UNION ALL
    SELECT started_commit, (seq << 21) + attempt * 2, started_at, 'attempt started', name, NULL,
        json_object('attempt', attempt) FROM _perdure_all_attempts WHERE attempt > 1
    UNION ALL
    SELECT ended_commit, (seq << 21) + attempt * 2 + 1, ifnull(ended_at, started_at), 'attempt ' || outcome,
        name, NULL, json_object('attempt', attempt, 'error', json_extract(error, '$.message'))
    FROM _perdure_all_attempts
    UNION ALL
    SELECT ended_commit, (seq << 21) + 1000000, ended_at, kind || ' ' || status, name, NULL,
        iif(attempt > 1 OR error IS NOT NULL,
            json_object('attempt', attempt, 'error', json_extract(error, '$.message')), NULL)
    FROM _perdure_steps
    UNION ALL
    SELECT ended_commit, generation + (4 << 60), ended_at, 'instance ' || status, NULL, NULL, json_extract(error, '$.message')
    FROM _perdure_instance)
WHERE "commit" IS NOT NULL ORDER BY "commit", at, place;
