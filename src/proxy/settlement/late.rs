//! Counts that come after the event: they amend it.

use smallvec::smallvec;
use tokio::sync::oneshot;

use super::account::Open;
use crate::meter::Counted;
use crate::model::billing::Billing;
use crate::model::event::{Amendment, AuditEvent, Record};
use crate::model::price::Call;
use crate::model::quota::{Amounts, Charge, Unit};
use crate::model::tokens::{TokenSource, TokenUsage};
use crate::proxy::charging;
use crate::record::Records;

/// A count that the event could not wait for.
pub(super) struct Late {
    pub(super) counting: oneshot::Receiver<Counted>,
    pub(super) reported: TokenUsage,
    /// What the row will say.
    pub(super) source: TokenSource,
    pub(super) model: Option<String>,
    /// What decides the price beside the tokens.
    pub(super) billing: Billing,
    /// Charged until then.
    pub(super) charged: Amounts,
    /// The audit events that tell the tokens.
    pub(super) told: Vec<Told>,
}

/// An audit event that waits for the count, and the place of its rule.
pub(super) struct Told {
    pub(super) rule: usize,
    pub(super) event: AuditEvent,
}

impl Open {
    /// A count that came too late for the event corrects it: the row, the live counter and the quota in memory.
    pub(super) fn amend_later(&self, late: Late, charges: &[Charge]) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Some(tenant_id) = self.subject.tenant.clone() else { return };
        let (core, policy, route) = (self.core.clone(), self.policy.clone(), self.route.clone());
        let (event_id, at) = (self.event_id, self.arrival.at);
        let counted = |charge: &&Charge| matches!(charge.dimension.unit, Unit::Tokens | Unit::Cost);
        let charges: Vec<Charge> = charges.iter().filter(counted).cloned().collect();
        self.core.tasks.spawn_on(
            async move {
                let Ok(counted) = late.counting.await else { return };
                let usage = charging::usage_of(&late.reported, &counted);
                let tokens = usage.total().unwrap_or(0);
                let model = late.model.as_deref();
                let call = Call { model, at, usage: &usage, billing: &late.billing, unseen: 0 };
                let cost_nanousd = policy.prices.cost(&call).nanousd;
                let now = Amounts { tokens, cost_nanousd, ..late.charged };
                let signed = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
                let delta = |unit| signed(now.of(unit)) - signed(late.charged.of(unit));
                let corrected = |charge: Charge| Charge { amount: delta(charge.dimension.unit), ..charge };
                let charges: Vec<_> = charges.into_iter().map(corrected).collect();
                let lease_run = core.enforcer.run();
                core.enforcer.amend(&tenant_id, &charges);
                let amendment = Amendment {
                    event_id,
                    tenant_id,
                    at,
                    usage,
                    tokens_consumed: tokens,
                    token_source: late.source,
                    cost_nanousd,
                    charges,
                    lease_run,
                };
                let mut records: Records = smallvec![Record::Amend(Box::new(amendment))];
                records.extend(late.told.into_iter().map(|Told { rule, event }| {
                    Record::Audit(Box::new(route.audit.with_tokens(rule, event, tokens)))
                }));
                drop(core.recorder.record(records));
            },
            &runtime,
        );
    }
}
