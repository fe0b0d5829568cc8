-- name: table
SELECT c.oid::bigint AS oid,
       c.relkind::text AS kind,
       c.relpersistence::text AS persistence,
       p.partstrat::text AS partition_strategy,
       CASE WHEN p.partrelid IS NOT NULL AND NOT 0 = ANY (p.partattrs::int2[]) THEN
           ARRAY(SELECT a.attname::text
                 FROM unnest(p.partattrs::int2[]) WITH ORDINALITY AS k (attnum, place)
                 JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum
                 ORDER BY k.place)
       END AS partition_columns,
       (SELECT ARRAY(SELECT a.attname::text
                     FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
                     JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum
                     ORDER BY k.place)
        FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary) AS primary_key
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_partitioned_table AS p ON p.partrelid = c.oid
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')

-- name: tables_like
SELECT format('%%I.%%I', n.nspname, c.relname) AS name
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE lower(c.relname) = lower(%(name)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'etl', 'etl_staging')
ORDER BY 1 LIMIT 3

-- name: tables_of_schema
SELECT format('%%I.%%I', n.nspname, c.relname) AS name
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')

-- name: columns
SELECT a.attname::text AS name,
       a.atttypid::bigint AS type_oid,
       a.atttypmod AS type_modifier,
       a.attnotnull AS not_null,
       a.atthasdef AND a.attgenerated = '' AS has_default,
       a.attgenerated <> '' AS generated,
       a.attidentity <> '' AS identity
FROM pg_attribute AS a
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum

-- name: types
-- What types are, all the way down, in the order in which they are given.
WITH RECURSIVE given AS (
    SELECT place, oid, modifier
    FROM unnest(%(oids)s::oid[], %(modifiers)s::int[]) WITH ORDINALITY AS g (oid, modifier, place)
), reached AS (
    SELECT place, oid FROM given
    UNION
    SELECT r.place, inner_type.oid
    FROM reached AS r
    JOIN pg_type AS t ON t.oid = r.oid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype AS oid WHERE t.typtype = 'd'
        UNION ALL
        SELECT t.typelem WHERE t.typcategory = 'A' AND t.typelem <> 0
        UNION ALL
        SELECT f.atttypid FROM pg_attribute AS f
        WHERE t.typtype = 'c' AND f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped
        UNION ALL
        SELECT g.rngsubtype FROM pg_range AS g WHERE t.oid IN (g.rngtypid, g.rngmultitypid)
    ) AS inner_type
)
SELECT format_type(g.oid, g.modifier) AS type,
       g.oid < 16384 AS builtin,
       EXISTS (SELECT FROM reached AS r
               WHERE r.place = g.place
                 AND r.oid = ANY (ARRAY['regclass', 'regcollation', 'regconfig', 'regdictionary', 'regnamespace',
                                        'regoper', 'regoperator', 'regproc', 'regprocedure', 'regrole',
                                        'regtype']::regtype[])) AS refers_by_oid,
       coalesce((SELECT string_agg(format_type(t.oid, NULL) || CASE t.typtype
                     WHEN 'd' THEN ' is ' || format_type(t.typbasetype, t.typtypmod)
                     ELSE ' is (' || (SELECT string_agg(quote_ident(f.attname) || ' '
                                                        || format_type(f.atttypid, f.atttypmod), ', ' ORDER BY f.attnum)
                                      FROM pg_attribute AS f
                                      WHERE f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped) || ')'
                     END, '; ' ORDER BY format_type(t.oid, NULL))
                 FROM reached AS r JOIN pg_type AS t ON t.oid = r.oid
                 WHERE r.place = g.place AND t.oid >= 16384 AND t.typtype IN ('d', 'c')), '') AS definition,
       EXISTS (SELECT FROM reached AS r JOIN pg_type AS t ON t.oid = r.oid
               WHERE r.place = g.place AND t.typtype IN ('d', 'e')) AS restricted,
       NOT EXISTS (SELECT FROM reached AS r JOIN pg_type AS t ON t.oid = r.oid
                   WHERE r.place = g.place AND t.typinput::oid >= 16384) AS soft_input,
       own.stored, own.never_null
