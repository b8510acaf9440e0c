//! Who is calling: the sources of the config, and faults 89 to 93.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::gate;
use crate::harness::{RequestText, Response, TestGateway, Upstream, answer, batch_answer, gateway, request};
use crate::postgres::{Database, shared};

pub(super) const SECRET: &str = "a-secret-of-the-tests-of-32-bytes";
const SESSION_QUERY: &str = "SELECT tenant_id::text FROM chat_sessions WHERE session_id::text = $1";

pub(super) fn session_source() -> String {
    format!("{{ session = {{ json = \"/sessionId\", query = \"{SESSION_QUERY}\" }} }}")
}

pub(super) fn hs256() -> String {
    "{ jwt = { claim = \"tenantId\", secret_env = \"TEST_JWT_SECRET\" } }".to_owned()
}

pub(super) async fn with_sources(
    sources: &[String],
    tenant: &str,
) -> (Upstream, Database<'static>, TestGateway) {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    database.rows(
        "CREATE TABLE chat_sessions (session_id text PRIMARY KEY, tenant_id text);
         CREATE TABLE trial_tenants (tenant_id text PRIMARY KEY, plan_upgraded_to text);
         INSERT INTO chat_sessions VALUES ('s-one', 'tn_one'), ('s-starter', 'tn_starter');
         INSERT INTO trial_tenants VALUES ('tn_one', NULL), ('tn_starter', 'starter')",
    );
    let running = gateway(&upstream, &database)
        .sources(&format!("[{}]\n{tenant}", sources.join(", ")))
        .env("TEST_JWT_SECRET", SECRET)
        .start()
        .await;
    (upstream, database, running)
}

pub(super) fn ask(body: &Value) -> RequestText {
    request("POST", "/api/widget/chat").json(body)
}

pub(super) fn in_session(session: &str) -> RequestText {
    ask(&json!({"sessionId": session, "messages": [{"query": "hi"}]}))
}

pub(super) fn claims(tenant: &str, expires_in: i64) -> Value {
    json!({"tenantId": tenant, "type": "access", "exp": jiff::Timestamp::now().as_second() + expires_in})
}

pub(super) fn token(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).expect("a token")
}

pub(super) fn bearer(request: RequestText, token: &str) -> RequestText {
    request.header("authorization", &format!("Bearer {token}"))
}

pub(super) fn told(response: &Response) -> (u16, String) {
    (response.status, response.json()["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_session_names_the_tenant_and_the_services_table_its_plan() {
    let (_upstream, database, gateway) = with_sources(&[session_source()], "").await;
    assert_eq!(gateway.ask(in_session("s-one")).await.status, 200);
    let starter = gateway.ask(in_session("s-starter")).await;
    assert!(
        starter.header("ratelimit-policy").is_some_and(|policy| policy.contains("q=100000")),
        "{}",
        starter.head
    );
    let unknown = gateway.ask(in_session("s-nobody")).await;
    assert_eq!(told(&unknown), (400, "tenant_unidentified".to_owned()));
    gateway.stop().await;
    assert_eq!(
        database.one("SELECT string_agg(tenant_id, ',' ORDER BY event_timestamp) FROM tenant_usage_realtime"),
        "tn_one,tn_starter"
    );
}

#[tokio::test]
async fn a_verified_token_names_the_tenant_and_no_other_token_does() {
    let (upstream, database, gateway) = with_sources(&[hs256(), session_source()], "").await;
    let good = gateway.ask(bearer(in_session("s-one"), &token(&claims("tn_one", 3600)))).await;
    assert_eq!(good.status, 200);
    let forged = {
        let key = EncodingKey::from_secret(b"another-secret-of-at-least-32-bytes");
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims("tn_one", 3600), &key).expect("a token")
    };
    let none = {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(&json!({"alg": "none", "typ": "JWT"})), part(&claims("tn_one", 3600)))
    };
    let endless = token(&json!({"tenantId": "tn_one"}));
    let nobody = token(&json!({"tenantId": 7, "exp": jiff::Timestamp::now().as_second() + 3600}));
    let expired = token(&claims("tn_one", -3600));
    let critical = {
        let header = Header { crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::HS256) };
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        jsonwebtoken::encode(&header, &claims("tn_one", 3600), &key).expect("a token")
    };
    let prefixed = format!("x{}", token(&claims("tn_one", 3600)));
    for (name, bad) in [
        ("forged", forged),
        ("alg none", none),
        ("without exp", endless),
        ("a claim that is no text", nobody),
        ("expired", expired),
        ("with what is critical and not known", critical),
        ("prefixed", prefixed),
        ("empty", String::new()),
        ("not a token", "abc".to_owned()),
        ("with something after it", format!("{} x", token(&claims("tn_one", 3600)))),
    ] {
        let refused = gateway.ask(bearer(in_session("s-one"), &bad)).await;
        assert_eq!(told(&refused), (401, "token_invalid".to_owned()), "{name}");
    }
    assert_eq!(upstream.requests().len(), 1);
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "1", "a refusal leaves no row");
}

