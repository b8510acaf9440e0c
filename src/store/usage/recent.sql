-- The last $2 events of tenant $1 in the last days.
FROM tenant_usage_realtime r
WHERE tenant_id = $1 AND event_timestamp >= now() - interval '7 days' AND event_timestamp < now() + interval '1 day'
ORDER BY r.event_timestamp DESC LIMIT $2
