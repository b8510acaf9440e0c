//! Batches into tables: exactly once, however they are sent.

use jiff::{Timestamp, ToSpan};
use proptest::prelude::*;
use tollgate::model::event::Record;
use tollgate::model::quota::Charge;
use tollgate::quota::LeaseSource;
use tollgate::record::EventSink;
use tollgate::tenant::TenantSource;
use uuid::Uuid;

use super::records::{CALLS, DAY, amend, amended, audit, audited, charge, chat, usage};
use crate::postgres::{Database, shared};

fn settled(database: &Database<'_>, tenant: &str, dimension: &str) -> String {
    database.one(&format!(
        "SELECT coalesce(sum(settled), 0) FROM quota_usage WHERE tenant_id = '{tenant}' AND dimension = '{dimension}'"
    ))
}

#[tokio::test]
async fn a_batch_is_rows_audit_and_counters_at_once() {
    let database = shared().migrated();
    let store = database.store();
    let now = Timestamp::now();
    let (reserved, amendment) = amended("tn_one", 150, 90, now);
    let batch = [
        usage(chat("tn_one", 100, now)),
        audited(audit("tn_one", "chat_response_sent", now)),
        usage(reserved),
        amend(amendment),
    ];
    store.write(&batch).await.unwrap();

    let rows = database.rows("SELECT tokens_consumed, token_source, cost_usd, api_response_time_ms, replica_id FROM tenant_usage_realtime ORDER BY tokens_consumed");
    assert_eq!(
        rows,
        [["90", "counted", "0.00000100", "12", "test"], ["100", "reported", "0.00000124", "12", "test"]]
    );
    assert_eq!(
        database.rows(
            "SELECT event_type, new_values->>'message_length', host(ip_address), result FROM audit_events"
        ),
        [["chat_response_sent", "5", "192.0.2.7", "success"]]
    );
    assert_eq!(settled(&database, "tn_one", "tokens_per_day"), "190");
    assert_eq!(settled(&database, "tn_one", "api_calls_per_minute"), "2");
    assert_eq!(database.one("SELECT DISTINCT limit_value FROM quota_usage"), "10000");
}

#[tokio::test]
async fn cost_is_exact_to_eight_decimals_half_up() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let costs = [4, 5, 14, 15, 123_456_789_012_345, u64::MAX];
    let batch: Vec<_> = costs
        .iter()
        .map(|cost| {
            let mut event = chat("tn_cost", 1, now);
            event.cost_nanousd = *cost;
            usage(event)
        })
        .collect();
    database.store().write(&batch).await.unwrap();
    let rows = database.rows("SELECT cost_usd FROM tenant_usage_realtime ORDER BY cost_usd");
    assert_eq!(
        rows.concat(),
        ["0.00000000", "0.00000001", "0.00000001", "0.00000002", "123456.78901235", "999999.99999999"]
    );
}

#[tokio::test]
async fn fault_30_nul_in_any_text_is_stripped_and_poisons_nothing() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let mut event = chat("tn_nul", 5, now);
    event.model = Some("gpt\0-4o".into());
    event.chat_session_id = Some("\0".into());
    event.request_id = "r\0".into();
    event.metadata.insert("k\0ey".into(), "v\0alue".into());
    let mut trail = audit("tn_nul", "chat_\0x", now);
    trail.new_values = Some(serde_json::json!({"a": ["\0", r"\u0000"]}));
    trail.user_agent = Some("curl\0".into());
    database.store().write(&[usage(event), audited(trail)]).await.unwrap();
    let rows = database
        .rows("SELECT model, chat_session_id, request_id, metadata->>'key' FROM tenant_usage_realtime");
    assert_eq!(rows, [["gpt-4o", "", "r", "value"]]);
    let rows = database
        .rows("SELECT event_type, user_agent, new_values->'a'->>0, new_values->'a'->>1 FROM audit_events");
    assert_eq!(rows, [["chat_x", "curl", "", r"\u0000"]]);
}

#[tokio::test]
async fn fault_29_absurd_numbers_are_clamped_and_flagged_and_block_nothing() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let absurd = || {
        let mut event = chat("tn_big", 1, now);
        event.tokens_consumed = Some(u64::MAX);
        event.response_time_us = u64::MAX;
        event.messages = u64::MAX;
        event.model = Some("m".repeat(100_000));
        event.charges = vec![Charge { limit: Some(u64::MAX), ..charge(DAY, now, i64::MAX) }];
        usage(event)
    };
    let store = database.store();
    store.write(&[absurd(), absurd(), usage(chat("tn_big", 1, now))]).await.unwrap();
    store.write(&[absurd()]).await.unwrap();
    let flags = database
        .one("SELECT metadata->>'clamped' FROM tenant_usage_realtime WHERE tokens_consumed > 1 LIMIT 1");
    assert_eq!(flags, r#"["api_response_time_ms", "chat_messages", "tokens_consumed"]"#);
    assert_eq!(settled(&database, "tn_big", "tokens_per_day"), i64::MAX.to_string());
    store.aggregate().await.unwrap();
    assert_eq!(
        database.one("SELECT total_tokens_used FROM tenant_usage_metrics WHERE period_type = 'daily'"),
        i64::MAX.to_string()
    );
}

