//! Batches to the sink, several in flight, acknowledged in order.
//!
//! 1. A batch is acknowledged after the sink's `Ok`, and after all before it.
//! 2. A transient error is tried again for ever; the batches stay the same, so nothing grows but the journal.
//! 3. A batch with poison in it is halved until the poison is alone; that goes to the dead-letter file, and the rest
//!    to the sink. When the dead-letter file can't be written, the batch waits, too.
//! 4. An amendment is never in flight together with the event that it corrects: it would find no row.

use std::collections::VecDeque;
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use rand::RngExt;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::model::event::Record;

use super::alarm::Alarm;
use super::outlet::{Batch, Outlet};
use super::pacing::Pace;
use super::recorder::lock;
use super::sink::{EventSink, SinkError};

/// Batches in flight at once, at most. Two keep one connection's round trip and one commit overlapped; more than a few only
/// fill the pool that live queries share.
const IN_FLIGHT: usize = 4;
/// The first and the longest wait before a batch is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How many times as long as a batch took the pause after it is, where there is one: 1 made the slowest answers of a small
/// machine slower by 20 to 42%, 2 by 13% at most.
const PAUSE: u32 = 2;
/// The longest pause between two batches. One that took longer met with trouble, and no caller has anything of it.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How often the end of the queue is looked at while stopping.
const STOPPING_POLL: Duration = Duration::from_millis(1);

/// Ships until `stop`, then what is left, but not longer than `deadline` after it.
pub(super) async fn ship(
    outlet: &Arc<Outlet>,
    sink: Arc<dyn EventSink>,
    stop: CancellationToken,
    deadline: Duration,
) {
    let mut flights = FuturesOrdered::new();
    let mut aboard: VecDeque<Arc<Batch>> = VecDeque::new();
    // A batch that waits until those before it have landed.
    let mut waiting: Option<Batch> = None;
    let told = Arc::new(Mutex::new(Alarm::default()));
    let over = async {
        stop.cancelled().await;
        sleep(deadline).await;
    };
    let mut over = pin!(over);
    let mut gathering = pin!(gather(outlet, &stop));
    let mut exhausted = false;
    let mut pace = Pace::new(IN_FLIGHT);
    let mut took = Duration::ZERO;
    loop {
        let (recorded, behind) = outlet.parts.log.with(|state| (state.last_seq, state.behind()));
        pace.look(Instant::now(), recorded, behind);
        let hurry = stop.is_cancelled();
        let most = if hurry { IN_FLIGHT } else { pace.flights() };
        let pause = if pace.pauses() && !hurry { (took * PAUSE).min(LONGEST_PAUSE) } else { Duration::ZERO };
        if flights.is_empty()
            && let Some(batch) = waiting.take()
        {
            launch(outlet, &sink, &told, &mut flights, &mut aboard, batch, pause);
        }
        if exhausted && flights.is_empty() {
            break;
        }
        let room = flights.len() < most && waiting.is_none() && !exhausted;
        tokio::select! {
            biased;
            Some(delivered_in) = flights.next(), if !flights.is_empty() => {
                took = delivered_in;
                land(outlet, &mut aboard).await;
            }
            batch = &mut gathering, if room => {
                if batch.records.is_empty() {
                    exhausted = true;
                } else {
                    gathering.set(gather(outlet, &stop));
                    if depends(&batch, &aboard) {
                        waiting = Some(batch);
                    } else {
                        launch(outlet, &sink, &told, &mut flights, &mut aboard, batch, pause);
                    }
                }
            }
            () = &mut over => break,
        }
    }
    drop(flights);
    // What did not land is given back: a later call goes on with it, and so does the next start.
    let left = aboard.into_iter().filter_map(Arc::into_inner).chain(waiting);
    outlet.put_back(left.collect::<Vec<_>>().into_iter());
    outlet.parts.log.note_oldest(None);
}

/// Delivers a batch after a `pause`; the flight's outcome is how long the delivery took.
fn launch(
    outlet: &Arc<Outlet>,
    sink: &Arc<dyn EventSink>,
    told: &Arc<Mutex<Alarm>>,
    flights: &mut FuturesOrdered<futures_util::future::BoxFuture<'static, Duration>>,
    aboard: &mut VecDeque<Arc<Batch>>,
    batch: Batch,
    pause: Duration,
) {
    let batch = Arc::new(batch);
    aboard.push_back(Arc::clone(&batch));
    outlet.parts.log.note_oldest(aboard.front().and_then(|batch| batch.records.first()));
    let delivery = Delivery { outlet: Arc::clone(outlet), sink: Arc::clone(sink), told: Arc::clone(told) };
    flights.push_back(Box::pin(async move {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        let began = Instant::now();
        delivery.deliver(&batch.records).await;
        began.elapsed()
    }));
}

/// The oldest batch is in the sink: acknowledges it.
async fn land(outlet: &Arc<Outlet>, aboard: &mut VecDeque<Arc<Batch>>) {
    let Some(batch) = aboard.pop_front() else { return };
    outlet.parts.log.note_oldest(aboard.front().and_then(|batch| batch.records.first()));
    let (last_seq, records) = (batch.last_seq, batch.records.len() as u64);
    let outlet = Arc::clone(outlet);
    // It deletes files. A panic or a shutting runtime leaves it unacknowledged, which costs sending it again.
    let _ = tokio::task::spawn_blocking(move || outlet.acknowledge(last_seq, records)).await;
}

