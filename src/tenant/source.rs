//! The seam behind which the service's database is.

use futures_util::future::BoxFuture;

/// The service's database could not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

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