#[tokio::test]
async fn an_event_lands_in_its_own_day_and_one_out_of_range_in_the_default() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let events = [now, now - (24 * 400).hours(), "9999-12-01T00:00:00Z".parse().unwrap(), Timestamp::MIN];
    let batch: Vec<_> = events
        .iter()
        .map(|at| {
            let mut event = chat("tn_when", 1, *at);
            event.charges.clear();
            usage(event)
        })
        .collect();
    database.store().write(&batch).await.unwrap();
    database.store().write(&batch).await.unwrap();
    let rows = database.rows("SELECT tableoid::regclass::text LIKE '%default', count(*) FROM tenant_usage_realtime GROUP BY 1 ORDER BY 1");
    assert_eq!(rows, [["f", "1"], ["t", "3"]]);
}

/// What a journal holds, and how it is shipped.
#[derive(Clone, Debug)]
struct Script {
    /// Reserved tokens, and the count that an amendment brings, for each event.
    events: Vec<(u64, Option<u64>)>,
    /// How many records a batch takes, and whether its acknowledgement arrives.
    batches: Vec<(usize, bool)>,
}

fn script() -> impl Strategy<Value = Script> {
    let event = (1..500u64, proptest::option::of(0..500u64));
    (proptest::collection::vec(event, 1..8), proptest::collection::vec((1..6usize, any::<bool>()), 1..10))
        .prop_map(|(events, batches)| Script { events, batches })
}

/// The journal: each amendment some way behind its event.
fn journal(tenant: &str, script: &Script, now: Timestamp) -> Vec<Record> {
    let mut records = Vec::new();
    let mut due = Vec::new();
    for (reserved, counted) in &script.events {
        match counted {
            None => records.push(usage(chat(tenant, *reserved, now))),
            Some(counted) => {
                let (event, amendment) = amended(tenant, *reserved, *counted, now);
                records.push(usage(event));
                due.push(amend(amendment));
            }
        }
        if records.len() % 2 == 0 {
            records.append(&mut due);
        }
    }
    records.append(&mut due);
    records
}

