//! A client's connection, from its first bytes to its end: HTTP/1.1, HTTP/2, or what it switches to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::body::Body;
use super::failure::Failure;
use super::server::Worker;
use super::upgrade::Switch;
use crate::net::{Activity, ClientStream, Ended, Held, Limits, Protocol, Upload, attend, greet, spell_head};
use crate::telemetry::bump;

impl Worker {
    /// Serves a connection to its end; after `stop`, to the end of the exchanges in flight.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, stop: CancellationToken) {
        let server = &self.core.server;
        let (head, idle) = (server.header_timeout, server.keep_alive_timeout);
        let activity = Activity::new(Limits { handshake: head, head, idle });
        let (protocol, stream) = match greet(stream, &activity, &stop).await {
            Ok(greeted) => greeted,
            Err(ended) => return self.ended(&ended, peer),
        };
        let switch = Switch::default();
        let (worker, to) = (self.clone(), switch.clone());
        let (in_flight, of) = (activity.clone(), activity.clone());
        let calls = Arc::new(Calls { worker, peer, protocol, activity: of, switch: to, stop: stop.clone() });
        let calls = service_fn(move |request: Request<Incoming>| {
            let (calls, busy) = (calls.clone(), in_flight.begin());
            let request = Request::map(request, |body| Upload::new(body, &busy));
            async move { Ok::<_, Infallible>(calls.answer(request).await.map(|body| Held::new(body, busy))) }
        });
        let io = TokioIo::new(stream);
        match protocol {
            Protocol::Http2 => {
                let mut connection = pin!(self.http2.serve_connection(io, calls));
                let finish = |connection: Pin<&mut _>| {
                    hyper::server::conn::http2::Connection::graceful_shutdown(connection)
                };
                let ended = attend(connection.as_mut(), finish, &activity, protocol, &stop).await;
                self.ended(&ended, peer);
            }
            Protocol::Http1 => {
                let mut connection = self.http1.serve_connection(io, calls).with_upgrades();
                let finish = |connection: Pin<&mut _>| {
                    hyper::server::conn::http1::UpgradeableConnection::graceful_shutdown(connection);
                };
                let ended = attend(Pin::new(&mut connection), finish, &activity, protocol, &stop).await;
                self.ended(&ended, peer);
                match ended {
                    Ended::Itself(Ok(())) => {
                        if let Some(tunnel) = switch.take() {
                            drop(connection);
                            tunnel.run(self.core.server.upgrade_idle_timeout, &stop).await;
                        }
                    }
                    Ended::Itself(Err(error)) if error.is_parse() => {
                        if let Some(parts) = connection.into_parts() {
                            self.refuse(parts.io.into_inner(), &error, &stop).await;
                        }
                    }
                    Ended::Itself(Err(_)) | Ended::Silent(_) | Ended::Stopped => {}
                }
            }
        }
    }

    /// Counts and tells how a connection ended, where it didn't as it should.
    fn ended(&self, ended: &Ended, peer: SocketAddr) {
        match ended {
            Ended::Silent(waiting) => bump(&self.core.metrics.connections_ended, "reason", waiting.as_str()),
            Ended::Itself(Err(error)) if error.is_parse() => {
                self.core.metrics.bad_requests.inc();
                let reason = error.to_string();
                if let Some(times) = self.not_http.due(&reason, Instant::now()) {
                    tracing::warn!(
                        %peer,
                        reason,
                        times,
                        "requests that are not valid HTTP were refused (docs/routes.md, \"What is refused\")"
                    );
                }
            }
            Ended::Itself(_) | Ended::Stopped => {}
        }
    }

    /// Answers a head that could not be parsed, in place of the bare status that was withheld.
    async fn refuse(&self, stream: ClientStream, error: &hyper::Error, stop: &CancellationToken) {
        let Some(status) = stream.withheld().and_then(|status| StatusCode::from_u16(status).ok()) else {
            return;
        };
        let failure = Failure::NotHttp { status, why: error.to_string() };
        let answer = spelled_out(self.reply(&failure, None, &Uri::default(), None, None));
        tokio::select! {
            biased;
            _ = stream.answer_and_close(&answer) => {}
            () = tokio::time::sleep(self.core.server.header_timeout) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// An answer as HTTP/1.1 writes it; its body must be there whole.
fn spelled_out(response: Response<Body>) -> Vec<u8> {
    let (head, body) = response.into_parts();
    let mut bytes = spell_head(head.status, &head.headers);
    if let Body::Whole(Some(body)) = body {
        bytes.extend_from_slice(&body);
    }
    bytes
}

/// What a connection's requests need.
#[derive(Debug)]
struct Calls {
    worker: Arc<Worker>,
    peer: SocketAddr,
    protocol: Protocol,
    activity: Arc<Activity>,
    switch: Switch,
    stop: CancellationToken,
}

impl Calls {
    async fn answer(&self, mut request: Request<Upload>) -> Response<Body> {
        // Clients of HTTP/1.0 know no interim answers (RFC 9110, section 15.2).
        let answering = (request.version() == Version::HTTP_11).then(|| self.activity.interim().begin());
        if let Some(answering) = &answering {
            request.extensions_mut().insert(answering.sender());
        }
        let mut response = self.worker.handle(request, self.peer, &self.switch).await;
        if let Some(answering) = answering {
            self.worker.core.metrics.interim_dropped.inc_by(answering.end().await);
        }
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if self.protocol == Protocol::Http1 && self.stop.is_cancelled() && !switches {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
