//! What waits for a grant, for how long, and what comes of it: real ledgers, real rounds, and a database that answers
//! when the test says so. The clock is the test's, so that no test waits for anything.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use jiff::tz::offset;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;

/// A request waits so long at most; less than [`LeaseConfig::slow`], so that it is this bound that passes.
const PATIENCE: Duration = Duration::from_millis(200);
/// More than that: what ends the wait then is that the database is taken to be away.
const LONG: Duration = Duration::from_secs(60);

const LIMIT: u64 = 100;

/// A statement that has arrived, and waits for its answer.
struct Statement {
    asks: Vec<Ask>,
    at: Instant,
    answer: oneshot::Sender<Result<Grants, LeaseError>>,
}

impl Statement {
    fn ask(&self) -> &Ask {
        assert_eq!(self.asks.len(), 1, "{:?}", self.asks);
        &self.asks[0]
    }

    /// So much is granted in all, of the one quota that there is here.
    fn grant(self, granted: i64) {
        self.answer(granted, Vec::new());
    }

    /// The same, and others want back what is not used of it.
    fn grant_and_recall(self, granted: i64) {
        let LeaseKey { tenant, dimension, span } = self.ask().key.clone();
        self.answer(granted, vec![(tenant, dimension, span.start)]);
    }

    /// Nothing, since others hold what is left.
    fn grant_nothing_while_others_hold_it(self) {
        let grant = Grant { granted: 0, before: 0, elsewhere: 0, recalled: true };
        self.answer.send(Ok(Grants { grants: vec![grant; self.asks.len()], wanted: Vec::new() })).unwrap();
    }

    fn answer(self, granted: i64, wanted: Vec<(TenantId, Dimension, Timestamp)>) {
        let grant = Grant { granted, before: 0, elsewhere: 0, recalled: false };
        self.answer.send(Ok(Grants { grants: vec![grant; self.asks.len()], wanted })).unwrap();
    }
}

/// The database's side. Rounds without asks are answered by itself, but while it hangs.
struct Database {
    statements: mpsc::UnboundedSender<Statement>,
    hangs: Mutex<bool>,
}

impl LeaseSource for Database {
    fn settled(&self, _now: Timestamp) -> BoxFuture<'_, Result<Vec<Settled>, LeaseError>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn lease<'a>(&'a self, _round: Round, asks: &'a [Ask]) -> BoxFuture<'a, Result<Grants, LeaseError>> {
        async move {
            if asks.is_empty() && !*self.hangs.lock().unwrap() {
                return Ok(Grants::default());
            }
            let (answer, answered) = oneshot::channel();
            self.statements.send(Statement { asks: asks.to_vec(), at: Instant::now(), answer }).unwrap();
            answered.await.unwrap_or_else(|_| Err(LeaseError::Unavailable("the connection broke".into())))
        }
        .boxed()
    }

    fn release_before(&self, _run: u64) -> BoxFuture<'_, Result<(), LeaseError>> {
        async { Ok(()) }.boxed()
    }
}

/// A replica that has leases, and its database.
struct Replica {
    enforcer: Arc<Enforcer>,
    metrics: Arc<Metrics>,
    database: Arc<Database>,
    statements: mpsc::UnboundedReceiver<Statement>,
    _stop: DropGuard,
}

impl Replica {
    /// `serve_alone` as with `on_outage = "open"`; without it as with `"lease"` and `"closed"`.
    fn new(serve_alone: bool) -> Self {
        Self::with(LeaseConfig { serve_alone, ..LeaseConfig::default() }, Arc::new(|| Ok(1)))
    }

    fn with(config: LeaseConfig, runs: Runs) -> Self {
        let (statements, arriving) = mpsc::unbounded_channel();
        let database = Arc::new(Database { statements, hangs: Mutex::new(false) });
        let metrics = Metrics::new();
        let enforcer = Enforcer::new(metrics.clone());
        let mark: Mark = Arc::new(|| Box::new(|| true));
        let leasing = Leasing::new(enforcer.clone(), database.clone(), config, runs, mark).unwrap();
        enforcer.stand(Footing::Leased);
        let stop = CancellationToken::new();
        tokio::spawn(leasing.run(Arc::new(Notify::new()), stop.clone()));
        Self { enforcer, metrics, database, statements: arriving, _stop: stop.drop_guard() }
    }

    /// One message of a tenant, by a request of its own.
    fn request(&self, plan: &Entitlement, patience: Duration) -> JoinHandle<Result<Reservation, Denial>> {
        let (enforcer, plan) = (self.enforcer.clone(), plan.clone());
        tokio::spawn(async move { admit(&enforcer, &plan, patience).await })
    }

