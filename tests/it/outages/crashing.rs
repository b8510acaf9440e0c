//! The process is killed with exchanges in flight: each is charged its reservation, once, whatever happens after that.

use std::path::Path;

use rustix::process::Signal as Kill;
use serde_json::{Value, json};

use super::program::{Program, configure};
use super::{came_to, core, counters_equal_events, rows};
use crate::harness::{
    Client, Request, Signal, Step, Upstream, answer, batch, batch_answer, chat, request, within,
};
use crate::postgres::{Database, shared};

const ROUTES: &str = "[[routes]]\npath = \"/api/widget/chat\"\nmethods = [\"POST\"]\nevent = \"chat_message\"\n\
                      [[routes]]\npath = \"/api/watched\"\nmethods = [\"POST\"]\nevent = \"chat_message\"\n\
                      enforce = \"shadow\"\n\
                      [overrides.\"tn_full\"]\nchat_messages_per_day = 0\n\
                      [overrides.\"tn_three\"]\nchat_messages_per_day = 3\n";

/// Answers a single message, and begins to where it is asked for a stream; a batch is never answered.
fn script(request: &Request) -> Vec<Step> {
    match request.json()["message"].as_str() {
        Some("whole") => answer(200).json(&batch_answer(10)),
        Some("stream") => answer(200)
            .events([&json!({"token": "Hello", "partial": "Hello"})])
            .then(Step::UntilPeerGone(Signal::new()))
            .unended(),
        _ => vec![Step::UntilPeerGone(Signal::new())],
    }
}

async fn intents(program: &Program, count: f64) {
    within("the intents are in the journal", async {
        while program.metric("tollgate_journal_intents").await != count {}
    })
    .await;
}

async fn killed(mut program: Program) {
    program.signal(Kill::KILL);
    assert_eq!(program.ended().await.code(), None, "it was killed");
}

/// Of each row of a tenant, what it came to.
async fn outcomes(database: &Database<'_>, tenant: &str, count: usize) -> Vec<[Value; 4]> {
    rows(database, tenant, count).await.iter().map(core).collect()
}

/// Asks and does not wait for an answer.
async fn left_waiting(program: &Program, asked: crate::harness::RequestText) -> Client {
    let mut client = Client::connect(program.address).await;
    client.send(asked).await;
    client
}

async fn drained(program: &Program) {
    within("the journal is shipped", async {
        while program.metric("tollgate_journal_records").await > 0.0 {}
    })
    .await;
}

fn journal(data: &Path) -> Value {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["journal", "--json", "--config"])
        .arg(data.join("tollgate.toml"))
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn fault_75_what_a_kill_cuts_off_has_one_row_that_is_charged_the_reservation() {
    let upstream = Upstream::answering(script).await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", ROUTES);
    let program = Program::start(data.path()).await;
    let seen_whole = Client::ask(program.address, chat("tn_cut_off", "whole")).await;
    assert_eq!(seen_whole.status, 200);
    assert_eq!(Client::ask(program.address, batch("tn_full", 1)).await.status, 429);
    let request_id = |asked: crate::harness::RequestText, id| asked.header("x-request-id", id);
    let mut streaming = left_waiting(&program, request_id(chat("tn_cut_off", "stream"), "r-stream")).await;
    streaming.read_head().await;
    let _waiting = left_waiting(&program, request_id(batch("tn_cut_off", 3), "r-batch")).await;
    intents(&program, 2.0).await;
    // What is only watched is charged all the same; what is not metered at all has no intent.
    let watched = json!({ "messages": [{ "query": "?" }] });
    let watched = request("POST", "/api/watched").header("x-tenant-id", "tn_watched").json(&watched);
    let _watched = left_waiting(&program, watched).await;
    let unmetered = request("POST", "/api/other").json(&json!({ "message": "?" }));
    let _unmetered = left_waiting(&program, unmetered).await;
    upstream.seen(5).await;
    drained(&program).await;
    assert_eq!(program.metric("tollgate_journal_intents").await, 3.0);
    let beside = journal(data.path());
    assert_eq!((&beside["open_intents"], &beside["records"]), (&json!(3), &json!(0)));
    killed(program).await;
    assert_eq!(journal(data.path())["open_intents"], json!(3), "as it was left");

    // Killed again as soon as it serves: what it wrote first is what became of them.
    killed(Program::start(data.path()).await).await;
    let mut again = Program::start(data.path()).await;
    drained(&again).await;
    let recorded = rows(&database, "tn_cut_off", 3).await;
    let outcomes: Vec<_> = recorded.iter().map(core).collect();
    assert_eq!(
        outcomes,
        [
            came_to("completed", 200, 10, "reported"),
            came_to("crashed", -1, 150, "reserved"),
            came_to("crashed", -1, 450, "reserved"),
        ]
    );
    let columns = ["request_id", "chat_session_id", "chat_messages", "api_response_time_ms", "api_endpoint"];
    let crashed = columns.map(|column| recorded[2][column].clone());
    assert_eq!(
        crashed,
        [json!("r-batch"), json!("session-0001"), json!(3), Value::Null, json!("/api/widget/chat")]
    );
    assert!(recorded[2]["replica_id"].is_string(), "{}", recorded[2]);
    assert_eq!(self::outcomes(&database, "tn_full", 1).await, [came_to("refused", 429, 0, "none")]);
    assert_eq!(self::outcomes(&database, "tn_watched", 1).await, [came_to("crashed", -1, 150, "reserved")]);
    counters_equal_events(&database).await;
    intents(&again, 0.0).await;
    again.signal(Kill::TERM);
    assert_eq!(again.ended().await.code(), Some(0));
    assert_eq!(journal(data.path())["segments"], json!(0));
}

#[tokio::test]
async fn fault_75_with_the_database_away_what_a_kill_cut_off_counts_against_the_quota_all_the_same() {
    let upstream = Upstream::answering(script).await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", ROUTES);
    let program = Program::start(data.path()).await;
    let _waiting = left_waiting(&program, batch("tn_three", 2)).await;
    intents(&program, 1.0).await;
    killed(program).await;
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    configure(data.path(), &upstream.url(), &format!("postgres://nobody@{nowhere}/none"), "", ROUTES);
    let mut alone = Program::start(data.path()).await;
    assert_eq!(Client::ask(alone.address, chat("tn_three", "whole")).await.status, 200, "the third message");
    let refused = Client::ask(alone.address, chat("tn_three", "whole")).await;
    assert_eq!((refused.status, refused.json()["used"].clone()), (429, json!(3)));
    alone.signal(Kill::TERM);
    assert_eq!(alone.ended().await.code(), Some(0));
}
