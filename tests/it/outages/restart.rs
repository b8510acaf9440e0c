//! Restarts under load, on a socket that outlives the process.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal as Kill;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::program::{Program, configure};
use super::{counters_equal_events, rows};
use crate::harness::{Client, Upstream, answer, batch, batch_answer, within};
use crate::postgres::shared;

/// Clients that call one after the other, each time on a connection of its own. One that is refused fails the test.
struct Load {
    answered: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(address: SocketAddr, clients: usize) -> Self {
        let (answered, stop) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(false));
        let mut load = Self { answered, stop, clients: JoinSet::new() };
        for _ in 0..clients {
            let (answered, stopped) = (load.answered.clone(), load.stop.subscribe());
            load.clients.spawn(async move {
                while !*stopped.borrow() {
                    assert_eq!(Client::ask(address, batch("tn_load", 1)).await.status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    /// Waits until so many more calls are answered.
    async fn more(&self, calls: usize) {
        let until = self.answered.load(Ordering::Relaxed) + calls;
        let answered = async {
            while self.answered.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        };
        within("calls are answered", answered).await;
    }

    /// How many were answered in all.
    async fn stop(mut self) -> usize {
        self.stop.send_replace(true);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        self.answered.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn a_restart_on_a_socket_that_stays_open_refuses_no_connection_and_loses_no_row() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(10))).await;
    let database = shared().database();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listen.local_addr().unwrap();
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for data in &folders {
        configure(data.path(), &upstream.url(), &database.url(), "", "");
    }
    let [one, other] = folders.each_ref().map(|data| data.path());
    let mut old = Program::start_on(one, &listen).await;
    assert_eq!(old.address, address, "the socket counts, and not server.listen");
    let load = Load::start(address, 8);
    load.more(100).await;

    // Side by side: the new one accepts before the old one stops.
    let mut new = Program::start_on(other, &listen).await;
    old.signal(Kill::TERM);
    assert_eq!(old.ended().await.code(), Some(0));
    load.more(100).await;
    // One after the other, on one folder: connections wait in the socket until the new one accepts.
    new.signal(Kill::TERM);
    assert_eq!(new.ended().await.code(), Some(0));
    let mut last = Program::start_on(other, &listen).await;
    load.more(100).await;
    let answered = load.stop().await;
    last.signal(Kill::TERM);
    assert_eq!(last.ended().await.code(), Some(0));
    assert_eq!(rows(&database, "tn_load", answered).await.len(), answered, "each call has its row");
    counters_equal_events(&database).await;
}
