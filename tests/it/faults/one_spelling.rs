//! One tenant, one spelling: a UUID is the same however it is written, as it is to the service's `uuid` columns.

use serde_json::{Value, json};

use super::identity::{SECRET, ask, bearer, claims, hs256, in_session, token, told};
use crate::harness::{TestGateway, Upstream, answer, batch_answer, gateway, request};
use crate::postgres::{Database, shared};

const SESSION: &str = "7c42ca9b-9eab-4d04-80b3-40f10b0c54aa";
const TENANT: &str = "a1b2c3d4-0000-4000-8000-abcdefabcdef";
const TEXT_SESSION: &str = "0F0E0D0C-0000-4000-8000-ABCDEFABCDEF";

/// All the ways in which a `uuid` column takes `id`.
fn spellings(id: &str) -> [String; 5] {
    let bare = id.replace('-', "");
    [
        id.to_owned(),
        id.to_uppercase(),
        format!("{{{id}}}"),
        bare.clone(),
        format!("{{{}}}", bare.to_uppercase()),
    ]
}

async fn with_uuids(sources: &str, more: &str) -> (Upstream, Database<'static>, TestGateway) {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    database.rows(&format!(
        "CREATE TABLE chat_sessions (session_id uuid PRIMARY KEY, tenant_id uuid);
         CREATE TABLE kept_as_text (session_id text PRIMARY KEY, tenant_id text);
         CREATE TABLE trial_tenants (tenant_id uuid PRIMARY KEY, plan_upgraded_to text);
         INSERT INTO chat_sessions VALUES ('{SESSION}', '{TENANT}');
         INSERT INTO kept_as_text VALUES ('{TEXT_SESSION}', '{}');
         INSERT INTO trial_tenants VALUES ('{TENANT}', 'starter')",
        TENANT.to_uppercase()
    ));
    let running = gateway(&upstream, &database)
        .sources(sources)
        .config(more)
        .env("TEST_JWT_SECRET", SECRET)
        .start()
        .await;
    (upstream, database, running)
}

fn looked_up_in(table: &str) -> String {
    let query = format!("SELECT tenant_id::text FROM {table} WHERE session_id::text = $1");
    format!("{{ session = {{ json = \"/sessionId\", query = \"{query}\" }} }}")
}

fn tenants(database: &Database<'_>) -> Vec<Vec<String>> {
    database.rows("SELECT tenant_id, count(*)::text FROM tenant_usage_realtime GROUP BY 1 ORDER BY 1")
}

fn charged(tenant: &str, calls: usize) -> Vec<Vec<String>> {
    vec![vec![tenant.to_owned(), calls.to_string()]]
}

#[tokio::test]
async fn a_session_is_looked_up_and_recorded_as_one_however_it_is_written() {
    let (upstream, database, gateway) = with_uuids(&format!("[{}]", looked_up_in("chat_sessions")), "").await;
    for spelling in spellings(SESSION) {
        let response = gateway.ask(in_session(&spelling)).await;
        assert_eq!(response.status, 200, "{spelling}");
        let policy = response.header("ratelimit-policy").unwrap_or_default();
        assert!(policy.contains("q=100000"), "its plan is found: {policy}");
    }
    let unlike = format!(" {SESSION}");
    assert_eq!(told(&gateway.ask(in_session(&unlike)).await), (400, "tenant_unidentified".to_owned()));
    let seen: Vec<Value> = upstream.requests().iter().map(|seen| seen.json()["sessionId"].clone()).collect();
    assert_eq!(seen, spellings(SESSION), "the service gets it as it came");
    gateway.stop().await;
    assert_eq!(tenants(&database), charged(TENANT, 5));
    assert_eq!(
        database.one("SELECT string_agg(DISTINCT chat_session_id, ' ') FROM tenant_usage_realtime"),
        SESSION
    );
}

#[tokio::test]
async fn a_service_that_keeps_its_uuids_as_texts_in_capitals_is_asked_so_too() {
    let (_upstream, database, gateway) = with_uuids(&format!("[{}]", looked_up_in("kept_as_text")), "").await;
    assert_eq!(gateway.ask(in_session(TEXT_SESSION)).await.status, 200);
    assert_eq!(gateway.ask(in_session(&TEXT_SESSION.to_lowercase())).await.status, 400, "to the service too");
    gateway.stop().await;
    assert_eq!(tenants(&database), charged(TENANT, 1));
    assert_eq!(database.one("SELECT chat_session_id FROM tenant_usage_realtime"), TEXT_SESSION);
}

