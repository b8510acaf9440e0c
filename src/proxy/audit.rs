//! What the audit trail says of an exchange.
//!
//! Rules are data (`config`), compiled for each route (`rules`); what they tell of requests and answers is masked
//! (`masking`). Three events are no rule's: that a caller's token contradicts its session, for such a call never
//! becomes an exchange, that its tenant is blocked, and that it passed over a soft limit.

pub(crate) mod config;
mod masking;
mod rules;
mod summary;
mod trail;

pub(crate) use rules::Rules;
pub(crate) use trail::{Bearer, End, Trail, quota_soft_exceeded, tenant_blocked, tenant_mismatch};
