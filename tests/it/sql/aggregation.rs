//! Aggregates that merge: days of hours, months of days, percentiles included; and usage by model.

use jiff::{Timestamp, ToSpan};
use tollgate::model::event::{EventType, Outcome, UsageEvent};
use tollgate::record::EventSink;

use super::records::{amend, amended, audit, audited, chat, hours_ago, usage};
use crate::postgres::{Database, migrations, shared};

/// One column's values, in the order of the periods.
fn column(database: &Database<'_>, kind: &str, column: &str) -> Vec<String> {
    let sql = format!(
        "SELECT {column} FROM tenant_usage_metrics WHERE period_type = '{kind}' ORDER BY tenant_id, period_start"
    );
    database.rows(&sql).concat()
}

/// An instant of the last month: its day and hour.
fn last_month(database: &Database<'_>, day: u32, hour: u32) -> Timestamp {
    let first = "date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month'";
    let sql = format!(
        "SELECT to_char({first} + interval '{} days {hour} hours 10 minutes', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')",
        day - 1
    );
    database.one(&sql).parse().unwrap()
}

fn took(ms: u64, event: UsageEvent) -> UsageEvent {
    UsageEvent { response_time_us: ms * 1000, charges: vec![], ..event }
}

/// What came so far is not looked at again, but for what comes from now on.
fn long_ago(database: &Database<'_>) {
    database.rows("UPDATE tenant_usage_realtime SET updated_at = now() - interval '3 hours'");
}

#[tokio::test]
async fn percentiles_are_within_two_per_cent_of_the_exact_ones_over_hours_days_and_months() {
    let database = shared().migrated();
    let begun = last_month(&database, 3, 0);
    database.rows(&format!(
        "SELECT setseed(0.25);
         INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, api_status_code, api_response_time_ms)
         SELECT gen_random_uuid(), 'tn_' || n % 3, 'api_call', '{begun}'::timestamptz + n * interval '1 minute', 200,
             CASE n % 3 WHEN 0 THEN exp(random() * 13) WHEN 1 THEN random() * 300 ELSE 30000 + random() * 40000 END
         FROM generate_series(1, 20000) n"
    ));
    database.store().aggregate().await.unwrap();
    for (kind, unit, most) in [("hourly", "hour", 1001), ("daily", "day", 42), ("monthly", "month", 3)] {
        let sql = format!(
            "WITH exact AS (
                 SELECT tenant_id, date_trunc('{unit}', event_timestamp, 'UTC') AS starts,
                     percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY api_response_time_ms) AS at
                 FROM tenant_usage_realtime GROUP BY 1, 2)
             SELECT count(*), max(greatest(abs(api_latency_p50_ms - at[1])::numeric / greatest(at[1], 1),
                 abs(api_latency_p95_ms - at[2])::numeric / greatest(at[2], 1),
                 abs(api_latency_p99_ms - at[3])::numeric / greatest(at[3], 1)))
             FROM exact JOIN tenant_usage_metrics m
                 ON m.tenant_id = exact.tenant_id AND m.period_start = starts AND m.period_type = '{kind}'"
        );
        let row = database.rows(&sql).concat();
        assert!(row[0].parse::<u32>().unwrap() >= most, "{kind}: {row:?}");
        assert!(row[1].parse::<f64>().unwrap() < 0.02, "{kind}: {row:?}");
    }
}

#[test]
fn a_bucket_stands_for_what_it_holds_to_a_hundredth_and_below_100_ms_exactly() {
    let database = shared().migrated();
    let middle = "(tollgate_percentiles(ARRAY[tollgate_latency_bucket(n)], ARRAY[1::bigint], ARRAY[0.5]))[1]";
    let sql = format!(
        "SELECT max(abs({middle} - n)::numeric / greatest(n, 1)), max({middle}) FILTER (WHERE n <= 100 AND {middle} <> n)
         FROM (SELECT generate_series(0, 20000) UNION ALL SELECT (power(1.3, k))::integer FROM generate_series(38, 81) k) v(n)"
    );
    let row = database.rows(&sql).concat();
    assert!(row[0].parse::<f64>().unwrap() < 0.01, "{row:?}");
    assert_eq!(row[1], "", "none of the small ones is off");
    let whole = "tollgate_percentiles('{0,5,9}', '{1,98,1}', ARRAY[0, 0.01, 0.5, 0.99, 1])";
    assert_eq!(database.one(&format!("SELECT {whole}")), "{0,0,1,1,1}");
    assert_eq!(database.one("SELECT tollgate_percentiles('{}', '{}', ARRAY[0.5]) IS NULL"), "t");
    let longest = "tollgate_percentiles(ARRAY[tollgate_latency_bucket(2147483647)], '{1}', ARRAY[1])";
    assert_eq!(database.one(&format!("SELECT {longest}")), "{2147483647}", "no overflow");
}

