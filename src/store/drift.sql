-- Live counters against the events that they count, of windows that hold $1 (NULL: of all windows whose events are all
-- still there). One statement: one snapshot, in which each event is there with what it added, or neither is.
--
-- A row that says nothing else was charged to the standard dimensions, in UTC windows: see events/charged.rs.
WITH state AS (
    SELECT coalesce(max(retained_from), '-infinity') AS retained_from FROM usage_aggregation_state
), counters AS MATERIALIZED (
    SELECT q.tenant_id, q.dimension, q.window_start, q.window_end, q.settled
    FROM quota_usage q, state
    WHERE q.window_start >= state.retained_from
        AND split_part(q.dimension, '_per_', 1) IN ('tokens', 'api_calls', 'chat_messages', 'embeddings', 'cost_usd')
        AND ($1::timestamptz IS NULL OR (q.window_start <= $1 AND q.window_end > $1))
), since AS MATERIALIZED (
    -- A clock that went back charges a window to events from before it; windows are at most moved by their own length.
    SELECT CASE WHEN $1::timestamptz IS NULL THEN '-infinity'::timestamptz
        ELSE (SELECT min(window_start - (window_end - window_start)) FROM counters) END AS since
), events AS (
    SELECT e.* FROM tenant_usage_realtime e
    WHERE e.event_timestamp >= (SELECT since FROM since) AND (e.outcome <> 'refused' OR e.metadata ? 'charged')
), sums AS (
    SELECT e.tenant_id, c.dimension, c.window_start,
        sum(CASE split_part(c.dimension, '_per_', 1)
            -- A floor is charged to the quota alone, and stands beside what the row says was used.
            WHEN 'tokens' THEN coalesce((e.metadata -> 'charged_tokens')::numeric, e.tokens_consumed, 0)
            WHEN 'api_calls' THEN 1
            WHEN 'chat_messages' THEN e.chat_messages
            WHEN 'embeddings' THEN e.embeddings
            WHEN 'cost_usd' THEN coalesce(e.cost_usd, 0) * 1000000000
                + coalesce((e.metadata -> 'floor_cost_nanousd')::numeric, 0)
        END) AS charged,
        -- A row's cost has 8 decimals, its counter 9: each row may be off by half a hundred-millionth.
        CASE split_part(c.dimension, '_per_', 1) WHEN 'cost_usd' THEN 5 * count(*) ELSE 0 END AS rounding
    FROM events e
    CROSS JOIN LATERAL (
        SELECT v.dimension, v.window_start
        FROM (VALUES
            ('tokens_per_day', date_trunc('day', e.event_timestamp AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'),
            ('api_calls_per_minute', date_trunc('minute', e.event_timestamp AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'),
            ('chat_messages_per_day', date_trunc('day', e.event_timestamp AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'),
            ('embeddings_per_day', date_trunc('day', e.event_timestamp AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')) v(dimension, window_start)
        WHERE NOT e.metadata ? 'charged'
        UNION ALL
        SELECT m.key, m.value::timestamptz
        FROM jsonb_each_text(CASE WHEN e.metadata ? 'charged' THEN e.metadata -> 'charged' ELSE '{}' END) m
    ) c
    GROUP BY e.tenant_id, c.dimension, c.window_start
), orphans AS (
    -- Charged, and no counter: those of minutes are removed after two days.
    SELECT s.* FROM sums s, state
    WHERE $1::timestamptz IS NULL AND s.charged <> 0 AND s.window_start >= state.retained_from
        AND (s.dimension NOT LIKE '%\_per\_minute' OR s.window_start > now() - interval '47 hours')
        AND NOT EXISTS (SELECT FROM quota_usage q WHERE q.tenant_id = s.tenant_id AND q.dimension = s.dimension
            AND q.window_start = s.window_start)
), compared AS MATERIALIZED (
    SELECT c.tenant_id, c.dimension, c.window_start, c.window_end, c.settled::numeric AS settled,
        CASE WHEN abs(c.settled - s.charged) <= s.rounding THEN c.settled ELSE coalesce(s.charged, 0) END AS charged
    FROM counters c LEFT JOIN sums s USING (tenant_id, dimension, window_start)
    UNION ALL
    SELECT tenant_id, dimension, window_start, NULL, 0, charged FROM orphans
)
SELECT NULL AS tenant_id, NULL AS dimension, NULL::timestamptz AS window_start, NULL::timestamptz AS window_end,
    count(*)::bigint AS settled, count(*) FILTER (WHERE settled <> charged) AS charged,
    least(coalesce(sum(abs(settled - charged)), 0), 9223372036854775807)::bigint AS off
FROM compared
UNION ALL
(SELECT tenant_id, dimension, window_start, window_end, settled::bigint,
    least(greatest(charged, -9223372036854775807), 9223372036854775807)::bigint,
    least(abs(settled - charged), 9223372036854775807)::bigint
FROM compared WHERE settled <> charged
ORDER BY abs(settled - charged) DESC, tenant_id, dimension, window_start LIMIT $2)
