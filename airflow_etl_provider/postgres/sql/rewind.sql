-- name: lock
SELECT stream, store, position, position_type, fence, load_id, updated_at
FROM etl.streams WHERE stream = %(stream)s FOR UPDATE

-- name: instant
SELECT extract(epoch FROM %(to)s::timestamptz)

-- name: elsewhere
SELECT set_config('TimeZone', 'Etc/GMT-12', true)

-- name: compare
SELECT (%(to)s::{t})::text AS to, %(to)s::{t} > %(position)s::{t} AS forward

-- name: cut_coverage
UPDATE etl.coverage SET high = %(to)s WHERE stream = %(stream)s AND low::{t} < %(to)s::{t} AND high::{t} > %(to)s::{t}

-- name: drop_coverage
DELETE FROM etl.coverage WHERE stream = %(stream)s AND low::{t} >= %(to)s::{t}

-- name: drop_all_coverage
DELETE FROM etl.coverage WHERE stream = %(stream)s

-- name: abandon_above
UPDATE etl.loads SET state = 'abandoned', error = %(why)s
WHERE stream = %(stream)s AND state IN ('started', 'staged', 'validated', 'rejected', 'failed')
  AND CASE WHEN window_type = %(type)s THEN window_high::{t} > %(to)s::{t} ELSE true END
RETURNING load_id::text

-- name: abandon_all
UPDATE etl.loads SET state = 'abandoned', error = %(why)s
WHERE stream = %(stream)s AND state IN ('started', 'staged', 'validated', 'rejected', 'failed')
RETURNING load_id::text

-- name: move
UPDATE etl.streams
SET position = %(to)s, position_type = %(type)s, origin = CASE WHEN %(to)s::text IS NOT NULL THEN origin END,
    fence = fence + 1, load_id = NULL, updated_at = clock_timestamp()
WHERE stream = %(stream)s
RETURNING stream, position, position_type, fence, load_id, updated_at

-- name: record
INSERT INTO etl.watermark_moves (stream, position_from, position_to, fence, reason, actor)
VALUES (%(stream)s, %(from)s, %(to)s, %(fence)s, %(reason)s, %(actor)s)

-- name: store
SELECT store FROM etl.streams WHERE stream = %(stream)s

-- name: bind_store
UPDATE etl.streams SET store = %(store)s WHERE stream = %(stream)s

-- name: names
SELECT stream FROM etl.streams ORDER BY stream

-- What a person looks at before moving a watermark.

-- name: version
SELECT max(version) FROM etl.schema_version

-- name: overview
SELECT s.stream, s.target, s.kind, s.store, s.origin, s.position, coalesce(s.position_type, windowed.window_type) AS type,
       s.fence, s.load_id::text AS load_id, s.updated_at,
       CASE WHEN s.position_type LIKE '%% with time zone'
            THEN CASE WHEN isfinite(s.position::timestamptz)
                      THEN extract(epoch FROM clock_timestamp() - s.position::timestamptz)::float8 END
       END AS lag_seconds,
       latest.state AS last_state, latest.at AS last_at, coalesce(dead.pending, 0) AS dead_pending
FROM etl.streams AS s
LEFT JOIN LATERAL (
    SELECT l.state, coalesce(l.published_at, l.validated_at, l.staged_at, l.started_at) AS at
    FROM etl.loads AS l WHERE l.stream = s.stream ORDER BY l.seq DESC LIMIT 1
) AS latest ON true
LEFT JOIN LATERAL (
    SELECT l.window_type FROM etl.loads AS l WHERE l.stream = s.stream AND l.window_type IS NOT NULL
    ORDER BY l.seq DESC LIMIT 1
) AS windowed ON true
LEFT JOIN (
    SELECT stream, count(*) AS pending FROM etl.dead_letters WHERE status = 'pending' GROUP BY stream
) AS dead ON dead.stream = s.stream
WHERE %(stream)s::text IS NULL OR s.stream = %(stream)s
ORDER BY s.stream

-- name: covered
-- Windows that touch each other are one, those of partitions that are no longer kept apart from the others.
WITH spans AS (
    SELECT low::{t} AS low, high::{t} AS high, bounds, retired_at IS NOT NULL AS retired,
           lag(high::{t}) OVER earlier AS reached, lag(retired_at IS NOT NULL) OVER earlier AS was_retired
    FROM etl.coverage WHERE stream = %(stream)s
    WINDOW earlier AS (ORDER BY low::{t})
), runs AS (
    SELECT *, count(*) FILTER (WHERE low > reached OR retired <> was_retired) OVER (ORDER BY low) AS run FROM spans
)
SELECT (array_agg(low::text ORDER BY low))[1] AS low, (array_agg(high::text ORDER BY low DESC))[1] AS high,
       min(bounds) AS bounds, count(*) AS windows, bool_and(retired) AS retired,
       (array_agg(coalesce(low > reached, false) ORDER BY low))[1] AS after_gap,
       (array_agg(low > %(start)s::{t} ORDER BY low))[1] AS after_start
FROM runs GROUP BY run ORDER BY run

-- name: moves
SELECT position_from AS "from", position_to AS "to", fence, reason, actor, moved_at
FROM etl.watermark_moves WHERE stream = %(stream)s ORDER BY fence DESC, moved_at DESC LIMIT %(limit)s

-- name: loads
SELECT load_id::text AS load_id, state, strategy, dag_id, run_id, window_low, window_high, window_type, bounds,
       rows_staged, rows_inserted, rows_updated, rows_deleted, rows_dead, started_at, published_at, error
FROM etl.loads WHERE stream = %(stream)s ORDER BY seq DESC LIMIT %(limit)s

-- What doctor asks a server.

-- name: server
SELECT current_setting('server_version') AS version, current_setting('client_connection_check_interval') AS check_interval,
       (SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout') AS deadlock_timeout_ms,
       (SELECT count(*) FROM pg_stat_replication) AS standbys,
       (SELECT coalesce(array_agg(pubname::text ORDER BY pubname), ARRAY[]::text[]) FROM pg_publication WHERE puballtables) AS publications,
       pg_has_role('pg_read_all_stats', 'USAGE') AS reads_all_stats,
       has_database_privilege(current_database(), 'CREATE') AS may_create,
       current_user::text AS role, current_database()::text AS database

-- name: missing_rights
SELECT c.relname::text AS name, string_agg(needed.privilege, ', ' ORDER BY needed.privilege) AS privileges
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = 'etl' AND c.relkind = 'r'
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed (privilege)
WHERE NOT has_table_privilege(c.oid, needed.privilege)
  AND (c.relname <> 'schema_version' OR needed.privilege = 'SELECT')
GROUP BY c.relname ORDER BY c.relname

-- name: missing_schema_rights
SELECT n.nspname::text AS name, string_agg(needed.privilege, ', ' ORDER BY needed.privilege) AS privileges
FROM pg_namespace AS n
JOIN (VALUES ('etl', 'USAGE'), ('etl_staging', 'USAGE'), ('etl_staging', 'CREATE')) AS needed (schema, privilege)
  ON needed.schema = n.nspname
WHERE NOT has_schema_privilege(n.oid, needed.privilege)
GROUP BY n.nspname ORDER BY n.nspname
