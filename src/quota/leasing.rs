//! The one task that asks for leases.
//!
//! 1. One statement a round, one round at a time, at most one in [`Config::tick`]: what the database is asked is
//!    bounded by the number of replicas, whatever the number of tenants and requests.
//! 2. A round begins when an exchange waits or a lease is low, and at each heartbeat. The heartbeat carries what can
//!    wait, and hears what other replicas want back.
//! 3. When a round fails, and its repetition at once too, or takes longer than [`Config::slow`], the database is away:
//!    the replica serves on its own, or only what it was granted. The next round that is answered ends that.
//! 4. With `reclaim_after`, a replica that was not heard of for so long loses what it holds. It stops spending before
//!    that: counted on its own monotonic clock, from before its last successful round was sent.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::asking::Footing;
use super::enforcer::Enforcer;
use super::lease::{LeaseError, LeaseSource};
use super::rounds::{Pending, Rounds};
use crate::telemetry::bump;

/// How leases are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The shortest time between two rounds.
    pub tick: Duration,
    /// The longest time between two rounds.
    pub heartbeat: Duration,
    /// A round that takes so long keeps nobody waiting any longer.
    pub slow: Duration,
    /// How long a round may take after that.
    pub patience: Duration,
    /// After how long a replica that was not heard of loses what it holds; `None`: when the window ends.
    pub reclaim_after: Option<Duration>,
    /// Whether this replica serves on its own while the database is away, as far as it knows the use of a limit.
    pub serve_alone: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(20),
            heartbeat: Duration::from_millis(500),
            slow: Duration::from_millis(500),
            patience: Duration::from_secs(3),
            reclaim_after: None,
            serve_alone: true,
        }
    }
}

/// Numbers the runs of this replica: each time it is asked, a number greater than all before, kept on disk.
pub type Runs = Arc<dyn Fn() -> Result<u64, String> + Send + Sync>;

/// Whether everything that was recorded before it was made is in the database.
pub type Written = Box<dyn Fn() -> bool + Send + Sync>;

/// Makes a [`Written`] for what is recorded now.
pub type Mark = Arc<dyn Fn() -> Written + Send + Sync>;

/// Asks for leases. See the module's constraints.
pub struct Leasing {
    enforcer: Arc<Enforcer>,
    source: Arc<dyn LeaseSource>,
    config: Config,
    rounds: Rounds,
    runs: Runs,
    mark: Mark,
    /// The events of former runs, while they are not all written.
    former: Option<Written>,
    run: u64,
    /// The run has lost its leases, and no other can be begun.
    void: bool,
    began: Instant,
    /// Before the last successful round was sent.
    heard: Instant,
    /// When the last round was sent.
    last: Instant,
}

impl std::fmt::Debug for Leasing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leasing").field("run", &self.run).finish_non_exhaustive()
    }
}

impl Leasing {
    /// Begins a run. Errors: its number can't be kept.
    pub fn new(
        enforcer: Arc<Enforcer>,
        source: Arc<dyn LeaseSource>,
        config: Config,
        runs: Runs,
        mark: Mark,
    ) -> Result<Self, String> {
        let run = runs()?;
        enforcer.asking().set_serves_alone(config.serve_alone);
        let now = Instant::now();
        Ok(Self {
            rounds: Rounds::new(enforcer.clone(), run, config.reclaim_after),
            former: Some(mark()),
            enforcer,
            source,
            config,
            runs,
            mark,
            run,
            void: false,
            began: now,
            heard: now,
            last: now,
        })
    }

    /// How this replica stands to the others while the database is away.
    pub fn footing_away(config: &Config) -> Footing {
        if config.serve_alone { Footing::OnItsOwn } else { Footing::CutOff }
    }

