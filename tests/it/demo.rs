//! The stand-in service speaks the chat service's formats.
#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::demo::service::{Service, Sessions};
use uuid::Uuid;

use crate::harness::{Client, Ended, Response, json_events, request};

const SESSION: &str = "00000000-0000-4000-8000-000000000001";

async fn service() -> Service {
    let session = (Uuid::parse_str(SESSION).unwrap(), "tn_bakery".to_owned());
    let any = "127.0.0.1:0".parse().unwrap();
    Service::start(any, Sessions::in_memory([session]), Duration::from_millis(1)).await.unwrap()
}

async fn post(target: &str, body: &Value) -> Response {
    let service = service().await;
    let response = Client::ask(service.addr, request("POST", target).json(body)).await;
    service.stop().await;
    assert_eq!(response.ended, Ended::Clean);
    response
}

#[tokio::test]
async fn a_single_answer_has_a_reply_and_no_token_count() {
    let response = post("/api/widget/chat", &json!({"sessionId": SESSION, "message": "Your hours?"})).await;
    let answer = response.json();
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    assert!(answer["reply"].as_str().unwrap().starts_with("We are open"), "{answer}");
    assert!(answer["sources"][0]["similarity"].is_number() && answer["metadata"].is_object());
    assert!(!response.text().contains("oken"), "{answer}");
}

#[tokio::test]
async fn a_character_limit_cuts_the_reply() {
    let body = json!({"sessionId": SESSION, "message": "Your hours?", "responseCharacterLimit": 11});
    assert_eq!(post("/api/widget/chat", &body).await.json()["reply"], "We are open");
}

#[tokio::test]
async fn a_batch_answer_totals_the_tokens_of_its_items() {
    let messages = json!([{"query": "hours"}, {"query": "Do you deliver abroad?", "metadata": {"page": 1}}]);
    let answer = post("/api/widget/chat", &json!({"sessionId": SESSION, "messages": messages})).await.json();
    let items = answer["batch"].as_array().unwrap();
    let sum: u64 = items.iter().map(|item| item["tokens_used"].as_u64().unwrap()).sum();
    assert_eq!((items.len(), answer["totalTokens"].as_u64()), (2, Some(sum)));
    assert_eq!(answer["summary"], json!({"batchSize": 2, "totalTokens": sum, "totalLatency": 10}));
    assert_eq!(answer["aggregated"], true);
}

#[tokio::test]
async fn a_streamed_single_repeats_all_text_so_far_and_ends_with_the_whole() {
    let body = json!({"sessionId": SESSION, "message": "hours"});
    let response = post("/api/widget/chat?stream=true", &body).await;
    assert_eq!(response.header("content-type"), Some("text/event-stream"));
    let events = json_events(&response.body);
    let (last, tokens) = events.split_last().unwrap();
    let mut said = String::new();
    for event in tokens {
        said.push_str(event["token"].as_str().unwrap());
        assert_eq!(event["partial"], said.as_str());
    }
    assert_eq!((&last["done"], &last["final"]), (&json!(true), &json!(said)));
}

#[tokio::test]
async fn a_streamed_batch_has_one_event_a_message_each_with_its_tokens() {
    let body = json!({"sessionId": SESSION, "messages": [{"query": "hours"}, {"query": "price"}]});
    let events = json_events(&post("/api/widget/chat?stream=true", &body).await.body);
    assert_eq!(
        events.iter().map(|event| event["query"].as_str().unwrap()).collect::<Vec<_>>(),
        ["hours", "price"]
    );
    assert!(events.iter().all(|event| event["tokens_used"].as_u64() > Some(100)));
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_in_the_services_own_words() {
    let chat = "/api/widget/chat";
    let unknown =
        post(chat, &json!({"sessionId": "00000000-0000-4000-8000-00000000ffff", "message": "x"})).await;
    assert_eq!((unknown.status, &unknown.json()["error"]), (404, &json!("Session not found")));
    let empty = post(chat, &json!({"sessionId": SESSION})).await;
    assert_eq!((empty.status, &empty.json()["error"]), (400, &json!("Invalid request body")));
}

#[tokio::test]
async fn a_preflight_allows_the_widget() {
    let service = service().await;
    let preflight = request("OPTIONS", "/api/widget/chat").header("origin", "https://shop.example");
    let response = Client::ask(service.addr, preflight).await;
    assert_eq!((response.status, response.header("access-control-allow-origin")), (204, Some("*")));
    assert!(response.header("access-control-allow-headers").unwrap().contains("content-type"));
}

#[tokio::test]
async fn an_opened_session_can_chat() {
    let service = service().await;
    let open = request("POST", "/api/widget/session").json(&json!({"tenantId": "tn_clinic"}));
    let opened = Client::ask(service.addr, open).await;
    assert_eq!(opened.status, 201);
    let body = json!({"sessionId": opened.json()["sessionId"], "message": "hours"});
    let response = Client::ask(service.addr, request("POST", "/api/widget/chat").json(&body)).await;
    assert_eq!(response.status, 200);
}

#[tokio::test]
async fn embeddings_are_one_vector_a_text() {
    let answer = post("/api/embed-batch", &json!({"texts": ["a", "bc"]})).await.json();
    assert_eq!(answer["embeddings"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_completion_reports_its_usage_whole_and_streamed() {
    let mut body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hours"}]});
    let usage = post("/v1/chat/completions", &body).await.json()["usage"].clone();
    let count = |field: &str| usage[field].as_u64().unwrap();
    assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
    body["stream"] = json!(true);
    let silent = post("/v1/chat/completions", &body).await;
    assert!(!silent.text().contains("usage") && silent.text().ends_with("data: [DONE]\n\n"));
    body["stream_options"] = json!({"include_usage": true});
    let events = json_events(&post("/v1/chat/completions", &body).await.body);
    let last = events.last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&usage, &json!([])));
}

#[tokio::test]
async fn everything_else_is_a_small_page() {
    let service = service().await;
    let response = Client::ask(service.addr, request("PUT", "/about?x=1").body("12345")).await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/plain; charset=utf-8")));
    assert!(response.text().contains("PUT /about?x=1\n5 bytes"), "{}", response.text());
}

/// The whole of it, as a new user runs it: Postgres, the service, the gateway, the traffic, and the check of the rows.
#[tokio::test]
async fn the_demo_meters_its_traffic_checks_the_rows_and_leaves_nothing_behind() {
    let scratch = tempfile::Builder::new().permissions(Permissions::from_mode(0o711)).tempdir().unwrap();
    let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["demo", "--once"])
        .env("TMPDIR", scratch.path())
        .env_remove("DATABASE_URL")
        .kill_on_drop(true)
        .output();
    let run = tokio::time::timeout(Duration::from_secs(120), run).await.expect("it ends by itself").unwrap();
    let (said, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}\n{log}");
    for line in ["tn_bakery   trial", "tn_clinic   starter", "tn_travel   pro", "a row each"] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "the scratch directory is gone");
}
