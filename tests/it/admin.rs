//! The admin listener over a real socket, with a real Postgres behind it.

#![allow(clippy::unwrap_used)] // the harness is a test too; clippy only knows functions marked so

mod desk;
mod overrides;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tollgate::admin::Status;

use self::desk::{CRON, OPERATOR, Setup, VIEWER, day, period};
use crate::postgres;

// Usage

#[tokio::test]
async fn a_tenants_usage_is_exact_to_the_last_digit() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    let today = day(0);
    desk.sql(&period("tn_one", "daily", &today, 3, 9_007_199_254_740_993, "123456789012.12345678", "12.50"))
        .await;
    desk.sql(&period("tn_one", "hourly", &today, 1, 1, "0", "NULL")).await;
    desk.sql(&period("tn_two", "daily", &today, 1, 1, "0", "NULL")).await;
    desk.sql(
        "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, tokens_consumed, cost_usd,
            streamed, metadata)
         VALUES (gen_random_uuid(), 'tn_one', 'chat_message', '2026-01-02T03:04:05.678901Z', 42, 0.00000123, true,
            '{\"flag\": [1]}'), (gen_random_uuid(), 'tn_two', 'chat_message', now(), 1, 0, false, '{}')",
    )
    .await;

    let answer = desk.get("/api/admin/usage?tenantId=tn_one").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.contains("\"total_tokens_used\":9007199254740993"), "{}", answer.body);
    assert!(answer.body.contains("\"estimated_cost_usd\":123456789012.12345678"), "{}", answer.body);
    let body = answer.json();
    assert_eq!(body["tenantId"], "tn_one");
    assert_eq!(body["period"], "daily");
    assert_eq!(body["usage"].as_array().unwrap().len(), 1);
    assert_eq!(body["usage"][0]["period_start"], format!("{today}T00:00:00.000000Z"));
    assert_eq!(body["usage"][0]["quota_limit"], Value::Null);
    assert_eq!(body["quota"]["plan"], "trial");
    let tokens = &body["quota"]["quotas"]["tokens"];
    assert_eq!(
        (&tokens["limit"], &tokens["used"], &tokens["remaining"]),
        (&json!(10_000), &json!(1_000), &json!(9_000))
    );
    assert_eq!(tokens["percentage"], 10.0);
    assert_eq!(body["quota"]["quotas"]["embeddings"]["limit"], Value::Null);
    assert_eq!(body["quota"]["anyExceeded"], false);
    let events = body["recentEvents"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["event_timestamp"], "2026-01-02T03:04:05.678901Z");
    assert_eq!(events[0]["tokens_consumed"], 42);
    assert_eq!(events[0]["streamed"], true);
    assert_eq!(events[0]["metadata"], json!({ "flag": [1] }));
    assert_eq!(body["aggregatedAt"], Value::Null);
    desk.close().await;
}

#[tokio::test]
async fn a_tenants_recent_events_are_its_last_ones_however_long_ago_the_latest_first() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    let days = [0, 3, 20, 400, 1, 8, 6, 30];
    for (number, ago) in (0..60).zip(days.iter().cycle()) {
        desk.sql(&format!(
            "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, request_id)
             VALUES (gen_random_uuid(), 'tn_one', 'api_call', now() - interval '{ago} days {number} seconds', '{ago}')"
        ))
        .await;
    }
    let events = desk.get("/api/admin/usage?tenantId=tn_one").await.json()["recentEvents"].clone();
    let seen: Vec<i64> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["request_id"].as_str().unwrap().parse().unwrap())
        .collect();
    let mut all: Vec<i64> = (0..60).zip(days.iter().cycle()).map(|(_, ago)| *ago).collect();
    all.sort_unstable();
    assert_eq!(seen, all[..50]);
    desk.close().await;
}

#[tokio::test]
async fn usage_rows_have_the_columns_of_the_table_and_a_metric_chooses_among_them() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    desk.sql(&period("tn_one", "daily", &day(0), 3, 5, "1", "NULL")).await;
    let client = desk.store.client().await.unwrap();
    let sql =
        "SELECT column_name::text FROM information_schema.columns WHERE table_name = 'tenant_usage_metrics'";
    let mut columns: Vec<String> =
        client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    columns.sort();

    let keys = async |metric: &str| {
        let body = desk.get(&format!("/api/admin/usage?tenantId=tn_one&metric={metric}")).await.json();
        let mut keys: Vec<String> = body["usage"][0].as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    assert_eq!(keys("all").await, columns);
    let (tokens, cost, calls) = (keys("tokens").await, keys("cost").await, keys("api_calls").await);
    let has = |keys: &[String], name: &str| keys.iter().any(|key| key == name);
    assert!(has(&tokens, "total_tokens_used") && !has(&tokens, "estimated_cost_usd"));
    assert!(has(&cost, "estimated_cost_usd") && !has(&cost, "total_tokens_used"));
    assert!(has(&calls, "api_calls_total") && has(&calls, "tenant_id") && !has(&calls, "estimated_cost_usd"));
    drop(client);
    desk.close().await;
}