#[tokio::test]
async fn a_token_agrees_with_its_session_in_any_spelling_and_charges_one_tenant() {
    let sources = format!("[{}, {}]", hs256(), looked_up_in("chat_sessions"));
    let (_upstream, database, gateway) = with_uuids(&sources, "").await;
    for spelling in spellings(TENANT) {
        let token = token(&claims(&spelling, 3600));
        assert_eq!(gateway.ask(bearer(in_session(SESSION), &token)).await.status, 200, "{spelling}");
        assert_eq!(
            gateway.ask(bearer(ask(&json!({"message": "hi"})), &token)).await.status,
            200,
            "{spelling}"
        );
    }
    let other = token(&claims(&TENANT.replace('a', "b").to_uppercase(), 3600));
    assert_eq!(
        told(&gateway.ask(bearer(in_session(SESSION), &other)).await),
        (403, "tenant_mismatch".to_owned())
    );
    gateway.stop().await;
    assert_eq!(tenants(&database), charged(TENANT, 10));
}

#[tokio::test]
async fn spellings_of_a_tenant_share_one_quota_wherever_they_stand() {
    let sources = "[{ header = \"x-tenant-id\" }, { query = \"tenant\" }, { json = \"/tenantId\" }]";
    let limit = format!(
        "[overrides.\"{}\"]\nchat_messages_per_day = 3\n[[routes]]\npath = \"/t/{{tenant}}/chat\"\n\
         event = \"chat_message\"\ncharge = true\nsources = [{{ path = \"tenant\" }}]\n[[routes]]\npath = \"/api/widget/chat\"\n\
         event = \"chat_message\"\n",
        TENANT.to_uppercase()
    );
    let (_upstream, database, gateway) = with_uuids(sources, &limit).await;
    let [plain, capitals, braces, bare, _] = spellings(TENANT);
    let hi = json!({"message": "hi"});
    let by_path = request("POST", &format!("/t/{bare}/chat")).json(&hi);
    let by_query = request("POST", &format!("/api/widget/chat?tenant=%7B{plain}%7D")).json(&hi);
    let by_header = ask(&hi).header("x-tenant-id", &capitals);
    let by_body = ask(&json!({"message": "hi", "tenantId": braces}));
    let mut statuses = Vec::new();
    for request in [by_path, by_query, by_header, by_body] {
        statuses.push(gateway.ask(request).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429]);
    let used = gateway.operate(request("GET", &format!("/api/admin/tenants/{capitals}/quota"))).await;
    assert_eq!((used.status, used.json()["tenantId"].as_str()), (200, Some(TENANT)), "{}", used.text());
    gateway.stop().await;
    assert_eq!(tenants(&database), charged(TENANT, 4));
}

#[tokio::test]
async fn a_tenant_that_only_the_answer_names_is_recorded_as_itself() {
    let upstream =
        Upstream::answering(|_| answer(200).json(&json!({"tenantId": TENANT.to_uppercase()}))).await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).start().await;
    assert_eq!(gateway.ask(request("POST", "/api/trial/start").json(&json!({}))).await.status, 200);
    gateway.stop().await;
    assert_eq!(tenants(&database), charged(TENANT, 1));
}

#[tokio::test]
async fn an_operators_override_is_the_tenants_however_it_was_written() {
    let (_upstream, database, gateway) = with_uuids("[{ header = \"x-tenant-id\" }]", "").await;
    let [plain, capitals, braces, ..] = spellings(TENANT);
    let path = |id: &str| format!("/api/admin/tenants/{}/quota", id.replace('{', "%7B").replace('}', "%7D"));
    let set = request("PUT", &path(&capitals)).json(&json!({"chat_messages_per_day": 1, "reason": "a try"}));
    let set = gateway.operate(set).await;
    assert_eq!(set.status, 200, "{}", set.text());
    let hi = || ask(&json!({"message": "hi"})).header("x-tenant-id", &plain);
    assert_eq!([gateway.ask(hi()).await.status, gateway.ask(hi()).await.status], [200, 429]);
    assert_eq!(gateway.operate(request("DELETE", &path(&braces))).await.status / 100, 2);
    assert_eq!(gateway.ask(hi()).await.status, 200);
    gateway.stop().await;
    assert_eq!(
        database.one("SELECT string_agg(DISTINCT tenant_id, ' ') FROM tenant_quota_overrides"),
        TENANT
    );
}

#[tokio::test]
async fn ids_that_are_no_uuids_stay_apart_in_their_spellings() {
    let (_upstream, database, gateway) = with_uuids("[{ json = \"/tenantId\" }]", "").await;
    for tenant in ["tn_one", "TN_one"] {
        assert_eq!(gateway.ask(ask(&json!({"message": "hi", "tenantId": tenant}))).await.status, 200);
    }
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(DISTINCT tenant_id) FROM tenant_usage_realtime"), "2");
}
