//! Usage, as operators ask for it.
//!
//! Periods come from `tenant_usage_metrics`, which the aggregation fills; recent events and who is over a quota
//! come from the live tables. Values are bound, never written into a statement; what is written into one (columns,
//! order) comes from the constants below.

use jiff::Timestamp;
use tokio_postgres::Error;

use super::pool::{Store, StoreError};
use super::report::{Between, Binds, Column, Kind, Snapshot, Table, list, snapshot, utc};
use crate::model::tenant::TenantId;

/// The length of the periods asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// UTC hours.
    Hourly,
    /// UTC days.
    Daily,
    /// UTC months.
    Monthly,
}

impl Period {
    /// As the column `period_type` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Period::Hourly => "hourly",
            Period::Daily => "daily",
            Period::Monthly => "monthly",
        }
    }
}

/// What is asked for: it chooses the columns of a tenant's rows, and orders the tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Everything; heaviest by tokens first.
    All,
    /// Tokens.
    Tokens,
    /// Cost.
    Cost,
    /// API calls.
    ApiCalls,
}

impl Metric {
    /// As the parameter spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Metric::All => "all",
            Metric::Tokens => "tokens",
            Metric::Cost => "cost",
            Metric::ApiCalls => "api_calls",
        }
    }

    /// The figure of [`CONSUMERS`] that tenants are ordered by.
    fn figure(self) -> &'static str {
        match self {
            Metric::All | Metric::Tokens => "total_tokens",
            Metric::Cost => "total_cost",
            Metric::ApiCalls => "total_api_calls",
        }
    }
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: Kind::Number }
}

const fn time(name: &'static str) -> Column {
    Column { name, kind: Kind::Time }
}

const fn json(name: &'static str) -> Column {
    Column { name, kind: Kind::Json }
}

use Metric::{ApiCalls, Cost, Tokens};

/// The columns of `tenant_usage_metrics`, each with the metrics that it is a part of; none is a part of all.
const METRICS: [(Column, &[Metric]); 37] = [
    (text("metric_id"), &[]),
    (text("tenant_id"), &[Tokens, Cost, ApiCalls]),
    (time("period_start"), &[Tokens, Cost, ApiCalls]),
    (time("period_end"), &[Tokens, Cost, ApiCalls]),
    (text("period_type"), &[Tokens, Cost, ApiCalls]),
    (number("api_calls_total"), &[ApiCalls]),
    (number("api_calls_successful"), &[ApiCalls]),
    (number("api_calls_failed"), &[ApiCalls]),
    (number("api_calls_rate_limited"), &[ApiCalls]),
    (number("api_latency_avg_ms"), &[ApiCalls]),
    (number("api_latency_p50_ms"), &[ApiCalls]),
    (number("api_latency_p95_ms"), &[ApiCalls]),
    (number("api_latency_p99_ms"), &[ApiCalls]),
    (number("chat_calls"), &[]),
    (number("chat_messages_sent"), &[]),
    (number("chat_messages_received"), &[]),
    (number("chat_sessions_created"), &[]),
    (number("chat_avg_response_time_ms"), &[]),
    (number("embeddings_generated"), &[]),
    (number("embeddings_tokens_used"), &[Tokens]),
    (number("semantic_searches_performed"), &[]),
    (number("kb_documents_ingested"), &[]),
    (number("kb_documents_failed"), &[]),
    (number("total_tokens_used"), &[Tokens]),
    (number("input_tokens"), &[Tokens]),
    (number("output_tokens"), &[Tokens]),
    (number("estimated_cost_usd"), &[Cost]),
    (number("quota_limit"), &[Tokens]),
    (number("quota_remaining"), &[Tokens]),
    (number("quota_exceeded_count"), &[ApiCalls]),
    (number("error_count"), &[ApiCalls]),
    (number("error_rate"), &[ApiCalls]),
    (number("peak_qps"), &[ApiCalls]),
    (time("created_at"), &[]),
    (time("updated_at"), &[Tokens, Cost, ApiCalls]),
    (json("latency_buckets"), &[]),
    (json("latency_counts"), &[]),
];

/// The columns of `tenant_usage_realtime` that are shown of a recent event.
const EVENTS: [Column; 26] = [
    text("event_id"),
    text("event_type"),
    time("event_timestamp"),
    text("api_method"),
    text("api_endpoint"),
    number("api_status_code"),
    number("api_response_time_ms"),
    number("upstream_first_byte_ms"),
    text("chat_session_id"),
    number("embedding_tokens"),
    number("search_query_tokens"),
    number("search_result_count"),
    number("tokens_consumed"),
    number("input_tokens"),
    number("output_tokens"),
    number("cached_input_tokens"),
    number("cache_write_input_tokens"),
    number("reasoning_tokens"),
    text("model"),
    text("token_source"),
    text("outcome"),
    Column { name: "streamed", kind: Kind::Bool },
    number("cost_usd"),
    text("request_id"),
    text("replica_id"),
    json("metadata"),
];

