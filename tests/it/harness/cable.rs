//! A cable between two parts: it can be long, and it can be cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Pieces under way in one direction of one connection.
const UNDER_WAY: usize = 1024;

/// Passes connections on to an address of this machine. It ends with its last handle.
pub(crate) struct Cable {
    address: SocketAddr,
    whole: Arc<Mutex<Option<CancellationToken>>>,
    _end: tokio_util::sync::DropGuard,
}

impl Cable {
    /// A cable to `port`, through which each byte takes `delay`.
    pub(crate) async fn new(port: u16, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (whole, end) = (Arc::new(Mutex::new(Some(CancellationToken::new()))), CancellationToken::new());
        let (state, over) = (whole.clone(), end.clone());
        tokio::spawn(over.run_until_cancelled_owned(async move {
            while let Ok((near, _)) = listener.accept().await {
                // A connection that comes to a cut cable is closed at once.
                let Some(whole) = state.lock().unwrap().clone() else { continue };
                tokio::spawn(whole.run_until_cancelled_owned(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(from_near, to_far, delay), carry(from_far, to_near, delay));
                }));
            }
        }));
        Self { address, whole, _end: end.drop_guard() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Ends every connection, with what is under way, and lets none through from now on.
    pub(crate) fn cut(&self) {
        if let Some(whole) = self.whole.lock().unwrap().take() {
            whole.cancel();
        }
    }

    pub(crate) fn mend(&self) {
        self.whole.lock().unwrap().get_or_insert_with(CancellationToken::new);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let take = async move {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            if sender.send((Instant::now() + delay, piece[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let give = async move {
        while let Some((due, piece)) = under_way.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(take, give);
}
