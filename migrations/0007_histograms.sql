-- Tollgate, migration 7: aggregates that merge. Days are made of hours and months of days, percentiles included, so that
-- no period longer than an hour needs an event; and the tokens and cost of each model, which outlive the events too.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

-- What an hour used of each model. Invoices come when the events of their first days are gone.
CREATE TABLE IF NOT EXISTS tenant_model_usage (
    tenant_id                TEXT NOT NULL,
    hour                     TIMESTAMPTZ NOT NULL,
    model                    TEXT NOT NULL,
    calls                    BIGINT NOT NULL DEFAULT 0,
    tokens                   BIGINT NOT NULL DEFAULT 0,
    estimated_tokens         BIGINT NOT NULL DEFAULT 0,
    input_tokens             BIGINT NOT NULL DEFAULT 0,
    cached_input_tokens      BIGINT NOT NULL DEFAULT 0,
    cache_write_input_tokens BIGINT NOT NULL DEFAULT 0,
    output_tokens            BIGINT NOT NULL DEFAULT 0,
    reasoning_tokens         BIGINT NOT NULL DEFAULT 0,
    cost_usd                 NUMERIC(20, 8) NOT NULL DEFAULT 0,
    updated_at               TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT tenant_model_usage_pkey PRIMARY KEY (hour, tenant_id, model)
);

COMMENT ON TABLE tenant_model_usage IS 'Usage by tenant, UTC hour and model, made by aggregate_usage_metrics(); refused calls are not in it';
COMMENT ON COLUMN tenant_model_usage.model IS 'As answers name it; empty: they name none, and used tokens or cost something';
COMMENT ON COLUMN tenant_model_usage.estimated_tokens IS 'The part of tokens that no answer reported: counted from text, partial, or as reserved';

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'tenant_usage_metrics'::regclass AND attname = 'latency_buckets' AND NOT attisdropped) THEN
        ALTER TABLE tenant_usage_metrics ADD COLUMN latency_buckets SMALLINT[], ADD COLUMN latency_counts BIGINT[];
        ALTER TABLE usage_aggregation_state ADD COLUMN models_from TIMESTAMPTZ;
        -- What earlier versions computed is computed again, as far as its events are there.
        UPDATE usage_aggregation_state SET watermark = '-infinity', models_from = retained_from;
        ALTER TABLE usage_aggregation_state ALTER COLUMN models_from SET DEFAULT '-infinity',
            ALTER COLUMN models_from SET NOT NULL;
    END IF;
END
$$;

COMMENT ON COLUMN tenant_usage_metrics.latency_buckets IS 'Histogram: which buckets of tollgate_latency_bucket() hold calls, ascending; NULL in rows of before it was kept';
COMMENT ON COLUMN tenant_usage_metrics.latency_counts IS 'Histogram: how many calls each of latency_buckets holds';
COMMENT ON COLUMN tenant_usage_metrics.api_calls_rate_limited IS 'Answered 429, by Tollgate or by the service, or refused by Tollgate for another reason (blocked tenant, quotas that could not be checked)';
COMMENT ON COLUMN tenant_usage_metrics.api_latency_p50_ms IS 'By the histogram: less than 1 % off; exact below 100 ms';
COMMENT ON COLUMN tenant_usage_metrics.quota_exceeded_count IS 'Refused by Tollgate with 429: over a quota or a rate limit';
COMMENT ON COLUMN usage_aggregation_state.models_from IS 'Events older than this were gone when usage by model began to be kept';

-- The bucket of a latency: 0 holds 0 ms, bucket b > 0 what is above 1.01^(b-2) ms and at most 1.01^(b-1) ms.
CREATE OR REPLACE FUNCTION tollgate_latency_bucket(ms INTEGER)
RETURNS SMALLINT
LANGUAGE sql
IMMUTABLE
AS $$
    SELECT (CASE WHEN ms < 1 THEN 0 ELSE 1 + ceil(ln(ms::float8) / ln(1.01::float8)) END)::smallint
$$;

-- The latencies, in ms, that parts (0 to 1) of the calls in a histogram do not exceed: as percentile_disc has them, but
-- each is the middle of its bucket, which is off by at most 0.5 % and the rounding to a whole ms. NULL of an empty
-- histogram. Histograms are merged by adding the counts of the same bucket. `total` is the sum of the counts, for who has it
-- at hand: adding up took half the time.
DROP FUNCTION IF EXISTS tollgate_percentiles(SMALLINT[], BIGINT[], NUMERIC[]);
CREATE OR REPLACE FUNCTION tollgate_percentiles(buckets SMALLINT[], counts BIGINT[], parts NUMERIC[], total BIGINT DEFAULT NULL)
RETURNS INTEGER[]
LANGUAGE plpgsql
IMMUTABLE
AS $$
DECLARE
    found  INTEGER[] := '{}';
    place  BIGINT;
    passed BIGINT := 0;
    at     INTEGER := 0;
