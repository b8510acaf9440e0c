//! A client's byte stream, as HTTP sees it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, LAST_CALL, Protocol, Waiting};
use super::attend::Ended;
use super::linger::Linger;

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 §3.4); no HTTP/1 method begins so.
const H2_PREFACE: &[u8] = b"PRI ";

/// Room for the first bytes: most heads fit.
const FIRST: usize = 2048;

/// Reads a connection's first bytes, to know what it speaks; or says how it ended before that.
pub(crate) async fn greet(
    mut stream: TcpStream,
    activity: &Arc<Activity>,
    stop: &CancellationToken,
) -> Result<(Protocol, ClientStream), Ended> {
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_CALL).await;
    };
    let first = tokio::select! {
        biased;
        first = first_bytes(&mut stream) => first,
        () = tokio::time::sleep(activity.limits().handshake) => return Err(Ended::Silent(Waiting::Handshake)),
        () = stopped => return Err(Ended::Stopped),
    };
    let Ok(Some((protocol, first))) = first else { return Err(Ended::Itself(Ok(()))) };
    activity.speaks(protocol);
    activity.read(first.len());
    let http1 = protocol == Protocol::Http1;
    let activity = Some(activity.clone());
    Ok((
        protocol,
        ClientStream {
            stream,
            first,
            activity,
            http1,
            interim: Bytes::new(),
            withheld: None,
            ended: false,
            closing: None,
        },
    ))
}

/// The first bytes, as many as tell the protocol; `None` when the client sent none.
async fn first_bytes(stream: &mut TcpStream) -> io::Result<Option<(Protocol, Bytes)>> {
    // A silent connection holds no buffer.
    stream.readable().await?;
    let mut first = BytesMut::with_capacity(FIRST);
    loop {
        if stream.read_buf(&mut first).await? == 0 {
            let some = (!first.is_empty()).then(|| (Protocol::Http1, first.freeze()));
            return Ok(some);
        }
        if first.starts_with(H2_PREFACE) {
            return Ok(Some((Protocol::Http2, first.freeze())));
        }
        if !H2_PREFACE.starts_with(&first) {
            return Ok(Some((Protocol::Http1, first.freeze())));
        }
    }
}

/// A client's byte stream: what was read of it already and then the rest, with a lingering close.
///
/// HTTP/1 answers a head that it can't parse before anybody sees the request, with a bare status. That answer is withheld
/// ([`ClientStream::withheld`]), so that a better one can be given. Interim answers are written here (`interim`).
#[derive(Debug)]
pub(crate) struct ClientStream {
    stream: TcpStream,
    /// Bytes read from it and not taken yet.
    first: Bytes,
    /// `None` once another protocol than HTTP is spoken.
    activity: Option<Arc<Activity>>,
    http1: bool,
    /// The rest of an interim answer that is being written.
    interim: Bytes,
    withheld: Option<u16>,
    /// The client has ended its side.
    ended: bool,
    closing: Option<Linger>,
}

impl ClientStream {
    /// The status of the answer that was withheld, if one was.
    pub(crate) fn withheld(&self) -> Option<u16> {
        self.withheld
    }

    /// The stream for another protocol; `read` has been read of it and not used.
    pub(crate) fn switched(mut self, read: Bytes) -> Self {
        if !read.is_empty() {
            let rest = std::mem::replace(&mut self.first, read);
            if !rest.is_empty() {
                self.first = [&self.first[..], &rest].concat().into();
            }
        }
        Self { activity: None, http1: false, ..self }
    }

    /// Sends `answer` in place of the one that was withheld, and closes.
    pub(crate) async fn answer_and_close(mut self, answer: &[u8]) -> io::Result<()> {
        self.withheld = None;
        self.http1 = false;
        self.write_all(answer).await?;
        self.shutdown().await
    }

    /// Writes the rest of the interim answer that was begun.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.interim))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.interim.advance(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the interim answers that wait: nothing else does, where this is called.
    fn poll_all_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_interim(cx))?;
            match self
                .activity
                .as_ref()
                .filter(|_| self.http1)
                .and_then(|activity| activity.interim().next(cx))
            {
                Some(head) => self.interim = head,
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Whether what is written now is an answer that no request was seen for.
    fn withholds(&mut self, bytes: &[u8]) -> bool {
        if !self.http1 || !self.activity.as_ref().is_some_and(|activity| activity.owes_nothing()) {
            return false;
        }
        let status = || std::str::from_utf8(bytes.get(9..12)?).ok()?.parse().ok();
        self.withheld.get_or_insert_with(|| status().unwrap_or(400));
        true
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(into.remaining());
            into.put_slice(&self.first[..count]);
            self.first.advance(count);
            if self.first.is_empty() {
                // Let its memory go.
                self.first = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        let count = into.filled().len() - before;
        self.ended |= count == 0 && into.remaining() > 0;
        if let Some(activity) = self.activity.as_ref().filter(|_| count > 0) {
            activity.read(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.withholds(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.withholds(pieces.first().map_or(&[], |piece| piece)) {
            return Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()));
        }
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(activity) = &self.activity {
            activity.flushed();
        }
        ready!(self.poll_all_interim(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.withheld.is_some() {
            return Poll::Ready(Ok(()));
        }
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if this.ended || this.activity.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
        let closing = this.closing.get_or_insert_with(Linger::new);
        ready!(closing.poll(&mut this.stream, cx));
        this.ended = true;
        Poll::Ready(Ok(()))
    }
}
