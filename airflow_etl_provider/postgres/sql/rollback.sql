-- name: partitions
SELECT partition, bound, previous, rebuild, rows FROM etl.load_partitions WHERE load_id = %(load_id)s ORDER BY partition

-- name: strategy
SELECT strategy FROM etl.loads WHERE load_id = %(load_id)s

-- name: swapped_since
-- A load that has published the partition after this one did, by one of its names or by its bound, and still stands.
SELECT p.load_id::text AS load_id
FROM etl.load_partitions AS mine
JOIN etl.load_partitions AS p ON p.published_at > mine.published_at
JOIN etl.loads AS l ON l.load_id = p.load_id AND l.state = 'published'
WHERE mine.load_id = %(load_id)s AND mine.partition = %(recorded)s AND p.load_id <> mine.load_id
  AND (p.partition IN (%(recorded)s, %(now)s) OR l.target = %(target)s AND p.bound = %(bound)s)
ORDER BY p.published_at DESC LIMIT 1

-- name: changed_since
-- Loads that have changed rows of the table in place since, and whether they are known to have changed the partition.
-- Only events stay in their window, and that tells what lies in a partition only where the load goes by the column
-- that the table is partitioned by.
SELECT load_id, stream, strategy, is_known FROM (
    SELECT l.load_id::text AS load_id, l.stream, l.strategy, l.published_at,
           CASE WHEN l.strategy = 'delete_insert' AND l.manifest ->> 'cursor' = %(column)s AND l.bounds <> 'nulls'
                     AND regexp_replace(l.window_type, '\([0-9,]+\)', '') = %(type)s
                THEN coalesce(l.window_low::{t} < %(high)s::{t}, true)
                     AND coalesce(l.window_high::{t} > %(low)s::{t}
                                  OR right(l.bounds, 1) = ']' AND l.window_high::{t} = %(low)s::{t}, true) END AS is_known
    FROM etl.loads AS mine
    JOIN etl.loads AS l ON l.target = mine.target AND l.published_at > mine.published_at
    WHERE mine.load_id = %(load_id)s AND l.state = 'published' AND l.strategy NOT IN ('swap', 'swap_merge')
      AND l.rows_inserted + l.rows_updated + l.rows_deleted > 0
) AS changed
WHERE is_known IS NOT FALSE
ORDER BY is_known NULLS LAST, published_at DESC LIMIT 1

-- name: is_recorded
-- Whether transactions that were recorded are those of this cluster: a copy of the database has its own, and other numbers
-- of tables; "version" is that of the one which was replaced.
SELECT coalesce(%(cluster)s::text = concat(oid, '/', 'etl.loads'::regclass::oid) AND %(version)s::bigint = %(oid)s, false)
FROM pg_database WHERE datname = current_database()

-- name: rows_now
-- Of a partition: its rows, and those written since it was published: by transactions with a later number than the one
-- that published it, or with one that those could have which wrote beside it, and that had none of its rows then.
-- Freezing a row leaves its number as it is. Where nothing was recorded, since it was attached.
WITH since AS MATERIALIZED (
    SELECT CASE WHEN %(xid)s::text IS NULL THEN (SELECT age(i.xmin) FROM pg_inherits AS i WHERE i.inhrelid = %(oid)s)
                -- Beyond two billion numbers their order is not known: all may be later.
                WHEN pg_snapshot_xmax(pg_current_snapshot())::text::bigint - %(xid)s::text::bigint < 2147483647
                THEN age(%(xid)s::text::xid8::xid) ELSE 2147483647 END AS published,
           coalesce(age(%(oldest)s::text::xid8::xid), -2147483648) AS oldest
)
SELECT count(*), count(*) FILTER (WHERE age(t.xmin) < since.published
                                     OR age(t.xmin) <= since.oldest AND t.xmin <> ALL (%(filled_by)s::text[]::xid[]))
FROM ONLY {table} AS t CROSS JOIN since

-- name: hold_streams
SELECT stream FROM etl.streams WHERE target = %(target)s ORDER BY stream FOR UPDATE

-- name: mark
UPDATE etl.loads SET state = 'rolled_back', error = %(why)s WHERE load_id = %(load_id)s AND state = 'published'

-- name: uncover
-- Also what loads after this one have covered of its window: they found its rows there, and changed none.
WITH gone AS (
    DELETE FROM etl.coverage AS c USING etl.loads AS l, etl.loads AS mine
    WHERE mine.load_id = %(load_id)s AND c.stream = mine.stream AND c.retired_at IS NULL
      AND l.load_id = c.load_id AND l.published_at >= mine.published_at
      AND c.low::{t} < %(high)s::{t} AND c.high::{t} > %(low)s::{t}
    RETURNING c.stream, c.low, c.high, c.bounds, c.load_id
)
INSERT INTO etl.coverage (stream, low, high, bounds, load_id)
SELECT gone.stream, rest.low, rest.high, gone.bounds, gone.load_id
FROM gone CROSS JOIN LATERAL (VALUES (gone.low, %(low)s::text), (%(high)s::text, gone.high)) AS rest (low, high)
WHERE rest.low::{t} < rest.high::{t}

-- name: keep
-- The version that was taken back is kept in the place of the one that came back, and ages from now on.
UPDATE etl.load_partitions
SET partition = %(partition)s, previous = %(kept)s, rebuild = NULL, published_at = clock_timestamp()
WHERE load_id = %(load_id)s AND partition = %(recorded)s

