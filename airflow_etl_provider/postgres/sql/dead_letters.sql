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
  AND (%(whenever)s OR coalesce(l.read_until, l.snapshot_at) <= %(snapshot_at)s)
  AND {reached}

-- name: mark_replayed
UPDATE etl.dead_letters
SET status = 'replayed', resolved_at = clock_timestamp(), resolution = %(why)s
WHERE replay = %(load_id)s AND status = 'pending'

-- name: reasons
SELECT reason, count(*) FROM etl.dead_letters
WHERE load_id = %(load_id)s AND status IN ('held', 'pending') GROUP BY reason ORDER BY count(*) DESC, reason
