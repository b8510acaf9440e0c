-- Takes the alerts that are due, as many as $1, for $2 seconds: should this replica end in between, another sends them
-- then, under the same id. Rows that another replica is taking are passed over.
UPDATE alert_outbox o
SET attempts = o.attempts + 1, next_attempt_at = now() + $2::float8 * interval '1 second'
WHERE o.alert_id IN (
    SELECT d.alert_id FROM alert_outbox d
    WHERE d.state = 'pending' AND d.next_attempt_at <= now()
    ORDER BY d.next_attempt_at LIMIT $1
    FOR UPDATE SKIP LOCKED)
RETURNING o.alert_id, o.attempts, tollgate_alert_body(o)::text
