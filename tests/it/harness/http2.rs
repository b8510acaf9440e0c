//! One request in HTTP/2 with prior knowledge, by hyper's client: frames are not something to write by hand.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use super::client::RequestText;

/// Sends what `request` says over HTTP/2; the answer's status and JSON.
pub(crate) async fn ask_http2(to: SocketAddr, request: RequestText) -> (u16, Value) {
    let bytes = request.bytes();
    let text = String::from_utf8(bytes).expect("a text request");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut made = http::Request::builder().method(method).uri(format!("http://{to}{target}"));
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header line");
        if !name.eq_ignore_ascii_case("host") {
            made = made.header(name, value);
        }
    }
    let made = made.body(Full::new(bytes::Bytes::from(body.to_owned()))).expect("a request");
    let stream = TcpStream::connect(to).await.expect("a connection");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let response = sender.send_request(made).await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}
