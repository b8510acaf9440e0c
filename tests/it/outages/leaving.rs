//! Routes that read on what a leaving client left behind, for the exact count: `on_client_gone = "drain"`.

use futures_util::future::join_all;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::clients::{http2, http2_chat};
use super::{Setup, UNLIMITED, came_to, core, counters_equal_events, rows};
use crate::harness::{Client, Data, Signal, Step, answer, batch, batch_answer, chat, event, within};

/// The chat route, with a drain of these bounds.
fn draining(bounds: &str) -> String {
    format!(
        "[{{ path = \"/api/widget/chat\", methods = [\"POST\"], event = \"chat_message\", \
         on_client_gone = \"drain\"{bounds} }}]"
    )
}

fn first_event() -> crate::harness::Answer {
    answer(200).events([&json!({"token": "Hello", "partial": "Hello"})])
}

fn last_event(text: &str) -> Value {
    json!({"done": true, "final": text})
}

/// A client that asked, saw the first event, and leaves.
async fn leaves_mid_stream(setup: &Setup, tenant: &str) {
    let mut client = setup.gateway.connect().await;
    client.send(chat(tenant, "hi")).await;
    client.read_head().await;
    assert!(matches!(client.read_data().await, Data::Bytes(_)));
    client.reset();
}

/// A client that asked and leaves before it is answered.
async fn leaves_before_the_head(setup: &Setup, tenant: &str, messages: usize) {
    let mut client = setup.gateway.connect().await;
    client.send(batch(tenant, messages)).await;
    setup.upstream.seen(setup.upstream.requests().len().max(1)).await;
    drop(client);
}

#[tokio::test]
async fn who_leaves_before_the_head_is_charged_what_the_answer_says() {
    let go = Signal::new();
    let script_go = go.clone();
    let routes = draining("");
    let setup = Setup::with(&[("routes", &routes)], move || {
        let mut script = vec![Step::Wait(script_go.clone())];
        script.extend(answer(200).json(&batch_answer(512)));
        script
    })
    .await;
    leaves_before_the_head(&setup, "tn_read_on", 3).await;
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    go.fire();
    let row = setup.row("tn_read_on").await;
    assert_eq!(core(&row), came_to("client_aborted", 200, 512, "reported"));
    assert_eq!(row["metadata"]["drained"], json!("whole"));
    assert_eq!(setup.gateway.metric("tollgate_drains_total{ending=\"whole\"}").await, 1.0);
    setup.stop().await;
}

#[tokio::test]
async fn an_exact_count_below_the_reservation_is_what_the_row_has_and_the_reservation_what_the_quota_is_charged()
 {
    let go = Signal::new();
    let script_go = go.clone();
    let routes = draining("");
    let setup = Setup::with(&[("routes", &routes)], move || {
        let mut script = vec![Step::Wait(script_go.clone())];
        script.extend(answer(200).json(&batch_answer(5)));
        script
    })
    .await;
    leaves_before_the_head(&setup, "tn_floor", 1).await;
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    go.fire();
    let row = setup.row("tn_floor").await;
    assert_eq!(core(&row), came_to("client_aborted", 200, 5, "reported"));
    assert_eq!(row["metadata"]["charged_tokens"], json!(150));
    setup.stop().await;
}

#[tokio::test]
async fn who_leaves_mid_stream_is_charged_the_whole_text() {
    let go = Signal::new();
    let script_go = go.clone();
    let words = "word ".repeat(400);
    let routes = draining("");
    let setup = Setup::with(&[("routes", &routes)], move || {
        first_event().then(Step::Wait(script_go.clone())).events([&last_event(&words)]).steps()
    })
    .await;
    leaves_mid_stream(&setup, "tn_mid").await;
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    go.fire();
    let row = setup.row("tn_mid").await;
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("client_aborted"), &json!("counted")));
    assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| (400..=410).contains(&tokens)), "{row}");
    // Read to its end, the connection is as good as any other.
    assert_eq!(setup.gateway.ask(chat("tn_next", "hi")).await.status, 200);
    assert_eq!(setup.upstream.connections(), 1);
    setup.stop().await;
}

