//! `GET /api/admin/tenants/{id}/explain`: why a tenant may use what it may, and why it was refused.
//!
//! What this replica knows is told in any case. What only the database knows (`settled`, `leases`, `refusals`) is null
//! where it does not answer in time, and `database` says why. Amounts are as people read them: cost in US dollars.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{self, Path, RawQuery};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::answer;
use super::context::{Context, rfc3339};
use super::params::Params;
use super::problem::Problem;
use super::quotas;
use super::state::{Explained, ServicePlan};
use crate::model::quota::{Dimension, Limit, Standing, Unit};
use crate::model::tenant::{PlanName, TenantId};
use crate::model::window::Span;
use crate::quota::overrides::{Override, Setting, Target};
use crate::quota::{Footing, Holding, Origin};
use crate::store::explain::{self, Known, Lease, Refused};

/// How long the database is waited for.
const LOOK_UP: Duration = Duration::from_secs(2);

/// Answers with everything that is known.
pub(super) async fn explain(
    context: extract::State<Arc<Context>>,
    id: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    Params::parse(query.as_deref(), &[])?;
    let tenant = quotas::tenant(id)?;
    let now = Timestamp::now();
    let explained = (context.state.explain)(&tenant).await;
    let known = tokio::time::timeout(LOOK_UP, explain::known(&context.state.store, &tenant, now)).await;
    let known = match known {
        Ok(Ok(known)) => Ok(known),
        // Logged there; what is told names no host and no table.
        Ok(Err(error)) => Err(Problem::from(error).sentence()),
        Err(_) => Err(format!("the database gave no answer in {LOOK_UP:?}")),
    };
    answer::json(&Answer { tenant: &tenant, explained: &explained, known: known.as_ref(), now }.whole())
}

/// An answer in the making.
struct Answer<'a> {
    tenant: &'a TenantId,
    explained: &'a Explained,
    /// Or why nothing is known.
    known: Result<&'a Known, &'a String>,
    now: Timestamp,
}

