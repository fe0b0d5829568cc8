-- What a partition has of its own, beyond its parent, as statements for the table that takes its place, or stands
-- beside it as a new sibling (of_sibling).
-- The server writes the statements, so that every name in them is quoted as it must be.

-- name: before_attach
-- On the future partition, under its working name. What a CHECK says of the columns that the parent is partitioned by,
-- or of one sibling alone, is not said of another one.
SELECT format('ALTER TABLE %%s SET (%%s)', %(new)s::text, string_agg(o, ', '))
FROM pg_class AS c, unnest(c.reloptions) AS o
WHERE c.oid = %(old)s AND o NOT LIKE 'autovacuum_enabled=%%' HAVING count(*) > 0
UNION ALL
SELECT format('ALTER TABLE %%s SET TABLESPACE %%I', %(new)s::text, coalesce(t.spcname, base.spcname))
FROM pg_class AS c
JOIN pg_class AS p ON p.oid = %(parent)s
JOIN pg_class AS n ON n.oid = to_regclass(%(new)s)
JOIN pg_database AS d ON d.datname = current_database()
JOIN pg_tablespace AS base ON base.oid = d.dattablespace
LEFT JOIN pg_tablespace AS t ON t.oid = c.reltablespace
WHERE c.oid = %(old)s AND c.reltablespace <> n.reltablespace AND NOT (%(of_sibling)s AND p.reltablespace <> 0)
UNION ALL
SELECT format('ALTER TABLE %%s ALTER COLUMN %%I %%s', %(new)s::text, a.attname, setting)
FROM pg_attribute AS a
JOIN pg_attribute AS pa ON pa.attrelid = %(parent)s AND pa.attname = a.attname
CROSS JOIN LATERAL unnest(ARRAY[
    CASE WHEN a.attstattarget >= 0 THEN format('SET STATISTICS %%s', a.attstattarget) END,
    CASE WHEN a.attoptions IS NOT NULL THEN format('SET (%%s)', array_to_string(a.attoptions, ', ')) END,
    CASE WHEN a.attstorage <> pa.attstorage
         THEN 'SET STORAGE ' || CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
                                                  ELSE 'EXTENDED' END END,
    CASE WHEN a.attcompression <> pa.attcompression
         THEN 'SET COMPRESSION ' || CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4'
                                                          ELSE 'default' END END
]) AS setting
WHERE a.attrelid = %(old)s AND a.attnum > 0 AND NOT a.attisdropped AND setting IS NOT NULL
UNION ALL
SELECT format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', %(new)s::text, con.conname, pg_get_constraintdef(con.oid))
FROM pg_constraint AS con
WHERE con.conrelid = %(old)s AND con.contype = 'c' AND con.conislocal AND con.coninhcount = 0
  AND con.conname <> 'etl_partition_bound'
  AND NOT (%(of_sibling)s AND (
      EXISTS (SELECT FROM pg_attribute AS a
              JOIN pg_attribute AS pa ON pa.attname = a.attname
              JOIN pg_partitioned_table AS p ON p.partrelid = pa.attrelid AND pa.attnum = ANY (p.partattrs::int2[])
              WHERE a.attrelid = con.conrelid AND a.attnum = ANY (con.conkey) AND pa.attrelid = %(parent)s)
      OR EXISTS (SELECT FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid AND c.relkind = 'r'
                 WHERE i.inhparent = %(parent)s
                   AND NOT EXISTS (SELECT FROM pg_constraint AS other
                                   WHERE other.conrelid = i.inhrelid AND other.contype = 'c'
                                     AND pg_get_constraintdef(other.oid) = pg_get_constraintdef(con.oid)))))
UNION ALL
SELECT format('ALTER TABLE %%s ALTER COLUMN %%I SET DEFAULT %%s', %(new)s::text, a.attname,
              pg_get_expr(d.adbin, d.adrelid))