/// A tenant's figures over the whole range; `SUMMARY` has the same ones over all tenants.
const CONSUMERS: [Column; 5] = [
    text("tenant_id"),
    number("total_api_calls"),
    number("total_tokens"),
    number("total_cost"),
    number("avg_latency_ms"),
];

const SUMMARY: [Column; 5] = [
    number("total_tenants"),
    number("total_api_calls"),
    number("total_tokens"),
    number("total_cost"),
    number("avg_latency_ms"),
];

/// Latency is averaged over the calls that it was taken of: those that were not rate limited.
const FIGURES: &str = "coalesce(sum(api_calls_total), 0) AS total_api_calls,
    coalesce(sum(total_tokens_used), 0) AS total_tokens,
    coalesce(sum(estimated_cost_usd), 0) AS total_cost,
    round(sum(api_latency_avg_ms * (api_calls_total - api_calls_rate_limited))
        / nullif(sum(api_calls_total - api_calls_rate_limited) FILTER (WHERE api_latency_avg_ms IS NOT NULL), 0), 2)
        AS avg_latency_ms";

const EXCEEDING: [Column; 6] = [
    text("tenant_id"),
    text("dimension"),
    number("limit"),
    number("used"),
    time("window_start"),
    time("resets_at"),
];

/// Recent events shown of a tenant.
const RECENT: usize = 50;

/// Tenants shown that are over a quota.
const EXCEEDING_ROWS: i64 = 1000;

/// The columns that `metric` asks for.
pub fn columns(metric: Metric) -> Vec<Column> {
    let asked = |(_, metrics): &&(Column, &[Metric])| metric == Metric::All || metrics.contains(&metric);
    METRICS.iter().filter(asked).map(|(column, _)| *column).collect()
}

/// One tenant's usage.
#[derive(Clone, Debug)]
pub struct TenantUsage {
    /// Its periods, latest first.
    pub periods: Table,
    /// The start of the last period in `periods`, when there are more: where the next page goes on.
    pub next: Option<Timestamp>,
    /// Its latest events, latest first, whatever the range.
    pub recent: Table,
    /// When the periods were last brought up to date, as RFC 3339.
    pub aggregated_at: Option<String>,
}

/// The question that [`of_tenant`] answers.
#[derive(Clone, Copy, Debug)]
pub struct TenantQuestion<'a> {
    /// Whose usage.
    pub tenant: &'a TenantId,
    /// Periods of which length.
    pub period: Period,
    /// Beginning when.
    pub between: Between,
    /// With which columns.
    pub metric: Metric,
    /// How many at most.
    pub limit: u32,
    /// Only those that begin before this.
    pub before: Option<Timestamp>,
}

/// Reads one tenant's usage.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn of_tenant(store: &Store, question: &TenantQuestion<'_>) -> Result<TenantUsage, StoreError> {
    snapshot(store, async |db: &Snapshot<'_>| {
        let (periods, next) = periods(db, question).await?;
        let recent = recent(db, question.tenant).await?;
        Ok(TenantUsage { periods, next, recent, aggregated_at: last_aggregation(db).await? })
    })
    .await
}

async fn periods(
    db: &Snapshot<'_>,
    question: &TenantQuestion<'_>,
) -> Result<(Table, Option<Timestamp>), Error> {
    let columns = columns(question.metric);
    let mut binds = Binds::new();
    // Half-open on both ends: the next page ends where the last one's last row begins.
    let end = question.before.unwrap_or(question.between.end).min(question.between.end);
    let sql = format!(
        "SELECT {}, (extract(epoch FROM period_start) * 1000000)::bigint FROM tenant_usage_metrics m
         WHERE tenant_id = {} AND period_type = {} AND period_start >= {} AND period_start < {}
         ORDER BY m.period_start DESC LIMIT {}",
        list(&columns),
        binds.text(question.tenant.as_str()),
        binds.text(question.period.as_str()),
        binds.instant(question.between.start),
        binds.instant(end),
        binds.number(i64::from(question.limit) + 1),
    );
    let mut rows = db.rows(&sql, &binds).await?;
    let more = rows.len() > question.limit as usize;
    rows.truncate(question.limit as usize);
    let next = match rows.last() {
        Some(row) if more => Timestamp::from_microsecond(row.try_get(columns.len())?).ok(),
        _ => None,
    };
    Ok((Table::read(columns, &rows)?, next))
}

async fn recent(db: &Snapshot<'_>, tenant: &TenantId) -> Result<Table, Error> {
    let mut rows = Vec::new();
    // Who calls every day has them in the partitions of the last days; only of who doesn't are the others looked at.
    for which in [include_str!("usage/recent.sql"), include_str!("usage/older.sql")] {
        let left = RECENT.saturating_sub(rows.len());
        if left > 0 {
            let mut binds = Binds::new();
            binds.text(tenant.as_str());
            binds.number(i64::try_from(left).unwrap_or(i64::MAX));
            rows.extend(db.rows(&format!("SELECT {} {which}", list(&EVENTS)), &binds).await?);
        }
    }
    Table::read(EVENTS.to_vec(), &rows)
}

