//! The process: killed, told to stop, short of file descriptors, short of what its config names.

use std::collections::BTreeSet;
use std::sync::Mutex;

use futures_util::future::join_all;
use rustix::process::Signal as Kill;
use serde_json::json;
use tollgate::store::chain::Question;

use super::program::{Program, configure, refused};
use super::{came_to, core, counters_equal_events, json_rows, rows};
use crate::harness::{
    Client, Data, Ended, Signal, Step, Upstream, answer, batch, batch_answer, chat, event, request, within,
};
use crate::postgres::shared;

async fn drained(program: &Program) {
    within("the journal is shipped", async {
        while program.metric("tollgate_journal_records").await > 0.0 {}
    })
    .await;
}

#[tokio::test]
async fn fault_117_a_kill_of_an_idle_gateway_is_no_error_at_the_next_start() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"reply": "Hi."}))).await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    for calls in [0, 3] {
        let mut program = Program::start(data.path()).await;
        assert_eq!(program.logged("\"ERROR\""), 0, "{:#?}", program.lines());
        for _ in 0..calls {
            Client::ask(program.address, chat("tn_idle", "hi")).await;
        }
        drained(&program).await;
        program.signal(Kill::KILL);
        program.ended().await;
    }
    let program = Program::start(data.path()).await;
    assert_eq!(program.logged("\"ERROR\""), 0, "{:#?}", program.lines());
}

#[tokio::test]
async fn fault_75_every_answer_seen_whole_before_a_kill_has_its_row_once_afterwards() {
    // Reported and counted, whole and streamed.
    let upstream = Upstream::answering(|request| {
        if request.json()["messages"].is_array() {
            return answer(200).json(&batch_answer(10));
        }
        answer(200)
            .events([
                &json!({"token": "Hello ", "partial": "Hello "}),
                &json!({"done": true, "final": "Hello there."}),
            ])
            .steps()
    })
    .await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    let mut program = Program::start(data.path()).await;
    let (address, enough) = (program.address, Signal::new());
    let whole = Mutex::new(BTreeSet::new());
    let clients = (0..8).map(|worker| {
        let (whole, enough) = (&whole, &enough);
        async move {
            let mut client = Client::connect(address).await;
            for number in 0.. {
                let id = format!("r-{worker}-{number}");
                let asked = if number % 2 == 0 { batch("tn_killed", 1) } else { chat("tn_killed", "hi") };
                client.send(asked.header("x-request-id", &id)).await;
                match client.try_read_response().await {
                    Some(response) if response.ended == Ended::Clean => {
                        assert_eq!(response.status, 200);
                        let mut whole = whole.lock().unwrap();
                        whole.insert(id);
                        if whole.len() == 300 {
                            enough.fire();
                        }
                    }
                    _ => return,
                }
            }
        }
    });
    let killed = async {
        within("some load", enough.wait()).await;
        program.signal(Kill::KILL);
        program.ended().await
    };
    let (status, _) = futures_util::join!(killed, join_all(clients));
    assert_eq!(status.code(), None, "it was killed");

    let mut again = Program::start(data.path()).await;
    drained(&again).await;
    let ids = json_rows(&database, "SELECT to_jsonb(request_id) FROM tenant_usage_realtime", 300).await;
    let recorded: BTreeSet<String> = ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect();
    assert_eq!(recorded.len(), ids.len(), "none is recorded twice");
    let whole = whole.into_inner().unwrap();
    let missing: Vec<_> = whole.difference(&recorded).collect();
    assert!(missing.is_empty(), "seen whole, but not recorded: {missing:?}");
    counters_equal_events(&database).await;
    again.signal(Kill::TERM);
    assert_eq!(again.ended().await.code(), Some(0));
    // What it wrote before and after is one chain, or as many as batches were in flight at once.
    let walked = database.store().verify_audit(&Question::default()).await.unwrap();
    assert!(walked.is_whole(), "{walked:#?}");
    let entries: u64 = walked.chains.iter().map(|chain| chain.entries).sum();
    assert_eq!(entries.to_string(), database.one("SELECT count(*) FROM audit_events"));
    assert_eq!(database.one("SELECT count(DISTINCT split_part(chain, '/', 1)) FROM audit_events"), "1");
    assert!(again.logged("the head of an audit chain") > 0, "its end is told for anchoring");
}

