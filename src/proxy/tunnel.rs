//! A connection that has switched to another protocol: bytes both ways until both sides have ended.
//!
//! It runs in the task of its client's connection, and so keeps its place among the connections, is waited for at the
//! stop, and is cut with all others when the drain limit runs out.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::settlement::Settlement;
use crate::model::event::Outcome;
use crate::net::ClientStream;

/// How long at the stop neither side may say anything before the connection is ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Both sides of a switched connection, and what is to be recorded of it.
#[derive(Debug)]
pub(crate) struct Tunnel {
    protocol: String,
    client: Option<OnUpgrade>,
    service: Option<OnUpgrade>,
    traffic: Traffic,
    settlement: Option<Settlement>,
}

impl Tunnel {
    /// `settlement` is that of a metered one.
    pub(crate) fn new(
        protocol: String,
        client: OnUpgrade,
        service: OnUpgrade,
        settlement: Option<Settlement>,
    ) -> Self {
        let (client, service) = (Some(client), Some(service));
        Self { protocol, client, service, traffic: Traffic::new(), settlement }
    }

    /// Runs until both sides have ended, neither has said anything for `idle`, or one is broken.
    pub(crate) async fn run(mut self, idle: Duration, stop: &CancellationToken) {
        let (Some(client), Some(service)) = (self.client.take(), self.service.take()) else { return };
        let (Ok(client), Ok(service)) = (client.await, service.await) else { return };
        let Ok(parts) = client.downcast::<TokioIo<ClientStream>>() else { return };
        let client = parts.io.into_inner().switched(parts.read_buf);
        let ended = relay(client, service, &self.traffic, idle, stop).await;
        if let Some(mut settlement) = self.settlement.take() {
            self.traffic.note(&self.protocol, &mut settlement);
            let outcome = if ended.is_ok() { Outcome::Completed } else { Outcome::ClientAborted };
            settlement.finish(outcome).await;
        }
    }
}

impl Drop for Tunnel {
    /// It was cut, or never came to be.
    fn drop(&mut self) {
        if let Some(mut settlement) = self.settlement.take() {
            self.traffic.note(&self.protocol, &mut settlement);
        }
    }
}

/// What went through, and when last.
#[derive(Debug)]
struct Traffic {
    began: Instant,
    from_client: AtomicU64,
    to_client: AtomicU64,
    last_ms: AtomicU64,
    /// The gateway stops: nothing more is taken from the client.
    ending: AtomicBool,
}

impl Traffic {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let ending = AtomicBool::new(false);
        Self { began: Instant::now(), from_client: zero(), to_client: zero(), last_ms: zero(), ending }
    }

    fn add(&self, to: &AtomicU64, bytes: usize) {
        to.fetch_add(bytes as u64, Ordering::Relaxed);
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    fn note(&self, protocol: &str, settlement: &mut Settlement) {
        let bytes = |count: &AtomicU64| count.load(Ordering::Relaxed);
        settlement.switched(protocol, bytes(&self.from_client), bytes(&self.to_client));
    }
}

async fn relay(
    client: ClientStream,
    service: Upgraded,
    traffic: &Traffic,
    idle: Duration,
    stop: &CancellationToken,
) -> io::Result<()> {
    let mut client = Watched { stream: client, traffic };
    let mut service = TokioIo::new(service);
    let mut copying = pin!(copy_bidirectional(&mut client, &mut service));
    let mut limit = idle;
    let mut timer = pin!(tokio::time::sleep(limit));
    loop {
        tokio::select! {
            biased;
            ended = copying.as_mut() => return ended.map(|_| ()),
            () = stop.cancelled(), if !traffic.ending.load(Ordering::Relaxed) => {
                // The service sees its client leave, and can say what it has to say.
                traffic.ending.store(true, Ordering::Relaxed);
                limit = LAST_WORDS.min(idle);
                timer.as_mut().reset(Instant::now() + limit);
            }
            () = timer.as_mut() => {
                let due = traffic.last() + limit;
                if due <= Instant::now() {
                    return Ok(());
                }
                timer.as_mut().reset(due);
            }
        }
    }
}

/// The client's side, counted.
#[derive(Debug)]
struct Watched<'a> {
    stream: ClientStream,
    traffic: &'a Traffic,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.traffic.ending.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        self.traffic.add(&self.traffic.from_client, into.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.traffic.add(&self.traffic.to_client, written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
