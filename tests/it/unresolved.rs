//! Sessions that can't be looked up, look-ups that can never be answered, and tenants that anyone can name.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::harness::{
    RequestText, Response, TestGateway, Upstream, answer, batch_answer, gateway, request, within,
};
use crate::postgres::{Database, shared};

const TABLES: &str = "
    CREATE TABLE chat_sessions (session_id uuid PRIMARY KEY, tenant_id text);
    CREATE TABLE trial_tenants (tenant_id text PRIMARY KEY, plan_upgraded_to text);
    INSERT INTO chat_sessions SELECT session(n), 'tn_' || n FROM generate_series(1, 40) n;
    INSERT INTO trial_tenants VALUES ('tn_1', 'pro')";

/// Nobody listens there.
const AWAY: &str = "postgres://nobody@127.0.0.1:1/none";

fn session(n: usize) -> String {
    format!("00000000-0000-4000-8000-{n:012}")
}

/// A database with the service's tables.
fn database() -> Database<'static> {
    let database = shared().database();
    let id = "'00000000-0000-4000-8000-' || lpad(n::text, 12, '0')";
    database.rows(&TABLES.replace("session(n)", &format!("({id})::uuid")));
    database
}

async fn upstream() -> Upstream {
    Upstream::answering(|_| answer(200).json(&batch_answer(7))).await
}

fn source(query: &str) -> String {
    format!("[{{ session = {{ json = \"/sessionId\", query = \"{query}\" }} }}]")
}

fn by_session() -> String {
    source("SELECT tenant_id FROM chat_sessions WHERE session_id::text = $1")
}

fn in_session(session: &str) -> RequestText {
    let body = json!({"sessionId": session, "messages": [{"query": "hi"}]});
    request("POST", "/api/widget/chat").json(&body)
}

fn told(response: &Response) -> (u16, String) {
    (response.status, response.json()["code"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the query says so.
async fn until(database: &Database<'_>, sql: &str, value: &str) {
    let seen = async {
        while database.one(sql) != value {
            tokio::task::yield_now().await;
        }
    };
    within(sql, seen).await;
}

async fn until_status(running: &TestGateway, status: &str) -> Value {
    within("the readiness", async {
        loop {
            let (_, body) = running.readiness().await;
            if body["status"] == status {
                return body;
            }
        }
    })
    .await
}

#[tokio::test]
async fn invented_sessions_share_one_budget_by_address_and_one_in_all() {
    let (upstream, database) = (upstream().await, shared().database());
    let running = gateway(&upstream, &database)
        .sources(&by_session())
        .set("service_database.url", AWAY)
        .set("server.trusted_proxies", "127.0.0.0/8")
        .set("plans.unresolved_client.chat_messages_per_day", "10")
        .set("plans.unresolved.chat_messages_per_day", "15")
        .start()
        .await;
    let from = |client: &'static str, n: usize| in_session(&session(n)).header("x-forwarded-for", client);
    let mut one = Vec::new();
    for n in 0..30 {
        one.push(running.ask(from("203.0.113.1", n)).await);
    }
    let served = |answers: &[Response]| answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(served(&one), 10, "each session is no fresh quota");
    assert_eq!(told(&one[29]), (503, "tenant_unavailable".to_owned()));
    assert!(one[29].header("retry-after").is_some());
    // The networks of 64 bits of two hosts are one party.
    let mut two = Vec::new();
    for n in 30..36 {
        let host = if n % 2 == 0 { "2001:db8::1" } else { "2001:db8::2" };
        two.push(running.ask(from(host, n)).await);
    }
    assert_eq!(served(&two), 5, "what all of them may use together is used up");
    running.stop().await;
    let rows =
        "SELECT concat_ws(' ', count(*), count(DISTINCT chat_session_id), min(tenant_id), max(tenant_id))
        FROM tenant_usage_realtime WHERE outcome = 'completed'";
    assert_eq!(database.one(rows), "15 15 unresolved unresolved");
    assert_eq!(
        database.one("SELECT settled FROM quota_usage WHERE dimension = 'chat_messages_per_day'"),
        "15",
        "and no counter but theirs"
    );
}

#[tokio::test]
async fn sixty_invented_sessions_at_once_use_no_more_than_one_plan_and_what_runs_at_once() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(2_560))).await;
    let database = shared().database();
    let running =
        gateway(&upstream, &database).sources(&by_session()).set("service_database.url", AWAY).start().await;
    let sessions: Vec<String> = (0..60).map(session).collect();
    let calls = sessions.iter().map(|session| running.ask(in_session(session)));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().any(|answer| answer.status == 200));
    running.stop().await;
    let used = database.one("SELECT sum(tokens_consumed) FROM tenant_usage_realtime");
    assert!(used.parse::<u64>().unwrap() <= 10_000 + 5 * 2_560, "{used}");
}

