//! An upstream that is away, late, broken, or answers in the wrong way.

use serde_json::json;

use super::{Setup, came_to, core, rows};
use crate::harness::{
    Client, Data, Ended, Header, Signal, Step, Upstream, answer, batch, batch_answer, chat, gateway_to,
    request, within,
};
use crate::postgres::shared;

/// Bytes as they are.
fn raw(bytes: impl AsRef<[u8]>) -> Vec<Step> {
    vec![Step::send(bytes)]
}

/// Bytes, and then the end of the connection.
fn raw_then_close(bytes: impl AsRef<[u8]>) -> Vec<Step> {
    vec![Step::send(bytes), Step::Close]
}

#[tokio::test]
async fn fault_31_an_upstream_that_refuses_or_has_no_address_is_a_502_and_recorded() {
    let database = shared().database();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (tenant, url) in [
        ("tn_refused", format!("http://{nobody}")),
        ("tn_unresolved", "http://no-such-host.invalid:80".to_owned()),
    ] {
        let gateway = gateway_to(&url, &database.url()).start().await;
        let response = gateway.ask(chat(tenant, "hi")).await;
        assert_eq!((response.status, response.json()["code"].clone()), (502, json!("upstream_unreachable")));
        let row = &rows(&database, tenant, 1).await[0];
        assert_eq!(core(row), came_to("upstream_error", 502, 0, "none"));
        super::counters_equal_events(&database).await;
        gateway.stop().await;
    }
}

#[tokio::test]
async fn fault_32_no_first_byte_in_time_is_a_504_and_the_upstream_is_let_go() {
    let gone = Signal::new();
    let told = gone.clone();
    let setup = Setup::with(&[("upstream.first_byte_timeout", "150ms")], move || {
        vec![Step::UntilPeerGone(told.clone())]
    })
    .await;
    let (response, row) = setup.chat("tn_late").await;
    assert_eq!((response.status, response.json()["code"].clone()), (504, json!("upstream_timeout")));
    assert_eq!(core(&row), came_to("timeout", 504, 0, "none"));
    within("the upstream is let go", gone.wait()).await;
    setup.stop().await;
}

#[tokio::test]
async fn fault_33_a_reset_before_the_answer_is_a_502_and_a_post_is_not_sent_twice() {
    let setup = Setup::new(|| vec![Step::Reset]).await;
    let (response, row) = setup.chat("tn_reset").await;
    assert_eq!(response.status, 502);
    assert_eq!(core(&row), came_to("upstream_error", 502, 0, "none"));
    assert_eq!(setup.upstream.requests().len(), 1);
    setup.stop().await;
}

#[tokio::test]
async fn fault_33_on_a_kept_connection_too_it_is_sent_once() {
    let setup = Setup::new(|| answer(200).json(&batch_answer(5))).await;
    assert_eq!(setup.chat("tn_kept").await.0.status, 200);
    setup.upstream.answer_with(|_| vec![Step::Reset]);
    let mut client = setup.gateway.connect().await;
    // Whichever worker takes it, the second at the latest goes out on a kept connection.
    for tenant in ["tn_again_1", "tn_again_2"] {
        client.send(chat(tenant, "hi")).await;
        assert_eq!(client.read_response().await.status, 502);
        assert_eq!(core(&setup.row(tenant).await), came_to("upstream_error", 502, 0, "none"));
    }
    assert_eq!(setup.upstream.requests().len(), 3);
    setup.stop().await;
}

#[tokio::test]
async fn fault_34_garbage_instead_of_a_status_line_is_a_502() {
    let setup = Setup::new(|| raw_then_close("SMTP/1.0 hello\r\n\r\n")).await;
    for (number, garbage) in [
        "SMTP/1.0 hello\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 99999 OK\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        setup.upstream.answer_with(move |_| raw_then_close(garbage));
        let (response, row) = setup.chat(&format!("tn_garbage_{number}")).await;
        assert_eq!(
            (response.status, response.json()["code"].clone()),
            (502, json!("upstream_invalid")),
            "{garbage:?}"
        );
        assert_eq!(core(&row), came_to("upstream_error", 502, 0, "none"), "{garbage:?}");
    }
    setup.stop().await;
}

