-- Tamper-evident audit: each audit event carries the hash of the one before it. docs/audit.md has the argument.
--
-- An entry's hash is sha256 over the hash before it, its chain, its number, its time and a digest of what it says; one
-- function each makes them (tollgate_audit_link, tollgate_audit_digest), for writing and for verifying.
--
-- Chains: up to four for each replica (ID, ID/2, ID/3, ID/4), of what its shipper wrote: a batch takes the first that is
-- free, so that as many as are in flight don't wait for each other; `database`, of what SQL inserted; `resolutions`, of how
-- events were resolved. The row of audit_chains is the chain's lock: whoever adds to a chain holds it to the end of the
-- transaction. It is taken after rows of usage and before the counters of quotas; of two chains, never both.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

ALTER TABLE audit_events
    ADD COLUMN IF NOT EXISTS chain TEXT,
    ADD COLUMN IF NOT EXISTS chain_seq BIGINT,
    ADD COLUMN IF NOT EXISTS prev_hash BYTEA,
    ADD COLUMN IF NOT EXISTS hash BYTEA;

-- What the walk reads by. A row that is written takes its place at the end.
CREATE INDEX IF NOT EXISTS audit_events_chain ON audit_events (chain, chain_seq) WHERE chain IS NOT NULL;

CREATE TABLE IF NOT EXISTS audit_chains (
    chain      TEXT PRIMARY KEY,
    seq        BIGINT NOT NULL DEFAULT 0,
    head       BYTEA NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    updated_at TIMESTAMPTZ NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What retention took from a chain and the rest of it is proven by.
CREATE TABLE IF NOT EXISTS audit_removed (
    chain       TEXT NOT NULL,
    chain_seq   BIGINT NOT NULL,
    "timestamp" TIMESTAMPTZ NOT NULL,
    digest      BYTEA NOT NULL,
    prev_hash   BYTEA NOT NULL,
    hash        BYTEA NOT NULL,
    CONSTRAINT audit_removed_pkey PRIMARY KEY (chain, chain_seq)
);

CREATE TABLE IF NOT EXISTS audit_resolutions (
    chain_seq     BIGINT PRIMARY KEY,
    event_id      UUID NOT NULL,
    event_at      TIMESTAMPTZ NOT NULL,
    resolution    TEXT NOT NULL,
    resolved_from TEXT NOT NULL,
    resolved_at   TIMESTAMPTZ NOT NULL,
    prev_hash     BYTEA NOT NULL,
    hash          BYTEA NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_resolutions_event ON audit_resolutions (event_id);

-- Events from before there were chains. None can come to be one of them later.
CREATE TABLE IF NOT EXISTS audit_unchained (
    id     BOOLEAN PRIMARY KEY DEFAULT true CHECK (id),
    events BIGINT NOT NULL,
    latest TIMESTAMPTZ NOT NULL
);
-- The table is locked since ALTER TABLE, so that none is missed.
INSERT INTO audit_unchained (events, latest)
SELECT count(*), coalesce(max("timestamp"), '-infinity') FROM audit_events WHERE chain IS NULL
ON CONFLICT DO NOTHING;

COMMENT ON COLUMN audit_events.chain IS 'The chain that the event is in: a replica''s id, or `database`; NULL: from before there were chains';
COMMENT ON COLUMN audit_events.chain_seq IS 'Its number there, from 1';
COMMENT ON COLUMN audit_events.prev_hash IS 'The hash of the entry before it; zeros before the first';
COMMENT ON TABLE audit_chains IS 'The last entry of each chain of audit events';
COMMENT ON TABLE audit_removed IS 'Entries that retention removed, as far as the rest of their chain is proven by them';
COMMENT ON TABLE audit_resolutions IS 'How events were resolved: the chain `resolutions`';
COMMENT ON TABLE audit_unchained IS 'How many events had no chain when chains began, and the time of the latest';

-- What an event says. `result` is what it was before the event was resolved. A row's text is the framing: it quotes, and
-- tells NULL from an empty text. No type among these prints by a setting of the session. Inlined: one SELECT, each
-- argument used once, and no more volatile than it says.
CREATE OR REPLACE FUNCTION tollgate_audit_digest(event_id UUID, tenant_id TEXT, event_type TEXT, category TEXT,
    entity_type TEXT, entity_id TEXT, action TEXT, actor_type TEXT, actor_id TEXT, old_values JSONB, new_values JSONB,
    changes_summary TEXT, result TEXT, error_message TEXT, ip_address INET, user_agent TEXT, request_id TEXT,
    in_history BOOLEAN)
RETURNS BYTEA
LANGUAGE sql
STABLE
AS $$
    SELECT sha256(convert_to(ROW(event_id, tenant_id, event_type, category, entity_type, entity_id, action, actor_type,
        actor_id, old_values, new_values, changes_summary, result, error_message, ip_address, user_agent, request_id,
        in_history)::text, 'UTF8'))
$$;

CREATE OR REPLACE FUNCTION tollgate_resolution_digest(event_id UUID, event_at TIMESTAMPTZ, resolution TEXT, resolved_from TEXT)
RETURNS BYTEA
LANGUAGE sql
STABLE
AS $$
    SELECT sha256(convert_to(ROW(event_id, encode(timestamptz_send(event_at), 'hex'), resolution, resolved_from)::text, 'UTF8'))
$$;

-- The hash of an entry. All parts but the chain's name have a fixed length, so no two entries have the same bytes.
CREATE OR REPLACE FUNCTION tollgate_audit_link(prev_hash BYTEA, chain TEXT, chain_seq BIGINT, at TIMESTAMPTZ, digest BYTEA)
RETURNS BYTEA
LANGUAGE plpgsql
IMMUTABLE
AS $$
BEGIN
    RETURN sha256(prev_hash || convert_to(chain, 'UTF8') || int8send(chain_seq) || timestamptz_send(at) || digest);
END
$$;

CREATE OR REPLACE FUNCTION tollgate_audit_step(so_far BYTEA, head BYTEA, chain TEXT, chain_seq BIGINT, at TIMESTAMPTZ, digest BYTEA)
RETURNS BYTEA
LANGUAGE plpgsql
IMMUTABLE
AS $$
BEGIN
    RETURN sha256(coalesce(so_far, head) || convert_to(chain, 'UTF8') || int8send(chain_seq) || timestamptz_send(at) || digest);
END
$$;

-- As a window function: the hash of each entry in turn, from the chain's `head` on.
CREATE OR REPLACE AGGREGATE tollgate_audit_chained(head BYTEA, chain TEXT, chain_seq BIGINT, at TIMESTAMPTZ, digest BYTEA) (
    SFUNC = tollgate_audit_step,
    STYPE = BYTEA
);

-- Locks the first of these chains that is free, or waits for the first. They begin here if they are new.
CREATE OR REPLACE FUNCTION tollgate_audit_lock(VARIADIC names TEXT[])
RETURNS audit_chains
LANGUAGE plpgsql
AS $$
DECLARE
    last audit_chains;
BEGIN
    SELECT * INTO last FROM audit_chains WHERE chain = ANY (names) ORDER BY chain LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        INSERT INTO audit_chains (chain) SELECT unnest(names) ORDER BY 1 ON CONFLICT DO NOTHING;
        SELECT * INTO last FROM audit_chains WHERE chain = ANY (names) ORDER BY chain LIMIT 1 FOR UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        SELECT * INTO last FROM audit_chains WHERE chain = names[1] FOR UPDATE;
    END IF;
    RETURN last;
END
$$;

-- Makes the hashes of a chain's entries after number `after`, whose hash is `head`. Returns the last one.
CREATE OR REPLACE FUNCTION tollgate_audit_seal(name TEXT, after BIGINT, head BYTEA)
RETURNS BYTEA
LANGUAGE plpgsql
AS $$
DECLARE
    last BYTEA;
BEGIN
    WITH chained AS MATERIALIZED (
        SELECT a.event_id, a."timestamp", a.chain_seq, tollgate_audit_chained(head, name, a.chain_seq, a."timestamp",
            tollgate_audit_digest(a.event_id, a.tenant_id, a.event_type, a.category, a.entity_type, a.entity_id, a.action,
                a.actor_type, a.actor_id, a.old_values, a.new_values, a.changes_summary, coalesce(a.resolved_from, a.result),
                a.error_message, a.ip_address, a.user_agent, a.request_id, a.in_history))
            OVER (ORDER BY a.chain_seq ROWS UNBOUNDED PRECEDING) AS hash
        FROM audit_events a WHERE a.chain = name AND a.chain_seq > after
    ), linked AS (
        SELECT c.*, lag(c.hash, 1, head) OVER (ORDER BY c.chain_seq) AS prev_hash FROM chained c
    ), sealed AS (
        UPDATE audit_events a SET prev_hash = l.prev_hash, hash = l.hash
        FROM linked l WHERE a.event_id = l.event_id AND a."timestamp" = l."timestamp"
        RETURNING a.chain_seq, a.hash
    )
    SELECT (array_agg(s.hash ORDER BY s.chain_seq DESC))[1] INTO last FROM sealed s;
    RETURN last;
END
$$;

-- Audit events as a replica ships them, one for each element of the arrays, in this order into one of its chains. Those
-- that are there already are left out. Old values are looked up before the hashes are made. Returns how many were new.
DROP FUNCTION IF EXISTS tollgate_write_audit(TEXT, UUID[], TEXT[], TEXT[], TEXT[], TEXT[], TEXT[], TEXT[], TEXT[], TEXT[],
    TEXT[], TEXT[], TEXT[], TEXT[], TEXT[], INET[], TEXT[], TEXT[], TIMESTAMPTZ[], BOOLEAN[]);
CREATE FUNCTION tollgate_write_audit(replica TEXT, ids UUID[], tenants TEXT[], kinds TEXT[], categories TEXT[],
    entities TEXT[], entity_ids TEXT[], actions TEXT[], actors TEXT[], actor_ids TEXT[], olds TEXT[], news TEXT[],
    summaries TEXT[], results TEXT[], errors TEXT[], ips INET[], agents TEXT[], requests TEXT[], ats TIMESTAMPTZ[],
    marked BOOLEAN[])
RETURNS BIGINT
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
    last    audit_chains := tollgate_audit_lock(VARIADIC CASE WHEN replica IS NULL THEN ARRAY['database']
        ELSE ARRAY[replica, replica || '/2', replica || '/3', replica || '/4'] END);
    name    CONSTANT TEXT := last.chain;
    history CONSTANT BOOLEAN := true = ANY (marked);
    added   BIGINT;
    upto    BIGINT;
    newest  BYTEA;
BEGIN
    WITH fresh AS (
        SELECT e.*, last.seq + row_number() OVER (ORDER BY e.place) AS seq
        FROM unnest(ids, tenants, kinds, categories, entities, entity_ids, actions, actors, actor_ids, olds::jsonb[],
            news::jsonb[], summaries, results, errors, ips, agents, requests, ats, marked) WITH ORDINALITY
            AS e(id, tenant, kind, category, entity, entity_id, action, actor, actor_id, old, new, summary, result, error,
                ip, agent, request, at, marked, place)
        WHERE NOT EXISTS (SELECT FROM audit_events a WHERE a.event_id = e.id AND a."timestamp" = e.at)
    ), chained AS (
        SELECT f.*, CASE WHEN NOT history THEN tollgate_audit_chained(last.head, name, f.seq, f.at, tollgate_audit_digest(
                f.id, f.tenant, f.kind, f.category, f.entity, f.entity_id, f.action, f.actor, f.actor_id, f.old, f.new,
                f.summary, f.result, f.error, f.ip, f.agent, f.request, f.marked))
            OVER (ORDER BY f.seq ROWS UNBOUNDED PRECEDING) END AS hash
        FROM fresh f
    ), written AS (
        INSERT INTO audit_events (
            event_id, tenant_id, event_type, category, entity_type, entity_id, action, actor_type, actor_id,
            old_values, new_values, changes_summary, result, error_message, ip_address, user_agent, request_id, "timestamp",
            in_history, chain, chain_seq, prev_hash, hash)
        SELECT c.id, c.tenant, c.kind, c.category, c.entity, c.entity_id, c.action, c.actor, c.actor_id,
            c.old, c.new, c.summary, c.result, c.error, c.ip, c.agent, c.request, c.at,
            c.marked, name, c.seq, CASE WHEN NOT history THEN lag(c.hash, 1, last.head) OVER (ORDER BY c.seq) END, c.hash
        FROM chained c
        ON CONFLICT (event_id, "timestamp") DO NOTHING
        RETURNING audit_events.chain_seq, audit_events.hash
    )
    SELECT count(*), max(w.chain_seq), (array_agg(w.hash ORDER BY w.chain_seq DESC))[1] INTO added, upto, newest FROM written w;
    IF added = 0 THEN
        RETURN 0;
    END IF;
    -- One of them was being written by an earlier attempt, whose answer was lost, and is there now: its number would be
    -- missing.
    IF added <> upto - last.seq THEN
        RAISE EXCEPTION 'an audit event was written by another transaction at the same time' USING ERRCODE = 'serialization_failure';
    END IF;
    IF history THEN
        PERFORM tollgate_tell_old_values(array_agg(a.event_id ORDER BY a.chain_seq), array_agg(a."timestamp" ORDER BY a.chain_seq))
            FROM audit_events a WHERE a.chain = name AND a.chain_seq > last.seq AND a.in_history;
        newest := tollgate_audit_seal(name, last.seq, last.head);
    END IF;
    UPDATE audit_chains c SET seq = upto, head = newest, updated_at = now() WHERE c.chain = name;
    RETURN added;
END
$$;

-- What is inserted by any other SQL goes into the chain `database`, in order of time.
CREATE OR REPLACE FUNCTION tollgate_chain_inserted()
RETURNS TRIGGER
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
AS $$
DECLARE
    last   audit_chains;
    upto   BIGINT;
    newest BYTEA;
BEGIN
    IF NOT EXISTS (SELECT FROM added WHERE chain IS NULL) THEN
        RETURN NULL;
    END IF;
    last := tollgate_audit_lock('database');
    WITH fresh AS (
        SELECT a.*, last.seq + row_number() OVER (ORDER BY a."timestamp", a.event_id) AS seq FROM added a WHERE a.chain IS NULL
    ), chained AS MATERIALIZED (
        SELECT f.event_id, f."timestamp", f.seq, tollgate_audit_chained(last.head, 'database', f.seq, f."timestamp",
            tollgate_audit_digest(f.event_id, f.tenant_id, f.event_type, f.category, f.entity_type, f.entity_id, f.action,
                f.actor_type, f.actor_id, f.old_values, f.new_values, f.changes_summary, coalesce(f.resolved_from, f.result),
                f.error_message, f.ip_address, f.user_agent, f.request_id, f.in_history))
            OVER (ORDER BY f.seq ROWS UNBOUNDED PRECEDING) AS hash
        FROM fresh f
    ), linked AS (
        SELECT c.*, lag(c.hash, 1, last.head) OVER (ORDER BY c.seq) AS prev FROM chained c
    ), sealed AS (
        UPDATE audit_events a SET chain = 'database', chain_seq = l.seq, prev_hash = l.prev, hash = l.hash
        FROM linked l WHERE a.event_id = l.event_id AND a."timestamp" = l."timestamp"
        RETURNING a.chain_seq, a.hash
    )
    SELECT max(s.chain_seq), (array_agg(s.hash ORDER BY s.chain_seq DESC))[1] INTO upto, newest FROM sealed s;
    UPDATE audit_chains c SET seq = upto, head = newest, updated_at = now() WHERE c.chain = 'database';
    RETURN NULL;
END
$$;

DROP TRIGGER IF EXISTS audit_events_chain ON audit_events;
CREATE TRIGGER audit_events_chain AFTER INSERT ON audit_events
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION tollgate_chain_inserted();

-- As migration 4 made it, but that an event which has its hash already is left alone.
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
              AND a.old_values IS NULL AND a.hash IS NULL AND jsonb_typeof(a.new_values) = 'object';
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

-- As migration 3 made it, and the resolution is an entry of the chain `resolutions`.
CREATE OR REPLACE FUNCTION resolve_audit_event(p_event_id UUID, p_resolution TEXT)
RETURNS BOOLEAN
LANGUAGE plpgsql
AS $$
DECLARE
    last     audit_chains;
    resolved RECORD;
    done     BOOLEAN := false;
BEGIN
    IF coalesce(btrim(p_resolution), '') = '' THEN
        RAISE EXCEPTION 'a resolution needs a text' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Before the event's row: one that resolves many in one transaction must not wait for it the other way round.
    last := tollgate_audit_lock('resolutions');
    FOR resolved IN
        UPDATE audit_events
            SET result = 'resolved', resolved_from = result, resolution = p_resolution, resolved_at = now()
            WHERE event_id = p_event_id AND result <> 'resolved'
            RETURNING event_id, "timestamp" AS at, resolution, resolved_from, resolved_at
    LOOP
        INSERT INTO audit_resolutions (chain_seq, event_id, event_at, resolution, resolved_from, resolved_at, prev_hash, hash)
        VALUES (last.seq + 1, resolved.event_id, resolved.at, resolved.resolution, resolved.resolved_from, resolved.resolved_at,
            last.head, tollgate_audit_link(last.head, 'resolutions', last.seq + 1, resolved.resolved_at,
                tollgate_resolution_digest(resolved.event_id, resolved.at, resolved.resolution, resolved.resolved_from)))
        RETURNING chain_seq, hash INTO last.seq, last.head;
        done := true;
    END LOOP;
    UPDATE audit_chains c SET seq = last.seq, head = last.head, updated_at = now() WHERE done AND c.chain = 'resolutions';
    RETURN done;
END
$$;

-- Every entry of every chain that is there, as the walk reads it: what its hash must be by what it says, and whether
-- the event is resolved as its resolution says, or not at all.
CREATE OR REPLACE VIEW audit_chain_entries AS
SELECT a.chain, a.chain_seq, a."timestamp" AS at, a.event_id,
    tollgate_audit_digest(a.event_id, a.tenant_id, a.event_type, a.category, a.entity_type, a.entity_id, a.action,
        a.actor_type, a.actor_id, a.old_values, a.new_values, a.changes_summary, coalesce(a.resolved_from, a.result),
        a.error_message, a.ip_address, a.user_agent, a.request_id, a.in_history) AS digest,
    a.prev_hash, a.hash,
    CASE WHEN a.result = 'resolved' OR a.resolved_from IS NOT NULL OR a.resolution IS NOT NULL OR a.resolved_at IS NOT NULL
        THEN a.result = 'resolved' AND EXISTS (
            SELECT FROM audit_resolutions r WHERE r.event_id = a.event_id AND r.event_at = a."timestamp"
              AND r.resolution = a.resolution AND r.resolved_from = a.resolved_from AND r.resolved_at = a.resolved_at)
        ELSE true END AS faithful
FROM audit_events a WHERE a.chain IS NOT NULL
UNION ALL
SELECT 'resolutions', r.chain_seq, r.resolved_at, r.event_id,
    tollgate_resolution_digest(r.event_id, r.event_at, r.resolution, r.resolved_from), r.prev_hash, r.hash,
    NOT EXISTS (SELECT FROM audit_events a WHERE a.event_id = r.event_id AND a."timestamp" = r.event_at
        AND (a.resolution IS DISTINCT FROM r.resolution OR a.result <> 'resolved'))
FROM audit_resolutions r;

-- Retention. Chains are not in order of time: what came late stands behind younger entries, so that of the events that go,
-- some stand between events that stay. Of these, and of the last before the first that stays, the digest, the time and the
-- hashes are kept. So the rest can be walked, and an entry's time, which its hash covers, proves that it was due.
CREATE OR REPLACE FUNCTION tollgate_bury_audit(cutoff TIMESTAMPTZ)
RETURNS VOID
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
    this  RECORD;
    first BIGINT;
BEGIN
    FOR this IN SELECT c.chain, c.seq FROM audit_chains c ORDER BY c.chain LOOP
        SELECT e.chain_seq INTO first FROM audit_chain_entries e
            WHERE e.chain = this.chain AND e.at >= cutoff ORDER BY e.chain_seq LIMIT 1;
        first := coalesce(first, this.seq + 1);
        INSERT INTO audit_removed (chain, chain_seq, "timestamp", digest, prev_hash, hash)
            SELECT e.chain, e.chain_seq, e.at, e.digest, e.prev_hash, e.hash FROM audit_chain_entries e
            WHERE e.chain = this.chain AND e.chain_seq >= first - 1 AND e.at < cutoff
            ON CONFLICT DO NOTHING;
        DELETE FROM audit_removed r WHERE r.chain = this.chain AND r.chain_seq < first - 1;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION cleanup_old_audit_events()
RETURNS BIGINT
LANGUAGE plpgsql
SET lock_timeout = '3s'
AS $$
DECLARE
    cutoff TIMESTAMPTZ := now() - interval '2 years';
BEGIN
    IF EXISTS (SELECT FROM audit_events WHERE "timestamp" < cutoff)
        OR EXISTS (SELECT FROM audit_resolutions WHERE resolved_at < cutoff)
    THEN
        BEGIN
            -- Nothing comes in between what is kept of the events and their going.
            LOCK TABLE audit_events IN SHARE ROW EXCLUSIVE MODE;
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING 'audit_events is in use: what is old is left for the next call';
            RETURN 0;
        END;
        PERFORM tollgate_bury_audit(cutoff);
        DELETE FROM audit_resolutions WHERE resolved_at < cutoff;
    END IF;
    RETURN tollgate_remove_before('audit_events', cutoff);
END
$$;

INSERT INTO tollgate_schema (version, name) VALUES (8, 'audit_chain') ON CONFLICT DO NOTHING;

COMMIT;
