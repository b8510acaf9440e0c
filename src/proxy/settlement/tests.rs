//! What only shows from within: an exchange that ends in a panic.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::Write;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Context;

use arc_swap::ArcSwap;
use http_body::Body as _;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::meter::{Counter, Inspected, Reading};
use crate::model::billing::Tier;
use crate::model::event::Record;
use crate::model::price::Call;
use crate::model::tenant::TenantId;
use crate::model::tokens::{TokenSource, TokenUsage};
use crate::proxy::body::Body;
use crate::proxy::charging::{Basis, Unread};
use crate::proxy::forwarding::Caller;
use crate::proxy::model_name::Expected;
use crate::proxy::tap::tap;
use crate::proxy::{Budget, Drains, PolicyParts};
use crate::quota::{Enforcer, Overrides, Plans};
use crate::record::Journal;
use crate::settings::Settings;
use crate::telemetry::{self, Metrics};
use crate::tenant::Directory;

/// The built-in default, with everything real but for a database; the journal is in `data`.
fn core_in(data: &std::path::Path) -> (Arc<Core>, Journal) {
    core_with(data, [])
}

fn core_with<const N: usize>(data: &std::path::Path, variables: [(&str, &str); N]) -> (Arc<Core>, Journal) {
    let mut environment: BTreeMap<String, String> =
        variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    environment.insert("TOLLGATE__DATA__DIR".to_owned(), data.display().to_string());
    let settings = Settings::load(None, &environment).unwrap();
    let metrics = Metrics::new();
    let (recorder, journal) = Journal::open(settings.record.clone(), metrics.clone()).unwrap();
    let (plans, overrides) = (settings.plans.clone(), settings.overrides.clone());
    let plans = Plans::new(plans, overrides, settings.default_plan.clone(), metrics.clone()).unwrap();
    let policy = Policy::new(PolicyParts {
        routes: &settings.routes,
        formats: &settings.formats,
        identify: &settings.identify,
        plans: Arc::new(plans),
        prices: settings.prices.clone(),
        meter: settings.meter.clone(),
    });
    let runtime = tokio::runtime::Handle::current();
    let budget = Budget::new(&settings.server, 1, metrics.clone());
    let core = Core {
        budget,
        policy: ArcSwap::from_pointee(policy.unwrap()),
        directory: Directory::new(settings.directory.clone(), None, runtime, metrics.clone()),
        overrides: Overrides::new(),
        enforcer: Enforcer::new(metrics.clone()),
        strangers: crate::proxy::Strangers::default(),
        refusals: crate::proxy::Refusals::default(),
        recorder,
        counter: Counter::start(1, 16, 1 << 20),
        metrics,
        server: settings.server.clone(),
        upstream: settings.upstream.clone(),
        lease_wait: settings.lease_wait,
        refusing: AtomicBool::new(false),
        cutting: CancellationToken::new(),
        drains: Drains::new(settings.server.max_drains),
        tasks: TaskTracker::new(),
    };
    (Arc::new(core), journal)
}

fn opened(core: &Arc<Core>) -> Settlement {
    opened_at(core, Arrival::now())
}

fn opened_at(core: &Arc<Core>, arrival: Arrival) -> Settlement {
    let policy = core.policy.load_full();
    let route = policy.routes.find("POST", "/api/widget/chat").unwrap().unwrap().route;
    let peer = std::net::IpAddr::from([127, 0, 0, 1]);
    let subject = Subject {
        tenant: TenantId::parse("tn_panic").ok(),
        unresolved: false,
        bearer: None,
        caller: Caller { peer, client: peer },
        method: http::Method::POST,
        request_id: "r-1".to_owned(),
        user_agent: None,
        inspected: Inspected::default(),
        model: Expected::default(),
        message_chars: 0,
        segments: Vec::new(),
        values: Vec::new(),
        content_length: None,
        unread: None,
        held: None,
        only_counts: false,
    };
    let hub = Hub::new(core.recorder.clone());
    Settlement::open(core.clone(), hub, policy, route, subject, arrival)
}