impl Answer<'_> {
    fn whole(&self) -> Value {
        let Explained { quota, footing, run, replica_id, .. } = self.explained;
        let limits: Map<String, Value> = quota
            .standings
            .iter()
            .map(|standing| (standing.dimension.to_string(), self.limit(standing)))
            .collect();
        let refusals = self.known.ok().map(|known| known.refusals.iter().map(refusal).collect::<Vec<_>>());
        json!({
            "tenantId": self.tenant.as_str(),
            "blocked": quota.blocked,
            "block": self.admin(Target::Blocked).map(|o| quotas::set(o, self.now)),
            "plan": self.plan(),
            "timeZone": self.explained.zone,
            "limits": limits,
            "expiredOverrides": self.expired(),
            "replica": {
                "id": replica_id,
                "run": run,
                "footing": footing_word(*footing),
                "detail": footing_sentence(*footing),
            },
            "refusals": refusals,
            "database": {"available": self.known.is_ok(), "detail": self.known.err()},
            "timestamp": rfc3339(self.now),
        })
    }

    /// An operator's override that holds.
    fn admin(&self, target: Target) -> Option<&Override> {
        let set = self.explained.quota.set.iter().map(AsRef::as_ref);
        set.into_iter().find(|o: &&Override| o.setting.target() == target && o.holds(self.now))
    }

    /// The plan, where it comes from, and what would hold without the override.
    fn plan(&self) -> Value {
        let Explained { quota, service, default_plan, .. } = self.explained;
        let admin = self.admin(Target::Plan).and_then(|o| match &o.setting {
            Setting::Plan(plan) => Some((o, plan)),
            Setting::Limit(..) | Setting::Blocked => None,
        });
        let config = quota.overridden.as_ref().and_then(|o| o.plan.as_ref());
        let said = match service {
            ServicePlan::Known(plan) => Some(PlanName::from(plan.as_str())),
            ServicePlan::NotAsked | ServicePlan::Absent | ServicePlan::Unavailable => None,
        };
        let wanted = [
            admin.map(|(_, plan)| ("admin", plan)),
            config.map(|plan| ("config", plan)),
            said.as_ref().map(|plan| ("service", plan)),
        ];
        let mut wanted = wanted.into_iter().flatten();
        let (origin, name) = wanted.next().unwrap_or(("default", default_plan));
        let fallback = *name != quota.plan;
        let without = matches!(origin, "admin" | "config")
            .then(|| wanted.next().map_or(default_plan.as_str(), |(_, plan)| plan.as_str()).to_owned());
        let of = match origin {
            "admin" => admin.map(|(o, _)| quotas::set(o, self.now)),
            "config" => self.config_override(),
            _ => None,
        };
        let detail = match (fallback, origin) {
            (true, _) => format!("the config knows no plan {:?}: the default plan holds", name.as_str()),
            (false, "admin") => "set by an operator".to_owned(),
            (false, "config") => "set by an override in the config".to_owned(),
            (false, "service") => "the service's database says so".to_owned(),
            (false, _) => default_detail(service).to_owned(),
        };
        json!({
            "name": quota.plan.as_str(),
            "origin": if fallback { "default" } else { origin },
            "detail": detail,
            "fallback": fallback,
            "service": {"answer": service_word(service), "plan": said.as_ref().map(PlanName::as_str)},
            "override": of,
            "without": without,
        })
    }

    fn limit(&self, standing: &Standing) -> Value {
        let (dimension, unit) = (standing.dimension, standing.dimension.unit);
        let quota = &self.explained.quota;
        let origin = quota.origin(dimension);
        let of_config = quota.overridden.as_ref().and_then(|o| limit_of(&o.limits, dimension));
        let of_plan = self.explained.plan_limits.limit(dimension);
        let (of, without) = match origin {
            Origin::Admin => {
                let admin = self.admin(Target::Limit(dimension)).map(|o| quotas::set(o, self.now));
                (admin, Some((of_config.unwrap_or(of_plan), of_config.map_or("plan", |_| "config"))))
            }
            Origin::Config => (self.config_override(), Some((of_plan, "plan"))),
            Origin::Plan => (None, None),
        };
        let without = without
            .map(|(limit, origin)| json!({"limit": limit.map(|limit| unit.shown(limit)), "origin": origin}));
        let over = standing.limit.map_or(0, |limit| standing.used.saturating_sub(limit));
        let held = self.explained.holdings.iter().find(|held| held.dimension == dimension);
        let mut told = quotas::quota(standing);
        told.extend([
            ("origin".to_owned(), json!(origin.as_str())),
            ("override".to_owned(), json!(of)),
            ("without".to_owned(), json!(without)),
            ("window".to_owned(), json!((!dimension.is_momentary()).then_some(dimension.window.as_str()))),
            ("windowStart".to_owned(), json!(rfc3339(standing.span.start))),
            ("overLimit".to_owned(), unit.shown(over)),
            ("settled".to_owned(), json!(self.settled(dimension, standing.span))),
            ("replica".to_owned(), json!(held.map(|held| self.held(held)))),
            ("leases".to_owned(), json!(self.leases(dimension, standing.span))),
        ]);
        Value::Object(told)
    }

    fn config_override(&self) -> Option<Value> {
        self.explained
            .config
            .as_ref()
            .filter(|o| o.holds(self.now))
            .map(|o| json!({"reason": o.reason, "expires": o.expires.map(rfc3339)}))
    }

    /// Overrides that hold no more: what held before may have been theirs.
    fn expired(&self) -> Vec<Value> {
        let set = self.explained.quota.set.iter().filter(|o| !o.holds(self.now));
        let mut told: Vec<Value> =
            set.map(|o| with_origin(quotas::set(o, self.now), Origin::Admin)).collect();
        let config = self.explained.config.as_ref().filter(|o| !o.holds(self.now));
        told.extend(config.map(|o| {
            let limits: Vec<String> = o.limits.iter().map(|(dimension, _)| dimension.to_string()).collect();
            let told = json!({
                "plan": o.plan.as_ref().map(PlanName::as_str),
                "dimensions": limits,
                "reason": o.reason,
                "expires": o.expires.map(rfc3339),
            });
            with_origin(told, Origin::Config)
        }));
        told
    }

    /// Used by all replicas as far as it is written; null where the database does not say.
    fn settled(&self, dimension: Dimension, span: Span) -> Option<Value> {
        if dimension.is_momentary() {
            return None;
        }
        let known = self.known.ok()?;
        let name = dimension.to_string();
        let ours = known.settled.iter().find(|s| s.dimension == name && s.window_start == Some(span.start));
        Some(signed(dimension.unit, ours.map_or(0, |settled| settled.amount)))
    }

    /// This replica's ledger. Without leases there is none to exceed.
    fn held(&self, held: &Holding) -> Value {
        let unit = held.dimension.unit;
        let leased = matches!(self.explained.footing, Footing::Leased | Footing::CutOff)
            && self
                .explained
                .quota
                .standings
                .iter()
                .any(|standing| standing.dimension == held.dimension && standing.limit.is_some())
            && !held.dimension.is_momentary();
        json!({
            "used": signed(unit, held.used),
            "reserved": unit.shown(held.reserved),
            "elsewhere": signed(unit, held.elsewhere),
            "granted": leased.then(|| signed(unit, held.granted)),
            "debt": leased.then(|| unit.shown(held.debt())),
            "exhausted": held.dry,
        })
    }

    fn leases(&self, dimension: Dimension, span: Span) -> Option<Vec<Value>> {
        let known = self.known.ok()?;
        let name = dimension.to_string();
        let leases =
            known.leases.iter().filter(|l| l.dimension == name && l.window_start == Some(span.start));
        Some(leases.map(|lease| self.lease(dimension.unit, lease)).collect())
    }

    fn lease(&self, unit: Unit, lease: &Lease) -> Value {
        let this = self.explained.replica_id.as_deref() == Some(lease.replica_id.as_str());
        json!({
            "replicaId": lease.replica_id,
            "thisReplica": this,
            "run": lease.run,
            "presentRun": lease.present_run.map(|run| run == lease.run),
            "state": lease.state,
            "heardOfSecondsAgo": lease.silent_secs.map(|secs| (secs * 10.0).round() / 10.0),
            "granted": signed(unit, lease.granted),
            "consumed": signed(unit, lease.consumed),
            "outstanding": signed(unit, lease.granted.saturating_sub(lease.consumed).max(0)),
            "wanted": lease.wanted,
        })
    }
}

