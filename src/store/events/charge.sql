-- The charges of what really landed: they raise the counters, and use up the leases that they were charged under. Sums
-- are numeric and saturate: an absurd count must not stop the counters. The counters' rows are the locks of the leases
-- (migrations/0005_leases.sql), so they are raised first: `raised` is joined, and sorted, before the first lease is touched.
WITH done AS (
    SELECT false AS amends, unnest(string_to_array(current_setting('tollgate.landed', true), ',')::uuid[]) AS id
    UNION ALL
    SELECT true, unnest(string_to_array(current_setting('tollgate.amended', true), ',')::uuid[])
), sums AS MATERIALIZED (
    SELECT c.tenant, c.dimension, c.starts, c.run, max(c.ends) AS ends, sum(c.amount) AS amount,
        (array_agg(c.most ORDER BY c.place DESC))[1] AS most, max(c.place) AS place
    FROM unnest($1::uuid[], $2::bool[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::bigint[],
        $8::bigint[], $9::bigint[]) WITH ORDINALITY AS c(id, amends, tenant, dimension, starts, ends, amount, most, run, place)
    JOIN done USING (id, amends)
    GROUP BY c.tenant, c.dimension, c.starts, c.run
), raised AS (
    INSERT INTO quota_usage AS q (tenant_id, dimension, window_start, window_end, settled, limit_value)
    SELECT tenant, dimension, starts, max(ends),
        least(greatest(sum(amount), -9223372036854775807), 9223372036854775807)::bigint,
        (array_agg(most ORDER BY place DESC))[1]
    FROM sums
    GROUP BY tenant, dimension, starts
    ORDER BY tenant, dimension, starts
    ON CONFLICT (tenant_id, dimension, window_start) DO UPDATE SET
        settled = least(greatest(q.settled::numeric + excluded.settled, -9223372036854775807), 9223372036854775807)::bigint,
        limit_value = excluded.limit_value, updated_at = now()
    RETURNING tenant_id, dimension, window_start
)
INSERT INTO quota_leases AS l (replica_id, run, tenant_id, dimension, window_start, window_end, consumed)
SELECT $10, s.run, s.tenant, s.dimension, s.starts, s.ends,
    least(greatest(s.amount, -9223372036854775807), 9223372036854775807)::bigint
FROM raised r JOIN sums s ON s.tenant = r.tenant_id AND s.dimension = r.dimension AND s.starts = r.window_start
WHERE s.run > 0 AND s.most IS NOT NULL AND $10::text IS NOT NULL
ORDER BY s.tenant, s.dimension, s.starts, s.run
ON CONFLICT (tenant_id, dimension, window_start, replica_id, run) DO UPDATE SET
    consumed = least(greatest(l.consumed::numeric + excluded.consumed, -9223372036854775807), 9223372036854775807)::bigint
