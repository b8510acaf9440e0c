//! Requests in HTTP/2 whose bodies the test sends piece by piece, several on one connection.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::within;

type Pieces = StreamBody<Receiving>;

/// A body's pieces, as they are sent.
struct Receiving(mpsc::UnboundedReceiver<Bytes>);

impl futures_util::Stream for Receiving {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A connection in HTTP/2 with prior knowledge; closed when dropped.
pub(crate) struct Http2 {
    sender: hyper::client::conn::http2::SendRequest<Pieces>,
    to: SocketAddr,
    connection: JoinHandle<()>,
}

/// A request on it; reset when dropped.
pub(crate) struct Stream {
    pieces: Option<mpsc::UnboundedSender<Bytes>>,
    answer: JoinHandle<Option<(u16, Bytes)>>,
}

impl Http2 {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.expect("a connection");
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("HTTP/2");
        let connection = tokio::spawn(async move { drop(connection.await) });
        Self { sender, to, connection }
    }

    /// Sends a request's head; its body is for [`Stream::send`].
    pub(crate) fn open(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Stream {
        let (pieces, receiving) = mpsc::unbounded_channel();
        let mut request = http::Request::builder().method(method).uri(format!("http://{}{target}", self.to));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(StreamBody::new(Receiving(receiving))).expect("a request");
        let mut sender = self.sender.clone();
        let answer = tokio::spawn(async move {
            sender.ready().await.ok()?;
            let answer = sender.send_request(request).await.ok()?;
            let status = answer.status().as_u16();
            Some((status, answer.into_body().collect().await.ok()?.to_bytes()))
        });
        Stream { pieces: Some(pieces), answer }
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Stream {
    /// Sends a piece of the body as soon as it may.
    pub(crate) fn send(&self, piece: impl Into<Bytes>) {
        let _ = self.pieces.as_ref().map(|pieces| pieces.send(piece.into()));
    }

    /// Ends the body and returns the answer; `None` when the stream was reset.
    pub(crate) async fn finish(mut self) -> Option<(u16, Bytes)> {
        self.pieces = None;
        within("an answer", &mut self.answer).await.ok().flatten()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.answer.abort();
    }
}
