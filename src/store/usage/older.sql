-- The last $2 events of tenant $1 before those of recent.sql.
FROM tenant_usage_realtime r
WHERE tenant_id = $1 AND event_timestamp < now() - interval '7 days'
ORDER BY r.event_timestamp DESC LIMIT $2
