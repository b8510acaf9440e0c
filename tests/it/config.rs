//! The config, from outside: what a file and an environment come to, and what is said when they are wrong.

#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tollgate::model::event::EventType;
use tollgate::model::quota::{Dimension, Limits};
use tollgate::model::tenant::TenantId;
use tollgate::proxy::{
    AuditWhen, BodyConfig, CutConfig, CutEvent, DrainConfig, Enforce, JwtKey, ModelConfig, PathMatch,
    SourceConfig,
};
use tollgate::settings::{Fault, Faults, OnOutage, Settings, needs_restart};

/// 18 November 2026.
const NOV_2026: jiff::Timestamp = jiff::Timestamp::constant(1_795_000_000, 0);

type Environment = BTreeMap<String, String>;

fn environment<const N: usize>(variables: [(&str, &str); N]) -> Environment {
    variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn case(name: &str) -> PathBuf {
    Path::new("tests/cases/config").join(name)
}

/// A config file that is gone with the test.
struct File(tempfile::NamedTempFile);

impl File {
    fn with(text: &str) -> Self {
        let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        std::fs::write(file.path(), text).unwrap();
        Self(file)
    }

    fn load(&self, environment: &Environment) -> Result<Settings, Faults> {
        Settings::load(Some(self.0.path()), environment)
    }

    /// The faults as `(line, key, reason)`.
    fn faults(&self) -> Vec<(String, String, String)> {
        let path = self.0.path().display().to_string();
        let faults = self.load(&Environment::new()).unwrap_err();
        let line = |origin: String| origin.strip_prefix(&path).unwrap().trim_start_matches(':').to_owned();
        faults.0.into_iter().map(|Fault { origin, key, reason }| (line(origin), key, reason)).collect()
    }
}

fn load(text: &str) -> Settings {
    File::with(text).load(&Environment::new()).unwrap()
}

fn load_with<const N: usize>(variables: [(&str, &str); N]) -> Settings {
    Settings::load(None, &environment(variables)).unwrap()
}

fn limit(limits: &Limits, dimension: &str) -> Option<u64> {
    limits.limit(dimension.parse::<Dimension>().unwrap())
}

/// The one fault of a config with `variables` and no file.
fn fault_of<const N: usize>(variables: [(&str, &str); N]) -> Fault {
    let faults = Settings::load(None, &environment(variables)).unwrap_err();
    assert_eq!(faults.0.len(), 1, "{faults}");
    faults.0.into_iter().next().unwrap()
}

#[test]
fn the_built_in_default_is_the_service_as_it_stands() {
    let settings = Settings::load(None, &Environment::new()).unwrap();
    assert_eq!(settings.server.listen, "0.0.0.0:8080".parse().unwrap());
    let server = &settings.server;
    assert_eq!((server.max_connections, server.max_connections_per_client), (10_000, 5_000));
    assert_eq!(
        (server.header_timeout, server.keep_alive_timeout),
        (Duration::from_secs(10), Duration::from_secs(75))
    );
    assert_eq!(server.upgrades, ["websocket"]);
    assert_eq!(server.upgrade_idle_timeout, Duration::from_secs(600));
    assert_eq!(settings.admin.listen, "127.0.0.1:9090".parse().unwrap());
    assert_eq!(settings.upstream.url, "http://127.0.0.1:3000");
    assert!(settings.database.is_none() && settings.service_database.is_none());
    assert_eq!(settings.on_outage, OnOutage::Open);
    assert_eq!(settings.default_plan.as_str(), "trial");
    assert!(!settings.identify.pass_unidentified);
    let kinds: Vec<_> = settings.identify.sources.iter().map(std::mem::discriminant).collect();
    let session = SourceConfig::Session { json: String::new(), query: "".into() };
    assert_eq!(kinds.len(), 2);
    assert_eq!(kinds[1], std::mem::discriminant(&session));
    let figures = |plan: &str| {
        let limits = &settings.plans[&plan.into()].limits;
        ["tokens_per_day", "api_calls_per_minute", "chat_messages_per_day", "embeddings_per_day"]
            .map(|dimension| limit(limits, dimension))
    };
    assert_eq!(figures("trial"), [Some(10_000), Some(30), Some(100), Some(50)]);
    assert_eq!(figures("starter"), [Some(100_000), Some(60), Some(1_000), Some(500)]);
    assert_eq!(figures("pro"), [Some(500_000), Some(120), Some(5_000), Some(2_000)]);
    assert_eq!(figures("enterprise"), [None; 4]);
    let route = &settings.routes[0];
    assert_eq!(
        (route.path.as_str(), route.methods.as_slice()),
        ("/api/widget/chat", &[http::Method::POST][..])
    );
    assert_eq!(
        (route.event, route.path_match, route.enforce),
        (EventType::ChatMessage, PathMatch::Loose, Enforce::Hard)
    );
    assert_eq!((route.reserve_tokens, route.body), (150, BodyConfig::Json { max_bytes: 8 << 20 }));
    assert_eq!((route.pass_unidentified, route.sources.as_deref()), (None, None));
    let kinds: Vec<_> = route.audit.iter().map(|rule| rule.event_type.as_str()).collect();
    assert_eq!(kinds, ["chat_message_received", "chat_response_sent", "api_error", "quota_exceeded"]);
    assert_eq!((route.drain, settings.server.max_drains, &route.cut), (None, 1000, &None));
    let (mini, known) = settings.prices.price(Some("gpt-4o-mini-2024-07-18"), NOV_2026);
    assert!(known);
    assert_eq!(
        (mini.usual().input, mini.usual().cached_input, mini.usual().output),
        (150_000, 75_000, 600_000)
    );
    assert_eq!(settings.prices.default_price().at(NOV_2026).usual().input, 150_000);
}

#[test]
fn the_example_has_no_fault_and_adds_to_the_defaults() {
    let settings = Settings::load(Some(Path::new("config/example.toml")), &Environment::new()).unwrap();
    let trial = &settings.plans[&"trial".into()].limits;
    assert_eq!(
        (limit(trial, "chat_messages_per_day"), limit(trial, "tokens_per_day")),
        (Some(60), Some(10_000))
    );
    assert_eq!(settings.plans[&"agency".into()].zone, "Europe/Berlin");
    assert_eq!(limit(&settings.plans[&"agency".into()].limits, "tokens_per_month"), Some(5_000_000));
    assert_eq!(settings.routes.len(), 3);
    let pilot = &settings.overrides[&TenantId::parse("tn_ab12cd").unwrap()];
    assert_eq!(pilot.plan, Some("pro".into()));
    assert_eq!(pilot.expires, Some("2027-01-31T00:00:00Z".parse().unwrap()));
}

#[test]
fn fault_86_every_fault_is_reported_at_once_with_its_place_and_what_to_do() {
    let environment = environment([
        ("EMPTY_SECRET", ""),
        ("ADMIN_TOKEN", ""),
        ("CRON_SECRET", "tail "),
        ("TOLLGATE__UPSTREAM__POOL_IDLE", "many"),
        ("TOLLGATE__SERVER__COLOUR", "red"),
        ("TOLLGATE__TENANT__SOURCES__0__HEADER", "x"),
        ("TOLLGATE__PLANS", "[unclosed"),
    ]);
    let faults = Settings::load(Some(&case("broken.toml")), &environment).unwrap_err();
    let seen = format!("{faults}\n");
    let expected = std::fs::read_to_string(case("broken.txt")).unwrap_or_default();
    assert!(seen == expected, "expected\n{expected}\nseen\n{seen}");
}

#[test]
fn no_fault_repeats_a_password() {
    let faults = Settings::load(Some(&case("broken.toml")), &Environment::new()).unwrap_err();
    assert!(!faults.to_string().contains("hunter2"));
    let file = File::with("[database]\nurl = \"postgres://u:hunter2@db/x\nx = 1\n");
    assert!(!file.load(&Environment::new()).unwrap_err().to_string().contains("hunter2"));
}

#[test]
fn syntax_errors_are_all_told_with_their_lines() {
    let faults =
        File::with("[server]\nlisten = \nworkers = 1\n\n[upstream\nurl = \"http://127.0.0.1:1\"\n").faults();
    let lines: Vec<&str> = faults.iter().map(|(line, ..)| line.as_str()).collect();
    assert_eq!(lines, ["2", "5"], "{faults:?}");
    assert!(faults.iter().all(|(_, _, reason)| reason.starts_with("is no valid TOML: ")), "{faults:?}");
}

#[test]
fn a_file_that_is_missing_or_no_text_is_a_fault() {
    let missing = Settings::load(Some(Path::new("no/such.toml")), &Environment::new()).unwrap_err();
    assert!(missing.to_string().starts_with("no/such.toml: can't be read: "), "{missing}");
    let binary = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(binary.path(), b"[server]\nlisten = \"\xff\"\n").unwrap();
    let faults = Settings::load(Some(binary.path()), &Environment::new()).unwrap_err();
    assert!(faults.0[0].origin.ends_with(":2"), "{faults}");
    let directory = Settings::load(Some(Path::new("src")), &Environment::new()).unwrap_err();
    assert!(directory.to_string().starts_with("src: can't be read: "), "{directory}");
}

#[test]
fn a_key_that_is_set_twice_is_a_fault() {
    let faults = File::with("[server]\nworkers = 1\nworkers = 2\n").faults();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].0, "3");
}

