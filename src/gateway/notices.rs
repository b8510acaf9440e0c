//! What other replicas say through the database: one connection that listens, for all who want to hear.

use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};
use tokio_util::sync::CancellationToken;

use crate::store::{Heard, LEASES, Store, overrides};

/// The channels that are listened to.
const CHANNELS: [&str; 2] = [overrides::CHANNEL, LEASES];

/// Notifications that wait for a slow subscriber; one that is further behind is told to look for itself.
const WAITING: usize = 1024;

/// Listens, and passes on what is heard.
pub(super) struct Notices {
    store: Store,
    heard: broadcast::Sender<Heard>,
}

/// One who wants to hear. Dropped, it hears no more.
pub(super) struct Subscriber(broadcast::Receiver<Heard>);

impl Notices {
    pub(super) fn new(store: Store) -> Self {
        Self { store, heard: broadcast::Sender::new(WAITING) }
    }

    /// Subscribe before [`Notices::run`].
    pub(super) fn subscribe(&self) -> Subscriber {
        Subscriber(self.heard.subscribe())
    }

    /// Listens from `ready` on, until `stop`.
    pub(super) async fn run(self, ready: impl Future<Output = ()>, stop: CancellationToken) {
        let passing = async {
            ready.await;
            let mut listener = self.store.listen(&CHANNELS);
            loop {
                let heard = listener.heard().await;
                let _ = self.heard.send(heard);
            }
        };
        tokio::select! {
            () = passing => {}
            () = stop.cancelled() => {}
        }
    }
}

impl Subscriber {
    /// The next thing heard. [`Heard::Connected`] also when some were missed, so it means: look for yourself. Never, once
    /// nobody listens any more. May be dropped and called again.
    pub(super) async fn heard(&mut self) -> Heard {
        match self.0.recv().await {
            Ok(heard) => heard,
            Err(RecvError::Lagged(_)) => Heard::Connected,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// What waits to be heard already, so that one look answers to many notifications.
    pub(super) fn waiting(&mut self) -> Option<Heard> {
        match self.0.try_recv() {
            Ok(heard) => Some(heard),
            Err(TryRecvError::Lagged(_)) => Some(Heard::Connected),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}
