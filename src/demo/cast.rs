//! Who plays in the demo: sample tenants, one on each plan, with a chat session each.

use uuid::Uuid;

use crate::store::Store;

/// A sample tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tenant {
    pub(super) id: &'static str,
    pub(super) plan: &'static str,
    /// Its one chat session.
    pub(super) session: Uuid,
}

const fn tenant(id: &'static str, plan: &'static str, number: u128) -> Tenant {
    // A version 4 UUID, as the service makes them, but for the randomness.
    Tenant { id, plan, session: Uuid::from_u128(0xDE30_0000_0000_4000_8000_0000_0000_0000 + number) }
}

/// On `trial`, and soon over its quota.
pub(super) const BAKERY: Tenant = tenant("tn_bakery", "trial", 1);
/// On `starter`: single messages, whose tokens the service does not report.
pub(super) const CLINIC: Tenant = tenant("tn_clinic", "starter", 2);
/// On `pro`: batches, completions and embeddings.
pub(super) const TRAVEL: Tenant = tenant("tn_travel", "pro", 3);
/// On `enterprise`, where nothing is limited; without traffic of its own.
const MUSEUM: Tenant = tenant("tn_museum", "enterprise", 4);

/// All of them.
pub(super) const ALL: [Tenant; 4] = [BAKERY, CLINIC, TRAVEL, MUSEUM];

/// The chat service's own tables, as far as Tollgate reads them.
const TABLES: &str = "
    CREATE TABLE tenants (
        tenant_id  TEXT PRIMARY KEY,
        status     TEXT NOT NULL DEFAULT 'active',
        plan       TEXT NOT NULL,
        expires_at TIMESTAMPTZ
    );
    CREATE TABLE chat_sessions (
        session_id UUID PRIMARY KEY,
        tenant_id  TEXT NOT NULL,
        visitor_id TEXT,
        expires_at TIMESTAMPTZ NOT NULL DEFAULT now() + interval '1 day'
    );
";

/// Makes the chat service's tables, and puts the cast into them.
pub(super) async fn install(store: &Store) -> anyhow::Result<()> {
    let client = store.client().await?;
    client.batch_execute(TABLES).await?;
    for Tenant { id, plan, session } in &ALL {
        client.execute("INSERT INTO tenants (tenant_id, plan) VALUES ($1, $2)", &[id, plan]).await?;
        let insert = "INSERT INTO chat_sessions (session_id, tenant_id) VALUES ($1, $2)";
        client.execute(insert, &[session, id]).await?;
    }
    Ok(())
}