#[tokio::test]
async fn days_and_months_are_right_when_a_part_of_their_events_is_gone() {
    let database = shared().migrated();
    let store = database.store();
    let (early, late, next) =
        (last_month(&database, 10, 9), last_month(&database, 10, 15), last_month(&database, 11, 3));
    let hundred = (0..100).map(|_| usage(took(40, chat("tn_gone", 10, early)))).collect::<Vec<_>>();
    store.write(&hundred).await.unwrap();
    store
        .write(&[usage(took(80, chat("tn_gone", 10, late))), usage(took(90, chat("tn_gone", 1, next)))])
        .await
        .unwrap();
    store.aggregate().await.unwrap();
    // What retention does, half-way through the day.
    database.rows(&format!(
        "DELETE FROM tenant_usage_realtime WHERE event_timestamp < '{late}'::timestamptz - interval '1 hour';
         UPDATE usage_aggregation_state SET retained_from = '{late}'::timestamptz - interval '1 hour', watermark = now()"
    ));
    long_ago(&database);
    store.write(&[usage(took(80, chat("tn_gone", 5, late)))]).await.unwrap();
    let report = store.aggregate().await.unwrap();
    assert_eq!((report.hourly, report.daily, report.monthly), (1, 1, 1), "only what the late event is in");
    let columns = "api_calls_total || '/' || total_tokens_used || '/' || api_latency_p50_ms || '/' || api_latency_p99_ms || '/' || api_latency_avg_ms";
    assert_eq!(column(&database, "daily", columns), ["102/1015/40/80/40.78", "1/1/90/90/90.00"]);
    assert_eq!(column(&database, "monthly", columns), ["103/1016/40/80/41.26"]);
    assert_eq!(column(&database, "monthly", "peak_qps"), ["100"]);
    let merged =
        "SELECT sum(c) FROM tenant_usage_metrics, unnest(latency_counts) c WHERE period_type = 'monthly'";
    assert_eq!(database.one(merged), "103");
}

#[tokio::test]
async fn whatever_tollgate_refused_is_not_a_failure_of_the_service() {
    let database = shared().migrated();
    let refused = |status| UsageEvent {
        status: Some(status),
        outcome: Outcome::Refused,
        tokens_consumed: Some(0),
        ..took(1, chat("tn_no", 0, hours_ago(1)))
    };
    // tenant_blocked, quota_unavailable, quota_exceeded; and one failure, one answer.
    let failed = UsageEvent {
        status: Some(502),
        outcome: Outcome::UpstreamError,
        ..took(300, chat("tn_no", 0, hours_ago(1)))
    };
    let batch = [refused(403), refused(503), refused(429), failed, took(100, chat("tn_no", 7, hours_ago(1)))];
    database.store().write(&batch.map(usage)).await.unwrap();
    database.store().aggregate().await.unwrap();
    for kind in ["hourly", "daily", "monthly"] {
        let sql = format!(
            "SELECT api_calls_total, api_calls_successful, api_calls_failed, api_calls_rate_limited, error_count,
                 error_rate, quota_exceeded_count, chat_messages_received, api_latency_avg_ms
             FROM tenant_usage_metrics WHERE period_type = '{kind}'"
        );
        let row = database.rows(&sql).concat();
        assert_eq!(row, ["5", "1", "1", "3", "1", "0.200000", "1", "2", "200.00"], "{kind}");
    }
    let by_model = "SELECT calls, tokens FROM tenant_model_usage";
    assert_eq!(database.rows(by_model), [["2", "7"]], "what was refused reached no model");
}

#[tokio::test]
async fn a_session_begun_in_an_hour_without_a_call_counts_in_its_day() {
    let database = shared().migrated();
    let (call, session) = (last_month(&database, 5, 10), last_month(&database, 5, 11));
    let batch =
        [usage(took(1, chat("tn_s", 1, call))), audited(audit("tn_s", "chat_session_created", session))];
    database.store().write(&batch).await.unwrap();
    database.store().aggregate().await.unwrap();
    let of = |kind| column(&database, kind, "chat_sessions_created");
    assert_eq!(
        (of("hourly"), of("daily"), of("monthly")),
        (vec!["0".into()], vec!["1".into()], vec!["1".into()])
    );
}

