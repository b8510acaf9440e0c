//! Whether a request has left for the service. Up to then a client that leaves owes nothing: there was no call.
//!
//! hyper's client reports which connection a request was given, not when its head was written: in between the request lies
//! in a queue, and a request whose client has left is taken out of that queue unsent. So each connection counts the
//! bytes that were written to it. A request has left as soon as its connection counts more than when it was given to
//! that request: HTTP/1.1 without pipelining writes nothing else in between.
//!
//! The count at that moment is exact because a connection's task runs on the same reactor as its requests (one thread a
//! worker): it can't write while a request is being polled.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::TryFutureExt;
use futures_util::future::MapOk;
use http::{Extensions, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection};
use tower_service::Service;

/// How many bytes were written to a connection so far.
#[derive(Clone, Debug)]
struct Written(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    since: Instant,
    bytes: AtomicU64,
    /// When the last of them were, in milliseconds after `since`.
    at_ms: AtomicU64,
}

impl Written {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self(Arc::new(Counts { since: Instant::now(), bytes: zero(), at_ms: zero() }))
    }

    fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Acquire)
    }

    fn write(&self, bytes: usize) {
        let at = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.at_ms.store(at, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes as u64, Ordering::Release);
    }
}

/// The connection that a request was given.
#[derive(Debug)]
struct Given {
    written: Written,
    /// What had been written to it before.
    before: u64,
}

/// Where a request is on its way to the service. Clones are of the same request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Departure(Arc<ArcSwapOption<Given>>);

impl Departure {
    /// Whether any of the request was written to a connection.
    pub(crate) fn has_left(&self) -> bool {
        self.0.load().as_ref().is_some_and(|given| given.written.bytes() > given.before)
    }

    /// When a byte of it was written last; before that, when its connection was made.
    pub(crate) fn last_write(&self) -> Option<Instant> {
        let given = self.0.load();
        let counts = &given.as_ref()?.written.0;
        Some(counts.since + Duration::from_millis(counts.at_ms.load(Ordering::Relaxed)))
    }

    /// Whether its connection had been used before.
    pub(crate) fn is_on_a_used_connection(&self) -> bool {
        self.0.load().as_ref().is_some_and(|given| given.before > 0)
    }

    /// Runs `sending`, the sending of the request whose connection `capture` knows.
    pub(crate) async fn watch<F: Future>(&self, capture: &CaptureConnection, sending: F) -> F::Output {
        let mut sending = pin!(sending);
        std::future::poll_fn(|cx| {
            let polled = sending.as_mut().poll(cx);
            if !self.has_left() {
                self.note(capture);
            }
            polled
        })
        .await
    }

    /// Notes the connection that the request was given, unless that is known. A pooled one that turns out to be closed is
    /// replaced by another.
    fn note(&self, capture: &CaptureConnection) {
        let metadata = capture.connection_metadata();
        let Some(connected) = metadata.as_ref() else { return };
        let mut extras = Extensions::new();
        connected.get_extras(&mut extras);
        let Some(written) = extras.remove::<Written>() else { return };
        let known = self.0.load();
        if known.as_ref().is_some_and(|given| Arc::ptr_eq(&given.written.0, &written.0)) {
            return;
        }
        let before = written.bytes();
        self.0.store(Some(Arc::new(Given { written, before })));
    }
}

#[cfg(test)]
impl Departure {
    /// As if the request had left.
    pub(crate) fn leave(&self) {
        let written = Written::new();
        written.write(1);
        self.0.store(Some(Arc::new(Given { written, before: 0 })));
    }
}

/// A connector whose connections count what is written to them.
#[derive(Clone, Debug)]
pub(crate) struct Counting<C>(pub(crate) C);

impl<C: Service<Uri>> Service<Uri> for Counting<C> {
    type Response = Counted<C::Response>;
    type Error = C::Error;
    type Future = MapOk<C::Future, fn(C::Response) -> Counted<C::Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        self.0.call(uri).map_ok(|io| Counted { io, written: Written::new() })
    }
}

/// A connection that counts what is written to it. Under TLS that is what TLS took to be encrypted, without handshakes.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    io: T,
    written: Written,
}

impl<T> Counted<T> {
    fn count(&self, polled: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = polled {
            self.written.write(*bytes);
        }
    }
}

impl<T: Connection> Connection for Counted<T> {
    fn connected(&self) -> Connected {
        self.io.connected().extra(self.written.clone())
    }
}

impl<T: Read + Unpin> Read for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: Write + Unpin> Write for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.count(&polled);
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.count(&polled);
        polled
    }
}