#[tokio::test]
async fn everyones_usage_is_summed_and_ordered_by_what_is_asked() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    let (today, yesterday) = (day(0), day(1));
    desk.sql(&period("tn_tokens", "daily", &today, 10, 900, "0.5", "10")).await;
    desk.sql(&period("tn_tokens", "daily", &yesterday, 10, 100, "0.25", "30")).await;
    desk.sql(&period("tn_cost", "daily", &today, 5, 10, "0.90000001", "NULL")).await;
    desk.sql(&period("tn_calls", "daily", &today, 80, 20, "0.1", "100")).await;
    desk.sql(&period("tn_hourly", "hourly", &today, 80, 20, "0.1", "100")).await;

    let answer = desk.get("/api/admin/usage").await;
    assert!(answer.body.contains("\"total_cost\":1.75000001"), "{}", answer.body);
    let body = answer.json();
    let summary = &body["summary"];
    assert_eq!(summary["total_tenants"], 3);
    assert_eq!(summary["total_api_calls"], 105);
    assert_eq!(summary["total_tokens"], 1030);
    // (10·10 + 10·30 + 80·100) ÷ 100: weighted by calls, and without those whose latency is not known.
    assert_eq!(summary["avg_latency_ms"], 84.0);
    let order = async |metric: &str| {
        let body = desk.get(&format!("/api/admin/usage?metric={metric}")).await.json();
        let top = body["topConsumers"].as_array().unwrap().clone();
        top.iter().map(|row| row["tenant_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(order("all").await, ["tn_tokens", "tn_calls", "tn_cost"]);
    assert_eq!(order("tokens").await, ["tn_tokens", "tn_calls", "tn_cost"]);
    assert_eq!(order("cost").await, ["tn_cost", "tn_tokens", "tn_calls"]);
    assert_eq!(order("api_calls").await, ["tn_calls", "tn_tokens", "tn_cost"]);
    desk.close().await;
}

#[tokio::test]
async fn who_is_at_a_limit_in_a_window_that_holds_now_is_listed() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    desk.sql(
        "INSERT INTO quota_usage (tenant_id, dimension, window_start, window_end, settled, limit_value) VALUES
            ('tn_over', 'tokens_per_day', now() - interval '1 hour', now() + interval '1 hour', 10500, 10000),
            ('tn_at', 'tokens_per_day', now() - interval '1 hour', now() + interval '1 hour', 10000, 10000),
            ('tn_under', 'tokens_per_day', now() - interval '1 hour', now() + interval '1 hour', 9999, 10000),
            ('tn_unlimited', 'tokens_per_day', now() - interval '1 hour', now() + interval '1 hour', 9999999, NULL),
            ('tn_yesterday', 'tokens_per_day', now() - interval '25 hours', now() - interval '1 hour', 10500, 10000)",
    )
    .await;
    let body = desk.get("/api/admin/usage").await.json();
    let exceeding = body["exceedingQuota"].as_array().unwrap();
    let seen: Vec<_> =
        exceeding.iter().map(|row| (row["tenant_id"].as_str().unwrap(), &row["used"])).collect();
    assert_eq!(seen, [("tn_over", &json!(10_500)), ("tn_at", &json!(10_000))]);
    assert_eq!(exceeding[0]["dimension"], "tokens_per_day");
    assert_eq!(exceeding[0]["limit"], 10_000);
    assert!(exceeding[0]["resets_at"].as_str().unwrap().parse::<Timestamp>().unwrap() > Timestamp::now());
    desk.close().await;
}

#[tokio::test]
async fn a_range_holds_its_start_and_not_its_end() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    for day in ["2026-03-01", "2026-03-02", "2026-03-03"] {
        desk.sql(&period("tn_one", "daily", &format!("{day}T00:00:00Z"), 1, 1, "1", "1")).await;
    }
    let days = async |query: &str| {
        let body = desk.get(&format!("/api/admin/usage?tenantId=tn_one&{query}")).await.json();
        let rows = body["usage"].as_array().unwrap().clone();
        rows.iter().map(|row| row["period_start"].as_str().unwrap()[..10].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(days("startDate=2026-03-01&endDate=2026-03-03").await, ["2026-03-02", "2026-03-01"]);
    assert_eq!(
        days("startDate=2026-03-01T00:00:00.000001Z&endDate=2026-03-04").await,
        ["2026-03-03", "2026-03-02"]
    );
    assert_eq!(days("startDate=2026-03-02T01:00:00%2B01:00&endDate=2026-03-03").await, ["2026-03-02"]);
    desk.close().await;
}

#[tokio::test]
async fn pages_hold_every_row_once_ties_included() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    for hour in 0..7 {
        desk.sql(&period("tn_a", "hourly", &format!("2026-03-01T0{hour}:00:00Z"), 1, 5, "0.5", "1")).await;
    }
    for tenant in ["tn_b", "tn_c", "tn_d", "tn_e"] {
        desk.sql(&period(tenant, "hourly", "2026-03-01T00:00:00Z", 1, 5, "0.5", "1")).await;
    }
    desk.sql(
        "INSERT INTO audit_events (event_type, category, action, actor_type, entity_id, \"timestamp\")
         SELECT 'api_error', 'error', 'execute', 'system', n, '2026-03-01T00:00:00Z'::timestamptz + (n / 3) * interval '1 second'
         FROM generate_series(1, 8) n",
    )
    .await;
    let range = "startDate=2026-03-01&endDate=2026-03-02&limit=2";
    let target = format!("/api/admin/usage?period=hourly&{range}");
    let hours = desk.pages(&format!("{target}&tenantId=tn_a"), "usage", "period_start").await;
    let expected: Vec<String> =
        (0..7).rev().map(|hour| format!("2026-03-01T0{hour}:00:00.000000Z")).collect();
    assert_eq!(hours, expected);
    for metric in ["tokens", "cost"] {
        let tenants = desk.pages(&format!("{target}&metric={metric}"), "topConsumers", "tenant_id").await;
        assert_eq!(tenants, ["tn_a", "tn_b", "tn_c", "tn_d", "tn_e"]);
    }
    let mut events = desk.pages(&format!("/api/admin/audit?{range}"), "events", "entity_id").await;
    assert!(events[0] > events[7], "latest first: {events:?}");
    events.sort();
    assert_eq!(events, ["1", "2", "3", "4", "5", "6", "7", "8"]);
    desk.close().await;
}

#[tokio::test]
async fn csv_is_given_to_those_who_ask_and_holds_no_formula() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    desk.sql(&period("=1+1", "daily", &day(0), 2, 5, "1.5", "7")).await;
    desk.sql(&period("tn_one", "daily", &day(0), 1, 4, "0.25", "NULL")).await;
    let csv = ("accept", "text/csv");
    let all = desk.call("GET", "/api/admin/usage", &[OPERATOR, csv], None).await;
    assert_eq!(all.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    assert_eq!(
        all.body,
        "tenant_id,total_api_calls,total_tokens,total_cost,avg_latency_ms\r\n'=1+1,2,5,1.50000000,7.00\r\n\
         tn_one,1,4,0.25000000,\r\n"
    );
    let first = desk.call("GET", "/api/admin/usage?limit=1", &[OPERATOR, csv], None).await;
    assert_eq!(first.header("x-next-cursor"), None, "no call could name the tenant that ends this page");
    let one = desk.call("GET", "/api/admin/usage?tenantId=tn_one&metric=cost", &[OPERATOR, csv], None).await;
    assert!(
        one.body
            .starts_with("tenant_id,period_start,period_end,period_type,estimated_cost_usd,updated_at\r\n")
    );
    assert!(one.body.contains(",daily,0.25000000,"), "{}", one.body);
    desk.close().await;
}

// Who may do what

#[tokio::test]
async fn fault_88_every_wrong_secret_gets_the_same_answer_and_is_audited_without_it() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    let mut bodies = Vec::new();
    for value in
        ["", "Bearer ", "Bearer wrong", "Bearer operator-toke", "Bearer operator-token1", "Basic b3A="]
    {
        let headers = [("authorization", value), ("x-request-id", "id-1")];
        let answer = desk.call("GET", "/api/admin/usage", &headers, None).await;
        assert_eq!(answer.status, 401, "{value:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        bodies.push(answer.body);
    }
    bodies.push(desk.call("GET", "/api/admin/usage", &[("x-request-id", "id-1")], None).await.body);
    bodies.push(desk.call("GET", "/api/admin/no/such/path", &[("x-request-id", "id-1")], None).await.body);
    let cron = [("x-cron-secret", "wrong"), ("x-request-id", "id-1")];
    bodies.push(desk.call("POST", "/api/admin/metrics/aggregate", &cron, None).await.body);
    bodies.dedup();
    assert_eq!(bodies, [r#"{"code":"unauthorized","error":"Unauthorized","request_id":"id-1"}"#]);

    let heard = desk.heard();
    assert_eq!(heard.len(), 9);
    for event in &heard {
        assert_eq!((event.event_type.as_str(), event.category.as_str()), ("security_violation", "security"));
        assert_eq!(event.ip_address, Some([127, 0, 0, 1].into()));
        let told = serde_json::to_string(event).unwrap();
        for secret in ["operator-toke", "wrong\"", "b3A", "no/such"] {
            assert!(!told.contains(secret), "{told}");
        }
    }
    assert_eq!(heard[0].entity_id.as_deref(), Some("/api/admin/usage"));
    desk.close().await;
}

#[tokio::test]
async fn fault_89_two_credentials_are_refused() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    let joined = [("authorization", "Bearer operator-token, Bearer operator-token")];
    for headers in [&[OPERATOR, OPERATOR][..], &[OPERATOR, VIEWER], &joined] {
        assert_eq!(desk.call("GET", "/api/admin/usage", headers, None).await.status, 401, "{headers:?}");
    }
    desk.close().await;
}

#[tokio::test]
async fn fault_94_guesses_are_limited_and_the_right_token_still_gets_in() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    let guess =
        || desk.call("GET", "/api/admin/tenants/tn_one/quota", &[("authorization", "Bearer guess")], None);
    let answers = futures_util::future::join_all((0..60).map(|_| guess())).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!(count(401) + count(429), 60);
    assert!(count(401) <= 20, "{} guesses were answered at once", count(401));
    let refused = answers.iter().find(|answer| answer.status == 429).unwrap();
    assert_eq!(refused.failure().1, "too_many_attempts");
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);

    let after = desk.get("/api/admin/tenants/tn_one/quota").await;
    assert_eq!(after.status, 200, "{}", after.body);
    assert!(desk.heard().len() <= 25, "audit rows about it are rationed: {}", desk.heard().len());
    desk.close().await;
}