#[tokio::test]
async fn a_token_that_contradicts_the_session_is_refused_and_audited_without_the_token() {
    let (upstream, database, gateway) = with_sources(&[hs256(), session_source()], "").await;
    let other = token(&claims("tn_other", 3600));
    let refused = gateway.ask(bearer(in_session("s-one"), &other)).await;
    assert_eq!(told(&refused), (403, "tenant_mismatch".to_owned()));
    assert!(upstream.requests().is_empty());
    gateway.stop().await;
    let trail = database
        .rows("SELECT event_type, category, tenant_id, result, to_jsonb(a)::text FROM audit_events a");
    assert_eq!(trail.len(), 1);
    assert_eq!(trail[0][..4], ["security_violation", "security", "tn_other", "failure"]);
    assert!(!trail[0][4].contains(&other), "the token is not recorded");
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "0");
}

/// A key pair made by openssl: the private and the public PEM.
fn key_pair(dir: &Path, arguments: &[&str]) -> (Vec<u8>, std::path::PathBuf) {
    let (private, public) = (dir.join("private.pem"), dir.join("public.pem"));
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().expect("openssl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let private_text = private.to_str().expect("a text path");
    run(&[&["genpkey"], arguments, &["-out", private_text]].concat());
    run(&["pkey", "-in", private_text, "-pubout", "-out", public.to_str().expect("a text path")]);
    (std::fs::read(&private).expect("the private key"), public)
}

#[tokio::test]
async fn tokens_of_a_public_key_are_verified_by_its_pem_file() {
    let ec = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let rsa = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
    for (algorithm, name, arguments) in
        [(Algorithm::ES256, "ES256", &ec[..]), (Algorithm::RS256, "RS256", &rsa[..])]
    {
        let dir = tempfile::tempdir().expect("a directory");
        let (private, public) = key_pair(dir.path(), arguments);
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_pem(&private),
            _ => EncodingKey::from_rsa_pem(&private),
        };
        let signed = |claims: &Value| {
            jsonwebtoken::encode(&Header::new(algorithm), claims, key.as_ref().expect("a key"))
                .expect("a token")
        };
        let source = format!(
            "{{ jwt = {{ claim = \"tenantId\", public_key_file = \"{}\", algorithm = \"{name}\" }} }}",
            public.display()
        );
        let (_upstream, database, gateway) = with_sources(&[source], "").await;
        assert_eq!(
            gateway.ask(bearer(in_session("x"), &signed(&claims("tn_pem", 3600)))).await.status,
            200,
            "{name}"
        );
        // A public key is no HMAC secret: the classic confusion of algorithms.
        let confused = {
            let key = EncodingKey::from_secret(&std::fs::read(&public).expect("the public key"));
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims("tn_pem", 3600), &key)
                .expect("a token")
        };
        assert_eq!(gateway.ask(bearer(in_session("x"), &confused)).await.status, 401, "{name}");
        gateway.stop().await;
        assert_eq!(database.one("SELECT tenant_id FROM tenant_usage_realtime"), "tn_pem");
    }
}

