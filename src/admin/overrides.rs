//! `PUT` and `DELETE /api/admin/tenants/{id}/quota`: overrides that operators set for one tenant.
//!
//! PUT sets what its body names and leaves the rest: `{"tokens_per_day": 50000, "reason": "pilot"}` changes one limit of a
//! tenant that has others. Reason and expiry are those of what is set. Either answers with how the tenant stands after it,
//! as GET does, when it holds on this replica; on the others it holds within a second.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{self, Path, RawQuery};
use axum::response::Response;
use http::HeaderMap;
use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};

use super::answer;
use super::audit::{self, Caller};
use super::auth::Role;
use super::context::Context;
use super::params::{self, Params};
use super::problem::Problem;
use super::quotas;
use crate::model::event::AuditEvent;
use crate::model::quota::{Dimension, Limit, MOST_USD, Unit, nanousd};
use crate::model::tenant::{PlanName, TenantId};
use crate::quota::overrides::{Setting, Target};
use crate::store::overrides::{self, Edit, Edited, Removal};

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

/// Sets overrides.
pub(super) async fn set(
    context: extract::State<Arc<Context>>,
    caller: extract::Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref(), &[])?;
    let tenant = quotas::tenant(id)?;
    let Fields(fields) = serde_json::from_slice(&params::whole(body).await?).map_err(|error| {
        Problem::Body(format!("not an object such as {{\"tokens_per_day\": 50000}}: {error}"))
    })?;
    let wish = wish(&fields, &(context.state.plans)(), Timestamp::now())?;
    let edit = Edit {
        tenant: &tenant,
        set: &wish.set,
        remove: Removal::Of(&wish.remove),
        reason: wish.reason.as_deref(),
        expires: wish.expires,
        author: author(&caller),
    };
    let event = event("quota_override_set", "update", &tenant, &caller, &headers);
    make(&context, &edit, event).await?;
    answer::json(&quotas::standing(&context, &tenant).await)
}

/// Removes a tenant's overrides, or the one that `dimension` names. Those that are not there are as good as removed.
pub(super) async fn remove(
    context: extract::State<Arc<Context>>,
    caller: extract::Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::parse(query.as_deref(), &["dimension"])?;
    let tenant = quotas::tenant(id)?;
    let target = params.text("dimension").map(target).transpose()?;
    let only = target.as_ref().map(std::slice::from_ref);
    let edit = Edit {
        tenant: &tenant,
        set: &[],
        remove: only.map_or(Removal::All, Removal::Of),
        reason: None,
        expires: None,
        author: author(&caller),
    };
    let event = event("quota_override_removed", "delete", &tenant, &caller, &headers);
    let edited = make(&context, &edit, event).await?;
    let mut standing = quotas::standing(&context, &tenant).await;
    standing["removed"] = json!(edited.removed);
    answer::json(&standing)
}

/// Makes an edit, and has it hold here.
async fn make(context: &Context, edit: &Edit<'_>, event: AuditEvent) -> Result<Edited, Problem> {
    let edited = overrides::edit(&context.state.store, edit, event).await?;
    context.state.overrides.learn(&edited.changes);
    (context.state.limits_changed)(edit.tenant);
    Ok(edited)
}

fn event(kind: &str, action: &str, tenant: &TenantId, caller: &Caller, headers: &HeaderMap) -> AuditEvent {
    let mut event = audit::event(caller, kind, "configuration_change");
    event.tenant_id = Some(tenant.clone());
    event.entity_type = "tenant_quota".to_owned();
    event.entity_id = Some(tenant.to_string());
    event.action = action.to_owned();
    event.user_agent = audit::user_agent(headers);
    event
}

fn author(caller: &Caller) -> &'static str {
    caller.role.map_or("system", Role::as_str)
}

fn target(text: &str) -> Result<Target, Problem> {
    text.parse().map_err(|_| {
        Problem::parameter(
            "dimension",
            "must be plan, blocked, concurrent_requests, or UNIT_per_WINDOW such as tokens_per_day, with a unit of tokens, \
             api_calls, chat_messages, embeddings, cost_usd and a window of minute, hour, day, month",
        )
    })
}

/// What a body asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    set: Vec<Setting>,
    remove: Vec<Target>,
    reason: Option<String>,
    expires: Option<Timestamp>,
}

