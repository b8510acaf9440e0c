//! The lingering close (RFC 9112 §9.6): a socket that is closed with unread bytes is reset by the kernel, and the reset
//! takes the answer with it that the client has not read yet. So, once the answer is sent and the sending side shut, what
//! the client still sends is read and thrown away: until it ends, or for a while.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a client may send nothing without ending its side.
const IDLE: Duration = Duration::from_secs(2);

/// How long it takes at most.
const TOTAL: Duration = Duration::from_secs(5);

/// How much is read at most.
const BYTES: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct Linger {
    until: Instant,
    timer: Pin<Box<Sleep>>,
    left: usize,
}

impl Linger {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { until: now + TOTAL, timer: Box::pin(sleep_until(now + IDLE)), left: BYTES }
    }

    /// Ready when the client has ended its side, or the bounds are reached.
    pub(super) fn poll(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 16 << 10];
        loop {
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *stream).poll_read(cx, &mut read) {
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) => {
                    let seen = read.filled().len();
                    let now = Instant::now();
                    if seen == 0 || seen > self.left || now >= self.until {
                        return Poll::Ready(());
                    }
                    self.left -= seen;
                    self.timer.as_mut().reset(self.until.min(now + IDLE));
                }
                Poll::Pending => {
                    ready!(self.timer.as_mut().poll(cx));
                    return Poll::Ready(());
                }
            }
        }
    }
}
