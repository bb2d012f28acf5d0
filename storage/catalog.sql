-- The catalog of a state folder, schema version 2: an index of the instances, the queue of those
-- not started, and the inbox through which processes reach each other.

CREATE TABLE _perdure_instances (
    workflow TEXT NOT NULL,
    id TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    birth TEXT,                         -- JSON: what the file will be made from; NULL once the file exists
    params ANY,                         -- likewise
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    start_at INTEGER,                   -- a queued row waits until then
    wake_at INTEGER,                    -- wall clock; decides where wake_boot is NULL
    wake_boot INTEGER,                  -- the same on the clock of this boot
    boot INTEGER,
    owner INTEGER,
    epoch INTEGER NOT NULL DEFAULT 0,
    open INTEGER NOT NULL DEFAULT 0,    -- set, durably, before an owner first changes the file
    crashes INTEGER NOT NULL DEFAULT 0, -- deaths of the process in a row, with no step recorded between
    version TEXT,
    parent TEXT,
    tags TEXT,
    safe_epoch INTEGER NOT NULL DEFAULT 0, -- the last of which all is safe without its owner's relay log
    until_at INTEGER,                   -- besides: the first deadline that follows the wall clock alone
    expires_at INTEGER,                 -- a finished one is kept until then
    archived TEXT,                      -- of an expired one: where its file went, '' where it was removed
    priority INTEGER NOT NULL DEFAULT 0,
    lane TEXT,                          -- what its workflow's concurrency key says of it
    PRIMARY KEY (workflow, id)
) STRICT; -- with rowids: a new row goes to the end, whatever its id, and a batch touches few pages

CREATE INDEX _perdure_instances_queued ON _perdure_instances (workflow, priority DESC, created_at) WHERE status = 'queued' AND open = 0 AND start_at IS NULL AND reason IS NOT 'held: its key is in use';
CREATE INDEX _perdure_instances_lane ON _perdure_instances (workflow, status, lane, priority DESC, created_at) WHERE lane IS NOT NULL;
CREATE INDEX _perdure_instances_start_at ON _perdure_instances (start_at, workflow) WHERE status = 'queued' AND open = 0 AND start_at IS NOT NULL;
CREATE INDEX _perdure_instances_wake_boot ON _perdure_instances (wake_boot, workflow) WHERE wake_boot IS NOT NULL AND open = 0;
CREATE INDEX _perdure_instances_wake_at ON _perdure_instances (wake_at, workflow) WHERE wake_at IS NOT NULL AND wake_boot IS NULL AND open = 0;
CREATE INDEX _perdure_instances_until_at ON _perdure_instances (until_at, workflow) WHERE until_at IS NOT NULL AND open = 0;
CREATE INDEX _perdure_instances_open ON _perdure_instances (owner) WHERE open = 1;
CREATE INDEX _perdure_instances_expires_at ON _perdure_instances (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE _perdure_concurrency (
    workflow TEXT PRIMARY KEY,
    spec TEXT NOT NULL,                 -- JSON, as the workflow has it
    starts TEXT NOT NULL DEFAULT '[]'   -- JSON: the starts of the last while, where a rate bounds them
) STRICT;

-- A newcomer stands aside behind others of its lane that are first in line.
CREATE TRIGGER _perdure_lane_joined AFTER INSERT ON _perdure_instances
WHEN new.lane <> '' AND new.status = 'queued' AND new.start_at IS NULL
BEGIN
    UPDATE _perdure_instances SET reason = 'held: its key is in use' WHERE rowid = new.rowid AND EXISTS (
        SELECT 1 FROM _perdure_instances WHERE lane IS NOT NULL AND workflow = new.workflow
            AND status = 'queued' AND lane = new.lane AND priority >= new.priority AND start_at IS NULL
            AND rowid <> new.rowid LIMIT 1);
END;

-- The next of its lane is looked at when one has ended, or, where only active ones count, rests.
CREATE TRIGGER _perdure_lane_left AFTER UPDATE OF status ON _perdure_instances
WHEN new.lane <> '' AND (new.status IN ('complete', 'errored', 'terminated', 'dead')
    OR (new.status IN ('waiting', 'paused') AND old.status IN ('running', 'waiting_for_pause')
        AND (SELECT json_extract(spec, '$.active_only') FROM _perdure_concurrency WHERE workflow = new.workflow)))
BEGIN
    UPDATE _perdure_instances SET reason = NULL WHERE rowid = (
        SELECT rowid FROM _perdure_instances WHERE lane IS NOT NULL AND workflow = new.workflow
            AND status = 'queued' AND lane = new.lane AND reason = 'held: its key is in use'
        ORDER BY priority DESC, created_at LIMIT 1);
END;

CREATE TRIGGER _perdure_lane_gone AFTER DELETE ON _perdure_instances
WHEN old.lane <> '' AND old.status NOT IN ('complete', 'errored', 'terminated', 'dead')
BEGIN
    UPDATE _perdure_instances SET reason = NULL WHERE rowid = (
        SELECT rowid FROM _perdure_instances WHERE lane IS NOT NULL AND workflow = old.workflow
            AND status = 'queued' AND lane = old.lane AND reason = 'held: its key is in use'
        ORDER BY priority DESC, created_at LIMIT 1);
END;

CREATE TABLE _perdure_schedules (
    workflow TEXT NOT NULL,
    id TEXT NOT NULL,                   -- the schedule's own, which its instances' ids begin with
    spec TEXT NOT NULL,                 -- JSON, as its workflow has it
    paused INTEGER NOT NULL DEFAULT 0,
    last_at INTEGER,                    -- the newest firing that is settled, be it created or skipped
    next_at INTEGER,
    PRIMARY KEY (workflow, id)
) STRICT;

CREATE TABLE _perdure_workers (
    worker INTEGER PRIMARY KEY AUTOINCREMENT,
    pid INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    stopped_at INTEGER,
    doorbell TEXT,
    durability TEXT NOT NULL
) STRICT;

CREATE TABLE _perdure_inbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    token TEXT NOT NULL UNIQUE,
    workflow TEXT NOT NULL,
    id TEXT NOT NULL,
    command TEXT NOT NULL,
    body ANY,
    actor TEXT,
    sent_at INTEGER NOT NULL,
    done_at INTEGER,
    reply TEXT
) STRICT;

CREATE INDEX _perdure_inbox_open ON _perdure_inbox (seq) WHERE done_at IS NULL;

CREATE VIEW instances AS
SELECT workflow, id, status, reason,
    strftime('%Y-%m-%dT%H:%M:%S', created_at / 1000, 'unixepoch') || printf('.%03dZ', created_at % 1000) AS created_at,
    strftime('%Y-%m-%dT%H:%M:%S', started_at / 1000, 'unixepoch') || printf('.%03dZ', started_at % 1000) AS started_at,
    strftime('%Y-%m-%dT%H:%M:%S', ended_at / 1000, 'unixepoch') || printf('.%03dZ', ended_at % 1000) AS ended_at,
    strftime('%Y-%m-%dT%H:%M:%S', coalesce(wake_at, start_at) / 1000, 'unixepoch')
        || printf('.%03dZ', coalesce(wake_at, start_at) % 1000) AS wake_at,
    version, parent, tags, owner, epoch, priority, lane, archived,
    strftime('%Y-%m-%dT%H:%M:%S', expires_at / 1000, 'unixepoch') || printf('.%03dZ', expires_at % 1000) AS expires_at
FROM _perdure_instances;