#[tokio::test]
async fn a_drain_ends_at_its_time_with_what_was_seen() {
    let gone = Signal::new();
    let told = gone.clone();
    let words = "word ".repeat(400);
    let routes = draining(", drain_time = \"100ms\"");
    let setup = Setup::with(&[("routes", &routes)], move || {
        answer(200)
            .events([&json!({"token": words, "partial": words})])
            .then(Step::UntilPeerGone(told.clone()))
            .unended()
    })
    .await;
    leaves_mid_stream(&setup, "tn_time").await;
    within("the upstream is let go", gone.wait()).await;
    let row = setup.row("tn_time").await;
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("client_aborted"), &json!("partial")));
    assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| (400..=410).contains(&tokens)), "{row}");
    assert_eq!(row["metadata"]["drained"], json!("time_limit"));
    setup.stop().await;
}

#[tokio::test]
async fn a_drain_that_waits_for_a_head_ends_at_its_time_as_well() {
    let gone = Signal::new();
    let told = gone.clone();
    let routes = draining(", drain_time = \"100ms\"");
    let setup = Setup::with(&[("routes", &routes)], move || vec![Step::UntilPeerGone(told.clone())]).await;
    leaves_before_the_head(&setup, "tn_no_head", 3).await;
    within("the upstream is let go", gone.wait()).await;
    assert_eq!(core(&setup.row("tn_no_head").await), came_to("client_aborted", -1, 450, "reserved"));
    setup.stop().await;
}

#[tokio::test]
async fn a_drain_ends_at_its_bytes_with_what_was_seen() {
    let routes = draining(", drain_bytes = \"64KiB\"");
    let setup = Setup::with(&[("routes", &routes)], || {
        let more = Step::chunk(event(&json!({"token": " and", "partial": "x".repeat(1000)})));
        let Step::Send(more) = more else { unreachable!("a chunk is sent") };
        first_event().then(Step::Forever(more)).unended()
    })
    .await;
    leaves_mid_stream(&setup, "tn_bytes").await;
    setup.upstream.all_closed().await;
    let row = setup.row("tn_bytes").await;
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("client_aborted"), &json!("partial")));
    assert_eq!(row["metadata"]["drained"], json!("byte_limit"));
    setup.stop().await;
}

#[tokio::test]
async fn an_upstream_that_breaks_off_in_a_drain_leaves_what_was_seen() {
    let go = Signal::new();
    let script_go = go.clone();
    let routes = draining("");
    let setup = Setup::with(&[("routes", &routes)], move || {
        first_event().then(Step::Wait(script_go.clone())).then(Step::Reset).unended()
    })
    .await;
    leaves_mid_stream(&setup, "tn_broken").await;
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    go.fire();
    let row = setup.row("tn_broken").await;
    assert_eq!(core(&row), came_to("client_aborted", 200, 2, "partial"));
    assert_eq!(row["metadata"]["drained"], json!("broken"));
    setup.stop().await;
}

#[tokio::test]
async fn an_error_that_a_drain_finds_is_given_back_like_any_other() {
    let go = Signal::new();
    let script_go = go.clone();
    let routes = draining("");
    let setup = Setup::with(&[("routes", &routes)], move || {
        let mut script = vec![Step::Wait(script_go.clone())];
        script.extend(answer(500).json(&json!({"error": "Failed to process message."})));
        script
    })
    .await;
    leaves_before_the_head(&setup, "tn_error", 1).await;
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    go.fire();
    assert_eq!(core(&setup.row("tn_error").await), came_to("client_aborted", 500, 0, "none"));
    setup.stop().await;
}

#[tokio::test]
async fn beyond_the_room_for_drains_the_upstream_is_let_go_at_once() {
    let go = Signal::new();
    let script_go = go.clone();
    let routes = draining("");
    let setup = Setup::with(&[("routes", &routes), ("server.max_drains", "1")], move || {
        first_event().then(Step::Wait(script_go.clone())).events([&last_event("Hello there")]).steps()
    })
    .await;
    leaves_mid_stream(&setup, "tn_has_room").await;
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    let gone = Signal::new();
    let told = gone.clone();
    setup.upstream.answer_with(move |_| first_event().then(Step::UntilPeerGone(told.clone())).unended());
    leaves_mid_stream(&setup, "tn_no_room").await;
    within("the upstream is let go", gone.wait()).await;
    let row = setup.row("tn_no_room").await;
    assert_eq!(core(&row), came_to("client_aborted", 200, 2, "partial"));
    assert_eq!(row["metadata"]["drained"], json!("no_room"));
    go.fire();
    assert_eq!(core(&setup.row("tn_has_room").await), came_to("client_aborted", 200, 3, "counted"));
    assert_eq!(setup.gateway.metric("tollgate_drains_total{ending=\"no_room\"}").await, 1.0);
    setup.stop().await;
}