fn with_origin(mut told: Value, origin: Origin) -> Value {
    told["origin"] = json!(origin.as_str());
    told
}

fn limit_of(limits: &[(Dimension, Limit)], dimension: Dimension) -> Option<Limit> {
    limits.iter().find(|(d, _)| *d == dimension).map(|(_, limit)| *limit)
}

/// An amount that can be negative for a moment: a correction that is here before what it corrects.
fn signed(unit: Unit, amount: i64) -> Value {
    match (unit, u64::try_from(amount)) {
        (_, Ok(amount)) => unit.shown(amount),
        (Unit::Cost, Err(_)) => json!(amount as f64 / 1e9),
        (_, Err(_)) => json!(amount),
    }
}

/// A refused call. What a row does not say (of a version before this) is null.
fn refusal(refused: &Refused) -> Value {
    let by = refused.metadata["refused_by"].as_str();
    let why = &refused.metadata["refusal"];
    let reason = match by {
        None => "quotas could not be checked: the database was away".to_owned(),
        Some("blocked") => "an operator had blocked the tenant".to_owned(),
        Some(dimension) if why.is_object() => format!(
            "{dimension}: {} needed, {} of {} used or reserved",
            why["needed"], why["used"], why["limit"]
        ),
        Some(dimension) => format!("{dimension}: too little was left"),
    };
    json!({
        "at": refused.at.map(rfc3339),
        "requestId": refused.request_id,
        "endpoint": refused.endpoint,
        "status": refused.status,
        "replicaId": refused.replica_id,
        "refusedBy": by,
        "refusals": refused.metadata["refusals"].as_u64().unwrap_or(1),
        "limit": why["limit"],
        "used": why["used"],
        "needed": why["needed"],
        "resetsAt": why["resets_at"],
        "reason": reason,
    })
}

fn service_word(service: &ServicePlan) -> &'static str {
    match service {
        ServicePlan::NotAsked => "not_asked",
        ServicePlan::Known(_) => "known",
        ServicePlan::Absent => "absent",
        ServicePlan::Unavailable => "unavailable",
    }
}

fn default_detail(service: &ServicePlan) -> &'static str {
    match service {
        ServicePlan::NotAsked => {
            "there is no plan_query to ask the service's database with: the default plan holds"
        }
        ServicePlan::Unavailable => {
            "the service's database does not answer, and never did for this tenant: the default plan holds"
        }
        ServicePlan::Absent | ServicePlan::Known(_) => {
            "the service's database has no plan for this tenant: the default plan holds"
        }
    }
}

fn footing_word(footing: Footing) -> &'static str {
    match footing {
        Footing::Alone => "alone",
        Footing::Leased => "leased",
        Footing::OnItsOwn => "on_its_own",
        Footing::CutOff => "cut_off",
    }
}

fn footing_sentence(footing: Footing) -> &'static str {
    match footing {
        Footing::Alone => "there are no leases: it holds every limit alone",
        Footing::Leased => "it spends what it was granted, and asks for more",
        Footing::OnItsOwn => "the database is away: it holds every limit as far as it knows the others' use",
        Footing::CutOff => "the database is away: it spends what it was granted, then refuses",
    }
}
