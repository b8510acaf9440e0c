//! Cached look-ups.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use quick_cache::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::model::client::network;
use crate::telemetry::{Label, Metrics};

use super::answers::{Answer, Entry, Key, KeyRef, MAX_BYTES};
use super::breaker::{Breaker, Permit};
use super::source::{Fault, SourceError, TenantSource};

/// Look-ups in the air at most; beyond, the database is busy for a miss. A pool has far fewer connections.
const MAX_FLIGHTS: usize = 1024;

/// Those of one client address: a pool of a few connections answers so many well within the wait of a request.
const MAX_CLIENT_FLIGHTS: usize = 64;

/// After which a look-up is given up, whatever the source's own limits of time.
const FLIGHT_LIMIT: Duration = Duration::from_secs(5);

/// How long a request waits for a look-up, unless the config says otherwise.
const TIMEOUT: Duration = Duration::from_millis(250);

/// How look-ups are cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long an answer holds. From four fifths of it on, it is asked again in the background.
    pub ttl: Duration,
    /// How long "no such row" holds.
    pub negative_ttl: Duration,
    /// How many answers are kept.
    pub capacity: usize,
    /// How long a request waits for a look-up.
    pub timeout: Duration,
}

impl Default for Config {
    /// A minute, so that a changed plan is noticed within one; 5 s for "no such row", since a session that does not exist
    /// yet may in a moment; 100,000 answers (some 30 MB).
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
            capacity: 100_000,
            timeout: TIMEOUT,
        }
    }
}

/// An answer that differs from the last one to the same question, as far as that is still in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What was asked with.
    pub query: Arc<str>,
    /// For which key.
    pub key: Arc<str>,
    /// The former answer; `None` is "no such row".
    pub former: Option<Arc<str>>,
    /// The answer now.
    pub now: Option<Arc<str>>,
}

/// Is told of answers that turned. Called where look-ups land: it must not block.
pub type TurnSink = Box<dyn Fn(Turn) + Send + Sync>;

/// Cached look-ups: bounded, expiring, one flight a key; when the database is away, the last known answer.
pub struct Directory {
    config: Config,
    source: Option<Arc<dyn TenantSource>>,
    runtime: Handle,
    cache: Cache<Key, Arc<Entry>>,
    misses: Mutex<Misses>,
    turns: OnceLock<TurnSink>,
    counts: Counts,
}

/// What only a miss looks at.
#[derive(Default)]
struct Misses {
    flights: HashMap<Key, Flight>,
    /// How many of them were begun for each client address; one with none is not in it.
    clients: HashMap<IpAddr, usize>,
    breakers: HashMap<Arc<str>, Breaker>,
}

/// A look-up in the air.
#[derive(Clone)]
struct Flight {
    began: Instant,
    landed: watch::Receiver<Option<Landed>>,
}

/// What a look-up came to.
type Landed = Result<Arc<Entry>, Fault>;

/// What a miss is to do.
enum Miss {
    /// Somebody else's look-up has just been answered.
    Landed(Arc<Entry>),
    /// Wait for this one.
    Wait(Flight),
    /// The database is being probed; this look-up does it, unless there is nothing else to say.
    Probe(Flight),
    /// Don't.
    Leave(Fault),
}

