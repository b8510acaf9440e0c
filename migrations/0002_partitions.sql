-- Tollgate, migration 2: partitions made ahead, and dropped when they are old.

BEGIN;

DO $$ BEGIN PERFORM pg_advisory_xact_lock(7021993001); END $$;
SET LOCAL client_min_messages = warning;

-- The partition of `parent` for [from, to), made unless it is there. Rows that landed in the DEFAULT partition
-- meanwhile move into it. Returns whether it was made.
--
-- The table is built on its own and then attached: CREATE TABLE … PARTITION OF would lock the whole parent against
-- its writers, ATTACH locks only the DEFAULT partition, which is all but empty.
CREATE OR REPLACE FUNCTION tollgate_make_partition(parent REGCLASS, suffix TEXT, starts TIMESTAMPTZ, ends TIMESTAMPTZ)
RETURNS BOOLEAN
LANGUAGE plpgsql
SET lock_timeout = '3s'
AS $$
DECLARE
    spot      RECORD;
    key       TEXT;
    partition TEXT;
    fallback  TEXT;
BEGIN
    SELECT n.nspname AS nsp, c.relname AS rel INTO spot
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    partition := format('%I.%I', spot.nsp, spot.rel || '_p' || suffix);
    fallback := format('%I.%I', spot.nsp, spot.rel || '_default');
    IF to_regclass(partition) IS NOT NULL THEN
        RETURN false;
    END IF;
    SELECT a.attname INTO key
        FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
        WHERE p.partrelid = parent;

    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', partition, parent);
    IF to_regclass(fallback) IS NOT NULL THEN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', fallback);
        EXECUTE format(
            'WITH moved AS (DELETE FROM %s WHERE %I >= $1 AND %I < $2 RETURNING *) INSERT INTO %s SELECT * FROM moved',
            fallback, key, key, partition) USING starts, ends;
    END IF;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', parent, partition, starts, ends);
    RETURN true;
END
$$;

-- Makes the partitions that will be needed: a week of days for usage, two months for audit, and the past ones that
-- rows in the DEFAULT partitions wait for. Returns how many it made. A partition whose lock can't be had within 3 s
-- is left for the next call: its rows are in the DEFAULT partition until then.
CREATE OR REPLACE FUNCTION tollgate_make_partitions_ahead()
RETURNS INTEGER
LANGUAGE plpgsql
SET timezone = 'UTC'
AS $$
DECLARE
    today TIMESTAMPTZ := date_trunc('day', now());
    month TIMESTAMPTZ := date_trunc('month', now());
    spot  TIMESTAMPTZ;
    made  INTEGER := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(7021993002);
    FOR spot IN
        SELECT generate_series(today, today + interval '7 days', interval '1 day')
        UNION
        SELECT DISTINCT date_trunc('day', event_timestamp) FROM tenant_usage_realtime_default
            WHERE event_timestamp >= today - interval '30 days' AND event_timestamp < today
        ORDER BY 1
    LOOP
        BEGIN
            IF tollgate_make_partition('tenant_usage_realtime', to_char(spot, 'YYYYMMDD'), spot, spot + interval '1 day') THEN
                made := made + 1;
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING 'no partition of tenant_usage_realtime for % yet: the lock could not be had', spot;
        END;
    END LOOP;
    FOR spot IN
        SELECT generate_series(month, month + interval '2 months', interval '1 month')
        UNION
        SELECT DISTINCT date_trunc('month', "timestamp") FROM audit_events_default
            WHERE "timestamp" >= month - interval '2 years' AND "timestamp" < month
        ORDER BY 1
    LOOP
        BEGIN
            IF tollgate_make_partition('audit_events', to_char(spot, 'YYYYMM'), spot, spot + interval '1 month') THEN
                made := made + 1;
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING 'no partition of audit_events for % yet: the lock could not be had', spot;
        END;
    END LOOP;
    RETURN made;
END
$$;

-- Removes the rows of `parent` older than `cutoff`: partitions that are wholly older are dropped, which leaves no
-- dead rows behind; the rest is deleted. A partition whose lock can't be had within 3 s is left for the next call, not
-- emptied row by row. Returns how many rows went.
CREATE OR REPLACE FUNCTION tollgate_remove_before(parent REGCLASS, cutoff TIMESTAMPTZ)
RETURNS BIGINT
LANGUAGE plpgsql
SET lock_timeout = '3s'
AS $$
DECLARE
    old     RECORD;
    key     TEXT;
    rows    BIGINT;
    removed BIGINT := 0;
    spared  TIMESTAMPTZ := '-infinity';
BEGIN
    FOR old IN
        SELECT i.inhrelid::regclass AS partition, bound.ends
        FROM pg_inherits i
        JOIN pg_class c ON c.oid = i.inhrelid
        CROSS JOIN LATERAL (
            SELECT (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''([^'']*)''\)'))[1]::timestamptz AS ends
        ) bound
        WHERE i.inhparent = parent AND bound.ends <= cutoff
        ORDER BY bound.ends
    LOOP
        BEGIN
            EXECUTE format('SELECT count(*) FROM %s', old.partition) INTO rows;
            EXECUTE format('DROP TABLE %s', old.partition);
            removed := removed + rows;
        EXCEPTION WHEN lock_not_available THEN
            RAISE WARNING '% is old but in use: left for the next call', old.partition;
            spared := old.ends;
        END;
    END LOOP;
    SELECT a.attname INTO key
        FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
        WHERE p.partrelid = parent;
    EXECUTE format('DELETE FROM %s WHERE %I >= $1 AND %I < $2', parent, key, key) USING spared, cutoff;
    GET DIAGNOSTICS rows = ROW_COUNT;
    RETURN removed + rows;
END
$$;

DO $$ BEGIN PERFORM tollgate_make_partitions_ahead(); END $$;

INSERT INTO tollgate_schema (version, name) VALUES (2, 'partitions') ON CONFLICT DO NOTHING;

COMMIT;
