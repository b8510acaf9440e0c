//! What was used for sessions that could not be looked up moves to their tenants, once the look-up answers again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::health::Live;
use crate::model::tenant::TenantId;
use crate::proxy::{Core, Policy};
use crate::store::reassign::{Place, Unresolved};
use crate::store::{Store, StoreError};
use crate::tenant::Answer;

/// Between two looks for rows that wait.
const INTERVAL: Duration = Duration::from_secs(5);

/// Rows moved in one transaction.
const BATCH: usize = 500;

/// Batches without any answer after which the rest waits for the next look.
const FRUITLESS: usize = 10;

/// Moves rows until `stop`.
pub(super) async fn run(store: Store, core: Arc<Core>, live: Arc<Live>, stop: CancellationToken) {
    let mut place = Place::START;
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        if !live.database().up {
            continue;
        }
        tokio::select! {
            moved = pass(&store, &core, &mut place) => match moved {
                Ok(0) => {}
                Ok(rows) => tracing::info!(rows, "sessions were looked up at last: what they used is their tenants' now"),
                Err(error) => tracing::warn!(%error, "what was used for sessions that can't be looked up stays where it is"),
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Looks on from `place`, where the last pass ended, and returns how many rows were moved. Ends behind the last row, or
/// after [`FRUITLESS`] batches without an answer: rows of a look-up that stays silent are in nobody's way.
async fn pass(store: &Store, core: &Core, place: &mut Place) -> Result<usize, StoreError> {
    let (mut moved, mut fruitless) = (0, 0);
    while fruitless < FRUITLESS {
        let rows = store.unresolved(*place, BATCH).await?;
        let (full, last) = (rows.len() == BATCH, rows.last().map(Unresolved::place));
        let found = found(core, rows).await;
        match found.is_empty() {
            true => fruitless += 1,
            false => moved += store.reassign(&found).await?,
        }
        match last.filter(|_| full) {
            Some(last) => *place = last,
            None => {
                *place = Place::START;
                break;
            }
        }
    }
    Ok(moved)
}

/// The rows about which there is an answer, each with it.
async fn found(core: &Core, rows: Vec<Unresolved>) -> Vec<(Unresolved, Option<TenantId>)> {
    let policy = core.policy.load_full();
    let mut known: HashMap<(String, String), Option<Owner>> = HashMap::new();
    let mut found = Vec::with_capacity(rows.len());
    for mut row in rows {
        let key = (row.session.clone(), row.endpoint.clone());
        let owner = match known.get(&key) {
            Some(owner) => owner.clone(),
            None => {
                let owner = owner(core, &policy, &row).await;
                known.insert(key, owner.clone());
                owner
            }
        };
        match owner {
            Some(Owner::Tenant(tenant, session)) => {
                row.session = session;
                found.push((row, Some(tenant)));
            }
            Some(Owner::Nobody) => found.push((row, None)),
            None => {}
        }
    }
    found
}

/// Whose session it is.
#[derive(Clone)]
enum Owner {
    /// A tenant's, and how the service spells it.
    Tenant(TenantId, String),
    Nobody,
}

/// By the first look-up of the row's route that knows; `None` where none of them does and one gave no answer.
async fn owner(core: &Core, policy: &Policy, row: &Unresolved) -> Option<Owner> {
    let mut silent = false;
    for query in policy.session_look_ups(&row.endpoint) {
        match core.directory.look_up_session(query, &row.session, None).await {
            (Answer::Known(tenant), spelling) => {
                let tenant = TenantId::parse(&tenant).ok();
                let owned = |tenant| Owner::Tenant(tenant, spelling.into_owned());
                return Some(tenant.map_or(Owner::Nobody, owned));
            }
            (Answer::Absent, _) => {}
            (Answer::Unavailable(_), _) => silent = true,
        }
    }
    (!silent).then_some(Owner::Nobody)
}
