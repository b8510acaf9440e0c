//! What a connection is doing, and how long it may go on doing nothing.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::interim::Interim;

/// How long at the stop a silent connection is kept, for a request that is on its way; and for how long a client may
/// read what it was sent.
pub(crate) const LAST_CALL: Duration = Duration::from_millis(250);

/// The same in HTTP/2, after an answer: what of it waits for the client's windows is not seen from here.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Bytes of HTTP/2 that begin every connection: the preface and the head of the first frame (RFC 9113 §3.4).
const H2_HANDSHAKE: u64 = 24 + 9;

/// How long a connection without a request in flight may last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the connection to the first bytes; in HTTP/2 to the end of the handshake.
    pub(crate) handshake: Duration,
    /// From the first byte of a request's head to its last (HTTP/1).
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
}

/// What a connection without a request in flight waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The first bytes.
    Handshake,
    /// The rest of a head.
    Head,
    /// The next request.
    Idle,
}

impl Waiting {
    /// As metrics and logs name the limit.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Waiting::Handshake => "handshake_timeout",
            Waiting::Head => "header_timeout",
            Waiting::Idle => "keep_alive_timeout",
        }
    }
}

/// What one connection is doing. Shared by its stream, which sees the bytes, and its requests.
#[derive(Debug)]
pub(crate) struct Activity {
    limits: Limits,
    interim: Arc<Interim>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    protocol: Protocol,
    waiting: Waiting,
    since: Instant,
    /// Bytes read without a request in flight.
    read: u64,
    in_flight: usize,
    /// Those of them whose answers are not over.
    answering: usize,
    /// A request was answered.
    answered: bool,
    /// An answer is due, or (in HTTP/1) not all of it is sent.
    owes: bool,
    /// Set at the stop: until when a request may still come.
    last_call: Option<Instant>,
}

impl Activity {
    /// Of a connection that has just been made.
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let state = State {
            protocol: Protocol::Http1,
            waiting: Waiting::Handshake,
            since: Instant::now(),
            read: 0,
            in_flight: 0,
            answering: 0,
            answered: false,
            owes: false,
            last_call: None,
        };
        Arc::new(Self { limits, interim: Arc::default(), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The interim answers on their way to the client (HTTP/1).
    pub(crate) fn interim(&self) -> &Arc<Interim> {
        &self.interim
    }

    /// The protocol is known.
    pub(super) fn speaks(&self, protocol: Protocol) {
        self.state().protocol = protocol;
    }

    /// Bytes of the client came.
    pub(super) fn read(&self, bytes: usize) {
        let mut state = self.state();
        if state.in_flight > 0 {
            return;
        }
        state.read = state.read.saturating_add(bytes as u64);
        let next = match (state.protocol, state.waiting) {
            (Protocol::Http1, Waiting::Handshake | Waiting::Idle) => Waiting::Head,
            (Protocol::Http2, Waiting::Handshake) if state.read >= H2_HANDSHAKE => Waiting::Idle,
            _ => return,
        };
        state.waiting = next;
        state.since = Instant::now();
    }

    /// A request has come; it is in flight until what this returns is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        let mut state = self.state();
        state.in_flight += 1;
        state.answering += 1;
        state.owes = true;
        Busy { activity: self.clone(), answers: true }
    }

    /// Whether a request is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.state().in_flight > 0
    }

    /// Everything that was written is with the kernel.
    pub(super) fn flushed(&self) {
        let mut state = self.state();
        if state.answering == 0 && state.owes {
            state.owes = false;
            state.since = Instant::now();
        }
    }

    /// Whether every answer has been sent, so that what is written now answers no request.
    pub(super) fn owes_nothing(&self) -> bool {
        !self.state().owes
    }

    /// From `at` on the connection ends as soon as no request is in flight.
    pub(super) fn last_call(&self, at: Instant) {
        self.state().last_call = Some(at);
    }

