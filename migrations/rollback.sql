-- Takes away everything that Tollgate's migrations made, and all that it recorded. Safe to run twice.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

DROP VIEW IF EXISTS audit_chain_entries;
DROP FUNCTION IF EXISTS tollgate_bury_audit(TIMESTAMPTZ);
DROP FUNCTION IF EXISTS tollgate_write_audit(TEXT, UUID[], TEXT[], TEXT[], TEXT[], TEXT[], TEXT[], TEXT[], TEXT[], TEXT[],
    TEXT[], TEXT[], TEXT[], TEXT[], TEXT[], INET[], TEXT[], TEXT[], TIMESTAMPTZ[], BOOLEAN[]);
DROP FUNCTION IF EXISTS tollgate_audit_seal(TEXT, BIGINT, BYTEA);
DROP FUNCTION IF EXISTS tollgate_audit_lock(TEXT[]);
DROP AGGREGATE IF EXISTS tollgate_audit_chained(BYTEA, TEXT, BIGINT, TIMESTAMPTZ, BYTEA);
DROP FUNCTION IF EXISTS tollgate_audit_step(BYTEA, BYTEA, TEXT, BIGINT, TIMESTAMPTZ, BYTEA);
DROP FUNCTION IF EXISTS tollgate_audit_link(BYTEA, TEXT, BIGINT, TIMESTAMPTZ, BYTEA);
DROP FUNCTION IF EXISTS tollgate_audit_digest(UUID, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, JSONB, JSONB, TEXT, TEXT,
    TEXT, INET, TEXT, TEXT, BOOLEAN);
DROP FUNCTION IF EXISTS tollgate_resolution_digest(UUID, TIMESTAMPTZ, TEXT, TEXT);
DROP FUNCTION IF EXISTS cleanup_old_alerts();
DO $$
BEGIN
    -- A function's argument must name a type that is there, IF EXISTS or not.
    IF to_regclass('alert_outbox') IS NOT NULL THEN
        DROP FUNCTION IF EXISTS tollgate_alert_body(alert_outbox);
    END IF;
END
$$;
DROP FUNCTION IF EXISTS tollgate_lease(TEXT, BIGINT, BIGINT, INTERVAL, TEXT[], TEXT[], TIMESTAMPTZ[], TIMESTAMPTZ[], BIGINT[], BIGINT[], BIGINT[], BIGINT[]);
DROP FUNCTION IF EXISTS aggregate_usage_metrics();
DROP FUNCTION IF EXISTS tollgate_write_usage(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, TEXT[], TIMESTAMPTZ[]);
DROP FUNCTION IF EXISTS tollgate_percentiles(SMALLINT[], BIGINT[], NUMERIC[], BIGINT);
DROP FUNCTION IF EXISTS tollgate_latency_bucket(INTEGER);
DROP FUNCTION IF EXISTS tollgate_amend(UUID[], TIMESTAMPTZ[], BIGINT[], BIGINT[], BIGINT[], BIGINT[], BIGINT[], BIGINT[], TEXT[], BIGINT[]);
DROP FUNCTION IF EXISTS tollgate_tell_old_values(UUID[], TIMESTAMPTZ[]);
DROP FUNCTION IF EXISTS cleanup_old_quota_windows();
DROP FUNCTION IF EXISTS cleanup_old_audit_events();
DROP FUNCTION IF EXISTS cleanup_old_realtime_events();
DROP FUNCTION IF EXISTS resolve_audit_event(UUID, TEXT);
DROP FUNCTION IF EXISTS check_tenant_quota(UUID, INTEGER);
DROP FUNCTION IF EXISTS check_tenant_quota(TEXT, INTEGER);
DROP FUNCTION IF EXISTS tollgate_remove_before(REGCLASS, TIMESTAMPTZ);
DROP FUNCTION IF EXISTS tollgate_make_partitions_ahead();
DROP FUNCTION IF EXISTS tollgate_make_partition(REGCLASS, TEXT, TIMESTAMPTZ, TIMESTAMPTZ);

DROP TABLE IF EXISTS alert_outbox;
DROP TABLE IF EXISTS gateway_replicas;
DROP TABLE IF EXISTS tenant_quota_overrides;
DROP TABLE IF EXISTS quota_leases;
DROP TABLE IF EXISTS quota_usage;
DROP TABLE IF EXISTS audit_events;
DROP FUNCTION IF EXISTS tollgate_chain_inserted();
DROP TABLE IF EXISTS audit_chains;
DROP TABLE IF EXISTS audit_removed;
DROP TABLE IF EXISTS audit_resolutions;
DROP TABLE IF EXISTS audit_unchained;
DROP TABLE IF EXISTS usage_aggregation_state;
DROP TABLE IF EXISTS tenant_model_usage;
DROP TABLE IF EXISTS tenant_usage_metrics;
DROP TABLE IF EXISTS tenant_usage_realtime;
DROP TABLE IF EXISTS tollgate_schema;
DROP SEQUENCE IF EXISTS tenant_quota_overrides_version_seq;
DROP SEQUENCE IF EXISTS tenant_usage_realtime_entry_id_seq;

COMMIT;
