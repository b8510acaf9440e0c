//! What the handlers share: the gateway's [`State`] and what is made of it once.

use std::sync::Arc;

use jiff::Timestamp;

use super::auth::Keys;
use super::cursor::Cursors;
use super::state::State;
use super::throttle::{Pace, Throttle};

/// Shared by all calls.
pub(super) struct Context {
    pub(super) state: State,
    pub(super) keys: Keys,
    pub(super) cursors: Cursors,
    /// Of wrong credentials.
    pub(super) guesses: Throttle,
    /// Of audit rows about them.
    pub(super) records: Throttle,
}

impl Context {
    pub(super) fn new(state: State) -> Arc<Self> {
        let config = &state.config;
        let cursors = Cursors::new(&[config.operator_token.as_deref(), config.viewer_token.as_deref()]);
        Arc::new(Self {
            keys: Keys::new(config),
            cursors,
            guesses: Throttle::new(Pace::GUESSES),
            records: Throttle::new(Pace::RECORDS),
            state,
        })
    }
}

/// An instant as the answers spell it: RFC 3339, UTC, microseconds, the same as the database's columns.
pub(super) fn rfc3339(at: Timestamp) -> String {
    format!("{at:.6}")
}
