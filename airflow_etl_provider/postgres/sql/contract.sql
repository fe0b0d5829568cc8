-- name: collation
-- Of a column, where it is not that of its type.
SELECT CASE WHEN a.attcollation <> t.typcollation THEN a.attcollation::regcollation::text END
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s

-- name: widening_obstacles
-- What PostgreSQL would look through or build under the lock of ALTER COLUMN TYPE, and what forbids it, on the
-- table and all that inherit from it. An index of a plain table is kept as it is; one that belongs to an index of a
-- partitioned table is built anew, and so is one with an expression or a condition.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION ALL
    SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON tree.oid = i.inhparent
), columns AS (
    SELECT a.attrelid, a.attnum FROM pg_attribute AS a JOIN tree ON tree.oid = a.attrelid
    WHERE a.attname = %(column)s AND NOT a.attisdropped
), dependent AS (
    SELECT d.classid, d.objid, d.objsubid, c.attrelid, c.attnum
    FROM columns AS c
    JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.attrelid AND d.refobjsubid = c.attnum
)
SELECT format('index %%s would be built anew', i.indexrelid::regclass) AS obstacle, false AS for_good, false AS forbids
FROM columns AS c JOIN pg_index AS i ON i.indrelid = c.attrelid JOIN pg_class AS ci ON ci.oid = i.indexrelid
WHERE ci.relkind = 'i'
  AND (c.attnum = ANY (i.indkey::int2[])
       OR EXISTS (SELECT FROM dependent AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid))
  AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
       OR EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = i.indexrelid))
UNION
SELECT format('%%s would have its table looked through', pg_describe_object(d.classid, d.objid, 0)), false, false
FROM dependent AS d JOIN pg_constraint AS con ON d.classid = 'pg_constraint'::regclass AND con.oid = d.objid
JOIN pg_class AS t ON t.oid = con.conrelid
WHERE con.contype = 'c' AND t.relkind <> 'p'
UNION
SELECT format('generated column %%I of table %%s depends on it', a.attname, a.attrelid::regclass), false, true
FROM dependent AS d
JOIN pg_attrdef AS def ON d.classid = 'pg_attrdef'::regclass AND def.oid = d.objid
JOIN pg_attribute AS a ON a.attrelid = def.adrelid AND a.attnum = def.adnum
WHERE (a.attrelid, a.attnum) <> (d.attrelid, d.attnum)
UNION
SELECT format('%%s %%s shows it', CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END, v.oid::regclass),
       false, true
FROM dependent AS d
JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class AS v ON v.oid = r.ev_class
UNION
SELECT format('%%s depends on it', pg_describe_object(d.classid, d.objid, d.objsubid)), false, true
FROM dependent AS d
WHERE d.classid IN ('pg_trigger'::regclass, 'pg_policy'::regclass, 'pg_proc'::regclass, 'pg_publication_rel'::regclass)
UNION
SELECT format('%%s is partitioned by it', p.partrelid::regclass), true, true
FROM columns AS c JOIN pg_partitioned_table AS p ON p.partrelid = c.attrelid
WHERE c.attnum = ANY (p.partattrs::int2[])
   OR EXISTS (SELECT FROM dependent AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = p.partrelid)
ORDER BY 1

-- name: conversion
-- How ALTER COLUMN TYPE has to be told to make values of the new type; NULL where it knows by itself. Of times without a
-- zone it must be said in which one they are.
SELECT CASE WHEN a.atttypid <> t AND a.atttypid IN ('timestamp'::regtype, 'timestamptz'::regtype)
                 AND t IN ('timestamp'::regtype, 'timestamptz'::regtype)
            THEN format('%%I AT TIME ZONE ''UTC''', a.attname)
            WHEN new.typcategory = 'S' OR t = a.atttypid OR c.castcontext <> 'e' THEN NULL
            WHEN own.typcategory = 'S' OR c.castcontext = 'e' THEN format('%%I::%%s', a.attname, %(type)s::text)
            -- There is no cast.
            ELSE '...' END
FROM pg_attribute AS a
JOIN pg_type AS own ON own.oid = a.atttypid
CROSS JOIN LATERAL (SELECT to_regtype(%(type)s)::oid AS t) AS wanted
JOIN pg_type AS new ON new.oid = t
LEFT JOIN pg_cast AS c ON c.castsource = a.atttypid AND c.casttarget = t
WHERE a.attrelid = %(oid)s AND a.attname = %(column)s
