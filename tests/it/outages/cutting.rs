//! Streams that end when they have used up what their tenant has left: `over_limit = "cut"`.

use std::io::Write;

use futures_util::future::join_all;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::clients::{http2, http2_chat};
use super::{Setup, came_to, core, rows};
use crate::harness::{Answer, Data, Ended, Response, Signal, Step, answer, chat, event, json_events, within};

/// The chat route, cut at the limit, with these further keys.
fn cutting(more: &str) -> String {
    format!(
        "[{{ path = \"/api/widget/chat\", methods = [\"POST\"], event = \"chat_message\", \
         over_limit = \"cut\"{more} }}]"
    )
}

/// A tenant's tokens a day, in these tests but where they say otherwise: two messages' reservation.
const LIMIT: (&str, &str) = ("plans.trial.tokens_per_day", "300");

/// One event of text: 40 bytes, so 10 tokens by the estimate.
const PIECE: &str = "word word word word word word word word ";

fn piece() -> String {
    event(&json!({"token": PIECE, "partial": PIECE}))
}

fn stream() -> Answer {
    answer(200).header("content-type", "text/event-stream")
}

/// An event stream of so many pieces, and no end.
fn endless(pieces: usize) -> Vec<Step> {
    stream().chunks((0..pieces).map(|_| piece())).then(Step::UntilPeerGone(Signal::new())).unended()
}

fn data_of(response: &Response) -> Vec<Value> {
    json_events(&response.body)
}

#[tokio::test]
async fn the_chat_services_stream_ends_with_its_own_last_event_and_the_upstream_is_let_go() {
    let routes = cutting("");
    let setup = Setup::with(&[LIMIT, ("routes", &routes)], move || endless(100)).await;
    let response = setup.gateway.ask(chat("tn_cut_at", "hi").header("x-request-id", "r-\"1\"")).await;
    assert_eq!((response.status, response.ended), (200, Ended::Clean));
    setup.upstream.all_closed().await;
    let events = data_of(&response);
    let (last, pieces) = events.split_last().unwrap();
    // One token of the question; 30 events would be 301.
    assert_eq!(pieces.len(), 30);
    assert!(pieces.iter().all(|event| event["token"] == json!(PIECE)));
    assert_eq!((&last["done"], &last["metadata"]["quota_exceeded"]), (&json!(true), &json!(true)));
    assert_eq!((&last["metadata"]["quota_remaining"], &last["metadata"]["limit"]), (&json!(0), &json!(300)));
    assert_eq!(last["metadata"]["request_id"], json!("r-\"1\""));
    let row = setup.row("tn_cut_at").await;
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("cut"), &json!("partial")));
    assert_eq!(row["metadata"]["cut_by"], json!("tokens_per_day"));
    // 240 words, as the tokenizer counts them.
    assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| (240..=245).contains(&tokens)), "{row}");
    setup.stop().await;
}

#[tokio::test]
async fn however_the_stream_is_split_it_is_cut_behind_the_same_event() {
    let routes = cutting("");
    let setup = Setup::with(&[LIMIT, ("routes", &routes)], || answer(204).steps()).await;
    for (name, end) in [("lf", "\n"), ("crlf", "\r\n"), ("cr", "\r")] {
        let body: String = (0..60).map(|_| piece().replace('\n', end)).collect();
        let expected = 30 * piece().replace('\n', end).len();
        for size in [1, 7, 100, body.len()] {
            let text = body.clone();
            setup.upstream.answer_with(move |_| stream().chunks(text.as_bytes().chunks(size)).steps());
            let response = setup.gateway.ask(chat(&format!("tn_{name}_{size}"), "hi")).await;
            let at = response.text().find("data: {\"done\"").unwrap();
            // The CR that ends the event may be let go before its LF has come.
            let short = usize::from(end == "\r\n" && size < body.len());
            assert!((expected - short..=expected).contains(&at), "{at} in pieces of {size} for {end:?}");
            assert_eq!(&response.body[..at], &body.as_bytes()[..at]);
            assert_eq!(response.ended, Ended::Clean);
        }
    }
    setup.stop().await;
}

