//! The public listener: one acceptor, which hands each connection to the worker with the fewest.
//!
//! A worker is a thread with a reactor and an upstream pool of its own: a request is served start to end by one
//! thread, so nothing is handed between cores on its way. The acceptor spreads connections itself, since the kernel's
//! ways of sharing a listener leave workers unevenly loaded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::core::Core;
use super::notice::Notices;
use super::server::Worker;
use crate::net::{Full, Place, Places};
use crate::telemetry::bump;

/// Connections that wait in the kernel while the acceptor is busy.
const BACKLOG: i32 = 4096;

/// Connections handed to a worker that it has not begun with.
const HANDOVER: usize = 1024;

/// A bound listener that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address` within a tokio runtime.
    pub fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::of(socket)
    }

    /// Takes a socket that listens already, within a tokio runtime. Its backlog is as it was set.
    pub fn inherited(socket: std::net::TcpListener) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        Self::of(socket.into())
    }

    fn of(socket: Socket) -> std::io::Result<Self> {
        let socket = TcpListener::from_std(socket.into())?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// The bound address, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The running data path.
#[derive(Debug)]
pub struct Proxy {
    core: Arc<Core>,
    workers: Vec<WorkerHandle>,
    accepting: tokio::task::JoinHandle<()>,
    drain: CancellationToken,
}

#[derive(Debug)]
struct WorkerHandle {
    connections: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
    thread: thread::JoinHandle<()>,
}

type Accepted = (std::net::TcpStream, SocketAddr, Place);

impl Proxy {
    /// Starts the workers and accepts. An error is one sentence.
    pub fn start(listener: Listener, core: Arc<Core>) -> Result<Self, String> {
        let count = match core.server.workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let drain = CancellationToken::new();
        let not_http = Arc::new(Notices::default());
        let workers = (0..count)
            .map(|number| WorkerHandle::start(number, core.clone(), not_http.clone(), drain.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let targets =
            workers.iter().map(|worker| (worker.connections.clone(), worker.open.clone())).collect();
        let accepting = tokio::spawn(accept(listener.socket, core.clone(), targets, drain.clone()));
        Ok(Self { core, workers, accepting, drain })
    }

    /// Stops accepting and lets the exchanges in flight go on for at most `limit`; what is left then is cut and
    /// recorded as such. Returns when every worker is gone and every settlement is handed to the recorder.
    pub async fn stop(self, limit: impl Future<Output = ()>) {
        self.drain.cancel();
        let _ = self.accepting.await;
        let open: Vec<_> = self.workers.iter().map(|worker| worker.open.clone()).collect();
        let core = self.core.clone();
        // A worker ends by itself with the last of its connections and tasks, once the acceptor sends it no more.
        let threads: Vec<_> = self.workers.into_iter().map(|worker| worker.thread).collect();
        let mut ended = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        });
        tokio::select! {
            _ = &mut ended => return,
            () = limit => {
                let left: usize = open.iter().map(|open| open.load(Ordering::Acquire)).sum();
                let draining = core.metrics.draining.get();
                tracing::warn!(connections = left, draining, "the drain limit ran out: cutting what is left");
                core.cutting.cancel();
            }
        }
        let _ = ended.await;
    }
}

impl WorkerHandle {
    fn start(
        number: usize,
        core: Arc<Core>,
        not_http: Arc<Notices>,
        drain: CancellationToken,
    ) -> Result<Self, String> {
        let (connections, incoming) = mpsc::channel(HANDOVER);
        let open = Arc::new(AtomicUsize::new(0));
        let counter = open.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(8)
            .build()
            .map_err(|error| format!("a worker's reactor can't be made: {error}"))?;
        let worker = {
            let _entered = runtime.enter();
            Arc::new(Worker::new(core.clone(), not_http)?)
        };
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(work(worker, incoming, counter, drain)))
            .map_err(|error| format!("a worker can't be started: {error}"))?;
        Ok(Self { connections, open, thread })
    }
}

