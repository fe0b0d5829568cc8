-- name: target
-- "is_plain": nothing of the target's own runs when a row is written, and no row is in another's way unless it has
-- the same key. "has_policies": row security says which rows are written. "returns": a statement may tell what it wrote.
-- "always" are identity columns that no UPDATE may write, "rows" what the server has counted.
WITH tree AS (
    SELECT relid FROM pg_partition_tree(%(oid)s::oid::regclass) UNION SELECT %(oid)s::oid::regclass
)
SELECT NOT row_security_active(%(oid)s::oid)
       AND NOT EXISTS (SELECT FROM pg_trigger AS g JOIN tree AS t ON t.relid = g.tgrelid
                       WHERE NOT g.tgisinternal AND g.tgenabled <> 'D')
       AND NOT EXISTS (SELECT FROM pg_class AS c JOIN tree AS t ON t.relid = c.oid
                       WHERE c.relkind NOT IN ('r', 'p') OR c.relhasrules)
       AND NOT EXISTS (SELECT FROM pg_index AS i JOIN tree AS t ON t.relid = i.indrelid
                       WHERE i.indisexclusion
                          OR i.indisunique AND NOT %(keys)s::text[] <@ ARRAY(
                              SELECT a.attname::text FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS k (attnum)
                              JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum)) AS is_plain,
       row_security_active(%(oid)s::oid) AS has_policies,
       NOT row_security_active(%(oid)s::oid)
       AND NOT EXISTS (SELECT FROM pg_class AS c JOIN tree AS t ON t.relid = c.oid WHERE c.relhasrules) AS returns,
       ARRAY(SELECT a.attname::text FROM pg_attribute AS a
             WHERE a.attrelid = %(oid)s AND a.attidentity = 'a') AS always,
       (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint
        FROM pg_class AS c JOIN tree AS t ON t.relid = c.oid WHERE c.relkind <> 'p') AS rows

-- name: indexes
-- The columns, in their order, of each index by which a row is found that has the same values; an expression, or a
-- column that goes by another equality than its own, is NULL.
SELECT ARRAY(SELECT CASE WHEN o.opcdefault AND coalesce(k.collation_oid, 0) = a.attcollation THEN a.attname::text END
             FROM unnest(i.indkey::int2[], i.indcollation::oid[], i.indclass::oid[]) WITH ORDINALITY
                 AS k (attnum, collation_oid, opclass, place)
             LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
             LEFT JOIN pg_opclass AS o ON o.oid = k.opclass
             WHERE k.place <= i.indnkeyatts
             ORDER BY k.place)
FROM pg_index AS i JOIN pg_class AS ci ON ci.oid = i.indexrelid JOIN pg_am AS am ON am.oid = ci.relam
WHERE i.indrelid = %(oid)s AND i.indisvalid AND i.indpred IS NULL AND am.amname IN ('btree', 'hash')

-- name: references
-- Foreign keys that refer to the target, or to a part of it: by "columns", which are unique in the whole target or
-- not. "follows": whatever refers to a row that is deleted is deleted or changed too.
WITH tree AS (
    SELECT relid FROM pg_partition_tree(%(oid)s::oid::regclass) UNION SELECT %(oid)s::oid::regclass
)
SELECT con.conrelid::regclass::text AS name,
       ARRAY(SELECT a.attname::text FROM unnest(con.confkey) WITH ORDINALITY AS k (attnum, place)
             JOIN pg_attribute AS a ON a.attrelid = con.confrelid AND a.attnum = k.attnum ORDER BY k.place) AS columns,
       con.confrelid = %(oid)s::oid AS is_whole,
       con.confdeltype IN ('c', 'n', 'd') AS follows
FROM pg_constraint AS con JOIN tree AS t ON t.relid = con.confrelid
WHERE con.contype = 'f' AND con.conparentid = 0
ORDER BY con.confrelid <> %(oid)s::oid, 1, 2
