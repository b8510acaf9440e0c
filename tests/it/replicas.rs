//! Four Tollgates as processes before one service, in one Postgres; 64 clients drive tenants to the ends of their quotas,
//! and one replica after another is killed and started again on what it had on disk.
//!
//! Only outcomes are asserted. A refusal is one of them: while others hold the rest of a quota, or a replica is down, a
//! client is refused and asks elsewhere. `TOLLGATE_KILLS` (4) makes it longer: so many replicas are killed at least, and
//! the quotas grow with it.
#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

mod books;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use rustix::process::Signal as Kill;
use tempfile::TempDir;
use tokio::sync::watch;

use self::books::Books;
use crate::harness::{Client, Ended, Response, Signal, Step, Upstream, answer, batch, batch_answer, within};
use crate::outages::program::Program;
use crate::postgres::{Database, shared};

const REPLICAS: usize = 4;
const CLIENTS: usize = 64;

/// Reserved for each call.
const RESERVED: u64 = 40;

/// A replica is killed after so many answers.
const ANSWERS: usize = 150;

/// Longer than four replicas need to use up what is left: then it can't be had.
const MOST_KILLS: usize = 40;

/// One of the quotas that are driven to their ends. Its tenant has no other, but for `tn_both`.
#[derive(Clone, Copy, Debug)]
struct Quota {
    tenant: &'static str,
    dimension: &'static str,
    limit: u64,
    /// What a call takes of it at admission, and in the end.
    needs: u64,
    uses: u64,
}

impl Quota {
    /// The most that may be settled: what exchanges in flight use beyond what they reserved is debt.
    fn most(&self) -> u64 {
        self.limit + CLIENTS as u64 * self.uses.saturating_sub(self.needs)
    }
}

/// The quotas, for at least so many kills.
fn quotas(kills: usize) -> Vec<Quota> {
    let calls = |calls: usize| (calls * kills.div_ceil(4)) as u64;
    let quota = |tenant, dimension, limit, needs, uses| Quota { tenant, dimension, limit, needs, uses };
    let (messages, tokens) = ("chat_messages_per_day", "tokens_per_day");
    vec![
        quota("tn_one", messages, 1, 1, 1),
        quota("tn_few", messages, 10, 1, 1),
        quota("tn_some", messages, calls(40), 1, 1),
        quota("tn_many", messages, calls(150), 1, 1),
        quota("tn_calls", "api_calls_per_day", calls(150), 1, 1),
        quota("tn_full", tokens, calls(150) * RESERVED, RESERVED, RESERVED),
        quota("tn_thrifty", tokens, calls(100) * RESERVED, RESERVED, RESERVED * 5 / 8),
        quota("tn_debt", tokens, calls(150) * RESERVED, RESERVED, RESERVED * 3 / 2),
        quota("tn_both", tokens, calls(120) * RESERVED, RESERVED, RESERVED),
        quota("tn_both", messages, calls(120), 1, 1),
    ]
}

/// Limited by the minute, and so never at an end: what it may not pass is looked at, minute by minute.
const BY_THE_MINUTE: (&str, u64) = ("tn_minute", 40);

/// A zone in which it is noon, so that no day turns while the test runs.
fn zone_at_noon() -> String {
    let hour = Timestamp::now().as_second().rem_euclid(86_400) / 3600;
    // Names of this kind count westwards.
    match hour - 12 {
        0 => "UTC".to_owned(),
        west => format!("Etc/GMT{west:+}"),
    }
}

/// With its database slow, a replica serves what it was granted and no more: the promise without an exception.
fn configure(directory: &Path, upstream: &Upstream, database: &Database<'_>, quotas: &[Quota]) {
    let mut tables = BTreeMap::<_, String>::new();
    for quota in quotas {
        tables.entry(quota.tenant).or_default().push_str(&format!("{} = {}\n", quota.dimension, quota.limit));
    }
    tables.insert(BY_THE_MINUTE.0, format!("api_calls_per_minute = {}\n", BY_THE_MINUTE.1));
    let overrides: String =
        tables.iter().map(|(tenant, limits)| format!("[overrides.{tenant}]\n{limits}")).collect();
    let config = format!(
        r#"
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
workers = 2
[upstream]
url = "{}"
[database]
url = "{}"
pool_size = 4
on_outage = "lease"
[data]
dir = "{}"
[tenant]
sources = [{{ header = "x-tenant-id" }}]
trust_header_from = ["127.0.0.0/8"]
plan_query = ""
default_plan = "enterprise"
[plans.enterprise]
time_zone = "{}"
{overrides}
[[routes]]
path = "/api/widget/chat"
methods = ["POST"]
event = "chat_message"
reserve_tokens = {RESERVED}
"#,
        upstream.url(),
        database.url(),
        directory.join("data").display(),
        zone_at_noon(),
    );
    std::fs::write(directory.join("tollgate.toml"), config).unwrap();
}