#[tokio::test]
async fn fault_89_two_authorization_headers_or_one_joined_by_commas_are_refused() {
    let (upstream, _database, gateway) = with_sources(&[hs256(), session_source()], "").await;
    let good = token(&claims("tn_one", 3600));
    let twice = bearer(bearer(in_session("s-one"), &good), &good);
    assert_eq!(told(&gateway.ask(twice).await), (401, "token_invalid".to_owned()));
    let mixed = bearer(in_session("s-one").header("authorization", "Basic YTpi"), &good);
    assert_eq!(told(&gateway.ask(mixed).await), (401, "token_invalid".to_owned()));
    // The last is the one to fear: read as Basic it shows no token, and a service behind might find one.
    for joined in [
        "Bearer TOKEN, Bearer TOKEN",
        "Bearer TOKEN,Bearer TOKEN",
        "Bearer TOKEN, Basic YTpi",
        "Basic YTpi, Bearer TOKEN",
    ] {
        let joined = in_session("s-one").header("authorization", &joined.replace("TOKEN", &good));
        assert_eq!(told(&gateway.ask(joined).await), (401, "token_invalid".to_owned()));
    }
    assert!(upstream.requests().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn another_scheme_shows_no_token_and_the_session_names_the_tenant() {
    let (upstream, database, gateway) = with_sources(&[hs256(), session_source()], "").await;
    let digest = "Digest username=\"a\", realm=\"b, c\"";
    for other in ["Basic YTpi", digest] {
        assert_eq!(gateway.ask(in_session("s-one").header("authorization", other)).await.status, 200);
    }
    assert_eq!(upstream.requests()[1].header("authorization").as_deref(), Some(digest));
    gateway.stop().await;
    assert_eq!(database.one("SELECT string_agg(tenant_id, ',') FROM tenant_usage_realtime"), "tn_one,tn_one");
}

#[tokio::test]
async fn a_token_names_the_tenant_of_a_session_that_is_not_known_or_not_given() {
    let (_upstream, database, gateway) = with_sources(&[hs256(), session_source()], "").await;
    let good = token(&claims("tn_one", 3600));
    assert_eq!(gateway.ask(bearer(in_session("s-nobody"), &good)).await.status, 200);
    assert_eq!(gateway.ask(bearer(ask(&json!({"messages": [{"query": "hi"}]})), &good)).await.status, 200);
    gateway.stop().await;
    assert_eq!(database.one("SELECT string_agg(tenant_id, ',') FROM tenant_usage_realtime"), "tn_one,tn_one");
}

#[tokio::test]
async fn without_its_secret_no_token_is_believed() {
    let source = "{ jwt = { claim = \"tenantId\", secret_env = \"TEST_JWT_NOT_SET\" } }".to_owned();
    let (upstream, database, gateway) = with_sources(&[source, session_source()], "").await;
    let good = token(&claims("tn_one", 3600));
    assert_eq!(
        told(&gateway.ask(bearer(in_session("s-one"), &good)).await),
        (401, "token_invalid".to_owned())
    );
    assert_eq!(upstream.connections(), 0);
    super::no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_90_forwarding_headers_are_believed_only_from_trusted_proxies() {
    let (upstream, database, gateway) = gate().await;
    let forged = |path: &str| {
        request("GET", path)
            .header("x-forwarded-for", "6.6.6.6")
            .header("x-real-ip", "6.6.6.6")
            .header("x-forwarded-proto", "https")
    };
    assert_eq!(gateway.ask(forged("/page")).await.status, 200);
    let seen = &upstream.requests()[0];
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!((seen.header("x-real-ip"), seen.header("forwarded")), (None, None));
    assert_eq!(seen.header("x-forwarded-host").as_deref(), Some("test"));
    assert_eq!(
        gateway.ask(crate::harness::batch("tn_forger", 1).header("x-forwarded-for", "6.6.6.6")).await.status,
        200
    );
    gateway.stop().await;
    let trusting = crate::harness::gateway(&upstream, &database)
        .set("server.trusted_proxies", "127.0.0.0/8")
        .start()
        .await;
    assert_eq!(trusting.ask(forged("/page")).await.status, 200);
    let seen = &upstream.requests()[2];
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("6.6.6.6, 127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto").as_deref(), Some("https"));
    let chat = crate::harness::batch("tn_ip", 1).header("x-forwarded-for", "6.6.6.6");
    assert_eq!(trusting.ask(chat).await.status, 200);
    trusting.stop().await;
    assert_eq!(
        database.one("SELECT DISTINCT host(ip_address) FROM audit_events WHERE tenant_id = 'tn_ip'"),
        "6.6.6.6"
    );
}

#[tokio::test]
async fn fault_91_a_tenant_header_of_a_stranger_is_stripped_and_not_believed() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).set("tenant.trust_header_from", "10.0.0.0/8").start().await;
    let body = json!({"tenantId": "tn_body", "messages": [{"query": "x"}]});
    for path in ["/api/widget/chat", "/elsewhere"] {
        let asked = request("POST", path).header("x-tenant-id", "tn_forged").json(&body);
        assert_eq!(running.ask(asked).await.status, 200);
    }
    assert!(upstream.requests().iter().all(|seen| seen.header("x-tenant-id").is_none()));
    running.stop().await;
    assert_eq!(database.one("SELECT string_agg(tenant_id, ',') FROM tenant_usage_realtime"), "tn_body");
}

