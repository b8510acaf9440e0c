//! Leases, joined to their database, their disk and their journal.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::health::Live;
use super::notices::Subscriber;
use crate::quota::{Enforcer, LeaseConfig, LeaseSource, Leasing, Mark, Runs};
use crate::record::{Journal, write_private};
use crate::store::{Heard, LEASES, Store};

/// What leases are joined to.
pub(super) struct Joined<'a> {
    pub(super) enforcer: &'a Arc<Enforcer>,
    pub(super) store: &'a Store,
    pub(super) journal: &'a Arc<Journal>,
    pub(super) data_dir: &'a Path,
    pub(super) live: &'a Arc<Live>,
    pub(super) notices: Subscriber,
}

/// Begins a run of leases; asks for them once the quotas were read, until `stop`.
pub(super) fn start(
    joined: Joined<'_>,
    config: LeaseConfig,
    background: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), String> {
    let Joined { enforcer, store, journal, data_dir, live, mut notices } = joined;
    let source = Arc::new(store.clone());
    let leasing = Leasing::new(enforcer.clone(), source, config, runs(data_dir), mark(journal.clone()))?;
    enforcer.stand(Leasing::footing_away(&config));
    let recall = Arc::new(Notify::new());
    let (hydrated, stopped) = (live.hydrated(), stop.clone());
    background.spawn({
        let recall = recall.clone();
        async move {
            tokio::select! {
                () = hydrated => leasing.run(recall, stopped).await,
                () = stopped.cancelled() => {}
            }
        }
    });
    let stopped = stop.clone();
    background.spawn(async move {
        let listen = async {
            loop {
                match notices.heard().await {
                    Heard::Said { channel, .. } if channel != LEASES => {}
                    Heard::Said { .. } | Heard::Connected => recall.notify_one(),
                }
            }
        };
        tokio::select! {
            () = listen => {}
            () = stopped.cancelled() => {}
        }
    });
    Ok(())
}

/// Gives up what this replica holds, once everything that it used is written.
pub(super) async fn give_up(enforcer: &Enforcer, store: &Store, journal_is_empty: bool) {
    if !journal_is_empty {
        return;
    }
    if let Err(error) = store.release_before(enforcer.run().saturating_add(1)).await {
        tracing::debug!(%error, "leases are kept until their windows end");
    }
}

/// Runs are numbered in the data directory, beside the journal that they write.
fn runs(data_dir: &Path) -> Runs {
    let file = data_dir.join("lease-run");
    Arc::new(move || next_run(&file))
}

fn next_run(file: &PathBuf) -> Result<u64, String> {
    let failed = |error: std::io::Error| format!("{} can't be used: {error}", file.display());
    let last = match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map_err(|_| {
            format!("{} holds no number: write a larger one than any that was in it", file.display())
        })?,
        Err(error) if error.kind() == ErrorKind::NotFound => 0u64,
        Err(error) => return Err(failed(error)),
    };
    let next = last.saturating_add(1);
    let digits = next.to_string();
    // Written beside and renamed, so that a crash leaves the old number or the new one.
    let fresh = file.with_extension("new");
    let write = || {
        write_private(&fresh, digits.as_bytes())?;
        std::fs::File::open(&fresh)?.sync_all()?;
        std::fs::rename(&fresh, file)
    };
    // A full disk has no room for another file, and is no reason not to start. These digits are as many or more, and all
    // in one sector: a crash leaves the old number or the new one here, too.
    let overwrite = || {
        let file = std::fs::OpenOptions::new().write(true).open(file)?;
        file.write_all_at(digits.as_bytes(), 0)?;
        file.sync_all()
    };
    let written = match write() {
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            let _ = std::fs::remove_file(&fresh);
            overwrite().map_err(|_| error)
        }
        written => written,
    };
    written.map_err(failed)?;
    Ok(next)
}

/// What is journaled now is written once the journal is acknowledged so far.
fn mark(journal: Arc<Journal>) -> Mark {
    Arc::new(move || {
        let journal = journal.clone();
        let (until, _) = journal.reached();
        Box::new(move || journal.reached().1 >= until)
    })
}
