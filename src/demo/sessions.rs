//! The stand-in service's chat sessions: it knows them by heart, and keeps them in its table for Tollgate to read.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::store::Store;

/// Which session is whose.
#[derive(Debug, Default)]
pub struct Sessions {
    owners: Mutex<BTreeMap<Uuid, String>>,
    table: Option<Store>,
}

impl Sessions {
    /// Sessions that only this process knows: pairs of session and tenant.
    pub fn in_memory(owners: impl IntoIterator<Item = (Uuid, String)>) -> Self {
        Self { owners: Mutex::new(owners.into_iter().collect()), table: None }
    }

    /// Sessions that also stand in the table `chat_sessions` of this database; those given are there already.
    pub fn kept_in(store: Store, owners: impl IntoIterator<Item = (Uuid, String)>) -> Self {
        Self { table: Some(store), ..Self::in_memory(owners) }
    }

    /// Whether there is a session of this id.
    pub(super) fn know(&self, id: &str) -> bool {
        let owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        Uuid::parse_str(id).is_ok_and(|id| owners.contains_key(&id))
    }

    /// Opens a session for a tenant; it stands in the table before its id is given away.
    pub(super) async fn open(&self, tenant: &str) -> anyhow::Result<Uuid> {
        let id = Uuid::now_v7();
        if let Some(store) = &self.table {
            let insert = "INSERT INTO chat_sessions (session_id, tenant_id) VALUES ($1, $2)";
            store.client().await?.execute(insert, &[&id, &tenant]).await?;
        }
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).insert(id, tenant.to_owned());
        Ok(id)
    }
}
