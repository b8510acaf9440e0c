-- An audit event of a transaction that writes something else: a trigger links it into the chain `database`.
INSERT INTO audit_events (
    event_id, tenant_id, event_type, category, entity_type, entity_id, action, actor_type, actor_id,
    old_values, new_values, changes_summary, result, error_message, ip_address, user_agent, request_id, "timestamp",
    in_history)
SELECT id, tenant, kind, category, entity, entity_id, action, actor, actor_id,
    old::jsonb, new::jsonb, summary, result, error, ip, agent, request, at,
    in_history
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::inet[], $16::text[],
    $17::text[], $18::timestamptz[], $19::bool[])
    AS e(id, tenant, kind, category, entity, entity_id, action, actor, actor_id, old, new, summary, result, error,
        ip, agent, request, at, in_history)
ON CONFLICT (event_id, "timestamp") DO NOTHING
