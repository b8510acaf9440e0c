//! What the writer, its helpers and the reading end share.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::telemetry::Metrics;

use super::config::Config;
use super::disk::Disk;
use super::log::Log;
use super::recorder::Inbox;
use super::syncer::{Syncer, Watch};

/// What all parts of one journal share.
#[derive(Debug)]
pub(super) struct Parts {
    pub config: Config,
    pub disk: Arc<dyn Disk>,
    pub inbox: Arc<Inbox>,
    pub log: Log,
    pub syncer: Syncer,
    pub watch: Watch,
    pub metrics: Arc<Metrics>,
}

/// Deletes the segments that the sink has acknowledged whole.
pub(super) fn reap(parts: &Parts) {
    for segment in parts.log.with(|state| state.done_segments()) {
        match parts.disk.remove(&segment.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // It is tried again at the next acknowledgement, and at the next start.
            Err(e) => {
                tracing::warn!(segment = %segment.path.display(), error = %e, "an acknowledged segment can't be deleted");
                continue;
            }
        }
        parts.log.with(|state| state.forget(segment.number));
    }
}

/// The path of a file of the journal.
pub(super) fn path(config: &Config, name: &str) -> PathBuf {
    config.dir.join(name)
}
