//! What is noticed, by rows as the aggregation and the shipper leave them.

use std::time::Duration;

use serde_json::json;
use tollgate::jobs::Alertness;
use tollgate::model::window::Window;
use tollgate::store::alerts::{self, Look};

use super::{QUICK, listed, looked_again, service};
use crate::harness::{gateway, within};
use crate::postgres::{Database, shared};

const INTERVAL: Duration = Duration::from_secs(300);

fn alertness() -> Alertness {
    Alertness {
        quota_thresholds: vec![50.0, 80.0, 100.0],
        quota_windows: vec![Window::Hour, Window::Day, Window::Month],
        error_rate: 0.05,
        min_calls: 20,
        p99: Duration::from_secs(5),
        cost_factor: 2.0,
        min_cost_usd: 0.0,
    }
}

/// One look, and all that was raised by it as `tenant kind dimension threshold observed reference`.
async fn raised(database: &Database<'_>) -> Vec<String> {
    let before = database.one("SELECT count(*) FROM alert_outbox");
    let look = alerts::look(&database.store(), &alertness(), INTERVAL, false).await.unwrap();
    assert!(matches!(look, Look::Raised(_)), "nobody else looks");
    let rows = database.rows(&format!(
        "SELECT concat_ws(' ', tenant_id, kind, nullif(dimension, ''), threshold, trim_scale(observed), trim_scale(reference))
         FROM (SELECT * FROM alert_outbox ORDER BY created_at OFFSET {before}) o ORDER BY 1"
    ));
    rows.into_iter().flatten().collect()
}

/// An hour of a tenant that ends in `ago` hours' past.
fn hour(tenant: &str, ago: u32, calls: u64, failed: u64, p99_ms: u64) -> String {
    format!(
        "INSERT INTO tenant_usage_metrics (tenant_id, period_type, period_start, period_end, api_calls_total,
            api_calls_failed, error_rate, api_latency_p99_ms)
         SELECT '{tenant}', 'hourly', h, h + interval '1 hour', {calls}, {failed}, {failed}::numeric / {calls}, {p99_ms}
         FROM (SELECT date_trunc('hour', now(), 'UTC') - {ago} * interval '1 hour' AS h) t;"
    )
}

fn day(tenant: &str, ago: u32, cost: &str) -> String {
    format!(
        "INSERT INTO tenant_usage_metrics (tenant_id, period_type, period_start, period_end, estimated_cost_usd)
         SELECT '{tenant}', 'daily', d, d + interval '24 hours', {cost}
         FROM (SELECT date_trunc('day', now(), 'UTC') - {ago} * interval '24 hours' AS d) t;"
    )
}

#[tokio::test]
async fn errors_and_latency_of_the_current_and_the_last_hour_count_from_enough_calls_on() {
    let database = shared().migrated();
    let hours = [
        hour("tn_fine", 0, 100, 5, 5000),
        hour("tn_few", 0, 19, 19, 60_000),
        hour("tn_failing", 0, 100, 6, 100),
        hour("tn_slow", 1, 20, 0, 5001),
        hour("tn_long_ago", 2, 100, 100, 60_000),
    ];
    database.rows(&hours.concat());
    assert_eq!(
        raised(&database).await,
        ["tn_failing error_rate 0.05 0.06 100", "tn_slow latency_p99 5000 5001 20"]
    );
    assert!(raised(&database).await.is_empty(), "once for each hour");
    database.rows(&hour("tn_failing", 1, 40, 4, 100));
    assert_eq!(
        raised(&database).await,
        ["tn_failing error_rate 0.05 0.1 40"],
        "the other hour is another window"
    );
}