/// Whether the batch corrects an event that is still in flight.
fn depends(batch: &Batch, aboard: &VecDeque<Arc<Batch>>) -> bool {
    let amended: Vec<Uuid> = batch
        .records
        .iter()
        .filter(|record| matches!(record, Record::Amend(_)))
        .map(Record::event_id)
        .collect();
    !amended.is_empty()
        && aboard
            .iter()
            .flat_map(|batch| &batch.records)
            .any(|record| matches!(record, Record::Usage(event) if amended.contains(&event.event_id)))
}

/// The next batch: as many as fit, or what there is after the linger. Empty when stopping and nothing is left.
async fn gather(outlet: &Arc<Outlet>, stop: &CancellationToken) -> Batch {
    let config = &outlet.parts.config;
    let most = config.batch_records.max(1);
    let mut backoff = Backoff::default();
    loop {
        if stop.is_cancelled() {
            // Asked before looking: what the writer had taken over by then is found by looking.
            let idle = outlet.parts.inbox.idle();
            let batch = take(outlet, most, &mut backoff).await;
            if idle || !batch.records.is_empty() {
                return batch;
            }
            sleep(STOPPING_POLL).await;
            continue;
        }
        tokio::select! {
            () = outlet.parts.log.wait_for(1) => {}
            () = stop.cancelled() => continue,
        }
        tokio::select! {
            () = outlet.parts.log.wait_for(most as u64) => {}
            () = sleep(config.batch_linger) => {}
            () = stop.cancelled() => {}
        }
        let batch = take(outlet, most, &mut backoff).await;
        if !batch.records.is_empty() {
            return batch;
        }
    }
}

/// Takes what there is, off the reactor when it must be read.
async fn take(outlet: &Arc<Outlet>, most: usize, backoff: &mut Backoff) -> Batch {
    loop {
        if let Some(batch) = outlet.take(most) {
            return batch;
        }
        let reading = Arc::clone(outlet);
        match tokio::task::spawn_blocking(move || reading.read(most)).await {
            Ok(Ok(batch)) => return batch,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the journal can't be read; trying again");
                backoff.wait().await;
            }
            // The runtime is shutting down.
            Err(_) => return Batch::default(),
        }
    }
}

struct Delivery {
    outlet: Arc<Outlet>,
    sink: Arc<dyn EventSink>,
    told: Arc<Mutex<Alarm>>,
}

impl Delivery {
    /// Returns when each record is in the sink or in the dead-letter file.
    async fn deliver(&self, records: &[Record]) {
        // Parts still to be written; halves go back in order, so that order is kept.
        let mut parts: Vec<&[Record]> = vec![records];
        let mut backoff = Backoff::default();
        while let Some(part) = parts.last().copied() {
            match self.sink.write(part).await {
                Ok(()) => {
                    parts.pop();
                    backoff = Backoff::default();
                    self.outlet.parts.metrics.events_written.inc_by(part.len() as u64);
                    self.say_well();
                }
                Err(SinkError::Transient(reason)) => {
                    self.outlet.parts.metrics.ship_retries.inc();
                    self.say_trouble(&reason);
                    backoff.wait().await;
                }
                Err(SinkError::Poison(reason)) => {
                    let buried = match part {
                        [record] => self.bury(record, &reason).await,
                        _ => {
                            parts.pop();
                            let (first, second) = part.split_at(part.len() / 2);
                            parts.push(second);
                            parts.push(first);
                            continue;
                        }
                    };
                    if buried {
                        parts.pop();
                    } else {
                        backoff.wait().await;
                    }
                }
            }
        }
    }

    async fn bury(&self, record: &Record, reason: &str) -> bool {
        let (outlet, record, why) = (Arc::clone(&self.outlet), record.clone(), reason.to_owned());
        let event_id = record.event_id();
        match tokio::task::spawn_blocking(move || outlet.bury(&record, &why)).await {
            Ok(Ok(())) => {
                tracing::error!(%event_id, reason, "a record that can never be written is in dead-letter.jsonl");
                true
            }
            Ok(Err(e)) => {
                self.say_trouble(&format!(
                    "the dead-letter file can't be written: {e}; it would hold: {reason}"
                ));
                false
            }
            Err(_) => false,
        }
    }

    fn say_trouble(&self, reason: &str) {
        *lock(&self.outlet.parts.log.shipping_fault) = Some(reason.to_owned());
        if lock(&self.told).ring() {
            tracing::warn!(reason, "a batch was not written; it stays in the journal and is tried again");
        }
    }

    fn say_well(&self) {
        let troubled = mem::take(&mut *lock(&self.outlet.parts.log.shipping_fault)).is_some();
        if troubled && lock(&self.told).clear() {
            tracing::info!("batches are written again");
        }
    }
}

/// Waits longer each time, by a random part, so that replicas do not come back all at once.
#[derive(Debug, Default)]
struct Backoff {
    tries: u32,
}

impl Backoff {
    async fn wait(&mut self) {
        let full = BACKOFF.0.saturating_mul(1 << self.tries.min(16)).min(BACKOFF.1);
        self.tries += 1;
        let part: f64 = rand::rng().random_range(0.5..=1.0);
        sleep(full.mul_f64(part)).await;
    }
}
