-- Loads :events events of :tenants tenants, evenly over the last 30 days and in the order of time: calls, chats and
-- embeddings of three models, latencies from 50 ms to some seconds, one in 50 refused, one in 100 failed.

SET timezone = 'UTC';
SET synchronous_commit = off;

DO $$ BEGIN PERFORM setseed(0.5); END $$;
DO $$ BEGIN
    PERFORM tollgate_make_partition('tenant_usage_realtime', to_char(day, 'YYYYMMDD'), day, day + interval '1 day')
    FROM generate_series(date_trunc('day', now()) - interval '30 days', now(), interval '1 day') day;
END $$;

INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, api_method, api_endpoint,
    api_status_code, api_response_time_ms, upstream_first_byte_ms, chat_session_id, chat_messages, embeddings,
    embedding_tokens, tokens_consumed, input_tokens, output_tokens, model, token_source, outcome, streamed, cost_usd,
    request_id, replica_id, created_at, updated_at)
SELECT
    -- Version 7: the time in front.
    (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || 'a'
        || substr(md5(n::text), 4, 15))::uuid,
    'tn_bench' || lpad((1 + floor(random() * :tenants))::text, 3, '0'),
    (ARRAY['chat_message', 'chat_message', 'api_call', 'embedding'])[1 + n % 4], at, 'POST', '/api/widget/chat',
    CASE WHEN n % 50 = 0 THEN 429 WHEN n % 100 = 1 THEN 502 ELSE 200 END,
    (50 * exp(random() * 4.5))::integer, 40, 'session-' || n % 100000, CASE WHEN n % 4 < 2 THEN 1 ELSE 0 END,
    CASE WHEN n % 4 = 3 THEN 3 ELSE 0 END, CASE WHEN n % 4 = 3 THEN 200 END, 200 + n % 800, 100 + n % 500, 100 + n % 300,
    CASE WHEN n % 4 <> 2 THEN (ARRAY['gpt-4o-mini', 'gpt-4o-mini', 'gpt-4o', 'text-embedding-3-small'])[1 + n % 4] END,
    CASE WHEN n % 10 = 0 THEN 'counted' ELSE 'reported' END,
    CASE WHEN n % 50 = 0 THEN 'refused' WHEN n % 100 = 1 THEN 'upstream_error' ELSE 'completed' END,
    n % 3 = 0, 0.00012345 + n % 10 * 0.00001, 'request-' || n, '0193a1c2-7d1e-7cc3-98c4-1f3b6a2d9e10', at, at
FROM (SELECT n, now() - interval '30 days' + n * (interval '30 days' / :events) AS at
      FROM generate_series(0::bigint, :events - 1) n) e;