BEGIN
    IF total IS NULL THEN
        total := (SELECT sum(c) FROM unnest(counts) c);
    END IF;
    IF coalesce(total, 0) = 0 THEN
        RETURN NULL;
    END IF;
    FOR part IN 1 .. array_length(parts, 1) LOOP
        place := greatest(ceil(parts[part] * total), 1);
        WHILE passed < place LOOP
            at := at + 1;
            passed := passed + counts[at];
        END LOOP;
        found[part] := CASE WHEN buckets[at] = 0 THEN 0
            ELSE least(round(2 * power(1.01::float8, buckets[at] - 1) / 2.01), 2147483647) END;
    END LOOP;
    RETURN found;
END
$$;

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
               outcome = 'refused' AND coalesce(api_status_code = 429, false) AS exceeded
        FROM found WHERE kind = 'hourly' AND n > 0
    ), by_model AS MATERIALIZED (
        SELECT n, model,
            count(*) AS total,
            count(*) FILTER (WHERE fine) AS good,
            count(*) FILTER (WHERE limited) AS limited,
            count(*) FILTER (WHERE exceeded) AS exceeded,
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

-- Computes the hours that events came to, or were amended in, since the last run: late events as well as those of the hours
-- still going on; then merges the days and months that these are in. A period is computed whole and replaces its row, so
-- running twice changes nothing. Returns how many rows of each kind were written, and from when on events were looked at.
-- A second run at the same time waits for the first.
--
-- "Since the last run" overlaps the last run by an hour: updated_at is when a transaction began, and one that began
-- before a run may commit after it. The gateway's transactions are bounded to seconds.
--
-- Only hours need events, and only for as long as those are kept (30 days): an hour whose events are partly gone keeps the
-- row that it has. The work goes day by day, so that it is bounded by a day's events and reads one partition at a time.
-- Memory is set aside for that. What is computed on the way has no statistics, so the planner would take it for a few rows
-- and join it row by row; and would compile, for longer than the work takes.
CREATE OR REPLACE FUNCTION aggregate_usage_metrics(OUT hourly INTEGER, OUT daily INTEGER, OUT monthly INTEGER, OUT since TIMESTAMPTZ)
LANGUAGE plpgsql
SET timezone = 'UTC'
SET work_mem = '128MB'
SET plan_cache_mode = force_custom_plan
SET enable_nestloop = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
    began    TIMESTAMPTZ;
    retained TIMESTAMPTZ;
    day      TIMESTAMPTZ;
    month    TIMESTAMPTZ;
    months   TIMESTAMPTZ[] := '{}';
    tenants  TEXT[];
    hours    TIMESTAMPTZ[];
    touched  CURSOR (since TIMESTAMPTZ, retained TIMESTAMPTZ) FOR
        SELECT date_trunc('day', t.starts), array_agg(t.tenant_id), array_agg(t.starts)
        FROM (SELECT DISTINCT tenant_id, date_trunc('hour', event_timestamp) AS starts
              FROM tenant_usage_realtime WHERE updated_at >= since) t
        WHERE t.starts >= retained
           OR NOT EXISTS (SELECT FROM tenant_usage_metrics m
                          WHERE m.tenant_id = t.tenant_id AND m.period_start = t.starts AND m.period_type = 'hourly')
        GROUP BY 1 ORDER BY 1;
BEGIN
    PERFORM pg_advisory_xact_lock(7021993003);
    INSERT INTO usage_aggregation_state DEFAULT VALUES ON CONFLICT DO NOTHING;
    began := clock_timestamp();
    SELECT s.watermark - interval '1 hour', s.retained_from INTO since, retained FROM usage_aggregation_state s;
    hourly := 0;
    daily := 0;
    monthly := 0;
    OPEN touched(since, retained);
    LOOP
        FETCH touched INTO day, tenants, hours;
        EXIT WHEN NOT FOUND;
        hourly := hourly + tollgate_write_usage('hourly', day, day + interval '1 day', tenants, hours);
        daily := daily + tollgate_write_usage('daily', day, day + interval '1 day', '{}', '{}');
        month := date_trunc('month', day);
        IF month <> ALL (months) THEN
            months := months || month;
        END IF;
    END LOOP;
    CLOSE touched;
    FOREACH month IN ARRAY months LOOP
        monthly := monthly + tollgate_write_usage('monthly', month, month + interval '1 month', '{}', '{}');
    END LOOP;
    UPDATE usage_aggregation_state SET watermark = began, last_run_at = began;
END
$$;

COMMENT ON FUNCTION tollgate_percentiles(SMALLINT[], BIGINT[], NUMERIC[], BIGINT) IS 'Percentiles, in ms, of a histogram of tenant_usage_metrics';
COMMENT ON FUNCTION aggregate_usage_metrics() IS 'Brings tenant_usage_metrics and tenant_model_usage up to date; safe to run at any time';

INSERT INTO tollgate_schema (version, name) VALUES (7, 'histograms') ON CONFLICT DO NOTHING;

COMMIT;
