//! Tamper-evident audit: chains are whole whatever happened to those who wrote them, and every break is named.

use std::process::{Command, Output};

use futures_util::future::join_all;
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use tollgate::model::event::{AuditEvent, Record};
use tollgate::record::EventSink;
use tollgate::store::Store;

use crate::harness::{Upstream, answer, batch, batch_answer, gateway, request};
use crate::postgres::{Database, migrations, shared};
use crate::sql::records::{audit, audited, chat, hours_ago, usage};

fn tollgate(database: &Database<'_>, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", database.url())
        .output()
        .unwrap()
}

/// What `tollgate audit verify` ends with, and what it says.
fn verify(database: &Database<'_>, more: &[&str]) -> (i32, Value) {
    let output = tollgate(database, &[&["audit", "verify", "--json"], more].concat());
    let told = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), told)
}

fn whole(database: &Database<'_>) -> Value {
    let (code, told) = verify(database, &[]);
    assert_eq!((code, &told["whole"]), (0, &json!(true)), "{told:#}");
    told
}

/// The first break that is found: its chain, its number, and why.
fn broken(database: &Database<'_>, more: &[&str]) -> (String, i64, String) {
    let (code, told) = verify(database, more);
    assert_eq!((code, &told["whole"]), (1, &json!(false)), "{told:#}");
    let chains = told["chains"].as_array().unwrap();
    let chain = chains.iter().find(|chain| !chain["break"].is_null()).unwrap_or_else(|| panic!("{told:#}"));
    let found = &chain["break"];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&chain["chain"]), found["seq"].as_i64().unwrap(), text(&found["why"]))
}

fn assert_broken(database: &Database<'_>, chain: &str, seq: i64, why: &str) {
    let found = broken(database, &[]);
    assert_eq!((found.0.as_str(), found.1), (chain, seq), "{found:?}");
    assert!(found.2.contains(why), "{found:?}");
}

fn replica(database: &Database<'_>, name: &str) -> Store {
    database.store().with_replica_id(name)
}

fn events(count: usize, tenant: &str) -> Vec<Record> {
    let now = Timestamp::now();
    (0..count).map(|_| audited(audit(tenant, "chat_message_received", now))).collect()
}

/// A chain `one` of ten entries, one batch each two.
async fn ten(database: &Database<'_>) {
    let store = replica(database, "one");
    for _ in 0..5 {
        store.write(&events(2, "tn_ten")).await.unwrap();
    }
}

fn head(database: &Database<'_>, chain: &str) -> String {
    database.one(&format!(
        "SELECT chain || ':' || seq || ':' || encode(head, 'hex') FROM audit_chains WHERE chain = '{chain}'"
    ))
}

#[tokio::test]
async fn chains_are_whole_after_mixed_traffic_of_two_replicas_in_many_batches_at_once() {
    let database = shared().migrated();
    let writers = (0..4).map(|writer| {
        let database = &database;
        async move {
            let store = replica(database, if writer % 2 == 0 { "one" } else { "two" });
            for _ in 0..10 {
                let batches = (0..4).map(|_| {
                    let mut batch = events(3, "tn_mixed");
                    batch.push(usage(chat("tn_mixed", 10, Timestamp::now())));
                    let mut change = audit("tn_mixed", "branding_updated", Timestamp::now());
                    (change.in_history, change.new_values) = (true, Some(json!({"color": writer})));
                    batch.push(audited(change));
                    let store = store.clone();
                    async move { store.write(&batch).await.unwrap() }
                });
                join_all(batches).await;
                database.rows("INSERT INTO audit_events (event_type, category, action, actor_type) SELECT 'x', 'error', 'create', 'system' FROM generate_series(1, 3)");
            }
        }
    });
    join_all(writers).await;
    let told = whole(&database);
    let entries = |name: &str| -> u64 {
        let chains = told["chains"].as_array().unwrap().iter();
        let own = chains.filter(|chain| chain["chain"].as_str().unwrap().split('/').next() == Some(name));
        own.map(|chain| chain["entries"].as_u64().unwrap()).sum()
    };
    assert_eq!((entries("one"), entries("two"), entries("database")), (320, 320, 120));
    assert_eq!(
        database.one("SELECT count(*) > 0 FROM audit_events WHERE old_values IS NOT NULL"),
        "t",
        "old values are part of what is proven"
    );
    let (_, one) = verify(&database, &["--chain", "one"]);
    let names = |told: &Value| {
        told["chains"].as_array().unwrap().iter().map(|c| c["chain"].to_string()).collect::<Vec<_>>()
    };
    assert!(names(&one).iter().all(|name| name.starts_with("\"one")) && !names(&one).is_empty());
}

