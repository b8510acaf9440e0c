//! Interim answers (1xx) on their way to a client of HTTP/1.1. hyper's server can't send them, so that the stream under it
//! does.
//!
//! 1. They are written only while their request waits for its answer, and where all that hyper wrote before is with the
//!    kernel: hyper flushes a stream only when it has nothing left to write. The answer waits until they are written.
//! 2. What waits is bounded; what finds no room is dropped and counted. The final answer says everything.
//! 3. One that comes late, when its request has been answered or has gone, goes nowhere.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// How many bytes of them may wait for a client: some heads of usual size.
const ROOM: usize = 32 << 10;

/// Those of a connection.
#[derive(Debug, Default)]
pub(crate) struct Interim(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The number of the request that waits for its answer, and of the last where none does.
    request: u64,
    open: bool,
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// How many found no room.
    dropped: u64,
    /// One is being written.
    writing: bool,
    /// Of the task that writes.
    writer: Option<Waker>,
    /// Of who waits until all are written.
    answer: Option<Waker>,
}

impl Interim {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come, of a client that takes them. The one before has been answered.
    pub(crate) fn begin(self: &Arc<Self>) -> Answering {
        let mut state = self.state();
        state.request += 1;
        state.open = true;
        state.dropped = 0;
        Answering { interim: self.clone(), request: state.request }
    }

    /// The next to be written, when the last has been. Without one, `cx` is woken for it.
    pub(super) fn next(&self, cx: &Context<'_>) -> Option<Bytes> {
        let mut state = self.state();
        let next = state.waiting.pop_front();
        state.writing = next.is_some();
        if let Some(head) = &next {
            state.bytes -= head.len();
        } else {
            if let Some(answer) = state.answer.take() {
                answer.wake();
            }
            if state.open && !state.writer.as_ref().is_some_and(|writer| writer.will_wake(cx.waker())) {
                state.writer = Some(cx.waker().clone());
            }
        }
        next
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Answering {
    interim: Arc<Interim>,
    request: u64,
}

impl Answering {
    /// For who hears of them.
    pub(crate) fn sender(&self) -> InterimSender {
        InterimSender { interim: self.interim.clone(), request: self.request }
    }

    /// The answer is here: ready when it may follow, with how many interim answers were dropped. None comes after this.
    pub(crate) async fn end(self) -> u64 {
        poll_fn(|cx| {
            let mut state = self.interim.state();
            state.open = false;
            if state.waiting.is_empty() && !state.writing {
                return Poll::Ready(state.dropped);
            }
            state.answer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.interim.state();
        state.open = false;
        state.waiting = VecDeque::new();
        state.bytes = 0;
        state.answer = None;
    }
}

/// Sends interim answers to the client of one request.
#[derive(Clone, Debug)]
pub(crate) struct InterimSender {
    interim: Arc<Interim>,
    request: u64,
}

impl InterimSender {
    /// Sends one, whose headers are fit for the client, if there is room for it.
    pub(crate) fn send(&self, status: StatusCode, headers: &HeaderMap) {
        let head = Bytes::from(spell_head(status, headers));
        let mut state = self.interim.state();
        if !state.open || state.request != self.request {
            return;
        }
        if state.bytes + head.len() > ROOM {
            state.dropped += 1;
            return;
        }
        state.bytes += head.len();
        state.waiting.push_back(head);
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }
}

/// The head of an answer as HTTP/1.1 writes it.
pub(crate) fn spell_head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}
