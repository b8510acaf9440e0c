-- Amendments, of rows that still say `reserved`. Which of them applied is kept for charge.sql. The bounds of time let
-- the planner leave out the other partitions.
WITH amended AS (
    UPDATE tenant_usage_realtime AS t
    SET tokens_consumed = a.tokens, input_tokens = a.input, output_tokens = a.output,
        cached_input_tokens = a.cached, cache_write_input_tokens = a.written, reasoning_tokens = a.reasoning,
        embedding_tokens = CASE t.event_type WHEN 'embedding' THEN a.tokens END,
        search_query_tokens = CASE t.event_type WHEN 'search' THEN a.tokens END,
        token_source = a.source, cost_usd = round(a.nanousd * 0.000000001, 8), updated_at = now()
    FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
        $8::bigint[], $9::text[], $10::bigint[])
        AS a(id, at, tokens, input, output, cached, written, reasoning, source, nanousd)
    WHERE t.event_id = a.id AND t.event_timestamp = a.at
      AND t.event_timestamp >= $11 AND t.event_timestamp <= $12
      AND t.token_source = 'reserved'
    RETURNING t.event_id
)
SELECT set_config('tollgate.amended', coalesce(string_agg(event_id::text, ','), ''), true) FROM amended
