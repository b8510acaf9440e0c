//! The protocol of leases over random schedules: real ledgers and rounds, and the database's arithmetic in memory
//! (`tests/it/sql/leases.rs` holds that against the real one).

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::quota::rounds::Rounds;

mod database;

use database::{Database, Quota};

/// A replica: what is in its memory, its clock, and its journal on disk.
struct Replica {
    name: String,
    enforcer: Arc<Enforcer>,
    rounds: Rounds,
    run: u64,
    /// By how many seconds its clock is off.
    off_s: i64,
    in_flight: Vec<Reservation>,
    /// Not shipped yet.
    journal: Vec<Event>,
    /// Whether events of former runs may still be in the journal.
    former: bool,
    /// Statements that are still on their way.
    delayed: Vec<(Round, Vec<Ask>)>,
}

#[derive(Clone)]
struct Event {
    id: u64,
    run: u64,
    charges: Vec<Charge>,
}

impl Replica {
    fn new(number: usize, run: u64) -> Self {
        let enforcer = Enforcer::new(Metrics::new());
        let rounds = Rounds::new(enforcer.clone(), run, None);
        enforcer.stand(Footing::Leased);
        Self {
            name: format!("replica-{number}"),
            enforcer,
            rounds,
            run,
            off_s: 0,
            in_flight: Vec::new(),
            journal: Vec::new(),
            former: false,
            delayed: Vec::new(),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Request(u64),
    /// Which exchange ends, having used so much of what it reserved, in per cent.
    End(prop::sample::Index, u64),
    /// A round, and what becomes of it.
    Round(Fate),
    /// A statement that was given up arrives after all.
    Arrive(prop::sample::Index),
    /// So many events are shipped; whether the answer to COMMIT is lost.
    Ship(usize, bool),
    /// The limits are said to have changed: leases go back and are asked for anew.
    Recall,
    /// Killed, and started again: its journal stays, exchanges in flight leave nothing.
    Kill,
    /// Its clock jumps.
    Jump(i64),
    /// Time passes for everybody.
    Pass(i64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Answered,
    NeverSent,
    AnswerLost,
    Delayed,
}

// So small that a schedule runs into them: a fault shows only where the last of a quota is given out.
const TOKENS_A_DAY: u64 = 500;
const CALLS_A_MINUTE: u64 = 10;

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let fate = prop_oneof![
        9 => Just(Fate::Answered),
        1 => Just(Fate::NeverSent),
        1 => Just(Fate::AnswerLost),
        3 => Just(Fate::Delayed),
    ];
    let step = prop_oneof![
        20 => (1..21_u64).prop_map(Step::Request),
        12 => (any::<prop::sample::Index>(), 0..101_u64).prop_map(|(which, part)| Step::End(which, part)),
        20 => fate.prop_map(Step::Round),
        6 => any::<prop::sample::Index>().prop_map(Step::Arrive),
        5 => (1..9_usize, prop::bool::weighted(0.1)).prop_map(|(most, lost)| Step::Ship(most, lost)),
        3 => Just(Step::Recall),
        2 => Just(Step::Kill),
        2 => (-200..200_i64).prop_map(Step::Jump),
        2 => (0..30_i64).prop_map(Step::Pass),
    ];
    prop::collection::vec((0..3_usize, step), 1..500)
}

/// 1,000, or what `TOLLGATE_SCHEDULES` says.
fn schedules() -> u32 {
    std::env::var("TOLLGATE_SCHEDULES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1000)
}

struct World {
    database: Database,
    replicas: Vec<Replica>,
    plan: Entitlement,
    events: u64,
    now_s: i64,
    at: Duration,
}

fn limit(dimension: Dimension) -> i64 {
    (if dimension == TOKENS { TOKENS_A_DAY } else { CALLS_A_MINUTE }) as i64
}

impl World {
    fn new() -> Self {
        let plan = limited(&[(TOKENS, Some(TOKENS_A_DAY)), (CALLS, Some(CALLS_A_MINUTE))]);
        let replicas = (0..3).map(|number| Replica::new(number, 1)).collect();
        let now_s = noon().as_second();
        Self { database: Database::default(), replicas, plan, events: 0, now_s, at: Duration::ZERO }
    }

    fn step(&mut self, which: usize, step: &Step) {
        self.at += Duration::from_millis(20);
        self.database.clock = self.at;
        let now = Timestamp::from_second(self.now_s + self.replicas[which].off_s).unwrap();
        let replica = &mut self.replicas[which];
        match step {
            Step::Request(tokens) => {
                let need = Amounts { tokens: *tokens, api_calls: 1, ..Amounts::default() };
                let held = replica.enforcer.reserve(&tenant("tn_one"), &self.plan, need, true, now);
                replica.in_flight.extend(held.ok());
            }
            Step::End(index, part) if !replica.in_flight.is_empty() => {
                let held = replica.in_flight.swap_remove(index.index(replica.in_flight.len()));
                let tokens = held.amounts().tokens * part / 100;
                let charges = held.settle(Amounts { tokens, api_calls: 1, ..Amounts::default() });
                self.events += 1;
                replica.journal.push(Event { id: self.events, run: replica.run, charges });
            }
            Step::Round(fate) => self.round(which, *fate, now),
            Step::Arrive(index) if !replica.delayed.is_empty() => {
                let (round, asks) = replica.delayed.swap_remove(index.index(replica.delayed.len()));
                let _ = self.database.lease(&replica.name, round, &asks);
            }
            Step::Ship(most, lost) => self.ship(which, *most, *lost),
            Step::Recall => replica.enforcer.limits_changed(&tenant("tn_one")),
            Step::Kill => {
                let journal = std::mem::take(&mut replica.journal);
                let delayed = std::mem::take(&mut replica.delayed);
                let off_s = replica.off_s;
                let next = Replica::new(which, replica.run + 1);
                *replica = Replica { journal, delayed, off_s, former: true, ..next };
            }
            Step::Jump(seconds) => replica.off_s += seconds,
            Step::Pass(seconds) => self.now_s += seconds,
            Step::End(..) | Step::Arrive(_) => {}
        }
    }

    fn round(&mut self, which: usize, fate: Fate, now: Timestamp) {
        let replica = &mut self.replicas[which];
        let pending = replica.rounds.gather(true, now, self.at);
        let round = replica.rounds.next();
        let carried_out = matches!(fate, Fate::Answered | Fate::AnswerLost);
        let answer = carried_out.then(|| self.database.lease(&replica.name, round, &pending.asks));
        if fate == Fate::Delayed {
            replica.delayed.push((round, pending.asks.clone()));
        }
        match answer {
            Some(Ok(grants)) if fate == Fate::Answered => replica.rounds.answered(pending, grants),
            _ => replica.rounds.failed(&pending),
        }
    }

    fn ship(&mut self, which: usize, most: usize, lost: bool) {
        let replica = &mut self.replicas[which];
        let batch: Vec<Event> = replica.journal.iter().take(most).cloned().collect();
        for event in &batch {
            if !self.database.lands(event.id) {
                continue;
            }
            for charge in &event.charges {
                let quota = (tenant("tn_one"), charge.dimension, charge.window_start);
                let limited = charge.limit.is_some();
                self.database.charge(&replica.name, event.run, quota, charge.amount, limited);
            }
        }
        if !lost {
            replica.journal.drain(..batch.len());
        }
        if replica.former && replica.journal.iter().all(|event| event.run == replica.run) {
            self.database.release_before(&replica.name, replica.run);
            replica.former = false;
        }
    }

    /// What is written, journaled or reserved of each quota, over all replicas.
    fn taken(&self) -> BTreeMap<Quota, i64> {
        let mut taken = self.database.settled.clone();
        let mut add = |dimension, start, amount| {
            if self.plan.limits.limit(dimension).is_some() {
                *taken.entry((tenant("tn_one"), dimension, start)).or_default() += amount;
            }
        };
        for replica in &self.replicas {
            for event in replica.journal.iter().filter(|event| !self.database.has(event.id)) {
                event.charges.iter().for_each(|c| add(c.dimension, c.window_start, c.amount));
            }
            for held in &replica.in_flight {
                let reserved = |dimension: Dimension| held.amounts().of(dimension.unit) as i64;
                held.standings().iter().for_each(|s| add(s.dimension, s.span.start, reserved(s.dimension)));
            }
        }
        taken.retain(|(_, dimension, _), _| self.plan.limits.limit(*dimension).is_some());
        taken
    }

    fn check(&self) -> Result<(), String> {
        for (quota, taken) in self.taken() {
            let settled = self.database.settled.get(&quota).copied().unwrap_or(0);
            let promised = settled + self.database.outstanding(&quota);
            let limit = limit(quota.1);
            if taken > limit || promised > limit {
                return Err(format!("{quota:?}: {taken} taken, {promised} settled or promised, of {limit}"));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: schedules(), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn no_schedule_of_replicas_rounds_crashes_and_clocks_passes_a_limit(steps in steps()) {
        let mut world = World::new();
        for (which, step) in &steps {
            world.step(*which, step);
            if let Err(over) = world.check() {
                prop_assert!(false, "{step:?} of {which}: {over}");
            }
        }
    }

    #[test]
    fn when_all_is_quiet_all_that_is_left_can_be_had(steps in steps()) {
        let mut world = World::new();
        for (which, step) in &steps {
            // What is granted while nobody hears it, or in a window that a clock left, counts as spent until the window
            // ends: never over, short by a small lease.
            if !matches!(step, Step::Round(Fate::AnswerLost) | Step::Arrive(_) | Step::Jump(_)) {
                world.step(*which, step);
            }
        }
        world.replicas.iter_mut().for_each(|replica| replica.in_flight.clear());
        // Another minute: its calls are nobody's yet.
        world.step(0, &Step::Pass(60));
        let tokens = |world: &World| -> u64 {
            world.taken().iter().filter(|((_, d, _), _)| *d == TOKENS).map(|(_, n)| *n as u64).sum()
        };
        let left = TOKENS_A_DAY - tokens(&world);
        for _ in 0..8 {
            world.step(0, &Step::Request(left.max(1)));
            for which in [0, 1, 2, 0] {
                world.step(which, &Step::Ship(usize::MAX, false));
                world.step(which, &Step::Round(Fate::Answered));
            }
        }
        prop_assert!(left == 0 || tokens(&world) == TOKENS_A_DAY, "{left} are left and can't be had");
    }
}
