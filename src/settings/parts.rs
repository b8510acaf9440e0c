//! `[server]`, `[upstream]`, `[database]`, `[service_database]`, `[data]`, `[quota]`, `[metering]`, `[jobs]`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::reader::Table;
use super::units;
use crate::{meter, proxy, quota, record, store};

/// What quotas do while the database is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// Keep serving within the limits as known here.
    Open,
    /// Serve what is leased.
    Lease,
    /// Serve nothing that is metered.
    Closed,
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// No time limit of a request needs more, and an `Instant` this far off never overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(super) fn server(root: &Table<'_>) -> Option<(proxy::ServerConfig, SocketAddr)> {
    let table = root.key("server").table()?;
    let listen =
        table.key("listen").parse("a string with IP:port, such as \"127.0.0.1:8080\"", units::address);
    let admin = table.key("admin_listen");
    let admin_listen = admin.parse("a string with IP:port, such as \"127.0.0.1:8080\"", units::address);
    if let (Some(listen), Some(admin_listen)) = (listen, admin_listen)
        && collide(listen, admin_listen)
    {
        admin.fault(format!(
            "{admin_listen} and server.listen = {listen} can't both be had: take another port"
        ));
    }
    let workers = table.key("workers").count(0..=1024);
    let max_connections = table.key("max_connections").count(1..=10_000_000);
    let max_per_client = table.key("max_connections_per_client").count(0..=10_000_000);
    let header_timeout = table.key("header_timeout").duration(MS..=HOUR);
    let keep_alive_timeout = table.key("keep_alive_timeout").duration(MS..=DAY);
    let upgrades = table.key("upgrades").strings(upgrade);
    let upgrade_idle_timeout = table.key("upgrade_idle_timeout").duration(MS..=LONGEST);
    // hyper refuses to run with a buffer of less than 8 KiB.
    let max_header_bytes = table.key("max_header_bytes").memory(8 * KIB..=16 * MIB);
    let max_headers = table.key("max_headers").count(1..=10_000);
    let buffered = table.key("max_buffered_bytes");
    let max_buffered_bytes = buffered.memory(512 * KIB..=64 * GIB);
    let shared = table.key("max_client_buffered_bytes");
    let max_client_buffered_bytes = shared.memory(64 * KIB..=64 * GIB);
    if let (Some(whole), Some(share)) = (max_buffered_bytes, max_client_buffered_bytes)
        && share > whole
    {
        shared.fault("is more than server.max_buffered_bytes: a share can't be larger than the whole");
    }
    // An eighth is for heads; one must always fit, with what its lines cost beside their bytes.
    if let (Some(head), Some(share)) = (max_header_bytes, max_client_buffered_bytes)
        && share / 8 < head
    {
        shared.fault("is less than 8 times server.max_header_bytes: a large head would never fit");
    }
    let buffer_wait = table.key("buffer_wait").duration(Duration::ZERO..=60 * SECOND);
    let min_body_rate = table.key("min_body_rate").memory(0..=GIB);
    let body_grace = table.key("body_grace").duration(MS..=HOUR);
    let body_timeout = table.key("body_timeout").duration(MS..=DAY);
    let max_drains = table.key("max_drains").count(0..=1_000_000);
    let drain_timeout = table.key("drain_timeout").duration(Duration::ZERO..=DAY);
    let trusted_proxies = table.key("trusted_proxies").strings(units::network);
    let server = proxy::ServerConfig {
        listen: listen?,
        workers: workers?,
        max_connections: max_connections?,
        max_connections_per_client: max_per_client?,
        header_timeout: header_timeout?,
        keep_alive_timeout: keep_alive_timeout?,
        upgrades: upgrades?,
        upgrade_idle_timeout: upgrade_idle_timeout?,
        max_header_bytes: max_header_bytes?,
        max_headers: max_headers?,
        max_buffered_bytes: max_buffered_bytes?,
        max_client_buffered_bytes: max_client_buffered_bytes?,
        buffer_wait: buffer_wait?,
        min_body_rate: min_body_rate? as u64,
        body_grace: body_grace?,
        body_timeout: body_timeout?,
        max_drains: max_drains?,
        drain_timeout: drain_timeout?,
        trusted_proxies: trusted_proxies?,
    };
    Some((server, admin_listen?))
}