/// A service that reports what each tenant's calls use, after a moment in which a kill can hit the exchange.
async fn service(quotas: &[Quota]) -> Upstream {
    let tokens = quotas.iter().filter(|quota| quota.dimension == "tokens_per_day");
    let tokens: BTreeMap<_, _> = tokens.map(|quota| (quota.tenant, quota.uses)).collect();
    Upstream::answering(move |request| {
        let tenant = request.header("x-tenant-id").unwrap_or_default();
        let uses = tokens.get(tenant.as_str()).copied().unwrap_or(RESERVED);
        let mut steps = vec![Step::Delay(Duration::from_millis(10))];
        steps.extend(answer(200).json(&batch_answer(uses)));
        steps
    })
    .await
}

/// What the clients have seen, by the id of the request.
#[derive(Debug, Default)]
struct Seen {
    whole: BTreeSet<String>,
    refused: BTreeSet<String>,
    /// Replicas that can't say for now whether a quota is used up.
    unavailable: usize,
    /// Gone, with the replica that was asked.
    cut: BTreeSet<String>,
}

impl Seen {
    fn note(&mut self, id: String, response: Option<&Response>) {
        match response.filter(|response| response.ended == Ended::Clean) {
            None => self.cut.insert(id),
            Some(response) => match response.status {
                200 => self.whole.insert(id),
                429 => self.refused.insert(id),
                503 => {
                    self.unavailable += 1;
                    true
                }
                _ => panic!("{id}: {} {}", response.head, response.text()),
            },
        };
    }
}

/// What the clients share.
struct Storm {
    /// Where the replicas that run listen.
    addresses: Mutex<[Option<SocketAddr>; REPLICAS]>,
    tenants: Vec<&'static str>,
    seen: Mutex<Seen>,
    answers: watch::Sender<usize>,
    over: Signal,
}

/// One client's connections, kept while they last.
#[derive(Default)]
struct Connections([Option<(SocketAddr, Client)>; REPLICAS]);

impl Connections {
    /// The status that a replica answers with; `None` while it is down, and when it goes down meanwhile.
    async fn ask(&mut self, storm: &Storm, replica: usize, tenant: &str, id: String) -> Option<u16> {
        let address = storm.addresses.lock().unwrap()[replica]?;
        let kept = self.0[replica].take().filter(|(to, _)| *to == address);
        let mut client = match kept {
            Some((_, client)) => client,
            None => Client::try_connect(address).await.ok()?,
        };
        client.send(batch(tenant, 1).header("x-request-id", &id)).await;
        let response = client.try_read_response().await;
        let response = response.filter(|response| response.ended == Ended::Clean);
        storm.seen.lock().unwrap().note(id, response.as_ref());
        storm.answers.send_modify(|answers| *answers += 1);
        self.0[replica] = response.is_some().then_some((address, client));
        response.map(|response| response.status)
    }
}

