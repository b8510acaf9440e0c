//! `[tenant]`, `[plans.*]`, `[overrides.*]`, and the secrets of the environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::audit;
use super::effective::shown_secret;
use super::path::bare_or_quoted;
use super::reader::{Report, Slot, Table, all};
use super::units;
use crate::model::quota::{Dimension, Limits, Unit};
use crate::model::tenant::{PlanName, TenantId};
use crate::{admin, proxy, quota, tenant};

type Environment = BTreeMap<String, String>;

/// The algorithm's own least (RFC 7518, section 3.2).
const HS256_LEAST_BYTES: usize = 32;

/// Of an operator's secret. Guesses are slowed, and not stopped: what keeps it is its length.
const SECRET_LEAST_BYTES: usize = 16;

/// A variable that holds a secret: not set, set, or set to what can't be one (a fault).
pub(super) fn secret(
    report: &Report<'_>,
    environment: &Environment,
    variable: &str,
    key: &str,
) -> Option<String> {
    let value = environment.get(variable)?;
    let reason = if value.is_empty() {
        "is set, but empty: give it a value, or unset it"
    } else if value.trim() != value {
        "begins or ends with white space, which no client sends: remove it"
    } else if value.chars().any(|c| c.is_control() || c == '\u{fffd}') {
        "holds a control character or is not UTF-8"
    } else {
        return Some(value.clone());
    };
    report.variable_fault(variable, key, reason);
    None
}

pub(super) fn admin(
    report: &Report<'_>,
    environment: &Environment,
    listen: Option<SocketAddr>,
) -> Option<admin::Config> {
    let of = |variable: &str| {
        let value = secret(report, environment, variable, variable);
        let raw = value.as_deref().unwrap_or_default();
        report.note(variable.to_owned(), shown_secret(value.is_some()), raw.as_bytes());
        value
    };
    let (operator_token, viewer_token, cron_secret) =
        (of("ADMIN_TOKEN"), of("ADMIN_VIEWER_TOKEN"), of("CRON_SECRET"));
    if operator_token.is_none() && viewer_token.is_none() {
        report.warn(
            "neither ADMIN_TOKEN nor ADMIN_VIEWER_TOKEN is set: the admin API answers 503 admin_disabled",
        );
    }
    for (variable, secret) in [
        ("ADMIN_TOKEN", &operator_token),
        ("ADMIN_VIEWER_TOKEN", &viewer_token),
        ("CRON_SECRET", &cron_secret),
    ] {
        if secret.as_ref().is_some_and(|secret| secret.len() < SECRET_LEAST_BYTES) {
            report.warn(format!(
                "{variable} is shorter than {SECRET_LEAST_BYTES} bytes, so it can be guessed: make one with `openssl rand -hex 32`"
            ));
        }
    }
    if operator_token.is_some() && operator_token == viewer_token {
        report.warn("ADMIN_TOKEN and ADMIN_VIEWER_TOKEN are the same: whoever may read may change");
    }
    Some(admin::Config { listen: listen?, operator_token, viewer_token, cron_secret })
}

/// `[tenant]`.
#[derive(Debug)]
pub(super) struct Tenancy {
    pub(super) identify: proxy::IdentifyConfig,
    pub(super) directory: tenant::Config,
    pub(super) default_plan: PlanName,
    pub(super) refuse_broken_look_ups: bool,
}

/// What `[tenant]` must be checked against.
pub(super) struct Surroundings<'a> {
    pub(super) environment: &'a Environment,
    /// Relative to which a key file is found: the config file's directory.
    pub(super) directory: &'a Path,
    pub(super) plans: &'a [PlanName],
    /// Whether the look-ups have a database of the service's to go to.
    pub(super) has_database: bool,
}

