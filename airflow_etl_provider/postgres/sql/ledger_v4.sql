-- The ledger, version 4: rows that were set aside can be replayed, by loads that say whose rows they bring back.
ALTER TABLE etl.loads
    ADD COLUMN replays uuid,
    ADD COLUMN options jsonb;
COMMENT ON COLUMN etl.loads.replays IS 'The load whose dead letters this one brings back; it covers no window of its own.';
COMMENT ON COLUMN etl.loads.options IS 'What publish was told about the rows, so that a replay publishes in the same way.';

ALTER TABLE etl.dead_letters
    ADD COLUMN position text,
    ADD COLUMN replay uuid;
COMMENT ON COLUMN etl.dead_letters.position IS 'The row''s cursor value, where it has a valid one.';
COMMENT ON COLUMN etl.dead_letters.replay IS 'The load that brings the row back, or has.';
CREATE INDEX dead_letters_stream ON etl.dead_letters (stream, status, id);
CREATE INDEX dead_letters_replay ON etl.dead_letters (replay) WHERE replay IS NOT NULL;

INSERT INTO etl.schema_version (version) VALUES (4);
