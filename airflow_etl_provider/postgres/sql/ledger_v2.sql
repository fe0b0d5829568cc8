-- The ledger, version 2: slices are planned before they are loaded, so that a retry goes on behind them.
ALTER TABLE etl.load_slices
    ALTER COLUMN rows DROP NOT NULL,
    ALTER COLUMN bytes DROP NOT NULL,
    ALTER COLUMN low TYPE text[] USING ARRAY[low],
    ALTER COLUMN high TYPE text[] USING ARRAY[high],
    ADD COLUMN by text[] NOT NULL,
    ADD COLUMN checksum numeric,
    ADD COLUMN snapshot_at timestamptz,
    ADD COLUMN loaded_at timestamptz;
COMMENT ON TABLE etl.load_slices IS 'Slices of a load, half-open in the order of the columns "by"; loaded_at is set when one is staged.';

ALTER TABLE etl.loads
    ADD COLUMN settled text,
    ADD COLUMN fingerprint text,
    ADD COLUMN read_until timestamptz;
COMMENT ON COLUMN etl.loads.read_until IS 'When the last part of the batch was read; snapshot_at is when the first was.';
COMMENT ON COLUMN etl.loads.fingerprint IS 'Of what is read and how; slices of tries with another one do not belong together.';

INSERT INTO etl.schema_version (version) VALUES (2);
