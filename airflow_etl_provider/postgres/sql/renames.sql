-- Which column of a table that is kept aside is which of its target, whatever both are called by now.

-- name: identities
-- A column keeps its number when it is renamed, and a dropped one's is never given again.
SELECT own.name, jsonb_build_object('table', own.oid::bigint, 'of', target.oid::bigint, 'columns', c.columns) AS identity
FROM (SELECT to_regclass(%(target)s)::oid AS oid) AS target
CROSS JOIN (SELECT t AS name, to_regclass(t)::oid AS oid FROM unnest(%(tables)s::text[]) AS t) AS own
CROSS JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_array(a.attnum, b.attnum, a.attname)) AS columns
    FROM pg_attribute AS a
    JOIN pg_attribute AS b ON b.attrelid = target.oid AND b.attname = a.attname AND b.attnum > 0 AND NOT b.attisdropped
    WHERE a.attrelid = own.oid AND a.attnum > 0 AND NOT a.attisdropped
) AS c
WHERE own.oid IS NOT NULL AND target.oid IS NOT NULL

-- name: is_known
-- Whether what was recorded is of these very tables: a copy of the database numbers them anew.
SELECT coalesce((%(identity)s::jsonb ->> 'table')::bigint = to_regclass(%(table)s)::oid::bigint
                AND (%(identity)s::jsonb ->> 'of')::bigint = to_regclass(%(target)s)::oid::bigint, false)

-- name: names_by_now
-- By the name that a column had when that was recorded, what the target calls it by now, quoted; not what it has dropped.
SELECT pair ->> 2, quote_ident(a.attname)
FROM jsonb_array_elements(%(identity)s::jsonb -> 'columns') AS pair
JOIN pg_attribute AS a ON a.attrelid = (%(identity)s::jsonb ->> 'of')::oid AND a.attnum = (pair ->> 1)::smallint
WHERE NOT a.attisdropped

-- name: meanwhile
-- Columns that the target calls otherwise by now. What it has dropped makes way for a new column of that name, and what
-- an earlier attempt has added for one that is renamed to it.
WITH pairs AS (
    SELECT (pair ->> 0)::smallint AS own, (pair ->> 1)::smallint AS of
    FROM jsonb_array_elements(%(identity)s::jsonb -> 'columns') AS pair
)
SELECT own.attname::text AS was, own.attnum AS number,
       CASE WHEN NOT a.attisdropped THEN a.attname::text END AS is
FROM pairs
JOIN pg_attribute AS own ON own.attrelid = (%(identity)s::jsonb ->> 'table')::oid
                        AND own.attnum = pairs.own AND NOT own.attisdropped
JOIN pg_attribute AS a ON a.attrelid = (%(identity)s::jsonb ->> 'of')::oid AND a.attnum = pairs.of
WHERE a.attname <> own.attname AND (NOT a.attisdropped OR EXISTS (
    SELECT FROM pg_attribute AS b WHERE b.attrelid = a.attrelid AND b.attname = own.attname AND NOT b.attisdropped))
UNION ALL
SELECT own.attname::text, own.attnum, NULL
FROM pg_attribute AS own
WHERE own.attrelid = (%(identity)s::jsonb ->> 'table')::oid AND own.attnum > 0 AND NOT own.attisdropped
  AND own.attnum NOT IN (SELECT pairs.own FROM pairs)
  AND own.attname IN (SELECT a.attname FROM pairs JOIN pg_attribute AS a
                      ON a.attrelid = (%(identity)s::jsonb ->> 'of')::oid AND a.attnum = pairs.of AND NOT a.attisdropped)
ORDER BY number

-- name: ambiguous
-- Columns that only one of the two has, and that could be the same: a new name changes no type.
SELECT own.attname::text AS old, a.attname::text AS new
FROM pg_attribute AS own
JOIN pg_attribute AS a ON (a.atttypid, a.atttypmod) = (own.atttypid, own.atttypmod)
WHERE own.attrelid = to_regclass(%(table)s) AND own.attnum > 0 AND NOT own.attisdropped
  AND a.attrelid = to_regclass(%(target)s) AND a.attnum > 0 AND NOT a.attisdropped
  AND NOT EXISTS (SELECT FROM pg_attribute AS b
                  WHERE b.attrelid = a.attrelid AND b.attname = own.attname AND NOT b.attisdropped)
  AND NOT EXISTS (SELECT FROM pg_attribute AS b
                  WHERE b.attrelid = own.attrelid AND b.attname = a.attname AND NOT b.attisdropped)
ORDER BY own.attnum, a.attnum