    /// Asks until `stop`. `recall` is notified when another replica wants something back.
    pub async fn run(mut self, recall: Arc<Notify>, stop: CancellationToken) {
        let mut beat = Instant::now();
        loop {
            let heartbeat = tokio::select! {
                () = stop.cancelled() => return,
                () = self.enforcer.asking().wait() => false,
                () = recall.notified() => false,
                // With the next round and not at once: who waited for a grant takes its need of it before the rest goes back.
                () = ready(()), if self.rounds.has_recalled() => false,
                () = sleep_until(beat) => true,
            };
            // What comes in the meantime goes with this round.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(self.last + self.config.tick) => {}
            }
            self.round(heartbeat).await;
            if heartbeat {
                self.rounds.recall_idle_sometimes(Timestamp::now(), self.began.elapsed());
                self.release_former().await;
                beat = Instant::now() + self.config.heartbeat;
            }
        }
    }

    async fn round(&mut self, heartbeat: bool) {
        self.fence();
        let pending = self.rounds.gather(heartbeat, Timestamp::now(), self.began.elapsed());
        let sent = Instant::now();
        self.last = sent;
        let mut answer = self.ask(&pending).await;
        if matches!(answer, Err(LeaseError::Unavailable(_))) && self.enforcer.footing() == Footing::Leased {
            // A connection that was lost says nothing of the database.
            answer = self.ask(&pending).await;
        }
        let metrics = &self.enforcer.asking().metrics;
        metrics.leases_asked.inc_by(pending.asks.len() as u64);
        metrics.lease_seconds.observe(sent.elapsed().as_secs_f64());
        match answer {
            Ok(grants) => {
                bump(&metrics.lease_rounds, "result", "ok");
                self.heard = sent;
                self.rounds.answered(pending, grants);
                self.stand(Footing::Leased);
            }
            Err(LeaseError::Unavailable(why)) => {
                bump(&metrics.lease_rounds, "result", "failed");
                tracing::debug!(why, "no leases");
                self.rounds.failed(&pending);
                self.stand(Self::footing_away(&self.config));
                self.fence();
            }
            Err(LeaseError::Void(why)) => {
                bump(&metrics.lease_rounds, "result", "void");
                tracing::warn!(why, "this replica was taken for dead; it begins a new run");
                self.rounds.failed(&pending);
                self.begin_run();
            }
        }
    }

    async fn ask(&mut self, pending: &Pending) -> Result<super::lease::Grants, LeaseError> {
        if self.void {
            self.begin_run();
        }
        if self.void {
            return Err(LeaseError::Unavailable("this replica has no run to ask for".into()));
        }
        let round = self.rounds.next();
        let mut answer = self.source.lease(round, &pending.asks);
        match timeout(self.config.slow.min(self.heard_for()), &mut answer).await {
            Ok(answer) => return answer,
            Err(_) => self.stand(Self::footing_away(&self.config)),
        }
        // Not beyond the time at which the leases are lost: they are given up then.
        match timeout(self.config.patience.min(self.heard_for()), answer).await {
            Ok(answer) => answer,
            Err(_) => Err(LeaseError::Unavailable(format!("no answer in {:?}", self.config.patience))),
        }
    }

    fn stand(&self, footing: Footing) {
        let before = self.enforcer.footing();
        if before != footing {
            self.enforcer.stand(footing);
            match footing {
                Footing::OnItsOwn => tracing::warn!(
                    "no leases can be had: quotas are held as far as this replica knows what is used of them"
                ),
                Footing::CutOff => {
                    tracing::warn!("no leases can be had: what is leased is served, and no more");
                }
                Footing::Leased | Footing::Alone => tracing::info!("leases can be had"),
            }
        }
    }

    /// Stops spending what others may have been told is theirs.
    fn fence(&mut self) {
        if self.heard_for().is_zero() {
            self.begin_run();
            self.heard = Instant::now();
        }
    }

    /// How long what is held is still this run's, though nothing more is heard.
    fn heard_for(&self) -> Duration {
        let heard = self.heard.elapsed();
        self.config.reclaim_after.map_or(Duration::MAX, |after| after.saturating_sub(heard))
    }

    fn begin_run(&mut self) {
        match (self.runs)() {
            Ok(run) => {
                (self.run, self.void) = (run, false);
                self.former = Some((self.mark)());
                self.rounds.begin_run(run);
            }
            Err(why) => {
                if !std::mem::replace(&mut self.void, true) {
                    tracing::error!(
                        why,
                        "the number of this replica's run can't be kept: its leases are void, and it asks for none until it can"
                    );
                }
                // Others may have been given what this run held.
                self.rounds.begin_run(self.run);
            }
        }
    }

    /// What former runs hold unused is free once all that they used is written.
    async fn release_former(&mut self) {
        if self.enforcer.footing() != Footing::Leased
            || !self.former.as_ref().is_some_and(|written| written())
        {
            return;
        }
        match timeout(self.config.patience, self.source.release_before(self.run)).await {
            Ok(Ok(())) => {
                self.former = None;
                // What was heard of others' use until now left out what was not written yet.
                self.rounds.refresh();
            }
            Ok(Err(error)) => tracing::debug!(%error, "leases of former runs are kept for now"),
            Err(_) => {}
        }
    }
}
