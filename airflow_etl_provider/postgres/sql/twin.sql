-- What a partition has of its own, beyond its parent, as statements for the table that takes its place, or stands
-- beside it as a new sibling (of_sibling).
-- The server writes the statements, so that every name in them is quoted as it must be.

-- name: storage
-- What governs how rows are stored, where it is otherwise than with "has": that is the table itself, or the parent as
-- long as there is only what LIKE will take from it; it is made in its tablespace.
WITH options AS (
    SELECT c.oid, o.setting, split_part(o.setting, '=', 1) AS name
    FROM pg_class AS c
    LEFT JOIN pg_class AS t ON t.oid = c.reltoastrelid
    CROSS JOIN LATERAL (SELECT unnest(c.reloptions) UNION ALL SELECT 'toast.' || unnest(t.reloptions)) AS o (setting)
    WHERE c.oid IN (%(old)s, %(has)s) AND o.setting !~ '^(toast\.)?autovacuum_enabled='
)
SELECT format('ALTER TABLE %%s RESET (%%s)', %(new)s::text, string_agg(o.name, ', '))
FROM options AS o
WHERE o.oid = %(has)s AND o.name NOT IN (SELECT wanted.name FROM options AS wanted WHERE wanted.oid = %(old)s)
HAVING count(*) > 0
UNION ALL
SELECT format('ALTER TABLE %%s SET (%%s)', %(new)s::text, string_agg(o.setting, ', '))
FROM options AS o
WHERE o.oid = %(old)s AND o.setting NOT IN (SELECT there.setting FROM options AS there WHERE there.oid = %(has)s)
HAVING count(*) > 0
UNION ALL
SELECT format('ALTER TABLE %%s SET TABLESPACE %%I', %(new)s::text, coalesce(t.spcname, base.spcname))
FROM pg_class AS c
JOIN pg_class AS p ON p.oid = %(parent)s
JOIN pg_class AS n ON n.oid = %(has)s AND n.oid <> p.oid
JOIN pg_database AS d ON d.datname = current_database()
JOIN pg_tablespace AS base ON base.oid = d.dattablespace
LEFT JOIN pg_tablespace AS t ON t.oid = c.reltablespace
WHERE c.oid = %(old)s AND c.reltablespace <> n.reltablespace AND NOT (%(of_sibling)s AND p.reltablespace <> 0)
UNION ALL
SELECT format('ALTER TABLE %%s %%s', %(new)s::text,
              string_agg(format('ALTER COLUMN %%I %%s', a.attname, setting), ', ' ORDER BY a.attnum, setting))
FROM pg_attribute AS a
JOIN pg_attribute AS h ON h.attrelid = %(has)s AND h.attname = a.attname
CROSS JOIN LATERAL unnest(ARRAY[
    CASE WHEN a.attstorage <> h.attstorage
         THEN 'SET STORAGE ' || CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
                                                  ELSE 'EXTENDED' END END,
    CASE WHEN a.attcompression <> h.attcompression
         THEN 'SET COMPRESSION ' || CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4'
                                                          ELSE 'default' END END
]) AS setting
WHERE a.attrelid = %(old)s AND a.attnum > 0 AND NOT a.attisdropped AND setting IS NOT NULL
HAVING count(*) > 0

-- name: before_attach
-- On the future partition, under its working name. What a CHECK says of the columns that the parent is partitioned by,
-- or of one sibling alone, is not said of another one; neither is a NOT NULL.
SELECT format('ALTER TABLE %%s ALTER COLUMN %%I %%s', %(new)s::text, a.attname, setting)
FROM pg_attribute AS a
JOIN pg_attribute AS pa ON pa.attrelid = %(parent)s AND pa.attname = a.attname
CROSS JOIN LATERAL unnest(ARRAY[
    CASE WHEN a.attstattarget >= 0 THEN format('SET STATISTICS %%s', a.attstattarget) END,
    CASE WHEN a.attoptions IS NOT NULL THEN format('SET (%%s)', array_to_string(a.attoptions, ', ')) END
]) AS setting
WHERE a.attrelid = %(old)s AND a.attnum > 0 AND NOT a.attisdropped AND setting IS NOT NULL
UNION ALL
SELECT format('COMMENT ON COLUMN %%s.%%I IS %%s', %(new)s::text, a.attname,
              coalesce(quote_literal(col_description(a.attrelid, a.attnum)), 'NULL'))
