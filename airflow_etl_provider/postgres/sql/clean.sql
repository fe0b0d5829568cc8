-- name: tables
-- What stands in the staging schema; what is attached somewhere is readers' and none of ours.
SELECT c.relname::text AS name, c.oid::bigint AS oid, c.relkind = 'r' AS is_table
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p', 'f', 'm') AND NOT c.relispartition
ORDER BY c.relname

-- name: staged
-- Loads that name a staged table, and how long ago the last thing happened to those that are not finished well.
-- "earlier" are the tables that a transform read, and those that earlier ones made.
SELECT l.load_id::text AS load_id, l.state, l.staging,
       ARRAY(SELECT l.manifest -> 'transformed' ->> 'staging' WHERE l.manifest -> 'transformed' ->> 'staging' IS NOT NULL
             UNION ALL
             SELECT jsonb_array_elements_text(l.manifest -> 'transformed' -> 'replaced')
             WHERE jsonb_typeof(l.manifest -> 'transformed' -> 'replaced') = 'array') AS earlier,
       extract(epoch FROM clock_timestamp() - greatest(
           l.started_at, l.staged_at, l.validated_at,
           (SELECT max(s.loaded_at) FROM etl.load_slices AS s WHERE s.load_id = l.load_id)))::float8 AS age_s,
       -- Of others' sessions a role may see no more than the process.
       EXISTS (SELECT FROM etl.sessions AS s JOIN pg_stat_activity AS a USING (pid)
               WHERE s.load_id = l.load_id AND s.side = 'target'
                 AND coalesce(a.backend_start = s.backend_start, true)) AS is_at_work
FROM etl.loads AS l
WHERE l.staging IS NOT NULL AND (%(load_ids)s::uuid[] IS NULL OR l.load_id = ANY (%(load_ids)s::uuid[]))

-- name: versions
-- Replaced versions, and how long they stay: as the last publish of their stream was told, or by default where that was
-- not recorded yet.
SELECT p.load_id::text AS load_id, p.partition, p.previous, l.stream,
       extract(epoch FROM clock_timestamp() - p.published_at)::float8 AS age_s,
       coalesce((told.options ->> 'keep_versions')::bigint, 1) AS keep_versions,
       coalesce((told.options ->> 'keep_previous')::float8, extract(epoch FROM interval '7 days')::float8) AS keep_previous_s,
       (told.options ->> 'keep_bytes')::bigint AS keep_bytes
FROM etl.load_partitions AS p
JOIN etl.loads AS l USING (load_id)
LEFT JOIN LATERAL (SELECT other.options FROM etl.loads AS other
                   WHERE other.stream = l.stream AND other.options ? 'keep_versions'
                   ORDER BY other.seq DESC LIMIT 1) AS told ON true
WHERE p.previous IS NOT NULL AND (%(load_ids)s::uuid[] IS NULL OR p.load_id = ANY (%(load_ids)s::uuid[]))
  AND (%(names)s::text[] IS NULL OR p.previous = ANY (%(names)s::text[]))
  AND (%(target)s::text IS NULL OR l.target = %(target)s)
ORDER BY p.published_at DESC, p.partition

-- name: hold_loads
-- Whoever stages, publishes or rolls back one of them locks it first.
SELECT load_id FROM etl.loads WHERE load_id = ANY (%(load_ids)s::uuid[]) ORDER BY load_id FOR UPDATE

-- name: size
-- With its partitions, where it has some.
SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint
FROM (SELECT relid FROM pg_partition_tree(%(oid)s::oid::regclass) UNION SELECT %(oid)s::oid::regclass) AS tree

-- name: may_go
-- Under the table's lock: it is still the one that was looked at, and nobody's partition.
SELECT c.oid = %(oid)s AND NOT c.relispartition
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
