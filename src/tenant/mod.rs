//! Who is calling, as far as the service's own database knows.
//!
//! Constraints that the [`Directory`] keeps:
//!
//! 1. A fresh answer costs one read of a cache: no allocation, no task, no lock held over an `.await`.
//! 2. A miss waits at most `timeout`. The look-up goes on without the request and fills the cache for the next one.
//! 3. One look-up at a time for a query and key, however many ask.
//! 4. Memory is bounded: answers by `capacity`, keys and values by [`MAX_BYTES`], look-ups in the air by a constant, and
//!    those of one client address by another, so that nobody keeps the database from the others by asking for much.
//! 5. A database that is away costs no request more than one wait, and all of them together one wait a second: after a
//!    failure a query is left alone for a second, and then tried by one request. Until it answers again the last known
//!    answer holds, however old.
//! 6. A database that answers others is not away but busy ([`Fault::Busy`]). One that will never answer a query as it stands
//!    is neither ([`Fault::Broken`]).

mod answers;
mod breaker;
mod directory;
mod session;
mod source;
#[cfg(test)]
mod tests;

pub use answers::{Answer, MAX_BYTES};
pub use directory::{Config, Directory, Turn, TurnSink};
pub use source::{Fault, SourceError, TenantSource};