FROM pg_attribute AS a
JOIN pg_attribute AS pa ON pa.attrelid = %(parent)s AND pa.attname = a.attname
WHERE a.attrelid = %(old)s AND a.attnum > 0 AND NOT a.attisdropped AND NOT %(of_sibling)s
  AND col_description(a.attrelid, a.attnum) IS DISTINCT FROM col_description(pa.attrelid, pa.attnum)
UNION ALL
-- Since 18 a NOT NULL is a constraint with a name.
SELECT format('ALTER TABLE %%s %%s', %(new)s::text,
              CASE WHEN con.oid IS NULL THEN format('ALTER COLUMN %%I SET NOT NULL', a.attname)
                   ELSE format('ADD CONSTRAINT %%I %%s', con.conname, pg_get_constraintdef(con.oid)) END)
FROM pg_attribute AS a
JOIN pg_attribute AS pa ON pa.attrelid = %(parent)s AND pa.attname = a.attname AND NOT pa.attnotnull
LEFT JOIN pg_constraint AS con ON con.conrelid = a.attrelid AND con.contype = 'n' AND con.conkey = ARRAY[a.attnum]
WHERE a.attrelid = %(old)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull
  AND NOT (%(of_sibling)s
           AND EXISTS (SELECT FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid AND c.relkind = 'r'
                       JOIN pg_attribute AS other ON other.attrelid = i.inhrelid AND other.attname = a.attname
                       WHERE i.inhparent = %(parent)s AND NOT other.attnotnull))
UNION ALL
SELECT format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', %(new)s::text, con.conname,
              CASE WHEN %(of_sibling)s THEN regexp_replace(pg_get_constraintdef(con.oid), ' NOT VALID$', '')
                   ELSE pg_get_constraintdef(con.oid) END)
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
SELECT format('ALTER TABLE %%s ALTER COLUMN %%I %%s', %(new)s::text, a.attname,
              CASE WHEN d.oid IS NULL THEN 'DROP DEFAULT'
                   ELSE format('SET DEFAULT %%s', pg_get_expr(d.adbin, d.adrelid)) END)
FROM pg_attribute AS a
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_attribute AS pa ON pa.attrelid = %(parent)s AND pa.attname = a.attname
LEFT JOIN pg_attrdef AS pd ON pd.adrelid = pa.attrelid AND pd.adnum = pa.attnum
WHERE a.attrelid = %(old)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
  AND pg_get_expr(d.adbin, d.adrelid) IS DISTINCT FROM pg_get_expr(pd.adbin, pd.adrelid)
UNION ALL
SELECT format('ALTER TABLE %%s REPLICA IDENTITY %%s', %(new)s::text,
              CASE c.relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)
FROM pg_class AS c WHERE c.oid = %(old)s AND c.relreplident IN ('f', 'n')

