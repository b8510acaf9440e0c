//! Why a tenant may use what it may, and why it was refused: told by a replica, with its database and without.

use serde_json::{Value, json};

use crate::gateway::{pick, rows};
use crate::harness::{Client, TestGateway, Upstream, answer, batch, batch_answer, gateway, request, within};
use crate::postgres::{Server, shared};

async fn service() -> Upstream {
    Upstream::answering(|_| answer(200).json(&batch_answer(100))).await
}

async fn explain(gateway: &TestGateway, tenant: &str) -> Value {
    let answer = gateway.operate(request("GET", &format!("/api/admin/tenants/{tenant}/explain"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn put(gateway: &TestGateway, tenant: &str, body: Value) {
    let path = format!("/api/admin/tenants/{tenant}/quota");
    assert_eq!(gateway.operate(request("PUT", &path).json(&body)).await.status, 200);
}

#[tokio::test]
async fn each_limit_is_told_with_where_it_comes_from_and_what_would_hold_without() {
    let (upstream, database) = (service().await, shared().database());
    let config = r#"
[overrides.tn_why]
tokens_per_day = 7000
cost_usd_per_month = 12.5
embeddings_per_day = 9
soft = ["embeddings_per_day"]
expires = "2099-01-31T00:00:00Z"
reason = "pilot"
"#;
    let gateway = gateway(&upstream, &database).config(config).start().await;
    let set = json!({"tokens_per_day": 50000, "chat_messages_per_day": "unlimited", "reason": "ticket 7"});
    put(&gateway, "tn_why", set).await;
    let told = explain(&gateway, "tn_why").await;
    assert_eq!(
        pick(&told, &["tenantId", "blocked", "block", "timeZone", "refusals"]),
        [json!("tn_why"), json!(false), json!(null), json!("UTC"), json!([])]
    );
    let limit = |dimension: &str| &told["limits"][dimension];
    let of = |dimension: &str| pick(limit(dimension), &["limit", "soft", "origin", "without", "window"]);
    assert_eq!(
        of("tokens_per_day"),
        [
            json!(50000),
            json!(false),
            json!("admin"),
            json!({"limit": 7000, "origin": "config"}),
            json!("day")
        ]
    );
    assert_eq!(
        pick(&limit("tokens_per_day")["override"], &["reason", "author", "expires", "expired"]),
        [json!("ticket 7"), json!("operator"), json!(null), json!(false)]
    );
    assert_eq!(
        of("chat_messages_per_day"),
        [json!(null), json!(false), json!("admin"), json!({"limit": 100, "origin": "plan"}), json!("day")]
    );
    assert_eq!(
        of("cost_usd_per_month"),
        [
            json!(12.5),
            json!(false),
            json!("config"),
            json!({"limit": null, "origin": "plan"}),
            json!("month")
        ]
    );
    let pilot = json!({"reason": "pilot", "expires": "2099-01-31T00:00:00.000000Z"});
    assert_eq!(limit("cost_usd_per_month")["override"], pilot);
    assert_eq!(
        of("embeddings_per_day"),
        [json!(9), json!(true), json!("config"), json!({"limit": 50, "origin": "plan"}), json!("day")]
    );
    assert_eq!(
        of("api_calls_per_minute"),
        [json!(30), json!(false), json!("plan"), json!(null), json!("minute")]
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_plan_is_told_with_where_it_comes_from() {
    let (upstream, database) = (service().await, shared().database());
    let client = database.connect().await;
    client
        .batch_execute(
            "CREATE TABLE trial_tenants (tenant_id TEXT, plan_upgraded_to TEXT);
             INSERT INTO trial_tenants VALUES ('tn_said', 'starter'), ('tn_odd', 'platinum'), ('tn_admin', 'starter')",
        )
        .await
        .unwrap();
    let config = "[overrides.tn_file]\nplan = \"pro\"\nexpires = \"2099-01-31T00:00:00Z\"\nreason = \"friends\"\n\
        [overrides.tn_admin]\nplan = \"pro\"\n[overrides.tn_was]\nplan = \"pro\"\nexpires = \"2026-01-31T00:00:00Z\"\n";
    let gateway = gateway(&upstream, &database).config(config).start().await;
    put(&gateway, "tn_admin", json!({"plan": "enterprise", "reason": "deal"})).await;
    put(&gateway, "tn_admin", json!({"blocked": true, "reason": "unpaid"})).await;
    for (tenant, name, origin, fallback, without) in [
        ("tn_said", "starter", "service", false, json!(null)),
        ("tn_odd", "trial", "default", true, json!(null)),
        ("tn_none", "trial", "default", false, json!(null)),
        ("tn_file", "pro", "config", false, json!("trial")),
        ("tn_admin", "enterprise", "admin", false, json!("pro")),
        ("tn_was", "trial", "default", false, json!(null)),
    ] {
        let told = explain(&gateway, tenant).await;
        let plan = pick(&told["plan"], &["name", "origin", "fallback", "without"]);
        assert_eq!(plan, [json!(name), json!(origin), json!(fallback), without], "{tenant}: {told:#}");
    }
    let odd = explain(&gateway, "tn_odd").await;
    assert_eq!(odd["plan"]["service"], json!({"answer": "known", "plan": "platinum"}));
    assert_eq!(odd["plan"]["detail"], "the config knows no plan \"platinum\": the default plan holds");
    let file = explain(&gateway, "tn_file").await;
    assert_eq!(file["plan"]["override"]["reason"], "friends");
    let admin = explain(&gateway, "tn_admin").await;
    assert_eq!(
        (&admin["plan"]["override"]["reason"], &admin["block"]["reason"]),
        (&json!("deal"), &json!("unpaid"))
    );
    let was = &explain(&gateway, "tn_was").await["expiredOverrides"];
    assert_eq!(
        pick(&was[0], &["origin", "plan", "expires"]),
        [json!("config"), json!("pro"), json!("2026-01-31T00:00:00.000000Z")]
    );
    gateway.stop().await;
}

#[tokio::test]
async fn use_is_told_as_the_database_and_as_this_replica_have_it_with_the_leases_of_all() {
    let (upstream, database) = (service().await, shared().database());
    let start = async || gateway(&upstream, &database).start().await;
    let (here, there) = (start().await, start().await);
    for gateway in [&here, &there] {
        assert_eq!(gateway.ask(batch("tn_use", 2)).await.status, 200);
    }
    rows(&database, "tn_use", 2).await;
    let told = explain(&here, "tn_use").await;
    let tokens = &told["limits"]["tokens_per_day"];
    assert_eq!(
        pick(tokens, &["used", "remaining", "settled", "overLimit"]),
        [json!(200), json!(9800), json!(200), json!(0)]
    );
    assert_eq!(
        pick(&tokens["replica"], &["used", "reserved", "elsewhere", "debt", "exhausted"]),
        [json!(100), json!(0), json!(100), json!(0), json!(false)]
    );
    let leases = tokens["leases"].as_array().unwrap();
    let id = &told["replica"]["id"];
    assert_eq!(told["replica"]["footing"], "leased");
    let (mine, others): (Vec<&Value>, Vec<&Value>) =
        leases.iter().partition(|lease| lease["replicaId"] == *id);
    for (lease, this) in [(mine, true), (others, false)] {
        assert_eq!(lease.len(), 1, "{leases:?}");
        assert_eq!(
            pick(lease[0], &["thisReplica", "presentRun", "state", "consumed", "wanted"]),
            [json!(this), json!(true), json!("live"), json!(100), json!(false)]
        );
        let number = |name: &str| lease[0][name].as_i64().unwrap();
        assert_eq!(number("outstanding"), number("granted") - 100);
        assert!(lease[0]["heardOfSecondsAgo"].as_f64().is_some_and(|secs| secs < 10.0), "{lease:?}");
    }
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn the_last_ten_refusals_are_told_with_their_reasons() {
    let (upstream, database) = (service().await, shared().database());
    let config = "[plans.trial]\ncost_usd_per_day = 0.0003\n";
    let gateway = gateway(&upstream, &database).config(config).start().await;
    let ask = async |messages, id: &str| {
        gateway.ask(batch("tn_no", messages).header("x-request-id", id)).await.status
    };
    assert_eq!(ask(101, "many").await, 429);
    assert_eq!(ask(4, "dear").await, 429);
    for n in 0..9 {
        assert_eq!(ask(102, &format!("again-{n}")).await, 429);
    }
    put(&gateway, "tn_no", json!({"blocked": true})).await;
    assert_eq!(ask(1, "blocked").await, 403);
    rows(&database, "tn_no", 12).await;
    let told = explain(&gateway, "tn_no").await;
    let refusals = told["refusals"].as_array().unwrap();
    let ids: Vec<&str> = refusals.iter().map(|refusal| refusal["requestId"].as_str().unwrap()).collect();
    let newest = (0..9).rev().map(|n| format!("again-{n}"));
    assert_eq!(ids, std::iter::once("blocked".to_owned()).chain(newest).collect::<Vec<_>>());
    assert_eq!(refusals[0]["reason"], "an operator had blocked the tenant");
    assert_eq!(
        pick(&refusals[1], &["refusedBy", "limit", "used", "needed", "status", "endpoint", "replicaId"]),
        [
            json!("tokens_per_day"),
            json!(10_000),
            json!(0),
            json!(15_300),
            json!(429),
            json!("/api/widget/chat"),
            told["replica"]["id"].clone()
        ]
    );
    assert_eq!(refusals[1]["reason"], "tokens_per_day: 15300 needed, 0 of 10000 used or reserved");
    put(&gateway, "tn_no", json!({"blocked": false})).await;
    assert_eq!(ask(4, "dear-2").await, 429);
    rows(&database, "tn_no", 13).await;
    let told = explain(&gateway, "tn_no").await;
    assert_eq!(
        pick(&told["refusals"][0], &["refusedBy", "limit", "needed", "reason"]),
        [
            json!("cost_usd_per_day"),
            json!(0.0003),
            json!(0.00036),
            json!("cost_usd_per_day: 0.00036 needed, 0.0 of 0.0003 used or reserved")
        ]
    );
    gateway.stop().await;
}

#[tokio::test]
async fn without_its_database_a_replica_tells_what_it_knows_and_says_what_it_can_not() {
    let server = Server::start_with(&[("fsync", "off")]);
    let (upstream, database) = (service().await, server.database());
    let gateway = gateway(&upstream, &database).start().await;
    assert_eq!(gateway.ask(batch("tn_dark", 1)).await.status, 200);
    rows(&database, "tn_dark", 1).await;
    server.stop();
    within("the replica notices", async {
        while explain(&gateway, "tn_dark").await["replica"]["footing"] != "on_its_own" {}
    })
    .await;
    let told = explain(&gateway, "tn_dark").await;
    assert_eq!(told["refusals"], json!(null));
    assert_eq!(told["database"]["available"], json!(false));
    assert_eq!(
        told["database"]["detail"],
        "the database is away; requests are still metered, and recorded when it is back"
    );
    let tokens = &told["limits"]["tokens_per_day"];
    assert_eq!(
        pick(tokens, &["limit", "used", "settled", "leases"]),
        [json!(10_000), json!(100), json!(null), json!(null)]
    );
    assert_eq!(
        pick(&tokens["replica"], &["used", "granted", "debt"]),
        [json!(100), json!(null), json!(null)]
    );
    server.restart();
    within("the database is back", async {
        while explain(&gateway, "tn_dark").await["database"]["available"] != json!(true) {}
    })
    .await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_viewer_may_ask_and_a_stranger_may_not_and_what_is_no_tenant_is_said() {
    let (upstream, database) = (service().await, shared().database());
    let gateway = gateway(&upstream, &database).start().await;
    let ask = async |path: &str, token: &str| {
        let call = request("GET", path).header("authorization", &format!("Bearer {token}"));
        Client::ask(gateway.admin, call).await
    };
    let path = "/api/admin/tenants/tn_any/explain";
    assert_eq!(ask(path, "viewer-token-of-the-tests").await.status, 200);
    assert_eq!(ask(path, "another").await.status, 401);
    let bad = ask("/api/admin/tenants/a%20b/explain", "viewer-token-of-the-tests").await;
    assert_eq!((bad.status, &bad.json()["parameter"]), (400, &json!("id")));
    let odd = ask("/api/admin/tenants/tn_any/explain?x=1", "viewer-token-of-the-tests").await;
    assert_eq!(odd.status, 400);
    gateway.stop().await;
}

#[tokio::test]
async fn what_was_used_beyond_limit_and_lease_is_told_as_debt() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(400))).await;
    let database = shared().database();
    let config = "[plans.trial]\ntokens_per_day = 160\n";
    let gateway = gateway(&upstream, &database).config(config).start().await;
    assert_eq!(gateway.ask(batch("tn_debt", 1)).await.status, 200);
    assert_eq!(gateway.ask(batch("tn_debt", 1)).await.status, 429);
    rows(&database, "tn_debt", 2).await;
    let told = explain(&gateway, "tn_debt").await;
    let tokens = &told["limits"]["tokens_per_day"];
    assert_eq!(
        pick(tokens, &["used", "remaining", "overLimit", "settled"]),
        [json!(400), json!(0), json!(240), json!(400)]
    );
    assert_eq!(pick(&tokens["replica"], &["granted", "debt"]), [json!(160), json!(240)]);
    gateway.stop().await;
}