#[tokio::test]
async fn a_right_token_gets_in_at_once_amid_wrong_ones_from_its_address() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    let quota = "/api/admin/tenants/tn_one/quota";
    let guesses = futures_util::future::join_all(
        (0..60).map(|_| desk.call("GET", quota, &[("authorization", "Bearer guess")], None)),
    );
    let right = async {
        let mut statuses = Vec::new();
        for _ in 0..5 {
            statuses.push(desk.call("GET", quota, &[OPERATOR], None).await.status);
            statuses.push(desk.call("GET", quota, &[VIEWER], None).await.status);
        }
        statuses.push(desk.call("POST", "/api/admin/metrics/aggregate", &[CRON], None).await.status);
        statuses
    };
    let (guesses, statuses) = tokio::join!(guesses, right);
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert!(guesses.iter().all(|guess| [401, 429].contains(&guess.status)));
    assert!(guesses.iter().any(|guess| guess.status == 429));
    desk.close().await;
}

#[tokio::test]
async fn fault_101_a_viewer_reads_and_changes_nothing() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    desk.sql(
        "INSERT INTO audit_events (event_id, event_type, category, action, actor_type) VALUES
        ('018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f', 'api_error', 'error', 'execute', 'system')",
    )
    .await;
    assert_eq!(desk.call("GET", "/api/admin/usage", &[VIEWER], None).await.status, 200);
    let resolve = "/api/admin/audit/018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f/resolve";
    let calls = [
        ("POST", "/api/admin/metrics/aggregate"),
        ("POST", resolve),
        ("PUT", "/api/admin/tenants/tn_one/quota"),
        ("DELETE", "/api/admin/tenants/tn_one/quota"),
    ];
    for (method, target) in calls {
        let answer = desk.call(method, target, &[VIEWER], Some("{\"resolution\": \"x\"}")).await;
        assert_eq!(answer.failure(), (403, "forbidden".to_owned(), None), "{method} {target}");
    }
    assert_eq!(desk.get("/api/admin/audit").await.json()["events"][0]["result"], "success");
    assert_eq!(desk.call("GET", "/api/admin/usage", &[CRON], None).await.status, 401);
    desk.close().await;
}