/// Reads a body's fields; a fault names the field.
fn wish(fields: &[(String, Value)], plans: &[PlanName], now: Timestamp) -> Result<Wish, Problem> {
    let mut wish = Wish::default();
    for (at, (name, value)) in fields.iter().enumerate() {
        if fields[..at].iter().any(|(earlier, _)| earlier == name) {
            return Err(Problem::parameter(params::shown(name), "given twice"));
        }
        match name.as_str() {
            "reason" => wish.reason = reason(value)?,
            "expires" => wish.expires = expires(value, now)?,
            "blocked" => match value {
                Value::Bool(true) => wish.set.push(Setting::Blocked),
                Value::Bool(false) => wish.remove.push(Target::Blocked),
                _ => return Err(Problem::parameter("blocked", "must be true or false")),
            },
            "plan" => match plan(value, plans)? {
                Some(plan) => wish.set.push(Setting::Plan(plan)),
                None => wish.remove.push(Target::Plan),
            },
            dimension => {
                let dimension: Dimension = dimension.parse().map_err(|_| unknown(name))?;
                wish.set.push(Setting::Limit(dimension, limit(dimension, name, value)?));
            }
        }
    }
    if wish.set.is_empty() && wish.remove.is_empty() {
        let reason = "changes nothing: name a limit such as tokens_per_day, plan or blocked";
        return Err(Problem::Body(reason.to_owned()));
    }
    Ok(wish)
}

fn limit(dimension: Dimension, name: &str, value: &Value) -> Result<Limit, Problem> {
    if let (Unit::Cost, Value::Number(usd)) = (dimension.unit, value) {
        let nano = usd.as_f64().and_then(nanousd);
        return nano.map(Some).ok_or_else(|| {
            Problem::parameter(
                name,
                format!("must be US dollars from 0 to {MOST_USD}, or null or \"unlimited\""),
            )
        });
    }
    let whole = || value.as_u64().filter(|limit| i64::try_from(*limit).is_ok());
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text == "unlimited" => Ok(None),
        _ => whole().map(Some).ok_or_else(|| {
            let most = i64::MAX;
            Problem::parameter(
                name,
                format!("must be a whole number from 0 to {most}, or null or \"unlimited\""),
            )
        }),
    }
}

fn plan(value: &Value, plans: &[PlanName]) -> Result<Option<PlanName>, Problem> {
    if value.is_null() {
        return Ok(None);
    }
    let known = value.as_str().and_then(|name| plans.iter().find(|plan| plan.as_str() == name));
    known.cloned().map(Some).ok_or_else(|| {
        let names: Vec<&str> = plans.iter().map(PlanName::as_str).collect();
        Problem::parameter("plan", format!("must be null or a plan of the config: {}", names.join(", ")))
    })
}

fn reason(value: &Value) -> Result<Option<String>, Problem> {
    if value.is_null() {
        return Ok(None);
    }
    let fit = |text: &&str| {
        !text.trim().is_empty() && text.chars().count() <= MAX_REASON && !text.chars().any(char::is_control)
    };
    let text = value.as_str().filter(fit).ok_or_else(|| {
        let reason = format!(
            "must be text of 1 to {MAX_REASON} characters, not all blank, without control characters"
        );
        Problem::parameter("reason", reason)
    })?;
    Ok(Some(text.to_owned()))
}

fn expires(value: &Value, now: Timestamp) -> Result<Option<Timestamp>, Problem> {
    if value.is_null() {
        return Ok(None);
    }
    let expires = params::instant("expires", value.as_str().unwrap_or_default())?;
    if expires <= now {
        return Err(Problem::parameter("expires", "is in the past"));
    }
    Ok(Some(expires))
}

fn unknown(name: &str) -> Problem {
    Problem::parameter(
        params::shown(name),
        "no such field; known are plan, blocked, reason, expires, concurrent_requests, and UNIT_per_WINDOW such as \
         tokens_per_day, with a unit of tokens, api_calls, chat_messages, embeddings, cost_usd and a window of minute, hour, day, month",
    )
}