#[tokio::test]
async fn an_openai_stream_ends_as_its_clients_know_it() {
    let template = "data: {\"id\": \"{request_id}\", \"choices\": [{\"index\": 0, \"delta\": {}, \
                    \"finish_reason\": \"length\"}]}\n\ndata: [DONE]\n\n";
    let routes = cutting(&format!(", cut_event = {}", json!(template)));
    let setup = Setup::with(&[LIMIT, ("routes", &routes)], move || {
        let chunk = event(&json!({"object": "chat.completion.chunk", "model": "gpt-4o",
            "choices": [{"index": 0, "delta": {"content": PIECE}}]}));
        stream().chunks((0..60).map(|_| &chunk)).then(Step::UntilPeerGone(Signal::new())).unended()
    })
    .await;
    let response = setup.gateway.ask(chat("tn_openai", "hi").header("x-request-id", "r-2")).await;
    setup.upstream.all_closed().await;
    assert_eq!(response.ended, Ended::Clean);
    let text = response.text();
    assert!(text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    let events = data_of(&response);
    let last = events.last().unwrap();
    assert_eq!((&last["id"], &last["choices"][0]["finish_reason"]), (&json!("r-2"), &json!("length")));
    assert_eq!(events.len(), 31);
    assert_eq!(setup.row("tn_openai").await["outcome"], json!("cut"));
    setup.stop().await;
}

#[tokio::test]
async fn a_stream_without_empty_lines_is_cut_between_two_of_its_documents() {
    // GLM and Kimi part their events by one line end: to the standard, all of them are one event.
    let routes = cutting("");
    let setup = Setup::with(&[LIMIT, ("routes", &routes)], || answer(204).steps()).await;
    for (name, end) in [("lf", "\n"), ("crlf", "\r\n"), ("cr", "\r")] {
        let line = format!("data: {}{end}", json!({"token": PIECE}));
        let body = line.repeat(60) + end;
        for size in [1, 7, body.len()] {
            let text = body.clone();
            setup.upstream.answer_with(move |_| stream().chunks(text.as_bytes().chunks(size)).steps());
            let response = setup.gateway.ask(chat(&format!("tn_stuck_{name}_{size}"), "hi")).await;
            assert_eq!(response.ended, Ended::Clean);
            let at = response.text().find("\n\ndata: {\"done\"").unwrap();
            assert_eq!(at, 30 * line.len(), "in pieces of {size} for {end:?}");
            assert_eq!(&response.body[..at], &body.as_bytes()[..at]);
            assert_eq!(setup.row(&format!("tn_stuck_{name}_{size}")).await["outcome"], json!("cut"));
        }
    }
    // One that ends with the line that passes the limit is not cut.
    let body = format!("data: {}\n", json!({"token": PIECE})).repeat(30) + "\n";
    let text = body.clone();
    setup.upstream.answer_with(move |_| stream().chunks(text.as_bytes().chunks(50)).steps());
    let response = setup.gateway.ask(chat("tn_stuck_whole", "hi")).await;
    assert_eq!(response.body, body.as_bytes());
    setup.stop().await;
}

#[tokio::test]
async fn a_stream_of_lines_ends_with_a_line() {
    let routes = cutting("");
    let setup = Setup::with(&[LIMIT, ("routes", &routes)], move || {
        let line =
            json!({"model": "llama3", "message": {"role": "assistant", "content": PIECE}, "done": false});
        let lines = (0..60).map(|_| format!("{line}\n"));
        answer(200)
            .header("content-type", "application/x-ndjson")
            .chunks(lines)
            .then(Step::UntilPeerGone(Signal::new()))
            .unended()
    })
    .await;
    let response = setup.gateway.ask(chat("tn_lines", "hi")).await;
    setup.upstream.all_closed().await;
    assert_eq!(response.ended, Ended::Clean);
    let text = response.text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, pieces) = lines.split_last().unwrap();
    assert!(text.ends_with('\n') && pieces.iter().all(|line| line["done"] == json!(false)));
    assert_eq!((pieces.len(), &last["done"]), (30, &json!(true)));
    assert_eq!(last["metadata"]["quota_exceeded"], json!(true));
    assert_eq!(setup.row("tn_lines").await["outcome"], json!("cut"));
    setup.stop().await;
}