pub(super) fn tenant(root: &Table<'_>, around: &Surroundings<'_>) -> Option<Tenancy> {
    let table = root.key("tenant").table()?;
    let report = table.report();
    let sources_slot = table.key("sources").in_one_line();
    let sources = sources_slot.list().and_then(|list| {
        if list.is_empty() {
            sources_slot.fault("is empty, so no request has a tenant: name at least one source");
        }
        all(list.iter().map(|slot| source(slot, around, None)))
    });
    let plan_query = table.key("plan_query");
    let plan_query = plan_query.string_or_empty().and_then(|query| match query {
        None => Some(None),
        Some(query) => match units::look_up(query) {
            Ok(query) => Some(Some(Arc::from(query))),
            Err(reason) => {
                plan_query.fault(reason);
                None
            }
        },
    });
    let default_plan = plan_named(&table.key("default_plan"), around.plans);
    let unidentified = table.key("unidentified").choice(&[("reject", false), ("pass", true)]);
    let unknown_session = table.key("unknown_session").choice(&[("not_found", true), ("reject", false)]);
    let trust_header_from = table.key("trust_header_from").strings(units::network);
    let ttl = table.key("cache_ttl").duration(Duration::ZERO..=Duration::from_secs(24 * 3600));
    let negative_ttl =
        table.key("cache_negative_ttl").duration(Duration::ZERO..=Duration::from_secs(24 * 3600));
    let capacity = table.key("cache_capacity").count(1..=100_000_000);
    let timeout = table.key("look_up_timeout").duration(Duration::from_millis(1)..=Duration::from_secs(60));
    let look_up_check = table.key("look_up_check").choice(&[("refuse", true), ("warn", false)]);
    let identify = proxy::IdentifyConfig {
        sources: sources?,
        pass_unidentified: unidentified?,
        unknown_session_not_found: unknown_session?,
        trust_header_from: trust_header_from?,
        plan_query: plan_query?,
    };
    warn(report, &identify, around);
    let directory =
        tenant::Config { ttl: ttl?, negative_ttl: negative_ttl?, capacity: capacity?, timeout: timeout? };
    Some(Tenancy { identify, directory, default_plan: default_plan?, refuse_broken_look_ups: look_up_check? })
}

/// What can't work, or lets anyone be anyone.
fn warn(report: &Report<'_>, identify: &proxy::IdentifyConfig, around: &Surroundings<'_>) {
    let open = identify.trust_header_from.iter().any(|network| network.prefix_len() == 0);
    if open {
        report.warn(
            "tenant.trust_header_from holds every address: whoever can reach the gateway can be any tenant",
        );
    }
    if identify.plan_query.is_some() && !around.has_database {
        report.warn(
            "tenant.plan_query: neither [service_database] nor [database] has a url, and the private Postgres has no \
             table of the service's: every tenant without an override is on tenant.default_plan",
        );
    }
    for (at, source) in identify.sources.iter().enumerate() {
        let source_key = format!("tenant.sources[{at}]");
        if let (proxy::SourceConfig::Header(name), []) = (source, &identify.trust_header_from[..]) {
            report.warn(format!(
                "{source_key}: the header {name} is believed from nobody: tenant.trust_header_from is empty"
            ));
        }
        warn_of(report, &source_key, source, around);
    }
}

/// What can't work in one source, or lets anyone be anyone.
pub(super) fn warn_of(
    report: &Report<'_>,
    source_key: &str,
    source: &proxy::SourceConfig,
    around: &Surroundings<'_>,
) {
    match source {
        proxy::SourceConfig::Session { .. } if !around.has_database => report.warn(format!(
            "{source_key}: neither [service_database] nor [database] has a url, and the private Postgres has no \
             table of the service's: no session can be looked up"
        )),
        proxy::SourceConfig::Json(pointer) => report.warn(format!(
            "{source_key}: {pointer} in a request's body names the tenant: whoever sends it can be any tenant"
        )),
        proxy::SourceConfig::Query(name) => report.warn(format!(
            "{source_key}: the query parameter {name} names the tenant: whoever sends it can be any tenant"
        )),
        proxy::SourceConfig::Path(name) => report.warn(format!(
            "{source_key}: the path's {{{name}}} names the tenant: whoever sends it can be any tenant"
        )),
        proxy::SourceConfig::Jwt { key: proxy::JwtKey::Hs256 { secret_env, secret }, .. } => match secret {
            None => report.warn(format!("{source_key}: {secret_env} is not set: every bearer token is refused")),
            Some(secret) if secret.len() < HS256_LEAST_BYTES => report.warn(format!(
                "{source_key}: {secret_env} is shorter than the {HS256_LEAST_BYTES} bytes that HS256 needs \
                 (RFC 7518, section 3.2): it can be guessed"
            )),
            Some(_) => {}
        },
        _ => {}
    }
}

/// One source; a route's own may also be a segment of its path, or the answer.
pub(super) fn source(
    slot: &Slot<'_>,
    around: &Surroundings<'_>,
    segments: Option<&[String]>,
) -> Option<proxy::SourceConfig> {
    let table = slot.table()?;
    if let Some(segments) = segments {
        match (table.optional("path"), table.optional("answer")) {
            (Some(path), None) => {
                let name = path.parse("a string", |name| audit::segment(name, segments));
                return name.map(proxy::SourceConfig::Path);
            }
            (None, Some(answer)) => {
                return answer.parse("a string", units::pointer).map(proxy::SourceConfig::Answer);
            }
            _ => {}
        }
    }
    let (jwt, session) = (table.optional("jwt"), table.optional("session"));
    let (header, json, query) = (table.optional("header"), table.optional("json"), table.optional("query"));
    let kinds = [&jwt, &session, &header, &json, &query].into_iter().filter(|kind| kind.is_some()).count();
    if kinds != 1 {
        let more = if segments.is_some() { ", { path = … }, { answer = … }" } else { "" };
        table.fault(format!(
            "must be one of {{ jwt = … }}, {{ session = … }}, {{ header = … }}, {{ json = … }}, {{ query = … }}{more}"
        ));
        return None;
    }
    if let Some(jwt) = jwt {
        return jwt_source(&jwt, around);
    }
    if let Some(session) = session {
        let table = session.table()?;
        let json = table.key("json").parse("a string", units::pointer);
        let query = table.key("query").parse("a string", units::look_up);
        return Some(proxy::SourceConfig::Session { json: json?, query: query?.into() });
    }
    if let Some(header) = header {
        return header.parse("a string", header_name).map(proxy::SourceConfig::Header);
    }
    if let Some(json) = json {
        return json.parse("a string", units::pointer).map(proxy::SourceConfig::Json);
    }
    query?.string().map(|name| proxy::SourceConfig::Query(name.to_owned()))
}