#[tokio::test]
async fn without_tokens_the_api_is_off_and_the_probes_are_not() {
    let mut setup = Setup::new("postgres://nobody@127.0.0.1:1/none");
    setup.operator = None;
    let desk = setup.open().await;
    for (method, target) in
        [("GET", "/api/admin/usage"), ("POST", "/api/admin/metrics/aggregate"), ("GET", "/api/admin")]
    {
        let answer = desk.call(method, target, &[OPERATOR, ("x-cron-secret", "")], None).await;
        assert_eq!(answer.failure(), (503, "admin_disabled".to_owned(), None));
    }
    assert_eq!(desk.call("GET", "/readyz", &[], None).await.status, 200);
    desk.close().await;
}

// Bad input

#[tokio::test]
async fn faults_96_to_100_bad_parameters_are_refused_by_name() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    let huge = format!("limit=1{}", "0".repeat(30));
    let long = format!("tenantId={}", "a".repeat(10_240));
    let cases = [
        // 96: SQL in any of them
        ("tenantId=tn_one'%20OR%20'1'='1", "tenantId"),
        ("tenantId=tn_one;DROP%20TABLE%20audit_events", "tenantId"),
        ("period=daily;--", "period"),
        ("metric=tokens%20DESC,%20(SELECT%201)", "metric"),
        ("startDate=2026-01-01'--", "startDate"),
        ("limit=1;SELECT%201", "limit"),
        ("cursor=1%20OR%201=1", "cursor"),
        ("sort=tokens;--", "sort"),
        // 97
        ("startDate=1990-01-01&endDate=2990-01-01", "startDate"),
        // 98
        ("startDate=2026-02-30", "startDate"),
        ("endDate=infinity", "endDate"),
        ("endDate=-infinity", "endDate"),
        ("startDate=2026-01-01T00:00:00%2B99:00", "startDate"),
        ("startDate=2026-01-01T00:00:00+02:00", "startDate"),
        // 99
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        (huge.as_str(), "limit"),
        // 100
        ("cursor=AAAAAAAAAAAAAAAAAAAAAAAAAAAA", "cursor"),
        ("cursor=", "cursor"),
        // and the rest
        ("period=yearly", "period"),
        ("period=", "period"),
        ("tenantId=", "tenantId"),
        (long.as_str(), "tenantId"),
        ("tenantId=tn_a&tenantId=tn_b", "tenantId"),
        ("tenantid=tn_a", "tenantid"),
    ];
    for (query, parameter) in cases {
        let answer = desk.get(&format!("/api/admin/usage?{query}")).await;
        let expected = (400, "invalid_parameter".to_owned(), Some(parameter.to_owned()));
        assert_eq!(answer.failure(), expected, "{query}");
    }
    for (query, parameter) in [
        ("eventType=x'--", "eventType"),
        ("category=nonsense", "category"),
        ("result=nonsense", "result"),
        ("limit=1001", "limit"),
        ("actor=x", "actor"),
    ] {
        let answer = desk.get(&format!("/api/admin/audit?{query}")).await;
        assert_eq!(answer.failure().2.as_deref(), Some(parameter), "{query}");
    }
    for (target, parameter) in [
        ("/api/admin/tenants/a%20b/quota", "id"),
        ("/api/admin/tenants/%ff/quota", "id"),
        ("/api/admin/tenants/x/quota?a=1", "a"),
    ] {
        let answer = desk.get(target).await;
        assert_eq!(
            answer.failure(),
            (400, "invalid_parameter".to_owned(), Some(parameter.to_owned())),
            "{target}"
        );
    }
    desk.close().await;
}

