-- name: tree
-- A table with all that is partitioned below it, parents first; as the statement sees it when it begins.
WITH RECURSIVE t (relid, parentrelid, level) AS (
    SELECT %(oid)s::oid, NULL::oid, 0
    UNION ALL
    SELECT i.inhrelid, i.inhparent, t.level + 1 FROM t JOIN pg_inherits AS i ON i.inhparent = t.relid AND NOT i.inhdetachpending
)
SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name, t.parentrelid::bigint AS parent,
       t.level, pg_get_expr(c.relpartbound, c.oid) AS bound, p.partstrat::text AS strategy,
       CASE WHEN p.partnatts = 1 THEN (SELECT a.attname::text FROM pg_attribute AS a
                                       WHERE a.attrelid = c.oid AND a.attnum = p.partattrs[0]) END AS "column"
FROM t
JOIN pg_class AS c ON c.oid = t.relid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_partitioned_table AS p ON p.partrelid = c.oid
ORDER BY t.level, n.nspname, c.relname

-- name: index_names
SELECT i.indrelid::bigint, c.relname::text
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY (%(oids)s::oid[]) ORDER BY i.indrelid, c.relname

-- name: taken
SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(names)s)

-- name: partition_key
SELECT pg_get_partkeydef(%(oid)s::oid)

-- name: size
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint, coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
FROM pg_class AS c WHERE c.oid = ANY (%(oids)s::oid[]) AND c.relkind <> 'p'

-- name: dependents
-- What shows or references tables by name and would hold them for ever.
SELECT DISTINCT format('%%s %%s shows %%s', CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END,
                       v.oid::regclass, d.refobjid::regclass)
FROM pg_depend AS d
JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class AS v ON v.oid = r.ev_class
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = ANY (%(oids)s::oid[]) AND v.oid <> d.refobjid
UNION
SELECT format('%%s references %%s by foreign key', con.conrelid::regclass, con.confrelid::regclass)
FROM pg_constraint AS con
WHERE con.confrelid = ANY (%(oids)s::oid[]) AND con.contype = 'f' AND con.conparentid = 0
ORDER BY 1

-- name: unfinished
-- Loads that may still write into the table. A failed or rejected one that has left nothing to go on from does not,
-- and one that lies still in its beginning, without a session, is dead.
SELECT l.load_id::text AS load_id, l.stream, l.state, l.staging, l.window_low, l.window_high, l.window_type, l.bounds,
       coalesce(l.manifest ->> 'cursor',
                (SELECT e.manifest ->> 'cursor' FROM etl.loads AS e
                 WHERE e.stream = l.stream AND e.state = 'published' AND e.manifest IS NOT NULL
                 ORDER BY e.seq DESC LIMIT 1)) AS cursor,
       to_regclass(l.staging) IS NOT NULL AS is_staged, l.started_at,
       -- Of others' sessions a role may see no more than the process.
       l.state = 'started'
       AND greatest(l.started_at, (SELECT max(s.loaded_at) FROM etl.load_slices AS s WHERE s.load_id = l.load_id))
           < clock_timestamp() - %(patience)s
       AND NOT EXISTS (SELECT FROM etl.sessions AS s JOIN pg_stat_activity AS a USING (pid)
                       WHERE s.load_id = l.load_id AND s.side = 'target'
                         AND coalesce(a.backend_start = s.backend_start, true)) AS is_dead
FROM etl.loads AS l
WHERE l.target = %(target)s
  AND (l.state IN ('started', 'staged', 'validated')
       OR l.state IN ('failed', 'rejected') AND to_regclass(l.staging) IS NOT NULL)
ORDER BY l.seq

-- name: has_column
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(%(table)s) AND attname = %(column)s
               AND NOT attisdropped)

-- name: overlaps
SELECT coalesce(%(window_low)s::{t} < %(high)s::{t}, true) AND coalesce(%(window_high)s::{t} > %(low)s::{t}, true)

-- name: covering_streams
-- Streams whose windows are ranges of the partition column, with the type of those windows.
SELECT s.stream, covering.window_type AS type
FROM etl.streams AS s
CROSS JOIN LATERAL (
    SELECT l.window_type, l.manifest ->> 'cursor' AS cursor FROM etl.loads AS l
    WHERE l.stream = s.stream AND l.state = 'published' AND l.window_type IS NOT NULL AND l.bounds <> 'nulls'
    ORDER BY l.seq DESC LIMIT 1
) AS covering
WHERE s.target = %(target)s AND covering.cursor = %(column)s
ORDER BY s.stream

