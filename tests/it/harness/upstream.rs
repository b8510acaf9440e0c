//! A service that answers by script: byte for byte, on the test's signal, and in every wrong way.
#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::wire::{Data, Framing, Header, Reader, event, find, parse_headers};
use super::{Signal, within};

/// One act of a scripted answer. After the last, the connection is kept for the next request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Writes bytes, as they are.
    Send(Bytes),
    /// Waits until the test says so.
    Wait(Signal),
    /// Tells the test that the script has come here.
    Tell(Signal),
    /// Lets time pass: for answers that are slow, not for waiting.
    Delay(Duration),
    /// Writes the same bytes again and again until the peer is gone.
    Forever(Bytes),
    /// Reads until the peer is gone, then tells.
    UntilPeerGone(Signal),
    /// Reads until the peer has ended its side, and goes on.
    UntilPeerEnds,
    /// Ends the connection with a reset.
    Reset,
    /// Ends the connection in order.
    Close,
}

impl Step {
    pub(crate) fn send(bytes: impl AsRef<[u8]>) -> Self {
        Step::Send(Bytes::copy_from_slice(bytes.as_ref()))
    }

    /// A chunk of a chunked body.
    pub(crate) fn chunk(bytes: impl AsRef<[u8]>) -> Self {
        let size = format!("{:x}\r\n", bytes.as_ref().len());
        Step::Send([size.as_bytes(), bytes.as_ref(), b"\r\n"].concat().into())
    }
}

/// A well-formed answer in the making.
pub(crate) struct Answer {
    status: u16,
    headers: Vec<Header>,
    chunked: bool,
    steps: Vec<Step>,
    trailers: Vec<Header>,
}

/// Begins an answer; a body makes it whole: [`Answer::body`] with its length, [`Answer::chunk`] in chunks.
pub(crate) fn answer(status: u16) -> Answer {
    Answer { status, headers: Vec::new(), chunked: false, steps: Vec::new(), trailers: Vec::new() }
}

impl Answer {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(Header::new(name, value));
        self
    }

    pub(crate) fn body(self, body: impl AsRef<[u8]>) -> Vec<Step> {
        let length = body.as_ref().len().to_string();
        let head = self.header("content-length", &length).head();
        vec![Step::Send([head.as_bytes(), body.as_ref()].concat().into())]
    }

    pub(crate) fn json(self, body: &Value) -> Vec<Step> {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// A chunk of the body.
    pub(crate) fn chunk(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.chunked = true;
        self.then(Step::chunk(bytes))
    }

    pub(crate) fn chunks<T: AsRef<[u8]>>(self, chunks: impl IntoIterator<Item = T>) -> Self {
        chunks.into_iter().fold(self, Answer::chunk)
    }

    /// Makes it an event stream of these events, a chunk each.
    pub(crate) fn events<'a>(self, events: impl IntoIterator<Item = &'a Value>) -> Self {
        self.header("content-type", "text/event-stream").chunks(events.into_iter().map(event))
    }

    /// Something between two chunks.
    pub(crate) fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    pub(crate) fn trailers<'a>(mut self, trailers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.trailers = trailers.into_iter().map(|(name, value)| Header::new(name, value)).collect();
        self
    }

    /// The script, with the end of a chunked body.
    pub(crate) fn steps(self) -> Vec<Step> {
        let trailers: String = self.trailers.iter().map(|header| format!("{header:?}\r\n")).collect();
        let end = self.chunked.then(|| Step::send(format!("0\r\n{trailers}\r\n")));
        let mut steps = self.unended();
        steps.extend(end);
        steps
    }

    /// The script without the end of a chunked body, for what comes instead of it.
    pub(crate) fn unended(mut self) -> Vec<Step> {
        let framing = if self.chunked { ("transfer-encoding", "chunked") } else { ("content-length", "0") };
        let steps = std::mem::take(&mut self.steps);
        let head = self.header(framing.0, framing.1).head();
        std::iter::once(Step::send(head)).chain(steps).collect()
    }

    fn head(&self) -> String {
        let reason =
            http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let lines: String = self.headers.iter().map(|header| format!("{header:?}\r\n")).collect();
        format!("HTTP/1.1 {} {}\r\n{lines}\r\n", self.status, reason.unwrap_or_default())
    }
}

/// A request, as it reached the upstream.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Request line and headers, with the empty line.
    pub(crate) head: String,
    /// The body, without its framing; what came of it when it is not `complete`.
    pub(crate) body: Vec<u8>,
    /// The trailers of a chunked body.
    pub(crate) trailers: Vec<Header>,
    /// Whether the body came to its end (at the time of the script's call, when it is called on heads).
    pub(crate) complete: bool,
    /// Which connection brought it, from 0.
    pub(crate) connection: usize,
}

impl Request {
    pub(crate) fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// In their order, case as sent.
    pub(crate) fn headers(&self) -> Vec<Header> {
        parse_headers(&self.head)
    }

    /// The first value of a header, by any case.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        find(&self.headers(), name).map(str::to_owned)
    }

    /// The body as JSON; `null` when it is not.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

type Script = dyn Fn(&Request) -> Vec<Step> + Send + Sync;

struct State {
    script: Mutex<Arc<Script>>,
    /// The script is asked once the head is there, and the body left unread.
    on_head: bool,
    requests: watch::Sender<Vec<Request>>,
    accepted: AtomicUsize,
    open: watch::Sender<usize>,
}

