//! How many bytes of requests are held at once: in all, and for each client address.
//!
//! Constraints:
//! 1. Memory is taken as bytes arrive, in steps, never by a declared length: a client that announces much and sends
//!    nothing holds nothing. Requests that each hold a part and wait for the rest of it can't block each other for
//!    ever, because every wait is bounded: whoever waited in vain is refused, and gives back what it held.
//! 2. An eighth is for heads, which can't wait, and an eighth for the beginnings of bodies, so that large bodies never keep
//!    small calls waiting, nor slow ones the heads. Where either is full, it is as everything else.
//! 3. First come, first served, and a client address first waits for its own share: who waits there stands in nobody
//!    else's way.
//! 4. What is taken is given back when the last reference to the bytes is gone, not when somebody says so.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::ServerConfig;
use super::failure::Failure;
use super::notice::Notice;
use crate::model::client::network;
use crate::telemetry::{Metrics, bump};

/// The beginning of a body, which is taken from the room for small things.
const SMALL: usize = 16 << 10;

/// What a header line costs beside its bytes: its entry in the map of headers.
const LINE: usize = 64;

/// The room for bytes of requests.
#[derive(Debug)]
pub struct Budget {
    rooms: Rooms,
    /// Bytes of one client address.
    share: Sizes,
    wait: Duration,
    /// Bodies inspected off the reactor at once.
    inspections: Arc<Semaphore>,
    inspections_share: usize,
    shares: Mutex<HashMap<IpAddr, Weak<Share>>>,
    metrics: Arc<Metrics>,
    notice: Notice,
}

/// Bytes for heads, for the beginnings of bodies, and for all else.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    heads: usize,
    small: usize,
    large: usize,
}

impl Sizes {
    fn of(bytes: usize) -> Self {
        let eighth = bytes / 8;
        Self { heads: eighth, small: eighth, large: bytes - 2 * eighth }
    }
}

#[derive(Debug)]
struct Rooms {
    heads: Arc<Semaphore>,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl Rooms {
    fn new(sizes: Sizes) -> Self {
        let room = |bytes| Arc::new(Semaphore::new(bytes));
        Self { heads: room(sizes.heads), small: room(sizes.small), large: room(sizes.large) }
    }
}

/// The part of one client address.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    key: IpAddr,
    rooms: Rooms,
    inspections: Arc<Semaphore>,
}

/// Bytes taken. Given back when dropped.
#[derive(Debug)]
struct Taken {
    /// Of the share and of the whole, so many permits of each.
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
    metrics: Arc<Metrics>,
}

/// The memory of one request's body. Given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    share: Arc<Share>,
    small: Taken,
    large: Taken,
    /// How long it may still wait.
    patience: Duration,
}

/// Room for one inspection off the reactor.
#[derive(Debug)]
pub(crate) struct InspectionSlot {
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl Budget {
    /// The room that `config` gives, for a machine of `cores` cores.
    pub fn new(config: &ServerConfig, cores: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        // The other half of the cores is left to the reactors.
        let inspections = (cores / 2).max(1);
        Arc::new(Self {
            rooms: Rooms::new(Sizes::of(config.max_buffered_bytes)),
            share: Sizes::of(config.max_client_buffered_bytes.min(config.max_buffered_bytes)),
            wait: config.buffer_wait,
            inspections: Arc::new(Semaphore::new(inspections)),
            inspections_share: (inspections / 2).max(1),
            shares: Mutex::default(),
            metrics,
            notice: Notice::new(),
        })
    }

    /// The part of a client address. Addresses of IPv6 that have the first 64 bits in common are one client's.
    pub(crate) fn share(self: &Arc<Self>, client: IpAddr) -> Arc<Share> {
        let key = network(client);
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&key).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Share {
            budget: self.clone(),
            key,
            rooms: Rooms::new(self.share),
            inspections: Arc::new(Semaphore::new(self.inspections_share)),
        });
        shares.insert(key, Arc::downgrade(&share));
        share
    }

    /// There is no room: counted, and reported once a minute.
    fn refuse(&self, what: &'static str) -> Failure {
        bump(&self.metrics.buffer_refusals, "what", what);
        if let Some(times) = self.notice.due(Instant::now()) {
            tracing::warn!(
                times,
                what,
                "no room for more requests' bytes: answered 503; see server.max_buffered_bytes and \
                 server.max_client_buffered_bytes"
            );
        }
        Failure::Overloaded
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.budget.shares.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have been made for the address since the last reference to this one went.
        if shares.get(&self.key).is_some_and(|share| share.strong_count() == 0) {
            shares.remove(&self.key);
        }
    }
}

impl Share {
    /// Takes the room for a request's head, which is here already: at once or not at all.
    pub(crate) fn head(self: &Arc<Self>, head: &Parts) -> Result<impl Send + Sync + use<>, Failure> {
        let lines = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + LINE);
        let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
        let bytes = (lines.sum::<usize>() + target).min(self.budget.share.heads);
        let mut taken = Taken { permits: None, metrics: self.budget.metrics.clone() };
        let (own, whole) = (&self.rooms, &self.budget.rooms);
        let room = taken.try_take(&own.heads, &whole.heads, bytes)
            || taken.try_take(&own.large, &whole.large, bytes);
        if room { Ok((taken, self.clone())) } else { Err(self.budget.refuse("head")) }
    }

    /// Memory for a body, of which nothing is taken yet.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        let nothing = || Taken { permits: None, metrics: self.budget.metrics.clone() };
        Held { share: self.clone(), small: nothing(), large: nothing(), patience: self.budget.wait }
    }
}