#[tokio::test]
async fn fault_92_a_missing_repeated_or_oversized_tenant_is_refused() {
    let (upstream, database, gateway) = gate().await;
    let body = json!({"messages": [{"query": "x"}]});
    let cases = [
        ask(&body),
        ask(&body).header("x-tenant-id", "tn_one").header("x-tenant-id", "tn_two"),
        ask(&body).header("x-tenant-id", &"t".repeat(10_000)),
        ask(&body).header("x-tenant-id", "tn one"),
        ask(&body).header("x-tenant-id", ""),
    ];
    for case in cases {
        assert_eq!(told(&gateway.ask(case).await), (400, "tenant_unidentified".to_owned()));
    }
    assert!(upstream.requests().is_empty());
    super::no_rows(&database, gateway).await;
}

#[tokio::test]
async fn fault_92_no_tenant_becomes_a_label_of_a_metric() {
    let (_upstream, database, gateway) = gate().await;
    for number in 0..20 {
        assert_eq!(gateway.ask(crate::harness::batch(&format!("tn_label_{number}"), 1)).await.status, 200);
    }
    let page = crate::harness::Client::ask(gateway.admin, request("GET", "/metrics")).await.text();
    assert!(page.contains("tollgate_requests_total") && !page.contains("tn_label"), "{page}");
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(DISTINCT tenant_id) FROM tenant_usage_realtime"), "20");
}

#[tokio::test]
async fn fault_93_admin_paths_on_the_public_listener_are_the_upstreams_own() {
    let (upstream, _database, gateway) = gate().await;
    for path in ["/api/admin/usage", "/metrics", "/healthz", "/readyz"] {
        let response = gateway.ask(request("GET", path)).await;
        assert_eq!(response.json()["totalTokens"], json!(7), "{path}");
    }
    assert_eq!(upstream.requests().len(), 4);
    gateway.stop().await;
}

#[tokio::test]
async fn a_pointer_finds_the_tenant_in_the_body_and_only_text_or_a_number_names_one() {
    let (upstream, database, gateway) = with_sources(&["{ json = \"/context/ids/1\" }".to_owned()], "").await;
    let naming =
        |value: Value| ask(&json!({"context": {"ids": ["other", value]}, "messages": [{"query": "x"}]}));
    assert_eq!(gateway.ask(naming(json!("tn_deep"))).await.status, 200);
    assert_eq!(gateway.ask(naming(json!(4711))).await.status, 200);
    for nobody in [
        json!(null),
        json!(true),
        json!({}),
        json!(["tn_deep"]),
        json!(""),
        json!("tn deep"),
        json!("t".repeat(10_000)),
    ] {
        let refused = gateway.ask(naming(nobody.clone())).await;
        assert_eq!(told(&refused), (400, "tenant_unidentified".to_owned()), "{nobody}");
    }
    assert_eq!(upstream.requests().len(), 2);
    gateway.stop().await;
    assert_eq!(
        database.one("SELECT string_agg(tenant_id, ',' ORDER BY event_timestamp) FROM tenant_usage_realtime"),
        "tn_deep,4711"
    );
}