#[tokio::test]
async fn fault_79_sigterm_lets_streams_end_and_the_exit_is_0_with_all_recorded() {
    let go = Signal::new();
    let script_go = go.clone();
    let upstream = Upstream::answering(move |_| {
        answer(200)
            .events([&json!({"token": "Hello", "partial": "Hello"})])
            .then(Step::Wait(script_go.clone()))
            .events([&json!({"done": true, "final": "Hello"})])
            .steps()
    })
    .await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    let mut program = Program::start(data.path()).await;
    let mut client = Client::connect(program.address).await;
    client.send(chat("tn_term", "hi")).await;
    client.read_head().await;
    program.signal(Kill::TERM);
    within("no new connections", async {
        while tokio::net::TcpStream::connect(program.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let readiness = Client::ask(program.admin, request("GET", "/readyz")).await;
    assert_eq!((readiness.status, readiness.json()["status"].clone()), (503, json!("draining")));
    go.fire();
    assert_eq!(client.read_out().await, Ended::Clean);
    assert_eq!(program.ended().await.code(), Some(0));
    let row = &rows(&database, "tn_term", 1).await[0];
    assert_eq!(core(row), came_to("completed", 200, 2, "counted"));
    counters_equal_events(&database).await;
}

#[tokio::test]
async fn fault_79_a_second_sigterm_cuts_what_is_left_and_the_exit_is_0_with_all_recorded() {
    let upstream = Upstream::answering(|_| {
        answer(200)
            .events([&json!({"token": "Hello", "partial": "Hello"})])
            .then(Step::UntilPeerGone(Signal::new()))
            .unended()
    })
    .await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "drain_timeout = \"1h\"", "");
    let mut program = Program::start(data.path()).await;
    let mut client = Client::connect(program.address).await;
    client.send(chat("tn_twice", "hi")).await;
    client.read_head().await;
    program.signal(Kill::TERM);
    within("it drains", async {
        while program.logged("draining") == 0 {
            tokio::task::yield_now().await
        }
    })
    .await;
    program.signal(Kill::TERM);
    assert_eq!((program.ended().await.code(), client.read_out().await), (Some(0), Ended::Cut));
    let row = &rows(&database, "tn_twice", 1).await[0];
    assert_eq!(core(row), came_to("cut", 200, 2, "partial"));
    counters_equal_events(&database).await;
}

#[tokio::test]
async fn fault_84_a_tenant_that_floods_a_full_journal_takes_no_more_memory_and_nobody_elses_turn() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(10))).await;
    let data = tempfile::tempdir().unwrap();
    let nowhere = "postgres://postgres@127.0.0.1:9/none";
    configure(data.path(), &upstream.url(), nowhere, "", "");
    let small = [("JOURNAL_MAX_BYTES", "1MiB"), ("JOURNAL_SEGMENT_BYTES", "64KiB")];
    let small: String = small.map(|(key, size)| format!("export TOLLGATE__DATA__{key}={size};")).concat();
    let program = Program::start_limited(data.path(), &small).await;
    let agent = "x".repeat(2000);
    let flood = async |calls: usize| {
        let caller = async || {
            let mut client = Client::connect(program.address).await;
            for _ in 0..calls / 8 {
                client.send(batch("tn_flood", 1).header("user-agent", &agent)).await;
                assert_eq!(client.read_response().await.status, 200);
            }
        };
        join_all((0..8).map(|_| caller())).await;
    };
    // The journal holds some 200 of these calls.
    flood(800).await;
    let begun = program.peak_memory();
    flood(4000).await;
    let grown = program.peak_memory().saturating_sub(begun);
    assert!(grown < 24 << 20, "{grown} bytes more for 4,000 calls that can't be written");
    assert!(program.metric("tollgate_events_lost_total").await > 0.0, "what is lost is counted");
    assert_eq!(Client::ask(program.address, batch("tn_other", 1)).await.status, 200);
    let readiness = Client::ask(program.admin, request("GET", "/readyz")).await.json();
    assert_eq!(readiness["status"], "degraded", "{readiness}");
}

#[tokio::test]
async fn fault_83_without_file_descriptors_accepting_pauses_and_recovers() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(10))).await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    let mut program = Program::start_limited(data.path(), "ulimit -n 120;").await;
    // There are no more connections than files, so that the probes are answered.
    let mut crowd = Vec::new();
    for to in [program.address, program.admin] {
        for _ in 0..200 {
            crowd.push(Client::connect(to).await);
        }
    }
    assert_eq!(Client::ask(program.admin, request("GET", "/healthz")).await.status, 200);
    // As if others on the machine had taken them.
    drop(crowd);
    program.limit_files(10, 120);
    let crowd = Client::connect(program.address).await;
    let said = |count| {
        let program = &program;
        within("it says that it can't accept", async move {
            while program.logged("connections can't be accepted") < count {
                tokio::task::yield_now().await;
            }
        })
    };
    said(5).await;
    // By the program's own clock: this one may be held up and see several lines at once. Each pause is 10 ms at least,
    // and longer the longer it lasts; a connection accepted in between begins anew.
    let at = program.logged_at("connections can't be accepted");
    let pauses = at[4].duration_since(at[0]);
    assert!(pauses >= jiff::SignedDuration::from_millis(40), "four more in {pauses:?}: it spins");
    drop(crowd);
    program.limit_files(120, 120);
    let response = Client::ask(program.address, batch("tn_recovered", 1)).await;
    assert_eq!(response.status, 200);
    let row = &rows(&database, "tn_recovered", 1).await[0];
    assert_eq!(core(row), came_to("completed", 200, 10, "reported"));
    program.signal(Kill::TERM);
    assert_eq!(program.ended().await.code(), Some(0));
}