#[tokio::test]
async fn fault_104_a_changed_row_is_named() {
    let changes = [
        "new_values = '{\"message_length\": 6}'",
        "tenant_id = 'tn_other'",
        "result = 'failure'",
        "ip_address = NULL",
        "user_agent = ''",
        "error_message = ''",
        "old_values = '{}'",
        "\"timestamp\" = \"timestamp\" + interval '1 microsecond'",
        "event_id = gen_random_uuid()",
        "in_history = true",
        "resolved_from = result, result = 'failure'",
        "chain_seq = 0",
    ];
    for change in changes {
        let database = shared().migrated();
        ten(&database).await;
        whole(&database);
        database.rows(&format!("UPDATE audit_events SET {change} WHERE chain_seq = 4"));
        let (chain, seq, why) = broken(&database, &[]);
        let at = if change == "chain_seq = 0" { 0 } else { 4 };
        assert_eq!((chain.as_str(), seq), ("one", at), "{change}: {why}");
    }
}

#[tokio::test]
async fn fault_104_missing_rows_are_named_wherever_they_stood() {
    for (gone, seq, why) in [
        ("chain_seq = 1", 2, "not due"),
        ("chain_seq <= 3", 4, "not due"),
        ("chain_seq IN (5, 6)", 5, "before number 7"),
        ("chain_seq = 10", 10, "at the end"),
        ("true", 1, "to number 10"),
    ] {
        let database = shared().migrated();
        ten(&database).await;
        database.rows(&format!("DELETE FROM audit_events WHERE {gone}"));
        assert_broken(&database, "one", seq, why);
    }
    // Gone with its head: only who noted the head knows.
    let database = shared().migrated();
    ten(&database).await;
    let noted = head(&database, "one");
    database.rows(
        "DELETE FROM audit_events WHERE chain_seq > 7;
         UPDATE audit_chains SET seq = 7, head = (SELECT hash FROM audit_events WHERE chain_seq = 7) WHERE chain = 'one'",
    );
    whole(&database);
    let found = broken(&database, &["--anchor", &noted]);
    assert_eq!((found.1, found.2.contains("to number 10")), (8, true), "{found:?}");
    database.rows("DELETE FROM audit_events; DELETE FROM audit_chains");
    whole(&database);
    assert_eq!(broken(&database, &["--anchor", &noted]).1, 1, "a chain that is gone whole");
}