#[tokio::test]
async fn fault_35_half_the_headers_are_a_502() {
    let setup = Setup::new(|| raw_then_close("HTTP/1.1 200 OK\r\ncontent-type: text/pl")).await;
    let (response, row) = setup.chat("tn_half").await;
    assert_eq!((response.status, response.ended), (502, Ended::Clean));
    assert_eq!(core(&row), came_to("upstream_error", 502, 0, "none"));
    setup.stop().await;
}

#[tokio::test]
async fn fault_36_large_headers_are_passed_on_and_boundless_ones_are_a_502() {
    let long = "v".repeat(100 * 1024);
    let script = answer(200).header("x-long", &long).json(&batch_answer(7));
    let setup = Setup::new(move || script.clone()).await;
    let (response, row) = setup.chat("tn_large").await;
    assert_eq!((response.status, response.header("x-long")), (200, Some(long.as_str())));
    assert_eq!(core(&row), came_to("completed", 200, 7, "reported"));
    setup.upstream.answer_with(|_| {
        vec![Step::send("HTTP/1.1 200 OK\r\nx-endless: "), Step::Forever(vec![b'v'; 16 * 1024].into())]
    });
    let (response, row) = setup.chat("tn_boundless").await;
    assert_eq!(response.status, 502);
    assert_eq!(core(&row), came_to("upstream_error", 502, 0, "none"));
    setup.upstream.all_closed().await;
    setup.stop().await;
}

#[tokio::test]
async fn fault_37_a_body_shorter_than_it_said_is_a_cut_for_the_client_too() {
    let body = json!({"reply": "We are open from nine to five."}).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len() + 5
    );
    let script = raw_then_close(head + &body);
    let setup = Setup::new(move || script.clone()).await;
    let (response, row) = setup.chat("tn_short").await;
    assert_eq!((response.status, response.ended), (200, Ended::Cut));
    assert_eq!(response.body, body.as_bytes());
    // 1 token asked, 8 answered.
    assert_eq!(core(&row), came_to("upstream_error", 200, 9, "partial"));
    setup.stop().await;
}

#[tokio::test]
async fn fault_38_surplus_bytes_are_nobodys_answer() {
    let real = batch_answer(3).to_string();
    let stray = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen";
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    let script = raw(format!("{head}{}\r\n\r\n{real}{stray}", real.len()));
    let setup = Setup::new(move || script.clone()).await;
    let mut client = setup.gateway.connect().await;
    for tenant in ["tn_first", "tn_second", "tn_third"] {
        client.send(chat(tenant, "hi")).await;
        let response = client.read_response().await;
        assert_eq!((response.status, response.text()), (200, real.clone()));
        assert_eq!(core(&setup.row(tenant).await), came_to("completed", 200, 3, "reported"));
    }
    assert_eq!(setup.upstream.connections(), 3, "a connection with bytes left over is not used again");
    setup.stop().await;
}

#[tokio::test]
async fn fault_39_with_two_framings_the_chunks_count_and_the_length_is_dropped() {
    for length in ["3", "500"] {
        let body = batch_answer(4).to_string();
        let script = raw(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ));
        let setup = Setup::new(move || script.clone()).await;
        let (response, row) = setup.chat("tn_two").await;
        assert_eq!((response.status, response.ended), (200, Ended::Clean));
        assert_eq!(response.text(), body);
        assert_ne!(response.header("content-length"), Some(length));
        assert_eq!(core(&row), came_to("completed", 200, 4, "reported"));
        // The same on a route that is not metered.
        let passed = setup.gateway.ask(request("GET", "/other")).await;
        assert_eq!((passed.text(), passed.ended), (body, Ended::Clean));
        setup.stop().await;
    }
}

