-- Alerts: what was noticed, once for each window over all replicas, and how far each got on its way to the webhook.
-- docs/alerts.md says what is noticed and how a delivery is verified.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

CREATE TABLE IF NOT EXISTS alert_outbox (
    alert_id        UUID NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    tenant_id       TEXT NOT NULL DEFAULT '',
    kind            TEXT NOT NULL,
    dimension       TEXT NOT NULL DEFAULT '',
    threshold       NUMERIC NOT NULL,
    window_start    TIMESTAMPTZ NOT NULL,
    window_end      TIMESTAMPTZ NOT NULL,
    observed        NUMERIC NOT NULL,
    reference       NUMERIC,
    summary         TEXT NOT NULL,
    state           TEXT NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_error      TEXT,
    created_at      TIMESTAMPTZ NOT NULL DEFAULT now(),
    sent_at         TIMESTAMPTZ,
    -- What makes it once for each window, whoever notices: the second to insert it inserts nothing.
    CONSTRAINT alert_outbox_once UNIQUE (tenant_id, kind, dimension, threshold, window_start),
    CONSTRAINT alert_outbox_kind CHECK (kind IN ('quota_threshold', 'error_rate', 'latency_p99', 'cost', 'aggregation_missed')),
    CONSTRAINT alert_outbox_state CHECK (state IN ('pending', 'sent', 'failed', 'unsent'))
);

-- What is due. Of the rows kept for 90 days these are the few, so that asking often costs nothing.
CREATE INDEX IF NOT EXISTS alert_outbox_due ON alert_outbox (next_attempt_at) WHERE state = 'pending';
-- The list of operators, latest first: of all, and of one tenant.
CREATE INDEX IF NOT EXISTS alert_outbox_time ON alert_outbox (created_at DESC, alert_id DESC);
CREATE INDEX IF NOT EXISTS alert_outbox_tenant_time ON alert_outbox (tenant_id, created_at DESC, alert_id DESC);

COMMENT ON TABLE alert_outbox IS 'Alerts raised, and their way to the webhook; kept for 90 days';
COMMENT ON COLUMN alert_outbox.tenant_id IS 'Empty: it concerns the gateway as a whole';
COMMENT ON COLUMN alert_outbox.threshold IS 'Per cent of a quota; a share of calls; milliseconds; a multiple of the average; seconds';
COMMENT ON COLUMN alert_outbox.observed IS 'What was found when it was raised: used, a share of calls, milliseconds, US dollars, seconds';
COMMENT ON COLUMN alert_outbox.reference IS 'What it was held against: the limit, the calls, the average in US dollars, the interval in seconds';
COMMENT ON COLUMN alert_outbox.state IS 'unsent: no webhook was configured; failed: given up after the last attempt';

-- An alert as the webhook is sent it. The same bytes at each attempt: the id is what a receiver goes by.
CREATE OR REPLACE FUNCTION tollgate_alert_body(alert alert_outbox)
RETURNS JSONB
LANGUAGE sql
STABLE
SET timezone = 'UTC'
AS $$
    SELECT jsonb_build_object(
        'id', alert.alert_id,
        'kind', alert.kind,
        'tenant_id', nullif(alert.tenant_id, ''),
        'dimension', nullif(alert.dimension, ''),
        'threshold', alert.threshold,
        'observed', alert.observed,
        'reference', alert.reference,
        'window_start', alert.window_start,
        'window_end', alert.window_end,
        'raised_at', alert.created_at,
        'summary', alert.summary)
$$;

CREATE OR REPLACE FUNCTION cleanup_old_alerts()
RETURNS BIGINT
LANGUAGE plpgsql
AS $$
DECLARE
    removed BIGINT;
BEGIN
    DELETE FROM alert_outbox WHERE created_at < now() - interval '90 days';
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END
$$;

INSERT INTO tollgate_schema (version, name) VALUES (6, 'alerts') ON CONFLICT DO NOTHING;

COMMIT;