-- name: ranges_to_retire
-- What of a range no other partition holds. Where none holds its lower end, from where the next one below ends, or from
-- where the stream begins, whichever is later.
WITH held AS (
    SELECT h.low::{t} AS low, h.high::{t} AS high FROM unnest(%(lows)s::text[], %(highs)s::text[]) AS h (low, high)
), below AS (
    SELECT CASE WHEN EXISTS (SELECT FROM held WHERE coalesce(low <= %(low)s::{t}, true)
                                                AND coalesce(high > %(low)s::{t}, true))
                THEN %(low)s::{t}
                ELSE (SELECT high FROM held WHERE high <= %(low)s::{t} ORDER BY high DESC LIMIT 1) END AS ends
), cut AS (
    SELECT greatest(coalesce(s.origin::{t}, (SELECT c.low::{t} FROM etl.coverage AS c WHERE c.stream = s.stream
                                             ORDER BY c.low::{t} LIMIT 1)),
                    below.ends,
                    (SELECT c.high::{t} FROM etl.coverage AS c
                     WHERE c.stream = s.stream AND c.retired_at IS NOT NULL AND c.high::{t} <= %(low)s::{t}
                     ORDER BY c.high::{t} DESC LIMIT 1)) AS low,
           %(high)s::{t} AS high,
           (SELECT min(c.bounds) FROM etl.coverage AS c WHERE c.stream = s.stream) AS bounds
    FROM etl.streams AS s CROSS JOIN below
    WHERE s.stream = %(stream)s
      AND (s.origin IS NOT NULL OR EXISTS (SELECT FROM etl.coverage AS c WHERE c.stream = s.stream))
), inside AS (
    SELECT coalesce(held.low, cut.low) AS low, coalesce(held.high, cut.high) AS high
    FROM held CROSS JOIN cut
    WHERE coalesce(held.low < cut.high, true) AND coalesce(held.high > cut.low, true)
), beginning AS (
    SELECT low FROM cut UNION SELECT high FROM inside
)
SELECT beginning.low::text AS low,
       coalesce((SELECT i.low FROM inside AS i WHERE i.low > beginning.low ORDER BY i.low LIMIT 1), cut.high)::text AS high,
       cut.bounds
FROM beginning CROSS JOIN cut
WHERE beginning.low < cut.high
  AND NOT EXISTS (SELECT FROM inside AS i WHERE i.low <= beginning.low AND i.high > beginning.low)
ORDER BY beginning.low

-- name: give_coverage_back
-- Whichever retirement has taken it: of a range that is in several partitions the last one that went did, and the
-- first that returns brings it back. But for what a load covered that was rolled back meanwhile.
WITH told AS (
    SELECT %(retirement_id)s::uuid AS retirement_id, %(pieces)s::jsonb AS pieces
    UNION ALL
    SELECT r.retirement_id, t.pieces
    FROM etl.retired_partitions AS r
    CROSS JOIN LATERAL jsonb_to_recordset(r.coverage) AS t (stream text, pieces jsonb)
    WHERE r.retirement_id <> %(retirement_id)s AND t.stream = %(stream)s
      AND r.retirement_id IN (SELECT c.load_id FROM etl.coverage AS c
                              WHERE c.stream = %(stream)s AND c.retired_at IS NOT NULL)
), back AS (
    SELECT greatest(p.low::{t}, c.low::{t}, CASE WHEN c.load_id <> %(retirement_id)s THEN %(low)s::{t} END) AS low,
           least(p.high::{t}, c.high::{t}, CASE WHEN c.load_id <> %(retirement_id)s THEN %(high)s::{t} END) AS high,
           p.bounds, p.load_id
    FROM told
    JOIN etl.coverage AS c ON c.load_id = told.retirement_id
    CROSS JOIN LATERAL jsonb_to_recordset(told.pieces) AS p (low text, high text, bounds text, load_id uuid)
    WHERE c.stream = %(stream)s AND c.retired_at IS NOT NULL
      AND NOT EXISTS (SELECT FROM etl.loads AS l WHERE l.load_id = p.load_id AND l.state = 'rolled_back')
)
INSERT INTO etl.coverage (stream, low, high, bounds, load_id)
SELECT %(stream)s, low::text, high::text, bounds, load_id FROM back WHERE low < high

-- name: keep_rest_retired
-- What others have taken beside the range that returns stays theirs.
INSERT INTO etl.coverage (stream, low, high, bounds, load_id, retired_at)
SELECT c.stream, rest.low, rest.high, c.bounds, c.load_id, c.retired_at
FROM etl.coverage AS c
CROSS JOIN LATERAL (VALUES (c.low, %(low)s::text), (%(high)s::text, c.high)) AS rest (low, high)
WHERE c.stream = %(stream)s AND c.retired_at IS NOT NULL AND c.load_id <> %(retirement_id)s
  AND coalesce(c.low::{t} < %(high)s::{t}, true) AND coalesce(c.high::{t} > %(low)s::{t}, true)
  AND rest.low::{t} < rest.high::{t}

-- name: forget_retired_coverage
DELETE FROM etl.coverage AS c
WHERE c.stream = %(stream)s AND c.retired_at IS NOT NULL
  AND (c.load_id = %(retirement_id)s
       OR coalesce(c.low::{t} < %(high)s::{t}, true) AND coalesce(c.high::{t} > %(low)s::{t}, true))

-- name: bound
SELECT bound FROM etl.retired_partitions WHERE retirement_id = %(retirement_id)s