#[tokio::test]
async fn fault_85_an_exchange_that_panics_is_recorded_and_gives_back_what_it_held() {
    let data = tempfile::tempdir().unwrap();
    let (core, journal) = core_in(data.path());
    let mut settlement = opened(&core);
    let tenant = TenantId::parse("tn_panic").unwrap();
    let (entitlement, _) = core.entitlement(&tenant, Timestamp::now()).await;
    settlement.reserve(&entitlement, false).await.unwrap();
    settlement.calling().leave();
    assert_eq!((core.metrics.reservations.get(), core.metrics.exchanges.get()), (1, 1));
    let handler = tokio::spawn(async move {
        let _settlement = settlement;
        panic!("on purpose");
    });
    assert!(handler.await.unwrap_err().is_panic(), "that request fails, and nothing else");
    assert_eq!((core.metrics.reservations.get(), core.metrics.exchanges.get()), (0, 0));
    let standings = core.enforcer.standings(&tenant, &entitlement, Timestamp::now());
    let used: Vec<_> = standings.iter().map(|s| (s.dimension.to_string(), s.used)).collect();
    assert!(
        used.iter().all(|(dimension, used)| *used == u64::from(dimension == "api_calls_per_minute")),
        "{used:?}"
    );
    // The next exchange of the same tenant is served.
    let mut next = opened(&core);
    next.reserve(&entitlement, false).await.unwrap();
    next.calling();
    next.failed(Outcome::UpstreamError, 502);
    journal.close();
    let (_, journal) = core_in(data.path());
    let mut outcomes = Vec::new();
    journal.replay(&mut |record| {
        if let Record::Usage(event) = record {
            outcomes.push((event.outcome, event.tokens_consumed));
        }
    });
    assert_eq!(outcomes, [(Outcome::Crashed, Some(0)), (Outcome::UpstreamError, Some(0))]);
}

#[tokio::test]
async fn an_exchange_costs_what_held_when_it_began_however_late_it_is_priced() {
    let data = tempfile::tempdir().unwrap();
    let changes = "[{ from = \"2026-12-01\", input = 2.0 }]";
    let model = [("TOLLGATE__PRICES__M__INPUT", "1.0"), ("TOLLGATE__PRICES__M__CHANGES", changes)];
    let (core, _journal) = core_with(data.path(), model);
    let usage = TokenUsage { input: Some(1000), ..TokenUsage::default() };
    let cost = |at: &str, model: &str| {
        let arrival = Arrival { instant: Instant::now(), at: at.parse().unwrap() };
        let mut settlement = opened_at(&core, arrival);
        let open = settlement.open.as_mut().unwrap();
        let call = Call {
            model: Some(model),
            at: arrival.at,
            usage: &usage,
            billing: &Billing::default(),
            unseen: 0,
        };
        let cost = open.cost(&call, 1000, true);
        (cost, open.metadata.contains_key("default_price"))
    };
    assert_eq!(cost("2026-11-30T23:59:59.999999Z", "m"), (1_000_000, false));
    assert_eq!(cost("2026-12-01T00:00:00Z", "m"), (2_000_000, false));
    assert_eq!(cost("2026-12-01T00:00:00Z", "unheard-of"), (150_000, true));
}

#[tokio::test]
async fn a_request_has_its_price_though_it_used_no_token_and_only_when_it_was_served() {
    let data = tempfile::tempdir().unwrap();
    let model = [("TOLLGATE__PRICES__M__INPUT", "1.0"), ("TOLLGATE__PRICES__M__PER_REQUEST", "0.005")];
    let (core, _journal) = core_with(data.path(), model);
    let mut settlement = opened(&core);
    let open = settlement.open.as_mut().unwrap();
    let (usage, billing) = (TokenUsage::default(), Billing::default());
    let call = Call { model: Some("m"), at: open.arrival.at, usage: &usage, billing: &billing, unseen: 0 };
    assert_eq!(open.cost(&call, 0, true), 5_000_000);
    assert_eq!(open.cost(&call, 0, false), 0);
}