#[tokio::test]
async fn fault_104_rows_slipped_in_swapped_or_relinked_are_named() {
    let copy = |seq: &str, chain: &str| {
        format!(
            "ALTER TABLE audit_events DISABLE TRIGGER audit_events_chain;
             INSERT INTO audit_events (event_type, category, action, actor_type, chain, chain_seq, prev_hash, hash)
             SELECT 'forged', category, action, actor_type, {chain}, {seq}, prev_hash, hash FROM audit_events WHERE chain_seq = 5;
             ALTER TABLE audit_events ENABLE TRIGGER audit_events_chain"
        )
    };
    let database = shared().migrated();
    ten(&database).await;
    database.rows(&copy("5", "chain"));
    let found = broken(&database, &[]);
    assert_eq!(found.1, 5, "between, under a number that is taken: {found:?}");

    let database = shared().migrated();
    ten(&database).await;
    database.rows(&format!(
        "UPDATE audit_events SET chain_seq = chain_seq + 1 WHERE chain_seq >= 6; {}",
        copy("6", "chain")
    ));
    assert_broken(&database, "one", 6, "");

    let database = shared().migrated();
    ten(&database).await;
    database.rows(&copy("11", "chain"));
    assert_broken(&database, "one", 11, "");

    for seq in ["NULL", "5"] {
        let database = shared().migrated();
        ten(&database).await;
        database.rows(&copy(seq, "NULL"));
        let (code, told) = verify(&database, &[]);
        assert_eq!((code, &told["slipped_in"]), (1, &json!(1)), "{told:#}");
    }

    let database = shared().migrated();
    ten(&database).await;
    database.rows("UPDATE audit_events SET chain_seq = 11 - chain_seq WHERE chain_seq IN (5, 6)");
    assert_broken(&database, "one", 5, "");

    // One row, and its own hash made anew.
    let database = shared().migrated();
    ten(&database).await;
    database.rows(
        "UPDATE audit_events SET event_type = 'forged' WHERE chain_seq = 5;
         UPDATE audit_events a SET hash = tollgate_audit_link(a.prev_hash, a.chain, a.chain_seq, a.\"timestamp\", e.digest)
         FROM audit_chain_entries e WHERE e.chain_seq = 5 AND a.chain_seq = 5",
    );
    assert_broken(&database, "one", 6, "does not follow");

    // And all after it, and the head.
    database.rows(
        "UPDATE audit_chains SET head = tollgate_audit_seal('one', 4, (SELECT hash FROM audit_events WHERE chain_seq = 4)) WHERE chain = 'one'",
    );
    whole(&database);
}

#[tokio::test]
async fn fault_104_a_chain_made_anew_is_told_by_an_anchor() {
    let database = shared().migrated();
    ten(&database).await;
    let noted = head(&database, "one");
    let (code, told) = verify(&database, &["--anchor", &noted]);
    assert_eq!((code, &told["chains"][0]["anchors_met"]), (0, &json!(1)), "{told:#}");
    database.rows(
        "UPDATE audit_events SET event_type = 'forged' WHERE chain_seq = 5;
         UPDATE audit_chains SET head = tollgate_audit_seal('one', 0, decode(repeat('00', 32), 'hex')) WHERE chain = 'one'",
    );
    whole(&database);
    let found = broken(&database, &["--anchor", &noted]);
    assert_eq!((found.0.as_str(), found.1, found.2.contains("anchored")), ("one", 10, true), "{found:?}");
    let wrong = tollgate(&database, &["audit", "verify", "--anchor", "one:10:abc"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[tokio::test]
async fn a_batch_that_is_shipped_again_is_there_once_and_breaks_nothing() {
    let database = shared().migrated();
    let store = replica(&database, "one");
    let (first, second) = (events(3, "tn_again"), events(3, "tn_again"));
    store.write(&first).await.unwrap();
    store.write(&first).await.unwrap();
    // Cut otherwise, some of it known, some of it twice.
    let mixed: Vec<Record> = [&second[..2], &first[..], &second[1..]].concat();
    store.write(&mixed).await.unwrap();
    assert_eq!(database.one("SELECT count(*) FROM audit_events"), "6");
    whole(&database);
    // A second process with the first one's id, or the first after a crash, goes on with its chain.
    replica(&database, "one").write(&events(1, "tn_again")).await.unwrap();
    assert_eq!(database.rows("SELECT chain, max(chain_seq) FROM audit_events GROUP BY 1"), [["one", "7"]]);
    whole(&database);
}

#[tokio::test]
async fn a_batch_that_meets_its_own_first_attempt_still_running_is_there_once() {
    let database = shared().migrated();
    let store = replica(&database, "one");
    let record = |event: AuditEvent| audited(event);
    let (a, b) = (audit("tn_race", "a", Timestamp::now()), audit("tn_race", "b", Timestamp::now()));
    // There are chains already, so that each attempt has one of its own.
    store.write(&[audited(audit("tn_race", "before", Timestamp::now()))]).await.unwrap();
    let slow = database.connect().await;
    slow.batch_execute("BEGIN").await.unwrap();
    let us = a.at.as_microsecond();
    let nothing = "ARRAY[NULL::text]";
    slow.batch_execute(&format!(
        "SELECT tollgate_write_audit('one', ARRAY['{}'::uuid], ARRAY['tn_race'], ARRAY['a'], ARRAY['error'], {nothing},
            {nothing}, ARRAY['create'], ARRAY['system'], {nothing}, {nothing}, {nothing}, {nothing}, ARRAY['success'], {nothing},
            ARRAY[NULL::inet], {nothing}, {nothing}, ARRAY[to_timestamp(0) + {us} * interval '1 microsecond'], ARRAY[false])",
        a.event_id
    ))
    .await
    .unwrap();
    let again = tokio::spawn({
        let batch = [record(a), record(b)];
        async move {
            // The attempt that met it fails, as one to be tried again.
            let met = store.write(&batch).await;
            (met.unwrap_err().to_string(), store.write(&batch).await)
        }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while database.one(waits) == "0" {
        tokio::task::yield_now().await;
    }
    slow.batch_execute("COMMIT").await.unwrap();
    let (met, then) = again.await.unwrap();
    assert!(met.contains("40001"), "{met}");
    then.unwrap();
    assert_eq!(database.rows("SELECT event_type FROM audit_events ORDER BY 1"), [["a"], ["b"], ["before"]]);
    whole(&database);
}

#[tokio::test]
async fn resolving_leaves_a_chain_whole_and_a_resolution_that_is_touched_is_named() {
    let tampered = [
        ("UPDATE audit_events SET resolution = 'never mind' WHERE chain_seq = 4", "one", 4),
        (
            "UPDATE audit_events SET resolution = NULL, resolved_at = NULL, resolved_from = NULL, result = resolved_from WHERE chain_seq = 4",
            "resolutions",
            1,
        ),
        (
            "UPDATE audit_events SET resolution = 'done', resolved_at = now(), resolved_from = result, result = 'resolved' WHERE chain_seq = 7",
            "one",
            7,
        ),
        (
            "UPDATE audit_resolutions SET resolution = 'never mind' WHERE chain_seq = 1; UPDATE audit_events SET resolution = 'never mind' WHERE chain_seq = 4",
            "resolutions",
            1,
        ),
        ("DELETE FROM audit_resolutions", "one", 4),
    ];
    for (sql, chain, seq) in tampered {
        let database = shared().migrated();
        ten(&database).await;
        let resolve = |seq: i64, text: &str| {
            database.one(&format!("SELECT resolve_audit_event((SELECT event_id FROM audit_events WHERE chain_seq = {seq}), '{text}')"))
        };
        assert_eq!(
            (resolve(4, "called them"), resolve(4, "again"), resolve(9, "so what")),
            ("t".into(), "f".into(), "t".into())
        );
        let told = whole(&database);
        assert_eq!(told["chains"].as_array().unwrap().len(), 2, "{told:#}");
        database.rows(sql);
        assert_broken(&database, chain, seq, "");
    }
}

#[tokio::test]
async fn events_of_before_have_no_chain_and_none_can_be_added_to_them() {
    let database = shared().database();
    let files = migrations();
    for file in files.iter().take_while(|file| !file.ends_with("0008_audit_chain.sql")) {
        database.file(file);
    }
    let insert = "INSERT INTO audit_events (event_type, category, action, actor_type) SELECT 'old', 'error', 'create', 'system' FROM generate_series(1, 3)";
    database.rows(insert);
    database.store().migrate().await.unwrap();
    database.rows(insert);
    ten(&database).await;
    let told = whole(&database);
    assert_eq!(told["unchained"], json!(3));
    assert_eq!(
        database.rows("SELECT coalesce(chain, '-'), count(*) FROM audit_events GROUP BY 1 ORDER BY 1"),
        [["-", "3"], ["database", "3"], ["one", "10"]]
    );
    // Resolved late, an old one is a resolution like others.
    database.rows("SELECT resolve_audit_event((SELECT event_id FROM audit_events WHERE chain IS NULL LIMIT 1), 'at last')");
    whole(&database);
    // One of them is forged to look as old as they are.
    database.rows(
        "ALTER TABLE audit_events DISABLE TRIGGER audit_events_chain;
         INSERT INTO audit_events (event_type, category, action, actor_type, \"timestamp\") VALUES ('x', 'error', 'create', 'system', now() - interval '1 day')",
    );
    let (code, told) = verify(&database, &[]);
    assert_eq!((code, &told["slipped_in"]), (1, &json!(1)), "{told:#}");
}

#[tokio::test]
async fn retention_leaves_a_walk_that_says_from_where_on_it_is_proven() {
    let database = shared().migrated();
    let store = replica(&database, "one");
    let two_years = 24 * 731;
    // In the order of shipping: 5 and 7 came late, and go before those that stand before them.
    let ages = [two_years + 9, two_years + 8, two_years + 7, 100, two_years + 6, 99, two_years + 5, 98];
    for age in ages {
        store.write(&[audited(audit("tn_old", "x", hours_ago(age)))]).await.unwrap();
    }
    replica(&database, "gone").write(&[audited(audit("tn_old", "x", hours_ago(two_years)))]).await.unwrap();
    whole(&database);
    let first = head(&database, "gone");
    assert_eq!(store.clean_up().await.unwrap().audit_events, 6);
    assert_eq!(store.clean_up().await.unwrap().audit_events, 0);
    assert_eq!(
        database.rows("SELECT chain_seq FROM audit_removed WHERE chain = 'one' ORDER BY 1"),
        [["3"], ["5"], ["7"]]
    );
    let told = whole(&database);
    assert_eq!(
        (&told["chains"][1]["entries"], &told["chains"][1]["from"]["seq"]),
        (&json!(3), &json!(3)),
        "{told:#}"
    );
    let (code, told) = verify(&database, &["--anchor", &first]);
    assert_eq!((code, &told["chains"][0]["anchors_met"]), (0, &json!(1)), "{told:#}");
    store.write(&events(2, "tn_old")).await.unwrap();
    whole(&database);

    // Whoever makes a young event look like one that retention took is found out by its time.
    database.rows(
        "INSERT INTO audit_removed SELECT chain, chain_seq, at, digest, prev_hash, hash FROM audit_chain_entries WHERE chain_seq = 6;
         DELETE FROM audit_events WHERE chain_seq = 6",
    );
    assert_broken(&database, "one", 6, "was not due");
    database.rows("UPDATE audit_removed SET \"timestamp\" = now() - interval '3 years' WHERE chain_seq = 6");
    assert_broken(&database, "one", 6, "changed");
}

#[tokio::test]
async fn a_long_chain_is_walked_in_pieces_and_from_a_day_on() {
    let database = shared().migrated();
    database.rows(
        "INSERT INTO audit_events (event_type, category, action, actor_type, \"timestamp\")
         SELECT 'x', 'error', 'create', 'system', now() - n * interval '1 minute' FROM generate_series(1, 6500) n",
    );
    let told = whole(&database);
    assert_eq!(told["chains"][0]["entries"], json!(6500));
    let day = (Timestamp::now() - 48.hours()).to_string();
    let (code, told) = verify(&database, &["--since", &day]);
    let read = told["chains"][0]["entries"].as_i64().unwrap();
    assert!(code == 0 && (2870..=2880).contains(&read), "{told:#}");
    let (code, told) = verify(&database, &["--since", "2999-01-01"]);
    assert_eq!((code, &told["chains"][0]["entries"]), (0, &json!(0)), "{told:#}");
    for seq in [2000, 2001, 4000, 6500] {
        let database = shared().migrated();
        database.rows(&format!(
            "INSERT INTO audit_events (event_type, category, action, actor_type, \"timestamp\")
             SELECT 'x', 'error', 'create', 'system', now() - n * interval '1 minute' FROM generate_series(1, 6500) n;
             ALTER TABLE audit_events DISABLE TRIGGER audit_events_chain;
             INSERT INTO audit_events (event_type, category, action, actor_type, chain, chain_seq, prev_hash, hash)
             SELECT event_type, category, action, actor_type, chain, chain_seq, prev_hash, hash FROM audit_events WHERE chain_seq = {seq}"
        ));
        assert_eq!(broken(&database, &[]).1, seq, "where pieces meet");
    }
}

#[tokio::test]
async fn heads_are_in_the_metrics_after_an_aggregation_and_what_they_say_verifies() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(25))).await;
    let database = shared().migrated();
    let gateway = gateway(&upstream, &database).start().await;
    for _ in 0..3 {
        gateway.ask(batch("tn_heads", 1)).await;
    }
    let body = json!({"tokens_per_day": 300, "reason": "a test"});
    assert_eq!(
        gateway.operate(request("PUT", "/api/admin/tenants/tn_heads/quota").json(&body)).await.status,
        200
    );
    gateway.until_metric("tollgate_events_written_total", 9.0).await;
    let aggregate =
        request("POST", "/api/admin/metrics/aggregate").header("x-cron-secret", "cron-secret-of-the-tests");
    assert_eq!(gateway.operate(aggregate).await.status, 200);
    let page = crate::harness::Client::ask(gateway.admin, request("GET", "/metrics")).await.text();
    let heads: Vec<String> = page
        .lines()
        .filter_map(|line| {
            let (chain, rest) =
                line.strip_prefix("tollgate_audit_chain_seq{chain=\"")?.split_once("\",hash=\"")?;
            let (hash, seq) = rest.split_once("\"} ")?;
            Some(format!("{chain}:{seq}:{hash}"))
        })
        .collect();
    assert!(heads.len() >= 2 && heads.iter().any(|head| head.starts_with("database:1:")), "{heads:?}");
    gateway.ask(batch("tn_heads", 1)).await;
    gateway.stop().await;
    let anchors: Vec<&str> = heads.iter().flat_map(|head| ["--anchor", head]).collect();
    let (code, told) = verify(&database, &anchors);
    assert_eq!(code, 0, "{told:#}");
    let met: u64 =
        told["chains"].as_array().unwrap().iter().map(|chain| chain["anchors_met"].as_u64().unwrap()).sum();
    assert_eq!(met, heads.len() as u64);
    let text = String::from_utf8(tollgate(&database, &["audit", "verify"]).stdout).unwrap();
    assert!(text.contains("database") && text.contains("whole") && !text.contains("broken"), "{text}");
}
