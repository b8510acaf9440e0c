-- Quota leases: what a replica may spend without asking. docs/quota.md has the protocol and why it holds.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

-- One run of a replica is one lessee: what an earlier run was granted is never spent by a later one.
ALTER TABLE gateway_replicas ADD COLUMN IF NOT EXISTS run BIGINT NOT NULL DEFAULT 0;
ALTER TABLE gateway_replicas ADD COLUMN IF NOT EXISTS lease_round BIGINT NOT NULL DEFAULT 0;
ALTER TABLE quota_leases ADD COLUMN IF NOT EXISTS run BIGINT NOT NULL DEFAULT 0;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conname = 'quota_leases_pkey' AND c.conrelid = 'quota_leases'::regclass AND a.attname = 'run'
    ) THEN
        ALTER TABLE quota_leases DROP CONSTRAINT IF EXISTS quota_leases_pkey;
        ALTER TABLE quota_leases
            ADD CONSTRAINT quota_leases_pkey PRIMARY KEY (tenant_id, dimension, window_start, replica_id, run);
    END IF;
END
$$;

CREATE INDEX IF NOT EXISTS quota_leases_wanted ON quota_leases (replica_id, run) WHERE wanted_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS quota_leases_window_end ON quota_leases (window_end);

COMMENT ON COLUMN gateway_replicas.run IS 'Which run of the replica; counted in its data directory';
COMMENT ON COLUMN gateway_replicas.lease_round IS 'The last lease statement of this run that was carried out; an earlier one that arrives late is not';
COMMENT ON COLUMN quota_leases.granted IS 'In all, since the window began; the lessee may spend granted minus what it has used of the window itself';

-- One round of leases for one lessee: for each key (a tenant, a dimension, a window) a grant, a return, or only news.
--
--   known    what the lessee believes it was granted; NULL: it knows of nothing
--   at_least the grant below which a request of it has to be refused; at_most: the grant that it would like.
--            Both count from the beginning of the window, so a round that is carried out twice grants once.
--   ceiling  the tenant's limit as the lessee knows it; NULL: the grant is lowered to `at_most`, and what is above it
--            is handed back
--
-- Returns a row for each key, by its place in the arrays: the grant now, what it was before where the lessee knew of
-- nothing, what was used by everybody else (as far as it is settled), and whether what was not granted is held by
-- lessees that live, who have now been asked for what they don't use of it; and, with place 0, the lessee's own keys of
-- which others want the rest.
--
-- The row of quota_usage is the key's lock: whoever changes its use (the shipper), its grants or its lessees holds it
-- until the end of its transaction. Rows are locked in the order of the key, here and by the shipper. One key may stand
-- in the arrays twice, first to hand back and then to ask: it is carried out in that order.
--
-- Errors: TG001, a later round of this run (or a later run) has been carried out already; TG002, the lessee is
-- taken for dead and its leases are void: it must begin a new run.
DROP FUNCTION IF EXISTS tollgate_lease(TEXT, BIGINT, BIGINT, INTERVAL, TEXT[], TEXT[], TIMESTAMPTZ[], TIMESTAMPTZ[], BIGINT[], BIGINT[], BIGINT[], BIGINT[]);
CREATE FUNCTION tollgate_lease(
    me TEXT, my_run BIGINT, my_round BIGINT, reclaim_after INTERVAL,
    tenants TEXT[], dimensions TEXT[], starts TIMESTAMPTZ[], ends TIMESTAMPTZ[],
    known BIGINT[], at_least BIGINT[], at_most BIGINT[], ceiling BIGINT[])
RETURNS TABLE (place INTEGER, granted BIGINT, before BIGINT, elsewhere BIGINT, recalled BOOLEAN,
    tenant TEXT, dimension TEXT, starts_at TIMESTAMPTZ)
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    lessee gateway_replicas;
    live BIGINT;
    key RECORD;
    settled_here BIGINT;
    used_in_all NUMERIC;
    mine quota_leases;
    held_elsewhere NUMERIC;
    room NUMERIC;
    base BIGINT;
    shift BIGINT;
    lowest NUMERIC;
    wish NUMERIC;
    now_granted BIGINT;
    wanting BOOLEAN := false;