#[tokio::test]
async fn fault_100_a_cursor_of_another_question_is_refused() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    for tenant in ["tn_a", "tn_b"] {
        desk.sql(&period(tenant, "daily", &day(0), 1, 5, "0.5", "1")).await;
    }
    let page = desk.get("/api/admin/usage?limit=1").await.json();
    let cursor = page["nextCursor"].as_str().unwrap();
    assert_eq!(desk.get(&format!("/api/admin/usage?cursor={cursor}")).await.status, 200);
    for other in ["metric=cost", "period=hourly", "tenantId=tn_a"] {
        let answer = desk.get(&format!("/api/admin/usage?{other}&cursor={cursor}")).await;
        assert_eq!(answer.failure().2.as_deref(), Some("cursor"), "{other}");
    }
    assert_eq!(desk.get(&format!("/api/admin/audit?cursor={cursor}")).await.status, 400);
    desk.close().await;
}

#[tokio::test]
async fn unknown_paths_are_404_and_wrong_methods_405_in_json() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    for target in ["/nothing", "/api", "/api/administer", "/api/admin/nothing", "/api/admin/", "/metrics/"] {
        assert_eq!(desk.get(target).await.failure().0, 404, "{target}");
    }
    for method in ["POST", "PATCH"] {
        let answer = desk.call(method, "/api/admin/tenants/tn_one/quota", &[OPERATOR], None).await;
        assert_eq!(answer.failure(), (405, "method_not_allowed".to_owned(), None));
        assert_eq!(answer.header("allow"), Some("GET,HEAD,PUT,DELETE"));
    }
    let answer = desk.call("POST", "/metrics", &[], None).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET,HEAD")));
    desk.close().await;
}

#[tokio::test]
async fn every_answer_has_an_id_and_is_not_cached() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    for target in ["/", "/healthz", "/metrics", "/openapi.json", "/nothing", "/api/admin/usage"] {
        let answer = desk.call("GET", target, &[], None).await;
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{target}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{target}");
        assert_eq!(answer.header("x-request-id").map(str::len), Some(36), "{target}");
    }
    let given = desk.call("GET", "/healthz", &[("x-request-id", "abc-1.2:3")], None).await;
    assert_eq!(given.header("x-request-id"), Some("abc-1.2:3"));
    for unfit in ["a b", "<script>", &"a".repeat(129)] {
        let answer = desk.call("GET", "/healthz", &[("x-request-id", unfit)], None).await;
        assert_eq!(answer.header("x-request-id").map(str::len), Some(36), "{unfit}");
    }
    desk.close().await;
}

// The database's faults