/// A protocol that connections may be switched to: one in which HTTP goes on would take calls past the meter.
fn upgrade(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    let is_http =
        ["h2c", "h2", "h3"].contains(&&*name) || ["http", "tls"].iter().any(|http| name.starts_with(http));
    if is_http {
        return Err(format!("{text:?} carries HTTP calls that nobody would meter: remove it"));
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!(
            "{text:?} is no protocol's name: write one as in an Upgrade header, such as \"websocket\""
        ));
    }
    Ok(name)
}

fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let same = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && same
}

pub(super) fn upstream(root: &Table<'_>, listen: Option<SocketAddr>) -> Option<proxy::UpstreamConfig> {
    let table = root.key("upstream").table()?;
    let slot = table.key("url");
    let url = slot.parse("a string", units::upstream_url);
    if let (Some(url), Some(listen)) = (&url, listen)
        && is_self(url, listen)
    {
        slot.fault(format!(
            "is the gateway's own address, server.listen = {listen}: name the service behind it"
        ));
    }
    let connect_timeout = table.key("connect_timeout").duration(MS..=HOUR);
    let first_byte_timeout = table.key("first_byte_timeout").duration(MS..=LONGEST);
    let idle_timeout = table.key("idle_timeout").duration(MS..=LONGEST);
    let pool_idle = table.key("pool_idle").count(0..=1_000_000);
    let via = table.key("via").parse("a string", units::via);
    Some(proxy::UpstreamConfig {
        url: url?,
        connect_timeout: connect_timeout?,
        first_byte_timeout: first_byte_timeout?,
        idle_timeout: idle_timeout?,
        pool_idle: pool_idle?,
        via: via?,
    })
}

fn is_self(url: &http::Uri, listen: SocketAddr) -> bool {
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
    let host = match url.host() {
        Some("localhost") => Some(IpAddr::from([127, 0, 0, 1])),
        Some(host) => host.trim_matches(['[', ']']).parse::<IpAddr>().ok(),
        None => None,
    };
    host.is_some_and(|host| {
        collide(SocketAddr::new(host, port), listen) && host.is_loopback() == may_be_loopback(listen)
    })
}

fn may_be_loopback(listen: SocketAddr) -> bool {
    listen.ip().is_loopback() || listen.ip().is_unspecified()
}

/// `[database]`, which is there without a URL too: for the private Postgres.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) url: Option<String>,
    pub(super) pool_size: usize,
    pub(super) connect_timeout: Duration,
    pub(super) statement_timeout: Duration,
    pub(super) on_outage: OnOutage,
}

impl Database {
    pub(super) fn store(&self) -> Option<store::Config> {
        self.url.as_ref().map(|url| store::Config {
            url: url.clone(),
            pool_size: self.pool_size,
            connect_timeout: self.connect_timeout,
            statement_timeout: self.statement_timeout,
        })
    }
}

pub(super) fn database(root: &Table<'_>) -> Option<Database> {
    let table = root.key("database").table()?;
    let url = optional_url(&table);
    let pool_size = table.key("pool_size").count(2..=1000);
    let connect_timeout = table.key("connect_timeout").duration(MS..=HOUR);
    let statement_timeout = table.key("statement_timeout").duration(MS..=HOUR);
    let on_outage = table.key("on_outage").choice(&[
        ("open", OnOutage::Open),
        ("lease", OnOutage::Lease),
        ("closed", OnOutage::Closed),
    ]);
    Some(Database {
        url: url?,
        pool_size: pool_size?,
        connect_timeout: connect_timeout?,
        statement_timeout: statement_timeout?,
        on_outage: on_outage?,
    })
}

