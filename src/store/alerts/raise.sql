-- What has crossed a threshold and was not raised before, into the outbox and the audit trail. What has not crossed one
-- is passed over in the scan: only windows going on, or lately over, are read, each by its index.
--
-- $1 per cent of a quota, $2 patterns of the dimensions that count, $3 share of failed calls, $4 fewest calls,
-- $5 latency in ms, $6 multiple of the average cost, $7 least cost in US dollars, $8 the aggregation's interval in s,
-- $9 the state that an alert begins with.
WITH found AS (
    -- Use that is written only after its window turned counts for a while.
    SELECT q.tenant_id, 'quota_threshold' AS kind, q.dimension, t.percent AS threshold, q.window_start, q.window_end,
        u.settled AS observed, u.limit_value AS reference,
        format('%s: %s of %s used, %s %% is the threshold', q.dimension, u.settled, u.limit_value, t.percent) AS summary
    FROM quota_usage q
    -- Cost is counted in nano-dollars, and told in dollars.
    CROSS JOIN LATERAL (SELECT CASE WHEN q.dimension LIKE 'cost\_usd\_%' THEN 9 ELSE 0 END AS decimals) d
    CROSS JOIN LATERAL (
        SELECT trim_scale(q.settled / 10::numeric ^ d.decimals) AS settled,
            trim_scale(q.limit_value / 10::numeric ^ d.decimals) AS limit_value
    ) u
    JOIN unnest($1::float8[]::numeric[]) AS t(percent) ON q.settled >= q.limit_value * t.percent / 100
    WHERE q.window_end > now() - interval '10 minutes' AND q.window_start <= now() AND q.limit_value > 0
      -- Most tenants are below the lowest: passed over without exact arithmetic, and with a little to spare for that.
      AND q.settled >= q.limit_value * (SELECT min(percent) * 0.00999 FROM unnest($1::float8[]) AS lowest(percent))
      AND q.dimension LIKE ANY ($2::text[])

    UNION ALL
    -- Soft limits: the counter has no limit of theirs, for it would say that calls are refused. Whoever lets the first
    -- call of a window over one says so in the audit trail.
    SELECT DISTINCT ON (a.tenant_id, s.quota_type, s.window_start)
        a.tenant_id, 'quota_threshold', s.quota_type, 100::numeric, s.window_start, s.resets_at, s.used, s."limit",
        format('%s: %s of %s used, the limit is soft', s.quota_type, s.used, s."limit")
    FROM audit_events a
    CROSS JOIN LATERAL jsonb_to_record(a.new_values) AS s(
        quota_type text, "limit" numeric, used numeric, window_start timestamptz, resets_at timestamptz)
    WHERE a.event_type = 'quota_soft_exceeded' AND a."timestamp" >= now() - interval '1 day'
      AND a.tenant_id IS NOT NULL AND s.resets_at > now() - interval '10 minutes'
      AND s.quota_type LIKE ANY ($2::text[])

    UNION ALL
    SELECT m.tenant_id, 'error_rate', '', $3::float8::numeric, m.period_start, m.period_end,
        m.error_rate, m.api_calls_total,
        format('%s of %s calls failed', m.api_calls_failed, m.api_calls_total)
    FROM tenant_usage_metrics m
    WHERE m.period_type = 'hourly' AND m.period_start >= date_trunc('hour', now() - interval '1 hour', 'UTC')
      AND m.api_calls_total >= $4 AND m.error_rate > $3::float8::numeric

    UNION ALL
    SELECT m.tenant_id, 'latency_p99', '', $5::bigint, m.period_start, m.period_end,
        m.api_latency_p99_ms, m.api_calls_total - m.api_calls_rate_limited,
        format('one call in a hundred took %s ms or more', m.api_latency_p99_ms)
    FROM tenant_usage_metrics m
    WHERE m.period_type = 'hourly' AND m.period_start >= date_trunc('hour', now() - interval '1 hour', 'UTC')
      AND m.api_calls_total - m.api_calls_rate_limited >= $4 AND m.api_latency_p99_ms > $5

    UNION ALL
    -- The average counts from the tenant's first day in the week, days without use included: a tenant's second day is
    -- not held against six that it did not exist.
    SELECT d.tenant_id, 'cost', '', $6::float8::numeric, d.period_start, d.period_end,
        d.estimated_cost_usd, round(past.average, 8),
        format('$%s in one day, $%s a day on average of the week before', round(d.estimated_cost_usd, 4), round(past.average, 4))
    FROM tenant_usage_metrics d
    CROSS JOIN LATERAL (
        SELECT sum(p.estimated_cost_usd)
            / (extract(epoch FROM d.period_start - min(p.period_start)) / 86400)::numeric AS average
        FROM tenant_usage_metrics p
        WHERE p.tenant_id = d.tenant_id AND p.period_type = 'daily'
          AND p.period_start >= d.period_start - interval '168 hours' AND p.period_start < d.period_start
    ) past
    WHERE d.period_type = 'daily' AND d.period_start >= date_trunc('day', now() - interval '1 hour', 'UTC')
      AND d.estimated_cost_usd > $7::float8::numeric AND past.average > 0
      AND d.estimated_cost_usd > past.average * $6::float8::numeric

    UNION ALL
    -- Its window is from the last run on, so that it is told once for each stretch without one.
    SELECT '', 'aggregation_missed', '', $8::float8::numeric * 2, s.last, s.last + 2 * $8::float8 * interval '1 second',
        round(extract(epoch FROM now() - s.last)::numeric), $8::float8::numeric,
        format('no aggregation since %s', to_char(s.last AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
    FROM (
        SELECT coalesce(a.last_run_at, (SELECT min(applied_at) FROM tollgate_schema)) AS last
        FROM usage_aggregation_state a
    ) s
    WHERE s.last < now() - 2 * $8::float8 * interval '1 second'
), fresh AS (
    SELECT f.* FROM found f
    WHERE NOT EXISTS (
        SELECT FROM alert_outbox o
        WHERE o.tenant_id = f.tenant_id AND o.kind = f.kind AND o.dimension = f.dimension
          AND o.threshold = f.threshold AND o.window_start = f.window_start)
    LIMIT 1000
), raised AS (
    INSERT INTO alert_outbox AS o (
        tenant_id, kind, dimension, threshold, window_start, window_end, observed, reference, summary, state)
    SELECT tenant_id, kind, dimension, threshold, window_start, window_end, observed, reference, summary, $9::text FROM fresh
    ON CONFLICT DO NOTHING
    RETURNING o.alert_id, nullif(o.tenant_id, '') AS tenant_id, o.kind, o.summary, tollgate_alert_body(o) AS body
), audited AS (
    INSERT INTO audit_events (
        tenant_id, event_type, category, entity_type, entity_id, action, actor_type, new_values, changes_summary)
    SELECT tenant_id, 'alert_raised', 'error', 'alert', alert_id::text, 'create', 'system', body, summary FROM raised
)
SELECT kind, count(*) FROM raised GROUP BY kind
