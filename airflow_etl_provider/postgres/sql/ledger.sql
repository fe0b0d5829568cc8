-- name: stream
SELECT stream, target, kind, position, position_type, fence, load_id, updated_at
FROM etl.streams WHERE stream = %(stream)s

-- name: lock_stream
SELECT stream, target, kind, position, position_type, fence, load_id, updated_at
FROM etl.streams WHERE stream = %(stream)s FOR UPDATE

-- name: bind_stream
INSERT INTO etl.streams (stream, target, kind, store)
VALUES (%(stream)s, %(target)s, %(kind)s, %(store)s)
ON CONFLICT (stream) DO NOTHING

-- name: rebind_stream
UPDATE etl.streams AS s SET target = %(target)s, kind = %(kind)s
WHERE stream = %(stream)s AND position IS NULL AND (target, kind) IS DISTINCT FROM (%(target)s, %(kind)s)
  AND NOT EXISTS (SELECT FROM etl.loads AS l WHERE l.stream = s.stream AND l.state NOT IN ('failed', 'abandoned'))

-- name: set_origin
UPDATE etl.streams SET origin = %(origin)s WHERE stream = %(stream)s

-- name: origin
SELECT origin FROM etl.streams WHERE stream = %(stream)s

-- name: begin_load
INSERT INTO etl.loads (load_id, fence, stream, target, kind, state, dag_id, task_id, run_id, run_type, map_index,
                       try_number, clear_number, window_low, window_high, window_type, bounds, moves_watermark,
                       watermark_low, replays)
VALUES (%(load_id)s, %(fence)s, %(stream)s, %(target)s, %(kind)s, 'started', %(dag_id)s, %(task_id)s, %(run_id)s,
        %(run_type)s, %(map_index)s, %(try_number)s, %(clear_number)s, %(window_low)s, %(window_high)s,
        %(window_type)s, %(bounds)s, %(moves_watermark)s, %(watermark_low)s, %(replays)s)
ON CONFLICT (load_id) DO UPDATE
SET state = 'started', error = NULL, started_at = clock_timestamp(), try_number = excluded.try_number, fence = excluded.fence,
    window_low = excluded.window_low, window_high = excluded.window_high, window_type = excluded.window_type,
    bounds = excluded.bounds, watermark_low = excluded.watermark_low, moves_watermark = excluded.moves_watermark
WHERE etl.loads.state IN ('started', 'failed')

-- name: load_state
SELECT state FROM etl.loads WHERE load_id = %(load_id)s

-- name: load
SELECT load_id, seq, fence, stream, target, kind, state, clear_number, manifest, report, rows_staged, published_at, error,
       staging, window_low, window_high, window_type, bounds, settled, fingerprint
FROM etl.loads WHERE load_id = %(load_id)s

-- name: lock_load
SELECT load_id, seq, fence, stream, target, kind, state, clear_number, manifest, report, rows_staged, published_at, error,
       staging, window_low, window_high, window_type, bounds, settled, fingerprint
FROM etl.loads WHERE load_id = %(load_id)s FOR UPDATE

-- name: abandon
UPDATE etl.loads SET state = 'abandoned', error = %(reason)s
WHERE load_id = %(load_id)s AND state IN ('started', 'staged', 'validated', 'failed')

-- name: restart_load
UPDATE etl.loads SET state = 'started', manifest = NULL, staging = NULL, report = NULL
WHERE load_id = %(load_id)s AND state IN ('staged', 'validated')

-- name: plan_slice
INSERT INTO etl.load_slices (load_id, slice, by, low, high)
VALUES (%(load_id)s, %(slice)s, %(by)s, %(low)s, %(high)s)

-- name: begin_slices
UPDATE etl.loads SET staging = %(staging)s, settled = %(settled)s, fingerprint = %(fingerprint)s
WHERE load_id = %(load_id)s AND state = 'started' AND try_number = %(try_number)s

-- name: slice_loaded
UPDATE etl.load_slices AS s
SET rows = %(rows)s, bytes = %(bytes)s, checksum = %(checksum)s, snapshot_at = %(snapshot_at)s,
    loaded_at = clock_timestamp()
