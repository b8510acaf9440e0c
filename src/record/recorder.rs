//! The way into the journal: a bounded queue, taken over whole by the writer each time it comes round.
//!
//! 1. Handing over takes one short lock, and a system call only when the writer sleeps.
//! 2. What is taken over in one go is a group: written by one call, its receipts resolved together through one shared
//!    word. A receipt is an `Arc` and an index, not a channel of its own.
//! 3. Every receipt resolves, whatever becomes of the disk.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use smallvec::SmallVec;

use crate::model::event::Record;
use crate::model::intent::Intent;
use crate::telemetry::Metrics;

/// Records that may wait for the writer; a writer that is this far behind is stuck in a hung disk.
const MAX_QUEUED_RECORDS: usize = 16_384;
/// From here on audit records and intents are not taken, so that usage records still are.
const MAX_QUEUED_BEFORE_SHEDDING: usize = MAX_QUEUED_RECORDS / 4 * 3;

/// The records of one exchange.
pub type Records = SmallVec<[Record; 4]>;

/// What is handed over at once.
#[derive(Debug)]
pub(super) enum Handover {
    Records(Records),
    Intent(Box<Intent>),
}

/// Whether records reached the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// They are in the journal.
    Journaled,
    /// They are in memory only, because the journal can't be written just now; they will be journaled or shipped
    /// as soon as that is possible, but a crash before would lose them.
    Held,
    /// They are not: journal and memory are full, or closed. Counted.
    Lost,
}

/// Takes records for the journal.
#[derive(Clone)]
pub struct Recorder {
    inbox: Arc<Inbox>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    pub(super) fn new(inbox: Arc<Inbox>) -> Self {
        Self { inbox }
    }

    /// Hands records over. Never blocks. The receipt may be dropped.
    pub fn record(&self, records: Records) -> Receipt {
        let receipt = self.inbox.put(records);
        self.inbox.wake();
        receipt
    }

    /// Hands over that an exchange was admitted: before its event, which closes the intent.
    pub fn intend(&self, intent: Box<Intent>) -> Receipt {
        let receipt = self.inbox.put_intent(intent);
        self.inbox.wake();
        receipt
    }

    /// The same as [`Recorder::record`] without waking the writer: [`Recorder::wake`] must follow.
    pub(super) fn record_quietly(&self, records: Records) -> Receipt {
        self.inbox.put(records)
    }

    /// The same as [`Recorder::intend`] without waking the writer.
    pub(super) fn intend_quietly(&self, intent: Box<Intent>) -> Receipt {
        self.inbox.put_intent(intent)
    }

    /// Wakes the writer, if it sleeps.
    pub(super) fn wake(&self) {
        self.inbox.wake();
    }
}

/// Resolves when the records are in the journal (or lost). May be dropped.
#[derive(Debug)]
pub struct Receipt(State);

#[derive(Debug)]
enum State {
    Done(Durability),
    Waiting { group: Arc<Group>, index: u32, waiter: Option<usize> },
}

impl Receipt {
    /// What became of the records, if that is known.
    pub(super) fn durability(&self) -> Option<Durability> {
        match &self.0 {
            State::Done(durability) => Some(*durability),
            State::Waiting { group, index, .. } => group.durability(*index),
        }
    }

    /// Another receipt for the same records.
    pub(super) fn again(&self) -> Self {
        Self(match &self.0 {
            State::Done(durability) => State::Done(*durability),
            State::Waiting { group, index, .. } => {
                State::Waiting { group: group.clone(), index: *index, waiter: None }
            }
        })
    }
}

impl Future for Receipt {
    type Output = Durability;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Durability> {
        let done = match &mut self.0 {
            State::Done(durability) => return Poll::Ready(*durability),
            State::Waiting { group, index, waiter } => group.poll(*index, waiter, cx),
        };
        done.map(|durability| {
            self.0 = State::Done(durability);
            durability
        })
    }
}

/// What became of the records that were written together.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// 0 while open; then 1 + the outcome.
    outcome: AtomicU8,
    waiters: Mutex<Vec<Waker>>,
    /// The few whose records were lost all the same, sorted.
    lost: OnceLock<Vec<u32>>,
}

const OPEN: u8 = 0;
const JOURNALED: u8 = 1;
const HELD: u8 = 2;

