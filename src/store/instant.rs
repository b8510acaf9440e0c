//! Instants, as Postgres keeps them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// An instant as Postgres keeps it, to the microsecond. An event's time is half of its key, so it must come out the
/// same whether the event comes from memory or from the journal, which keeps microseconds.
pub(super) fn moment(at: Timestamp) -> SystemTime {
    let us = at.as_microsecond().max(EARLIEST_US);
    let since = Duration::from_micros(us.unsigned_abs());
    if us < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since }
}

/// The first instant of year 1: Postgres ends in 4713 BC, jiff does not.
const EARLIEST_US: i64 = -62_135_596_800_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_keeps_its_key_through_the_journal() {
        let exact: Timestamp = "2026-11-24T03:34:25.123456789Z".parse().unwrap();
        let journaled = Timestamp::from_microsecond(exact.as_microsecond()).unwrap();
        assert_eq!(moment(exact), moment(journaled));
        assert_eq!(Timestamp::try_from(moment(exact)).unwrap(), journaled);
    }

    #[test]
    fn instants_that_postgres_has_no_place_for_are_brought_within_it() {
        assert_eq!(moment(Timestamp::MIN), moment("0001-01-01T00:00:00Z".parse().unwrap()));
    }
}
