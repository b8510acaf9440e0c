//! The seam behind which the service's database is.

use futures_util::future::BoxFuture;

/// Why the service's database gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It can't be reached, or answers nobody in time. It may be back in a moment.
    Away,
    /// It answers, but not this look-up in time: there are too many at once.
    Busy,
    /// It answers that it never will: the query, its tables or the role's permissions are wrong.
    Broken,
}

/// The service's database could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// What that means for the next look-up.
    pub fault: Fault,
    /// For people.
    pub message: String,
}

/// Look-ups in the service's database.
pub trait TenantSource: Send + Sync + 'static {
    /// The first column of the first row of `query` (one parameter, `$1`, text) for `key`, as text.
    ///
    /// An error says that the database can't answer this query, whoever asks, and keeps it from being asked for a while.
    /// So a key that the query can't take (SQLSTATE class 22, such as a session id that is no UUID) is `Ok(None)`:
    /// else one client could stop the look-ups of all.
    fn look_up<'a>(
        &'a self,
        query: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, SourceError>>;
}
