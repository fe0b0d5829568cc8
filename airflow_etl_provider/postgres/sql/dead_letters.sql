-- What becomes of dead letters when their load, or a later one, gets somewhere.

-- name: release
UPDATE etl.dead_letters SET status = 'pending' WHERE load_id = %(load_id)s AND status = 'held'

-- name: end
UPDATE etl.dead_letters
SET status = 'superseded', resolved_at = clock_timestamp(), resolution = %(why)s, replay = NULL
WHERE load_id = ANY (%(load_ids)s::uuid[]) AND status IN ('held', 'pending')

-- name: hold_again
-- The audit that had rejected the load was repeated: what it had set aside before is its again.
UPDATE etl.dead_letters SET status = 'held', resolved_at = NULL, resolution = NULL
WHERE load_id = %(load_id)s AND status = 'superseded'

-- name: forget
-- The batch is read again, and its bad rows with it.
DELETE FROM etl.dead_letters WHERE load_id = %(load_id)s AND status = 'held'

-- name: others_pending
SELECT EXISTS (SELECT FROM etl.dead_letters
               WHERE stream = %(stream)s AND status = 'pending' AND load_id <> %(load_id)s)

-- name: overtake
-- Rows that a load has read again, or that it leaves out because they are gone.
UPDATE etl.dead_letters AS d
SET status = 'superseded', resolved_at = clock_timestamp(), resolution = %(why)s, replay = NULL
FROM etl.loads AS l
WHERE d.stream = %(stream)s AND d.status = 'pending' AND d.load_id <> %(load_id)s AND l.load_id = d.load_id
  AND coalesce(l.read_until, l.snapshot_at) <= %(snapshot_at)s AND {reached}

-- name: give_way
-- Rows of the load itself that one which read later has published, or set aside, already.
UPDATE etl.dead_letters AS d
SET status = 'superseded', resolved_at = clock_timestamp(), resolution = %(why)s
WHERE d.load_id = %(load_id)s AND d.status = 'pending' AND ({reached})

-- name: mark_replayed
UPDATE etl.dead_letters
SET status = 'replayed', resolved_at = clock_timestamp(), resolution = %(why)s
WHERE replay = %(load_id)s AND status = 'pending'

-- name: reasons
SELECT reason, count(*) FROM etl.dead_letters
WHERE load_id = %(load_id)s AND status IN ('held', 'pending') GROUP BY reason ORDER BY count(*) DESC, reason

-- What people do with letters: look at them, replay them, discard them.

-- name: pending_by_load
SELECT d.load_id::text AS load_id, array_agg(d.id ORDER BY d.id) AS ids
FROM etl.dead_letters AS d JOIN etl.loads AS l USING (load_id)
WHERE d.stream = %(stream)s AND d.status = 'pending' AND (%(ids)s::bigint[] IS NULL OR d.id = ANY (%(ids)s::bigint[]))
GROUP BY d.load_id, l.seq ORDER BY l.seq

-- name: others_asked_for
SELECT id, stream, status FROM etl.dead_letters WHERE id = ANY (%(ids)s::bigint[])

-- name: lock_pending
SELECT id, replay::text AS replay, expectation IS NOT NULL AS audited
FROM etl.dead_letters
WHERE load_id = %(load_id)s AND status = 'pending' AND id = ANY (%(ids)s::bigint[])
ORDER BY id FOR UPDATE

-- name: origin
SELECT strategy, options, manifest FROM etl.loads WHERE load_id = %(load_id)s AND state = 'published'

-- name: last_report
-- What the newest audit of the stream has judged.
SELECT report -> 'results' FROM etl.loads
WHERE stream = %(stream)s AND replays IS NULL AND jsonb_typeof(report -> 'results') = 'array'
  AND jsonb_array_length(report -> 'results') > 0
ORDER BY validated_at DESC NULLS LAST, seq DESC LIMIT 1

-- name: take
UPDATE etl.dead_letters SET replay = %(replay)s WHERE id = ANY (%(ids)s::bigint[]) AND status = 'pending'

-- name: let_go
UPDATE etl.dead_letters SET replay = NULL WHERE replay = %(replay)s AND status = 'pending' RETURNING id

-- name: failed_again
UPDATE etl.dead_letters AS d
SET retries = retries + 1, replay = NULL, reason = f.reason,
    expectation = coalesce(f.expectation, d.expectation), severity = coalesce(f.severity, d.severity)
FROM unnest(%(ids)s::bigint[], %(reasons)s::text[], %(expectations)s::text[], %(severities)s::text[])
    AS f (id, reason, expectation, severity)
WHERE d.id = f.id AND d.status = 'pending'

-- name: overtaken
UPDATE etl.dead_letters
SET status = 'superseded', resolved_at = clock_timestamp(), resolution = %(why)s, replay = NULL
WHERE id = ANY (%(ids)s::bigint[]) AND status = 'pending'

-- name: listed
SELECT id, stream, load_id::text AS load_id, record_key, reason, expectation, severity, error_class, status, retries,
       occurred_at, resolved_at, resolution
FROM etl.dead_letters
WHERE (%(stream)s::text IS NULL OR stream = %(stream)s) AND (%(load_id)s::uuid IS NULL OR load_id = %(load_id)s::uuid)
  AND status = ANY (%(statuses)s::text[])
ORDER BY id LIMIT %(limit)s

-- name: counted
SELECT stream, status, reason, count(*) AS letters
FROM etl.dead_letters
WHERE (%(stream)s::text IS NULL OR stream = %(stream)s) AND (%(load_id)s::uuid IS NULL OR load_id = %(load_id)s::uuid)
  AND status = ANY (%(statuses)s::text[])
GROUP BY stream, status, reason ORDER BY stream, count(*) DESC, status, reason

-- name: shown
SELECT d.id, d.stream, d.load_id::text AS load_id, d.record, d.record_key, d.position, d.reason, d.expectation, d.severity,
       d.error_class, d.status, d.retries, d.occurred_at, d.resolved_at, d.resolution, d.replay::text AS replay,
       l.target, l.dag_id, l.run_id, l.window_low, l.window_high, l.window_type, l.bounds
FROM etl.dead_letters AS d JOIN etl.loads AS l USING (load_id)
WHERE d.id = %(id)s

-- name: discard
UPDATE etl.dead_letters SET status = 'discarded', resolved_at = clock_timestamp(), resolution = %(why)s, replay = NULL
WHERE id = ANY (%(ids)s::bigint[]) AND status = 'pending' RETURNING id

-- name: pending_ids
SELECT id FROM etl.dead_letters
WHERE stream = %(stream)s AND status = 'pending' AND (%(load_id)s::uuid IS NULL OR load_id = %(load_id)s::uuid)
ORDER BY id
