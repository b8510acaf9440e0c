//! How a tenant stands: its limits, where they come from, what is used of them and when they reset.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{self, Path, RawQuery};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::answer;
use super::context::{Context, rfc3339};
use super::params::Params;
use super::problem::Problem;
use super::state::QuotaView;
use crate::model::quota::{Dimension, Standing, Unit};
use crate::model::tenant::TenantId;
use crate::quota::Origin;
use crate::quota::overrides::{Override, Setting};

/// `GET /api/admin/tenants/{id}/quota`
pub(super) async fn effective(
    context: extract::State<Arc<Context>>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref(), &[])?;
    let tenant = tenant(id)?;
    answer::json(&standing(&context, &tenant).await)
}

/// The tenant that the path names.
pub(super) fn tenant(id: Result<Path<String>, PathRejection>) -> Result<TenantId, Problem> {
    let Path(id) = id.map_err(|_| Problem::parameter("id", "is not UTF-8"))?;
    TenantId::parse(&id).map_err(|error| Problem::parameter("id", error.to_string()))
}

/// How the tenant stands now, as an answer.
pub(super) async fn standing(context: &Context, tenant: &TenantId) -> Value {
    let view = (context.state.quota)(tenant).await;
    let now = Timestamp::now();
    let quotas: Map<String, Value> = view
        .standings
        .iter()
        .map(|standing| {
            let mut quota = quota(standing);
            quota.insert("origin".to_owned(), json!(view.origin(standing.dimension).as_str()));
            (standing.dimension.to_string(), Value::Object(quota))
        })
        .collect();
    let overridden = view.overridden.as_ref().map(|o| {
        json!({
            "origin": Origin::Config.as_str(),
            "plan": o.plan.as_ref().map(|plan| plan.as_str()),
            "reason": o.reason,
            "expires": o.expires.map(rfc3339),
        })
    });
    json!({
        "tenantId": tenant.as_str(),
        "plan": view.plan.as_str(),
        "planOrigin": view.plan_origin.as_str(),
        "blocked": view.blocked,
        "quotas": quotas,
        "anyExceeded": view.standings.iter().any(exceeded),
        "override": overridden,
        "adminOverrides": view.set.iter().map(|o| set(o, now)).collect::<Vec<_>>(),
        "timestamp": rfc3339(now),
    })
}

/// An override that an operator set.
pub(super) fn set(o: &Override, now: Timestamp) -> Value {
    let mut told = json!({
        "dimension": o.setting.target().to_string(),
        "reason": o.reason,
        "author": o.author,
        "expires": o.expires.map(rfc3339),
        "expired": !o.holds(now),
        "createdAt": rfc3339(o.created),
        "updatedAt": rfc3339(o.updated),
    });
    match &o.setting {
        Setting::Limit(dimension, limit) => told["limit"] = json!(limit.map(|n| dimension.unit.shown(n))),
        Setting::Plan(plan) => told["plan"] = json!(plan.as_str()),
        Setting::Blocked => told["blocked"] = json!(true),
    }
    told
}

/// `quota` of the usage answer: one line a unit.
pub(super) fn overview(view: &QuotaView) -> Value {
    let units: Map<String, Value> = Unit::ALL
        .into_iter()
        .filter_map(|unit| of_unit(&view.standings, unit).map(|s| (unit.as_str().to_owned(), line(s))))
        .collect();
    json!({
        "plan": view.plan.as_str(),
        "quotas": units,
        "anyExceeded": view.standings.iter().any(exceeded),
    })
}

fn line(standing: &Standing) -> Value {
    let mut quota = quota(standing);
    quota.insert("dimension".to_owned(), json!(standing.dimension.to_string()));
    Value::Object(quota)
}

