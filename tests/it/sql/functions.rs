//! The functions of the schema.

use jiff::{Timestamp, ToSpan};
use tollgate::model::event::{EventType, Outcome, UsageEvent};
use tollgate::record::EventSink;

use super::records::{DAY, amend, amended, audit, audited, charge, chat, hours_ago, usage};
use crate::postgres::{Database, shared};

fn metric(database: &Database<'_>, kind: &str, columns: &str) -> Vec<Vec<String>> {
    database.rows(&format!(
        "SELECT {columns} FROM tenant_usage_metrics WHERE period_type = '{kind}' ORDER BY period_start"
    ))
}

/// Every column that a run computes, as one text.
fn everything(database: &Database<'_>) -> String {
    database.one("SELECT string_agg(j::text, E'\\n' ORDER BY j->>'tenant_id', j->>'period_type', j->>'period_start') FROM (SELECT to_jsonb(m) - 'metric_id' - 'updated_at' - 'created_at' AS j FROM tenant_usage_metrics m) x")
}

/// "Off" is a cost of 10,000,000,000 where there is no other way, and so the compiler would be called for each statement.
#[test]
fn no_function_that_is_told_which_plans_to_prefer_is_compiled() {
    let compiled = shared().migrated().rows(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
         AND proconfig::text LIKE '%enable_%=off%' AND NOT 'jit=off' = ANY (proconfig)",
    );
    assert_eq!(compiled, Vec::<Vec<String>>::new());
}

#[tokio::test]
async fn a_quota_is_checked_against_the_live_counters() {
    let database = shared().migrated();
    let check =
        |tenant: &str, tokens: i64| database.one(&format!("SELECT check_tenant_quota('{tenant}', {tokens})"));
    assert_eq!(check("tn_x", 1_000_000), "t", "an unknown tenant");
    database.store().write(&[usage(chat("tn_x", 9_000, Timestamp::now()))]).await.unwrap();
    assert_eq!((check("tn_x", 1_000), check("tn_x", 1_001)), ("t".into(), "f".into()));
    database.rows("UPDATE quota_usage SET limit_value = NULL");
    assert_eq!(check("tn_x", 2_000_000_000), "t", "unlimited");
    database.rows("UPDATE quota_usage SET limit_value = 10000, window_end = now() - interval '1 second'");
    assert_eq!(check("tn_x", 10_000), "t", "another day");
}

#[tokio::test]
async fn a_quota_is_checked_by_uuid_too() {
    let database = shared().migrated();
    let tenant = "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f";
    database.store().write(&[usage(chat(tenant, 9_999, Timestamp::now()))]).await.unwrap();
    let check = |tokens: i64| database.one(&format!("SELECT check_tenant_quota('{tenant}'::uuid, {tokens})"));
    assert_eq!((check(1), check(2)), ("t".into(), "f".into()));
}

#[tokio::test]
async fn resolving_keeps_the_text_and_the_first_one() {
    let database = shared().migrated();
    let event = audit("tn_x", "api_error", Timestamp::now());
    let id = event.event_id;
    database.store().write(&[audited(event)]).await.unwrap();
    let resolve = |text: &str| database.one(&format!("SELECT resolve_audit_event('{id}', '{text}')"));
    assert_eq!((resolve("called them"), resolve("again")), ("t".into(), "f".into()));
    let row =
        database.rows("SELECT result, resolution, resolved_from, resolved_at <= now() FROM audit_events");
    assert_eq!(row, [["resolved", "called them", "success", "t"]]);
    assert_eq!(database.one("SELECT resolve_audit_event(gen_random_uuid(), 'x')"), "f");
}