#[tokio::test]
async fn a_row_says_by_what_it_was_priced_and_what_of_it_has_no_price() {
    let data = tempfile::tempdir().unwrap();
    let model = [("TOLLGATE__PRICES__M__INPUT", "1.0"), ("TOLLGATE__PRICES__M__OUTPUT", "1.0")];
    let (core, _journal) = core_with(data.path(), model);
    let usage = TokenUsage { input: Some(1000), ..TokenUsage::default() };
    let cost = |model: &str, billing: Billing| {
        let mut settlement = opened(&core);
        let open = settlement.open.as_mut().unwrap();
        let call =
            Call { model: Some(model), at: open.arrival.at, usage: &usage, billing: &billing, unseen: 0 };
        let cost = open.cost(&call, 1000, true);
        let said = ["cost_from", "default_price", "unpriced"].map(|key| open.metadata.get(key).cloned());
        (cost, said)
    };
    let said = Billing { reported_cost_nanousd: Some(5), web_searches: Some(2), ..Billing::default() };
    assert_eq!(cost("unheard-of", said), (5, [Some(json!("answer")), None, None]));
    assert_eq!(
        cost("m", said),
        (1_000_000, [None, None, Some(json!(["web_searches"]))]),
        "its own price counts"
    );
    let silent = Billing { reported_cost_nanousd: None, ..said };
    let marked = [None, Some(json!(true)), Some(json!(["web_searches"]))];
    assert_eq!(cost("unheard-of", silent), (150_000, marked));
    assert_eq!(
        (
            core.metrics.unpriced.get_or_create(&label("web_searches")).get(),
            core.metrics.unknown_models.get()
        ),
        (2, 1)
    );
}

fn label(what: &'static str) -> crate::telemetry::Label {
    crate::telemetry::Label("what", what.into())
}

#[tokio::test]
async fn a_row_keeps_what_its_cost_was_made_from() {
    let data = tempfile::tempdir().unwrap();
    let (core, _journal) = core_in(data.path());
    let mut settlement = opened(&core);
    let open = settlement.open.as_mut().unwrap();
    open.note_billing(&Reading::default());
    assert!(!open.metadata.contains_key("billing") && !open.metadata.contains_key("billed"));
    let billing = Billing { tier: Some(Tier::Flex), web_searches: Some(2), ..Billing::default() };
    let billed = TokenUsage { input: Some(7), output: Some(3), ..TokenUsage::default() };
    open.note_billing(&Reading { billing, billed: Some(billed), ..Reading::default() });
    assert_eq!(open.metadata["billing"], json!({"tier": "flex", "web_searches": 2}));
    assert_eq!(open.metadata["billed"], json!({"input": 7, "output": 3}));
}