pub(super) fn service_database(root: &Table<'_>) -> Option<Option<store::Config>> {
    let table = root.key("service_database").table()?;
    let url = optional_url(&table);
    let pool_size = table.key("pool_size").count(1..=1000);
    let connect_timeout = table.key("connect_timeout").duration(MS..=HOUR);
    let statement_timeout = table.key("statement_timeout").duration(MS..=HOUR);
    let (pool_size, connect_timeout, statement_timeout) = (pool_size?, connect_timeout?, statement_timeout?);
    Some(url?.map(|url| store::Config { url, pool_size, connect_timeout, statement_timeout }))
}

fn optional_url(table: &Table<'_>) -> Option<Option<String>> {
    match table.optional("url") {
        Some(slot) => slot.parse("a string", units::database_url).map(Some),
        None => Some(None),
    }
}

pub(super) fn data(root: &Table<'_>) -> Option<(PathBuf, record::Config)> {
    let table = root.key("data").table()?;
    let dir = table.key("dir").string().map(PathBuf::from);
    let max_bytes = table.key("journal_max_bytes").size(MIB..=u64::MAX);
    let segment = table.key("journal_segment_bytes");
    let segment_bytes = segment.size(64 * KIB..=GIB);
    if let (Some(max), Some(one)) = (max_bytes, segment_bytes)
        && one > max / 2
    {
        segment.fault(
            "must be at most half of data.journal_max_bytes: the journal is trimmed by whole segments",
        );
    }
    let fsync_interval = table.key("journal_fsync_interval").duration(Duration::ZERO..=HOUR);
    let batch_records = table.key("journal_batch_records").count(1..=10_000);
    let batch_linger = table.key("journal_batch_linger").duration(Duration::ZERO..=60 * SECOND);
    let dir = dir?;
    let record = record::Config {
        dir: dir.join("journal"),
        max_bytes: max_bytes?,
        segment_bytes: segment_bytes?,
        fsync_interval: fsync_interval?,
        batch_records: batch_records?,
        batch_linger: batch_linger?,
    };
    Some((dir, record))
}

/// How long a request waits for a lease, and how leases are asked for.
pub(super) fn quota(root: &Table<'_>, on_outage: Option<OnOutage>) -> Option<(Duration, quota::LeaseConfig)> {
    let table = root.key("quota").table()?;
    let lease_wait = table.key("lease_wait").duration(Duration::ZERO..=60 * SECOND);
    let reclaim = table.key("reclaim").choice(&[("window_end", false), ("ttl", true)]);
    let lease_ttl = table.key("lease_ttl").duration(2 * SECOND..=HOUR);
    let config = quota::LeaseConfig {
        reclaim_after: lease_ttl.filter(|_| reclaim == Some(true)),
        serve_alone: on_outage == Some(OnOutage::Open),
        slow: lease_wait.unwrap_or_default().max(SECOND / 2),
        ..quota::LeaseConfig::default()
    };
    reclaim?;
    lease_ttl?;
    Some((lease_wait?, config))
}

pub(super) fn metering(root: &Table<'_>) -> Option<meter::Config> {
    let table = root.key("metering").table()?;
    // Bounds nothing any more: an event is read as it comes, whatever its size. Older configs may have it.
    table.key("max_event_bytes").memory(KIB..=64 * MIB);
    let max_text_bytes = table.key("max_text_bytes").memory(KIB..=64 * MIB);
    let count_wait = table.key("count_wait").duration(Duration::ZERO..=SECOND);
    // A sum of so many calls as fit into a day is far from where a counter of the database ends.
    let max_call_tokens = table.key("max_call_tokens").count(1..=1_000_000_000_000);
    Some(meter::Config {
        max_text_bytes: max_text_bytes?,
        count_wait: count_wait?,
        max_call_tokens: max_call_tokens? as u64,
    })
}

pub(super) fn aggregate_interval(root: &Table<'_>) -> Option<Duration> {
    let table = root.key("jobs").table()?;
    table.key("aggregate_interval").duration(SECOND..=DAY)
}