FROM given AS g
CROSS JOIN LATERAL (
    WITH RECURSIVE down AS (
        SELECT g.oid, g.modifier, false AS not_null
        UNION ALL
        SELECT t.typbasetype, t.typtypmod, t.typnotnull FROM down AS d JOIN pg_type AS t ON t.oid = d.oid
        WHERE t.typtype = 'd'
    )
    SELECT max(format_type(d.oid, d.modifier)) FILTER (WHERE t.typtype <> 'd') AS stored,
           bool_or(d.not_null) AS never_null
    FROM down AS d JOIN pg_type AS t ON t.oid = d.oid
) AS own
ORDER BY g.place

-- name: tables_by_oid
SELECT n.nspname::text AS schema, c.relname::text AS name
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = ANY (%(oids)s::oid[])
ORDER BY 1, 2

-- name: roots
-- The tables that partitions belong to; what is no partition stands for itself.
SELECT DISTINCT n.nspname::text AS schema, c.relname::text AS name
FROM unnest(%(schemas)s::text[], %(names)s::text[]) AS s (schema, name)
JOIN pg_namespace AS sn ON sn.nspname = s.schema
JOIN pg_class AS sc ON sc.relnamespace = sn.oid AND sc.relname = s.name
JOIN pg_class AS c ON c.oid = coalesce(pg_partition_root(sc.oid), sc.oid)
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 1, 2

-- name: tree
-- Not pg_partition_tree(), which locks what it tells.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION ALL
    SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON tree.oid = i.inhparent
)
SELECT oid::bigint FROM tree

-- name: pages
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION ALL
    SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON tree.oid = i.inhparent
)
SELECT coalesce(sum(greatest(c.relpages, 0)), 0)::bigint FROM pg_class AS c JOIN tree USING (oid)

-- name: orders_by_index
-- Whether a range of the column is found without reading the whole table.
SELECT EXISTS (
    SELECT FROM pg_index AS i JOIN pg_class AS ci ON ci.oid = i.indexrelid JOIN pg_am AS am ON am.oid = ci.relam
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = %(oid)s AND i.indisvalid AND i.indpred IS NULL
      AND am.amname = 'btree' AND a.attname = %(column)s)
    OR EXISTS (
    SELECT FROM pg_partitioned_table AS p JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    WHERE p.partrelid = %(oid)s AND p.partstrat = 'r' AND a.attname = %(column)s)

-- name: row_security_active
SELECT row_security_active(%(oid)s::oid)

-- name: views_in_schema_of
-- Views on a table that stand in its own schema.
SELECT DISTINCT v.relname::text
FROM pg_class AS t
JOIN pg_namespace AS n ON n.oid = t.relnamespace
JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
JOIN pg_rewrite AS r ON r.oid = d.objid
JOIN pg_class AS v ON v.oid = r.ev_class AND v.relkind = 'v' AND v.relnamespace = t.relnamespace
WHERE n.nspname = %(schema)s AND t.relname = %(name)s

-- name: has_privilege
SELECT has_table_privilege(%(oid)s::oid, %(privilege)s)

-- name: partitions
SELECT c.oid::bigint AS oid,
       n.nspname::text AS schema,
       c.relname::text AS name,
       pg_get_expr(c.relpartbound, c.oid) AS bound,
       c.relkind = 'r' AS is_leaf
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.inhparent = %(oid)s AND NOT i.inhdetachpending
ORDER BY c.relname

-- name: taken
-- Whether what has the name of a partition to be made is one that is being detached.
SELECT coalesce(i.inhdetachpending, false)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid AND i.inhparent = %(parent)s
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND (i.inhrelid IS NULL OR i.inhdetachpending)

-- name: detach_pending
-- Partitions whose DETACH CONCURRENTLY has not come to its end, over all levels, each with its parent.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION ALL
    SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON tree.oid = i.inhparent
)
SELECT format('%%I.%%I', n.nspname, c.relname), i.inhparent::regclass::text
FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.oid AND i.inhdetachpending
JOIN pg_class AS c ON c.oid = i.inhrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY 1