/// An object's fields in their order, repeated ones included: of two values for one limit, neither is the one meant.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-24T12:00:00Z";

    fn read(body: &str) -> Result<Wish, Problem> {
        let Fields(fields) = serde_json::from_str(body).unwrap();
        wish(&fields, &["trial".into(), "pro".into()], NOW.parse().unwrap())
    }

    fn refused(body: &str) -> String {
        match read(body).unwrap_err() {
            Problem::Parameter { name, .. } => name,
            Problem::Body(_) => "the body".to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_body_says_what_to_set_and_what_to_remove() {
        let body = r#"{"tokens_per_day": 5, "api_calls_per_minute": null, "embeddings_per_day": "unlimited", "plan": "pro",
            "blocked": true, "reason": "pilot", "expires": "2027-01-31T00:00:00+01:00"}"#;
        let limit = |name: &str, limit| Setting::Limit(name.parse().unwrap(), limit);
        let expected = Wish {
            set: vec![
                limit("tokens_per_day", Some(5)),
                limit("api_calls_per_minute", None),
                limit("embeddings_per_day", None),
                Setting::Plan("pro".into()),
                Setting::Blocked,
            ],
            remove: Vec::new(),
            reason: Some("pilot".to_owned()),
            expires: Some("2027-01-30T23:00:00Z".parse().unwrap()),
        };
        assert_eq!(read(body), Ok(expected));
        let removed = read(r#"{"plan": null, "blocked": false}"#).unwrap();
        assert_eq!((removed.set, removed.remove), (Vec::new(), vec![Target::Plan, Target::Blocked]));
    }

    #[test]
    fn fault_99_limits_are_whole_numbers_that_the_column_holds() {
        for good in ["0", "1", "9223372036854775807", "null", "\"unlimited\""] {
            assert!(read(&format!("{{\"tokens_per_day\": {good}}}")).is_ok(), "{good}");
        }
        for bad in [
            "-1",
            "-0.0",
            "1.5",
            "5.0",
            "1e3",
            "1e30",
            "9223372036854775808",
            "1000000000000000000000000000000",
            "\"5\"",
            "\"Unlimited\"",
            "true",
            "[]",
            "{}",
            "\"\"",
        ] {
            assert_eq!(refused(&format!("{{\"tokens_per_day\": {bad}}}")), "tokens_per_day", "{bad}");
        }
    }

    #[test]
    fn a_limit_of_cost_is_in_dollars_with_decimals() {
        for (usd, nano) in
            [("0", 0), ("2", 2_000_000_000), ("0.15", 150_000_000), ("1e9", 1_000_000_000_000_000_000)]
        {
            let read = read(&format!("{{\"cost_usd_per_day\": {usd}}}")).unwrap();
            let expected = Setting::Limit("cost_usd_per_day".parse().unwrap(), Some(nano));
            assert_eq!(read.set, [expected]);
        }
        for bad in ["-0.01", "1000000001", "1e300", "\"2\"", "true"] {
            assert_eq!(refused(&format!("{{\"cost_usd_per_day\": {bad}}}")), "cost_usd_per_day", "{bad}");
        }
        let at_once = read(r#"{"concurrent_requests": 4}"#).unwrap();
        assert_eq!(at_once.set, [Setting::Limit(Dimension::CONCURRENT, Some(4))]);
        assert_eq!(refused(r#"{"concurrent_requests": 1.5}"#), "concurrent_requests");
    }

    #[test]
    fn each_fault_of_a_body_is_told_by_its_field() {
        let long = format!("{{\"blocked\": true, \"reason\": \"{}\"}}", "x".repeat(501));
        for (body, field) in [
            ("{}", "the body"),
            (r#"{"reason": "nothing else"}"#, "the body"),
            (r#"{"tokens_per_year": 1}"#, "tokens_per_year"),
            (r#"{"a\r\nb": 1}"#, "a\\r\\nb"),
            (r#"{"tokens_per_day": 1, "tokens_per_day": 2}"#, "tokens_per_day"),
            (r#"{"plan": "platinum"}"#, "plan"),
            (r#"{"plan": 1}"#, "plan"),
            (r#"{"blocked": "yes"}"#, "blocked"),
            (r#"{"blocked": null}"#, "blocked"),
            (r#"{"blocked": true, "reason": " "}"#, "reason"),
            (r#"{"blocked": true, "reason": "a\nb"}"#, "reason"),
            (r#"{"blocked": true, "reason": 5}"#, "reason"),
            (long.as_str(), "reason"),
            (r#"{"blocked": true, "expires": "2026-11-24T12:00:00Z"}"#, "expires"),
            (r#"{"blocked": true, "expires": "2026-02-30T00:00:00Z"}"#, "expires"),
            (r#"{"blocked": true, "expires": "infinity"}"#, "expires"),
            (r#"{"blocked": true, "expires": 5}"#, "expires"),
        ] {
            assert_eq!(refused(body), field, "{body:.60}");
        }
    }
}
