#!/usr/bin/env bash
# How long aggregate_usage_metrics() takes: a first run over 10 million events of 30 days and 200 tenants, a run with
# nothing new but the overlap of an hour, and one after a few late events.
#
#     benches/aggregation.sh [EVENTS [TENANTS]]
#
# Starts a PostgreSQL server of its own with default settings (but for WAL, which is not what is measured: loading makes
# several gigabytes of it), in a directory that goes away with it. 10 million events take some 5 GB of disk; DIR=… says
# where, KEEP=1 leaves the server running and says how to connect.
set -euo pipefail
cd "$(dirname "$0")/.."

events=${1:-10000000}
tenants=${2:-200}
programs=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
programs=${programs:-$(dirname "$(command -v initdb)")}
directory=$(mktemp -d "${DIR:-/tmp}/tollgate-aggregation-XXXXXX")
chmod 755 "$directory"

# PostgreSQL refuses to run as root.
as_server() { (cd / && "$@"); }
if [ "$(id -u)" = 0 ]; then
    chown postgres "$directory"
    as_server() { (cd / && setpriv --reuid postgres --regid postgres --clear-groups "$@"); }
fi
sql() { "$programs/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h "$directory" -U postgres -d postgres "$@"; }
stop() {
    as_server "$programs/pg_ctl" -D "$directory/data" -m immediate stop >/dev/null
    rm -rf "$directory"
}

as_server "$programs/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --no-sync >/dev/null
as_server "$programs/pg_ctl" -D "$directory/data" -l "$directory/log" -w -o "-k $directory \
    -c listen_addresses= -c wal_level=minimal -c max_wal_senders=0 -c timezone=Europe/Berlin" start >/dev/null
if [ -n "${KEEP:-}" ]; then
    echo "psql -h $directory -U postgres; $programs/pg_ctl -D $directory/data stop"
else
    trap stop EXIT
fi

for migration in migrations/0*.sql; do
    sql -f "$migration"
done
echo "loading $events events of $tenants tenants"
sql -v events="$events" -v tenants="$tenants" -f benches/aggregation.sql
sql -c 'VACUUM ANALYZE tenant_usage_realtime'

run() {
    local began ended
    began=$(date +%s%N)
    sql -F ' ' -c 'SELECT hourly, daily, monthly FROM aggregate_usage_metrics()' | while read -r hours days months; do
        printf '%s: %s hours, %s days, %s months' "$1" "$hours" "$days" "$months"
    done
    ended=$(date +%s%N)
    printf ' in %s ms (load %s)\n' $(((ended - began) / 1000000)) "$(cut -d' ' -f1 /proc/loadavg)"
}
for _ in 1 2 3; do
    sql -c "TRUNCATE tenant_usage_metrics, tenant_model_usage; UPDATE usage_aggregation_state SET watermark = '-infinity'" \
        -c 'VACUUM tenant_usage_metrics'
    run 'first run'
done
sql -c "UPDATE usage_aggregation_state SET watermark = now() + interval '2 hours'"
run 'nothing new'
# A few rows of old days are amended; they get a new updated_at.
sql -c "UPDATE usage_aggregation_state SET watermark = now() + interval '1 hour'" \
    -c "UPDATE tenant_usage_realtime SET updated_at = now() + interval '3 hours'
        WHERE tenant_id IN ('tn_bench001', 'tn_bench002') AND event_timestamp < now() - interval '10 days'
          AND event_timestamp >= now() - interval '10 days 2 hours'"
run 'late events'
