//! Requests whose body can't be inspected: who is refused for it, who is charged for it, and who passes.
//!
//! Whoever is known without the body never gets less than who is inspected: what could hold a hundred messages is no
//! single one. And whom only the body can name is not nobody because we can't read it.

use super::config::{BodyConfig, Enforce, RouteConfig};
use super::failure::Failure;
use crate::meter::Inspected;

/// Messages, or texts to embed, that a body is charged as where its route lets pass what can't be inspected and says no
/// other number. More than any of the plans that we ship grants in a day but those of paying tenants.
const UNREAD_ITEMS: u64 = 1000;

/// Why a body was not inspected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Uninspected {
    /// Its route says that it is not to be.
    Opaque,
    /// Too large, or in a coding that can't be undone: what a stricter route refuses so.
    Unread(Failure),
    /// It is not JSON that we can read.
    NotJson {
        /// It begins as JSON does, so another parser may read it, or it is a form, which a service may read instead.
        legible: bool,
    },
}

impl Uninspected {
    /// A body that is no JSON to us. `form`: it is one of which a service could read what JSON could have said.
    pub(crate) fn not_json(body: &[u8], form: bool) -> Self {
        // Some parsers take comments, single quotes, a protecting prefix, or zero bytes before the text.
        const BEGINS: &[u8] = b"{[\"'/#)(&\0\xef\xfe\xff";
        let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
        Uninspected::NotJson { legible: form || first.is_some_and(|byte| BEGINS.contains(byte)) }
    }

    /// How a row tells it.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Uninspected::Opaque => "opaque",
            Uninspected::Unread(failure) => failure.code(),
            Uninspected::NotJson { .. } => "not_json",
        }
    }

    /// What a known tenant is charged for: the worst case, or the call is refused.
    pub(crate) fn worst_case(&self, route: &RouteConfig) -> Result<Inspected, Failure> {
        if *self == Uninspected::Opaque || !route.event.counts_items() {
            return Ok(Inspected::default());
        }
        // Where quotas are only watched, nobody is refused for want of a count.
        let watched = (route.enforce != Enforce::Hard).then_some(UNREAD_ITEMS);
        match unread_items(route).or(watched) {
            Some(items) => Ok(Inspected { messages: items, embeddings: items, ..Inspected::default() }),
            None => Err(self.failure()),
        }
    }

    /// Whether the request of a caller whom nothing names may pass: not if only its body, which can't be read, could have
    /// named one.
    pub(crate) fn may_pass(&self, body_names: bool) -> Result<(), Failure> {
        match self {
            Uninspected::Opaque | Uninspected::NotJson { legible: false } => Ok(()),
            _ if !body_names => Ok(()),
            _ => Err(self.failure()),
        }
    }

    fn failure(&self) -> Failure {
        match self {
            Uninspected::Unread(failure) => failure.clone(),
            Uninspected::Opaque | Uninspected::NotJson { .. } => Failure::BodyUnreadable,
        }
    }
}

/// What a body that can't be inspected is charged as; `None`: it is refused.
pub(crate) fn unread_items(route: &RouteConfig) -> Option<u64> {
    route.unread_items.or((route.pass_unidentified == Some(true)).then_some(UNREAD_ITEMS))
}

/// Whether a route takes what can't be inspected at all.
pub(crate) fn is_lenient(route: &RouteConfig) -> bool {
    matches!(route.body, BodyConfig::Json { .. }) && unread_items(route).is_some()
}