-- name: retire
INSERT INTO etl.retired_partitions (retirement_id, target, parent, partition, bound, kept, names, rebuild, coverage, rows,
                                    bytes, why, actor, drop_after)
VALUES (%(retirement_id)s, %(target)s, %(parent)s, %(partition)s, %(bound)s, %(kept)s, %(names)s, %(rebuild)s, %(coverage)s,
        %(rows)s, %(bytes)s, %(why)s, %(actor)s, clock_timestamp() + %(keep)s)

-- name: set_rebuild
UPDATE etl.retired_partitions SET rebuild = coalesce(rebuild, '{}') || %(rebuild)s WHERE retirement_id = %(retirement_id)s

-- name: retired
-- Retired partitions that are still kept, newest first, and whether their time is over.
SELECT r.retirement_id::text AS retirement_id, r.target, r.parent, r.partition, r.bound, r.kept, r.names, r.rebuild, r.coverage,
       r.rows, r.bytes, r.why, r.actor, r.retired_at, r.drop_after, clock_timestamp() >= r.drop_after AS is_over
FROM etl.retired_partitions AS r
WHERE r.dropped_at IS NULL AND r.restored_at IS NULL
  AND (%(ids)s::uuid[] IS NULL OR r.retirement_id = ANY (%(ids)s::uuid[]))
ORDER BY r.retired_at DESC, r.partition

-- name: hold_retired
SELECT retirement_id FROM etl.retired_partitions
WHERE retirement_id = ANY (%(ids)s::uuid[]) ORDER BY retirement_id FOR UPDATE

-- name: mark_dropped
UPDATE etl.retired_partitions SET dropped_at = clock_timestamp() WHERE retirement_id = ANY (%(ids)s::uuid[])

-- name: mark_restored
UPDATE etl.retired_partitions SET restored_at = clock_timestamp() WHERE retirement_id = %(retirement_id)s

-- name: has_analyzed
SELECT to_regclass('etl.analyzed_tables') IS NOT NULL

-- name: counters
SELECT counters FROM etl.analyzed_tables WHERE target = %(target)s

-- name: set_analyzed
INSERT INTO etl.analyzed_tables (target, counters)
SELECT %(target)s, coalesce(jsonb_object_agg(t.relid::oid::text, jsonb_build_array(
           s.n_tup_ins + s.n_tup_upd + s.n_tup_del, greatest(c.reltuples, s.n_live_tup, 0))), '{}')
FROM pg_partition_tree(%(oid)s::oid::regclass) AS t
JOIN pg_class AS c ON c.oid = t.relid
JOIN pg_stat_all_tables AS s ON s.relid = t.relid
WHERE t.isleaf AND c.relkind = 'r'
ON CONFLICT (target) DO UPDATE SET counters = excluded.counters, analyzed_at = clock_timestamp()

-- name: changed_share
-- How much of a partitioned table is not in its statistics as a whole: rows of partitions that came or went since it
-- was analyzed, and rows that were written into the others. Where that was not by us, partitions that were analyzed
-- after it count as new. 1 if it never was; NULL without rows.
WITH known AS (
    SELECT key::oid AS oid, (value ->> 0)::float8 AS written, (value ->> 1)::float8 AS rows
    FROM jsonb_each(%(counters)s::jsonb)
), parent AS (
    SELECT greatest(s.last_analyze, s.last_autoanalyze) AS analyzed
    FROM pg_stat_all_tables AS s WHERE s.relid = %(oid)s
), leaf AS (
    SELECT c.oid, greatest(c.reltuples, s.n_live_tup, 0)::float8 AS rows,
           (s.n_tup_ins + s.n_tup_upd + s.n_tup_del)::float8 AS written,
           s.n_mod_since_analyze::float8 AS modified, greatest(s.last_analyze, s.last_autoanalyze) AS analyzed
    FROM pg_partition_tree(%(oid)s::oid::regclass) AS t
    JOIN pg_class AS c ON c.oid = t.relid
    LEFT JOIN pg_stat_all_tables AS s ON s.relid = t.relid
    WHERE t.isleaf AND c.relkind = 'r'
), changed AS (
    SELECT l.rows, CASE
               WHEN k.oid IS NOT NULL THEN least(greatest(l.written - k.written, 0), l.rows)
               WHEN %(counters)s::jsonb IS NOT NULL OR l.analyzed > (SELECT analyzed FROM parent) THEN l.rows
               ELSE least(l.modified, l.rows) END AS changed
    FROM leaf AS l LEFT JOIN known AS k USING (oid)
    UNION ALL
    SELECT 0, k.rows FROM known AS k WHERE k.oid NOT IN (SELECT oid FROM leaf)
)
SELECT CASE WHEN coalesce(sum(rows), 0) = 0 THEN NULL
            WHEN (SELECT analyzed FROM parent) IS NULL THEN 1
            ELSE least(coalesce(sum(changed), 0) / sum(rows), 1) END
FROM changed