#[tokio::test]
async fn streams_of_one_tenant_share_one_rest() {
    const STREAMS: usize = 8;
    let routes = cutting("");
    let limit = ("plans.trial.tokens_per_day", "5000");
    let go = Signal::new();
    let script_go = go.clone();
    let calls = ("plans.trial.api_calls_per_minute", "unlimited");
    let setup = Setup::with(&[limit, calls, ("routes", &routes)], move || {
        let Step::Send(one) = Step::chunk(event(&json!({"reply": "ok", "tokens_used": 10}))) else {
            unreachable!("a chunk is sent")
        };
        stream()
            .chunk(event(&json!({"reply": "ok", "tokens_used": 10})))
            .then(Step::Wait(script_go.clone()))
            .then(Step::Forever(one))
            .unended()
    })
    .await;
    // All are admitted before any takes more than its reservation.
    let asking = join_all((0..STREAMS).map(|_| setup.gateway.ask(chat("tn_shared", "hi"))));
    let begun = async {
        setup.upstream.seen(STREAMS).await;
        go.fire();
    };
    let (answers, ()) = tokio::join!(asking, begun);
    assert!(answers.iter().all(|response| response.status == 200 && response.ended == Ended::Clean));
    let ends = answers.iter().map(|response| data_of(response).last().unwrap()["done"].clone());
    assert!(ends.into_iter().all(|done| done == json!(true)));
    let rows = rows(&setup.database, "tn_shared", STREAMS).await;
    let spent: u64 = rows.iter().map(|row| row["tokens_consumed"].as_u64().unwrap()).sum();
    // Each passes the limit by one event at most, and takes a step of 64 at a time.
    let all = STREAMS as u64;
    assert!((5000 - all * 64..=5000 + all * 10).contains(&spent), "{spent}");
    assert!(rows.iter().all(|row| row["outcome"] == json!("cut")));
    setup.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_at_its_end_is_not_cut() {
    let texts = [
        // The last event of a batch passes the limit, and nothing follows.
        vec![
            event(&json!({"reply": "ok", "tokens_used": 200})),
            event(&json!({"reply": "ok", "tokens_used": 200})),
        ],
        // The end tells a count that is over the limit: all the text is here already.
        vec![
            event(&json!({"choices": [{"index": 0, "delta": {"content": "Hi"}}]})),
            event(&json!({"choices": [], "usage": {"prompt_tokens": 400, "completion_tokens": 1}})),
            "data: [DONE]\n\n".to_owned(),
        ],
        // The service's own last event has all the text once more.
        vec![
            event(&json!({"token": "Hi", "partial": "Hi"})),
            event(&json!({"done": true, "final": PIECE.repeat(60)})),
            ": bye\n\n".to_owned(),
        ],
    ];
    let routes = cutting("");
    let setup = Setup::with(&[LIMIT, ("routes", &routes)], || answer(204).steps()).await;
    for (tenant, chunks) in ["tn_batch", "tn_usage", "tn_final"].into_iter().zip(texts) {
        let whole = chunks.concat();
        setup.upstream.answer_with(move |_| stream().chunks(&chunks).steps());
        let (response, row) = setup.chat(tenant).await;
        assert_eq!((response.text(), response.ended), (whole, Ended::Clean));
        assert_eq!(row["outcome"], json!("completed"), "{row}");
    }
    setup.stop().await;
}

#[tokio::test]
async fn what_cant_be_cut_finishes_and_so_does_every_stream_by_default() {
    let body: String = (0..60).map(|_| piece()).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let lines: String = (0..60).map(|_| format!("{}\n", json!({"token": PIECE}))).collect();
    let declared = stream().body(&body);
    let compressed = stream().header("content-encoding", "gzip").chunk(&gzip).steps();
    let other_kind = answer(200).header("content-type", "application/x-ndjson").chunk(&lines).steps();
    let text = answer(200).header("content-type", "text/plain").chunk(&lines).steps();
    let events_only = cutting(", cut_event = \"data: bye\"");
    for (name, routes, script, size) in [
        ("declared", cutting(""), declared, body.len()),
        ("compressed", cutting(""), compressed, gzip.len()),
        ("other_kind", events_only, other_kind, lines.len()),
        ("text", cutting(""), text, lines.len()),
        ("default", cutting("").replace("\"cut\"", "\"finish\""), stream().chunk(&body).steps(), body.len()),
    ] {
        let setup = Setup::with(&[LIMIT, ("routes", &routes)], move || script.clone()).await;
        let (response, row) = setup.chat("tn_finishes").await;
        assert_eq!(response.status, 200, "{name}: {}", response.text());
        assert_eq!((response.body.len(), response.ended), (size, Ended::Clean), "{name}");
        assert_eq!(row["outcome"], json!("completed"), "{name}: {row}");
        setup.stop().await;
    }
}

#[tokio::test]
async fn shadow_mode_says_what_would_have_been_cut() {
    let routes = cutting(", enforce = \"shadow\"");
    let setup =
        Setup::with(&[LIMIT, ("routes", &routes)], || stream().chunks((0..60).map(|_| piece())).steps())
            .await;
    let (response, row) = setup.chat("tn_shadow").await;
    assert_eq!(data_of(&response).len(), 60);
    assert_eq!(
        (&row["outcome"], &row["metadata"]["would_cut"]),
        (&json!("completed"), &json!("tokens_per_day"))
    );
    setup.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_a_limited_stream_gives_back_what_its_reservation_grew_to() {
    let routes = cutting("");
    let limit = ("plans.trial.tokens_per_day", "10000");
    let setup = Setup::with(&[limit, ("routes", &routes)], move || endless(60)).await;
    let mut client = setup.gateway.connect().await;
    client.send(chat("tn_grown", "hi")).await;
    client.read_head().await;
    let mut seen = 0;
    while seen < 60 * piece().len() {
        let Data::Bytes(bytes) = client.read_data().await else { panic!("more of the stream") };
        seen += bytes.len();
    }
    client.reset();
    setup.upstream.all_closed().await;
    let row = setup.row("tn_grown").await;
    assert_eq!(row["outcome"], json!("client_aborted"));
    let tokens = row["tokens_consumed"].as_u64().unwrap();
    assert!((480..=490).contains(&tokens), "{tokens}");
    setup.upstream.answer_with(|_| answer(200).json(&crate::harness::batch_answer(5)));
    let next = setup.gateway.ask(chat("tn_grown", "hi")).await;
    let left = format!("\"tokens_per_day\";r={};", 10_000 - tokens - 150);
    assert!(
        next.header("ratelimit").unwrap().contains(&left),
        "{:?} has no {left}",
        next.header("ratelimit")
    );
    setup.stop().await;
}

#[tokio::test]
async fn an_http_2_client_sees_the_end_as_well() {
    let routes = cutting("");
    let setup = Setup::with(&[LIMIT, ("routes", &routes)], move || endless(60)).await;
    let address = setup.gateway.address;
    let (mut sender, connection) = http2(address).await;
    let answer = sender.send_request(http2_chat(address, "tn_h2_limit")).await.unwrap();
    let body = within("the end", answer.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(json_events(&body).last().unwrap()["done"], json!(true));
    assert_eq!(core(&setup.row("tn_h2_limit").await)[..2], came_to("cut", 200, 0, "partial")[..2]);
    drop(sender);
    let _ = connection.await;
    setup.stop().await;
}

#[tokio::test]
async fn what_a_client_left_behind_is_read_on_no_further_than_the_limit() {
    let go = Signal::new();
    let script_go = go.clone();
    let routes = cutting(", on_client_gone = \"drain\"");
    let setup = Setup::with(&[LIMIT, ("routes", &routes)], move || {
        let more = (0..60).map(|_| piece());
        stream()
            .chunk(piece())
            .then(Step::Wait(script_go.clone()))
            .chunks(more)
            .then(Step::UntilPeerGone(Signal::new()))
            .unended()
    })
    .await;
    let mut client = setup.gateway.connect().await;
    client.send(chat("tn_left_over", "hi")).await;
    client.read_head().await;
    assert!(matches!(client.read_data().await, Data::Bytes(_)));
    client.reset();
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    go.fire();
    setup.upstream.all_closed().await;
    let row = setup.row("tn_left_over").await;
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("client_aborted"), &json!("partial")));
    assert_eq!(row["metadata"]["drained"], json!("over_limit"));
    assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| (240..=245).contains(&tokens)), "{row}");
    setup.stop().await;
}
