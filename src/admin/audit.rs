//! `GET /api/admin/audit` and `POST /api/admin/audit/{event_id}/resolve`, and the audit events made here.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{self, Path, RawQuery};
use axum::response::Response;
use http::{HeaderMap, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::answer::{self, Rows};
use super::auth::Role;
use super::context::{Context, rfc3339};
use super::params::{self, Params, days_before};
use super::problem::Problem;
use crate::model::event::{Actor, AuditEvent, AuditResult};
use crate::store::audit::{self, Place, Question, Resolution};

const PARAMETERS: [&str; 8] =
    ["tenantId", "eventType", "category", "result", "startDate", "endDate", "limit", "cursor"];

const CATEGORIES: [&str; 6] =
    ["trial_event", "kb_operation", "chat_activity", "configuration_change", "error", "security"];

const RESULTS: [&str; 4] = ["success", "failure", "partial", "resolved"];

/// Days before the end at which a range begins that names no start.
const DEFAULT_DAYS: i64 = 30;

/// The longest resolution, in characters: an account of what was done, not a file.
const MAX_RESOLUTION: usize = 4000;

/// What the middleware knows of the caller, for handlers that record who did something.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// `None` where the credentials gave none.
    pub(super) role: Option<Role>,
    pub(super) peer: IpAddr,
    pub(super) request_id: String,
}

/// Lists audit events, latest first.
pub(super) async fn list(
    context: extract::State<Arc<Context>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let params = Params::parse(query.as_deref(), &PARAMETERS)?;
    let now = Timestamp::now();
    let tenant = params.tenant("tenantId")?;
    let choice = |name, choices: &'static [&'static str]| {
        let choices: Vec<_> = choices.iter().map(|c| (*c, Some(*c))).collect();
        params.choice(name, &choices, None)
    };
    let between = params.range(now, |end| days_before(end, DEFAULT_DAYS))?;
    let (event_type, category) = (params.word("eventType")?, choice("category", &CATEGORIES)?);
    let result = choice("result", &RESULTS)?;
    let asked = format!("audit {tenant:?} {event_type:?} {category:?} {result:?}");
    let after =
        params.text("cursor").map(|cursor| place(&context.cursors.open(&asked, cursor)?)).transpose()?;
    let question = Question {
        tenant: tenant.as_ref(),
        event_type,
        category,
        result,
        between,
        limit: params.limit()?,
        after,
    };
    let (events, next) = audit::events(&context.state.store, &question).await?;
    let next = next.map(|place| context.cursors.seal(&asked, &format!("{} {}", place.at, place.event_id)));
    if answer::wants_csv(&headers) {
        return answer::csv(&events, "attachment; filename=\"audit.csv\"", next.as_deref());
    }
    answer::json(&List {
        start_date: rfc3339(between.start),
        end_date: rfc3339(between.end),
        events: Rows(&events),
        next_cursor: next,
        timestamp: rfc3339(now),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    start_date: String,
    end_date: String,
    events: Rows<'a>,
    next_cursor: Option<String>,
    timestamp: String,
}

/// The place in a cursor. Sealed here, so what can't be read is a fault of ours.
fn place(text: &str) -> Result<Place, Problem> {
    let (at, event_id) = text.split_once(' ').ok_or(Problem::Internal)?;
    let at = at.parse().map_err(|_| Problem::Internal)?;
    Ok(Place { at, event_id: event_id.parse().map_err(|_| Problem::Internal)? })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    resolution: String,
}

/// Resolves an event, and keeps how.
pub(super) async fn resolve(
    context: extract::State<Arc<Context>>,
    caller: extract::Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref(), &[])?;
    let id = id.ok().filter(|id| id.len() == 36).and_then(|id| id.parse::<Uuid>().ok());
    let event_id = id.ok_or_else(|| Problem::parameter("event_id", "must be a UUID"))?;
    let resolution = resolution(body).await?;
    match audit::resolve(&context.state.store, event_id, &resolution).await? {
        Resolution::Missing => return Err(Problem::Missing(format!("there is no audit event {event_id}"))),
        Resolution::Already => {
            return Err(Problem::Conflict("resolved before; that resolution stands".to_owned()));
        }
        Resolution::Resolved => {}
    }
    let mut event = event(&caller, "audit_event_resolved", "configuration_change");
    event.entity_type = "audit_event".to_owned();
    event.entity_id = Some(event_id.to_string());
    event.action = "update".to_owned();
    event.new_values = Some(json!({ "result": "resolved" }));
    (context.state.audit)(event);
    answer::json(&json!({
        "success": true,
        "event_id": event_id,
        "result": "resolved",
        "resolution": resolution,
        "timestamp": rfc3339(Timestamp::now()),
    }))
}

async fn resolution(body: Body) -> Result<String, Problem> {
    let bytes = params::whole(body).await?;
    let resolve: Resolve = serde_json::from_slice(&bytes)
        .map_err(|error| Problem::Body(format!("not {{\"resolution\": …}}: {error}")))?;
    let text = resolve.resolution;
    if text.trim().is_empty() || text.chars().count() > MAX_RESOLUTION || text.contains('\0') {
        let reason = format!("must be 1 to {MAX_RESOLUTION} characters, not all blank, without NUL");
        return Err(Problem::parameter("resolution", reason));
    }
    Ok(text)
}

/// Records that somebody's credentials were refused: who and where, and never what was presented.
pub(super) fn refused(context: &Context, caller: &Refused<'_>, reason: &'static str) {
    let mut event = event(caller.who, "security_violation", "security");
    event.entity_type = "admin_api".to_owned();
    event.entity_id = caller.route.map(str::to_owned);
    event.action = "execute".to_owned();
    event.result = AuditResult::Failure;
    event.error_message = Some(reason.to_owned());
    event.new_values = Some(json!({ "method": caller.method }));
    event.user_agent = user_agent(caller.headers);
    (context.state.audit)(event);
}

/// A call that was refused.
pub(super) struct Refused<'a> {
    pub(super) who: &'a Caller,
    /// The route's pattern, where one matched: never a path as the caller wrote it.
    pub(super) route: Option<&'a str>,
    pub(super) method: &'a str,
    pub(super) headers: &'a HeaderMap,
}

/// What happened here at a caller's request.
pub(super) fn event(caller: &Caller, event_type: &str, category: &str) -> AuditEvent {
    AuditEvent {
        actor: match caller.role {
            Some(Role::Operator | Role::Viewer) => Actor::Admin,
            Some(Role::Cron) | None => Actor::System,
        },
        actor_id: caller.role.map(|role| role.as_str().to_owned()),
        ip_address: Some(caller.peer),
        request_id: Some(caller.request_id.clone()),
        ..AuditEvent::new(Uuid::now_v7(), Timestamp::now(), event_type, category, "")
    }
}

/// The client's program, as far as it can stand in a row: 200 printable characters.
pub(super) fn user_agent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::USER_AGENT)?.to_str().ok()?;
    Some(text.chars().filter(|c| !c.is_control()).take(200).collect())
}