#[tokio::test]
async fn all_periods_are_aggregated_the_current_ones_included() {
    let database = shared().migrated();
    let store = database.store();
    let at: Timestamp = hours_ago(0);
    let event = |n: u64| UsageEvent { response_time_us: n * 10_000, ..chat("tn_a", 100, at) };
    let mut batch: Vec<_> = (1..=100).map(|n| usage(event(n))).collect();
    batch.push(usage(UsageEvent {
        status: Some(429),
        outcome: Outcome::Refused,
        tokens_consumed: Some(0),
        messages: 0,
        charges: vec![],
        ..event(1)
    }));
    batch.push(usage(UsageEvent {
        status: Some(429),
        tokens_consumed: None,
        messages: 0,
        charges: vec![],
        ..event(1)
    }));
    batch.push(usage(UsageEvent {
        status: Some(502),
        outcome: Outcome::UpstreamError,
        tokens_consumed: Some(0),
        messages: 0,
        charges: vec![],
        ..event(1000)
    }));
    batch.push(usage(UsageEvent {
        event_type: EventType::Embedding,
        embeddings: 3,
        messages: 0,
        charges: vec![],
        ..event(1000)
    }));
    batch.push(audited(audit("tn_a", "chat_session_created", at)));
    store.write(&batch).await.unwrap();
    let report = store.aggregate().await.unwrap();
    assert_eq!((report.hourly, report.daily, report.monthly, report.since), (1, 1, 1, None));

    let columns = "api_calls_total, api_calls_successful, api_calls_failed, api_calls_rate_limited, \
        api_latency_p50_ms, api_latency_p95_ms, api_latency_p99_ms, chat_messages_sent, chat_messages_received, \
        chat_sessions_created, embeddings_generated, embeddings_tokens_used, total_tokens_used, estimated_cost_usd, \
        quota_exceeded_count, error_count, peak_qps, quota_limit, quota_remaining";
    for kind in ["hourly", "daily", "monthly"] {
        let mut row = metric(&database, kind, columns).concat();
        if kind == "monthly" {
            assert_eq!(row.split_off(17), ["", ""], "there is no monthly quota");
        } else {
            assert_eq!(row.split_off(17), ["10000", "0"]);
        }
        let expected = [
            "104",
            "101",
            "1",
            "2",
            // By the histogram: the exact ones are 510, 970 and 10000.
            "510",
            "973",
            "9987",
            "100",
            "101",
            "1",
            "3",
            "100",
            "10100",
            "0.00012896",
            "1",
            "1",
            "104",
        ];
        assert_eq!(row, expected, "{kind}");
    }
}

#[tokio::test]
async fn aggregating_again_changes_nothing() {
    let database = shared().migrated();
    let store = database.store();
    for hours in [0, 1, 30, 100] {
        store
            .write(&[usage(chat("tn_a", 7, hours_ago(hours))), usage(chat("tn_b", 9, hours_ago(hours)))])
            .await
            .unwrap();
    }
    store.aggregate().await.unwrap();
    let before = everything(&database);
    let again = store.aggregate().await.unwrap();
    assert_eq!(
        (again.hourly, everything(&database)),
        (8, before.clone()),
        "within the overlap all is computed again"
    );
    database.rows("UPDATE usage_aggregation_state SET watermark = now() + interval '2 hours'");
    assert_eq!(store.aggregate().await.unwrap().hourly, 0, "past it nothing is");
    assert_eq!(everything(&database), before);
}

#[tokio::test]
async fn runs_at_once_wait_for_each_other() {
    let database = shared().migrated();
    let store = database.store();
    store.write(&[usage(chat("tn_a", 7, Timestamp::now()))]).await.unwrap();
    let (a, b, c) = tokio::join!(store.aggregate(), store.aggregate(), store.clean_up());
    a.unwrap();
    b.unwrap();
    c.unwrap();
    assert_eq!(metric(&database, "daily", "total_tokens_used").concat(), ["7"]);
}

#[tokio::test]
async fn late_events_and_amendments_reach_the_periods_they_belong_to() {
    let database = shared().migrated();
    let store = database.store();
    let then = hours_ago(50);
    let (event, amendment) = amended("tn_late", 150, 40, then);
    store.write(&[usage(event)]).await.unwrap();
    store.aggregate().await.unwrap();
    assert_eq!(metric(&database, "hourly", "total_tokens_used").concat(), ["150"]);
    // Long after: what follows is found by when it came, not by when it happened.
    database.rows("UPDATE tenant_usage_realtime SET updated_at = now() - interval '3 hours'");
    store.write(&[amend(amendment), usage(chat("tn_late", 5, then))]).await.unwrap();
    store.aggregate().await.unwrap();
    for kind in ["hourly", "daily", "monthly"] {
        assert_eq!(
            metric(&database, kind, "total_tokens_used, api_calls_total").concat(),
            ["45", "2"],
            "{kind}"
        );
    }
}