#[test]
fn names_keep_their_case_their_dots_and_their_dashes() {
    let settings = load(
        "[overrides.\"Tn.Ab-1:x@Y\"]\ntokens_per_day = 1\n[prices.\"Org/My.Model-2:free\"]\ninput = 1\noutput = 2\n\
         [plans.\"Größe L\"]\ntokens_per_day = 3\n",
    );
    assert_eq!(settings.overrides.keys().map(TenantId::as_str).collect::<Vec<_>>(), ["Tn.Ab-1:x@Y"]);
    assert!(settings.prices.price(Some("Org/My.Model-2:free"), NOV_2026).1);
    assert_eq!(limit(&settings.plans[&"Größe L".into()].limits, "tokens_per_day"), Some(3));
    assert!(settings.masked().contains("[overrides.\"Tn.Ab-1:x@Y\"]"), "{}", settings.masked());
}

#[test]
fn the_environment_goes_over_the_file_and_the_file_over_the_default() {
    let file =
        File::with("[server]\nlisten = \"127.0.0.1:1\"\nworkers = 3\n[plans.Pro-Max]\ntokens_per_day = 5\n");
    let settings = file
        .load(&environment([
            ("TOLLGATE__SERVER__LISTEN", "127.0.0.1:2"),
            ("TOLLGATE__SERVER__TRUSTED_PROXIES", "10.0.0.0/8, 192.168.0.1"),
            ("TOLLGATE__SERVER__MAX_CONNECTIONS", "77"),
            ("TOLLGATE__SERVER__DRAIN_TIMEOUT", "1m30s"),
            ("TOLLGATE__PLANS__TRIAL__TOKENS_PER_DAY", "unlimited"),
            ("TOLLGATE__PLANS__PRO_MAX__TOKENS_PER_DAY", "6"),
            ("TOLLGATE__PRICES__GPT_4O_MINI__INPUT", "0.5"),
            ("TOLLGATE__OVERRIDES__TN_NEW__PLAN", "pro"),
            ("TOLLGATE__OVERRIDES__tn_Own__TOKENS_PER_DAY", "9"),
            ("TOLLGATE__TENANT__SOURCES", "[{ header = \"x-tenant-id\" }, { json = \"/tenantId\" }]"),
            ("TOLLGATE__DATABASE", "{ pool_size = 3 }"),
        ]))
        .unwrap();
    assert_eq!(settings.server.listen, "127.0.0.1:2".parse().unwrap());
    assert_eq!(settings.server.workers, 3);
    assert_eq!(settings.server.max_connections, 77);
    assert_eq!(settings.server.drain_timeout, Duration::from_secs(90));
    let proxies: Vec<String> = settings.server.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "192.168.0.1/32"]);
    assert_eq!(limit(&settings.plans[&"trial".into()].limits, "tokens_per_day"), None);
    assert_eq!(limit(&settings.plans[&"Pro-Max".into()].limits, "tokens_per_day"), Some(6));
    assert_eq!(settings.prices.price(Some("gpt-4o-mini"), NOV_2026).0.usual().input, 500_000);
    let overridden: Vec<&str> = settings.overrides.keys().map(TenantId::as_str).collect();
    assert_eq!(overridden, ["tn_Own", "tn_new"]);
    assert_eq!(
        settings.identify.sources,
        [SourceConfig::Header("x-tenant-id".into()), SourceConfig::Json("/tenantId".into())]
    );
    assert_eq!((settings.pool_size, settings.on_outage), (3, OnOutage::Open));
}

#[test]
fn routes_in_a_file_replace_the_list() {
    let settings = load("[[routes]]\npath = \"/v1/chat/completions\"\nformat = \"openai-chat\"\n");
    let [route] = &settings.routes[..] else { panic!("one route") };
    assert_eq!(route.path, "/v1/chat/completions");
    assert!(route.methods.is_empty());
    assert_eq!((route.event, route.enforce, route.reserve_tokens), (EventType::ApiCall, Enforce::Hard, 150));
}

