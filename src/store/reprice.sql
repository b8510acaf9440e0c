-- Of the rows with the keys $1, $2 (within $3 to $4, which spares the other partitions) those that still have no price of
-- their model's, locked.
SELECT t.event_id, t.event_timestamp, t.tenant_id, t.model, t.tokens_consumed, t.input_tokens, t.output_tokens,
    t.cached_input_tokens, t.cache_write_input_tokens, t.reasoning_tokens, (t.cost_usd * 1000000000)::bigint,
    t.metadata -> 'billing', t.metadata -> 'billed'
FROM unnest($1::uuid[], $2::timestamptz[]) k(id, at)
JOIN tenant_usage_realtime t ON t.event_id = k.id AND t.event_timestamp = k.at
WHERE t.event_timestamp BETWEEN $3 AND $4 AND (t.metadata -> 'default_price' = 'true' OR t.metadata ? 'cost_from')
ORDER BY t.event_timestamp, t.event_id
FOR UPDATE OF t
