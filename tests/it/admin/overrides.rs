//! Overrides that operators set: what the API takes, what it leaves in the tables, and what it answers.

use serde_json::{Value, json};

use super::desk::{Answer, Desk, OPERATOR, Setup, VIEWER};
use crate::postgres::shared;

const QUOTA: &str = "/api/admin/tenants/tn_one/quota";

async fn put(desk: &Desk, body: &str) -> Answer {
    desk.call("PUT", QUOTA, &[OPERATOR, ("user-agent", "curl/8")], Some(body)).await
}

async fn delete(desk: &Desk, query: &str) -> Answer {
    desk.call("DELETE", &format!("{QUOTA}{query}"), &[OPERATOR], None).await
}

/// The tenant's audit events of its overrides, oldest first.
async fn audits(desk: &Desk) -> Vec<Value> {
    let mut events = desk.get("/api/admin/audit?category=configuration_change").await.json()["events"]
        .as_array()
        .unwrap()
        .clone();
    events.reverse();
    events
}

#[tokio::test]
async fn an_override_is_set_shown_audited_and_taken_back() {
    let db = shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    let body =
        r#"{"tokens_per_day": 300, "plan": "pro", "reason": "a pilot", "expires": "2030-01-31T00:00:00Z"}"#;
    let answer = put(&desk, body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let standing = answer.json();
    assert_eq!((&standing["plan"], &standing["planOrigin"]), (&json!("pro"), &json!("admin")));
    let tokens = &standing["quotas"]["tokens_per_day"];
    assert_eq!(
        (&tokens["limit"], &tokens["origin"], &tokens["used"]),
        (&json!(300), &json!("admin"), &json!(1000))
    );
    assert_eq!(standing["quotas"]["chat_messages_per_day"]["origin"], "plan");
    let shown = &standing["adminOverrides"][0];
    assert_eq!(
        ["dimension", "limit", "reason", "author", "expires", "expired"].map(|key| shown[key].clone()),
        [
            json!("tokens_per_day"),
            json!(300),
            json!("a pilot"),
            json!("operator"),
            json!("2030-01-31T00:00:00.000000Z"),
            json!(false)
        ]
    );
    assert!(shown["createdAt"].is_string());
    assert_eq!(standing["adminOverrides"][1]["plan"], "pro");
    let got = desk.get(QUOTA).await.json();
    assert_eq!((&got["quotas"], &got["adminOverrides"]), (&standing["quotas"], &standing["adminOverrides"]));

    // A second one leaves what it does not name.
    let standing = put(&desk, r#"{"tokens_per_day": null, "api_calls_per_minute": 0}"#).await.json();
    assert_eq!(standing["quotas"]["tokens_per_day"]["limit"], Value::Null);
    assert_eq!(standing["quotas"]["api_calls_per_minute"]["limit"], 0);
    assert_eq!(standing["plan"], "pro");
    assert_eq!(standing["adminOverrides"][0]["createdAt"], shown["createdAt"]);
    assert_eq!(standing["adminOverrides"][0]["reason"], Value::Null);

    let standing = delete(&desk, "?dimension=plan").await.json();
    assert_eq!((&standing["removed"], &standing["plan"]), (&json!(1), &json!("trial")));
    assert_eq!(standing["adminOverrides"].as_array().unwrap().len(), 2);
    assert_eq!(delete(&desk, "").await.json()["removed"], 2);
    let again = delete(&desk, "").await;
    assert_eq!((again.status, &again.json()["removed"]), (200, &json!(0)));
    assert_eq!(again.json()["adminOverrides"], json!([]));

    let events = audits(&desk).await;
    let types: Vec<_> = events.iter().map(|event| event["event_type"].as_str().unwrap()).collect();
    let (set, removed) = ("quota_override_set", "quota_override_removed");
    assert_eq!(types, [set, set, removed, removed], "what changed nothing is not audited");
    let first = &events[0];
    assert_eq!(
        ["tenant_id", "entity_id", "actor_type", "actor_id", "user_agent"].map(|key| first[key].clone()),
        [json!("tn_one"), json!("tn_one"), json!("admin"), json!("operator"), json!("curl/8")]
    );
    assert_eq!(first["old_values"], json!({}));
    let pilot = json!({
        "limit": 300, "reason": "a pilot", "expires": "2030-01-31T00:00:00Z", "author": "operator"
    });
    assert_eq!(first["new_values"]["tokens_per_day"], pilot);
    assert_eq!(first["changes_summary"], "tokens_per_day set to 300, plan set to pro");
    for pair in events.windows(2) {
        assert_eq!(pair[0]["new_values"], pair[1]["old_values"]);
    }
    assert_eq!(events[3]["new_values"], json!({}));
    desk.close().await;
}

#[tokio::test]
async fn a_tenant_is_blocked_and_unblocked() {
    let db = shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    assert_eq!(put(&desk, r#"{"blocked": true, "reason": "abuse"}"#).await.json()["blocked"], true);
    let standing = put(&desk, r#"{"blocked": false}"#).await.json();
    assert_eq!((&standing["blocked"], &standing["adminOverrides"]), (&json!(false), &json!([])));
    let summaries: Vec<_> =
        audits(&desk).await.iter().map(|event| event["changes_summary"].clone()).collect();
    assert_eq!(summaries, ["blocked", "unblocked"]);
    desk.close().await;
}

#[tokio::test]
async fn what_is_not_an_override_is_refused_by_name_and_changes_nothing() {
    let db = shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    for (body, parameter) in [
        (r#"{"tokens_per_day": -5}"#, Some("tokens_per_day")),
        (r#"{"tokens_per_day": 1e30}"#, Some("tokens_per_day")),
        (r#"{"tokens_per_year": 5}"#, Some("tokens_per_year")),
        (r#"{"tokens_per_day": 5, "plan": "platinum"}"#, Some("plan")),
        (r#"{"tokens_per_day": 5, "expires": "2020-01-01T00:00:00Z"}"#, Some("expires")),
        ("{}", None),
        ("", None),
        ("[]", None),
        ("{\"tokens_per_day\": 5", None),
    ] {
        let code = if parameter.is_some() { "invalid_parameter" } else { "invalid_body" };
        let failure = put(&desk, body).await.failure();
        assert_eq!(failure, (400, code.to_owned(), parameter.map(str::to_owned)), "{body}");
    }
    let large = format!("{{\"tokens_per_day\": 5, \"reason\": \"{}\"}}", "x".repeat(40_000));
    assert_eq!(put(&desk, &large).await.failure().1, "invalid_body");
    for (query, parameter) in
        [("?dimension=tokens", "dimension"), ("?dimension=", "dimension"), ("?all=1", "all")]
    {
        assert_eq!(delete(&desk, query).await.failure().2.as_deref(), Some(parameter), "{query}");
    }
    let viewed = desk.call("PUT", QUOTA, &[VIEWER], Some(r#"{"tokens_per_day": 5}"#)).await;
    assert_eq!(viewed.failure(), (403, "forbidden".to_owned(), None));
    assert_eq!(desk.get(QUOTA).await.json()["adminOverrides"], json!([]));
    assert_eq!(audits(&desk).await, Vec::<Value>::new());
    desk.close().await;
}

#[tokio::test]
async fn fault_102_of_two_edits_at_once_none_is_lost_and_both_are_audited_with_old_and_new() {
    let db = shared().migrated();
    let (here, there) = (Setup::new(db.url()).open().await, Setup::new(db.url()).open().await);
    // Whoever sets the same limit comes one after the other; others' limits are not undone.
    let edits = (0..12).map(|n| {
        let desk = if n % 2 == 0 { &here } else { &there };
        let other = ["tokens_per_hour", "tokens_per_minute", "embeddings_per_month"][n % 3];
        let body = format!("{{\"tokens_per_day\": {n}, \"{other}\": {n}, \"reason\": \"edit {n}\"}}");
        async move { put(desk, &body).await.status }
    });
    assert_eq!(futures_util::future::join_all(edits).await, [200; 12]);
    let events = audits(&here).await;
    assert_eq!(events.len(), 12);
    // The events make one chain, from nothing to what is there: each saw what the one before it left.
    let mut left = json!({});
    let mut rest = events;
    while !rest.is_empty() {
        let next = rest.iter().position(|event| event["old_values"] == left).expect("an edit that saw this");
        left = rest.swap_remove(next)["new_values"].clone();
    }
    let rows = db.rows("SELECT dimension, limit_value FROM tenant_quota_overrides ORDER BY dimension");
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(left[&row[0]]["limit"].to_string(), row[1], "{}", row[0]);
    }
    here.close().await;
    there.close().await;
}

#[tokio::test]
async fn an_edit_without_its_audit_event_is_no_edit() {
    let db = shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    desk.sql("ALTER TABLE audit_events ADD CONSTRAINT none CHECK (event_type NOT LIKE 'quota_override%')")
        .await;
    assert_eq!(put(&desk, r#"{"tokens_per_day": 5}"#).await.status, 500);
    assert_eq!(db.one("SELECT count(*) FROM tenant_quota_overrides"), "0");
    desk.sql("ALTER TABLE audit_events DROP CONSTRAINT none").await;
    for _ in 0..8 {
        assert_eq!(
            put(&desk, r#"{"tokens_per_day": 5}"#).await.status,
            200,
            "the connections are fit for the next"
        );
    }
    desk.close().await;
}

#[tokio::test]
async fn an_edit_whose_turn_does_not_come_is_given_up_and_leaves_the_connection_fit() {
    let db = shared().migrated();
    let mut setup = Setup::new(db.url());
    setup.statement_timeout = std::time::Duration::from_millis(200);
    let desk = setup.open().await;
    let other = db.connect().await;
    other.batch_execute("SELECT pg_advisory_lock(7021993004)").await.unwrap();
    let answer = put(&desk, r#"{"tokens_per_day": 5}"#).await;
    assert_eq!(answer.failure(), (503, "query_timeout".to_owned(), None));
    other.batch_execute("SELECT pg_advisory_unlock(7021993004)").await.unwrap();
    for _ in 0..8 {
        assert_eq!(put(&desk, r#"{"tokens_per_day": 5}"#).await.status, 200);
    }
    desk.close().await;
}