#[tokio::test]
async fn what_was_used_meanwhile_moves_to_the_tenant_once_the_look_up_answers() {
    let (upstream, database) = (upstream().await, database());
    database.rows("ALTER TABLE chat_sessions RENAME TO gone");
    let running = gateway(&upstream, &database).sources(&by_session()).start().await;
    for n in [1, 1, 2, 99] {
        assert_eq!(running.ask(in_session(&session(n))).await.status, 200);
    }
    let charged = |tenant: &str| {
        format!(
            "SELECT coalesce(sum(settled), 0) FROM quota_usage
             WHERE tenant_id = '{tenant}' AND dimension = 'tokens_per_day'"
        )
    };
    until(&database, &charged("unresolved"), "28").await;
    database.rows("SELECT * FROM aggregate_usage_metrics()");
    database.rows("ALTER TABLE gone RENAME TO chat_sessions");
    until(&database, &charged("tn_1"), "14").await;
    let mut seen = String::new();
    for tenant in ["tn_1", "tn_2", "unresolved"] {
        let rows = database.one(&format!(
            "SELECT count(*) || ' ' || count(*) FILTER (WHERE metadata ? 'provisional_tenant') || ' '
                || count(*) FILTER (WHERE metadata ->> 'reassigned_from' = 'unresolved')
             FROM tenant_usage_realtime WHERE tenant_id = '{tenant}'"
        ));
        let aggregated = database.one(&format!(
            "SELECT string_agg(total_tokens_used || '', ' ' ORDER BY period_type) FROM tenant_usage_metrics
             WHERE tenant_id = '{tenant}'"
        ));
        writeln!(
            seen,
            "{tenant}: {} tokens, rows {rows}, aggregated {aggregated}",
            database.one(&charged(tenant))
        )
        .unwrap();
    }
    assert_eq!(
        seen,
        "tn_1: 14 tokens, rows 2 0 2, aggregated 14 14 14\n\
         tn_2: 7 tokens, rows 1 0 1, aggregated 7 7 7\n\
         unresolved: 7 tokens, rows 1 0 0, aggregated 7 7 7\n",
        "a session that there is not stays, and waits no longer"
    );
    let drift = database.store().drift(None).await.unwrap();
    assert_eq!(drift.drifted, 0, "{drift:?}");
    running.stop().await;
}

const KEPT_AS_TEXT: &str = "0F0E0D0C-0000-4000-8000-ABCDEFABCDEF";

#[tokio::test]
async fn what_was_used_moves_where_a_service_keeps_its_uuids_in_capitals_and_another_look_up_stays_away() {
    let (upstream, database) = (upstream().await, database());
    database.rows(&format!(
        "CREATE TABLE kept_as_text (session_id text PRIMARY KEY, tenant_id text);
         CREATE TABLE never_back (session_id text PRIMARY KEY, tenant_id text);
         INSERT INTO kept_as_text VALUES ('{KEPT_AS_TEXT}', 'tn_text')"
    ));
    let of = |table: &str| source(&format!("SELECT tenant_id FROM {table} WHERE session_id::text = $1"));
    let route = |path: &str, table: &str| {
        let sources = of(table);
        format!("[[routes]]\npath = \"{path}\"\nevent = \"chat_message\"\nsources = {sources}\n")
    };
    let running = gateway(&upstream, &database)
        .sources(&of("never_back"))
        .config(&format!("{}{}", route("/never", "never_back"), route("/text", "kept_as_text")))
        .start()
        .await;
    database.rows(
        "ALTER TABLE kept_as_text RENAME TO gone; DROP TABLE never_back; ALTER TABLE chat_sessions RENAME TO other",
    );
    let body = json!({"sessionId": KEPT_AS_TEXT, "message": "hi"});
    let ask = |path: &str| running.ask(request("POST", path).json(&body));
    assert_eq!(ask("/never").await.status, 200);
    assert_eq!(ask("/text").await.status, 200);
    let rows = "SELECT count(*) FROM tenant_usage_realtime WHERE tenant_id = 'unresolved'";
    until(&database, rows, "2").await;
    // Older rows than one look at them takes, none of which is ever answered.
    database.rows(
        "INSERT INTO tenant_usage_realtime SELECT r.* FROM generate_series(1, 600) n, tenant_usage_realtime t,
            jsonb_populate_record(t, jsonb_build_object('event_id', gen_random_uuid(), 'entry_id', nextval('tenant_usage_realtime_entry_id_seq'),
                'event_timestamp', t.event_timestamp - interval '1 second' - n * interval '1 microsecond')) r
         WHERE t.api_endpoint = '/never'",
    );
    database.rows("ALTER TABLE gone RENAME TO kept_as_text");
    let moved = "SELECT concat_ws(' ', tenant_id, chat_session_id, api_endpoint) FROM tenant_usage_realtime
        WHERE tenant_id <> 'unresolved'";
    until(&database, &format!("SELECT coalesce(({moved}), '')"), &format!("tn_text {KEPT_AS_TEXT} /text"))
        .await;
    assert_eq!(
        database.one("SELECT count(*) FROM tenant_usage_realtime WHERE metadata ? 'provisional_tenant'"),
        "601",
        "what has no answer waits on"
    );
    running.stop().await;
}

