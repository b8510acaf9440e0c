//! What the cache holds, and by which key.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quick_cache::Equivalent;
use tokio::time::Instant;

use super::source::Fault;

/// The longest key that is looked up and the longest value that is kept, in bytes. Session and tenant ids and plan names
/// are all far shorter; what is longer is somebody trying.
pub const MAX_BYTES: usize = 512;

/// What a look-up came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The value.
    Known(Arc<str>),
    /// There is no such row.
    Absent,
    /// The database gave none, and there is no earlier answer.
    Unavailable(Fault),
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) query: Arc<str>,
    pub(super) key: Arc<str>,
}

/// A [`Key`] that owns nothing, so that a hit allocates nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRef<'a> {
    pub(super) query: &'a Arc<str>,
    pub(super) key: &'a str,
}

impl KeyRef<'_> {
    pub(super) fn to_key(self) -> Key {
        Key { query: self.query.clone(), key: self.key.into() }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        KeyRef { query: &self.query, key: &self.key }.hash(state);
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.query.hash(state);
        self.key.hash(state);
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, other: &Key) -> bool {
        let same_query = Arc::ptr_eq(self.query, &other.query) || *self.query == other.query;
        same_query && *self.key == *other.key
    }
}

/// An answer of the database, and how long it holds.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) value: Option<Arc<str>>,
    fresh_until: Instant,
    refresh_at: Instant,
    refreshing: AtomicBool,
}

impl Entry {
    pub(super) fn new(value: Option<Arc<str>>, refresh_at: Instant, fresh_until: Instant) -> Self {
        Self { value, fresh_until, refresh_at, refreshing: AtomicBool::new(false) }
    }

    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now < self.fresh_until
    }

    /// Whether the caller is the one to ask again ahead of the end.
    pub(super) fn claims_refresh(&self, now: Instant) -> bool {
        now >= self.refresh_at && !self.refreshing.swap(true, Ordering::Relaxed)
    }

    pub(super) fn answer(&self) -> Answer {
        self.value.clone().map_or(Answer::Absent, Answer::Known)
    }
}