FROM pg_attrdef AS d
JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum AND a.attgenerated = ''
LEFT JOIN pg_attribute AS pa ON pa.attrelid = %(parent)s AND pa.attname = a.attname
LEFT JOIN pg_attrdef AS pd ON pd.adrelid = pa.attrelid AND pd.adnum = pa.attnum
WHERE d.adrelid = %(old)s
  AND pg_get_expr(d.adbin, d.adrelid) IS DISTINCT FROM pg_get_expr(pd.adbin, pd.adrelid)
UNION ALL
SELECT format('ALTER TABLE %%s REPLICA IDENTITY %%s', %(new)s::text,
              CASE c.relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)
FROM pg_class AS c WHERE c.oid = %(old)s AND c.relreplident IN ('f', 'n')

-- name: after_attach
-- On the partition under its final name, which the definitions of the old one mention. From a sibling come its grants.
SELECT s FROM (
    SELECT 1 AS place, format('COMMENT ON TABLE %%s IS %%s', %(final)s::text,
           coalesce(quote_literal(obj_description(%(old)s, 'pg_class')), 'NULL')) AS s
    UNION ALL
    SELECT 2, format('ALTER TABLE %%s OWNER TO %%I', %(final)s::text, pg_get_userbyid(c.relowner))
    FROM pg_class AS c WHERE c.oid = %(old)s AND pg_get_userbyid(c.relowner) <> current_user
    UNION ALL
    SELECT 3, format('GRANT %%s ON %%s TO %%s%%s', a.privilege_type, %(final)s::text,
           CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
           CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM pg_class AS c, aclexplode(c.relacl) AS a
    WHERE c.oid = %(old)s AND a.grantee <> c.relowner
    UNION ALL
    SELECT 4, format('GRANT %%s (%%I) ON %%s TO %%s', a.privilege_type, att.attname, %(final)s::text,
           CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
    FROM pg_attribute AS att, aclexplode(att.attacl) AS a
    WHERE att.attrelid = %(old)s AND att.attnum > 0 AND NOT att.attisdropped
    UNION ALL
    SELECT 5, pg_get_triggerdef(t.oid)
    FROM pg_trigger AS t WHERE t.tgrelid = %(old)s AND NOT t.tgisinternal AND t.tgparentid = 0
    UNION ALL
    SELECT 6, format('ALTER TABLE %%s %%s TRIGGER %%I', %(final)s::text,
           CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, t.tgname)
    FROM pg_trigger AS t
    WHERE t.tgrelid = %(old)s AND NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled <> 'O'
) AS statements
WHERE NOT %(of_sibling)s OR place IN (3, 4)
ORDER BY place

-- name: tablespace
-- Where the table is kept, unless that is the database's own tablespace.
SELECT t.spcname::text FROM pg_class AS c JOIN pg_tablespace AS t ON t.oid = c.reltablespace WHERE c.oid = %(oid)s

-- name: foreign_keys
-- Those of the table and those it has from its parent; not the rows that stand for partitions of what is referenced.
SELECT con.conname::text AS name, regexp_replace(pg_get_constraintdef(con.oid), ' NOT VALID$', '') AS definition
FROM pg_constraint AS con
WHERE con.conrelid = %(oid)s AND con.contype = 'f'
  AND NOT EXISTS (SELECT FROM pg_constraint AS of WHERE of.oid = con.conparentid AND of.conrelid = con.conrelid)
ORDER BY con.conname

-- name: indexes_of
SELECT ci.relname::text, EXISTS (SELECT FROM pg_constraint AS con WHERE con.conindid = i.indexrelid
                                  AND con.conrelid = i.indrelid AND con.contype IN ('p', 'u', 'x'))
FROM pg_index AS i
JOIN pg_class AS ci ON ci.oid = i.indexrelid
JOIN pg_class AS c ON c.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
ORDER BY 1

-- name: problems
-- What cannot follow, with the name of the thing.
SELECT DISTINCT format('%%s %%s shows partition %%s by name and would go on showing the replaced rows',
              CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END, v.oid::regclass, d.refobjid::regclass)
FROM pg_depend AS d
JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class AS v ON v.oid = r.ev_class
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(old)s AND v.oid <> %(old)s
UNION ALL
SELECT format('partition %%s has row security of its own', c.oid::regclass)
FROM pg_class AS c
WHERE c.oid = %(old)s AND (c.relrowsecurity OR EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid))
UNION ALL
SELECT format('%%s references partition %%s by foreign key', con.conrelid::regclass, con.confrelid::regclass)
FROM pg_constraint AS con
WHERE con.confrelid = %(old)s AND con.contype = 'f' AND con.conparentid = 0

-- name: statistics_of
-- What CREATE STATISTICS says between the name and FROM is the definition.
SELECT n.nspname::text AS schema, x.stxname::text AS name,
       substr(left(made.by, -length(' FROM ' || x.stxrelid::regclass::text)),
              length(format('CREATE STATISTICS %%I.%%I', n.nspname, x.stxname)) + 1) AS definition,
       CASE WHEN x.stxstattarget >= 0 THEN x.stxstattarget END AS target,
       obj_description(x.oid, 'pg_statistic_ext') AS comment
FROM pg_statistic_ext AS x
JOIN pg_namespace AS n ON n.oid = x.stxnamespace
CROSS JOIN LATERAL (SELECT pg_get_statisticsobjdef(x.oid) AS by) AS made
WHERE x.stxrelid = %(oid)s
ORDER BY n.nspname, x.stxname

-- name: statistics_there
SELECT n.nspname::text, x.stxname::text
FROM pg_statistic_ext AS x JOIN pg_namespace AS n ON n.oid = x.stxnamespace
WHERE x.stxrelid = to_regclass(%(table)s)

-- name: taken_statistics_names
SELECT x.stxname::text FROM pg_statistic_ext AS x JOIN pg_namespace AS n ON n.oid = x.stxnamespace
WHERE n.nspname = %(schema)s AND x.stxname = ANY (%(names)s)

-- name: own_indexes
SELECT i.indexrelid::bigint AS oid,
       ci.relname::text AS name,
       substr(pg_get_indexdef(i.indexrelid),
              length(format('CREATE %%sINDEX %%I ON %%I.%%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END,
                            ci.relname, n.nspname, c.relname)) + 1) AS definition,
       i.indisunique AS is_unique,
       con.contype::text AS constraint_type,
       pg_get_constraintdef(con.oid) AS constraint_definition,
       i.indisreplident AS is_replica_identity,
       ARRAY(SELECT a.attname::text FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS k (attnum)
             LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum) AS columns
FROM pg_index AS i
JOIN pg_class AS ci ON ci.oid = i.indexrelid
JOIN pg_class AS c ON c.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint AS con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid
                              AND con.contype IN ('p', 'u', 'x')
WHERE i.indrelid = %(old)s AND i.indisvalid
  AND NOT EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = i.indexrelid)
ORDER BY ci.relname

-- name: taken_names
SELECT c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(names)s)
  AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indexrelid = c.oid AND i.indrelid = %(old)s)

-- name: identity_defaults
-- Until it is attached, a table draws the identity values that a batch does not bring from the target's sequence.
SELECT format('ALTER TABLE %%s ALTER COLUMN %%I SET DEFAULT nextval(%%L::regclass)', %(new)s::text, a.attname,
              pg_get_serial_sequence(a.attrelid::regclass::text, a.attname)),
       format('ALTER TABLE %%s ALTER COLUMN %%I DROP DEFAULT', %(new)s::text, a.attname)
FROM pg_attribute AS a
WHERE a.attrelid = %(target)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attidentity <> ''
  AND a.attname <> ALL (%(given)s)
