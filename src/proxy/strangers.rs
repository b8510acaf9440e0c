//! Callers whose sessions can't be looked up: what each client address may use, beside what they may all use together.
//!
//! 1. A session that nobody can look up may be invented, so each new one is no fresh quota: its client's address has one.
//! 2. That quota is held by each replica alone, in memory, and is in no table. What all strangers use together is charged to
//!    [`TenantId::unresolved`] like any tenant's use, which bounds them over all replicas, and the addresses kept here too:
//!    a call that gets nothing there is not looked at here.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::model::client::network;
use crate::model::quota::Amounts;
use crate::model::tenant::TenantId;
use crate::quota::{Enforcer, Plans, Refusal, Reservation};
use crate::telemetry::Metrics;

/// The plan that says what one client address may use.
const PLAN: &str = "unresolved_client";

/// What client addresses have used without anybody knowing for whom.
#[derive(Debug)]
pub struct Strangers(Arc<Enforcer>);

impl Default for Strangers {
    /// Nothing was used. Its reservations are in no metric: they stand beside those of the tenant that is charged.
    fn default() -> Self {
        Self(Enforcer::new(Metrics::new()))
    }
}

impl Strangers {
    /// Takes `amounts` for `client`, under the plan for one client address.
    ///
    /// # Errors
    /// It has used up what it may.
    pub(crate) fn reserve(
        &self,
        plans: &Plans,
        client: IpAddr,
        amounts: Amounts,
        enforce: bool,
        now: Timestamp,
    ) -> Result<Option<Reservation>, Box<Refusal>> {
        let (Some(entitlement), Ok(client)) =
            (plans.named(PLAN), TenantId::parse(&network(client).to_string()))
        else {
            return Ok(None);
        };
        self.0.reserve(&client, entitlement, amounts, enforce, now).map(Some)
    }

    /// Forgets addresses with no use in a window that still runs.
    pub fn evict(&self, now: Timestamp) {
        self.0.evict(now);
    }
}