/// A worker's life: connections come in until the drain, then the last of them are waited for or cut.
async fn work(
    worker: Arc<Worker>,
    mut incoming: mpsc::Receiver<Accepted>,
    open: Arc<AtomicUsize>,
    drain: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let core = worker.core.clone();
    loop {
        let accepted = tokio::select! {
            accepted = incoming.recv() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Some((stream, peer, place)) = accepted else { break };
        let guard = OpenGuard { open: open.clone(), core: core.clone(), _place: place };
        let Ok(stream) = TcpStream::from_std(stream) else { continue };
        let (worker, drain) = (worker.clone(), drain.clone());
        connections.spawn(async move {
            let _guard = guard;
            worker.serve(stream, peer, drain).await;
        });
    }
    tokio::select! {
        () = async { while connections.join_next().await.is_some() {} } => {}
        () = core.cutting.cancelled() => {}
    }
    connections.shutdown().await;
    // Streams of HTTP/2, answers read on and late counts live on in tasks of this runtime.
    core.tasks.close();
    core.tasks.wait().await;
    // The hub's own task may not have come round any more.
    worker.hub.flush();
}

/// Counts a connection for as long as it is handed over or open.
struct OpenGuard {
    open: Arc<AtomicUsize>,
    core: Arc<Core>,
    _place: Place,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.core.metrics.connections.dec();
    }
}

async fn accept(
    listener: TcpListener,
    core: Arc<Core>,
    workers: Vec<(mpsc::Sender<Accepted>, Arc<AtomicUsize>)>,
    drain: CancellationToken,
) {
    let door = Door::new(core, workers);
    let mut backoff = Duration::ZERO;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                backoff = Duration::ZERO;
                door.let_in(stream, peer);
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Most likely no file descriptors are left: without a pause the loop would spin.
                backoff = (backoff * 2).clamp(Duration::from_millis(10), Duration::from_secs(1));
                tracing::error!(%error, "connections can't be accepted; trying again");
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = drain.cancelled() => return,
                }
            }
        }
    }
}

/// Decides who gets in, and to which worker.
struct Door {
    core: Arc<Core>,
    workers: Vec<(mpsc::Sender<Accepted>, Arc<AtomicUsize>)>,
    places: Arc<Places>,
    full: Notices,
}

impl Door {
    fn new(core: Arc<Core>, workers: Vec<(mpsc::Sender<Accepted>, Arc<AtomicUsize>)>) -> Self {
        let server = &core.server;
        let exempt = server.trusted_proxies.clone();
        let places = Places::new(server.max_connections, server.max_connections_per_client, exempt);
        Self { core, workers, places, full: Notices::default() }
    }

    fn let_in(&self, stream: TcpStream, peer: SocketAddr) {
        let place = match self.places.take(peer.ip()) {
            Ok(place) => place,
            Err(Full::All) => {
                return self.refuse(peer, "max_connections", "as many as there may be are open");
            }
            Err(Full::Client) => {
                let why =
                    "its address has as many as it may; if it is a proxy, add it to server.trusted_proxies";
                return self.refuse(peer, "max_connections_per_client", why);
            }
        };
        let fewest = self.workers.iter().min_by_key(|(_, open)| open.load(Ordering::Relaxed));
        let Some((worker, open)) = fewest else { return };
        let Ok(stream) = prepare(stream, self.core.upstream.idle_timeout) else { return };
        open.fetch_add(1, Ordering::AcqRel);
        self.core.metrics.connections.inc();
        if worker.try_send((stream, peer, place)).is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
            self.core.metrics.connections.dec();
            self.refuse(peer, "busy", "the worker has not yet begun with those that it was given");
        }
    }

    /// The connection is closed by being dropped.
    fn refuse(&self, peer: SocketAddr, reason: &'static str, why: &'static str) {
        self.core.metrics.connections_refused.inc();
        bump(&self.core.metrics.connections_ended, "reason", reason);
        if let Some(times) = self.full.due(reason, Instant::now()) {
            tracing::warn!(%peer, limit = reason, times, why, "connections were refused");
        }
    }
}

/// Small writes leave at once; a peer that takes nothing for longer than the idle limit is given up by the kernel
/// (TCP_USER_TIMEOUT, where there is one), so a client that never reads can't hold an answer for ever.
fn prepare(stream: TcpStream, idle: Duration) -> std::io::Result<std::net::TcpStream> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(idle))?;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = idle;
    stream.into_std()
}

fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
