-- Calls from $1 to $2, of tenant $3 or (NULL) of all, that were held against limits or would have been: not those of a tenant
-- that an operator had blocked, and not those that were charged to nobody (a tenant that only the answer named, a client
-- that left before it was admitted). In the order of the index, read backwards: nothing has to be sorted but what has
-- the same instant.
SELECT tenant_id, event_timestamp, api_response_time_ms, api_method, api_endpoint, event_type, chat_messages, embeddings,
    coalesce((metadata -> 'charged_tokens')::bigint, tokens_consumed),
    (cost_usd * 1000000000)::bigint + coalesce((metadata -> 'floor_cost_nanousd')::bigint, 0), outcome = 'refused', model, metadata -> 'asked',
    CASE WHEN outcome = 'refused' THEN coalesce((metadata -> 'refusals')::bigint, 1) ELSE 1 END
FROM tenant_usage_realtime
WHERE event_timestamp >= $1 AND event_timestamp < $2 AND ($3::text IS NULL OR tenant_id = $3)
    AND metadata -> 'refused_by' IS DISTINCT FROM '"blocked"'
    AND (outcome = 'refused' OR metadata -> 'charged' IS DISTINCT FROM '{}')
ORDER BY tenant_id DESC, event_timestamp, event_id
