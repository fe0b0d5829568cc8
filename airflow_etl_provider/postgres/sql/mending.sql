-- What a parent has got or changed since a table was made that is to become its partition; the server writes the
-- statements.

-- name: columns_to_add
SELECT a.attname::text AS name,
       format('ALTER TABLE %%s ADD COLUMN %%I %%s%%s%%s%%s', %(table)s::text, a.attname,
              format_type(a.atttypid, a.atttypmod),
              CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE %%s', a.attcollation::regcollation) END,
              CASE WHEN a.attgenerated <> ''
                   THEN format(' GENERATED ALWAYS AS (%%s) %%s', pg_get_expr(d.adbin, d.adrelid),
                               CASE a.attgenerated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END)
                   WHEN d.oid IS NOT NULL THEN format(' DEFAULT %%s', pg_get_expr(d.adbin, d.adrelid)) END,
              CASE WHEN a.attnotnull THEN ' NOT NULL' END) AS statement
FROM pg_attribute AS a
JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = %(parent)s AND a.attnum > 0 AND NOT a.attisdropped
  AND NOT EXISTS (SELECT FROM pg_attribute AS own
                  WHERE own.attrelid = %(oid)s AND own.attname = a.attname AND NOT own.attisdropped)
ORDER BY a.attnum

-- name: columns_that_differ
SELECT a.attname::text AS name, format_type(own.atttypid, own.atttypmod) AS was,
       format_type(a.atttypid, a.atttypmod) AS is,
       own.attcollation = a.attcollation AND own.attgenerated = '' AND a.attgenerated = '' AS only_type,
       format('ALTER TABLE %%s ALTER COLUMN %%I TYPE %%s%%s', %(table)s::text, a.attname,
              format_type(a.atttypid, a.atttypmod),
              CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE %%s', a.attcollation::regcollation) END)
           AS statement
FROM pg_attribute AS a
JOIN pg_type AS t ON t.oid = a.atttypid
JOIN pg_attribute AS own ON own.attrelid = %(oid)s AND own.attname = a.attname AND NOT own.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated <> ''
LEFT JOIN pg_attrdef AS od ON od.adrelid = own.attrelid AND od.adnum = own.attnum AND own.attgenerated <> ''
WHERE a.attrelid = %(parent)s AND a.attnum > 0 AND NOT a.attisdropped
  AND (a.atttypid, a.atttypmod, a.attcollation, a.attgenerated, pg_get_expr(d.adbin, d.adrelid))
      IS DISTINCT FROM
      (own.atttypid, own.atttypmod, own.attcollation, own.attgenerated, pg_get_expr(od.adbin, od.adrelid))
ORDER BY a.attnum

-- name: defaults_that_differ
SELECT format('ALTER TABLE %%s ALTER COLUMN %%I %%s', %(table)s::text, own.attname,
              CASE WHEN d.oid IS NULL THEN 'DROP DEFAULT'
                   ELSE format('SET DEFAULT %%s', pg_get_expr(d.adbin, d.adrelid)) END) AS statement
FROM pg_attribute AS a
JOIN pg_attribute AS own ON own.attrelid = %(oid)s AND own.attname = a.attname AND NOT own.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_attrdef AS od ON od.adrelid = own.attrelid AND od.adnum = own.attnum
WHERE a.attrelid = %(like)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND own.attgenerated = ''
  AND own.attidentity = ''
  AND pg_get_expr(d.adbin, d.adrelid) IS DISTINCT FROM pg_get_expr(od.adbin, od.adrelid)
ORDER BY a.attnum

-- name: columns_to_require
-- Also of the sibling alone.
SELECT format('ALTER TABLE %%s ALTER COLUMN %%I SET NOT NULL', %(table)s::text, a.attname) AS statement
FROM pg_attribute AS a
JOIN pg_attribute AS own ON own.attrelid = %(oid)s AND own.attname = a.attname AND NOT own.attisdropped
LEFT JOIN pg_attribute AS b ON b.attrelid = %(like)s AND b.attname = a.attname AND NOT b.attisdropped
WHERE a.attrelid = %(parent)s AND a.attnum > 0 AND NOT a.attisdropped AND (a.attnotnull OR b.attnotnull)
  AND NOT own.attnotnull
ORDER BY a.attnum

-- name: checks_to_add
-- Also those that only the sibling has.
SELECT DISTINCT con.conname::text AS name, pg_get_constraintdef(con.oid) AS definition
FROM pg_constraint AS con
WHERE con.conrelid IN (%(parent)s, %(like)s) AND con.contype = 'c' AND con.conname <> 'etl_partition_bound'
  AND NOT (con.conrelid = %(parent)s AND con.connoinherit)
  AND NOT EXISTS (SELECT FROM pg_constraint AS own
                  WHERE own.conrelid = %(oid)s AND own.contype = 'c' AND own.conname = con.conname
                    AND (own.convalidated OR pg_get_constraintdef(own.oid) = pg_get_constraintdef(con.oid)))
ORDER BY 1

-- name: gone
-- CHECKs, by name and definition, and NOT NULLs that neither the parent nor the sibling has, and triggers under whose
-- names the parent's own will come. Columns that the parent has not go as a whole.
SELECT what, statement FROM (
    SELECT 1 AS place, format('constraint %%I', own.conname) AS what,
           format('ALTER TABLE %%s DROP CONSTRAINT %%I', %(table)s::text, own.conname) AS statement
    FROM pg_constraint AS own
    WHERE own.conrelid = %(oid)s AND own.contype = 'c' AND own.conname <> 'etl_partition_bound'
      AND NOT EXISTS (SELECT FROM pg_constraint AS con
                      WHERE con.conrelid IN (%(parent)s, %(like)s) AND con.contype = 'c' AND con.conname = own.conname
                        AND regexp_replace(pg_get_constraintdef(con.oid), ' NOT VALID$', '')
                            = regexp_replace(pg_get_constraintdef(own.oid), ' NOT VALID$', ''))
    UNION ALL
    SELECT 2, format('NOT NULL of %%I', own.attname),
           format('ALTER TABLE %%s ALTER COLUMN %%I DROP NOT NULL', %(table)s::text, own.attname)
    FROM pg_attribute AS own
    JOIN pg_attribute AS a ON a.attrelid = %(parent)s AND a.attname = own.attname AND NOT a.attisdropped
    WHERE own.attrelid = %(oid)s AND own.attnum > 0 AND own.attnotnull AND NOT a.attnotnull
      AND NOT EXISTS (SELECT FROM pg_attribute AS b
                      WHERE b.attrelid = %(like)s AND b.attname = own.attname AND b.attnotnull AND NOT b.attisdropped)
    UNION ALL
    SELECT 3, format('trigger %%I', own.tgname), format('DROP TRIGGER %%I ON %%s', own.tgname, %(table)s::text)
    FROM pg_trigger AS own
    JOIN pg_trigger AS t ON t.tgrelid = %(parent)s AND t.tgname = own.tgname AND NOT t.tgisinternal AND t.tgtype & 1 = 1
    WHERE own.tgrelid = %(oid)s AND NOT own.tgisinternal
) AS gone
ORDER BY place, what

-- name: differences
-- What ATTACH would refuse, with the name of the column or constraint.
SELECT CASE WHEN n.attname IS NULL THEN format('column %%I was added', p.attname)
            WHEN p.attname IS NULL THEN format('column %%I was dropped or renamed', n.attname)
            WHEN n.attgenerated <> p.attgenerated OR n.expression IS DISTINCT FROM p.expression
                THEN format('column %%I is generated otherwise', p.attname)
            WHEN (n.atttypid, n.atttypmod) = (p.atttypid, p.atttypmod) AND n.attcollation <> p.attcollation
                THEN format('column %%I has another collation', p.attname)
            WHEN (n.atttypid, n.atttypmod) = (p.atttypid, p.atttypmod) THEN format('column %%I is NOT NULL now', p.attname)
            ELSE format('column %%I is now %%s, not %%s', p.attname, format_type(p.atttypid, p.atttypmod),
                        format_type(n.atttypid, n.atttypmod)) END
FROM (SELECT a.*, CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END AS expression
      FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
      WHERE a.attrelid = %(parent)s AND a.attnum > 0 AND NOT a.attisdropped) AS p
FULL JOIN (SELECT a.*, CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END AS expression
           FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
           WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped) AS n
     ON n.attname = p.attname
WHERE (n.atttypid, n.atttypmod, n.attcollation, n.attgenerated, n.expression)
      IS DISTINCT FROM (p.atttypid, p.atttypmod, p.attcollation, p.attgenerated, p.expression)
   OR p.attnotnull AND NOT n.attnotnull
UNION ALL
SELECT format('constraint %%I was added', con.conname)
FROM pg_constraint AS con
WHERE con.conrelid = %(parent)s AND con.contype = 'c' AND NOT con.connoinherit
  AND NOT EXISTS (SELECT FROM pg_constraint AS own
                  WHERE own.conrelid = %(oid)s AND own.contype = 'c' AND own.conname = con.conname)
ORDER BY 1

-- name: file
SELECT c.oid::bigint AS oid, pg_relation_filenode(c.oid)::bigint AS file
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
