//! A connection's life: it runs until it ends by itself, has been silent for too long, or the gateway stops.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, LAST_CALL, Protocol, Waiting, Watch};

/// How long an idle client of HTTP/2 has to answer when it is told that its connection ends.
const GOODBYE: Duration = Duration::from_secs(2);

/// How a connection ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By itself.
    Itself(hyper::Result<()>),
    /// It was silent for too long.
    Silent(Waiting),
    /// The gateway stops.
    Stopped,
}

/// Runs a connection. `finish` tells it to take no more requests.
///
/// At the stop a connection with requests in flight ends with the last of them; a silent one ends after [`LAST_CALL`].
/// What comes in between is to be answered with `Connection: close`.
pub(crate) async fn attend<C>(
    mut connection: Pin<&mut C>,
    finish: fn(Pin<&mut C>),
    activity: &Activity,
    protocol: Protocol,
    stop: &CancellationToken,
) -> Ended
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut watch = Watch::new(activity);
    let (mut stopping, mut finishing) = (false, false);
    loop {
        tokio::select! {
            biased;
            result = connection.as_mut() => return Ended::Itself(result),
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                activity.last_call(Instant::now() + LAST_CALL);
                // HTTP/1 has no way to tell an idle client, and would be closed at once.
                if protocol == Protocol::Http2 || activity.is_busy() {
                    finishing = true;
                    finish(connection.as_mut());
                }
            }
            waiting = poll_fn(|cx| watch.poll_expired(cx)) => {
                if protocol == Protocol::Http1 || finishing {
                    return if stopping { Ended::Stopped } else { Ended::Silent(waiting) };
                }
                // HTTP/2 tells the client which of its streams were taken (GOAWAY), so that none is lost.
                finishing = true;
                activity.last_call(Instant::now() + GOODBYE);
                finish(connection.as_mut());
            }
        }
    }
}