impl Held {
    /// Makes it `bytes` at least, and waits for them where it has to.
    ///
    /// # Errors
    /// 413: so many bytes are never one client's. 503: there was no room for too long.
    pub(crate) async fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        let beginning = SMALL.min(self.share.budget.share.small);
        self.take(bytes.min(beginning), bytes.saturating_sub(beginning)).await
    }

    /// What is taken from the body and held until its call is over: of the room for beginnings as long as it has some, so
    /// that who holds a body need not wait behind those that wait for theirs.
    ///
    /// # Errors
    /// As [`Held::grow`].
    pub(crate) async fn outlive(&mut self, bytes: usize) -> Result<(), Failure> {
        self.take(bytes, 0).await
    }

    async fn take(&mut self, small: usize, large: usize) -> Result<(), Failure> {
        let share = self.share.clone();
        let (budget, own, whole) = (&share.budget, &share.rooms, &share.budget.rooms);
        if large > budget.share.large || small > budget.share.large {
            return Err(Failure::BodyTooLarge { limit: budget.share.large + budget.share.small.min(SMALL) });
        }
        let mut patience = self.patience;
        // Where the room for beginnings is full, they are as everything else.
        let begun = self.small.try_take(&own.small, &whole.small, small);
        let rest = if begun { large } else { large + small - self.small.bytes() };
        let grown = self.large.take(&own.large, &whole.large, rest, &mut patience).await;
        self.patience = patience;
        if grown { Ok(()) } else { Err(budget.refuse("body")) }
    }

    /// Waits for room to inspect the body off the reactor.
    ///
    /// # Errors
    /// 503: there was no room for too long.
    pub(crate) async fn inspection(&mut self) -> Result<InspectionSlot, Failure> {
        let budget = &self.share.budget;
        let waiting = Instant::now();
        let (own, whole) = (self.share.inspections.clone(), budget.inspections.clone());
        let permits = async { Some((own.acquire_owned().await.ok()?, whole.acquire_owned().await.ok()?)) };
        let taken = tokio::time::timeout(self.patience, permits).await;
        self.patience = self.patience.saturating_sub(waiting.elapsed());
        match taken {
            Ok(Some(permits)) => Ok(InspectionSlot { _permits: permits }),
            _ => Err(budget.refuse("inspection")),
        }
    }

    /// Nothing yet, of the same client address, with what is left of the time to wait.
    pub(crate) fn another(&self) -> Self {
        Self { patience: self.patience, ..self.share.hold() }
    }

    /// Binds it to `bytes`: it is given back with the last reference to them.
    pub(crate) fn keep(self, bytes: Bytes) -> Bytes {
        if bytes.is_empty() { bytes } else { Bytes::from_owner(Kept { bytes, _held: self }) }
    }
}

struct Kept {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Taken {
    fn bytes(&self) -> usize {
        self.permits.as_ref().map_or(0, |(own, _)| own.num_permits())
    }

    /// Takes what is missing to `bytes` if it is free.
    fn try_take(&mut self, own: &Arc<Semaphore>, whole: &Arc<Semaphore>, bytes: usize) -> bool {
        let Some(missing) = self.missing(bytes) else { return true };
        let own = own.clone().try_acquire_many_owned(missing);
        let whole = own.and_then(|own| Ok((own, whole.clone().try_acquire_many_owned(missing)?)));
        whole.map(|taken| self.add(taken)).is_ok()
    }

    /// The same, waiting for it up to `patience`, from which the wait is taken off.
    async fn take(
        &mut self,
        own: &Arc<Semaphore>,
        whole: &Arc<Semaphore>,
        bytes: usize,
        patience: &mut Duration,
    ) -> bool {
        let Some(missing) = self.missing(bytes) else { return true };
        if self.try_take(own, whole, bytes) {
            return true;
        }
        let waiting = Instant::now();
        let (own, whole) = (own.clone(), whole.clone());
        let permits = async {
            let own = own.acquire_many_owned(missing).await.ok()?;
            Some((own, whole.acquire_many_owned(missing).await.ok()?))
        };
        let taken = tokio::time::timeout(*patience, permits).await;
        *patience = patience.saturating_sub(waiting.elapsed());
        let Ok(Some(taken)) = taken else { return false };
        self.add(taken);
        true
    }

    fn missing(&self, bytes: usize) -> Option<u32> {
        let missing = u32::try_from(bytes.saturating_sub(self.bytes())).unwrap_or(u32::MAX);
        (missing > 0).then_some(missing)
    }

    fn add(&mut self, taken: (OwnedSemaphorePermit, OwnedSemaphorePermit)) {
        self.metrics.buffered_bytes.inc_by(i64::try_from(taken.0.num_permits()).unwrap_or(i64::MAX));
        match &mut self.permits {
            Some((own, whole)) => {
                own.merge(taken.0);
                whole.merge(taken.1);
            }
            none => *none = Some(taken),
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let bytes = i64::try_from(self.bytes()).unwrap_or(i64::MAX);
        self.metrics.buffered_bytes.dec_by(bytes);
    }
}

#[cfg(test)]
mod tests;
