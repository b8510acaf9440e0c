//! Recording: recorder → journal → shipper → sink.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use tokio_util::sync::CancellationToken;

use crate::model::event::Record;
use crate::telemetry::Metrics;

/// Where the journal is, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The journal's directory.
    pub dir: PathBuf,
    /// All segments together.
    pub max_bytes: u64,
    /// One segment.
    pub segment_bytes: u64,
    /// How often the journal is synced to the disk; zero is on every commit.
    pub fsync_interval: Duration,
    /// Records in one batch to the sink.
    pub batch_records: usize,
    /// How long the shipper gathers a batch.
    pub batch_linger: Duration,
}

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

/// The records of one exchange.
pub type Records = SmallVec<[Record; 4]>;

/// Takes records for the journal.
#[derive(Clone, Debug)]
pub struct Recorder;

/// Whether records reached the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// They are in the journal.
    Journaled,
    /// They are not: journal and memory are full, or closed. Counted.
    Lost,
}

/// Resolves when the records are in the journal (or lost). May be dropped.
#[derive(Debug)]
pub struct Receipt;

impl Future for Receipt {
    type Output = Durability;

    fn poll(self: std::pin::Pin<&mut Self>, _cx: &mut std::task::Context<'_>) -> std::task::Poll<Durability> {
        unimplemented!()
    }
}

impl Recorder {
    /// Hands records over. Never blocks.
    pub fn record(&self, _records: Records) -> Receipt {
        unimplemented!()
    }
}

/// The journal could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

/// The journal and what belongs to it.
#[derive(Debug)]
pub struct Journal;

impl Journal {
    /// Opens (or makes) the journal and starts its writer.
    pub fn open(_config: Config, _metrics: Arc<Metrics>) -> Result<(Recorder, Journal), OpenError> {
        unimplemented!()
    }

    /// Calls `each` with every record that a former run left unacknowledged.
    pub fn replay(&self, _each: &mut dyn FnMut(&Record)) {
        unimplemented!()
    }

    /// Ships until `stop`, then what is left until `deadline` after it; returns when nothing is left or time is up.
    pub async fn ship(&self, _sink: Arc<dyn EventSink>, _stop: CancellationToken, _deadline: Duration) {
        unimplemented!()
    }

    /// Writes and syncs what was handed over, and stops the writer.
    pub fn close(&self) {
        unimplemented!()
    }
}