#[tokio::test]
async fn a_database_that_is_away_hangs_or_has_no_schema_is_said_so_quickly() {
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let empty = postgres::shared().database();
    for (url, code) in [
        ("postgres://nobody@127.0.0.1:1/none".to_owned(), "database_unavailable"),
        (format!("postgres://nobody@{}/none", hung.local_addr().unwrap()), "database_unavailable"),
        (empty.url(), "schema_missing"),
    ] {
        let desk = Setup::new(url).open().await;
        let resolve = "/api/admin/audit/018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f/resolve";
        for (method, target, body) in [
            ("GET", "/api/admin/usage", None),
            ("GET", "/api/admin/usage?tenantId=tn_one", None),
            ("GET", "/api/admin/audit", None),
            ("GET", "/api/admin/metrics/aggregate", None),
            ("POST", resolve, Some("{\"resolution\": \"x\"}")),
            ("PUT", "/api/admin/tenants/tn_one/quota", Some("{\"tokens_per_day\": 5}")),
            ("DELETE", "/api/admin/tenants/tn_one/quota", None),
        ] {
            let began = Instant::now();
            let answer = desk.call(method, target, &[OPERATOR], body).await;
            assert!(began.elapsed() < Duration::from_secs(4), "{target} took {:?}", began.elapsed());
            assert_eq!(answer.failure(), (503, code.to_owned(), None), "{target}");
            assert!(!answer.body.contains("127.0.0.1") && !answer.body.contains("nobody"), "{}", answer.body);
        }
        assert_eq!(desk.get("/api/admin/tenants/tn_one/quota").await.status, 200, "this needs no database");
        desk.close().await;
    }
}

#[tokio::test]
async fn fault_97_a_statement_that_takes_too_long_is_given_up() {
    let db = postgres::shared().migrated();
    let mut setup = Setup::new(db.url());
    setup.statement_timeout = Duration::from_millis(200);
    let desk = setup.open().await;
    let mut client = desk.store.client().await.unwrap();
    let lock = client.transaction().await.unwrap();
    lock.batch_execute(
        "SET LOCAL idle_in_transaction_session_timeout = 0;
         LOCK TABLE tenant_usage_metrics, tenant_usage_realtime",
    )
    .await
    .unwrap();
    for call in ["/api/admin/usage", "/api/admin/models"] {
        assert_eq!(desk.get(call).await.failure(), (503, "query_timeout".to_owned(), None), "{call}");
    }
    lock.rollback().await.unwrap();
    drop(client);
    assert_eq!(desk.get("/api/admin/usage").await.status, 200, "the connection is fit for the next");
    desk.close().await;
}

// Aggregation, quota, audit

#[tokio::test]
async fn an_aggregation_is_started_by_the_cron_secret_or_an_operator() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    let target = "/api/admin/metrics/aggregate";
    for headers in [CRON, OPERATOR] {
        let body = desk.call("POST", target, &[headers], None).await.json();
        assert_eq!((&body["success"], &body["daily"]), (&json!(true), &json!(7)));
        assert!(body["message"].is_string());
        assert!(body["timestamp"].as_str().unwrap().parse::<Timestamp>().is_ok());
    }
    for headers in [&[][..], &[("x-cron-secret", "wrong")], &[("x-cron-secret", "")], &[CRON, CRON]] {
        assert_eq!(desk.call("POST", target, headers, None).await.status, 401, "{headers:?}");
    }
    let body = desk.call("GET", target, &[CRON], None).await.json();
    assert_eq!((&body["status"], &body["lastRun"]), (&json!("healthy"), &Value::Null));
    desk.sql("SELECT aggregate_usage_metrics()").await;
    let body = desk.call("GET", target, &[VIEWER], None).await.json();
    assert!(body["lastRun"].as_str().unwrap().parse::<Timestamp>().is_ok(), "{body}");
    desk.close().await;
}

#[tokio::test]
async fn an_aggregation_that_fails_says_why() {
    let mut setup = Setup::new("postgres://nobody@127.0.0.1:1/none");
    setup.aggregate = Err("the database is away".to_owned());
    let desk = setup.open().await;
    let answer = desk.call("POST", "/api/admin/metrics/aggregate", &[CRON], None).await;
    assert_eq!(answer.failure(), (503, "aggregation_failed".to_owned(), None));
    assert_eq!(answer.json()["error"], "the database is away");
    desk.close().await;
}

#[tokio::test]
async fn a_tenants_quota_says_where_each_limit_comes_from() {
    let mut setup = Setup::new("postgres://nobody@127.0.0.1:1/none");
    setup.override_of_tokens = Some(50_000);
    let desk = setup.open().await;
    let body = desk.get("/api/admin/tenants/tn_one/quota").await.json();
    assert_eq!(body["tenantId"], "tn_one");
    let tokens = &body["quotas"]["tokens_per_day"];
    assert_eq!(
        (&tokens["limit"], &tokens["origin"], &tokens["used"]),
        (&json!(50_000), &json!("config"), &json!(1_000))
    );
    assert_eq!(tokens["percentage"], 2.0);
    assert!(tokens["resetsAt"].as_str().unwrap().parse::<Timestamp>().unwrap() > Timestamp::now());
    assert_eq!(body["quotas"]["api_calls_per_minute"]["origin"], "plan");
    assert_eq!(
        body["override"],
        json!({
            "origin": "config", "plan": null, "reason": "pilot", "expires": "2127-01-31T00:00:00.000000Z",
        })
    );
    desk.close().await;
}

