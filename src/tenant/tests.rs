//! Claims about the directory, against a source that answers when and what the test says.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance};

use super::*;
use crate::telemetry::{Label, Metrics};

type Reply = Result<Option<String>, SourceError>;

/// A database in the test's hand: every look-up is handed to the test with a way to answer it.
struct Scripted(mpsc::UnboundedSender<Asked>);

struct Asked {
    key: String,
    reply: oneshot::Sender<Reply>,
}

impl TenantSource for Scripted {
    fn look_up<'a>(&'a self, _query: &'a str, key: &'a str) -> BoxFuture<'a, Reply> {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { key: key.to_owned(), reply };
        Box::pin(async move {
            self.0.send(asked).unwrap();
            answer.await.expect("the test let a look-up fall")
        })
    }
}

impl Asked {
    fn answer(self, value: &str) {
        self.reply.send(Ok(Some(value.to_owned()))).unwrap();
    }

    fn absent(self) {
        self.reply.send(Ok(None)).unwrap();
    }

    fn fail(self) {
        self.fail_as(Fault::Away);
    }

    fn fail_as(self, fault: Fault) {
        self.reply.send(Err(SourceError { fault, message: format!("{fault:?}") })).unwrap();
    }
}

struct Bench {
    directory: Arc<Directory>,
    database: mpsc::UnboundedReceiver<Asked>,
    metrics: Arc<Metrics>,
    query: Arc<str>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Config { capacity: 100, ..Config::default() })
    }

    fn with(config: Config) -> Self {
        let (asked, database) = mpsc::unbounded_channel();
        let metrics = Metrics::new();
        let directory =
            Directory::new(config, Some(Arc::new(Scripted(asked))), Handle::current(), metrics.clone());
        Self { directory, database, metrics, query: "SELECT tenant WHERE session = $1".into() }
    }

    /// A request that wants to know `key`, running by itself.
    fn request(&self, key: &str) -> JoinHandle<Answer> {
        let (directory, query, key) = (self.directory.clone(), self.query.clone(), key.to_owned());
        tokio::spawn(async move { directory.look_up(&query, &key).await })
    }

    /// The answer that needs no time and no database.
    async fn at_once(&mut self, key: &str) -> Answer {
        let began = Instant::now();
        let answer = self.directory.look_up(&self.query, key).await;
        assert_eq!(Instant::now(), began, "it waited");
        answer
    }

    async fn asked(&mut self) -> Asked {
        self.database.recv().await.unwrap()
    }

    /// Lets everything that can run do so, and shows that nobody asks the database.
    async fn nobody_asks(&mut self) {
        settle().await;
        assert!(self.database.try_recv().is_err(), "the database was asked");
    }

    async fn learn(&mut self, key: &str, value: &str) {
        let request = self.request(key);
        let asked = self.asked().await;
        assert_eq!(asked.key, key);
        asked.answer(value);
        assert_eq!(request.await.unwrap(), known(value));
        settle().await;
    }

    /// Lets a look-up fail, and the try after it.
    async fn fail(&mut self) {
        self.fail_as(Fault::Away).await;
    }

    async fn fail_as(&mut self, fault: Fault) {
        self.asked().await.fail_as(fault);
        self.asked().await.fail_as(fault);
        settle().await;
    }

    fn count(&self, answer: &'static str) -> u64 {
        self.metrics.look_ups.get_or_create(&Label("answer", answer.into())).get()
    }
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn known(value: &str) -> Answer {
    Answer::Known(value.into())
}

