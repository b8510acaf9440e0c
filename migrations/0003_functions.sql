-- Tollgate, migration 3: what operators and jobs call.
--
-- The functions are dropped before they are made: an earlier attempt inside the service left some of the same names
-- with other results, and CREATE OR REPLACE can't change what a function returns.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

DROP FUNCTION IF EXISTS check_tenant_quota(TEXT, INTEGER);
DROP FUNCTION IF EXISTS check_tenant_quota(UUID, INTEGER);
DROP FUNCTION IF EXISTS resolve_audit_event(UUID, TEXT);
DROP FUNCTION IF EXISTS aggregate_usage_metrics();
DROP FUNCTION IF EXISTS cleanup_old_realtime_events();
DROP FUNCTION IF EXISTS cleanup_old_audit_events();

-- Whether `amount` more tokens fit a tenant's daily quota, by the live counters. A tenant that has none yet, and
-- one without a limit, may. Subtracting instead of adding can't overflow: limits are never negative.
CREATE FUNCTION check_tenant_quota(p_tenant_id TEXT, p_tokens INTEGER)
RETURNS BOOLEAN
LANGUAGE sql
STABLE
AS $$
    SELECT NOT EXISTS (
        SELECT FROM quota_usage
        WHERE tenant_id = p_tenant_id
          AND dimension = 'tokens_per_day'
          AND window_start <= now()
          AND now() < window_end
          AND settled > limit_value - p_tokens
    )
$$;

CREATE FUNCTION check_tenant_quota(p_tenant_id UUID, p_tokens INTEGER)
RETURNS BOOLEAN
LANGUAGE sql
STABLE
AS $$
    SELECT check_tenant_quota(p_tenant_id::text, p_tokens)
$$;

-- Marks an audit event as dealt with and keeps how. False when there is no such event, or when it was resolved
-- before: the first resolution stays.
CREATE FUNCTION resolve_audit_event(p_event_id UUID, p_resolution TEXT)
RETURNS BOOLEAN
LANGUAGE plpgsql
AS $$
BEGIN
    IF coalesce(btrim(p_resolution), '') = '' THEN
        RAISE EXCEPTION 'a resolution needs a text' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE audit_events
        SET result = 'resolved', resolved_from = result, resolution = p_resolution, resolved_at = now()
        WHERE event_id = p_event_id AND result <> 'resolved';
    RETURN FOUND;
END
$$;

CREATE FUNCTION cleanup_old_realtime_events()
RETURNS BIGINT
LANGUAGE plpgsql
AS $$
DECLARE
    cutoff TIMESTAMPTZ := now() - interval '30 days';
BEGIN
    -- The aggregation's lock: a period must not lose events while it is being computed.
    PERFORM pg_advisory_xact_lock(7021993003);
    UPDATE usage_aggregation_state SET retained_from = greatest(retained_from, cutoff);
    RETURN tollgate_remove_before('tenant_usage_realtime', cutoff);
END
$$;

CREATE FUNCTION cleanup_old_audit_events()
RETURNS BIGINT
LANGUAGE sql
AS $$
    SELECT tollgate_remove_before('audit_events', now() - interval '2 years')
$$;

-- Counters of windows long over. Minutes make a row for each minute in which a tenant calls, so they go after two
-- days; longer windows stay for as long as anyone may ask how a day or a month ended.
CREATE OR REPLACE FUNCTION cleanup_old_quota_windows()
RETURNS BIGINT
LANGUAGE plpgsql
AS $$
DECLARE
    removed BIGINT;
BEGIN
    DELETE FROM quota_usage
        WHERE window_end < now() - interval '2 days'
          AND (window_end - window_start <= interval '1 minute' OR window_end < now() - interval '400 days');
    GET DIAGNOSTICS removed = ROW_COUNT;
    DELETE FROM quota_leases WHERE window_end < now() - interval '2 days';
    RETURN removed;
END
$$;

-- Computes the hours, days and months that events came to, or were amended in, since the last run: late events as
-- well as those of the periods still going on. A period is computed whole and replaces its row, so running twice
-- changes nothing. Returns how many rows of each kind were written, and from when on events were looked at.
--
-- "Since the last run" overlaps the last run by an hour: updated_at is when a transaction began, and one that began
-- before a run may commit after it. The gateway's transactions are bounded to seconds.
--
-- Months are summed from days, because on a month's 31st day the events of its first are gone (30 days). Their
-- percentiles are of the events still there. A period whose events are partly gone keeps the row that it has.
CREATE FUNCTION aggregate_usage_metrics(OUT hourly INTEGER, OUT daily INTEGER, OUT monthly INTEGER, OUT since TIMESTAMPTZ)
LANGUAGE plpgsql
SET timezone = 'UTC'
AS $$
DECLARE
    began    TIMESTAMPTZ;
    retained TIMESTAMPTZ;
    unit     TEXT;
    kind     TEXT;
    step     INTERVAL;
    first    TIMESTAMPTZ;
    last     TIMESTAMPTZ;
    written  INTEGER;
    most     CONSTANT NUMERIC := 9223372036854775807;