-- name: is_above
SELECT %(position)s::{t} > %(low)s::{t}

-- name: table
SELECT c.oid::bigint AS oid, c.relispartition AS attached, pg_relation_filenode(c.oid)::bigint AS file
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND c.relkind = 'r'

-- name: columns_to_drop
-- Those that are generated from others before these.
SELECT own.attname::text AS name FROM pg_attribute AS own
WHERE own.attrelid = %(oid)s AND own.attnum > 0 AND NOT own.attisdropped
  AND NOT EXISTS (SELECT FROM pg_attribute AS a
                  WHERE a.attrelid = %(parent)s AND a.attname = own.attname AND NOT a.attisdropped)
ORDER BY own.attgenerated = '', own.attnum

-- name: become_like
-- What the version has of its own goes, and it gets what the partition that it replaces has: rights, triggers, rules
-- and the owner only once it bears that name.
WITH options AS (
    SELECT c.oid, unnest(c.reloptions) AS setting FROM pg_class AS c
    UNION ALL
    SELECT c.oid, 'toast.' || unnest(t.reloptions) FROM pg_class AS c JOIN pg_class AS t ON t.oid = c.reltoastrelid
)
SELECT s FROM (
    SELECT 1 AS place, format('REVOKE ALL ON %%s FROM %%s CASCADE', %(table)s::text,
                              CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END) AS s
    FROM (SELECT a.grantee FROM pg_class AS c, aclexplode(c.relacl) AS a
          WHERE c.oid = %(previous)s AND a.grantee <> c.relowner
          UNION
          SELECT a.grantee FROM pg_attribute AS att, aclexplode(att.attacl) AS a
          WHERE att.attrelid = %(previous)s) AS a
    UNION ALL
    SELECT 2, format('DROP TRIGGER %%I ON %%s', t.tgname, %(table)s::text)
    FROM pg_trigger AS t WHERE t.tgrelid = %(previous)s AND NOT t.tgisinternal
    UNION ALL
    SELECT 2, format('DROP RULE %%I ON %%s', r.rulename, %(table)s::text)
    FROM pg_rewrite AS r WHERE r.ev_class = %(previous)s
    UNION ALL
    SELECT 3, format('ALTER TABLE %%s RESET (%%s)', %(table)s::text, string_agg(split_part(o.setting, '=', 1), ', '))
    FROM options AS o WHERE o.oid = %(previous)s HAVING count(*) > 0
    UNION ALL
    SELECT 4, format('ALTER TABLE %%s SET (%%s)', %(table)s::text, string_agg(o.setting, ', '))
    FROM options AS o WHERE o.oid = %(current)s HAVING count(*) > 0
    UNION ALL
    SELECT 5, format('ALTER TABLE %%s ALTER COLUMN %%I %%s', %(table)s::text, own.attname, setting)
    FROM pg_attribute AS own
    JOIN pg_attribute AS a ON a.attrelid = %(current)s AND a.attname = own.attname AND NOT a.attisdropped
    CROSS JOIN LATERAL unnest(ARRAY[
        CASE WHEN coalesce(own.attstattarget, -1) <> coalesce(a.attstattarget, -1)
             THEN format('SET STATISTICS %%s', coalesce(a.attstattarget, -1)) END,
        CASE WHEN own.attoptions IS NOT NULL
             THEN format('RESET (%%s)', (SELECT string_agg(split_part(o, '=', 1), ', ') FROM unnest(own.attoptions) AS o)) END,
        CASE WHEN a.attoptions IS NOT NULL THEN format('SET (%%s)', array_to_string(a.attoptions, ', ')) END,
        CASE WHEN own.attstorage <> a.attstorage AND own.atttypid = a.atttypid
             THEN 'SET STORAGE ' || CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
                                                      ELSE 'EXTENDED' END END,
        CASE WHEN own.attcompression <> a.attcompression
             THEN 'SET COMPRESSION ' || CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4'
                                                              ELSE 'default' END END
    ]) AS setting
    WHERE own.attrelid = %(previous)s AND own.attnum > 0 AND NOT own.attisdropped AND setting IS NOT NULL
    UNION ALL
    SELECT 6, format('ALTER TABLE %%s REPLICA IDENTITY %%s', %(table)s::text,
                     CASE c.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING' ELSE 'DEFAULT' END)
    FROM pg_class AS c JOIN pg_class AS p ON p.oid = %(previous)s
    WHERE c.oid = %(current)s AND (c.relreplident <> p.relreplident OR c.relreplident = 'i')
    UNION ALL
    SELECT 7, format('COMMENT ON COLUMN %%s.%%I IS %%s', %(table)s::text, own.attname,
                     coalesce(quote_literal(col_description(a.attrelid, a.attnum)), 'NULL'))
    FROM pg_attribute AS own
    JOIN pg_attribute AS a ON a.attrelid = %(current)s AND a.attname = own.attname AND NOT a.attisdropped
    WHERE own.attrelid = %(previous)s AND own.attnum > 0 AND NOT own.attisdropped
      AND col_description(a.attrelid, a.attnum) IS DISTINCT FROM col_description(own.attrelid, own.attnum)
    UNION ALL
    SELECT 8, format('ALTER TABLE %%s OWNER TO %%I', %(table)s::text, current_user)
    FROM pg_class AS c WHERE c.oid = %(previous)s AND pg_get_userbyid(c.relowner) <> current_user
) AS statements ORDER BY place, s
