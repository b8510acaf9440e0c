//! A client that writes what it is given and keeps what it sees.
#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

use std::net::SocketAddr;

use serde_json::Value;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub(crate) use super::wire::Data;
use super::wire::{Framing, Header, Reader, find, parse_headers};
use super::within;

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// As its framing says.
    Clean,
    /// The connection closed, or was reset, before that.
    Cut,
}

/// An answer, as seen.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// The status line and headers, byte for byte (UTF-8 replaced where it isn't).
    pub(crate) head: String,
    /// In their order, case as sent.
    pub(crate) headers: Vec<Header>,
    /// Statuses of the interim answers before it.
    pub(crate) interim: Vec<u16>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<Header>,
    pub(crate) ended: Ended,
}

impl Response {
    /// The first value of a header, by any case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` when it is not.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// A request in the making; anything that is bytes can be sent in its place.
#[derive(Clone, Debug)]
pub(crate) struct RequestText {
    method: String,
    target: String,
    headers: Vec<Header>,
    body: Vec<u8>,
}

/// Begins a request: `host` is added unless given, and the framing that its body needs.
pub(crate) fn request(method: &str, target: &str) -> RequestText {
    RequestText {
        method: method.to_owned(),
        target: target.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    }
}

impl RequestText {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push(Header::new(name, value));
        self
    }

    pub(crate) fn body(self, body: impl AsRef<[u8]>) -> Self {
        let length = body.as_ref().len().to_string();
        let mut framed = self.header("content-length", &length);
        framed.body = body.as_ref().to_vec();
        framed
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub(crate) fn chunked<T: AsRef<[u8]>>(self, chunks: impl IntoIterator<Item = T>) -> Self {
        let mut framed = self.header("transfer-encoding", "chunked");
        for chunk in chunks {
            framed.body.extend(format!("{:x}\r\n", chunk.as_ref().len()).bytes());
            framed.body.extend_from_slice(chunk.as_ref());
            framed.body.extend_from_slice(b"\r\n");
        }
        framed.body.extend_from_slice(b"0\r\n\r\n");
        framed
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if find(&self.headers, "host").is_none() {
            head.push_str("host: test\r\n");
        }
        for Header { name, value } in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }
}

impl From<RequestText> for Vec<u8> {
    fn from(request: RequestText) -> Self {
        request.bytes()
    }
}

/// A connection to a server.
pub(crate) struct Client {
    reader: Reader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    framing: Framing,
}

impl Client {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to).await.unwrap()
    }

    /// The same to a server that may be gone.
    pub(crate) async fn try_connect(to: SocketAddr) -> std::io::Result<Self> {
        let stream = within("a connection", TcpStream::connect(to)).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader: Reader::new(reader), writer, framing: Framing::Empty })
    }

    /// Its own end of the connection.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.writer.local_addr().unwrap()
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(to: SocketAddr, what: impl Into<Vec<u8>>) -> Response {
        let mut client = Self::connect(to).await;
        client.send(what).await;
        client.read_response().await
    }

    /// Writes bytes; a peer that no longer reads is no fault here.
    pub(crate) async fn send(&mut self, what: impl Into<Vec<u8>>) {
        let _ = within("room to write", self.writer.write_all(&what.into())).await;
    }

    /// Writes bytes; `false` when the peer no longer takes them.
    pub(crate) async fn try_send(&mut self, what: impl Into<Vec<u8>>) -> bool {
        within("room to write", self.writer.write_all(&what.into())).await.is_ok()
    }

    /// Ends the sending side.
    pub(crate) async fn finish(&mut self) {
        let _ = self.writer.shutdown().await;
    }

    /// Leaves with a reset instead of an orderly end.
    pub(crate) fn reset(self) {
        let stream: &TcpStream = self.writer.as_ref();
        SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// The head of the next final answer; its body is then for [`Client::read_data`].
    pub(crate) async fn read_head(&mut self) -> Response {
        self.head_of_answer(false).await.expect("an answer, not the end of the connection")
    }

    /// The next part of the answer's body, as it arrives.
    pub(crate) async fn read_data(&mut self) -> Data {
        within("more of the body", self.reader.data(&mut self.framing)).await
    }

    /// The answer's body as it arrives, up to where it ends with `end`: a part may have any length.
    pub(crate) async fn read_up_to(&mut self, end: &[u8]) -> Vec<u8> {
        let mut seen = Vec::new();
        while !seen.ends_with(end) {
            let Data::Bytes(bytes) = self.read_data().await else {
                panic!("the body ended at {:?}", String::from_utf8_lossy(&seen));
            };
            seen.extend(bytes);
        }
        seen
    }

    /// A whole answer.
    pub(crate) async fn read_response(&mut self) -> Response {
        self.try_read_response().await.expect("an answer, not the end of the connection")
    }

    /// A whole answer; `None` when the connection ended without one.
    pub(crate) async fn try_read_response(&mut self) -> Option<Response> {
        let response = self.head_of_answer(false).await?;
        Some(self.rest_of(response).await)
    }

    /// The answer to a `HEAD`.
    pub(crate) async fn read_response_to_head(&mut self) -> Response {
        self.head_of_answer(true).await.expect("an answer, not the end of the connection")
    }

    /// Reads the body that belongs to `response`, to its end.
    pub(crate) async fn rest_of(&mut self, mut response: Response) -> Response {
        loop {
            match self.read_data().await {
                Data::Bytes(bytes) => response.body.extend(bytes),
                Data::End(trailers) => {
                    response.trailers = trailers;
                    response.ended = Ended::Clean;
                    return response;
                }
                Data::Cut => return response,
            }
        }
    }

    /// Reads the rest of the body to its end, and says how it ended.
    pub(crate) async fn read_out(&mut self) -> Ended {
        loop {
            match self.read_data().await {
                Data::Bytes(_) => {}
                Data::End(_) => return Ended::Clean,
                Data::Cut => return Ended::Cut,
            }
        }
    }

    /// The next `count` bytes, whatever they are.
    pub(crate) async fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        within("more bytes", self.reader.exactly(count)).await.expect("bytes, not the end of the connection")
    }

    /// Waits for the server to end the connection; returns what it still sent.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        within("the connection's end", self.reader.drain()).await;
        self.reader.take_rest()
    }

    async fn head_of_answer(&mut self, to_head: bool) -> Option<Response> {
        let mut interim = Vec::new();
        loop {
            let head = within("an answer", self.reader.head()).await?;
            let status = head.split(' ').nth(1).and_then(|text| text.get(..3)?.parse().ok()).unwrap_or(0);
            if (100..200).contains(&status) && status != 101 {
                interim.push(status);
                continue;
            }
            let headers = parse_headers(&head);
            self.framing =
                if to_head || matches!(status, 101 | 204 | 304) { Framing::Empty } else { framing(&headers) };
            let (body, trailers) = (Vec::new(), Vec::new());
            let ended = if self.framing == Framing::Empty { Ended::Clean } else { Ended::Cut };
            return Some(Response { status, head, headers, interim, body, trailers, ended });
        }
    }
}

fn framing(headers: &[Header]) -> Framing {
    if find(headers, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        return Framing::Chunked(0);
    }
    match find(headers, "content-length") {
        Some(length) => Framing::Length(length.parse().expect("content-length is a number")),
        None => Framing::Close,
    }
}
