//! What operators set for single tenants: `tenant_quota_overrides`.
//!
//! 1. Edits take turns, over all replicas (an advisory lock held to the end of the transaction). So what an edit says was
//!    there before is what was there, of two at once none is lost, and versions become visible in their order: whoever
//!    has read up to a version has missed none below it. A lock on the tenant's rows would give neither the last, nor
//!    anything where a tenant has no row yet; edits are made by people, and rare.
//! 2. The audit event is written in the transaction of the edit: neither is there without the other.
//! 3. So is the notification, which other replicas hear when the edit is visible.

use std::sync::Arc;
use std::time::SystemTime;

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio_postgres::{Error, Row};

use super::events;
use super::instant::moment;
use super::pool::{Store, StoreError};
use crate::model::event::AuditEvent;
use crate::model::tenant::TenantId;
use crate::quota::overrides::{Change, Override, Setting, Target};

/// The channel on which edits are told. The payload is the tenant.
pub const CHANNEL: &str = "tollgate_overrides";

/// Edits take turns by this advisory lock.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(7021993004)";

const COLUMNS: &str = "o.tenant_id, o.dimension, o.limit_value, o.plan, o.reason, o.set_by, o.expires_at, \
     o.removed_at IS NOT NULL, o.version, o.created_at, o.updated_at";

/// What an operator wants changed for one tenant. Targets that are not named stay as they are.
#[derive(Clone, Debug)]
pub struct Edit<'a> {
    /// Whose.
    pub tenant: &'a TenantId,
    /// What to set, each target once.
    pub set: &'a [Setting],
    /// What to remove.
    pub remove: Removal<'a>,
    /// Why, for what is set.
    pub reason: Option<&'a str>,
    /// Until when it holds, for what is set.
    pub expires: Option<Timestamp>,
    /// Who wants it.
    pub author: &'a str,
}

/// What an edit removes.
#[derive(Clone, Copy, Debug)]
pub enum Removal<'a> {
    /// The overrides of these targets; none that is also set.
    Of(&'a [Target]),
    /// All of the tenant's.
    All,
}

/// What an edit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edited {
    /// The rows that it changed.
    pub changes: Vec<Change>,
    /// How many overrides it removed.
    pub removed: usize,
}

/// Makes `edit` and writes `audit`, completed by what was and what is. An edit that changes nothing, which is one that
/// only removes what is not there, is not audited.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out. The edit was not made, unless the
/// connection broke in the very moment of its COMMIT; making it again does no harm.
pub async fn edit(store: &Store, edit: &Edit<'_>, audit: AuditEvent) -> Result<Edited, StoreError> {
    let client = store.client().await?;
    store.bounded(client, async |client| in_transaction(client, edit, audit).await).await
}

async fn in_transaction(client: &ClientWrapper, edit: &Edit<'_>, audit: AuditEvent) -> Result<Edited, Error> {
    // A turn that did not come in time leaves a transaction open as well.
    let edited = match client.batch_execute(BEGIN).await {
        Ok(()) => write(client, edit, audit).await,
        Err(error) => Err(error),
    };
    let worth_keeping = edited.as_ref().is_ok_and(|edited| !edited.changes.is_empty());
    let end = client.batch_execute(if worth_keeping { "COMMIT" } else { "ROLLBACK" }).await;
    // The first error is the one to tell.
    let edited = edited?;
    end.map(|()| edited)
}

async fn write(client: &ClientWrapper, edit: &Edit<'_>, mut audit: AuditEvent) -> Result<Edited, Error> {
    let tenant = edit.tenant.as_str();
    // Locked, so that a hand at psql waits as well.
    let former = client
        .query(
            &format!(
                "SELECT {COLUMNS} FROM tenant_quota_overrides o WHERE tenant_id = $1 AND removed_at IS NULL \
                 ORDER BY dimension FOR UPDATE"
            ),
            &[&tenant],
        )
        .await?;
    let removed = remove(client, edit).await?;
    let set = set(client, edit).await?;
    let changes: Vec<Change> = removed.iter().chain(&set).filter_map(change).collect();
    let removed = removed.len();
    if changes.is_empty() {
        return Ok(Edited { changes, removed });
    }
    let mut values = Map::new();
    former.iter().filter_map(change).filter_map(|former| former.set).for_each(|o| told(&mut values, &o));
    audit.old_values = Some(Value::Object(values.clone()));
    for change in &changes {
        match &change.set {
            Some(set) => told(&mut values, set),
            None => drop(values.remove(&change.target.to_string())),
        }
    }
    audit.new_values = Some(Value::Object(values));
    audit.summary = Some(summary(&changes));
    events::insert_audit(client, audit).await?;
    client.execute("SELECT pg_notify($1, $2)", &[&CHANNEL, &tenant]).await?;
    Ok(Edited { changes, removed })
}