#[tokio::test]
async fn audit_events_are_found_and_resolved_once() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    let id = "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f";
    desk.sql(&format!(
        "INSERT INTO audit_events (event_id, tenant_id, event_type, category, action, actor_type, result, new_values,
            ip_address) VALUES
            ('{id}', 'tn_one', 'quota_exceeded', 'error', 'execute', 'system', 'failure', '{{\"limit\": 1e2}}', '10.0.0.1'),
            (gen_random_uuid(), 'tn_two', 'quota_exceeded', 'error', 'execute', 'system', 'failure', NULL, NULL),
            (gen_random_uuid(), 'tn_one', 'chat_response_sent', 'chat_activity', 'create', 'system', 'success', NULL, NULL)"
    ))
    .await;
    let query = "tenantId=tn_one&eventType=quota_exceeded&category=error&result=failure";
    let body = desk.get(&format!("/api/admin/audit?{query}")).await.json();
    let events = body["events"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["event_id"], &events[0]["new_values"]["limit"]), (&json!(id), &json!(100)));
    assert_eq!(events[0]["ip_address"], "10.0.0.1");
    assert_eq!(desk.get("/api/admin/audit").await.json()["events"].as_array().unwrap().len(), 3);

    let resolve = async |id: &str, body: &str| {
        desk.call("POST", &format!("/api/admin/audit/{id}/resolve"), &[OPERATOR], Some(body)).await
    };
    assert_eq!(resolve(id, "{\"resolution\": \"called 'them'\"}").await.status, 200);
    assert_eq!(resolve(id, "{\"resolution\": \"again\"}").await.failure().0, 409);
    assert_eq!(
        resolve("018f6b1e-6f7e-7c3a-9d3e-000000000000", "{\"resolution\": \"x\"}").await.failure().0,
        404
    );
    let row = &desk.get("/api/admin/audit?result=resolved").await.json()["events"][0];
    assert_eq!((&row["event_id"], &row["resolution"]), (&json!(id), &json!("called 'them'")));
    assert_eq!(desk.heard().len(), 1);
    assert_eq!(desk.heard()[0].entity_id.as_deref(), Some(id));

    let blank = format!("{{\"resolution\": \"{}\"}}", "x".repeat(4001));
    for (body, code) in [
        ("", "invalid_body"),
        ("{}", "invalid_body"),
        ("{\"resolution\": 1}", "invalid_body"),
        ("{\"resolution\": \"x\", \"result\": \"y\"}", "invalid_body"),
        ("{\"resolution\": \" \"}", "invalid_parameter"),
        ("{\"resolution\": \"a\\u0000b\"}", "invalid_parameter"),
        (blank.as_str(), "invalid_parameter"),
    ] {
        let answer = resolve(id, body).await;
        assert_eq!((answer.failure().0, answer.failure().1.as_str()), (400, code), "{body:.60}");
    }
    assert_eq!(resolve(id, &"x".repeat(100_000)).await.failure().1, "invalid_body");
    assert_eq!(
        resolve("1%20OR%201=1", "{\"resolution\": \"x\"}").await.failure().2.as_deref(),
        Some("event_id")
    );
    desk.close().await;
}

// Models