#[tokio::test]
async fn a_look_up_that_can_never_be_answered_keeps_the_gateway_from_starting() {
    let (upstream, database) = (upstream().await, database());
    for (broken, key, said) in [
        ("SELECT tenant FROM chat_sessions WHERE session_id::text = $1", "tenant.sources[0]", "42703"),
        ("SELEC tenant_id FROM chat_sessions WHERE session_id::text = $1", "tenant.sources[0]", "42601"),
        ("SELECT tenant_id FROM no_such WHERE session_id::text = $1", "tenant.sources[0]", "42P01"),
        ("SELECT tenant_id FROM chat_sessions WHERE session_id = $1", "tenant.sources[0]", "42883"),
    ] {
        let refused = gateway(&upstream, &database)
            .sources(&source(broken))
            .set("service_database.url", &database.url())
            .try_start()
            .await;
        let Err(error) = refused else { panic!("it starts with {broken}") };
        let error = format!("{error:#}");
        for part in [key, said, broken, database.name(), "look_up_check"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
}

#[tokio::test]
async fn one_that_is_only_warned_of_degrades_until_it_is_mended() {
    let (upstream, database) = (upstream().await, database());
    database.rows("CREATE ROLE reader_warned LOGIN; GRANT SELECT ON trial_tenants TO reader_warned");
    let url = shared().url("reader_warned", database.name());
    let running = gateway(&upstream, &database)
        .sources(&by_session())
        .set("service_database.url", &url)
        .set("tenant.look_up_check", "warn")
        .start()
        .await;
    let (status, body) = running.readiness().await;
    let detail = body["parts"]["look_ups"]["detail"].as_str().unwrap().to_owned();
    assert_eq!((status, body["status"].as_str()), (200, Some("degraded")), "{body}");
    assert!(detail.contains("tenant.sources[0].session.query") && detail.contains("42501"), "{detail}");
    assert_eq!(running.ask(in_session(&session(1))).await.status, 200, "out of the shared budget");
    assert_eq!(running.metric("tollgate_look_ups_broken").await, 1.0);
    assert!(running.metric("tollgate_look_ups_total{answer=\"broken\"}").await >= 1.0);
    database.rows("GRANT SELECT ON chat_sessions TO reader_warned");
    until_status(&running, "ok").await;
    running.stop().await;
}

#[tokio::test]
async fn a_look_up_that_breaks_while_it_runs_degrades_at_once() {
    let (upstream, database) = (upstream().await, database());
    let running = gateway(&upstream, &database)
        .sources(&by_session())
        .set("service_database.url", &database.url())
        .start()
        .await;
    assert_eq!(running.ask(in_session(&session(1))).await.status, 200);
    database.rows("ALTER TABLE chat_sessions RENAME COLUMN tenant_id TO owner");
    assert_eq!(running.ask(in_session(&session(2))).await.status, 200, "out of the shared budget");
    until_status(&running, "degraded").await;
    running.stop().await;
}

#[tokio::test]
async fn rows_that_row_level_security_hides_are_told_and_those_that_a_policy_shows_are_not() {
    let (upstream, database) = (upstream().await, database());
    database.rows(
        "CREATE ROLE reader_rls LOGIN; GRANT SELECT ON chat_sessions, trial_tenants TO reader_rls;
         ALTER TABLE chat_sessions ENABLE ROW LEVEL SECURITY; ALTER TABLE trial_tenants ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON trial_tenants USING (tenant_id = current_setting('app.tenant', true));
         ANALYZE",
    );
    let url = shared().url("reader_rls", database.name());
    let running =
        gateway(&upstream, &database).sources(&by_session()).set("service_database.url", &url).start().await;
    let (_, body) = running.readiness().await;
    let detail = body["parts"]["look_ups"]["detail"].as_str().unwrap().to_owned();
    assert_eq!(body["status"], "degraded", "{body}");
    for part in ["row-level security", "chat_sessions", "trial_tenants", "reader_rls", "tenant.plan_query"] {
        assert!(detail.contains(part), "{part} is not in {detail}");
    }
    database.rows(
        "CREATE POLICY tollgate ON chat_sessions FOR SELECT TO reader_rls USING (true);
         CREATE POLICY tollgate ON trial_tenants FOR SELECT TO reader_rls USING (true)",
    );
    until_status(&running, "ok").await;
    running.stop().await;
}

#[tokio::test]
async fn a_database_that_is_busy_serves_nobody_for_free() {
    let (upstream, database) = (upstream().await, database());
    let slow = "SELECT tenant_id FROM chat_sessions, pg_sleep(0.15) WHERE session_id::text = $1";
    let running = gateway(&upstream, &database)
        .sources(&source(slow))
        .set("service_database.url", &database.url())
        .set("service_database.pool_size", "1")
        .set("tenant.plan_query", "")
        .start()
        .await;
    let sessions: Vec<String> = (1..30).map(session).collect();
    let asked = sessions.iter().map(|session| running.ask(in_session(session)));
    let answers = futures_util::future::join_all(asked).await;
    let busy: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!busy.is_empty() && busy.len() < answers.len(), "{} of {}", busy.len(), answers.len());
    for answer in busy {
        assert_eq!(told(answer), (503, "tenant_unavailable".to_owned()));
        assert!(answer.header("retry-after").is_some());
    }
    running.stop().await;
    assert_eq!(
        database.one("SELECT count(*) FROM tenant_usage_realtime WHERE tenant_id = 'unresolved'"),
        "0",
        "those who were served were looked up"
    );
}

#[tokio::test]
async fn a_session_that_is_no_uuid_is_nobodys_and_stops_nobodys_look_up() {
    let (upstream, database) = (upstream().await, database());
    let cast = "SELECT tenant_id FROM chat_sessions WHERE session_id = $1::uuid";
    let running = gateway(&upstream, &database)
        .sources(&source(cast))
        .set("service_database.url", &database.url())
        .set("tenant.unknown_session", "not_found")
        .start()
        .await;
    for _ in 0..3 {
        let unknown = running.ask(in_session("no-uuid")).await;
        assert_eq!(told(&unknown), (404, "session_not_found".to_owned()));
        assert_eq!(unknown.json()["error"], "Session not found");
    }
    assert_eq!(running.ask(in_session(&session(1))).await.status, 200);
    running.stop().await;
    assert_eq!(database.one("SELECT string_agg(tenant_id, ' ') FROM tenant_usage_realtime"), "tn_1");
}

#[tokio::test]
async fn an_unknown_session_is_answered_as_the_config_says() {
    let (upstream, database) = (upstream().await, database());
    for (says, status, code) in
        [("not_found", 404, "session_not_found"), ("reject", 400, "tenant_unidentified")]
    {
        let running = gateway(&upstream, &database)
            .sources(&by_session())
            .set("tenant.unknown_session", says)
            .start()
            .await;
        assert_eq!(told(&running.ask(in_session(&session(99))).await), (status, code.to_owned()));
        running.stop().await;
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn whoever_names_a_tenant_in_the_session_call_uses_up_nothing_of_it() {
    let upstream = Upstream::answering(|_| answer(201).json(&json!({"sessionId": "s"}))).await;
    let database = database();
    let running = gateway(&upstream, &database).start().await;
    let claim = |tenant: String| {
        request("POST", "/api/widget/session").json(&json!({"tenantId": tenant, "visitorId": "v"}))
    };
    for n in 0..60 {
        let victim = running.ask(claim("tn_victim".to_owned())).await;
        assert_eq!((victim.status, victim.header("ratelimit")), (201, None));
        assert_eq!(running.ask(claim(format!("tn_made_up_{n}"))).await.status, 201);
    }
    upstream.answer_with(|_| answer(200).json(&batch_answer(7)));
    let chat = running.ask(crate::harness::chat("tn_victim", "hi")).await;
    assert_eq!(chat.status, 200, "{}", chat.head);
    let upgrade = request("POST", "/api/admin/trials/tn_victim/upgrade").json(&json!({"plan": "pro"}));
    assert_eq!(running.ask(upgrade).await.status, 200);
    running.stop().await;
    assert_eq!(database.one("SELECT string_agg(DISTINCT tenant_id, ' ') FROM quota_usage"), "tn_victim");
    assert_eq!(
        database.one("SELECT settled FROM quota_usage WHERE dimension = 'api_calls_per_minute'"),
        "1",
        "the chat's"
    );
    assert_eq!(
        database.one("SELECT count(*) FROM tenant_usage_realtime WHERE api_endpoint = '/api/widget/session'"),
        "120",
        "they are recorded all the same"
    );
    let drift = database.store().drift(None).await.unwrap();
    assert_eq!(drift.drifted, 0, "{drift:?}");
}