FROM etl.loads AS l
WHERE s.load_id = %(load_id)s AND s.slice = %(slice)s AND s.loaded_at IS NULL
  AND l.load_id = s.load_id AND l.state = 'started' AND l.try_number = %(try_number)s

-- name: slices
SELECT slice, by, low, high, rows, bytes, checksum::text AS checksum, snapshot_at, loaded_at IS NOT NULL AS is_loaded
FROM etl.load_slices WHERE load_id = %(load_id)s ORDER BY slice

-- name: move_staging
UPDATE etl.loads SET staging = %(staging)s WHERE load_id = %(load_id)s

-- name: forget_slices
DELETE FROM etl.load_slices WHERE load_id = %(load_id)s

-- name: newer_snapshots
-- Published loads of the stream that read the source later: any at all, and any that held rows without a
-- cursor value.
SELECT count(*) > 0 AS newer,
       coalesce(bool_or(window_type IS NULL OR manifest -> 'window' ->> 'nulls' <> 'exclude'), false) AS newer_nulls
FROM etl.loads
WHERE stream = %(stream)s AND state = 'published' AND load_id <> %(load_id)s AND replays IS NULL
  AND coalesce(read_until, snapshot_at) > %(snapshot_at)s

-- name: newer_nulls_load
SELECT load_id FROM etl.loads
WHERE stream = %(stream)s AND state = 'published' AND replays IS NULL
  AND (seq > %(seq)s OR coalesce(read_until, snapshot_at) > (SELECT snapshot_at FROM etl.loads WHERE load_id = %(load_id)s))
  AND (window_type IS NULL OR bounds = 'nulls')
ORDER BY seq DESC LIMIT 1

-- name: hold_target
-- The first load of a stream into a table alone, all others together: whoever comes next sees what it has published.
SELECT CASE WHEN EXISTS (SELECT FROM etl.loads
                         WHERE stream = %(stream)s AND target = %(target)s AND state = 'published')
            THEN pg_advisory_xact_lock_shared(%(class)s, hashtext(%(target)s))
            ELSE pg_advisory_xact_lock(%(class)s, hashtext(%(target)s)) END

-- name: stream_in_the_way
-- Another stream that has published rows of the window into the target. Windows of another column, type or bounds
-- cannot be compared, and a load of everything has no window: these may hold any row. A reset forgets them all.
SELECT s.stream FROM etl.streams AS s
WHERE s.target = %(target)s AND s.stream <> %(stream)s
  AND (EXISTS (SELECT FROM etl.coverage AS c LEFT JOIN etl.loads AS l USING (load_id)
               WHERE c.stream = s.stream AND c.retired_at IS NULL
                 AND CASE WHEN l.window_type = %(type)s AND l.manifest ->> 'cursor' = %(cursor)s AND c.bounds = %(bounds)s
                     THEN coalesce(c.low::{t} < %(high)s::{t} AND c.high::{t} > %(low)s::{t}, true) ELSE true END)
       OR EXISTS (SELECT FROM etl.loads AS l
                  WHERE l.stream = s.stream AND l.state = 'published' AND l.replays IS NULL
                    AND (l.window_type IS NULL OR l.bounds = 'nulls')
                    AND l.fence >= (SELECT coalesce(max(m.fence), 0) FROM etl.watermark_moves AS m
                                    WHERE m.stream = s.stream AND m.position_to IS NULL)))
ORDER BY s.stream LIMIT 1

-- name: waive_empty
UPDATE etl.loads SET state = 'validated', validated_at = clock_timestamp(), report = %(report)s
WHERE load_id = %(load_id)s AND state = 'staged'

-- name: ledger_exists
SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
               WHERE n.nspname = 'etl' AND c.relname = 'schema_version')

-- name: sessions
SELECT side, pid, backend_start FROM etl.sessions WHERE load_id = %(load_id)s

-- name: add_session
INSERT INTO etl.sessions (load_id, side, pid, backend_start)
VALUES (%(load_id)s, %(side)s, %(pid)s, %(backend_start)s)
ON CONFLICT (load_id, side, pid) DO UPDATE SET backend_start = excluded.backend_start

-- name: forget_sessions
DELETE FROM etl.sessions WHERE load_id = %(load_id)s