#[tokio::test]
async fn a_days_cost_is_held_against_the_days_before_since_the_tenant_is_there() {
    let database = shared().migrated();
    let week = |tenant: &str, cost: &str| (1..=7).map(|ago| day(tenant, ago, cost)).collect::<String>();
    let days = [
        week("tn_dear", "1") + &day("tn_dear", 0, "2.5"),
        week("tn_fair", "1") + &day("tn_fair", 0, "2"),
        day("tn_new", 0, "100"),
        day("tn_second_day", 1, "3") + &day("tn_second_day", 0, "5"),
        day("tn_rare", 7, "7") + &day("tn_rare", 0, "2.5"),
        day("tn_last_month", 20, "1") + &day("tn_last_month", 0, "9"),
    ];
    database.rows(&days.concat());
    assert_eq!(raised(&database).await, ["tn_dear cost 2 2.5 1", "tn_rare cost 2 2.5 1"]);
    assert!(raised(&database).await.is_empty());
}

#[tokio::test]
async fn quotas_of_windows_that_go_on_or_are_just_over_count_and_no_others() {
    let database = shared().migrated();
    let window = |tenant: &str, dimension: &str, from: i32, to: i32, settled: u64, limit: &str| {
        format!(
            "INSERT INTO quota_usage (tenant_id, dimension, window_start, window_end, settled, limit_value)
             VALUES ('{tenant}', '{dimension}', now() + {from} * interval '1 minute', now() + {to} * interval '1 minute',
                {settled}, {limit});"
        )
    };
    let rows = [
        window("tn_half", "tokens_per_day", -60, 600, 50, "100"),
        window("tn_less", "tokens_per_day", -60, 600, 49, "100"),
        window("tn_all", "cost_usd_per_month", -60, 600, 9_223_372_036_854_775_807, "9223372036854775807"),
        window("tn_unlimited", "tokens_per_day", -60, 600, 50, "NULL"),
        window("tn_off", "tokens_per_day", -60, 600, 0, "0"),
        window("tn_rate", "api_calls_per_minute", 0, 1, 30, "30"),
        window("tn_ahead", "tokens_per_hour", 30, 90, 80, "100"),
        window("tn_just_over", "tokens_per_hour", -65, -5, 80, "100"),
        window("tn_over", "tokens_per_hour", -90, -30, 80, "100"),
    ];
    database.rows(&rows.concat());
    let most = "9223372036.854775807";
    assert_eq!(
        raised(&database).await,
        [
            format!("tn_all quota_threshold cost_usd_per_month 100 {most} {most}"),
            format!("tn_all quota_threshold cost_usd_per_month 50 {most} {most}"),
            format!("tn_all quota_threshold cost_usd_per_month 80 {most} {most}"),
            "tn_half quota_threshold tokens_per_day 50 50 100".to_owned(),
            "tn_just_over quota_threshold tokens_per_hour 50 80 100".to_owned(),
            "tn_just_over quota_threshold tokens_per_hour 80 80 100".to_owned(),
        ]
    );
}

#[tokio::test]
async fn many_who_look_at_once_raise_each_alert_once() {
    let database = shared().migrated();
    database.rows(
        "INSERT INTO quota_usage (tenant_id, dimension, window_start, window_end, settled, limit_value)
         SELECT 'tn_' || n, 'tokens_per_day', date_trunc('day', now()), now() + interval '1 hour', 100, 100
         FROM generate_series(1, 900) n",
    );
    let mut raised = 0;
    let stores: Vec<_> = (0..4).map(|_| database.store()).collect();
    within("all are raised", async {
        while raised < 2700 {
            let alertness = alertness();
            let looks = stores.iter().map(|store| alerts::look(store, &alertness, INTERVAL, false));
            for look in futures_util::future::join_all(looks).await {
                if let Look::Raised(kinds) = look.unwrap() {
                    raised += kinds.iter().map(|(_, count)| count).sum::<u64>();
                }
            }
        }
    })
    .await;
    assert_eq!(raised, 2700);
    assert_eq!(database.one("SELECT count(*) FROM alert_outbox"), "2700");
    assert_eq!(database.one("SELECT count(*) FROM audit_events WHERE event_type = 'alert_raised'"), "2700");
}