#[tokio::test]
async fn fault_47_an_endless_stream_passes_and_memory_stays_flat() {
    let line = event(&json!({"token": "x".repeat(8000)}));
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let upstream =
        Upstream::answering(|_| answer(200).json(&json!({"reply": "The tokenizer is loaded."}))).await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    let mut program = Program::start(data.path()).await;
    let mut client = Client::connect(program.address).await;
    client.send(chat("tn_warm", "hi")).await;
    client.read_response().await;
    rows(&database, "tn_warm", 1).await;
    upstream.answer_with(move |_| vec![Step::send(head), Step::Forever(chunk.clone().into())]);
    client.send(chat("tn_endless", "hi")).await;
    client.read_head().await;
    let mut pass = async |megabytes: usize| {
        let mut passed = 0;
        while passed < megabytes << 20 {
            let Data::Bytes(bytes) = client.read_data().await else { panic!("it ended") };
            passed += bytes.len();
        }
    };
    pass(2).await;
    let begun = program.peak_memory();
    pass(40).await;
    let grown = program.peak_memory().saturating_sub(begun);
    assert!(grown < 8 << 20, "{grown} bytes more for 40 MiB of a stream");
    client.reset();
    upstream.all_closed().await;
    let row = &rows(&database, "tn_endless", 1).await[0];
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("client_aborted"), &json!("partial")));
    program.signal(Kill::TERM);
    assert_eq!(program.ended().await.code(), Some(0));
}

#[tokio::test]
async fn fault_81_a_journal_that_another_process_holds_or_that_can_t_be_written_is_named_and_refused() {
    let (upstream, database) = (Upstream::start().await, shared().database());
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    let mut program = Program::start(data.path()).await;
    let held = refused(data.path(), &[]).await;
    assert_eq!(held.status.code(), Some(2), "{}", held.log);
    assert!(held.log.contains("data.dir: "), "{}", held.log);
    // The one that holds it is not disturbed.
    assert_eq!(Client::ask(program.address, request("GET", "/page")).await.status, 200);
    program.signal(Kill::TERM);
    assert_eq!(program.ended().await.code(), Some(0));
    let file = data.path().join("tollgate.toml").join("below-a-file");
    let unwritable = refused(data.path(), &[("TOLLGATE__DATA__DIR", file.to_str().unwrap())]).await;
    assert_eq!(unwritable.status.code(), Some(2), "{}", unwritable.log);
    assert!(unwritable.log.contains("data.dir: "), "{}", unwritable.log);
}

#[tokio::test]
async fn fault_86_87_95_what_can_t_work_ends_with_2_and_names_the_key() {
    let (upstream, database) = (Upstream::start().await, shared().database());
    let data = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    for (variable, value, key) in [
        ("TOLLGATE__PLANS__TRIAL__TOKENS_PER_DAY", "-5", "plans.trial.tokens_per_day: "),
        ("TOLLGATE__SERVER__LISTEN", taken.as_str(), "server.listen: "),
        ("TOLLGATE__SERVER__ADMIN_LISTEN", taken.as_str(), "server.admin_listen: "),
        ("ADMIN_TOKEN", "", "ADMIN_TOKEN: "),
        ("CRON_SECRET", "", "CRON_SECRET: "),
    ] {
        let refusal = refused(data.path(), &[(variable, value)]).await;
        assert_eq!(refusal.status.code(), Some(2), "{variable}: {}", refusal.log);
        assert!(refusal.log.contains(key), "{variable}: {}", refusal.log);
    }
    configure(data.path(), &upstream.url(), &database.url(), "max_conections = 5", "");
    let refusal = refused(data.path(), &[]).await;
    assert_eq!(refusal.status.code(), Some(2));
    assert!(refusal.log.contains("tollgate.toml:5: server.max_conections: "), "{}", refusal.log);
}

#[tokio::test]
async fn sighup_takes_over_a_file_whose_change_nobody_could_watch() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(10))).await;
    let database = shared().database();
    let (data, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The directory that is watched holds a link; what it points to lies in another.
    let link = data.path().join("tollgate.toml");
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    let config = std::fs::read_to_string(&link).unwrap();
    let target = elsewhere.path().join("real.toml");
    std::fs::write(&target, &config).unwrap();
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let mut program = Program::start(data.path()).await;
    assert_eq!(Client::ask(program.address, batch("tn_hup", 1)).await.status, 200);
    std::fs::write(&target, format!("{config}\n[plans.enterprise]\nchat_messages_per_day = 1\n")).unwrap();
    program.signal(Kill::HUP);
    within("the config is read again", async {
        while program.metric("tollgate_reloads_total{result=\"ok\"}").await < 1.0 {}
    })
    .await;
    assert_eq!(Client::ask(program.address, batch("tn_hup", 1)).await.status, 429);
    program.signal(Kill::TERM);
    assert_eq!(program.ended().await.code(), Some(0));
}
