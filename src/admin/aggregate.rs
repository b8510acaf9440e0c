//! `POST` and `GET /api/admin/metrics/aggregate`: starting an aggregation, and asking when the last one ran.

use std::sync::Arc;

use axum::extract::{self, RawQuery};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::answer;
use super::context::{Context, rfc3339};
use super::params::Params;
use super::problem::Problem;
use crate::store::usage;

/// Runs one aggregation and answers when it is done.
pub(super) async fn run(
    context: extract::State<Arc<Context>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref(), &[])?;
    // On a task of its own: a scheduler that gives up waiting must not end the work halfway.
    let work = tokio::spawn((context.state.aggregate)());
    let report = match work.await {
        Ok(Ok(report)) => report,
        Ok(Err(reason)) => return Err(Problem::Aggregation(reason)),
        Err(_) => return Err(Problem::Internal),
    };
    let mut answer = Map::from_iter([
        ("success".to_owned(), Value::Bool(true)),
        ("message".to_owned(), json!("usage metrics are up to date")),
        ("timestamp".to_owned(), json!(rfc3339(Timestamp::now()))),
    ]);
    for (name, value) in report {
        answer.entry(name).or_insert(value);
    }
    answer::json(&answer)
}

/// Says when the last aggregation ran.
pub(super) async fn status(
    context: extract::State<Arc<Context>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref(), &[])?;
    let last = usage::aggregated_at(&context.state.store).await?;
    answer::json(&json!({ "status": "healthy", "lastRun": last, "timestamp": rfc3339(Timestamp::now()) }))
}