-- name: parent_indexes
-- One that is made partition by partition (ON ONLY the parent) is not valid until all have it; ATTACH builds it before.
SELECT i.indexrelid::bigint AS oid,
       ci.relname::text AS name,
       substr(pg_get_indexdef(i.indexrelid),
              length(format('CREATE %%sINDEX %%I ON %%s%%s ',
                            CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END,
                            ci.relname,
                            CASE WHEN ci.relkind = 'I' THEN 'ONLY ' ELSE '' END,
                            format('%%I.%%I', n.nspname, c.relname))) + 1) AS definition,
       pg_get_expr(i.indpred, i.indrelid) AS predicate,
       (SELECT string_agg(format('%%I=%%s', split_part(o, '=', 1),
                                 CASE WHEN quote_ident(v) = v THEN v ELSE quote_literal(v) END), ', ')
        FROM unnest(ci.reloptions) AS o, substr(o, strpos(o, '=') + 1) AS v) AS options,
       i.indisunique AS is_unique,
       con.contype::text AS constraint_type,
       con.conname::text AS constraint_name,
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
WHERE i.indrelid = %(oid)s AND (i.indisvalid OR ci.relkind = 'I')
ORDER BY i.indisprimary DESC, ci.relname

-- name: child_index_names
SELECT inh.inhparent::bigint AS parent, c.relname::text AS name
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
LEFT JOIN pg_inherits AS inh ON inh.inhrelid = i.indexrelid
WHERE i.indrelid = %(oid)s
ORDER BY c.relname

-- name: stored_otherwise
-- Columns whose values the table, or a partition of it, stores otherwise than their types say.
SELECT DISTINCT a.attname::text
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
WHERE a.attrelid IN (SELECT %(oid)s::oid UNION SELECT relid FROM pg_partition_tree(%(oid)s::oid))
  AND a.attnum > 0 AND NOT a.attisdropped AND (a.attstorage <> t.typstorage OR a.attcompression <> '')
ORDER BY 1

-- name: foreign_keys_of
-- Of a table that is nobody's partition.
SELECT con.conname::text, pg_get_constraintdef(con.oid)
FROM pg_constraint AS con
JOIN pg_class AS c ON c.oid = con.conrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND con.contype = 'f' AND con.conparentid = 0
  AND NOT c.relispartition
ORDER BY 1

-- name: referencing_foreign_keys
SELECT conrelid::regclass::text AS name,
       format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname) AS without
FROM pg_constraint
WHERE confrelid = %(oid)s AND contype = 'f' AND conparentid = 0
ORDER BY 1

-- name: referenced_tables
-- Also of a table that is a partition itself; a partitioned table that is referenced stands for its partitions.
SELECT DISTINCT n.nspname::text AS schema, c.relname::text AS name, c.oid::bigint AS oid
FROM pg_constraint AS con
JOIN pg_class AS c ON c.oid = con.confrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE con.conrelid = %(oid)s AND con.contype = 'f' AND con.confrelid <> con.conrelid
  AND NOT EXISTS (SELECT FROM pg_constraint AS whole WHERE whole.oid = con.conparentid AND whole.conrelid = con.conrelid)
ORDER BY 1, 2

-- name: refers_to_partitioned
SELECT EXISTS (SELECT FROM pg_constraint AS con JOIN pg_class AS c ON c.oid = con.confrelid
               WHERE con.conrelid = %(oid)s AND con.contype = 'f' AND c.relkind = 'p')

-- name: persistence
SELECT c.relpersistence::text
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s

-- name: owner
SELECT CASE WHEN pg_get_userbyid(relowner) <> current_user THEN pg_get_userbyid(relowner)::text END
FROM pg_class WHERE oid = %(oid)s

-- name: attached
SELECT i.inhparent::bigint, n.nspname::text, c.relname::text, c.oid::bigint, pg_get_expr(c.relpartbound, c.oid)
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.inhparent = ANY (%(parents)s::oid[]) AND c.relname = ANY (%(names)s)

-- name: default_partition
SELECT n.nspname::text, c.relname::text, c.oid::bigint
FROM pg_partitioned_table AS p JOIN pg_class AS c ON c.oid = p.partdefid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE p.partrelid = %(oid)s

-- name: autovacuumed
-- Tables that a background worker has locked; sessions of users have a usesysid.
SELECT DISTINCT n.nspname::text, c.relname::text
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
JOIN pg_class AS c ON c.oid = l.relation
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation = ANY (%(oids)s::oid[]) AND l.granted AND l.mode = 'ShareUpdateExclusiveLock'
  AND a.usesysid IS NULL AND c.relkind = 'r'
ORDER BY 1, 2