/// A running fake service; stops when dropped, its connections with it.
pub(crate) struct Upstream {
    addr: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl Upstream {
    /// One that answers everything with 200 and `ok`.
    pub(crate) async fn start() -> Self {
        Self::answering(|_| answer(200).header("content-type", "text/plain").body("ok")).await
    }

    /// One that answers by script, once it has a request whole.
    pub(crate) async fn answering(script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::scripted(script, false, "127.0.0.1:0").await
    }

    /// One that answers as soon as it has a head and does not read the body: for early answers. It closes afterwards,
    /// and what it has not read turns that close into a reset; end the script with [`Step::UntilPeerGone`] where the
    /// answer must arrive for sure.
    pub(crate) async fn answering_heads(
        script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        Self::scripted(script, true, "127.0.0.1:0").await
    }

    /// One at a given address: for a service that comes back.
    pub(crate) async fn answering_at(
        at: SocketAddr,
        script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        Self::scripted(script, false, &at.to_string()).await
    }

    async fn scripted(
        script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static,
        on_head: bool,
        at: &str,
    ) -> Self {
        let listener = TcpListener::bind(at).await.expect("a free port");
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(State {
            script: Mutex::new(Arc::new(script)),
            on_head,
            requests: watch::Sender::new(Vec::new()),
            accepted: AtomicUsize::new(0),
            open: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Self { addr, state, accepting }
    }

    /// Answers by another script from now on.
    pub(crate) fn answer_with(&self, script: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Arc::new(script);
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every request seen so far, in the order of their ends.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.borrow().clone()
    }

    /// Waits until so many requests were seen, and returns them all.
    pub(crate) async fn seen(&self, count: usize) -> Vec<Request> {
        let mut requests = self.state.requests.subscribe();
        let enough =
            within("the upstream sees the requests", requests.wait_for(|seen| seen.len() >= count)).await;
        enough.unwrap().clone()
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub(crate) fn open_connections(&self) -> usize {
        *self.state.open.borrow()
    }

    /// Goes away: returns once its port refuses connections, its own being closed.
    pub(crate) async fn stop(mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }

    /// Waits until at least one connection came and none is open.
    pub(crate) async fn all_closed(&self) {
        let mut open = self.state.open.subscribe();
        let accepted = || self.connections() > 0;
        let none = open.wait_for(|open| *open == 0 && accepted());
        within("the upstream's connections close", none).await.unwrap();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    // Dropped with this task, and every connection with it.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        // Open before accepted, so that nobody sees one accepted and none open in between.
        let open = Open::new(state.clone());
        let number = state.accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(async move { serve(stream, number, &open.0).await });
        while connections.try_join_next().is_some() {}
    }
}

/// Counts a connection for as long as it is served.
struct Open(Arc<State>);

impl Open {
    fn new(state: Arc<State>) -> Self {
        state.open.send_modify(|open| *open += 1);
        Self(state)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

async fn serve(stream: TcpStream, connection: usize, state: &State) {
    let _ = stream.set_nodelay(true);
    let (reader, mut writer) = stream.into_split();
    let mut reader = Reader::new(reader);
    while let Some(request) = next_request(&mut reader, connection, state.on_head).await {
        let unanswerable = !request.complete && !state.on_head;
        let script = state.script.lock().unwrap().clone();
        state.requests.send_modify(|seen| seen.push(request.clone()));
        if unanswerable || !play(script(&request), &mut reader, &mut writer).await || state.on_head {
            return;
        }
    }
}

async fn next_request(
    reader: &mut Reader<OwnedReadHalf>,
    connection: usize,
    head_only: bool,
) -> Option<Request> {
    let head = reader.head().await?;
    let headers = parse_headers(&head);
    let mut request = Request { head, body: Vec::new(), trailers: Vec::new(), complete: false, connection };
    if head_only {
        return Some(request);
    }
    let mut framing = match (find(&headers, "transfer-encoding"), find(&headers, "content-length")) {
        (Some(_), _) => Framing::Chunked(0),
        (None, Some(length)) => Framing::Length(length.parse().expect("content-length is a number")),
        (None, None) => Framing::Empty,
    };
    loop {
        match reader.data(&mut framing).await {
            Data::Bytes(bytes) => request.body.extend(bytes),
            Data::Cut => return Some(request),
            Data::End(trailers) => {
                (request.trailers, request.complete) = (trailers, true);
                return Some(request);
            }
        }
    }
}

/// Plays a script; `false` when the connection is over.
async fn play(script: Vec<Step>, reader: &mut Reader<OwnedReadHalf>, writer: &mut OwnedWriteHalf) -> bool {
    for step in script {
        match step {
            Step::Send(bytes) => {
                if writer.write_all(&bytes).await.is_err() {
                    return false;
                }
            }
            Step::Wait(signal) => signal.wait().await,
            Step::Tell(signal) => signal.fire(),
            Step::Delay(time) => tokio::time::sleep(time).await,
            Step::Forever(bytes) => while writer.write_all(&bytes).await.is_ok() {},
            Step::UntilPeerGone(signal) => {
                reader.drain().await;
                signal.fire();
                return false;
            }
            Step::UntilPeerEnds => {
                let _ = reader.drain().await;
            }
            Step::Reset => {
                let stream: &TcpStream = (*writer).as_ref();
                let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                return false;
            }
            Step::Close => return false,
        }
    }
    true
}
