//! Where records go in the end: what the shipper needs of it.

use futures_util::future::BoxFuture;

use crate::model::event::Record;

/// Why a batch was not written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SinkError {
    /// Try the same batch again later: the database is away, full, busy, read only, …
    #[error("{0}")]
    Transient(String),
    /// Some record of the batch can never be written.
    #[error("{0}")]
    Poison(String),
}

/// Where records go in the end.
pub trait EventSink: Send + Sync + 'static {
    /// Writes a batch in one transaction, once for each `event_id`; `Ok` after COMMIT.
    fn write<'a>(&'a self, batch: &'a [Record]) -> BoxFuture<'a, Result<(), SinkError>>;
}
