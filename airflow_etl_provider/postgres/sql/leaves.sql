-- name: leaves
-- Not pg_partition_tree(): that looks at the catalog as it is, the rest of the statement as it was when it began. A
-- partition that another session makes and exchanges in between would be missing.
WITH RECURSIVE t (relid, parentrelid) AS (
    SELECT i.inhrelid, i.inhparent FROM pg_inherits AS i WHERE i.inhparent = %(oid)s::oid AND NOT i.inhdetachpending
    UNION ALL
    SELECT i.inhrelid, i.inhparent FROM t JOIN pg_inherits AS i ON i.inhparent = t.relid AND NOT i.inhdetachpending
)
SELECT n.nspname::text AS schema, c.relname::text AS name, c.oid::bigint AS oid,
       pn.nspname::text AS parent_schema, p.relname::text AS parent_name, p.oid::bigint AS parent_oid,
       pg_get_expr(c.relpartbound, c.oid) AS bound,
       pg_get_partition_constraintdef(c.oid) AS condition,
       c.reltuples::bigint AS rows
FROM t
JOIN pg_class AS c ON c.oid = t.relid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_class AS p ON p.oid = t.parentrelid
JOIN pg_namespace AS pn ON pn.oid = p.relnamespace
WHERE c.relkind = 'r'
ORDER BY n.nspname, c.relname

-- name: conditions
-- Which rows belong into each of these tables; of one that is no partition, all.
SELECT c.oid::bigint, '(' || coalesce(pg_get_partition_constraintdef(c.oid), 'true') || ')'
FROM pg_class AS c WHERE c.oid = ANY (%(oids)s::oid[])

-- name: below
-- A table and what is below it.
WITH RECURSIVE t (relid) AS (
    SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(name)s
    UNION ALL
    SELECT i.inhrelid FROM t JOIN pg_inherits AS i ON i.inhparent = t.relid
)
SELECT n.nspname::text, c.relname::text
FROM t JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace

-- name: columns
SELECT coalesce(array_agg(DISTINCT a.attname::text) FILTER (WHERE a.attname IS NOT NULL), ARRAY[]::text[]),
       coalesce(bool_or(k.attnum = 0), false)
FROM pg_partition_tree(%(oid)s::oid::regclass) AS t
JOIN pg_partitioned_table AS p ON p.partrelid = t.relid
CROSS JOIN LATERAL unnest(p.partattrs::int2[]) AS k (attnum)
LEFT JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = k.attnum AND k.attnum > 0

-- name: old_snapshots
-- Transactions that may read with a snapshot taken before now. A session that is idle and shows no xmin holds
-- none; where that is not shown to us, it may hold one. Ours read no partition of a target in an old
-- snapshot, but for an extract whose source it is.
SELECT l.virtualtransaction AS number, a.pid, a.usename::text AS "user", a.application_name AS application,
       a.state, extract(epoch FROM clock_timestamp() - a.xact_start)::float AS age_s
FROM (SELECT DISTINCT virtualtransaction, pid FROM pg_locks WHERE pid IS NOT NULL AND locktype = 'virtualxid') AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.pid <> pg_backend_pid()
  AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND a.usesysid IS NOT NULL
  AND NOT coalesce(a.state LIKE 'idle in transaction%%' AND a.backend_xmin IS NULL, false)
  AND NOT (a.usename = current_user AND a.application_name LIKE 'etl:%%'
           AND NOT EXISTS (SELECT FROM pg_locks AS held
                           WHERE held.pid = l.pid AND held.locktype = 'relation' AND held.relation = ANY (%(oids)s::oid[]))
           AND (a.application_name NOT LIKE '%% extract%%'
                OR coalesce(a.xact_start < clock_timestamp() - interval '1 min', false)))
ORDER BY age_s DESC NULLS LAST

-- name: filled_from_staging
SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind = 'r' AND NOT c.relispartition
  AND left(c.relname, length(%(prefix)s)) = %(prefix)s AND substr(c.relname, length(%(prefix)s) + 1) ~ '^[0-9]+$'
ORDER BY 1

-- name: standbys
SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')
