//! What operators set for single tenants while Tollgate runs, as this replica knows it.
//!
//! 1. Reading takes no lock, and for a tenant without an override allocates nothing.
//! 2. An override is looked at with `now` each time it is asked for: when it expires, nobody has to notice.
//! 3. Rows come with versions that rise in the order of the commits, and the highest version of a row wins. So what this
//!    replica wrote itself may be applied at once, and what the followers of the database read may come late, twice or
//!    in any order: neither undoes the other.
//! 4. `upto` is the version up to which everything is known. A row that was removed is remembered only until then, so
//!    memory is bounded by the overrides that there are.
//!
//! The write path: [`Overrides::learn`] after an edit of our own; [`Overrides::catch_up`] and [`Overrides::replace`] with
//! what was read from the database. The read path: [`Overrides::of`].

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use crate::model::quota::{Dimension, Limit, UnknownDimension};
use crate::model::tenant::{PlanName, TenantId};
use crate::model::window::Window;

/// What is overridden; written `tokens_per_day`, `plan` or `blocked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// One limit.
    Limit(Dimension),
    /// The plan.
    Plan,
    /// Whether the tenant is served at all.
    Blocked,
}

impl Target {
    /// The window of a limit.
    pub fn window(self) -> Option<Window> {
        match self {
            Target::Limit(dimension) => Some(dimension.window),
            Target::Plan | Target::Blocked => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Limit(dimension) => dimension.fmt(f),
            Target::Plan => f.write_str("plan"),
            Target::Blocked => f.write_str("blocked"),
        }
    }
}

impl FromStr for Target {
    type Err = UnknownDimension;

    fn from_str(text: &str) -> Result<Self, UnknownDimension> {
        match text {
            "plan" => Ok(Target::Plan),
            "blocked" => Ok(Target::Blocked),
            dimension => dimension.parse().map(Target::Limit),
        }
    }
}

/// What it is overridden with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A limit; `None` is unlimited.
    Limit(Dimension, Limit),
    /// Another plan.
    Plan(PlanName),
    /// The tenant is refused.
    Blocked,
}

impl Setting {
    /// What it overrides.
    pub fn target(&self) -> Target {
        match self {
            Setting::Limit(dimension, _) => Target::Limit(*dimension),
            Setting::Plan(_) => Target::Plan,
            Setting::Blocked => Target::Blocked,
        }
    }
}

/// One override, with who set it and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// What it sets.
    pub setting: Setting,
    /// Why.
    pub reason: Option<String>,
    /// Who set it.
    pub author: Option<String>,
    /// The first instant at which it no longer holds.
    pub expires: Option<Timestamp>,
    /// Since when there is one of this target.
    pub created: Timestamp,
    /// When it was last set.
    pub updated: Timestamp,
}

impl Override {
    /// Whether it has not expired.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

/// A row as it became with one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Higher than that of every change that was committed before.
    pub version: i64,
    /// Whose it is.
    pub tenant: TenantId,
    /// Of what.
    pub target: Target,
    /// The override; `None` where it was removed.
    pub set: Option<Arc<Override>>,
}

/// One tenant's overrides, expired ones included; sorted by target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantOverrides(Vec<Row>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    target: Target,
    version: i64,
    /// `None`: removed, by a change that `upto` has not reached.
    set: Option<Arc<Override>>,
}

impl TenantOverrides {
    /// Every override, whether or not it holds.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Override>> {
        self.0.iter().filter_map(|row| row.set.as_ref())
    }

    /// The override of `target`, if one holds.
    pub fn of(&self, target: Target, now: Timestamp) -> Option<&Override> {
        self.all().map(AsRef::as_ref).find(|o| o.setting.target() == target && o.holds(now))
    }

    /// The limits that are set and hold.
    pub fn limits(&self, now: Timestamp) -> impl Iterator<Item = (Dimension, Limit)> + '_ {
        self.all().filter(move |o| o.holds(now)).filter_map(|o| match o.setting {
            Setting::Limit(dimension, limit) => Some((dimension, limit)),
            Setting::Plan(_) | Setting::Blocked => None,
        })
    }

    /// The plan that is set and holds.
    pub fn plan(&self, now: Timestamp) -> Option<&PlanName> {
        match &self.of(Target::Plan, now)?.setting {
            Setting::Plan(plan) => Some(plan),
            Setting::Limit(..) | Setting::Blocked => None,
        }
    }

    /// Whether the tenant is blocked.
    pub fn blocked(&self, now: Timestamp) -> bool {
        self.of(Target::Blocked, now).is_some()
    }

    fn take(&mut self, change: &Change) {
        let row = Row { target: change.target, version: change.version, set: change.set.clone() };
        match self.0.binary_search_by_key(&change.target, |row| row.target) {
            Ok(at) if self.0[at].version < change.version => self.0[at] = row,
            Ok(_) => {}
            Err(at) => self.0.insert(at, row),
        }
    }
}

/// All overrides that operators set.
#[derive(Debug, Default)]
pub struct Overrides {
    known: ArcSwap<Known>,
    /// Writers take turns: each copies what is known, which is a pointer and an id for each tenant with an override.
    writing: Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    tenants: HashMap<TenantId, Arc<TenantOverrides>>,
    upto: i64,
}

impl Overrides {
    /// None.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A tenant's overrides; `None` where it has none.
    pub fn of(&self, tenant: &TenantId) -> Option<Arc<TenantOverrides>> {
        self.known.load().tenants.get(tenant).cloned()
    }

    /// How many tenants have one.
    pub fn tenants(&self) -> usize {
        self.known.load().tenants.len()
    }

    /// The version up to which every change is known.
    pub fn upto(&self) -> i64 {
        self.known.load().upto
    }

    /// Applies some changes, such as those of an edit of our own, without claiming to know those before.
    pub fn learn(&self, changes: &[Change]) {
        self.write(|known| known.take(changes));
    }

    /// Applies every change since `upto`, up to version `upto`.
    pub fn catch_up(&self, changes: &[Change], upto: i64) {
        self.write(|known| {
            known.take(changes);
            known.reach(upto.max(known.upto));
        });
    }

    /// Takes over all overrides as they were at version `upto`. What is known of later changes stays, unless the database
    /// itself has gone back behind what was read from it before (restored from a copy): then what it says holds.
    pub fn replace(&self, all: &[Change], upto: i64) {
        self.write(|known| {
            if upto < known.upto {
                known.tenants.clear();
            }
            for tenant in known.tenants.values_mut() {
                Arc::make_mut(tenant).0.retain(|row| row.version > upto);
            }
            // What is in the snapshot is to be taken, however old.
            known.upto = 0;
            known.take(all);
            known.reach(upto);
        });
    }

    fn write(&self, change: impl FnOnce(&mut Known)) {
        let turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = Known::clone(&self.known.load());
        change(&mut known);
        self.known.store(Arc::new(known));
        drop(turn);
    }
}

impl Known {
    fn take(&mut self, changes: &[Change]) {
        // Up to `upto` all is known: what comes now was either taken, or undone since.
        for change in changes.iter().filter(|change| change.version > self.upto) {
            Arc::make_mut(self.tenants.entry(change.tenant.clone()).or_default()).take(change);
        }
    }

    fn reach(&mut self, upto: i64) {
        self.upto = upto;
        self.tenants.retain(|_, tenant| {
            let over = |row: &Row| row.set.is_none() && row.version <= upto;
            if tenant.0.iter().any(over) {
                Arc::make_mut(tenant).0.retain(|row| !over(row));
            }
            !tenant.0.is_empty()
        });
    }
}