pub(super) fn quota(standing: &Standing) -> Map<String, Value> {
    let unit = standing.dimension.unit;
    let fields = [
        ("limit", json!(standing.limit.map(|amount| unit.shown(amount)))),
        ("used", unit.shown(standing.used)),
        ("remaining", json!(standing.remaining().map(|amount| unit.shown(amount)))),
        ("percentage", json!(percentage(standing))),
        ("resetsAt", json!(rfc3339(standing.span.end))),
        ("soft", json!(standing.soft)),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The one dimension that stands for a unit: the service's own one; where that has no limit and another has, the
/// limited one that is nearest to its end.
fn of_unit(standings: &[Standing], unit: Unit) -> Option<&Standing> {
    let of_unit = || standings.iter().filter(|s| s.dimension.unit == unit);
    let standard = of_unit().find(|s| Dimension::STANDARD.contains(&s.dimension));
    let limited =
        || of_unit().filter(|s| s.limit.is_some()).max_by(|a, b| percentage(a).total_cmp(&percentage(b)));
    standard.filter(|s| s.limit.is_some()).or_else(limited).or(standard)
}

/// Whether nothing is left: the next call would be refused.
fn exceeded(standing: &Standing) -> bool {
    standing.limit.is_some_and(|limit| standing.used >= limit)
}

/// Used of the limit, in per cent with two decimals; 0 where there is no limit.
fn percentage(standing: &Standing) -> f64 {
    match standing.limit {
        None => 0.0,
        Some(0) => 100.0,
        Some(limit) => (standing.used as f64 / limit as f64 * 10_000.0).round() / 100.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::quota::{Amounts, Limits};
    use crate::model::tenant::PlanName;
    use crate::model::window::Window;
    use crate::quota::{Enforcer, OverrideConfig, PlanConfig, Plans};
    use crate::telemetry::Metrics;
    use jiff::tz::TimeZone;

    fn standing(dimension: &str, limit: Option<u64>, used: u64) -> Standing {
        let dimension: Dimension = dimension.parse().unwrap();
        let now = "2026-11-24T12:00:00Z".parse().unwrap();
        Standing { dimension, limit, used, soft: false, span: dimension.window.span(&TimeZone::UTC, now) }
    }

    fn view(standings: Vec<Standing>) -> QuotaView {
        QuotaView {
            plan: PlanName::from("trial"),
            plan_origin: Origin::Plan,
            blocked: false,
            standings,
            origins: Vec::new(),
            overridden: None,
            set: Vec::new(),
        }
    }

    #[test]
    fn an_unlimited_quota_has_nothing_left_to_tell() {
        let quota = overview(&view(vec![standing("tokens_per_day", None, 5000)]));
        let expected = json!({
            "dimension": "tokens_per_day", "limit": null, "used": 5000, "remaining": null, "percentage": 0.0,
            "resetsAt": "2026-11-25T00:00:00.000000Z", "soft": false,
        });
        assert_eq!(quota["quotas"]["tokens"], expected);
        assert_eq!(quota["anyExceeded"], false);
    }

    #[test]
    fn at_the_limit_and_over_it_a_quota_is_exceeded_and_nothing_remains() {
        for (limit, used, percentage) in
            [(100, 100, 100.0), (100, 150, 150.0), (0, 0, 100.0), (30_000, 1, 0.0)]
        {
            let quota = overview(&view(vec![standing("tokens_per_day", Some(limit), used)]));
            assert_eq!(quota["quotas"]["tokens"]["percentage"], percentage);
            assert_eq!(quota["quotas"]["tokens"]["remaining"], limit.saturating_sub(used));
            assert_eq!(quota["anyExceeded"], used >= limit);
        }
    }

    #[test]
    fn what_the_enforcer_counts_is_what_an_operator_sees() {
        let day: Dimension = "tokens_per_day".parse().unwrap();
        let mut limits = Limits::unlimited();
        limits.set(day, Some(10_000));
        let trial = PlanName::from("trial");
        let plan = PlanConfig { limits, zone: "UTC".to_owned() };
        let raised = OverrideConfig { limits: vec![(day, Some(20_000))], ..OverrideConfig::default() };
        let tenants = ["tn_plan", "tn_raised"].map(|id| TenantId::parse(id).unwrap());
        let metrics = Metrics::new();
        let overrides = [(tenants[1].clone(), raised)].into();
        let plans = Plans::new([(trial.clone(), plan)].into(), overrides, trial, metrics.clone()).unwrap();
        let enforcer = Enforcer::new(metrics);
        let now = Timestamp::now();
        let views = tenants.map(|tenant| {
            let entitlement = plans.entitlement(&tenant, None, now);
            let amounts = Amounts { tokens: 450, api_calls: 1, ..Amounts::default() };
            let reservation = enforcer.reserve(&tenant, &entitlement, amounts, true, now).unwrap();
            reservation.settle(Amounts { tokens: 300, ..amounts });
            let standings = enforcer.standings(&tenant, &entitlement, now);
            QuotaView::new(&entitlement, standings, &plans.layers(&tenant, now))
        });
        for (view, limit, from) in [(&views[0], 10_000, Origin::Plan), (&views[1], 20_000, Origin::Config)] {
            let tokens = &overview(view)["quotas"]["tokens"];
            assert_eq!((&tokens["limit"], &tokens["used"]), (&json!(limit), &json!(300)));
            assert_eq!(tokens["remaining"], limit - 300);
            assert_eq!(view.origin(day), from);
        }
    }

    #[test]
    fn a_unit_shows_the_limit_that_it_has() {
        let standings = [
            standing("tokens_per_day", None, 10),
            standing("tokens_per_hour", Some(100), 10),
            standing("tokens_per_month", Some(100), 90),
        ];
        let shown = of_unit(&standings, Unit::Tokens).unwrap();
        assert_eq!(shown.dimension.window, Window::Month);
        assert_eq!(of_unit(&standings[..1], Unit::Tokens), Some(&standings[0]));
        assert_eq!(of_unit(&standings, Unit::Embeddings), None);
    }
}