#[test]
fn counters_and_rows_are_exact_under_replay_and_recomposition() {
    let database = shared().migrated();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = database.store();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&script(), |script| {
            let tenant = format!("tn_{}", Uuid::now_v7());
            let records = journal(&tenant, &script, Timestamp::now());
            runtime.block_on(async {
                let mut acknowledged = 0_usize;
                for (size, answered) in script.batches.iter().copied().chain([(usize::MAX, true)]) {
                    let end = acknowledged.saturating_add(size).min(records.len());
                    store.write(&records[acknowledged..end]).await.unwrap();
                    if answered {
                        acknowledged = end;
                    }
                }
            });
            let expected: u64 =
                script.events.iter().map(|(reserved, counted)| counted.unwrap_or(*reserved)).sum();
            let row = database.rows(&format!(
                "SELECT count(*), sum(tokens_consumed), count(*) FILTER (WHERE token_source = 'reserved')
                 FROM tenant_usage_realtime WHERE tenant_id = '{tenant}'"
            ));
            prop_assert_eq!(
                &row[0],
                &[script.events.len().to_string(), expected.to_string(), "0".to_owned()]
            );
            prop_assert_eq!(settled(&database, &tenant, &DAY.to_string()), expected.to_string());
            prop_assert_eq!(settled(&database, &tenant, &CALLS.to_string()), script.events.len().to_string());
            Ok(())
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_70_replicas_that_write_the_same_tenants_never_deadlock() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let writers = (0..4).map(|writer| {
        let store = database.store();
        tokio::spawn(async move {
            for round in 0..15 {
                let mut batch: Vec<_> =
                    (0..24).map(|tenant| usage(chat(&format!("tn_{tenant:02}"), 1, now))).collect();
                // Every writer and every round in another order.
                let turn = (writer * 7 + round) % batch.len();
                batch.rotate_left(turn);
                if writer % 2 == 0 {
                    batch.reverse();
                }
                store.write(&batch).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(
        database.one("SELECT DISTINCT settled FROM quota_usage WHERE dimension = 'tokens_per_day'"),
        "60"
    );
}

#[tokio::test]
async fn a_replay_meets_its_own_first_attempt_still_running() {
    let database = shared().migrated();
    let store = database.store();
    let now = Timestamp::now();
    let (event, amendment) = amended("tn_race", 150, 60, now);
    // The first attempt, on a connection that nobody waits for any more.
    let slow = database.connect().await;
    slow.batch_execute("BEGIN").await.unwrap();
    let us = now.as_microsecond();
    slow.batch_execute(&format!(
        "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, tokens_consumed, token_source)
         VALUES ('{}', 'tn_race', 'chat_message', to_timestamp(0) + {us} * interval '1 microsecond', 150, 'reserved');
         INSERT INTO quota_usage (tenant_id, dimension, window_start, window_end, settled)
         SELECT 'tn_race', 'tokens_per_day', date_trunc('day', now(), 'UTC'), date_trunc('day', now(), 'UTC') + interval '1 day', 150",
        event.event_id
    ))
    .await
    .unwrap();
    let replay = tokio::spawn({
        let batch = [usage(event), amend(amendment)];
        async move { store.write(&batch).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while database.one(waits) == "0" {
        tokio::task::yield_now().await;
    }
    slow.batch_execute("COMMIT").await.unwrap();
    replay.await.unwrap().unwrap();
    assert_eq!(
        database.rows("SELECT tokens_consumed, token_source FROM tenant_usage_realtime"),
        [["60", "counted"]]
    );
    assert_eq!(settled(&database, "tn_race", "tokens_per_day"), "60");
}

#[tokio::test]
async fn hydration_reads_the_windows_that_hold_now() {
    let database = shared().migrated();
    let store = database.store();
    let now = Timestamp::now();
    let yesterday = now - 24.hours();
    store
        .write(&[
            usage(chat("tn_a", 70, now)),
            usage(chat("tn_a", 1, yesterday)),
            usage(chat("tn_b", 5, now)),
        ])
        .await
        .unwrap();
    database.rows("INSERT INTO quota_usage SELECT 'tn_c', 'llamas_per_day', now() - interval '1 hour', now() + interval '1 hour', 1");
    let mut settled = store.settled(now).await.unwrap();
    settled.retain(|counter| counter.dimension == DAY);
    settled.sort_by(|a, b| a.tenant.cmp(&b.tenant));
    let read: Vec<_> = settled.iter().map(|counter| (counter.tenant.as_str(), counter.amount)).collect();
    assert_eq!(read, [("tn_a", 70), ("tn_b", 5)]);
    assert!(settled.iter().all(|counter| counter.window_start <= now && now < counter.window_end));
}

#[tokio::test]
async fn look_ups_read_the_first_column_whatever_its_type() {
    let database = shared().database();
    database.rows("CREATE TABLE t (id UUID, n INT, plan TEXT); INSERT INTO t VALUES ('018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f', 42, NULL)");
    let store = database.store();
    let look_up = async |query: &str, key: &str| store.look_up(query, key).await;
    assert_eq!(
        look_up("SELECT id, n FROM t WHERE n::text = $1;", "42").await.unwrap().as_deref(),
        Some("018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f")
    );
    assert_eq!(
        look_up("SELECT n FROM t WHERE id::text = $1 -- the plan", "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f")
            .await
            .unwrap()
            .as_deref(),
        Some("42")
    );
    assert_eq!(look_up("SELECT plan FROM t WHERE n::text = $1", "42").await.unwrap(), None);
    assert_eq!(look_up("SELECT plan FROM t WHERE n::text = $1", "'; DROP TABLE t; --").await.unwrap(), None);
    assert_eq!(look_up("SELECT plan FROM t WHERE n::text = $1", "4\0").await.unwrap(), None);
    let error = look_up("SELECT plan FROM nowhere WHERE n::text = $1", "1").await.unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

#[tokio::test]
async fn a_replica_is_known_by_where_it_listens_until_it_leaves() {
    let database = shared().migrated();
    let store = database.store();
    store.register_replica("127.0.0.1:8080").await.unwrap();
    store.register_replica("127.0.0.1:8081").await.unwrap();
    let known = "SELECT replica_id, state, address FROM gateway_replicas";
    assert_eq!(database.rows(known), [["test", "live", "127.0.0.1:8081"]]);
    store.leave().await.unwrap();
    assert_eq!(database.rows(known), [["test", "stopped", "127.0.0.1:8081"]]);
}
