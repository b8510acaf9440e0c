//! What is limited: units, dimensions, limits, and the amounts an exchange needs or used.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::window::{Span, Window};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Input and output tokens of a model.
    Tokens,
    /// Requests on metered routes.
    ApiCalls,
    /// Messages answered, a batch counting each of its own.
    ChatMessages,
    /// Texts embedded.
    Embeddings,
}

impl Unit {
    /// Every unit, in the order of [`Amounts`].
    pub const ALL: [Unit; 4] = [Unit::Tokens, Unit::ApiCalls, Unit::ChatMessages, Unit::Embeddings];

    /// `tokens`, `api_calls`, `chat_messages` or `embeddings`.
    pub fn as_str(self) -> &'static str {
        match self {
            Unit::Tokens => "tokens",
            Unit::ApiCalls => "api_calls",
            Unit::ChatMessages => "chat_messages",
            Unit::Embeddings => "embeddings",
        }
    }
}

/// A unit within a window, written `tokens_per_day`: what a plan can limit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Dimension {
    /// What is counted.
    pub unit: Unit,
    /// Over how long.
    pub window: Window,
}

impl Dimension {
    /// The dimensions that the service's plans have, counted for every tenant, limited or not.
    pub const STANDARD: [Dimension; 4] = [
        Dimension { unit: Unit::Tokens, window: Window::Day },
        Dimension { unit: Unit::ApiCalls, window: Window::Minute },
        Dimension { unit: Unit::ChatMessages, window: Window::Day },
        Dimension { unit: Unit::Embeddings, window: Window::Day },
    ];
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_per_{}", self.unit.as_str(), self.window.as_str())
    }
}

impl fmt::Debug for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text names no dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no quota dimension: write UNIT_per_WINDOW, with a unit of tokens, api_calls, chat_messages, embeddings and a window of minute, hour, day, month"
)]
pub struct UnknownDimension(pub String);

impl FromStr for Dimension {
    type Err = UnknownDimension;

    fn from_str(text: &str) -> Result<Self, UnknownDimension> {
        let unknown = || UnknownDimension(text.to_owned());
        let (unit, window) = text.rsplit_once("_per_").ok_or_else(unknown)?;
        let unit = Unit::ALL.into_iter().find(|u| u.as_str() == unit).ok_or_else(unknown)?;
        let window = window.parse().map_err(|()| unknown())?;
        Ok(Dimension { unit, window })
    }
}

impl TryFrom<String> for Dimension {
    type Error = UnknownDimension;

    fn try_from(text: String) -> Result<Self, UnknownDimension> {
        text.parse()
    }
}

impl From<Dimension> for String {
    fn from(dimension: Dimension) -> Self {
        dimension.to_string()
    }
}

/// How much of a dimension a tenant may use in one window; `None` is unlimited.
pub type Limit = Option<u64>;

/// The limits of a plan or a tenant. Always has the [`Dimension::STANDARD`] ones; sorted by dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits(Vec<(Dimension, Limit)>);

impl Limits {
    /// No limit in any dimension.
    pub fn unlimited() -> Self {
        let mut all: Vec<_> = Dimension::STANDARD.iter().map(|d| (*d, None)).collect();
        all.sort();
        Self(all)
    }

    /// Sets one dimension's limit, replacing what it was.
    pub fn set(&mut self, dimension: Dimension, limit: Limit) {
        match self.0.binary_search_by_key(&dimension, |(d, _)| *d) {
            Ok(at) => self.0[at].1 = limit,
            Err(at) => self.0.insert(at, (dimension, limit)),
        }
    }

    /// One dimension's limit; a dimension that is not named is unlimited.
    pub fn limit(&self, dimension: Dimension) -> Limit {
        self.0.binary_search_by_key(&dimension, |(d, _)| *d).ok().and_then(|at| self.0[at].1)
    }

    /// All dimensions with their limits, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Dimension, Limit)> + '_ {
        self.0.iter().copied()
    }
}

/// An amount of each unit: what an exchange is expected to need, or what it used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Tokens in and out.
    pub tokens: u64,
    /// Requests: 1 for each exchange.
    pub api_calls: u64,
    /// Chat messages.
    pub chat_messages: u64,
    /// Texts embedded.
    pub embeddings: u64,
}

impl Amounts {
    /// The amount of one unit.
    pub fn of(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Tokens => self.tokens,
            Unit::ApiCalls => self.api_calls,
            Unit::ChatMessages => self.chat_messages,
            Unit::Embeddings => self.embeddings,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, unit: Unit) -> &mut u64 {
        match unit {
            Unit::Tokens => &mut self.tokens,
            Unit::ApiCalls => &mut self.api_calls,
            Unit::ChatMessages => &mut self.chat_messages,
            Unit::Embeddings => &mut self.embeddings,
        }
    }
}

/// What one exchange adds to one live counter. Written with its event, in the same transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// Which counter.
    pub dimension: Dimension,
    /// The first instant of the window that the reservation was made in.
    #[serde(with = "jiff::fmt::serde::timestamp::microsecond::required")]
    pub window_start: Timestamp,
    /// The first instant after that window.
    #[serde(with = "jiff::fmt::serde::timestamp::microsecond::required")]
    pub window_end: Timestamp,
    /// What was used. Negative only in an amendment that corrects an event downwards.
    pub amount: i64,
    /// The tenant's limit when it was charged, for whoever reads the counter; `None` is unlimited.
    pub limit: Limit,
}

/// How a tenant stands in one dimension, as told to clients and operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which quota.
    pub dimension: Dimension,
    /// The limit; `None` is unlimited.
    pub limit: Limit,
    /// Used and reserved so far in this window. May exceed the limit where an exchange used more than it reserved.
    pub used: u64,
    /// The window; its end is when the quota resets.
    pub span: Span,
}

impl Standing {
    /// What is left, never negative; `None` is unlimited.
    pub fn remaining(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_read_as_they_are_written() {
        for unit in Unit::ALL {
            for window in [Window::Minute, Window::Hour, Window::Day, Window::Month] {
                let dimension = Dimension { unit, window };
                assert_eq!(dimension.to_string().parse(), Ok(dimension));
            }
        }
        assert!("tokens_per_year".parse::<Dimension>().is_err());
        assert!("tokens".parse::<Dimension>().is_err());
    }

    #[test]
    fn a_limit_that_is_set_replaces_what_was_there() {
        let mut limits = Limits::unlimited();
        let day = Dimension::STANDARD[0];
        limits.set(day, Some(5));
        limits.set(day, Some(7));
        assert_eq!(limits.limit(day), Some(7));
        assert_eq!(limits.iter().count(), 4);
    }
}
