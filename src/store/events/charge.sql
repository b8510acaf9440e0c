-- The charges of what really landed. Sums are numeric and saturate: an absurd count must not stop the counters.
WITH done AS (
    SELECT false AS amends, unnest(string_to_array(current_setting('tollgate.landed', true), ',')::uuid[]) AS id
    UNION ALL
    SELECT true, unnest(string_to_array(current_setting('tollgate.amended', true), ',')::uuid[])
)
INSERT INTO quota_usage AS q (tenant_id, dimension, window_start, window_end, settled, limit_value)
SELECT c.tenant, c.dimension, c.starts, max(c.ends),
    least(greatest(sum(c.amount), -9223372036854775807), 9223372036854775807)::bigint,
    (array_agg(c.most ORDER BY c.place DESC))[1]
FROM unnest($1::uuid[], $2::bool[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::bigint[],
    $8::bigint[]) WITH ORDINALITY AS c(id, amends, tenant, dimension, starts, ends, amount, most, place)
JOIN done USING (id, amends)
GROUP BY c.tenant, c.dimension, c.starts
ORDER BY c.tenant, c.dimension, c.starts
ON CONFLICT (tenant_id, dimension, window_start) DO UPDATE SET
    settled = least(greatest(q.settled::numeric + excluded.settled, -9223372036854775807), 9223372036854775807)::bigint,
    limit_value = excluded.limit_value, updated_at = now()
