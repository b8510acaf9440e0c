//! What is known of the parts' health: written by those who find out, read by the probes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::watch;

use crate::admin::{Health, HealthSource, Part, Status};
use crate::quota::{Enforcer, Footing};
use crate::record::{Journal, JournalState};

const STARTING: u8 = 0;
const SERVING: u8 = 1;
const DRAINING: u8 = 2;

/// How the database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Database {
    /// It answers.
    pub(super) up: bool,
    /// The schema is there and the quotas were read from it, at least once.
    pub(super) hydrated: bool,
    /// Requests on metered routes are refused for its sake (`on_outage`).
    pub(super) refusing: bool,
    /// Why it is not up, for people.
    pub(super) detail: String,
}

/// What is wrong with the look-ups in the service's database.
#[derive(Clone, Debug, Default)]
pub(super) struct LookUps {
    /// Calls suffer from it.
    pub(super) degraded: bool,
    /// A sentence each.
    pub(super) faults: Vec<String>,
}

/// The gateway's health.
#[derive(Debug)]
pub(super) struct Live {
    look_ups: watch::Sender<LookUps>,
    phase: AtomicU8,
    database: watch::Sender<Database>,
    journal: Arc<Journal>,
    enforcer: Arc<Enforcer>,
}

impl Live {
    pub(super) fn new(journal: Arc<Journal>, enforcer: Arc<Enforcer>) -> Self {
        let unknown =
            Database { up: false, hydrated: false, refusing: false, detail: "not reached yet".into() };
        Self {
            look_ups: watch::Sender::default(),
            phase: AtomicU8::new(STARTING),
            database: watch::Sender::new(unknown),
            journal,
            enforcer,
        }
    }

    pub(super) fn serving(&self) {
        self.phase.store(SERVING, Ordering::Relaxed);
    }

    pub(super) fn draining(&self) {
        self.phase.store(DRAINING, Ordering::Relaxed);
    }

    pub(super) fn set_look_ups(&self, now: LookUps) {
        self.look_ups.send_replace(now);
    }

    pub(super) fn look_ups_are_wrong(&self) -> bool {
        !self.look_ups.borrow().faults.is_empty()
    }

    pub(super) fn database(&self) -> Database {
        self.database.borrow().clone()
    }

    /// Takes over how the database is; true when that is news.
    pub(super) fn set_database(&self, now: Database) -> bool {
        self.database.send_if_modified(|was| {
            let news = *was != now;
            *was = now;
            news
        })
    }

    /// Resolves once the quotas have been read.
    pub(super) fn hydrated(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut seen = self.database.subscribe();
        async move {
            let _ = seen.wait_for(|database| database.hydrated).await;
        }
    }

    /// What the probes ask.
    pub(super) fn source(self: &Arc<Self>) -> HealthSource {
        let live = self.clone();
        Arc::new(move || live.health())
    }

    fn health(&self) -> Health {
        let database = self.database();
        let journal = self.journal.state();
        let leases = match self.enforcer.footing() {
            Footing::Leased | Footing::Alone => "ok",
            Footing::OnItsOwn => "on_its_own",
            Footing::CutOff => "cut_off",
        };
        let look_ups = self.look_ups.borrow().clone();
        let looking = match (look_ups.faults.is_empty(), look_ups.degraded) {
            (true, _) => "ok",
            (false, false) => "no_tables",
            (false, true) => "broken",
        };
        let part = |name, state, detail: &str| Part { name, state, detail: detail.to_owned() };
        let parts = vec![
            part("database", if database.up { "ok" } else { "down" }, &database.detail),
            part("quotas", if database.hydrated { leases } else { "unhydrated" }, ""),
            part("journal", if journal.healthy { "ok" } else { "failing" }, &describe(&journal)),
            part("look_ups", looking, &look_ups.faults.join("; ")),
        ];
        let status = match self.phase.load(Ordering::Relaxed) {
            STARTING => Status::Starting,
            DRAINING => Status::Draining,
            _ if database.refusing => Status::Refusing,
            _ if look_ups.degraded => Status::Degraded,
            _ if database.up && database.hydrated && leases == "ok" && journal.healthy => Status::Ok,
            _ => Status::Degraded,
        };
        Health { status, parts }
    }
}

fn describe(journal: &JournalState) -> String {
    let mut text = format!("{} records in {} bytes", journal.records, journal.bytes);
    if let Some(age) = journal.oldest_age.filter(|_| journal.records > 0) {
        text += &format!(", the oldest {} s old", age.as_secs());
    }
    if journal.dead_letters > 0 {
        text += &format!(", {} dead letters", journal.dead_letters);
    }
    for why in [&journal.reason, &journal.shipping].into_iter().flatten() {
        text += &format!("; {why}");
    }
    text
}
