//! The load: connections that ask again as soon as they are answered, or that hold a stream open.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::statements::Pace;
use super::upstream::EVENT_MARK;

/// What all connections of a load share.
#[derive(Default)]
struct Shared {
    /// Answers, or events, so far.
    done: Cell<u64>,
    /// Calls answered to their end.
    calls: Cell<u64>,
    /// Streams that had their first event.
    begun: Cell<usize>,
    stopping: Cell<bool>,
    /// In microseconds, since the measurement began.
    latencies: RefCell<Vec<u32>>,
}

/// A load on its way.
pub(crate) struct Load {
    connections: JoinSet<anyhow::Result<()>>,
    count: usize,
    shared: Rc<Shared>,
    began: Cell<Instant>,
}

impl Load {
    /// `count` connections that send `request` again and again.
    pub(crate) fn requests(to: SocketAddr, request: &'static str, count: usize) -> Self {
        Self::start(count, |shared| ask_again(to, request, shared))
    }

    /// `count` connections that send `requests` in turn, all together `rate` a second.
    pub(crate) fn paced(to: SocketAddr, requests: Rc<[&'static str]>, count: usize, rate: u32) -> Self {
        let number = Cell::new(0);
        Self::start(count, |shared| {
            let mine = number.replace(number.get() + 1);
            ask_in_turn(to, requests.clone(), (mine, count), rate, shared)
        })
    }

    /// `count` connections that send `request` once and read events until the stream ends.
    pub(crate) fn streams(to: SocketAddr, request: &'static str, count: usize) -> Self {
        Self::start(count, |shared| hold_open(to, request, shared))
    }

    fn start<F>(count: usize, connection: impl Fn(Rc<Shared>) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + 'static,
    {
        let shared = Rc::new(Shared::default());
        let mut connections = JoinSet::new();
        for _ in 0..count {
            connections.spawn_local(connection(shared.clone()));
        }
        Self { connections, count, shared, began: Cell::new(Instant::now()) }
    }

    /// Begins the measurement: what was done so far.
    pub(crate) fn begin(&self) -> u64 {
        self.shared.latencies.borrow_mut().clear();
        self.began.set(Instant::now());
        self.done()
    }

    /// Answers, or events, so far.
    pub(crate) fn done(&self) -> u64 {
        self.shared.done.get()
    }

    /// The latencies since the measurement began, in microseconds.
    pub(crate) fn latencies(&self) -> Vec<u32> {
        self.shared.latencies.borrow().clone()
    }

    /// Since the measurement began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.get().elapsed()
    }

    /// Waits until each stream had an event.
    pub(crate) async fn all_begun(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.shared.begun.get() < self.count {
            if let Some(ended) = self.connections.try_join_next() {
                ended??;
                bail!("a stream ended before the others began");
            }
            let begun = self.shared.begun.get();
            ensure!(Instant::now() < deadline, "{begun} of {} streams began within 20 s", self.count);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Stops, and gives the latencies in microseconds, and how many calls there were in all; an error when a
    /// connection failed.
    pub(crate) async fn stop(mut self) -> anyhow::Result<(Vec<u32>, u64)> {
        self.shared.stopping.set(true);
        while let Some(ended) = self.connections.join_next().await {
            ended??;
        }
        Ok((self.shared.latencies.take(), self.shared.calls.get()))
    }

    /// Stops; says how many connections failed on the way, and how many calls were answered.
    pub(crate) async fn stop_all(mut self) -> (usize, u64) {
        self.shared.stopping.set(true);
        let mut failed = 0;
        while let Some(ended) = self.connections.join_next().await {
            failed += usize::from(!matches!(ended, Ok(Ok(()))));
        }
        (failed, self.shared.calls.get())
    }
}

async fn ask_again(to: SocketAddr, request: &'static str, shared: Rc<Shared>) -> anyhow::Result<()> {
    let mut stream = connect(to).await?;
    let mut buffer = Vec::with_capacity(16 * 1024);
    while !shared.stopping.get() {
        ask(&mut stream, &mut buffer, request, &shared).await?;
    }
    Ok(())
}

async fn ask_in_turn(
    to: SocketAddr,
    requests: Rc<[&'static str]>,
    (number, count): (usize, usize),
    rate: u32,
    shared: Rc<Shared>,
) -> anyhow::Result<()> {
    let mut stream = connect(to).await?;
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut pace = Pace::new(number, count, rate);
    for turn in (number..).step_by(count) {
        pace.wait().await;
        if shared.stopping.get() {
            break;
        }
        ask(&mut stream, &mut buffer, requests[turn % requests.len()], &shared).await?;
    }
    Ok(())
}

async fn ask(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    request: &str,
    shared: &Shared,
) -> anyhow::Result<()> {
    let sent = Instant::now();
    stream.write_all(request.as_bytes()).await?;
    loop {
        if let Some((head, length)) = head(buffer) {
            check(buffer)?;
            let whole = head + length.context("an answer without content-length")?;
            if buffer.len() >= whole {
                buffer.drain(..whole);
                break;
            }
        }
        ensure!(stream.read_buf(buffer).await? > 0, "a connection was closed amid an answer");
    }
    shared.done.set(shared.done.get() + 1);
    shared.calls.set(shared.calls.get() + 1);
    let latency = u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX);
    shared.latencies.borrow_mut().push(latency);
    Ok(())
}

async fn hold_open(to: SocketAddr, request: &'static str, shared: Rc<Shared>) -> anyhow::Result<()> {
    let mut stream = connect(to).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut events = 0_u64;
    while head(&buffer).is_none() {
        ensure!(stream.read_buf(&mut buffer).await? > 0, "a stream was not answered");
    }
    check(&buffer)?;
    loop {
        let more = buffer.iter().filter(|byte| **byte == EVENT_MARK).count() as u64;
        if events == 0 && more > 0 {
            shared.begun.set(shared.begun.get() + 1);
        }
        events += more;
        shared.done.set(shared.done.get() + more);
        if buffer.ends_with(b"0\r\n\r\n") {
            shared.calls.set(shared.calls.get() + 1);
            return Ok(());
        }
        // Five bytes are kept, so that an end which comes in two pieces is seen.
        let keep = buffer.len().saturating_sub(5);
        buffer.drain(..keep);
        buffer.iter_mut().filter(|byte| **byte == EVENT_MARK).for_each(|byte| *byte = b' ');
        ensure!(stream.read_buf(&mut buffer).await? > 0, "a stream was cut after {events} events");
    }
}

async fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn check(answer: &[u8]) -> anyhow::Result<()> {
    if answer.len() >= 12 && !answer.starts_with(b"HTTP/1.1 200") {
        bail!("an answer that is not a 200: {}", String::from_utf8_lossy(&answer[..answer.len().min(600)]));
    }
    Ok(())
}

/// The length of the head that `buffer` begins with, and the `content-length` that it names.
pub(crate) fn head(buffer: &[u8]) -> Option<(usize, Option<usize>)> {
    let end = memchr::memmem::find(buffer, b"\r\n\r\n")? + 4;
    let mut length = None;
    for line in buffer[..end].split(|byte| *byte == b'\n') {
        let name = b"content-length:";
        if line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name) {
            length =
                std::str::from_utf8(&line[name.len()..]).ok().and_then(|value| value.trim().parse().ok());
        }
    }
    Some((end, length))
}