#[tokio::test]
async fn usage_by_model_follows_amendments_and_outlives_its_events() {
    let database = shared().migrated();
    let store = database.store();
    let at = hours_ago(24 * 20);
    let (event, amendment) = amended("tn_m", 150, 40, at);
    let other = UsageEvent { model: Some("gpt-4o".into()), ..chat("tn_m", 8, at) };
    let nameless = UsageEvent {
        model: None,
        event_type: EventType::ApiCall,
        tokens_consumed: None,
        cost_nanousd: 0,
        ..chat("tn_m", 0, at)
    };
    store.write(&[usage(event), usage(other), usage(nameless)]).await.unwrap();
    store.aggregate().await.unwrap();
    let all =
        "SELECT model, calls, tokens, estimated_tokens, cost_usd FROM tenant_model_usage ORDER BY model";
    assert_eq!(
        database.rows(all),
        [["gpt-4o", "1", "8", "0", "0.00000124"], ["gpt-4o-mini", "1", "150", "150", "0.00000124"]],
        "a call that names no model and costs nothing is none"
    );
    store.write(&[amend(amendment)]).await.unwrap();
    store.aggregate().await.unwrap();
    database.rows("TRUNCATE tenant_usage_realtime");
    store.aggregate().await.unwrap();
    assert_eq!(
        database.rows(all),
        [["gpt-4o", "1", "8", "0", "0.00000124"], ["gpt-4o-mini", "1", "40", "40", "0.00000100"]]
    );
}

#[tokio::test]
async fn what_an_earlier_version_computed_gets_its_histograms_and_a_month_without_keeps_its_percentiles() {
    let database = shared().database();
    let newest =
        migrations().into_iter().partition::<Vec<_>, _>(|file| file.to_str().unwrap().contains("/0007_"));
    for file in &newest.1 {
        database.file(file);
    }
    let store = database.store();
    let (gone, kept) = (last_month(&database, 2, 9), last_month(&database, 20, 9));
    store
        .write(&[usage(took(700, chat("tn_old", 1, gone))), usage(took(20, chat("tn_old", 1, kept)))])
        .await
        .unwrap();
    store.aggregate().await.unwrap();
    database.rows(&format!(
        "DELETE FROM tenant_usage_realtime WHERE event_timestamp < '{kept}';
         UPDATE usage_aggregation_state SET retained_from = '{kept}'::timestamptz - interval '1 day'"
    ));
    long_ago(&database);
    for file in &newest.0 {
        database.file(file);
        database.file(file);
    }
    let report = store.aggregate().await.unwrap();
    assert_eq!((report.hourly, report.since), (1, None), "all that is there is computed again");
    assert_eq!(column(&database, "hourly", "latency_counts"), ["", "{1}"]);
    assert_eq!(column(&database, "monthly", "api_calls_total || '/' || api_latency_p99_ms"), ["2/700"]);
    // Calls of the days that have a histogram come to outweigh those that have none.
    let many = (0..20).map(|_| usage(took(30, chat("tn_old", 1, kept)))).collect::<Vec<_>>();
    store.write(&many).await.unwrap();
    store.aggregate().await.unwrap();
    assert_eq!(column(&database, "monthly", "api_calls_total || '/' || api_latency_p99_ms"), ["22/30"]);
    assert_eq!(
        database
            .one("SELECT models_from = retained_from AND isfinite(models_from) FROM usage_aggregation_state"),
        "t"
    );
}

#[tokio::test]
async fn a_tenants_many_hours_and_one_late_hour_come_to_the_same() {
    let database = shared().migrated();
    // All hours of a few days for many tenants are joined, a late event's hour is looked up.
    let begun = last_month(&database, 4, 0);
    database.rows(&format!(
        "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, api_status_code, tokens_consumed)
         SELECT gen_random_uuid(), 'tn_' || n % 7, 'api_call', '{begun}'::timestamptz + n * interval '1 minute', 200, n
         FROM generate_series(1, 8000) n"
    ));
    let store = database.store();
    assert!(store.aggregate().await.unwrap().hourly > 900);
    let sums = "SELECT period_type, sum(total_tokens_used), count(*) FROM tenant_usage_metrics GROUP BY 1 ORDER BY 1";
    let before = database.rows(sums);
    assert!(before.iter().all(|row| row[1] == "32004000"), "{before:?}");
    long_ago(&database);
    database.rows("UPDATE usage_aggregation_state SET watermark = now()");
    store.write(&[usage(took(1, chat("tn_3", 1000, begun + 90.minutes())))]).await.unwrap();
    let report = store.aggregate().await.unwrap();
    assert_eq!((report.hourly, report.daily, report.monthly), (1, 1, 1));
    let after = database.rows(sums);
    assert!(after.iter().all(|row| row[1] == "32005000"), "{after:?}");
}
