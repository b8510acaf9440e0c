//! Prices and what they make of a token count. Money is integer nano-dollars here; a decimal only in a column.
//!
//! 1. A price is found by the model's name and the instant of the event that is priced, so what a model costs from
//!    some day on never changes what an earlier event cost.
//! 2. Token classes are parts of input and output: no token is billed twice, whatever a provider reports.
//! 3. Finding a price allocates nothing and takes a bounded time, whatever a client claims the model to be.
//! 4. What has no price of its own is priced by a documented fallback, and the caller is told which it was.

mod kind;
mod rates;
mod table;

pub use self::kind::{KINDS, same_kind};
pub use self::rates::{PicoUsdPerToken, Price, Rates, Scale};
pub use self::table::{Call, Cost, Found, MAX_NAME_BYTES, PriceTable, PricedBy, Rule, Tariff};

#[cfg(test)]
mod tests;
