//! Refusals reach clients that are still sending, and say in JSON what is wrong.

use std::process::Command;

use serde_json::{Value, json};

use super::{gate, used};
use crate::harness::{Client, Ended, Upstream, chat, request, within};
use crate::outages::program::{Program, configure};
use crate::postgres::shared;

/// More than a chat may have, and more than the kernel keeps between the two.
const TOO_MUCH: usize = 24 << 20;

#[tokio::test]
async fn a_refusal_is_not_lost_to_a_client_that_sends_on() {
    let (upstream, _database, gateway) = gate(&[]).await;
    let head = String::from_utf8(chat("tn_large", "").bytes()).unwrap();
    let head = head.split("content-length").next().unwrap();
    for framing in [format!("content-length: {TOO_MUCH}"), "transfer-encoding: chunked".to_owned()] {
        let mut client = gateway.connect().await;
        client.send(format!("{head}{framing}\r\n\r\n")).await;
        if framing.ends_with("chunked") {
            client.send(format!("{TOO_MUCH:x}\r\n")).await;
        }
        // All of it is taken, and only then is the answer looked at.
        assert!(client.try_send(vec![b' '; TOO_MUCH]).await, "{framing}");
        let refused = client.read_response().await;
        assert_eq!((refused.status, refused.ended), (413, Ended::Clean), "{framing}");
        assert_eq!(refused.json()["code"], json!("body_too_large"));
        client.read_to_end().await;
    }
    assert_eq!(upstream.connections(), 0);
    gateway.stop().await;
}

/// Asks 25 times with 12 MB and prints how many answers were 413.
const NODE: &str = r#"
(async () => {
  let refused = 0;
  for (let i = 0; i < 25; i++) {
    try {
      const answer = await fetch(process.argv[1], {method: 'POST', body: 'x'.repeat(12e6),
        headers: {'content-type': 'application/json', 'x-tenant-id': 'tn_node'}});
      if (answer.status == 413 && (await answer.json()).code == 'body_too_large') refused++;
    } catch (error) { console.error(String(error.cause ?? error)); }
  }
  console.log(refused);
})()
"#;

const PYTHON: &str = r#"
import http.client, json, sys, urllib.parse
to = urllib.parse.urlsplit(sys.argv[1])
refused = 0
for _ in range(25):
    try:
        c = http.client.HTTPConnection(to.hostname, to.port, timeout=20)
        c.request("POST", to.path, b"x" * 12_000_000, {"content-type": "application/json", "x-tenant-id": "tn_python"})
        answer = c.getresponse()
        refused += answer.status == 413 and json.load(answer)["code"] == "body_too_large"
    except OSError as error: print(repr(error), file=sys.stderr)
print(refused)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn node_and_python_get_every_refusal() {
    let (_upstream, _database, gateway) = gate(&[]).await;
    for (program, flag, script) in [("node", "-e", NODE), ("python3", "-c", PYTHON)] {
        let mut client = Command::new(program);
        client.args([flag, script, &format!("http://{}/api/widget/chat", gateway.address)]);
        let ran = tokio::task::spawn_blocking(move || client.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "25", "{program}: {said}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_head_that_can_not_be_parsed_is_refused_in_json_as_everything_else() {
    let (upstream, _database, gateway) = gate(&[]).await;
    let long = "a".repeat(70_000);
    let cases = [
        ("GET /?a=\"b\" HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET /a<b> HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET / HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET / HTTP/3.7\r\nhost: a\r\n\r\n".to_owned(), 400, "bad_request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n".to_owned(), 400, "bad_request"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), 431, "head_too_large"),
    ];
    let mut count = 0.0;
    for (bytes, status, code) in cases {
        for after in [false, true] {
            let mut client = match after {
                true => used(&gateway).await,
                false => gateway.connect().await,
            };
            client.send(bytes.clone()).await;
            let refused = client.read_response().await;
            let told = refused.json();
            assert_eq!((refused.status, told["code"].clone()), (status, json!(code)), "{}", refused.head);
            assert_eq!((refused.header("connection"), told["request_id"].is_string()), (Some("close"), true));
            assert_eq!(told["request_id"], json!(refused.header("x-request-id")));
            assert_eq!(client.read_to_end().await, b"");
            count += 1.0;
        }
    }
    assert_eq!(gateway.metric("tollgate_bad_requests_total").await, count);
    assert!(upstream.requests().iter().all(|seen| seen.target() == "/page"));
    gateway.stop().await;
}

#[tokio::test]
async fn operators_are_refused_in_json_too() {
    let (_upstream, _database, gateway) = gate(&[]).await;
    let refused = Client::ask(gateway.admin, "GET /< HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((refused.status, refused.json()["code"].clone()), (400, json!("bad_request")));
    gateway.stop().await;
}

#[tokio::test]
async fn what_could_not_be_parsed_is_told_once_for_each_reason_with_its_peer() {
    let upstream = Upstream::start().await;
    let database = shared().database();
    let data = tempfile::tempdir().unwrap();
    configure(data.path(), &upstream.url(), &database.url(), "", "");
    let mut program = Program::start(data.path()).await;
    let mut ports = Vec::new();
    for bytes in ["GET /< HTTP/1.1\r\nhost: a\r\n\r\n", "GET / HTTP/1.1\r\nbad name: a\r\n\r\n"] {
        for _ in 0..5 {
            let mut client = Client::connect(program.address).await;
            ports.push(client.local_address().to_string());
            client.send(bytes).await;
            assert_eq!(client.read_response().await.status, 400);
        }
    }
    let told = async {
        while program.logged("not valid HTTP") < 2 {
            tokio::task::yield_now().await
        }
    };
    within("it is told", told).await;
    program.signal(rustix::process::Signal::TERM);
    assert_eq!(program.ended().await.code(), Some(0));
    let told: Vec<Value> = program
        .lines()
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &Value| line["message"].as_str().is_some_and(|m| m.contains("not valid HTTP")))
        .collect();
    let reasons: Vec<_> = told.iter().map(|line| line["reason"].clone()).collect();
    assert_eq!(reasons, [json!("invalid URI"), json!("invalid HTTP header parsed")]);
    assert!(told.iter().all(|line| ports.contains(&line["peer"].as_str().unwrap().to_owned())), "{told:?}");
}

/// Whether the first was answered by the service or by us: its answer is whole before the refusal of the second.
#[tokio::test]
async fn an_answer_that_comes_before_a_refusal_on_the_same_connection_stays_whole() {
    let (_upstream, _database, gateway) = gate(&[]).await;
    let first = String::from_utf8(request("GET", "/page").bytes()).unwrap();
    for first in [first.as_str(), "CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut client = gateway.connect().await;
        client.send(format!("{first}GET /< HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let answered = client.read_response().await;
        assert!(matches!(answered.status, 200 | 405), "{}", answered.head);
        let refused = client.try_read_response().await;
        let codes = refused.as_ref().map(|refused| (refused.status, refused.json()["code"].clone()));
        assert!(codes.is_none_or(|codes| codes == (400, Value::from("bad_request"))), "{refused:?}");
    }
    gateway.stop().await;
}
