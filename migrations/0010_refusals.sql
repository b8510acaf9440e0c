-- A row of refused calls may stand for many: its metadata says for how many (`refusals`). They are counted as such.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

-- Writes the rows of one kind for [from_at, until_at), and returns how many. Hours are computed from their events: those of
-- `tenants` and `hours`, element by element, all within one day. A day, and a month, is merged from the rows within it,
-- for each tenant of whom this transaction wrote one.
--
-- What is added up (`sums`) comes from the one or the other; all that follows from the sums is below, once.
CREATE OR REPLACE FUNCTION tollgate_write_usage(kind TEXT, from_at TIMESTAMPTZ, until_at TIMESTAMPTZ, tenants TEXT[], hours TIMESTAMPTZ[])
RETURNS INTEGER
LANGUAGE plpgsql
SET timezone = 'UTC'
AS $$
DECLARE
    unit    CONSTANT TEXT := CASE kind WHEN 'hourly' THEN 'hour' WHEN 'daily' THEN 'day' ELSE 'month' END;
    step    CONSTANT INTERVAL := ('1 ' || unit)::interval;
    part    CONSTANT TEXT := CASE kind WHEN 'daily' THEN 'hourly' WHEN 'monthly' THEN 'daily' END;
    quota   CONSTANT TEXT := CASE kind WHEN 'monthly' THEN 'tokens_per_month' ELSE 'tokens_per_day' END;
    most    CONSTANT NUMERIC := 9223372036854775807;
    -- Of few hours the events are looked up by the index; for more, the day is read once and joined by hash. Not left to the
    -- planner: today's partition has no statistics yet, and what it knows of a day says nothing of who called when.
    few     CONSTANT BOOLEAN := (SELECT count(DISTINCT h) <= 4 FROM unnest(hours) h) OR cardinality(hours) <= 100;
    written INTEGER;
