//! The main queries use their indexes, and read only the partitions that they must.

use std::sync::LazyLock;

use crate::postgres::{Database, shared};

/// Many tenants, a month of events and of audit rows, aggregates of it, and the statistics that the planner goes by. Each
/// day is as full as any other, today too, whatever the time is.
static FILLED: LazyLock<Database<'static>> = LazyLock::new(|| {
    let database = shared().migrated();
    database.rows(
        "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, tokens_consumed)
         SELECT gen_random_uuid(), 'tn_' || n % 10, 'chat_message', date_trunc('day', now(), 'UTC') - n % 29 * interval '1 day' + n * 4 % 86400 * interval '1 second', 10
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

/// Whatever the planner believes of the partitions, an amendment must not read a day's events to change one.
#[test]
fn an_amendment_finds_its_row_by_key_in_its_own_partition() {
    let nothing = "ARRAY[NULL]::bigint[], ".repeat(5);
    for mode in ["force_generic_plan", "force_custom_plan"] {
        let seen = FILLED.rows(&format!(
            "BEGIN; SET LOCAL plan_cache_mode = {mode};
             INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, token_source)
             VALUES ('00000000-0000-7000-8000-000000000001', 'tn_3', 'chat_message', now(), 'reserved');
             SELECT tollgate_amend(ARRAY['00000000-0000-7000-8000-000000000001'::uuid], ARRAY[now()], ARRAY[7::bigint], {nothing} ARRAY['counted'], ARRAY[1::bigint]);
             SELECT sum(seq_tup_read) + sum(coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables WHERE relname LIKE 'tenant_usage_realtime%';
             ROLLBACK"
        ));
        assert_eq!(
            seen,
            [["00000000-0000-7000-8000-000000000001"], ["1"]],
            "{mode}: the id amended, and rows read for it"
        );
    }
}

/// A statement of the program with its parameters written in.
fn with(sql: &str, values: &[&str]) -> String {
    let number = |at: usize| format!("${}", at + 1);
    values.iter().enumerate().rev().fold(sql.to_owned(), |sql, (at, value)| sql.replace(&number(at), value))
}

#[test]
fn a_tenants_last_refusals_are_found_by_index_in_the_days_that_are_looked_at() {
    let values = ["'tn_3'", "now() - interval '7 days'", "now() + interval '1 day'", "10000", "10"];
    let plan = plan(&FILLED, &with(include_str!("../../../src/store/explain/refusals.sql"), &values));
    let empty = |line: &str| !line.contains("Seq Scan") || line.contains("rows=0");
    assert!(plan.contains("Subplans Removed") && plan.lines().all(empty), "{plan}");
    let days = plan.matches("tenant_id_event_timestamp_idx").count();
    assert!((7..=9).contains(&days), "{days} days: {plan}");
}

#[test]
fn a_tenants_recent_events_are_found_by_index_in_the_partitions_of_the_last_days() {
    let recent = with(include_str!("../../../src/store/usage/recent.sql"), &["'tn_3'", "50"]);
    let plan = plan(&FILLED, &format!("SELECT event_timestamp, request_id {recent}"));
    let empty = |line: &str| !line.contains("Seq Scan") || line.contains("rows=0");
    assert!(plan.contains("Subplans Removed") && plan.lines().all(empty), "{plan}");
    let days = plan.matches("tenant_id_event_timestamp_idx").count();
    assert!((7..=9).contains(&days), "{days} days: {plan}");
}

#[test]
fn recorded_calls_are_replayed_in_the_order_of_the_index() {
    let calls = include_str!("../../../src/store/replay.sql");
    for tenant in ["NULL", "'tn_3'"] {
        let values = ["now() - interval '3 days'", "now() + interval '1 day'", tenant];
        // A cursor is planned for its first rows.
        let sql = format!(
            "BEGIN; SET LOCAL enable_seqscan = off; EXPLAIN (COSTS OFF) DECLARE calls CURSOR FOR {}; ROLLBACK",
            with(calls, &values)
        );
        let plan = FILLED.rows(&sql).concat().join("\n");
        assert!(plan.contains("tenant_id_event_timestamp_idx on"), "{plan}");
        assert!(plan.lines().all(|line| line.trim_start_matches(['-', '>', ' ']) != "Sort"), "{plan}");
    }
}

#[test]
fn models_of_a_range_of_days_are_read_from_those_days_partitions_alone() {
    let day = |ago: u32| {
        FILLED.one(&format!(
            "SELECT to_char(date_trunc('day', now(), 'UTC') - interval '{ago} days', 'YYYYMMDD')"
        ))
    };
    let sql = format!(
        "SELECT model, count(*), sum(tokens_consumed), sum(cost_usd) FROM tenant_usage_realtime
         WHERE event_timestamp >= '{}'::date AND event_timestamp < '{}'::date AND outcome <> 'refused' GROUP BY model",
        day(5),
        day(3)
    );
    let plan = plan(&FILLED, &sql);
    let partitions = |plan: &str| {
        let mut found: Vec<_> = plan
            .split_whitespace()
            .filter(|word| word.starts_with("tenant_usage_realtime_p"))
            .map(str::to_owned)
            .collect();
        found.sort();
        found.dedup();
        found
    };
    let asked = [5, 4].map(|ago| format!("tenant_usage_realtime_p{}", day(ago)));
    assert!(partitions(&plan) == asked && !plan.contains("_default"), "{plan}");
}

/// Few hours are looked up by the index, many are read as a whole: either way in the partition of their day.
#[test]
fn an_aggregation_reads_the_partition_of_the_day_that_it_works_on() {
    let day = "date_trunc('day', now(), 'UTC') - interval '3 days'";
    let called = format!(
        "(SELECT DISTINCT tenant_id, date_trunc('hour', event_timestamp, 'UTC') FROM tenant_usage_realtime
          WHERE event_timestamp >= {day} AND event_timestamp < {day} + interval '1 day' LIMIT 5)"
    );
    let all = format!(
        "(SELECT 'tn_' || t, {day} + h * interval '1 hour' FROM generate_series(0, 9) t, generate_series(0, 23) h)"
    );
    for hours in [called, all] {
        let seen = FILLED.rows(&format!(
            "BEGIN; SET LOCAL enable_nestloop = off;
             SELECT tollgate_write_usage('hourly', {day}, {day} + interval '1 day', array_agg(p.tenant), array_agg(p.hour)) FROM {hours} p(tenant, hour);
             SELECT string_agg(relname, ' ') FROM pg_stat_xact_user_tables
             WHERE relname LIKE 'tenant_usage_realtime%' AND coalesce(seq_scan, 0) + coalesce(idx_scan, 0) > 0;
             ROLLBACK"
        ));
        let partition =
            FILLED.one(&format!("SELECT 'tenant_usage_realtime_p' || to_char({day}, 'YYYYMMDD')"));
        assert_eq!(seen[1], [partition], "{hours}: {seen:?}");
        assert!(seen[0][0].parse::<u32>().unwrap() >= 1, "{hours}: {seen:?}");
    }
}