/// One counter for each kind of answer, found once.
struct Counts {
    hit: Counter,
    known: Counter,
    absent: Counter,
    stale: Counter,
    unavailable: Counter,
    busy: Counter,
    broken: Counter,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let count =
            |answer: &'static str| metrics.look_ups.get_or_create(&Label("answer", answer.into())).clone();
        Self {
            hit: count("hit"),
            known: count("known"),
            absent: count("absent"),
            stale: count("stale"),
            unavailable: count("unavailable"),
            busy: count("busy"),
            broken: count("broken"),
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Directory {
    /// A directory over `source`; without one every answer is `Absent`. Look-ups run on `runtime`, where the database's
    /// driver lives, and outlive the requests that began them.
    pub fn new(
        config: Config,
        source: Option<Arc<dyn TenantSource>>,
        runtime: Handle,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let cache = Cache::new(config.capacity.max(1));
        let counts = Counts::new(&metrics);
        let (misses, turns) = (Mutex::default(), OnceLock::new());
        Arc::new(Self { config, source, runtime, cache, misses, turns, counts })
    }

    /// Has `sink` told of answers that turned. The first sink stays.
    pub fn tell_turns(&self, sink: TurnSink) {
        let _ = self.turns.set(sink);
    }

    /// Looks `key` up with `query`.
    ///
    /// A key that is too long ([`MAX_BYTES`]) or that Postgres can't take as text (with a NUL) is in no table: `Absent`.
    pub async fn look_up(self: &Arc<Self>, query: &Arc<str>, key: &str) -> Answer {
        self.look_up_for(query, key, None).await
    }

    /// The same for a client, who may invent keys: only so many look-ups are in the air for one address (64; one of IPv6 is
    /// its network of 64 bits). Beyond, the database is busy for it, and for nobody else.
    pub async fn look_up_for(
        self: &Arc<Self>,
        query: &Arc<str>,
        key: &str,
        client: Option<IpAddr>,
    ) -> Answer {
        let Some(source) = &self.source else { return Answer::Absent };
        if key.len() > MAX_BYTES || key.contains('\0') {
            return Answer::Absent;
        }
        let (now, asked, client) = (Instant::now(), KeyRef { query, key }, client.map(network));
        let earlier = self.cache.get(&asked);
        if let Some(entry) = earlier.as_ref().filter(|entry| entry.is_fresh(now)) {
            if entry.claims_refresh(now) {
                self.miss(source, asked, client, now, true);
            }
            self.counts.hit.inc();
            return entry.answer();
        }
        // "No such row" may have changed since; a value is worth something even when it is old.
        let stale = earlier.and_then(|entry| entry.value.clone());
        let landed = match self.miss(source, asked, client, now, false) {
            Miss::Landed(entry) => Ok(entry),
            Miss::Wait(flight) => self.wait(query, flight).await,
            Miss::Probe(flight) if stale.is_none() => self.wait(query, flight).await,
            Miss::Probe(_) => Err(Fault::Away),
            Miss::Leave(fault) => Err(fault),
        };
        self.counted(landed, stale)
    }

    #[cfg(test)]
    pub(super) fn answers(&self) -> usize {
        self.cache.len()
    }

    /// What the database said for good of the queries that it will never answer as they are, each with its query.
    pub fn broken(&self) -> Vec<(Arc<str>, String)> {
        let misses = self.misses();
        let said = misses.breakers.iter().filter_map(|(query, breaker)| Some((query, breaker.broken()?)));
        let mut broken: Vec<_> = said.map(|(query, why)| (query.clone(), why.to_owned())).collect();
        broken.sort();
        broken
    }

    fn counted(&self, landed: Landed, stale: Option<Arc<str>>) -> Answer {
        let (answer, count) = match (landed, stale) {
            (Ok(entry), _) => match entry.answer() {
                Answer::Known(value) => (Answer::Known(value), &self.counts.known),
                answer => (answer, &self.counts.absent),
            },
            (Err(_), Some(value)) => (Answer::Known(value), &self.counts.stale),
            (Err(fault), None) => {
                let count = match fault {
                    Fault::Away => &self.counts.unavailable,
                    Fault::Busy => &self.counts.busy,
                    Fault::Broken => &self.counts.broken,
                };
                (Answer::Unavailable(fault), count)
            }
        };
        count.inc();
        answer
    }

    /// Waits for a look-up, within the bound.
    async fn wait(&self, query: &Arc<str>, mut flight: Flight) -> Landed {
        match timeout(self.config.timeout, flight.landed.wait_for(Option::is_some)).await {
            Ok(Ok(landed)) => landed.clone().unwrap_or(Err(Fault::Away)),
            // It broke off, and its end was noted.
            Ok(Err(_)) => Err(Fault::Away),
            Err(_) => Err(self.misses().breaker(query).overdue(flight.began, Instant::now())),
        }
    }

    /// Joins the look-up that is in the air, or begins one, as far as that makes sense now. `ahead`: the answer in the
    /// cache is still fresh.
    fn miss(
        self: &Arc<Self>,
        source: &Arc<dyn TenantSource>,
        asked: KeyRef<'_>,
        client: Option<IpAddr>,
        now: Instant,
        ahead: bool,
    ) -> Miss {
        let mut misses = self.misses();
        // The look-up may have landed since the cache was read: it fills the cache before it leaves the map.
        let landed = self.cache.peek(&asked).filter(|entry| !ahead && entry.is_fresh(now));
        if let Some(entry) = landed {
            return Miss::Landed(entry);
        }
        let key = asked.to_key();
        let flying = misses.flights.get(&key).cloned();
        // Who has no room does not take the place of the one who looks whether the database is back.
        if flying.is_none() && !misses.has_room(client) {
            return Miss::Leave(misses.breaker(asked.query).fault());
        }
        let join: fn(Flight) -> Miss = match misses.breaker(asked.query).permit(now) {
            Permit::Ask => Miss::Wait,
            Permit::Probe => Miss::Probe,
            Permit::Leave => return Miss::Leave(misses.breaker(asked.query).fault()),
        };
        if let Some(flight) = flying {
            return join(flight);
        }
        let (landing, landed) = watch::channel(None);
        let flight = Flight { began: now, landed };
        misses.flights.insert(key.clone(), flight.clone());
        if let Some(client) = client {
            *misses.clients.entry(client).or_default() += 1;
        }
        drop(misses);
        let pilot = Pilot { directory: self.clone(), key, client, began: now, landing };
        self.runtime.spawn(pilot.fly(source.clone()));
        join(flight)
    }

    fn entry(&self, value: Option<String>, now: Instant) -> Arc<Entry> {
        let value: Option<Arc<str>> = value.filter(|value| value.len() <= MAX_BYTES).map(Into::into);
        let ttl = if value.is_some() { self.config.ttl } else { self.config.negative_ttl };
        Arc::new(Entry::new(value, now + ttl / 5 * 4, now + ttl))
    }

    fn misses(&self) -> MutexGuard<'_, Misses> {
        self.misses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Misses {
    fn has_room(&self, client: Option<IpAddr>) -> bool {
        let own = client.and_then(|client| self.clients.get(&client)).copied().unwrap_or_default();
        self.flights.len() < MAX_FLIGHTS && own < MAX_CLIENT_FLIGHTS
    }

    /// A look-up of a client is over.
    fn leave(&mut self, client: IpAddr) {
        let Some(flights) = self.clients.get_mut(&client) else { return };
        *flights -= 1;
        if *flights == 0 {
            self.clients.remove(&client);
        }
    }

    /// The breaker of a query. Queries come from the config, so there are few; each reload may bring others.
    fn breaker(&mut self, query: &Arc<str>) -> &mut Breaker {
        if self.breakers.len() >= 64 && !self.breakers.contains_key(query) {
            self.breakers.clear();
        }
        self.breakers.entry(query.clone()).or_default()
    }
}

/// Brings one look-up home. Dropped on the way (a panic, the end of the runtime) it counts as failed, so that nobody waits
/// for it and the next request begins anew.
struct Pilot {
    directory: Arc<Directory>,
    key: Key,
    client: Option<IpAddr>,
    began: Instant,
    landing: watch::Sender<Option<Landed>>,
}

impl Pilot {
    async fn fly(self, source: Arc<dyn TenantSource>) {
        let Key { query, key } = &self.key;
        let asked = async {
            match source.look_up(query, key).await {
                // A connection that died in the pool is no news of the database: ask once more.
                Err(_) => source.look_up(query, key).await,
                answered => answered,
            }
        };
        let answered = match timeout(FLIGHT_LIMIT, asked).await {
            Ok(answered) => answered,
            Err(_) => {
                let message = format!("no answer within {FLIGHT_LIMIT:?}");
                Err(SourceError { fault: Fault::Busy, message })
            }
        };
        let now = Instant::now();
        match answered {
            Ok(value) => {
                let entry = self.directory.entry(value, now);
                self.tell_turn(&entry);
                self.directory.cache.insert(self.key.clone(), entry.clone());
                if self.directory.misses().breaker(query).answered(now) {
                    tracing::info!("look-ups in the service's database are answered again");
                }
                self.landing.send_replace(Some(Ok(entry)));
            }
            Err(error) => {
                let (fault, news) = self.directory.misses().breaker(query).failed(&error, self.began, now);
                if news {
                    tracing::warn!(%error, %query, "look-ups in the service's database fail; the last known answers hold");
                }
                self.landing.send_replace(Some(Err(fault)));
            }
        }
    }
}

impl Pilot {
    /// One look-up for a key is in the air at a time, so a turn is told once here, however many requests see it.
    fn tell_turn(&self, entry: &Entry) {
        let Some(sink) = self.directory.turns.get() else { return };
        let Some(former) = self.directory.cache.peek(&self.key) else { return };
        if former.value != entry.value {
            let Key { query, key } = self.key.clone();
            sink(Turn { query, key, former: former.value.clone(), now: entry.value.clone() });
        }
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        let mut misses = self.directory.misses();
        misses.flights.remove(&self.key);
        if let Some(client) = self.client {
            misses.leave(client);
        }
        if self.landing.borrow().is_none() {
            misses.breaker(&self.key.query).rest(Instant::now());
        }
    }
}
