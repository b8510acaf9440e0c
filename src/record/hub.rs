//! One reactor's way to the recorder: what its exchanges hand over in one turn of the reactor goes as one group.
//!
//! Handing a record to the writer wakes a thread, and the writer wakes the exchange that waits: four switches for a
//! record, when each goes by itself. Here the writer is woken once a turn, and wakes one task of the reactor, which
//! wakes the others: a wake-up within a reactor is no system call.
//!
//! 1. What is handed over is in the recorder's queue at once; only the wake-up is put off, to the end of the turn.
//! 2. Every waiting exchange is woken, whatever becomes of the journal: receipts resolve, and they do so in order.

use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use crate::model::intent::Intent;

use super::recorder::{Durability, Receipt, Recorder, Records, lock};

/// A reactor's hub. Shared by the tasks of one reactor.
#[derive(Debug)]
pub struct Hub {
    recorder: Recorder,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waker>,
    /// The last receipt given out: when it is resolved, all earlier ones are.
    last: Option<Receipt>,
    running: bool,
}

impl Hub {
    /// A hub for the tasks of the calling reactor.
    pub fn new(recorder: Recorder) -> Arc<Self> {
        Arc::new(Self { recorder, state: Mutex::default() })
    }

    /// Hands records over and waits until they are in the journal (or lost). They are handed over when this is
    /// called, not when it is polled, so the wait may be given up.
    pub fn record(self: &Arc<Self>, records: Records) -> impl Future<Output = Durability> + Send + use<> {
        let receipt = self.recorder.record_quietly(records);
        self.carry(&receipt);
        let hub = self.clone();
        poll_fn(move |cx| match receipt.durability() {
            Some(durability) => Poll::Ready(durability),
            None => {
                let mut state = lock(&hub.state);
                // Resolved since: the hub may have woken everybody already.
                if let Some(durability) = receipt.durability() {
                    return Poll::Ready(durability);
                }
                state.waiting.push(cx.waker().clone());
                Poll::Pending
            }
        })
    }

    /// Hands over that an exchange was admitted; nobody waits for that.
    pub fn intend(self: &Arc<Self>, intent: Box<Intent>) {
        self.carry(&self.recorder.intend_quietly(intent));
    }

    /// Sees to it that the writer is woken at the end of this turn.
    fn carry(self: &Arc<Self>, receipt: &Receipt) {
        let begin = {
            let mut state = lock(&self.state);
            state.last = Some(receipt.again());
            !mem::replace(&mut state.running, true)
        };
        if begin {
            tokio::spawn(self.clone().run());
        }
    }

    /// Lets the writer have what was handed over. For the end of the reactor, whose tasks run no more.
    pub fn flush(&self) {
        self.recorder.wake();
    }

    /// Carries groups to the writer until nobody waits.
    async fn run(self: Arc<Self>) {
        loop {
            // The rest of this turn's exchanges come along.
            tokio::task::yield_now().await;
            self.recorder.wake();
            let last = lock(&self.state).last.take();
            if let Some(last) = last {
                last.await;
            }
            let waiting = {
                let mut state = lock(&self.state);
                state.running = state.last.is_some();
                mem::take(&mut state.waiting)
            };
            waiting.into_iter().for_each(Waker::wake);
            if !lock(&self.state).running {
                return;
            }
        }
    }
}
