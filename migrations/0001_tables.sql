-- Tollgate, migration 1: the tables.
--
-- Plain SQL for PostgreSQL 13 and newer. Safe to run again, before or after the service's own migrations:
-- nothing here refers to another application's table. Every file is one transaction.
--
-- Partitions. `tenant_usage_realtime` is partitioned by day: it is kept for 30 days, so retention drops about one
-- partition a day and the table stays at some 40 of them, and most questions ("this tenant, today") read one.
-- `audit_events` is partitioned by month: kept for two years, far fewer rows, some 27 partitions. Both have a
-- DEFAULT partition, so that no event is ever refused because its partition has not been made yet; migration 2
-- makes partitions ahead and moves such rows where they belong.

BEGIN;

-- The same lock as the gateway's own runner takes: two starting replicas, or a replica and psql, wait for each other.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

-- A table of the same name that is not ours would be "IF NOT EXISTS"ed over and break later, obscurely.
DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenant_usage_realtime', 'audit_events'] LOOP
        IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(name) AND relkind <> 'p') THEN
            RAISE EXCEPTION 'a table % that is not Tollgate''s is in the way', name
                USING HINT = format('rename it first: ALTER TABLE %s RENAME TO %s_before_tollgate', name, name);
        END IF;
    END LOOP;
END
$$;

