//! The main queries use their indexes, and read only the partitions that they must.

use std::sync::LazyLock;

use crate::postgres::{Database, shared};

/// Many tenants, a month of events and of audit rows, aggregates of it, and the statistics that the planner goes by.
static FILLED: LazyLock<Database<'static>> = LazyLock::new(|| {
    let database = shared().migrated();
    database.rows(
        "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, tokens_consumed)
         SELECT gen_random_uuid(), 'tn_' || n % 10, 'chat_message', now() - n % 29 * interval '1 day' - n * interval '1 second', 10
         FROM generate_series(1, 20000) n;
         INSERT INTO audit_events (tenant_id, event_type, category, action, actor_type, \"timestamp\")
         SELECT 'tn_' || n % 200, 'x', 'chat_activity', 'create', 'system', now() - n * interval '30 minutes'
         FROM generate_series(1, 20000) n;
         INSERT INTO tenant_usage_metrics (tenant_id, period_start, period_end, period_type, total_tokens_used)
         SELECT 'tn_' || t, date_trunc('day', now()) - d * interval '1 day', date_trunc('day', now()), 'daily', t * d
         FROM generate_series(1, 200) t, generate_series(0, 60) d;
         SELECT tollgate_make_partitions_ahead()",
    );
    database.rows("ANALYZE tenant_usage_realtime, audit_events, tenant_usage_metrics");
    database
});

fn plan(database: &Database<'_>, sql: &str) -> String {
    let plan = database.rows(&format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {sql}"));
    plan.concat().join("\n")
}

#[test]
fn usage_of_one_tenant_over_a_range_of_days_reads_those_days_by_index() {
    let plan = plan(
        &FILLED,
        "SELECT * FROM tenant_usage_realtime WHERE tenant_id = 'tn_3'
         AND event_timestamp >= date_trunc('day', now()) - interval '2 days' AND event_timestamp < date_trunc('day', now())
         ORDER BY event_timestamp DESC LIMIT 100",
    );
    assert!(
        plan.contains("Subplans Removed") && !plan.contains("Seq Scan on tenant_usage_realtime_p"),
        "{plan}"
    );
    assert!(plan.contains("tenant_id_event_timestamp_idx"), "{plan}");
    assert!(plan.matches("tenant_id_event_timestamp_idx on").count() <= 3, "{plan}");
}

#[test]
fn the_top_consumers_of_a_period_are_read_in_order_from_the_index() {
    let plan = plan(
        &FILLED,
        "SELECT tenant_id, total_tokens_used FROM tenant_usage_metrics
         WHERE period_type = 'daily' AND period_start = date_trunc('day', now())
         ORDER BY total_tokens_used DESC LIMIT 10",
    );
    assert!(plan.contains("tenant_usage_metrics_top") && !plan.contains("Sort"), "{plan}");
}

#[test]
fn the_recent_audit_events_of_a_tenant_are_read_by_index_from_the_months_asked_for() {
    let recent = "SELECT * FROM audit_events WHERE tenant_id = 'tn_3' ORDER BY \"timestamp\" DESC LIMIT 20";
    let all = plan(&FILLED, recent);
    assert!(all.contains("tenant_id_timestamp_idx") && !all.contains("Seq Scan on audit_events_p"), "{all}");
    assert!(!all.contains("Rows Removed by Filter"), "no row of another tenant is looked at: {all}");
    let bounded = "AND \"timestamp\" >= now() - interval '40 days' ORDER BY";
    let bounded = plan(&FILLED, &recent.replace("ORDER BY", bounded));
    let empty = |line: &str| !line.contains("Seq Scan") || line.contains("rows=0");
    assert!(bounded.contains("Subplans Removed") && bounded.lines().all(empty), "{bounded}");
}

#[test]
fn one_tenants_periods_are_read_by_index() {
    let plan = plan(
        &FILLED,
        "SELECT * FROM tenant_usage_metrics WHERE tenant_id = 'tn_3' AND period_type = 'daily'
         AND period_start >= now() - interval '7 days' ORDER BY period_start DESC",
    );
    assert!(plan.contains("tenant_usage_metrics_tenant") && !plan.contains("Seq Scan"), "{plan}");
}

/// The amendments' statement, prepared as the store prepares it: whatever the planner believes of the partitions, it
/// must not read a day's events to change one.
#[test]
fn an_amendment_finds_its_row_by_key_in_its_own_partition() {
    let by_key = include_str!("../../../src/store/events/by_key.sql");
    let amend = include_str!("../../../src/store/events/amend.sql");
    let nothing = "ARRAY[NULL]::bigint[], ".repeat(6);
    let unknown = shared().migrated();
    for (database, mode) in
        [&*FILLED, &unknown].iter().flat_map(|d| [(d, "force_generic_plan"), (d, "force_custom_plan")])
    {
        let plan = database.rows(&format!(
            "BEGIN; {by_key}
             SET LOCAL plan_cache_mode = {mode};
             PREPARE amend AS {amend};
             EXPLAIN (COSTS OFF) EXECUTE amend (ARRAY[gen_random_uuid()], ARRAY[now()], {nothing} ARRAY['counted'], ARRAY[1], now(), now())"
        ));
        let plan = plan.concat().join("\n");
        let scans: Vec<_> =
            plan.lines().filter(|line| line.contains("Scan") && line.contains("tenant_usage")).collect();
        assert_eq!(scans.len(), 1, "{mode}: {plan}");
        assert!(scans[0].contains("Index Scan") && scans[0].contains("_pkey"), "{mode}: {plan}");
    }
}