    /// One that must not wait.
    fn at_once(&self, plan: &Entitlement) -> Result<Reservation, Denial> {
        admit(&self.enforcer, plan, LONG).now_or_never().expect("it does not wait")
    }

    /// The next statement whose answer is waited for. The clock goes on to it.
    async fn statement(&mut self) -> Statement {
        loop {
            let statement = self.statements.recv().await.expect("the leasing task runs");
            if !statement.answer.is_closed() {
                return statement;
            }
        }
    }

    /// Lets the clock go on until it stands so to the others.
    async fn stands(&self, footing: Footing) {
        while self.enforcer.footing() != footing {
            advance(Duration::from_millis(1)).await;
        }
    }

    /// Leaves the tenant with nothing to be had, as a request that is refused finds out.
    async fn run_dry(&mut self, plan: &Entitlement) -> Instant {
        let request = self.request(plan, LONG);
        let statement = self.statement().await;
        let at = statement.at;
        statement.grant(0);
        assert!(is_over(&request.await.unwrap()));
        at
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_over_spends_nothing_though_no_other_can_be_numbered() {
    let full = Arc::new(AtomicBool::new(false));
    let last = AtomicU64::new(0);
    let disk = full.clone();
    let runs: Runs = Arc::new(move || match disk.load(Ordering::Relaxed) {
        true => Err("the disk is full".to_owned()),
        false => Ok(last.fetch_add(1, Ordering::Relaxed) + 1),
    });
    let reclaim_after = Some(Duration::from_secs(2));
    let config = LeaseConfig { serve_alone: false, reclaim_after, ..LeaseConfig::default() };
    let (mut replica, plan) = (Replica::with(config, runs), messages(LIMIT));
    let first = replica.request(&plan, LONG);
    replica.statement().await.grant(4);
    let _first = first.await.unwrap().unwrap();
    *replica.database.hangs.lock().unwrap() = true;
    full.store(true, Ordering::Relaxed);
    replica.stands(Footing::CutOff).await;
    let _second = replica.at_once(&plan).unwrap();
    for _ in 0..3000 {
        advance(Duration::from_millis(1)).await;
    }
    assert!(admit(&replica.enforcer, &plan, PATIENCE).await.is_err(), "others may have been given the rest");
    *replica.database.hangs.lock().unwrap() = false;
    full.store(false, Ordering::Relaxed);
    replica.stands(Footing::Leased).await;
    let third = replica.request(&plan, LONG);
    replica.statement().await.grant(4);
    third.await.unwrap().unwrap();
}

async fn admit(
    enforcer: &Arc<Enforcer>,
    plan: &Entitlement,
    patience: Duration,
) -> Result<Reservation, Denial> {
    admit_of(&tenant("tn_one"), enforcer, plan, patience).await
}

async fn admit_of(
    tenant: &TenantId,
    enforcer: &Arc<Enforcer>,
    plan: &Entitlement,
    patience: Duration,
) -> Result<Reservation, Denial> {
    let message = Amounts { chat_messages: 1, ..Amounts::default() };
    enforcer.admit(tenant, plan, message, true, Timestamp::now(), patience).await
}

/// Rounds go by the wall clock, so these tests do; it is noon wherever they run, and no day turns.
fn messages(limit: u64) -> Entitlement {
    let hour = Timestamp::now().as_second().rem_euclid(86_400) / 3600;
    let zone = TimeZone::fixed(offset(i8::try_from(12 - hour).unwrap()));
    Entitlement { zone, ..limited(&[(MESSAGES, Some(limit))]) }
}

fn is_over(outcome: &Result<Reservation, Denial>) -> bool {
    matches!(outcome, Err(Denial::Over(refusal)) if refusal.standing.dimension == MESSAGES)
}

fn is_unavailable(outcome: &Result<Reservation, Denial>) -> bool {
    matches!(outcome, Err(Denial::Unavailable))
}

#[tokio::test(start_paused = true)]
async fn what_the_lease_cant_cover_waits_and_is_admitted_when_the_grant_comes() {
    let (mut replica, plan) = (Replica::new(true), messages(LIMIT));
    let first = replica.request(&plan, LONG);
    let statement = replica.statement().await;
    let Ask { known, at_least, at_most, limit, .. } = *statement.ask();
    assert_eq!((known, at_least, at_most, limit), (None, 1, 4, Some(LIMIT)));
    assert!(!first.is_finished());
    statement.grant(4);
    let first = first.await.unwrap().unwrap();
    assert!(!first.is_unleased());
    // The others find it there.
    let others: Vec<_> = (0..3).map(|_| replica.at_once(&plan).unwrap()).collect();
    assert_eq!(replica.enforcer.reservations(), 4);
    // More was asked for in the background, but the fifth has to wait for it.
    let fifth = replica.request(&plan, LONG);
    let statement = replica.statement().await;
    assert_eq!((statement.ask().known, statement.ask().at_least), (Some(4), 5));
    assert!(!fifth.is_finished());
    statement.grant(8);
    assert!(fifth.await.unwrap().is_ok());
    drop((first, others));
}

#[tokio::test(start_paused = true)]
async fn however_many_wait_for_one_tenant_it_is_asked_for_once() {
    let (mut replica, plan) = (Replica::new(true), messages(LIMIT));
    let waiting: Vec<_> = (0..64).map(|_| replica.request(&plan, LONG)).collect();
    let statement = replica.statement().await;
    assert_eq!((statement.ask().at_least, statement.ask().at_most), (1, 64), "one for all of them");
    let more: Vec<_> = (0..64).map(|_| replica.request(&plan, LONG)).collect();
    tokio::task::yield_now().await;
    assert!(replica.statements.try_recv().is_err(), "one statement at a time");
    assert!(waiting.iter().chain(&more).all(|request| !request.is_finished()));
    // Those that came meanwhile have the first grant as well; what is still short asks once again.
    statement.grant(64);
    let statement = replica.statement().await;
    assert_eq!(statement.ask().known, Some(64));
    statement.grant(LIMIT as i64);
    let outcomes = join_all(waiting.into_iter().chain(more)).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), LIMIT as usize);
    assert_eq!(outcomes.iter().filter(|outcome| is_over(outcome)).count(), 128 - LIMIT as usize);
}

