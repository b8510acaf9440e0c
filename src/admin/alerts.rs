//! `GET /api/admin/alerts`

use std::sync::Arc;

use axum::extract::{self, RawQuery};
use axum::response::Response;
use http::HeaderMap;
use jiff::Timestamp;
use serde::Serialize;

use super::answer::{self, Rows};
use super::context::{Context, rfc3339};
use super::params::Params;
use super::problem::Problem;
use crate::store::alerts::{self, Place, Question};

const PARAMETERS: [&str; 4] = ["tenantId", "state", "limit", "cursor"];

const STATES: [&str; 4] = ["pending", "sent", "failed", "unsent"];

/// Lists alerts, latest first.
pub(super) async fn list(
    context: extract::State<Arc<Context>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let params = Params::parse(query.as_deref(), &PARAMETERS)?;
    let tenant = params.tenant("tenantId")?;
    let state = params.choice("state", &STATES.map(|state| (state, Some(state))), None)?;
    let asked = format!("alerts {tenant:?} {state:?}");
    let after =
        params.text("cursor").map(|cursor| place(&context.cursors.open(&asked, cursor)?)).transpose()?;
    let question = Question { tenant: tenant.as_ref(), state, limit: params.limit()?, after };
    let (alerts, next) = alerts::alerts(&context.state.store, &question).await?;
    let next = next.map(|place| context.cursors.seal(&asked, &format!("{} {}", place.at, place.alert_id)));
    if answer::wants_csv(&headers) {
        return answer::csv(&alerts, "attachment; filename=\"alerts.csv\"", next.as_deref());
    }
    answer::json(&List { alerts: Rows(&alerts), next_cursor: next, timestamp: rfc3339(Timestamp::now()) })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    alerts: Rows<'a>,
    next_cursor: Option<String>,
    timestamp: String,
}

/// The place in a cursor. Sealed here, so what can't be read is a fault of ours.
fn place(text: &str) -> Result<Place, Problem> {
    let (at, alert_id) = text.split_once(' ').ok_or(Problem::Internal)?;
    let at = at.parse().map_err(|_| Problem::Internal)?;
    Ok(Place { at, alert_id: alert_id.parse().map_err(|_| Problem::Internal)? })
}
