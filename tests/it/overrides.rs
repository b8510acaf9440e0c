//! Overrides and plans over several replicas: set on one, held by all, at once or within a second.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Response, TestGateway, Upstream, answer, batch, batch_answer, gateway, request, within,
};
use crate::postgres::{Database, Server, shared};

/// The contract's bound for a change on another replica.
const SOON: Duration = Duration::from_secs(2);

async fn service() -> Upstream {
    Upstream::answering(|_| answer(200).json(&batch_answer(10))).await
}

/// Two replicas in front of one service.
async fn replicas<'a>(upstream: &Upstream, database: &Database<'a>) -> [TestGateway; 2] {
    [gateway(upstream, database).start().await, gateway(upstream, database).start().await]
}

async fn put(gateway: &TestGateway, tenant: &str, body: Value) -> Response {
    gateway.operate(request("PUT", &format!("/api/admin/tenants/{tenant}/quota")).json(&body)).await
}

async fn standing(gateway: &TestGateway, tenant: &str) -> Value {
    gateway.operate(request("GET", &format!("/api/admin/tenants/{tenant}/quota"))).await.json()
}

/// Waits until `told` says so of the tenant's standing, for as long as the contract allows.
async fn soon(gateway: &TestGateway, tenant: &str, told: impl Fn(&Value) -> bool) {
    let began = Instant::now();
    within("the override is known", async { while !told(&standing(gateway, tenant).await) {} }).await;
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
}

fn tokens(standing: &Value) -> &Value {
    &standing["quotas"]["tokens_per_day"]["limit"]
}