BEGIN
    SELECT * INTO lessee FROM gateway_replicas WHERE replica_id = me FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO gateway_replicas (replica_id, run, lease_round) VALUES (me, my_run, my_round)
        ON CONFLICT (replica_id) DO NOTHING;
    ELSIF my_run < lessee.run OR (my_run = lessee.run AND my_round <= lessee.lease_round) THEN
        RAISE EXCEPTION 'round % of run % comes too late', my_round, my_run USING ERRCODE = 'TG001';
    ELSIF my_run = lessee.run AND (lessee.state = 'retired'
        OR lessee.heartbeat_at < clock_timestamp() - reclaim_after) THEN
        RAISE EXCEPTION 'run % of replica % was taken for dead', my_run, me USING ERRCODE = 'TG002';
    ELSE
        UPDATE gateway_replicas SET run = my_run, lease_round = my_round, heartbeat_at = clock_timestamp(),
            state = CASE state WHEN 'draining' THEN 'draining' ELSE 'live' END
        WHERE replica_id = me;
    END IF;
    SELECT greatest(count(*), 1) INTO live FROM gateway_replicas
    WHERE state = 'live' AND heartbeat_at > clock_timestamp() - INTERVAL '10 seconds';

    FOR key IN
        SELECT * FROM unnest(tenants, dimensions, starts, ends, known, at_least, at_most, ceiling) WITH ORDINALITY
            AS k(tenant, dimension, starts, ends, known, at_least, at_most, ceiling, place)
        ORDER BY k.tenant, k.dimension, k.starts, k.place
    LOOP
        -- The lock, and what is used of this window.
        SELECT settled INTO settled_here FROM quota_usage
        WHERE tenant_id = key.tenant AND dimension = key.dimension AND window_start = key.starts FOR UPDATE;
        IF NOT FOUND THEN
            INSERT INTO quota_usage AS u (tenant_id, dimension, window_start, window_end, settled, limit_value)
            VALUES (key.tenant, key.dimension, key.starts, key.ends, 0, key.ceiling)
            ON CONFLICT (tenant_id, dimension, window_start) DO UPDATE SET settled = u.settled
            RETURNING settled INTO settled_here;
        END IF;

        -- Windows that overlap this one are the same stretch of time, cut otherwise because the plan's zone was changed.
        SELECT coalesce(sum(greatest(settled, 0)), 0) INTO used_in_all FROM quota_usage
        WHERE tenant_id = key.tenant AND dimension = key.dimension
            AND window_start > key.starts - 2 * (key.ends - key.starts) AND window_start < key.ends
            AND window_end > key.starts AND window_start <> key.starts;
        used_in_all := used_in_all + settled_here;

        SELECT * INTO mine FROM quota_leases
        WHERE tenant_id = key.tenant AND dimension = key.dimension AND window_start = key.starts
            AND replica_id = me AND run = my_run;
        base := greatest(coalesce(mine.granted, 0), coalesce(mine.consumed, 0));
        -- What the lessee does not know of (it forgot the window, or never heard the answer) counts as spent.
        shift := CASE WHEN key.known IS NULL THEN coalesce(mine.granted, 0) ELSE 0 END;
        recalled := false;

        IF key.ceiling IS NULL THEN
            now_granted := least(coalesce(mine.granted, 0), key.at_most + shift);
        ELSE
            SELECT coalesce(sum(greatest(l.granted - l.consumed, 0)), 0) INTO held_elsewhere
            FROM quota_leases l
            WHERE l.tenant_id = key.tenant AND l.dimension = key.dimension AND l.window_start = key.starts
                AND (l.replica_id <> me OR l.run <> my_run)
                AND (reclaim_after IS NULL OR l.granted_at > clock_timestamp() - reclaim_after * 1.25 OR EXISTS (
                    SELECT FROM gateway_replicas r WHERE r.replica_id = l.replica_id AND r.run = l.run
                        AND r.heartbeat_at > clock_timestamp() - reclaim_after * 1.25));
            room := greatest(key.ceiling - used_in_all - held_elsewhere
                - greatest(coalesce(mine.granted, 0) - coalesce(mine.consumed, 0), 0), 0);
            lowest := key.at_least::numeric + shift;
            wish := least(key.at_most::numeric + shift, base + CASE WHEN live > 1 THEN div(room, 2 * live) ELSE room END);
            now_granted := least(greatest(coalesce(mine.granted, 0), least(greatest(lowest, wish), base + room)),
                9223372036854775807);
            IF now_granted < lowest AND held_elsewhere > 0 THEN
                UPDATE quota_leases l SET wanted_at = now()
                WHERE l.tenant_id = key.tenant AND l.dimension = key.dimension AND l.window_start = key.starts
                    AND (l.replica_id <> me OR l.run <> my_run) AND l.granted > l.consumed AND l.wanted_at IS NULL;
                wanting := true;
                recalled := EXISTS (SELECT FROM quota_leases l JOIN gateway_replicas r ON r.replica_id = l.replica_id AND r.run = l.run
                    WHERE l.tenant_id = key.tenant AND l.dimension = key.dimension AND l.window_start = key.starts
                        AND l.replica_id <> me AND l.granted > l.consumed
                        AND r.heartbeat_at > clock_timestamp() - INTERVAL '10 seconds');
            END IF;
        END IF;

        IF mine.tenant_id IS NULL AND now_granted > 0 THEN
            INSERT INTO quota_leases (replica_id, run, tenant_id, dimension, window_start, window_end, granted)
            VALUES (me, my_run, key.tenant, key.dimension, key.starts, key.ends, now_granted);
        ELSIF mine.granted <> now_granted OR (key.ceiling IS NULL AND mine.wanted_at IS NOT NULL) THEN
            UPDATE quota_leases l SET granted = now_granted,
                granted_at = CASE WHEN now_granted > l.granted THEN now() ELSE granted_at END,
                wanted_at = CASE WHEN key.ceiling IS NULL THEN NULL ELSE wanted_at END
            WHERE l.tenant_id = key.tenant AND l.dimension = key.dimension AND l.window_start = key.starts
                AND l.replica_id = me AND l.run = my_run;
        END IF;

        place := key.place;
        granted := now_granted;
        before := coalesce(mine.granted, 0);
        elsewhere := least(used_in_all - coalesce(mine.consumed, 0), 9223372036854775807);
        RETURN NEXT;
    END LOOP;

    IF wanting THEN
        PERFORM pg_notify('tollgate_leases', '');
    END IF;
    RETURN QUERY SELECT 0, NULL::bigint, NULL::bigint, NULL::bigint, NULL::boolean, l.tenant_id, l.dimension, l.window_start
        FROM quota_leases l WHERE l.replica_id = me AND l.run = my_run AND l.wanted_at IS NOT NULL
        ORDER BY l.wanted_at LIMIT 1000;
END
$$;

COMMENT ON FUNCTION tollgate_lease(TEXT, BIGINT, BIGINT, INTERVAL, TEXT[], TEXT[], TIMESTAMPTZ[], TIMESTAMPTZ[], BIGINT[], BIGINT[], BIGINT[], BIGINT[])
    IS 'One round of quota leases of one Tollgate; not for calling by hand';

INSERT INTO tollgate_schema (version, name) VALUES (5, 'leases') ON CONFLICT DO NOTHING;

COMMIT;
