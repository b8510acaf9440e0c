//! What could not be understood of an exchange: noted in its row, counted, and told to the operator with what to do.

use serde_json::json;

use super::account::Open;
use crate::meter::Reading;
use crate::proxy::charging::{Basis, UNKNOWN_FORMAT, Unread};
use crate::telemetry::{self, bump};

impl Open {
    /// Notes what the meter says of the answer beside its tokens, and what of the exchange was not understood.
    pub(super) fn note_reading(&mut self, reading: &Reading, basis: Basis, unread: Unread) {
        // That the format is unknown matters only where something is charged for it.
        let known_flag = reading.flag.filter(|flag| *flag != UNKNOWN_FORMAT);
        if let Some(flag) = known_flag.or(unread.any().then_some(UNKNOWN_FORMAT)) {
            bump(&self.core.metrics.unmetered, "flag", flag);
            self.metadata.insert("meter_flag".into(), json!(flag));
        }
        if matches!(basis, Basis::Text(_) | Basis::Reserved) {
            self.note_guesses(reading);
        }
        if unread.answer {
            let what = known_flag.unwrap_or(UNKNOWN_FORMAT);
            self.note_unread("answer_shape", what, reading.shape.as_deref());
        }
        if unread.request {
            let shape = self.subject.inspected.shape.take();
            self.note_unread(
                "request_shape",
                self.subject.unread.unwrap_or("request_text"),
                shape.as_deref(),
            );
        }
    }

    /// Where text that is counted was found by the last resort, the row says so.
    fn note_guesses(&mut self, reading: &Reading) {
        if reading.guessed {
            self.metadata.insert("text_by".into(), json!(LAST_RESORT));
        }
        if self.subject.inspected.guessed && reading.usage.input.is_none() {
            self.metadata.insert("request_text_by".into(), json!(LAST_RESORT));
        }
    }

    /// Notes one side that was not understood, and tells the operator, but not for every call.
    fn note_unread(&mut self, key: &str, what: &'static str, shape: Option<&str>) {
        if let Some(shape) = shape {
            self.metadata.insert(key.into(), json!(shape));
        }
        let route = &self.route.config.path;
        let label = telemetry::Unread { route: route.clone(), what };
        self.core.metrics.unread.get_or_create(&label).inc();
        let Some(calls) = self.route.unread.due(self.arrival.instant) else { return };
        tracing::warn!(
            route,
            what,
            shape = shape.unwrap_or("not read"),
            calls,
            "calls whose tokens nobody could read are charged their reservation: if the shape is one of yours, say where its \
             text and its usage are in a [formats.NAME] rule, and name it as the route's format (docs/formats.md)"
        );
    }
}

const LAST_RESORT: &str = "last_resort";
