-- The ledger, version 1. Run by the provider on first use, or once by a role that may create schemas.
CREATE SCHEMA IF NOT EXISTS etl;
CREATE SCHEMA IF NOT EXISTS etl_staging;

CREATE TABLE etl.schema_version (
    version     integer PRIMARY KEY,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE etl.streams (
    stream         text PRIMARY KEY,
    target         text NOT NULL,
    kind           text NOT NULL,
    store          text NOT NULL DEFAULT 'variable',
    origin         text,
    position       text,
    position_type  text,
    fence          bigint NOT NULL DEFAULT 0,
    load_id        uuid,
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE etl.streams IS 'One row per stream; locked first by every publish and rewind. position is the watermark.';

CREATE TABLE etl.watermark_moves (
    stream         text NOT NULL REFERENCES etl.streams,
    position_from  text,
    position_to    text,
    fence          bigint NOT NULL,
    reason         text NOT NULL,
    actor          text NOT NULL,
    moved_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX watermark_moves_stream ON etl.watermark_moves (stream, moved_at);

CREATE TABLE etl.loads (
    load_id          uuid PRIMARY KEY,
    seq              bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    fence            bigint NOT NULL,
    supersedes       uuid,
    stream           text NOT NULL REFERENCES etl.streams,
    target           text NOT NULL,
    kind             text NOT NULL,
    strategy         text,
    state            text NOT NULL CHECK (state IN ('started', 'staged', 'validated', 'published', 'rejected',
                                                    'failed', 'abandoned', 'superseded', 'rolled_back')),
    dag_id           text NOT NULL,
    task_id          text NOT NULL,
    run_id           text NOT NULL,
    run_type         text NOT NULL,
    map_index        integer NOT NULL,
    try_number       integer NOT NULL,
    clear_number     integer NOT NULL,
    window_low       text,
    window_high      text,
    window_type      text,
    bounds           text NOT NULL DEFAULT '[)',
    moves_watermark  boolean NOT NULL,
    watermark_low    text,
    watermark_high   text,
    staging          text,
    manifest         jsonb,
    snapshot_at      timestamptz,
    rows_staged      bigint,
    rows_inserted    bigint,
    rows_updated     bigint,
    rows_deleted     bigint,
    rows_unchanged   bigint,
    rows_stale       bigint,
    rows_dead        bigint,
    bytes_staged     bigint,
    checksum         text,
    report           jsonb,
    started_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    staged_at        timestamptz,
    validated_at     timestamptz,
    published_at     timestamptz,
    error            text
);
CREATE INDEX loads_stream ON etl.loads (stream, seq);
CREATE INDEX loads_run ON etl.loads (dag_id, run_id);

CREATE TABLE etl.load_partitions (
    load_id       uuid NOT NULL REFERENCES etl.loads,
    partition     text NOT NULL,
    bound         text NOT NULL,
    rows          bigint NOT NULL,
    rows_before   bigint NOT NULL,
    bytes         bigint NOT NULL,
    previous      text,
    rebuild       jsonb,
    lock_ms       double precision,
    published_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (load_id, partition)
);
CREATE INDEX load_partitions_partition ON etl.load_partitions (partition, published_at);

CREATE TABLE etl.coverage (
    stream   text NOT NULL REFERENCES etl.streams,
    low      text NOT NULL,
    high     text NOT NULL,
    bounds   text NOT NULL,
    load_id  uuid NOT NULL
);
CREATE INDEX coverage_stream ON etl.coverage (stream);
COMMENT ON TABLE etl.coverage IS 'Published windows per stream, never overlapping; gaps are what is missing.';

CREATE TABLE etl.sessions (
    load_id        uuid NOT NULL,
    side           text NOT NULL,
    pid            integer NOT NULL,
    backend_start  timestamptz NOT NULL,
    PRIMARY KEY (load_id, side, pid)
);

CREATE TABLE etl.load_slices (
    load_id  uuid NOT NULL REFERENCES etl.loads,
    slice    integer NOT NULL,
    low      text,
    high     text,
    rows     bigint NOT NULL,
    bytes    bigint NOT NULL,
    PRIMARY KEY (load_id, slice)
);

CREATE TABLE etl.partition_claims (
    target         text NOT NULL,
    partition      text NOT NULL,
    load_id        uuid NOT NULL,
    pid            integer NOT NULL,
    backend_start  timestamptz NOT NULL,
    claimed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (target, partition)
);

CREATE TABLE etl.dead_letters (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream       text NOT NULL,
    load_id      uuid NOT NULL,
    record       jsonb NOT NULL,
    record_key   text,
    row_hash     text NOT NULL,
    ordinal      bigint NOT NULL,
    reason       text NOT NULL,
    error_class  text NOT NULL,
    expectation  text,
    severity     text,
    status       text NOT NULL CHECK (status IN ('held', 'pending', 'replayed', 'discarded', 'superseded')),
    retries      integer NOT NULL DEFAULT 0,
    occurred_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    resolved_at  timestamptz,
    resolution   text,
    UNIQUE (load_id, row_hash, ordinal)
);

INSERT INTO etl.schema_version (version) VALUES (1);
