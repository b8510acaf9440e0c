-- The last $5 refusals of tenant $1 among its latest $4 calls from $2 to $3. The inner SELECT walks along the index of the
-- tenant's calls, and the outer one ends the walk.
SELECT event_timestamp, request_id, api_endpoint, api_status_code, replica_id, metadata
FROM (
    SELECT * FROM tenant_usage_realtime
    WHERE tenant_id = $1 AND event_timestamp >= $2 AND event_timestamp < $3
    ORDER BY event_timestamp DESC LIMIT $4
) latest
WHERE outcome = 'refused' LIMIT $5