BEGIN
    WITH periods AS MATERIALIZED (
        -- Each has a number: what is grouped by it is grouped faster than by tenant and time.
        SELECT t.n::integer AS n, t.tenant_id, t.starts
        FROM unnest(tenants, hours) WITH ORDINALITY t(tenant_id, starts, n) WHERE kind = 'hourly'
        UNION ALL
        SELECT (row_number() OVER ())::integer, m.tenant_id, from_at
        FROM (SELECT tenant_id FROM tenant_usage_metrics
              WHERE period_type = part AND period_start >= from_at AND period_start < until_at
              GROUP BY tenant_id HAVING max(updated_at) = now()) m
    ), days AS (
        -- A row for each tenant, with the numbers of its 24 hours: by tenant alone an event is found faster.
        SELECT t.tenant_id, array_agg(coalesce(p.n, 0) ORDER BY h.h) AS numbers
        FROM (SELECT DISTINCT tenant_id FROM periods WHERE kind = 'hourly') t
        CROSS JOIN generate_series(0, 23) h
        LEFT JOIN periods p ON p.tenant_id = t.tenant_id AND date_part('hour', p.starts) = h.h
        GROUP BY t.tenant_id
    ), found AS (
        SELECT p.n, e.*
        FROM periods p
        CROSS JOIN LATERAL (
            SELECT * FROM tenant_usage_realtime e
            WHERE e.tenant_id = p.tenant_id AND e.event_timestamp >= p.starts AND e.event_timestamp < p.starts + interval '1 hour'
              AND e.event_timestamp >= from_at AND e.event_timestamp < until_at
            OFFSET 0
        ) e
        WHERE few
        UNION ALL
        SELECT d.numbers[1 + date_part('hour', e.event_timestamp)::integer], e.*
        FROM days d JOIN tenant_usage_realtime e ON e.tenant_id = d.tenant_id
        WHERE NOT few AND e.event_timestamp >= from_at AND e.event_timestamp < until_at
    ), events AS MATERIALIZED (
        SELECT n, event_type, event_timestamp, api_response_time_ms, chat_messages,
               embeddings, embedding_tokens, tokens_consumed, input_tokens, cached_input_tokens,
               cache_write_input_tokens, output_tokens, reasoning_tokens, cost_usd, token_source,
               coalesce(model, '') AS model,
               outcome = 'refused' AS refused,
               coalesce(api_status_code = 429, false) OR outcome = 'refused' AS limited,
               coalesce(api_status_code < 400, false) AND outcome IN ('completed', 'client_aborted') AS fine,
               outcome = 'refused' AND coalesce(api_status_code = 429, false) AS exceeded,
               CASE WHEN outcome = 'refused' THEN coalesce((metadata -> 'refusals')::bigint, 1) ELSE 1 END AS calls
        FROM found WHERE kind = 'hourly' AND n > 0
    ), by_model AS MATERIALIZED (
        SELECT n, model,
            sum(calls) AS total,
            count(*) FILTER (WHERE fine) AS good,
            coalesce(sum(calls) FILTER (WHERE limited), 0) AS limited,
            coalesce(sum(calls) FILTER (WHERE exceeded), 0) AS exceeded,
            sum(api_response_time_ms) FILTER (WHERE NOT limited) AS latency,
            count(api_response_time_ms) FILTER (WHERE NOT limited) AS latencies,
            count(*) FILTER (WHERE event_type = 'chat_message' AND fine) AS chats,
            sum(api_response_time_ms) FILTER (WHERE event_type = 'chat_message' AND fine) AS chat_latency,
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
            coalesce(sum(cost_usd), 0) AS cost,
            count(*) FILTER (WHERE NOT refused) AS served,
            coalesce(sum(tokens_consumed) FILTER (WHERE token_source <> 'reported'), 0) AS estimated,
            coalesce(sum(cached_input_tokens), 0) AS cached,
            coalesce(sum(cache_write_input_tokens), 0) AS cache_written,
            coalesce(sum(reasoning_tokens), 0) AS reasoning
        FROM events GROUP BY n, model
    ), models AS (
        INSERT INTO tenant_model_usage AS u (
            tenant_id, hour, model, calls, tokens, estimated_tokens, input_tokens, cached_input_tokens,
            cache_write_input_tokens, output_tokens, reasoning_tokens, cost_usd)
        SELECT tenant_id, starts, model, served, least(tokens, most), least(estimated, most), least(input, most),
            least(cached, most), least(cache_written, most), least(output, most), least(reasoning, most), cost
        FROM by_model JOIN periods USING (n) WHERE served > 0 AND (model <> '' OR tokens > 0 OR cost > 0)
        ON CONFLICT (hour, tenant_id, model) DO UPDATE SET
            calls = excluded.calls, tokens = excluded.tokens, estimated_tokens = excluded.estimated_tokens,
            input_tokens = excluded.input_tokens, cached_input_tokens = excluded.cached_input_tokens,
            cache_write_input_tokens = excluded.cache_write_input_tokens, output_tokens = excluded.output_tokens,
            reasoning_tokens = excluded.reasoning_tokens, cost_usd = excluded.cost_usd, updated_at = now()
    ), peaks AS (
        SELECT n, max(calls) AS peak
        FROM (SELECT n, count(*) AS calls FROM events GROUP BY n, date_trunc('second', event_timestamp)) seconds
        GROUP BY n
    ), sums AS (
        SELECT n, sum(total) AS total, sum(good) AS good, sum(limited) AS limited,
            sum(exceeded) AS exceeded, sum(latency) AS latency, sum(latencies) AS latencies, sum(chats) AS chats,
            sum(chat_latency) AS chat_latency, sum(answered) AS answered, sum(asked) AS asked, NULL::numeric AS sessions,
            sum(embedded) AS embedded, sum(embedding_tokens) AS embedding_tokens, sum(searches) AS searches,
            sum(ingested) AS ingested, sum(ingest_failed) AS ingest_failed, sum(tokens) AS tokens, sum(input) AS input,
            sum(output) AS output, sum(cost) AS cost, max(peak) AS peak, 0 AS unmeasured
        FROM by_model JOIN peaks USING (n)
        GROUP BY n
        UNION ALL
        SELECT p.n,
            sum(m.api_calls_total) AS total, sum(m.api_calls_successful) AS good, sum(m.api_calls_rate_limited) AS limited,
            sum(m.quota_exceeded_count) AS exceeded,
            sum(m.api_latency_avg_ms * (m.api_calls_total - m.api_calls_rate_limited)) AS latency,
            sum(m.api_calls_total - m.api_calls_rate_limited) FILTER (WHERE m.api_latency_avg_ms IS NOT NULL) AS latencies,
            sum(m.chat_calls) AS chats, sum(m.chat_avg_response_time_ms * m.chat_calls) AS chat_latency,
            sum(m.chat_messages_sent) AS answered, sum(m.chat_messages_received) AS asked, CASE kind WHEN 'monthly' THEN sum(m.chat_sessions_created) END AS sessions,
            sum(m.embeddings_generated) AS embedded, sum(m.embeddings_tokens_used) AS embedding_tokens,
            sum(m.semantic_searches_performed) AS searches,
            sum(m.kb_documents_ingested) AS ingested, sum(m.kb_documents_failed) AS ingest_failed,
            sum(m.total_tokens_used) AS tokens, sum(m.input_tokens) AS input, sum(m.output_tokens) AS output,
            sum(m.estimated_cost_usd) AS cost, max(m.peak_qps) AS peak,
            coalesce(sum(m.api_calls_total) FILTER (WHERE m.latency_buckets IS NULL), 0) AS unmeasured
        FROM periods p JOIN tenant_usage_metrics m ON m.tenant_id = p.tenant_id
        WHERE m.period_type = part AND m.period_start >= from_at AND m.period_start < until_at
        GROUP BY p.n
    ), buckets AS (
        SELECT n, tollgate_latency_bucket(api_response_time_ms) AS bucket, count(*) AS calls
        FROM events WHERE NOT limited AND api_response_time_ms IS NOT NULL
        GROUP BY 1, 2
        UNION ALL
        SELECT p.n, h.bucket, sum(h.calls)::bigint
        FROM periods p JOIN tenant_usage_metrics m ON m.tenant_id = p.tenant_id
        CROSS JOIN LATERAL unnest(m.latency_buckets, m.latency_counts) h(bucket, calls)
        WHERE m.period_type = part AND m.period_start >= from_at AND m.period_start < until_at
        GROUP BY 1, 2
    ), histograms AS (
        -- In the order of the subquery: an ORDER BY in each aggregate would sort twice.
        SELECT n, array_agg(bucket) AS buckets, array_agg(calls) AS counts, sum(calls)::bigint AS calls
        FROM (SELECT * FROM buckets ORDER BY n, bucket) b
        GROUP BY n
    ), sessions AS (
        -- Of a day counted anew: a session may begin in an hour without a call.
        SELECT a.tenant_id, date_trunc(unit, a."timestamp") AS starts, count(*) AS created
        FROM audit_events a
        WHERE kind <> 'monthly' AND a.event_type = 'chat_session_created'
          AND a."timestamp" >= from_at AND a."timestamp" < until_at
        GROUP BY 1, 2
    )
    INSERT INTO tenant_usage_metrics AS m (
        tenant_id, period_start, period_end, period_type,
        api_calls_total, api_calls_successful, api_calls_failed, api_calls_rate_limited,
        api_latency_avg_ms, api_latency_p50_ms, api_latency_p95_ms, api_latency_p99_ms, latency_buckets, latency_counts,
        chat_calls, chat_messages_sent, chat_messages_received, chat_sessions_created, chat_avg_response_time_ms,
        embeddings_generated, embeddings_tokens_used, semantic_searches_performed,
        kb_documents_ingested, kb_documents_failed,
        total_tokens_used, input_tokens, output_tokens, estimated_cost_usd,
        quota_limit, quota_remaining, quota_exceeded_count, error_count, error_rate, peak_qps)
    SELECT p.tenant_id, p.starts, p.starts + step, kind,
        s.total, s.good, s.total - s.good - s.limited, s.limited,
        s.latency / nullif(s.latencies, 0), at[1], at[2], at[3], coalesce(h.buckets, '{}'), coalesce(h.counts, '{}'),
        s.chats, s.answered, s.asked, coalesce(s.sessions, sessions.created, 0), s.chat_latency / nullif(s.chats, 0),
        s.embedded, least(s.embedding_tokens, most), s.searches,
        s.ingested, s.ingest_failed,
        least(s.tokens, most), least(s.input, most), least(s.output, most), s.cost,
        quota.limit_value, quota.limit_value - least(greatest(quota.settled, 0), quota.limit_value), s.exceeded,
        s.total - s.good - s.limited, (s.total - s.good - s.limited) / s.total, s.peak
    FROM sums s
    JOIN periods p USING (n)
    LEFT JOIN sessions ON sessions.tenant_id = p.tenant_id AND sessions.starts = p.starts
    LEFT JOIN histograms h USING (n)
    -- Where more than a tenth of the calls come from rows without a histogram, the rest does not speak for them.
    CROSS JOIN LATERAL (
        SELECT CASE WHEN s.unmeasured * 10 <= s.total
            THEN tollgate_percentiles(h.buckets, h.counts, ARRAY[0.5, 0.95, 0.99], h.calls) END AS at
        OFFSET 0
    ) latency
    LEFT JOIN LATERAL (
        SELECT q.limit_value, q.settled FROM quota_usage q
        WHERE q.tenant_id = p.tenant_id AND q.dimension = quota
          AND q.window_start < p.starts + step AND q.window_end > p.starts
        ORDER BY q.window_start DESC LIMIT 1
    ) quota ON true
    ON CONFLICT (tenant_id, period_start, period_type) DO UPDATE SET
        period_end = excluded.period_end,
        api_calls_total = excluded.api_calls_total,
        api_calls_successful = excluded.api_calls_successful,
        api_calls_failed = excluded.api_calls_failed,
        api_calls_rate_limited = excluded.api_calls_rate_limited,
        api_latency_avg_ms = excluded.api_latency_avg_ms,
        api_latency_p50_ms = coalesce(excluded.api_latency_p50_ms, m.api_latency_p50_ms),
        api_latency_p95_ms = coalesce(excluded.api_latency_p95_ms, m.api_latency_p95_ms),
        api_latency_p99_ms = coalesce(excluded.api_latency_p99_ms, m.api_latency_p99_ms),
        latency_buckets = excluded.latency_buckets,
        latency_counts = excluded.latency_counts,
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
    RETURN written;
END
$$;

INSERT INTO tollgate_schema (version, name) VALUES (10, 'refusals') ON CONFLICT DO NOTHING;

COMMIT;