#[test]
fn the_services_other_routes_are_shipped_and_let_pass_what_names_no_tenant() {
    let settings = Settings::load(None, &Environment::new()).unwrap();
    let others: Vec<_> = settings.routes[1..]
        .iter()
        .map(|route| {
            assert_eq!(route.pass_unidentified, Some(true), "{}", route.path);
            assert_eq!((route.reserve_tokens, &route.methods[..]), (0, &[http::Method::POST][..]));
            let own: Vec<_> = route.audit.iter().map(|rule| rule.event_type.as_str()).collect();
            let (standard, own) = own.split_at(own.len() - 2);
            assert_eq!(own, ["api_error", "quota_exceeded"], "{}", route.path);
            (route.path.as_str(), route.event.as_str(), standard.join(", "))
        })
        .collect();
    let expected = [
        ("/api/widget/session", "api_call", "chat_session_created"),
        ("/api/embed-batch", "embedding", ""),
        ("/api/trial/start", "api_call", "trial_created"),
        ("/api/admin/trials/{tenant}/upgrade", "api_call", "trial_upgraded"),
        ("/api/admin/trials/{tenant}/extend", "api_call", "trial_extended"),
        ("/api/trial/branding", "api_call", "branding_updated"),
        ("/api/trial/kb/upload", "kb_ingest", "kb_uploaded, kb_upload_failed"),
        ("/api/trial/kb/crawl", "kb_ingest", "kb_crawled"),
        ("/api/trial/kb/manual", "kb_ingest", "kb_manual_added"),
    ];
    assert_eq!(others, expected.map(|(path, event, own)| (path, event, own.to_owned())));
    let upload = settings.routes.iter().find(|route| route.path.ends_with("upload")).unwrap();
    assert_eq!(upload.body, BodyConfig::Opaque { max_bytes: None });
    assert!(
        settings.warnings().iter().all(|warning| !warning.starts_with("routes")),
        "{:?}",
        settings.warnings()
    );
}

#[test]
fn a_route_says_which_model_prices_what_names_none() {
    let route = |keys: &str| load(&format!("[[routes]]\n{keys}")).routes.remove(0);
    let believes = |path: &str, keys: &str| route(&format!("path = \"{path}\"\n{keys}")).model.request;
    // An application takes its model from its own settings, whatever its client says.
    for path in ["/api/widget/chat", "/api/chat", "/api/generate", "/completions"] {
        assert!(!believes(path, ""), "{path}");
    }
    for path in ["/v1/chat/completions", "/openai/v1/responses", "/v1/messages/"] {
        assert!(believes(path, ""), "{path}");
        assert!(!believes(path, "request_model = false\n"), "{path}");
        assert!(!believes(path, "model = \"gpt-4o\"\n"), "{path}: it has one of its own");
        assert!(believes(path, "model = \"gpt-4o\"\nrequest_model = true\n"), "{path}");
        assert!(!believes(path, "format = \"vercel-ai\"\n"), "{path}");
    }
    for format in ["openai-chat", "anthropic", "gemini", "ollama"] {
        assert!(believes("/api/chat", &format!("format = \"{format}\"\n")), "{format}");
    }
    let keys = "path = \"/v1/models/{owner}/{name}/run\"\nmodel = \"m\"\nmodel_segment = \"owner/name\"\n\
                models = { \"a/b\" = \"gpt-4o\" }\nnarrow_accept_encoding = false\n";
    let route = route(keys);
    assert_eq!(
        route.model,
        ModelConfig {
            route: Some("m".into()),
            request: false,
            segment: Some("owner/name".into()),
            names: BTreeMap::from([("a/b".into(), "gpt-4o".into())]),
        }
    );
    assert!(!route.narrow_accept_encoding);
    let printed = load(&load(&format!("[[routes]]\n{keys}")).masked());
    assert_eq!(printed.routes, [route], "as it is printed, it comes to the same");
    assert!(load("").routes.iter().all(|route| route.narrow_accept_encoding && !route.model.request));
}

#[test]
fn faults_of_a_routes_models_and_patterns_are_told_at_once() {
    let file = File::with(
        "[[routes]]\npath = \"/a/{x}\"\nmodel = \"\"\nrequest_model = 1\nmodel_segment = \"x/y\"\n\
         models = { a = 1 }\nnarrow_accept_encoding = \"yes\"\n\
         [[routes]]\npath = \"/b/{x}{y}\"\n[[routes]]\npath = \"/c/pre{x}\"\n\
         [[routes]]\npath = \"/d/{x}:%67o\"\n[[routes]]\npath = \"/e/{x-y}:go\"\n\
         [[routes]]\npath = \"/f/{x}:go/{x}\"\n[[routes]]\npath = \"/g/{x}:go\"\n\
         [[routes]]\npath = \"/g/{y}:go\"\n[[routes]]\npath = \"/g/{y}:stop\"\n",
    );
    let faults: Vec<_> =
        file.faults().into_iter().map(|(_, key, reason)| format!("{key}: {reason}")).collect();
    assert_eq!(
        faults,
        [
            "routes[0].model: is empty: write a model's name",
            "routes[0].request_model: must be true or false, not a whole number",
            "routes[0].model_segment: \"y\" is no segment of /a/{x}: write {y} in the path",
            "routes[0].models.a: must be a string, not a whole number",
            "routes[0].narrow_accept_encoding: must be true or false, not a string",
            "routes[1].path: \"/b/{x}{y}\" holds \"{x}{y}\": one segment has one name",
            "routes[2].path: \"/c/pre{x}\" holds \"pre{x}\": {name} stands for a segment, or for its beginning, as in {name}:verb",
            "routes[3].path: \"/d/{x}:%67o\" holds \"{x}:%67o\": write what follows the name unescaped",
            "routes[4].path: \"/e/{x-y}:go\" holds \"{x-y}:go\": a name is of letters, digits and _",
            "routes[5].path: \"/f/{x}:go/{x}\" holds \"{x}\" twice: give each its own name",
            "routes[7]: is the same path and method as routes[6]: remove one of them",
        ]
    );
}

#[test]
fn a_route_says_what_a_leaving_client_costs() {
    let route = |keys: &str| load(&format!("[[routes]]\npath = \"/x\"\n{keys}")).routes.remove(0);
    assert_eq!(route("on_client_gone = \"cancel\"\ndrain_time = \"5s\"\n").drain, None);
    let drain = route("on_client_gone = \"drain\"\n").drain.unwrap();
    assert_eq!((drain.time, drain.bytes), (Duration::from_secs(60), 16 << 20));
    let drain = route("on_client_gone = \"drain\"\ndrain_time = \"5s\"\ndrain_bytes = \"1MiB\"\n").drain;
    assert_eq!(drain.unwrap(), DrainConfig { time: Duration::from_secs(5), bytes: 1 << 20 });
}

#[test]
fn a_route_says_how_a_stream_over_the_limit_ends() {
    let route = |keys: &str| load(&format!("[[routes]]\npath = \"/x\"\n{keys}")).routes.remove(0);
    assert_eq!(route("cut_event = \"data: bye\"\n").cut, None);
    assert_eq!(route("over_limit = \"cut\"\n").cut.unwrap(), CutConfig { event: None });
    let cut = route("over_limit = \"cut\"\ncut_event = \"data: bye, {request_id}\"\n").cut.unwrap();
    assert_eq!(cut.event, CutEvent::new("data: bye, {request_id}\n\n").ok());
    assert!(route("over_limit = \"cut\"\nenforce = \"shadow\"\n").cut.is_some());
}

