-- The ledger, version 3: coverage can be deleted from where a publication FOR ALL TABLES replicates it.
ALTER TABLE etl.coverage REPLICA IDENTITY FULL;

INSERT INTO etl.schema_version (version) VALUES (3);