async fn stop(gateways: impl IntoIterator<Item = TestGateway>) {
    for gateway in gateways {
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_limit_set_on_one_replica_is_held_by_both_raised_or_cut() {
    let (upstream, database) = (service().await, shared().database());
    let [here, there] = replicas(&upstream, &database).await;
    for gateway in [&here, &there] {
        assert_eq!(gateway.ask(batch("tn_set", 1)).await.status, 200);
    }
    assert_eq!(put(&here, "tn_set", json!({"chat_messages_per_day": 1})).await.status, 200);
    assert_eq!(here.ask(batch("tn_set", 1)).await.status, 429, "it holds here before it is answered");
    soon(&there, "tn_set", |told| told["quotas"]["chat_messages_per_day"]["limit"] == 1).await;
    assert_eq!(there.ask(batch("tn_set", 1)).await.status, 429);
    let raised = put(&there, "tn_set", json!({"chat_messages_per_day": 100})).await;
    assert_eq!(raised.json()["quotas"]["chat_messages_per_day"]["origin"], "admin");
    assert_eq!(there.ask(batch("tn_set", 1)).await.status, 200);
    soon(&here, "tn_set", |told| told["quotas"]["chat_messages_per_day"]["limit"] == 100).await;
    assert_eq!(here.ask(batch("tn_set", 1)).await.status, 200);
    let removed = here.operate(request("DELETE", "/api/admin/tenants/tn_set/quota")).await.json();
    assert_eq!((&removed["removed"], &removed["adminOverrides"]), (&json!(1), &json!([])));
    soon(&there, "tn_set", |told| told["adminOverrides"] == json!([])).await;
    stop([here, there]).await;
}

#[tokio::test]
async fn a_blocked_tenant_is_refused_readably_charged_nothing_and_served_again_when_unblocked() {
    let (upstream, database) = (service().await, shared().database());
    let [here, there] = replicas(&upstream, &database).await;
    assert_eq!(put(&here, "tn_block", json!({"blocked": true, "reason": "abuse"})).await.status, 200);
    let refused = here.ask(batch("tn_block", 1).header("origin", "https://shop.example")).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.json()["code"], "tenant_blocked");
    assert_eq!(refused.header("access-control-allow-origin"), Some("https://shop.example"));
    assert!(refused.header("retry-after").is_none(), "trying again does not help");
    soon(&there, "tn_block", |told| told["blocked"] == true).await;
    assert_eq!(there.ask(batch("tn_block", 1)).await.status, 403);
    assert!(upstream.requests().is_empty(), "nothing is forwarded");
    assert_eq!(put(&here, "tn_block", json!({"blocked": false})).await.status, 200);
    assert_eq!(here.ask(batch("tn_block", 1)).await.status, 200);
    assert_eq!(here.metric("tollgate_refusals_total{dimension=\"blocked\"}").await, 1.0);
    stop([here, there]).await;
    let rows = database.rows(
        "SELECT outcome, api_status_code, tokens_consumed, metadata ->> 'refused_by' FROM tenant_usage_realtime
         WHERE tenant_id = 'tn_block' ORDER BY event_timestamp",
    );
    let refused = ["refused", "403", "0", "blocked"].map(str::to_owned).to_vec();
    assert_eq!((rows.len(), &rows[..2]), (3, &[refused.clone(), refused][..]));
    assert_eq!(
        database.one(
            "SELECT settled FROM quota_usage WHERE tenant_id = 'tn_block' AND dimension = 'tokens_per_day'"
        ),
        "10",
        "what was refused is charged nothing"
    );
    assert_eq!(
        database.one(
            "SELECT count(*) FROM audit_events WHERE tenant_id = 'tn_block' AND event_type = 'tenant_blocked'"
        ),
        "2"
    );
}

#[tokio::test]
async fn an_override_ends_by_itself_with_the_first_request_after_it_expired() {
    let (upstream, database) = (service().await, shared().database());
    let gateway = gateway(&upstream, &database).start().await;
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(1500);
    let body = json!({"blocked": true, "expires": expires.to_string()});
    assert_eq!(put(&gateway, "tn_expire", body).await.status, 200);
    within("it expires", async {
        loop {
            let before = jiff::Timestamp::now();
            match gateway.ask(batch("tn_expire", 1)).await.status {
                200 => break assert!(jiff::Timestamp::now() >= expires, "not before"),
                status => assert!(status == 403 && before < expires, "{status}, not after"),
            }
        }
    })
    .await;
    assert_eq!(standing(&gateway, "tn_expire").await["adminOverrides"][0]["expired"], true);
    gateway.stop().await;
}

#[tokio::test]
async fn a_row_that_nobody_was_notified_of_is_found_all_the_same_and_so_is_a_table_that_went_back() {
    let (upstream, database) = (service().await, shared().database());
    let gateway = gateway(&upstream, &database).start().await;
    let client = database.connect().await;
    let insert = "INSERT INTO tenant_quota_overrides (tenant_id, dimension, limit_value, expires_at) VALUES
        ('tn_hand', 'tokens_per_day', 77, 'infinity'), ('tn_hand', 'tokens_per_fortnight', 1, NULL)";
    client.batch_execute(insert).await.unwrap();
    soon(&gateway, "tn_hand", |told| tokens(told) == 77).await;
    client.batch_execute("DELETE FROM tenant_quota_overrides").await.unwrap();
    soon(&gateway, "tn_hand", |told| tokens(told) == 10_000).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_reload_leaves_what_operators_set() {
    let (upstream, database) = (service().await, shared().database());
    let file = "[overrides.tn_reload]\ntokens_per_day = 5\nembeddings_per_day = 6\n";
    let gateway = gateway(&upstream, &database).config(file).start().await;
    assert_eq!(put(&gateway, "tn_reload", json!({"tokens_per_day": 300})).await.status, 200);
    gateway.rewrite_config("[overrides.tn_reload]\ntokens_per_day = 7\nembeddings_per_day = 8\n");
    gateway.until_metric("tollgate_reloads_total{result=\"ok\"}", 1.0).await;
    let told = standing(&gateway, "tn_reload").await;
    let told = ["tokens_per_day", "embeddings_per_day"]
        .map(|d| [&told["quotas"][d]["limit"], &told["quotas"][d]["origin"]]);
    assert_eq!(told, [[&json!(300), &json!("admin")], [&json!(8), &json!("config")]]);
    gateway.stop().await;
}

#[tokio::test]
async fn without_its_database_a_replica_holds_what_it_knows_takes_no_edit_and_catches_up() {
    let server = Server::start_with(&[("fsync", "off")]);
    let (upstream, database) = (service().await, server.database());
    let first = gateway(&upstream, &database).start().await;
    assert_eq!(put(&first, "tn_away", json!({"blocked": true})).await.status, 200);
    server.stop();
    assert_eq!(first.ask(batch("tn_away", 1)).await.status, 403, "what is known holds");
    let refused = put(&first, "tn_away", json!({"blocked": false})).await;
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("database_unavailable")));
    assert_eq!(first.ask(batch("tn_away", 1)).await.status, 403);
    // One that starts without a database knows no override until it is reached.
    let second = gateway(&upstream, &database).start().await;
    assert_eq!(second.ask(batch("tn_away", 1)).await.status, 200);
    server.restart();
    within("the override is read", async { while standing(&second, "tn_away").await["blocked"] != true {} })
        .await;
    within("the database is back", async {
        while put(&second, "tn_away", json!({"blocked": false})).await.status != 200 {}
    })
    .await;
    // The listener may be resting still: then it is the poll that finds out.
    within("the first hears of it", async { while standing(&first, "tn_away").await["blocked"] != false {} })
        .await;
    stop([first, second]).await;
}