#[test]
fn faults_of_a_routes_endings_are_told_at_once() {
    let file = File::with(
        "[server]\nmax_drains = -1\n\
         [[routes]]\npath = \"/x\"\non_client_gone = \"wait\"\ndrain_time = \"0s\"\ndrain_bytes = 5\n\
         over_limit = \"stop\"\ncut_event = \"data: {user}\"\n\
         [[routes]]\npath = \"/y\"\nenforce = \"off\"\nover_limit = \"cut\"\ncut_event = \"\"\n",
    );
    let faults: Vec<_> =
        file.faults().into_iter().map(|(_, key, reason)| format!("{key}: {reason}")).collect();
    let names = "{request_id}, {dimension}, {limit}, {resets_at}, {tokens}";
    assert_eq!(
        faults,
        [
            "server.max_drains: -1 must be between 0 and 1000000",
            "routes[0].on_client_gone: \"wait\" is not known: write \"cancel\" or \"drain\"",
            "routes[0].drain_time: \"0s\" must be between 1ms and 1h",
            "routes[0].drain_bytes: must be a string with a number and a unit, such as \"64KiB\", not a whole number",
            "routes[0].over_limit: \"stop\" is not known: write \"finish\" or \"cut\"",
            &format!("routes[0].cut_event: holds {{user}}, which stands for nothing: there are {names}"),
            "routes[1].over_limit: \"cut\" needs a limit to be held to: write enforce = \"hard\", or \"shadow\" to try it out",
            "routes[1].cut_event: is empty: write the last event of the stream",
        ]
    );
}

#[test]
fn what_look_ups_and_charges_do_is_read_and_its_faults_are_told() {
    let shipped = load("");
    assert!(shipped.refuse_broken_look_ups && !shipped.identify.unknown_session_not_found);
    let free: Vec<&str> =
        shipped.routes.iter().filter(|route| !route.charge).map(|route| route.path.as_str()).collect();
    let named_by_anyone =
        ["/api/widget/session", "/api/admin/trials/{tenant}/upgrade", "/api/admin/trials/{tenant}/extend"];
    assert_eq!(free, named_by_anyone);
    for plan in ["unresolved", "unresolved_client"] {
        assert!(shipped.plans[&plan.into()].limits.iter().any(|(_, limit)| limit.is_some()), "{plan}");
    }
    for (route, charges) in [
        ("", true),
        ("sources = [{ header = \"x-t\" }]", true),
        ("sources = [{ header = \"x-t\" }, { query = \"t\" }]", false),
        ("sources = [{ path = \"t\" }]", false),
        ("sources = [{ json = \"/t\" }]\ncharge = true", true),
    ] {
        let settings = load(&format!("[[routes]]\npath = \"/x/{{t}}\"\n{route}\n"));
        assert_eq!(settings.routes[0].charge, charges, "{route}");
        let told = settings.warnings().join("\n").contains("charged to none");
        assert_eq!(told, !charges, "{route}");
    }
    let other = load("[tenant]\nlook_up_check = \"warn\"\nunknown_session = \"not_found\"\n");
    assert!(!other.refuse_broken_look_ups && other.identify.unknown_session_not_found);
    let file = File::with(
        "[tenant]\nlook_up_check = true\nunknown_session = \"404\"\n[[routes]]\npath = \"/x\"\ncharge = \"no\"\n",
    );
    let keys: Vec<String> = file.faults().into_iter().map(|(_, key, _)| key).collect();
    assert_eq!(keys, ["tenant.look_up_check", "tenant.unknown_session", "routes[0].charge"]);
}

#[test]
fn limits_of_connections_are_read_and_http_is_nothing_to_switch_to() {
    let settings = load(
        "[server]\nmax_connections_per_client = 0\nkeep_alive_timeout = \"2m\"\nupgrades = [\"WebSocket\", \"x-own/2\"]\n\
         upgrade_idle_timeout = \"1h\"\n",
    );
    let server = &settings.server;
    assert_eq!(server.max_connections_per_client, 0);
    assert_eq!(
        (server.keep_alive_timeout, server.upgrade_idle_timeout),
        (Duration::from_secs(120), Duration::from_secs(3600))
    );
    assert_eq!(server.upgrades, ["websocket", "x-own/2"]);
    let file = File::with(
        "[server]\nmax_connections_per_client = -1\nkeep_alive_timeout = \"0s\"\nupgrade_idle_timeout = 5\n\
         upgrades = [\"websocket\", \"H2C\", \"TLS/1.2\", \"a b\"]\n",
    );
    let faults: Vec<_> =
        file.faults().into_iter().map(|(_, key, reason)| format!("{key}: {reason}")).collect();
    assert_eq!(
        faults,
        [
            "server.max_connections_per_client: -1 must be between 0 and 10000000",
            "server.keep_alive_timeout: \"0s\" must be between 1ms and 1d",
            "server.upgrade_idle_timeout: must be a string with a number and a unit, such as \"30s\", not a whole number",
            "server.upgrades[1]: \"H2C\" carries HTTP calls that nobody would meter: remove it",
            "server.upgrades[2]: \"TLS/1.2\" carries HTTP calls that nobody would meter: remove it",
            "server.upgrades[3]: \"a b\" is no protocol's name: write one as in an Upgrade header, such as \"websocket\"",
        ]
    );
}

#[test]
fn what_an_unread_body_is_charged_as_is_read_per_route() {
    let settings = load("[[routes]]\npath = \"/a\"\nunread_items = 20\n[[routes]]\npath = \"/b\"\n");
    let items: Vec<_> = settings.routes.iter().map(|route| route.unread_items).collect();
    assert_eq!(items, [Some(20), None]);
    let file = File::with(
        "[[routes]]\npath = \"/a\"\nunread_items = 0\n[[routes]]\npath = \"/API/b\"\n[[routes]]\npath = \"/api/B\"\n",
    );
    let faults = file.faults();
    let told = |key: &str, begin: &str| faults.iter().any(|(_, at, why)| at == key && why.starts_with(begin));
    assert!(told("routes[0].unread_items", "0 must be between 1 and"), "{faults:?}");
    assert!(told("routes[2]", "is the same path and method as routes[1]"), "capitals aside: {faults:?}");
}

#[test]
fn one_tenant_has_one_override_however_its_uuid_is_written() {
    let id = "a1b2c3d4-0000-4000-8000-abcdefabcdef";
    let table = |id: &str| format!("[overrides.\"{id}\"]\nplan = \"pro\"\n");
    let settings = load(&table(&id.to_uppercase()));
    assert!(settings.overrides.contains_key(id));
    let faults = File::with(&format!("{}{}", table(id), table(&id.to_uppercase()))).faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].2.starts_with(&format!("has {id} twice")), "{faults:?}");
}