#[tokio::test]
async fn models_are_listed_with_their_use_and_who_priced_them() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    desk.sql(
        "INSERT INTO tenant_usage_realtime (event_id, tenant_id, event_type, event_timestamp, model, tokens_consumed,
            cost_usd, outcome, metadata)
         SELECT gen_random_uuid(), 'tn_one', 'chat_message', at::timestamptz, model, tokens, cost, outcome, metadata::jsonb
         FROM (VALUES
            ('2026-01-02T00:00:00Z', 'dear', 10, 0.00000002, 'completed', '{}'),
            ('2026-01-03T00:00:00Z', 'dear', NULL, 0.5, 'completed', '{\"default_price\": true}'),
            ('2026-01-04T00:00:00Z', '=cheap', 7, 0.25, 'upstream_error', '{\"default_price\": true}'),
            ('2026-01-04T12:00:00Z', NULL, 3, 0.125, 'completed', '{\"default_price\": true}'),
            ('2026-01-02T00:00:00Z', 'refused', 0, 0, 'refused', '{}'),
            ('2026-01-05T00:00:00Z', 'too-late', 1, 9, 'completed', '{}')
         ) rows (at, model, tokens, cost, outcome, metadata)",
    )
    .await;
    let range = "/api/admin/models?startDate=2026-01-02&endDate=2026-01-05";
    let answer = desk.call("GET", range, &[VIEWER], None).await;
    assert!(answer.body.contains("\"cost_usd\":0.50000002"), "{}", answer.body);
    let body = answer.json();
    assert_eq!(body["more"], false);
    let [dear, cheap, nameless] = body["models"].as_array().unwrap().as_slice() else { panic!("{body}") };
    assert_eq!(
        (&dear["model"], &dear["calls"], &dear["tokens"], &dear["priced_by"], &dear["default_priced_calls"]),
        (&json!("dear"), &json!(2), &json!(10), &json!("both"), &json!(1))
    );
    assert_eq!(
        (&dear["first_seen"], &dear["last_seen"]),
        (&json!("2026-01-02T00:00:00.000000Z"), &json!("2026-01-03T00:00:00.000000Z"))
    );
    assert_eq!((&cheap["model"], &cheap["priced_by"]), (&json!("=cheap"), &json!("default")));
    assert_eq!((&nameless["model"], &nameless["calls"]), (&Value::Null, &json!(1)));

    let first = desk.get(&format!("{range}&limit=1")).await.json();
    assert_eq!((first["models"].as_array().unwrap().len(), &first["more"]), (1, &json!(true)));
    let csv = desk.call("GET", range, &[VIEWER, ("accept", "text/csv")], None).await;
    assert!(csv.body.contains("\r\n'=cheap,1,7,0.25"), "{}", csv.body);
    assert_eq!(desk.get("/api/admin/models").await.json()["models"], json!([]), "the last 30 days");
    for (query, parameter) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("startDate=2026-02-30", "startDate"),
        ("startDate=1000-01-01&endDate=2026-01-01", "startDate"),
        ("startDate=1990-01-01&endDate=2026-01-01", "startDate"),
        ("model=x", "model"),
    ] {
        let failure = desk.get(&format!("/api/admin/models?{query}")).await.failure();
        assert_eq!((failure.0, failure.2.as_deref()), (400, Some(parameter)), "{query}");
    }
    desk.close().await;
}

// Health, metrics, pages

#[tokio::test]
async fn probes_say_what_each_part_is_doing() {
    let cases = [
        (Status::Starting, 503, "starting"),
        (Status::Ok, 200, "ok"),
        (Status::Degraded, 200, "degraded"),
        (Status::Draining, 503, "draining"),
        (Status::Refusing, 503, "refusing"),
    ];
    for (status, code, word) in cases {
        let mut setup = Setup::new("postgres://nobody@127.0.0.1:1/none");
        setup.status = status;
        let desk = setup.open().await;
        let ready = desk.call("GET", "/readyz", &[], None).await;
        assert_eq!((ready.status, ready.json()["status"].as_str()), (code, Some(word)));
        assert_eq!(ready.json()["parts"]["database"], json!({ "state": "down", "detail": "<refused>" }));
        assert_eq!(desk.call("GET", "/healthz", &[], None).await.status, 200);
        desk.close().await;
    }
}

#[tokio::test]
async fn the_metrics_page_is_openmetrics() {
    let db = postgres::shared().migrated();
    let desk = Setup::new(db.url()).open().await;
    assert_eq!(desk.get("/api/admin/usage").await.status, 200);
    let page = desk.call("GET", "/metrics", &[], None).await;
    assert_eq!(
        page.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(page.body.contains("# TYPE tollgate_pool_size gauge\ntollgate_pool_size 1\n"), "{}", page.body);
    assert!(page.body.ends_with("# EOF\n"));
    desk.close().await;
}

#[tokio::test]
async fn the_status_page_runs_nothing_and_shows_parts_as_text() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    let page = desk.call("GET", "/", &[], None).await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    assert!(page.body.contains("&lt;refused&gt;") && !page.body.contains("{{"), "{}", page.body);
    desk.close().await;
}

#[tokio::test]
async fn the_description_names_the_methods_that_are_served() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    let described = desk.call("GET", "/openapi.json", &[], None).await.json();
    for (path, methods) in described["paths"].as_object().unwrap() {
        let mut described: Vec<String> =
            methods.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
        described.sort();
        let target =
            path.replace("{id}", "tn_one").replace("{event_id}", "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f");
        let answer = desk.call("PATCH", &target, &[OPERATOR], None).await;
        let allowed = answer.header("allow").unwrap();
        let mut served: Vec<&str> = allowed.split(',').filter(|method| *method != "HEAD").collect();
        served.sort_unstable();
        assert_eq!(served, described, "{path}");
    }
    let text = described.to_string();
    for (at, _) in text.match_indices("\"#/components/") {
        let pointer = text[at + 2..].split('"').next().unwrap();
        assert!(described.pointer(pointer).is_some(), "{pointer} is nowhere");
    }
    desk.close().await;
}

#[tokio::test]
async fn an_idle_connection_does_not_keep_the_listener() {
    let desk = Setup::new("postgres://nobody@127.0.0.1:1/none").open().await;
    let mut idle = TcpStream::connect(desk.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: admin\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let began = Instant::now();
    desk.close().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}