-- name: blockers
SELECT a.pid, coalesce(a.usename::text, 'the server''s own') AS "user",
       CASE WHEN a.usesysid IS NULL THEN coalesce(a.backend_type, 'autovacuum worker') ELSE a.application_name END
           AS application,
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.query_start))::float AS age_s,
       l.mode, l.relation::regclass::text AS relation, a.state
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation = ANY (%(oids)s::oid[]) AND l.granted AND l.pid <> pg_backend_pid()
  AND NOT (%(writers)s AND l.mode = 'AccessShareLock')
ORDER BY age_s DESC NULLS LAST
LIMIT 3

-- name: publications
-- With what takes the table out of each, if that can be done.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION ALL
    SELECT i.inhrelid FROM pg_inherits AS i JOIN tree ON tree.oid = i.inhparent
), members AS (
    SELECT r.prpubid AS oid, format('TABLE %%s', r.prrelid::regclass) AS member
    FROM pg_publication_rel AS r
    WHERE r.prrelid IN (SELECT oid FROM tree)
       OR r.prrelid IN (SELECT relid FROM pg_partition_ancestors(%(oid)s::oid::regclass))
    UNION
    SELECT n.pnpubid, format('TABLES IN SCHEMA %%I', s.nspname)
    FROM pg_publication_namespace AS n
    JOIN pg_namespace AS s ON s.oid = n.pnnspid
    JOIN pg_class AS c ON c.relnamespace = s.oid
    WHERE c.oid IN (SELECT oid FROM tree)
)
SELECT p.pubname::text,
       (SELECT string_agg(format('ALTER PUBLICATION %%I DROP %%s', p.pubname, m.member), '; ' ORDER BY m.member)
        FROM members AS m WHERE m.oid = p.oid AND NOT p.puballtables) AS without
FROM pg_publication AS p
WHERE p.puballtables OR p.oid IN (SELECT oid FROM members)
ORDER BY 1

-- name: publishes_schema
-- Whether whatever is made in the schema is published from then on.
SELECT EXISTS (SELECT FROM pg_publication WHERE puballtables)
    OR EXISTS (SELECT FROM pg_publication_namespace WHERE pnnspid = to_regnamespace(%(schema)s))

-- name: missing_references
-- What the foreign keys of a table refer to, with the privileges that the role lacks there: to refer to it, and to
-- lock it, for which LOCK TABLE asks for one of several.
SELECT name, string_agg(DISTINCT needed.privilege, ', ' ORDER BY needed.privilege)
FROM (
    SELECT con.confrelid::regclass::text AS name,
           has_table_privilege(con.confrelid, 'REFERENCES')
           OR NOT EXISTS (SELECT FROM unnest(con.confkey) AS k (attnum)
                          WHERE NOT has_column_privilege(con.confrelid, k.attnum, 'REFERENCES')) AS may_refer,
           has_table_privilege(con.confrelid, 'UPDATE, DELETE, TRUNCATE')
           OR CASE WHEN current_setting('server_version_num')::int >= 170000
                   THEN has_table_privilege(con.confrelid, 'MAINTAIN') ELSE false END AS may_lock
    FROM pg_constraint AS con
    WHERE con.conrelid = %(oid)s AND con.contype = 'f'
      AND NOT EXISTS (SELECT FROM pg_constraint AS whole
                      WHERE whole.oid = con.conparentid AND whole.conrelid = con.conrelid)
) AS referenced
CROSS JOIN LATERAL (VALUES ('REFERENCES', may_refer), ('UPDATE', may_lock)) AS needed (privilege, granted)
WHERE NOT needed.granted
GROUP BY name ORDER BY name

-- name: missing_create
-- Who needs CREATE on the schema for a table to get its name there, and lacks it: we, and the owner of the table whose
-- place it takes, to whom it is given.
SELECT quote_ident(r.rolname)
FROM pg_class AS c
JOIN pg_roles AS r ON r.rolname = current_user OR r.oid = c.relowner
JOIN pg_namespace AS n ON n.nspname = %(schema)s
WHERE c.oid = %(oid)s AND NOT has_schema_privilege(r.oid, n.oid, 'CREATE')
  AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
ORDER BY r.rolname <> current_user

-- name: may_own
SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class AS c WHERE c.oid = %(oid)s

-- name: has_constraint
SELECT EXISTS (SELECT FROM pg_constraint AS con
               JOIN pg_class AS c ON c.oid = con.conrelid
               JOIN pg_namespace AS n ON n.oid = c.relnamespace
               WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND con.conname = %(constraint)s)
