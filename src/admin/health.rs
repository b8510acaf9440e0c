//! How the gateway is: for probes, and for Prometheus. Needs no token, and looks nothing up.

use std::sync::Arc;

use axum::extract;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Map, json};

use super::answer;
use super::context::{Context, rfc3339};
use super::state::Health;

/// `GET /healthz`: 200 while the process lives.
pub(super) async fn live(context: extract::State<Arc<Context>>) -> Response {
    report(&(context.state.health)(), StatusCode::OK)
}

/// `GET /readyz`: 200 when traffic should come, 503 when not.
pub(super) async fn ready(context: extract::State<Arc<Context>>) -> Response {
    let health = (context.state.health)();
    let status = if health.status.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    report(&health, status)
}

fn report(health: &Health, status: StatusCode) -> Response {
    let part = |part: &super::state::Part| {
        (part.name.to_owned(), json!({ "state": part.state, "detail": part.detail }))
    };
    let parts: Map<_, _> = health.parts.iter().map(part).collect();
    let body = json!({
        "status": health.status.as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "parts": parts,
        "timestamp": rfc3339(jiff::Timestamp::now()),
    });
    answer::plain(status, "application/json", body.to_string())
}

/// `GET /metrics`, in OpenMetrics text.
pub(super) async fn metrics(context: extract::State<Arc<Context>>) -> Response {
    let (metrics, pool) = (&context.state.metrics, context.state.store.pool_counts());
    metrics.pool_size.set(i64::try_from(pool.size).unwrap_or(i64::MAX));
    metrics.pool_idle.set(i64::try_from(pool.idle).unwrap_or(i64::MAX));
    let page = metrics.encode();
    answer::plain(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", page)
}