#[tokio::test]
async fn what_could_not_be_read_is_in_the_row_by_its_shape_and_counted_by_route() {
    let data = tempfile::tempdir().unwrap();
    let (core, _journal) = core_in(data.path());
    let noted = |reading: &Reading, basis, unread, shape: Option<&str>| {
        let mut settlement = opened(&core);
        let open = settlement.open.as_mut().unwrap();
        open.subject.inspected.shape = shape.map(str::to_owned);
        open.subject.inspected.guessed = shape.is_none();
        open.note_reading(reading, basis, unread);
        let value = |name: &str| open.metadata.get(name).and_then(|value| value.as_str()).map(str::to_owned);
        ["meter_flag", "answer_shape", "request_shape", "text_by", "request_text_by"].map(value)
    };
    let some = |text: &str| Some(text.to_owned());
    let strange = Reading { shape: some("{status: bool, utterance: string}"), ..Reading::default() };
    let both = Unread { request: true, answer: true };
    let expected = [some("unknown_format"), strange.shape.clone(), some("{said: string}"), None, None];
    assert_eq!(noted(&strange, Basis::Reserved, both, Some("{said: string}")), expected);
    // A bomb is no unknown format, and has no shape.
    let bomb = Reading { flag: Some("bomb"), ..Reading::default() };
    let answer = Unread { request: false, answer: true };
    let guessed = some("last_resort");
    assert_eq!(
        noted(&bomb, Basis::Reserved, answer, None),
        [some("bomb"), None, None, None, guessed.clone()]
    );
    // What was found all the same is counted, and is not to be told.
    let found = Reading { flag: Some("unknown_format"), guessed: true, ..strange };
    let counted = Basis::Text(TokenSource::Counted);
    let text = [None, None, None, guessed.clone(), guessed];
    assert_eq!(noted(&found, counted, Unread::default(), None), text);
    let route = "/api/widget/chat".to_owned();
    let count =
        |what| core.metrics.unread.get_or_create(&telemetry::Unread { route: route.clone(), what }).get();
    assert_eq!([count("unknown_format"), count("request_text"), count("bomb")], [1, 1, 1]);
}

/// An answer as the gateway's client of the service has it.
async fn answer_of(raw: Vec<u8>) -> http::Response<hyper::body::Incoming> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let mut request = [0; 1024];
        assert!(far.read(&mut request).await.unwrap() > 0);
        far.write_all(&raw).await.unwrap();
    });
    let io = hyper_util::rt::TokioIo::new(near);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(http::Request::new(http_body_util::Empty::<Bytes>::new())).await.unwrap()
}

#[tokio::test]
async fn an_answer_that_decodes_to_much_leaves_the_others_their_turns() {
    let mut text = br#"{"usage": {"prompt_tokens": 30, "completion_tokens": 3}, "numbers": [1"#.to_vec();
    text.extend_from_slice(&b",1".repeat(4_190_000));
    text.extend_from_slice(b"]}");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&text).unwrap();
    let body = encoder.finish().unwrap();
    assert!(body.len() < 20_000);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n";
    let length = format!("content-length: {}\r\n\r\n", body.len());
    let raw = [head.as_bytes(), length.as_bytes(), &body].concat();

    let data = tempfile::tempdir().unwrap();
    let (core, journal) = core_in(data.path());
    let mut settlement = opened(&core);
    settlement.calling().leave();
    let (head, answer) = answer_of(raw).await.into_parts();
    settlement.answered(&head);
    let turns = Arc::new(AtomicUsize::new(0));
    let seen = turns.clone();
    let other = tokio::spawn(async move {
        loop {
            turns.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    });
    let mut tapped = Body::from(tap(answer, settlement, Duration::from_secs(60)).await);
    let (mut pauses, mut paused, mut before, mut received) = (0, false, 0, Vec::new());
    let mut next = |cx: &mut Context<'_>| {
        let now = seen.load(Ordering::Relaxed);
        assert!(!paused || now > before, "the other task has its turn in every pause");
        before = now;
        let frame = Pin::new(&mut tapped).poll_frame(cx);
        paused = frame.is_pending();
        pauses += usize::from(paused);
        frame
    };
    while let Some(frame) = poll_fn(&mut next).await {
        received.extend_from_slice(frame.unwrap().data_ref().unwrap());
    }
    other.abort();
    assert!(pauses > 50, "{pauses}");
    assert_eq!(received, body);
    journal.close();
    let (_, journal) = core_in(data.path());
    let mut used = Vec::new();
    journal.replay(&mut |record| {
        if let Record::Usage(event) = record {
            used.push((event.outcome, event.tokens_consumed));
        }
    });
    assert_eq!(used, [(Outcome::Completed, Some(33))]);
}