    /// Until when the connection may go on as it is, and what it then waited for; `None` while a request is in flight, or
    /// (in HTTP/1) its answer not all sent: a slow client is not an idle one, and the kernel gives up one that takes nothing.
    fn deadline(&self) -> Option<(Instant, Waiting)> {
        let state = self.state();
        if state.in_flight > 0 || (state.protocol == Protocol::Http1 && state.owes) {
            return None;
        }
        let limit = match state.waiting {
            Waiting::Handshake => self.limits.handshake,
            Waiting::Head => self.limits.head,
            Waiting::Idle => self.limits.idle,
        };
        let due = match (state.last_call, state.protocol) {
            (None, _) => state.since + limit,
            (Some(at), Protocol::Http2) if state.answered => at.max(state.since + LAST_ANSWER),
            (Some(at), _) => at.max(state.since + LAST_CALL),
        };
        Some((due, state.waiting))
    }
}

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Busy {
    activity: Arc<Activity>,
    answers: bool,
}

impl Busy {
    /// The same for its body, which may take longer than the answer.
    pub(super) fn for_body(&self) -> Self {
        self.activity.state().in_flight += 1;
        Self { activity: self.activity.clone(), answers: false }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.in_flight -= 1;
        if self.answers {
            state.answering -= 1;
            state.answered = true;
        }
        if state.in_flight == 0 {
            state.waiting = Waiting::Idle;
            state.since = Instant::now();
        }
    }
}