#[tokio::test]
async fn retention_drops_whole_partitions_and_deletes_the_rest() {
    let database = shared().migrated();
    let store = database.store();
    let day = 24;
    let ages = [29 * day, 30 * day + 1, 31 * day, 40 * day];
    for age in ages {
        store.write(&[usage(chat("tn_old", 1, hours_ago(age)))]).await.unwrap();
    }
    store
        .write(&[
            audited(audit("tn_old", "x", hours_ago(day * 365 * 2 + day * 2))),
            audited(audit("tn_old", "y", hours_ago(day * 700))),
        ])
        .await
        .unwrap();
    // A partition that is wholly old, as the months leave it behind.
    database.rows("SELECT tollgate_make_partition('tenant_usage_realtime', 'old', now() - interval '41 days', now() - interval '39 days')");
    assert_eq!(
        database.one("SELECT count(*) FROM tenant_usage_realtime_pold"),
        "1",
        "it took its row from the default"
    );
    let removed = store.clean_up().await.unwrap();
    assert_eq!((removed.usage_events, removed.audit_events), (3, 1));
    assert_eq!(database.one("SELECT to_regclass('tenant_usage_realtime_pold') IS NULL"), "t");
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "1");
    assert_eq!(database.one("SELECT string_agg(event_type, ',') FROM audit_events"), "y");
}

#[tokio::test]
async fn an_old_partition_that_is_in_use_is_left_for_the_next_time() {
    let database = shared().migrated();
    let store = database.store();
    for days in [40, 35] {
        store.write(&[usage(chat("tn_old", 1, hours_ago(24 * days)))]).await.unwrap();
    }
    database.rows("SELECT tollgate_make_partition('tenant_usage_realtime', 'old', now() - interval '41 days', now() - interval '39 days')");
    let reader = database.connect().await;
    reader.batch_execute("BEGIN; SELECT FROM tenant_usage_realtime_pold").await.unwrap();
    assert_eq!(store.clean_up().await.unwrap().usage_events, 1, "only the one beside it");
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(store.clean_up().await.unwrap().usage_events, 1);
}

#[tokio::test]
async fn a_period_whose_events_are_gone_keeps_its_row() {
    let database = shared().migrated();
    let store = database.store();
    let old = hours_ago(24 * 31);
    store.write(&[usage(chat("tn_old", 500, old))]).await.unwrap();
    store.aggregate().await.unwrap();
    store.clean_up().await.unwrap();
    // An event that comes a month late to a day that was computed already.
    store.write(&[usage(chat("tn_old", 1, old))]).await.unwrap();
    store.aggregate().await.unwrap();
    assert_eq!(metric(&database, "daily", "total_tokens_used").concat(), ["500"]);
    assert_eq!(metric(&database, "monthly", "total_tokens_used").concat(), ["500"]);
}

#[tokio::test]
async fn partitions_are_made_ahead_and_take_over_what_waits_in_the_default() {
    let database = shared().migrated();
    let store = database.store();
    let began_since = store.make_partitions_ahead().await.unwrap();
    assert!(began_since <= 1, "the migration made them, but for a day that began since then");
    let days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tenant_usage_realtime'::regclass";
    let before: u32 = database.one(days).parse().unwrap();
    assert!((9..=10).contains(&before), "eight days from today, and the default: {before}");
    let rows = "SELECT count(*) FROM tenant_usage_realtime_default";
    store
        .write(&[usage(chat("tn_a", 1, hours_ago(72))), usage(chat("tn_a", 2, hours_ago(72)))])
        .await
        .unwrap();
    assert_eq!(database.one(rows), "2");
    assert_eq!(store.make_partitions_ahead().await.unwrap(), 1);
    assert_eq!(
        (database.one(rows), database.one("SELECT count(*) FROM tenant_usage_realtime")),
        ("0".into(), "2".into())
    );
    assert_eq!(database.one(days), (before + 1).to_string(), "and one behind");
}

#[tokio::test]
async fn counters_of_minutes_long_over_are_removed_and_of_days_kept() {
    let database = shared().migrated();
    let store = database.store();
    let now = Timestamp::now();
    store.write(&[usage(chat("tn_a", 1, now)), usage(chat("tn_a", 1, now - 72.hours()))]).await.unwrap();
    assert_eq!(store.clean_up().await.unwrap().quota_windows, 1);
    assert_eq!(database.one("SELECT count(*) FROM quota_usage"), "3");
    assert_eq!(charge(DAY, now, 1).limit, Some(10_000));
}
