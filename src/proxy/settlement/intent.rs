//! What is left in the journal at admission, for the case that the process dies before the exchange ends.
//!
//! It is handed over before the request goes out, and not waited for. A kill between the two, or in the write that
//! follows (some tens of microseconds on a disk that is well), can so leave a call that the upstream saw and nobody is
//! charged for. What it can't do is lose anything that a client saw whole: that waits for the event. Waiting here would
//! buy that instant at the price of a journal's write before each first byte.

use super::account::Open;
use crate::model::intent::Intent;
use crate::model::quota::Amounts;
use crate::quota::Reservation;

impl Open {
    /// Leaves the intent of an exchange that was admitted.
    pub(super) fn intend(&self) {
        let Some(tenant) = &self.subject.tenant else { return };
        let reserved = self.reservation.as_ref().map_or_else(|| self.expected(), Reservation::amounts);
        // What is held while it lasts is not used up by it.
        let reserved = Amounts { concurrent: 0, ..reserved };
        let charges = self.reservation.as_ref().map(|reservation| reservation.charges(reserved));
        self.hub.intend(Box::new(Intent {
            event_id: self.event_id,
            tenant_id: tenant.clone(),
            event_type: self.route.config.event,
            at: self.arrival.at,
            method: self.subject.method.as_str().to_owned(),
            endpoint: self.route.config.path.clone(),
            chat_session_id: self.subject.inspected.session.clone(),
            model: self.subject.model.name.clone(),
            request_id: self.subject.request_id.clone(),
            charges: charges.unwrap_or_default(),
            reserved,
            lease_run: self.core.enforcer.run(),
            metadata: self.metadata.clone(),
        }));
    }
}