impl Storm {
    /// Asks for one tenant after the other, of one replica after the other, until it is over.
    async fn client(&self, number: usize) {
        let mut connections = Connections::default();
        for n in 0.. {
            if self.over.fired() {
                return;
            }
            let tenant = self.tenants[(number + n) % self.tenants.len()];
            let id = format!("{tenant}.{number}.{n}");
            if connections.ask(self, (number + n / 3) % REPLICAS, tenant, id).await.is_none() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Asks until `calls` more were let through, as a client would that is refused: somewhere else.
    async fn rest(&self, tenant: &str, calls: u64) {
        let mut connections = Connections::default();
        let mut left = calls;
        for n in 0.. {
            if left == 0 {
                return;
            }
            let answered = connections.ask(self, n % REPLICAS, tenant, format!("{tenant}.rest.{n}")).await;
            left -= u64::from(answered == Some(200));
        }
    }

    /// One more call of each tenant on each replica: the answers of those that can say whether a quota is used up.
    async fn one_more(&self) -> BTreeSet<u16> {
        let mut connections = Connections::default();
        let mut statuses = BTreeSet::new();
        let tenants = self.tenants.iter().filter(|tenant| **tenant != BY_THE_MINUTE.0);
        for (tenant, replica) in
            tenants.flat_map(|tenant| (0..REPLICAS).map(move |replica| (tenant, replica)))
        {
            let mut n = 0..;
            let status = within("a replica that knows", async {
                loop {
                    let id = format!("{tenant}.more.{replica}.{}", n.next().unwrap());
                    match connections.ask(self, replica, tenant, id).await {
                        Some(503) => {}
                        status => return status,
                    }
                }
            });
            statuses.extend(status.await);
        }
        statuses
    }
}

/// Kills replicas, and starts them again, until all quotas are nearly used up; returns how often.
async fn kill(storm: &Storm, fleet: &mut [(TempDir, Program)], books: &Books<'_>, least: usize) -> usize {
    let mut answers = storm.answers.subscribe();
    for kills in 0..MOST_KILLS.max(2 * least) {
        let enough = *answers.borrow() + ANSWERS;
        within("more answers", answers.wait_for(|answers| *answers >= enough)).await.unwrap();
        let nearly = |quota: &Quota, settled| settled >= quota.limit * 95 / 100;
        if kills >= least && books.settled().await.iter().all(|(quota, settled)| nearly(quota, *settled)) {
            storm.over.fire();
            return kills;
        }
        let victim = kills % REPLICAS;
        let (directory, program) = &mut fleet[victim];
        storm.addresses.lock().unwrap()[victim] = None;
        program.signal(Kill::KILL);
        assert_eq!(program.ended().await.code(), None, "it was killed");
        books.hold().await;
        *program = Program::start(directory.path()).await;
        storm.addresses.lock().unwrap()[victim] = Some(program.address);
    }
    panic!("not nearly used up: {:#?}", books.settled().await);
}

/// All that was used is written.
async fn shipped(fleet: &[(TempDir, Program)]) {
    for (_, program) in fleet {
        within("exchanges end and the journal is shipped", async {
            while program.metric("tollgate_exchanges").await > 0.0
                || program.metric("tollgate_journal_records").await > 0.0
            {}
        })
        .await;
    }
}

#[tokio::test]
async fn four_replicas_that_are_killed_again_and_again_use_up_every_quota_and_pass_none() {
    let least = std::env::var("TOLLGATE_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(4);
    let quotas = quotas(least);
    let upstream = service(&quotas).await;
    let database = shared().migrated();
    let started = (0..REPLICAS).map(async |_| {
        let directory = tempfile::tempdir().unwrap();
        configure(directory.path(), &upstream, &database, &quotas);
        let program = Program::start(directory.path()).await;
        (directory, program)
    });
    let mut fleet = join_all(started).await;
    let tenants: BTreeSet<_> = quotas.iter().map(|quota| quota.tenant).chain([BY_THE_MINUTE.0]).collect();
    let storm = Storm {
        addresses: Mutex::new(std::array::from_fn(|replica| Some(fleet[replica].1.address))),
        tenants: tenants.into_iter().collect(),
        seen: Mutex::default(),
        answers: watch::Sender::new(0),
        over: Signal::new(),
    };
    let books = Books::of(&database, quotas).await;
    let began = Instant::now();
    let clients = join_all((0..CLIENTS).map(|number| storm.client(number)));
    let (kills, _) = futures_util::join!(kill(&storm, &mut fleet, &books, least), clients);
    let stormed = began.elapsed();

    // It is quiet: what is left can be had, and then nothing more.
    shipped(&fleet).await;
    let began = Instant::now();
    let calls = books.calls_left().await;
    let rests = join_all(calls.iter().map(|(tenant, calls)| storm.rest(tenant, *calls)));
    within("what is left can be had", rests).await;
    let quiet = began.elapsed();
    assert_eq!(storm.one_more().await, BTreeSet::from([429]), "what is used up is used up everywhere");
    fleet.iter().for_each(|(_, program)| program.signal(Kill::TERM));
    for (_, program) in &mut fleet {
        assert_eq!(program.ended().await.code(), Some(0));
    }

    let seen = storm.seen.into_inner().unwrap();
    println!(
        "{kills} kills in {stormed:.1?}; {} calls let through, {} refused, {} unavailable, {} cut; {} left, had in {quiet:.1?}",
        seen.whole.len(),
        seen.refused.len(),
        seen.unavailable,
        seen.cut.len(),
        calls.values().sum::<u64>(),
    );
    books.hold().await;
    books.balance().await;
    accounted(&upstream, &seen, &books.admitted().await);
}

/// Each call of the service has its row, and each row its call; but for those that a kill cut off.
fn accounted(upstream: &Upstream, seen: &Seen, recorded: &BTreeSet<String>) {
    let called: Vec<String> =
        upstream.requests().iter().map(|request| request.header("x-request-id").unwrap()).collect();
    let calls: BTreeSet<String> = called.iter().cloned().collect();
    assert_eq!(calls.len(), called.len(), "no call is sent twice");
    assert!(seen.whole.is_subset(recorded), "{:?}", seen.whole.difference(recorded));
    // An intent is written before the call goes out.
    let unsent: BTreeSet<String> = recorded.difference(&calls).cloned().collect();
    assert!(unsent.is_subset(&seen.cut), "only a kill leaves a row without a call: {unsent:?}");
    let lost: BTreeSet<String> = calls.difference(recorded).cloned().collect();
    assert!(lost.is_subset(&seen.cut), "only a kill leaves a call without a row: {lost:?}");
}