#[test]
fn limits_of_cost_of_what_runs_at_once_and_soft_ones_are_read() {
    let plan = "cost_usd_per_month = 12.5\nconcurrent_requests = 4\ntokens_per_day = 7\nsoft = [\"tokens_per_day\"]\n";
    let settings = load(&format!(
        "[plans.trial]\n{plan}[overrides.tn_one]\ncost_usd_per_day = \"unlimited\"\nsoft = []\n"
    ));
    let trial = &settings.plans[&"trial".into()].limits;
    assert_eq!(limit(trial, "cost_usd_per_month"), Some(12_500_000_000));
    assert_eq!(limit(trial, "concurrent_requests"), Some(4));
    let soft = |dimension: &str| trial.is_soft(dimension.parse().unwrap());
    assert_eq!((soft("tokens_per_day"), soft("concurrent_requests")), (true, false));
    let override_of_one = &settings.overrides[&TenantId::parse("tn_one").unwrap()];
    assert_eq!(override_of_one.soft, Some(Vec::new()));
    assert_eq!(override_of_one.limits, [("cost_usd_per_day".parse().unwrap(), None)]);
    let variables = [("TOLLGATE__PLANS__TRIAL__COST_USD_PER_DAY", "0.25")];
    assert_eq!(
        limit(&load_with(variables).plans[&"trial".into()].limits, "cost_usd_per_day"),
        Some(250_000_000)
    );
}

#[test]
fn faults_of_more_limits_and_of_a_routes_words_are_told_at_once() {
    let file = File::with(
        "[plans.trial]\ncost_usd_per_day = -1\nconcurrent_requests = 1.5\nsoft = [\"tokens\"]\n\
         [plans.pro]\ntokens_per_month = 5\nsoft = [\"tokens_per_hour\"]\n\
         [plans.starter]\nconcurrent_requests_per_day = 5\n\
         [[routes]]\npath = \"/x\"\nrefusal = '{\"a\": {error}}'\n\
         [[routes]]\npath = \"/y\"\nrefusal = '{\"a\": {user}}'\n",
    );
    let faults: Vec<_> =
        file.faults().into_iter().map(|(_, key, reason)| format!("{key}: {reason}")).collect();
    let told =
        |start: &str| assert!(faults.iter().any(|fault| fault.starts_with(start)), "{start}: {faults:#?}");
    told("plans.trial.cost_usd_per_day: -1 is no limit: write US dollars, 0 or more");
    told("plans.trial.concurrent_requests: must be a whole number");
    told("plans.trial.soft[0]: \"tokens\" is no quota dimension: ");
    told("plans.pro: soft names tokens_per_hour, which has no limit here");
    told("plans.starter.concurrent_requests_per_day: is no key here: ");
    told("routes[0].refusal: is no JSON once it is filled: ");
    told("routes[1].refusal: holds {user}, which stands for nothing: there are {error}, ");
    assert_eq!(faults.len(), 7, "{faults:#?}");
}

#[test]
fn audit_rules_of_a_file_replace_the_shared_ones_and_none_can_be_left() {
    let route = "[[routes]]\npath = \"/x\"\n";
    assert_eq!(load(route).routes[0].audit.len(), 2, "what holds for every event");
    assert!(load(&format!("audit = []\n{route}")).routes[0].audit.is_empty());
    let rule = "[[audit]]\nevents = [\"search\", \"api_call\"]\nevent_type = \"seen\"\ncategory = \"error\"\nentity_type = \"call\"\n\
        action = \"read\"\nwhen = [\"201\", \"4xx\"]\n";
    let settings = load(&format!("{rule}{route}[[routes]]\npath = \"/y\"\nevent = \"embedding\"\n"));
    let kinds =
        |at: usize| settings.routes[at].audit.iter().map(|rule| rule.event_type.as_str()).collect::<Vec<_>>();
    assert_eq!((kinds(0), kinds(1)), (vec!["seen"], vec![]));
    assert_eq!(settings.routes[0].audit[0].when, AuditWhen::Statuses(vec![201..=201, 400..=499]));
}

#[test]
fn fault_86_each_wrong_key_of_routes_and_audit_rules_says_what_to_do() {
    let file = File::with(&std::fs::read_to_string(case("broken-audit.toml")).unwrap());
    let seen: String =
        file.faults().iter().map(|(line, key, reason)| format!("{line} {key}: {reason}\n")).collect();
    let expected = std::fs::read_to_string(case("broken-audit.txt")).unwrap_or_default();
    assert!(seen == expected, "expected\n{expected}\nseen\n{seen}");
}

#[test]
fn a_routes_own_sources_are_warned_of_as_the_others_are() {
    let settings = load(
        "[[routes]]\npath = \"/x/{tenant}\"\nsources = [{ path = \"tenant\" }, { query = \"t\" }, { json = \"/t\" }]\n",
    );
    let warnings: Vec<_> =
        settings.warnings().into_iter().filter(|warning| warning.starts_with("routes[0].sources")).collect();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}

#[test]
fn formats_of_the_config_stand_beside_the_built_in_ones_and_routes_name_one() {
    let mine = "[formats.mine]\ntotal = [\"/n\"]\nrequest = { session = [\"/s\"] }\n";
    let route = |name: &str| format!("{mine}[[routes]]\npath = \"/x\"\nformat = \"{name}\"\n");
    for name in ["mine", "auto", "openai-chat"] {
        let settings = load(&route(name));
        assert!(settings.formats.format(&settings.routes[0].format).is_some(), "{name}");
    }
    let joining = load(&mine.replace("total", "auto = true\ntotal"));
    assert!(joining.masked().contains("[formats.mine]\nauto = true"), "{}", joining.masked());
    let faults = File::with(&mine.replace("total", "auto = 1\ntotal")).faults();
    assert_eq!(faults[0].1, "formats.mine.auto");
    let faults = File::with(&route("openai-chta")).faults();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].2.contains("did you mean \"openai-chat\"?"), "{faults:?}");
    let faults = File::with("[formats.mine]\ninput = [\"usage\"]\n").faults();
    assert_eq!(faults[0].1, "formats.mine");
    assert!(faults[0].2.starts_with("input: "), "{faults:?}");
}

