//! Where the journal is, and how it is bounded.

use std::path::PathBuf;
use std::time::Duration;

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

/// The journal could not be opened: one sentence that names the directory and says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);
