//! Calendar windows: a quota belongs to a minute, an hour, a day or a month of a plan's time zone.

use std::fmt;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

/// The length of a quota's window. Calendar-aligned: a day is from midnight to midnight where the plan lives,
/// so 23 or 25 hours long when daylight saving turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// From second 0 to second 0.
    Minute,
    /// From minute 0 to minute 0 of local time.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From the first midnight of a month to the first of the next.
    Month,
    /// No window: what is held now counts, and nothing of what was. Never parsed.
    Moment,
}

/// One window on the time line, half-open: `start <= t < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// The first instant of the window.
    pub start: Timestamp,
    /// The first instant after it: when the quota resets.
    pub end: Timestamp,
}

impl Span {
    /// Whether `now` lies in the window.
    pub fn contains(&self, now: Timestamp) -> bool {
        self.start <= now && now < self.end
    }
}

impl Window {
    /// The window of this length that holds `now`, in the calendar of `zone`.
    ///
    /// Instants beyond jiff's range (year 9999) are clamped; no instant panics.
    pub fn span(self, zone: &TimeZone, now: Timestamp) -> Span {
        // Offsets of time zones in use today are whole minutes, so minutes need no calendar at all.
        if self == Window::Minute {
            let second = now.as_second();
            let start = second - second.rem_euclid(60);
            let at = |s: i64| Timestamp::from_second(s).unwrap_or(Timestamp::MAX);
            return Span { start: at(start), end: at(start + 60) };
        }
        let local = zone.to_datetime(now);
        let floor = self.floor(local);
        let next = match self {
            Window::Minute => floor.checked_add(1.minute()),
            Window::Hour => floor.checked_add(1.hour()),
            Window::Day => floor.checked_add(1.day()),
            Window::Month => floor.checked_add(1.month()),
            Window::Moment => return Span { start: Timestamp::UNIX_EPOCH, end: Timestamp::MAX },
        }
        .unwrap_or(DateTime::MAX);
        let at = |civil: DateTime| zone.to_timestamp(civil).unwrap_or(Timestamp::MAX);
        let span = Span { start: at(floor), end: at(next) };
        if span.contains(now) { span } else { self.span_in_fold(span, now) }
    }

    /// An hour that the clocks repeat (or skip) when daylight saving turns: civil times name it twice, so the
    /// windows are counted in elapsed hours from the nearer edge instead.
    fn span_in_fold(self, nearest: Span, now: Timestamp) -> Span {
        let hour = 3600;
        let from = if now < nearest.start { nearest.start } else { nearest.end };
        let steps = (now.as_second() - from.as_second()).div_euclid(hour);
        let at = |s: i64| Timestamp::from_second(s).unwrap_or(Timestamp::MAX);
        let start = from.as_second() + steps * hour;
        Span { start: at(start), end: at(start + hour) }
    }

    fn floor(self, local: DateTime) -> DateTime {
        let date = local.date();
        match self {
            Window::Minute | Window::Moment => date.at(local.hour(), local.minute(), 0, 0),
            Window::Hour => date.at(local.hour(), 0, 0, 0),
            Window::Day => date.at(0, 0, 0, 0),
            Window::Month => date.first_of_month().at(0, 0, 0, 0),
        }
    }

    /// `minute`, `hour`, `day` or `month`; `moment` for none.
    pub fn as_str(self) -> &'static str {
        match self {
            Window::Minute => "minute",
            Window::Hour => "hour",
            Window::Day => "day",
            Window::Month => "month",
            Window::Moment => "moment",
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Window {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "minute" => Window::Minute,
            "hour" => Window::Hour,
            "day" => Window::Day,
            "month" => Window::Month,
            _ => return Err(()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn hours(span: Span) -> i64 {
        (span.end.as_second() - span.start.as_second()) / 3600
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_day_is_the_plans_own_day() {
        let span = Window::Day.span(&zone("Asia/Tokyo"), at("2026-11-24T16:00:00Z"));
        assert_eq!(span.start, at("2026-11-24T15:00:00Z"));
        assert_eq!(span.end, at("2026-11-25T15:00:00Z"));
    }

    #[test]
    fn days_on_which_the_clocks_turn_are_23_and_25_hours_long() {
        let berlin = zone("Europe/Berlin");
        assert_eq!(hours(Window::Day.span(&berlin, at("2026-03-29T12:00:00Z"))), 23);
        assert_eq!(hours(Window::Day.span(&berlin, at("2026-10-25T12:00:00Z"))), 25);
    }

    #[test]
    fn every_instant_lies_in_its_window_and_windows_tile_the_line() {
        let places = [
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Asia/Kolkata",
            "Australia/Lord_Howe",
            "Asia/Beirut",
        ];
        for place in places {
            let zone = zone(place);
            for window in [Window::Minute, Window::Hour, Window::Day, Window::Month] {
                let mut now = at("2026-01-01T00:00:00Z");
                while now < at("2027-01-01T00:00:00Z") {
                    let span = window.span(&zone, now);
                    assert!(span.contains(now), "{place} {window} {now} {span:?}");
                    let last = Timestamp::from_second(span.end.as_second() - 1).unwrap();
                    assert_eq!(window.span(&zone, last), span, "{place} {window} {last}");
                    now = Timestamp::from_second(now.as_second() + 1_777).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_month_ends_where_the_next_begins() {
        let span = Window::Month.span(&TimeZone::UTC, at("2028-02-29T23:59:59Z"));
        assert_eq!((span.start, span.end), (at("2028-02-01T00:00:00Z"), at("2028-03-01T00:00:00Z")));
    }
}
