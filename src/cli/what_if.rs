//! `tollgate what-if`: who would have been refused under other limits, and when.

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::table::{columns, plain};
use crate::gateway::{Refusals, Replayed, WhatIf};
use crate::model::quota::Unit;
use crate::model::tenant::{PlanName, TenantId};
use crate::settings::{Fault, Faults, Settings, date_or_instant, since};

/// How long events are kept, in days.
const KEPT_DAYS: i64 = 30;

#[derive(Debug, Args)]
pub(super) struct Question {
    /// The other limits (TOML): `[plans.NAME]` and `[overrides."TENANT"]` as in the config, laid over it
    #[arg(long, value_name = "FILE")]
    pub(super) plan: PathBuf,
    /// From when on they hold: an RFC 3339 time, a date (its 00:00 UTC), or how long ago, such as 7d
    #[arg(long, value_name = "TIME", value_parser = |text: &str| since(text, Timestamp::now()))]
    since: Timestamp,
    /// The end of the range, which is not in it; now, unless given
    #[arg(long, value_name = "TIME", value_parser = date_or_instant)]
    until: Option<Timestamp>,
    /// Only this tenant
    #[arg(long, value_name = "ID", value_parser = TenantId::parse)]
    tenant: Option<TenantId>,
    /// The plan of every tenant, instead of what the service's database says now
    #[arg(long, value_name = "PLAN")]
    on: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Question {
    /// What is asked, and the settings that it is asked of.
    pub(super) fn of(&self, settings: &Settings) -> anyhow::Result<(Settings, WhatIf)> {
        let until = self.until.unwrap_or_else(Timestamp::now);
        if self.since >= until {
            return Err(fault("--since", format!("{} is not before --until, {until}", self.since)));
        }
        let other = settings.with_limits(&self.plan)?;
        let plan = self.on.as_deref().map(PlanName::from);
        if let Some(plan) = plan.as_ref().filter(|plan| !other.plans.contains_key(plan)) {
            let names: Vec<&str> = other.plans.keys().map(PlanName::as_str).collect();
            let reason = format!("there is no plan {:?}: there are {}", plan.as_str(), names.join(", "));
            return Err(fault("--on", reason));
        }
        Ok((other, WhatIf { since: self.since, until, tenant: self.tenant.clone(), plan }))
    }
}

fn fault(argument: &str, reason: String) -> anyhow::Error {
    Faults(vec![Fault { origin: argument.to_owned(), key: argument.to_owned(), reason }]).into()
}

/// What the answer leaves out or takes for granted, a sentence each.
pub(super) fn notes(asked: &WhatIf, replayed: &Replayed, now: Timestamp) -> Vec<String> {
    let mut notes = Vec::new();
    let kept_from = Timestamp::from_second(now.as_second() - KEPT_DAYS * 86_400).unwrap_or(Timestamp::MIN);
    if asked.since < kept_from {
        notes.push(format!("events are kept for {KEPT_DAYS} days: of what is older some or all is gone"));
    }
    if let Some(before) = replayed.gone_before {
        notes.push(format!("events before {before} are gone: what was used then is not counted"));
    }
    if replayed.plans_unknown > 0 {
        notes.push(format!(
            "the service's database did not tell the plans of {} tenants: they are taken to be on the default plan \
             (--on names another)",
            replayed.plans_unknown
        ));
    }
    notes
}

/// What was found, for people or (`json`) programs.
pub(super) fn told(asked: &WhatIf, replayed: &Replayed, notes: &[String], json: bool) -> String {
    if json { format!("{:#}\n", whole(asked, replayed, notes)) } else { text(asked, replayed) }
}

fn whole(asked: &WhatIf, replayed: &Replayed, notes: &[String]) -> Value {
    let refusals: Vec<Value> = replayed.refusals.iter().map(line).collect();
    json!({
        "since": asked.since.to_string(),
        "until": asked.until.to_string(),
        "tenants": replayed.tenants,
        "calls": replayed.calls,
        "refused": replayed.refused,
        "refused_then": replayed.refused_then,
        "no_longer_refused": replayed.freed,
        "refusals": refusals,
        "notes": notes,
    })
}

fn line(refusals: &Refusals) -> Value {
    json!({
        "tenant": refusals.tenant.as_str(),
        "plan": refusals.plan.as_str(),
        "dimension": refusals.dimension.to_string(),
        "first_refused_at": refusals.first.to_string(),
        "last_refused_at": refusals.last.to_string(),
        "refused": refusals.refused,
        "calls": refusals.calls,
        "share": share(refusals),
        "tokens_not_spent": refusals.tokens,
        "cost_usd_not_spent": Unit::Cost.shown(refusals.cost_nanousd),
    })
}

/// Of the tenant's calls in the range, with four decimals.
fn share(refusals: &Refusals) -> f64 {
    (refusals.refused as f64 / refusals.calls.max(1) as f64 * 1e4).round() / 1e4
}

fn text(asked: &WhatIf, replayed: &Replayed) -> String {
    let Replayed { tenants, calls, refused, refused_then, freed, .. } = replayed;
    let summary = format!(
        "{} to {}: {calls} calls of {tenants} tenants\n\
         {refused} would be refused, {refused_then} were; {freed} of those that were would not be\n",
        asked.since, asked.until
    );
    if replayed.refusals.is_empty() {
        return summary;
    }
    let head = [
        "TENANT",
        "PLAN",
        "DIMENSION",
        "FIRST REFUSED",
        "LAST REFUSED",
        "REFUSED",
        "OF CALLS",
        "%",
        "TOKENS NOT SPENT",
        "USD NOT SPENT",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(replayed.refusals.iter().map(|refusals| {
        vec![
            plain(refusals.tenant.as_str()),
            plain(refusals.plan.as_str()),
            refusals.dimension.to_string(),
            refusals.first.to_string(),
            refusals.last.to_string(),
            refusals.refused.to_string(),
            refusals.calls.to_string(),
            format!("{:.2}", share(refusals) * 100.0),
            refusals.tokens.to_string(),
            format!("{:.6}", refusals.cost_nanousd as f64 / 1e9),
        ]
    }));
    format!("{summary}\n{}", columns(&rows))
}