/// A header of the operator's own: not one that means something else.
fn header_name(text: &str) -> Result<String, String> {
    const TAKEN: [&str; 8] = [
        "authorization",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "host",
        "transfer-encoding",
        "x-forwarded-for",
    ];
    let name = http::HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("{text:?} is no header's name: write one such as \"x-tenant-id\""))?;
    if TAKEN.contains(&name.as_str()) {
        return Err(format!(
            "{text:?} means something else: use a header of its own, such as \"x-tenant-id\""
        ));
    }
    Ok(name.as_str().to_owned())
}

fn jwt_source(slot: &Slot<'_>, around: &Surroundings<'_>) -> Option<proxy::SourceConfig> {
    let table = slot.table()?;
    let claim = table.key("claim").string().map(str::to_owned);
    let (secret_env, key_file) = (table.optional("secret_env"), table.optional("public_key_file"));
    let algorithm = table.optional("algorithm");
    let key = match (secret_env, key_file) {
        (Some(slot), None) => {
            if let Some(algorithm) = algorithm {
                algorithm.choice(&[("HS256", ())]);
            }
            hs256_key(&slot, table.report(), around.environment)
        }
        (None, Some(file)) => {
            let choices =
                [("RS256", jsonwebtoken::Algorithm::RS256), ("ES256", jsonwebtoken::Algorithm::ES256)];
            let algorithm = table.key("algorithm").choice(&choices)?;
            pem_key(&file, algorithm, around.directory)
        }
        _ => {
            table.fault(
                "must have either secret_env (HS256) or public_key_file with algorithm (RS256, ES256)",
            );
            None
        }
    };
    Some(proxy::SourceConfig::Jwt { claim: claim?, key: key? })
}

fn hs256_key(slot: &Slot<'_>, report: &Report<'_>, environment: &Environment) -> Option<proxy::JwtKey> {
    let variable = slot.string()?;
    if variable.contains(['=', '\0']) || variable.contains(char::is_whitespace) {
        // Not repeated: it may well be the secret itself.
        slot.fault("is no variable's name: write the name of the environment variable that holds the secret");
        return None;
    }
    let secret = secret(report, environment, variable, &slot.path());
    let raw = secret.as_deref().unwrap_or_default();
    report.note(variable.to_owned(), shown_secret(secret.is_some()), raw.as_bytes());
    Some(proxy::JwtKey::Hs256 { secret_env: variable.to_owned(), secret })
}

fn pem_key(slot: &Slot<'_>, algorithm: jsonwebtoken::Algorithm, directory: &Path) -> Option<proxy::JwtKey> {
    let file = slot.string()?;
    let pem = match std::fs::read(directory.join(file)) {
        Ok(pem) => pem,
        Err(error) => {
            slot.fault(format!("can't read {file:?}: {error}"));
            return None;
        }
    };
    let parsed = match algorithm {
        jsonwebtoken::Algorithm::ES256 => jsonwebtoken::DecodingKey::from_ec_pem(&pem),
        _ => jsonwebtoken::DecodingKey::from_rsa_pem(&pem),
    };
    if parsed.is_err() {
        slot.fault(format!(
            "{file:?} holds no public key for {algorithm:?} in PEM (-----BEGIN PUBLIC KEY-----)"
        ));
        return None;
    }
    let sum = format!("crc32c {:08x}", crc32c::crc32c(&pem));
    slot.report().note(format!("content of {file}"), &sum, &pem);
    Some(proxy::JwtKey::Pem { file: file.to_owned(), pem, algorithm })
}

fn plan_named(slot: &Slot<'_>, plans: &[PlanName]) -> Option<PlanName> {
    slot.parse("a string", |name| {
        plans.iter().find(|plan| plan.as_str() == name).cloned().ok_or_else(|| {
            let suggestion = units::suggestion(name, plans.iter().map(PlanName::as_str));
            format!("there is no plan {name:?}: define [plans.{}]{suggestion}", bare_or_quoted(name))
        })
    })
}