CREATE TABLE IF NOT EXISTS tollgate_schema (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
COMMENT ON TABLE tollgate_schema IS 'Which of Tollgate''s migrations have run; the gateway compares the highest version with its own';

-- Usage, one row for each metered request --------------------------------------------------------------------------

-- A sequence of its own: identity columns work on partitioned tables only from PostgreSQL 17 on.
CREATE SEQUENCE IF NOT EXISTS tenant_usage_realtime_entry_id_seq;

CREATE TABLE IF NOT EXISTS tenant_usage_realtime (
    entry_id                 BIGINT NOT NULL DEFAULT nextval('tenant_usage_realtime_entry_id_seq'),
    event_id                 UUID NOT NULL,
    tenant_id                TEXT NOT NULL,
    event_type               TEXT NOT NULL,
    event_timestamp          TIMESTAMPTZ NOT NULL,
    api_method               TEXT,
    api_endpoint             TEXT,
    api_status_code          INTEGER,
    api_response_time_ms     INTEGER,
    upstream_first_byte_ms   INTEGER,
    chat_session_id          TEXT,
    chat_messages            INTEGER NOT NULL DEFAULT 0,
    embeddings               INTEGER NOT NULL DEFAULT 0,
    embedding_tokens         BIGINT,
    search_query_tokens      BIGINT,
    search_result_count      INTEGER,
    tokens_consumed          BIGINT,
    input_tokens             BIGINT,
    output_tokens            BIGINT,
    cached_input_tokens      BIGINT,
    cache_write_input_tokens BIGINT,
    reasoning_tokens         BIGINT,
    model                    TEXT,
    token_source             TEXT NOT NULL DEFAULT 'none',
    outcome                  TEXT NOT NULL DEFAULT 'completed',
    streamed                 BOOLEAN NOT NULL DEFAULT false,
    cost_usd                 NUMERIC(14, 8) NOT NULL DEFAULT 0,
    request_id               TEXT,
    replica_id               TEXT,
    metadata                 JSONB NOT NULL DEFAULT '{}',
    created_at               TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at               TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- A partitioned table's key must hold the partition column. An event's id and time are both made once, so the
    -- pair is as unique as the id; this is what makes a batch that is sent twice land once.
    CONSTRAINT tenant_usage_realtime_pkey PRIMARY KEY (event_id, event_timestamp),
    CONSTRAINT tenant_usage_realtime_event_type CHECK (event_type IN ('api_call', 'chat_message', 'embedding', 'search', 'kb_ingest')),
    CONSTRAINT tenant_usage_realtime_token_source CHECK (token_source IN ('reported', 'partial', 'counted', 'reserved', 'none')),
    CONSTRAINT tenant_usage_realtime_outcome CHECK (outcome IN ('completed', 'client_aborted', 'upstream_error', 'timeout', 'refused', 'cut', 'crashed'))
) PARTITION BY RANGE (event_timestamp);

ALTER SEQUENCE tenant_usage_realtime_entry_id_seq OWNED BY tenant_usage_realtime.entry_id;

CREATE TABLE IF NOT EXISTS tenant_usage_realtime_default PARTITION OF tenant_usage_realtime DEFAULT;

-- One tenant over a range of time: the usage page, its recent events, and the aggregation.
CREATE INDEX IF NOT EXISTS tenant_usage_realtime_tenant_time
    ON tenant_usage_realtime (tenant_id, event_timestamp DESC);
-- What came or changed since the last aggregation. Rows arrive in about this order, so a block-range index finds
-- them at next to no cost for the writers.
CREATE INDEX IF NOT EXISTS tenant_usage_realtime_updated
    ON tenant_usage_realtime USING brin (updated_at) WITH (autosummarize = on);

COMMENT ON TABLE tenant_usage_realtime IS 'One row for each metered request; kept for 30 days';
COMMENT ON COLUMN tenant_usage_realtime.event_timestamp IS 'When the request arrived';
COMMENT ON COLUMN tenant_usage_realtime.tokens_consumed IS 'Input and output, as reported or counted; of a row that says reserved, what was reserved. Where quotas were charged more, metadata has it (charged_tokens)';
COMMENT ON COLUMN tenant_usage_realtime.cached_input_tokens IS 'A part of input_tokens, never added on top';
COMMENT ON COLUMN tenant_usage_realtime.reasoning_tokens IS 'A part of output_tokens, never added on top';
COMMENT ON COLUMN tenant_usage_realtime.token_source IS 'reserved: charged what was reserved, until an amendment brings the count';
COMMENT ON COLUMN tenant_usage_realtime.updated_at IS 'When the row came or was amended, by the database''s clock; the aggregation goes by it';

-- Usage, aggregated ------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS tenant_usage_metrics (
    metric_id                    UUID NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    tenant_id                    TEXT NOT NULL,
    period_start                 TIMESTAMPTZ NOT NULL,
    period_end                   TIMESTAMPTZ NOT NULL,
    period_type                  TEXT NOT NULL,
    api_calls_total              BIGINT NOT NULL DEFAULT 0,
    api_calls_successful         BIGINT NOT NULL DEFAULT 0,
    api_calls_failed             BIGINT NOT NULL DEFAULT 0,
    api_calls_rate_limited       BIGINT NOT NULL DEFAULT 0,
    api_latency_avg_ms           NUMERIC(14, 2),
    api_latency_p50_ms           INTEGER,
    api_latency_p95_ms           INTEGER,
    api_latency_p99_ms           INTEGER,
    chat_calls                   BIGINT NOT NULL DEFAULT 0,
    chat_messages_sent           BIGINT NOT NULL DEFAULT 0,
    chat_messages_received       BIGINT NOT NULL DEFAULT 0,
    chat_sessions_created        BIGINT NOT NULL DEFAULT 0,
    chat_avg_response_time_ms    NUMERIC(14, 2),
    embeddings_generated         BIGINT NOT NULL DEFAULT 0,
    embeddings_tokens_used       BIGINT NOT NULL DEFAULT 0,
    semantic_searches_performed  BIGINT NOT NULL DEFAULT 0,
    kb_documents_ingested        BIGINT NOT NULL DEFAULT 0,
    kb_documents_failed          BIGINT NOT NULL DEFAULT 0,
    total_tokens_used            BIGINT NOT NULL DEFAULT 0,
    input_tokens                 BIGINT NOT NULL DEFAULT 0,
    output_tokens                BIGINT NOT NULL DEFAULT 0,
    estimated_cost_usd           NUMERIC(20, 8) NOT NULL DEFAULT 0,
    quota_limit                  BIGINT,
    quota_remaining              BIGINT,
    quota_exceeded_count         BIGINT NOT NULL DEFAULT 0,
    error_count                  BIGINT NOT NULL DEFAULT 0,
    error_rate                   NUMERIC(7, 6) NOT NULL DEFAULT 0,
    peak_qps                     INTEGER NOT NULL DEFAULT 0,
    created_at                   TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at                   TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT tenant_usage_metrics_period UNIQUE (tenant_id, period_start, period_type),
    CONSTRAINT tenant_usage_metrics_period_type CHECK (period_type IN ('hourly', 'daily', 'monthly'))
);

-- All tenants of one period, heaviest first: the top consumers.
CREATE INDEX IF NOT EXISTS tenant_usage_metrics_top
    ON tenant_usage_metrics (period_type, period_start DESC, total_tokens_used DESC);
-- One tenant's periods of one kind, latest first.
CREATE INDEX IF NOT EXISTS tenant_usage_metrics_tenant
    ON tenant_usage_metrics (tenant_id, period_type, period_start DESC);

COMMENT ON TABLE tenant_usage_metrics IS 'Usage by tenant and UTC hour, day and month, made by aggregate_usage_metrics()';
COMMENT ON COLUMN tenant_usage_metrics.api_calls_total IS 'successful + failed + rate_limited';
COMMENT ON COLUMN tenant_usage_metrics.api_calls_rate_limited IS 'Answered 429, by Tollgate or by the service, or refused because quotas could not be checked';
COMMENT ON COLUMN tenant_usage_metrics.api_latency_avg_ms IS 'Over the calls that were not rate limited; the percentiles too';
COMMENT ON COLUMN tenant_usage_metrics.chat_messages_received IS 'Messages from visitors, on calls that were not rate limited';
COMMENT ON COLUMN tenant_usage_metrics.chat_messages_sent IS 'Messages answered';
COMMENT ON COLUMN tenant_usage_metrics.quota_limit IS 'Tokens, in the quota window that the period ends in (a month: the monthly quota); NULL is unlimited';
COMMENT ON COLUMN tenant_usage_metrics.error_rate IS 'api_calls_failed / api_calls_total, 0 to 1';
COMMENT ON COLUMN tenant_usage_metrics.peak_qps IS 'Calls in the busiest second';

CREATE TABLE IF NOT EXISTS usage_aggregation_state (
    id            BOOLEAN PRIMARY KEY DEFAULT true CHECK (id),
    watermark     TIMESTAMPTZ NOT NULL DEFAULT '-infinity',
    retained_from TIMESTAMPTZ NOT NULL DEFAULT '-infinity',
    last_run_at   TIMESTAMPTZ
);
INSERT INTO usage_aggregation_state DEFAULT VALUES ON CONFLICT DO NOTHING;

COMMENT ON COLUMN usage_aggregation_state.watermark IS 'When the last aggregation looked at the events';
COMMENT ON COLUMN usage_aggregation_state.retained_from IS 'Events older than this are gone, so a period that begins before it can''t be computed again';

-- Audit ------------------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS audit_events (
    event_id        UUID NOT NULL DEFAULT gen_random_uuid(),
    tenant_id       TEXT,
    event_type      TEXT NOT NULL,
    category        TEXT NOT NULL,
    entity_type     TEXT,
    entity_id       TEXT,
    action          TEXT NOT NULL,
    actor_type      TEXT NOT NULL,
    actor_id        TEXT,
    old_values      JSONB,
    new_values      JSONB,
    changes_summary TEXT,
    result          TEXT NOT NULL DEFAULT 'success',
    error_message   TEXT,
    resolution      TEXT,
    resolved_at     TIMESTAMPTZ,
    resolved_from   TEXT,
    ip_address      INET,
    user_agent      TEXT,
    request_id      TEXT,
    "timestamp"     TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT audit_events_pkey PRIMARY KEY (event_id, "timestamp"),
    CONSTRAINT audit_events_result CHECK (result IN ('success', 'failure', 'partial', 'resolved'))
) PARTITION BY RANGE ("timestamp");

CREATE TABLE IF NOT EXISTS audit_events_default PARTITION OF audit_events DEFAULT;

CREATE INDEX IF NOT EXISTS audit_events_tenant_time ON audit_events (tenant_id, "timestamp" DESC);
CREATE INDEX IF NOT EXISTS audit_events_type_time ON audit_events (event_type, "timestamp" DESC);
CREATE INDEX IF NOT EXISTS audit_events_time ON audit_events ("timestamp" DESC);

COMMENT ON TABLE audit_events IS 'Who did what; kept for two years';
COMMENT ON COLUMN audit_events.resolved_from IS 'What result was before the event was resolved';

-- Quota ------------------------------------------------------------------------------------------------------------

-- Counters are updated in place many times: room on each page keeps the updates off the indexes (HOT).
CREATE TABLE IF NOT EXISTS quota_usage (
    tenant_id    TEXT NOT NULL,
    dimension    TEXT NOT NULL,
    window_start TIMESTAMPTZ NOT NULL,
    window_end   TIMESTAMPTZ NOT NULL,
    settled      BIGINT NOT NULL DEFAULT 0,
    limit_value  BIGINT,
    updated_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT quota_usage_pkey PRIMARY KEY (tenant_id, dimension, window_start)
) WITH (fillfactor = 70);

-- The windows that hold now: read once at start; and the old ones, for retention.
CREATE INDEX IF NOT EXISTS quota_usage_window_end ON quota_usage (window_end);

COMMENT ON TABLE quota_usage IS 'Live counters: raised in the transaction that inserts the events they count';
COMMENT ON COLUMN quota_usage.settled IS 'Used by all replicas, as far as their events are written';
COMMENT ON COLUMN quota_usage.limit_value IS 'The tenant''s limit when it was last charged; NULL is unlimited';

CREATE TABLE IF NOT EXISTS quota_leases (
    replica_id   TEXT NOT NULL,
    tenant_id    TEXT NOT NULL,
    dimension    TEXT NOT NULL,
    window_start TIMESTAMPTZ NOT NULL,
    window_end   TIMESTAMPTZ NOT NULL,
    granted      BIGINT NOT NULL DEFAULT 0,
    consumed     BIGINT NOT NULL DEFAULT 0,
    granted_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    expires_at   TIMESTAMPTZ,
    wanted_at    TIMESTAMPTZ,
    CONSTRAINT quota_leases_pkey PRIMARY KEY (tenant_id, dimension, window_start, replica_id)
) WITH (fillfactor = 70);

CREATE INDEX IF NOT EXISTS quota_leases_replica ON quota_leases (replica_id);

COMMENT ON TABLE quota_leases IS 'What a replica may spend without asking: granted - consumed, in one window';
COMMENT ON COLUMN quota_leases.consumed IS 'The part of granted whose events are written, and so are counted in quota_usage.settled';
COMMENT ON COLUMN quota_leases.wanted_at IS 'Since when another replica is refused for want of this lease''s rest';

CREATE SEQUENCE IF NOT EXISTS tenant_quota_overrides_version_seq;

CREATE TABLE IF NOT EXISTS tenant_quota_overrides (
    tenant_id   TEXT NOT NULL,
    dimension   TEXT NOT NULL,
    limit_value BIGINT CHECK (limit_value >= 0),
    plan        TEXT,
    reason      TEXT,
    expires_at  TIMESTAMPTZ,
    set_by      TEXT,
    removed_at  TIMESTAMPTZ,
    version     BIGINT NOT NULL DEFAULT nextval('tenant_quota_overrides_version_seq'),
    created_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    updated_at  TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT tenant_quota_overrides_pkey PRIMARY KEY (tenant_id, dimension)
);
ALTER SEQUENCE tenant_quota_overrides_version_seq OWNED BY tenant_quota_overrides.version;

CREATE INDEX IF NOT EXISTS tenant_quota_overrides_version ON tenant_quota_overrides (version);

COMMENT ON TABLE tenant_quota_overrides IS 'Limits that operators set for one tenant; dimension ''plan'' names another plan';
COMMENT ON COLUMN tenant_quota_overrides.limit_value IS 'NULL is unlimited';
COMMENT ON COLUMN tenant_quota_overrides.removed_at IS 'An override that is taken back stays as a tombstone, so that replicas that poll by version see it go';
COMMENT ON COLUMN tenant_quota_overrides.version IS 'Rises with every change to any row';

CREATE TABLE IF NOT EXISTS gateway_replicas (
    replica_id   TEXT PRIMARY KEY,
    state        TEXT NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'draining', 'stopped', 'retired')),
    address      TEXT,
    version      TEXT,
    started_at   TIMESTAMPTZ NOT NULL DEFAULT now(),
    heartbeat_at TIMESTAMPTZ NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

COMMENT ON TABLE gateway_replicas IS 'Tollgate processes by the id in their data directory';
COMMENT ON COLUMN gateway_replicas.heartbeat_at IS 'By the database''s clock; live replicas are those seen lately';

INSERT INTO tollgate_schema (version, name) VALUES (1, 'tables') ON CONFLICT DO NOTHING;

COMMIT;
