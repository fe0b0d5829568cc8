-- The ledger, version 5: partitions that retention has taken out, and what they mean for coverage.
CREATE TABLE etl.retired_partitions (
    retirement_id  uuid PRIMARY KEY,
    target         text NOT NULL,
    parent         text NOT NULL,
    partition      text NOT NULL,
    bound          text NOT NULL,
    kept           text NOT NULL,
    names          jsonb NOT NULL,
    rebuild        jsonb,
    coverage       jsonb NOT NULL,
    rows           bigint NOT NULL,
    bytes          bigint NOT NULL,
    why            text NOT NULL,
    actor          text NOT NULL,
    retired_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    drop_after     timestamptz NOT NULL,
    dropped_at     timestamptz,
    restored_at    timestamptz
);
CREATE INDEX retired_partitions_target ON etl.retired_partitions (target, retired_at);
COMMENT ON COLUMN etl.retired_partitions.names IS
    'Of every table that was moved: where it is kept, what it was called, and its indexes by their names aside.';
COMMENT ON TABLE etl.retired_partitions IS
    'Partitions that retention detached; kept in the staging schema until drop_after, then dropped by the janitor.';

ALTER TABLE etl.coverage ADD COLUMN retired_at timestamptz;
COMMENT ON COLUMN etl.coverage.retired_at IS
    'The range is no longer kept: neither covered nor missing. load_id is then the retirement.';

CREATE TABLE etl.analyzed_tables (
    target       text PRIMARY KEY,
    counters     jsonb NOT NULL,
    analyzed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE etl.analyzed_tables IS
    'When maintenance last renewed the statistics of a partitioned table as a whole. counters: by oid of its partitions, how many rows had been written into them, and how many they held.';

-- The new tables belong to whom the ledger belongs to, whoever runs this, and who may work with it may go on.
DO $$
DECLARE
    made   text;
    owner  oid;
    one    record;
BEGIN
    SELECT relowner INTO owner FROM pg_class WHERE oid = 'etl.loads'::regclass;
    FOREACH made IN ARRAY ARRAY['retired_partitions', 'analyzed_tables'] LOOP
        IF owner <> (SELECT relowner FROM pg_class WHERE oid = format('etl.%I', made)::regclass) THEN
            EXECUTE format('ALTER TABLE etl.%I OWNER TO %I', made, pg_get_userbyid(owner));
        END IF;
        FOR one IN
            SELECT acl.privilege_type AS privilege, acl.is_grantable,
                   CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE format('%I', pg_get_userbyid(acl.grantee)) END AS role
            FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS acl
            WHERE c.oid = 'etl.loads'::regclass AND acl.grantee <> c.relowner
        LOOP
            EXECUTE format('GRANT %s ON etl.%I TO %s', one.privilege, made, one.role)
                 || CASE WHEN one.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END;
        END LOOP;
    END LOOP;
END
$$;

INSERT INTO etl.schema_version (version) VALUES (5);
