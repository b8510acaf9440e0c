//! What is limited: units, dimensions, limits, and the amounts an exchange needs or used.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// What tokens and requests cost, in nano-dollars; US dollars wherever people write or read it.
    Cost,
    /// Exchanges in flight. A limit of a moment: it has no window, and nothing is charged to it.
    ConcurrentRequests,
}

impl Unit {
    /// Every unit, in the order of [`Amounts`].
    pub const ALL: [Unit; 6] = [
        Unit::Tokens,
        Unit::ApiCalls,
        Unit::ChatMessages,
        Unit::Embeddings,
        Unit::Cost,
        Unit::ConcurrentRequests,
    ];

    /// `tokens`, `api_calls`, `chat_messages`, `embeddings`, `cost_usd` or `concurrent_requests`.
    pub fn as_str(self) -> &'static str {
        match self {
            Unit::Tokens => "tokens",
            Unit::ApiCalls => "api_calls",
            Unit::ChatMessages => "chat_messages",
            Unit::Embeddings => "embeddings",
            Unit::Cost => "cost_usd",
            Unit::ConcurrentRequests => "concurrent_requests",
        }
    }

    /// An amount as people read it: cost in US dollars, all else as it is counted.
    pub fn shown(self, amount: u64) -> Value {
        match self {
            Unit::Cost => Value::from(amount as f64 / NANOUSD),
            _ => Value::from(amount),
        }
    }
}

/// Nano-dollars in a US dollar.
const NANOUSD: f64 = 1e9;

/// The highest limit of cost, in US dollars: up to here each cent survives a JSON number and the counter's 64 bits.
pub const MOST_USD: f64 = 1e9;

/// US dollars as the nano-dollars of a limit, rounded; `None` where they are negative, not a number, or above
/// [`MOST_USD`].
pub fn nanousd(usd: f64) -> Option<u64> {
    (0.0..=MOST_USD).contains(&usd).then(|| (usd * NANOUSD).round() as u64)
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

    /// Exchanges of a tenant in flight at once.
    pub const CONCURRENT: Dimension = Dimension { unit: Unit::ConcurrentRequests, window: Window::Moment };

    /// Whether it is a limit of a moment: held by reservations alone, charged and leased never.
    pub fn is_momentary(self) -> bool {
        self.window == Window::Moment
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_momentary() {
            return f.write_str(self.unit.as_str());
        }
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
    "{0:?} is no quota dimension: write concurrent_requests, or UNIT_per_WINDOW, with a unit of tokens, api_calls, chat_messages, embeddings, cost_usd and a window of minute, hour, day, month"
)]
pub struct UnknownDimension(pub String);

impl FromStr for Dimension {
    type Err = UnknownDimension;

    fn from_str(text: &str) -> Result<Self, UnknownDimension> {
        let unknown = || UnknownDimension(text.to_owned());
        if text == Unit::ConcurrentRequests.as_str() {
            return Ok(Dimension::CONCURRENT);
        }
        let (unit, window) = text.rsplit_once("_per_").ok_or_else(unknown)?;
        let windowed = |u: &Unit| *u != Unit::ConcurrentRequests && u.as_str() == unit;
        let unit = Unit::ALL.into_iter().find(windowed).ok_or_else(unknown)?;
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
pub struct Limits {
    all: Vec<(Dimension, Limit)>,
    /// Those that let through what is over them.
    soft: Vec<Dimension>,
}

impl Limits {
    /// No limit in any dimension.
    pub fn unlimited() -> Self {
        let mut all: Vec<_> = Dimension::STANDARD.iter().map(|d| (*d, None)).collect();
        all.sort();
        Self { all, soft: Vec::new() }
    }

    /// Sets one dimension's limit, replacing what it was.
    pub fn set(&mut self, dimension: Dimension, limit: Limit) {
        match self.all.binary_search_by_key(&dimension, |(d, _)| *d) {
            Ok(at) => self.all[at].1 = limit,
            Err(at) => self.all.insert(at, (dimension, limit)),
        }
    }

    /// One dimension's limit; a dimension that is not named is unlimited.
    pub fn limit(&self, dimension: Dimension) -> Limit {
        self.all.binary_search_by_key(&dimension, |(d, _)| *d).ok().and_then(|at| self.all[at].1)
    }

    /// Says which limits are soft: what is over them passes, and is marked. All others are hard.
    pub fn soften(&mut self, soft: &[Dimension]) {
        self.soft = soft.to_vec();
    }

    /// Whether what is over the limit of `dimension` passes.
    pub fn is_soft(&self, dimension: Dimension) -> bool {
        self.soft.contains(&dimension)
    }

    /// All dimensions with their limits, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Dimension, Limit)> + '_ {
        self.all.iter().copied()
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
    /// Nano-dollars.
    #[serde(default)]
    pub cost_nanousd: u64,
    /// Exchanges in flight: 1 while it is reserved, never used.
    #[serde(default)]
    pub concurrent: u64,
}

impl Amounts {
    /// The amount of one unit.
    pub fn of(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Tokens => self.tokens,
            Unit::ApiCalls => self.api_calls,
            Unit::ChatMessages => self.chat_messages,
            Unit::Embeddings => self.embeddings,
            Unit::Cost => self.cost_nanousd,
            Unit::ConcurrentRequests => self.concurrent,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, unit: Unit) -> &mut u64 {
        match unit {
            Unit::Tokens => &mut self.tokens,
            Unit::ApiCalls => &mut self.api_calls,
            Unit::ChatMessages => &mut self.chat_messages,
            Unit::Embeddings => &mut self.embeddings,
            Unit::Cost => &mut self.cost_nanousd,
            Unit::ConcurrentRequests => &mut self.concurrent,
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
    /// The window; its end is when the quota resets. Of a limit of a moment it is the second that begins now.
    pub span: Span,
    /// What is over the limit passes, and is marked.
    pub soft: bool,
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
        for unit in Unit::ALL.into_iter().filter(|unit| *unit != Unit::ConcurrentRequests) {
            for window in [Window::Minute, Window::Hour, Window::Day, Window::Month] {
                let dimension = Dimension { unit, window };
                assert_eq!(dimension.to_string().parse(), Ok(dimension));
            }
        }
        assert_eq!("concurrent_requests".parse(), Ok(Dimension::CONCURRENT));
        assert_eq!(Dimension::CONCURRENT.to_string(), "concurrent_requests");
        assert!("concurrent_requests_per_day".parse::<Dimension>().is_err());
        assert!("tokens_per_year".parse::<Dimension>().is_err());
        assert!("tokens".parse::<Dimension>().is_err());
    }

    #[test]
    fn cost_is_counted_in_nano_dollars_and_told_in_dollars() {
        for (usd, nano) in [(0.0, 0), (0.1, 100_000_000), (12.34, 12_340_000_000), (1e9, 10u64.pow(18))] {
            assert_eq!(nanousd(usd), Some(nano));
            assert_eq!(Unit::Cost.shown(nano), Value::from(usd));
        }
        for usd in [-0.01, 1e9 + 1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(nanousd(usd), None);
        }
        assert_eq!(Unit::Tokens.shown(7), Value::from(7));
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