#[tokio::test]
async fn an_aggregation_that_is_two_intervals_late_is_told_once_and_stays_unsent_without_a_webhook() {
    let (upstream, database) = (service().await, shared().migrated());
    database.rows("UPDATE usage_aggregation_state SET last_run_at = now() - interval '9 minutes'");
    let gateway = gateway(&upstream, &database).config(QUICK).start().await;
    looked_again(&gateway, 2.0).await;
    assert!(listed(&gateway, "").await.is_empty(), "less than two intervals");
    database.rows("UPDATE usage_aggregation_state SET last_run_at = now() - interval '11 minutes'");
    within("it is noticed", async { while listed(&gateway, "?state=unsent").await.is_empty() {} }).await;
    looked_again(&gateway, 2.0).await;
    let alerts = listed(&gateway, "").await;
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(
        (&alerts[0]["kind"], &alerts[0]["tenant_id"], &alerts[0]["threshold"], &alerts[0]["attempts"]),
        (&json!("aggregation_missed"), &json!(null), &json!(600), &json!(0))
    );
    assert_eq!(
        database.one("SELECT tenant_id IS NULL FROM audit_events WHERE event_type = 'alert_raised'"),
        "t"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn alerts_are_kept_for_90_days() {
    let database = shared().migrated();
    database.rows(
        "INSERT INTO alert_outbox (tenant_id, kind, threshold, window_start, window_end, observed, summary, state, created_at)
         SELECT 'tn_' || n, 'cost', 2, now(), now(), 3, 'x', 'sent', now() - n * interval '1 day' FROM generate_series(88, 91) n",
    );
    assert_eq!(database.store().clean_up().await.unwrap().alerts, 2);
    assert_eq!(database.one("SELECT count(*) FROM alert_outbox"), "2");
}

#[test]
fn a_look_reads_the_current_windows_by_index_whatever_else_is_kept() {
    let database = shared().migrated();
    database.rows(
        "INSERT INTO quota_usage (tenant_id, dimension, window_start, window_end, settled, limit_value)
         SELECT 'tn_' || n % 200, 'tokens_per_day', d, d + interval '1 day', n % 100, 100
         FROM generate_series(1, 40000) n, LATERAL (SELECT date_trunc('day', now()) - n / 200 * interval '1 day' AS d) t;
         INSERT INTO tenant_usage_metrics (tenant_id, period_start, period_end, period_type, estimated_cost_usd)
         SELECT 'tn_' || t, d, d + interval '1 day', 'daily', 1
         FROM generate_series(1, 200) t, LATERAL (SELECT date_trunc('day', now(), 'UTC') - n * interval '1 day' AS d FROM generate_series(0, 90) n) ds;
         INSERT INTO tenant_usage_metrics (tenant_id, period_start, period_end, period_type, api_calls_total)
         SELECT 'tn_' || t, h, h + interval '1 hour', 'hourly', 50
         FROM generate_series(1, 200) t, LATERAL (SELECT date_trunc('hour', now(), 'UTC') - n * interval '1 hour' AS h FROM generate_series(0, 200) n) hs;",
    );
    database.rows("ANALYZE quota_usage, tenant_usage_metrics, alert_outbox");
    let values = [
        "'{50,80,100}'",
        "'{%_per_hour,%_per_day,%_per_month}'",
        "0.05",
        "20",
        "5000",
        "2",
        "0",
        "300",
        "'unsent'",
    ];
    let mut sql = include_str!("../../../src/store/alerts/raise.sql").to_owned();
    for (at, value) in values.iter().enumerate() {
        sql = sql.replace(&format!("${}", at + 1), value);
    }
    let plan = database.rows(&format!("EXPLAIN (COSTS OFF) {sql}")).concat().join("\n");
    for index in ["quota_usage_window_end", "tenant_usage_metrics_top"] {
        assert!(plan.contains(index), "{plan}");
    }
    for table in ["quota_usage", "tenant_usage_metrics", "tenant_usage_realtime"] {
        assert!(!plan.contains(&format!("Seq Scan on {table}")), "{plan}");
    }
    assert!(!plan.contains("tenant_usage_realtime"), "the events are left alone\n{plan}");
}
