//! Whether the client of an HTTP/2 stream takes what it is sent. It says so by widening the stream's window, and one that
//! doesn't would hold its exchange for ever: its connection answers pings all the same. (In HTTP/1 the kernel gives such a
//! client up.)

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

tokio::task_local! {
    /// Of the stream that the task is.
    static TAKING: Arc<Taking>;
}

/// What a stream's body was asked for, and what it gave.
#[derive(Debug, Default)]
pub(super) struct Taking {
    asked: AtomicU64,
    /// It gave something, and was not asked for more since.
    gave: AtomicBool,
}

impl Taking {
    /// That of the stream that this task runs, if it runs one.
    pub(super) fn of_task() -> Option<Arc<Self>> {
        TAKING.try_with(Arc::clone).ok()
    }

    pub(super) fn asked(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.gave.store(false, Ordering::Relaxed);
    }

    pub(super) fn gave(&self) {
        self.gave.store(true, Ordering::Relaxed);
    }
}

/// Runs a stream until it ends, or its client has taken nothing for `limit`: then it is dropped, which resets it.
pub(crate) async fn while_taken(stream: impl Future<Output = ()>, limit: Duration) {
    let taking = Arc::new(Taking::default());
    let mut stream = pin!(TAKING.scope(taking.clone(), stream));
    let mut stall = Stall { limit, asked: 0, timer: None };
    poll_fn(|cx| match stream.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => stall.poll_over(&taking, cx),
    })
    .await;
}

/// How long a client has taken nothing. Only one that lets the window close costs a timer.
struct Stall {
    limit: Duration,
    /// When the timer was set.
    asked: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn poll_over(&mut self, taking: &Taking, cx: &mut Context<'_>) -> Poll<()> {
        if !taking.gave.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let due = || Instant::now() + self.limit;
        let asked = taking.asked.load(Ordering::Relaxed);
        let timer = match &mut self.timer {
            Some(timer) if self.asked == asked => timer,
            Some(timer) => {
                timer.as_mut().reset(due());
                timer
            }
            none => none.insert(Box::pin(sleep_until(due()))),
        };
        self.asked = asked;
        timer.as_mut().poll(cx)
    }
}
