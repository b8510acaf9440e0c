//! Hearing at once what other replicas did: LISTEN, on a connection of its own.
//!
//! 1. Any number of channels share one connection, so that a replica costs the server one backend for all of them.
//! 2. A notification is a hint and never the only way to learn of something: what is said while the connection is away
//!    is lost, and through a pooler that hands connections around (PgBouncer's transaction mode) nothing is ever heard.
//!    So every (re)connection is told as [`Heard::Connected`], upon which the listener looks for itself.
//! 3. No task and no queue: [`Listener::heard`] drives the connection. What is not fetched waits in the server.
//! 4. A peer that vanished is noticed by the kernel's probes within some ten seconds.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Sleep, sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, Error};

use super::pool::{Store, describe};

/// The first wait before a connection that was lost is made again; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest such wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// After how much silence the kernel asks whether the peer is still there.
const SILENCE: Duration = Duration::from_secs(5);

/// What came of listening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Listening, from now on. What was said before may have been missed.
    Connected,
    /// Somebody said something.
    Said {
        /// Where.
        channel: String,
        /// What; empty where the notification had no payload.
        payload: String,
    },
}

/// Listens to channels, and connects again when the connection is lost. Dropped, it closes the connection.
pub struct Listener {
    store: Store,
    /// `LISTEN …` for every channel.
    sql: String,
    state: State,
    /// How long the next failure makes it wait.
    pause: Duration,
}

enum State {
    Resting(Pin<Box<Sleep>>),
    Connecting(BoxFuture<'static, Result<Line, String>>),
    Open(Line),
}

/// A connection that listens.
struct Line {
    /// Kept, because the connection ends with its client.
    _client: Client,
    messages: BoxStream<'static, Result<AsyncMessage, Error>>,
}

impl Store {
    /// Listens to `channels`: words of `a-z`, `0-9` and `_`, as they stand in NOTIFY. Connects when it is first asked.
    pub fn listen(&self, channels: &[&str]) -> Listener {
        let quoted = |channel: &&str| format!("LISTEN \"{}\";", channel.replace('"', "\"\""));
        let sql: String = channels.iter().map(quoted).collect();
        let state = State::Connecting(connect(self.clone(), sql.clone()).boxed());
        Listener { store: self.clone(), sql, state, pause: FIRST_PAUSE }
    }
}

impl Listener {
    /// Waits for the next thing to be heard, however long that takes and however often the connection is lost in the
    /// meantime. May be dropped and called again: nothing is lost by that.
    pub async fn heard(&mut self) -> Heard {
        poll_fn(|cx| self.poll_heard(cx)).await
    }

    fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        loop {
            match &mut self.state {
                State::Resting(pause) => {
                    ready!(pause.as_mut().poll(cx));
                    self.state = State::Connecting(connect(self.store.clone(), self.sql.clone()).boxed());
                }
                State::Connecting(attempt) => match ready!(attempt.as_mut().poll(cx)) {
                    Ok(line) => {
                        tracing::debug!(place = self.store.place(), "listening for notifications");
                        self.pause = FIRST_PAUSE;
                        self.state = State::Open(line);
                        return Poll::Ready(Heard::Connected);
                    }
                    Err(why) => self.rest(&why),
                },
                State::Open(line) => match ready!(line.messages.poll_next_unpin(cx)) {
                    Some(Ok(AsyncMessage::Notification(said))) => {
                        let (channel, payload) = (said.channel().to_owned(), said.payload().to_owned());
                        return Poll::Ready(Heard::Said { channel, payload });
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => self.rest(&describe(&error)),
                    None => self.rest("the server closed the connection"),
                },
            }
        }
    }

    /// Not a warning: whoever watches over the database says that it is away, once.
    fn rest(&mut self, why: &str) {
        tracing::debug!(place = self.store.place(), why, pause = ?self.pause, "not listening for notifications");
        self.state = State::Resting(Box::pin(sleep(self.pause)));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

/// A connection that listens already, made within the store's bounds of time.
async fn connect(store: Store, sql: String) -> Result<Line, String> {
    let patience = store.patience();
    let attempt = async {
        let (mut postgres, tls) = store.dial();
        postgres.keepalives_idle(SILENCE).keepalives_interval(Duration::from_secs(1)).keepalives_retries(3);
        let (client, mut connection) = postgres.connect(tls).await?;
        let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx)).boxed();
        begin(&client, &mut messages, &sql).await?;
        Ok::<_, Error>(Line { _client: client, messages })
    };
    match timeout(patience, attempt).await {
        Ok(line) => line.map_err(|error| describe(&error)),
        Err(_) => Err(format!("no answer in {patience:?}")),
    }
}

/// Runs `sql` while driving the connection, which must be driven to be answered. What is said meanwhile needs no keeping:
/// "connected" is told after it.
async fn begin(
    client: &Client,
    messages: &mut BoxStream<'static, Result<AsyncMessage, Error>>,
    sql: &str,
) -> Result<(), Error> {
    let mut answer = pin!(client.batch_execute(sql));
    loop {
        match select(answer, messages.next()).await {
            Either::Left((listening, _)) => return listening,
            Either::Right((Some(message), unanswered)) => {
                message?;
                answer = unanswered;
            }
            // The statement's own error says what happened.
            Either::Right((None, unanswered)) => return unanswered.await,
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("store", &self.store).field("sql", &self.sql).finish_non_exhaustive()
    }
}