BEGIN
    PERFORM pg_advisory_xact_lock(7021993003);
    INSERT INTO usage_aggregation_state DEFAULT VALUES ON CONFLICT DO NOTHING;
    began := clock_timestamp();
    SELECT s.watermark - interval '1 hour', s.retained_from INTO since, retained FROM usage_aggregation_state s;

    -- The outermost periods touched bound what is read, so that only their partitions are.
    SELECT date_trunc('day', min(event_timestamp)), date_trunc('day', max(event_timestamp)) + interval '1 day'
        INTO first, last
        FROM tenant_usage_realtime WHERE updated_at >= since;

    FOREACH unit IN ARRAY ARRAY['hour', 'day'] LOOP
        kind := CASE unit WHEN 'hour' THEN 'hourly' ELSE 'daily' END;
        step := ('1 ' || unit)::interval;
        WITH touched AS (
            SELECT DISTINCT tenant_id, date_trunc(unit, event_timestamp) AS starts
            FROM tenant_usage_realtime
            WHERE updated_at >= since AND event_timestamp >= first AND event_timestamp < last
        ), periods AS (
            SELECT t.tenant_id, t.starts
            FROM touched t
            WHERE t.starts >= retained
               OR NOT EXISTS (SELECT FROM tenant_usage_metrics m
                              WHERE m.tenant_id = t.tenant_id AND m.period_start = t.starts AND m.period_type = kind)
        ), events AS (
            SELECT p.starts, e.tenant_id, e.event_type, e.event_timestamp, e.api_response_time_ms, e.chat_messages,
                   e.embeddings, e.embedding_tokens, e.tokens_consumed, e.input_tokens, e.output_tokens, e.cost_usd,
                   coalesce(e.api_status_code = 429, false)
                       OR (e.outcome = 'refused' AND coalesce(e.api_status_code = 503, false)) AS limited,
                   coalesce(e.api_status_code < 400, false) AND e.outcome IN ('completed', 'client_aborted') AS fine,
                   e.outcome = 'refused' AND coalesce(e.api_status_code = 429, false) AS exceeded
            FROM periods p
            JOIN tenant_usage_realtime e
              ON e.tenant_id = p.tenant_id AND e.event_timestamp >= p.starts AND e.event_timestamp < p.starts + step
            WHERE e.event_timestamp >= first AND e.event_timestamp < last
        ), sums AS (
            SELECT tenant_id, starts,
                count(*) AS total,
                count(*) FILTER (WHERE fine) AS good,
                count(*) FILTER (WHERE limited) AS limited,
                count(*) FILTER (WHERE exceeded) AS exceeded,
                avg(api_response_time_ms) FILTER (WHERE NOT limited) AS latency,
                percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY api_response_time_ms)
                    FILTER (WHERE NOT limited) AS latencies,
                count(*) FILTER (WHERE event_type = 'chat_message' AND fine) AS chats,
                avg(api_response_time_ms) FILTER (WHERE event_type = 'chat_message' AND fine) AS chat_latency,
                coalesce(sum(chat_messages) FILTER (WHERE event_type = 'chat_message' AND fine), 0) AS answered,
                coalesce(sum(greatest(chat_messages, 1)) FILTER (WHERE event_type = 'chat_message' AND NOT limited), 0) AS asked,
                coalesce(sum(embeddings) FILTER (WHERE fine), 0) AS embedded,
                coalesce(sum(embedding_tokens), 0) AS embedding_tokens,
                count(*) FILTER (WHERE event_type = 'search' AND fine) AS searches,
                count(*) FILTER (WHERE event_type = 'kb_ingest' AND fine) AS ingested,
                count(*) FILTER (WHERE event_type = 'kb_ingest' AND NOT fine AND NOT limited) AS ingest_failed,
                coalesce(sum(tokens_consumed), 0) AS tokens,
                coalesce(sum(input_tokens), 0) AS input,
                coalesce(sum(output_tokens), 0) AS output,
                coalesce(sum(cost_usd), 0) AS cost
            FROM events GROUP BY tenant_id, starts
        ), peaks AS (
            SELECT tenant_id, starts, max(calls) AS peak
            FROM (SELECT tenant_id, starts, count(*) AS calls
                  FROM events GROUP BY tenant_id, starts, date_trunc('second', event_timestamp)) seconds
            GROUP BY tenant_id, starts
        )
        INSERT INTO tenant_usage_metrics AS m (
            tenant_id, period_start, period_end, period_type,
            api_calls_total, api_calls_successful, api_calls_failed, api_calls_rate_limited,
            api_latency_avg_ms, api_latency_p50_ms, api_latency_p95_ms, api_latency_p99_ms,
            chat_calls, chat_messages_sent, chat_messages_received, chat_sessions_created, chat_avg_response_time_ms,
            embeddings_generated, embeddings_tokens_used, semantic_searches_performed,
            kb_documents_ingested, kb_documents_failed,
            total_tokens_used, input_tokens, output_tokens, estimated_cost_usd,
            quota_limit, quota_remaining, quota_exceeded_count, error_count, error_rate, peak_qps)
        SELECT s.tenant_id, s.starts, s.starts + step, kind,
            s.total, s.good, s.total - s.good - s.limited, s.limited,
            s.latency, s.latencies[1], s.latencies[2], s.latencies[3],
            s.chats, s.answered, s.asked, sessions.created, s.chat_latency,
            s.embedded, least(s.embedding_tokens, most), s.searches,
            s.ingested, s.ingest_failed,
            least(s.tokens, most), least(s.input, most), least(s.output, most), s.cost,
            quota.limit_value, quota.limit_value - least(greatest(quota.settled, 0), quota.limit_value), s.exceeded,
            s.total - s.good - s.limited, (s.total - s.good - s.limited)::numeric / s.total, p.peak
        FROM sums s
        JOIN peaks p USING (tenant_id, starts)
        CROSS JOIN LATERAL (
            SELECT count(*) AS created FROM audit_events a
            WHERE a.tenant_id = s.tenant_id AND a."timestamp" >= s.starts AND a."timestamp" < s.starts + step
              AND a.event_type = 'chat_session_created'
        ) sessions
        LEFT JOIN LATERAL (
            SELECT q.limit_value, q.settled FROM quota_usage q
            WHERE q.tenant_id = s.tenant_id AND q.dimension = 'tokens_per_day'
              AND q.window_start < s.starts + step AND q.window_end > s.starts
            ORDER BY q.window_start DESC LIMIT 1
        ) quota ON true
        ON CONFLICT (tenant_id, period_start, period_type) DO UPDATE SET
            period_end = excluded.period_end,
            api_calls_total = excluded.api_calls_total,
            api_calls_successful = excluded.api_calls_successful,
            api_calls_failed = excluded.api_calls_failed,
            api_calls_rate_limited = excluded.api_calls_rate_limited,
            api_latency_avg_ms = excluded.api_latency_avg_ms,
            api_latency_p50_ms = excluded.api_latency_p50_ms,
            api_latency_p95_ms = excluded.api_latency_p95_ms,
            api_latency_p99_ms = excluded.api_latency_p99_ms,
            chat_calls = excluded.chat_calls,
            chat_messages_sent = excluded.chat_messages_sent,
            chat_messages_received = excluded.chat_messages_received,
            chat_sessions_created = excluded.chat_sessions_created,
            chat_avg_response_time_ms = excluded.chat_avg_response_time_ms,
            embeddings_generated = excluded.embeddings_generated,
            embeddings_tokens_used = excluded.embeddings_tokens_used,
            semantic_searches_performed = excluded.semantic_searches_performed,
            kb_documents_ingested = excluded.kb_documents_ingested,
            kb_documents_failed = excluded.kb_documents_failed,
            total_tokens_used = excluded.total_tokens_used,
            input_tokens = excluded.input_tokens,
            output_tokens = excluded.output_tokens,
            estimated_cost_usd = excluded.estimated_cost_usd,
            -- A counter that retention has removed must not take the limit of an old period with it.
            quota_limit = coalesce(excluded.quota_limit, m.quota_limit),
            quota_remaining = coalesce(excluded.quota_remaining, m.quota_remaining),
            quota_exceeded_count = excluded.quota_exceeded_count,
            error_count = excluded.error_count,
            error_rate = excluded.error_rate,
            peak_qps = excluded.peak_qps,
            updated_at = now();
        GET DIAGNOSTICS written = ROW_COUNT;
        IF unit = 'hour' THEN hourly := written; ELSE daily := written; END IF;
    END LOOP;

    WITH touched AS (
        SELECT DISTINCT tenant_id, date_trunc('month', event_timestamp) AS starts
        FROM tenant_usage_realtime
        WHERE updated_at >= since AND event_timestamp >= first AND event_timestamp < last
    ), latencies AS (
        SELECT t.tenant_id, t.starts,
            percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY e.api_response_time_ms) AS at
        FROM touched t
        JOIN tenant_usage_realtime e
          ON e.tenant_id = t.tenant_id AND e.event_timestamp >= t.starts AND e.event_timestamp < t.starts + interval '1 month'
        WHERE e.event_timestamp >= date_trunc('month', first) AND e.event_timestamp < date_trunc('month', last) + interval '1 month'
          AND NOT coalesce(e.api_status_code = 429, false)
          AND NOT (e.outcome = 'refused' AND coalesce(e.api_status_code = 503, false))
        GROUP BY t.tenant_id, t.starts
    ), sums AS (
        SELECT t.tenant_id, t.starts,
            sum(d.api_calls_total) AS total, sum(d.api_calls_successful) AS good, sum(d.api_calls_failed) AS failed,
            sum(d.api_calls_rate_limited) AS limited,
            sum(d.api_latency_avg_ms * (d.api_calls_total - d.api_calls_rate_limited))
                / nullif(sum(d.api_calls_total - d.api_calls_rate_limited), 0) AS latency,
            sum(d.chat_calls) AS chats, sum(d.chat_messages_sent) AS answered, sum(d.chat_messages_received) AS asked,
            sum(d.chat_sessions_created) AS sessions,
            sum(d.chat_avg_response_time_ms * d.chat_calls) / nullif(sum(d.chat_calls), 0) AS chat_latency,
            sum(d.embeddings_generated) AS embedded, sum(d.embeddings_tokens_used) AS embedding_tokens,
            sum(d.semantic_searches_performed) AS searches,
            sum(d.kb_documents_ingested) AS ingested, sum(d.kb_documents_failed) AS ingest_failed,
            sum(d.total_tokens_used) AS tokens, sum(d.input_tokens) AS input, sum(d.output_tokens) AS output,
            sum(d.estimated_cost_usd) AS cost, sum(d.quota_exceeded_count) AS exceeded, max(d.peak_qps) AS peak
        FROM touched t
        JOIN tenant_usage_metrics d
          ON d.tenant_id = t.tenant_id AND d.period_type = 'daily'
         AND d.period_start >= t.starts AND d.period_start < t.starts + interval '1 month'
        GROUP BY t.tenant_id, t.starts
    )
    INSERT INTO tenant_usage_metrics AS m (
        tenant_id, period_start, period_end, period_type,
        api_calls_total, api_calls_successful, api_calls_failed, api_calls_rate_limited,
        api_latency_avg_ms, api_latency_p50_ms, api_latency_p95_ms, api_latency_p99_ms,
        chat_calls, chat_messages_sent, chat_messages_received, chat_sessions_created, chat_avg_response_time_ms,
        embeddings_generated, embeddings_tokens_used, semantic_searches_performed,
        kb_documents_ingested, kb_documents_failed,
        total_tokens_used, input_tokens, output_tokens, estimated_cost_usd,
        quota_limit, quota_remaining, quota_exceeded_count, error_count, error_rate, peak_qps)
    SELECT s.tenant_id, s.starts, s.starts + interval '1 month', 'monthly',
        s.total, s.good, s.failed, s.limited,
        s.latency, l.at[1], l.at[2], l.at[3],
        s.chats, s.answered, s.asked, s.sessions, s.chat_latency,
        s.embedded, least(s.embedding_tokens, most), s.searches,
        s.ingested, s.ingest_failed,
        least(s.tokens, most), least(s.input, most), least(s.output, most), s.cost,
        quota.limit_value, quota.limit_value - least(greatest(quota.settled, 0), quota.limit_value), s.exceeded,
        s.failed, s.failed / s.total, s.peak
    FROM sums s
    LEFT JOIN latencies l USING (tenant_id, starts)
    LEFT JOIN LATERAL (
        SELECT q.limit_value, q.settled FROM quota_usage q
        WHERE q.tenant_id = s.tenant_id AND q.dimension = 'tokens_per_month'
          AND q.window_start < s.starts + interval '1 month' AND q.window_end > s.starts
        ORDER BY q.window_start DESC LIMIT 1
    ) quota ON true
    ON CONFLICT (tenant_id, period_start, period_type) DO UPDATE SET
        period_end = excluded.period_end,
        api_calls_total = excluded.api_calls_total,
        api_calls_successful = excluded.api_calls_successful,
        api_calls_failed = excluded.api_calls_failed,
        api_calls_rate_limited = excluded.api_calls_rate_limited,
        api_latency_avg_ms = excluded.api_latency_avg_ms,
        -- Of a month that is mostly gone the percentiles can't be had again; a day missing is no matter.
        api_latency_p50_ms = CASE WHEN retained <= m.period_start + interval '2 days' THEN excluded.api_latency_p50_ms ELSE m.api_latency_p50_ms END,
        api_latency_p95_ms = CASE WHEN retained <= m.period_start + interval '2 days' THEN excluded.api_latency_p95_ms ELSE m.api_latency_p95_ms END,
        api_latency_p99_ms = CASE WHEN retained <= m.period_start + interval '2 days' THEN excluded.api_latency_p99_ms ELSE m.api_latency_p99_ms END,
        chat_calls = excluded.chat_calls,
        chat_messages_sent = excluded.chat_messages_sent,
        chat_messages_received = excluded.chat_messages_received,
        chat_sessions_created = excluded.chat_sessions_created,
        chat_avg_response_time_ms = excluded.chat_avg_response_time_ms,
        embeddings_generated = excluded.embeddings_generated,
        embeddings_tokens_used = excluded.embeddings_tokens_used,
        semantic_searches_performed = excluded.semantic_searches_performed,
        kb_documents_ingested = excluded.kb_documents_ingested,
        kb_documents_failed = excluded.kb_documents_failed,
        total_tokens_used = excluded.total_tokens_used,
        input_tokens = excluded.input_tokens,
        output_tokens = excluded.output_tokens,
        estimated_cost_usd = excluded.estimated_cost_usd,
        quota_limit = coalesce(excluded.quota_limit, m.quota_limit),
        quota_remaining = coalesce(excluded.quota_remaining, m.quota_remaining),
        quota_exceeded_count = excluded.quota_exceeded_count,
        error_count = excluded.error_count,
        error_rate = excluded.error_rate,
        peak_qps = excluded.peak_qps,
        updated_at = now();
    GET DIAGNOSTICS monthly = ROW_COUNT;

    UPDATE usage_aggregation_state SET watermark = began, last_run_at = began;