-- name: mark_staged
UPDATE etl.loads
SET state = 'staged', staging = %(staging)s, manifest = %(manifest)s, snapshot_at = %(snapshot_at)s,
    read_until = %(read_until)s,
    rows_staged = %(rows)s, rows_dead = nullif(%(rows_dead)s, 0), bytes_staged = %(bytes)s, checksum = %(checksum)s, staged_at = clock_timestamp(),
    report = NULL, validated_at = NULL, error = NULL
WHERE load_id = %(load_id)s AND state = 'started'

-- name: mark_transformed
-- Only as long as the batch is still the one that was read when the transform began.
UPDATE etl.loads
SET state = 'staged', staging = %(staging)s, manifest = %(manifest)s, rows_staged = %(rows)s, bytes_staged = %(bytes)s,
    checksum = NULL, report = NULL, validated_at = NULL, error = NULL,
    rows_dead = (SELECT nullif(count(*), 0) FROM etl.dead_letters AS d WHERE d.load_id = %(load_id)s)
WHERE load_id = %(load_id)s AND state IN ('staged', 'validated', 'rejected') AND staging = %(before)s
RETURNING load_id

-- name: forget_letters
-- Of an earlier transform of the load, and of audits of what it made ("again"): their rows are in the batch again.
DELETE FROM etl.dead_letters
WHERE load_id = %(load_id)s AND status IN ('held', 'superseded')
  AND (reason LIKE 'transform: %%' OR %(again)s AND expectation IS NOT NULL)

-- name: set_aside
INSERT INTO etl.dead_letters (stream, load_id, record, record_key, row_hash, ordinal, reason, error_class, status)
VALUES (%(stream)s, %(load_id)s, %(record)s, %(record_key)s, %(row_hash)s, %(ordinal)s, %(reason)s, %(error_class)s,
        'held')
ON CONFLICT (load_id, row_hash, ordinal) DO NOTHING

-- name: mark_audited
UPDATE etl.loads
SET state = %(state)s, report = %(report)s, validated_at = clock_timestamp(), error = %(error)s,
    manifest = manifest || jsonb_build_object('audited', %(audited)s::text)
WHERE load_id = %(load_id)s AND state IN ('staged', 'validated', 'rejected')
  AND (%(staging)s::text IS NULL OR staging = %(staging)s::text)

-- name: reduce_batch
UPDATE etl.loads SET manifest = %(manifest)s, rows_dead = %(rows_dead)s WHERE load_id = %(load_id)s

-- name: mark_failed
UPDATE etl.loads
SET state = CASE WHEN state = 'started' THEN 'failed' ELSE state END, error = %(error)s
WHERE load_id = %(load_id)s AND state NOT IN ('published', 'abandoned', 'rolled_back')
  AND (%(try_number)s::int IS NULL OR try_number = %(try_number)s::int)

-- name: mark_published
UPDATE etl.loads
SET state = 'published', strategy = %(strategy)s, rows_inserted = %(rows_inserted)s, rows_updated = %(rows_updated)s,
    rows_deleted = %(rows_deleted)s, rows_unchanged = %(rows_unchanged)s, rows_stale = %(rows_stale)s,
    watermark_high = %(watermark_high)s, options = %(options)s,
    published_at = clock_timestamp(), error = NULL
WHERE load_id = %(load_id)s AND state = 'validated'

-- name: newer_load_of_run
SELECT newer.load_id
FROM etl.loads AS mine
JOIN etl.loads AS newer USING (stream, dag_id, run_id, task_id, map_index)
WHERE mine.load_id = %(load_id)s AND newer.seq > mine.seq AND newer.state <> 'failed'
ORDER BY newer.seq DESC LIMIT 1

-- name: newer_full_load
SELECT load_id FROM etl.loads
WHERE stream = %(stream)s AND state = 'published' AND replays IS NULL AND window_type IS NULL
  AND (seq > %(seq)s OR coalesce(read_until, snapshot_at) > (SELECT snapshot_at FROM etl.loads WHERE load_id = %(load_id)s))
ORDER BY seq DESC LIMIT 1

