//! Every route, and what holds for all of them.
//!
//! 1. Nothing under `/api/admin/` is reached without credentials, not even a 404: the door stands before the
//!    routes, so a new route can't forget it.
//! 2. Every answer has an `x-request-id`, is not to be cached, and is what its content type says.
//! 3. Every failure is JSON with `error`, `code` and `request_id`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{self, ConnectInfo, MatchedPath, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::audit::{self, Caller, Refused};
use super::auth::presents_any;
use super::context::Context;
use super::problem::{Problem, render};
use super::state::State;
use super::throttle::Turn;
use super::{aggregate, alerts, auth, explain, health, models, overrides, pages, quotas, usage};
use crate::telemetry::bump;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is behind the door.
const GUARDED: &str = "/api/admin";

type Shared = Arc<Context>;

/// All routes. `openapi.json` describes these, and a test holds the two against each other.
pub(super) fn routes() -> Vec<(&'static str, MethodRouter<Shared>)> {
    vec![
        ("/", get(pages::index)),
        ("/openapi.json", get(pages::openapi)),
        ("/healthz", get(health::live)),
        ("/readyz", get(health::ready)),
        ("/metrics", get(health::metrics)),
        ("/api/admin/usage", get(usage::usage)),
        ("/api/admin/models", get(models::list)),
        (auth::AGGREGATE_PATH, get(aggregate::status).merge(post(aggregate::run))),
        (
            "/api/admin/tenants/{id}/quota",
            get(quotas::effective).merge(put(overrides::set)).merge(delete(overrides::remove)),
        ),
        ("/api/admin/tenants/{id}/explain", get(explain::explain)),
        ("/api/admin/alerts", get(alerts::list)),
        ("/api/admin/audit", get(audit::list)),
        ("/api/admin/audit/{event_id}/resolve", post(audit::resolve)),
    ]
}

/// The admin listener's routes. Serve them with [`serve`](super::serve()), which tells them the peer's address.
pub fn router(state: State) -> Router {
    let context = Context::new(state);
    let mut router = Router::new();
    for (path, methods) in routes() {
        router = router.route(path, methods);
    }
    router
        .fallback(async || Problem::Missing("there is no such path".to_owned()))
        .layer(middleware::from_fn_with_state(Arc::clone(&context), door))
        .layer(middleware::from_fn(seal))
        .with_state(context)
}

/// Lets a call in, or says why not.
async fn door(context: extract::State<Shared>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let guarded = path.strip_prefix(GUARDED).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !guarded {
        return next.run(request).await;
    }
    let (mut head, body) = request.into_parts();
    match admit(&context, &head).await {
        Ok(caller) => {
            head.extensions.insert(caller);
            next.run(Request::from_parts(head, body)).await
        }
        Err(problem) => {
            bump(&context.state.metrics.admin_refusals, "code", problem.code());
            problem.into_response()
        }
    }
}

async fn admit(context: &Context, head: &Parts) -> Result<Caller, Problem> {
    let (path, headers) = (head.uri.path(), &head.headers);
    if !context.keys.any_for(path) {
        return Err(Problem::Disabled);
    }
    let peer = peer(head);
    let mut caller = Caller { role: None, peer, request_id: request_id_of(head) };
    match context.keys.role(path, headers) {
        Ok(role) => {
            caller.role = Some(role);
            if role.permits(&head.method) {
                return Ok(caller);
            }
            record(context, head, &caller, "a read-only token on a changing call");
            Err(Problem::Forbidden)
        }
        // A call without credentials guesses nothing: it costs the address none of its attempts.
        Err(problem) if !presents_any(headers) => {
            record(context, head, &caller, "no credentials");
            Err(problem)
        }
        Err(problem) => match context.guesses.charge(peer, Instant::now()) {
            Turn::Now => {
                record(context, head, &caller, "wrong credentials");
                Err(problem)
            }
            Turn::After(wait) => {
                tokio::time::sleep(wait).await;
                record(context, head, &caller, "wrong credentials");
                Err(Problem::Throttled { retry_after: Duration::from_secs(1) })
            }
            Turn::Refuse(retry_after) => Err(Problem::Throttled { retry_after }),
        },
    }
}

/// Audits a refusal, as far as the ration goes: an attack must not fill the journal.
fn record(context: &Context, head: &Parts, caller: &Caller, reason: &'static str) {
    if context.records.charge(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Instant::now()) != Turn::Now {
        return;
    }
    let route = head.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    let (method, headers) = (head.method.as_str(), &head.headers);
    tracing::warn!(peer = %caller.peer, reason, request_id = caller.request_id, "an admin call was refused");
    audit::refused(context, &Refused { who: caller, route, method, headers }, reason);
}

/// The peer as the socket knows it; what headers say of it is anybody's word.
fn peer(head: &Parts) -> IpAddr {
    let known = head.extensions.get::<ConnectInfo<SocketAddr>>();
    known.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip())
}

#[derive(Clone)]
struct RequestId(String);

fn request_id_of(head: &Parts) -> String {
    head.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}

/// Gives the call its id, and every answer its form.
async fn seal(mut request: Request, next: Next) -> Response {
    let id = given_id(request.headers()).unwrap_or_else(|| uuid::Uuid::now_v7().to_string());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    let problem = response.extensions_mut().remove::<Problem>();
    if let Some(problem) = problem {
        render(&mut response, &problem, &id);
    } else if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        render(&mut response, &Problem::Method, &id);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

/// The caller's own id, where it is fit for a header, a log line and a row: up to 128 of `[A-Za-z0-9_.:@/+=-]`.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fit = |b: u8| b.is_ascii_alphanumeric() || b"_.:@/+=-".contains(&b);
    ((1..=128).contains(&id.len()) && id.bytes().all(fit)).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_description_names_every_route_and_no_other() {
        let described: Value = serde_json::from_str(pages::OPENAPI).unwrap();
        let mut described: Vec<&str> =
            described["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let mut served: Vec<&str> = routes().into_iter().map(|(path, _)| path).collect();
        described.sort_unstable();
        served.sort_unstable();
        assert_eq!(described, served);
    }
}
