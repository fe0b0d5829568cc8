-- name: own_search_path
SELECT set_config('search_path', reset_val, true) FROM pg_settings WHERE name = 'search_path'

-- name: never_null
-- Columns that hold no NULL; from 18 on a NOT NULL may be declared and not yet checked. Rows of tables that inherit
-- are read too, and need not keep to it.
SELECT a.attname::text
FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND c.relkind IN ('r', 'p')
  AND (c.relkind = 'p' OR NOT c.relhassubclass)
  AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull
  AND NOT EXISTS (SELECT FROM pg_constraint AS con
                  WHERE con.conrelid = c.oid AND con.contype = 'n' AND a.attnum = ANY (con.conkey)
                    AND NOT con.convalidated)

-- name: column_types
-- Columns of a collation of their own are left out: it is a part of what their type is called then.
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod)
FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_type AS t ON t.oid = a.atttypid
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attcollation = t.typcollation

-- name: unique_columns
-- Only what is checked at once, over all rows, by the equality of the column's type and collation. Rows of tables
-- that inherit are in no index of this one.
SELECT array_agg(a.attname::text)
FROM pg_index AS i
JOIN pg_class AS ci ON ci.oid = i.indexrelid
JOIN pg_am AS am ON am.oid = ci.relam AND am.amname = 'btree'
JOIN pg_class AS c ON c.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indcollation::oid[], i.indclass::oid[]) WITH ORDINALITY
    AS k (attnum, collation_oid, opclass, position)
LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
LEFT JOIN pg_opclass AS o ON o.oid = k.opclass
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
  AND (c.relkind = 'p' OR NOT c.relhassubclass)
  AND i.indisunique AND i.indisvalid AND i.indisready AND i.indimmediate AND i.indpred IS NULL
  AND k.position <= i.indnkeyatts
GROUP BY i.indexrelid
HAVING bool_and(a.attname IS NOT NULL AND o.opcdefault AND coalesce(k.collation_oid, 0) = a.attcollation)

-- name: may_read
SELECT has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'), current_user::text
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s

-- name: hides_rows
SELECT row_security_active(c.oid), current_user::text
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
