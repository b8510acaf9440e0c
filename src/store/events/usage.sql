-- Events. Which of them are new is kept for charge.sql.
WITH landed AS (
    INSERT INTO tenant_usage_realtime (
        event_id, tenant_id, event_type, event_timestamp, api_method, api_endpoint, api_status_code,
        api_response_time_ms, upstream_first_byte_ms, chat_session_id, chat_messages, embeddings,
        embedding_tokens, search_query_tokens, search_result_count, tokens_consumed,
        input_tokens, output_tokens, cached_input_tokens, cache_write_input_tokens, reasoning_tokens,
        model, token_source, outcome, streamed, cost_usd, request_id, metadata, replica_id)
    SELECT id, tenant, kind, at, method, endpoint, status,
        response_ms, first_byte_ms, session, messages, embeddings,
        CASE kind WHEN 'embedding' THEN tokens END, CASE kind WHEN 'search' THEN tokens END, found, tokens,
        input, output, cached, written, reasoning,
        model, source, outcome, streamed, round(nanousd * 0.000000001, 8), request, metadata::jsonb, $26
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::int[],
        $8::int[], $9::int[], $10::text[], $11::int[], $12::int[], $13::int[], $14::bigint[],
        $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[],
        $20::text[], $21::text[], $22::text[], $23::bool[], $24::bigint[], $25::text[], $27::text[])
        AS e(id, tenant, kind, at, method, endpoint, status, response_ms, first_byte_ms, session, messages, embeddings,
            found, tokens, input, output, cached, written, reasoning, model, source, outcome, streamed, nanousd,
            request, metadata)
    ON CONFLICT (event_id, event_timestamp) DO NOTHING
    RETURNING event_id
)
SELECT set_config('tollgate.landed', coalesce(string_agg(event_id::text, ','), ''), true) FROM landed
