-- The whole schema. `user_version` counts its migrations; see sqlite.py.
-- Events are keyed by (job number << 32) | seq, so that a job's events are one range of one tree.

CREATE TABLE jobs (
    number        INTEGER PRIMARY KEY AUTOINCREMENT,
    id            TEXT NOT NULL UNIQUE,
    status        TEXT NOT NULL,
    pipeline_type TEXT NOT NULL,
    priority      INTEGER NOT NULL,
    created_at    TEXT NOT NULL,
    finished_at   TEXT,
    last_seq      INTEGER NOT NULL DEFAULT 0,
    pruned_seq    INTEGER NOT NULL DEFAULT 0,
    has_chunks    INTEGER NOT NULL DEFAULT 1,
    job           BLOB NOT NULL,
    definition    BLOB NOT NULL,
    inline        INTEGER NOT NULL,
    state         BLOB NOT NULL
) STRICT;
CREATE INDEX jobs_unfinished ON jobs (number) WHERE finished_at IS NULL;
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_with_chunks ON jobs (finished_at) WHERE finished_at IS NOT NULL AND has_chunks;
CREATE INDEX jobs_by_status ON jobs (status, number);
CREATE INDEX jobs_by_type ON jobs (pipeline_type, number);

CREATE TABLE labels (
    name  TEXT NOT NULL,
    value TEXT NOT NULL,
    job   INTEGER NOT NULL,
    PRIMARY KEY (name, value, job)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_by_job ON labels (job);

CREATE TABLE events (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    line BLOB NOT NULL
) STRICT;

CREATE TABLE executions (
    job       INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    execution BLOB NOT NULL,
    PRIMARY KEY (job, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE checkpoints (
    job        INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    shard      INTEGER NOT NULL,
    checkpoint BLOB NOT NULL,
    UNIQUE (job, position, shard)
) STRICT;

CREATE TABLE artifacts (
    job    INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (job, sha256)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_hash ON artifacts (sha256);

CREATE TABLE idempotency (
    key       TEXT PRIMARY KEY,
    body_hash BLOB NOT NULL,
    job_id    TEXT NOT NULL,
    used_at   REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_use ON idempotency (used_at);

CREATE TABLE definitions (
    pipeline_type TEXT PRIMARY KEY,
    definition    BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE profiles (
    id      TEXT PRIMARY KEY,
    profile BLOB NOT NULL,
    secrets BLOB NOT NULL
) STRICT, WITHOUT ROWID;
