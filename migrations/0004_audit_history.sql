-- Tollgate, migration 4: the history of what audit events are about.
--
-- Some events tell what was before: the values last recorded of the same entity. They are marked, so that the index
-- by which they are found holds them alone: the many events of chats cost it nothing.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

ALTER TABLE audit_events ADD COLUMN IF NOT EXISTS in_history BOOLEAN NOT NULL DEFAULT false;

CREATE INDEX IF NOT EXISTS audit_events_history
    ON audit_events (entity_id, entity_type, "timestamp" DESC) WHERE in_history;

COMMENT ON COLUMN audit_events.in_history IS 'One of the changes of its entity: old_values are those last recorded under the same names';

-- Tells events that are in a history what was before them: of each name in `new_values` the value that the same entity's
-- history has last. One event for each element of the arrays; where old values are known already they stay. Returns how
-- many were told something.
--
-- An event comes before another by its time, and by its id (UUIDv7) at the same one, so that those of one batch follow
-- each other too. All look-ups are by key, whatever the planner knows of a partition: a tenant's other events are never
-- read. So that it can't walk the tenant's index instead, the tenant is compared in a way that no index serves; an entity's
-- id is as good as its tenant's, and where two tenants have one of the same name, few rows are read in vain. An entity that changed a hundred times since a name was last recorded has no old value for it.
CREATE OR REPLACE FUNCTION tollgate_tell_old_values(ids UUID[], ats TIMESTAMPTZ[])
RETURNS INTEGER
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    this   RECORD;
    before JSONB;
    names  TEXT[];
    known  JSONB;
    told   INTEGER := 0;
BEGIN
    FOR i IN 1 .. coalesce(array_length(ids, 1), 0) LOOP
        SELECT a.tenant_id, a.entity_type, a.entity_id, a.new_values INTO this
            FROM audit_events a
            WHERE a.event_id = ids[i] AND a."timestamp" = ats[i] AND a.in_history
              AND a.old_values IS NULL AND jsonb_typeof(a.new_values) = 'object';
        CONTINUE WHEN NOT FOUND;
        names := ARRAY(SELECT jsonb_object_keys(this.new_values));
        known := '{}';
        FOR before IN
            SELECT a.new_values FROM audit_events a
            WHERE a.in_history AND a.tenant_id IS NOT DISTINCT FROM this.tenant_id AND a.entity_type = this.entity_type
              AND a.entity_id = this.entity_id AND a."timestamp" <= ats[i]
              AND (a."timestamp" < ats[i] OR a.event_id < ids[i]) AND jsonb_typeof(a.new_values) = 'object'
            ORDER BY a."timestamp" DESC, a.event_id DESC
            LIMIT 100
        LOOP
            known := (SELECT coalesce(jsonb_object_agg(v.key, v.value), '{}') FROM jsonb_each(before) v
                      WHERE v.key = ANY (names)) || known;
            EXIT WHEN known ?& names;
        END LOOP;
        CONTINUE WHEN known = '{}';
        UPDATE audit_events SET old_values = known WHERE event_id = ids[i] AND "timestamp" = ats[i];
        told := told + 1;
    END LOOP;
    RETURN told;
END
$$;

INSERT INTO tollgate_schema (version, name) VALUES (4, 'audit_history') ON CONFLICT DO NOTHING;

COMMIT;