#[tokio::test]
async fn a_thousand_that_leave_at_once_leave_nothing_behind() {
    const ALL: usize = 1000;
    let routes = draining(", drain_time = \"300ms\"");
    let settings = [UNLIMITED, ("routes", &routes), ("server.max_drains", "300")];
    let setup = Setup::with(&settings, || vec![Step::UntilPeerGone(Signal::new())]).await;
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..ALL {
        let mut client = setup.gateway.connect().await;
        client.send(batch("tn_thousand", 1)).await;
        clients.push(client);
    }
    setup.upstream.seen(ALL).await;
    clients.into_iter().for_each(Client::reset);
    setup.upstream.all_closed().await;
    let rows = rows(&setup.database, "tn_thousand", ALL).await;
    assert_eq!(rows.len(), ALL);
    let expected = came_to("client_aborted", -1, 150, "reserved");
    assert!(rows.iter().all(|row| core(row) == expected), "{:?}", core(&rows[0]));
    let ended = |how: &str| rows.iter().filter(|row| row["metadata"]["drained"] == json!(how)).count();
    assert_eq!(ended("time_limit") + ended("no_room"), ALL);
    assert!(ended("time_limit") >= 300, "{}", ended("time_limit"));
    assert_eq!(setup.gateway.metric("tollgate_draining").await, 0.0);
    assert_eq!(setup.gateway.metric("tollgate_connections").await, 0.0);
    setup.stop().await;
}

#[tokio::test]
async fn streams_of_http_2_are_read_on_each() {
    let go = Signal::new();
    let script_go = go.clone();
    let routes = draining("");
    let setup = Setup::with(&[UNLIMITED, ("routes", &routes)], move || {
        first_event().then(Step::Wait(script_go.clone())).events([&last_event("Hello there")]).steps()
    })
    .await;
    let address = setup.gateway.address;
    let (sender, connection) = http2(address).await;
    let left = join_all((0..20).map(|_| {
        let mut sender = sender.clone();
        async move {
            let answer = sender.send_request(http2_chat(address, "tn_h2_read_on")).await.unwrap();
            within("the first frame", answer.into_body().frame()).await.unwrap().unwrap();
        }
    }))
    .await;
    setup.gateway.until_metric("tollgate_draining", left.len() as f64).await;
    go.fire();
    let rows = rows(&setup.database, "tn_h2_read_on", left.len()).await;
    let expected = came_to("client_aborted", 200, 3, "counted");
    assert!(rows.iter().all(|row| core(row) == expected), "{:?}", core(&rows[0]));
    drop(sender);
    let _ = connection.await;
    setup.stop().await;
}

#[tokio::test]
async fn the_stop_waits_for_a_drain() {
    let go = Signal::new();
    let script_go = go.clone();
    let routes = draining("");
    let setup = Setup::with(&[("routes", &routes)], move || {
        first_event().then(Step::Wait(script_go.clone())).events([&last_event("Hello there")]).steps()
    })
    .await;
    leaves_mid_stream(&setup, "tn_stop").await;
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    let address = setup.gateway.address;
    let stopping = tokio::spawn(setup.gateway.stop_with_exchanges(1.0));
    super::ending::refuses_connections(address).await;
    assert!(!stopping.is_finished());
    go.fire();
    let (left, _) = within("the stop", stopping).await.unwrap();
    assert_eq!(left, 0);
    let row = &rows(&setup.database, "tn_stop", 1).await[0];
    assert_eq!(core(row), came_to("client_aborted", 200, 3, "counted"));
    counters_equal_events(&setup.database).await;
}

#[tokio::test]
async fn a_drain_that_outlasts_the_stops_limit_is_ended_with_what_was_seen() {
    let routes = draining("");
    let setup = Setup::with(&[("routes", &routes), ("server.drain_timeout", "100ms")], || {
        first_event().then(Step::UntilPeerGone(Signal::new())).unended()
    })
    .await;
    leaves_mid_stream(&setup, "tn_stop_cut").await;
    setup.gateway.until_metric("tollgate_draining", 1.0).await;
    let (left, _) = setup.gateway.stop_with_exchanges(1.0).await;
    assert_eq!(left, 0);
    let row = &rows(&setup.database, "tn_stop_cut", 1).await[0];
    assert_eq!(core(row), came_to("client_aborted", 200, 2, "partial"));
    assert_eq!(row["metadata"]["drained"], json!("stopped"));
    counters_equal_events(&setup.database).await;
}