END
$$;

-- Corrects events that still say `reserved`: one row for each element of the arrays. Returns the ids of those that were
-- corrected, joined by commas. A loop of look-ups by key, and not a join: a join is planned by statistics, which to
-- today's partition are those of yesterday, and may then read the whole day to change one row.
CREATE OR REPLACE FUNCTION tollgate_amend(ids UUID[], ats TIMESTAMPTZ[], tokens BIGINT[], inputs BIGINT[],
    outputs BIGINT[], cached BIGINT[], written BIGINT[], reasoning BIGINT[], sources TEXT[], nanousd BIGINT[])
RETURNS TEXT
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    amended TEXT[] := '{}';
BEGIN
    FOR i IN 1 .. coalesce(array_length(ids, 1), 0) LOOP
        UPDATE tenant_usage_realtime AS t
        SET tokens_consumed = tokens[i], input_tokens = inputs[i], output_tokens = outputs[i],
            cached_input_tokens = cached[i], cache_write_input_tokens = written[i], reasoning_tokens = reasoning[i],
            embedding_tokens = CASE t.event_type WHEN 'embedding' THEN tokens[i] END,
            search_query_tokens = CASE t.event_type WHEN 'search' THEN tokens[i] END,
            token_source = sources[i], cost_usd = round(nanousd[i] * 0.000000001, 8), updated_at = now()
        WHERE t.event_id = ids[i] AND t.event_timestamp = ats[i] AND t.token_source = 'reserved';
        IF FOUND THEN
            amended := amended || ids[i]::text;
        END IF;
    END LOOP;
    RETURN array_to_string(amended, ',');
END
$$;

COMMENT ON FUNCTION check_tenant_quota(TEXT, INTEGER) IS 'Whether so many more tokens fit the tenant''s daily quota, by the live counters';
COMMENT ON FUNCTION aggregate_usage_metrics() IS 'Brings tenant_usage_metrics up to date; safe to run at any time';

INSERT INTO tollgate_schema (version, name) VALUES (3, 'functions') ON CONFLICT DO NOTHING;

COMMIT;
