//! How exchanges end when the gateway does, and counts that come after the end.

use std::collections::BTreeMap;

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollgate::model::event::Record;

use super::clients::{http2, http2_chat};
use super::{Setup, UNLIMITED, came_to, core, counters_equal_events, json_rows, rows};
use crate::harness::{
    Client, Data, Ended, Signal, Step, Upstream, answer, batch, batch_answer, chat, gateway, gateway_to,
    within,
};
use crate::postgres::shared;

/// The first event of a stream, then whatever the test decides.
fn begun_stream(then: Step) -> Vec<Step> {
    answer(200).events([&json!({"token": "Hello", "partial": "Hello"})]).then(then).unended()
}

pub(super) async fn refuses_connections(address: std::net::SocketAddr) {
    within("no new connections", async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// By a stream's last event a client knows the end, and may go: where the body's end is there as well, it comes with it,
/// and so after the row is in the journal.
#[tokio::test]
async fn the_last_event_of_a_stream_is_seen_with_the_end_of_its_body() {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let first = chunk("data: {\"token\":\"Hello\"}\n\n");
    let done = chunk("data: [DONE]\n\n");
    let more = chunk(": bye\n\n");
    let ends = [
        (format!("{done}0\r\n\r\n"), true),
        (format!("{done}0\r\nx-end: yes\r\n\r\n"), true),
        (format!("{}0\r\n\r\n", chunk("event: end\ndata: {}\n\n")), true),
        // What follows is not the end: it goes on as it comes.
        (format!("{done}{more}0\r\n\r\n"), false),
    ];
    for (end, at_once) in ends {
        let script = vec![
            Step::send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntrailer: x-end\r\n"),
            Step::send(format!("transfer-encoding: chunked\r\n\r\n{first}")),
            Step::send(&end),
        ];
        let setup = Setup::new(move || script.clone()).await;
        let mut client = tokio::net::TcpStream::connect(setup.gateway.address).await.unwrap();
        let request: Vec<u8> = chat("tn_ends", "hi").header("te", "trailers").into();
        client.write_all(&request).await.unwrap();
        let (mut seen, mut reads) = (String::new(), 0);
        let mut piece = vec![0; 64 << 10];
        while !seen.to_lowercase().ends_with(&end.to_lowercase()) {
            assert!(!at_once || reads == 0, "{seen:?}");
            let read = within("the stream", client.read(&mut piece)).await.unwrap();
            seen.push_str(std::str::from_utf8(&piece[..read]).unwrap());
            reads += usize::from(seen.contains("[DONE]") || seen.contains("event: end"));
        }
        assert_eq!(core(&rows(&setup.database, "tn_ends", 1).await[0])[0], "completed");
        setup.stop().await;
    }
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_closes_idle_connections_at_once() {
    let go = Signal::new();
    let script_go = go.clone();
    let setup = Setup::new(move || {
        let mut script = begun_stream(Step::Wait(script_go.clone()));
        script.push(Step::chunk(crate::harness::event(&json!({"done": true, "final": "Hello"}))));
        script.push(Step::send("0\r\n\r\n"));
        script
    })
    .await;
    let mut streaming = setup.gateway.connect().await;
    streaming.send(chat("tn_drained", "hi")).await;
    streaming.read_head().await;
    let mut idle = setup.gateway.connect().await;
    idle.send("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    setup.upstream.answer_with(|_| answer(204).steps());
    let address = setup.gateway.address;
    let stopping = tokio::spawn(setup.gateway.stop_with_exchanges(1.0));
    idle.read_to_end().await;
    refuses_connections(address).await;
    assert!(!stopping.is_finished());
    go.fire();
    assert_eq!(streaming.read_out().await, Ended::Clean);
    let (left, _) = within("the stop", stopping).await.unwrap();
    assert_eq!(left, 0);
    assert_eq!(
        core(&rows(&setup.database, "tn_drained", 1).await[0]),
        came_to("completed", 200, 2, "counted")
    );
    counters_equal_events(&setup.database).await;
}

#[tokio::test]
async fn what_outlasts_the_drain_is_cut_and_recorded_so() {
    let setup = Setup::with(&[("server.drain_timeout", "100ms")], || {
        begun_stream(Step::UntilPeerGone(Signal::new()))
    })
    .await;
    let mut client = setup.gateway.connect().await;
    client.send(chat("tn_cut", "hi")).await;
    client.read_head().await;
    assert!(matches!(client.read_data().await, Data::Bytes(_)));
    let (left, _) = setup.gateway.stop_with_exchanges(1.0).await;
    assert_eq!((left, client.read_out().await), (0, Ended::Cut));
    assert_eq!(core(&rows(&setup.database, "tn_cut", 1).await[0]), came_to("cut", 200, 2, "partial"));
    counters_equal_events(&setup.database).await;
}

#[tokio::test]
async fn an_exchange_without_an_answer_is_cut_as_well() {
    let setup =
        Setup::with(&[("server.drain_timeout", "100ms")], || vec![Step::UntilPeerGone(Signal::new())]).await;
    let mut client = setup.gateway.connect().await;
    client.send(chat("tn_cut_early", "hi")).await;
    setup.upstream.seen(1).await;
    let (left, _) = setup.gateway.stop_with_exchanges(1.0).await;
    assert_eq!((left, client.try_read_response().await.is_none()), (0, true));
    assert_eq!(
        core(&rows(&setup.database, "tn_cut_early", 1).await[0])[..2],
        came_to("cut", -1, 0, "none")[..2]
    );
    counters_equal_events(&setup.database).await;
}

#[tokio::test]
async fn http_2_streams_that_outlast_the_drain_are_cut_and_recorded_each() {
    let setup = Setup::with(&[UNLIMITED, ("server.drain_timeout", "100ms")], || {
        begun_stream(Step::UntilPeerGone(Signal::new()))
    })
    .await;
    let address = setup.gateway.address;
    let (mut sender, _connection) = http2(address).await;
    let mut bodies = Vec::new();
    for _ in 0..150 {
        let answer = sender.send_request(http2_chat(address, "tn_h2_cut")).await.unwrap();
        let mut body = answer.into_body();
        assert!(within("the first frame", body.frame()).await.unwrap().is_ok());
        bodies.push(body);
    }
    let (left, _) = setup.gateway.stop_with_exchanges(150.0).await;
    assert_eq!(left, 0);
    for body in bodies {
        assert!(within("the end of it", body.collect()).await.is_err(), "a cut is no clean end");
    }
    let rows = rows(&setup.database, "tn_h2_cut", 150).await;
    assert_eq!(rows.len(), 150);
    let expected = came_to("cut", 200, 2, "partial");
    assert!(rows.iter().all(|row| core(row) == expected), "{:?}", core(&rows[0]));
    counters_equal_events(&setup.database).await;
}

/// The records that a stopped gateway left in its journal.
fn journaled(data: &tempfile::TempDir) -> Vec<Record> {
    let environment = BTreeMap::from([("TOLLGATE__DATA__DIR".to_owned(), data.path().display().to_string())]);
    let config = tollgate::settings::Settings::load(None, &environment).unwrap().record;
    let (_, journal) = tollgate::record::Journal::open(config, tollgate::telemetry::Metrics::new()).unwrap();
    let mut records = Vec::new();
    journal.replay(&mut |record| records.push(record.clone()));
    journal.close();
    records
}

#[tokio::test]
async fn a_count_that_comes_late_corrects_the_row_the_counter_and_the_quota_in_memory() {
    // A tenth of a second's work to count, so that it is not done when the answer ends.
    let long = "word ".repeat(600_000);
    let upstream =
        Upstream::answering(move |_| answer(200).json(&json!({"reply": long, "sources": []}))).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begin = |database: &str| {
        gateway_to(&upstream.url(), database)
            .set("metering.count_wait", "0ms")
            .set("metering.max_text_bytes", "4MiB")
            .config("[plans.trial]\ntokens_per_day = 1000000\n")
    };
    let away = begin(&format!("postgres://postgres@{nobody}/nowhere")).start().await;
    let response = away.ask(chat("tn_late", "hi")).await;
    assert_eq!((response.status, response.ended), (200, Ended::Clean));
    // The event, that a message came, the correction, and that an answer was sent.
    away.until_metric("tollgate_events_queued_total", 4.0).await;
    upstream.answer_with(|_| answer(200).json(&batch_answer(5)));
    let next = away.ask(batch("tn_late", 1)).await;
    let limits = next.header("ratelimit").unwrap().to_owned();
    let (_, data) = away.stop_leaving_events().await;

    let records = journaled(&data);
    let Some(Record::Usage(event)) = records.iter().find(|record| matches!(record, Record::Usage(_))) else {
        panic!("no event: {records:?}")
    };
    assert_eq!((event.token_source.as_str(), event.tokens_consumed), ("reserved", Some(150)));
    let Some(Record::Amend(amendment)) = records.iter().find(|record| matches!(record, Record::Amend(_)))
    else {
        panic!("no amendment: {records:?}")
    };
    let tokens = amendment.tokens_consumed;
    assert_eq!((amendment.event_id, amendment.token_source.as_str()), (event.event_id, "counted"));
    assert!((600_000..=600_010).contains(&tokens), "{tokens}");
    let left = 1_000_000 - tokens - 150;
    assert!(limits.contains(&format!("\"tokens_per_day\";r={left};")), "{limits}");

    let database = shared().database();
    let again = begin(&database.url()).data(data).start().await;
    let landed = rows(&database, "tn_late", 2).await;
    let sum =
        "SELECT to_jsonb(settled) FROM quota_usage WHERE dimension = 'tokens_per_day' AND settled > 600000";
    assert_eq!(json_rows(&database, sum, 1).await, [json!(tokens + 5)]);
    assert_eq!(landed.len(), 2);
    let row = &rows(&database, "tn_late", 2).await[0];
    assert_eq!(core(row), came_to("completed", 200, i64::try_from(tokens).unwrap(), "counted"));
    let told =
        "SELECT new_values FROM audit_events WHERE event_type = 'chat_response_sent' ORDER BY timestamp";
    let told: Vec<Value> = json_rows(&database, told, 2).await;
    assert_eq!(told, [json!({"tokens_used": tokens}), json!({"tokens_used": 5})]);
    counters_equal_events(&database).await;
    again.stop().await;
}

#[tokio::test]
async fn a_late_count_after_a_drain_is_not_forgotten() {
    let long = "word ".repeat(20_000);
    let upstream =
        Upstream::answering(move |_| answer(200).json(&json!({"reply": long, "sources": []}))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database)
        .set("metering.count_wait", "0ms")
        .config("[plans.trial]\ntokens_per_day = 1000000\n")
        .start()
        .await;
    let mut client: Client = running.connect().await;
    client.send(chat("tn_late_drain", "hi")).await;
    assert_eq!(client.read_response().await.status, 200);
    running.stop().await;
    let row = &rows(&database, "tn_late_drain", 1).await[0];
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("completed"), &json!("counted")));
    counters_equal_events(&database).await;
}
