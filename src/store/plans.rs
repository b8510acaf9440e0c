//! Changes of a tenant's plan, as the audit trail tells them: once, though every replica notices.

use std::time::SystemTime;

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use tokio_postgres::Error;

use super::events;
use super::pool::{Store, StoreError};
use crate::model::event::AuditEvent;
use crate::model::tenant::TenantId;

/// Replicas that notice the same tenant's change take turns.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
const TURN: &str = "SELECT pg_advisory_xact_lock(hashtextextended('tollgate plan of ' || $1, 0))";

/// The plan that the tenant's last change led to. There are few such events, so the index by type finds them.
const LAST: &str = "SELECT clock_timestamp(), ( \
     SELECT a.new_values ->> 'plan' FROM audit_events a WHERE a.event_type = $2 AND a.tenant_id = $1 \
     ORDER BY a.\"timestamp\" DESC, a.event_id DESC LIMIT 1)";

/// Writes `event`, which says that `tenant` is on `plan` now, unless the last event of this type says so already. It is
/// given the database's time, so that the order of the events is that in which they were written.
///
/// Returns whether it was written.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn record_change(
    store: &Store,
    tenant: &TenantId,
    plan: &str,
    event: AuditEvent,
) -> Result<bool, StoreError> {
    let client = store.client().await?;
    let work = async |client: &ClientWrapper| {
        client.batch_execute(BEGIN).await?;
        let written = write(client, tenant.as_str(), plan, event).await;
        let end = client.batch_execute(if written.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
        let written = written?;
        end.map(|()| written)
    };
    store.bounded(client, work).await
}

async fn write(
    client: &ClientWrapper,
    tenant: &str,
    plan: &str,
    mut event: AuditEvent,
) -> Result<bool, Error> {
    client.execute(&client.prepare_cached(TURN).await?, &[&tenant]).await?;
    let statement = client.prepare_cached(LAST).await?;
    let row = client.query_one(&statement, &[&tenant, &event.event_type]).await?;
    if row.try_get::<_, Option<&str>>(1)? == Some(plan) {
        return Ok(false);
    }
    if let Ok(now) = Timestamp::try_from(row.try_get::<_, SystemTime>(0)?) {
        event.at = now;
    }
    events::insert_audit(client, event).await.map(|()| true)
}
