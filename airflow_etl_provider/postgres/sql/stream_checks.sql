-- What the loads of a stream say of a new one. Only what is published counts; of a window that was loaded
-- more than once, the last load. Rows are those that went on: without what audits set aside.

-- name: by_time
-- Windows of half to twice the length of this one, their rows scaled to its length, the nearest in time first.
WITH windows AS MATERIALIZED (
    SELECT DISTINCT ON (window_low, window_high) load_id, coalesce((manifest ->> 'rows')::bigint, rows_staged) AS rows,
           window_low, window_high
    FROM etl.loads
    WHERE stream = %(stream)s AND state = 'published' AND rows_staged IS NOT NULL AND load_id <> %(load_id)s
      AND replays IS NULL
      AND bounds <> 'nulls' AND window_type ~ '^(date|timestamp)'
      AND window_low <> '-infinity' AND window_high <> 'infinity'
    ORDER BY window_low, window_high, seq DESC
), timed AS MATERIALIZED (
    SELECT load_id, rows, window_low::timestamptz AS low,
           extract(epoch FROM window_high::timestamptz - window_low::timestamptz) AS seconds
    FROM windows
    WHERE (window_low, window_high) <> (%(low)s::text, %(high)s::text)
), this AS (
    SELECT %(low)s::timestamptz AS low, extract(epoch FROM %(high)s::timestamptz - %(low)s::timestamptz) AS seconds
), nearest AS (
    SELECT timed.load_id, (timed.rows * this.seconds / timed.seconds)::float8 AS rows,
           abs(extract(epoch FROM timed.low - this.low)) AS distance
    FROM timed, this
    WHERE timed.seconds BETWEEN this.seconds / 2 AND this.seconds * 2
      AND (NOT %(by_hour)s OR extract(hour FROM timed.low AT TIME ZONE %(zone)s)
                              = extract(hour FROM this.low AT TIME ZONE %(zone)s))
      AND (NOT %(by_weekday)s OR extract(isodow FROM timed.low AT TIME ZONE %(zone)s)
                                 = extract(isodow FROM this.low AT TIME ZONE %(zone)s))
    ORDER BY distance
    LIMIT %(loads)s
)
SELECT nearest.load_id::text AS load_id, nearest.rows, told.found ->> 'newest' AS newest,
       (told.found ->> 'lag_seconds')::float8 AS lag
FROM nearest
JOIN etl.loads AS l USING (load_id)
CROSS JOIN LATERAL (
    SELECT jsonb_path_query_first(l.report, %(told)s, jsonb_build_object('column', %(column)s::text)) AS found
) AS told
ORDER BY nearest.distance

-- name: by_load
-- Reads of everything, of the rows without a cursor value, and windows of a counter: as they are, the last
-- first. A run that was cleared, and so has read everything twice, counts once.
WITH alike AS MATERIALIZED (
    SELECT DISTINCT ON (l.window_low, l.window_high, of_run.id) l.load_id, l.seq
    FROM etl.loads AS l
    JOIN etl.loads AS mine ON mine.load_id = %(load_id)s
    CROSS JOIN LATERAL (
        SELECT CASE WHEN l.window_type IS NULL OR l.bounds = 'nulls'
                    THEN ARRAY[l.dag_id, l.run_id, l.task_id, l.map_index::text] END AS id
    ) AS of_run
    WHERE l.stream = %(stream)s AND l.state = 'published' AND l.rows_staged IS NOT NULL AND l.load_id <> %(load_id)s
      AND l.replays IS NULL
      AND (l.window_type IS NULL) = %(full)s AND (l.bounds = 'nulls') = %(nulls)s
      AND CASE WHEN of_run.id IS NULL
               THEN (l.window_low, l.window_high) IS DISTINCT FROM (mine.window_low, mine.window_high)
               ELSE of_run.id <> ARRAY[mine.dag_id, mine.run_id, mine.task_id, mine.map_index::text] END
      AND (NOT %(by_hour)s OR extract(hour FROM l.snapshot_at AT TIME ZONE %(zone)s)
                              = extract(hour FROM %(snapshot_at)s::timestamptz AT TIME ZONE %(zone)s))
      AND (NOT %(by_weekday)s OR extract(isodow FROM l.snapshot_at AT TIME ZONE %(zone)s)
                                 = extract(isodow FROM %(snapshot_at)s::timestamptz AT TIME ZONE %(zone)s))
    ORDER BY l.window_low, l.window_high, of_run.id, l.seq DESC
)
SELECT l.load_id::text AS load_id, coalesce((l.manifest ->> 'rows')::bigint, l.rows_staged)::float8 AS rows, told.found ->> 'newest' AS newest,
       (told.found ->> 'lag_seconds')::float8 AS lag
FROM (SELECT load_id FROM alike ORDER BY seq DESC LIMIT %(loads)s) AS latest
JOIN etl.loads AS l USING (load_id)
CROSS JOIN LATERAL (
    SELECT jsonb_path_query_first(l.report, %(told)s, jsonb_build_object('column', %(column)s::text)) AS found
) AS told
ORDER BY l.seq DESC