#[tokio::test(start_paused = true)]
async fn a_grant_for_some_of_those_that_wait_admits_so_many_and_refuses_the_rest() {
    let (mut replica, plan) = (Replica::new(true), messages(10));
    let waiting: Vec<_> = (0..64).map(|_| replica.request(&plan, LONG)).collect();
    replica.statement().await.grant(7);
    // Others hold three, and use them: seven is all that there is.
    replica.statement().await.grant(7);
    let outcomes: Vec<_> = join_all(waiting).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 7);
    assert_eq!(outcomes.iter().filter(|outcome| is_over(outcome)).count(), 57);
}

/// First calls of `count` tenants at once, and a database that takes `takes` for each round and grants all.
async fn first_calls(
    serve_alone: bool,
    count: usize,
    takes: Duration,
    patience: Duration,
) -> Vec<Result<Reservation, Denial>> {
    let (mut replica, plan) = (Replica::new(serve_alone), messages(LIMIT));
    calls(
        &mut replica,
        &plan,
        Amounts { chat_messages: 1, ..Amounts::default() },
        count,
        takes,
        patience,
        None,
    )
    .await
}

/// A call of each of `count` tenants at once, at `at` or now.
async fn calls(
    replica: &mut Replica,
    plan: &Entitlement,
    amounts: Amounts,
    count: usize,
    takes: Duration,
    patience: Duration,
    at: Option<Timestamp>,
) -> Vec<Result<Reservation, Denial>> {
    let calls: Vec<_> = (0..count)
        .map(|number| {
            let (enforcer, plan) = (replica.enforcer.clone(), plan.clone());
            let tenant = tenant(&format!("tn_first{number:06}"));
            let at = at.unwrap_or_else(Timestamp::now);
            tokio::spawn(async move { enforcer.admit(&tenant, &plan, amounts, true, at, patience).await })
        })
        .collect();
    let calls = join_all(calls);
    tokio::pin!(calls);
    loop {
        tokio::select! {
            outcomes = &mut calls => return outcomes.into_iter().map(Result::unwrap).collect(),
            statement = replica.statement() => {
                tokio::time::sleep(takes).await;
                statement.grant(4);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_tenants_first_calls_at_once_are_all_served_by_their_leases() {
    let outcomes = first_calls(true, 10_000, Duration::from_millis(10), LONG).await;
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_ok_and(|taken| !taken.is_unleased())));
}

#[tokio::test(start_paused = true)]
async fn the_turn_of_a_minute_refuses_none_of_a_hundred_thousand_tenants() {
    const TENANTS: usize = 100_000;
    let minutely: Dimension = "api_calls_per_minute".parse().unwrap();
    let (mut replica, plan) = (Replica::new(true), limited(&[(minutely, Some(30))]));
    let call = Amounts { api_calls: 1, ..Amounts::default() };
    let now = Timestamp::now();
    let turn = minutely.window.span(&plan.zone, now).end;
    let takes = Duration::from_millis(1);
    for at in [now, turn] {
        let outcomes = calls(&mut replica, &plan, call, TENANTS, takes, LONG, Some(at)).await;
        for outcome in outcomes {
            let reservation = outcome.expect("nobody is refused");
            assert!(!reservation.is_unleased());
            reservation.settle(call);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_want_that_the_database_has_not_answered_refuses_nobody() {
    let takes = Duration::from_millis(300);
    let outcomes = first_calls(true, 10_000, takes, Duration::from_secs(1)).await;
    let leased =
        |outcome: &Result<Reservation, Denial>| outcome.as_ref().is_ok_and(|taken| !taken.is_unleased());
    assert!(outcomes.iter().all(Result::is_ok), "open: what was not answered in time is served all the same");
    let answered = outcomes.iter().position(|outcome| !leased(outcome)).expect("not all in time");
    assert!(answered >= 500, "{answered}");
    assert!(!outcomes[answered..].iter().any(leased), "first come, first served");

    let outcomes = first_calls(false, 10_000, takes, Duration::from_secs(1)).await;
    assert!(outcomes.iter().any(Result::is_ok));
    assert!(
        outcomes.iter().all(|outcome| outcome.is_ok() || is_unavailable(outcome)),
        "503, never over quota"
    );
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_it_waits_takes_nothing() {
    let (mut replica, plan) = (Replica::new(true), messages(LIMIT));
    let request = replica.request(&plan, LONG);
    let statement = replica.statement().await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    statement.grant(1);
    let other = replica.request(&plan, LONG).await.unwrap();
    assert!(other.is_ok(), "the grant is the next one's");
    assert_eq!(replica.enforcer.reservations(), 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_bound_passes_an_open_gateway_goes_by_what_it_knows_and_says_so() {
    let (mut replica, plan) = (Replica::new(true), messages(2));
    let began = Instant::now();
    let waiting: Vec<_> = (0..3).map(|_| replica.request(&plan, PATIENCE)).collect();
    let _unanswered = replica.statement().await;
    let outcomes: Vec<_> = join_all(waiting).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(began.elapsed(), PATIENCE);
    let admitted: Vec<_> = outcomes.iter().flatten().collect();
    assert_eq!(admitted.len(), 2, "the limit holds as far as it is known here");
    assert!(admitted.iter().all(|reservation| reservation.is_unleased()));
    assert!(is_over(&outcomes[2]));
    assert_eq!(replica.metrics.lease_waits_expired.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn when_the_bound_passes_a_gateway_that_keeps_to_leases_refuses_as_unavailable() {
    let (mut replica, plan) = (Replica::new(false), messages(LIMIT));
    let began = Instant::now();
    let request = replica.request(&plan, PATIENCE);
    let _unanswered = replica.statement().await;
    assert!(is_unavailable(&request.await.unwrap()));
    assert_eq!(began.elapsed(), PATIENCE);
    assert_eq!((replica.metrics.lease_waits_expired.get(), replica.enforcer.reservations()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_while_the_database_answers_is_over_quota_in_every_mode() {
    for serve_alone in [true, false] {
        let (mut replica, plan) = (Replica::new(serve_alone), messages(LIMIT));
        let began = Instant::now();
        let request = replica.request(&plan, PATIENCE);
        // Others hold all of it, and are slow to hand back what they don't use.
        while !request.is_finished() {
            tokio::select! {
                statement = replica.statement() => statement.grant_nothing_while_others_hold_it(),
                () = tokio::time::sleep(PATIENCE) => {}
            }
        }
        assert!(is_over(&request.await.unwrap()), "it is not for this replica to guess what they hold");
        assert!(began.elapsed() >= PATIENCE);
        assert_eq!((replica.metrics.lease_waits_expired.get(), replica.enforcer.reservations()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_round_that_was_on_its_way_before_is_no_answer() {
    let (mut replica, plan) = (Replica::new(true), messages(LIMIT));
    *replica.database.hangs.lock().unwrap() = true;
    let heartbeat = replica.statement().await;
    assert!(heartbeat.asks.is_empty());
    let request = replica.request(&plan, PATIENCE);
    tokio::task::yield_now().await;
    heartbeat.grant(0);
    let _unanswered = replica.statement().await;
    assert!(request.await.unwrap().unwrap().is_unleased(), "what it asked for was not answered in time");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_slow_holds_nobody_and_holds_again_once_it_is_there() {
    let (mut replica, plan) = (Replica::new(true), messages(LIMIT));
    let first = replica.request(&plan, LONG);
    let statement = replica.statement().await;
    let first = first.await.unwrap().unwrap();
    assert_eq!(statement.at.elapsed(), LeaseConfig::default().slow, "then the database is taken to be away");
    assert!(first.is_unleased());
    assert_eq!(replica.enforcer.footing(), Footing::OnItsOwn);
    let second = replica.at_once(&plan).unwrap();
    assert!(second.is_unleased());
    statement.grant(4);
    replica.stands(Footing::Leased).await;
    assert!(!replica.at_once(&plan).unwrap().is_unleased(), "two of four are free");
}

#[tokio::test(start_paused = true)]
async fn while_an_answer_is_too_slow_what_is_leased_is_served_and_no_more() {
    let (mut replica, plan) = (Replica::new(false), messages(LIMIT));
    let first = replica.request(&plan, LONG);
    replica.statement().await.grant(2);
    let _first = first.await.unwrap().unwrap();
    *replica.database.hangs.lock().unwrap() = true;
    let statement = replica.statement().await;
    replica.stands(Footing::CutOff).await;
    let second = replica.at_once(&plan).unwrap();
    assert!(!second.is_unleased(), "it was granted before");
    assert!(is_unavailable(&replica.at_once(&plan)));
    *replica.database.hangs.lock().unwrap() = false;
    drop(statement);
    assert!(is_unavailable(&replica.at_once(&plan)), "until a round is answered");
    replica.stands(Footing::Leased).await;
    let third = replica.request(&plan, LONG);
    replica.statement().await.grant(4);
    assert!(third.await.unwrap().is_ok());
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_to_be_used_up_is_refused_without_an_ask_until_the_next_heartbeat() {
    let (mut replica, plan) = (Replica::new(true), messages(LIMIT));
    let asked = replica.run_dry(&plan).await;
    for _ in 0..100 {
        assert!(is_over(&replica.at_once(&plan)));
    }
    // Some of it was given back elsewhere, which is heard without anybody waiting for it.
    let statement = replica.statement().await;
    let LeaseConfig { tick, heartbeat, .. } = LeaseConfig::default();
    let later = statement.at.duration_since(asked);
    assert!((heartbeat - tick..=heartbeat + tick).contains(&later), "{later:?}");
    statement.grant(1);
    tokio::task::yield_now().await;
    let held = replica.at_once(&plan).unwrap();
    assert!(!held.is_unleased());
}

#[tokio::test(start_paused = true)]
async fn a_raised_limit_is_asked_for_at_once_though_the_lower_one_was_used_up() {
    let (mut replica, plan, raised) = (Replica::new(true), messages(LIMIT), messages(2 * LIMIT));
    let asked = replica.run_dry(&plan).await;
    let request = replica.request(&raised, LONG);
    let statement = replica.statement().await;
    assert!(statement.at.duration_since(asked) <= LeaseConfig::default().tick);
    assert_eq!(statement.ask().limit, Some(2 * LIMIT));
    statement.grant(1);
    assert!(request.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_another_replica_wants_back_is_handed_back_and_asked_for_again_by_who_needs_it() {
    let (mut replica, plan) = (Replica::new(true), messages(LIMIT));
    let first = replica.request(&plan, LONG);
    replica.statement().await.grant_and_recall(4);
    let first = first.await.unwrap().unwrap();
    let statement = replica.statement().await;
    let Ask { known, at_most, limit, .. } = *statement.ask();
    assert_eq!((known, at_most, limit), (Some(4), 1, None), "all but what the exchange in flight holds");
    // On its way, and spent no more.
    let second = replica.request(&plan, LONG);
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    statement.grant(1);
    let statement = replica.statement().await;
    assert_eq!((statement.ask().known, statement.ask().at_least), (Some(1), 2));
    statement.grant(2);
    assert!(second.await.unwrap().is_ok());
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn limits_that_changed_send_back_what_was_leased_under_the_old_ones() {
    let (mut replica, plan, cut) = (Replica::new(true), messages(LIMIT), messages(2));
    let first = replica.request(&plan, LONG);
    replica.statement().await.grant(4);
    let first = first.await.unwrap().unwrap();
    replica.enforcer.limits_changed(&tenant("tn_one"));
    let statement = replica.statement().await;
    assert_eq!((statement.ask().at_most, statement.ask().limit), (1, None));
    statement.grant(1);
    let second = replica.request(&cut, LONG);
    let statement = replica.statement().await;
    assert_eq!((statement.ask().at_least, statement.ask().limit), (2, Some(2)));
    statement.grant(2);
    let second = second.await.unwrap().unwrap();
    assert!(is_over(&replica.at_once(&cut)));
    drop((first, second));
}