#[test]
fn a_format_of_the_config_names_calls_headers_parts_and_what_has_a_price_of_its_own() {
    let format = "
[formats.mine]
input = [\"/in\"]
envelopes = [\"/result\"]
parts = { \"/usage/parts/*/type\" = [\"message\"] }
named = { \"/usage/details/*/kind\" = [\"count\"] }
calls = { each = [\"/messages/*\"], id = [\"/messages/*/id\"], turn_when = { \"/messages/*/type\" = [\"human\"] } }
headers = { output = [\"x-out\"], reported_cost = [\"x-cost\"] }
billing = { tier = [\"/tier\"], web_searches_when = { \"/items/*/type\" = [\"search\"] }, reported_cost = [\"/cost\"] }
";
    assert!(load(format).formats.format("mine").is_some());
    for (wrong, key, reason) in [
        ("headers = { inptu = [] }", "formats.mine.headers.inptu", "is no key here"),
        ("calls = { each = [\"messages\"] }", "formats.mine", "calls.each: "),
        ("headers = { input = [\"a b\"] }", "formats.mine", "headers: "),
    ] {
        let faults = File::with(&format!("[formats.mine]\n{wrong}\n")).faults();
        assert_eq!((faults.len(), faults[0].1.as_str()), (1, key), "{faults:?}");
        assert!(faults[0].2.starts_with(reason), "{faults:?}");
    }
}

#[test]
fn one_calls_usage_has_a_bound_that_is_no_zero() {
    assert_eq!(load("").meter.max_call_tokens, 10_000_000);
    assert_eq!(load("[metering]\nmax_call_tokens = 5000\n").meter.max_call_tokens, 5_000);
    let faults = File::with("[metering]\nmax_call_tokens = 0\n").faults();
    assert_eq!(faults[0].1, "metering.max_call_tokens");
}

#[test]
fn a_file_can_take_the_plan_query_away() {
    assert!(Settings::load(None, &Environment::new()).unwrap().identify.plan_query.is_some());
    assert_eq!(load("[tenant]\nplan_query = \"\"\n").identify.plan_query, None);
}

#[test]
fn database_url_holds_where_nothing_else_gives_one() {
    let url = |settings: &Settings| settings.database.as_ref().map(|database| database.url.clone());
    let given = environment([("DATABASE_URL", "postgres://u:p@env/db")]);
    assert_eq!(url(&Settings::load(None, &given).unwrap()).as_deref(), Some("postgres://u:p@env/db"));
    let file = File::with("[database]\nurl = \"postgres://u:p@file/db\"\n");
    assert_eq!(url(&file.load(&given).unwrap()).as_deref(), Some("postgres://u:p@file/db"));
    assert_eq!(fault_of([("DATABASE_URL", "")]).origin, "DATABASE_URL");
}

#[test]
fn fault_95_an_empty_secret_refuses_to_start() {
    for variable in ["ADMIN_TOKEN", "ADMIN_VIEWER_TOKEN", "CRON_SECRET", "JWT_SECRET"] {
        let fault = fault_of([(variable, "")]);
        assert_eq!(fault.origin, variable);
        assert_eq!(fault.reason, "is set, but empty: give it a value, or unset it");
        assert_eq!(fault_of([(variable, " x")]).origin, variable);
        assert_eq!(fault_of([(variable, "x\n")]).origin, variable);
    }
}

#[test]
fn secrets_of_the_environment_reach_their_part() {
    let settings = load_with([
        ("ADMIN_TOKEN", "operator"),
        ("ADMIN_VIEWER_TOKEN", "viewer"),
        ("CRON_SECRET", "cron"),
        ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
    ]);
    assert_eq!(settings.admin.operator_token.as_deref(), Some("operator"));
    assert_eq!(settings.admin.viewer_token.as_deref(), Some("viewer"));
    assert_eq!(settings.admin.cron_secret.as_deref(), Some("cron"));
    let SourceConfig::Jwt { key: JwtKey::Hs256 { secret, .. }, .. } = &settings.identify.sources[0] else {
        panic!("the first source is a token")
    };
    assert_eq!(secret.as_deref(), Some("0123456789abcdef0123456789abcdef"));
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    let settings = load_with([
        ("ADMIN_TOKEN", "hunter2-operator"),
        ("ADMIN_VIEWER_TOKEN", "hunter2-viewer"),
        ("CRON_SECRET", "hunter2-cron"),
        ("JWT_SECRET", "hunter2-jwt"),
        ("DATABASE_URL", "postgres://tollgate:hunter2-db@db/x?sslmode=require"),
        ("TOLLGATE__SERVICE_DATABASE__URL", "postgres://ro:hunter2-ro@db/y"),
    ]);
    let printed = [
        settings.masked(),
        format!("{settings:?}"),
        format!("{settings:#?}"),
        settings.warnings().join("\n"),
    ];
    for text in printed {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let masked = settings.masked();
    assert!(
        masked.contains("url = \"postgres://tollgate:***@db/x?sslmode=require\"  # DATABASE_URL"),
        "{masked}"
    );
    assert!(masked.contains("# ADMIN_TOKEN: ***"), "{masked}");
}

#[test]
fn what_is_printed_is_a_config_that_comes_to_the_same() {
    let first = Settings::load(Some(Path::new("config/example.toml")), &Environment::new()).unwrap();
    let second = load(&first.masked());
    assert_eq!(first.server, second.server);
    assert_eq!(first.identify, second.identify);
    assert_eq!(first.routes, second.routes);
    assert_eq!(first.plans, second.plans);
    assert_eq!(first.overrides, second.overrides);
    assert_eq!(first.prices, second.prices);
    assert_eq!(first.record, second.record);
    assert_eq!(second.changes_from(&first), []);
}

#[test]
fn what_cannot_work_or_is_open_to_all_is_warned_of() {
    let warnings = |text: &str, environment: &Environment| {
        File::with(text).load(environment).unwrap().warnings().join("\n")
    };
    let bare = warnings("", &Environment::new());
    for part in [
        "JWT_SECRET is not set",
        "no session can be looked up",
        "tenant.plan_query",
        "ADMIN_TOKEN nor ADMIN_VIEWER_TOKEN",
    ] {
        assert!(bare.contains(part), "{part}: {bare}");
    }
    let whole = environment([
        ("JWT_SECRET", "0123456789abcdef0123456789abcdef"),
        ("ADMIN_TOKEN", "operator-of-16-b"),
        ("DATABASE_URL", "postgres://u@h/db"),
    ]);
    assert_eq!(warnings("", &whole), "");
    let guessed =
        warnings("", &environment([("ADMIN_VIEWER_TOKEN", "viewer-of-15-b"), ("CRON_SECRET", "c")]));
    for variable in ["ADMIN_VIEWER_TOKEN", "CRON_SECRET"] {
        assert!(guessed.contains(&format!("{variable} is shorter than 16 bytes")), "{guessed}");
    }
    let open = "[tenant]\nsources = [{ header = \"x-t\" }, { json = \"/t\" }, { query = \"t\" }]\n\
                trust_header_from = [\"0.0.0.0/0\"]\n";
    let open = warnings(open, &whole);
    assert_eq!(open.matches("can be any tenant").count(), 3, "{open}");
    let deaf = warnings("[tenant]\nsources = [{ header = \"x-t\" }]\n", &whole);
    assert!(deaf.contains("is believed from nobody"), "{deaf}");
    let short = warnings("", &environment([("JWT_SECRET", "s3cret")]));
    assert!(short.contains("RFC 7518"), "{short}");
    let slip =
        warnings("", &environment([("TOLLGATE_SERVER_LISTEN", "x"), ("TOLLGATE_PORT_80_TCP", "tcp://x")]));
    assert!(slip.contains("TOLLGATE__SERVER__LISTEN") && !slip.contains("TOLLGATE_PORT"), "{slip}");
}

#[test]
fn a_public_key_is_read_beside_the_config_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(case("es256.pem"), directory.path().join("jwt.pem")).unwrap();
    let config = directory.path().join("tollgate.toml");
    let text = "[tenant]\nsources = [{ jwt = { claim = \"sub\", public_key_file = \"jwt.pem\", algorithm = \"ES256\" } }]\n";
    std::fs::write(&config, text).unwrap();
    let settings = Settings::load(Some(&config), &Environment::new()).unwrap();
    let SourceConfig::Jwt { key: JwtKey::Pem { pem, algorithm, .. }, .. } = &settings.identify.sources[0]
    else {
        panic!("the source is a token")
    };
    assert_eq!(*algorithm, jsonwebtoken::Algorithm::ES256);
    assert_eq!(*pem, std::fs::read(case("es256.pem")).unwrap());
    std::fs::write(&config, text.replace("ES256", "RS256")).unwrap();
    let faults = Settings::load(Some(&config), &Environment::new()).unwrap_err();
    assert!(faults.to_string().contains("holds no public key for RS256"), "{faults}");
}

#[test]
fn listeners_that_can_not_both_be_had_are_a_fault() {
    let both = |listen: &str, admin: &str| {
        let text = format!("[server]\nlisten = \"{listen}\"\nadmin_listen = \"{admin}\"\n");
        File::with(&text).load(&Environment::new()).map(drop)
    };
    assert!(both("127.0.0.1:8080", "127.0.0.1:8080").is_err());
    assert!(both("0.0.0.0:8080", "127.0.0.1:8080").is_err());
    assert!(both("127.0.0.1:0", "127.0.0.1:0").is_ok());
    assert!(both("127.0.0.1:8080", "127.0.0.2:8080").is_ok());
}

#[test]
fn the_memory_for_requests_and_the_pace_of_bodies_are_read_and_checked() {
    let server = load("").server;
    assert_eq!((server.max_buffered_bytes, server.max_client_buffered_bytes), (256 << 20, 64 << 20));
    assert_eq!((server.buffer_wait.as_secs(), server.min_body_rate), (5, 1024));
    assert_eq!((server.body_grace.as_secs(), server.body_timeout.as_secs()), (30, 300));
    let none = load("[server]\nmin_body_rate = \"0B\"\nbuffer_wait = \"0ms\"\n").server;
    assert_eq!((none.min_body_rate, none.buffer_wait.as_secs()), (0, 0));
    for (key, text, words) in [
        ("max_client_buffered_bytes", "max_client_buffered_bytes = \"1GiB\"", "larger than the whole"),
        (
            "max_client_buffered_bytes",
            "max_client_buffered_bytes = \"256KiB\"",
            "a large head would never fit",
        ),
        ("max_buffered_bytes", "max_buffered_bytes = \"1KiB\"\nmax_client_buffered_bytes = \"512KiB\"", ""),
        ("body_grace", "body_grace = \"0s\"", ""),
    ] {
        let faults = File::with(&format!("[server]\n{text}\n")).faults();
        let fault = faults.iter().find(|fault| fault.1 == format!("server.{key}"));
        assert!(fault.is_some_and(|fault| fault.2.contains(words)), "{text}: {faults:?}");
    }
}

#[test]
fn a_body_that_no_address_may_hold_is_warned_of() {
    let route = |bytes: &str| {
        let text = format!("[[routes]]\npath = \"/large\"\nmax_body_bytes = \"{bytes}\"\n");
        load(&text).warnings().into_iter().filter(|warning| warning.contains("max_body_bytes")).count()
    };
    assert_eq!([route("48MiB"), route("60MiB")], [0, 1]);
}

#[test]
fn a_name_for_via_is_a_token_or_a_host() {
    let via = |name: &str| File::with(&format!("[upstream]\nvia = \"{name}\"\n"));
    assert_eq!(load("").upstream.via, None);
    for name in ["tollgate", "gate.example:8080", "[::1]:80"] {
        assert_eq!(via(name).load(&Environment::new()).unwrap().upstream.via.as_deref(), Some(name));
    }
    for name in ["two words", "a, b", "a(b)"] {
        assert_eq!(via(name).faults()[0].1, "upstream.via", "{name}");
    }
}

#[test]
fn an_upstream_that_is_the_gateway_itself_is_a_fault() {
    let loops = |url: &str| {
        let text = format!("[upstream]\nurl = \"{url}\"\n[server]\nlisten = \"0.0.0.0:8080\"\n");
        File::with(&text).load(&Environment::new()).is_err()
    };
    assert!(loops("http://127.0.0.1:8080") && loops("http://localhost:8080"));
    assert!(!loops("http://127.0.0.1:3000") && !loops("http://10.0.0.7:8080"));
}

#[test]
fn a_reload_tells_what_changed_and_what_needs_a_restart() {
    let old = load("[server]\nlisten = \"127.0.0.1:1\"\n[database]\nurl = \"postgres://u:old@h/db\"\n");
    let new = load(
        "[server]\nlisten = \"127.0.0.1:2\"\n[database]\nurl = \"postgres://u:new@h/db\"\n\
         [plans.trial]\ntokens_per_day = 7\n[overrides.tn_x]\nplan = \"pro\"\n",
    );
    let changes = new.changes_from(&old);
    let keys: Vec<(&str, bool)> =
        changes.iter().map(|change| (change.key.as_str(), change.needs_restart)).collect();
    let expected = [
        ("database.url", true),
        ("overrides.tn_x.plan", false),
        ("plans.trial.tokens_per_day", false),
        ("server.listen", true),
    ];
    assert_eq!(keys, expected);
    assert_eq!(changes[0].new.as_deref(), Some("\"postgres://u:***@h/db\""));
    assert_eq!((changes[1].old.as_deref(), changes[1].new.as_deref()), (None, Some("\"pro\"")));
    assert_eq!((changes[2].old.as_deref(), changes[2].new.as_deref()), (Some("10000"), Some("7")));
    assert_eq!(old.changes_from(&old), []);
    assert!(
        !needs_restart("routes[0].enforce")
            && needs_restart("data.dir")
            && needs_restart("database.on_outage")
            && !needs_restart("metering.count_wait")
    );
}

#[test]
fn a_reload_reads_the_same_file_again_with_the_same_environment() {
    let file = File::with("[server]\nworkers = 1\n");
    let settings = file.load(&environment([("TOLLGATE__SERVER__MAX_CONNECTIONS", "5")])).unwrap();
    std::fs::write(file.0.path(), "[server]\nworkers = 2\n").unwrap();
    let again = settings.reload().unwrap();
    assert_eq!((again.server.workers, again.server.max_connections), (2, 5));
    std::fs::write(file.0.path(), "[server]\nworkers = \n").unwrap();
    assert!(settings.reload().is_err());
}

#[test]
fn a_fault_found_when_a_value_is_used_names_its_key_and_place() {
    let settings = load_with([("TOLLGATE__SERVER__LISTEN", "127.0.0.1:1")]);
    let fault = settings.fault("server.listen", "is taken");
    assert_eq!(fault.to_string(), "TOLLGATE__SERVER__LISTEN: server.listen: is taken");
    assert_eq!(settings.fault("server.admin_listen", "is taken").0[0].origin, "built-in default");
}

/// Whatever is typed, it ends in a config or in faults.
mod anything {
    use proptest::prelude::*;

    use super::*;

    fn ends_well(text: &str, variables: &Environment) {
        match File::with(text).load(variables) {
            Ok(settings) => assert!(!settings.masked().is_empty()),
            Err(faults) => {
                assert!(!faults.0.is_empty() && faults.0.iter().all(|fault| !fault.reason.is_empty()))
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_file_with_a_piece_torn_out(from in 0usize..2_000, length in 0usize..60, instead in "\\PC{0,8}") {
            for name in ["config/example.toml", "tests/cases/config/broken.toml", "config/default.toml"] {
                let text: Vec<char> = std::fs::read_to_string(name).unwrap().chars().collect();
                let from = from.min(text.len());
                let to = (from + length).min(text.len());
                let torn: String = text[..from].iter().copied().chain(instead.chars()).chain(text[to..].iter().copied()).collect();
                ends_well(&torn, &Environment::new());
            }
        }

        #[test]
        fn any_value_of_any_variable(key in "[A-Z_a-z0-9.\\[\\]]{0,20}", value in "\\PC{0,20}") {
            let keys = [format!("TOLLGATE__{key}"), format!("TOLLGATE__TENANT__{key}"), "TOLLGATE__ROUTES".into()];
            for key in keys {
                ends_well("", &[(key, value.clone())].into());
            }
        }
    }
}

fn tollgate<const N: usize>(arguments: &[&str], variables: [(&str, &str); N]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).env_clear().envs(variables).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn check_config_prints_a_good_config_and_ends_with_0() {
    let output = tollgate(&["check-config", "--config", "config/example.toml"], [("JWT_SECRET", "hunter2")]);
    assert_eq!(output.status.code(), Some(0));
    let printed = text(&output.stdout);
    assert!(printed.contains("listen = \"10.20.0.11:8080\"  # config/example.toml:10\n"), "{printed}");
    assert!(text(&output.stderr).contains("warning: "));
    assert!(!printed.contains("hunter2") && !text(&output.stderr).contains("hunter2"));
}

#[test]
fn check_config_tells_the_faults_of_a_bad_config_and_ends_with_2() {
    let output = tollgate(&["check-config", "--config", "tests/cases/config/broken.toml"], []);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let told = text(&output.stderr);
    assert!(
        told.contains("broken.toml:6: server.worker: is no key here; did you mean \"workers\"?\n"),
        "{told}"
    );
    assert!(told.ends_with(" faults in the config\n"), "{told}");
}

#[test]
fn serve_refuses_a_bad_config_with_2_before_it_starts_anything() {
    let output = tollgate(&["serve"], [("TOLLGATE__UPSTREAM__URL", "nowhere")]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    let told = text(&output.stderr);
    assert!(told.starts_with("TOLLGATE__UPSTREAM__URL: upstream.url: "), "{told}");
}

#[test]
fn bad_usage_ends_with_2_and_help_with_0() {
    for arguments in [&[][..], &["no-such-command"], &["serve", "--colour"], &["serve", "extra"]] {
        assert_eq!(tollgate(arguments, []).status.code(), Some(2), "{arguments:?}");
    }
    for command in [
        "serve",
        "demo",
        "migrate",
        "check-config",
        "aggregate",
        "prices",
        "verify-quota",
        "reconcile",
        "replicas",
    ] {
        let output = tollgate(&[command, "--help"], []);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("Example:\n  "), "{command}");
    }
    let version = tollgate(&["--version"], []);
    assert_eq!(text(&version.stdout), format!("tollgate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn alerts_are_sent_only_signed_and_their_faults_are_told_at_once() {
    let alerts = load("").alerts.unwrap();
    assert_eq!((alerts.webhook, alerts.alertness.quota_thresholds), (None, vec![50.0, 80.0, 100.0]));
    assert_eq!(load("[alerts]\nenabled = false\n").alerts, None);
    let file = File::with("[alerts]\nwebhook_url = \"https://hooks.example/T0KEN?key=T0KEN\"\n");
    let unsigned = file.load(&Environment::new()).unwrap_err().to_string();
    assert!(unsigned.contains("alerts.webhook_url: needs a secret"), "{unsigned}");
    let empty = file.load(&environment([("ALERT_WEBHOOK_SECRET", "")])).unwrap_err().to_string();
    assert_eq!(empty, "ALERT_WEBHOOK_SECRET: is set, but empty: give it a value, or unset it");
    let signed = file.load(&environment([("ALERT_WEBHOOK_SECRET", "hunter2")])).unwrap();
    let shown = signed.masked();
    assert!(shown.contains("webhook_url = \"https://hooks.example/***\""), "{shown}");
    assert!(shown.contains("# ALERT_WEBHOOK_SECRET: ***"), "{shown}");
    assert!(!shown.contains("T0KEN") && !shown.contains("hunter2"), "{shown}");

    let file = File::with(
        r#"[alerts]
enabled = "yes"
interval = "0s"
quota_thresholds = [50, 0, "80"]
quota_windows = ["day", "year"]
error_rate = 5
min_calls = 0
p99 = 5
cost_factor = 0.5
webhook_url = "hooks.example/T0KEN"
max_attempts = 0
"#,
    );
    let faults: Vec<_> =
        file.faults().into_iter().map(|(line, key, why)| format!("{line} {key}: {why}")).collect();
    assert_eq!(
        faults,
        [
            "2 alerts.enabled: must be true or false, not a string",
            "3 alerts.interval: \"0s\" must be between 50ms and 1h",
            "4 alerts.quota_thresholds[1]: 0 must be between 1 and 1000",
            "4 alerts.quota_thresholds[2]: must be a number, not a string: write 80 without quotes",
            "5 alerts.quota_windows[1]: \"year\" is no window: write minute, hour, day or month",
            "6 alerts.error_rate: 5 must be between 0 and 1",
            "7 alerts.min_calls: 0 must be between 1 and 1000000000",
            "8 alerts.p99: must be a string with a number and a unit, such as \"30s\", not a whole number",
            "9 alerts.cost_factor: 0.5 must be between 1 and 1000000",
            "10 alerts.webhook_url: is no URL: write https://HOST/PATH or http://HOST:PORT/PATH",
            "11 alerts.max_attempts: 0 must be between 1 and 1000",
        ]
    );
}
