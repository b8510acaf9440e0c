//! Soft limits: what is over them passes, and is marked.

use serde_json::{Value, json};

use super::account::Open;
use crate::model::event::Record;
use crate::proxy::audit;
use crate::quota::Reservation;
use crate::telemetry::bump;

impl Open {
    /// Marks the exchange with the soft limits that it is over (`over_soft` in its row's metadata) and counts it. The first
    /// of a tenant in a window leaves an audit event: once for each replica, as far as it remembers the tenant.
    pub(super) fn pass_over_soft(&mut self, reservation: &Reservation) {
        let over = reservation.over_soft();
        if over.is_empty() {
            return;
        }
        let names: Vec<Value> = over.iter().map(|(dimension, _)| dimension.to_string().into()).collect();
        for (dimension, first) in over {
            bump(&self.core.metrics.soft_exceeded, "dimension", dimension.to_string());
            let standing = reservation.standings().iter().find(|standing| standing.dimension == *dimension);
            if let Some(standing) = standing.filter(|_| *first) {
                let event = audit::quota_soft_exceeded(&self.trail(), standing);
                drop(self.core.recorder.record([Record::Audit(Box::new(event))].into_iter().collect()));
            }
        }
        self.metadata.insert("over_soft".into(), json!(names));
    }
}
