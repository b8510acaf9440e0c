//! Watches over the look-ups in the service's database: one that can never be answered is no outage, and is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::{Live, LookUps};
use crate::proxy::Core;
use crate::settings::Settings;
use crate::store::{Examined, Store};

/// Between two examinations while all is well, and between two lines in the log while it is not.
const INTERVAL: Duration = Duration::from_secs(60);

/// Between two examinations while it is not.
const RECOVERY: Duration = Duration::from_secs(5);

/// Between two looks whether requests came upon what no examination has told yet.
const GLANCE: Duration = Duration::from_secs(1);

/// The watcher.
pub(super) struct Watch {
    core: Arc<Core>,
    live: Arc<Live>,
    /// Where the look-ups go.
    store: Store,
    /// They go to a database that the config names for them: a table that is not there is a mistake, and not a service
    /// that has no such table.
    own: bool,
}

/// What is wrong with a look-up.
struct Finding {
    key: String,
    why: String,
    /// It can never be answered; else row-level security hides every row.
    broken: bool,
}

impl Watch {
    pub(super) fn new(core: Arc<Core>, live: Arc<Live>, store: Store, settings: &Settings) -> Self {
        Self { core, live, store, own: settings.service_database.is_some() }
    }

    /// Looks once before the gateway accepts.
    ///
    /// # Errors
    /// A look-up can never be answered, and the config says not to start then.
    pub(super) async fn first_look(self, settings: &Settings) -> anyhow::Result<Self> {
        let findings = self.look(true).await;
        let broken = findings.iter().find(|finding| finding.broken && self.own);
        match broken.filter(|_| settings.refuse_broken_look_ups) {
            Some(Finding { key, why, .. }) => Err(settings
                .fault(key, format!("{why}; or start all the same, with tenant.look_up_check = \"warn\""))
                .into()),
            None => Ok(self),
        }
    }

    /// Looks every minute, more often while something is wrong, and when requests come upon something new, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let (mut looked, mut told) = (Instant::now(), Instant::now());
        let mut wrong = self.live.look_ups_are_wrong();
        let mut known = self.core.directory.broken();
        loop {
            tokio::select! {
                () = tokio::time::sleep(GLANCE) => {}
                () = stop.cancelled() => return,
            }
            let met = self.core.directory.broken();
            let due = looked.elapsed() >= if wrong { RECOVERY } else { INTERVAL };
            if !due && met == known {
                continue;
            }
            let tell = !wrong || told.elapsed() >= INTERVAL;
            (looked, known) = (Instant::now(), met);
            tokio::select! {
                findings = self.look(tell) => wrong = !findings.is_empty(),
                () = stop.cancelled() => return,
            }
            if tell {
                told = Instant::now();
            }
        }
    }

    /// Examines every look-up, and says what it found; in the log too, if `tell`.
    async fn look(&self, tell: bool) -> Vec<Finding> {
        let policy = self.core.policy.load_full();
        let (mut findings, mut now) = (Vec::new(), LookUps::default());
        for (key, query) in policy.look_ups() {
            let examined = self.store.examine(query).await;
            let missing = matches!(examined, Examined::Broken { missing: true, .. }) && !self.own;
            let Some(finding) = self.finding(key, query, examined) else { continue };
            if tell {
                tracing::warn!(key, why = finding.why, "a look-up in the service's database can't work");
            }
            now.degraded |= !missing;
            now.faults.push(format!("{key}: {}", finding.why));
            findings.push(finding);
        }
        self.core.metrics.look_ups_broken.set(i64::try_from(findings.len()).unwrap_or(i64::MAX));
        self.live.set_look_ups(now);
        findings
    }

    fn finding(&self, key: &str, query: &str, examined: Examined) -> Option<Finding> {
        let place = self.store.place();
        let (why, broken) = match examined {
            Examined::Fine | Examined::Unknown => return None,
            Examined::Broken { why, .. } => (
                format!(
                    "the database at {place} can never answer `{query}`: {why}. Correct the query, point \
                     [service_database] url at the database that has its tables, or grant its role SELECT on them"
                ),
                true,
            ),
            Examined::Hidden { table, role } => (
                format!(
                    "row-level security is on for {table} in the database at {place}, and no policy lets the role \
                     {role} see its rows, so `{query}` finds none. Add a policy, such as CREATE POLICY tollgate ON \
                     {table} FOR SELECT TO {role} USING (true), or give the role BYPASSRLS"
                ),
                false,
            ),
        };
        Some(Finding { key: key.to_owned(), why, broken })
    }
}