/// Notices when a connection has been silent for too long. It has one timer, which is set anew when it fires, and
/// otherwise only to be earlier: a request costs none.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    activity: &'a Activity,
    timer: Pin<Box<Sleep>>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(activity: &'a Activity) -> Self {
        let limit = activity.limits.handshake;
        Self { activity, timer: Box::pin(sleep_until(Instant::now() + limit)) }
    }

    /// Ready when it has been. To be polled whenever something happened on the connection.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Waiting> {
        loop {
            let deadline = self.activity.deadline();
            if let Some((due, _)) = deadline
                && due < self.timer.deadline()
            {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            let next = match deadline {
                Some((due, waiting)) if due <= now => return Poll::Ready(waiting),
                Some((due, _)) => due,
                // The end of what is in flight need not wake this: it looks again.
                None => now + self.activity.limits.idle,
            };
            self.timer.as_mut().reset(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const LIMITS: Limits = Limits {
        handshake: Duration::from_secs(10),
        head: Duration::from_secs(5),
        idle: Duration::from_secs(75),
    };

    /// When a connection ends after `act`, and what it waited for.
    async fn ends(protocol: Protocol, act: impl AsyncFnOnce(&Arc<Activity>)) -> (u64, Waiting) {
        let began = Instant::now();
        let activity = Activity::new(LIMITS);
        activity.speaks(protocol);
        act(&activity).await;
        let mut watch = Watch::new(&activity);
        let waiting = poll_fn(|cx| watch.poll_expired(cx)).await;
        (began.elapsed().as_secs(), waiting)
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn every_silence_has_its_limit() {
        use Protocol::{Http1, Http2};
        assert_eq!(ends(Http1, async |_| {}).await, (10, Waiting::Handshake));
        assert_eq!(ends(Http1, async |activity| activity.read(1)).await, (5, Waiting::Head));
        let idle = async |activity: &Arc<Activity>| {
            drop(activity.begin());
            activity.flushed();
        };
        assert_eq!(ends(Http1, idle).await, (75, Waiting::Idle));
        // Half a head on a connection that was used before.
        let again = async |activity: &Arc<Activity>| {
            idle(activity).await;
            pass(20).await;
            activity.read(7);
        };
        assert_eq!(ends(Http1, again).await, (25, Waiting::Head));
        // Bytes that dribble in don't prolong it.
        let dribble = async |activity: &Arc<Activity>| {
            for _ in 0..4 {
                activity.read(1);
                pass(1).await;
            }
        };
        assert_eq!(ends(Http1, dribble).await, (5, Waiting::Head));
        // A part of the preface is no handshake, and pings are no request.
        assert_eq!(ends(Http2, async |activity| activity.read(24)).await, (10, Waiting::Handshake));
        let pings = async |activity: &Arc<Activity>| {
            activity.read(33);
            for _ in 0..7 {
                pass(10).await;
                activity.read(17);
            }
        };
        assert_eq!(ends(Http2, pings).await, (75, Waiting::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_flight_has_no_limit_here_and_its_end_is_noticed_without_a_word() {
        let activity = Activity::new(LIMITS);
        let first = activity.begin();
        let second = activity.begin();
        let mut watch = Watch::new(&activity);
        let expired = poll_fn(|cx| watch.poll_expired(cx));
        let ended = async {
            pass(1000).await;
            drop(first);
            pass(1000).await;
            drop(second);
            activity.flushed();
            pass(1000).await;
        };
        let began = Instant::now();
        let (_, waiting) = tokio::join!(ended, expired);
        assert_eq!((waiting, began.elapsed().as_secs()), (Waiting::Idle, 3000));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_last_call_it_ends_once_nothing_is_in_flight() {
        use Protocol::{Http1, Http2};
        let idle = async |activity: &Arc<Activity>| {
            drop(activity.begin());
            activity.flushed();
            pass(30).await;
            activity.last_call(Instant::now());
        };
        let answered = async |activity: &Arc<Activity>| {
            let busy = activity.begin();
            activity.last_call(Instant::now());
            pass(30).await;
            drop(busy);
            activity.flushed();
        };
        for protocol in [Http1, Http2] {
            assert_eq!(ends(protocol, async |activity| activity.last_call(Instant::now())).await.0, 0);
            assert_eq!(ends(protocol, idle).await, (30, Waiting::Idle));
        }
        assert_eq!(ends(Http1, answered).await, (30, Waiting::Idle));
        assert_eq!(ends(Http2, answered).await, (35, Waiting::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_longer_than_its_answer() {
        let upload = async |activity: &Arc<Activity>| {
            let busy = activity.begin();
            let body = busy.for_body();
            drop(busy);
            activity.flushed();
            assert!(activity.owes_nothing() && activity.is_busy());
            activity.read(1);
            pass(1000).await;
            drop(body);
        };
        for protocol in [Protocol::Http1, Protocol::Http2] {
            assert_eq!(ends(protocol, upload).await, (1075, Waiting::Idle));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_when_its_answer_is_sent() {
        for stops in [false, true] {
            let activity = Activity::new(LIMITS);
            drop(activity.begin());
            if stops {
                activity.last_call(Instant::now());
            }
            let mut watch = Watch::new(&activity);
            let mut sent = std::pin::pin!(pass(1000));
            let began = Instant::now();
            // Both are polled together, as in a connection's task.
            let waiting = poll_fn(|cx| {
                if activity.state().owes && sent.as_mut().poll(cx).is_ready() {
                    activity.flushed();
                }
                watch.poll_expired(cx)
            });
            let waiting = waiting.await;
            let rest = if stops { LAST_CALL } else { LIMITS.idle };
            let ended = (Duration::from_secs(1000) + rest).as_secs();
            assert_eq!((waiting, began.elapsed().as_secs()), (Waiting::Idle, ended), "{stops}");
        }
    }

    #[test]
    fn an_answer_is_owed_until_it_is_sent() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let activity = Activity::new(LIMITS);
        assert!(activity.owes_nothing());
        let busy = activity.begin();
        activity.flushed();
        assert!(!activity.owes_nothing(), "an interim answer is not the answer");
        drop(busy);
        assert!(!activity.owes_nothing());
        activity.flushed();
        assert!(activity.owes_nothing());
    }
}