#[tokio::test]
async fn a_query_parameter_can_name_the_tenant_once() {
    let (_upstream, database, gateway) = with_sources(&["{ query = \"tenantId\" }".to_owned()], "").await;
    let body = json!({"messages": [{"query": "x"}]});
    let at = |query: &str| request("POST", &format!("/api/widget/chat{query}")).json(&body);
    assert_eq!(gateway.ask(at("?a=1&tenantId=tn%5Fquery")).await.status, 200);
    assert_eq!(gateway.ask(at("?tenantId=tn_a&tenantId=tn_b")).await.status, 400);
    assert_eq!(gateway.ask(at("")).await.status, 400);
    gateway.stop().await;
    assert_eq!(database.one("SELECT string_agg(tenant_id, ',') FROM tenant_usage_realtime"), "tn_query");
}

#[tokio::test]
async fn unidentified_pass_lets_through_unmetered() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).set("tenant.unidentified", "pass").start().await;
    let body = json!({"messages": [{"query": "x"}]});
    let response = running.ask(ask(&body)).await;
    assert_eq!((response.status, response.header("ratelimit")), (200, None));
    assert_eq!(upstream.requests()[0].json(), body);
    super::no_rows(&database, running).await;
}

#[tokio::test]
async fn a_session_that_cannot_be_looked_up_is_served_on_the_account_of_all_such() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database)
        .sources(&format!("[{}]", session_source()))
        // Nobody listens there: the service's database is away.
        .set("service_database.url", "postgres://nobody@127.0.0.1:1/none")
        .start()
        .await;
    assert_eq!(running.ask(in_session("s-away")).await.status, 200);
    running.stop().await;
    let row = database.one("SELECT concat_ws(' ', tenant_id, chat_session_id, metadata->>'provisional_tenant') FROM tenant_usage_realtime");
    assert_eq!(row, "unresolved s-away true");
}

#[tokio::test]
async fn with_the_services_database_away_the_last_known_tenant_and_plan_hold() {
    // Every answer is stale at once, so that each request asks anew.
    let (_upstream, database, gateway) = with_sources(&[session_source()], "cache_ttl = \"0s\"").await;
    let starter = |response: &Response| {
        response
            .header("ratelimit-policy")
            .is_some_and(|policy| policy.contains("\"api_calls_per_minute\";q=60;"))
    };
    assert!(starter(&gateway.ask(in_session("s-starter")).await));
    database.rows("ALTER TABLE chat_sessions RENAME TO gone; ALTER TABLE trial_tenants RENAME TO gone_too");
    let known = gateway.ask(in_session("s-starter")).await;
    assert!(known.status == 200 && starter(&known), "{}", known.head);
    let unheard_of = gateway.ask(in_session("s-one")).await;
    assert!(unheard_of.status == 200 && !starter(&unheard_of), "on the default plan: {}", unheard_of.head);
    gateway.stop().await;
    assert_eq!(
        database.one("SELECT string_agg(tenant_id, ',' ORDER BY event_timestamp) FROM tenant_usage_realtime"),
        "tn_starter,tn_starter,unresolved"
    );
}

#[tokio::test]
async fn a_token_names_the_tenant_while_the_services_database_is_away() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database)
        .sources(&format!("[{}, {}]", hs256(), session_source()))
        .env("TEST_JWT_SECRET", SECRET)
        .set("service_database.url", "postgres://nobody@127.0.0.1:1/none")
        .start()
        .await;
    let good = token(&claims("tn_one", 3600));
    assert_eq!(running.ask(bearer(in_session("s-away"), &good)).await.status, 200);
    running.stop().await;
    let row = database
        .one("SELECT concat_ws(' ', tenant_id, metadata->>'provisional_tenant') FROM tenant_usage_realtime");
    assert_eq!(row, "tn_one");
}
