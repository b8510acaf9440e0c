//! One counter of this replica's ledger, as operators are told of it.

use crate::model::quota::Dimension;
use crate::model::window::Span;

/// What this replica knows and holds of one quota, in the window that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Of which quota.
    pub dimension: Dimension,
    /// In which window.
    pub span: Span,
    /// Used under a limit through this run of this replica.
    pub used: i64,
    /// Held by exchanges in flight.
    pub reserved: u64,
    /// Used by everybody else, as last heard, and through this run while there was no limit.
    pub elsewhere: i64,
    /// What this run may use of the window in all.
    pub granted: i64,
    /// All replicas together have used up the limit, as last heard.
    pub dry: bool,
}

impl Holding {
    /// What was used and is reserved beyond the lease. The next grant pays it first.
    pub fn debt(&self) -> u64 {
        let reserved = i64::try_from(self.reserved).unwrap_or(i64::MAX);
        let beyond = self.used.saturating_add(reserved).saturating_sub(self.granted);
        u64::try_from(beyond).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    #[test]
    fn debt_is_what_is_used_and_reserved_beyond_the_lease() {
        let dimension = Dimension::STANDARD[0];
        let span = dimension.window.span(&TimeZone::UTC, "2026-11-24T12:00:00Z".parse().unwrap());
        let held = |used, reserved, granted| Holding {
            dimension,
            span,
            used,
            reserved,
            elsewhere: 1000,
            granted,
            dry: false,
        };
        assert_eq!(
            [held(100, 50, 150), held(-5, 0, 0), held(120, 50, 150)].map(|held| held.debt()),
            [0, 0, 20]
        );
        assert_eq!(held(i64::MAX, u64::MAX, -1).debt(), i64::MAX as u64);
    }
}
