//! Changes of plan that look-ups in the service's database bring to light, into the audit trail: `trial_upgraded`, once
//! for each change though every replica notices. The request that noticed waits for nothing.
//!
//! Written past the journal, because only the database can tell whether another replica was first. So while it is away
//! changes wait here, as many as [`WAITING`]; those beyond are counted as lost, and those that still wait at the stop logged.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::model::event::AuditEvent;
use crate::model::tenant::TenantId;
use crate::proxy::Core;
use crate::store::{Store, plans};
use crate::telemetry::bump;
use crate::tenant::Turn;

/// Changes that wait for the database.
const WAITING: usize = 4096;

/// Before a change that could not be written is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// A tenant's change of plan.
struct PlanChange {
    tenant: TenantId,
    former: String,
    now: String,
}

/// Records changes of plan until `stop`.
pub(super) async fn record(store: Store, core: Arc<Core>, stop: CancellationToken) {
    let (noticed, mut changes) = mpsc::channel(WAITING);
    let watched = Arc::downgrade(&core);
    core.directory.tell_turns(Box::new(move |turn| {
        let Some(core) = watched.upgrade() else { return };
        let Some(change) = plan_change(&core, &turn) else { return };
        if let Err(TrySendError::Full(_)) = noticed.try_send(change) {
            bump(&core.metrics.plan_changes, "result", "lost");
        }
    }));
    let recording = async {
        while let Some(change) = changes.recv().await {
            loop {
                match plans::record_change(&store, &change.tenant, &change.now, audit(&change)).await {
                    Ok(first) => {
                        bump(&core.metrics.plan_changes, "result", if first { "recorded" } else { "known" });
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a change of plan waits to be recorded");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = recording => {}
        () = stop.cancelled() => {}
    }
    changes.close();
    let mut lost = 0;
    while changes.try_recv().is_ok() {
        lost += 1;
    }
    if lost > 0 {
        tracing::warn!(lost, "changes of plan were not recorded: the database did not answer in time");
    }
}

/// What an answer that turned means: nothing, where it was not a plan, or the tenant is on the same one by default.
fn plan_change(core: &Core, turn: &Turn) -> Option<PlanChange> {
    let policy = core.policy.load();
    if policy.rules.plan_query.as_ref() != Some(&turn.query) {
        return None;
    }
    let default = policy.plans.default_plan().as_str();
    let name = |plan: &Option<Arc<str>>| plan.as_deref().unwrap_or(default).to_owned();
    let (former, now) = (name(&turn.former), name(&turn.now));
    let tenant = TenantId::parse(&turn.key).ok()?;
    (former != now).then_some(PlanChange { tenant, former, now })
}

fn audit(change: &PlanChange) -> AuditEvent {
    let PlanChange { tenant, former, now } = change;
    let (id, at) = (Uuid::now_v7(), jiff::Timestamp::now());
    AuditEvent {
        tenant_id: Some(tenant.clone()),
        entity_type: "tenant".into(),
        entity_id: Some(tenant.to_string()),
        old_values: Some(json!({"plan": former})),
        new_values: Some(json!({"plan": now})),
        summary: Some(format!("the service's database says {now:?}, and said {former:?} before")),
        ..AuditEvent::new(id, at, "trial_upgraded", "trial_event", "update")
    }
}
