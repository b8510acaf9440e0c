-- An attempt that came to nothing: again in $4 seconds, or given up where $4 is NULL, which is audited. An attempt that
-- was taken over meanwhile has no say.
WITH ended AS (
    UPDATE alert_outbox o
    SET state = CASE WHEN $4::float8 IS NULL THEN 'failed' ELSE 'pending' END, last_error = $3,
        next_attempt_at = now() + coalesce($4::float8, 0) * interval '1 second'
    WHERE o.alert_id = $1 AND o.attempts = $2 AND o.state = 'pending'
    RETURNING o.alert_id, nullif(o.tenant_id, '') AS tenant_id, o.kind, o.attempts
)
INSERT INTO audit_events (
    tenant_id, event_type, category, entity_type, entity_id, action, actor_type, new_values, changes_summary, result,
    error_message)
SELECT tenant_id, 'alert_failed', 'error', 'alert', alert_id::text, 'execute', 'system',
    jsonb_build_object('kind', kind, 'attempts', attempts), 'the webhook did not take the alert', 'failure', $3
FROM ended WHERE $4::float8 IS NULL