pub(super) fn plans(root: &Table<'_>) -> Option<BTreeMap<PlanName, quota::PlanConfig>> {
    let table = root.key("plans").table()?;
    let plans = table.named();
    let plans = all(plans.iter().map(|(name, slot)| {
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
            slot.fault("is no plan's name: 1 to 64 printable characters");
            return None;
        }
        Some((PlanName::from(name.as_str()), plan(slot)?))
    }));
    Some(plans?.into_iter().collect())
}

fn plan(slot: &Slot<'_>) -> Option<quota::PlanConfig> {
    let table = slot.table()?;
    let zone = match table.optional("time_zone") {
        Some(zone) => zone.parse("a string", units::zone),
        None => Some("UTC".to_owned()),
    };
    let soft = soft(&table);
    let named = limits(&table, &["time_zone", "soft"])?;
    let soft = soft?.unwrap_or_default();
    for dimension in &soft {
        if !named.iter().any(|(named, limit)| named == dimension && limit.is_some()) {
            table.fault(format!("soft names {dimension}, which has no limit here"));
            return None;
        }
    }
    if named.is_empty() {
        table.report().warn(format!(
            "{}: names no limit, so nothing is limited; say tokens_per_day = \"unlimited\" if that is meant",
            table.path()
        ));
    }
    let mut limits = Limits::unlimited();
    for (dimension, limit) in named {
        limits.set(dimension, limit);
    }
    limits.soften(&soft);
    Some(quota::PlanConfig { limits, zone: zone? })
}

/// The limits that let through what is over them.
fn soft(table: &Table<'_>) -> Option<Option<Vec<Dimension>>> {
    let dimension = |text: &str| text.parse::<Dimension>().map_err(|error| error.to_string());
    match table.optional("soft") {
        Some(slot) => slot.strings(dimension).map(Some),
        None => Some(None),
    }
}

/// Every key of the table that nobody has asked for, as `DIMENSION = limit`.
fn limits(table: &Table<'_>, others: &[&str]) -> Option<Vec<(Dimension, Option<u64>)>> {
    let standard: Vec<String> = Dimension::STANDARD.iter().map(Dimension::to_string).collect();
    all(table.named().iter().map(|(name, slot)| {
        let Ok(dimension) = name.parse::<Dimension>() else {
            let known = standard.iter().map(String::as_str).chain(others.iter().copied());
            slot.fault(format!(
                "is no key here: write concurrent_requests, or UNIT_per_WINDOW, of tokens, api_calls, \
                 chat_messages, embeddings, cost_usd and minute, hour, day, month{}",
                units::suggestion(name, known)
            ));
            return None;
        };
        let limit = if dimension.unit == Unit::Cost { slot.limit_usd() } else { slot.limit() };
        Some((dimension, limit?))
    }))
}

pub(super) fn overrides(
    root: &Table<'_>,
    plans: &[PlanName],
) -> Option<BTreeMap<TenantId, quota::OverrideConfig>> {
    let table = root.key("overrides").table()?;
    let overrides = table.named();
    let overrides = all(overrides.iter().map(|(name, slot)| {
        let tenant = TenantId::parse(name).map_err(|reason| slot.fault(reason.to_string())).ok();
        let content = tenant_override(slot, plans);
        Some((tenant?, content?))
    }));
    let mut by_tenant = BTreeMap::new();
    for (tenant, content) in overrides? {
        if by_tenant.insert(tenant.clone(), content).is_some() {
            table.fault(format!(
                "has {tenant} twice: spellings of one UUID are one tenant, so leave one of them"
            ));
            return None;
        }
    }
    Some(by_tenant)
}

fn tenant_override(slot: &Slot<'_>, plans: &[PlanName]) -> Option<quota::OverrideConfig> {
    let table = slot.table()?;
    let plan = table.optional("plan").map(|plan| plan_named(&plan, plans));
    let expires = table.optional("expires").map(|expires| expires.parse("an instant", units::instant));
    let reason = table.optional("reason").map(|reason| reason.string());
    let soft = soft(&table);
    let limits = limits(&table, &["plan", "expires", "reason", "soft"])?;
    let soft = soft?;
    if plan.is_none() && limits.is_empty() && soft.is_none() {
        table.fault("changes nothing: name a plan, or a limit such as tokens_per_day");
    }
    Some(quota::OverrideConfig {
        plan: absent_or(plan)?,
        limits,
        soft,
        expires: absent_or(expires)?,
        reason: absent_or(reason)?.map(str::to_owned),
    })
}

/// `None` only where a value was there and had a fault.
fn absent_or<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        Some(None) => None,
        Some(value) => Some(value),
        None => Some(None),
    }
}
