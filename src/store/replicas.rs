//! Which Tollgate processes there are: `gateway_replicas`.

use super::pool::{Store, StoreError};

const REGISTER: &str = "INSERT INTO gateway_replicas (replica_id, address, version) VALUES ($1, $2, $3) \
     ON CONFLICT (replica_id) DO UPDATE SET state = 'live', address = excluded.address, \
     version = excluded.version, started_at = now(), heartbeat_at = now()";
const LEAVE: &str =
    "UPDATE gateway_replicas SET state = 'stopped', heartbeat_at = now() WHERE replica_id = $1";

impl Store {
    /// Makes this replica known as live, listening on `address`. Without a replica id it does nothing.
    pub async fn register_replica(&self, address: &str) -> Result<(), StoreError> {
        let Some(id) = self.replica_id() else { return Ok(()) };
        let client = self.client().await?;
        let version = env!("CARGO_PKG_VERSION");
        self.bounded(client, async |client| client.execute(REGISTER, &[&id, &address, &version]).await)
            .await?;
        Ok(())
    }

    /// Says that this replica has stopped of its own will.
    pub async fn leave(&self) -> Result<(), StoreError> {
        let Some(id) = self.replica_id() else { return Ok(()) };
        let client = self.client().await?;
        self.bounded(client, async |client| client.execute(LEAVE, &[&id]).await).await?;
        Ok(())
    }
}