#[tokio::test]
async fn a_change_of_plan_is_noticed_by_both_replicas_and_audited_once() {
    let (upstream, database) = (service().await, shared().database());
    let client = database.connect().await;
    client.batch_execute("CREATE TABLE trial_tenants (tenant_id TEXT, plan_upgraded_to TEXT)").await.unwrap();
    client
        .batch_execute("INSERT INTO trial_tenants VALUES ('tn_up', NULL), ('tn_other', 'pro')")
        .await
        .unwrap();
    let start = async || gateway(&upstream, &database).set("tenant.cache_ttl", "0s").start().await;
    let (here, there) = (start().await, start().await);
    let plan = async |gateway: &TestGateway| standing(gateway, "tn_up").await["plan"].clone();
    for gateway in [&here, &there] {
        assert_eq!(gateway.ask(batch("tn_up", 1)).await.status, 200);
        assert_eq!(plan(gateway).await, "trial");
    }
    let noticed = async |results: f64| {
        within("both have noticed", async {
            loop {
                let mut sum = 0.0;
                for gateway in [&here, &there] {
                    sum += gateway.metric("tollgate_plan_changes_total{result=\"recorded\"}").await;
                    sum += gateway.metric("tollgate_plan_changes_total{result=\"known\"}").await;
                }
                if sum >= results {
                    break;
                }
            }
        })
        .await;
    };
    // To a plan, back, and to the plan again; then to one that the config does not know.
    for (at, (to, shown)) in
        [("pro", "pro"), ("trial", "trial"), ("pro", "pro"), ("platinum", "trial")].into_iter().enumerate()
    {
        client
            .batch_execute(&format!(
                "UPDATE trial_tenants SET plan_upgraded_to = '{to}' WHERE tenant_id = 'tn_up'"
            ))
            .await
            .unwrap();
        for gateway in [&here, &there] {
            assert_eq!(gateway.ask(batch("tn_up", 1)).await.status, 200);
            assert_eq!(plan(gateway).await, shown);
        }
        noticed(2.0 * (at as f64 + 1.0)).await;
    }
    assert!(here.metric("tollgate_unknown_plans_total").await >= 1.0);
    let rows = database.rows(
        "SELECT old_values ->> 'plan', new_values ->> 'plan', category, actor_type, tenant_id FROM audit_events
         WHERE event_type = 'trial_upgraded' ORDER BY timestamp",
    );
    let row = |old: &str, new: &str| [old, new, "trial_event", "system", "tn_up"].map(str::to_owned).to_vec();
    assert_eq!(rows, [row("trial", "pro"), row("pro", "trial"), row("trial", "pro"), row("pro", "platinum")]);
    stop([here, there]).await;
}
