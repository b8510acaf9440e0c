//! The service behind: as cheap as it can be, so that it does not hold the target back.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Between two events of a stream.
pub(crate) const EVENT_INTERVAL: Duration = Duration::from_millis(50);

/// Stands once in each event, and nowhere else in a stream.
pub(crate) const EVENT_MARK: u8 = b'~';

/// A running upstream, in this process and thread.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    ending: Rc<Cell<bool>>,
}

impl Upstream {
    /// Streams asked for from now on go on until they are ended.
    pub(crate) fn let_streams_run(&self) {
        self.ending.set(false);
    }

    /// Each stream ends, properly, with its next event.
    pub(crate) fn end_streams(&self) {
        self.ending.set(true);
    }
}

/// The three requests of the run, as they go over the wire.
pub(crate) fn page_request() -> &'static str {
    leak(
        "GET /page HTTP/1.1\r\nhost: load.example\r\naccept: application/json\r\nuser-agent: load\r\n\r\n"
            .to_owned(),
    )
}

pub(crate) fn chat_request() -> &'static str {
    post("/api/widget/chat", "tn_load01")
}

/// The same of a tenant of one's own.
pub(crate) fn chat_request_of(tenant: &str) -> &'static str {
    post("/api/widget/chat", tenant)
}

pub(crate) fn stream_request() -> &'static str {
    post("/api/widget/chat?stream=true", "tn_load01")
}

fn post(target: &str, tenant: &str) -> &'static str {
    let body = r#"{"sessionId": "de300000-0000-4000-8000-000000000001", "messages": [{"query": "When are you open?"}, {"query": "Do you deliver on Saturdays?"}]}"#;
    leak(format!(
        "POST {target} HTTP/1.1\r\nhost: load.example\r\norigin: https://shop.example\r\nuser-agent: load\r\n\
         content-type: application/json\r\nx-tenant-id: {tenant}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn whole(body: &str) -> &'static str {
    leak(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// 1 KB of the service's batch answer, with its token count.
fn batch_body() -> String {
    let item = |query: &str| {
        format!(
            r#"{{"reply": "{}", "sources": [], "tokens_used": 150, "latency_ms": 5, "error": null, "query": "{query}", "status": "success"}}"#,
            "We are open from nine to six, and on Saturdays until two. ".repeat(5)
        )
    };
    format!(
        r#"{{"batch": [{}, {}], "aggregated": true, "totalTokens": 300, "totalLatency": 10, "audits": [], "summary": {{"batchSize": 2, "totalTokens": 300}}}}"#,
        item("When are you open?"),
        item("Do you deliver on Saturdays?")
    )
}

#[derive(Clone, Copy)]
struct Answers {
    page: &'static str,
    chat: &'static str,
    event: &'static str,
}

/// Starts it on a port of its own.
pub(crate) async fn start() -> anyhow::Result<Upstream> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let ending = Rc::new(Cell::new(false));
    let event = "data: {\"reply\": \"We are open from nine to six, and on Saturdays until two.~\", \"tokens_used\": 3, \
                 \"latency_ms\": 5, \"query\": \"When?\", \"status\": \"success\"}\n\n";
    let answers = Answers {
        page: whole(&format!("{{\"page\": \"{}\"}}", "x".repeat(1000))),
        chat: whole(&batch_body()),
        event: leak(format!("{:x}\r\n{event}\r\n", event.len())),
    };
    let shared = ending.clone();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A connection that fails is the target's to notice.
            tokio::task::spawn_local(serve(stream, answers, shared.clone()));
        }
    });
    Ok(Upstream { address, ending })
}

async fn serve(mut stream: TcpStream, answers: Answers, ending: Rc<Cell<bool>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(8192);
    loop {
        let Some(length) = request_length(&buffer) else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let streamed = buffer.starts_with(b"POST /api/widget/chat?stream=true");
        let answer = if buffer.starts_with(b"GET") { answers.page } else { answers.chat };
        buffer.drain(..length);
        if streamed {
            events(&mut stream, answers.event, &ending).await?;
        } else {
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

async fn events(stream: &mut TcpStream, event: &str, ending: &Cell<bool>) -> std::io::Result<()> {
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await?;
    let mut ticks = tokio::time::interval(EVENT_INTERVAL);
    // A machine that can't keep up shows fewer events a second, not bursts that a target reads at one go.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !ending.get() {
        ticks.tick().await;
        stream.write_all(event.as_bytes()).await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

/// The bytes of the first whole request in `buffer`.
fn request_length(buffer: &[u8]) -> Option<usize> {
    let (head, length) = super::client::head(buffer)?;
    let whole = head + length.unwrap_or(0);
    (buffer.len() >= whole).then_some(whole)
}