async fn remove(client: &ClientWrapper, edit: &Edit<'_>) -> Result<Vec<Row>, Error> {
    let targets: Option<Vec<String>> = match edit.remove {
        Removal::Of([]) => return Ok(Vec::new()),
        Removal::Of(targets) => Some(targets.iter().map(Target::to_string).collect()),
        Removal::All => None,
    };
    let sql = format!(
        "UPDATE tenant_quota_overrides o SET removed_at = now(), updated_at = now(), set_by = $3, \
         version = nextval('tenant_quota_overrides_version_seq') \
         WHERE tenant_id = $1 AND removed_at IS NULL AND ($2::text[] IS NULL OR dimension = ANY ($2)) \
         RETURNING {COLUMNS}"
    );
    client.query(&sql, &[&edit.tenant.as_str(), &targets, &edit.author]).await
}

async fn set(client: &ClientWrapper, edit: &Edit<'_>) -> Result<Vec<Row>, Error> {
    if edit.set.is_empty() {
        return Ok(Vec::new());
    }
    let dimensions: Vec<String> = edit.set.iter().map(|setting| setting.target().to_string()).collect();
    let limits: Vec<Option<i64>> = edit
        .set
        .iter()
        .map(|setting| match setting {
            Setting::Limit(_, limit) => limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX)),
            Setting::Plan(_) | Setting::Blocked => None,
        })
        .collect();
    let plans: Vec<Option<&str>> = edit
        .set
        .iter()
        .map(|setting| match setting {
            Setting::Plan(plan) => Some(plan.as_str()),
            Setting::Limit(..) | Setting::Blocked => None,
        })
        .collect();
    let sql = format!(
        "INSERT INTO tenant_quota_overrides AS o (tenant_id, dimension, limit_value, plan, reason, expires_at, set_by) \
         SELECT $1, t.dimension, t.limit_value, t.plan, $5, $6, $7 \
         FROM unnest($2::text[], $3::bigint[], $4::text[]) AS t(dimension, limit_value, plan) \
         ON CONFLICT (tenant_id, dimension) DO UPDATE SET \
         limit_value = excluded.limit_value, plan = excluded.plan, reason = excluded.reason, \
         expires_at = excluded.expires_at, set_by = excluded.set_by, removed_at = NULL, version = excluded.version, \
         created_at = CASE WHEN o.removed_at IS NULL THEN o.created_at ELSE now() END, updated_at = now() \
         RETURNING {COLUMNS}"
    );
    let tenant = edit.tenant.as_str();
    let expires = edit.expires.map(moment);
    client.query(&sql, &[&tenant, &dimensions, &limits, &plans, &edit.reason, &expires, &edit.author]).await
}

/// An override as the audit trail tells it, under its target's name.
fn told(values: &mut Map<String, Value>, o: &Override) {
    let mut value = match &o.setting {
        Setting::Limit(dimension, limit) => json!({"limit": limit.map(|n| dimension.unit.shown(n))}),
        Setting::Plan(plan) => json!({"plan": plan.as_str()}),
        Setting::Blocked => json!({"blocked": true}),
    };
    value["reason"] = json!(o.reason);
    value["expires"] = json!(o.expires.map(|expires| expires.to_string()));
    value["author"] = json!(o.author);
    values.insert(o.setting.target().to_string(), value);
}

