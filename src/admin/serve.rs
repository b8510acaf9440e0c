//! The admin listener's connections: bounded in number and in patience, so that a flood or silent clients leave the
//! probes reachable.
//!
//! When all places are taken, the connection that has been without a request for longest gives way: a probe asks as soon as
//! it is connected, and is never the oldest of those that don't.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::header::{self, HeaderName};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, Connection};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::net::{Activity, ClientStream, Ended, Held, Limits, Protocol, attend, greet, spell_head};

/// Connections at once, at most. Prometheus, probes, a dashboard and some people need a dozen.
pub const MAX_CONNECTIONS: usize = 512;

/// How long a client may take to begin and to send a request's head, and how long a connection may be idle between two:
/// longer than the usual interval of a scrape or a probe.
const LIMITS: Limits = Limits {
    handshake: Duration::from_secs(10),
    head: Duration::from_secs(10),
    idle: Duration::from_secs(75),
};

/// How long open calls may take to end once the listener stops.
const DRAIN: Duration = Duration::from_secs(5);

/// A pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener`, `most` connections at once, until `shutdown` resolves, then lets open calls end, for
/// five seconds at most.
pub async fn serve(listener: TcpListener, router: Router, most: usize, shutdown: impl Future<Output = ()>) {
    let stop = CancellationToken::new();
    let mut connections = Connections { most, tasks: JoinSet::new(), open: VecDeque::new() };
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin listener could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Where nobody gives way the connection is closed, not queued: a probe should fail at once or work.
        if connections.make_room() {
            let activity = Activity::new(LIMITS);
            connections
                .add(&activity, converse(stream, peer, router.clone(), activity.clone(), stop.clone()));
        }
    }
    drop(listener);
    stop.cancel();
    let mut tasks = connections.tasks;
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("admin calls were still open at the end of the drain");
    }
    tasks.shutdown().await;
}

/// The open connections, oldest first.
struct Connections {
    most: usize,
    tasks: JoinSet<()>,
    open: VecDeque<(Arc<Activity>, AbortHandle)>,
}

impl Connections {
    /// Whether there is room for one more, if need be that of a connection without a request.
    fn make_room(&mut self) -> bool {
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.len() < self.most {
            return true;
        }
        self.open.retain(|(_, task)| !task.is_finished());
        let Some(silent) = self.open.iter().position(|(activity, _)| !activity.is_busy()) else {
            return false;
        };
        if let Some((_, task)) = self.open.remove(silent) {
            task.abort();
        }
        true
    }

    fn add(&mut self, activity: &Arc<Activity>, connection: impl Future<Output = ()> + Send + 'static) {
        // Those that have ended are forgotten now and then.
        if self.open.len() >= 2 * self.most {
            self.open.retain(|(_, task)| !task.is_finished());
        }
        let task = self.tasks.spawn(connection);
        self.open.push_back((activity.clone(), task));
    }
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    activity: Arc<Activity>,
    stop: CancellationToken,
) {
    let Ok((Protocol::Http1, stream)) = greet(stream, &activity, &stop).await else { return };
    let service = TowerToHyperService::new(router);
    let calls = activity.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let busy = calls.begin();
        request.extensions_mut().insert(ConnectInfo(peer));
        let answering = service.call(request);
        async move { answering.await.map(|response| response.map(|body| Held::new(body, busy))) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The limits are the connection's own.
        .header_read_timeout(None)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service);
    let finish = |connection: Pin<&mut _>| Connection::graceful_shutdown(connection);
    match attend(Pin::new(&mut connection), finish, &activity, Protocol::Http1, &stop).await {
        Ended::Itself(Err(error)) => {
            tracing::debug!(%error, %peer, "an admin connection ended badly");
            if error.is_parse() {
                refuse(connection.into_parts().io.into_inner(), &error, &stop).await;
            }
        }
        Ended::Itself(Ok(())) | Ended::Silent(_) | Ended::Stopped => {}
    }
}

/// Answers a head that could not be parsed.
async fn refuse(stream: ClientStream, error: &hyper::Error, stop: &CancellationToken) {
    let Some(status) = stream.withheld().and_then(|status| StatusCode::from_u16(status).ok()) else { return };
    let id = uuid::Uuid::now_v7().to_string();
    let error = format!("not valid HTTP ({error})");
    let body = json!({"error": error, "code": "bad_request", "request_id": id}).to_string();
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (HeaderName::from_static("x-request-id"), &id),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONNECTION, "close"),
        (header::CONTENT_LENGTH, &body.len().to_string()),
    ];
    let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value.parse().ok()?))).collect();
    let mut answer = spell_head(status, &headers);
    answer.extend_from_slice(body.as_bytes());
    tokio::select! {
        biased;
        _ = stream.answer_and_close(&answer) => {}
        () = tokio::time::sleep(LIMITS.head) => {}
        () = stop.cancelled() => {}
    }
}
