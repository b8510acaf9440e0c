//! Two helpers of the writer, so that a slow disk is the disk's own affair: one thread syncs in the background, one
//! watches for a write that does not return.

use std::mem;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::disk::{Disk, DiskFile};
use super::log::Log;
use super::recorder::{Group, Inbox, lock};

/// How long a write may take before those who wait for it are let go.
const STUCK_AFTER: Duration = Duration::from_millis(250);
/// How often the watch looks.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// What is to be synced, and what the last sync found.
#[derive(Debug)]
pub(super) struct Syncer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Zero: each commit is synced where it is made, and this has nothing to do.
    interval: Duration,
    dirty: AtomicBool,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The segment being written, and its number.
    active: Option<(u64, Arc<dyn DiskFile>)>,
    sealed: Vec<Arc<dyn DiskFile>>,
    new_names: bool,
    fault: Option<SyncFault>,
    stop: bool,
}

/// Why the active segment is not to be trusted any more.
#[derive(Clone, Debug)]
pub(super) enum SyncFault {
    /// A sync failed: the kernel may have dropped what it could not write, and would not say so twice.
    Failed(String),
    /// Somebody deleted the segment of this number. If it is the active one, that was not us.
    Unlinked(u64),
}

impl Syncer {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: PathBuf, interval: Duration) -> Self {
        let (state, wake) = (Mutex::default(), Condvar::new());
        Self { disk, dir, interval, dirty: AtomicBool::new(false), state, wake }
    }

    /// The writer goes on with `active`; what it wrote before is synced too.
    pub(super) fn turn_to(&self, active: Option<(u64, Arc<dyn DiskFile>)>) {
        // Nobody would ever close them.
        if self.interval.is_zero() {
            return;
        }
        let mut state = lock(&self.state);
        state.new_names |= active.is_some();
        let before = mem::replace(&mut state.active, active);
        state.sealed.extend(before.map(|(_, file)| file));
    }

    /// Closes what was deleted: an open file keeps its room on the disk.
    pub(super) fn close_deleted(&self) {
        lock(&self.state).sealed.retain(|file| !matches!(file.linked(), Ok(false)));
    }

    /// Something was written. Wakes the thread only when it sleeps.
    pub(super) fn written(&self) {
        if !self.dirty.swap(true, Ordering::AcqRel) {
            drop(lock(&self.state));
            self.wake.notify_one();
        }
    }

    /// What the last sync found wrong, once.
    pub(super) fn fault(&self) -> Option<SyncFault> {
        lock(&self.state).fault.take()
    }

    /// Ends the thread, without a last sync.
    pub(super) fn stop(&self) {
        lock(&self.state).stop = true;
        self.wake.notify_all();
    }

    /// Syncs at most every interval, and sleeps while nothing is written. What `marked` says before a sync is told to
    /// `synced` after it.
    pub(super) fn run(&self, inbox: &Inbox, marked: impl Fn() -> u64, synced: impl Fn(u64)) {
        let mut state = lock(&self.state);
        loop {
            while !state.stop && !self.dirty.load(Ordering::Acquire) {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let until = Instant::now() + self.interval;
            while !state.stop && Instant::now() < until {
                let left = until.saturating_duration_since(Instant::now());
                state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.stop {
                return;
            }
            self.dirty.store(false, Ordering::Release);
            let sealed = mem::take(&mut state.sealed);
            let new_names = mem::take(&mut state.new_names);
            let active = state.active.clone();
            drop(state);
            let mark = marked();
            let fault = self.sync(&sealed, active.as_ref(), new_names);
            if fault.is_none() {
                synced(mark);
            }
            state = lock(&self.state);
            if fault.is_some() {
                state.fault = fault;
                inbox.kick();
            }
        }
    }

    fn sync(
        &self,
        sealed: &[Arc<dyn DiskFile>],
        active: Option<&(u64, Arc<dyn DiskFile>)>,
        names: bool,
    ) -> Option<SyncFault> {
        let all = sealed.iter().chain(active.map(|(_, file)| file));
        let synced = all.map(|file| file.sync()).chain(names.then(|| self.disk.sync_dir(&self.dir)));
        let failed = synced.filter_map(Result::err).last();
        match active {
            Some((number, file)) if matches!(file.linked(), Ok(false)) => Some(SyncFault::Unlinked(*number)),
            _ => failed.map(|e| SyncFault::Failed(e.to_string())),
        }
    }
}

/// Lets go who waits for a write that does not return.
#[derive(Debug, Default)]
pub(super) struct Watch {
    busy: Mutex<Busy>,
    stop: Mutex<bool>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Busy {
    since: Option<Instant>,
    group: Option<Arc<Group>>,
    stuck: bool,
}

impl Watch {
    /// The writer begins something that may take long, for these.
    pub(super) fn begin(&self, group: Option<&Arc<Group>>) {
        *lock(&self.busy) = Busy { since: Some(Instant::now()), group: group.cloned(), stuck: false };
    }

    /// It came back; `true` when it had been called stuck.
    pub(super) fn end(&self) -> bool {
        mem::take(&mut *lock(&self.busy)).stuck
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        *lock(&self.stop) = true;
        self.wake.notify_all();
    }

    /// Looks round until it is stopped.
    pub(super) fn run(&self, inbox: &Inbox, log: &Log) {
        let mut stop = lock(&self.stop);
        while !*stop {
            stop = self.wake.wait_timeout(stop, WATCH_EVERY).unwrap_or_else(PoisonError::into_inner).0;
            // Under the lock, so that the writer can't come back and be called stuck after that.
            let mut busy = lock(&self.busy);
            if let Some(taken) = busy.since.map(|since| since.elapsed()).filter(|taken| *taken > STUCK_AFTER)
            {
                busy.stuck = true;
                // Said before anybody is let go, so that whoever asks why they were is told.
                let reason = format!("a file operation of the journal has not returned for {taken:.1?}");
                log.with(|state| state.fault = Some(reason));
                if let Some(group) = busy.group.take() {
                    group.resolve(false, Vec::new());
                }
                inbox.release();
            }
        }
    }
}
