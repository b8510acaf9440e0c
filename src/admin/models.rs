//! `GET /api/admin/models`

use std::sync::Arc;

use axum::extract::{self, RawQuery};
use axum::response::Response;
use http::HeaderMap;
use jiff::Timestamp;
use serde::Serialize;

use super::answer::{self, Rows};
use super::context::{Context, rfc3339};
use super::params::{Params, days_before};
use super::problem::Problem;
use crate::store::models;

const PARAMETERS: [&str; 3] = ["startDate", "endDate", "limit"];

/// Days before the end at which a range begins that names no start: as long as events are kept.
const DEFAULT_DAYS: i64 = 30;

/// Answers with the models seen, and whether they have a price of their own.
pub(super) async fn list(
    context: extract::State<Arc<Context>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let params = Params::parse(query.as_deref(), &PARAMETERS)?;
    let now = Timestamp::now();
    let between = params.range(now, |end| days_before(end, DEFAULT_DAYS))?;
    let limit = params.limit()?;
    let (models, more) = models::models(&context.state.store, between, limit).await?;
    if answer::wants_csv(&headers) {
        return answer::csv(&models, "attachment; filename=\"models.csv\"", None);
    }
    answer::json(&Answer {
        start_date: rfc3339(between.start),
        end_date: rfc3339(between.end),
        models: Rows(&models),
        more,
        timestamp: rfc3339(now),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    start_date: String,
    end_date: String,
    models: Rows<'a>,
    more: bool,
    timestamp: String,
}