/// All tenants' usage.
#[derive(Clone, Debug)]
pub struct AllUsage {
    /// One row: all tenants together, over the whole range.
    pub summary: Table,
    /// Tenants with their figures over the whole range, heaviest first.
    pub consumers: Table,
    /// The place of the last of `consumers`, when there are more.
    pub next: Option<Place>,
    /// Who is at or over a limit now.
    pub exceeding: Table,
    /// When the periods were last brought up to date, as RFC 3339.
    pub aggregated_at: Option<String>,
}

/// A place in the list of consumers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The figure that orders the list, in decimal digits as Postgres printed it.
    pub figure: String,
    /// The tenant that has it.
    pub tenant: TenantId,
}

/// The question that [`of_all`] answers.
#[derive(Clone, Copy, Debug)]
pub struct AllQuestion<'a> {
    /// Made of periods of which length.
    pub period: Period,
    /// Beginning when.
    pub between: Between,
    /// Ordered by which figure.
    pub metric: Metric,
    /// How many tenants at most.
    pub limit: u32,
    /// Only those that come after this place.
    pub after: Option<&'a Place>,
    /// The instant at which a quota counts as exceeded.
    pub now: Timestamp,
}

/// Reads all tenants' usage.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn of_all(store: &Store, question: &AllQuestion<'_>) -> Result<AllUsage, StoreError> {
    snapshot(store, async |db: &Snapshot<'_>| {
        let summary = summary(db, question).await?;
        let (consumers, next) = consumers(db, question).await?;
        let exceeding = exceeding(db, question.now).await?;
        Ok(AllUsage { summary, consumers, next, exceeding, aggregated_at: last_aggregation(db).await? })
    })
    .await
}

fn in_range(binds: &mut Binds, question: &AllQuestion<'_>) -> String {
    format!(
        "period_type = {} AND period_start >= {} AND period_start < {}",
        binds.text(question.period.as_str()),
        binds.instant(question.between.start),
        binds.instant(question.between.end),
    )
}

async fn summary(db: &Snapshot<'_>, question: &AllQuestion<'_>) -> Result<Table, Error> {
    let mut binds = Binds::new();
    let sql = format!(
        "SELECT {} FROM (SELECT count(DISTINCT tenant_id) AS total_tenants, {FIGURES}
         FROM tenant_usage_metrics WHERE {}) figures",
        list(&SUMMARY),
        in_range(&mut binds, question),
    );
    Table::read(SUMMARY.to_vec(), &db.rows(&sql, &binds).await?)
}

async fn consumers(db: &Snapshot<'_>, question: &AllQuestion<'_>) -> Result<(Table, Option<Place>), Error> {
    let mut binds = Binds::new();
    let figure = question.metric.figure();
    let range = in_range(&mut binds, question);
    let after = match question.after {
        None => String::from("true"),
        Some(place) => {
            let (value, tenant) = (binds.text(&place.figure), binds.text(place.tenant.as_str()));
            format!("({figure} < {value}::numeric OR {figure} = {value}::numeric AND tenant_id > {tenant})")
        }
    };
    let sql = format!(
        "SELECT {}, {figure}::text FROM
         (SELECT tenant_id, {FIGURES} FROM tenant_usage_metrics WHERE {range} GROUP BY tenant_id) figures
         WHERE {after} ORDER BY figures.{figure} DESC, figures.tenant_id LIMIT {}",
        list(&CONSUMERS),
        binds.number(i64::from(question.limit) + 1),
    );
    let mut rows = db.rows(&sql, &binds).await?;
    let more = rows.len() > question.limit as usize;
    rows.truncate(question.limit as usize);
    let next = match rows.last() {
        // Rows of a tenant that no call could name end the list: they can't be asked for either.
        Some(row) if more => {
            let (figure, tenant): (String, String) = (row.try_get(CONSUMERS.len())?, row.try_get(0)?);
            TenantId::parse(&tenant).ok().map(|tenant| Place { figure, tenant })
        }
        _ => None,
    };
    Ok((Table::read(CONSUMERS.to_vec(), &rows)?, next))
}

async fn exceeding(db: &Snapshot<'_>, now: Timestamp) -> Result<Table, Error> {
    let mut binds = Binds::new();
    let now = binds.instant(now);
    let sql = format!(
        "SELECT tenant_id, dimension, limit_value::text, settled::text, {}, {} FROM quota_usage q
         WHERE window_end > {now} AND window_start <= {now} AND settled >= limit_value
         ORDER BY q.settled - q.limit_value DESC, q.tenant_id, q.dimension LIMIT {}",
        utc("window_start"),
        utc("window_end"),
        binds.number(EXCEEDING_ROWS),
    );
    Table::read(EXCEEDING.to_vec(), &db.rows(&sql, &binds).await?)
}

async fn last_aggregation(db: &Snapshot<'_>) -> Result<Option<String>, Error> {
    let sql = format!("SELECT {} FROM usage_aggregation_state", utc("last_run_at"));
    let rows = db.rows(&sql, &Binds::new()).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?.flatten())
}

/// When the aggregation last ran, as RFC 3339.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn aggregated_at(store: &Store) -> Result<Option<String>, StoreError> {
    snapshot(store, async |db: &Snapshot<'_>| last_aggregation(db).await).await
}