-- name: after_attach
-- On the partition under its final name, which the definitions of the old one mention. From a sibling come its grants,
-- and whether autovacuum looks after it. Grants come last: the owner may have taken from itself what the rest needs.
WITH model AS (
    SELECT c.*, CASE WHEN %(of_sibling)s THEN p.relowner ELSE c.relowner END AS owner
    FROM pg_class AS c JOIN pg_class AS p ON p.oid = %(parent)s WHERE c.oid = %(old)s
), given AS (
    -- To whom a new table is open before anybody says so.
    SELECT DISTINCT a.grantee
    FROM (SELECT c.relacl FROM pg_class AS c WHERE c.oid = to_regclass(%(new)s)
          UNION ALL
          SELECT d.defaclacl
          FROM pg_default_acl AS d
          JOIN pg_roles AS r ON r.oid = d.defaclrole AND r.rolname = current_user
          LEFT JOIN pg_namespace AS n ON n.oid = d.defaclnamespace
          WHERE d.defaclobjtype = 'r' AND (d.defaclnamespace = 0 OR n.nspname = %(schema)s)) AS acls (acl),
         aclexplode(acls.acl) AS a
), grants AS (
    SELECT CASE a.grantee WHEN m.relowner THEN m.owner ELSE a.grantee END AS grantee, a.is_grantable,
           string_agg(DISTINCT a.privilege_type, ', ') AS privileges, min(a.number) AS number
    FROM model AS m,
         aclexplode(coalesce(m.relacl, acldefault('r', m.relowner))) WITH ORDINALITY
             AS a (grantor, grantee, privilege_type, is_grantable, number)
    WHERE m.relacl IS NOT NULL OR EXISTS (SELECT FROM given)
    GROUP BY 1, 2
), named (oid, name) AS (
    SELECT oid, quote_ident(rolname) FROM pg_roles UNION ALL SELECT 0, 'PUBLIC'
)
SELECT s FROM (
    SELECT 1 AS place, 0::bigint AS number, format('COMMENT ON TABLE %%s IS %%s', %(final)s::text,
           coalesce(quote_literal(obj_description(%(old)s, 'pg_class')), 'NULL')) AS s
    UNION ALL
    SELECT 2, 0, format('ALTER TABLE %%s OWNER TO %%I', %(final)s::text, pg_get_userbyid(c.relowner))
    FROM pg_class AS c WHERE c.oid = %(old)s AND pg_get_userbyid(c.relowner) <> current_user
    UNION ALL
    SELECT 3, 0, format('ALTER TABLE %%s SET (%%s)', %(final)s::text, string_agg(o.setting, ', '))
    FROM (SELECT unnest(m.reloptions) FROM model AS m
          UNION ALL
          SELECT 'toast.' || unnest(t.reloptions) FROM model AS m JOIN pg_class AS t ON t.oid = m.reltoastrelid)
        AS o (setting)
    WHERE o.setting ~ '^(toast\.)?autovacuum_enabled=' HAVING count(*) > 0
    UNION ALL
    SELECT 4, 0, pg_get_triggerdef(t.oid)
    FROM pg_trigger AS t WHERE t.tgrelid = %(old)s AND NOT t.tgisinternal AND t.tgparentid = 0
    UNION ALL
    -- Those that ATTACH makes are enabled as the parent's are.
    SELECT 5, 0, format('ALTER TABLE %%s %%s TRIGGER %%I', %(final)s::text,
           CASE t.tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' WHEN 'A' THEN 'ENABLE ALWAYS'
                            ELSE 'ENABLE' END, t.tgname)
    FROM pg_trigger AS t LEFT JOIN pg_trigger AS p ON p.oid = t.tgparentid
    WHERE t.tgrelid = %(old)s AND NOT t.tgisinternal AND t.tgenabled <> coalesce(p.tgenabled, 'O')
    UNION ALL
    SELECT 6, 0, rtrim(pg_get_ruledef(r.oid), ';') FROM pg_rewrite AS r WHERE r.ev_class = %(old)s
    UNION ALL
    SELECT 7, 0, format('ALTER TABLE %%s %%s RULE %%I', %(final)s::text,
           CASE r.ev_enabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, r.rulename)
    FROM pg_rewrite AS r WHERE r.ev_class = %(old)s AND r.ev_enabled <> 'O'
    UNION ALL
    SELECT 8, 0, format('COMMENT ON %%s %%I ON %%s IS %%L', about.kind, about.name, %(final)s::text, about.text)
    FROM (SELECT 'TRIGGER' AS kind, t.tgname AS name, obj_description(t.oid, 'pg_trigger') AS text
          FROM pg_trigger AS t WHERE t.tgrelid = %(old)s AND NOT t.tgisinternal
          UNION ALL
          SELECT 'RULE', r.rulename, obj_description(r.oid, 'pg_rewrite') FROM pg_rewrite AS r WHERE r.ev_class = %(old)s
          UNION ALL
          -- A NOT NULL of the parent has a name that is not the partition's.
          SELECT 'CONSTRAINT', con.conname, obj_description(con.oid, 'pg_constraint')
          FROM pg_constraint AS con
          WHERE con.conrelid = %(old)s AND con.contype <> 't' AND (con.contype <> 'n' OR con.coninhcount = 0)) AS about
    WHERE about.text IS NOT NULL
    UNION ALL
    -- What LIKE has copied from the parent.
    SELECT 8, 0, format('COMMENT ON CONSTRAINT %%I ON %%s IS NULL', con.conname, %(final)s::text)
    FROM pg_constraint AS con JOIN pg_constraint AS p ON p.conrelid = %(parent)s AND p.conname = con.conname
    WHERE con.conrelid = %(old)s AND con.contype = 'c' AND p.contype = 'c'
      AND obj_description(con.oid, 'pg_constraint') IS NULL AND obj_description(p.oid, 'pg_constraint') IS NOT NULL
    UNION ALL
    SELECT 9, 0, format('REVOKE ALL ON %%s FROM %%s', %(final)s::text, string_agg(n.name, ', '))
    FROM named AS n
    WHERE EXISTS (SELECT FROM grants)
      AND (n.oid IN (SELECT g.grantee FROM given AS g) OR n.oid = (SELECT m.owner FROM model AS m))
    HAVING count(*) > 0
    UNION ALL
    SELECT 10, g.number, format('GRANT %%s ON %%s TO %%s%%s', g.privileges, %(final)s::text, n.name,
           CASE WHEN g.is_grantable THEN ' WITH GRANT OPTION' END)
    FROM grants AS g JOIN named AS n ON n.oid = g.grantee
    UNION ALL
    SELECT 11, 0, format('GRANT %%s (%%I) ON %%s TO %%s%%s', a.privilege_type, att.attname, %(final)s::text, n.name,
           CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
    FROM pg_attribute AS att, aclexplode(att.attacl) AS a JOIN named AS n ON n.oid = a.grantee
    WHERE att.attrelid = %(old)s AND att.attnum > 0 AND NOT att.attisdropped
) AS statements
WHERE NOT %(of_sibling)s OR place IN (3, 9, 10, 11)
ORDER BY place, number

-- name: grants_of_schema
-- What tables made in the schema are open to by default, beside what every table of the role is.
SELECT format('GRANT %%s ON %%s TO %%s%%s', string_agg(a.privilege_type, ', '), %(final)s::text,
              CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' END)
FROM pg_default_acl AS d
JOIN pg_roles AS r ON r.oid = d.defaclrole AND r.rolname = current_user
JOIN pg_namespace AS n ON n.oid = d.defaclnamespace,
     aclexplode(d.defaclacl) AS a
WHERE d.defaclobjtype = 'r' AND n.nspname = %(schema)s
GROUP BY a.grantee, a.is_grantable
ORDER BY 1

-- name: tablespace
-- Where the table is kept, unless that is the database's own tablespace.
SELECT t.spcname::text FROM pg_class AS c JOIN pg_tablespace AS t ON t.oid = c.reltablespace WHERE c.oid = %(oid)s

-- name: tablespace_like
-- Where a table is to be kept that is made like "old"; where the parent says a tablespace, new ones go there. By name
-- also the database's own, since a role may have another default.
SELECT t.spcname::text
FROM pg_class AS c
JOIN pg_class AS p ON p.oid = %(parent)s
JOIN pg_database AS d ON d.datname = current_database()
JOIN pg_tablespace AS t
    ON t.oid = coalesce(nullif(CASE WHEN %(of_sibling)s AND p.reltablespace <> 0 THEN p.reltablespace
                                    ELSE c.reltablespace END, 0), d.dattablespace)
WHERE c.oid = %(old)s

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
-- What cannot follow, with the name of the thing, and what would help.
WITH old AS (
    SELECT c.oid, c.reltype, t.typarray, c.relrowsecurity, i.inhparent, c.oid::regclass AS name
    FROM pg_class AS c JOIN pg_type AS t ON t.oid = c.reltype LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
    WHERE c.oid = %(old)s
), depends AS (
    -- Also what goes by the type of its rows; not what is its own and is made anew.
    SELECT d.classid, d.objid, d.objsubid
    FROM old, LATERAL (VALUES ('pg_class'::regclass, old.oid), ('pg_type', old.reltype), ('pg_type', old.typarray))
                  AS it (classid, objid)
    JOIN pg_depend AS d ON d.refclassid = it.classid AND d.refobjid = it.objid AND d.deptype IN ('n', 'a')
    WHERE it.objid <> 0
      AND NOT CASE d.classid
          WHEN 'pg_class'::regclass THEN d.objid = old.oid
              OR EXISTS (SELECT FROM pg_index AS i WHERE i.indexrelid = d.objid AND i.indrelid = old.oid)
          WHEN 'pg_attrdef'::regclass THEN EXISTS (SELECT FROM pg_attrdef AS x WHERE x.oid = d.objid AND x.adrelid = old.oid)
          WHEN 'pg_constraint'::regclass
              THEN EXISTS (SELECT FROM pg_constraint AS x
                           WHERE x.oid = d.objid AND (x.conrelid = old.oid OR x.confrelid = old.oid))
          WHEN 'pg_trigger'::regclass THEN EXISTS (SELECT FROM pg_trigger AS x WHERE x.oid = d.objid AND x.tgrelid = old.oid)
          WHEN 'pg_rewrite'::regclass THEN EXISTS (SELECT FROM pg_rewrite AS x WHERE x.oid = d.objid AND x.ev_class = old.oid)
          WHEN 'pg_policy'::regclass THEN EXISTS (SELECT FROM pg_policy AS x WHERE x.oid = d.objid AND x.polrelid = old.oid)
          WHEN 'pg_statistic_ext'::regclass
              THEN EXISTS (SELECT FROM pg_statistic_ext AS x WHERE x.oid = d.objid AND x.stxrelid = old.oid)
          ELSE false END
)
SELECT DISTINCT format('%%s %%s shows partition %%s by name and would go on showing the replaced rows',
              CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END, v.oid::regclass, old.name),
       format('let %%s show %%s', v.oid::regclass, old.inhparent::regclass)
FROM old, depends AS d
JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class AS v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
UNION ALL
SELECT DISTINCT format('%%s goes by partition %%s itself, not by its table, and would stay with the replaced rows',
              pg_describe_object(d.classid, d.objid, d.objsubid), old.name),
       format('let %%s go by %%s, or drop it', pg_describe_object(d.classid, d.objid, d.objsubid), old.inhparent::regclass)
FROM old, depends AS d
LEFT JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
LEFT JOIN pg_class AS v ON v.oid = r.ev_class
WHERE coalesce(v.relkind NOT IN ('v', 'm'), true)
UNION ALL
SELECT format('partition %%s has row security of its own', old.name),
       format('who reads %%s goes by its policies alone, so take away those of the partition: ', old.inhparent::regclass)
       || concat_ws('; ', CASE WHEN old.relrowsecurity THEN format('ALTER TABLE %%s DISABLE ROW LEVEL SECURITY', old.name) END,
                    (SELECT string_agg(format('DROP POLICY %%I ON %%s', p.polname, old.name), '; ' ORDER BY p.polname)
                     FROM pg_policy AS p WHERE p.polrelid = old.oid))
FROM old WHERE old.relrowsecurity OR EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = old.oid)
UNION ALL
SELECT format('%%s references partition %%s by foreign key', con.conrelid::regclass, con.confrelid::regclass),
       format('ALTER TABLE %%s DROP CONSTRAINT %%I', con.conrelid::regclass, con.conname)
FROM pg_constraint AS con
WHERE con.confrelid = %(old)s AND con.contype = 'f' AND con.conparentid = 0
UNION ALL
SELECT format('constraint %%I of %%s would be built while readers wait: ATTACH takes no index for it', con.conname,
              old.inhparent::regclass),
       format('ALTER TABLE %%s DROP CONSTRAINT %%I', old.inhparent::regclass, con.conname)
FROM old JOIN pg_index AS i ON i.indrelid = old.inhparent AND i.indisexclusion
JOIN pg_constraint AS con ON con.conindid = i.indexrelid AND con.conrelid = i.indrelid
UNION ALL
-- Of what is kept nobody knows whether it holds, and of new rows it must hold. (conenforced is new in 18; what keeps
-- rows out of DEFAULT is checked where it is needed.)
SELECT format('constraint %%I of partition %%s is NOT VALID', con.conname, old.name),
       format('ALTER TABLE %%s VALIDATE CONSTRAINT %%I', old.name, con.conname)
FROM old JOIN pg_constraint AS con ON con.conrelid = old.oid
WHERE con.contype IN ('c', 'f', 'n') AND NOT con.convalidated AND coalesce(to_jsonb(con) ->> 'conenforced', 'true') = 'true'
  AND con.conname !~ '^etl_not_'
UNION ALL
SELECT format('column %%I of partition %%s is generated otherwise than its table''s, which computes kept values anew',
              a.attname, old.name),
       CASE WHEN pd.adbin IS NOT NULL AND current_setting('server_version_num')::int >= 170000
            THEN format('ALTER TABLE %%s ALTER COLUMN %%I SET EXPRESSION AS (%%s)', old.name, a.attname,
                        pg_get_expr(pd.adbin, pd.adrelid))
            ELSE format('make the partition anew with column %%I as %%s has it', a.attname, old.inhparent::regclass) END
FROM old
JOIN pg_attribute AS a ON a.attrelid = old.oid AND a.attnum > 0 AND a.attgenerated <> ''
JOIN pg_attribute AS pa ON pa.attrelid = old.inhparent AND pa.attname = a.attname
JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_attrdef AS pd ON pd.adrelid = pa.attrelid AND pd.adnum = pa.attnum
WHERE pg_get_expr(d.adbin, d.adrelid) IS DISTINCT FROM pg_get_expr(pd.adbin, pd.adrelid)

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
       pg_get_expr(i.indpred, i.indrelid) AS predicate,
       (SELECT string_agg(format('%%I=%%s', split_part(o, '=', 1),
                                 CASE WHEN quote_ident(v) = v THEN v ELSE quote_literal(v) END), ', ')
        FROM unnest(ci.reloptions) AS o, substr(o, strpos(o, '=') + 1) AS v) AS options,
       i.indisunique AS is_unique,
       con.contype::text AS constraint_type,
       con.condeferrable AS is_deferrable,
       con.condeferred AS is_deferred,
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

-- name: keeping_out
-- Indexes that may refuse a row and that all partitions beside "old" have, itself included.
SELECT definition FROM (
    SELECT i.indrelid,
           substr(pg_get_indexdef(i.indexrelid),
                  length(format('CREATE %%sINDEX %%I ON %%I.%%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END,
                                ci.relname, n.nspname, c.relname)) + 1) AS definition,
           beside.partitions
    FROM (SELECT h.inhrelid, count(*) OVER () AS partitions
          FROM pg_inherits AS mine
          JOIN pg_inherits AS h ON h.inhparent = mine.inhparent
          JOIN pg_class AS one ON one.oid = h.inhrelid AND one.relkind = 'r'
          WHERE mine.inhrelid = %(old)s) AS beside
    JOIN pg_index AS i ON i.indrelid = beside.inhrelid AND (i.indisunique OR i.indisexclusion) AND i.indisvalid
    JOIN pg_class AS ci ON ci.oid = i.indexrelid
    JOIN pg_class AS c ON c.oid = i.indrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
) AS found
GROUP BY definition, partitions HAVING count(DISTINCT indrelid) = partitions

-- name: index_storage
-- Where and how the indexes of a table are stored that is made like "model": as those of that are. Where the parent's
-- index says a tablespace, new ones go there; and nowhere the role may not write. By name also the database's own, since
-- a role may have another default: but for partitioned tables, which PostgreSQL does not let name it.
SELECT ci.oid::bigint AS oid,
       CASE WHEN t.oid <> d.dattablespace AND NOT has_tablespace_privilege(t.oid, 'CREATE') THEN t.spcname END::text AS denied,
       CASE WHEN CASE t.oid WHEN d.dattablespace THEN %(leaf)s ELSE has_tablespace_privilege(t.oid, 'CREATE') END
            THEN t.spcname END::text AS tablespace,
       (SELECT string_agg(format('%%I=%%s', split_part(o, '=', 1),
                                 CASE WHEN quote_ident(v) = v THEN v ELSE quote_literal(v) END), ', ')
        FROM unnest(coalesce(own.reloptions, ci.reloptions)) AS o, substr(o, strpos(o, '=') + 1) AS v) AS options
FROM pg_class AS ci
JOIN pg_database AS d ON d.datname = current_database()
LEFT JOIN LATERAL (
    SELECT c.reltablespace, coalesce(c.reloptions, '{}') AS reloptions
    FROM pg_inherits AS h JOIN pg_index AS i ON i.indexrelid = h.inhrelid JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE h.inhparent = ci.oid AND i.indrelid = %(model)s
) AS own ON true
JOIN pg_tablespace AS t
    ON t.oid = coalesce(nullif(CASE WHEN own.reltablespace IS NULL OR %(of_sibling)s AND ci.reltablespace <> 0
                                    THEN ci.reltablespace ELSE own.reltablespace END, 0), d.dattablespace)
WHERE ci.oid = ANY (%(oids)s::oid[])

-- name: index_settings
SELECT said.s
FROM unnest(%(oids)s::oid[], %(names)s::text[]) AS w (oid, name)
JOIN pg_index AS i ON i.indrelid = %(model)s
LEFT JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid
CROSS JOIN LATERAL (
    SELECT format('ALTER TABLE %%s REPLICA IDENTITY USING INDEX %%I', %(new)s::text, w.name) WHERE i.indisreplident
    UNION ALL
    SELECT format('ALTER TABLE %%s CLUSTER ON %%I', %(new)s::text, w.name) WHERE i.indisclustered
    UNION ALL
    SELECT format('COMMENT ON INDEX %%I.%%I IS %%L', %(schema)s::text, w.name, obj_description(i.indexrelid, 'pg_class'))
    WHERE obj_description(i.indexrelid, 'pg_class') IS NOT NULL AND NOT %(of_sibling)s
    UNION ALL
    SELECT format('ALTER INDEX %%I.%%I ALTER COLUMN %%s SET STATISTICS %%s', %(schema)s::text, w.name, a.attnum,
                  a.attstattarget)
    FROM pg_attribute AS a WHERE a.attrelid = i.indexrelid AND a.attstattarget >= 0
) AS said (s)
WHERE w.oid = coalesce(h.inhparent, i.indexrelid)

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
