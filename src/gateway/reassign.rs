//! What was used for sessions that could not be looked up moves to their tenants, once the look-up answers again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::health::Live;
use crate::model::tenant::TenantId;
use crate::proxy::Core;
use crate::store::{Store, StoreError};
use crate::tenant::Answer;

/// Between two looks for rows that wait.
const INTERVAL: Duration = Duration::from_secs(5);

/// Rows moved in one transaction.
const BATCH: usize = 500;

/// Moves rows until `stop`.
pub(super) async fn run(store: Store, core: Arc<Core>, live: Arc<Live>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        if !live.database().up {
            continue;
        }
        tokio::select! {
            moved = pass(&store, &core) => match moved {
                Ok(0) => {}
                Ok(rows) => tracing::info!(rows, "sessions were looked up at last: what they used is their tenants' now"),
                Err(error) => tracing::warn!(%error, "what was used for sessions that can't be looked up stays where it is"),
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Returns how many rows were moved. Ends where the look-up gives no answer.
async fn pass(store: &Store, core: &Core) -> Result<usize, StoreError> {
    let mut moved = 0;
    loop {
        let rows = store.unresolved(BATCH).await?;
        let (full, mut known) = (rows.len() == BATCH, HashMap::new());
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let tenant = match known.get(&row.session).cloned() {
                Some(tenant) => tenant,
                None => {
                    let Some(tenant) = tenant(core, &row.session).await else { continue };
                    known.insert(row.session.clone(), tenant.clone());
                    tenant
                }
            };
            found.push((row, tenant));
        }
        if found.is_empty() {
            return Ok(moved);
        }
        moved += store.reassign(&found).await?;
        if !full {
            return Ok(moved);
        }
    }
}

/// Whose session it is, by the first look-up that knows; `None` while one of them gives no answer, `Some(None)` where it is
/// nobody's.
async fn tenant(core: &Core, session: &str) -> Option<Option<TenantId>> {
    let policy = core.policy.load_full();
    for query in policy.session_look_ups() {
        match core.directory.look_up(query, session).await {
            Answer::Known(tenant) => return Some(TenantId::parse(&tenant).ok()),
            Answer::Absent => {}
            Answer::Unavailable(_) => return None,
        }
    }
    Some(None)
}