-- name: add_partition
INSERT INTO etl.load_partitions (load_id, partition, bound, rows, rows_before, bytes, previous, rebuild)
VALUES (%(load_id)s, %(partition)s, %(bound)s, %(rows)s, %(rows_before)s, %(bytes)s, %(previous)s, %(rebuild)s)

-- name: publisher
-- This transaction, the oldest that writes beside it if there is one, and the numbers of database and ledger, which a
-- copy in another cluster does not have.
SELECT pg_current_xact_id()::text AS xid,
       nullif(least(pg_snapshot_xmin(pg_current_snapshot()), pg_current_xact_id()), pg_current_xact_id())::text AS oldest,
       (SELECT concat(oid, '/', 'etl.loads'::regclass::oid) FROM pg_database WHERE datname = current_database())
           AS cluster

-- name: filled_by
-- The transactions that wrote the rows of a table, as far as they are not older than all that still write.
SELECT coalesce(array_agg(x::text), '{{}}')
FROM (SELECT DISTINCT t.xmin AS x FROM ONLY {table} AS t WHERE age(t.xmin) <= age(%(oldest)s::text::xid8::xid)) AS own

-- name: set_lock_ms
UPDATE etl.load_partitions SET lock_ms = %(lock_ms)s WHERE load_id = %(load_id)s

-- name: set_rebuild
-- Keys are dropped one by one: those that were recorded before stay.
UPDATE etl.load_partitions
SET rebuild = coalesce(rebuild, '{}') || jsonb_build_object(
    'foreign_keys', coalesce(rebuild -> 'foreign_keys', '{}') || (%(rebuild)s::jsonb -> 'foreign_keys'))
WHERE load_id = %(load_id)s AND partition = %(partition)s

-- name: partitions_of_load
SELECT partition, bound, rows, rows_before, bytes, previous, lock_ms
FROM etl.load_partitions WHERE load_id = %(load_id)s ORDER BY partition

-- name: published_load
SELECT strategy, rows_inserted, rows_updated, rows_deleted, rows_unchanged, rows_stale
FROM etl.loads WHERE load_id = %(load_id)s

-- name: move_position
UPDATE etl.streams
SET position = %(position)s, position_type = %(type)s, fence = fence + 1, load_id = %(load_id)s,
    updated_at = clock_timestamp()
WHERE stream = %(stream)s
RETURNING stream, target, kind, position, position_type, fence, load_id, updated_at

-- name: record_move
INSERT INTO etl.watermark_moves (stream, position_from, position_to, fence, reason, actor)
VALUES (%(stream)s, %(from)s, %(to)s, %(fence)s, %(reason)s, %(actor)s)

-- name: add_coverage
INSERT INTO etl.coverage (stream, low, high, bounds, load_id, retired_at)
VALUES (%(stream)s, %(low)s, %(high)s, %(bounds)s, %(load_id)s, CASE WHEN %(retired)s THEN clock_timestamp() END)

-- name: actor
SELECT dag_id || ' ' || run_id FROM etl.loads WHERE load_id = %(load_id)s

-- name: loads_of_run
-- Published loads of the task that this load belongs to, cleared since.
SELECT o.load_id::text AS load_id, 'everything' AS span, true AS within,
       coalesce(o.read_until, o.snapshot_at) > %(snapshot_at)s AS read_later
FROM etl.loads AS mine
JOIN etl.loads AS o USING (stream, dag_id, run_id, task_id, map_index)
WHERE mine.load_id = %(load_id)s AND o.load_id <> mine.load_id AND o.state = 'published'
ORDER BY o.seq

-- name: last_columns
-- Of a load that a transform has changed, the columns that extract read.
SELECT coalesce(manifest -> 'transformed' -> 'columns', manifest -> 'columns') FROM etl.loads
WHERE stream = %(stream)s AND target = %(target)s AND state = 'published' AND manifest IS NOT NULL AND replays IS NULL
ORDER BY published_at DESC LIMIT 1

-- name: last_published_columns
-- A load without rows does not tell which columns it would have brought.
SELECT manifest -> 'columns' FROM etl.loads
WHERE stream = %(stream)s AND target = %(target)s AND state = 'published' AND rows_staged > 0 AND manifest IS NOT NULL
  AND replays IS NULL
ORDER BY published_at DESC LIMIT 1
