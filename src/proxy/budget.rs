//! How many bytes of requests are held at once: in all, and for each client address.
//!
//! Constraints:
//! 1. Memory is taken as bytes arrive, in steps, never by a declared length: a client that announces much and sends
//!    nothing holds nothing. Requests that each hold a part and wait for the rest of it can't block each other for
//!    ever, because every wait is bounded: whoever waited in vain is refused, and gives back what it held.
//! 2. A quarter is for heads and for the beginnings of bodies, so that large bodies never keep small calls waiting.
//! 3. First come, first served, and a client address first waits for its own share: who waits there stands in nobody
//!    else's way.
//! 4. What is taken is given back when the last reference to the bytes is gone, not when somebody says so.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::ServerConfig;
use super::failure::Failure;
use super::notice::Notice;
use crate::telemetry::{Metrics, bump};

/// The beginning of a body, which is taken from the room for small things.
const SMALL: usize = 16 << 10;

/// What a header line costs beside its bytes: its entry in the map of headers.
const LINE: usize = 64;

/// The room for bytes of requests.
#[derive(Debug)]
pub struct Budget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Bytes of one client address, of each of the two.
    share: (usize, usize),
    wait: Duration,
    /// Bodies inspected off the reactor at once.
    inspections: Arc<Semaphore>,
    inspections_share: usize,
    shares: Mutex<HashMap<IpAddr, Weak<Share>>>,
    metrics: Arc<Metrics>,
    notice: Notice,
}

/// The part of one client address.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    key: IpAddr,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
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
        let halves = |bytes: usize| (bytes / 4, bytes - bytes / 4);
        let whole = halves(config.max_buffered_bytes);
        // The other half of the cores is left to the reactors.
        let inspections = (cores / 2).max(1);
        Arc::new(Self {
            small: Arc::new(Semaphore::new(whole.0)),
            large: Arc::new(Semaphore::new(whole.1)),
            share: halves(config.max_client_buffered_bytes.min(config.max_buffered_bytes)),
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
            small: Arc::new(Semaphore::new(self.share.0)),
            large: Arc::new(Semaphore::new(self.share.1)),
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

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
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
        let bytes = (lines.sum::<usize>() + target).min(self.budget.share.0 / 2);
        let mut taken = Taken { permits: None, metrics: self.budget.metrics.clone() };
        match taken.try_take(&self.small, &self.budget.small, bytes) {
            true => Ok((taken, self.clone())),
            false => Err(self.budget.refuse("head")),
        }
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
        let share = self.share.clone();
        let budget = &share.budget;
        // Half of the room for small things: the other half has its head.
        let beginning = SMALL.min(budget.share.0 / 2);
        let (small, large) = (bytes.min(beginning), bytes.saturating_sub(beginning));
        if large > budget.share.1 {
            return Err(Failure::BodyTooLarge { limit: budget.share.1 + beginning });
        }
        let mut patience = self.patience;
        let grown = self.small.take(&share.small, &budget.small, small, &mut patience).await
            && self.large.take(&share.large, &budget.large, large, &mut patience).await;
        self.patience = patience;
        if grown { Ok(()) } else { Err(budget.refuse("body")) }
    }

    /// Waits for room to inspect the body off the reactor.
    ///
    /// # Errors
    /// 503: there was no room for too long.
    pub(crate) async fn inspection(&self) -> Result<InspectionSlot, Failure> {
        let budget = &self.share.budget;
        let (own, whole) = (self.share.inspections.clone(), budget.inspections.clone());
        let permits = async { Some((own.acquire_owned().await.ok()?, whole.acquire_owned().await.ok()?)) };
        match tokio::time::timeout(self.patience, permits).await {
            Ok(Some(permits)) => Ok(InspectionSlot { _permits: permits }),
            _ => Err(budget.refuse("inspection")),
        }
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
