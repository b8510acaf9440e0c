//! Whether a look-up in the service's database can ever be answered: asked at the start and every minute.
//!
//! A look-up is first run with a key that no row has: what is wrong with its syntax, its tables or the role's permissions
//! shows there. Row-level security does not: it hides rows and says nothing. So the look-up is planned once more with
//! `row_security` off, with which Postgres refuses a query that a policy would filter, and names its table.

use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use tokio_postgres::Error;
use tokio_postgres::types::Type;

use super::pool::{Store, StoreError};
use super::tenants::{fault, first_column_as_text};
use crate::tenant::Fault;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether row-level security hides every row of the tables named $1 that the role reads under it: because no policy is for
/// the role, or because it sees none of the rows that there are.
const POLICIES: &str = "
    SELECT c.oid::regclass::text, current_user::text, c.reltuples > 0 OR pg_stat_get_live_tuples(c.oid) > 0,
        EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('r', '*')
            AND EXISTS (SELECT FROM unnest(p.polroles) r(role) WHERE role = 0 OR pg_has_role(role, 'USAGE')))
    FROM pg_class c WHERE c.relname = $1 AND c.relkind IN ('r', 'p') AND row_security_active(c.oid)";

/// What an examination found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Examined {
    /// It can be answered.
    Fine,
    /// Nobody can say: the database is away, or too slow.
    Unknown,
    /// It never will be: why, and whether that is for a table or a schema that is not there.
    Broken {
        /// What the database said.
        why: String,
        /// There is no such table, or no such schema.
        missing: bool,
    },
    /// Row-level security hides every row.
    Hidden {
        /// Of this table.
        table: String,
        /// From this role.
        role: String,
    },
}

impl Store {
    /// Examines a look-up (see [`crate::tenant::TenantSource`]).
    pub async fn examine(&self, query: &str) -> Examined {
        let sql = first_column_as_text(query);
        match self.patient(PATIENCE, async |client| examine(client, &sql).await).await {
            Ok(None) => Examined::Fine,
            Ok(Some((table, role))) => Examined::Hidden { table, role },
            Err(error) if fault(&error) == Fault::Broken => {
                let missing = matches!(&error, StoreError::Query(error)
                    if error.code().is_some_and(|code| matches!(code.code(), "42P01" | "3F000")));
                Examined::Broken { why: error.to_string(), missing }
            }
            Err(_) => Examined::Unknown,
        }
    }
}

/// The table and the role, where rows are hidden.
async fn examine(client: &ClientWrapper, sql: &str) -> Result<Option<(String, String)>, Error> {
    client.batch_execute("BEGIN READ ONLY").await?;
    client.query_typed(sql, &[(&None::<&str>, Type::TEXT)]).await?;
    client.batch_execute("SET LOCAL row_security = off").await?;
    let filtered = match client.prepare_typed(sql, &[Type::TEXT]).await {
        Ok(_) => None,
        // Its words may be of any language; the table's name is between quotes in all of them.
        Err(error) => {
            error.as_db_error().and_then(|error| error.message().split('"').nth(1).map(str::to_owned))
        }
    };
    client.batch_execute("ROLLBACK").await?;
    let Some(filtered) = filtered else { return Ok(None) };
    for row in client.query_typed(POLICIES, &[(&filtered, Type::NAME)]).await? {
        let (table, role): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let (has_rows, has_policy): (Option<bool>, bool) = (row.try_get(2)?, row.try_get(3)?);
        let sees = client.query(&format!("SELECT FROM {table} LIMIT 1"), &[]).await?;
        if sees.is_empty() && (has_rows == Some(true) || !has_policy) {
            return Ok(Some((table, role)));
        }
    }
    Ok(None)
}
