-- The functions on the way of each batch and of each round of leases run short statements, which compiling (JIT) only delays.
--
-- One that is told to prefer indexes (`enable_seqscan = off`) is compiled nearly always where a table has no index that
-- serves: "off" adds 10,000,000,000 to a scan's cost, which is far above `jit_above_cost`. A round of leases for five keys
-- took 32 ms, nearly all of it the compiler's, and takes less than 1 ms without.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

ALTER FUNCTION tollgate_lease(TEXT, BIGINT, BIGINT, INTERVAL, TEXT[], TEXT[], TIMESTAMPTZ[], TIMESTAMPTZ[], BIGINT[], BIGINT[],
    BIGINT[], BIGINT[]) SET jit = off;
ALTER FUNCTION tollgate_amend(UUID[], TIMESTAMPTZ[], BIGINT[], BIGINT[], BIGINT[], BIGINT[], BIGINT[], BIGINT[], TEXT[], BIGINT[])
    SET jit = off;
ALTER FUNCTION tollgate_tell_old_values(UUID[], TIMESTAMPTZ[]) SET jit = off;

INSERT INTO tollgate_schema (version, name) VALUES (9, 'no_jit') ON CONFLICT DO NOTHING;

COMMIT;
