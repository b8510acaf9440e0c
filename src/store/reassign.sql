-- What the rows with the keys $1, $2 (within $3 to $4) were charged, added to the counters of their tenants and taken off
-- those of $5, which had them before. As drift.sql adds up: a row that says nothing else was charged to the standard
-- dimensions, in UTC windows.
WITH charges AS (
    SELECT t.tenant_id, c.dimension, c.window_start, CASE split_part(c.dimension, '_per_', 1)
        WHEN 'tokens' THEN coalesce((t.metadata -> 'charged_tokens')::numeric, t.tokens_consumed, 0)
        WHEN 'api_calls' THEN 1
        WHEN 'chat_messages' THEN t.chat_messages
        WHEN 'embeddings' THEN t.embeddings
        WHEN 'cost_usd' THEN round(coalesce(t.cost_usd, 0) * 1000000000
            + coalesce((t.metadata -> 'floor_cost_nanousd')::numeric, 0))
    END AS amount
    FROM unnest($1::uuid[], $2::timestamptz[]) n(id, at)
    JOIN tenant_usage_realtime t ON t.event_id = n.id AND t.event_timestamp = n.at
    CROSS JOIN LATERAL (
        SELECT v.dimension, v.window_start
        FROM (VALUES
            ('tokens_per_day', date_trunc('day', t.event_timestamp, 'UTC')),
            ('api_calls_per_minute', date_trunc('minute', t.event_timestamp, 'UTC')),
            ('chat_messages_per_day', date_trunc('day', t.event_timestamp, 'UTC')),
            ('embeddings_per_day', date_trunc('day', t.event_timestamp, 'UTC'))) v(dimension, window_start)
        WHERE NOT t.metadata ? 'charged' AND t.outcome <> 'refused'
        UNION ALL
        SELECT m.key, m.value::timestamptz
        FROM jsonb_each_text(CASE WHEN t.metadata ? 'charged' THEN t.metadata -> 'charged' ELSE '{}' END) m
    ) c
    WHERE t.event_timestamp BETWEEN $3 AND $4
), deltas AS (
    SELECT tenant_id, dimension, window_start, sum(amount) AS amount FROM charges GROUP BY 1, 2, 3
    UNION ALL
    SELECT $5::text, dimension, window_start, -sum(amount) FROM charges GROUP BY 2, 3
)
INSERT INTO quota_usage AS q (tenant_id, dimension, window_start, window_end, settled)
SELECT d.tenant_id, d.dimension, d.window_start, had.window_end,
    least(greatest(d.amount, -9223372036854775807), 9223372036854775807)::bigint
FROM deltas d
JOIN quota_usage had ON had.tenant_id = $5 AND had.dimension = d.dimension AND had.window_start = d.window_start
WHERE d.amount <> 0
ORDER BY 1, 2, 3
ON CONFLICT (tenant_id, dimension, window_start) DO UPDATE SET
    settled = least(greatest(q.settled::numeric + excluded.settled, -9223372036854775807), 9223372036854775807)::bigint,
    updated_at = now()