const TTL: Duration = Duration::from_secs(60);
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn what_was_looked_up_once_is_known() {
    let mut bench = Bench::new();
    bench.learn("s1", "tn_one").await;
    assert_eq!(bench.at_once("s1").await, known("tn_one"));
    bench.nobody_asks().await;
    assert_eq!((bench.count("known"), bench.count("hit")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn answers_belong_to_their_query() {
    let mut bench = Bench::new();
    bench.learn("tn_one", "one").await;
    bench.query = "SELECT plan WHERE tenant = $1".into();
    bench.learn("tn_one", "pro").await;
    assert_eq!(bench.at_once("tn_one").await, known("pro"));
    bench.query = "SELECT tenant WHERE session = $1".into();
    assert_eq!(
        bench.at_once("tn_one").await,
        known("one"),
        "the same query in another allocation, as after a reload"
    );
}

#[tokio::test(start_paused = true)]
async fn no_such_row_holds_for_a_short_while() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    bench.asked().await.absent();
    assert_eq!(request.await.unwrap(), Answer::Absent);
    assert_eq!(bench.at_once("s1").await, Answer::Absent);
    advance(NEGATIVE_TTL).await;
    bench.learn("s1", "tn_one").await;
    assert_eq!(bench.count("absent"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_expired_is_looked_up_again() {
    let mut bench = Bench::new();
    bench.learn("tn_one", "trial").await;
    advance(TTL).await;
    bench.learn("tn_one", "pro").await;
    assert_eq!(bench.at_once("tn_one").await, known("pro"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_use_is_renewed_before_it_expires() {
    let mut bench = Bench::new();
    bench.learn("tn_one", "trial").await;
    advance(TTL * 9 / 10).await;
    for _ in 0..3 {
        assert_eq!(bench.at_once("tn_one").await, known("trial"));
    }
    bench.asked().await.answer("pro");
    bench.nobody_asks().await;
    assert_eq!(bench.at_once("tn_one").await, known("pro"));
    advance(TTL / 2).await;
    assert_eq!(bench.at_once("tn_one").await, known("pro"), "a whole ttl from its renewal");
}

#[tokio::test(start_paused = true)]
async fn many_requests_for_one_key_make_one_look_up() {
    let mut bench = Bench::new();
    let requests: Vec<_> = (0..50).map(|_| bench.request("s1")).collect();
    let asked = bench.asked().await;
    bench.nobody_asks().await;
    asked.answer("tn_one");
    for request in requests {
        assert_eq!(request.await.unwrap(), known("tn_one"));
    }
    bench.nobody_asks().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_look_up_is_not_waited_for_and_still_fills_the_cache() {
    let mut bench = Bench::new();
    let began = Instant::now();
    let request = bench.request("s1");
    let asked = bench.asked().await;
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
    assert_eq!(began.elapsed(), Duration::from_millis(250));
    asked.answer("tn_one");
    settle().await;
    assert_eq!(bench.at_once("s1").await, known("tn_one"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_does_not_take_the_look_up_with_it() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    let asked = bench.asked().await;
    request.abort();
    asked.answer("tn_one");
    settle().await;
    assert_eq!(bench.at_once("s1").await, known("tn_one"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_in_the_pool_is_no_failure() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    bench.asked().await.fail();
    bench.asked().await.answer("tn_one");
    assert_eq!(request.await.unwrap(), known("tn_one"));
}

#[tokio::test(start_paused = true)]
async fn with_the_database_away_the_last_known_answer_holds() {
    let mut bench = Bench::new();
    bench.learn("tn_one", "pro").await;
    advance(TTL * 100).await;
    let request = bench.request("tn_one");
    bench.fail().await;
    assert_eq!(request.await.unwrap(), known("pro"));
    assert_eq!(bench.at_once("tn_one").await, known("pro"));
    assert_eq!(bench.count("stale"), 2);
}

#[tokio::test(start_paused = true)]
async fn with_the_database_away_and_nothing_known_a_request_is_told_so_at_once() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    bench.fail().await;
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
    for key in ["s1", "s2", "s3"] {
        assert_eq!(bench.at_once(key).await, Answer::Unavailable(Fault::Away));
    }
    bench.nobody_asks().await;
    assert_eq!(bench.count("unavailable"), 4);
}

#[tokio::test(start_paused = true)]
async fn an_old_no_such_row_is_not_held_against_anyone() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    bench.asked().await.absent();
    request.await.unwrap();
    advance(NEGATIVE_TTL).await;
    let request = bench.request("s1");
    bench.fail().await;
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
}

#[tokio::test(start_paused = true)]
async fn fault_64_a_black_holed_database_costs_one_wait_a_second() {
    let mut bench = Bench::new();
    bench.learn("old", "tn_old").await;
    advance(TTL).await;
    // Never answered: the look-ups are kept, so that they hang.
    let mut hanging = Vec::new();
    let request = bench.request("new");
    hanging.push(bench.asked().await);
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
    for second in 0..3 {
        for key in ["new", "newer", "newest"] {
            assert_eq!(bench.at_once(key).await, Answer::Unavailable(Fault::Away));
        }
        assert_eq!(bench.at_once("old").await, known("tn_old"));
        bench.nobody_asks().await;
        advance(breaker::PAUSE).await;
        if second == 0 {
            // A request with an old answer asks whether the database is back, and does not wait for it.
            assert_eq!(bench.at_once("old").await, known("tn_old"));
            settle().await;
            hanging.push(bench.database.try_recv().unwrap());
        } else {
            // One without waits in the name of all the others.
            let request = bench.request(&format!("probe {second}"));
            hanging.push(bench.asked().await);
            assert_eq!(bench.at_once("newer").await, Answer::Unavailable(Fault::Away));
            assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_back_is_used_again() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    bench.fail().await;
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
    advance(breaker::PAUSE).await;
    bench.learn("s1", "tn_one").await;
    bench.learn("s2", "tn_two").await;
}

#[tokio::test(start_paused = true)]
async fn one_slow_look_up_among_answered_ones_is_no_outage() {
    let mut bench = Bench::new();
    let slow = bench.request("locked");
    let hanging = bench.asked().await;
    advance(Duration::from_millis(100)).await;
    bench.learn("s1", "tn_one").await;
    assert_eq!(slow.await.unwrap(), Answer::Unavailable(Fault::Busy));
    bench.learn("s2", "tn_two").await;
    drop(hanging.reply.send(Ok(None)));
}

#[tokio::test(start_paused = true)]
async fn beyond_the_look_ups_in_the_air_the_database_is_busy_while_it_answers_others() {
    let mut bench = Bench::new();
    let flights = 1024;
    let requests: Vec<_> = (0..flights).map(|n| bench.request(&format!("s{n}"))).collect();
    settle().await;
    assert_eq!(bench.at_once("one too many").await, Answer::Unavailable(Fault::Busy));
    bench.asked().await.answer("tn_first");
    settle().await;
    let mut waiting = Vec::new();
    while let Ok(asked) = bench.database.try_recv() {
        waiting.push(asked);
    }
    assert_eq!(waiting.len(), flights - 1);
    // Those that waited in vain were not answered; another was, so nobody takes the database to be away.
    for outcome in futures_util::future::join_all(requests.into_iter().skip(1)).await {
        assert_eq!(outcome.unwrap(), Answer::Unavailable(Fault::Busy));
    }
    waiting.pop().unwrap().answer("tn_last");
    settle().await;
    assert_eq!(bench.at_once("s1023").await, known("tn_last"));
    assert_eq!(bench.count("busy"), 1024);
}

#[tokio::test(start_paused = true)]
async fn a_client_who_asks_for_too_much_at_once_is_in_nobody_elses_way() {
    let mut bench = Bench::new();
    let [flood, other]: [IpAddr; 2] = ["2001:db8::1", "2001:db8:0:1::1"].map(|ip| ip.parse().unwrap());
    let neighbour = "2001:db8::2".parse().unwrap();
    let ask = |key: &str, client| {
        let (directory, query, key) = (bench.directory.clone(), bench.query.clone(), key.to_owned());
        tokio::spawn(async move { directory.look_up_for(&query, &key, Some(client)).await })
    };
    let asked: Vec<_> = (0..65).map(|n| ask(&format!("s{n}"), flood)).collect();
    settle().await;
    assert!(asked[64].is_finished() && !asked[63].is_finished());
    let from_the_same_network = ask("s65", neighbour);
    let joined = ask("s0", neighbour);
    let honest = ask("s66", other);
    settle().await;
    assert_eq!(from_the_same_network.await.unwrap(), Answer::Unavailable(Fault::Busy));
    let mut waiting = Vec::new();
    while let Ok(asked) = bench.database.try_recv() {
        waiting.push(asked);
    }
    assert_eq!(waiting.len(), 65);
    waiting.pop().unwrap().answer("tn_honest");
    assert_eq!(honest.await.unwrap(), known("tn_honest"));
    waiting.drain(..).for_each(Asked::absent);
    assert_eq!(joined.await.unwrap(), Answer::Absent);
    settle().await;
    let again = ask("s67", flood);
    bench.asked().await.answer("tn_one");
    assert_eq!(again.await.unwrap(), known("tn_one"), "what is over takes no room");
}

#[tokio::test(start_paused = true)]
async fn no_connection_in_time_is_busy_where_others_are_answered_and_else_away() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    bench.fail_as(Fault::Busy).await;
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
    advance(breaker::PAUSE).await;
    bench.learn("s2", "tn_two").await;
    let slow = bench.request("s3");
    let asked = bench.asked().await;
    bench.learn("s4", "tn_four").await;
    asked.fail_as(Fault::Busy);
    bench.asked().await.fail_as(Fault::Busy);
    assert_eq!(slow.await.unwrap(), Answer::Unavailable(Fault::Busy));
    bench.learn("s5", "tn_five").await;
}

#[tokio::test(start_paused = true)]
async fn a_query_that_can_never_be_answered_is_told_apart_until_it_is() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    bench.fail_as(Fault::Broken).await;
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Broken));
    assert_eq!(bench.at_once("s2").await, Answer::Unavailable(Fault::Broken));
    assert_eq!(bench.count("broken"), 2);
    assert_eq!(bench.directory.broken(), [(bench.query.clone(), "Broken".to_owned())]);
    advance(breaker::PAUSE).await;
    bench.learn("s1", "tn_one").await;
    assert!(bench.directory.broken().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_never_ends_is_given_up() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    let hanging = bench.asked().await;
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
    advance(Duration::from_secs(5)).await;
    settle().await;
    assert!(hanging.reply.is_closed());
    advance(breaker::PAUSE).await;
    bench.learn("s1", "tn_one").await;
}

#[tokio::test(start_paused = true)]
async fn one_query_that_fails_does_not_stop_another() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    bench.fail().await;
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
    bench.query = "SELECT plan WHERE tenant = $1".into();
    bench.learn("tn_one", "pro").await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_takes_one_look_up_with_it() {
    let mut bench = Bench::new();
    let request = bench.request("s1");
    // The fake panics when its answer is dropped.
    drop(bench.asked().await);
    assert_eq!(request.await.unwrap(), Answer::Unavailable(Fault::Away));
    advance(breaker::PAUSE).await;
    bench.learn("s1", "tn_one").await;
}

#[tokio::test(start_paused = true)]
async fn fault_92_memory_is_bounded_whatever_clients_ask_for() {
    let mut bench = Bench::with(Config { capacity: 10, ..Config::default() });
    for key in 0..100 {
        bench.learn(&format!("s{key}"), "tn_one").await;
    }
    assert!(bench.directory.answers() <= 10, "{}", bench.directory.answers());
    assert_eq!(bench.at_once(&"x".repeat(MAX_BYTES + 1)).await, Answer::Absent);
    assert_eq!(bench.at_once("s\0").await, Answer::Absent);
    bench.nobody_asks().await;
    let request = bench.request("long");
    bench.asked().await.answer(&"x".repeat(MAX_BYTES + 1));
    assert_eq!(request.await.unwrap(), Answer::Absent);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_turned_is_told_once_and_one_that_stays_is_not() {
    let mut bench = Bench::new();
    let (turned, mut turns) = mpsc::unbounded_channel();
    bench.directory.tell_turns(Box::new(move |turn| turned.send((turn.former, turn.now)).unwrap()));
    bench.learn("tn_one", "trial").await;
    for value in ["trial", "pro"] {
        advance(Duration::from_secs(61)).await;
        let requests = [bench.request("tn_one"), bench.request("tn_one")];
        bench.asked().await.answer(value);
        for request in requests {
            assert_eq!(request.await.unwrap(), known(value));
        }
    }
    advance(Duration::from_secs(61)).await;
    let request = bench.request("tn_one");
    bench.asked().await.absent();
    request.await.unwrap();
    assert_eq!(turns.recv().await, Some((Some("trial".into()), Some("pro".into()))));
    assert_eq!(turns.recv().await, Some((Some("pro".into()), None)));
    assert!(turns.try_recv().is_err(), "a first answer is no turn, nor is the same one again");
}

#[tokio::test(start_paused = true)]
async fn without_a_database_there_is_no_such_row() {
    let directory = Directory::new(Config::default(), None, Handle::current(), Metrics::new());
    assert_eq!(directory.look_up(&"SELECT 1".into(), "s1").await, Answer::Absent);
}

#[test]
fn a_look_up_outlives_the_runtime_of_the_request() {
    let background =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let worker = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (asked, mut database) = mpsc::unbounded_channel();
    let source: Arc<dyn TenantSource> = Arc::new(Scripted(asked));
    let config = Config { timeout: Duration::from_secs(60), ..Config::default() };
    let directory = Directory::new(config, Some(source), background.handle().clone(), Metrics::new());
    let query: Arc<str> = "SELECT tenant WHERE session = $1".into();

    let first = worker();
    let request = first.spawn({
        let (directory, query) = (directory.clone(), query.clone());
        async move { directory.look_up(&query, "s1").await }
    });
    let asked = first.block_on(database.recv()).unwrap();
    drop((request, first));
    let second = worker();
    let (answer, ()) = second.block_on(async {
        let answer =
            async { tokio::join!(directory.look_up(&query, "s1"), async { asked.answer("tn_one") }) };
        answer.await
    });
    assert_eq!(answer, known("tn_one"));
}
