//! The protocol of leases over random schedules: real ledgers and rounds, and the database's arithmetic in memory.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::quota::rounds::Rounds;

mod database;

use database::Database;

/// A replica: what is in its memory, and its journal on disk.
struct Replica {
    name: String,
    enforcer: Arc<Enforcer>,
    rounds: Rounds,
    run: u64,
    in_flight: Vec<(Reservation, u64)>,
    /// Event, run and tokens, not shipped yet.
    journal: Vec<(u64, u64, u64)>,
    /// Whether events of former runs may still be in the journal.
    former: bool,
}

impl Replica {
    fn new(number: usize, run: u64) -> Self {
        let enforcer = Enforcer::new(Metrics::new());
        let rounds = Rounds::new(enforcer.clone(), run, None);
        enforcer.stand(Footing::Leased);
        let name = format!("replica-{number}");
        Self { name, enforcer, rounds, run, in_flight: Vec::new(), journal: Vec::new(), former: false }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Request(u64),
    /// Which exchange ends, having used so much of what it reserved, in per cent.
    End(prop::sample::Index, u64),
    /// A round, and what becomes of it.
    Round(Fate),
    /// So many events are shipped; whether the answer to COMMIT is lost.
    Ship(usize, bool),
    /// Killed, and started again: its journal stays, exchanges in flight leave nothing.
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    NeverSent,
    AnswerLost,
}

const LIMIT: u64 = 2000;

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let fate =
        prop_oneof![8 => Just(Fate::Answered), 1 => Just(Fate::NeverSent), 1 => Just(Fate::AnswerLost)];
    let step = prop_oneof![
        10 => (5..41_u64).prop_map(Step::Request),
        6 => (any::<prop::sample::Index>(), 0..101_u64).prop_map(|(which, part)| Step::End(which, part)),
        8 => fate.prop_map(Step::Round),
        4 => (1..9_usize, prop::bool::weighted(0.1)).prop_map(|(most, lost)| Step::Ship(most, lost)),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec((0..4_usize, step), 1..400)
}

/// 256, or what `TOLLGATE_SCHEDULES` says.
fn schedules() -> u32 {
    std::env::var("TOLLGATE_SCHEDULES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

struct World {
    database: Database,
    replicas: Vec<Replica>,
    plan: Entitlement,
    now: Timestamp,
    events: u64,
    at: Duration,
}

impl World {
    fn new() -> Self {
        let replicas = (0..4).map(|number| Replica::new(number, 1)).collect();
        let plan = limited(&[(TOKENS, Some(LIMIT))]);
        Self { database: Database::default(), replicas, plan, now: noon(), events: 0, at: Duration::ZERO }
    }

    fn step(&mut self, which: usize, step: &Step) {
        self.at += Duration::from_millis(20);
        self.database.clock = self.at;
        let replica = &mut self.replicas[which];
        match step {
            Step::Request(tokens) => {
                let need = Amounts { tokens: *tokens, ..Amounts::default() };
                if let Ok(held) =
                    replica.enforcer.reserve(&tenant("tn_one"), &self.plan, need, true, self.now)
                {
                    replica.in_flight.push((held, *tokens));
                }
            }
            Step::End(index, part) if !replica.in_flight.is_empty() => {
                let (held, tokens) = replica.in_flight.swap_remove(index.index(replica.in_flight.len()));
                let used = tokens * part / 100;
                held.settle(Amounts { tokens: used, ..Amounts::default() });
                self.events += 1;
                replica.journal.push((self.events, replica.run, used));
            }
            Step::Round(fate) => self.round(which, *fate),
            Step::Ship(most, lost) => {
                let batch: Vec<_> = replica.journal.iter().take(*most).copied().collect();
                let day = TOKENS.window.span(&self.plan.zone, self.now);
                for (event, run, used) in &batch {
                    if self.database.lands(*event) {
                        let quota = (tenant("tn_one"), TOKENS, day.start);
                        self.database.charge(&replica.name, *run, quota, *used as i64, true);
                    }
                }
                if !lost {
                    replica.journal.drain(..batch.len());
                }
                if replica.former && replica.journal.iter().all(|(_, run, _)| *run == replica.run) {
                    self.database.release_before(&replica.name, replica.run);
                    replica.former = false;
                }
            }
            Step::Kill => {
                let journal = std::mem::take(&mut replica.journal);
                *replica = Replica { journal, former: true, ..Replica::new(which, replica.run + 1) };
            }
            Step::End(..) => {}
        }
    }

    fn round(&mut self, which: usize, fate: Fate) {
        let replica = &mut self.replicas[which];
        let pending = replica.rounds.gather(true, self.now, self.at);
        let round = replica.rounds.next();
        let answer = match fate {
            Fate::NeverSent => None,
            Fate::Answered | Fate::AnswerLost => {
                self.database.lease(&replica.name, round, &pending.asks).ok()
            }
        };
        match answer.filter(|_| fate == Fate::Answered) {
            Some(grants) => replica.rounds.answered(pending, grants),
            None => replica.rounds.failed(&pending),
        }
    }

    fn quota(&self) -> database::Quota {
        (tenant("tn_one"), TOKENS, TOKENS.window.span(&self.plan.zone, self.now).start)
    }

    /// Used (written or journaled) and reserved, over all replicas.
    fn use_and_reserved(&self) -> u64 {
        let settled = self.database.settled.get(&self.quota()).copied().unwrap_or(0) as u64;
        let here = self.replicas.iter().map(|replica| {
            let journaled = replica.journal.iter().filter(|(event, ..)| !self.database.has(*event));
            let reserved: u64 = replica.in_flight.iter().map(|(_, tokens)| tokens).sum();
            journaled.map(|(_, _, used)| used).sum::<u64>() + reserved
        });
        settled + here.sum::<u64>()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_schedule_of_replicas_rounds_and_crashes_passes_the_limit(steps in steps()) {
        let mut world = World::new();
        for (which, step) in &steps {
            world.step(*which, step);
            prop_assert!(world.use_and_reserved() <= LIMIT, "{step:?}: {}", world.use_and_reserved());
            let quota = world.quota();
            let settled = world.database.settled.get(&quota).copied().unwrap_or(0);
            let promised = settled + world.database.outstanding(&quota);
            prop_assert!(promised <= LIMIT as i64, "{step:?}: {promised} are settled or promised");
        }
        // A first grant whose answer is lost counts as spent until the window ends: never over, short by a small lease.
        if steps.iter().any(|(_, step)| matches!(step, Step::Round(Fate::AnswerLost))) {
            return Ok(());
        }
        // Else, when all is quiet, all of it can be used by whoever asks.
        for _ in 0..3 {
            for which in 0..4 {
                world.replicas[which].in_flight.clear();
                world.step(which, &Step::Ship(usize::MAX, false));
                world.step(which, &Step::Round(Fate::Answered));
            }
        }
        let left = LIMIT - world.use_and_reserved();
        for _ in 0..8 {
            world.step(0, &Step::Request(left.max(1)));
            for which in [0, 1, 2, 3, 0] {
                world.step(which, &Step::Round(Fate::Answered));
            }
        }
        prop_assert!(left == 0 || world.use_and_reserved() == LIMIT, "{left} are left and can't be had");
    }
}