fn summary(changes: &[Change]) -> String {
    let one = |change: &Change| match change.set.as_ref().map(|set| &set.setting) {
        Some(Setting::Limit(dimension, Some(limit))) => {
            format!("{dimension} set to {}", dimension.unit.shown(*limit))
        }
        Some(Setting::Limit(dimension, None)) => format!("{dimension} set to unlimited"),
        Some(Setting::Plan(plan)) => format!("plan set to {plan}"),
        Some(Setting::Blocked) => "blocked".to_owned(),
        None if change.target == Target::Blocked => "unblocked".to_owned(),
        None => format!("override of {} removed", change.target),
    };
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// All overrides, and the version up to which this is everything.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn all(store: &Store) -> Result<(Vec<Change>, i64), StoreError> {
    // One statement sees one snapshot; the join gives a row for the version where there is no override at all.
    let sql = format!(
        "SELECT {COLUMNS}, m.upto FROM (SELECT coalesce(max(version), 0) AS upto FROM tenant_quota_overrides) m \
         LEFT JOIN tenant_quota_overrides o ON o.removed_at IS NULL"
    );
    let client = store.client().await?;
    let rows = store
        .bounded(client, async |client| client.query(&client.prepare_cached(&sql).await?, &[]).await)
        .await?;
    let upto = rows.first().map_or(Ok(0), |row| row.try_get(11))?;
    let there = |row: &&Row| row.try_get::<_, Option<&str>>(0).ok().flatten().is_some();
    Ok((rows.iter().filter(there).filter_map(change).collect(), upto))
}

/// What changed after `version`, and the version up to which this is everything.
///
/// # Errors
/// As [`all`].
pub async fn since(store: &Store, version: i64) -> Result<(Vec<Change>, i64), StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM tenant_quota_overrides o WHERE version > $1 ORDER BY version");
    let client = store.client().await?;
    let rows = store
        .bounded(client, async |client| client.query(&client.prepare_cached(&sql).await?, &[&version]).await)
        .await?;
    let upto = rows.last().map_or(Ok(version), |row| row.try_get(8))?;
    Ok((rows.iter().filter_map(change).collect(), upto))
}

/// The latest version; 0 where nothing was ever set. The end of an index, however many overrides there are.
///
/// # Errors
/// As [`all`].
pub async fn latest(store: &Store) -> Result<i64, StoreError> {
    const SQL: &str = "SELECT coalesce(max(version), 0) FROM tenant_quota_overrides";
    let client = store.client().await?;
    let work = async |client: &ClientWrapper| {
        client.query_one(&client.prepare_cached(SQL).await?, &[]).await?.try_get(0)
    };
    store.bounded(client, work).await
}

/// A row; `None` for one that this program can't have written, such as a newer one's dimension. It is left out and said:
/// one row must not keep the others from being read.
fn change(row: &Row) -> Option<Change> {
    let read = || -> Option<Change> {
        let tenant = TenantId::parse(row.try_get(0).ok()?).ok()?;
        let target: Target = row.try_get::<_, &str>(1).ok()?.parse().ok()?;
        let removed: bool = row.try_get(7).ok()?;
        let version = row.try_get(8).ok()?;
        let set = if removed { None } else { Some(Arc::new(set_by(row, target)?)) };
        Some(Change { version, tenant, target, set })
    };
    let change = read();
    if change.is_none() {
        let (tenant, dimension) = (row.try_get::<_, &str>(0).ok(), row.try_get::<_, &str>(1).ok());
        tracing::warn!(tenant, dimension, "an override that can't be read is left out");
    }
    change
}

fn set_by(row: &Row, target: Target) -> Option<Override> {
    let setting = match target {
        Target::Limit(dimension) => {
            let limit: Option<i64> = row.try_get(2).ok()?;
            Setting::Limit(dimension, limit.map(u64::try_from).transpose().ok()?)
        }
        Target::Plan => Setting::Plan(row.try_get::<_, Option<&str>>(3).ok()??.into()),
        Target::Blocked => Setting::Blocked,
    };
    Some(Override {
        setting,
        reason: row.try_get(4).ok()?,
        author: row.try_get(5).ok()?,
        // One beyond what jiff has an instant for, such as infinity, is one that never comes.
        expires: row.try_get::<_, Option<SystemTime>>(6).ok()?.and_then(|at| Timestamp::try_from(at).ok()),
        created: Timestamp::try_from(row.try_get::<_, SystemTime>(9).ok()?).ok()?,
        updated: Timestamp::try_from(row.try_get::<_, SystemTime>(10).ok()?).ok()?,
    })
}
