//! `GET /api/admin/usage`

use std::sync::Arc;

use axum::extract::{self, RawQuery};
use axum::response::Response;
use http::HeaderMap;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;

use super::answer::{self, FirstRow, Rows};
use super::context::{Context, rfc3339};
use super::params::{Params, days_before};
use super::problem::Problem;
use super::quotas;
use crate::model::tenant::TenantId;
use crate::model::window::Window;
use crate::store::report::Between;
use crate::store::usage::{self, AllQuestion, Metric, Period, Place, TenantQuestion};

const PARAMETERS: [&str; 7] = ["tenantId", "period", "startDate", "endDate", "metric", "limit", "cursor"];

const PERIODS: [(&str, Period); 3] =
    [("daily", Period::Daily), ("hourly", Period::Hourly), ("monthly", Period::Monthly)];

const METRICS: [(&str, Metric); 4] = [
    ("all", Metric::All),
    ("tokens", Metric::Tokens),
    ("cost", Metric::Cost),
    ("api_calls", Metric::ApiCalls),
];

/// Days before the end at which a range begins that names no start.
const DEFAULT_DAYS: i64 = 30;

/// The call, read and checked.
struct Question {
    period: Period,
    metric: Metric,
    between: Between,
    limit: u32,
    cursor: Option<String>,
    now: Timestamp,
}

/// Answers with one tenant's usage or, without `tenantId`, with everyone's.
pub(super) async fn usage(
    context: extract::State<Arc<Context>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let params = Params::parse(query.as_deref(), &PARAMETERS)?;
    let now = Timestamp::now();
    let period = params.choice("period", &PERIODS, Period::Daily)?;
    let question = Question {
        period,
        metric: params.choice("metric", &METRICS, Metric::All)?,
        between: params.range(now, |end| default_start(period, end))?,
        limit: params.limit()?,
        cursor: params.text("cursor").map(str::to_owned),
        now,
    };
    let csv = answer::wants_csv(&headers);
    match params.tenant("tenantId")? {
        Some(tenant) => of_tenant(&context, &tenant, &question, csv).await,
        None => of_all(&context, &question, csv).await,
    }
}

/// Begins where a period does: a month whose first day is 31 days ago would else be left out.
fn default_start(period: Period, end: Timestamp) -> Timestamp {
    let window = match period {
        Period::Hourly => Window::Hour,
        Period::Daily => Window::Day,
        Period::Monthly => Window::Month,
    };
    window.span(&TimeZone::UTC, days_before(end, DEFAULT_DAYS)).start
}

impl Question {
    /// What a cursor is good for: the same list in the same order. The range is not part of it, as its default
    /// moves with the clock; and neither is the limit, which may differ from page to page.
    fn list(&self, tenant: Option<&TenantId>) -> String {
        let (period, metric) = (self.period.as_str(), self.metric.as_str());
        match tenant {
            Some(tenant) => format!("usage of {tenant} {period}"),
            None => format!("consumers {period} {metric}"),
        }
    }
}

async fn of_tenant(
    context: &Context,
    tenant: &TenantId,
    question: &Question,
    csv: bool,
) -> Result<Response, Problem> {
    let list = question.list(Some(tenant));
    let before = match &question.cursor {
        Some(cursor) => {
            let place = context.cursors.open(&list, cursor)?;
            Some(place.parse::<Timestamp>().map_err(|_| Problem::Internal)?)
        }
        None => None,
    };
    let asked = TenantQuestion {
        tenant,
        period: question.period,
        between: question.between,
        metric: question.metric,
        limit: question.limit,
        before,
    };
    let usage = usage::of_tenant(&context.state.store, &asked).await?;
    let next = usage.next.map(|at| context.cursors.seal(&list, &at.to_string()));
    if csv {
        return answer::csv(&usage.periods, "attachment; filename=\"usage.csv\"", next.as_deref());
    }
    let quota = (context.state.quota)(tenant).await;
    answer::json(&TenantAnswer {
        tenant_id: tenant.as_str(),
        period: question.period.as_str(),
        start_date: rfc3339(question.between.start),
        end_date: rfc3339(question.between.end),
        usage: Rows(&usage.periods),
        next_cursor: next,
        quota: quotas::overview(&quota),
        recent_events: Rows(&usage.recent),
        aggregated_at: usage.aggregated_at,
        timestamp: rfc3339(question.now),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TenantAnswer<'a> {
    tenant_id: &'a str,
    period: &'static str,
    start_date: String,
    end_date: String,
    usage: Rows<'a>,
    next_cursor: Option<String>,
    quota: Value,
    recent_events: Rows<'a>,
    aggregated_at: Option<String>,
    timestamp: String,
}

async fn of_all(context: &Context, question: &Question, csv: bool) -> Result<Response, Problem> {
    let list = question.list(None);
    let after = match &question.cursor {
        Some(cursor) => Some(place(&context.cursors.open(&list, cursor)?)?),
        None => None,
    };
    let asked = AllQuestion {
        period: question.period,
        between: question.between,
        metric: question.metric,
        limit: question.limit,
        after: after.as_ref(),
        now: question.now,
    };
    let usage = usage::of_all(&context.state.store, &asked).await?;
    let next =
        usage.next.map(|place| context.cursors.seal(&list, &format!("{} {}", place.figure, place.tenant)));
    if csv {
        return answer::csv(&usage.consumers, "attachment; filename=\"consumers.csv\"", next.as_deref());
    }
    answer::json(&AllAnswer {
        period: question.period.as_str(),
        metric: question.metric.as_str(),
        start_date: rfc3339(question.between.start),
        end_date: rfc3339(question.between.end),
        summary: FirstRow(&usage.summary),
        top_consumers: Rows(&usage.consumers),
        next_cursor: next,
        exceeding_quota: Rows(&usage.exceeding),
        aggregated_at: usage.aggregated_at,
        timestamp: rfc3339(question.now),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AllAnswer<'a> {
    period: &'static str,
    metric: &'static str,
    start_date: String,
    end_date: String,
    summary: FirstRow<'a>,
    top_consumers: Rows<'a>,
    next_cursor: Option<String>,
    exceeding_quota: Rows<'a>,
    aggregated_at: Option<String>,
    timestamp: String,
}

/// The place in a cursor. Sealed here, so what can't be read is a fault of ours.
fn place(text: &str) -> Result<Place, Problem> {
    let (figure, tenant) = text.split_once(' ').ok_or(Problem::Internal)?;
    let tenant = TenantId::parse(tenant).map_err(|_| Problem::Internal)?;
    Ok(Place { figure: figure.to_owned(), tenant })
}
