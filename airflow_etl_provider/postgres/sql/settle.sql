-- name: column_facts
SELECT a.attidentity <> '' AS identity,
       pg_get_expr(d.adbin, d.adrelid) AS default_expression,
       coalesce(s.seqcache, 1) = 1 AND coalesce(s.seqincrement, 1) > 0 AS sequence_in_order,
       EXISTS (SELECT FROM pg_subscription_rel AS r WHERE r.srrelid = ANY (%(relations)s::oid[])) AS replicated,
       pg_is_in_recovery() AS standby,
       c.relkind IN ('r', 'p') AS is_table
FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_depend AS dep ON dep.refclassid = 'pg_class'::regclass AND dep.refobjid = a.attrelid
                          AND dep.refobjsubid = a.attnum AND dep.classid = 'pg_class'::regclass
                          AND dep.deptype IN ('a', 'i')
LEFT JOIN pg_sequence AS s ON s.seqrelid = dep.objid
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s AND NOT a.attisdropped
LIMIT 1

-- name: sequence_of_default
SELECT s.seqcache = 1 AND s.seqincrement > 0
FROM pg_attrdef AS d
JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
JOIN pg_depend AS dep ON dep.classid = 'pg_attrdef'::regclass AND dep.objid = d.oid
                     AND dep.refclassid = 'pg_class'::regclass
JOIN pg_sequence AS s ON s.seqrelid = dep.refobjid
WHERE d.adrelid = %(oid)s AND a.attname = %(column)s

-- name: sees_others
SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')

-- name: started
SELECT pg_postmaster_start_time()::text

-- name: open_transactions
-- Every transaction of this database that could still write, prepared ones included. pg_locks is readable
-- by everybody; from version 14 a prepared transaction keeps its virtual number there, with pid NULL.
SELECT l.virtualtransaction AS number,
       l.pid,
       a.usename::text AS "user",
       a.application_name AS application,
       a.state,
       a.xact_start,
       extract(epoch FROM clock_timestamp() - a.xact_start)::float AS age_s,
       NULL::text AS prepared
FROM (SELECT DISTINCT virtualtransaction, pid FROM pg_locks WHERE pid IS NOT NULL AND locktype = 'virtualxid') AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.pid <> pg_backend_pid()
  AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND a.usesysid IS NOT NULL
  AND NOT (a.usename = ANY (%(ignore)s))
  -- Our extracts only read here; what publishes may write into the table.
  AND NOT (a.usename = current_user AND a.application_name LIKE 'etl:%% extract%%')
UNION ALL
SELECT DISTINCT l.virtualtransaction, NULL::int, p.owner::text, NULL, 'prepared', NULL::timestamptz,
       extract(epoch FROM clock_timestamp() - p.prepared)::float, p.gid
FROM pg_locks AS l
JOIN pg_prepared_xacts AS p ON l.locktype = 'transactionid' AND l.transactionid = p.transaction
WHERE l.pid IS NULL AND p.database = current_database()
  AND (%(relations)s::oid[] IS NULL OR EXISTS (
       SELECT FROM pg_locks AS held
       WHERE held.pid IS NULL AND held.virtualtransaction = l.virtualtransaction AND held.locktype = 'relation'
         AND held.relation = ANY (%(relations)s::oid[])
         AND held.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
                           'ExclusiveLock', 'AccessExclusiveLock')))

-- name: relations_of
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION ALL
    SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON tree.oid = i.inhparent
)
SELECT array_agg(oid) FROM tree
