//! Look-ups in the service's own database: [`TenantSource`].

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_postgres::types::Type;

use super::pool::{Store, StoreError};
use crate::tenant::{SourceError, TenantSource};

impl TenantSource for Store {
    fn look_up<'a>(
        &'a self,
        query: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, SourceError>> {
        async move {
            // Postgres has no NUL in text, so no row can have this key.
            if key.contains('\0') {
                return Ok(None);
            }
            let told = |error: StoreError| SourceError(error.to_string());
            let client = self.client().await.map_err(told)?;
            let sql = first_column_as_text(query);
            let row = self
                .bounded(client, async |client| {
                    let statement = client.prepare_typed_cached(&sql, &[Type::TEXT]).await?;
                    client.query_opt(&statement, &[&key]).await
                })
                .await
                .map_err(told)?;
            Ok(row.and_then(|row| row.get(0)))
        }
        .boxed()
    }
}

/// `query` as a table of which only the first column is named; casting it on the server reads any type, where the
/// driver would have to know each. The line break ends a comment that the query may end with.
fn first_column_as_text(query: &str) -> String {
    let query = query.trim().trim_end_matches(';');
    format!("SELECT answer.first::text FROM (\n{query}\n) AS answer(first) LIMIT 1")
}