#[tokio::test]
async fn fault_40_an_http_1_0_answer_that_ends_by_close_is_passed_on_whole() {
    let body = batch_answer(11).to_string();
    let head = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n";
    let script = raw_then_close(format!("{head}{body}"));
    let setup = Setup::new(move || script.clone()).await;
    let (response, row) = setup.chat("tn_old").await;
    assert_eq!((response.status, response.text(), response.ended), (200, body, Ended::Clean));
    assert_eq!(core(&row), came_to("completed", 200, 11, "reported"));
    setup.stop().await;
}

#[tokio::test]
async fn fault_41_interim_answers_leave_the_final_one_intact() {
    let body = batch_answer(6).to_string();
    let script = raw(format!(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    let setup = Setup::new(move || script.clone()).await;
    let (response, row) = setup.chat("tn_interim").await;
    assert_eq!((response.status, response.text(), response.interim), (200, body, vec![102, 103]));
    assert_eq!(core(&row), came_to("completed", 200, 6, "reported"));
    setup.stop().await;
}

#[tokio::test]
async fn fault_42_204_304_and_head_have_no_body_and_hang_nothing() {
    let setup = Setup::new(|| raw("HTTP/1.1 204 No Content\r\n\r\n")).await;
    let mut client = setup.gateway.connect().await;
    client.send(chat("tn_204", "hi")).await;
    assert_eq!(client.read_response().await.status, 204);
    setup
        .upstream
        .answer_with(|_| raw("HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 99\r\n\r\n"));
    client.send(chat("tn_304", "hi")).await;
    let response = client.read_response().await;
    assert_eq!((response.status, response.header("etag")), (304, Some("\"a\"")));
    setup.upstream.answer_with(|_| raw("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"));
    client.send(request("HEAD", "/api/widget/chat")).await;
    let response = client.read_response_to_head().await;
    assert_eq!((response.status, response.header("content-length")), (200, Some("1234")));
    // The connection is in step after all of them.
    setup.upstream.answer_with(|_| answer(200).body("in step"));
    client.send(request("GET", "/page")).await;
    assert_eq!(client.read_response().await.text(), "in step");
    // An answer without a body has no text: what was asked is counted.
    assert_eq!(core(&setup.row("tn_204").await), came_to("completed", 204, 1, "counted"));
    assert_eq!(core(&setup.row("tn_304").await), came_to("completed", 304, 0, "none"));
    setup.stop().await;
}

#[tokio::test]
async fn fault_43_trailers_are_passed_on() {
    let script = |kind: &'static str| {
        answer(200)
            .header("content-type", kind)
            .header("trailer", "x-sum")
            .chunks([batch_answer(8).to_string()])
            .trailers([("x-sum", "abc")])
            .steps()
    };
    let setup = Setup::new(move || script("application/json")).await;
    let asked = chat("tn_trailers", "hi").header("te", "trailers").header("connection", "te");
    let response = setup.gateway.ask(asked).await;
    assert_eq!((response.status, response.ended), (200, Ended::Clean));
    assert_eq!(response.trailers, [Header::new("x-sum", "abc")]);
    assert_eq!(core(&setup.row("tn_trailers").await), came_to("completed", 200, 8, "reported"));
    let passed = request("GET", "/other").header("te", "trailers").header("connection", "te");
    assert_eq!(setup.gateway.ask(passed).await.trailers, [Header::new("x-sum", "abc")]);
    // Who did not say that it reads trailers gets a whole answer without them.
    let response = setup.gateway.ask(chat("tn_no_trailers", "hi")).await;
    assert_eq!((response.status, response.ended), (200, Ended::Clean));
    setup.row("tn_no_trailers").await;
    setup.stop().await;
}

#[tokio::test]
async fn fault_44_a_connection_that_went_stale_is_replaced_unseen() {
    let script = || {
        let mut script = answer(200).json(&batch_answer(2));
        script.push(Step::Close);
        script
    };
    let setup = Setup::new(script).await;
    let mut client = setup.gateway.connect().await;
    for number in 0..5 {
        let tenant = format!("tn_stale_{number}");
        client.send(chat(&tenant, "hi")).await;
        assert_eq!(client.read_response().await.status, 200);
        assert_eq!(core(&setup.row(&tenant).await), came_to("completed", 200, 2, "reported"));
        setup.upstream.all_closed().await;
    }
    assert_eq!(setup.upstream.requests().len(), 5, "none was sent twice");
    setup.stop().await;
}

#[tokio::test]
async fn an_answer_of_doubtful_length_is_a_502() {
    let setup = Setup::new(|| raw("")).await;
    for (number, framing) in [
        "content-length: 2, 2",
        "content-length: 2\r\ncontent-length: 2",
        "content-length: 2\r\ncontent-length: 3",
        "content-length: +2",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: gzip",
        "transfer-encoding: identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    ]
    .into_iter()
    .enumerate()
    {
        let body = if framing.contains("chunked") { "2\r\n{}\r\n0\r\n\r\n" } else { "{}" };
        setup
            .upstream
            .answer_with(move |_| raw_then_close(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{body}")));
        let (response, row) = setup.chat(&format!("tn_doubtful_{number}")).await;
        assert_eq!(
            (response.status, response.json()["code"].clone()),
            (502, json!("upstream_invalid")),
            "{framing:?}"
        );
        assert_eq!(core(&row), came_to("upstream_error", 502, 0, "none"), "{framing:?}");
        assert_eq!(setup.gateway.ask(request("GET", "/other")).await.status, 502, "{framing:?}");
    }
    setup.stop().await;
}

#[tokio::test]
async fn fault_45_a_stream_reset_midway_is_a_cut_with_partial_usage() {
    for last in [Step::Reset, Step::Close, Step::send("this is no chunk\r\n")] {
        let script = answer(200)
            .events([&json!({"token": "Hello there, ", "partial": "Hello there, "})])
            .then(last)
            .unended();
        let setup = Setup::new(move || script.clone()).await;
        let (response, row) = setup.chat("tn_midway").await;
        assert_eq!((response.status, response.ended), (200, Ended::Cut));
        assert_eq!(core(&row)[..2], came_to("upstream_error", 200, 0, "partial")[..2]);
        assert_eq!((&row["token_source"], &row["streamed"]), (&json!("partial"), &json!(true)));
        assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| (3..=8).contains(&tokens)), "{row}");
        setup.stop().await;
    }
}

#[tokio::test]
async fn fault_46_a_silent_stream_is_ended_at_the_idle_limit() {
    let gone = Signal::new();
    let told = gone.clone();
    let setup = Setup::with(&[("upstream.idle_timeout", "150ms")], move || {
        answer(200)
            .events([&json!({"token": "Hello", "partial": "Hello"})])
            .then(Step::UntilPeerGone(told.clone()))
            .unended()
    })
    .await;
    let (response, row) = setup.chat("tn_silent").await;
    assert_eq!((response.status, response.ended), (200, Ended::Cut));
    // 1 token asked, 1 answered.
    assert_eq!(core(&row), came_to("timeout", 200, 2, "partial"));
    within("the upstream is let go", gone.wait()).await;
    setup.stop().await;
}

#[tokio::test]
async fn fault_46_a_slow_stream_is_not_a_silent_one() {
    let script = || {
        let token = json!({"token": "a", "partial": "a"});
        let pause = || Step::Delay(std::time::Duration::from_millis(120));
        let mut stream = answer(200).events([&token]);
        for _ in 0..3 {
            stream = stream.then(pause()).chunk(crate::harness::event(&token));
        }
        stream.steps()
    };
    let setup = Setup::with(&[("upstream.idle_timeout", "300ms")], script).await;
    let (response, row) = setup.chat("tn_slow").await;
    assert_eq!((response.status, response.ended), (200, Ended::Clean));
    assert_eq!(row["outcome"], json!("completed"));
    setup.stop().await;
}

#[tokio::test]
async fn fault_48_an_error_event_is_passed_on_and_recorded_as_the_upstreams() {
    let events = [
        json!({"token": "Hello ", "partial": "Hello "}),
        json!({"error": "Failed to process message. Please try again."}),
    ];
    let sent: String = events.iter().map(crate::harness::event).collect();
    let setup = Setup::new(move || answer(200).events(&events).steps()).await;
    let (response, row) = setup.chat("tn_error_event").await;
    assert_eq!((response.status, response.text(), response.ended), (200, sent, Ended::Clean));
    assert_eq!((&row["outcome"], &row["token_source"]), (&json!("upstream_error"), &json!("partial")));
    assert!(row["tokens_consumed"].as_u64().is_some_and(|tokens| tokens >= 2), "{row}");
    setup.stop().await;
}

#[tokio::test]
async fn fault_49_an_error_of_the_upstream_costs_a_call_and_gives_tokens_and_messages_back() {
    let setup = Setup::new(|| answer(500).json(&json!({}))).await;
    let told = json!({"error": "Quota exceeded. Please upgrade your plan.", "quota_remaining": 0});
    for status in [429, 500, 503] {
        let (body, tenant) = (told.clone(), format!("tn_error_{status}"));
        setup.upstream.answer_with(move |_| answer(status).header("retry-after", "7").json(&body));
        let response = setup.gateway.ask(batch(&tenant, 2)).await;
        assert_eq!((response.status, response.json()), (status, told.clone()));
        assert_eq!(response.header("retry-after"), Some("7"));
        let row = setup.row(&tenant).await;
        assert_eq!(core(&row), came_to("completed", status.into(), 0, "none"));
        assert_eq!(row["chat_messages"], json!(0));
        let next = setup.gateway.ask(batch(&tenant, 1)).await;
        let limits = next.header("ratelimit").unwrap();
        assert!(limits.contains("\"tokens_per_day\";r=9850;"), "{limits}");
        assert!(limits.contains("\"chat_messages_per_day\";r=99;"), "{limits}");
        rows(&setup.database, &tenant, 2).await;
        // By the counters, over all windows: a minute may turn between the two calls.
        let calls = format!(
            "SELECT sum(settled) FROM quota_usage WHERE tenant_id = '{tenant}' AND dimension = 'api_calls_per_minute'"
        );
        assert_eq!(setup.database.one(&calls), "2");
    }
    setup.stop().await;
}

#[tokio::test]
async fn fault_50_an_early_413_reaches_a_client_that_is_still_uploading() {
    let upstream = Upstream::answering_heads(|_| {
        let mut script = answer(413).header("connection", "close").body("too much");
        script.push(Step::UntilPeerGone(Signal::new()));
        script
    })
    .await;
    let setup = Setup::before(upstream, &[]).await;
    let mut client = setup.gateway.connect().await;
    client.send("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n").await;
    client.send(vec![b'x'; 64 * 1024]).await;
    let response = client.read_response().await;
    assert_eq!((response.status, response.text()), (413, "too much".to_owned()));
    drop(client);
    setup.upstream.all_closed().await;
    setup.stop().await;
}

#[tokio::test]
async fn the_first_event_passes_an_idle_upstream_at_once() {
    let setup = Setup::new(|| {
        answer(200)
            .events([&json!({"token": "Hi", "partial": "Hi"})])
            .then(Step::UntilPeerGone(Signal::new()))
            .unended()
    })
    .await;
    let mut client: Client = setup.gateway.connect().await;
    client.send(chat("tn_first_event", "hi")).await;
    assert_eq!(client.read_head().await.status, 200);
    assert!(matches!(client.read_data().await, Data::Bytes(_)));
    client.reset();
    assert_eq!(core(&setup.row("tn_first_event").await), came_to("client_aborted", 200, 2, "partial"));
    setup.stop().await;
}