impl Group {
    fn poll(&self, index: u32, waiter: &mut Option<usize>, cx: &mut Context<'_>) -> Poll<Durability> {
        if let Some(durability) = self.durability(index) {
            return Poll::Ready(durability);
        }
        let mut waiters = lock(&self.waiters);
        // The outcome is set before the waiters are taken: so either it is seen here, or this waiter will be.
        if let Some(durability) = self.durability(index) {
            return Poll::Ready(durability);
        }
        match waiter.and_then(|slot| waiters.get_mut(slot)) {
            Some(known) => known.clone_from(cx.waker()),
            None => {
                *waiter = Some(waiters.len());
                waiters.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }

    fn durability(&self, index: u32) -> Option<Durability> {
        let outcome = self.outcome.load(Ordering::Acquire);
        if outcome == OPEN {
            return None;
        }
        if self.lost.get().is_some_and(|lost| lost.binary_search(&index).is_ok()) {
            return Some(Durability::Lost);
        }
        Some(if outcome == JOURNALED { Durability::Journaled } else { Durability::Held })
    }

    /// Resolves the receipts, once; a later call changes nothing.
    pub(super) fn resolve(&self, journaled: bool, lost: Vec<u32>) {
        if !lost.is_empty() && self.outcome.load(Ordering::Acquire) == OPEN {
            let _ = self.lost.set(lost);
        }
        let outcome = if journaled { JOURNALED } else { HELD };
        if self.outcome.compare_exchange(OPEN, outcome, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let waiters = mem::take(&mut *lock(&self.waiters));
            waiters.into_iter().for_each(Waker::wake);
        }
    }
}

/// What the writer takes over in one go.
#[derive(Debug, Default)]
pub(super) struct Handed {
    pub batches: Vec<Handover>,
    pub group: Option<Arc<Group>>,
    /// The writer was asked to look round.
    pub kicked: bool,
}

/// Why the writer woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be records, or space came free.
    Work,
    /// The time that it waited for has come.
    Due,
    /// The queue is closed, and there is nothing left in it.
    Closed,
}

/// The queue between recorders and writer.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    wake: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Queue {
    handed: Handed,
    records: usize,
    /// The writer sleeps.
    parked: bool,
    closed: bool,
    /// The writer has been in one file operation for too long: nobody should wait for it.
    stuck: bool,
}

impl Queue {
    fn push(&mut self, handover: Handover) -> Receipt {
        let index = self.handed.batches.len() as u32;
        self.handed.batches.push(handover);
        let group = Arc::clone(self.handed.group.get_or_insert_default());
        if self.stuck {
            return Receipt(State::Done(Durability::Held));
        }
        Receipt(State::Waiting { group, index, waiter: None })
    }
}

impl Inbox {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { queue: Mutex::default(), wake: Condvar::new(), metrics }
    }

    fn put(&self, mut records: Records) -> Receipt {
        if records.is_empty() {
            return Receipt(State::Done(Durability::Journaled));
        }
        self.metrics.events_queued.inc_by(records.len() as u64);
        let mut queue = lock(&self.queue);
        if queue.closed || queue.records + records.len() > MAX_QUEUED_BEFORE_SHEDDING {
            let offered = records.len();
            let room = if queue.closed { 0 } else { MAX_QUEUED_RECORDS - queue.records };
            records.retain(|record| !matches!(record, Record::Audit(_)));
            records.truncate(room);
            self.metrics.events_lost.inc_by((offered - records.len()) as u64);
            if records.is_empty() {
                return Receipt(State::Done(Durability::Lost));
            }
        }
        queue.records += records.len();
        queue.push(Handover::Records(records))
    }

    /// Intents that can't be taken are no loss yet, but counted: should the process die, it would be one.
    fn put_intent(&self, intent: Box<Intent>) -> Receipt {
        let mut queue = lock(&self.queue);
        if queue.closed || queue.records >= MAX_QUEUED_BEFORE_SHEDDING {
            self.metrics.intents_left_out.inc();
            return Receipt(State::Done(Durability::Lost));
        }
        queue.records += 1;
        queue.push(Handover::Intent(intent))
    }

    /// Wakes the writer, if it sleeps and has something to do.
    fn wake(&self) {
        let mut queue = lock(&self.queue);
        if !queue.handed.batches.is_empty() && mem::take(&mut queue.parked) {
            drop(queue);
            self.wake.notify_one();
        }
    }

    /// Takes over what is queued, into `handed` (which should be empty, and keeps its room); sleeps while there is
    /// nothing, but only until `due`.
    pub(super) fn take(&self, handed: &mut Handed, due: Option<Instant>) -> Turn {
        let mut queue = lock(&self.queue);
        queue.stuck = false;
        loop {
            if !queue.handed.batches.is_empty() || queue.handed.kicked {
                mem::swap(&mut queue.handed, handed);
                queue.records = 0;
                return Turn::Work;
            }
            if queue.closed {
                return Turn::Closed;
            }
            queue.parked = true;
            queue = match due.map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => {
                    queue.parked = false;
                    return Turn::Due;
                }
                Some(left) => self.wake.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            queue.parked = false;
        }
    }

    /// Makes the writer look round.
    pub(super) fn kick(&self) {
        lock(&self.queue).handed.kicked = true;
        self.wake.notify_one();
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        lock(&self.queue).closed = true;
        self.wake.notify_one();
    }

    /// Whether the writer has nothing to do and sleeps (or is gone).
    pub(super) fn idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.handed.batches.is_empty() && (queue.parked || queue.closed)
    }

    /// Resolves the receipts of what waits in the queue, and of what comes until the writer is back, as held: the
    /// writer is stuck.
    pub(super) fn release(&self) {
        let mut queue = lock(&self.queue);
        queue.stuck = true;
        let group = queue.handed.group.take();
        drop(queue);
        // What comes now needs a group of its own; indices would clash otherwise, and only losses look at them.
        if let Some(group) = group {
            group.resolve(false, Vec::new());
        }
    }
}

/// A mutex whose holder panicked still holds counters and queues that are whole: each change below is one step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
